"""The arguments of a tool: their JSON Schema, their check, and what was wrong with them.

It must never know what the tool does or where it runs. pydantic loads when the first
schema is made.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from agentpar.errors import UsageError
from agentpar.tools.data import shown
from agentpar.tools.dialects import modern

if typing.TYPE_CHECKING:  # pydantic loads when the first tool is made
    from pydantic import TypeAdapter

Validate = Callable[[Mapping[str, Any]], dict[str, Any]]


@dataclasses.dataclass(frozen=True, slots=True)
class Signature:
    """What a function takes and gives: ``plain`` is the function or method behind it."""

    tool: str
    plain: Callable[..., Any]
    parameters: Mapping[str, inspect.Parameter]
    hints: Mapping[str, Any]


def read_signature(tool: str, fn: Callable[..., Any]) -> Signature:
    """The signature of ``fn``; `UsageError` where a plan could not give its arguments."""
    plain = _plain(fn)
    if inspect.isgeneratorfunction(plain):
        raise UsageError(f"tool {tool!r} is a generator: make it 'async def', or return a list")
    hints = _hints(tool, plain)
    return Signature(tool, plain, _parameters(tool, fn, hints), hints)


def _plain(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function or method behind a partial or an object with ``__call__``."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    if inspect.isroutine(fn):
        return fn
    return fn.__call__  # type: ignore[operator, no-any-return]


def _hints(name: str, plain: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(plain, include_extras=True)
    except NameError as error:
        raise UsageError(
            f"tool {name!r}: an annotation cannot be read: {error}; "
            f"define it at the top of its module"
        ) from None


def _parameters(
    name: str, fn: Callable[..., Any], hints: Mapping[str, Any]
) -> dict[str, inspect.Parameter]:
    """The parameters a plan can give, by name; `UsageError` where one cannot be given."""
    parameters = dict(inspect.signature(fn).parameters)
    for key, parameter in parameters.items():
        match parameter.kind:
            case parameter.VAR_POSITIONAL | parameter.VAR_KEYWORD:
                stars = "*" if parameter.kind is parameter.VAR_POSITIONAL else "**"
                raise UsageError(f"tool {name!r} takes {stars}{key}: name and type each argument")
            case parameter.POSITIONAL_ONLY:
                raise UsageError(
                    f"tool {name!r}: parameter {key!r} is positional-only, but a plan gives "
                    f"arguments by name: remove the '/'"
                )
        if key not in hints:
            raise UsageError(f"tool {name!r}: parameter {key!r} has no type: write {key}: str, say")
    return parameters


def make_schema(signature: Signature, texts: Mapping[str, str]) -> tuple[dict[str, Any], Validate]:
    """The JSON Schema of the arguments, and the function that checks and converts them.

    ``texts`` describe parameters by name. Raises `UsageError` where a type has no schema.
    """
    from pydantic import Field, PydanticUserError
    from pydantic.json_schema import GenerateJsonSchema

    class QuietSchema(GenerateJsonSchema):
        """A default that JSON cannot hold is left out of the schema, without a warning."""

        ignored_warning_kinds = {  # noqa: RUF012 (pydantic's own declaration)
            "non-serializable-default",
            "skipped-choice",
        }

    name = signature.tool
    fields: dict[str, Any] = {}
    for key, parameter in signature.parameters.items():
        kind, default = signature.hints[key], parameter.default
        if default is parameter.empty:
            fields[key] = typing.Required[kind]
        else:
            kind = kind if default is not None else typing.Union[kind, None]  # noqa: UP007
            fields[key] = typing.NotRequired[typing.Annotated[kind, Field(default=default)]]
    try:
        adapter = _adapter(name, fields)
        schema = tidy(name, adapter.json_schema(schema_generator=QuietSchema))
    except PydanticUserError as error:
        raise UsageError(f"tool {name!r}: its types make no schema: {error.message}") from error
    for key, text in texts.items():
        schema["properties"][key].setdefault("description", text)
    return schema, _checker(name, adapter, tuple(fields))


def check_schema(name: str, schema: Mapping[str, Any]) -> Validate:
    """A ``validate`` for a tool that brings its own JSON Schema (an object's).

    It checks names, presence and types down to the items of lists; what lies deeper in
    objects, and defaults, are left to the tool's owner, who has the real types.
    """
    required = schema.get("required", ())
    fields = {
        key: typing.Required[_type_of(item)]
        if key in required
        else typing.NotRequired[_type_of(item)]
        for key, item in schema.get("properties", {}).items()
    }
    return _checker(name, _adapter(name, fields), tuple(fields))


def _type_of(schema: Any) -> Any:
    """The Python type that takes what a JSON Schema describes; `Any` where it says too little."""
    match schema:
        case {"enum": [_, *_] as values} if all(isinstance(v, str | int | None) for v in values):
            return typing.Literal[tuple(values)]
        case {"anyOf": [_, *_] as branches} | {"oneOf": [_, *_] as branches}:
            return typing.Union[tuple(map(_type_of, branches))]  # noqa: UP007
        case {"type": [_, *_] as names}:
            # Each once: lists in lists that said "array" twice would double at every level.
            each = dict.fromkeys(map(str, names))
            return typing.Union[tuple(_type_of({**schema, "type": n}) for n in each)]  # noqa: UP007
        case {"type": "array", **rest}:
            return list[_type_of(rest.get("items"))]  # type: ignore[misc]
        case {"type": "object"}:
            return dict[str, Any]
        case {"type": "number"}:
            return int | float
        case {"type": "string" | "integer" | "boolean" | "null" as word}:
            return {"string": str, "integer": int, "boolean": bool, "null": None}[word]
    return Any


def _adapter(name: str, fields: Mapping[str, Any]) -> TypeAdapter[Any]:
    """What pydantic makes of the arguments.

    It sees a typed dict, not a model: the keys can then be any name (``json``, ``_id``),
    and validating returns the very dict that the call needs.
    """
    from pydantic import ConfigDict, TypeAdapter
    from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

    make: Any = TypedDict
    arguments = make(name, fields)
    arguments.__pydantic_config__ = ConfigDict(extra="forbid")
    return TypeAdapter(arguments)


def _checker(name: str, adapter: TypeAdapter[Any], known: tuple[str, ...]) -> Validate:
    from pydantic import ValidationError

    check = adapter.validator.validate_python

    def validate(args: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return check(args)  # type: ignore[no-any-return]
        except ValidationError as error:
            raise UsageError(complaint(name, error.errors(), args, known)) from None

    return validate


# ── A schema, written out ────────────────────────────────────────────────────────

_LONGEST_SCHEMA = 100_000
"""Characters. A planner reads every tool's schema, so a longer one is a mistake or an attack:
thirty definitions that each name the next one twice would fill the memory."""


def tidy(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """A closed object schema in today's dialect (`modern`), without pydantic's titles, its
    definitions written in place.

    Where definitions contain themselves, the ones that close a circle stay under ``$defs``.
    Raises `UsageError` naming the tool ``name``, soon, where the result would be longer
    than 100,000 characters or nested too deep to walk.
    """
    try:
        return _written_out(name, schema)
    except RecursionError:
        raise UsageError(f"tool {name!r}: its schema is nested too deep: flatten it") from None


def _written_out(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    schema = modern(schema)
    definitions: dict[str, Mapping[str, Any]] = schema.get("$defs", {})
    kept = _closing_a_circle(schema, definitions)
    length = 0

    def spend(characters: int) -> None:
        nonlocal length
        length += characters
        if length > _LONGEST_SCHEMA:
            raise UsageError(
                f"tool {name!r}: its schema is longer than {_LONGEST_SCHEMA:,} characters once "
                f"its definitions are written out: give it fewer or simpler arguments"
            )

    def leaf(item: Any) -> Any:
        spend(len(repr(item)))
        return item

    def walk(node: Any, *, names: bool = False) -> Any:
        # In ``names`` the keys are the caller's own words, and may well be "title".
        if isinstance(node, list):
            spend(len("[]"))
            return [walk(item) for item in node]
        if not isinstance(node, Mapping):
            return leaf(node)
        if not names:
            node = modern(node)
        spend(len(repr(list(node))))
        target = _target(node)
        if not names and target in definitions and target not in kept:
            rest = {key: item for key, item in node.items() if key != "$ref"}
            return walk({**definitions[target], **rest})
        return {
            key: leaf(item)
            if key in _VERBATIM and not names
            else walk(item, names=key == "properties" and not names)
            for key, item in node.items()
            if names or key not in {"title", "$defs"}
        }

    result: dict[str, Any] = walk(schema)
    result = {"type": "object", "properties": {}, **result, "additionalProperties": False}
    if kept:
        result["$defs"] = {key: walk(definitions[key]) for key in sorted(kept)}
    return result


_VERBATIM = frozenset({"default", "const", "enum", "examples", "required"})


def _target(node: Mapping[str, Any]) -> str | None:
    """The definition that a schema's own ``$ref`` names."""
    ref = node.get("$ref")
    return ref.removeprefix("#/$defs/") if isinstance(ref, str) else None


def _closing_a_circle(
    schema: Mapping[str, Any], definitions: Mapping[str, Mapping[str, Any]]
) -> set[str]:
    """The definitions, of those in use, whose references lead back to them.

    One per circle is enough to break it: the one that is met first.
    """
    found: set[str] = set()
    open_: set[str] = set()
    done: set[str] = set()

    def visit(node: Any) -> None:
        for target in filter(definitions.__contains__, _targets(node)):
            if target in open_:
                found.add(target)
            elif target not in done:
                open_.add(target)
                visit(definitions[target])
                open_.remove(target)
                done.add(target)

    visit({key: item for key, item in schema.items() if key != "$defs"})
    return found


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        if (target := _target(node)) is not None:
            yield target
        for item in node.values():
            yield from _targets(item)
    elif isinstance(node, list):
        for item in node:
            yield from _targets(item)


# ── What was wrong with the arguments ────────────────────────────────────────────


def complaint(
    name: str, errors: Iterable[Any], args: Mapping[str, Any], known: tuple[str, ...]
) -> str:
    """pydantic's errors as one line: which argument, what it must be, what it is."""
    found: dict[str, list[str]] = {}
    for error in errors:
        where = _place(error["loc"], args, missing=error["type"] == "missing")
        match error["type"], error["loc"]:
            case "missing", _:
                text = "is missing"
            case "extra_forbidden", (key,):
                close = difflib.get_close_matches(str(key), known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"it takes {_listed(known)}"
                text = f"is not known; {hint}"
            case _:
                text = f"{_demand(error['msg'])}, got {shown(error['input'])}"
        if text not in found.setdefault(where, []):
            found[where].append(text)
    wrong = (f"argument {key!r} {', or '.join(texts)}" for key, texts in found.items())
    return f"{name}: {'; '.join(wrong)}"


def _place(loc: Sequence[str | int], args: Any, *, missing: bool) -> str:
    """``country`` or ``city.tags[0]``: the steps of ``loc`` that exist in the arguments.

    pydantic's ``loc`` also names the branch of a union that was tried; those steps lead
    nowhere in the arguments and are left out.
    """
    text, value = "", args
    for depth, step in enumerate(loc):
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            if not (missing and depth == len(loc) - 1):
                continue
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def _demand(message: str) -> str:
    text = message.split(", unable to ")[0]
    for polite in ("Input should be a valid ", "Input should be "):
        if text.startswith(polite):
            rest = text.removeprefix(polite)
            article = "" if polite.endswith("be ") else "an " if rest[0] in "aeio" else "a "
            return f"must be {article}{rest}"
    return f"is wrong: {text}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "no arguments"
