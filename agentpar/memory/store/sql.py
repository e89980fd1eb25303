"""What every database does alike for a bank: its rows, in SQL that all of them know.

It must never know which database that is, or how one connects to it. What differs (time, locks,
where the key of the seals lies, how the nearest are found) is for `sqlite` and `postgres` to say.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from agentpar.errors import BankError, UsageError
from agentpar.ids import question_run
from agentpar.memory.entry import Entry, Lease, Producer, Reading, Revocation
from agentpar.memory.store.base import Put, Statistics
from agentpar.memory.store.rows import (
    COLUMNS,
    Row,
    Seals,
    body_of,
    check_size,
    escaped,
    literal,
    packed,
    plain,
)

VERSION = 1
"""Of the tables; a bank of another one is not touched."""

Execute = Callable[..., Any]
"""``execute(statement, *parameters)`` gives a DB-API cursor. Tables are named with the prefix
``agentpar_bank_`` and a parameter is ``?``, whatever the database has in their place."""

_PAGE = 200
"""Rows that are read at once."""
_STANDS = "revoked = 0 AND (expires IS NULL OR expires > ?)"


class SqlStore(ABC):
    """Most of a `Store`.

    An entry of more than ``max_entry_bytes`` is refused, and so is a new one of a run that has
    brought ``max_entries`` of them (None: no limit). ``tell`` is told of each row that is not
    ours, once, in words.
    """

    place: str

    def __init__(
        self,
        *,
        max_entry_bytes: int = 200_000,
        max_entries: int | None = 10_000,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self._max_bytes = max_entry_bytes
        self._max_entries = max_entries
        self._tell_of = tell
        self._told_of: set[str] = set()
        self._seals = Seals()

    @abstractmethod
    def open(self) -> None: ...

    @abstractmethod
    def close(self) -> None: ...

    @abstractmethod
    def _reading(self) -> AbstractContextManager[Execute]:
        """A look at the database; errors in our words."""

    @abstractmethod
    def _writing(self, *, durable: bool = False) -> AbstractContextManager[Execute]:
        """One transaction: what is read in it still holds at its end. ``durable``: it is on disk
        by then, whatever happens to the power."""

    @abstractmethod
    def _time(self, execute: Execute) -> float:
        """Seconds since the epoch by the store's clock."""

    @abstractmethod
    def nearest(
        self, namespace: str, vector: Sequence[float], k: int
    ) -> list[tuple[Entry, float]]: ...

    def now(self) -> float:
        with self._reading() as execute:
            return self._time(execute)

    # Entries

    def put(self, entry: Entry, vector: Sequence[float] | None = None) -> Put:
        body, numbers = body_of(entry), packed(vector)
        size = len(body.encode())
        if size > self._max_bytes:
            raise BankError(
                f"the result of {entry.question!r} is an entry of {size:,} bytes, and the bank "
                f"{self.place} takes {self._max_bytes:,} at most: it is not kept"
            )
        with self._writing() as execute:
            number, dimension, now = self._next(execute)
            if numbers is not None:
                check_size(numbers, dimension)
                if not dimension:
                    self._set_dimension(execute, len(numbers) // 4)
            row = self._row(execute, entry.id)
            new = (
                row is None
                or not row.is_ours(self._seals)
                or (not row.revoked and not row.stands(now))
            )
            if new:
                self._count(execute, entry.producer.run_id)
                if row is not None:  # it has expired, or another program has changed it
                    execute("DELETE FROM agentpar_bank_entries WHERE seq = ?", row.seq)
                row = self._insert(execute, entry, body, numbers, number, now)
            else:
                assert row is not None
                row = self._merge(execute, row, entry, numbers, number)
            self._keep_origin(execute, entry, number)
            why = self._withdrawn(execute, [entry.id, *entry.parents])
            if why is not None and not row.revoked:
                self._withdraw(execute, [entry.id], why, number, now)
                row = replace(row, revoked=True)
        return Put(row.entry(), new, row.revoked)

    def trace(self, entry: Entry) -> bool:
        with self._writing() as execute:
            number, _, now = self._next(execute)
            self._keep_origin(execute, entry, number)
            why = self._withdrawn(execute, [entry.id, *entry.parents])
            if why is not None:
                self._withdraw(execute, [entry.id], why, number, now)
        return why is None

    def _row(self, execute: Execute, id: str) -> Row | None:
        found = execute(f"SELECT {COLUMNS} FROM agentpar_bank_entries WHERE id = ?", id).fetchone()
        return None if found is None else Row.of(found)

    def _insert(
        self,
        execute: Execute,
        entry: Entry,
        body: str,
        vector: bytes | None,
        number: int,
        now: float,
    ) -> Row:
        row = Row(
            number,
            entry.id,
            escaped(entry.namespace),
            entry.key,
            entry.like,
            vector,
            body,
            now,
            None if entry.expires is None else float(entry.expires),
            False,
            "",
        )
        row = replace(row, seal=row.sealed(self._seals))
        execute(
            f"INSERT INTO agentpar_bank_entries ({COLUMNS}, size, changed)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            *(row.seq, row.id, row.namespace, row.key, row.likeness, row.vector, row.body),
            *(row.created, row.expires, int(row.revoked), row.seal, len(body.encode()), number),
        )
        self._index(execute, row)
        return row

    def _merge(
        self, execute: Execute, row: Row, entry: Entry, vector: bytes | None, number: int
    ) -> Row:
        """It lives as long as the one that lives longest, and may be shown if one may."""
        merged = row
        if row.expires is not None and (entry.expires is None or entry.expires > row.expires):
            merged = replace(merged, expires=entry.expires)
        if row.vector is None and vector is not None:
            merged = replace(merged, vector=vector)
        if entry.literal and not row.entry().literal:
            merged = replace(merged, body=literal(merged.body))
        if merged is not row:
            merged = replace(merged, seal=merged.sealed(self._seals))
            execute(
                "UPDATE agentpar_bank_entries SET vector = ?, body = ?, expires = ?, seal = ?,"
                " changed = ? WHERE seq = ?",
                *(merged.vector, merged.body, merged.expires, merged.seal, number, row.seq),
            )
            self._index(execute, merged)
        return merged

    @abstractmethod
    def _index(self, execute: Execute, row: Row) -> None:
        """Tell those who look for the nearest of ``row``, which is new or has changed."""

    def _keep_origin(self, execute: Execute, entry: Entry, number: int) -> None:
        """Where it comes from. This stays when the entry is gone: answers were made of it."""
        run, task, team = entry.producer.run_id, entry.producer.task_id, entry.producer.team
        execute(
            "INSERT INTO agentpar_bank_producers (entry, run, task, team, number, seal)"
            " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (entry, run, task) DO NOTHING",
            *(
                entry.id,
                escaped(run),
                task,
                team,
                number,
                self._producer(entry.id, run, task, team),
            ),
        )
        for source in dict.fromkeys(entry.sources):
            execute(
                "INSERT INTO agentpar_bank_sources (entry, source) VALUES (?, ?)"
                " ON CONFLICT (source, entry) DO NOTHING",
                *(entry.id, escaped(source)),
            )
        for parent in dict.fromkeys(entry.parents):
            execute(
                "INSERT INTO agentpar_bank_parents (entry, parent) VALUES (?, ?)"
                " ON CONFLICT (parent, entry) DO NOTHING",
                *(entry.id, escaped(parent)),
            )

    def _count(self, execute: Execute, run: str) -> None:
        """One more new entry of ``run``."""
        if self._max_entries is None:
            return
        done = execute(
            "INSERT INTO agentpar_bank_runs (run, entries) VALUES (?, 1) ON CONFLICT (run)"
            " DO UPDATE SET entries = agentpar_bank_runs.entries + 1"
            " WHERE agentpar_bank_runs.entries < ?",
            *(escaped(run), self._max_entries),
        )
        if done.rowcount != 1:
            raise BankError(
                f"run {run!r} has brought {self._max_entries:,} entries to the bank {self.place}, "
                "which is all that one run may: what it finds from now on is not kept"
            )

    def find(self, namespace: str, key: str, like: str) -> Entry | None:
        with self._reading() as execute:
            now = self._time(execute)
            for column, wanted in (("key", key), ("likeness", like)):
                rows = execute(
                    f"SELECT {COLUMNS} FROM agentpar_bank_entries WHERE namespace = ?"
                    f" AND {column} = ? AND {_STANDS} ORDER BY seq DESC LIMIT {_PAGE}",
                    *(escaped(namespace), wanted, now),
                )
                for row in map(Row.of, rows):
                    if self._believed(row):
                        return row.entry()
        return None

    def entries(self, namespace: str | None = None, *, revoked: bool = False) -> Iterator[Entry]:
        seq = 0
        while True:
            with self._reading() as execute:
                now = self._time(execute)
                rows = execute(
                    f"SELECT {COLUMNS} FROM agentpar_bank_entries WHERE seq > ? AND revoked = ?"
                    + ("" if namespace is None else " AND namespace = ?")
                    + f" ORDER BY seq LIMIT {_PAGE}",
                    *(seq, int(revoked), *([] if namespace is None else [escaped(namespace)])),
                ).fetchall()
            for row in map(Row.of, rows):
                if self._believed(row) and (revoked or row.stands(now)):
                    yield row.entry()
            if len(rows) < _PAGE:
                return
            seq = rows[-1][0]

    def remove_expired(self) -> int:
        with self._writing() as execute:
            now = self._time(execute)
            execute("DELETE FROM agentpar_bank_leases WHERE until <= ?", now - 86_400)
            done = execute("DELETE FROM agentpar_bank_entries WHERE expires <= ?", now)
            return int(done.rowcount)

    def _believed(self, row: Row) -> bool:
        """Whether ``row`` is ours; of one that is not is told."""
        if row.is_ours(self._seals):
            return True
        if row.id not in self._told_of and self._tell_of is not None:
            self._tell_of(
                f"entry {row.id} of the bank {self.place} was changed by another program (its "
                "seal does not hold): it is not used"
            )
        self._told_of.add(row.id)
        return False

    # The ledger

    def used(self, reading: Reading) -> None:
        with self._writing() as execute:
            number, _, now = self._next(execute)
            reading = replace(reading, at=now)
            row = self._row(execute, reading.entry_id)
            execute(
                "INSERT INTO agentpar_bank_readings (entry, run, task, team, spared_seconds,"
                " spared_tokens, context_tokens, at, namespace, seal, number)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                *(reading.entry_id, escaped(reading.run_id), reading.task_id, reading.team),
                *(reading.spared_seconds, reading.spared_tokens, reading.context_tokens),
                *(reading.at, "" if row is None else row.namespace, self._read(reading), number),
            )

    def readings(self, entry_id: str | None = None) -> list[Reading]:
        with self._reading() as execute:
            rows = execute(
                f"SELECT {_READING}, seal FROM agentpar_bank_readings"
                + ("" if entry_id is None else " WHERE entry = ?")
                + " ORDER BY number",
                *([] if entry_id is None else [entry_id]),
            ).fetchall()
        found = [(_reading_of(row), row[-1]) for row in rows]
        return [one for one, seal in found if self._seals.hold(seal, self._read(one))]

    def producers(self, entry_id: str) -> list[tuple[str, int, int]]:
        with self._reading() as execute:
            rows = execute(
                "SELECT run, task, team, seal FROM agentpar_bank_producers WHERE entry = ?"
                " ORDER BY number",
                entry_id,
            ).fetchall()
        found = [(plain(run), int(task), int(team), seal) for run, task, team, seal in rows]
        return [
            (run, task, team)
            for run, task, team, seal in found
            if self._seals.hold(seal, self._producer(entry_id, run, task, team))
        ]

    def _producer(self, entry: str, run: str, task: int, team: int) -> str:
        return self._seals.of(
            "producer", entry, run.encode("utf-8", "surrogatepass"), f"{task}.{team}"
        )

    def _read(self, reading: Reading) -> str:
        run = reading.run_id.encode("utf-8", "surrogatepass")
        spared = (reading.spared_seconds, reading.spared_tokens, reading.context_tokens)
        rest = repr((reading.task_id, reading.team, *map(float, spared), float(reading.at)))
        return self._seals.of("reading", reading.entry_id, run, rest)

    # Revocation

    def revoke(self, source: str, why: str = "", *, dry_run: bool = False) -> Revocation:
        if not source:
            raise UsageError("say what to revoke: an address, an entry's id or a run's")
        with contextlib.suppress(_Undo), self._writing(durable=True) as execute:
            number, _, now = self._next(execute)
            entries = self._withdraw(execute, self._of_source(execute, source), why, number, now)
            touched = self._touched(execute, entries)
            if dry_run:
                raise _Undo
        answers = dict.fromkeys(question_run(run, team) for run, team in touched)
        runs = dict.fromkeys(run for run, _ in touched)
        return Revocation(tuple(entries), tuple(answers), tuple(runs), why)

    def _of_source(self, execute: Execute, source: str) -> list[str]:
        """The entries that come from ``source``."""
        text = escaped(source)
        queries = [
            ("SELECT entry FROM agentpar_bank_sources WHERE source = ?", [text]),
            ("SELECT entry FROM agentpar_bank_producers WHERE entry = ?", [text]),
            # A run, and those of its teams, but not another whose name begins like it.
            ("SELECT entry FROM agentpar_bank_producers WHERE run = ?", [text]),
            (
                "SELECT entry FROM agentpar_bank_producers WHERE run >= ? AND run < ?"
                " AND team > 0 AND run = ? || CAST(team AS TEXT)",
                [f"{text}.", f"{text}/", f"{text}."],
            ),
        ]
        for start in _beginnings(source):
            start = escaped(start)
            queries.append(
                (
                    "SELECT entry FROM agentpar_bank_sources WHERE source >= ? AND source < ?",
                    [start, start[:-1] + chr(ord(start[-1]) + 1)],
                )
            )
        found = (
            entry for query, given in queries for (entry,) in execute(query, *given).fetchall()
        )
        return list(dict.fromkeys(found))

    def _withdrawn(self, execute: Execute, ids: Sequence[str]) -> str | None:
        """Why one of ``ids`` is withdrawn, if one is."""
        for some in _some(ids):
            row = execute(
                f"SELECT why FROM agentpar_bank_revoked WHERE entry IN ({_marks(some)})", *some
            ).fetchone()
            if row is not None:
                return plain(row[0])
        return None

    def _withdraw(
        self, execute: Execute, ids: Collection[str], why: str, number: int, now: float
    ) -> list[str]:
        """Withdraw ``ids`` and all that was made of them; those that others were made of first."""
        made: dict[str, list[str]] = {}
        fresh = list(ids)
        while fresh:
            made.update((id, []) for id in fresh)
            found = []
            for some in _some(fresh):
                found += execute(
                    "SELECT parent, entry FROM agentpar_bank_parents"
                    f" WHERE parent IN ({_marks(some)}) ORDER BY entry",
                    *some,
                ).fetchall()
            for parent, child in found:
                made[parent].append(child)
            fresh = list(dict.fromkeys(child for _, child in found if child not in made))
        order = _parents_first(made)
        for id in order:
            execute(
                "INSERT INTO agentpar_bank_revoked (entry, why, at) VALUES (?, ?, ?)"
                " ON CONFLICT (entry) DO NOTHING",
                *(id, escaped(why), now),
            )
            row = self._row(execute, id)
            if row is not None and not row.revoked:
                gone = replace(row, revoked=True)
                seal = gone.sealed(self._seals) if row.is_ours(self._seals) else row.seal
                execute(
                    "UPDATE agentpar_bank_entries SET revoked = 1, seal = ?, changed = ?"
                    " WHERE seq = ?",
                    *(seal, number, row.seq),
                )
                self._index(execute, gone)
        return order

    def _touched(self, execute: Execute, ids: Sequence[str]) -> list[tuple[str, int]]:
        """The runs that have brought or used any of ``ids``, each with the number of its team, in
        the order in which they did."""
        first: dict[tuple[str, int], int] = {}
        for some in _some(ids):
            for table in ("producers", "readings"):
                rows = execute(
                    f"SELECT run, team, min(number) FROM agentpar_bank_{table}"
                    f" WHERE entry IN ({_marks(some)}) GROUP BY run, team",
                    *some,
                ).fetchall()
                for run, team, number in rows:
                    first[run, team] = min(number, first.get((run, team), number))
        return [(plain(run), team) for run, team in sorted(first, key=first.__getitem__)]

    # Leases

    def lease(
        self, namespace: str, like: str, run_id: str, task_id: int, team: int, seconds: float
    ) -> Lease:
        space, holder = escaped(namespace), Producer(run_id, task_id, team)
        with self._reading() as execute:  # whoever waits looks often, and should block nobody
            held = self._held(execute, namespace, like, self._time(execute))
        if held is not None and held.holder != holder:
            return held
        with self._writing() as execute:
            fence, _, now = self._next(execute)  # of the whole bank: it grows for each ``like``
            held = self._held(execute, namespace, like, now)
            if held is not None and held.holder != holder:
                return held
            execute(
                "DELETE FROM agentpar_bank_leases WHERE namespace = ? AND likeness = ?", space, like
            )
            execute(
                "INSERT INTO agentpar_bank_leases (namespace, likeness, run, task, team, fence,"
                " until) VALUES (?, ?, ?, ?, ?, ?, ?)",
                *(space, like, escaped(run_id), task_id, team, fence, now + seconds),
            )
        return Lease(namespace, like, holder, fence, now + seconds)

    def _held(self, execute: Execute, namespace: str, like: str, now: float) -> Lease | None:
        row = execute(
            "SELECT run, task, team, fence, until FROM agentpar_bank_leases"
            " WHERE namespace = ? AND likeness = ? AND until > ?",
            *(escaped(namespace), like, now),
        ).fetchone()
        if row is None:
            return None
        run, task, team, fence, until = row
        return Lease(namespace, like, Producer(plain(run), task, team), fence, until)

    def renew(self, lease: Lease, seconds: float) -> Lease | None:
        with self._writing() as execute:
            until = self._time(execute) + seconds
            done = execute(
                "UPDATE agentpar_bank_leases SET until = ?"
                " WHERE namespace = ? AND likeness = ? AND fence = ?",
                *(until, escaped(lease.namespace), lease.like, lease.fence),
            )
            return replace(lease, until=until) if done.rowcount == 1 else None

    def release(self, lease: Lease) -> bool:
        with self._writing() as execute:
            done = execute(
                "DELETE FROM agentpar_bank_leases"
                " WHERE namespace = ? AND likeness = ? AND fence = ?",
                *(escaped(lease.namespace), lease.like, lease.fence),
            )
            return bool(done.rowcount == 1)

    # At a glance

    def statistics(self, namespace: str | None = None) -> Statistics:
        where, given = (
            ("1 = 1", []) if namespace is None else ("namespace = ?", [escaped(namespace)])
        )
        with self._reading() as execute:
            now = self._time(execute)
            entries, size = execute(
                "SELECT count(*), coalesce(sum(size), 0) FROM agentpar_bank_entries"
                f" WHERE {where} AND {_STANDS}",
                *(*given, now),
            ).fetchone()
            (revoked,) = execute(
                f"SELECT count(*) FROM agentpar_bank_entries WHERE {where} AND revoked = 1", *given
            ).fetchone()
            (leases,) = execute(
                f"SELECT count(*) FROM agentpar_bank_leases WHERE {where} AND until > ?",
                *(*given, now),
            ).fetchone()
            rows = execute(
                f"SELECT {_READING}, seal FROM agentpar_bank_readings WHERE {where}", *given
            ).fetchall()
            refused = 0
            if self._seals.key is not None:
                every = execute(
                    f"SELECT {COLUMNS}, size FROM agentpar_bank_entries WHERE {where}", *given
                )
                for found in every:
                    row = Row.of(found[:-1])
                    if not self._believed(row):
                        refused += 1
                        revoked -= row.revoked
                        if row.stands(now):
                            entries, size = entries - 1, size - found[-1]
        read = [
            one for row in rows if self._seals.hold(row[-1], self._read(one := _reading_of(row)))
        ]
        return Statistics(
            entries=int(entries),
            revoked=int(revoked),
            readings=len(read),
            leases=int(leases),
            bytes=int(size),
            spared_seconds=float(sum(one.spared_seconds for one in read)),
            spared_tokens=int(sum(one.spared_tokens for one in read)),
            refused=refused + len(rows) - len(read),
        )

    # What is said once for the whole bank

    @abstractmethod
    def _next(self, execute: Execute) -> tuple[int, int, float]:
        """A number larger than all before it, how long vectors are (0: there is none yet), and
        the time. Nobody else has a number until the transaction ends, so what is written under
        one is seen in the order of the numbers."""

    def _set_dimension(self, execute: Execute, dimension: int) -> None:
        execute("UPDATE agentpar_bank_meta SET dimension = ?", dimension)

    def _dimension(self, execute: Execute) -> int:
        return int(execute("SELECT dimension FROM agentpar_bank_meta").fetchone()[0])


class _Undo(Exception):
    """Inside this file: what a transaction did was only to be looked at."""


_READING = "entry, run, task, team, spared_seconds, spared_tokens, context_tokens, at"


def _reading_of(row: Sequence[Any]) -> Reading:
    return Reading(row[0], plain(row[1]), *row[2:8])


def _beginnings(source: str) -> Iterator[str]:
    """What the addresses that begin with ``source`` begin with. A host is meant as a whole: that
    of another, longer name is not withdrawn with it."""
    try:
        parts = urlsplit(source)
    except ValueError:
        return
    if not (parts.scheme and parts.netloc):
        return
    if source.rstrip("/") != source or source != f"{parts.scheme}://{parts.netloc}":
        yield source
    else:
        yield from (source + mark for mark in ("/", "?", "#", ":"))


def _parents_first(children: dict[str, list[str]]) -> list[str]:
    """The names in ``children``, each after all that it was made of (circles are cut)."""
    order: list[str] = []
    seen: set[str] = set()
    for start in children:
        if start in seen:
            continue
        seen.add(start)
        path = [(start, iter(children[start]))]
        while path:
            id, left = path[-1]
            child = next((one for one in left if one not in seen), None)
            if child is None:
                order.append(id)
                path.pop()
            else:
                seen.add(child)
                path.append((child, iter(children[child])))
    return order[::-1]


def _some(ids: Sequence[str]) -> Iterable[Sequence[str]]:
    """``ids`` in parts that one statement takes."""
    return (ids[at : at + 500] for at in range(0, len(ids), 500))


def _marks(ids: Sequence[str]) -> str:
    return ", ".join("?" * len(ids))
