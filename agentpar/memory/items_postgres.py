"""A bank's items in Postgres, for agents on several machines, in tables ``agentpar_langgraph_…``.

Knows transactions and locks; must never know what an item is for. The server's clock counts, so
those of the machines may differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from agentpar.errors import BankError
from agentpar.memory.items import Items
from agentpar.memory.store.postgres import SETTINGS, told
from agentpar.postgres import Database, Execute

_LOCK = 0x6167706C
"""Of the one who writes: "agpl". So numbers of vectors are seen in their order, and nothing is read
and then written behind another's back."""
# Names compared byte by byte: what begins with a namespace lies side by side.
_SCHEMA = """
CREATE TABLE langgraph_meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE langgraph_items (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    namespace TEXT COLLATE "C" NOT NULL,
    key TEXT COLLATE "C" NOT NULL,
    value TEXT NOT NULL,
    created FLOAT8 NOT NULL,
    updated FLOAT8 NOT NULL,
    expires FLOAT8,
    ttl FLOAT8,
    UNIQUE (namespace, key)
);
CREATE INDEX langgraph_expires ON langgraph_items (expires) WHERE expires IS NOT NULL;
CREATE TABLE langgraph_vectors (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    item BIGINT NOT NULL,
    namespace TEXT COLLATE "C" NOT NULL,
    vector BYTEA NOT NULL
);
CREATE INDEX langgraph_vectors_of ON langgraph_vectors (item);
"""


class PostgresItems(Items):
    """`Items` in the database at ``url``; without ``clock`` by the server's."""

    def __init__(
        self,
        url: str,
        *,
        omit_expired: bool = False,
        clock: Callable[[], float] | None = None,
    ) -> None:
        super().__init__(omit_expired=omit_expired, clock=clock)
        self._database = Database(url, what="bank", settings=SETTINGS)
        self.place = self._database.place
        self._opened = False
        self._in_batch: Execute | None = None

    def open(self) -> None:
        self._opened = True
        try:
            with self.batch(writes=True):
                [(there,)] = self._execute("SELECT to_regclass('langgraph_meta')")
                if there is None:
                    self._execute(_SCHEMA)
                self._check_version()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        with self._lock:
            self._opened = False
            self._database.close()

    @contextmanager
    def batch(self, *, writes: bool) -> Iterator[None]:
        with self._lock:
            if not self._opened:
                raise BankError(f"{self.place} was closed; open it again first")
            with told(self._database), self._database.transaction() as execute:
                if writes:
                    execute("SELECT pg_advisory_xact_lock(?)", _LOCK)
                else:
                    execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
                self._in_batch = execute
                try:
                    yield
                finally:
                    self._in_batch = None

    @contextmanager
    def _look(self, *, writes: bool = False) -> Iterator[None]:
        with self._lock:
            if self._in_batch is not None:
                yield
                return
            with self.batch(writes=writes):
                yield

    def _execute(self, sql: str, values: Sequence[Any] = ()) -> Any:
        if self._in_batch is None:
            raise BankError(f"{self.place} was closed; open it again first")
        return self._in_batch(sql.replace("langgraph_", "agentpar_langgraph_"), *values)

    def _now(self) -> float:
        if self._clock is not None:
            return self._clock()
        [(now,)] = self._execute("SELECT extract(epoch FROM clock_timestamp())::float8")
        return float(now)
