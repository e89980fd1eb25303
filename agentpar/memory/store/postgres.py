"""A bank in Postgres, for agents on several machines.

Knows SQL and psycopg; must never know a tool or a run. The server's clock alone counts, so the
clocks of the machines may differ. A connection that breaks is made anew by the next call. Where
the server has pgvector when the first vector comes, it finds the nearest, by an HNSW index; else
each process mirrors the vectors, as it does those of a file.
"""

from __future__ import annotations

import contextlib
import hmac
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

from agentpar.errors import BankError
from agentpar.memory.entry import Entry
from agentpar.memory.store import key
from agentpar.memory.store.mirrored import MirroredStore
from agentpar.memory.store.rows import COLUMNS, Row, Seals, check_size, escaped, little, packed
from agentpar.memory.store.sql import VERSION, Execute
from agentpar.postgres import Database

_LOCK = 0x61677062
"""Of the one who makes the tables: "agpb"."""
# A power cut may cost the last entries, which can be found again, and nothing else.
SETTINGS = (
    "-c synchronous_commit=off -c lock_timeout=10s -c idle_in_transaction_session_timeout=10s "
    "-c client_min_messages=warning "
    # pgvector's: where a condition leaves too few, its index is looked through further.
    "-c hnsw.iterative_scan=strict_order"
)
# Names in ASCII, compared byte by byte: what begins with an address lies side by side.
_TABLES = """
CREATE TABLE agentpar_bank_meta (
  version INTEGER NOT NULL, changed BIGINT NOT NULL, dimension INTEGER NOT NULL, seal TEXT NOT NULL
);
CREATE TABLE agentpar_bank_entries (
  seq BIGINT PRIMARY KEY, id TEXT COLLATE "C" NOT NULL UNIQUE,
  namespace TEXT COLLATE "C" NOT NULL, key TEXT COLLATE "C" NOT NULL,
  likeness TEXT COLLATE "C" NOT NULL, created FLOAT8 NOT NULL, expires FLOAT8,
  revoked INTEGER NOT NULL, changed BIGINT NOT NULL, size BIGINT NOT NULL, seal TEXT NOT NULL,
  vector BYTEA, body TEXT NOT NULL
);
CREATE INDEX agentpar_bank_entries_key ON agentpar_bank_entries (namespace, key);
CREATE INDEX agentpar_bank_entries_likeness ON agentpar_bank_entries (namespace, likeness);
CREATE INDEX agentpar_bank_entries_changed ON agentpar_bank_entries (changed, seq);
CREATE INDEX agentpar_bank_entries_expires ON agentpar_bank_entries (expires)
  WHERE expires IS NOT NULL;
CREATE TABLE agentpar_bank_producers (
  entry TEXT COLLATE "C" NOT NULL, run TEXT COLLATE "C" NOT NULL, task BIGINT NOT NULL,
  team INTEGER NOT NULL, number BIGINT NOT NULL, seal TEXT NOT NULL,
  PRIMARY KEY (entry, run, task)
);
CREATE INDEX agentpar_bank_producers_run ON agentpar_bank_producers (run);
CREATE TABLE agentpar_bank_sources (
  source TEXT COLLATE "C" NOT NULL, entry TEXT COLLATE "C" NOT NULL, PRIMARY KEY (source, entry)
);
CREATE TABLE agentpar_bank_parents (
  parent TEXT COLLATE "C" NOT NULL, entry TEXT COLLATE "C" NOT NULL, PRIMARY KEY (parent, entry)
);
CREATE TABLE agentpar_bank_revoked (
  entry TEXT COLLATE "C" PRIMARY KEY, why TEXT NOT NULL, at FLOAT8 NOT NULL
);
CREATE TABLE agentpar_bank_readings (
  number BIGINT PRIMARY KEY, entry TEXT COLLATE "C" NOT NULL,
  run TEXT COLLATE "C" NOT NULL, task BIGINT NOT NULL, team INTEGER NOT NULL,
  spared_seconds FLOAT8 NOT NULL, spared_tokens BIGINT NOT NULL, context_tokens BIGINT NOT NULL,
  at FLOAT8 NOT NULL, namespace TEXT COLLATE "C" NOT NULL, seal TEXT NOT NULL
);
CREATE INDEX agentpar_bank_readings_entry ON agentpar_bank_readings (entry);
CREATE TABLE agentpar_bank_runs (run TEXT COLLATE "C" PRIMARY KEY, entries BIGINT NOT NULL);
CREATE TABLE agentpar_bank_leases (
  namespace TEXT COLLATE "C" NOT NULL, likeness TEXT COLLATE "C" NOT NULL,
  run TEXT COLLATE "C" NOT NULL, task BIGINT NOT NULL, team INTEGER NOT NULL,
  fence BIGINT NOT NULL, until FLOAT8 NOT NULL, PRIMARY KEY (namespace, likeness)
);
"""


_VECTORS = """
CREATE TABLE agentpar_bank_vectors (
  seq BIGINT PRIMARY KEY REFERENCES agentpar_bank_entries ON DELETE CASCADE,
  namespace TEXT COLLATE "C" NOT NULL, vector vector({dimension}) NOT NULL
);
CREATE INDEX agentpar_bank_vectors_namespace ON agentpar_bank_vectors (namespace);
"""
_HNSW = """
CREATE INDEX agentpar_bank_vectors_hnsw ON agentpar_bank_vectors
  USING hnsw (vector vector_cosine_ops);
"""
_MOST_INDEXED = 2_000
"""Numbers of a vector that pgvector's index takes; longer ones are looked at one by one."""


class PostgresStore(MirroredStore):
    """A `Store` in the database at ``url``, in tables that begin with ``agentpar_bank_``. Rows are
    sealed where the environment has a key. For the keywords see `SqlStore`."""

    _clock = "extract(epoch FROM clock_timestamp())::float8"

    def __init__(self, url: str, **limits: Any) -> None:
        super().__init__(**limits)
        self._database = Database(url, what="bank", settings=SETTINGS)
        self.place = self._database.place
        self._opened = False
        self._pgvector = False

    def open(self) -> None:
        secret = key.from_environment()
        seals = Seals(secret)
        self._opened = True
        try:
            with self._writing(durable=True) as execute:
                execute("SELECT pg_advisory_xact_lock(?)", _LOCK)
                (there,) = execute("SELECT to_regclass('agentpar_bank_meta')").fetchone()
                if there is None:
                    execute(_TABLES)
                    execute(
                        "INSERT INTO agentpar_bank_meta VALUES (?, 0, 0, ?)",
                        *(VERSION, seals.of("bank")),
                    )
                version, seal = execute("SELECT version, seal FROM agentpar_bank_meta").fetchone()
            if version != VERSION:
                raise BankError(
                    f"the bank {self.place} is of format {version}, and this agentpar reads format "
                    f"{VERSION}: use the agentpar that wrote it, or name another database"
                )
            if not hmac.compare_digest(seal, seals.of("bank")):
                raise BankError(
                    f"the bank {self.place} was sealed under another key, or under none: set "
                    f"{key.VARIABLE} as it was when the bank was made"
                )
        except BaseException:
            self.close()
            raise
        self._seals = seals

    def close(self) -> None:
        self._opened = self._pgvector = False
        self._forget()
        self._database.close()

    def _time(self, execute: Execute) -> float:
        return float(execute(f"SELECT {self._clock}").fetchone()[0])

    def _next(self, execute: Execute) -> tuple[int, int, float]:
        # The row stays locked until the transaction ends; the clock is read once it is ours.
        number, dimension, now = execute(
            "UPDATE agentpar_bank_meta SET changed = changed + 1"
            f" RETURNING changed, dimension, {self._clock}"
        ).fetchone()
        return number, dimension, now

    # The nearest

    def nearest(self, namespace: str, vector: Sequence[float], k: int) -> list[tuple[Entry, float]]:
        data = packed(vector)
        assert data is not None
        if k < 1:
            return []
        with self._reading() as execute:
            check_size(data, self._dimension(execute))
            if any(data) and self._has_pgvector(execute):
                # Of an index and a condition come too few at times, and not the nearest.
                found = self._nearest(execute, namespace, data, k)
                if len(found) < k:
                    execute("SET LOCAL enable_indexscan = off")
                    found = self._nearest(execute, namespace, data, k)
                return found
        return super().nearest(namespace, vector, k)

    def _nearest(
        self, execute: Execute, namespace: str, data: bytes, k: int
    ) -> list[tuple[Entry, float]]:
        rows = execute(
            f"SELECT {', '.join(f'e.{name}' for name in COLUMNS.split(', '))},"
            " v.vector <=> ?::vector AS distance FROM agentpar_bank_vectors v"
            " JOIN agentpar_bank_entries e ON e.seq = v.seq WHERE v.namespace = ?"
            f" AND e.revoked = 0 AND (e.expires IS NULL OR e.expires > {self._clock})"
            " ORDER BY distance LIMIT ?",
            *(_numbers(data), escaped(namespace), k),
        ).fetchall()
        found = [(Row.of(values[:-1]), 1.0 - values[-1]) for values in rows]
        return [(row.entry(), cosine) for row, cosine in found if self._believed(row)]

    def _index(self, execute: Execute, row: Row) -> None:
        if not self._has_pgvector(execute):
            return  # the mirror looks for itself
        execute("DELETE FROM agentpar_bank_vectors WHERE seq = ?", row.seq)
        if not row.revoked and row.vector is not None and any(row.vector):
            execute(
                "INSERT INTO agentpar_bank_vectors VALUES (?, ?, ?::vector)",
                *(row.seq, row.namespace, _numbers(row.vector)),
            )

    def _has_pgvector(self, execute: Execute) -> bool:
        """Whether the vectors lie in pgvector's table; once they do, they always will."""
        if not self._pgvector:
            (there,) = execute("SELECT to_regclass('agentpar_bank_vectors')").fetchone()
            self._pgvector = there is not None
        return self._pgvector

    def _set_dimension(self, execute: Execute, dimension: int) -> None:
        super()._set_dimension(execute, dimension)
        if _makes_pgvector(execute):
            execute(_VECTORS.format(dimension=dimension))
            if dimension <= _MOST_INDEXED:
                execute(_HNSW)

    # The connection

    @contextlib.contextmanager
    def _writing(self, *, durable: bool = False) -> Iterator[Execute]:
        if not self._opened:
            raise BankError(f"the bank {self.place} is closed")
        with told(self._database), self._database.transaction() as execute:
            if durable:
                execute("SET LOCAL synchronous_commit = on")
            yield execute

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Execute]:
        with self._writing() as execute:
            yield execute


@contextlib.contextmanager
def told(database: Database) -> Iterator[None]:
    """Postgres's errors in a bank's words."""
    import psycopg

    try:
        yield
    except psycopg.Error as error:
        raise BankError(database.trouble(error)[0]) from error


def _makes_pgvector(execute: Execute) -> bool:
    """Whether the server has pgvector, of a version that goes on looking where a condition left
    too few; it is made part of the database where that is allowed."""
    import psycopg

    try:
        execute("SAVEPOINT pgvector")
        row = execute(
            "SELECT default_version FROM pg_available_extensions WHERE name = 'vector'"
        ).fetchone()
        if row is None:
            return False
        execute("CREATE EXTENSION IF NOT EXISTS vector")
        (version,) = execute(
            "SELECT extversion FROM pg_extension WHERE extname = 'vector'"
        ).fetchone()
        (found,) = execute("SELECT to_regtype('vector')").fetchone()
        return found is not None and [int(part) for part in version.split(".")[:2]] >= [0, 8]
    except psycopg.errors.InsufficientPrivilege:
        execute("ROLLBACK TO SAVEPOINT pgvector")
        return False


def _numbers(vector: bytes) -> str:
    """A vector as pgvector writes it."""
    return f"[{','.join(map(repr, little(array('f', vector))))}]"
