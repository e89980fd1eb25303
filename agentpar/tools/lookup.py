"""`web_lookup`: one fact from the web in one call.

A plan that searches, fetches and reads for every fact is long, and every token of it is
time on a small machine. This tool searches, reads the best pages side by side and hands
back what they say; where two of them disagree, both stand in the result.
"""

from __future__ import annotations

import dataclasses
from typing import cast

from asyncio_tools import gather

from agentpar.errors import FetchError, UsageError
from agentpar.tools.base import Tool
from agentpar.tools.function import tool
from agentpar.tools.page import Page, Unread, is_page
from agentpar.tools.passages import words


def web_lookup(*, search: Tool, fetch: Tool, pages: int = 2) -> Tool:
    """A tool ``web_lookup(query, find)`` over a `web_search` and a `web_fetch` tool.

    Its value is a `Page`: the best one that has a value for ``find``, with the other pages that
    were read as its ``others``. At most ``pages`` are read, those of the first hits that
    mention ``query``. Pages that have no value while another has are left out; those that cannot
    be read are named, with the reason, as its ``unread``. `FetchError` where no page is about
    ``query``, none mentions ``find``, or none could be read. The two tools it is made of are
    closed with it.
    """
    if pages < 1:
        raise UsageError(f"web_lookup: pages must be at least 1, got {pages!r}")

    @tool(
        name="web_lookup",
        timeout=(search.policy.timeout or 25.0) + (fetch.policy.timeout or 25.0),
        retries=2,
        words=("query", "find"),
        returns="{value, text, url}: value is the number or name found, used as $1.value",
    )
    async def lookup(query: str, find: str) -> Page:
        """Find one fact on the web.

        Args:
            query: the thing the fact is about, such as "Nile"
            find: the fact, in a word or two, such as "length"
        """
        hits = await search.call(query=f"{query} {find}".strip())
        # An engine always finds something; a page that never names the thing is not about it.
        about = words(query)
        fitting = [hit for hit in hits if _mostly(about, words(f"{hit['title']} {hit['snippet']}"))]
        if not fitting:
            raise FetchError(f"no page about {query!r} was found")
        read, unread = await _read(fetch, [hit["url"] for hit in fitting[:pages]], find)
        # Beside a page that has the value, one that has none is only more to read.
        telling = [page for page in read if page["value"] is not None] or [
            page for page in read if not words(find) or words(find) & words(page["text"])
        ]
        if not telling:
            besides = f", and {unread[0]['error']}" if unread else ""
            raise FetchError(f"the pages about {query!r} say nothing about {find!r}{besides}")
        best, *others = telling
        found: Page = {**best, "others": others}
        if unread:
            found["unread"] = unread
        return found

    async def close() -> None:
        for part in (search, fetch):
            if part.close is not None:
                await part.close()

    return dataclasses.replace(lookup, close=close, secrets=(*search.secrets, *fetch.secrets))


def _mostly(wanted: frozenset[str], found: frozenset[str]) -> bool:
    """Whether more than half of ``wanted`` is there: San Marino is not San Theodoros."""
    return 2 * len(wanted & found) > len(wanted)


async def _read(fetch: Tool, urls: list[str], find: str) -> tuple[list[Page], list[Unread]]:
    """The pages that can be read, and why others cannot, in the order of ``urls``; the first
    error where none can."""
    found = await gather(*(fetch.call(url=url, find=find) for url in urls))
    # Not `successes`: to asyncio_tools a fetch that was cancelled is one of them.
    pages = [cast(Page, page) for page in found.all if is_page(page)]
    if not pages:
        raise found.exceptions[0] if found.exceptions else FetchError("no page could be read")
    failed = zip(urls, found.all, strict=True)
    return pages, [
        {"url": url, "error": str(error) or type(error).__name__}
        for url, error in failed
        if isinstance(error, BaseException)
    ]
