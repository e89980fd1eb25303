"""What the tests of banks share: entries, and places where a bank may lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from agentpar.memory.entry import Entry, Producer
from agentpar.memory.store.sqlite import SqliteStore


def entry(n: int = 1, **given: Any) -> Entry:
    """Entry number ``n``, brought by run "run" unless said otherwise."""
    usual: dict[str, Any] = {
        "id": f"id{n}",
        "namespace": "space",
        "key": f"key{n}",
        "like": f"like{n}",
        "tool": "look",
        "args": {"n": n},
        "question": f"look: {n}",
        "value": {"found": n},
        "sources": (f"https://site.example/{n}",),
        "producer": Producer("run", n, 1),
    }
    return Entry(**{**usual, **given})


@dataclass
class Place:
    """Where a bank lies. ``store`` is open; ``another()`` is a further one on the same bank, as
    another process has it; ``wait`` lets the store's time pass."""

    kind: str
    url: str
    make: Callable[..., Any]
    wait: Callable[[float], None]
    opened: list[Any] = field(default_factory=list)

    def another(self, **limits: Any) -> Any:
        store = self.make(**limits)
        store.open()
        self.opened.append(store)
        return store


class Clock:
    """Seconds since the epoch, as far as a test has let them pass."""

    def __init__(self, seconds: float = 1_800_000_000.0) -> None:
        self.seconds = seconds

    def __call__(self) -> float:
        return self.seconds

    def wait(self, seconds: float) -> None:
        self.seconds += seconds


def shifted(url: str, passed: Clock, **limits: Any) -> Any:
    """A store in Postgres whose server's clock is ahead by what a test has let pass."""
    from agentpar.memory.store.postgres import PostgresStore

    class Shifted(PostgresStore):
        @property
        def _clock(self) -> str:  # type: ignore[override]
            return f"({PostgresStore._clock} + {passed()})"

    return Shifted(url, **limits)


def place_of(kind: str, request: pytest.FixtureRequest, folder: Path) -> Place:
    if kind in ("postgres", "pgvector"):
        url = request.getfixturevalue(kind).new_database()
        passed = Clock(0.0)
        return Place(kind, url, lambda **limits: shifted(url, passed, **limits), passed.wait)
    clock = Clock()
    path = ":memory:" if kind == "memory" else folder / "bank.db"
    url = f"sqlite:///{path}"
    return Place(kind, url, lambda **limits: SqliteStore(path, clock=clock, **limits), clock.wait)
