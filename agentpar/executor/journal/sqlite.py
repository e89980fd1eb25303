"""A journal in one SQLite file (WAL, every commit on disk), large rows in files beside it.

Knows SQL and SQLite's errors; must never know an event, a task or a tool. Leases count on
the machine's own clock (`host.seconds`), which no one can set: a file belongs to one machine.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from agentpar.errors import JournalError, UsageError
from agentpar.executor.journal import host
from agentpar.executor.journal.spill import LIMIT, Spill
from agentpar.executor.journal.sql import Execute, SqlStore
from agentpar.executor.journal.store import VERSION, Append, EventRow, Unreachable
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

_MARK = 0x61677072
"""SQLite's application_id of our files: "agpr"."""

# An event that has spilled has a `file` in place of its `line`. A branch that was left has the
# negative of its rows' ids as `seq`: they are kept, as what its calls brought still stands.
_TABLES = f"""
CREATE TABLE runs (
  id TEXT PRIMARY KEY, question TEXT NOT NULL, agent TEXT NOT NULL, spec TEXT NOT NULL,
  status TEXT NOT NULL, owner TEXT NOT NULL, until REAL NOT NULL, epoch INTEGER NOT NULL,
  created REAL NOT NULL, setup TEXT NOT NULL DEFAULT '', ended REAL NOT NULL DEFAULT 0
);
CREATE TABLE events (
  id INTEGER PRIMARY KEY, run TEXT NOT NULL REFERENCES runs (id), seq INTEGER NOT NULL,
  key TEXT NOT NULL, line TEXT NOT NULL, file TEXT NOT NULL, UNIQUE (run, seq)
);
CREATE TABLE cache (
  key TEXT PRIMARY KEY, value TEXT NOT NULL, file TEXT NOT NULL, expires REAL NOT NULL
);
CREATE TABLE latency (tool TEXT PRIMARY KEY, samples TEXT NOT NULL);
PRAGMA application_id = {_MARK};
PRAGMA user_version = {VERSION};
"""
_FROM_1 = f"""
ALTER TABLE runs ADD COLUMN setup TEXT NOT NULL DEFAULT '';
ALTER TABLE runs ADD COLUMN ended REAL NOT NULL DEFAULT 0;
UPDATE runs SET ended = created;
PRAGMA user_version = {VERSION};
"""


class SqliteStore(SqlStore):
    """A `Store` in the file ``path``; the folders above it are made. See `Store`."""

    _now = "lease_clock()"
    _later = "lease_clock() + ?"
    _today = "time_of_day()"
    _ago = "time_of_day() - ?"
    _lock = _lock_or_pass = ""  # a transaction has the whole file

    def __init__(self, path: Path) -> None:
        self.path = path
        self.place = str(path)
        self._spill = Spill(path.with_name(f"{path.name}.d"))
        self._open: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None

    def open(self) -> None:
        if self._open is not None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"there can be no journal at {self.place!r} ({error.strerror or error}): "
                "name another place"
            ) from None
        with self._told(opening=True):
            self._open = sqlite3.connect(self.path, timeout=10.0, isolation_level=None)
            self._open.create_function("lease_clock", 0, host.seconds)
            self._open.create_function("time_of_day", 0, lambda: time.time())
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        connection, self._open = self._open, None
        if connection is not None:
            connection.close()

    def _prepare(self) -> None:
        with self._told(opening=True):
            mark, version, tables = stamp(self._connection)
        if mark != _MARK and (mark or version or tables):
            raise UsageError(not_ours("journal", repr(self.place)))
        if mark == _MARK and version not in (1, VERSION):
            raise UsageError(of_another_format("journal", repr(self.place), version, VERSION))
        with self._told(opening=True):
            write_ahead(self._connection)
            self._connection.execute("PRAGMA synchronous = FULL")
        with self._told(opening=True), transaction(self._connection):
            # Asked again: another process may have made the tables meanwhile.
            (mark,) = self._connection.execute("PRAGMA application_id").fetchone()
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            made = "" if version == VERSION else _FROM_1 if mark == _MARK else _TABLES
            for statement in made.split(";"):
                self._connection.execute(statement)
        self._check_length()
        self._file = self._file_there()

    def _file_there(self) -> tuple[int, int] | None:
        """Which file lies at the journal's place now; None for none."""
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def _check_place(self) -> None:
        """SQLite goes on writing to a file that has no name any more."""
        if self._file_there() != self._file:
            raise JournalError(
                f"the journal {self.place!r} was removed or replaced while it was in use: nothing "
                "that is written now would be found there. Put it back, or name another file"
            )

    def _check_length(self) -> None:
        if (left := what_is_left(self._connection, self.path)) is not None:
            raise JournalError(cut_off("journal", repr(self.place), left))

    # Runs and their events

    def rows(self, run: str) -> list[EventRow]:
        with self._reading() as execute:
            rows = execute(
                "SELECT seq, key, line, file FROM agentpar_events WHERE run = ? ORDER BY id", run
            ).fetchall()
        return [EventRow(seq, key, self._whole(line, file)) for seq, key, line, file in rows]

    def _insert(self, execute: Execute, appends: Sequence[Append]) -> None:
        self._connection.executemany(
            "INSERT INTO events (run, seq, key, line, file) VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT (run, seq) DO NOTHING",
            [
                (append.run, append.row.seq, append.row.key, *self._parted(append.row.line))
                for append in appends
            ],
        )

    def _may_live(self, owner: host.Owner) -> bool:
        return owner.of_this_boot and not owner.is_gone

    # What is kept between runs

    def cached(self, key: str) -> str | None:
        with self._reading() as execute:
            row = execute(
                f"SELECT value, file FROM agentpar_cache WHERE key = ? AND expires > {self._today}",
                key,
            ).fetchone()
        return None if row is None else self._whole(*row)

    def cache(self, key: str, value: str, seconds: float) -> None:
        with self._writing() as execute:
            execute(f"DELETE FROM agentpar_cache WHERE expires <= {self._today}")
            execute(
                f"INSERT OR REPLACE INTO agentpar_cache VALUES (?, ?, ?, {self._today} + ?)",
                *(key, *self._parted(value), seconds),
            )

    # Files: written within the transaction that names them, so that whoever sweeps, in one of
    # their own, sees either both or neither.

    def sweep(self) -> int:
        with self._writing() as execute:
            named = execute(
                "SELECT file FROM agentpar_events UNION SELECT file FROM agentpar_cache"
            )
            try:
                return self._spill.sweep({file for (file,) in named.fetchall()})
            except OSError as error:
                raise JournalError(
                    f"a large result of the journal {self.place!r} cannot be removed: {error}"
                ) from error

    def _parted(self, text: str) -> tuple[str, str]:
        """``text`` as it stands in a row: itself, or the name of the file that holds it."""
        if len(text) <= LIMIT:
            return text, ""
        try:
            return "", self._spill.put(text)
        except OSError as error:
            raise JournalError(
                f"the journal {self.place!r} cannot be written: {error.strerror or error}"
            ) from error

    def _whole(self, text: str, file: str) -> str:
        return self._spill.get(file) if file else text

    # The connection

    @property
    def _connection(self) -> sqlite3.Connection:
        if self._open is None:
            raise Unreachable(f"the journal {self.place!r} is closed")
        return self._open

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Execute]:
        with self._told():
            yield self._execute

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Execute]:
        with self._told(), transaction(self._connection):
            self._check_place()
            yield self._execute

    def _execute(self, statement: str, *parameters: Any) -> sqlite3.Cursor:
        return self._connection.execute(statement.replace("agentpar_", ""), parameters)

    @contextlib.contextmanager
    def _told(self, *, opening: bool = False) -> Iterator[None]:
        """SQLite's errors in our words."""
        try:
            yield
        except sqlite3.Error as error:
            kind, text = trouble(error, "journal", repr(self.place), self.path)
            if kind == "busy":
                raise Unreachable(text) from error
            if kind == "foreign" or (opening and kind in ("folder", "shut")):
                raise UsageError(text) from error
            raise JournalError(text) from error
