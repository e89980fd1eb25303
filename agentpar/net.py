"""The one door to addresses that a model, a page or a search engine has named.

A URL is judged twice: `Guard.check` reads its text, and the network backend judges the
address that the name resolves to, then connects to that very address, so a name that
answers differently the second time (DNS rebinding) gains nothing. Redirects are followed
here, one judged hop at a time. Proxies and cookies are never used: a proxy would resolve
names behind the guard's back. This file must never know what a page means.

Sources for what is refused: the IANA special-purpose address registries (RFC 6890 and its
updates), and the metadata addresses of cloud hosts.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
import unicodedata
import zlib
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any
from weakref import WeakKeyDictionary

import httpcore
import httpx

from agentpar.errors import FetchError, UsageError

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""Turns a host name and a port into addresses, best first; raises `OSError` where it cannot."""

MAX_URL = 8_000
USER_AGENT = "agentpar (research agent; one request at a question's wish)"

_IPV4_REFUSED = tuple(
    (ipaddress.IPv4Network(network), why)
    for network, why in (
        ("0.0.0.0/8", "unspecified"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "shared by carriers (CGNAT)"),
        ("127.0.0.0/8", "loopback"),
        ("168.63.129.16/32", "a cloud host's metadata"),
        ("169.254.0.0/16", "link-local"),
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "reserved for protocols"),
        ("192.0.2.0/24", "documentation"),
        ("192.31.196.0/24", "reserved for AS112"),
        ("192.52.193.0/24", "reserved for AMT"),
        ("192.88.99.0/24", "6to4 relay"),
        ("192.168.0.0/16", "private"),
        ("192.175.48.0/24", "reserved for AS112"),
        ("198.18.0.0/15", "benchmarks"),
        ("198.51.100.0/24", "documentation"),
        ("203.0.113.0/24", "documentation"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),
    )
)

# Only 2000::/3 is handed out to the public; the named ones make a better message, and the
# ones inside 2000::/3 are carved out of it.
_IPV6_PUBLIC = ipaddress.IPv6Network("2000::/3")
_IPV6_REFUSED = tuple(
    (ipaddress.IPv6Network(network), why)
    for network, why in (
        ("::/128", "unspecified"),
        ("::1/128", "loopback"),
        ("::ffff:0:0/96", "an IPv4 address in IPv6 clothes"),
        ("64:ff9b::/96", "NAT64"),
        ("64:ff9b:1::/48", "NAT64"),
        ("100::/64", "discard"),
        ("2001::/32", "Teredo"),
        ("2001::/23", "reserved for protocols"),
        ("2001:db8::/32", "documentation"),
        ("2002::/16", "6to4"),
        ("3ffe::/16", "reserved (6bone)"),
        ("3fff::/20", "documentation"),
        ("5f00::/16", "segment routing"),
        ("fc00::/7", "private (ULA)"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "site-local"),
        ("ff00::/8", "multicast"),
    )
)

# Names that only ever mean a machine nearby: refused before anyone is asked for an address.
_NEARBY_NAMES = ("localhost", "local", "internal", "home.arpa", "localdomain", "intranet", "lan")
_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*")
_PATTERN = re.compile(r"\*|(\*\.)?[a-z0-9_.:-]+")
_PORTS = {"http": 80, "https": 443}


def why_refused(address: str) -> str:
    """Why ``address`` (an IP address as text) is not to be reached; empty if it is public."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return "not an IP address"
    if isinstance(ip, ipaddress.IPv4Address):
        return next((why for network, why in _IPV4_REFUSED if ip in network), "")
    if ip.scope_id is not None:
        return "an address with a zone"
    for network, why in _IPV6_REFUSED:
        if ip in network:
            return why
    return "" if ip in _IPV6_PUBLIC else "not a public address"


@dataclass(frozen=True, slots=True)
class Guard:
    """Which URLs may be fetched.

    ``allow_domains`` and ``deny_domains`` hold ``"*"``, names (``"example.org"`` covers its
    subdomains as well) or ``"*.example.org"`` (only the subdomains); a denied domain stays
    denied. ``allow_origins`` are exact grants, such as ``"http://127.0.0.1:43121"``, which
    pass even at a private address and outside ``allow_domains``; nothing else on that host
    passes with them. At a public address every port is allowed.

    Raises `UsageError` where an origin or a pattern cannot be read.
    """

    allow_origins: frozenset[str] = frozenset()
    allow_domains: tuple[str, ...] = ("*",)
    deny_domains: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "allow_origins", frozenset(map(origin, self.allow_origins)))
        for name in ("allow_domains", "deny_domains"):
            object.__setattr__(self, name, tuple(map(_pattern, getattr(self, name))))

    def check(self, url: str | httpx.URL) -> httpx.URL:
        """The URL to ask for, without its fragment; `FetchError` says why it is refused.

        Only the text is judged here. The address behind a name is judged when connecting.
        """
        parsed = _parse(str(url))
        host = _host(parsed)
        if _covered(host, self.deny_domains):
            raise FetchError(f"refused {str(url)!r}: {host!r} is in deny_domains")
        if _origin_of(parsed) in self.allow_origins:
            return parsed
        if why := _why_host_refused(parsed):
            raise FetchError(f"refused address {parsed.host} for {str(url)!r}: {why}")
        if not _covered(host, self.allow_domains):
            known = ", ".join(self.allow_domains) or "nothing"
            raise FetchError(f"refused {str(url)!r}: {host!r} is not in allow_domains ({known})")
        return parsed

    def grants(self, host: str, port: int) -> bool:
        """Whether an exact grant covers this host and port, whatever address it has.

        The scheme was judged by `check`, which every request passes before it connects.
        """
        granted = (httpx.URL(text) for text in self.allow_origins)
        return any(
            (url.raw_host.decode("ascii"), url.port or _PORTS[url.scheme]) == (host, port)
            for url in granted
        )


def origin(url: str) -> str:
    """``scheme://host[:port]`` of ``url``; `UsageError` where there is more to it, or less."""
    try:
        parsed = _parse(url)
    except FetchError as error:
        raise UsageError(f"allow_origins: {error}") from None
    if parsed.path != "/" or parsed.query:
        raise UsageError(
            f"allow_origins: {url!r} is more than an origin; write {_origin_of(parsed)!r}"
        )
    return _origin_of(parsed)


def _origin_of(url: httpx.URL) -> str:
    """The origin with the default port left out, as httpx normalises it."""
    return f"{url.scheme}://{url.netloc.decode('ascii')}"


def _host(url: httpx.URL) -> str:
    """The host as it goes over the wire (international names in ASCII), without a last dot."""
    return url.raw_host.decode("ascii").lower().rstrip(".")


def _pattern(text: str) -> str:
    """A pattern of `Guard`, with an international name in the ASCII form that hosts have."""
    star, name = ("*.", text[2:]) if text.startswith("*.") else ("", text)
    try:
        pattern = "*" if text == "*" else star + _host(httpx.URL(f"http://{name}/"))
    except (httpx.InvalidURL, ValueError):
        pattern = ""
    if not _PATTERN.fullmatch(pattern) or "/" in text:
        raise UsageError(
            f"{text!r} is not a domain: write a name such as 'example.org', '*.example.org' or '*'"
        )
    return pattern


def _covered(host: str, patterns: Iterable[str]) -> bool:
    for pattern in patterns:
        name = pattern.removeprefix("*.")
        if pattern == "*" or host.endswith(f".{name}") or (host == name and name == pattern):
            return True
    return False


def _parse(url: str) -> httpx.URL:
    """``url`` as a value, if it is a plain web address; `FetchError` otherwise."""
    if len(url) > MAX_URL:
        raise FetchError(f"refused {url[:80]!r}…: longer than {MAX_URL} characters")
    if not url.isprintable() or "\\" in url or " " in url:
        raise FetchError(f"refused {url!r}: spaces, backslashes and control characters")
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError) as error:
        raise FetchError(f"refused {url!r}: not a URL ({error})") from None
    if parsed.scheme not in _PORTS:
        raise FetchError(f"refused {url!r}: a URL starts with 'http://' or 'https://'")
    if parsed.userinfo or "@" in url.split("//", 1)[-1].split("/", 1)[0]:
        # The text itself is left out: it may hold a password.
        raise FetchError(f"refused a URL on {parsed.host!r}: it carries a user name")
    if not parsed.host:
        raise FetchError(f"refused {url!r}: no host")
    return parsed.copy_with(fragment=None)


def _why_host_refused(url: httpx.URL) -> str:
    """Why this host may not even be looked up; empty if it is a public address or a name."""
    if unicodedata.normalize("NFKC", url.host) != url.host:
        return "letters that stand for others"
    host = url.raw_host.decode("ascii").lower()
    if ":" in host:
        return why_refused(host)
    bare = _host(url)
    last = bare.rsplit(".", 1)[-1]
    if re.fullmatch(r"\d+|0x[0-9a-f]*", last):
        # The WHATWG rule: a last label that is a number makes it an IPv4 address. Only the
        # plain spelling passes; 0x7f.1, 017700000001 and 127.1 are disguises.
        try:
            ipaddress.IPv4Address(host)
        except ValueError:
            return "a number in the place of a name"
        return why_refused(host)
    if not _NAME.fullmatch(bare) or len(bare) > 253:
        return "not a host name"
    if "." not in bare or _covered(bare, _NEARBY_NAMES):
        return "a name of a machine nearby"
    return ""


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
            return [address for address in found if _is_address(address)][:4]
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
        for name, target in response.headers:
            if name.lower() == b"location":
                # Judged before httpx sees it: httpx parses this header even where it does
                # not follow it, and its error would look like a broken connection.
                try:
                    self._guard.check(_redirected(request.url, target.decode("latin-1")))
                except FetchError:
                    await response.aclose()
                    raise
        return httpx.Response(
            response.status,
            headers=response.headers,
            stream=_Body(response.stream, request.url),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        await self._pool.aclose()


def _redirected(here: httpx.URL, target: str) -> httpx.URL:
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


@dataclass(frozen=True, slots=True)
class Caps:
    """Bounds on one fetch. Bytes count after decompression, ``timeout`` is seconds in all."""

    max_bytes: int = 2_000_000
    timeout: float = 20.0
    redirects: int = 5
    retries: int = 1


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
_RETRIED_ERRORS = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.ReadError,
    httpx.RemoteProtocolError,
)
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
    loop's. Safe for many fetches at once.
    """

    def __init__(
        self,
        guard: Guard,
        caps: Caps | None = None,
        *,
        resolve: Resolver = system_resolver,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.guard = guard
        self.caps = caps or Caps()
        self._resolve = resolve
        self._tls = tls
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = (
            WeakKeyDictionary()
        )

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
                answer = await self._follow(url, method, headers, json, accept)
            except _RETRIED_ERRORS:
                if last:
                    raise
                await asyncio.sleep(0.2)
                continue
            if isinstance(answer, Download):
                return answer
            wait = _retry_after(answer)
            deadline = scope.when()
            left = 0.0 if deadline is None else deadline - asyncio.get_running_loop().time()
            if last or answer.status_code not in _RETRIED_STATUS or wait >= left:
                reason = f"{answer.status_code} {answer.reason_phrase}".strip()
                raise FetchError(f"{url!r} answered HTTP {reason}")
            await asyncio.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    async def _follow(
        self,
        url: str,
        method: str,
        headers: Mapping[str, str],
        json: Any,
        accept: Callable[[str], bool],
    ) -> Download | httpx.Response:
        """The download, or the response (unread) whose status says that there is none."""
        here = self.guard.check(url)
        home = _origin_of(here)
        for _ in range(self.caps.redirects + 1):
            sent = headers if _origin_of(here) == home else {}
            async with self._client().stream(method, here, headers=sent, json=json) as response:
                if response.status_code >= 400:
                    return response
                if not response.is_redirect:
                    return await self._read(response, accept)
                here = self._next_hop(url, here, response, method)
        raise FetchError(f"{url!r} redirects more than {self.caps.redirects} times")

    def _next_hop(
        self, url: str, here: httpx.URL, response: httpx.Response, method: str
    ) -> httpx.URL:
        target = response.headers.get("location", "")
        if not target:
            raise FetchError(f"{url!r} redirects to nowhere (HTTP {response.status_code})")
        if method != "GET":
            raise FetchError(f"{url!r} redirects a {method} request to {target!r}")
        there = self.guard.check(_redirected(here, target))
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


def _retry_after(response: httpx.Response) -> float:
    """Seconds to wait before the next try, from the header or else half a second."""
    header = response.headers.get("retry-after", "").strip()
    if header.isdecimal():
        return float(header)
    try:
        when, now = parsedate_to_datetime(header), parsedate_to_datetime(response.headers["date"])
    except (KeyError, TypeError, ValueError):
        return 0.5
    return max(0.0, (when - now).total_seconds())
