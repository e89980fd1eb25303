"""What a run leaves behind as it goes, so that it can be carried on after any crash.

The only door to it is `open_journal`; what stands behind is chosen by the address.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentpar.errors import UsageError
from agentpar.executor.journal.journal import Journal, JournaledRun, Pruned, RunJournal
from agentpar.executor.journal.store import Store

__all__ = ["Journal", "JournaledRun", "Pruned", "RunJournal", "open_journal"]

_POSTGRES = ("postgresql://", "postgres://")


def open_journal(
    url: str,
    *,
    lease: float = 30.0,
    patience: float = 30.0,
    keep: float | None = None,
    spec: Mapping[str, Any] | None = None,
) -> Journal:
    """The journal at ``url``, not started yet; see `Journal` for the keywords.

    ``sqlite:///runs/j.db`` is a file below the current folder, ``sqlite:////var/j.db`` one
    from the root, ``postgresql://user@host/database`` needs the ``postgres`` extra.
    """
    from agentpar.sqlite import file_in, no_address

    store: Store
    if name := file_in(url):
        if name == ":memory:":
            raise UsageError("a journal in memory outlives nothing: name a file")
        from agentpar.executor.journal.sqlite import SqliteStore

        store = SqliteStore(Path(name).absolute())
    elif url.startswith(_POSTGRES):
        from agentpar.executor.journal.postgres import PostgresStore

        store = PostgresStore(url)
    else:
        raise UsageError(no_address("journal", url))
    return Journal(store, lease=lease, patience=patience, keep=keep, spec=spec)
