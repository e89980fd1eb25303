"""What the pages say, and that they are real HTML."""

from dataclasses import replace
from html.parser import HTMLParser

import pytest

from agentpar.miniweb.data import load_world
from agentpar.miniweb.index import Library
from agentpar.miniweb.pages import atlas_country, render, render_all

VOID = {"meta", "link", "input", "br"}


class Outline(HTMLParser):
    """Follows the tags: ``open`` is empty at the end of a well-formed page."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        if tag == "a":
            self.links.add(dict(attrs)["href"] or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def outline(html: str) -> Outline:
    parsed = Outline()
    parsed.feed(html)
    parsed.close()
    return parsed


def test_pages_are_well_formed_and_link_only_to_pages_that_exist() -> None:
    """Every thirteenth page, and each of its links."""
    pages = list(render_all(load_world()))
    paths = {page.path for page in pages} | {"/"}
    assert len(paths) == len(pages) + 1 > 10_000
    for page in pages[::13]:
        parsed = outline(page.html)
        assert parsed.open == []
        broken = {h for h in parsed.links if not h.startswith("https://")} - paths
        assert not broken, page.path


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/atlas/country/chile", ["18,729,160", "756,950 square kilometres", "Santiago", "CLP"]),
        ("/gazetteer/country/chile", ["17,819,054", "756,102 square kilometres", "Santiago"]),
        ("/atlas/city/santiago-cl", ["4,837,295", "capital of Chile", "America/Santiago"]),
        ("/airports/scl", ["1,555 feet (474 m)", "SCEL", "Santiago"]),
        ("/about", ["CC BY 4.0", "countryinfo", "airportsdata", "MIT licence"]),
    ],
)
def test_a_page_states_its_facts_with_units(library: Library, path: str, said: list[str]) -> None:
    """In the HTML that is served, and in the text that is indexed."""
    page = library.page(path)
    assert page is not None
    text = outline(page.html).text
    for words in said:
        assert words in text
        assert words in page.text


def test_the_two_sites_disagree_about_france(library: Library) -> None:
    """The atlas has 547,030 km², the gazetteer 640,679 km²."""
    atlas = library.page("/atlas/country/france")
    gazetteer = library.page("/gazetteer/country/france")
    assert atlas is not None
    assert gazetteer is not None
    assert "547,030" in atlas.text
    assert "640,679" not in atlas.text
    assert "640,679" in gazetteer.text


def test_a_country_page_does_not_give_away_its_capital_s_population(library: Library) -> None:
    """Otherwise a question of two hops would be one of one."""
    page = library.page("/atlas/country/chile")
    assert page is not None
    assert "4,837,295" not in page.html


def test_names_are_escaped() -> None:
    """A name with markup stays text."""
    world = load_world()
    odd = replace(world.countries["CL"], name='<script>alert("1")</script>')
    page = render(atlas_country(world, odd))
    assert "<script" not in page.html
    assert outline(page.html).open == []
