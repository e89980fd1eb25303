"""Tools from Python functions: the signature is the schema, the docstring the description.

It must never know a plan, a model or who calls the tool. pydantic and griffe load when
the first function becomes a tool, so importing this file is cheap.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Unpack, overload

from agentpar.errors import UsageError
from agentpar.policy import Policy, PolicyFields
from agentpar.tools.arguments import make_schema, read_signature
from agentpar.tools.base import BATCH_SIZE, Effect, Tool, is_sink
from agentpar.tools.docstring import read_docstring, spell
from agentpar.tools.langchain import from_langchain
from agentpar.tools.names import checked_name
from agentpar.tools.outputs import output_schema
from agentpar.tools.threads import in_thread


@overload
def tool(
    fn: Callable[..., Any],
    *,
    name: str | None = None,
    description: str | None = None,
    effect: Effect = "read",
    sends: bool = False,
    pure: bool = False,
    version: str = "",
    returns: str = "",
    output: Mapping[str, Any] | None = None,
    batch: Callable[[list[dict[str, Any]]], Any] | None = None,
    batch_size: int | None = None,
    words: Sequence[str] = (),
    **called: Unpack[PolicyFields],
) -> Tool: ...


@overload
def tool(
    fn: None = None,
    *,
    name: str | None = None,
    description: str | None = None,
    effect: Effect = "read",
    sends: bool = False,
    pure: bool = False,
    version: str = "",
    returns: str = "",
    output: Mapping[str, Any] | None = None,
    batch: Callable[[list[dict[str, Any]]], Any] | None = None,
    batch_size: int | None = None,
    words: Sequence[str] = (),
    **called: Unpack[PolicyFields],
) -> Callable[[Callable[..., Any]], Tool]: ...


def tool(
    fn: Callable[..., Any] | None = None,
    *,
    name: str | None = None,
    description: str | None = None,
    effect: Effect = "read",
    sends: bool = False,
    pure: bool = False,
    version: str = "",
    returns: str = "",
    output: Mapping[str, Any] | None = None,
    batch: Callable[[list[dict[str, Any]]], Any] | None = None,
    batch_size: int | None = None,
    words: Sequence[str] = (),
    **called: Unpack[PolicyFields],
) -> Tool | Callable[[Callable[..., Any]], Tool]:
    """Make a typed function, sync or async, a `Tool`; with or without arguments.

    The schema comes from the annotations; the description and those of the parameters
    come from the docstring (Google, NumPy or Sphinx style, or the short inline style
    ``Population of a country. country: English name.``). A sync function runs in a thread
    and sees the caller's context variables. ``returns`` says in one line what the value looks
    like; by default the return annotation says it, as it does for ``output``, the JSON Schema
    that references to the value are checked against (``{}`` lets every reference through). For
    ``effect``, ``sends`` and ``pure`` see `Tool`. ``batch`` is a function, sync or async, that
    makes up to ``batch_size`` (16) calls as one: it takes a list of their arguments (each a dict)
    and returns the list of results, or exceptions, in the same order. ``words`` names arguments
    that are search words: see `Tool`. ``called`` says how the tool is called: the fields of
    `Policy` (``timeout``, ``retries``, ``cache``, …). A result is kept under its ``version``, which
    by default changes with the function's code.

    The tool still works as the plain function. Raises `UsageError` where the signature
    cannot be a schema: a parameter without annotation, ``*args``, ``**kwargs``,
    positional-only parameters, a sync generator. An async generator is a tool whose value is the
    list of what it yields; what goes over that list begins with its first element.

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
            sends=sends,
            pure=pure,
            version=version,
            returns=returns,
            output=output,
            batch=batch,
            batch_size=batch_size,
            words=words,
            **called,
        )
    name = checked_name(str(name or getattr(fn, "__name__", type(fn).__name__)))
    if effect not in typing.get_args(Effect):
        raise UsageError(f"tool {name!r}: effect must be 'read' or 'write', got {effect!r}")
    sink = is_sink(effect, sends)
    if called.get("cache") is not None and sink:
        raise UsageError(f"tool {name!r}: a call that writes or sends cannot be served by a cache")
    if pure and sink:
        raise UsageError(
            f"tool {name!r}: a pure tool only works out its result; it cannot write or send as well"
        )
    try:
        policy = Policy(**called)
    except (UsageError, TypeError) as error:
        raise UsageError(f"tool {name!r}: {error}") from None
    signature = read_signature(name, fn)
    streams = inspect.isasyncgenfunction(signature.plain)
    if batch is not None:
        _check_batch(name, batch, streams=streams)
    elif batch_size is not None:
        raise UsageError(f"tool {name!r}: batch_size={batch_size!r} needs batch=, the function")
    if batch_size is not None and (type(batch_size) is not int or batch_size < 2):
        raise UsageError(f"tool {name!r}: batch_size must be at least 2, got {batch_size!r}")
    doc = read_docstring(inspect.getdoc(signature.plain) or "", signature.parameters)
    schema, validate = make_schema(signature, doc.parameters)
    if unknown := [each for each in words if each not in schema["properties"]]:
        raise UsageError(f"tool {name!r}: words names {unknown[0]!r}, which is no argument of it")
    returned = signature.hints.get("return", Any)
    return Tool(
        name=name,
        description=doc.text if description is None else description,
        parameters=schema,
        call=fn
        if inspect.iscoroutinefunction(signature.plain) or streams
        else functools.partial(_call_in_thread, fn),
        validate=validate,
        effect=effect,
        sends=sends,
        pure=pure,
        policy=policy,
        version=version or _fingerprint(signature.plain) + (_fingerprint(batch) if batch else ""),
        streams=streams,
        returns=returns or ": ".join(filter(None, [spell(returned), doc.returns])),
        function=fn,
        output=output_schema(name, returned) if output is None else output,
        batch=None if batch is None else functools.partial(_call_batch, batch),
        batch_size=BATCH_SIZE if batch_size is None else batch_size,
        words=tuple(words),
    )


def _check_batch(name: str, batch: object, *, streams: bool) -> None:
    """`UsageError` where ``batch`` cannot take a list of arguments."""
    if streams:
        raise UsageError(f"tool {name!r}: a tool that streams its list has no batch")
    if not callable(batch):
        raise UsageError(f"tool {name!r}: batch must be a function, got {batch!r}")
    try:
        inspect.signature(batch).bind([])
    except TypeError:
        raise UsageError(
            f"tool {name!r}: its batch takes one argument, the list of the calls' arguments: "
            f"def {getattr(batch, '__name__', 'batch')}(calls: list[dict])"
        ) from None


def as_tool(thing: object) -> Tool:
    """``thing`` as a `Tool`: a tool as it is, a typed function, or a LangChain tool."""
    if isinstance(thing, Tool):
        return thing
    if callable(getattr(thing, "ainvoke", None)) and hasattr(thing, "name"):
        return from_langchain(thing)
    if callable(thing) and not isinstance(thing, type):
        made: Tool = tool(thing)
        return made
    raise UsageError(f"{thing!r} is not a tool: give a typed function, a Tool or a LangChain tool")


def toolbox(things: Iterable[object]) -> dict[str, Tool]:
    """The tools by name, in order; `UsageError` where two share one or a name is unusable."""
    tools: dict[str, Tool] = {}
    for made in map(as_tool, things):
        if checked_name(made.name) in tools:
            raise UsageError(f"two tools are named {made.name!r}: rename one with tool(name=…)")
        tools[made.name] = made
    return tools


def _fingerprint(fn: Callable[..., Any]) -> str:
    """Changes with what ``fn`` does, as far as its own code says: with that of the functions
    inside it, its defaults, and the function that a decorator has wrapped."""
    said: list[Any] = []
    while fn is not None:
        if (code := getattr(fn, "__code__", None)) is not None:
            defaults = getattr(fn, "__defaults__", None), getattr(fn, "__kwdefaults__", None)
            said.append((_code_said(code), *map(_constant_said, defaults)))
        fn = getattr(fn, "__wrapped__", None)  # type: ignore[assignment]
    if not said:
        return ""
    return hashlib.blake2b(repr(said).encode(errors="replace"), digest_size=6).hexdigest()


def _code_said(code: types.CodeType) -> Any:
    """What a function's code says, the same in every process. The names count, too: a tool is
    called by them."""
    constants = list(map(_constant_said, code.co_consts))
    return code.co_code, constants, code.co_names, code.co_varnames, code.co_freevars


def _constant_said(value: Any) -> Any:
    match value:
        case types.CodeType():
            return _code_said(value)
        case tuple():
            return list(map(_constant_said, value))
        case dict():
            return {name: _constant_said(item) for name, item in value.items()}
        case frozenset():
            return sorted(map(repr, map(_constant_said, value)))
        case None | str() | bytes() | int() | float() | complex():
            return value
    return type(value).__name__  # how another prints may name a place in memory


async def _call_batch(batch: Callable[..., Any], arguments: list[dict[str, Any]]) -> Any:
    if inspect.iscoroutinefunction(batch):
        return await batch(arguments)
    result = await in_thread(batch, arguments)
    return await result if inspect.isawaitable(result) else result


async def _call_in_thread(fn: Callable[..., Any], /, **args: Any) -> Any:
    result = await in_thread(fn, **args)
    # A sync wrapper around an async function hands back its coroutine.
    return await result if inspect.isawaitable(result) else result
