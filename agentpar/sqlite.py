"""What our SQLite files have in common: a transaction, and whether a file is whole.

It must never know what lies in a file, nor whose words its errors are told in.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path


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
