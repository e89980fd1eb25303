"""Where a bank's entries lie: SQLite for one host, Postgres for many.

The only door to it is `open_store`; what stands behind is chosen by the address.
"""

from __future__ import annotations

from collections.abc import Callable

from agentpar.errors import UsageError
from agentpar.memory.store.base import Put, Statistics, Store

__all__ = ["Put", "Statistics", "Store", "open_store"]

_POSTGRES = ("postgresql://", "postgres://")


def open_store(
    url: str | None,
    *,
    max_entry_bytes: int = 200_000,
    max_entries: int | None = 10_000,
    tell: Callable[[str], None] | None = None,
) -> Store:
    """The store at ``url``, not open yet; None: in this process's memory, gone when it is closed.

    ``sqlite:///bank.db`` is a file below the current folder, ``sqlite:////var/bank.db`` one from
    the root, ``postgresql://user@host/database`` needs the ``postgres`` extra. An entry of more
    than ``max_entry_bytes`` is refused, and so is one more of a run that has brought
    ``max_entries`` (None: no limit). ``tell`` is told in words of each entry that another program
    has changed, which is not used.
    """
    from agentpar.sqlite import file_in, no_address

    name = None
    if url is not None and url.startswith(_POSTGRES):
        from agentpar.memory.store.postgres import PostgresStore

        return PostgresStore(
            url, max_entry_bytes=max_entry_bytes, max_entries=max_entries, tell=tell
        )
    if url is not None:
        name = file_in(url)
        if not name:
            raise UsageError(no_address("bank", url))
    from agentpar.memory.store.sqlite import SqliteStore

    return SqliteStore(
        name or ":memory:", max_entry_bytes=max_entry_bytes, max_entries=max_entries, tell=tell
    )
