"""What a bank costs: the nearest 8 of so many entries, puts a second, and eight processes at once.

    python bench/memory_store.py [--entries N ...] [--postgres URL] [--processes N] [--save]

Ours beside LangGraph's InMemoryStore and SqliteStore, in one run and on the same vectors (256
numbers, drawn with a seed), which every store is handed ready-made: no model is measured. A store
is filled, then puts are timed one by one on the full store, then queries until there are 200 or 20
seconds are over (10 at least). "found" is the share of the true nearest 8 that it gave. One BLAS
thread. Files lie below the current directory, as disks differ; the tables of a bank in the database
at the URL are dropped before and after.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import re
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = "1"

import machine_facts
import numpy as np

from agentpar.memory.entry import Entry, Producer
from agentpar.memory.store import Store, open_store

DIMENSION, K = 256, 8
TIMED = 500
"""Puts that are timed."""
TEXT = "Lima is the capital of Peru and has about ten million inhabitants. " * 8


@dataclass(frozen=True, slots=True)
class Bench:
    """A store as the benchmark sees it: texts of numbers in, numbers out."""

    fill: Callable[[range], None]
    put: Callable[[int], None]
    nearest: Callable[[Any], list[int]]


def entry(n: int, run: str = "run") -> Entry:
    return Entry(
        f"{n:064x}",
        "bench",
        f"{n:064x}",
        f"{n:064x}",
        "web_lookup",
        {"subject": str(n), "fact": "population"},
        f"web_lookup: {n}, population",
        {"url": f"https://site.example/{n}", "text": TEXT},
        (f"https://site.example/{n}",),
        Producer(run, n, 1),
    )


@contextmanager
def ours(url: str, vectors: Any) -> Iterator[Bench]:
    with closing(open_store(url, max_entries=None)) as store:
        store.open()

        def put(n: int) -> None:
            store.put(entry(n), vectors[n].tolist())

        def fill(numbers: range) -> None:
            for n in numbers:
                put(n)

        def nearest(vector: Any) -> list[int]:
            return [int(one.id, 16) for one, _ in store.nearest("bench", vector.tolist(), K)]

        yield Bench(fill, put, nearest)


@contextmanager
def langgraph(kind: str, folder: Path, vectors: Any, asked: dict[str, Any]) -> Iterator[Bench]:
    from langgraph.store.base import PutOp
    from langgraph.store.memory import InMemoryStore

    def embed(texts: list[str]) -> list[list[float]]:
        # One store hands over the field that it was told to, the other the whole value as JSON,
        # in which that field comes first.
        found = (asked[text] if text in asked else vectors[number_in(text)] for text in texts)
        return [vector.tolist() for vector in found]

    index: Any = {"dims": DIMENSION, "embed": embed, "fields": ["key"]}
    if kind == "InMemoryStore":
        yield from _langgraph(InMemoryStore(index=index), PutOp, asked)
    else:
        from langgraph.store.sqlite import SqliteStore

        path = folder / "langgraph.db"
        connection = loading().connect(path, check_same_thread=False, isolation_level=None)
        with closing(connection):
            store = SqliteStore(connection, index=index)
            store.setup()
            yield from _langgraph(store, PutOp, asked)


def number_in(text: str) -> int:
    match = re.search(r"\d+", text)
    assert match is not None
    return int(match.group())


def loading() -> Any:
    """A sqlite3 that loads extensions, which LangGraph's store needs and many Pythons lack."""
    if hasattr(sqlite3.Connection, "enable_load_extension"):
        return sqlite3
    try:
        return importlib.import_module("pysqlite3")
    except ImportError:
        sys.exit("this Python's sqlite3 loads no extensions: pip install pysqlite3-binary")


def _langgraph(store: Any, put_op: Any, asked: dict[str, Any]) -> Iterator[Bench]:
    def value(n: int) -> dict[str, Any]:
        return {"key": str(n), "url": f"https://site.example/{n}", "text": TEXT}

    def fill(numbers: range) -> None:
        for at in range(0, len(numbers), 500):
            store.batch([put_op(("bench",), str(n), value(n)) for n in numbers[at : at + 500]])

    def put(n: int) -> None:
        store.put(("bench",), str(n), value(n))

    def nearest(vector: Any) -> list[int]:
        asked["query"] = vector
        return [int(item.key) for item in store.search(("bench",), query="query", limit=K)]

    yield Bench(fill, put, nearest)


def measured(bench: Bench, vectors: Any, queries: Any) -> str:
    n = len(vectors)
    bench.fill(range(n - TIMED))
    began = time.perf_counter()
    for number in range(n - TIMED, n):
        bench.put(number)
    rate = TIMED / (time.perf_counter() - began)
    began = time.perf_counter()
    bench.nearest(queries[0])
    first = time.perf_counter() - began
    taken: list[float] = []
    hits = 0
    started = time.perf_counter()
    for query in queries[1:]:
        began = time.perf_counter()
        found = bench.nearest(query)
        taken.append(time.perf_counter() - began)
        true = np.argsort(-(vectors @ query))[:K]
        hits += len(set(found) & set(true.tolist()))
        if len(taken) >= 10 and time.perf_counter() - started > 20:
            break
    p50, p99 = np.percentile(taken, [50, 99]) * 1e3
    share = hits / (K * len(taken))
    return (
        f"{p50:,.2f} | {p99:,.2f} | {len(taken)} | {share:.3f} | {first * 1e3:,.0f} | {rate:,.0f}"
    )


def stores_of(
    folder: Path, vectors: Any, arguments: argparse.Namespace
) -> dict[str, Callable[[], AbstractContextManager[Bench]]]:
    """What is measured, by its name in the table; each is made when its turn comes."""
    asked: dict[str, Any] = {}
    stores = {
        "ours, SQLite": lambda: ours(f"sqlite:///{folder}/bank.db", vectors),
        "LangGraph SqliteStore": lambda: langgraph("SqliteStore", folder, vectors, asked),
        "LangGraph InMemoryStore": lambda: langgraph("InMemoryStore", folder, vectors, asked),
    }
    if arguments.postgres:
        drop(arguments.postgres)
        stores[in_postgres(arguments)] = lambda: ours(arguments.postgres, vectors)
    return stores


def in_postgres(arguments: argparse.Namespace) -> str:
    return "ours, Postgres" + (" + pgvector" if has_pgvector(arguments) else "")


def nearest_table(arguments: argparse.Namespace) -> Iterator[str]:
    yield f"The nearest {K} of entries with {DIMENSION} numbers each."
    yield ""
    yield "| entries | store | p50 ms | p99 ms | queries | found | first query ms | puts/s |"
    yield "|---|---|---|---|---|---|---|---|"
    for n in arguments.entries:
        drawn = np.random.default_rng(n)
        vectors = drawn.standard_normal((n, DIMENSION), np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        # Near one of them each, as a question is near a call that answers it.
        queries = vectors[drawn.integers(0, n, 201)]
        queries = queries + 0.5 * drawn.standard_normal(queries.shape, np.float32) / 16
        queries = (queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float32)
        with tempfile.TemporaryDirectory(dir=".") as name:
            folder = Path(name).resolve()
            stores = stores_of(folder, vectors, arguments)
            for label, make in stores.items():
                with make() as bench:
                    yield f"| {n:,} | {label} | {measured(bench, vectors, queries)} |"
            if arguments.postgres:
                drop(arguments.postgres)


COMMON, OWN = 200, 100


def writer(url: str, number: int, ready: Any, results: Any) -> None:
    """Propose what all propose, and what only this one does."""
    store: Store
    with closing(open_store(url)) as store:
        store.open()
        todo = np.random.default_rng(number).permutation(
            [*range(COMMON), *range(number * 10_000, number * 10_000 + OWN)]
        )
        vectors = np.random.default_rng(0).standard_normal((COMMON + OWN, DIMENSION))
        new, taken = [], []
        ready.wait()
        for at, n in enumerate(todo.tolist()):
            began = time.perf_counter()
            if store.put(entry(n, f"run{number}"), vectors[at].tolist()).new:
                new.append(n)
            taken.append(time.perf_counter() - began)
    results.put((new, taken))


def writers_table(arguments: argparse.Namespace) -> Iterator[str]:
    many = arguments.processes
    yield f"{many} processes at once, each with {COMMON} entries that all propose and {OWN} of its"
    yield 'own. "lost": entries that are not there; "doubled": new to more than one process.'
    yield ""
    yield "| store | puts/s | p50 ms | p99 ms | lost | doubled |"
    yield "|---|---|---|---|---|---|"
    with tempfile.TemporaryDirectory(dir=".") as name:
        urls = {"ours, SQLite": f"sqlite:///{Path(name).resolve()}/bank.db"}
        if arguments.postgres:
            drop(arguments.postgres)
            urls[in_postgres(arguments)] = arguments.postgres
        for label, url in urls.items():
            yield f"| {label} | {at_once(url, many)} |"
        if arguments.postgres:
            drop(arguments.postgres)


def at_once(url: str, many: int) -> str:
    spawn = multiprocessing.get_context("spawn")
    ready, results = spawn.Barrier(many + 1), spawn.Queue()
    processes = [
        spawn.Process(target=writer, args=(url, number, ready, results))
        for number in range(1, many + 1)
    ]
    for process in processes:
        process.start()
    ready.wait()
    began = time.perf_counter()
    found = [results.get() for _ in processes]
    wall = time.perf_counter() - began
    for process in processes:
        process.join()
    new = sorted(n for each, _ in found for n in each)
    wanted = {*range(COMMON)}
    for number in range(1, many + 1):
        wanted |= {*range(number * 10_000, number * 10_000 + OWN)}
    with closing(open_store(url)) as store:
        store.open()
        there = [int(one.id, 16) for one in store.entries()]
        lost = len(wanted - set(there))
        lost += sum(len(store.producers(f"{n:064x}")) != many for n in range(COMMON))
        doubled = len(new) - len(set(new)) + len(there) - len(set(there))
    taken = [seconds for _, each in found for seconds in each]
    p50, p99 = np.percentile(taken, [50, 99]) * 1e3
    return f"{len(taken) / wall:,.0f} | {p50:.2f} | {p99:.1f} | {lost} | {doubled}"


def has_pgvector(arguments: argparse.Namespace) -> bool:
    import psycopg

    with psycopg.connect(arguments.postgres) as connection:
        query = "SELECT 1 FROM pg_available_extensions WHERE name = 'vector'"
        return connection.execute(query).fetchone() is not None


def drop(url: str) -> None:
    import psycopg

    names = "vectors leases runs readings revoked parents sources producers entries meta".split()
    with psycopg.connect(url) as connection:
        for name in names:
            connection.execute(f"DROP TABLE IF EXISTS agentpar_bank_{name}")  # type: ignore[call-overload]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--entries", type=int, nargs="+", default=[1_000, 100_000])
    parser.add_argument("--postgres", metavar="URL", help="of a database that may be written to")
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--save", action="store_true", help="write results/memory_store.md")
    arguments = parser.parse_args()
    if min(arguments.entries) <= TIMED:
        parser.error(f"--entries: above {TIMED}, as that many are put one by one and timed")
    packages = ["numpy", "langgraph", "langgraph-checkpoint-sqlite"]
    packages += ["psycopg"] if arguments.postgres else []
    report = [*machine_facts.lines(packages), ""]
    for line in report:
        sys.stdout.write(line + "\n")
    for table in (nearest_table, writers_table):
        for line in table(arguments):
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
            report.append(line)
        sys.stdout.write("\n")
        report.append("")
    if arguments.save:
        machine_facts.save("memory_store", "What a bank costs", report[:-1])


if __name__ == "__main__":
    main()
