"""The nearest entries of any database: a mirror of its vectors that catches up before it is asked.

It must never serve what the mirror says unseen: what another process has withdrawn meanwhile is
found when the row is looked up.
"""

from __future__ import annotations

from collections.abc import Sequence

from agentpar.memory.entry import Entry
from agentpar.memory.store.mirror import Mirror, checked
from agentpar.memory.store.rows import COLUMNS, Row, check_size, escaped
from agentpar.memory.store.sql import Execute, SqlStore

_BATCH = 5_000


class MirroredStore(SqlStore):
    """A `SqlStore` that finds the nearest in a `Mirror`."""

    _mirror: Mirror | None = None

    def nearest(self, namespace: str, vector: Sequence[float], k: int) -> list[tuple[Entry, float]]:
        if k < 1:
            return []
        space, data = escaped(namespace), checked(vector)
        if self._mirror is None:
            self._mirror = Mirror()
        mirror = self._mirror
        found: list[tuple[Entry, float]] = []
        with self._reading() as execute:
            check_size(data, self._dimension(execute))
            self._catch_up(execute, mirror)
            now = self._time(execute)
            for some in mirror.nearest(space, vector, k, now):
                for seq, score in some:
                    row = self._standing(execute, seq, now)
                    if row is None:
                        mirror.drop(space, seq)
                    else:
                        found.append((row.entry(), score))
                        if len(found) == k:
                            return found
        return found

    def _standing(self, execute: Execute, seq: int, now: float) -> Row | None:
        values = execute(
            f"SELECT {COLUMNS} FROM agentpar_bank_entries WHERE seq = ?", seq
        ).fetchone()
        row = None if values is None else Row.of(values)
        return row if row is not None and row.stands(now) and self._believed(row) else None

    def _catch_up(self, execute: Execute, mirror: Mirror) -> None:
        """See what was written since the last time, by whomever."""
        while True:
            rows = execute(
                "SELECT changed, seq, namespace, vector, expires, revoked"
                " FROM agentpar_bank_entries WHERE (changed, seq) > (?, ?)"
                f" ORDER BY changed, seq LIMIT {_BATCH}",
                *mirror.upto,
            ).fetchall()
            taken: dict[str, list[tuple[int, bytes, float | None]]] = {}
            for _, seq, space, vector, expires, revoked in rows:
                if revoked:
                    mirror.drop(space, seq)
                elif vector is not None:
                    taken.setdefault(space, []).append((seq, vector, expires))
            for space, some in taken.items():
                mirror.take(space, some)
            if rows:
                mirror.upto = rows[-1][:2]
            if len(rows) < _BATCH:
                return

    def _index(self, execute: Execute, row: Row) -> None:
        pass  # the mirror looks for itself

    def _forget(self) -> None:
        """The next connection may see another bank."""
        self._mirror = None
