"""`web_fetch`: the right lines and the right value of real pages from a real server."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopback import Server, redirect, reply, serving

from agentpar.errors import FetchError, UsageError
from agentpar.net import Guard
from agentpar.tools.extract import decode, read_html, read_page
from agentpar.tools.passages import Passage, cut, excerpt, value
from agentpar.tools.web import make_web_fetch, web_fetch

CHILE = """<!DOCTYPE html><html><head><meta charset="utf-8">
<title>Chile: population, area, capital - World Atlas</title>
<style>p {color: red}</style><script>var population = "<p>1</p>";</script></head>
<body><header><a href="/">World Atlas</a><nav><a href="/x">Population of the moon</a></nav>
<form><input name="q"><button>Population</button></form></header>
<main><article><h1>Chile</h1>
<table class="facts">
<tr><th scope="row">Capital</th><td><a href="/s">Santiago</a> (since 1541)</td></tr>
<tr><th scope="row">Population</th><td>19,116,201 (2020)</td></tr>
<tr><th scope="row">Population density</th><td>25.3/km<sup>2</sup></td></tr>
<tr><th scope="row">Area</th><td>756,950 square kilometres (292,260 square miles)</td></tr>
<tr><th colspan="2">Elevation</th></tr>
<tr><th scope="row">• Highest</th><td>6,893 m[2]</td></tr>
<tr><th scope="row">• Lowest</th><td>−12.5 m</td></tr>
<tr><th scope="row">GDP</th><td>US$ 335.5 billion (2023)</td></tr>
<tr><th scope="row">Founded</th><td>12 February 1818</td></tr>
<tr><th scope="row">Established</th><td>1810</td></tr>
<tr><th scope="row">Calling code</th><td>+56</td></tr>
</table>
<p>Chile is a country in South America. It borders three countries.[1]</p>
<p>Its longest river is the Loa, which runs for 440 km through the Atacama desert.</p>
<p hidden>Population unseen</p>
<div style="display: none">Population concealed</div>
<p>The national parks received 3.2 million visitors in 2019.</p>
<dl><dt>Time zone</dt><dd>UTC−04:00</dd><dt>Driving side</dt><dd>right</dd></dl>
<h2>Largest cities</h2>
<table><thead><tr><th>City</th><th>Population</th><th>Region</th></tr></thead><tbody>
<tr><td>Puente Alto</td><td>568,106</td><td>Santiago</td></tr>
<tr><td>Antofagasta</td><td>361,873</td><td>Antofagasta</td></tr></tbody></table>
</article></main><footer>Population of footers: 9</footer></body></html>"""


def chile(find: str) -> Any:
    page = read_html(CHILE)
    return value(page.passages, find, page.title)


@asynccontextmanager
async def fetching(routes, **options) -> AsyncIterator[tuple[Server, Any]]:
    """A function that calls the tool as the driver does, and the server it may reach."""
    async with serving(routes) as server:
        guard = Guard(allow_origins=frozenset({server.origin}))
        tool = make_web_fetch(guard=guard, **options)

        async def call(path: str, **args: str) -> Any:
            return await tool.call(**tool.validate({"url": server.origin + path, **args}))

        yield server, call
        assert tool.close is not None
        await tool.close()


# ── The value ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("find", "expected"),
    [
        ("population", 19_116_201),
        ("the population of Chile", 19_116_201),
        ("Population in 2020", 19_116_201),
        ("population density", 25.3),
        ("capital", "Santiago"),
        ("area", 756_950),
        ("area in square miles", 292_260),
        ("highest elevation", 6893),
        ("lowest", -12.5),
        ("gdp", 335_500_000_000),
        ("founded", "12 February 1818"),
        ("established", 1810),
        ("calling code", 56),
        ("time zone", "UTC−04:00"),
        ("driving side", "right"),
        ("population of Antofagasta", 361_873),
        ("Puente Alto region", "Santiago"),
        ("region", None),  # two cities, neither named: no single answer
        ("length of the river", 440),
        ("visitors", 3_200_000),
        ("when visitors came, year", 2019),
        ("currency", None),
        ("Chile", None),
        ("", None),
    ],
)
def test_the_value_beside_the_label(find: str, expected: Any) -> None:
    """Separators, units, years, signs, scales, groups, columns, prose; None where unclear."""
    assert chile(find) == expected


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("19 116 201", 19_116_201),
        ("1.234.567", 1_234_567),
        ("1'234'567", 1_234_567),
        ("3,5 %", 3.5),
        ("0.045", 0.045),
        ("-40 °C", -40),
        ("about 2 million", 2_000_000),
        ("€1,250.75", 1250.75),
        ("2020: 17,574,003", 17_574_003),
        ("1st", "1st"),
        ("12:30", "12:30"),
        ("2020-05-17", "2020-05-17"),
        ("SCL", "SCL"),
        ("A320", "A320"),
        ("word " * 60, None),
    ],
)
def test_a_cell_as_people_write_it(cell: str, expected: Any) -> None:
    """Numbers of many lands; dates, times, ordinals and codes stay text."""
    cell = cell.replace("19 116 201", "19\u00a0116\u202f201")
    assert value([Passage(f"Size | {cell}", (("Size", cell.strip()),))], "size", "") == expected


# ── The text ─────────────────────────────────────────────────────────────────────


def test_hidden_parts_menus_and_scripts_are_not_read() -> None:
    """What a reader of the page does not see, the model does not see."""
    text = read_html(CHILE).text
    for absent in ("moon", "unseen", "concealed", "World Atlas", "color", "var ", "footers", "[1]"):
        assert absent not in text
    for present in ("19,116,201 (2020)", "Loa", "Time zone: UTC−04:00", "City: Puente Alto"):
        assert present in text


def test_the_excerpt_is_short_and_in_page_order() -> None:
    """Only what answers, and no more than was allowed."""
    page = read_html(CHILE)
    lines = excerpt(page.passages, "population", page.title, 1500).splitlines()
    assert lines[0] == "Population | 19,116,201 (2020)"
    assert not any("Loa" in line or "GDP" in line for line in lines)
    every = [passage.text for passage in page.passages]
    assert [every.index(line) for line in lines] == sorted(every.index(line) for line in lines)
    assert excerpt(page.passages, "river length", page.title, 1500) == (
        "Its longest river is the Loa, which runs for 440 km through the Atacama desert."
    )


def test_without_a_wish_the_page_begins() -> None:
    """The first lines, to the limit; fewer where the words are nowhere."""
    page = read_html(CHILE)
    beginning = excerpt(page.passages, "", page.title, 300)
    assert beginning.startswith("Capital | Santiago (since 1541)\nPopulation | 19,116,201")
    assert len(beginning) <= 300
    assert len(excerpt(page.passages, "zebra", page.title, 300)) <= 100


@given(
    st.lists(st.text(max_size=80).map(Passage), max_size=12),
    st.text(max_size=30),
    st.integers(0, 200),
)
def test_the_excerpt_never_exceeds_its_limit(passages, find: str, limit: int) -> None:
    """For any passages and words."""
    assert len(excerpt(passages, find, "", limit)) <= limit
    value(passages, find, "")


@given(st.text(max_size=200), st.integers(0, 100))
def test_a_cut_text_fits(text: str, limit: int) -> None:
    """And is a beginning of the text."""
    short = cut(text, limit)
    assert len(short) <= limit
    assert text.startswith(short.removesuffix("…"))


# ── HTML ─────────────────────────────────────────────────────────────────────────


@given(
    st.lists(
        st.sampled_from(
            "<p> </p> <table> <tr> <td> </td> <th> </table> <dl> <dt> <dd> <div hidden> </div>"
            " <!-- --> <script> </script> <h1> </h1> <br/> <svg> </svg> <p x='<'> < > &"
            " &amp; 12,345 text".split()
        ),
        max_size=30,
    ).map(" ".join)
)
def test_any_tag_soup_is_read(soup: str) -> None:
    """Unclosed, crossed, misplaced: passages come out, no error."""
    page = read_html(soup)
    assert all(passage.text.strip() for passage in page.passages)


@pytest.mark.parametrize(
    "unit",
    """<a |<!--|<a x="|<a x='"|<!|</|<![|<?|<td>|<script>|&#x|<title|<div hidden>|<p>a|[1|1,2|a. """
    """|12 |jan """.split("|"),
)
def test_hostile_markup_takes_linear_time(unit: str) -> None:
    """200 kB of each; a quadratic reader would take minutes."""
    text = unit * (200_000 // len(unit))
    started = time.process_time()
    page = read_html(text)
    value(page.passages, "jan population", "")
    excerpt(page.passages, "population a", "", 1500)
    assert time.process_time() - started < 6.0


@pytest.mark.parametrize(
    "page",
    [
        "<dl><dt>{long}" + "<dd>x" * 1000,
        "<table><tr><th>a<div>{long}</div><th>b" + "<tr><td>x<td>y" * 1000,
        "<table><tr><th>a<div>{long}</div>" + "<tr><td>• x<td>y" * 1000,
        "<h2>{long}</h2>" + "<p>x" * 1000,
    ],
)
def test_a_long_label_is_not_read_once_for_each_of_its_rows(page: str) -> None:
    """A term of 1 MB above 100,000 lines would be 100 GB of passages, or hours of looking."""
    page = page.format(long="word " * 10_000)
    read = read_html(page)
    labels = [label for passage in read.passages for label, _ in passage.fields]
    beside = [read.title, *(passage.section for passage in read.passages), *labels]
    assert sum(map(len, beside)) < 6 * len(page)
    assert sum(len(passage.text) for passage in read.passages) < 6 * len(page)


@pytest.mark.parametrize("digits", ["1" * 400, "1" * 400 + ".5", "1" * 400 + ".5 million"])
def test_a_row_of_digits_is_no_quantity_and_spoils_no_page(digits: str) -> None:
    """No float holds it, and no JSON an infinity: the page would be lost for one such cell."""
    found = read_html(f"<dl><dt>Key<dd>{digits * 12}</dl><p>The population is {digits}.</p>")
    for find in ("Key", "population"):
        seen = value(found.passages, find, "")
        assert seen is None or seen == digits * 12


def test_unclosed_cells_and_nested_tables() -> None:
    """Old pages: no closing tags, a table inside a layout table."""
    page = read_html(
        "<table><tr><td><h1>Peru</h1><table><tr><td>Capital<td>Lima<tr><td>Area<td>1,285,216 km²"
        "</table><p>Peru is large.</table><p>After."
    )
    assert [passage.text for passage in page.passages] == [
        "Capital | Lima",
        "Area | 1,285,216 km²",
        "Peru is large.",
        "After.",
    ]
    assert page.title == "Peru"


def test_menus_without_a_nav_tag_lose_the_vote() -> None:
    """With trafilatura installed, prose that it takes for furniture is dropped; rows stay."""
    pytest.importorskip("trafilatura", exc_type=ImportError)
    prose = "".join(
        f"<p>The river number {n} of this land flows slowly through wide and green valleys.</p>"
        for n in range(12)
    )
    menu = "".join(f"<li><a href='/{n}'>Buy item {n}</a></li>" for n in range(6))
    text = read_html(
        f"<html><body><div class='menu'><ul>{menu}</ul></div><article>{prose}"
        "<table><tr><th>Rivers</th><td>12</td></tr></table></article></body></html>"
    ).text
    assert "river number 7" in text
    assert "Rivers | 12" in text
    assert "Buy item" not in text


# ── Charsets ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("body", "charset"),
    [
        ("Perú — señor".encode(), ""),
        ("Perú — señor".encode(), "utf-8"),
        ("Perú — señor".encode("cp1252"), ""),
        ("Perú — señor".encode("cp1252"), "iso-8859-1"),
        ("Perú — señor".encode("cp1252"), "utf-8"),
        ("\ufeffPerú — señor".encode("utf-16"), "nonsense"),
        ("\ufeffPerú — señor".encode(), "latin-1"),
        ("Perú — señor".encode(), "zlib"),
        ("Perú — señor".encode(), "unicode_escape"),
    ],
)
def test_a_wrong_charset_is_survived(body: bytes, charset: str) -> None:
    """Header, mark, UTF-8, cp1252: the first that fits; codecs that are no charset never."""
    assert decode(body, charset).lstrip("\ufeff") == "Perú — señor"


def test_the_meta_tag_is_heard() -> None:
    """Where the header says nothing."""
    body = '<meta http-equiv="x" content="text/html; charset=Shift_JIS"><p>日本国'.encode("sjis")
    assert "日本国" in read_page(body, "text/html").text


@given(st.binary(max_size=200), st.sampled_from(["", "utf-8", "utf-16", "gbk", "cp037", "idna"]))
def test_any_bytes_decode(body: bytes, charset: str) -> None:
    """Decoding never fails."""
    assert isinstance(decode(body, charset), str)


# ── The tool ─────────────────────────────────────────────────────────────────────


async def test_a_plan_gets_text_and_value() -> None:
    """Through a redirect, with the final address."""
    async with fetching({"/chile": reply(CHILE), "/old": redirect("/chile")}) as (server, call):
        assert await call("/old", find="population") == {
            "url": f"{server.origin}/chile",
            "title": "Chile: population, area, capital - World Atlas",
            "text": (await call("/chile", find="population"))["text"],
            "value": 19_116_201,
        }
        assert (await call("/chile"))["value"] is None


async def test_plain_text_and_json_are_read() -> None:
    """Paragraphs of text; JSON as it is; HTML that claims to be nothing."""
    routes = {
        "/t": reply("First thing.\n\nThe height is 8,849 metres.", "text/plain"),
        "/j": reply('{"height": 8849}', "application/json"),
        "/n": reply("<html><title>N</title><p>The height is 5 m.", ""),
    }
    async with fetching(routes) as (_, call):
        assert (await call("/t", find="height"))["value"] == 8849
        assert (await call("/j", find="height"))["text"] == '{"height": 8849}'
        assert (await call("/n", find="height")) | {"url": ""} == {
            "url": "",
            "title": "N",
            "text": "The height is 5 m.",
            "value": 5,
        }


@pytest.mark.parametrize(
    ("body", "media_type"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "image/png"),
        (b"PK\x03\x04" + bytes(100), "application/zip"),
        (b"\x7fELF" + bytes(100), "application/octet-stream"),
        (bytes(100), ""),
    ],
)
async def test_what_is_not_text_is_refused(body: bytes, media_type: str) -> None:
    """With its type and size."""
    async with fetching({"/f": reply(body, media_type)}) as (_, call):
        with pytest.raises(FetchError, match=rf"is not text: .*{len(body)} bytes"):
            await call("/f")


async def test_a_cut_page_says_so() -> None:
    """The reader must know that there was more."""
    page = reply("<p>The height is 5 m.</p>" + "<p>filler words here</p>" * 1000)
    async with fetching({"/": page}, max_bytes=2_000) as (_, call):
        got = await call("/", find="height")
    assert got["text"] == "The height is 5 m.\n[cut: only the first 2000 bytes were read]"
    assert got["value"] == 5


def pdf(text: str) -> bytes:
    """The smallest PDF that shows ``text``."""
    stream = f"BT /F1 12 Tf 20 100 Td ({text}) Tj ET".encode()
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 300 200]/Contents 4 0 R"
        b"/Resources<</Font<</F1 5 0 R>>>>>>",
        b"<</Length %d>>stream\n%s\nendstream" % (len(stream), stream),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    body, places = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(body))
        body += b"%d 0 obj%s endobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    return body + (
        b"xref\n0 6\n0000000000 65535 f \n%strailer<</Size 6/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF"
        % (table, len(body))
    )


async def test_a_pdf_is_read() -> None:
    """Its text, and the number in it; a broken one is an error with the address."""
    pytest.importorskip("pypdf")
    routes = {
        "/a.pdf": reply(pdf("The tunnel is 57.1 km long."), "application/pdf"),
        "/b.pdf": reply(b"%PDF-1.4 nonsense", "application/pdf"),
    }
    async with fetching(routes) as (_, call):
        got = await call("/a.pdf", find="tunnel length")
        assert (got["text"], got["value"]) == ("The tunnel is 57.1 km long.", 57.1)
        with pytest.raises(FetchError, match=r"b\.pdf' is a PDF that cannot be read"):
            await call("/b.pdf")


async def test_private_addresses_are_refused_through_the_tool() -> None:
    """The default tool has no grants at all."""
    tool = web_fetch()
    async with serving({"/": reply("inside")}) as server:
        with pytest.raises(FetchError, match=r"^refused address"):
            await tool.call(**tool.validate({"url": f"{server.origin}/"}))
        assert server.connections == 0


async def test_the_configured_tool_takes_sizes_and_lists() -> None:
    """As YAML gives them."""
    async with serving({"/": reply("word " * 2000, "text/plain")}) as server:
        tool = web_fetch(
            max_bytes="1KiB", allow_domains=["example.org"], allow_origins=[server.origin]
        )
        got = await tool.call(**tool.validate({"url": f"{server.origin}/"}))
        assert "first 1024 bytes" in got["text"]
        with pytest.raises(FetchError, match="allow_domains"):
            await tool.call(**tool.validate({"url": "http://other.example/"}))
        await tool.close()
    with pytest.raises(UsageError, match="'lots' is no size"):
        web_fetch(max_bytes="lots")


def test_the_planner_sees_two_arguments() -> None:
    """url and find, each explained; what comes back in one line."""
    tool = web_fetch()
    assert list(tool.parameters["properties"]) == ["url", "find"]
    assert tool.parameters["required"] == ["url"]
    assert all("description" in item for item in tool.parameters["properties"].values())
    assert tool.returns.startswith("{url, title, text, value}")
    assert "\n" not in tool.description + tool.returns
