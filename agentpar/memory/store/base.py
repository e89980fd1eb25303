"""What a bank asks of the place where its entries lie.

Everything here blocks and is one transaction each. Whoever calls it decides on which thread, and
calls it from one at a time. The store's clock is the only one: hosts whose clocks differ agree on
what has expired, as they ask one store.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from agentpar.memory.entry import Entry, Lease, Reading, Revocation


@dataclass(frozen=True, slots=True)
class Put:
    """What became of an entry: it is ``new``, or there was one that says the same, of which it is
    one more producer. ``entry`` is what now stands there; ``revoked``: it was withdrawn, or is made
    of what was, and nobody will find it."""

    entry: Entry
    new: bool
    revoked: bool = False


@dataclass(frozen=True, slots=True)
class Statistics:
    """How many entries, readings, leases held and revoked entries a store has; ``bytes`` of the
    entries; ``spared_seconds`` and ``spared_tokens`` by the readings. ``refused``: rows that
    another program has changed, which are not used and count nowhere else."""

    entries: int = 0
    revoked: int = 0
    readings: int = 0
    leases: int = 0
    bytes: int = 0
    spared_seconds: float = 0.0
    spared_tokens: int = 0
    refused: int = 0


class Store(Protocol):
    """Raises `BankError` where it cannot do what it is asked: the file is corrupt, of another
    version, read-only; the disk is full; the server is gone; an entry is too large."""

    def open(self) -> None:
        """Connect, and make what is missing. Again after `close`."""
        ...

    def close(self) -> None: ...

    def now(self) -> float:
        """Seconds since the epoch."""
        ...

    # Entries

    def put(self, entry: Entry, vector: Sequence[float] | None = None) -> Put:
        """Keep ``entry``, which gets its time of creation here; one that was revoked stays so."""
        ...

    def trace(self, entry: Entry) -> bool:
        """Note where ``entry`` comes from and who had it, and keep nothing of it: its source, when
        it is revoked, leads to what was made of it and to the answers that it touched. False where
        it was withdrawn, or is made of what was."""
        ...

    def find(self, namespace: str, key: str, like: str) -> Entry | None:
        """The entry that answers a call: of those with this ``key``, else with this ``like``, that
        are neither expired nor revoked, the latest."""
        ...

    def nearest(self, namespace: str, vector: Sequence[float], k: int) -> list[tuple[Entry, float]]:
        """The ``k`` entries with the largest cosine to ``vector``, largest first."""
        ...

    def entries(self, namespace: str | None = None, *, revoked: bool = False) -> Iterator[Entry]:
        """All that stands (with ``revoked``: all that was withdrawn), oldest first."""
        ...

    def remove_expired(self) -> int:
        """Drop what has expired; how many entries that were. Their ledger stays."""
        ...

    # The ledger

    def used(self, reading: Reading) -> None: ...

    def readings(self, entry_id: str | None = None) -> list[Reading]: ...

    def producers(self, entry_id: str) -> list[tuple[str, int, int]]:
        """Run, task and team of each that brought it."""
        ...

    def revoke(self, source: str, why: str = "", *, dry_run: bool = False) -> Revocation:
        """Withdraw what comes from ``source`` (an address or the beginning of one, an entry's id,
        a run's id) and, over ``parents``, all that was made of it. With ``dry_run``: only what that
        would be."""
        ...

    # Leases

    def lease(
        self, namespace: str, like: str, run_id: str, task_id: int, team: int, seconds: float
    ) -> Lease:
        """The lease on ``like``: a new one for whoever asks, if nobody else holds one that has not
        run out; else the one that is held. A holder that asks again, in another attempt or from
        another process, has a new one too, and the fence of its earlier one opens nothing more."""
        ...

    def renew(self, lease: Lease, seconds: float) -> Lease | None:
        """The lease with more time; None where it is another's by now."""
        ...

    def release(self, lease: Lease) -> bool:
        """Give it up; False where it was another's by now."""
        ...

    # At a glance

    def statistics(self, namespace: str | None = None) -> Statistics: ...
