"""What a database must do to keep journals: the door between the writer and SQLite or Postgres.

A store knows rows and transactions; it must never know an event, a task or a tool. All of
its methods block and are called by one thread.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

VERSION = 2
"""Of the tables and of what is in them; those of version 1 are brought up to it."""

Status = Literal["running", "waiting", "interrupted", "answered", "failed"]
"""``waiting``: for an approval, in a graph. ``interrupted``: cancelled, or broken off by an
error. Both are carried on when somebody asks for it, ``running`` by anybody once its process
is gone."""
ENDED: tuple[Status, ...] = ("answered", "failed")


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run. ``setup`` is empty for one of version 1. ``held``: a process that may still live
    works on it, ``owner`` says which."""

    id: str
    question: str
    agent: str
    spec: str
    setup: str
    status: Status
    held: bool
    owner: str


@dataclass(frozen=True, slots=True)
class EventRow:
    """The ``seq``-th event of a run, from 0, or (negative) one of a branch that was left.

    ``key`` is that of the call which begins with it, else empty; ``line`` is JSON in ASCII.
    """

    seq: int
    key: str
    line: str


@dataclass(frozen=True, slots=True)
class Append:
    """An event to be written by the holder of ``epoch`` of run ``run``."""

    run: str
    epoch: int
    row: EventRow


class Unreachable(Exception):
    """The database cannot be reached just now; the same again may succeed later."""


class Store(Protocol):
    """Every method is one transaction, and doing it again has no further effect.

    Raises `Unreachable` for what may pass, `JournalError` for what will not, `UsageError`
    where the place cannot be a journal at all. ``lease`` is in seconds. An ``epoch`` counts
    the holders of a run; what an earlier holder wants to write is refused.
    """

    place: str
    """Which journal this is, in words for a message; without credentials."""

    def open(self) -> None:
        """Connect, and make the tables where there are none."""
        ...

    def close(self) -> None: ...

    def runs(self) -> list[RunRow]:
        """All runs, oldest first."""
        ...

    def find(self, run: str) -> RunRow | None: ...

    def rows(self, run: str) -> list[EventRow]:
        """Every event of the run, in the order of writing."""
        ...

    def begin(
        self, run: str, question: str, agent: str, spec: str, setup: str, owner: str, lease: float
    ) -> int | None:
        """Make the run and hold it: its epoch. None where there is one of that id."""
        ...

    def claim(self, run: str, owner: str, lease: float) -> int | None:
        """Hold the run: its new epoch. None where another holds it."""
        ...

    def orphans(self, agent: str) -> list[RunRow]:
        """The runs of ``agent`` that are at work and whose holder is gone, oldest first."""
        ...

    def claim_orphan(self, run: str, owner: str, lease: float) -> int | None:
        """Hold the run if it is still one of the `orphans`: its new epoch. None where it is not,
        or where another looks at it just now."""
        ...

    def renew(self, held: Sequence[tuple[str, int]], lease: float) -> Collection[str]:
        """Hold the runs for longer; those that are held by another now."""
        ...

    def release(self, run: str, epoch: int, status: Status) -> bool:
        """Hold the run no more; False where another holds it."""
        ...

    def write(self, appends: Sequence[Append]) -> Collection[str]:
        """Write events; the runs that are held by another now, of which nothing is written."""
        ...

    def supersede(self, run: str, epoch: int, seq: int) -> bool:
        """The events from ``seq`` on become a branch that was left; False as for `release`."""
        ...

    def cached(self, key: str) -> str | None: ...

    def cache(self, key: str, value: str, seconds: float) -> None: ...

    def latencies(self) -> dict[str, str]: ...

    def keep_latencies(self, tool: str, samples: str) -> None: ...

    def old(self, age: float) -> list[str]:
        """The runs that ended more than ``age`` seconds ago, oldest first."""
        ...

    def remove(self, run: str, age: float) -> bool:
        """Remove the run and its events; False where it is none of the `old` ones."""
        ...

    def stale(self) -> int:
        """How many cached values are past their time."""
        ...

    def drop_stale(self) -> int:
        """Remove the cached values that are past their time: how many there were."""
        ...

    def sweep(self) -> int:
        """Remove files that no row names any more: how many there were."""
        ...
