"""Which URLs and addresses may be reached. Pure: texts in, a verdict out.

It must never resolve a name or connect: the address behind a name is judged by whoever
resolves it, with `why_refused`.

Sources for what is refused: the IANA special-purpose address registries (RFC 6890 and its
updates), and the metadata addresses of cloud hosts.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

import httpx

from agentpar.errors import FetchError, UsageError

MAX_URL = 8_000

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
        ("2620:4f:8000::/48", "reserved for AS112"),
        ("3ffe::/16", "reserved (6bone)"),
        ("3fff::/20", "documentation"),
        ("5f00::/16", "segment routing"),
        ("fc00::/7", "private (ULA)"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "site-local"),
        ("ff00::/8", "multicast"),
    )
)

# What an IPv6 address of the public range may carry to a translator on the way. The second half
# of an ISATAP address is 0000:5efe or 0200:5efe and an IPv4 address (RFC 5214, 6.1). A NAT64 of
# its operator's own prefix looks like any address; its IPv4 part stands at one of these places,
# bits from the left, with byte 8 left out (RFC 6052, 2.2). Only metadata addresses are looked
# for there: a whole private network would match public addresses by chance.
_ISATAP = (0x00005EFE, 0x02005EFE)
_NAT64_PREFIXES = (32, 40, 48, 56, 64, 96)
_METADATA = frozenset(
    ipaddress.IPv4Address(address)
    for address in (
        "100.100.100.200",  # Alibaba
        "168.63.129.16",  # Azure
        "169.254.42.42",  # Scaleway
        "169.254.169.254",  # AWS, Google, Azure, Oracle, DigitalOcean, OpenStack
        "169.254.170.2",  # AWS ECS
        "169.254.170.23",  # AWS EKS
        "192.0.0.192",  # Oracle, classic
    )
)

# Names that only ever mean a machine nearby: refused before anyone is asked for an address. Most
# stand in RFC 6761, 6762, 8375 and 9476; ICANN delegates neither "corp" nor "home", as so many
# networks use them inside; "svc" ends the short names of services in a Kubernetes cluster.
_NEARBY_NAMES = (
    "localhost", "local", "internal", "home.arpa", "localdomain", "intranet", "lan", "corp", "home",
    "svc",
)  # fmt: skip
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
    return _why_translated(int(ip)) if ip in _IPV6_PUBLIC else "not a public address"


def _why_translated(ip: int) -> str:
    """Why the IPv4 address that a public IPv6 address may carry is not to be reached."""
    if ip >> 32 & 0xFFFFFFFF in _ISATAP and (why := why_refused(str(_ipv4(ip)))):
        return f"ISATAP ({why})"
    without_byte_8 = ip >> 64 << 56 | ip & (1 << 56) - 1
    for length in _NAT64_PREFIXES:
        carried = ip if length == 96 else without_byte_8 >> 88 - length
        if _ipv4(carried) in _METADATA:
            return "NAT64 of a cloud host's metadata"
    return ""


def _ipv4(number: int) -> ipaddress.IPv4Address:
    return ipaddress.IPv4Address(number & 0xFFFFFFFF)


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
        if origin_of(parsed) in self.allow_origins:
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
            f"allow_origins: {url!r} is more than an origin; write {origin_of(parsed)!r}"
        )
    return origin_of(parsed)


def origin_of(url: httpx.URL) -> str:
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
        host = parsed.host  # decodes an international name, and fails where it is none
    except (httpx.InvalidURL, ValueError) as error:
        raise FetchError(f"refused {url!r}: not a URL ({error})") from None
    if parsed.scheme not in _PORTS:
        raise FetchError(f"refused {url!r}: a URL starts with 'http://' or 'https://'")
    if parsed.userinfo or "@" in url.split("//", 1)[-1].split("/", 1)[0]:
        # The text itself is left out: it may hold a password.
        raise FetchError(f"refused a URL on {host!r}: it carries a user name")
    if not host:
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
    if url.host.rstrip(".").rsplit(".", 1)[-1].isdecimal():
        return "a number in the place of a name"  # in digits of another script
    if not _NAME.fullmatch(bare) or len(bare) > 253:
        return "not a host name"
    if "." not in bare or _covered(bare, _NEARBY_NAMES):
        return "a name of a machine nearby"
    return ""
