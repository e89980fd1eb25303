"""The library: built once, whole or not at all, and good at finding."""

import os
import shutil
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentpar.errors import MissingPackage
from agentpar.miniweb.index import Library, edition, open_library, snippet
from agentpar.miniweb.questions import make_questions


def test_the_second_start_opens_what_the_first_built(shelf: Path) -> None:
    """Nothing is waited for, and it takes less than half a second of work."""
    told: list[str] = []
    began = time.process_time()
    with open_library(shelf, progress=lambda what, done, total: told.append(what)) as opened:
        assert len(opened) > 10_000
    assert time.process_time() - began < 0.5
    assert told == []


def test_a_build_clears_away_what_nobody_needs(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Editions unopened for a month and builds that were killed; nothing of anybody else."""
    monkeypatch.setattr("agentpar.miniweb.index._write", lambda folder, _: copy(shelf, folder))
    now = time.time()
    ages = {
        "0" * 16: 31, "1" * 16: 29, ".building-killed": 1, ".building-now": 0, "mine": 400,
    }  # fmt: skip
    for name, days in ages.items():
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (now, now - days * 24 * 3600))
    open_library(tmp_path).close()
    left = {folder.name for folder in tmp_path.iterdir()}
    assert left == {"1" * 16, ".building-now", "mine", edition()}


def test_an_edition_in_use_does_not_grow_old(shelf: Path, tmp_path: Path) -> None:
    """Opening it is what counts, not when it was built."""
    copy(shelf, tmp_path / edition())
    os.utime(tmp_path / edition(), (0, 0))
    open_library(tmp_path).close()
    assert (tmp_path / edition()).stat().st_mtime > time.time() - 60


def copy(shelf: Path, folder: Path) -> None:
    shutil.copytree(shelf / edition(), folder, dirs_exist_ok=True)


def test_an_interrupted_build_leaves_nothing(tmp_path: Path) -> None:
    """Ctrl-C while pages are being written."""

    def interrupt(step: str, done: float, total: float) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_library(tmp_path, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("query", "path"),
    [
        ("Chile population", "/atlas/country/chile"),
        ("population of Chile", "/atlas/country/chile"),
        ("capital of Chile", "/atlas/country/chile"),
        ("What is the area of France in km²?", "/atlas/country/france"),
        ("Santiago airport elevation", "/airports/scl"),
        ("elevation of Quito airport", "/airports/uio"),
        ("how high is the airport of Lima, Peru", "/airports/lim"),
        ("population of Bogotá", "/atlas/city/bogota-co"),
        ("bogota POPULATION", "/atlas/city/bogota-co"),
        ("SCL", "/airports/scl"),
        ("Niger neighbours", "/atlas/country/niger"),
    ],
)
def test_the_page_meant_comes_first(library: Library, query: str, path: str) -> None:
    """Words in any order, with and without accents, as a question or as keywords."""
    assert library.search(query)[0].path == path


def test_the_pages_behind_generated_questions_are_found(library: Library) -> None:
    """First at least 19 times of 20, among the first five 99 times of 100."""
    wanted: dict[str, set[str]] = {}
    for question in make_questions(200, seed=5):
        for evidence in question.evidence:
            wanted.setdefault(evidence.search, set()).add(evidence.page)
    found = {query: [hit.path for hit in library.search(query, limit=5)] for query in wanted}
    first = sum(found[query][0] in pages for query, pages in wanted.items())
    all_in_five = sum(pages <= set(found[query]) for query, pages in wanted.items())
    assert first >= 0.95 * len(wanted)
    assert all_in_five >= 0.99 * len(wanted)


@given(st.text(max_size=200))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_a_query(library: Library, query: str) -> None:
    """There is no query syntax, so there is nothing to get wrong."""
    library.search(query)


@pytest.mark.parametrize(
    "query", ['title:"x AND (', "a OR", "NOT", '+-!(){}[]^"~*?:\\/', "name:[a TO", "x^", "", "  "]
)
def test_query_syntax_is_only_text(library: Library, query: str) -> None:
    """What would be an error in a query language."""
    library.search(query)


def test_a_question_with_its_context_pasted_in_is_answered_soon(library: Library) -> None:
    """A query of a hundred thousand words."""
    began = time.process_time()
    assert library.search("Chile " + "population of everything " * 33_000)
    assert time.process_time() - began < 2


def test_pages_of_results_follow_each_other(library: Library) -> None:
    """The second page begins where the first ended."""
    both = library.search("airport", limit=20)
    assert library.search("airport", limit=10) + library.search("airport", offset=10) == both


def test_a_snippet_holds_the_sentence_that_was_asked_for() -> None:
    """And keeps to its length."""
    text = "One line about the weather.\nThe area is 5 km².\nThe population is 12 people."
    assert snippet(text, ["population"], length=30) == "The population is 12 people."
    assert len(snippet("word " * 100, ["word"], length=50)) == 50


def test_hostile_pages_are_found_only_on_request(library: Library) -> None:
    """They are in the index, and stay out of the results."""
    assert not any(h.path.startswith("/notes/") for h in library.search("Chile", limit=50))
    hostile = library.search("Chile travellers", limit=5, hostile=True)
    assert any(h.path == "/notes/country/chile" for h in hostile)


def test_a_missing_package_says_what_to_install(
    shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message has the command."""
    monkeypatch.setitem(sys.modules, "tantivy", None)
    with pytest.raises(MissingPackage, match=r"pip install 'agentpar\[miniweb\]'"):
        open_library(shelf)
