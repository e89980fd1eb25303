"""`web_search`: thin clients of search engines, all with one answer shape.

A search engine is named by the user, not by a model or a page, so its exact origin is
granted even at a private address. Keys travel in headers only, and so appear in no error.
"""

from __future__ import annotations

import dataclasses
import html
import json
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Literal, get_args
from urllib.parse import urlencode, urlsplit

from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from agentpar.errors import FetchError, MissingPackage, UsageError
from agentpar.net import Caps, Download, Fetcher, Guard, Resolver, origin, system_resolver
from agentpar.tools.base import Tool
from agentpar.tools.call import visiting
from agentpar.tools.function import tool
from agentpar.tools.passages import cut
from agentpar.tools.threads import in_thread

Provider = Literal["searxng", "brave", "tavily", "ddgs"]


class Hit(TypedDict):
    """A page that the engine found."""

    title: str
    url: str
    snippet: str


Hits = list[Hit]

_BRAVE = "https://api.search.brave.com/res/v1/web/search"
_TAVILY = "https://api.tavily.com/search"
_SNIPPET = 300


def web_search(
    *,
    provider: Provider = "searxng",
    url: str | None = None,
    api_key: str | None = None,
    max_results: int = 5,
    timeout: float = 20.0,
) -> Tool:
    """The tool as a configuration names it; see `make_web_search`."""
    return make_web_search(
        provider, url=url, api_key=api_key, max_results=max_results, timeout=timeout
    )


def make_web_search(
    provider: Provider = "searxng",
    *,
    url: str | None = None,
    api_key: str | None = None,
    guard: Guard | None = None,
    max_results: int = 5,
    timeout: float = 20.0,
    resolve: Resolver = system_resolver,
) -> Tool:
    """A tool ``web_search(query)`` whose value is a list of ``{"title", "url", "snippet"}``.

    ``url`` is the base address of a SearXNG whose settings allow the ``json`` format, or
    another endpoint that speaks Brave's or Tavily's protocol; those two need ``api_key``.
    ``ddgs`` needs the package of that name, which makes its own connections to the engines
    it knows. An empty list is a valid answer: nothing was found.

    Raises `UsageError` for a provider, address or key that is wrong or missing. Calling the
    tool raises `FetchError`.
    """
    if provider not in get_args(Provider):
        known = ", ".join(map(repr, get_args(Provider)))
        raise UsageError(f"web_search: provider {provider!r} is not known (known: {known})")
    if provider in ("brave", "tavily") and not api_key:
        raise UsageError(f"web_search: provider {provider!r} needs api_key")
    if provider == "searxng" and not url:
        raise UsageError("web_search: provider 'searxng' needs url, such as http://localhost:8888")
    if max_results < 1:
        raise UsageError(f"web_search: max_results must be at least 1, got {max_results!r}")
    caps = Caps(timeout=timeout, waits=False)
    fetcher = Fetcher(_granted(guard or Guard(), url), caps, resolve=resolve, visiting=visiting)
    ask = _client(provider, (url or "").rstrip("/"), api_key or "", fetcher, max_results)

    @tool(
        name="web_search",
        timeout=timeout + 5.0,
        retries=2,
        words=("query",),
        returns="a list of {title, url, snippet}, best first: $1[0].url is the best page",
    )
    async def search(query: str) -> Hits:
        """Search the web.

        Args:
            query: what to search for, in a few words
        """
        if not query.strip():
            raise UsageError("web_search: argument 'query' is empty")
        return (await ask(query.strip()))[:max_results]

    return dataclasses.replace(
        search, close=fetcher.aclose, secrets=() if api_key is None else (api_key,)
    )


def _granted(guard: Guard, url: str | None) -> Guard:
    if url is None:
        return guard
    parts = urlsplit(url)
    if parts.query or parts.fragment:
        # Not shown: a key in a query would end up in every error message.
        raise UsageError("web_search: url is a base address, without '?' and '#'")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise UsageError(
            "web_search: url must begin with http:// or https://, such as http://localhost:8888"
        )
    base = origin(f"{parts.scheme}://{parts.netloc}/")
    return dataclasses.replace(guard, allow_origins=guard.allow_origins | {base})


def _client(
    provider: Provider, url: str, key: str, fetcher: Fetcher, count: int
) -> Callable[[str], Awaitable[Hits]]:
    """The function that asks this provider."""

    async def searxng(query: str) -> Hits:
        address = f"{url.removesuffix('/search')}/search?" + urlencode(
            {"q": query, "format": "json"}
        )
        answer = _json(await fetcher.fetch(address), "SearXNG (is 'json' in its search.formats?)")
        return _hits(_path(answer, "results"), "content")

    async def brave(query: str) -> Hits:
        address = f"{url or _BRAVE}?" + urlencode({"q": query, "count": min(count, 20)})
        headers = {"X-Subscription-Token": key, "Accept": "application/json"}
        answer = _json(await fetcher.fetch(address, headers=headers), "Brave")
        return _hits(_path(answer, "web", "results"), "description")

    async def tavily(query: str) -> Hits:
        download = await fetcher.fetch(
            url or _TAVILY,
            method="POST",
            headers={"Authorization": f"Bearer {key}"},
            json={"query": query, "max_results": count},
        )
        return _hits(_path(_json(download, "Tavily"), "results"), "content")

    async def ddgs(query: str) -> Hits:
        # The package connects by itself, to engines of its choice: they count as one host.
        async with visiting("ddgs", fetcher.caps.timeout) as visit:
            try:
                found = await in_thread(_ddgs, query, count, fetcher.caps.timeout)
            except FetchError as error:
                if error.status is not None:
                    visit.throttled(error.retry_after)
                raise
            visit.succeeded()
            return found

    return {"searxng": searxng, "brave": brave, "tavily": tavily, "ddgs": ddgs}[provider]


def _ddgs(query: str, count: int, timeout: float) -> Hits:
    try:
        from ddgs import DDGS
        from ddgs.exceptions import DDGSException, RatelimitException
    except ImportError:
        raise MissingPackage("ddgs", extra="web", purpose="web_search with 'ddgs'") from None
    try:
        found = DDGS(timeout=max(1, int(timeout))).text(query, max_results=count)
    except DDGSException as error:
        if "no results" in str(error).lower():
            return []
        status = 429 if isinstance(error, RatelimitException) else None
        raise FetchError(f"ddgs has no answer for {query!r}: {error}", status=status) from None
    return _hits([{**hit, "url": hit.get("href", "")} for hit in found], "body")


def _json(download: Download, who: str) -> Any:
    try:
        return json.loads(download.body)
    except ValueError:
        start = download.body[:60].decode("utf-8", "replace")
        raise FetchError(f"{download.url!r} is no JSON answer of {who}: {start!r}") from None


def _path(answer: Any, *keys: str) -> Iterable[Any]:
    """The list under ``keys``; empty where the engine left it out, as they do for no hits."""
    for key in keys:
        answer = answer.get(key) if isinstance(answer, Mapping) else None
    return answer if isinstance(answer, list) else []


def _hits(found: Iterable[Any], snippet: str) -> Hits:
    """Our shape from an engine's; what has no web address is no hit."""
    return [
        {
            "title": _plain(hit.get("title")),
            "url": hit["url"],
            "snippet": cut(_plain(hit.get(snippet)), _SNIPPET),
        }
        for hit in found
        if isinstance(hit, Mapping)
        and str(hit.get("url") or "").startswith(("http://", "https://"))
    ]


def _plain(text: object) -> str:
    """Without the <strong> around matched words and without entities."""
    return " ".join(html.unescape(re.sub(r"</?[a-z]+>", "", str(text or ""))).split())
