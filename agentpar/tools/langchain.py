"""LangChain tools as tools of a plan.

It knows a LangChain tool by its shape and never imports LangChain.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentpar.errors import UsageError
from agentpar.tools.arguments import check_schema, complaint, tidy
from agentpar.tools.base import Effect, Tool
from agentpar.tools.names import plan_name
from agentpar.tools.threads import in_thread


def from_langchain(tool: Any, *, effect: Effect = "read", sends: bool = False) -> Tool:
    """Make a LangChain ``BaseTool`` a `Tool`.

    The tool runs through its ``ainvoke``, or ``invoke`` in a thread where it is only sync, so
    callbacks and error handlers stay in force. Its arguments may be a pydantic model or a
    JSON Schema. Arguments that LangChain injects are hidden from the plan. LangChain does
    not say whether a tool changes the world: give ``effect="write"`` for one that does, and
    ``sends=True`` for one that hands its arguments to others.

    Raises `UsageError` where ``tool`` is no LangChain tool or has no named arguments.
    """
    source = getattr(tool, "tool_call_schema", None) or _input_schema(tool)
    make_schema = getattr(source, "model_json_schema", None)
    raw = make_schema() if make_schema else source
    if not isinstance(raw, Mapping) or raw.get("type", "object") != "object":
        raise UsageError(f"{tool!r} has no schema of named arguments, so no plan can call it")
    name = plan_name(tool.name)
    schema = tidy(name, {key: item for key, item in raw.items() if key != "description"})
    check = check_schema(name, schema)

    def validate(args: Mapping[str, Any]) -> dict[str, Any]:
        checked = check(args)
        if make_schema:
            _try_model(name, source, checked)
        return checked

    only_sync = _is_only_sync(tool)

    async def call(**args: Any) -> Any:
        return await (in_thread(tool.invoke, args) if only_sync else tool.ainvoke(args))

    return Tool(
        name=name,
        description=tool.description or "",
        parameters=schema,
        call=call,
        validate=validate,
        effect=effect,
        sends=sends,
    )


def _is_only_sync(tool: Any) -> bool:
    """Whether its async side is LangChain's own, which would use asyncio's few threads."""
    methods = (getattr(type(tool), name, None) for name in ("ainvoke", "_arun"))
    inherited = all(
        getattr(method, "__module__", "").startswith("langchain_core.") for method in methods
    )
    return inherited and getattr(tool, "coroutine", None) is None


def _input_schema(tool: Any) -> Any:
    try:
        return tool.args_schema or tool.get_input_schema()
    except AttributeError:
        raise UsageError(f"{tool!r} is not a LangChain tool: it has no args_schema") from None


def _try_model(name: str, model: Any, args: Mapping[str, Any]) -> None:
    """Let the tool's own model judge what the schema alone cannot (ranges, nested models)."""
    from pydantic import ValidationError

    try:
        model.model_validate(args)
    except ValidationError as error:
        raise UsageError(complaint(name, error.errors(), args, tuple(args))) from None
