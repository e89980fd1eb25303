"""`web_lookup`: one fact in one call, over the mini-web and over a site that fails on order."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from loopback import Answer, Server, reply, serving

from agentpar.errors import FetchError, UsageError
from agentpar.miniweb import MiniWeb
from agentpar.tools.base import Tool
from agentpar.tools.lookup import web_lookup
from agentpar.tools.search import web_search
from agentpar.tools.web import web_fetch

Call = Callable[..., Awaitable[Any]]


@asynccontextmanager
async def looking_up(origin: str, pages: int = 2) -> AsyncIterator[Call]:
    """A function that calls the tool as the driver does; afterwards the tool is closed."""
    fetch = web_fetch(allow_origins=[origin])
    tool = web_lookup(search=web_search(url=origin), fetch=fetch, pages=pages)
    assert tool.close is not None

    async def call(query: str, find: str) -> Any:
        return await tool.call(**tool.validate({"query": query, "find": find}))

    yield call
    await tool.close()


def page(title: str, *facts: tuple[str, str]) -> bytes:
    rows = "".join(f"<tr><th>{label}</th><td>{text}</td></tr>" for label, text in facts)
    return reply(f"<title>{title}</title><h1>{title}</h1><table>{rows}</table>")


@asynccontextmanager
async def site(**pages: Answer) -> AsyncIterator[tuple[Server, Call]]:
    """A site whose search finds all of its ``pages`` for "Nile length", in that order."""
    async with serving({f"/{name}": answer for name, answer in pages.items()}) as server:
        hits = [
            {"url": f"{server.origin}/{name}", "title": f"Nile - {name}", "content": "A river."}
            for name in pages
        ]
        found = reply(json.dumps({"results": hits}), "application/json")
        server.routes["/search?q=Nile+length&format=json"] = [found]
        async with looking_up(server.origin) as call:
            yield server, call


# ── On the mini-web ──────────────────────────────────────────────────────────────


@pytest.fixture
async def mini() -> AsyncIterator[tuple[MiniWeb, Call]]:
    async with MiniWeb(latency=0) as web, looking_up(web.origin) as call:
        yield web, call


async def test_the_value_is_that_of_the_best_page(mini: tuple[MiniWeb, Call]) -> None:
    """A number is a number, a name a name, and the page it stands on is told."""
    web, call = mini
    found = await call("Chile", "population")
    assert found["value"] == 18_729_160
    assert found["url"] == f"{web.origin}/atlas/country/chile"
    assert "18,729,160" in found["text"]
    assert (await call("Chile", "capital"))["value"] == "Santiago"


async def test_what_another_site_says_is_kept(mini: tuple[MiniWeb, Call]) -> None:
    """Where two sites disagree, both figures stand in the result, each with its page."""
    web, call = mini
    found = await call("France", "area")
    (other,) = found["others"]
    assert (found["value"], other["value"]) == (547_030, 640_679)
    assert other["url"] == f"{web.origin}/gazetteer/country/france"
    assert "640,679" in other["text"]


async def test_a_page_about_half_of_the_name_is_not_about_it(mini: tuple[MiniWeb, Call]) -> None:
    """The mini-web knows San Marino, not San Theodoros."""
    _, call = mini
    with pytest.raises(FetchError, match="no page about 'San Theodoros'"):
        await call("San Theodoros", "area")


async def test_a_thing_that_no_page_is_about_is_not_found(mini: tuple[MiniWeb, Call]) -> None:
    """A search always finds something; a page that never names the thing is not read."""
    web, call = mini
    with pytest.raises(FetchError, match="no page about 'Freedonia' was found"):
        await call("Freedonia", "population")
    assert web.statistics().searches == 1
    assert web.statistics().pages == 0


async def test_a_fact_that_no_page_mentions_is_not_found(mini: tuple[MiniWeb, Call]) -> None:
    """Pages about the thing were read, and the error says which fact they lack."""
    web, call = mini
    with pytest.raises(FetchError, match="pages about 'Chile' say nothing about 'mayor'"):
        await call("Chile", "mayor")
    assert web.statistics().pages == 2


async def test_without_a_fact_to_find_the_page_itself_is_the_result(
    mini: tuple[MiniWeb, Call],
) -> None:
    """An empty ``find`` asks for what the page says first, which is no single value."""
    found = await mini[1]("Chile", "")
    assert found["value"] is None
    assert "Chile" in found["text"]


async def test_pages_are_read_side_by_side() -> None:
    """A search and two pages take two delays of the server, not three."""
    delay = 0.4
    async with MiniWeb(latency=delay) as web, looking_up(web.origin) as call:
        begun = time.monotonic()
        await call("Chile", "population")
        taken = time.monotonic() - begun
    assert web.statistics().pages == web.statistics().peak == 2
    assert 2 * delay < taken < 3 * delay


# ── On a site that fails on order ────────────────────────────────────────────────


async def test_one_page_down_leaves_the_other() -> None:
    """The page that can be read is the result, nothing is said to be beside it, and the error of
    the other is told."""
    down = reply("gone", status=404)
    async with site(atlas=down, rivers=page("Nile", ("Length", "6,650 km"))) as (server, call):
        found = await call("Nile", "length")
    assert found["url"] == f"{server.origin}/rivers"
    assert (found["value"], found["others"]) == (6650, [])
    error = f"'{server.origin}/atlas' answered HTTP 404 Said"
    assert found["unread"] == [{"url": f"{server.origin}/atlas", "error": error}]


async def test_a_page_that_lacks_the_fact_does_not_hide_the_error_of_the_other() -> None:
    """What could not be read may have had it."""
    tours = page("Nile tours", ("Price", "300"))
    async with site(atlas=reply(status=404), tours=tours) as (server, call):
        with pytest.raises(FetchError, match=rf"nothing about 'length', and '{server.origin}.*404"):
            await call("Nile", "length")


async def test_where_all_pages_are_read_none_is_unread(mini: tuple[MiniWeb, Call]) -> None:
    """Nothing is said of what did not happen."""
    assert "unread" not in await mini[1]("Chile", "population")


async def test_all_pages_down_is_the_first_ones_error() -> None:
    """The error of the best hit, with its address."""
    async with site(atlas=reply(status=404), rivers=reply(status=410)) as (server, call):
        with pytest.raises(FetchError, match=f"{server.origin}/atlas.*404"):
            await call("Nile", "length")


async def test_a_page_with_the_value_goes_before_one_without() -> None:
    """A better hit that has no value is only more to read: it is left out."""
    async with site(
        tours=page("Nile tours", ("Price", "300")), rivers=page("Nile", ("Length", "6,650 km"))
    ) as (server, call):
        found = await call("Nile", "length")
    assert found["url"] == f"{server.origin}/rivers"
    assert (found["value"], found["others"]) == (6650, [])


async def test_no_more_pages_are_read_than_were_allowed() -> None:
    """Of three hits two are fetched; the third is never asked for."""
    river = page("Nile", ("Length", "6,650 km"))
    async with site(one=river, two=river, three=river) as (server, call):
        await call("Nile", "length")
    asked = {head.split()[1] for head in server.heads}
    assert asked == {"/search?q=Nile+length&format=json", "/one", "/two"}


# ── The tool ─────────────────────────────────────────────────────────────────────


async def test_closing_it_closes_what_it_is_made_of() -> None:
    """The connections of search and fetch end with the tool; a closed tool opens again."""
    async with site(one=page("Nile", ("Length", "6,650 km"))) as (server, _):
        tool: Tool = web_lookup(
            search=web_search(url=server.origin), fetch=web_fetch(allow_origins=[server.origin])
        )
        assert tool.close is not None
        for _ in range(2):
            before = server.connections
            assert (await tool.call(query="Nile", find="length"))["value"] == 6650
            assert server.connections > before
            await tool.close()


def test_less_than_one_page_is_refused() -> None:
    """At once, with the value."""
    with pytest.raises(UsageError, match="pages must be at least 1, got 0"):
        web_lookup(search=web_search(url="http://localhost:8888"), fetch=web_fetch(), pages=0)
