"""Server-side request forgery: nothing that a model or a page names reaches this machine."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from loopback import Server, redirect, reply, serving
from ssrf_probes import HOSTS, URLS, addresses, probes

from agentpar.errors import FetchError
from agentpar.net import Caps, Fetcher, Guard, Resolver, system_resolver, why_refused
from agentpar.tools.web import make_web_fetch

PUBLIC = "93.184.215.14"
PAGE = {"/": reply("inside")}


@dataclass
class Inside:
    """What must not be reached: this machine, by IPv4 and by IPv6, at one port."""

    four: Server
    six: Server

    @property
    def port(self) -> int:
        return self.four.port

    @property
    def hits(self) -> int:
        return self.four.connections + self.six.connections


@pytest.fixture
async def inside() -> AsyncIterator[Inside]:
    """Listens on every IPv4 address of this machine, so that 127.0.0.2 counts as well."""
    async with serving(PAGE, host="0.0.0.0") as four:
        try:
            async with serving(PAGE, host="::1", port=four.port) as six:
                yield Inside(four, six)
        except OSError as error:  # no IPv6 here, or the port is taken there
            pytest.skip(f"nothing can listen on ::1: {error}")


@asynccontextmanager
async def fetching(
    *granted: Server, resolve: Resolver = system_resolver, **caps: float
) -> AsyncIterator[Fetcher]:
    guard = Guard(allow_origins=frozenset(server.origin for server in granted))
    caps = {"timeout": 3.0, "retries": 0, **caps}
    fetcher = Fetcher(guard, Caps(**caps), resolve=resolve)  # type: ignore[arg-type]
    try:
        yield fetcher
    finally:
        await fetcher.aclose()


class Answers:
    """A resolver that gives each call the next answer, the last one for ever."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)
        self.calls: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.calls.append(host)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def test_there_are_at_least_120_probes_each_once() -> None:
    """Each host and URL of the table makes a probe of its own; no class is empty."""
    written = [host for hosts in HOSTS.values() for host in hosts.split()]
    written += [url for urls in URLS.values() for url in urls]
    assert len(probes()) == len(written) >= 120
    assert set(probes().values()) == {*HOSTS, *URLS}
    assert len(addresses()) >= 80


async def test_no_probe_reaches_this_machine(inside: Inside) -> None:
    """Every URL of the table is refused with a reason, before anything is connected to."""
    async with fetching() as fetcher:
        for url, kind in probes(inside.port).items():
            with pytest.raises(FetchError) as caught:
                await fetcher.fetch(url)
            assert str(caught.value).startswith("refused"), f"{kind}, {url!r}: {caught.value}"
    assert inside.hits == 0


async def test_the_server_can_be_reached_where_it_is_granted(inside: Inside) -> None:
    """So the zero above and below means something, by IPv4 as by IPv6."""
    four = Server(port=inside.port)  # the grant names one address, the server listens on all
    async with fetching(four, inside.six) as fetcher:
        assert (await fetcher.fetch(f"{four.origin}/")).body == b"inside"
        assert (await fetcher.fetch(f"{inside.six.origin}/")).body == b"inside"
    assert (inside.four.connections, inside.six.connections) == (1, 1)


async def test_no_public_name_leads_to_a_refused_address(inside: Inside) -> None:
    """As the names of ``127.0.0.1.nip.io`` and its like do: the address counts, not the name."""
    for address, kind in addresses().items():
        for name in ("innocent.example.org", "127.0.0.1.nip.io", "localtest.me"):
            async with fetching(resolve=Answers([address])) as fetcher:
                with pytest.raises(FetchError, match=r"^refused address") as caught:
                    await fetcher.fetch(f"http://{name}:{inside.port}/")
                assert address in str(caught.value), kind
    assert inside.hits == 0


async def test_no_redirect_leads_to_a_refused_address(inside: Inside) -> None:
    """A granted page may point wherever it likes: each hop is judged like the first."""
    async with serving() as granted, fetching(granted) as fetcher:
        for url, kind in probes(inside.port).items():
            if not (url.isascii() and url.isprintable()):
                continue  # no server can send it in a header
            granted.routes["/"] = [redirect(url)]
            with pytest.raises(FetchError) as caught:
                await fetcher.fetch(f"{granted.origin}/")
            # What is no whole URL is a path of the granted server, which has no such page.
            itself = kind in ("no complete URL", "too long") and "HTTP 404" in str(caught.value)
            assert itself or re.search("refused|redirect", str(caught.value)), f"{kind}, {url!r}"
    assert inside.hits == 0


@pytest.mark.parametrize("target", ["http://{}:{other}/", "https://{}:{same}/", "//{}:{other}/"])
async def test_a_redirect_to_another_port_or_scheme_is_outside_the_grant(
    inside: Inside, target: str
) -> None:
    """A grant is one origin: its own host at another port, or over TLS, is as private as any."""
    async with serving() as granted, fetching(granted) as fetcher:
        url = target.format("127.0.0.1", other=inside.port, same=granted.port)
        granted.routes["/"] = [redirect(url)]
        with pytest.raises(FetchError, match=r"^refused address 127\.0\.0\.1"):
            await fetcher.fetch(f"{granted.origin}/")
        assert granted.connections == 1
    assert inside.hits == 0


async def test_a_redirect_to_a_name_that_leads_inside_is_refused(inside: Inside) -> None:
    """The second hop's name is resolved and judged like the first's."""
    async with (
        serving({"/": redirect(f"http://innocent.example.org:{inside.port}/")}) as granted,
        fetching(granted, resolve=Answers(["127.0.0.1"])) as fetcher,
    ):
        with pytest.raises(FetchError, match=r"^refused address 127\.0\.0\.1"):
            await fetcher.fetch(f"{granted.origin}/")
    assert inside.hits == 0


async def test_a_name_is_resolved_once_and_its_address_pinned(inside: Inside) -> None:
    """DNS rebinding: the second answer, which leads inside, is never asked for."""
    resolve = Answers([PUBLIC], ["127.0.0.1"])
    async with fetching(resolve=resolve, timeout=0.4) as fetcher:
        with pytest.raises(FetchError):
            await fetcher.fetch(f"http://rebind.example.org:{inside.port}/")
    assert resolve.calls == ["rebind.example.org"]
    assert inside.hits == 0


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
async def test_a_retry_judges_the_new_address_again(inside: Inside, address: str) -> None:
    """Rebinding between two attempts: what a second look-up gives is refused by itself."""
    resolve = Answers([], [address])
    async with fetching(resolve=resolve, retries=1) as fetcher:
        with pytest.raises(FetchError, match=f"^refused address {re.escape(address)}"):
            await fetcher.fetch(f"http://rebind.example.org:{inside.port}/")
    assert len(resolve.calls) == 2
    assert inside.hits == 0


async def test_a_mixed_answer_never_leads_inside(inside: Inside) -> None:
    """Whatever stands first, only the public address is tried."""
    for answer in (["127.0.0.1", PUBLIC], ["::1", PUBLIC, "10.0.0.1"], [PUBLIC, "127.0.0.1"]):
        async with fetching(resolve=Answers(answer), timeout=0.4) as fetcher:
            with pytest.raises(FetchError, match=r"did not answer|cannot be reached|no complete"):
                await fetcher.fetch(f"http://mixed.example.org:{inside.port}/")
    assert inside.hits == 0


_PROXIES = "http_proxy HTTP_PROXY https_proxy HTTPS_PROXY all_proxy ALL_PROXY".split()


@pytest.mark.parametrize("no_proxy", [None, "", "*", "example.org"])
async def test_no_proxy_of_the_environment_is_used(
    inside: Inside, monkeypatch: pytest.MonkeyPatch, no_proxy: str | None
) -> None:
    """A proxy would resolve names where the guard cannot see, and is itself inside."""
    for name in _PROXIES:
        monkeypatch.setenv(name, f"http://127.0.0.1:{inside.port}")
    if no_proxy is not None:
        monkeypatch.setenv("NO_PROXY", no_proxy)
        monkeypatch.setenv("no_proxy", no_proxy)
    async with (
        serving({"/": reply("direct")}) as server,
        fetching(server, timeout=0.4, resolve=Answers([PUBLIC])) as fetcher,
    ):
        assert (await fetcher.fetch(f"{server.origin}/")).body == b"direct"
        for scheme in ("http", "https"):
            with pytest.raises(FetchError):
                await fetcher.fetch(f"{scheme}://example.org:{inside.port}/")
    assert inside.hits == 0


async def test_the_tool_that_a_plan_calls_is_guarded(inside: Inside) -> None:
    """``web_fetch`` has no way of its own past the door."""
    tool = make_web_fetch(timeout=3.0)
    try:
        for url in probes(inside.port):
            with pytest.raises(FetchError):
                await tool.call(url=url)
    finally:
        assert tool.close is not None
        await tool.close()
    assert inside.hits == 0


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "2606:4700:4700::1111",
        "2001:4860:4860::8888",
        "2606:4700::5efe:8.8.8.8",  # ISATAP of a public address
        "2606:4700:64::808:808",  # an operator's NAT64 of one
        "169.253.255.255",
        "100.63.255.255",
        "168.63.129.15",
    ],
)
def test_the_neighbours_of_refused_addresses_pass(address: str) -> None:
    """The guard is no wall: what is public stays open."""
    assert why_refused(address) == ""
