"""The bank's file as a LangGraph store, beside LangGraph's own: what all have in common, and ours.

Written anew after the cases of LangGraph's public store tests. LangGraph's SqliteStore stands
beside the others where no vector is needed: for those it loads an extension into SQLite, which many
builds of Python do not allow.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import multiprocessing
import sqlite3
import string
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict

import pytest
from item_writer import put_many

from agentpar import tool
from agentpar.errors import BankError, MissingPackage, UsageError
from agentpar.memory.embed import HashedNgrams
from agentpar.memory.entry import Producer, entry_of
from agentpar.memory.items import matches
from agentpar.memory.store import Store, open_store

if importlib.util.find_spec("langgraph") is None:
    pytest.skip("langgraph is not installed", allow_module_level=True)

from langgraph.store.base import (
    BaseStore,
    GetOp,
    InvalidNamespaceError,
    ListNamespacesOp,
    MatchCondition,
    PutOp,
    SearchOp,
)
from langgraph.store.memory import InMemoryStore
from langgraph.store.sqlite import SqliteStore

from agentpar.langgraph_store import ENTRIES, BankStore

NAMESPACES = [
    ("a", "b", "c"),
    ("a", "b", "d", "e"),
    ("a", "b", "d", "i"),
    ("a", "b", "f"),
    ("a", "c", "f"),
    ("b", "a", "f"),
    ("ab", "c"),
    ("users", "123"),
    ("users", "456", "settings"),
]


def letters(texts: Sequence[str]) -> list[list[float]]:
    """How often each letter stands in a text: near is what is written alike."""
    return [[text.lower().count(letter) + 1e-3 for letter in string.printable] for text in texts]


def url(folder: Path) -> str:
    return f"sqlite:///{folder / 'bank.db'}"


POSTGRES = pytest.param("postgres", marks=pytest.mark.postgres)


@pytest.fixture(params=["file", POSTGRES])
def at(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a new bank, of each kind."""
    return address(request, tmp_path)


def address(request: pytest.FixtureRequest, folder: Path) -> str:
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres").new_database())
    return url(folder)


@pytest.fixture(params=["memory", "sqlite", "bank", POSTGRES])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BaseStore]:
    """Each of the stores, empty."""
    match request.param:
        case "memory":
            yield InMemoryStore()
        case "sqlite":
            with SqliteStore.from_conn_string(str(tmp_path / "theirs.db")) as store:
                store.setup()
                yield store
        case _:
            with BankStore(address(request, tmp_path)) as store:
                yield store


@pytest.fixture(params=["memory", "bank", POSTGRES])
def near(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BaseStore]:
    """Each of the stores that can compare texts here, empty."""
    index: Any = {"embed": letters, "dims": len(string.printable), "fields": ["text"]}
    if request.param == "memory":
        yield InMemoryStore(index=index)
        return
    with BankStore(address(request, tmp_path), index=index) as store:
        yield store


class Clock:
    """Seconds that pass when a test says so."""

    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def keys(items: Sequence[Any]) -> list[str]:
    return [item.key for item in items]


# What all have in common


def test_an_item_is_put_read_overwritten_and_deleted(store: BaseStore) -> None:
    """The last write counts; what is not there is None, and deleting it is no error."""
    place = ("users", "123"), "likes"
    assert store.get(*place) is None
    store.put(*place, {"food": "ceviche", "since": [2019, None, True, 1.5, "é🦙"]})
    item = store.get(*place)
    assert item is not None
    assert (item.namespace, item.key) == place
    assert item.value == {"food": "ceviche", "since": [2019, None, True, 1.5, "é🦙"]}
    assert item.created_at <= item.updated_at
    store.put(*place, {"food": "causa"})
    again = store.get(*place)
    assert again is not None
    assert again.value == {"food": "causa"}
    assert again.updated_at >= item.updated_at
    assert store.get(("users",), "likes") is None
    store.delete(*place)
    store.delete(*place)
    assert store.get(*place) is None
    assert store.search(("users",)) == []


def test_a_batch_answers_each_operation_in_its_place(store: BaseStore) -> None:
    """Reads see what stood there before the batch; of two puts to one place the last counts."""
    store.put(("n",), "old", {"v": 1})
    results = store.batch(
        [
            PutOp(("n",), "new", {"v": 2}),
            GetOp(("n",), "old"),
            GetOp(("n",), "new"),
            SearchOp(("n",)),
            PutOp(("n",), "new", {"v": 3}),
            PutOp(("n",), "old", None),
            ListNamespacesOp(),
        ]
    )
    assert [results[at] for at in (0, 2, 4, 5)] == [None] * 4
    assert results[1].value == {"v": 1}
    assert keys(results[3]) == ["old"]
    assert results[6] == [("n",)]
    assert [item.value for item in store.search(("n",))] == [{"v": 3}]


@pytest.mark.parametrize(
    "namespace", [(), ("the", "thing.about"), ("some", ""), ("langgraph", "x"), (123,)]
)
def test_a_namespace_that_is_none_is_refused(store: BaseStore, namespace: Any) -> None:
    """Empty, with a dot or an empty label, reserved, not of texts; nothing is written."""
    with pytest.raises(InvalidNamespaceError):
        store.put(namespace, "key", {"v": 1})
    assert store.search(()) == []


def test_a_reserved_root_is_one_only_at_the_root(store: BaseStore) -> None:
    """And who goes past `put` may use it."""
    store.put(("foo", "langgraph"), "k", {"v": 1})
    store.batch([PutOp(("langgraph", "foo"), "k", {"v": 2})])
    item = store.get(("langgraph", "foo"), "k")
    assert item is not None
    assert item.value == {"v": 2}
    assert len(store.search(("langgraph",))) == 1


@pytest.mark.parametrize(
    ("conditions", "found"),
    [
        ({"prefix": ("a", "b")}, [0, 1, 2, 3]),
        ({"prefix": ("a",)}, [0, 1, 2, 3, 4]),
        ({"suffix": ("f",)}, [3, 4, 5]),
        ({"prefix": ("a",), "suffix": ("f",)}, [3, 4]),
        ({"prefix": ("a", "*", "f")}, [3, 4]),
        ({"suffix": ("*", "f")}, [3, 4, 5]),
        ({"prefix": ("users", "*")}, [7, 8]),
        ({"suffix": ("*", "settings")}, [8]),
        ({"prefix": ("*", "b"), "suffix": ("*", "settings")}, []),
        ({"prefix": ("none",)}, []),
        ({}, range(9)),
        ({"prefix": ("a", "b"), "limit": 2}, [0, 1]),
        ({"prefix": ("a", "b"), "offset": 2}, [2, 3]),
    ],
)
def test_namespaces_are_found_by_both_ends(
    store: BaseStore, conditions: dict[str, Any], found: Sequence[int]
) -> None:
    """A star is any one label; the list is in order, and comes in pages."""
    for at, namespace in enumerate(NAMESPACES):
        store.put(namespace, f"id_{at}", {"at": at})
    assert store.list_namespaces(**conditions) == sorted(NAMESPACES[at] for at in found)


def test_namespaces_are_cut_to_a_depth_and_told_once(store: BaseStore) -> None:
    """A page is one of the cut ones."""
    for at, namespace in enumerate(NAMESPACES):
        store.put(namespace, f"id_{at}", {"at": at})
    cut = sorted({namespace[:2] for namespace in NAMESPACES})
    assert store.list_namespaces(max_depth=2) == cut
    assert store.list_namespaces(max_depth=2, limit=2, offset=1) == cut[1:3]
    assert store.list_namespaces(prefix=("a", "b"), max_depth=3) == [
        ("a", "b", "c"),
        ("a", "b", "d"),
        ("a", "b", "f"),
    ]


def test_a_search_stays_below_its_namespace(store: BaseStore) -> None:
    """Whole labels count: ("a",) is not above ("ab",); case counts; signs of SQL mean nothing."""
    for namespace in (("a",), ("a", "b"), ("ab",), ("A",), ("a%",), ("a_",), ("a[b]*", "c")):
        store.put(namespace, "/".join(namespace), {})
    assert set(keys(store.search(("a",)))) == {"a", "a/b"}
    assert keys(store.search(("a%",))) == ["a%"]
    assert keys(store.search(("a_",))) == ["a_"]
    assert keys(store.search(("a[b]*",))) == ["a[b]*/c"]
    assert len(store.search(())) == 7
    assert store.search(("nowhere",)) == []


DOCS = {
    "a": {"kind": "report", "score": 4.5, "tags": ["x", "y"], "by": {"name": "Ada"}, "on": True},
    "b": {"kind": "report", "score": 3, "tags": ["x"], "by": {"name": "Bo"}, "on": False},
    "c": {"kind": "letter", "score": 4.0, "tags": [], "by": {"name": "Ada"}, "on": True},
    "d": {"kind": "note", "score": 5, "tags": ["y"], "by": {"name": "Cy"}, "on": False},
}


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"kind": "report"}, "ab"),
        ({"kind": "report", "score": 3}, "b"),
        ({"kind": {"$eq": "report"}}, "ab"),
        ({"kind": {"$ne": "report"}}, "cd"),
        ({"score": {"$gt": 4}}, "ad"),
        ({"score": {"$gte": 4}}, "acd"),
        ({"score": {"$lt": 4.0}}, "b"),
        ({"score": {"$lte": 4}}, "bc"),
        ({"score": {"$gt": 3, "$lt": 5}}, "ac"),
        ({"score": {"$gte": 4.0}, "kind": "letter"}, "c"),
        ({"on": True}, "ac"),
        ({"kind": "nothing"}, ""),
        ({"absent": {"$eq": None}}, "abcd"),
        ({}, "abcd"),
        (None, "abcd"),
    ],
)
def test_a_filter_lets_through_what_it_names(store: BaseStore, wanted: Any, found: str) -> None:
    """By equality, and by each operator; several must all hold."""
    for key, value in DOCS.items():
        store.put(("docs",), key, value)
    assert set(keys(store.search(("docs",), filter=wanted))) == set(found)


def test_an_unknown_operator_is_refused(store: BaseStore) -> None:
    """It is a mistake, and no condition that never holds."""
    store.put(("docs",), "a", DOCS["a"])
    with pytest.raises(ValueError, match="Unsupported operator: \\$like"):
        store.search(("docs",), filter={"kind": {"$like": "r%"}})


def test_pages_hold_each_item_once(store: BaseStore) -> None:
    """Limit and offset count after the filter."""
    for at in range(20):
        store.put(("n",), f"{at:02}", {"even": at % 2 == 0})
    pages = [store.search(("n",), filter={"even": True}, limit=4, offset=at) for at in (0, 4, 8)]
    assert [len(page) for page in pages] == [4, 4, 2]
    assert sorted(key for page in pages for key in keys(page)) == [
        f"{at:02}" for at in range(0, 20, 2)
    ]
    assert len(store.search(("n",))) == 10
    assert store.search(("n",), offset=20) == []


async def test_the_same_through_the_async_door(near: BaseStore) -> None:
    """Put, get, search with and without a text, list and delete; many at once."""
    await asyncio.gather(
        *(near.aput(("n", str(at)), "k", {"text": f"number {at}", "at": at}) for at in range(8))
    )
    item = await near.aget(("n", "3"), "k")
    assert item is not None
    assert item.value["at"] == 3
    assert len(await near.asearch(("n",))) == 8
    found = await near.asearch(("n",), query="number 5", filter={"at": {"$gte": 4}}, limit=1)
    assert [item.namespace for item in found] == [("n", "5")]
    assert await near.alist_namespaces(prefix=("n",), limit=2) == [("n", "0"), ("n", "1")]
    await near.adelete(("n", "3"), "k")
    assert await near.aget(("n", "3"), "k") is None


# Nearness


def test_the_closest_comes_first(near: BaseStore) -> None:
    """With its cosine as the score, 1 for the very text."""
    for key, text in (("cars", "two red cars"), ("apple", "red apple"), ("sky", "blue skies")):
        near.put(("t",), key, {"text": text})
    found = near.search(("t",), query="red apple")
    assert found[0].key == "apple"
    scores = [item.score for item in found]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == pytest.approx(1.0, abs=1e-5)
    assert keys(near.search(("t",), query="red apple", limit=1)) == ["apple"]
    assert near.search(("t",), query="red apple", limit=1, offset=1)[0].key == found[1].key


def test_a_new_value_has_new_vectors(near: BaseStore) -> None:
    """The old text is not found any more; a deleted one neither; an equal text elsewhere stays."""
    near.put(("t",), "one", {"text": "zany zebra Xerxes"})
    near.put(("t",), "two", {"text": "about dogs"})
    before = near.search(("t",), query="zany zebra Xerxes")[0]
    assert before.key == "one"
    near.put(("t",), "one", {"text": "new text of birds"})
    after = {item.key: item.score for item in near.search(("t",), query="zany zebra Xerxes")}
    assert after["one"] < before.score
    near.delete(("t",), "one")
    assert keys(near.search(("t",), query="new text of birds")) == ["two"]


def test_what_is_not_indexed_comes_last_and_without_score(near: BaseStore) -> None:
    """By ``index=False``, or as it has no such field; another field is indexed when it is named."""
    near.put(("t",), "yes", {"text": "dogs and cats"})
    near.put(("t",), "no", {"text": "dogs"}, index=False)
    near.put(("t",), "without", {"title": "dogs"})
    near.put(("t",), "named", {"title": "dogs"}, index=["title"])
    found = near.search(("t",), query="dogs")
    assert keys(found)[:2] == ["named", "yes"]
    assert {(item.key, item.score) for item in found[2:]} == {("no", None), ("without", None)}
    assert keys(near.search(("t",), query="dogs", limit=2)) == ["named", "yes"]


def test_each_part_of_a_value_is_a_text(near: BaseStore) -> None:
    """An item is as near as its nearest part, and found once."""
    value = {"parts": [{"said": "all about whales"}, {"said": "zebra"}], "last": ["x", "tiger"]}
    near.put(("t",), "many", value, index=["parts[*].said", "last[-1]"])
    near.put(("t",), "one", {"text": "zebras too"})
    found = near.search(("t",), query="zebra")
    assert keys(found) == ["many", "one"]
    assert found[0].score == pytest.approx(1.0, abs=1e-5)
    assert near.search(("t",), query="tiger")[0].score == pytest.approx(1.0, abs=1e-5)


def test_nearness_and_filter_go_together(near: BaseStore) -> None:
    """The filter says who, the text says in which order."""
    for key, text, color, score in (
        ("1", "red apple", "red", 4.5),
        ("2", "red car", "red", 3.0),
        ("3", "green apple", "green", 4.0),
        ("4", "blue car", "blue", 3.5),
    ):
        near.put(("t",), key, {"text": text, "color": color, "score": score})
    assert keys(near.search(("t",), query="apple", filter={"color": "red"})) == ["1", "2"]
    assert keys(near.search(("t",), query="car", filter={"color": "red"})) == ["2", "1"]
    found = near.search(("t",), query="bbbbluuu", filter={"score": {"$gt": 3.2}})
    assert len(found) == 3
    assert found[0].key == "4"


def test_pages_go_down_the_ranking(near: BaseStore) -> None:
    """However far, over more items than are read at once."""
    for at in range(150):
        near.put(("t", str(at % 3)), str(at), {"text": "x" * (at + 1) + "y" * 50})
    ranking = keys(near.search(("t",), query="yyy", limit=200))
    assert len(ranking) == 150
    assert ranking[0] == "0"
    assert keys(near.search(("t",), query="yyy", limit=10, offset=100)) == ranking[100:110]
    third = keys(near.search(("t", "1"), query="yyy", limit=200))
    assert third == [key for key in ranking if int(key) % 3 == 1]


@pytest.mark.parametrize("query", ["", None, "test " * 100, "test!@#$%^&*()", "測試"])
def test_any_query_is_one(near: BaseStore, query: str | None) -> None:
    """Empty, long, of signs only."""
    near.put(("t",), "one", {"text": "test document"})
    assert keys(near.search(("t",), query=query)) == ["one"]


def test_in_an_agent_of_langgraph(near: BaseStore) -> None:
    """A node gets the store by its name, and what one thread put another finds."""
    from langgraph.graph import END, START, StateGraph

    def remember(state: dict[str, Any], *, store: BaseStore) -> dict[str, Any]:
        known = store.search(("facts",), query=state["said"], limit=1)
        store.put(("facts",), state["said"], {"text": state["said"]})
        return {"known": [item.value["text"] for item in known]}

    State = TypedDict("State", {"said": str, "known": list[str]})  # noqa: UP013
    graph = StateGraph(State)
    graph.add_node("remember", remember)
    graph.add_edge(START, "remember")
    graph.add_edge("remember", END)
    compiled = graph.compile(store=near)
    assert compiled.invoke({"said": "Lima is in Peru"})["known"] == []
    assert compiled.invoke({"said": "Where is Lima?"})["known"] == ["Lima is in Peru"]


# What is ours


def test_items_outlive_the_process(at: str) -> None:
    """Their vectors too, and what another process puts or deletes is seen at once."""
    index: Any = {"embed": "hashed", "fields": ["text"]}
    with BankStore(at, index=index) as store:
        store.put(("t",), "one", {"text": "population of Lima"})
        store.put(("t",), "two", {"text": "population of Quito"})
        assert keys(store.search(("t",), query="Lima", limit=1)) == ["one"]
        script = (
            "import sys; from agentpar.langgraph_store import BankStore\n"
            "with BankStore(sys.argv[1], index={'embed': 'hashed', 'fields': ['text']}) as s:\n"
            "    assert s.search(('t',), query='Lima')[0].key == 'one'\n"
            "    s.delete(('t',), 'one'); s.put(('t',), 'three', {'text': 'Lima, mayor'})\n"
        )
        subprocess.run([sys.executable, "-c", script, at], check=True, timeout=60)
        assert keys(store.search(("t",), query="Lima")) == ["three", "two"]
    with BankStore(at) as store:
        item = store.get(("t",), "three")
        assert item is not None
        assert item.value == {"text": "Lima, mayor"}


def test_processes_that_write_at_once_lose_nothing(at: str) -> None:
    """Four of them; of equal places the last write stands, and there is one item."""
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=put_many, args=(at, who)) for who in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    with BankStore(at) as store:
        assert len(store.search(("t",), limit=200)) == 100
        assert len(store.search(("shared",), limit=200)) == 25


def test_the_latest_comes_first_and_keeps_its_creation(at: str, clock: Clock) -> None:
    """Without a query the order is that of the last write."""
    with BankStore(at, clock=clock) as store:
        for key in "abc":
            store.put(("t",), key, {})
            clock.now += 1
        store.put(("t",), "a", {"v": 2})
        found = store.search(("t",))
        assert keys(found) == ["a", "c", "b"]
        assert (found[0].updated_at - found[0].created_at).total_seconds() == 3
        assert found[0].created_at.tzinfo is not None


def test_a_failing_batch_changes_nothing(at: str) -> None:
    """Every operation of a batch, or none."""
    with BankStore(at) as store:
        store.put(("t",), "a", {"v": 1})
        with pytest.raises(UsageError, match=r"'b' in \('t',\) is no JSON"):
            store.batch([PutOp(("t",), "a", {"v": 2}), PutOp(("t",), "b", {"v": {1, 2}})])
        with pytest.raises(ValueError, match="Unsupported operator"):
            store.batch([PutOp(("t",), "a", None), SearchOp(("t",), filter={"v": {"$in": [1]}})])
        item = store.get(("t",), "a")
        assert item is not None
        assert item.value == {"v": 1}
        with pytest.raises(ValueError, match="Unknown operation type"):
            store.batch(["get"])
        with pytest.raises(InvalidNamespaceError):
            store.batch([GetOp(("a.b",), "k")])
        with pytest.raises(UsageError, match="must not be below 0"):
            store.search(("t",), limit=-1)


@pytest.mark.parametrize(
    ("value", "wanted", "holds"),
    [
        ({"name": "Ada", "x": 1}, {"name": "Ada"}, True),
        ({"name": "Ada"}, {"name": {"$ne": "Ada"}}, False),
        ("Ada", {"name": "Ada"}, False),
        ([1, 2], [1, 2], True),
        ([1, 2], [1, {"$gt": 1}], True),
        ([1, 2], [1], False),
        (None, {"$gt": 1}, False),
        (None, {"$ne": 1}, True),
        ("10", {"$gt": 9}, True),
        ("b", {"$gt": "a"}, True),
        ("b", {"$gt": 1}, False),
        ([1], {"$lt": 1}, False),
        (float("nan"), {"$gte": 0}, False),
    ],
)
def test_parts_of_a_value_match(value: Any, wanted: Any, holds: bool) -> None:
    """Also inside of it, and never by an error where two things have no order."""
    assert matches(value, wanted) is holds


# The bank's entries


@tool
async def web_lookup(subject: str, find: str) -> str:
    """Look something up."""
    return ""


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[Store]:
    """A bank with three findings of two agents."""
    bank = open_store(url(tmp_path))
    bank.open()
    for namespace, subject, value in (
        ("geo", "Lima", 10_092_000),
        ("geo", "Quito", 2_011_388),
        ("geo.old", "Cusco", 428_450),
    ):
        args = {"subject": subject, "find": "population"}
        page = {"url": f"https://example.org/{subject}", "text": subject, "value": value}
        bank.put(entry_of(web_lookup, args, page, Producer("run-1", 1), namespace=namespace))
    yield bank
    bank.close()


def test_entries_are_seen_and_cannot_be_written(tmp_path: Path, bank: Store) -> None:
    """By namespace, filter, id and text, and only where they are named; a revoked one is gone."""
    index: Any = {"embed": "hashed", "fields": ["text"]}
    with BankStore(url(tmp_path), index=index) as store:
        store.put(("mine",), "a", {"text": "Lima"})
        assert len(store.search((ENTRIES,))) == 3
        assert len(store.search((ENTRIES, "geo"), filter={"tool": "web_lookup"})) == 3
        assert len(store.search((ENTRIES, "geo", "old"))) == 1
        assert store.list_namespaces(prefix=(ENTRIES,)) == [
            (ENTRIES, "geo"),
            (ENTRIES, "geo", "old"),
        ]
        assert store.list_namespaces() == [("mine",)]
        assert keys(store.search((), query="Lima")) == ["a"]
        found = store.search((ENTRIES, "geo"), query="How many people live in Quito?")
        assert found[0].value["value"]["value"] == 2_011_388
        assert found[0].value["sources"] == ["https://example.org/Quito"]
        assert found[0].score > found[1].score
        item = store.get((ENTRIES, "geo"), found[0].key)
        assert item is not None
        assert item.value == found[0].value
        assert store.get((ENTRIES,), found[0].key) is None
        with pytest.raises(UsageError, match="which nobody can write"):
            store.put((ENTRIES, "geo"), "x", {})
        with pytest.raises(UsageError, match="which nobody can write"):
            store.delete((ENTRIES, "geo"), found[0].key)
        bank.revoke("https://example.org/Quito")
        assert store.get((ENTRIES, "geo"), found[0].key) is None
        assert len(store.search((ENTRIES,), query="Quito")) == 2


async def test_entries_through_the_async_door(tmp_path: Path, bank: Store) -> None:
    """With an embedder that can only be awaited."""

    async def embed(texts: Sequence[str]) -> list[list[float]]:
        return letters(texts)

    with BankStore(url(tmp_path), index={"embed": embed, "fields": ["text"]}) as store:
        found = await store.asearch((ENTRIES,), query="web_lookup: Cusco, population", limit=1)
        assert [item.namespace for item in found] == [(ENTRIES, "geo", "old")]
        assert await store.alist_namespaces(prefix=(ENTRIES,), max_depth=1) == [(ENTRIES,)]
        assert await store.aget((ENTRIES, "geo", "old"), found[0].key) is not None


# Time to live


def vectors_in(at: str) -> int:
    """How many vectors of items a bank has."""
    count = "SELECT count(*) FROM {}langgraph_vectors"
    if at.startswith("postgresql"):
        import psycopg

        with psycopg.connect(at) as connection:
            return int(connection.execute(count.format("agentpar_")).fetchone()[0])  # type: ignore[index]
    return int(
        sqlite3.connect(at.removeprefix("sqlite:///")).execute(count.format("")).fetchone()[0]
    )


def test_an_item_ends_after_its_time(at: str, clock: Clock) -> None:
    """By the default, by its own, or never; a sweep removes what has ended, vectors included."""
    with BankStore(
        at,
        ttl={"default_ttl": 5, "omit_expired": True},
        index={"embed": "hashed", "fields": ["text"]},
        clock=clock,
    ) as store:
        store.put(("t",), "default", {"text": "one"})
        store.put(("t",), "short", {"text": "two"}, ttl=1)
        store.put(("t",), "never", {"text": "three"}, ttl=None)
        clock.now += 61
        assert store.get(("t",), "short") is None
        assert set(keys(store.search(("t",), refresh_ttl=False))) == {"default", "never"}
        assert store.sweep_ttl() == 1
        clock.now += 300
        assert keys(store.search(("t",), query="one two")) == ["never"]
        assert store.list_namespaces() == [("t",)]
        store.delete(("t",), "never")
        assert store.list_namespaces() == []
    assert vectors_in(at) == 0


def test_reading_gives_an_item_more_time(at: str, clock: Clock) -> None:
    """By get and search, unless they say no, or the store does; what has ended stays so."""
    with BankStore(at, ttl={"default_ttl": 1, "omit_expired": True}, clock=clock) as store:
        for key in ("got", "found", "peeked"):
            store.put((key,), key, {})
        for _ in range(3):
            clock.now += 40
            store.get(("got",), "got")
            store.search(("found",))
            store.get(("peeked",), "peeked", refresh_ttl=False)
        assert sorted(store.list_namespaces()) == [("found",), ("got",)]
        assert store.get(("peeked",), "peeked") is None
        assert store.get(("peeked",), "peeked", refresh_ttl=False) is None
    still = {"default_ttl": 1, "omit_expired": True, "refresh_on_read": False}
    with BankStore(at, ttl=still, clock=clock) as store:
        clock.now += 40
        assert store.get(("got",), "got") is not None
        clock.now += 40
        assert store.get(("got",), "got") is None


def test_what_has_ended_is_there_until_it_is_swept(at: str, clock: Clock) -> None:
    """As LangGraph's stores have it, unless the store omits it; the next write sweeps."""
    with BankStore(at, clock=clock) as store:
        store.put(("t",), "a", {}, ttl=1)
        clock.now += 61
        assert store.get(("t",), "a", refresh_ttl=False) is not None
        store.put(("t",), "b", {})
        assert keys(store.search(("t",))) == ["b"]


# Embeddings


def test_only_named_fields_are_embedded(tmp_path: Path) -> None:
    """A secret beside them reaches no embedder, and a store without fields is refused."""
    seen: list[str] = []

    def embed(texts: Sequence[str]) -> list[list[float]]:
        seen.extend(texts)
        return letters(texts)

    with pytest.raises(UsageError, match=r"say which fields .* \['\$'\] embeds whole values"):
        BankStore(url(tmp_path), index={"embed": embed})
    with BankStore(url(tmp_path), index={"embed": embed, "fields": ["text"]}) as store:
        store.put(("t",), "a", {"text": "hello", "password": "swordfish"})
        store.put(("t",), "b", {"text": " ", "password": "swordfish"})
        store.search(("t",), query="hi")
    assert seen == ["hello", "hi"]
    with BankStore(url(tmp_path), index={"embed": embed, "fields": ["$"]}) as store:
        store.put(("t",), "a", {"text": "hello"})
    assert json.loads(seen[-1]) == {"text": "hello"}


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"fields": ["text"]}, "'embed' is missing"),
        ({"embed": "hashed", "fields": "text"}, "fields is a list of paths"),
        ({"embed": HashedNgrams(64), "fields": ["text"]}, "'hashed-256'.*'hashed-64'"),
        ({"embed": letters, "dims": 100, "fields": ["text"]}, "dims '256'.*'100'"),
    ],
)
def test_an_index_that_cannot_be_is_refused_at_once(
    tmp_path: Path, index: dict[str, Any], message: str
) -> None:
    """Also where the file has vectors of another embedder or size: they would be mixed."""
    with BankStore(url(tmp_path), index={"embed": "hashed", "fields": ["text"]}) as store:
        store.put(("t",), "a", {"text": "hello"})
    with pytest.raises(UsageError, match=message):
        BankStore(url(tmp_path), index=index)


@pytest.mark.parametrize(
    ("embed", "message"),
    [
        (lambda texts: [[1.0] * 4 for _ in texts], "4 numbers where all have 3"),
        (lambda texts: [[float("nan")] * 3 for _ in texts], "no number"),
        (lambda texts: [], "0 vectors of 1 texts"),
    ],
)
def test_a_vector_that_is_none_is_refused(
    tmp_path: Path, embed: Callable[..., Any], message: str
) -> None:
    """Of another size, with no numbers, or missing; and nothing of the batch is kept."""
    with BankStore(url(tmp_path), index={"embed": embed, "dims": 3, "fields": ["text"]}) as store:
        with pytest.raises(UsageError, match=message):
            store.put(("t",), "a", {"text": "hello"})
        assert store.search(("t",)) == []


# Bad files


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("mysql://me:swordfish@host/db", r"sqlite:///FILE or postgresql://…, got .* 'mysql'"),
        ("bank.db", "sqlite:///FILE"),
        ("sqlite:///:memory:", "take LangGraph's InMemoryStore"),
    ],
)
def test_an_address_that_is_none_is_told(address: str, message: str) -> None:
    """With what would be one, and without the password."""
    with pytest.raises(UsageError, match=message) as error:
        BankStore(address)
    assert "swordfish" not in str(error.value)


def test_a_file_that_is_none_is_told(tmp_path: Path) -> None:
    """Damaged, of another version, or a folder; and a store that was closed says so."""
    (tmp_path / "noise.db").write_bytes(b"not a database " * 100)
    with pytest.raises(BankError, match=r"noise\.db' is no bank"):
        BankStore(f"sqlite:///{tmp_path / 'noise.db'}")
    with pytest.raises(BankError, match="is a folder"):
        BankStore(f"sqlite:///{tmp_path}")
    with sqlite3.connect(tmp_path / "other.db") as db:
        db.execute("CREATE TABLE theirs (a)")
    db.close()
    with pytest.raises(BankError, match="of another program and no bank"):
        BankStore(f"sqlite:///{tmp_path / 'other.db'}")
    store = BankStore(url(tmp_path))
    store.close()
    with pytest.raises(BankError, match="was closed"):
        store.get(("t",), "a")
    with sqlite3.connect(tmp_path / "bank.db") as db:
        db.execute("UPDATE langgraph_meta SET value = '9' WHERE name = 'version'")
    db.close()
    with pytest.raises(BankError, match="of version 9, this agentpar reads version 1"):
        BankStore(url(tmp_path))


def test_without_langgraph_the_message_says_what_to_install(tmp_path: Path) -> None:
    """The module cannot be imported, and says why."""
    script = (
        "import sys; sys.modules['langgraph'] = None\n"
        "try:\n    import agentpar.langgraph_store\n"
        "except ImportError as error:\n    print(error)\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert "pip install 'agentpar[langgraph]'" in said.stdout
    assert issubclass(MissingPackage, ImportError)


def test_conditions_may_come_as_operations(store: BaseStore) -> None:
    """An empty path constrains nothing."""
    for namespace in NAMESPACES:
        store.put(namespace, "k", {})
    conditions = (MatchCondition("prefix", ()), MatchCondition("suffix", ("f",)))
    [found] = store.batch([ListNamespacesOp(match_conditions=conditions)])
    assert found == [("a", "b", "f"), ("a", "c", "f"), ("b", "a", "f")]
