"""The JSON Schema of ``agent.yaml``, for editors."""

from __future__ import annotations

from typing import Any

from agentpar.config.fields import FILLED, AgentFile


def json_schema() -> dict[str, Any]:
    """The schema that is committed as ``agentpar/agentpar.schema.json``."""
    schema: dict[str, Any] = _fillable(AgentFile.model_json_schema())
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _fillable(node: Any) -> Any:
    """A choice between words may also be written as ``${V}``."""
    match node:
        case {"enum": words, **rest}:
            rest.pop("type", None)
            return {"anyOf": [{"enum": words}, {"type": "string", "pattern": FILLED}], **rest}
        case dict():
            return {key: _fillable(item) for key, item in node.items()}
        case list():
            return [_fillable(item) for item in node]
    return node
