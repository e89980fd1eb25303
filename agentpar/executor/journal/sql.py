"""What every database does alike for a journal: its rows, in SQL that all of them know.

It must never know which database that is, how one connects to it, or what an event means.
What differs (time, locks, how lines lie on disk) is for `sqlite` and `postgres` to say.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from agentpar.executor.journal.host import Owner
from agentpar.executor.journal.store import Append, RunRow, Status

Execute = Callable[..., Any]
"""``execute(statement, *parameters)`` gives a DB-API cursor. Tables are named with the prefix
``agentpar_`` and a parameter is ``?``, whatever the database has in their place."""

_OVER = "status IN ('answered', 'failed')"


class SqlStore(ABC):
    """Most of a `Store`.

    ``_now`` is SQL for the time that leases count on, ``_later`` for the time that is one
    parameter (seconds) after it, ``_ago`` for so long before the time of day. ``_lock`` ends a
    SELECT whose rows nobody else may change until the transaction ends; ``_lock_or_pass`` gives
    none where somebody else has locked them already.
    """

    _now: ClassVar[str]
    _later: ClassVar[str]
    _today: ClassVar[str]
    _ago: ClassVar[str]
    _lock: ClassVar[str]
    _lock_or_pass: ClassVar[str]

    place: str

    @abstractmethod
    def _reading(self) -> AbstractContextManager[Execute]:
        """A look at the database; errors in our words."""

    @abstractmethod
    def _writing(self) -> AbstractContextManager[Execute]:
        """One transaction: what is read in it still holds at its end."""

    @abstractmethod
    def _insert(self, execute: Execute, appends: Sequence[Append]) -> None:
        """Add the events, those that are there already excepted."""

    @abstractmethod
    def _may_live(self, owner: Owner) -> bool:
        """Whether the holder of a lease that has not run out may be there still."""

    @abstractmethod
    def sweep(self) -> int: ...

    # Runs

    def runs(self) -> list[RunRow]:
        with self._reading() as execute:
            rows = execute(f"{self._run} ORDER BY created, id").fetchall()
        return [self._run_of(row) for row in rows]

    def find(self, run: str) -> RunRow | None:
        with self._reading() as execute:
            row = execute(f"{self._run} WHERE id = ?", run).fetchone()
        return None if row is None else self._run_of(row)

    def begin(
        self, run: str, question: str, agent: str, spec: str, setup: str, owner: str, lease: float
    ) -> int | None:
        with self._writing() as execute:
            execute(
                "INSERT INTO agentpar_runs (id, question, agent, spec, setup, status, owner,"
                " until, epoch, created, ended) VALUES (?, ?, ?, ?, ?, 'running', ?,"
                f" {self._later}, 1, {self._today}, {self._today}) ON CONFLICT (id) DO NOTHING",
                *(run, question, agent, spec, setup, owner, lease),
            )
            query = "SELECT epoch FROM agentpar_runs WHERE id = ? AND owner = ?"
            ours = execute(query, run, owner).fetchone()
        return None if ours is None else int(ours[0])

    def claim(self, run: str, owner: str, lease: float) -> int | None:
        with self._writing() as execute:
            row = execute(f"{self._run} WHERE id = ?{self._lock}", run).fetchone()
            return None if row is None else self._claimed(execute, row, owner, lease)

    def orphans(self, agent: str) -> list[RunRow]:
        with self._reading() as execute:
            rows = execute(
                f"{self._run} WHERE status = 'running' AND agent = ? ORDER BY created, id", agent
            ).fetchall()
        return [run for run in map(self._run_of, rows) if not run.held]

    def claim_orphan(self, run: str, owner: str, lease: float) -> int | None:
        with self._writing() as execute:
            row = execute(
                f"{self._run} WHERE id = ? AND status = 'running'{self._lock_or_pass}", run
            ).fetchone()
            return None if row is None else self._claimed(execute, row, owner, lease)

    def _claimed(
        self, execute: Execute, row: Sequence[Any], owner: str, lease: float
    ) -> int | None:
        found = self._run_of(row)
        if found.owner == owner:  # this very claim, before its connection broke
            query = "SELECT epoch FROM agentpar_runs WHERE id = ?"
            return int(execute(query, found.id).fetchone()[0])
        return None if found.held else self._take(execute, found.id, owner, lease)

    def _take(self, execute: Execute, run: str, owner: str, lease: float) -> int:
        """The run is ``owner``'s from now on: its new epoch."""
        execute(
            f"UPDATE agentpar_runs SET owner = ?, until = {self._later}, epoch = epoch + 1,"
            " status = 'running' WHERE id = ?",
            *(owner, lease, run),
        )
        return int(execute("SELECT epoch FROM agentpar_runs WHERE id = ?", run).fetchone()[0])

    def renew(self, held: Sequence[tuple[str, int]], lease: float) -> Collection[str]:
        with self._writing() as execute:
            lost = self._lost(execute, held)
            for run, epoch in held:
                execute(
                    f"UPDATE agentpar_runs SET until = {self._later} WHERE id = ? AND epoch = ?",
                    *(lease, run, epoch),
                )
        return lost

    def release(self, run: str, epoch: int, status: Status) -> bool:
        with self._writing() as execute:
            done = execute(
                f"UPDATE agentpar_runs SET status = ?, until = {self._now}, ended = {self._today}"
                " WHERE id = ? AND epoch = ?",
                *(status, run, epoch),
            )
            return bool(done.rowcount == 1)

    # Events

    def write(self, appends: Sequence[Append]) -> Collection[str]:
        with self._writing() as execute:
            lost = self._lost(execute, {(append.run, append.epoch) for append in appends})
            ours = [append for append in appends if append.run not in lost]
            if ours:
                self._insert(execute, ours)
        return lost

    def supersede(self, run: str, epoch: int, seq: int) -> bool:
        with self._writing() as execute:
            if self._lost(execute, [(run, epoch)]):
                return False
            execute("UPDATE agentpar_events SET seq = -id WHERE run = ? AND seq >= ?", run, seq)
            return True

    def _lost(self, execute: Execute, held: Collection[tuple[str, int]]) -> set[str]:
        """The runs that are in other hands by now; the others stay ours until the transaction
        ends."""
        query = f"SELECT 1 FROM agentpar_runs WHERE id = ? AND epoch = ?{self._lock}"
        # All take the rows in one order: nobody waits in a circle.
        return {run for run, epoch in sorted(held) if execute(query, run, epoch).fetchone() is None}

    # What is kept between runs

    def latencies(self) -> dict[str, str]:
        with self._reading() as execute:
            return dict(execute("SELECT tool, samples FROM agentpar_latency").fetchall())

    def keep_latencies(self, tool: str, samples: str) -> None:
        with self._writing() as execute:
            execute(
                "INSERT INTO agentpar_latency VALUES (?, ?) ON CONFLICT (tool)"
                " DO UPDATE SET samples = excluded.samples",
                *(tool, samples),
            )

    # What is old

    def old(self, age: float) -> list[str]:
        with self._reading() as execute:
            rows = execute(
                f"SELECT id FROM agentpar_runs WHERE {_OVER} AND ended < {self._ago}"
                " ORDER BY created, id",
                age,
            ).fetchall()
        return [str(run) for (run,) in rows]

    def remove(self, run: str, age: float) -> bool:
        with self._writing() as execute:
            query = (
                f"SELECT 1 FROM agentpar_runs WHERE id = ? AND {_OVER} AND ended < {self._ago}"
                f"{self._lock}"
            )
            if execute(query, run, age).fetchone() is None:
                return False
            execute("DELETE FROM agentpar_events WHERE run = ?", run)
            execute("DELETE FROM agentpar_runs WHERE id = ?", run)
            return True

    def stale(self) -> int:
        with self._reading() as execute:
            query = f"SELECT count(*) FROM agentpar_cache WHERE expires <= {self._today}"
            return int(execute(query).fetchone()[0])

    def drop_stale(self) -> int:
        with self._writing() as execute:
            done = execute(f"DELETE FROM agentpar_cache WHERE expires <= {self._today}")
            return int(done.rowcount)

    # Rows

    @property
    def _run(self) -> str:
        return (
            "SELECT id, question, agent, spec, setup, status, owner,"
            f" status = 'running' AND until > {self._now} FROM agentpar_runs"
        )

    def _run_of(self, row: Sequence[Any]) -> RunRow:
        id, question, agent, spec, setup, status, owner, leased = row
        held = bool(leased) and self._may_live(Owner.parse(owner))
        return RunRow(id, question, agent, spec, setup, status, held, owner)
