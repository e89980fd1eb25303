"""A journal in Postgres, for agents on several machines.

Knows SQL and psycopg; must never know an event, a task or a tool. Leases count on the
server's clock alone, so the clocks of the machines may differ. A connection that breaks is
made anew by the next call: every method may be done again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from agentpar.errors import JournalError, UsageError
from agentpar.executor.journal.host import Owner
from agentpar.executor.journal.sql import Execute, SqlStore
from agentpar.executor.journal.store import VERSION, Append, EventRow, Unreachable
from agentpar.postgres import Database

_LOCK = 0x61677072
"""Of the one who makes the tables: "agpr"."""
# A process that falls silent lets go of its rows within the time of a lease.
_SETTINGS = (
    "-c synchronous_commit=on -c lock_timeout=10s -c idle_in_transaction_session_timeout=3s "
    "-c client_min_messages=warning"
)
_TABLES = """
CREATE TABLE agentpar_journal (version INTEGER NOT NULL);
CREATE TABLE agentpar_runs (
  id TEXT PRIMARY KEY, question TEXT NOT NULL, agent TEXT NOT NULL, spec TEXT NOT NULL,
  status TEXT NOT NULL, owner TEXT NOT NULL, until TIMESTAMPTZ NOT NULL, epoch BIGINT NOT NULL,
  created TIMESTAMPTZ NOT NULL DEFAULT now(), setup TEXT NOT NULL DEFAULT '',
  ended TIMESTAMPTZ NOT NULL DEFAULT now()
);
CREATE INDEX agentpar_running ON agentpar_runs (agent, created) WHERE status = 'running';
CREATE TABLE agentpar_events (
  id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, run TEXT NOT NULL REFERENCES agentpar_runs,
  seq BIGINT NOT NULL, key TEXT NOT NULL, line TEXT NOT NULL, UNIQUE (run, seq)
);
CREATE TABLE agentpar_cache (
  key TEXT PRIMARY KEY, value TEXT NOT NULL, expires TIMESTAMPTZ NOT NULL
);
CREATE TABLE agentpar_latency (tool TEXT PRIMARY KEY, samples TEXT NOT NULL);
"""
_FROM_1 = """
ALTER TABLE agentpar_runs ADD COLUMN setup TEXT NOT NULL DEFAULT '',
  ADD COLUMN ended TIMESTAMPTZ NOT NULL DEFAULT now();
UPDATE agentpar_runs SET ended = created;
UPDATE agentpar_journal SET version = 2;
"""


class PostgresStore(SqlStore):
    """A `Store` in the database at ``url``, in tables that begin with ``agentpar_``."""

    _now = _today = "clock_timestamp()"
    _later = "clock_timestamp() + make_interval(secs => ?)"
    _ago = "clock_timestamp() - make_interval(secs => ?)"
    _lock = " FOR UPDATE"
    _lock_or_pass = " FOR UPDATE SKIP LOCKED"

    def __init__(self, url: str) -> None:
        self._database = Database(url, what="journal", settings=_SETTINGS)
        self.place = self._database.place

    def open(self) -> None:
        with self._writing() as execute:
            execute("SELECT pg_advisory_xact_lock(?)", _LOCK)
            (there,) = execute("SELECT to_regclass('agentpar_journal')").fetchone()
            if there is None:
                execute(_TABLES)
                execute("INSERT INTO agentpar_journal VALUES (?)", VERSION)
            (version,) = execute("SELECT version FROM agentpar_journal").fetchone()
            if version == 1:
                execute(_FROM_1)
                version = VERSION
        if version != VERSION:
            raise UsageError(
                f"the journal {self.place} is of format {version}, and this agentpar reads format "
                f"{VERSION}: use the agentpar that wrote it, or name another database"
            )

    def close(self) -> None:
        self._database.close()

    # Runs and their events

    def rows(self, run: str) -> list[EventRow]:
        with self._reading() as execute:
            rows = execute(
                "SELECT seq, key, line FROM agentpar_events WHERE run = ? ORDER BY id", run
            ).fetchall()
        return [EventRow(*row) for row in rows]

    def _insert(self, execute: Execute, appends: Sequence[Append]) -> None:
        rows = [(append.run, append.row.seq, append.row.key, append.row.line) for append in appends]
        # One statement, not executemany, whose pipeline could stand still half sent: the
        # server does not count that as idle, and our rows would stay locked.
        execute(
            "INSERT INTO agentpar_events (run, seq, key, line)"
            " SELECT * FROM unnest(?::text[], ?::bigint[], ?::text[], ?::text[])"
            " ON CONFLICT (run, seq) DO NOTHING",
            *map(list, zip(*rows, strict=True)),
        )

    def _may_live(self, owner: Owner) -> bool:
        return not owner.is_gone

    # What is kept between runs

    def cached(self, key: str) -> str | None:
        with self._reading() as execute:
            row = execute(
                f"SELECT value FROM agentpar_cache WHERE key = ? AND expires > {self._today}", key
            ).fetchone()
        return None if row is None else str(row[0])

    def cache(self, key: str, value: str, seconds: float) -> None:
        with self._writing() as execute:
            execute(f"DELETE FROM agentpar_cache WHERE expires <= {self._today}")
            execute(
                f"INSERT INTO agentpar_cache VALUES (?, ?, {self._later}) ON CONFLICT (key)"
                " DO UPDATE SET value = excluded.value, expires = excluded.expires",
                *(key, value, seconds),
            )

    def sweep(self) -> int:
        return 0  # a row of any length lies in the database

    # The connection

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Execute]:
        """A transaction, on a new connection where there is none; errors in our words."""
        import psycopg

        try:
            with self._database.transaction() as execute:
                yield execute
        except psycopg.Error as error:
            text, gone = self._database.trouble(error)
            raise (Unreachable if gone else JournalError)(text) from error

    _reading = _writing
