"""Tools from Python functions: the signature is the schema, the docstring the description.

It must never know a plan, a model or who calls the tool. pydantic and griffe load when
the first function becomes a tool, so that importing this file stays cheap.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import decimal
import difflib
import functools
import inspect
import math
import pathlib
import re
import types
import typing
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from enum import Enum
from typing import Any, overload

from agentpar.errors import UsageError
from agentpar.tools.base import Effect, Tool

if typing.TYPE_CHECKING:  # pydantic loads when the first tool is made
    from pydantic import TypeAdapter

Validate = Callable[[Mapping[str, Any]], dict[str, Any]]


@overload
def tool(
    fn: Callable[..., Any],
    *,
    name: str | None = None,
    description: str | None = None,
    effect: Effect = "read",
    timeout: float | None = None,
    returns: str = "",
) -> Tool: ...


@overload
def tool(
    fn: None = None,
    *,
    name: str | None = None,
    description: str | None = None,
    effect: Effect = "read",
    timeout: float | None = None,
    returns: str = "",
) -> Callable[[Callable[..., Any]], Tool]: ...


def tool(
    fn: Callable[..., Any] | None = None,
    *,
    name: str | None = None,
    description: str | None = None,
    effect: Effect = "read",
    timeout: float | None = None,
    returns: str = "",
) -> Tool | Callable[[Callable[..., Any]], Tool]:
    """Make a typed function, sync or async, a `Tool`; with or without arguments.

    The schema comes from the annotations; the description and those of the parameters
    come from the docstring (Google, NumPy or Sphinx style, or the short inline style
    ``Population of a country. country: English name.``). A sync function runs in a thread
    and sees the caller's context variables. ``timeout`` is in seconds. ``returns`` says in
    one line what the value looks like; by default the return annotation says it.

    The tool still works as the plain function. Raises `UsageError` where the signature
    cannot be a schema: a parameter without annotation, ``*args``, ``**kwargs``,
    positional-only parameters, a generator.

    >>> @tool
    ... async def population(country: str) -> int:
    ...     '''Population of a country. country: English name.'''
    """
    if fn is None:
        return functools.partial(
            tool,
            name=name,
            description=description,
            effect=effect,
            timeout=timeout,
            returns=returns,
        )
    name = _checked_name(str(name or getattr(fn, "__name__", type(fn).__name__)))
    if effect not in typing.get_args(Effect):
        raise UsageError(f"tool {name!r}: effect must be 'read' or 'write', got {effect!r}")
    plain = _plain(fn)
    if inspect.isgeneratorfunction(plain) or inspect.isasyncgenfunction(plain):
        raise UsageError(f"tool {name!r} is a generator: return a list instead of yielding")
    hints = _hints(name, plain)
    parameters = _parameters(name, fn, hints)
    doc = _read_docstring(inspect.getdoc(plain) or "", parameters)
    schema, validate = _compile(name, parameters, hints, doc.parameters)
    return Tool(
        name=name,
        description=doc.text if description is None else description,
        parameters=schema,
        call=fn if inspect.iscoroutinefunction(plain) else functools.partial(_in_thread, fn),
        validate=validate,
        effect=effect,
        timeout=timeout,
        returns=returns or ": ".join(filter(None, [spell(hints.get("return", Any)), doc.returns])),
        function=fn,
    )


def as_tool(thing: object) -> Tool:
    """``thing`` as a `Tool`: a tool as it is, a typed function, or a LangChain tool."""
    if isinstance(thing, Tool):
        return thing
    if callable(getattr(thing, "ainvoke", None)) and hasattr(thing, "name"):
        from agentpar.tools.langchain import from_langchain

        return from_langchain(thing)
    if callable(thing) and not isinstance(thing, type):
        made: Tool = tool(thing)
        return made
    raise UsageError(f"{thing!r} is not a tool: give a typed function, a Tool or a LangChain tool")


def toolbox(things: Iterable[object]) -> dict[str, Tool]:
    """The tools by name, in order; `UsageError` where two share one or a name is unusable."""
    tools: dict[str, Tool] = {}
    for made in map(as_tool, things):
        if _checked_name(made.name) in tools:
            raise UsageError(f"two tools are named {made.name!r}: rename one with tool(name=…)")
        tools[made.name] = made
    return tools


def plan_name(name: str) -> str:
    """A foreign tool's name as a plan can write it: ``tavily-search`` is ``tavily_search``."""
    return re.sub(r"\W|^(?=\d)", "_", name)


def _checked_name(name: str) -> str:
    if not name.isidentifier():
        raise UsageError(
            f"tool name {name!r} is not an identifier (letters, digits and '_', no digit "
            f"first), so no plan can call it: rename it with tool(name=…)"
        )
    if name == "join":
        raise UsageError("a tool cannot be named 'join': that word ends every plan")
    return name


async def _in_thread(fn: Callable[..., Any], /, **args: Any) -> Any:
    result = await asyncio.to_thread(fn, **args)
    # A sync wrapper around an async function hands back its coroutine.
    return await result if inspect.isawaitable(result) else result


# ── The signature ────────────────────────────────────────────────────────────────


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


def _compile(
    name: str,
    parameters: Mapping[str, inspect.Parameter],
    hints: Mapping[str, Any],
    texts: Mapping[str, str],
) -> tuple[dict[str, Any], Validate]:
    """The JSON Schema of the arguments, and the function that checks and converts them."""
    from pydantic import Field, PydanticUserError
    from pydantic.json_schema import GenerateJsonSchema

    class QuietSchema(GenerateJsonSchema):
        """A default that JSON cannot hold is left out of the schema, without a warning."""

        ignored_warning_kinds = {  # noqa: RUF012 (pydantic's own declaration)
            "non-serializable-default",
            "skipped-choice",
        }

    fields: dict[str, Any] = {}
    for key, parameter in parameters.items():
        kind, default = hints[key], parameter.default
        if default is parameter.empty:
            fields[key] = typing.Required[kind]
        else:
            kind = kind if default is not None else typing.Union[kind, None]  # noqa: UP007
            fields[key] = typing.NotRequired[typing.Annotated[kind, Field(default=default)]]
    try:
        adapter = _adapter(name, fields)
        schema = tidy(adapter.json_schema(schema_generator=QuietSchema))
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
        case {"enum": [*values]} if all(isinstance(v, str | int | None) for v in values):
            return typing.Literal[tuple(values)]
        case {"anyOf": [*branches]} | {"oneOf": [*branches]}:
            return typing.Union[tuple(map(_type_of, branches))]  # noqa: UP007
        case {"type": [*names]}:
            return typing.Union[tuple(_type_of({**schema, "type": n}) for n in names)]  # noqa: UP007
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


def tidy(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A closed object schema without pydantic's titles, its definitions written in place.

    Definitions that contain themselves stay under ``$defs``.
    """
    definitions = dict(schema.get("$defs", {}))
    recursive = {name for name in definitions if _reaches(name, name, definitions, set())}

    def walk(node: Any, *, names: bool = False) -> Any:
        # In ``names`` the keys are the caller's own words, and may well be "title".
        if isinstance(node, list):
            return [walk(item) for item in node]
        if not isinstance(node, Mapping):
            return node
        target = str(node.get("$ref", "")).removeprefix("#/$defs/")
        if not names and target in definitions and target not in recursive:
            rest = {key: item for key, item in node.items() if key != "$ref"}
            return walk({**definitions[target], **rest})
        return {
            key: item
            if key in {"default", "const", "enum", "examples", "required"} and not names
            else walk(item, names=key == "properties" and not names)
            for key, item in node.items()
            if names or key not in {"title", "$defs"}
        }

    result: dict[str, Any] = walk(schema)
    result = {"type": "object", "properties": {}, **result, "additionalProperties": False}
    if recursive:
        result["$defs"] = {name: walk(definitions[name]) for name in sorted(recursive)}
    return result


def _reaches(start: str, goal: str, definitions: Mapping[str, Any], seen: set[str]) -> bool:
    for ref in _refs(definitions.get(start)):
        if ref == goal:
            return True
        if ref not in seen:
            seen.add(ref)
            if _reaches(ref, goal, definitions, seen):
                return True
    return False


def _refs(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        if isinstance(ref := node.get("$ref"), str):
            yield ref.removeprefix("#/$defs/")
        for item in node.values():
            yield from _refs(item)
    elif isinstance(node, list):
        for item in node:
            yield from _refs(item)


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
                text = f"{_demand(error['msg'])}, got {_shown(error['input'])}"
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


def _shown(value: object, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "no arguments"


# ── The docstring ────────────────────────────────────────────────────────────────


@dataclasses.dataclass(frozen=True, slots=True)
class _Doc:
    text: str
    parameters: Mapping[str, str]
    returns: str = ""


def _read_docstring(docstring: str, names: Iterable[str]) -> _Doc:
    """The description, a text per parameter in ``names``, and what is returned."""
    if not docstring:
        return _Doc("", {})
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
    return _Doc(text, described | inline, "; ".join(filter(None, returns)))


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


# ── What a tool may return ───────────────────────────────────────────────────────

_PLAIN = frozenset({str, int, bool, types.NoneType})


def to_data(value: Any) -> Any:
    """``value`` as JSON-like data: str, int, float, bool, None, lists and dicts of these.

    Models, dataclasses and named tuples become dicts; enums their value; dates ISO text;
    durations seconds; decimals, UUIDs and paths text; sets sorted lists; arrays lists.
    Containers are copied, so a tool that keeps its list cannot change a result later.

    Raises `UsageError`, with the place in the value, for what JSON has no word for: bytes
    (text or a reference is wanted), NaN and infinities, generators, open files, loops.
    """
    if type(value) in _PLAIN:
        return value
    try:
        return _data(value, "value")
    except RecursionError:
        raise UsageError(f"a {type(value).__name__} that contains itself is not data") from None


def _data(value: Any, where: str) -> Any:
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is dict:
        return _mapping(value, where)
    if kind is list:
        return _items(value, where)
    if kind is float:
        if math.isfinite(value):
            return value
        raise UsageError(f"{where} is {value}, which JSON has no word for: return None or text")
    return _unusual(value, where)


def _unusual(value: Any, where: str) -> Any:
    match value:
        case Enum():
            return _data(value.value, where)
        case str() | int() | float():
            base = next(kind for kind in (str, int, float) if isinstance(value, kind))
            return _data(base(value), where)
        case datetime.date() | datetime.time():
            return value.isoformat()
        case datetime.timedelta():
            return value.total_seconds()
        case decimal.Decimal() | uuid.UUID() | pathlib.PurePath():
            return str(value)
        case bytes() | bytearray() | memoryview():
            raise UsageError(
                f"{where} is {len(value)} bytes, which is not data: decode it to text, "
                f"or save it and return its path"
            )
        case Mapping():
            return _mapping(value, where)
        case tuple() if hasattr(value, "_asdict"):
            return _mapping(value._asdict(), where)
        case AbstractSet():
            return _items(_in_order(value), where)
        case Sequence():
            return _items(value, where)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = (field.name for field in dataclasses.fields(value))
        return _mapping({name: getattr(value, name) for name in names}, where)
    if not isinstance(value, type):
        if callable(dump := getattr(value, "model_dump", None)):  # a pydantic model
            return _data(dump(), where)
        if callable(to_list := getattr(value, "tolist", None)):  # a numpy or torch array
            return _data(to_list(), where)
    raise UsageError(
        f"{where} is {_shown(value)} ({type(value).__name__}), which is not data: "
        f"return text, numbers, lists, dicts or models"
    )


def _items(value: Iterable[Any], where: str) -> list[Any]:
    return [
        item if type(item) in _PLAIN else _data(item, f"{where}[{at}]")
        for at, item in enumerate(value)
    ]


def _mapping(value: Mapping[Any, Any], where: str) -> dict[str, Any]:
    data = {
        (name := key if type(key) is str else _key(key, where)): item
        if type(item) in _PLAIN
        else _data(item, f"{where}.{name}")
        for key, item in value.items()
    }
    if len(data) != len(value):
        raise UsageError(f"{where} has two keys that read the same as text")
    return data


def _key(key: Any, where: str) -> str:
    match _data(key, f"a key of {where}"):
        case str(text):
            return text
        case bool() | None as word:
            return {True: "true", False: "false", None: "null"}[word]
        case int() | float() as number:
            return str(number)
    raise UsageError(f"{where} has the key {_shown(key)}, which is not text")


def _in_order(value: AbstractSet[Any]) -> list[Any]:
    """A set as a list, the same list in every process."""
    try:
        return sorted(value)
    except TypeError:
        return sorted(value, key=lambda item: (type(item).__name__, repr(item)))
