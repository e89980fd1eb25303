"""A tool in words: what its docstring and its return annotation tell the planner.

It must never know the schema or the call. griffe loads when the first docstring is read.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True)
class Doc:
    text: str
    parameters: Mapping[str, str]
    returns: str = ""


def read_docstring(docstring: str, names: Iterable[str]) -> Doc:
    """The description, a text per parameter in ``names``, and what is returned."""
    if not docstring:
        return Doc("", {})
    import griffe

    options: Any = {"warnings": False}
    quiet = griffe.PerStyleOptions(google=options, numpy=options, sphinx=options)

    names = set(names)
    texts: list[str] = []
    described: dict[str, str] = {}
    returns: list[str] = []
    for section in griffe.Docstring(docstring).parse("auto", per_style_options=quiet):
        match section.kind:
            case griffe.DocstringSectionKind.text:
                texts.append(section.value)
            case griffe.DocstringSectionKind.parameters:
                described |= {
                    item.name: _one_line(item.description)
                    for item in section.value
                    if item.name in names
                }
            case griffe.DocstringSectionKind.returns:
                returns += [_one_line(item.description) for item in section.value]
    text, inline = _read_inline("\n\n".join(texts), names - described.keys())
    return Doc(text, described | inline, "; ".join(filter(None, returns)))


def _read_inline(text: str, names: AbstractSet[str]) -> tuple[str, dict[str, str]]:
    """Take ``name: text`` out of a description, for the parameters in ``names``."""
    if not names:
        return text.strip(), {}
    choice = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
    # A name counts at the start of a line or after the end of a sentence or item.
    parts = re.split(rf"(?:^|(?<=[.;,!?])[ \t]|\n)[ \t]*({choice}):\s+", text)
    described = {
        name: _one_line(part.rstrip().rstrip(";,"))
        for name, part in zip(parts[1::2], parts[2::2], strict=True)
    }
    return parts[0].strip(), described


def _one_line(text: str) -> str:
    return " ".join(text.split())


# ── The return annotation ────────────────────────────────────────────────────────


def spell(annotation: Any) -> str:
    """A type in words for the planner: ``int``, ``list[City] with fields name, population``."""
    if annotation is Any or annotation is inspect.Parameter.empty:
        return ""
    records = dict(_records(annotation))
    alone = len(records) == 1
    fields = [
        f"{'with' if alone else record.__name__ + ' has'} fields {', '.join(names)}"
        for record, names in records.items()
    ]
    return (
        " ".join([_spelled(annotation), *fields[:1]])
        if alone
        else "; ".join([_spelled(annotation), *fields])
    )


def _spelled(annotation: Any) -> str:
    if annotation is None or annotation is types.NoneType:
        return "None"
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _spelled(args[0])
    if origin is typing.Literal:
        return " | ".join(map(repr, args))
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(_spelled, args))
    if origin is not None:
        return f"{_spelled(origin)}[{', '.join(map(_spelled, args))}]"
    if annotation is ...:
        return "..."
    return getattr(annotation, "__name__", str(annotation))


def _records(annotation: Any) -> Iterator[tuple[Any, tuple[str, ...]]]:
    """The types with named fields inside an annotation, and their fields."""
    for argument in typing.get_args(annotation):
        yield from _records(argument)
    if dataclasses.is_dataclass(annotation):
        yield annotation, tuple(field.name for field in dataclasses.fields(annotation))
    elif isinstance(annotation, type):
        if isinstance(fields := getattr(annotation, "model_fields", None), Mapping):
            yield annotation, tuple(fields)
        elif issubclass(annotation, tuple) and hasattr(annotation, "_fields"):
            yield annotation, annotation._fields
        elif hasattr(annotation, "__total__"):  # a typed dict, of typing or typing_extensions
            yield annotation, tuple(annotation.__annotations__)
