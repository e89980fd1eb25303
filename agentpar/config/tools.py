"""From the entries under ``tools:`` to tools and sources of tools.

It starts nothing and asks nobody: an MCP server or a mini-web starts when the agent opens.
The only code of others that it imports is what an installed package offers under the entry
point ``agentpar.tools``, or a module that the caller has allowed by name.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from pydantic import SecretStr

from agentpar.config import units
from agentpar.config.fields import Calc, Mcp, ToolEntry, WebFetch, WebSearch
from agentpar.config.source import Loc
from agentpar.errors import AgentparError, UsageError
from agentpar.tools.base import Tool, ToolSource
from agentpar.tools.function import as_tool

MINI_WEB = "miniweb:"
GROUP = "agentpar.tools"
_NOWHERE = "http://127.0.0.1:9"
"""Stands for a mini-web that does not run yet, where tools are only looked at."""

Make = Callable[[], Tool | ToolSource]


def makers(
    placed: Sequence[tuple[Loc, ToolEntry]], *, folder: Path, allow_modules: Collection[str]
) -> tuple[list[Make], dict[str, Tool], list[tuple[Loc, str]]]:
    """For each tool or source a function that makes a new one; the tools that are known
    before anything starts, by name; and what is wrong with the entries, and where.

    Where the search goes to a mini-web, the web tools come from one source, which stands in
    the place of the first of them. ``folder`` is where the file lies.
    """
    made: list[Make] = []
    known: dict[str, Tool] = {}
    mistakes: list[tuple[Loc, str]] = []
    web = _mini_web([entry for _, entry in placed])
    for loc, entry in placed:
        try:
            if web is not None and entry.kind in ("web_search", "web_fetch"):
                make: Make = web
                tool: Tool | ToolSource = _web_tool(entry, _NOWHERE)
                if entry.web_search is not None and _is_mini(entry.web_search):
                    web()  # says what is wrong with the address
            else:
                make = _maker(entry, folder, allow_modules)
                tool = make()
            if isinstance(tool, Tool) and tool.name in known:
                raise UsageError(f"there is a tool named {tool.name!r} already")
        except AgentparError as error:
            at = loc if entry.kind == "package" else (*loc, entry.kind)
            mistakes.append((at, str(error).removeprefix(f"{entry.kind}: ")))
            continue
        if isinstance(tool, Tool):
            known[tool.name] = tool
        if make not in made:
            made.append(make)
    return made, known, mistakes


def _maker(entry: ToolEntry, folder: Path, allow_modules: Collection[str]) -> Make:
    value = getattr(entry, entry.kind)
    match value:
        case WebSearch():
            return lambda: _search(value, value.url)
        case WebFetch():
            return lambda: _fetch(value, None)
        case Calc():
            return _calc
        case Mcp():
            return lambda: _mcp(value)
        case str() if entry.kind == "python":
            made = _python(value, folder, allow_modules)
            return lambda: made
        case str():
            offered = _offered(value)
            return lambda: offered
    raise UsageError("nothing is given")


def _calc() -> Tool:
    from agentpar.tools.calc import calc

    return calc


def _mcp(fields: Mcp) -> ToolSource:
    from agentpar.tools.mcp import McpServer

    return McpServer(
        url=fields.url,
        command=fields.command,
        allowed_tools=fields.allowed_tools,
        headers={name: value.get_secret_value() for name, value in fields.headers.items()},
        env={name: value.get_secret_value() for name, value in fields.env.items()},
        timeout=fields.timeout,
        effect=fields.effect,
    )


# The web


def _search(fields: WebSearch, url: str | None) -> Tool:
    from agentpar.tools.search import make_web_search

    return make_web_search(
        fields.provider,
        url=url,
        api_key=revealed(fields.api_key),
        max_results=fields.max_results,
        timeout=fields.timeout,
    )


def _fetch(fields: WebFetch, origin: str | None) -> Tool:
    from agentpar.tools.web import web_fetch

    return web_fetch(
        max_bytes=fields.max_bytes,
        timeout=fields.timeout,
        max_chars=fields.max_chars,
        allow_domains=fields.allow_domains,
        deny_domains=fields.deny_domains,
        allow_origins=() if origin is None else (origin,),
    )


def _web_tool(entry: ToolEntry, origin: str) -> Tool:
    """A web tool for a mini-web at ``origin``: the one private address that it may reach."""
    if entry.web_search is not None:
        return _search(entry.web_search, origin)
    assert entry.web_fetch is not None
    return _fetch(entry.web_fetch, origin)


def _is_mini(search: WebSearch) -> bool:
    return (search.url or "").startswith(MINI_WEB)


def _mini_web(entries: Sequence[ToolEntry]) -> Make | None:
    """A maker of the source of all web tools, if the search goes to a mini-web."""
    searches = (entry.web_search for entry in entries if entry.web_search is not None)
    search = next(filter(_is_mini, searches), None)
    if search is None:
        return None
    web = [entry for entry in entries if entry.kind in ("web_search", "web_fetch")]

    def make() -> ToolSource:
        from agentpar.miniweb.toolsource import MiniWebTools

        if search.provider != "searxng":
            raise UsageError(f"miniweb:// speaks searxng's protocol, not {search.provider}'s")
        options = mini_web_options(search.url or "")
        return MiniWebTools(lambda origin: [_web_tool(e, origin) for e in web], **options)

    return make


_SECONDS = ("latency", "jitter", "retry_after", "drip_seconds")
_SHARES = ("too_many", "broken", "redirect", "drip")


def mini_web_options(url: str) -> dict[str, Any]:
    """``miniweb://?latency=80ms&broken=0.1`` as arguments of `MiniWebTools`.

    Raises `UsageError` for a switch that is unknown, given twice, or has no readable value.
    """
    from agentpar.miniweb.faults import Faults

    parts = urlsplit(url)
    if parts.netloc or parts.path or parts.fragment or not url.startswith("miniweb://"):
        raise UsageError(f"url: {url!r}: write miniweb:// or miniweb://?latency=80ms")
    known = [*_SECONDS, *_SHARES, "injections", "seed"]
    read: dict[str, Any] = {}
    for name, text in parse_qsl(parts.query, keep_blank_values=True):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise UsageError(f"url: miniweb:// has no switch {name!r}, {hint}")
        if name in read:
            raise UsageError(f"url: the switch {name!r} is given twice")
        read[name] = _switch(name, text)
    options: dict[str, Any] = {
        name: read.pop(name) for name in ("latency", "jitter") if name in read
    }
    options["faults"] = Faults(**read)
    return options


def _switch(name: str, text: str) -> Any:
    try:
        if name in _SECONDS:
            return units.duration(text)
        if name in _SHARES:
            return units.number(text)
        if name == "seed":
            return units.count(text)
        return {"on": True, "true": True, "1": True, "off": False, "false": False, "0": False}[text]
    except KeyError:
        demand = "must be on or off"
    except ValueError as error:
        demand = str(error)
    raise UsageError(f"url: the switch {name} {demand}, not {text!r}")


# Code of others


def _offered(name: str) -> Tool:
    """The tool that an installed package offers as ``name``."""
    points = list(importlib.metadata.entry_points(group=GROUP, name=name))
    if not points:
        every = {point.name for point in importlib.metadata.entry_points(group=GROUP)}
        every |= {"web_search", "web_fetch", "calc", "python", "mcp"}
        near = difflib.get_close_matches(name, every, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(every))}"
        raise UsageError(f"there is no tool {name!r}, {hint}")
    if len({point.value for point in points}) > 1:
        owners = ", ".join(sorted(point.value for point in points))
        raise UsageError(f"several packages offer {name!r} ({owners}): remove all but one")
    try:
        return as_tool(points[0].load())
    except AgentparError:
        raise
    except Exception as error:
        raise UsageError(
            f"the tool {name!r} ({points[0].value}) cannot be loaded: "
            f"{type(error).__name__}: {error}"
        ) from error


def _python(reference: str, folder: Path, allow_modules: Collection[str]) -> Tool:
    """The function or `Tool` that ``module:name`` means, if its module is allowed."""
    module_name, colon, name = reference.partition(":")
    words = module_name.split(".")
    if not colon or not all(word.isidentifier() for word in [*words, name]):
        raise UsageError(f"{reference!r} must be module:name, such as mypackage.tools:lookup")
    parents = {".".join(words[: n + 1]) for n in range(len(words))}
    if not parents & set(allow_modules):
        raise UsageError(
            f"a file may only run code that you allow: to run {module_name!r}, use "
            f"--allow-module {module_name} (in Python: load(path, allow_modules=['{module_name}']))"
        )
    try:
        with _beside(folder):
            module = importlib.import_module(module_name)
    except Exception as error:
        raise UsageError(
            f"module {module_name!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    own = folder.joinpath(*words).with_suffix(".py")
    used = getattr(module, "__file__", None)
    if own.is_file() and (used is None or Path(used).resolve() != own.resolve()):
        raise UsageError(
            f"module {module_name!r} is {used or 'built in'}, not {own.name} beside this file: "
            f"give that one another name"
        )
    if not hasattr(module, name):
        near = difflib.get_close_matches(name, vars(module), n=1)
        hint = f", did you mean {near[0]}?" if near else ""
        raise UsageError(f"module {module_name!r} has no {name!r}{hint}")
    return as_tool(getattr(module, name))


@contextmanager
def _beside(folder: Path) -> Iterator[None]:
    """Modules that lie beside the file can be imported, after all that are installed."""
    sys.path.append(str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def revealed(secret: SecretStr | None) -> str | None:
    """The text of a credential, for the one who needs it."""
    return None if secret is None else secret.get_secret_value()
