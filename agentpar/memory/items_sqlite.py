"""A bank's items in its SQLite file (WAL).

Knows connections, transactions and SQLite's errors; must never know what an item is for.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agentpar.errors import BankError
from agentpar.memory.items import Items
from agentpar.sqlite import transaction, write_ahead

_SCHEMA = """
CREATE TABLE IF NOT EXISTS langgraph_meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS langgraph_items (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    namespace TEXT NOT NULL,  -- labels joined by dots, which no label contains
    key TEXT NOT NULL,
    value TEXT NOT NULL,      -- JSON
    created REAL NOT NULL,    -- these three: seconds since the epoch
    updated REAL NOT NULL,
    expires REAL,
    ttl REAL,                 -- seconds, by which reading moves 'expires'
    UNIQUE (namespace, key)
);
CREATE INDEX IF NOT EXISTS langgraph_expires ON langgraph_items (expires)
    WHERE expires IS NOT NULL;
CREATE TABLE IF NOT EXISTS langgraph_vectors (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used twice, so that a mirror can catch up
    item INTEGER NOT NULL,
    namespace TEXT NOT NULL,
    vector BLOB NOT NULL                   -- float32, of length 1
);
CREATE INDEX IF NOT EXISTS langgraph_vectors_of ON langgraph_vectors (item);
"""


class SqliteItems(Items):
    """`Items` in the file ``path``."""

    def __init__(
        self,
        path: Path,
        *,
        omit_expired: bool = False,
        clock: Callable[[], float] | None = None,
    ) -> None:
        super().__init__(omit_expired=omit_expired, clock=clock)
        self.path = path
        self.place = str(path)
        self._db: sqlite3.Connection | None = None

    def open(self) -> None:
        with self._look():
            if self._db is not None:
                return
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(
                self.path, timeout=30.0, isolation_level=None, check_same_thread=False
            )
            try:
                write_ahead(self._db)
                self._db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
                self._check_version()
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None

    @contextmanager
    def batch(self, *, writes: bool) -> Iterator[None]:
        kind = "IMMEDIATE" if writes else "DEFERRED"
        with self._look(), transaction(self._connection, kind):
            yield

    @property
    def _connection(self) -> sqlite3.Connection:
        if self._db is None:
            raise BankError(f"{self.path} was closed; open it again first")
        return self._db

    def _execute(self, sql: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        return self._connection.execute(sql, values)

    @contextmanager
    def _look(self, *, writes: bool = False) -> Iterator[None]:
        """What SQLite and the system say comes as a `BankError` that names the file."""
        with self._lock:
            try:
                yield
            except (sqlite3.Error, OSError) as error:
                raise BankError(f"{self.path}: {error}") from error
