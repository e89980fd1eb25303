"""What is overwritten: items under a namespace and a key, in tables of their own beside a bank's.

An entry of the bank is a finding and never changes; an item is a place, where the last write
counts, as LangGraph's stores have it. It must never know LangGraph, nor how a text became a vector.

All blocks. Whoever calls it holds a `batch`, which is one transaction. What differs between
databases is in `items_sqlite` and `items_postgres`.
"""

from __future__ import annotations

import json
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Literal, NamedTuple

from agentpar.errors import BankError, MissingPackage, UsageError

Namespace = tuple[str, ...]

VERSION = "1"
_ALL = 2**62
_CHUNK = 64  # items read at once while a search goes down its ranking


@dataclass(frozen=True, slots=True)
class Item:
    """``created`` and ``updated`` are seconds since the epoch; ``score`` is the cosine of its
    nearest text to what was searched for, None where none of it was embedded."""

    id: int
    namespace: Namespace
    key: str
    value: dict[str, Any]
    created: float
    updated: float
    score: float | None = None


class Match(NamedTuple):
    """Labels at one end of a namespace; ``"*"`` stands for any one label."""

    end: Literal["prefix", "suffix"]
    path: Sequence[str]


# Pure


def matches(value: Any, wanted: Any) -> bool:
    """Whether ``value`` is as a filter wants it: equal, or, part by part, in its operators.

    A value that is absent counts as None. What cannot be compared by size does not match.
    Raises `ValueError` for an unknown operator.
    """
    match wanted:
        case Mapping() if any(str(name).startswith("$") for name in wanted):
            return all(_compares(value, name, other) for name, other in wanted.items())
        case Mapping():
            return isinstance(value, Mapping) and all(
                matches(value.get(name), part) for name, part in wanted.items()
            )
        case list() | tuple():
            return (
                isinstance(value, list | tuple)
                and len(value) == len(wanted)
                and all(map(matches, value, wanted))
            )
        case _:
            return bool(value == wanted)


def _compares(value: Any, operator: str, other: Any) -> bool:
    match operator:
        case "$eq":
            return bool(value == other)
        case "$ne":
            return bool(value != other)
        case "$gt" | "$gte" | "$lt" | "$lte":
            order = _order(value, other)
        case _:
            raise ValueError(
                f"Unsupported operator: {operator}; there are $eq, $ne, $gt, $gte, $lt, $lte"
            )
    if order is None:
        return False
    if order == 0:
        return operator in ("$gte", "$lte")
    return order > 0 if operator in ("$gt", "$gte") else order < 0


def _order(a: Any, b: Any) -> int | None:
    """-1, 0 or 1 as ``a`` is less than, equal to or more than ``b``: as numbers where both are,
    also in text, else as texts. None where they are neither."""
    try:
        x, y = float(a), float(b)
    except (TypeError, ValueError, OverflowError):
        if isinstance(a, str) and isinstance(b, str):
            return (a > b) - (a < b)
        return None
    return None if x != x or y != y else (x > y) - (x < y)


def fits(namespace: Namespace, match: Match) -> bool:
    """Whether a namespace begins, or ends, as ``match`` says."""
    count = len(match.path)
    if count > len(namespace):
        return False
    part = namespace[:count] if match.end == "prefix" else namespace[len(namespace) - count :]
    return all(wanted in ("*", label) for wanted, label in zip(match.path, part, strict=True))


def _joined(namespace: Namespace) -> str:
    return ".".join(namespace)


def _parted(text: str) -> Namespace:
    return tuple(text.split(".")) if text else ()


def _below(prefix: Namespace) -> tuple[str, list[Any]]:
    """SQL for ``prefix`` and all namespaces below it. "/" comes right after the dot."""
    if not prefix:
        return "1 = 1", []
    path = _joined(prefix)
    return "(namespace = ? OR (namespace >= ? AND namespace < ?))", [path, f"{path}.", f"{path}/"]


# At the rim


class Items(ABC):
    """Items in one database, for many processes at once; which one, a subclass says.

    ``omit_expired``: what has expired is not there any more, even before it is swept out.
    ``clock`` gives seconds since the epoch. Raises `BankError` where the database is damaged, of
    another version or cannot be written.
    """

    place: str
    """Which database this is, in words; without credentials."""

    def __init__(self, *, omit_expired: bool = False, clock: Callable[[], float] | None = None):
        self._omit_expired = omit_expired
        self._clock = clock
        self._lock = threading.RLock()  # over the connection and the mirror
        self._mirror = _Mirror()

    @abstractmethod
    def open(self) -> None:
        """Connect, and make what is missing. Again after `close`."""

    @abstractmethod
    def close(self) -> None: ...

    @abstractmethod
    def batch(self, *, writes: bool) -> AbstractContextManager[None]:
        """One transaction around what is done inside, which sees one state of all items. Of those
        that write there is one at a time."""

    @abstractmethod
    def _look(self, *, writes: bool = False) -> AbstractContextManager[None]:
        """For what may be asked within a batch or by itself."""

    @abstractmethod
    def _execute(self, sql: str, values: Sequence[Any] = ()) -> Any:
        """A DB-API cursor; a parameter is ``?``."""

    def _now(self) -> float:
        """Seconds since the epoch."""
        return time.time() if self._clock is None else self._clock()

    def _check_version(self) -> None:
        version = self.meta("version") or self._first_meta("version", VERSION)
        if version != VERSION:
            raise BankError(
                f"{self.place}: its LangGraph items are of version {version}, this agentpar reads "
                f"version {VERSION}: update agentpar, or name another bank"
            )

    def get(self, namespace: Namespace, key: str) -> Item | None:
        where, values = self._alive()
        rows = self._execute(
            f"SELECT {_COLUMNS} FROM langgraph_items WHERE namespace = ? AND key = ? AND {where}",
            [_joined(namespace), key, *values],
        )
        return next(map(_item, rows), None)

    def put(
        self,
        namespace: Namespace,
        key: str,
        value: str,
        vectors: Iterable[Sequence[float]] = (),
        *,
        ttl: float | None = None,
    ) -> None:
        """Keep ``value``, which is JSON, in place of what was there; ``ttl`` is in seconds. The
        time of creation stays that of the first."""
        now = self._now()
        expires = None if ttl is None else now + ttl
        path = _joined(namespace)
        [(id,)] = self._execute(
            "INSERT INTO langgraph_items (namespace, key, value, created, updated, expires, ttl) "
            "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (namespace, key) DO UPDATE SET "
            "value = excluded.value, updated = excluded.updated, expires = excluded.expires, "
            "ttl = excluded.ttl RETURNING id",
            [path, key, value, now, now, expires, ttl],
        ).fetchall()
        self._execute("DELETE FROM langgraph_vectors WHERE item = ?", [id])
        for vector in vectors:
            self._execute(
                "INSERT INTO langgraph_vectors (item, namespace, vector) VALUES (?, ?, ?)",
                [id, path, _packed(vector)],
            )

    def delete(self, namespace: Namespace, key: str) -> None:
        self._remove("namespace = ? AND key = ?", [_joined(namespace), key])

    def sweep(self) -> int:
        """Remove what has expired; how many items that were."""
        return self._remove("expires <= ?", [self._now()])

    def search(
        self,
        prefix: Namespace,
        wanted: Mapping[str, Any] | None = None,
        *,
        near: Sequence[float] | None = None,
        limit: int = 10,
        offset: int = 0,
    ) -> list[Item]:
        """Items in and below ``prefix`` that are as ``wanted`` says: those with texts nearest to
        ``near`` first and those without any last; without ``near`` the latest first."""
        if limit < 0 or offset < 0:
            raise UsageError(f"search: limit {limit} and offset {offset} must not be below 0")
        prefix = tuple(prefix)
        where, values = _below(prefix)
        alive, times = self._alive()
        where, values = f"{where} AND {alive}", [*values, *times]
        if near is None:
            found = self._latest(where, values, limit + offset if not wanted else _ALL)
        else:
            plain = f"{where} AND id NOT IN (SELECT item FROM langgraph_vectors)"
            found = chain(
                self._nearest(prefix, near, alive, times), self._latest(plain, values, _ALL)
            )
        if wanted:
            found = (item for item in found if matches(item.value, wanted))
        return list(islice(found, offset, offset + limit))

    def namespaces(
        self, conditions: Iterable[Match] = (), depth: int | None = None
    ) -> list[Namespace]:
        """Each namespace that fits all ``conditions``, cut to ``depth`` labels, in order."""
        where, values = self._alive()
        rows = self._execute(
            f"SELECT DISTINCT namespace FROM langgraph_items WHERE {where}", values
        )
        conditions = list(conditions)
        found = {_parted(text) for (text,) in rows}
        fitting = {name for name in found if all(fits(name, match) for match in conditions)}
        return sorted({name[:depth] for name in fitting})

    def touch(self, items: Iterable[Item]) -> None:
        """Move the end of ``items`` that have one: they were read."""
        ids = [item.id for item in items]
        for at in range(0, len(ids), _CHUNK):
            part = ids[at : at + _CHUNK]
            self._execute(
                "UPDATE langgraph_items SET expires = ? + ttl "
                f"WHERE ttl IS NOT NULL AND id IN ({_marks(part)})",
                [self._now(), *part],
            )

    def any_expires(self) -> bool:
        """Whether reading may have to write, as an item has an end."""
        with self._look():
            rows = self._execute("SELECT 1 FROM langgraph_items WHERE expires IS NOT NULL LIMIT 1")
            return rows.fetchone() is not None

    def meta(self, name: str) -> str | None:
        """What was noted under ``name``."""
        with self._look():
            rows = self._execute("SELECT value FROM langgraph_meta WHERE name = ?", [name])
            row = rows.fetchone()
            return None if row is None else str(row[0])

    def agree(self, name: str, value: str) -> str:
        """Note ``value`` under ``name`` unless something stands there; what then stands there."""
        with self._look(writes=True):
            return self.meta(name) or self._first_meta(name, value)

    def _first_meta(self, name: str, value: str) -> str:
        insert = "INSERT INTO langgraph_meta VALUES (?, ?) ON CONFLICT (name) DO NOTHING"
        self._execute(insert, [name, value])
        return self.meta(name) or value

    def _latest(self, where: str, values: Sequence[Any], limit: int) -> Iterator[Item]:
        rows = self._execute(
            f"SELECT {_COLUMNS} FROM langgraph_items WHERE {where} "
            "ORDER BY updated DESC, id DESC LIMIT ?",
            [*values, limit],
        )
        yield from map(_item, rows)

    def _nearest(
        self, prefix: Namespace, near: Sequence[float], alive: str, times: Sequence[Any]
    ) -> Iterator[Item]:
        """All items that have vectors, nearest first, read a few at a time."""
        self._catch_up()
        ranking = self._mirror.ranking(near, lambda text: _parted(text)[: len(prefix)] == prefix)
        while part := dict(islice(ranking, _CHUNK)):
            rows = self._execute(
                f"SELECT {_COLUMNS} FROM langgraph_items WHERE id IN ({_marks(part)}) AND {alive}",
                [*part, *times],
            )
            items = {item.id: item for item in map(_item, rows)}
            for id, score in part.items():
                if (item := items.get(id)) is not None:
                    yield Item(
                        id, item.namespace, item.key, item.value, item.created, item.updated, score
                    )

    def _catch_up(self) -> None:
        """Bring the mirror to what this transaction sees, whoever wrote it."""
        rows = self._execute(
            "SELECT id, item, namespace, vector FROM langgraph_vectors WHERE id > ? ORDER BY id",
            [self._mirror.last],
        ).fetchall()
        self._mirror.add(rows)
        [(count,)] = self._execute("SELECT count(*) FROM langgraph_vectors")
        if count != len(self._mirror):  # less: nothing is added but at the end
            ids = (id for (id,) in self._execute("SELECT id FROM langgraph_vectors"))
            self._mirror.keep(list(ids))

    def _remove(self, where: str, values: Sequence[Any]) -> int:
        gone = self._execute(f"DELETE FROM langgraph_items WHERE {where} RETURNING id", values)
        ids = gone.fetchall()
        for id in ids:
            self._execute("DELETE FROM langgraph_vectors WHERE item = ?", id)
        return len(ids)

    def _alive(self) -> tuple[str, list[Any]]:
        if not self._omit_expired:
            return "1 = 1", []
        return "(expires IS NULL OR expires > ?)", [self._now()]


_COLUMNS = "id, namespace, key, value, created, updated"


def _item(row: tuple[int, str, str, str, float, float]) -> Item:
    id, namespace, key, value, created, updated = row
    return Item(id, _parted(namespace), key, json.loads(value), created, updated)


def _marks(values: Iterable[Any]) -> str:
    return ", ".join("?" for _ in values)


def _packed(vector: Sequence[float]) -> bytes:
    import array
    import sys

    packed = array.array("f", vector)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


class _Mirror:
    """The vectors of a file in memory, as one matrix that only grows at its end.

    A vector's number is used once in a file's life, so what is new stands above ``last``, and
    what is gone is found by counting.
    """

    def __init__(self) -> None:
        self.last = 0
        self._ids: Any = None  # numpy arrays: of each vector its number, item and namespace
        self._items: Any = None
        self._codes: Any = None
        self._matrix: Any = None
        self._names: dict[str, int] = {}

    def __len__(self) -> int:
        return 0 if self._ids is None else len(self._ids)

    def add(self, rows: Sequence[tuple[int, int, str, bytes]]) -> None:
        if not rows:
            return
        np = _numpy()
        self.last = rows[-1][0]
        more = (
            np.array([id for id, *_ in rows], np.int64),
            np.array([item for _, item, *_ in rows], np.int64),
            np.array(
                [self._names.setdefault(name, len(self._names)) for *_, name, _ in rows], np.int64
            ),
            np.frombuffer(b"".join(vector for *_, vector in rows), "<f4").reshape(len(rows), -1),
        )
        if self._ids is not None:
            old = (self._ids, self._items, self._codes, self._matrix)
            more = tuple(map(np.concatenate, zip(old, more, strict=True)))
        self._ids, self._items, self._codes, self._matrix = more

    def keep(self, ids: Sequence[int]) -> None:
        np = _numpy()
        there = np.isin(self._ids, np.array(ids, np.int64))
        self._ids, self._items = self._ids[there], self._items[there]
        self._codes, self._matrix = self._codes[there], self._matrix[there]

    def ranking(
        self, near: Sequence[float], among: Callable[[str], bool]
    ) -> Iterator[tuple[int, float]]:
        """Items with their largest cosine, largest first; of equal ones the older first."""
        if not len(self):
            return
        np = _numpy()
        codes = [code for name, code in self._names.items() if among(name)]
        rows = np.flatnonzero(np.isin(self._codes, codes))
        scores = self._matrix[rows] @ np.array(near, np.float32)
        seen: set[int] = set()
        for at in np.argsort(-scores, kind="stable"):
            if (item := int(self._items[rows[at]])) not in seen:
                seen.add(item)
                yield item, float(scores[at])


def _numpy() -> Any:
    try:
        import numpy
    except ImportError:
        raise MissingPackage("numpy", extra="langgraph", purpose="searching by a text") from None
    return numpy
