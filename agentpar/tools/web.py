"""`web_fetch`: a page as the few lines, and the one value, that were looked for.

Fetching is `agentpar.net`'s, reading `extract`'s, choosing `passages`'; this file puts the
three in a row. What the model reads is paid for by the token, so the text is short.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

from agentpar.errors import UsageError
from agentpar.net import Caps, Download, Fetcher, Guard, Resolver, is_text, system_resolver
from agentpar.tools.base import Tool
from agentpar.tools.call import visiting
from agentpar.tools.extract import read_page
from agentpar.tools.function import tool
from agentpar.tools.page import Page
from agentpar.tools.passages import excerpt, value
from agentpar.tools.threads import in_thread

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def web_fetch(
    *,
    max_bytes: int | str = 2_000_000,
    timeout: float = 20.0,
    max_chars: int = 1500,
    allow_domains: Iterable[str] = ("*",),
    deny_domains: Iterable[str] = (),
    allow_origins: Iterable[str] = (),
) -> Tool:
    """The tool as a configuration names it: `make_web_fetch` with its guard spelled out.

    ``max_bytes`` may be text such as ``"2MB"``. For the lists see `Guard`.
    """
    guard = Guard(frozenset(allow_origins), tuple(allow_domains), tuple(deny_domains))
    return make_web_fetch(
        guard=guard, max_bytes=_bytes(max_bytes), timeout=timeout, max_chars=max_chars
    )


def make_web_fetch(
    *,
    guard: Guard | None = None,
    max_bytes: int = 2_000_000,
    timeout: float = 20.0,
    max_chars: int = 1500,
    resolve: Resolver = system_resolver,
) -> Tool:
    """A tool ``web_fetch(url, find="")`` that reads what ``guard`` lets through.

    Its value is a `Page` without others; the text is the passages that best fit ``find``, in
    page order, at most ``max_chars`` characters, and the value what stands for ``find``, or
    None. ``timeout`` is seconds for the whole fetch, ``max_bytes`` counts after decompression.

    Calling it raises `FetchError`. ``close`` closes the connections of the running loop.
    """
    caps = Caps(max_bytes, timeout, waits=False)
    fetcher = Fetcher(guard or Guard(), caps, resolve=resolve, visiting=visiting)

    # The driver's limit lies behind our own, which names the page and has a better message.
    @tool(
        name="web_fetch",
        timeout=timeout + 5.0,
        retries=2,
        host="url",
        words=("find",),
        returns="{url, title, text, value}: value is the number or short text for find, or null",
    )
    async def fetch(url: str, find: str = "") -> Page:
        """Read a web page.

        Args:
            url: the address, such as $1[0].url
            find: what to look for in the page, in a few words, such as "population"
        """
        download = await fetcher.fetch(url.strip(), accept=_readable)
        return await in_thread(_digest, download, find, max_chars)

    return dataclasses.replace(fetch, close=fetcher.aclose)


def _digest(download: Download, find: str, max_chars: int) -> Page:
    page = read_page(download.body, download.media_type, download.charset, url=download.url)
    note = f"\n[cut: only the first {len(download.body)} bytes were read]"
    text = excerpt(page.passages, find, page.title, max_chars)
    return {
        "url": download.url,
        "title": page.title,
        "text": text + note * download.truncated,
        "value": value(page.passages, find, page.title),
    }


def _readable(media_type: str) -> bool:
    """Text, PDF, or a type so vague that only the first bytes can tell."""
    return is_text(media_type) or media_type in ("application/pdf", "application/octet-stream")


def _bytes(size: int | str) -> int:
    """``2_000_000`` or ``"2MB"`` or ``"512KiB"`` as bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]i?)?b?", str(size).strip().lower())
    if match is None or float(match[1]) <= 0:
        raise UsageError(f"max_bytes: {size!r} is no size: write 2000000 or '2MB'")
    return int(float(match[1]) * _UNITS[match[2] or ""])
