"""Addresses that must not be reached, by class, each in many spellings.

The yardstick: the address classes that pydantic-ai (`pydantic_ai/_ssrf.py` and its tests) and
LangChain (`langchain_core/_security/_policy.py`) publish, the IANA special-purpose registries,
and what URL parsers are known to disagree about.

``python tests/tools/ssrf_probes.py`` prints how many there are.
"""

from __future__ import annotations

import ipaddress

HOSTS = {
    "loopback": "127.0.0.1 127.0.0.2 127.255.255.254 [::1] [::0001] [0::1] [0:0:0:0:0:0:0:1]",
    "short form": "127.1 127.0.1 10.1 192.168.1 192.168.257 169.254.43518 0.1 1.1 1.2.3",
    "decimal": "2130706433 2852039166 167772161 3232235521 4294967295",
    "octal": """0177.0.0.1 0177.0.0.01 017700000001 00000177.1 012.1 0127.0.0.1
        127.000.000.001 0251.0376.0251.0376""",
    "hexadecimal": """0x7f000001 0X7F000001 0x7f.1 0x7f.0.0.1 0x7f.0x0.0x0.0x1 127.0x0.1
        127.0.0.0x1 0177.0.0.0x1 0251.0xfe.43518 0xa9.254.0251.0xfe 0xa9fea9fe 0xa.1
        0xc0a80001 0xffffffff""",
    "no such number": "127.0.0.1.0 1.2.3.4.5 256.256.256.256 999",
    "unspecified": "0.0.0.0 0 00 0x0 0.0.0.1 0.255.255.255 [::]",
    "private": "10.0.0.1 10.255.255.255 172.16.0.1 172.31.255.255 192.168.0.1 192.168.255.255",
    "link-local": "169.254.0.1 169.254.255.255 [fe80::1] [fe80::ffff:ffff:ffff:ffff]",
    "shared by carriers": "100.64.0.1 100.127.255.255",
    "AWS metadata": "169.254.169.254 169.254.170.2 169.254.170.23 [fd00:ec2::254] [fd00:ec2::23]",
    "Google metadata": "metadata.google.internal metadata [fd20:ce::254]",
    "Azure metadata": "168.63.129.16 metadata.azure.internal",
    "Alibaba metadata": "100.100.100.200",
    "Oracle metadata": "192.0.0.192",
    "Scaleway metadata": "169.254.42.42 [fd00:42::42]",
    "OpenStack metadata": "[fe80::a9fe:a9fe]",
    "protocol assignments": """192.0.0.1 192.0.0.8 192.0.0.170 192.31.196.1 192.52.193.1
        192.175.48.1 [2001:1::1] [2001:2::1] [2001:10::1] [2001:20::1]
        [2620:4f:8000::1]""",
    "documentation": "192.0.2.1 198.51.100.7 203.0.113.7 [2001:db8::1] [3fff::1]",
    "benchmarking": "198.18.0.1 198.19.255.255",
    "6to4 relay": "192.88.99.1",
    "multicast": "224.0.0.1 239.255.255.255 [ff02::1] [ff0e::1] [ff05::1:3]",
    "broadcast": "255.255.255.255",
    "reserved": "240.0.0.1 [4000::1] [8000::1] [e000::1] [1::1] [3ffe::1]",
    "discard": "[100::1]",
    "segment routing": "[5f00::1]",
    "unique-local": "[fc00::1] [fd00::1] [fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]",
    "site-local": "[fec0::1]",
    "zone id": """[fe80::1%25lo] [fe80::1%lo] [::1%25lo] [::1%251] [::ffff:127.0.0.1%251]
        [fec0::1%25eth0]""",
    "IPv4-mapped": """[::ffff:127.0.0.1] [::ffff:7f00:1] [::ffff:10.0.0.1] [::ffff:0a00:1]
        [::ffff:169.254.169.254] [::ffff:100.100.100.200] [::FFFF:192.168.1.1] [::ffff:8.8.8.8]""",
    "IPv4-translated": "[::ffff:0:127.0.0.1] [::ffff:0:a9fe:a9fe]",
    "IPv4-compatible": "[::127.0.0.1] [::7f00:1] [::169.254.169.254] [::10.0.0.1]",
    "NAT64, well-known": """[64:ff9b::127.0.0.1] [64:ff9b::7f00:1] [64:ff9b::a9fe:a9fe]
        [64:ff9b::192.168.1.1] [64:ff9b::169.254.170.2] [64:ff9b::8.8.8.8]""",
    "NAT64, local-use": """[64:ff9b:1::1] [64:ff9b:1::192.168.1.1] [64:ff9b:1:c0a8:1:100::]
        [64:ff9b:1:a9fe:a9:fe00::]""",
    "NAT64, operator's own": """[2606:4700:64::a9fe:a9fe] [2606:4700:a9fe:a9fe::]
        [2606:4700:12a9:fea9:fe::] [2606:4700:1:a9fe:a9:fe00::] [2606:4700:1:a9:fe:a9fe::]
        [2606:4700:1:2:a9:fea9:fe00:0] [2606:4700:64::100.100.100.200]""",
    "6to4": "[2002:7f00:1::] [2002:7f00:0001::1] [2002:a00:1::] [2002:a9fe:a9fe::] [2002::1]",
    "Teredo": "[2001::1] [2001:0:7f00:1::] [2001::5601:5601]",
    "ISATAP": """[2606:4700::5efe:127.0.0.1] [2606:4700::5efe:192.168.1.1]
        [2606:4700::200:5efe:169.254.169.254] [2606:4700::5efe:a9fe:a9fe]""",
    "localhost": "localhost LOCALHOST foo.localhost localhost.localdomain ip6-localhost",
    "name of a machine nearby": """router printer.local db.internal nas.lan x.home.arpa a_b
        intranet.corp nas.home""",
    "name of a cluster": """kubernetes.default.svc
        kubernetes.default.svc.cluster.local host.docker.internal""",
    "trailing dot": """127.0.0.1. localhost. LocalHost.. foo.localhost. 127.1. 2130706433.
        127.0.0.1.. 0x7f.1. 169.254.169.254. 0.0.0.0. [::1].""",
    "fullwidth and circled": """ｌｏｃａｌｈｏｓｔ ⓛocalhost ⅼocalhost １２７.０.０.１ ①②⑦.⓪.⓪.①
        ⑯⑨.②⑤④.⑯⑨.②⑤④ 𝟏𝟐𝟕.𝟎.𝟎.𝟏 ¹²⁷.⁰.⁰.¹ ₁₂₇.₀.₀.₁ 𝓵𝓸𝓬𝓪𝓵𝓱𝓸𝓼𝓽 localhoſt""",
    "digits of other scripts": "١٢٧.٠.٠.١ ۱۲۷.۰.۰.۱ १२७.०.०.१ ১২৭.০.০.১ ๑๒๗.๐.๐.๑",
    "other full stops": "127。0。0。1 127．0．0．1 127｡0｡0｡1",
    "invisible letters": "loc\u00adalhost local\u200bhost local\u2060host",
    "punycode": "xn--localhost- xn--127-0-0-1 xn--a.localhost",
    "percent-encoded": "%6c%6f%63alhost 127.0.0.1%00.example.org 127.0.0.1%2e %31%32%37.0.0.1",
    "no host name": "example..org -bad.example.org .example.org",
}  # fmt: skip
"""Hosts by class, apart by white space; each makes one URL."""

URLS = {
    "userinfo": """http://user@127.0.0.1:{port}/ http://user:pass@127.0.0.1:{port}/
        http://example.org@127.0.0.1:{port}/ http://example.org:80@127.0.0.1:{port}/
        http://example.org%40127.0.0.1:{port}/ http://@127.0.0.1:{port}/
        http://user@[::1]:{port}/ http://a@b@127.0.0.1:{port}/
        http://127.0.0.1:{port}@[::1]:{port}/ http://example.org:@127.0.0.1:{port}/""".split(),
    "separators of other scripts": [
        "http://127.0.0.1\u2215.example.org:{port}/",
        "http://example.org\uff20127.0.0.1:{port}/",
        "http://127.0.0.1\uff1a{port}/",
        "http://127.0.0.1\uff0f.example.org:{port}/",
        "http://127.0.0.1\uff03.example.org:{port}/",
        "http:\uff0f\uff0f127.0.0.1:{port}/",
    ],
    "backslash": [
        "http://example.org\\@127.0.0.1:{port}/",
        "http://127.0.0.1:{port}\\@example.org/",
        "http://example.org\\.127.0.0.1:{port}/",
        "http://example.org\\\\127.0.0.1:{port}/",
        "http:\\\\127.0.0.1:{port}\\",
    ],
    "white space and control characters": [
        "http://127.0.0.1\t:{port}/",
        "http://127.0.0.1\n:{port}/",
        " http://127.0.0.1:{port}/",
        "http://127.0.0.1 .example.org:{port}/",
        "http://127.0.0.1:{port}\x00.example.org/",
    ],
    "CRLF": [
        "http://127.0.0.1:{port}\r\nHost: example.org/",
        "http://example.org\r\n@127.0.0.1:{port}/",
        "http://127.0.0.1:{port}/\r\nX-Injected: yes",
        "http://127.0.0.1%0d%0a:{port}/",
    ],
    "other scheme": """https://127.0.0.1:{port}/ https://[::1]:{port}/ ftp://127.0.0.1:{port}/
        file://127.0.0.1:{port}/etc/passwd file:///etc/passwd gopher://127.0.0.1:{port}/_x
        dict://127.0.0.1:{port}/x ldap://127.0.0.1:{port}/ tftp://127.0.0.1:{port}/x
        ws://127.0.0.1:{port}/ unix://127.0.0.1:{port}/ http+unix://%2Fvar%2Frun%2Fdocker.sock/
        jar:http://127.0.0.1:{port}/!/ netdoc:///etc/passwd s3://bucket/key
        data:text/html,hello javascript:alert(1) view-source:http://127.0.0.1:{port}/
        url:http://127.0.0.1:{port}/ blob:http://127.0.0.1:{port}/x php://filter about:blank
        redis://127.0.0.1:{port}/ smb://127.0.0.1:{port}/c sftp://127.0.0.1:{port}/ HTTP://LOCALHOST:{port}/""".split(),
    "no complete URL": [
        "http:127.0.0.1:{port}/",
        "http:/127.0.0.1:{port}/",
        "http:///127.0.0.1:{port}/",
        "//127.0.0.1:{port}/",
        "127.0.0.1:{port}/",
        "http://",
        "http://:{port}/",
        "http://[::1",
        "http://127.0.0.1:99999/",
        "http://127.0.0.1:port/",
        "",
    ],
    "too long": ["x" * 9000, "http://example.org/" + "x" * 9000],
}
"""Whole URLs by class; ``{port}`` is where the server of the test listens."""


def probes(port: int = 80) -> dict[str, str]:
    """Every probe as a URL, each once, with its class."""
    found: dict[str, str] = {}
    for kind, hosts in HOSTS.items():
        for host in hosts.split():
            found.setdefault(f"http://{host}:{port}/", kind)
    for kind, urls in URLS.items():
        for url in urls:
            found.setdefault(url.replace("{port}", str(port)), kind)
    return found


def addresses() -> dict[str, str]:
    """The hosts that are IP addresses as a resolver gives them, each once, with its class."""
    found: dict[str, str] = {}
    for kind, hosts in HOSTS.items():
        for host in hosts.split():
            text = host.strip("[]").replace("%25", "%")
            try:
                ipaddress.ip_address(text)
            except ValueError:
                continue
            found.setdefault(text, kind)
    return found


if __name__ == "__main__":
    kinds = list(probes().values())
    for kind in dict.fromkeys(kinds):
        print(f"{kinds.count(kind):4}  {kind}")
    print(f"{len(kinds):4}  probes of {len(set(kinds))} classes, as a URL and as a redirect")
    print(f"{len(addresses()):4}  of them addresses, also as what a public name resolves to")
