"""A journal in Postgres, for agents on several machines.

Knows SQL and psycopg; must never know an event, a task or a tool. Leases count on the
server's clock alone, so the clocks of the machines may differ. A connection that breaks is
made anew by the next call: every method may be done again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from agentpar.errors import JournalError, MissingPackage, UsageError
from agentpar.executor.journal.host import Owner
from agentpar.executor.journal.store import (
    VERSION,
    Append,
    EventRow,
    RunRow,
    Status,
    Unreachable,
)

if TYPE_CHECKING:
    import psycopg

_LOCK = 0x61677072
"""Of the one who makes the tables: "agpr"."""
# A server that has fallen silent is given up, and one that we fall silent to lets go of our
# rows, within the time of a lease.
_CONNECTION: dict[str, Any] = {
    "application_name": "agentpar",
    "connect_timeout": 5,
    "tcp_user_timeout": 10_000,
}
_SETTINGS = (
    "-c synchronous_commit=on -c lock_timeout=10s -c idle_in_transaction_session_timeout=3s "
    "-c client_min_messages=warning"
)
_TABLES = """
CREATE TABLE agentpar_journal (version INTEGER NOT NULL);
CREATE TABLE agentpar_runs (
  id TEXT PRIMARY KEY, question TEXT NOT NULL, agent TEXT NOT NULL, spec TEXT NOT NULL,
  status TEXT NOT NULL, owner TEXT NOT NULL, until TIMESTAMPTZ NOT NULL, epoch BIGINT NOT NULL,
  created TIMESTAMPTZ NOT NULL DEFAULT now()
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
_RUN = (
    "SELECT id, question, agent, spec, status, owner,"
    " status = 'running' AND until > clock_timestamp() FROM agentpar_runs"
)
_UNTIL = "clock_timestamp() + make_interval(secs => %s)"


class PostgresStore:
    """A `Store` in the database at ``url``, in tables that begin with ``agentpar_``."""

    def __init__(self, url: str) -> None:
        try:
            import psycopg
        except ImportError:
            purpose = "a journal in Postgres"
            raise MissingPackage("psycopg", extra="postgres", purpose=purpose) from None
        try:
            known = psycopg.conninfo.conninfo_to_dict(url)
        except psycopg.Error as error:  # its text may show the password
            kind = type(error).__name__
            raise UsageError(
                "the journal's address is none that Postgres knows "
                f"({kind}): write postgresql://user@host:5432/database"
            ) from None
        self.place = f"{known.get('dbname', '')} on Postgres at {known.get('host', 'localhost')}"
        options = f"{_SETTINGS} {known.pop('options', None) or ''}"
        self._url = psycopg.conninfo.make_conninfo(**{**_CONNECTION, **known}, options=options)
        self._open: psycopg.Connection[Any] | None = None

    def open(self) -> None:
        with self._transaction() as connection:
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            (there,) = _one(connection.execute("SELECT to_regclass('agentpar_journal')"))
            if there is None:
                connection.execute(_TABLES)
                connection.execute("INSERT INTO agentpar_journal VALUES (%s)", (VERSION,))
            (version,) = _one(connection.execute("SELECT version FROM agentpar_journal"))
        if version != VERSION:
            raise UsageError(
                f"the journal {self.place} is of format {version}, and this agentpar reads format "
                f"{VERSION}: use the agentpar that wrote it, or name another database"
            )

    def close(self) -> None:
        connection, self._open = self._open, None
        if connection is not None:
            connection.close()

    # Runs

    def runs(self) -> list[RunRow]:
        with self._transaction() as connection:
            rows = connection.execute(f"{_RUN} ORDER BY created, id").fetchall()
        return [_run_of(row) for row in rows]

    def find(self, run: str) -> RunRow | None:
        with self._transaction() as connection:
            row = connection.execute(f"{_RUN} WHERE id = %s", (run,)).fetchone()
        return None if row is None else _run_of(row)

    def rows(self, run: str) -> list[EventRow]:
        with self._transaction() as connection:
            rows = connection.execute(
                "SELECT seq, key, line FROM agentpar_events WHERE run = %s ORDER BY id", (run,)
            ).fetchall()
        return [EventRow(*row) for row in rows]

    def begin(
        self, run: str, question: str, agent: str, spec: str, owner: str, lease: float
    ) -> int | None:
        with self._transaction() as connection:
            connection.execute(
                "INSERT INTO agentpar_runs (id, question, agent, spec, status, owner, until, epoch)"
                f" VALUES (%s, %s, %s, %s, 'running', %s, {_UNTIL}, 1) ON CONFLICT DO NOTHING",
                (run, question, agent, spec, owner, lease),
            )
            ours = connection.execute(
                "SELECT epoch FROM agentpar_runs WHERE id = %s AND owner = %s", (run, owner)
            ).fetchone()
        return None if ours is None else int(ours[0])

    def claim(self, run: str, owner: str, lease: float) -> int | None:
        with self._transaction() as connection:
            row = connection.execute(f"{_RUN} WHERE id = %s FOR UPDATE", (run,)).fetchone()
            if row is None:
                return None
            found = _run_of(row)
            if found.owner == owner:  # this very claim, before its connection broke
                query = "SELECT epoch FROM agentpar_runs WHERE id = %s"
                return int(_one(connection.execute(query, (run,)))[0])
            if found.held:
                return None
            return int(_one(connection.execute(_TAKE, (owner, lease, run)))[0])

    def claim_orphan(self, agent: str, owner: str, lease: float) -> tuple[str, int] | None:
        with self._transaction() as connection:
            row = connection.execute(
                "SELECT id FROM agentpar_runs WHERE status = 'running' AND agent = %s"
                " AND until <= clock_timestamp() ORDER BY created, id LIMIT 1"
                " FOR UPDATE SKIP LOCKED",
                (agent,),
            ).fetchone()
            if row is None:
                return None
            return row[0], int(_one(connection.execute(_TAKE, (owner, lease, row[0])))[0])

    def renew(self, held: Sequence[tuple[str, int]], lease: float) -> Collection[str]:
        with self._transaction() as connection:
            lost = _lost(connection, held)
            for run, epoch in held:
                connection.execute(
                    f"UPDATE agentpar_runs SET until = {_UNTIL} WHERE id = %s AND epoch = %s",
                    (lease, run, epoch),
                )
        return lost

    def release(self, run: str, epoch: int, status: Status) -> bool:
        with self._transaction() as connection:
            done = connection.execute(
                "UPDATE agentpar_runs SET status = %s, until = clock_timestamp()"
                " WHERE id = %s AND epoch = %s",
                (status, run, epoch),
            )
            return done.rowcount == 1

    # Events

    def write(self, appends: Sequence[Append]) -> Collection[str]:
        with self._transaction() as connection:
            lost = _lost(connection, {(append.run, append.epoch) for append in appends})
            rows = [
                (append.run, append.row.seq, append.row.key, append.row.line)
                for append in appends
                if append.run not in lost
            ]
            if rows:
                # One statement, not executemany, whose pipeline could stand still half sent: the
                # server does not count that as idle, and our rows would stay locked.
                connection.execute(
                    "INSERT INTO agentpar_events (run, seq, key, line)"
                    " SELECT * FROM unnest(%s::text[], %s::bigint[], %s::text[], %s::text[])"
                    " ON CONFLICT (run, seq) DO NOTHING",
                    [list(column) for column in zip(*rows, strict=True)],
                )
        return lost

    def supersede(self, run: str, epoch: int, seq: int) -> bool:
        with self._transaction() as connection:
            if _lost(connection, [(run, epoch)]):
                return False
            connection.execute(
                "UPDATE agentpar_events SET seq = -id WHERE run = %s AND seq >= %s", (run, seq)
            )
            return True

    # What is kept between runs

    def cached(self, key: str) -> str | None:
        with self._transaction() as connection:
            row = connection.execute(
                "SELECT value FROM agentpar_cache WHERE key = %s AND expires > clock_timestamp()",
                (key,),
            ).fetchone()
        return None if row is None else str(row[0])

    def cache(self, key: str, value: str, seconds: float) -> None:
        with self._transaction() as connection:
            connection.execute("DELETE FROM agentpar_cache WHERE expires <= clock_timestamp()")
            connection.execute(
                f"INSERT INTO agentpar_cache VALUES (%s, %s, {_UNTIL}) ON CONFLICT (key)"
                " DO UPDATE SET value = excluded.value, expires = excluded.expires",
                (key, value, seconds),
            )

    def latencies(self) -> dict[str, str]:
        with self._transaction() as connection:
            return dict(connection.execute("SELECT tool, samples FROM agentpar_latency").fetchall())

    def keep_latencies(self, tool: str, samples: str) -> None:
        with self._transaction() as connection:
            connection.execute(
                "INSERT INTO agentpar_latency VALUES (%s, %s) ON CONFLICT (tool)"
                " DO UPDATE SET samples = excluded.samples",
                (tool, samples),
            )

    # The connection

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[psycopg.Connection[Any]]:
        """A transaction, on a new connection where there is none; errors in our words."""
        import psycopg

        try:
            connection = self._open
            if connection is None or connection.closed:
                connection = self._open = psycopg.connect(self._url)
            try:
                yield connection
                connection.commit()
            except BaseException:
                if not connection.closed:
                    with contextlib.suppress(psycopg.Error):
                        connection.rollback()
                raise
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            if isinstance(error, psycopg.errors.DiskFull):
                raise JournalError(f"the journal {self.place} is full: {_text(error)}") from error
            raise Unreachable(f"the journal {self.place} is gone: {_text(error)}") from error
        except psycopg.Error as error:
            raise JournalError(
                f"the journal {self.place} cannot be used: {_text(error)}"
            ) from error


_TAKE = (
    f"UPDATE agentpar_runs SET owner = %s, until = {_UNTIL}, epoch = epoch + 1, status = 'running'"
    " WHERE id = %s RETURNING epoch"
)


def _lost(connection: psycopg.Connection[Any], held: Collection[tuple[str, int]]) -> set[str]:
    """The runs that are in other hands by now; the others stay ours until the transaction ends."""
    lost: set[str] = set()
    for run, epoch in sorted(held):  # all take the rows in one order: nobody waits in a circle
        query = "SELECT 1 FROM agentpar_runs WHERE id = %s AND epoch = %s FOR UPDATE"
        if connection.execute(query, (run, epoch)).fetchone() is None:
            lost.add(run)
    return lost


def _run_of(row: tuple[Any, ...]) -> RunRow:
    id, question, agent, spec, status, owner, held = row
    return RunRow(
        id, question, agent, spec, status, bool(held) and not Owner.parse(owner).is_gone, owner
    )


def _one(cursor: psycopg.Cursor[Any]) -> tuple[Any, ...]:
    row: tuple[Any, ...] | None = cursor.fetchone()
    assert row is not None
    return row


def _text(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
