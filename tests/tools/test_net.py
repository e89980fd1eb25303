"""The guarded door: grants, redirects, TLS, and bounds; what must not be reached is test_ssrf's."""

from __future__ import annotations

import asyncio
import gzip
import ipaddress
import ssl
import subprocess
import time
import zlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopback import Server, redirect, reply, serving

from agentpar.errors import FetchError, UsageError
from agentpar.net import (
    Caps,
    Fetcher,
    Guard,
    Resolver,
    open_client,
    retry_after,
    system_resolver,
    why_refused,
)

PUBLIC = "93.184.215.14"


class Answers:
    """A resolver that gives each call the next answer, the last one for ever."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)
        self.calls: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.calls.append(host)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@asynccontextmanager
async def fetching(
    guard: Guard, *, resolve: Resolver = system_resolver, tls: ssl.SSLContext | None = None, **caps
) -> AsyncIterator[Fetcher]:
    fetcher = Fetcher(guard, Caps(**{"timeout": 3.0, **caps}), resolve=resolve, tls=tls)
    try:
        yield fetcher
    finally:
        await fetcher.aclose()


def only(*servers: Server) -> Guard:
    return Guard(allow_origins=frozenset(server.origin for server in servers))


# ── Addresses ────────────────────────────────────────────────────────────────────


async def test_a_refusal_names_address_url_and_reason() -> None:
    """Whoever reads the message knows what led where."""
    async with fetching(Guard(), resolve=Answers(["10.1.2.3"])) as fetcher:
        with pytest.raises(FetchError) as caught:
            await fetcher.fetch("http://shop.example.org/x")
    assert str(caught.value) == "refused address 10.1.2.3 for 'http://shop.example.org/x': private"


async def test_private_addresses_are_dropped_from_a_mixed_answer() -> None:
    """A name with a public and a private address only ever gets the public one."""
    async with (
        serving({"/": reply("inside")}) as server,
        fetching(
            Guard(), resolve=Answers(["127.0.0.1", PUBLIC]), timeout=0.4, retries=0
        ) as fetcher,
    ):
        with pytest.raises(FetchError, match=r"did not answer|cannot be reached|no complete"):
            await fetcher.fetch(f"http://mixed.example.org:{server.port}/")
        assert server.connections == 0


@given(st.ip_addresses())
def test_what_python_calls_not_global_is_refused(
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    """Our table is at least as strict as the standard library's."""
    assert ip.is_global or why_refused(str(ip))
    assert not ip.is_multicast or why_refused(str(ip))


@given(st.ip_addresses(v=4))
def test_ipv4_in_ipv6_clothes_is_refused(ip: ipaddress.IPv4Address) -> None:
    """Mapped, compatible, NAT64 and 6to4 forms of any address."""
    number = int(ip)
    for base in ("::ffff:0:0", "::", "64:ff9b::", "64:ff9b:1::"):
        assert why_refused(str(ipaddress.IPv6Address(int(ipaddress.IPv6Address(base)) + number)))
    assert why_refused(str(ipaddress.IPv6Address((0x2002 << 112) + (number << 80) + 1)))


@pytest.mark.parametrize("address", ["8.8.8.8", PUBLIC, "2606:4700::1111", "2a00:1450:4001::1"])
def test_public_addresses_pass(address: str) -> None:
    """The guard is no wall: the open web is open."""
    assert why_refused(address) == ""
    host = f"[{address}]" if ":" in address else address
    for port in ("", ":80", ":8443", ":22"):
        Guard().check(f"http://{host}{port}/")


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org",
        "https://a.b.example.org:8443/x?y=z#part",
        "http://example.org./",
        "https://münchen.de/",
        "http://xn--mnchen-3ya.de/",
        "http://a_b.example.org/",
        "http://1.de",
    ],
)
def test_ordinary_urls_pass_without_their_fragment(url: str) -> None:
    """International names, ports, underscores and a last dot are all right."""
    assert Guard().check(url).fragment == ""


# ── Grants and domains ───────────────────────────────────────────────────────────


async def test_a_grant_is_for_one_exact_origin() -> None:
    """Another port, scheme, spelling or host name of the granted machine stays refused."""
    async with serving({"/": reply("a")}) as one, serving({"/": reply("b")}) as other:
        async with fetching(only(one)) as fetcher:
            assert (await fetcher.fetch(one.origin)).body == b"a"
            for url in (
                other.origin,
                f"https://127.0.0.1:{one.port}/",
                f"http://127.1:{one.port}/",
                f"http://localhost:{one.port}/",
                f"http://[::ffff:127.0.0.1]:{one.port}/",
                f"http://x@127.0.0.1:{one.port}/",
                "http://127.0.0.1/",
            ):
                with pytest.raises(FetchError, match=r"^refused"):
                    await fetcher.fetch(url)
        assert (one.connections, other.connections) == (1, 0)


def test_domains_cover_their_subdomains_and_deny_wins() -> None:
    """The two lists, with and without a star."""
    guard = Guard(
        allow_domains=("example.org", "*.example.net", "München.de"),
        deny_domains=("bad.example.org", "127.0.0.1"),
        allow_origins=frozenset({"http://127.0.0.1:9"}),
    )
    for host in ("example.org", "a.example.org", "EXAMPLE.org.", "a.example.net", "münchen.de"):
        guard.check(f"http://{host}/")
    for host in ("example.net", "notexample.org", "bad.example.org", "x.bad.example.org"):
        with pytest.raises(FetchError, match="_domains"):
            guard.check(f"http://{host}/")
    with pytest.raises(FetchError, match="deny_domains"):
        guard.check("http://127.0.0.1:9/")
    with pytest.raises(FetchError, match="not in allow_domains"):
        guard.check("http://8.8.8.8/")


@pytest.mark.parametrize(
    "options",
    [
        {"allow_origins": frozenset({"http://127.0.0.1:1/path"})},
        {"allow_origins": frozenset({"127.0.0.1:1"})},
        {"allow_domains": ("http://example.org",)},
        {"deny_domains": ("exa mple",)},
        {"allow_domains": ("*x*",)},
    ],
)
def test_a_guard_that_cannot_be_read_is_refused(options) -> None:
    """A typing slip in a list must not become a hole."""
    with pytest.raises(UsageError):
        Guard(**options)


# ── Redirects ────────────────────────────────────────────────────────────────────


async def test_redirects_are_followed_within_the_grant() -> None:
    """Relative and absolute; the final address is reported."""
    async with serving() as server:
        server.routes = {
            "/a": [redirect("b?x=1")],
            "/b?x=1": [redirect(f"{server.origin}/c#part", 308)],
            "/c": [reply("there")],
        }
        async with fetching(only(server)) as fetcher:
            got = await fetcher.fetch(f"{server.origin}/a")
    assert (got.url, got.body) == (f"{server.origin}/c", b"there")


async def test_a_redirect_loop_ends() -> None:
    """Five hops and no more."""
    async with serving({"/": redirect("/")}) as server, fetching(only(server)) as fetcher:
        with pytest.raises(FetchError, match="redirects more than 5 times"):
            await fetcher.fetch(f"{server.origin}/")
        assert len(server.heads) == 6


async def test_a_redirect_without_a_target_is_an_error() -> None:
    """Said, not guessed."""
    async with (
        serving({"/": reply(status=302)}) as server,
        fetching(only(server)) as fetcher,
    ):
        with pytest.raises(FetchError, match="redirects to nowhere"):
            await fetcher.fetch(f"{server.origin}/")


async def test_a_key_does_not_follow_a_redirect_elsewhere() -> None:
    """Headers meant for one origin stay there; a POST is not sent on at all."""
    async with serving({"/": reply("x")}) as other, serving() as server:
        server.routes = {"/": [redirect(f"{other.origin}/")]}
        async with fetching(only(server, other)) as fetcher:
            await fetcher.fetch(f"{server.origin}/", headers={"x-key": "s3cret"})
            with pytest.raises(FetchError, match="redirects a POST"):
                await fetcher.fetch(f"{server.origin}/", method="POST", json={"q": 1})
        assert "s3cret" in server.heads[0]
        assert "s3cret" not in other.heads[0]
        assert len(other.heads) == 1


# ── TLS, proxies, cookies ────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for good.example.org and nothing else, with its key."""
    place = tmp_path_factory.mktemp("tls") / "both.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt"]
    command += ["ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(place), "-days", "2"]
    command += ["-subj", "/CN=good.example.org", "-addext", "subjectAltName=DNS:good.example.org"]
    try:
        made = subprocess.run(command, capture_output=True, check=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    place.write_bytes(place.read_bytes() + made.stdout)
    return place


async def test_tls_is_verified_for_the_name_not_the_address(certificate: Path) -> None:
    """Pinning an address does not loosen the certificate check; https never falls to http."""
    inside = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    inside.load_cert_chain(certificate)
    trusting = ssl.create_default_context(cafile=str(certificate))
    async with serving({"/": reply("plain")}) as plain, serving(tls=inside) as server:
        good = f"https://good.example.org:{server.port}"
        evil = f"https://evil.example.org:{server.port}"
        server.routes = {"/": [reply("sealed")], "/down": [redirect(f"{plain.origin}/")]}
        guard = Guard(allow_origins=frozenset({good, evil, plain.origin}))
        async with fetching(
            guard, resolve=Answers(["127.0.0.1"]), tls=trusting, retries=0
        ) as fetcher:
            assert (await fetcher.fetch(f"{good}/")).body == b"sealed"
            with pytest.raises(FetchError, match="certificate"):
                await fetcher.fetch(f"{evil}/")
            with pytest.raises(FetchError, match="from https to"):
                await fetcher.fetch(f"{good}/down")
        async with fetching(guard, resolve=Answers(["127.0.0.1"]), retries=0) as fetcher:
            with pytest.raises(FetchError, match="certificate"):
                await fetcher.fetch(f"{good}/")
        assert plain.connections == 0


async def test_cookies_are_not_kept() -> None:
    """One run's pages cannot mark the next one's requests."""
    page = reply("x", headers={"set-cookie": "id=7; Path=/"})
    async with serving({"/": page}) as server, fetching(only(server)) as fetcher:
        await fetcher.fetch(f"{server.origin}/")
        await fetcher.fetch(f"{server.origin}/")
    assert len(server.heads) == 2
    assert "id=7" not in server.heads[1]


async def test_a_client_that_follows_redirects_itself_is_guarded_too() -> None:
    """The check sits in the transport: there is no way round it."""
    async with serving({"/": reply("inside")}) as other, serving() as server:
        server.routes = {"/": [redirect(f"{other.origin}/")]}
        async with open_client(only(server)) as client:
            with pytest.raises(FetchError, match=r"^refused"):
                await client.get(f"{server.origin}/", follow_redirects=True)
            before = server.connections
            with pytest.raises(FetchError, match=r"^refused"):
                await client.get(f"https://127.0.0.1:{server.port}/")
        assert (server.connections, other.connections) == (before, 0)


# ── Bounds ───────────────────────────────────────────────────────────────────────


async def test_a_long_text_is_cut_and_says_so() -> None:
    """50 MB of text: two of them are read, and the rest is not waited for."""

    async def endless(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\n")
        for _ in range(50):
            writer.write(b"word " * 200_000)
            await writer.drain()

    async with serving({"/": endless}) as server, fetching(only(server)) as fetcher:
        got = await fetcher.fetch(f"{server.origin}/")
    assert got.truncated
    assert len(got.body) == 2_000_000


async def test_a_long_file_is_an_error() -> None:
    """Half a PDF is no PDF."""
    page = reply(b"%PDF-" + b"x" * 5_000, "application/pdf")
    async with serving({"/": page}) as server, fetching(only(server), max_bytes=1000) as fetcher:
        with pytest.raises(FetchError, match=r"larger than 1000 bytes \(application/pdf, 5005"):
            await fetcher.fetch(f"{server.origin}/")


async def test_an_endless_body_ends() -> None:
    """A body without end is cut at the cap or at the deadline, whichever comes first."""

    async def endless(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"400\r\n" + b"y" * 1024 + b"\r\n")
            await writer.drain()

    async with serving({"/": endless}) as server, fetching(only(server)) as fetcher:
        got = await fetcher.fetch(f"{server.origin}/")
    assert got.truncated


@pytest.mark.parametrize("where", ["head", "body"])
async def test_a_slow_drip_meets_the_deadline(where: str) -> None:
    """A byte now and then keeps no fetch alive."""

    async def drip(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n" + (b"\r\n" if where == "body" else b"x-a: "))
        while True:
            writer.write(b"z")
            await writer.drain()
            await asyncio.sleep(0.05)

    started = time.monotonic()
    async with serving({"/": drip}) as server, fetching(only(server), timeout=0.4) as fetcher:
        with pytest.raises(FetchError, match=r"no complete answer within 0\.4 s"):
            await fetcher.fetch(f"{server.origin}/")
    assert time.monotonic() - started < 10.0


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_decompression_bomb_is_refused(encoding: str) -> None:
    """20 MB of zeros in 90 kB: found out at the cap, without holding more than that."""
    pack = gzip.compress if encoding == "gzip" else zlib.compress
    page = reply(pack(b"0" * 20_000_000, 1), headers={"content-encoding": encoding})
    async with serving({"/": page}) as server, fetching(only(server)) as fetcher:
        with pytest.raises(FetchError, match="decompression bomb"):
            await fetcher.fetch(f"{server.origin}/")


async def test_packed_pages_are_unpacked() -> None:
    """gzip, zlib and bare deflate; anything that was not asked for is an error."""
    text = b"Chile " * 100
    bare = zlib.compressobj(wbits=-15)
    packed = {
        "/gzip": (gzip.compress(text), "gzip"),
        "/zlib": (zlib.compress(text), "deflate"),
        "/bare": (bare.compress(text) + bare.flush(), "Deflate"),
        "/none": (text, "identity"),
    }
    bad = {"/br": (b"x", "br"), "/two": (b"x", "gzip, gzip"), "/broken": (b"nonsense", "gzip")}
    async with serving() as server, fetching(only(server)) as fetcher:
        for path, (body, encoding) in (packed | bad).items():
            server.routes[path] = [reply(body, headers={"content-encoding": encoding})]
        for path in packed:
            assert (await fetcher.fetch(server.origin + path)).body == text
        for path in bad:
            with pytest.raises(FetchError, match="packed"):
                await fetcher.fetch(server.origin + path)


# ── Errors and retries ───────────────────────────────────────────────────────────


async def test_an_http_error_names_its_status() -> None:
    """404 is not asked for twice."""
    async with serving() as server, fetching(only(server)) as fetcher:
        with pytest.raises(FetchError, match="answered HTTP 404"):
            await fetcher.fetch(f"{server.origin}/gone")
        assert len(server.heads) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_passing_error_is_tried_once_more(status: int) -> None:
    """With the server's own Retry-After."""
    busy = reply(status=status, headers={"retry-after": "0"})
    async with serving({"/": [busy, reply("now")]}) as server, fetching(only(server)) as fetcher:
        assert (await fetcher.fetch(f"{server.origin}/")).body == b"now"
        server.routes["/"] = [busy]
        with pytest.raises(FetchError, match=f"HTTP {status}"):
            await fetcher.fetch(f"{server.origin}/")
        assert len(server.heads) == 4


async def test_a_wait_beyond_the_deadline_is_not_begun() -> None:
    """Retry-After: an hour is the same as no."""
    busy = reply(status=429, headers={"retry-after": "3600"})
    started = time.monotonic()
    async with serving({"/": busy}) as server, fetching(only(server)) as fetcher:
        with pytest.raises(FetchError, match="HTTP 429"):
            await fetcher.fetch(f"{server.origin}/")
    assert time.monotonic() - started < 10.0


async def test_a_broken_connection_is_tried_once_more() -> None:
    """Hung up without a word, then answered."""

    async def hang_up(writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with (
        serving({"/": [hang_up, reply("now")]}) as server,
        fetching(only(server)) as fetcher,
    ):
        assert (await fetcher.fetch(f"{server.origin}/")).body == b"now"


async def test_a_post_is_not_sent_again_once_it_was_sent() -> None:
    """It may have been done, and paid for, before the connection broke."""

    async def hang_up(writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with serving({"/": hang_up}) as server, fetching(only(server)) as fetcher:
        with pytest.raises(FetchError, match="cannot be reached"):
            await fetcher.fetch(f"{server.origin}/", method="POST", json={"query": "x"})
        assert len(server.heads) == 1


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": " 0.5 "}, 0.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "1e999"}, None),
        ({"retry-after": "Sun, 06 Nov 2050 08:49:37 +999999999999999999"}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"retry-after": "soon", "date": "Wed, 21 Oct 2015 07:28:00 GMT"}, None),
        (
            {
                "retry-after": "Wed, 21 Oct 2015 07:28:09 GMT",
                "date": "Wed, 21 Oct 2015 07:28:00 GMT",
            },
            9.0,
        ),
    ],
)
def test_retry_after_is_seconds_or_a_date(headers: dict[str, str], seconds: float | None) -> None:
    """A date is held against the server's own clock where it tells that; no number is endless,
    which no record could hold."""
    assert retry_after(headers) == seconds


def test_a_date_without_a_zone_is_greenwich_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest form of an HTTP date names none, and is not the time of this machine's town."""
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        headers = {
            "retry-after": "Sun Nov  6 08:49:37 1994",
            "date": "Sun, 06 Nov 1994 08:49:28 GMT",
        }
        assert retry_after(headers) == 9.0
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("charset", ["utf-8", "latin-1"])
async def test_a_redirect_to_letters_that_are_not_escaped_is_followed(charset: str) -> None:
    """Many servers send the address in UTF-8 as it is, some in latin-1."""
    moved = b"HTTP/1.1 302 Said\r\ncontent-length: 0\r\nlocation: /caf\xff\r\n\r\n"
    async with serving({"/caf%C3%A9": reply("open")}) as server, fetching(only(server)) as fetcher:
        server.routes["/"] = [moved.replace(b"\xff", "é".encode(charset))]
        assert (await fetcher.fetch(f"{server.origin}/")).body == b"open"


async def test_a_granted_name_without_an_address_is_said() -> None:
    """A resolver that brings nothing to connect to."""
    guard = Guard(allow_origins=frozenset({"http://intranet:8080"}))
    async with fetching(guard, resolve=Answers(["nowhere"])) as fetcher:
        with pytest.raises(FetchError, match="no address for 'intranet'"):
            await fetcher.fetch("http://intranet:8080/")


async def test_nobody_listening_is_said() -> None:
    """The port of a server that is gone."""
    async with serving() as server:
        guard = only(server)
    async with fetching(guard) as fetcher:
        with pytest.raises(FetchError, match=f"'{server.origin}/' cannot be reached"):
            await fetcher.fetch(f"{server.origin}/")


async def test_an_unwanted_type_is_refused_before_its_body_is_read() -> None:
    """Type and size are in the message."""

    async def image(writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\ncontent-length: 9000000\r\n\r\n"
        )
        await writer.drain()
        await asyncio.sleep(60)

    async with serving({"/": image}) as server, fetching(only(server)) as fetcher:
        with pytest.raises(FetchError, match="is not text: image/png, 9000000 bytes"):
            await fetcher.fetch(f"{server.origin}/", accept=lambda kind: kind == "text/html")


async def test_a_fetcher_works_again_after_it_is_closed() -> None:
    """Closing lets go of connections; the next fetch opens new ones."""
    async with serving({"/": reply("x")}) as server, fetching(only(server)) as fetcher:
        await fetcher.fetch(f"{server.origin}/")
        await fetcher.fetch(f"{server.origin}/")
        assert server.connections == 1
        await fetcher.aclose()
        await fetcher.fetch(f"{server.origin}/")
        assert server.connections == 2


async def test_a_cancelled_fetch_frees_its_connection() -> None:
    """Cancellation reaches the socket: the server sees the end."""
    begun, ended = asyncio.Event(), asyncio.Event()

    async def wait(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await writer.drain()
        begun.set()
        while not writer.transport.is_closing():
            writer.write(b"x")
            await asyncio.sleep(0.01)
        ended.set()

    async with serving({"/": wait}) as server, fetching(only(server)) as fetcher:
        task = asyncio.create_task(fetcher.fetch(f"{server.origin}/"))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(ended.wait(), 10.0)


def test_httpx_has_an_error_for_each_of_httpcores() -> None:
    """The transport translates by name; a renamed class would show here."""
    import httpcore

    for name in dir(httpcore):
        kind = getattr(httpcore, name)
        if isinstance(kind, type) and issubclass(
            kind, httpcore.TimeoutException | httpcore.NetworkError | httpcore.ProtocolError
        ):
            assert issubclass(getattr(httpx, name), httpx.TransportError)
