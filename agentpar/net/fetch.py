"""Whole bodies within bounds: redirects, retries, bytes, decompression and time.

Redirects are followed here, one judged hop at a time. It must never know what a page means.
"""

from __future__ import annotations

import asyncio
import ssl
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from agentpar.errors import FetchError
from agentpar.gate import Visit, Visiting, unlimited
from agentpar.net.client import Resolver, open_client, redirected, system_resolver
from agentpar.net.guard import Guard, origin_of
from agentpar.net.retry import asks_for_less, retry_after
from agentpar.resource import host_of


@dataclass(frozen=True, slots=True)
class Caps:
    """Bounds on one fetch. Bytes count after decompression, ``timeout`` is seconds in all.

    Where it ``waits``, a server's "too many requests" is waited out once; otherwise it is an
    error at once, for somebody who holds all calls to that server back.
    """

    max_bytes: int = 2_000_000
    timeout: float = 20.0
    redirects: int = 5
    retries: int = 1
    waits: bool = True


@dataclass(frozen=True, slots=True)
class Download:
    """What came back: ``url`` after redirects, ``media_type`` in lower case without parameters.

    ``truncated`` says that ``body`` was cut at the cap.
    """

    url: str
    media_type: str
    charset: str
    body: bytes
    truncated: bool = False


def is_text(media_type: str) -> bool:
    """Whether half of such a body still makes sense."""
    return (
        media_type.startswith("text/")
        or media_type.endswith(("+xml", "+json"))
        or media_type in ("", "application/json", "application/xml", "application/javascript")
    )


_RETRIED_STATUS = frozenset({429, 500, 502, 503, 504})
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout)
_BROKEN_OFF = (httpx.ReadError, httpx.RemoteProtocolError)
# The zlib windows to try for each encoding that we ask for. Deflate is wrapped, as the
# standard says, or bare, as some servers send it.
_WINDOWS: dict[str, tuple[int, ...]] = {
    "": (),
    "identity": (),
    "gzip": (zlib.MAX_WBITS | 16,),
    "x-gzip": (zlib.MAX_WBITS | 16,),
    "deflate": (zlib.MAX_WBITS, -zlib.MAX_WBITS),
}
# HTML packs 5 to 20 times; what packs this much tighter was made to fill memory.
_BOMB_RATIO = 100


class Fetcher:
    """Fetches whole bodies within `Caps`, following redirects hop by judged hop.

    One client per event loop is opened at the first fetch; `aclose` closes the running
    loop's. Safe for many fetches at once: each request waits for its host as ``visiting`` says,
    and the time that it waits there does not count.
    """

    def __init__(
        self,
        guard: Guard,
        caps: Caps | None = None,
        *,
        resolve: Resolver = system_resolver,
        tls: ssl.SSLContext | None = None,
        visiting: Visiting = unlimited,
    ) -> None:
        self.guard = guard
        self.caps = caps or Caps()
        self._resolve = resolve
        self._tls = tls
        self._visiting = visiting
        self._clients: dict[asyncio.AbstractEventLoop, httpx.AsyncClient] = {}

    async def fetch(
        self,
        url: str,
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        json: Any = None,
        accept: Callable[[str], bool] = lambda media_type: True,
    ) -> Download:
        """The body behind ``url``; ``accept`` judges its media type before it is read.

        ``headers`` are sent to the URL's own origin only, never along a redirect elsewhere.
        A text longer than ``caps.max_bytes`` is cut; anything else that long is an error.

        Raises `FetchError` for a refused address, an HTTP status from 400 up, a broken or
        endless redirect, a refused type, a decompression bomb, or when the time is up.
        """
        try:
            async with asyncio.timeout(self.caps.timeout) as scope:
                return await self._retried(url, method, headers or {}, json, accept, scope)
        except TimeoutError:
            raise FetchError(
                f"{url!r} gave no complete answer within {self.caps.timeout:g} s"
            ) from None
        except httpx.TimeoutException as error:
            raise FetchError(f"{url!r} did not answer in time ({type(error).__name__})") from None
        except httpx.HTTPError as error:
            raise FetchError(
                f"{url!r} cannot be reached: {error or type(error).__name__}"
            ) from None

    async def aclose(self) -> None:
        """Close the connections that belong to the running event loop."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()

    def _client(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            # In a loop that was closed nothing can be awaited: its sockets go with their objects.
            self._clients = {at: own for at, own in self._clients.items() if not at.is_closed()}
            self._clients[loop] = open_client(
                self.guard, timeout=self.caps.timeout, resolve=self._resolve, tls=self._tls
            )
        return self._clients[loop]

    async def _retried(
        self,
        url: str,
        method: str,
        headers: Mapping[str, str],
        json: Any,
        accept: Callable[[str], bool],
        scope: asyncio.Timeout,
    ) -> Download:
        for attempt in range(self.caps.retries + 1):
            last = attempt == self.caps.retries
            try:
                answer = await self._follow(url, method, headers, json, accept, scope)
            except (*_NOT_SENT, *_BROKEN_OFF) as error:
                # A POST may have been done, and paid for, before its answer broke off.
                if last or (method != "GET" and isinstance(error, _BROKEN_OFF)):
                    raise
                await asyncio.sleep(0.2)
                continue
            if isinstance(answer, Download):
                return answer
            asked = retry_after(answer.headers)
            wait = 0.5 if asked is None else asked
            deadline = scope.when()
            left = 0.0 if deadline is None else deadline - asyncio.get_running_loop().time()
            passing = answer.status_code in _RETRIED_STATUS and wait < left
            held_back = answer.status_code == 429 and not self.caps.waits
            if last or held_back or not passing:
                reason = f"{answer.status_code} {answer.reason_phrase}".strip()
                status = answer.status_code
                raise FetchError(
                    f"{url!r} answered HTTP {reason}", status=status, retry_after=asked
                )
            await asyncio.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    async def _follow(
        self,
        url: str,
        method: str,
        headers: Mapping[str, str],
        json: Any,
        accept: Callable[[str], bool],
        scope: asyncio.Timeout,
    ) -> Download | httpx.Response:
        """The download, or the response (unread) whose status says that there is none."""
        here = self.guard.check(url)
        home = origin_of(here)
        for _ in range(self.caps.redirects + 1):
            sent = headers if origin_of(here) == home else {}
            async with (
                self._visit(host_of(str(here)), scope) as visit,
                self._client().stream(method, here, headers=sent, json=json) as response,
            ):
                asked = retry_after(response.headers)
                if asks_for_less(response.status_code, asked):
                    visit.throttled(asked)
                elif response.status_code < 500:
                    visit.succeeded()
                if response.status_code >= 400:
                    return response
                if not response.is_redirect:
                    return await self._read(response, accept)
                here = self._next_hop(url, here, response, method)
        raise FetchError(f"{url!r} redirects more than {self.caps.redirects} times")

    @asynccontextmanager
    async def _visit(self, host: str, scope: asyncio.Timeout) -> AsyncIterator[Visit]:
        """A stay at ``host``; the clock of ``scope`` stands still until it begins."""
        now, ends = asyncio.get_running_loop().time, scope.when()
        began = now()
        scope.reschedule(None)
        async with self._visiting(host, self.caps.timeout) as visit:
            scope.reschedule(None if ends is None else ends + now() - began)
            yield visit

    def _next_hop(
        self, url: str, here: httpx.URL, response: httpx.Response, method: str
    ) -> httpx.URL:
        target = response.headers.get("location", "")
        if not target:
            raise FetchError(f"{url!r} redirects to nowhere (HTTP {response.status_code})")
        if method != "GET":
            raise FetchError(f"{url!r} redirects a {method} request to {target!r}")
        there = self.guard.check(redirected(here, target))
        if here.scheme == "https" and there.scheme == "http":
            raise FetchError(f"{url!r} redirects from https to {str(there)!r}, which is not safe")
        return there

    async def _read(self, response: httpx.Response, accept: Callable[[str], bool]) -> Download:
        url, cap = str(response.url), self.caps.max_bytes
        media_type, charset = _content_type(response.headers.get("content-type", ""))
        size = response.headers.get("content-length", "")
        described = f"{media_type or 'data without a type'}" + (f", {size} bytes" if size else "")
        if not accept(media_type):
            raise FetchError(f"{url!r} is not text: {described}")
        unpacker = _Unpacker(url, response.headers.get("content-encoding", "").strip().lower())
        body = bytearray()
        async for part in response.aiter_raw():
            body += unpacker.feed(part, cap + 1 - len(body))
            if len(body) > cap or unpacker.taken > cap:
                break
        truncated = len(body) > cap or unpacker.taken > cap
        if truncated and len(body) > _BOMB_RATIO * unpacker.taken:
            raise FetchError(
                f"{url!r} is a decompression bomb: {unpacker.taken} bytes became more than {cap}"
            )
        if truncated and not is_text(media_type):
            raise FetchError(f"{url!r} is larger than {cap} bytes ({described})")
        return Download(url, media_type, charset, bytes(body[:cap]), truncated)


def _content_type(header: str) -> tuple[str, str]:
    """``text/html; charset="UTF-8"`` as ``("text/html", "utf-8")``."""
    media_type, *parameters = header.split(";")
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            return media_type.strip().lower(), value.strip(" \"'").lower()
    return media_type.strip().lower(), ""


class _Unpacker:
    """Turns bytes on the wire into bytes of the body, never more than there is room for.

    httpx's own decoders have no bound on what a chunk grows to, and stack without limit.
    ``taken`` counts the bytes on the wire that were needed for what came out.
    """

    def __init__(self, url: str, encoding: str) -> None:
        self.taken = 0
        self._url = url
        windows = _WINDOWS.get(encoding)
        if windows is None:
            raise FetchError(f"{url!r} is packed as {encoding!r}, which was not asked for")
        self._unpack = zlib.decompressobj(windows[0]) if windows else None
        self._others = windows[1:]

    def feed(self, part: bytes, room: int) -> bytes:
        self.taken += len(part)
        if self._unpack is None:
            return part[:room]
        try:
            body = self._unpack.decompress(part, room)
        except zlib.error as error:
            if not self._others:
                raise FetchError(f"{self._url!r} is badly packed: {error}") from None
            self._unpack, self._others = zlib.decompressobj(self._others[0]), ()
            self.taken -= len(part)
            return self.feed(part, room)
        self.taken -= len(self._unpack.unconsumed_tail)
        return body
