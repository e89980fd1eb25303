"""What our SQLite files have in common: how one is opened, a transaction, and whether it is whole.

It must never know what lies in a file, nor which errors its users raise: it says what is wrong.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

_URL = "sqlite:///"

Kind = Literal["busy", "foreign", "damaged", "full", "folder", "shut", "other"]
"""What is wrong: another has it locked; it is no database, or another's; it is damaged; the disk is
full; it is a folder; it cannot be opened or written; something else."""


class Trouble(NamedTuple):
    """What is wrong with a file, and what to do about it, in words."""

    kind: Kind
    text: str


def trouble(error: sqlite3.Error, what: str, place: str, path: Path | None) -> Trouble:
    """What SQLite says of the ``what`` ("bank") at ``place``, as its user is told."""
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return Trouble("busy", f"the {what} {place} is in use: {error}")
    if name.startswith("SQLITE_NOTADB"):
        text = f"{place} is no {what} (no SQLite database): name another file"
        return Trouble("foreign", text)
    if name.startswith("SQLITE_CORRUPT"):
        return Trouble(
            "damaged",
            f"the {what} {place} is damaged ({error}). It is left as it is: put a copy in its "
            "place, or name another file",
        )
    if name.startswith("SQLITE_FULL"):
        return Trouble(
            "full",
            f"there is no room for more in the {what} {place} ({error}): what it holds is "
            "untouched; make room on the disk",
        )
    if path is not None and path.is_dir():
        text = f"the {what} {place} is a folder: name a file in it, such as sqlite:///{what}.db"
        return Trouble("folder", text)
    if name.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM")):
        return Trouble(
            "shut",
            f"the {what} {place} cannot be written ({error}): its file and its folder must be "
            "writable, or name another place",
        )
    return Trouble("other", f"the {what} {place} cannot be used: {error}")


def file_in(url: str) -> str:
    """The name of the file that ``sqlite:///FILE`` names; nothing where ``url`` is no such."""
    return url.removeprefix(_URL).partition("?")[0] if url.startswith(_URL) else ""


def no_address(what: str, url: str) -> str:
    """What is told of a ``url`` that is no address of a ``what``, without any password in it."""
    kind = url.partition(":")[0]
    wrong = f"got an address of {kind!r}"
    if kind == "sqlite":
        wrong = "got 'sqlite:' without three slashes and the name of a file"
    elif kind == url:
        wrong = f"got {url!r}: write 'sqlite:///{url}'"
    return f"a {what} is at sqlite:///FILE or postgresql://…, {wrong}"


def not_ours(what: str, place: str) -> str:
    """What is told of a database that carries another program's mark."""
    return f"{place} is a database of another program and no {what}: name another file"


def of_another_format(what: str, place: str, there: int, ours: int) -> str:
    """What is told of a file of ours that another agentpar wrote."""
    return (
        f"the {what} {place} is of format {there}, and this agentpar reads format {ours}: use the "
        "agentpar that wrote it, or name another file"
    )


def cut_off(what: str, place: str, left: tuple[int, int]) -> str:
    """What is told of a file whose end is missing (`what_is_left`)."""
    return (
        f"the {what} {place} is cut off: {left[0]:,} of {left[1]:,} bytes. Put a copy in its "
        "place, or name another file"
    )


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
