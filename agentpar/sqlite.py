"""What our SQLite files have in common: how one is opened, a transaction, and whether it is whole.

It must never know what lies in a file, nor whose words its errors are told in.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Stamp(NamedTuple):
    """What a database says of itself: whose it is, of which format, and how much lies in it."""

    application: int
    version: int
    tables: int


def stamp(connection: sqlite3.Connection) -> Stamp:
    """All of it of one moment: another process may be making the tables just now."""
    with transaction(connection, "DEFERRED"):
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return Stamp(application, version, tables)


def write_ahead(connection: sqlite3.Connection) -> None:
    """Readers and a writer side by side (WAL). Waits as long as the connection waits for a lock:
    for this one step SQLite does not, and refuses at once where two open a new file together."""
    (patience,) = connection.execute("PRAGMA busy_timeout").fetchone()  # milliseconds
    until = time.monotonic() + patience / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
        time.sleep(0.005)


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection, kind: str = "IMMEDIATE") -> Iterator[None]:
    """All of the block, or nothing of it. ``IMMEDIATE``: one writer at a time, of all processes;
    ``DEFERRED``: what is read is of one moment."""
    connection.execute(f"BEGIN {kind}")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
        raise


def what_is_left(connection: sqlite3.Connection, path: Path) -> tuple[int, int] | None:
    """Of a file that was cut off: how many bytes it has, and how many it should. None for one
    that is whole, so that a missing part is found here, and not at the first row in it."""
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (size,) = connection.execute("PRAGMA page_size").fetchone()
    log = path.with_name(f"{path.name}-wal")
    if log.exists() and log.stat().st_size:
        return None  # its last pages may lie in the log still
    length = path.stat().st_size
    return (length, pages * size) if length < pages * size else None
