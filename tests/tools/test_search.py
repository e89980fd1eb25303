"""`web_search`: each provider's protocol against a real server that speaks it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from loopback import redirect, reply, serving

from agentpar.errors import FetchError, UsageError
from agentpar.net import Guard
from agentpar.tools.base import Tool
from agentpar.tools.search import make_web_search, web_search

KEY = "key-7f3a9"


async def ask(tool: Tool, query: str = "population of Chile") -> Any:
    try:
        return await tool.call(**tool.validate({"query": query}))
    finally:
        assert tool.close is not None
        await tool.close()


def answer(data: object) -> bytes:
    return reply(json.dumps(data), "application/json")


def found(count: int, snippet: str) -> list[dict[str, object]]:
    return [
        {"title": f"Page {n}", "url": f"https://example.org/{n}", snippet: f"about {n}", "x": 1}
        for n in range(count)
    ]


async def test_searxng_over_loopback() -> None:
    """Its own origin is granted; the query is spelled for a URL; at most max_results."""
    path = "/search?q=r%C3%ADo+%26+mar%3F&format=json"
    async with serving({path: answer({"results": found(9, "content")})}) as server:
        hits = await ask(web_search(url=server.origin, max_results=3), " río & mar? ")
    assert hits == [
        {"title": f"Page {n}", "url": f"https://example.org/{n}", "snippet": f"about {n}"}
        for n in range(3)
    ]


@pytest.mark.parametrize("base", ["/", "/searx", "/searx/", "/searx/search"])
async def test_searxng_below_a_path(base: str) -> None:
    """The base address may have a path, and may already end in /search."""
    root = "/searx" if "searx" in base else ""
    path = f"{root}/search?q=x&format=json"
    async with serving({path: answer({"results": found(1, "content")})}) as server:
        assert len(await ask(web_search(url=server.origin + base), "x")) == 1


async def test_brave() -> None:
    """The key in its header, the marked words as plain text."""
    results = [{"title": "<strong>Chile</strong> &amp; Peru", "url": "https://a.org", "x": 1}]
    results[0]["description"] = "has <strong>19</strong> million"
    async with serving({"/b?q=x&count=5": answer({"web": {"results": results}})}) as server:
        hits = await ask(web_search(provider="brave", url=f"{server.origin}/b", api_key=KEY), "x")
    assert hits == [{"title": "Chile & Peru", "url": "https://a.org", "snippet": "has 19 million"}]
    assert f"x-subscription-token: {KEY}" in server.heads[0].lower()


async def test_tavily() -> None:
    """A POST with the key in its header."""
    async with serving({"/s": answer({"results": found(2, "content")})}) as server:
        tool = web_search(provider="tavily", url=f"{server.origin}/s", api_key=KEY)
        assert len(await ask(tool)) == 2
    assert server.heads[0].startswith("POST /s ")
    assert f"authorization: bearer {KEY}" in server.heads[0].lower()


@pytest.mark.parametrize(
    "data",
    [{"results": []}, {}, {"results": None}, [], {"results": [{"url": "javascript:x"}, 7, {}]}],
)
async def test_nothing_found_is_an_empty_list(data: object) -> None:
    """And what has no web address is no hit."""
    async with serving({"/search?q=x&format=json": answer(data)}) as server:
        assert await ask(web_search(url=server.origin), "x") == []


async def test_long_snippets_are_cut() -> None:
    """The joiner reads them all."""
    results = [{"title": "T", "url": "https://a.org", "content": "word " * 500}]
    async with serving({"/search?q=x&format=json": answer({"results": results})}) as server:
        [hit] = await ask(web_search(url=server.origin), "x")
    assert len(hit["snippet"]) <= 300
    assert hit["snippet"].endswith("word…")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (reply("<html>no json here"), r"no JSON answer of SearXNG \(is 'json' in its"),
        (reply("", status=403), "HTTP 403"),
        (redirect("http://127.0.0.1:1/"), "refused address"),
    ],
)
async def test_a_failing_search_says_why(said: bytes, message: str) -> None:
    """HTML instead of JSON, a status, a redirect to somewhere private."""
    async with serving({"/search?q=x&format=json": said}) as server:
        with pytest.raises(FetchError, match=message):
            await ask(web_search(url=server.origin), "x")


@pytest.mark.parametrize("provider", ["brave", "tavily"])
@pytest.mark.parametrize("said", [reply("", status=401), reply("oops"), b"HTTP/1.1 junk\r\n\r\n"])
async def test_the_key_is_in_no_error(provider: Any, said: bytes) -> None:
    """Whatever goes wrong, its text can be shown."""
    async with serving({"/s?q=x&count=5": said, "/s": said}) as server:
        tool = web_search(provider=provider, url=f"{server.origin}/s", api_key=KEY)
        with pytest.raises(FetchError) as caught:
            await ask(tool, "x")
    assert KEY not in f"{caught.value!r} {caught.value.__context__!r} {tool!r}"


async def test_ddgs_without_a_network_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real package, its engines behind a proxy where nobody listens."""
    pytest.importorskip("ddgs")
    monkeypatch.setenv("DDGS_PROXY", "http://127.0.0.1:9")
    async with asyncio.timeout(20):
        with pytest.raises(FetchError, match=r"^ddgs has no answer for 'Chile': "):
            await ask(web_search(provider="ddgs", timeout=5), "Chile")


async def test_only_the_search_origin_is_granted() -> None:
    """The grant is for the search tool, not for what else listens on that machine."""
    async with serving() as other, serving() as server:
        server.routes["/search?q=x&format=json"] = [redirect(f"{other.origin}/")]
        with pytest.raises(FetchError, match=r"^refused"):
            await ask(web_search(url=server.origin), "x")
        assert other.connections == 0
        guard = Guard(deny_domains=("127.0.0.1",))
        with pytest.raises(FetchError, match="deny_domains"):
            await ask(make_web_search(url=server.origin, guard=guard), "x")


async def test_an_empty_query_is_the_callers_mistake() -> None:
    """Nothing is asked for nothing."""
    async with serving() as server:
        with pytest.raises(UsageError, match="'query' is empty"):
            await ask(web_search(url=server.origin), "  ")
        assert server.connections == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs url"),
        ({"provider": "gogle"}, r"'gogle' is not known \(known: 'searxng'"),
        ({"provider": "brave"}, "needs api_key"),
        ({"provider": "tavily", "api_key": ""}, "needs api_key"),
        ({"url": "localhost:8888"}, "begin with http"),
        ({"url": "http://localhost:8888/search?key=hidden"}, "without '\\?'"),
        ({"url": "http://u:hidden@localhost/"}, "carries a user name"),
        ({"url": "http://localhost:1", "max_results": 0}, "at least 1"),
    ],
)
def test_a_wrong_configuration_raises_at_once(options: dict[str, Any], message: str) -> None:
    """Before any question is asked, and without showing what may be secret."""
    with pytest.raises(UsageError, match=message) as caught:
        web_search(**options)
    assert "hidden" not in str(caught.value)


def test_the_planner_sees_one_argument() -> None:
    """query; and how to use what comes back."""
    tool = web_search(url="http://localhost:1")
    assert list(tool.parameters["properties"]) == ["query"]
    assert "$1[0].url" in tool.returns
