"""A journal in one SQLite file (WAL, every commit on disk), large rows in files beside it.

Knows SQL and SQLite's errors; must never know an event, a task or a tool. Leases count on
the machine's own clock (`host.seconds`), which no one can set: a file belongs to one machine.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from agentpar.errors import JournalError, UsageError
from agentpar.executor.journal import host
from agentpar.executor.journal.spill import LIMIT, Spill
from agentpar.executor.journal.store import (
    VERSION,
    Append,
    EventRow,
    RunRow,
    Status,
    Unreachable,
)

_MARK = 0x61677072
"""SQLite's application_id of our files: "agpr"."""

# An event that has spilled has a `file` in place of its `line`. A branch that was left has the
# negative of its rows' ids as `seq`: they are kept, as what its calls brought still stands.
_TABLES = f"""
CREATE TABLE runs (
  id TEXT PRIMARY KEY, question TEXT NOT NULL, agent TEXT NOT NULL, spec TEXT NOT NULL,
  status TEXT NOT NULL, owner TEXT NOT NULL, until REAL NOT NULL, epoch INTEGER NOT NULL,
  created REAL NOT NULL
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
_RUN = "SELECT id, question, agent, spec, status, owner, until FROM runs"


class SqliteStore:
    """A `Store` in the file ``path``; the folders above it are made. See `Store`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.place = str(path)
        self._spill = Spill(path.with_name(f"{path.name}.d"))
        self._open: sqlite3.Connection | None = None

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
            (mark,) = self._connection.execute("PRAGMA application_id").fetchone()
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            tables = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if mark != _MARK and (mark or version or tables):
            raise UsageError(
                f"{self.place!r} is a database of another program: name another file for the "
                "journal"
            )
        if mark == _MARK and version != VERSION:
            raise UsageError(
                f"{self.place!r} is a journal of format {version}, and this agentpar reads format "
                f"{VERSION}: use the agentpar that wrote it, or name another file"
            )
        with self._told(opening=True):
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
        with self._told(opening=True), self._transaction():
            # Asked again: another process may have made the tables meanwhile.
            (mark,) = self._connection.execute("PRAGMA application_id").fetchone()
            if mark != _MARK:
                for statement in _TABLES.split(";"):
                    self._connection.execute(statement)
        self._check_length()

    def _check_length(self) -> None:
        """A file that was cut off is found here, and not at the first row that is missing."""
        (pages,) = self._connection.execute("PRAGMA page_count").fetchone()
        (size,) = self._connection.execute("PRAGMA page_size").fetchone()
        log = self.path.with_name(f"{self.path.name}-wal")
        if log.exists() and log.stat().st_size:
            return  # its last pages may lie in the log still
        length = self.path.stat().st_size
        if length < pages * size:
            raise JournalError(
                f"the journal {self.place!r} is cut off: {length:,} of {pages * size:,} bytes. Put "
                "a copy in its place, or name another file"
            )

    # Runs

    def runs(self) -> list[RunRow]:
        with self._told():
            rows = self._connection.execute(f"{_RUN} ORDER BY created, id").fetchall()
        return [_run_of(row) for row in rows]

    def find(self, run: str) -> RunRow | None:
        with self._told():
            row = self._connection.execute(f"{_RUN} WHERE id = ?", (run,)).fetchone()
        return None if row is None else _run_of(row)

    def rows(self, run: str) -> list[EventRow]:
        with self._told():
            rows = self._connection.execute(
                "SELECT seq, key, line, file FROM events WHERE run = ? ORDER BY id", (run,)
            ).fetchall()
        return [EventRow(seq, key, self._whole(line, file)) for seq, key, line, file in rows]

    def begin(
        self, run: str, question: str, agent: str, spec: str, owner: str, lease: float
    ) -> int | None:
        until = host.seconds() + lease
        with self._told(), self._transaction() as connection:
            connection.execute(
                "INSERT INTO runs VALUES (?, ?, ?, ?, 'running', ?, ?, 1, ?)"
                " ON CONFLICT (id) DO NOTHING",
                (run, question, agent, spec, owner, until, time.time()),
            )
            ours = connection.execute(
                "SELECT epoch FROM runs WHERE id = ? AND owner = ?", (run, owner)
            ).fetchone()
        return None if ours is None else int(ours[0])

    def claim(self, run: str, owner: str, lease: float) -> int | None:
        with self._told(), self._transaction() as connection:
            row = connection.execute(f"{_RUN} WHERE id = ?", (run,)).fetchone()
            return None if row is None else self._take(row, owner, lease)

    def claim_orphan(self, agent: str, owner: str, lease: float) -> tuple[str, int] | None:
        with self._told(), self._transaction() as connection:
            rows = connection.execute(
                f"{_RUN} WHERE status = 'running' AND agent = ? ORDER BY created, id", (agent,)
            ).fetchall()
            for row in rows:
                epoch = self._take(row, owner, lease)
                if epoch is not None:
                    return str(row[0]), epoch
        return None

    def _take(self, row: tuple[str, ...], owner: str, lease: float) -> int | None:
        found = _run_of(row)
        if found.owner != owner:
            if found.held:
                return None
            self._connection.execute(
                "UPDATE runs SET owner = ?, until = ?, epoch = epoch + 1, status = 'running'"
                " WHERE id = ?",
                (owner, host.seconds() + lease, found.id),
            )
        epoch = self._connection.execute("SELECT epoch FROM runs WHERE id = ?", (found.id,))
        return int(epoch.fetchone()[0])

    def renew(self, held: Sequence[tuple[str, int]], lease: float) -> Collection[str]:
        until = host.seconds() + lease
        with self._told(), self._transaction() as connection:
            lost = self._lost(held)
            connection.executemany(
                "UPDATE runs SET until = ? WHERE id = ? AND epoch = ?",
                [(until, run, epoch) for run, epoch in held if run not in lost],
            )
        return lost

    def release(self, run: str, epoch: int, status: Status) -> bool:
        with self._told(), self._transaction() as connection:
            done = connection.execute(
                "UPDATE runs SET status = ?, until = 0 WHERE id = ? AND epoch = ?",
                (status, run, epoch),
            )
            return done.rowcount == 1

    # Events

    def write(self, appends: Sequence[Append]) -> Collection[str]:
        rows = [(append, self._parted(append.row.line)) for append in appends]
        with self._told(), self._transaction() as connection:
            lost = self._lost({(append.run, append.epoch) for append in appends})
            connection.executemany(
                "INSERT INTO events (run, seq, key, line, file) VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT (run, seq) DO NOTHING",
                [
                    (append.run, append.row.seq, append.row.key, *parts)
                    for append, parts in rows
                    if append.run not in lost
                ],
            )
        return lost

    def _lost(self, held: Collection[tuple[str, int]]) -> set[str]:
        """The runs that are in other hands by now."""
        query = "SELECT 1 FROM runs WHERE id = ? AND epoch = ?"
        return {pair[0] for pair in held if not self._connection.execute(query, pair).fetchone()}

    def supersede(self, run: str, epoch: int, seq: int) -> bool:
        with self._told(), self._transaction() as connection:
            if self._lost([(run, epoch)]):
                return False
            connection.execute("UPDATE events SET seq = -id WHERE run = ? AND seq >= ?", (run, seq))
            return True

    # What is kept between runs

    def cached(self, key: str) -> str | None:
        with self._told():
            row = self._connection.execute(
                "SELECT value, file FROM cache WHERE key = ? AND expires > ?", (key, time.time())
            ).fetchone()
        return None if row is None else self._whole(*row)

    def cache(self, key: str, value: str, seconds: float) -> None:
        parts = self._parted(value)
        with self._told(), self._transaction() as connection:
            connection.execute("DELETE FROM cache WHERE expires <= ?", (time.time(),))
            connection.execute(
                "INSERT OR REPLACE INTO cache VALUES (?, ?, ?, ?)",
                (key, *parts, time.time() + seconds),
            )

    def latencies(self) -> dict[str, str]:
        with self._told():
            return dict(self._connection.execute("SELECT tool, samples FROM latency").fetchall())

    def keep_latencies(self, tool: str, samples: str) -> None:
        with self._told(), self._transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO latency VALUES (?, ?)", (tool, samples))

    # Files

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
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """One writer at a time, of all processes: what is read inside still holds at the end."""
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def _told(self, *, opening: bool = False) -> Iterator[None]:
        """SQLite's errors in our words."""
        try:
            yield
        except sqlite3.Error as error:
            self._tell(error, opening)

    def _tell(self, error: sqlite3.Error, opening: bool) -> NoReturn:
        what = getattr(error, "sqlite_errorname", "")
        if what.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            raise Unreachable(f"the journal {self.place!r} is in use: {error}") from error
        if what.startswith("SQLITE_NOTADB"):
            raise UsageError(
                f"{self.place!r} is no journal (no SQLite database): name another file"
            ) from error
        if what.startswith("SQLITE_CORRUPT"):
            raise JournalError(
                f"the journal {self.place!r} is damaged ({error}). It is left as it is: put a copy "
                "in its place, or name another file"
            ) from error
        if opening and what.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM")):
            raise UsageError(
                f"the journal {self.place!r} cannot be written ({error}): its file and its folder "
                "must be writable, or name another place"
            ) from error
        raise JournalError(f"the journal {self.place!r} cannot be used: {error}") from error


def _run_of(row: tuple[str, ...]) -> RunRow:
    id, question, agent, spec, status, owner, until = row
    holder = host.Owner.parse(owner)
    held = (
        status == "running"
        and holder.of_this_boot
        and float(until) > host.seconds()
        and not holder.is_gone
    )
    return RunRow(id, question, agent, spec, status, held, owner)  # type: ignore[arg-type]
