"""`web_lookup`: one fact from the web in one call.

A plan that searches, fetches and reads for every fact is long, and every token of it is
time on a small machine. This tool searches, reads the best pages side by side and hands
back what they say; where two of them disagree, both stand in the result.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from agentpar.errors import FetchError
from agentpar.tools.base import Tool
from agentpar.tools.function import tool


def make_web_lookup(search: Tool, fetch: Tool, *, pages: int = 2) -> Tool:
    """A tool ``web_lookup(query, find)`` over a `make_web_search` and a `make_web_fetch` tool.

    Its value is that of the best page that has one for ``find``: ``{"url", "title", "text",
    "value"}``, and ``"others"``, a list of the same for the other pages that were read.
    ``pages`` is how many of the first hits are read. Pages that cannot be read are left
    out; `FetchError` where nothing was found or none could be read.
    """

    @tool(
        name="web_lookup",
        timeout=(search.timeout or 25.0) + (fetch.timeout or 25.0),
        returns="{value, text, url}: value is the number or name found, as in $1.value",
    )
    async def lookup(query: str, find: str) -> dict[str, Any]:
        """Find one fact on the web.

        Args:
            query: the thing the fact is about, such as "Nile"
            find: the fact, in a word or two, such as "length"
        """
        # The page that describes the thing is the page about the fact, whatever ranks it.
        hits = (await search.call(query=f"{query} {find}".strip()))[:pages]
        if not hits:
            raise FetchError(f"web_lookup found no page for {query!r}")
        found = await asyncio.gather(
            *(fetch.call(url=hit["url"], find=find) for hit in hits), return_exceptions=True
        )
        read = [page for page in found if isinstance(page, Mapping)]
        if not read:
            first = next(page for page in found if isinstance(page, BaseException))
            raise first
        best = next((page for page in read if page["value"] is not None), read[0])
        return {**best, "others": [page for page in read if page is not best]}

    return lookup
