"""An httpx client that connects only where a `Guard` lets it.

A name is resolved once, its addresses are judged, and the connection goes to one of those
very addresses, so a name that answers differently the second time (DNS rebinding) gains
nothing. Proxies and cookies are never used: a proxy would resolve names behind the guard's
back. This file must never decide what is allowed.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpcore
import httpx

from agentpar.errors import FetchError
from agentpar.net.guard import Guard, why_refused

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""Turns a host name and a port into addresses, best first; raises `OSError` where it cannot."""

USER_AGENT = "agentpar (research agent; one request at a question's wish)"


async def system_resolver(host: str, port: int) -> Sequence[str]:
    """Ask the operating system, in its order of preference (RFC 6724)."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class _RefusedAddress(Exception):
    """Inside this file: the backend found no address it may connect to."""

    def __init__(self, address: str, why: str) -> None:
        super().__init__(f"{address}: {why}")
        self.address = address
        self.why = why


class PinnedBackend(httpcore.AsyncNetworkBackend):
    """Resolves a name once, drops the addresses that are refused, connects to what is left.

    TLS still checks the certificate against the name: httpcore takes the name from the URL,
    not from the address connected to.
    """

    def __init__(self, guard: Guard, resolve: Resolver = system_resolver) -> None:
        self._guard = guard
        self._resolve = resolve
        self._sockets = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = await self._addresses(host, port, timeout)
        # One dead address (IPv6 without a route, say) must not eat the whole time.
        share = None if timeout is None else timeout / len(addresses)
        for address in addresses[:-1]:
            try:
                return await self._sockets.connect_tcp(
                    address, port, share, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await self._sockets.connect_tcp(
            addresses[-1], port, share, local_address, socket_options
        )

    async def _addresses(self, host: str, port: int, timeout: float | None) -> Sequence[str]:
        """At least one address that may be reached; never a name."""
        try:
            async with asyncio.timeout(timeout):
                found = [host] if _is_address(host) else list(await self._resolve(host, port))
        except TimeoutError:
            raise httpcore.ConnectTimeout(f"no address for {host!r} in time") from None
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"no address for {host!r}: {error}") from None
        if not found:
            raise httpcore.ConnectError(f"no address for {host!r}")
        if self._guard.grants(host, port):
            granted = [address for address in found if _is_address(address)]
            if not granted:
                raise httpcore.ConnectError(f"no address for {host!r}: {found[0]!r} is none")
            return granted[:4]
        public = [address for address in found if not why_refused(address)]
        if not public:
            raise _RefusedAddress(found[0], why_refused(found[0]))
        return public[:4]

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        raise _RefusedAddress(path, "a local socket")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


@contextmanager
def _as_httpx_errors(url: httpx.URL) -> Iterator[None]:
    """What httpx's own transport does with httpcore's errors: the same names, one floor up."""
    try:
        yield
    except _RefusedAddress as refused:
        raise FetchError(
            f"refused address {refused.address} for {str(url)!r}: {refused.why}"
        ) from None
    except (
        httpcore.TimeoutException,
        httpcore.NetworkError,
        httpcore.ProtocolError,
        httpcore.UnsupportedProtocol,
    ) as error:
        raise getattr(httpx, type(error).__name__)(str(error)) from error


class _Body(httpx.AsyncByteStream):
    """A response body whose errors are httpx's and whose end frees the connection."""

    def __init__(self, parts: Any, url: httpx.URL) -> None:
        self._parts = parts
        self._url = url

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _as_httpx_errors(self._url):
            async for part in self._parts:
                yield part

    async def aclose(self) -> None:
        await self._parts.aclose()


class _GuardedTransport(httpx.AsyncBaseTransport):
    """Checks every request's URL, then sends it over a pool of pinned connections.

    The check sits here, not in the caller, so that no way of using the client avoids it.
    """

    def __init__(self, guard: Guard, resolve: Resolver, tls: ssl.SSLContext | None) -> None:
        self._guard = guard
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls or _default_tls(),
            max_connections=100,
            max_keepalive_connections=20,
            keepalive_expiry=5.0,
            network_backend=PinnedBackend(guard, resolve),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self._guard.check(request.url)
        with _as_httpx_errors(request.url):
            response = await self._pool.handle_async_request(
                httpcore.Request(
                    method=request.method,
                    url=httpcore.URL(
                        scheme=request.url.raw_scheme,
                        host=request.url.raw_host,
                        port=request.url.port,
                        target=request.url.raw_path,
                    ),
                    headers=request.headers.raw,
                    content=request.stream,
                    extensions=request.extensions,
                )
            )
        headers = []
        for name, value in response.headers:
            if name.lower() == b"location":
                # Judged before httpx sees it, and handed on as the very URL that was judged:
                # httpx reads this header even where it does not follow it, by rules of its own.
                try:
                    target = redirected(request.url, _text(value))
                    value = str(self._guard.check(target)).encode("ascii")
                except FetchError:
                    await response.aclose()
                    raise
            headers.append((name, value))
        return httpx.Response(
            response.status,
            headers=headers,
            stream=_Body(response.stream, request.url),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        await self._pool.aclose()


def _text(header: bytes) -> str:
    """A header as a browser reads it: UTF-8, which many servers send as it is, or latin-1."""
    try:
        return header.decode("utf-8")
    except UnicodeDecodeError:
        return header.decode("latin-1")


def redirected(here: httpx.URL, target: str) -> httpx.URL:
    """Where a Location header leads; `FetchError` where it is not a URL."""
    try:
        return here.join(target)
    except (httpx.InvalidURL, ValueError) as error:
        raise FetchError(
            f"{str(here)!r} redirects to {target[:200]!r}, which is not a URL ({error})"
        ) from None


@cache
def _default_tls() -> ssl.SSLContext:
    """Shared by all clients: reading the certificate bundle takes tens of milliseconds."""
    return httpx.create_ssl_context()


def open_client(
    guard: Guard,
    *,
    timeout: float = 20.0,
    resolve: Resolver = system_resolver,
    tls: ssl.SSLContext | None = None,
) -> httpx.AsyncClient:
    """An httpx client that reaches only what ``guard`` lets through.

    ``timeout`` is seconds for each wait on the network; `Fetcher` bounds the whole. It does
    not follow redirects, keeps no cookies and ignores proxies of the environment.
    """
    return httpx.AsyncClient(
        transport=_GuardedTransport(guard, resolve, tls),
        timeout=httpx.Timeout(timeout, connect=min(timeout, 10.0)),
        follow_redirects=False,
        trust_env=False,
        cookies=CookieJar(policy=DefaultCookiePolicy(allowed_domains=[])),
        headers={"user-agent": USER_AGENT, "accept-encoding": "gzip, deflate"},
    )
