"""A bank in one SQLite file (WAL), or in this process's memory.

Knows SQL and SQLite's errors; must never know a tool or a run. A file belongs to one machine, so
the time of day of that machine is the store's clock.
"""

from __future__ import annotations

import contextlib
import hmac
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from agentpar.errors import BankError
from agentpar.memory.store import key
from agentpar.memory.store.mirrored import MirroredStore
from agentpar.memory.store.rows import Seals
from agentpar.memory.store.sql import VERSION, Execute
from agentpar.sqlite import (
    cut_off,
    not_ours,
    of_another_format,
    stamp,
    transaction,
    trouble,
    what_is_left,
    write_ahead,
)

_MARK = 0x61677062
"""SQLite's application_id of our files: "agpb"."""
_MEMORY = ":memory:"

_TABLES = f"""
CREATE TABLE meta (changed INTEGER NOT NULL, dimension INTEGER NOT NULL, seal TEXT NOT NULL);
CREATE TABLE entries (
  seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, namespace TEXT NOT NULL, key TEXT NOT NULL,
  likeness TEXT NOT NULL, created REAL NOT NULL, expires REAL, revoked INTEGER NOT NULL,
  changed INTEGER NOT NULL, size INTEGER NOT NULL, seal TEXT NOT NULL, vector BLOB,
  body TEXT NOT NULL
);
CREATE INDEX entries_key ON entries (namespace, key);
CREATE INDEX entries_likeness ON entries (namespace, likeness);
CREATE INDEX entries_changed ON entries (changed, seq);
CREATE INDEX entries_expires ON entries (expires) WHERE expires IS NOT NULL;
CREATE TABLE producers (
  entry TEXT NOT NULL, run TEXT NOT NULL, task INTEGER NOT NULL, team INTEGER NOT NULL,
  number INTEGER NOT NULL, seal TEXT NOT NULL, PRIMARY KEY (entry, run, task)
) WITHOUT ROWID;
CREATE INDEX producers_run ON producers (run);
CREATE TABLE sources (
  source TEXT NOT NULL, entry TEXT NOT NULL, PRIMARY KEY (source, entry)
) WITHOUT ROWID;
CREATE TABLE parents (
  parent TEXT NOT NULL, entry TEXT NOT NULL, PRIMARY KEY (parent, entry)
) WITHOUT ROWID;
CREATE TABLE revoked (entry TEXT PRIMARY KEY, why TEXT NOT NULL, at REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE readings (
  number INTEGER PRIMARY KEY, entry TEXT NOT NULL, run TEXT NOT NULL, task INTEGER NOT NULL,
  team INTEGER NOT NULL, spared_seconds REAL NOT NULL, spared_tokens INTEGER NOT NULL,
  context_tokens INTEGER NOT NULL, at REAL NOT NULL, namespace TEXT NOT NULL, seal TEXT NOT NULL
);
CREATE INDEX readings_entry ON readings (entry);
CREATE TABLE runs (run TEXT PRIMARY KEY, entries INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE leases (
  namespace TEXT NOT NULL, likeness TEXT NOT NULL, run TEXT NOT NULL, task INTEGER NOT NULL,
  team INTEGER NOT NULL, fence INTEGER NOT NULL, until REAL NOT NULL,
  PRIMARY KEY (namespace, likeness)
) WITHOUT ROWID;
INSERT INTO meta VALUES (0, 0, '');
PRAGMA application_id = {_MARK};
PRAGMA user_version = {VERSION};
"""


class SqliteStore(MirroredStore):
    """A `Store` in the file ``path``, or in memory (``":memory:"``). The folders above it are made,
    and beside it a file ``….key``, unless the environment has the key of its seals. ``clock``
    gives seconds since the epoch. For the keywords see `SqlStore`."""

    def __init__(
        self,
        path: Path | str = _MEMORY,
        *,
        clock: Callable[[], float] = time.time,
        **limits: Any,
    ) -> None:
        super().__init__(**limits)
        self._clock = clock
        self.path = None if path == _MEMORY else Path(path).absolute()
        self.place = "in memory" if self.path is None else repr(str(self.path))
        self._open: sqlite3.Connection | None = None

    def open(self) -> None:
        if self._open is not None:
            return
        if self.path is not None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise BankError(
                    f"there can be no bank at {self.place} ({error.strerror or error}): name "
                    "another place"
                ) from None
        with self._told():
            # Whoever calls sees to it that there is one at a time; on which thread is all one.
            self._open = sqlite3.connect(
                self.path or _MEMORY, timeout=10.0, isolation_level=None, check_same_thread=False
            )
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        connection, self._open = self._open, None
        self._forget()
        if connection is not None:
            with self._told():
                connection.close()

    def _prepare(self) -> None:
        with self._told():
            mark, version, tables = stamp(self._connection)
        if mark != _MARK and (mark or version or tables):
            raise BankError(not_ours("bank", self.place))
        if mark == _MARK and version != VERSION:
            raise BankError(of_another_format("bank", self.place, version, VERSION))
        with self._told():
            write_ahead(self._connection)
            # A power cut may cost the last entries, which can be found again, and nothing else.
            self._connection.execute("PRAGMA synchronous = NORMAL")
        with self._told(), transaction(self._connection):
            # Asked again: another process may have made the tables meanwhile.
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            made = version == 0
            for statement in _TABLES.split(";") if made else ():
                self._connection.execute(statement)
            if self.path is not None:
                self._set_key(self.path, made)
        if self.path is not None:
            self._check_length(self.path)

    def _set_key(self, path: Path, made: bool) -> None:
        """Take the key of the seals; the bank has a seal that tells whether it is the one."""
        secret = key.from_environment()
        if secret is None:
            secret = key.from_file(path.with_name(f"{path.name}.key"), make=made)
        self._seals = Seals(secret)
        wanted = self._seals.of("bank")
        if made:
            self._connection.execute("UPDATE meta SET seal = ?", (wanted,))
        (seal,) = self._connection.execute("SELECT seal FROM meta").fetchone()
        if not hmac.compare_digest(seal, wanted):
            raise BankError(
                f"the bank {self.place} was sealed under another key: set {key.VARIABLE} to that "
                f"one, or put its {path.name}.key back"
            )

    def _check_length(self, path: Path) -> None:
        if (left := what_is_left(self._connection, path)) is not None:
            raise BankError(cut_off("bank", self.place, left))

    # The connection

    @property
    def _connection(self) -> sqlite3.Connection:
        if self._open is None:
            raise BankError(f"the bank {self.place} is closed")
        return self._open

    def now(self) -> float:
        return self._clock()

    def _time(self, execute: Execute) -> float:
        return self._clock()

    def _next(self, execute: Execute) -> tuple[int, int, float]:
        execute("UPDATE meta SET changed = changed + 1")
        return (*execute("SELECT changed, dimension FROM meta").fetchone(), self._clock())

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Execute]:
        """What is read is of one moment."""
        with self._told(), transaction(self._connection, "DEFERRED"):
            yield self._execute

    @contextlib.contextmanager
    def _writing(self, *, durable: bool = False) -> Iterator[Execute]:
        with self._told():
            if durable:
                self._connection.execute("PRAGMA synchronous = FULL")
            try:
                with transaction(self._connection):
                    yield self._execute
            finally:
                if durable and self._open is not None:
                    self._open.execute("PRAGMA synchronous = NORMAL")

    def _execute(self, statement: str, *parameters: Any) -> sqlite3.Cursor:
        return self._connection.execute(statement.replace("agentpar_bank_", ""), parameters)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """SQLite's errors in our words."""
        try:
            yield
        except sqlite3.Error as error:
            raise BankError(trouble(error, "bank", self.place, self.path).text) from error
