"""The JSON Schema of what a tool returns, from its return annotation.

It describes the data that a plan sees, which `to_data` has made of the Python value: a
duration is a number of seconds, a named tuple an object. Where an annotation says too little
there is no schema, and no reference is held against it. pydantic loads when the first schema
is made.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import typing
from collections.abc import Mapping
from typing import Any

from agentpar.errors import UsageError
from agentpar.tools.arguments import tidy

_STREAMS = (
    collections.abc.AsyncIterable,
    collections.abc.AsyncIterator,
    collections.abc.AsyncGenerator,
    collections.abc.Iterable,
    collections.abc.Iterator,
    collections.abc.Generator,
)


def output_schema(tool: str, annotation: Any) -> dict[str, Any] | None:
    """The schema of the data that ``annotation`` becomes; None where it may be anything.

    What a typed dict, dataclass, named tuple or model does not declare, it does not have;
    one that allows more says so (``extra="allow"``), or is annotated ``dict[str, Any]``. An
    iterator of items, as streaming tools return it, is the list of them.
    """
    if annotation is Any:
        return None
    if typing.get_origin(annotation) in _STREAMS and (items := typing.get_args(annotation)):
        annotation = list[items[0]]  # type: ignore[valid-type]
    from pydantic import PydanticUserError, TypeAdapter
    from pydantic_core import SchemaError

    try:
        schema = TypeAdapter(annotation).json_schema(
            mode="serialization", by_alias=False, schema_generator=_generator()
        )
    except (PydanticUserError, SchemaError, NameError, RecursionError, TypeError):
        return None
    return written_out(tool, schema) or None


def written_out(tool: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """``schema`` with its definitions written in place, as `tidy` does it for arguments.

    ``{}``, which takes everything, where that is too long or too deep.
    """
    definitions = schema.get("$defs", {})
    value = {key: item for key, item in schema.items() if key != "$defs"}
    try:
        tidied = tidy(tool, {"properties": {"value": value}, "$defs": definitions})
    except UsageError:
        return {}
    kept = {"$defs": tidied["$defs"]} if "$defs" in tidied else {}
    return {**tidied["properties"]["value"], **kept}


@functools.cache
def _generator() -> Any:
    """pydantic's generator, for what `to_data` makes of a value."""
    from pydantic.json_schema import GenerateJsonSchema

    class DataSchema(GenerateJsonSchema):
        ignored_warning_kinds = {  # noqa: RUF012 (pydantic's own declaration)
            "non-serializable-default",
            "skipped-choice",
        }

        def timedelta_schema(self, schema: Any) -> dict[str, Any]:
            return {"type": "number"}  # seconds

        def named_tuple_schema(self, schema: Any) -> dict[str, Any]:
            return {"type": ["object", "array"]}  # a list inside a model, else an object

        call_schema = named_tuple_schema  # its name before pydantic 2.14

        def ser_schema(self, schema: Any) -> dict[str, Any] | None:
            # A serializer of the user's own applies inside a model and nowhere else.
            own = schema["type"].startswith("function-")
            return {} if own else super().ser_schema(schema)

        def typed_dict_schema(self, schema: Any) -> dict[str, Any]:
            return {"additionalProperties": False, **super().typed_dict_schema(schema)}

        def dataclass_schema(self, schema: Any) -> dict[str, Any]:
            made = super().dataclass_schema(schema)
            # pydantic leaves out some that only __post_init__ sets; the data has them.
            fields = {field.name for field in dataclasses.fields(schema["cls"])}
            whole = fields <= made.get("properties", {}).keys()
            return {"additionalProperties": False, **made} if whole else made

        def model_schema(self, schema: Any) -> dict[str, Any]:
            if schema["cls"].model_config.get("serialize_by_alias"):
                return {}
            made = super().model_schema(schema)
            return {"additionalProperties": False, **made} if "properties" in made else made

    return DataSchema
