"""Whatever is done to a bank in whatever order, it answers as a plain dict would."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from banks import Clock, entry
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from server import Postgres

from agentpar.memory.entry import Entry, Lease, Producer, Reading
from agentpar.memory.store import Store
from agentpar.memory.store.sqlite import SqliteStore

SPACES = ("a", "b")
RUNS = ("r", "r.1", "s")
SITES = ("https://x.example/1", "https://x.example/12", "https://y.example/")
IDS = st.integers(0, 7)


@dataclass
class Model:
    """A bank as values: what a store promises, written as plainly as it goes."""

    now: float = 0.0
    rows: dict[str, Entry] = field(default_factory=dict)  # in the order in which they came
    producers: dict[str, list[tuple[str, int, int]]] = field(default_factory=dict)
    sources: set[tuple[str, str]] = field(default_factory=set)
    parents: set[tuple[str, str]] = field(default_factory=set)
    readings: list[Reading] = field(default_factory=list)
    revoked: set[str] = field(default_factory=set)
    leases: dict[tuple[str, str], tuple[str, float]] = field(default_factory=dict)

    def stands(self, one: Entry) -> bool:
        return one.id not in self.revoked and (one.expires is None or one.expires > self.now)

    def put(self, one: Entry) -> tuple[bool, bool]:
        old = self.rows.get(one.id)
        new = old is None or (one.id not in self.revoked and not self.stands(old))
        if new:
            self.rows.pop(one.id, None)
            self.rows[one.id] = one
        elif old is not None and old.expires is not None:
            longer = one.expires is None or one.expires > old.expires
            self.rows[one.id] = one if longer else old
        brought = self.producers.setdefault(one.id, [])
        who = (one.producer.run_id, one.producer.task_id, one.producer.team)
        if who[:2] not in [other[:2] for other in brought]:
            brought.append(who)
        self.sources |= {(one.id, source) for source in one.sources}
        self.parents |= {(one.id, parent) for parent in one.parents}
        if one.id not in self.revoked and self.revoked & {one.id, *one.parents}:
            self.withdraw({one.id})
        return new, one.id in self.revoked

    def withdraw(self, ids: set[str]) -> set[str]:
        gone, more = set(ids), set(ids)
        while more:
            more = {id for id, parent in self.parents if parent in more} - gone
            gone |= more
        self.revoked |= gone
        return gone

    def find(self, space: str, key: str, like: str) -> str | None:
        there = [one for one in self.rows.values() if one.namespace == space and self.stands(one)]
        equal = [one.id for one in there if one.key == key]
        alike = [one.id for one in there if one.like == like]
        return (equal or alike or [None])[-1]

    def revoke(self, source: str) -> tuple[set[str], set[str]]:
        ids = {id for id, address in self.sources if address.startswith(source) and "//" in source}
        for id, brought in self.producers.items():
            runs = {run for run, _, _ in brought}
            if id == source or any(run == source or run.startswith(f"{source}.") for run in runs):
                ids.add(id)
        gone = self.withdraw(ids)
        answers = {run for id in gone for run, _, _ in self.producers.get(id, [])}
        return gone, answers | {one.run_id for one in self.readings if one.entry_id in gone}


def steps() -> SearchStrategy[list[tuple[Any, ...]]]:
    """What may be done: lists of a name and its arguments."""
    put = st.tuples(
        st.just("put"),
        IDS,
        st.sampled_from(RUNS),
        st.integers(0, 2),
        st.sampled_from(SITES),
        st.lists(IDS, max_size=2, unique=True),
        st.none() | st.integers(1, 30),
    )
    return st.lists(
        put
        | st.tuples(st.just("used"), IDS, st.sampled_from(RUNS), st.integers(0, 2))
        | st.tuples(
            st.just("revoke"),
            st.sampled_from(["https://x.example/1", "https://x.example/", "r", "id1", "id4", "?"]),
        )
        | st.tuples(st.just("wait"), st.integers(1, 20))
        | st.tuples(st.just("remove_expired"))
        | st.tuples(st.just("again"))
        | st.tuples(st.just("lease"), st.sampled_from("lm"), st.sampled_from(RUNS))
        | st.tuples(st.just("renew"), st.integers(0, 9))
        | st.tuples(st.just("release"), st.integers(0, 9)),
        max_size=30,
    )


def check(store: Store, wait: Any, todo: list[tuple[Any, ...]]) -> None:
    """Do ``todo`` to ``store`` and to a `Model`, and compare all that can be seen after each."""
    model = Model()
    leases: list[Lease] = []
    begin = store.now()
    for name, *args in todo:
        match name:
            case "put":
                n, run, task, site, parents, ttl = args
                given = entry(
                    n,
                    namespace=SPACES[n % 2],
                    key=f"key{n % 3}",
                    like=f"like{n % 2}",
                    producer=Producer(run, task, 1),
                    sources=(site,),
                    # Entries are made of what was there before, so there are no circles.
                    parents=tuple(f"id{parent}" for parent in parents if parent < n),
                    expires=None if ttl is None else begin + model.now + ttl,
                )
                vector = [1.0, n / 10]
                put = store.put(given, vector)
                plain = replace_expiry(given, begin)
                assert (put.new, put.revoked) == model.put(plain)
            case "used":
                n, run, task = args
                reading = Reading(f"id{n}", run, task, spared_tokens=n)
                store.used(reading)
                model.readings.append(reading)
            case "revoke":
                revoked = store.revoke(args[0])
                assert (set(revoked.entries), set(revoked.runs)) == model.revoke(args[0])
                order = {id: at for at, id in enumerate(revoked.entries)}
                assert len(order) == len(revoked.entries)
                for id, parent in model.parents:
                    assert parent not in order or order[parent] < order[id]
            case "wait":
                wait(args[0])
                model.now += args[0]
            case "remove_expired":
                gone = [
                    one.id
                    for one in model.rows.values()
                    if one.expires is not None and one.expires <= model.now
                ]
                assert store.remove_expired() == len(gone)
                for id in gone:
                    del model.rows[id]
            case "again":
                if store.place != "in memory":  # type: ignore[attr-defined]
                    store.close()
                    store.open()
            case "lease":
                like, run = args
                holder, until = model.leases.get(("a", like), ("", 0.0))
                if until <= model.now or holder == run:
                    holder = run
                    model.leases["a", like] = (run, model.now + 15)
                lease = store.lease("a", like, run, 1, 1, 15)
                assert lease.holder.run_id == holder
                if lease not in leases:
                    assert all(lease.fence > old.fence for old in leases if old.like == like)
                    leases.append(lease)
            case "renew" | "release" if args[0] < len(leases):
                lease = leases[args[0]]
                newest = [one for one in leases if one.like == lease.like][-1]
                ours = lease.fence == newest.fence and ("a", lease.like) in model.leases
                if name == "renew":
                    renewed = store.renew(lease, 15)
                    assert (renewed is not None) == ours
                    if renewed is not None:
                        model.leases["a", lease.like] = (lease.holder.run_id, model.now + 15)
                        leases.append(renewed)
                else:
                    assert store.release(lease) == ours
                    if ours:
                        del model.leases["a", lease.like]
        compare(store, model)


def replace_expiry(one: Entry, begin: float) -> Entry:
    from dataclasses import replace

    return one if one.expires is None else replace(one, expires=one.expires - begin)


def compare(store: Store, model: Model) -> None:
    standing = [one.id for one in model.rows.values() if model.stands(one)]
    assert [one.id for one in store.entries()] == standing
    assert {one.id for one in store.entries(revoked=True)} == model.revoked & set(model.rows)
    assert [(r.entry_id, r.run_id, r.task_id) for r in store.readings()] == [
        (r.entry_id, r.run_id, r.task_id) for r in model.readings
    ]
    for space in SPACES:
        there = {id for id in standing if model.rows[id].namespace == space}
        assert {one.id for one, _ in store.nearest(space, [1.0, 0.0], 20)} == there
        assert [one.id for one, _ in store.nearest(space, [1.0, 0.0], 3)] == sorted(there)[:3]
        for key in ("key0", "key1", "key2", "?"):
            for like in ("like0", "like1"):
                found = store.find(space, key, like)
                assert (found and found.id) == model.find(space, key, like)
    for id, brought in model.producers.items():
        assert store.producers(id) == brought
    told = store.statistics()
    assert told.entries == len(standing)
    assert told.readings == len(model.readings)
    assert told.spared_tokens == sum(one.spared_tokens for one in model.readings)
    held = [until for _, until in model.leases.values() if until > model.now]
    assert told.leases == len(held)
    assert told.refused == 0


@contextmanager
def sqlite(in_memory: bool) -> Iterator[tuple[Store, Any]]:
    clock = Clock()
    with TemporaryDirectory() as folder:
        store = SqliteStore(":memory:" if in_memory else Path(folder) / "bank.db", clock=clock)
        store.open()
        try:
            yield store, clock.wait
        finally:
            store.close()


@settings(deadline=None, max_examples=60)
@given(in_memory=st.booleans(), todo=steps())
def test_a_bank_in_sqlite_answers_as_a_dict_would(
    in_memory: bool, todo: list[tuple[Any, ...]]
) -> None:
    """In memory and in a file that is closed and opened again in between."""
    with sqlite(in_memory) as (store, wait):
        check(store, wait, todo)


@pytest.mark.postgres
@pytest.mark.parametrize("kind", ["postgres", "pgvector"])
def test_a_bank_in_postgres_answers_as_a_dict_would(
    kind: str, request: pytest.FixtureRequest
) -> None:
    """The same, without the passing of time: a server's clock cannot be set."""
    from agentpar.memory.store.postgres import PostgresStore

    server: Postgres = request.getfixturevalue(kind)
    url = server.new_database()

    @settings(
        deadline=None, max_examples=15, suppress_health_check=list(HealthCheck), database=None
    )
    @given(todo=steps())
    def answers(todo: list[tuple[Any, ...]]) -> None:
        store = PostgresStore(url)
        store.open()
        try:
            check(store, None, [step for step in todo if step[0] != "wait"])
        finally:
            with store._writing() as execute:
                execute("DROP SCHEMA public CASCADE")
                execute("CREATE SCHEMA public")
            store.close()

    answers()
