"""The web tools of a file, and the mini-web behind them where its search goes to one.

A search engine's own address is granted to its client alone; pages may be read at public
addresses and, with a mini-web, at exactly its origin.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from agentpar.config import units
from agentpar.config.fields import ToolEntry, WebFetch, WebLookup, WebSearch, revealed
from agentpar.errors import UsageError
from agentpar.tools.base import Tool, ToolSource

KINDS = ("web_search", "web_fetch", "web_lookup")


def web_tool(entry: ToolEntry, origin: str | None = None) -> Tool:
    """The tool of an entry of one of `KINDS`; ``origin`` is that of a running mini-web."""
    match getattr(entry, entry.kind):
        case WebSearch() as search:
            return _search(search, origin)
        case WebFetch() as fetch:
            return _fetch(fetch, origin)
        case WebLookup() as lookup:
            return _lookup(lookup, origin)
    raise UsageError("nothing is given")


def mini_web_address(entries: Sequence[ToolEntry]) -> str | None:
    """The one ``miniweb://…`` that the searches of these entries go to, if any does.

    Raises `UsageError` where they differ.
    """
    addresses = {
        str(search.url) for entry in entries if (search := _search_of(entry)) and _is_mini(search)
    }
    if len(addresses) > 1:
        raise UsageError(f"one agent has one mini-web, not {' and '.join(sorted(addresses))}")
    return addresses.pop() if addresses else None


def mini_web_source(address: str, entries: Sequence[ToolEntry]) -> ToolSource:
    """The tools of ``entries`` over a mini-web that starts and stops with them."""
    from agentpar.miniweb.toolsource import MiniWebTools

    def make(origin: str) -> list[Tool]:
        return [web_tool(entry, origin) for entry in entries]

    return MiniWebTools(make, **mini_web_options(address))


def _search_of(entry: ToolEntry) -> WebSearch | None:
    return entry.web_lookup.search if entry.web_lookup is not None else entry.web_search


def _is_mini(search: WebSearch) -> bool:
    return (search.url or "").startswith("miniweb:")


def _search(fields: WebSearch, origin: str | None) -> Tool:
    from agentpar.tools.search import make_web_search

    if _is_mini(fields) and fields.provider != "searxng":
        raise UsageError(f"miniweb:// speaks searxng's protocol, not {fields.provider}'s")
    return make_web_search(
        fields.provider,
        url=origin if _is_mini(fields) else fields.url,
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


def _lookup(fields: WebLookup, origin: str | None) -> Tool:
    from agentpar.tools.lookup import web_lookup

    search, fetch = _search(fields.search, origin), _fetch(fields.fetch, origin)
    return web_lookup(search=search, fetch=fetch, pages=fields.pages)


_SECONDS = ("latency", "jitter", "retry_after", "drip_seconds")
_SHARES = ("too_many", "broken", "redirect", "drip")
_SWITCHES = (*_SECONDS, *_SHARES, "injections", "seed")
_ON_OFF = {"on": True, "true": True, "1": True, "off": False, "false": False, "0": False}


def mini_web_options(address: str) -> dict[str, Any]:
    """``miniweb://?latency=80ms&broken=0.1`` as arguments of `MiniWebTools`.

    Raises `UsageError` for a switch that is unknown, given twice, or has no readable value.
    """
    from agentpar.miniweb.faults import Faults

    parts = urlsplit(address)
    if parts.netloc or parts.path or parts.fragment or not address.startswith("miniweb://"):
        raise UsageError(f"url {address!r}: write miniweb:// or miniweb://?latency=80ms")
    read: dict[str, Any] = {}
    for name, text in parse_qsl(parts.query, keep_blank_values=True):
        if name not in _SWITCHES:
            near = difflib.get_close_matches(name, _SWITCHES, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(_SWITCHES)}"
            raise UsageError(f"miniweb:// has no switch {name!r}, {hint}")
        if name in read:
            raise UsageError(f"miniweb:// has the switch {name!r} twice")
        read[name] = _switch(name, text)
    timing = {name: read.pop(name) for name in list(read) if name in ("latency", "jitter")}
    return {"faults": Faults(**read)} | timing


def _switch(name: str, text: str) -> Any:
    try:
        if name in _SECONDS:
            return units.duration(text)
        if name in _SHARES:
            return units.number(text)
        if name == "seed":
            return units.count(text)
        return _ON_OFF[text]
    except KeyError:
        demand = "must be on or off"
    except ValueError as error:
        demand = str(error)
    raise UsageError(f"miniweb://: the switch {name} {demand}, not {text!r}")
