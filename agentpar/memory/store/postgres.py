"""A bank in Postgres, for agents on several machines.

Knows SQL and psycopg; must never know a tool or a run. The server's clock alone counts, so the
clocks of the machines may differ. A connection that breaks is made anew by the next call.
"""

from __future__ import annotations

import contextlib
import hmac
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from agentpar.errors import BankError, MissingPackage, UsageError
from agentpar.memory.store import key
from agentpar.memory.store.mirrored import MirroredStore
from agentpar.memory.store.rows import Seals
from agentpar.memory.store.sql import VERSION, Execute

if TYPE_CHECKING:
    import psycopg

_LOCK = 0x61677062
"""Of the one who makes the tables: "agpb"."""
_CONNECTION: dict[str, Any] = {
    "application_name": "agentpar",
    "connect_timeout": 5,
    "tcp_user_timeout": 10_000,
}
# A power cut may cost the last entries, which can be found again, and nothing else.
_SETTINGS = (
    "-c synchronous_commit=off -c lock_timeout=10s -c idle_in_transaction_session_timeout=10s "
    "-c client_min_messages=warning"
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


class PostgresStore(MirroredStore):
    """A `Store` in the database at ``url``, in tables that begin with ``agentpar_bank_``. Rows are
    sealed where the environment has a key. For the keywords see `SqlStore`."""

    def __init__(self, url: str, **limits: Any) -> None:
        try:
            import psycopg
        except ImportError:
            purpose = "a bank in Postgres"
            raise MissingPackage("psycopg", extra="postgres", purpose=purpose) from None
        super().__init__(**limits)
        try:
            known = psycopg.conninfo.conninfo_to_dict(url)
        except psycopg.Error as error:  # its text may show the password
            kind = type(error).__name__
            raise UsageError(
                "the bank's address is none that Postgres knows "
                f"({kind}): write postgresql://user@host:5432/database"
            ) from None
        self.place = f"{known.get('dbname', '')} on Postgres at {known.get('host', 'localhost')}"
        options = f"{_SETTINGS} {known.pop('options', None) or ''}"
        self._url = psycopg.conninfo.make_conninfo(**{**_CONNECTION, **known}, options=options)
        self._connected: psycopg.Connection[Any] | None = None
        self._opened = False

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
        connection, self._connected = self._connected, None
        self._opened = False
        self._forget()
        if connection is not None:
            connection.close()

    def _time(self, execute: Execute) -> float:
        return float(execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone()[0])

    # The connection

    @contextlib.contextmanager
    def _writing(self, *, durable: bool = False) -> Iterator[Execute]:
        """A transaction, on a new connection where there is none; errors in our words."""
        import psycopg

        if not self._opened:
            raise BankError(f"the bank {self.place} is closed")
        connection = self._connected
        try:
            if connection is None or connection.closed:
                connection = self._connected = psycopg.connect(self._url)
            try:
                if durable:
                    connection.execute("SET LOCAL synchronous_commit = on")
                yield partial(_execute, connection)
                connection.commit()
            except BaseException:
                if not connection.closed:
                    with contextlib.suppress(psycopg.Error):
                        connection.rollback()
                raise
        except psycopg.errors.DiskFull as error:
            raise BankError(
                f"there is no room for more in the bank {self.place} ({_text(error)}): what it "
                "holds is untouched; make room on its disk"
            ) from error
        except psycopg.errors.ReadOnlySqlTransaction as error:
            raise BankError(
                f"the bank {self.place} cannot be written ({_text(error)}): name a server that may "
                "be written to"
            ) from error
        except psycopg.Error as error:
            # A session that the server has ended comes as an error of any kind: what tells is
            # that the connection is closed.
            lost = isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
            if lost or (connection is not None and connection.closed):
                raise BankError(f"the bank {self.place} is gone: {_text(error)}") from error
            raise BankError(f"the bank {self.place} cannot be used: {_text(error)}") from error

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Execute]:
        with self._writing() as execute:
            yield execute


def _execute(connection: psycopg.Connection[Any], statement: str, *parameters: Any) -> Any:
    # Without parameters several statements may go at once, and a "%" means itself.
    return connection.execute(statement.replace("?", "%s"), parameters or None)


def _text(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
