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
from functools import partial
from pathlib import Path

from agentpar.config.fields import (
    OPTIONLESS,
    Calc,
    Mcp,
    ToolEntry,
    WebFetch,
    WebLookup,
    WebSearch,
    revealed,
)
from agentpar.config.source import Loc
from agentpar.config.web import KINDS, mini_web_address, mini_web_source, web_tool
from agentpar.errors import AgentparError, UsageError
from agentpar.tools.base import Tool, ToolSource
from agentpar.tools.function import as_tool

GROUP = "agentpar.tools"
_NOWHERE = "http://127.0.0.1:9"
"""Stands for a mini-web that does not run yet, where tools are only looked at."""

Make = Callable[[], Tool | ToolSource]


def makers(
    placed: Sequence[tuple[Loc, ToolEntry]], *, folder: Path, allow_modules: Collection[str]
) -> tuple[list[Make], dict[str, Tool], list[tuple[Loc, str]]]:
    """For each tool or source a function that makes a new one; the tools that are known
    before anything starts, by name; and what is wrong with the entries, and where.

    Where a search goes to a mini-web, the web tools come from one source, which stands in
    the place of the first of them. ``folder`` is where the file lies.
    """
    made: list[Make] = []
    known: dict[str, Tool] = {}
    mistakes: list[tuple[Loc, str]] = []
    web = [entry for _, entry in placed if entry.kind in KINDS]
    mini: Make | None = None
    for loc, entry in placed:
        try:
            address = mini_web_address(web) if entry in web else None
            if address is not None:
                tool: Tool | ToolSource = web_tool(entry, _NOWHERE)
                mini = mini or partial(mini_web_source, address, web)
                make = mini
                make()  # says now what is wrong with the address
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
    match getattr(entry, entry.kind):
        case WebSearch() | WebFetch() | WebLookup():
            return partial(web_tool, entry)
        case Calc():
            return _calc
        case Mcp() as fields:
            return partial(_mcp, fields)
        case str() as reference if entry.kind == "python":
            own = _python(reference, folder, allow_modules)
            return lambda: own
        case str() as name:
            offered = _offered(name)
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
        headers={name: revealed(value) for name, value in fields.headers.items()},
        env={name: revealed(value) for name, value in fields.env.items()},
        timeout=fields.timeout,
        effect=fields.effect,
    )


# Code of others


def _offered(name: str) -> Tool:
    """The tool that an installed package offers as ``name``."""
    points = list(importlib.metadata.entry_points(group=GROUP, name=name))
    if not points:
        every = {point.name for point in importlib.metadata.entry_points(group=GROUP)}
        every |= {*OPTIONLESS, "python", "mcp"}
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
            f"--allow-module {module_name} "
            f"(in Python: Agent.from_yaml(path, allow_modules=['{module_name}']))"
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
