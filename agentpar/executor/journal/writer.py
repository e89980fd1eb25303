"""The thread that writes: events in the order they came, many to a transaction.

While one transaction goes to disk the next events gather, so a busy journal writes larger
groups and no slower. The thread also renews what this process holds. It must never know
what an event means, or decide what a run does about a journal that fails.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from agentpar.errors import JournalError, LeaseLost
from agentpar.executor.journal.host import Owner
from agentpar.executor.journal.store import Append, EventRow, Store, Unreachable

T = TypeVar("T")

_GROUP = 1000
"""Most jobs taken at once, so that a flush never waits behind an endless group."""


class Held:
    """A run that ``owner``, in this process, holds.

    ``error`` says why nothing more is written to it; it is set once, by the writer, which
    then calls ``on_error`` in its own thread.
    """

    __slots__ = ("epoch", "error", "on_error", "owner", "run")

    def __init__(
        self, run: str, owner: Owner, epoch: int, on_error: Callable[[JournalError], None]
    ) -> None:
        self.run = run
        self.owner = owner
        self.epoch = epoch
        self.on_error = on_error
        self.error: JournalError | None = None


@dataclass(frozen=True, slots=True)
class _Write:
    held: Held
    row: EventRow


@dataclass(frozen=True, slots=True)
class _Flush:
    """Done once all that this run has written so far is on disk."""

    held: Held
    done: Future[None]


@dataclass(frozen=True, slots=True)
class _Call:
    """Something else to do with the store, between transactions."""

    work: Callable[[Store], Any]
    done: Future[Any]


@dataclass(frozen=True, slots=True)
class _Hold:
    held: Held
    on: bool


class _Stop:
    """The last job."""


class Writer:
    """Owns ``store`` and the one thread that talks to it. Times are in seconds.

    ``patience``: how long a database that is away is waited for. Nothing here blocks the
    caller, and everything may be called from any thread. Its futures must not be cancelled.
    """

    def __init__(self, store: Store, *, lease: float, patience: float) -> None:
        self._store = store
        self._lease = lease
        self._patience = patience
        self._jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._held: list[Held] = []
        self._renewed = 0.0
        self._thread = threading.Thread(target=self._work, name="agentpar journal", daemon=True)
        self._thread.start()

    def write(self, held: Held, row: EventRow) -> None:
        """Write ``row`` soon."""
        self._jobs.put(_Write(held, row))

    def flush(self, held: Held) -> Future[None]:
        """Done when all rows written so far are on disk; fails with the run's error."""
        done: Future[None] = Future()
        self._jobs.put(_Flush(held, done))
        return done

    def call(self, work: Callable[[Store], T]) -> Future[T]:
        """``work(store)``, after all that was asked for before it."""
        done: Future[T] = Future()
        self._jobs.put(_Call(work, done))
        return done

    def hold(self, held: Held, on: bool = True) -> None:
        """Renew the run from now on, or no more."""
        self._jobs.put(_Hold(held, on))

    def stop(self) -> Future[None]:
        """Do all that was asked for, close the store, end the thread."""
        done = self.call(lambda store: store.close())
        self._jobs.put(_Stop())
        return done

    # In the thread

    def _work(self) -> None:
        while True:
            jobs = self._taken()
            self._renew_if_due()
            writes: list[_Write] = []
            flushes: list[_Flush] = []
            for job in jobs:
                match job:
                    case _Write():
                        writes.append(job)
                    case _Flush():
                        flushes.append(job)
                    case _Hold(held, on):
                        self._held = [one for one in self._held if one is not held]
                        self._held += [held] if on else []
                    case _Call(work, done):
                        self._group(writes, flushes)
                        writes, flushes = [], []
                        _settle(done, partial(self._patiently, work))
                    case _Stop():
                        self._group(writes, flushes)
                        return
            self._group(writes, flushes)

    def _taken(self) -> list[Any]:
        """What waits to be done; or nothing, when it is time to renew."""
        wait = max(0.0, self._renewed + self._lease / 3 - time.monotonic()) if self._held else None
        try:
            jobs = [self._jobs.get(timeout=wait)]
        except queue.Empty:
            return []
        with contextlib.suppress(queue.Empty):
            while len(jobs) < _GROUP:
                jobs.append(self._jobs.get_nowait())
        return jobs

    def _group(self, writes: Sequence[_Write], flushes: Sequence[_Flush]) -> None:
        """Write the rows of runs that are still ours in one transaction."""
        # A run that has failed gets no further rows: they would leave a hole before them.
        writes = [write for write in writes if write.held.error is None]
        if writes:
            appends = [Append(write.held.run, write.held.epoch, write.row) for write in writes]
            try:
                lost = self._patiently(lambda store: store.write(appends))
            except Exception as error:
                for write in writes:
                    self._fail(write.held, error)
            else:
                for write in writes:
                    if write.held.run in lost:
                        self._fail(write.held, _lost(write.held))
        for flush in flushes:
            _settle(flush.done, partial(_raise, flush.held.error))

    def _renew_if_due(self) -> None:
        now = time.monotonic()
        live = [held for held in self._held if held.error is None]
        if not live or now < self._renewed + self._lease / 3:
            return
        self._renewed = now
        pairs = [(held.run, held.epoch) for held in live]
        try:
            lost = self._store.renew(pairs, self._lease)
        except Exception:
            return  # what is lost or broken, the next write or the next renewal will say
        for held in live:
            if held.run in lost:
                self._fail(held, _lost(held))

    def _patiently(self, work: Callable[[Store], T]) -> T:
        """``work(store)``, again and again while the database is away."""
        give_up = time.monotonic() + self._patience
        pause = 0.05
        while True:
            try:
                return work(self._store)
            except Unreachable as error:
                if time.monotonic() + pause > give_up:
                    raise JournalError(f"{error} (waited {self._patience:g} s)") from error
            time.sleep(pause)
            pause = min(2 * pause, 1.0)

    def _fail(self, held: Held, error: Exception) -> None:
        if held.error is not None:
            return
        if not isinstance(error, JournalError):
            error = JournalError(f"the journal {self._store.place} failed: {error!r}")
        held.error = error
        self._held = [one for one in self._held if one is not held]
        held.on_error(error)


def _lost(held: Held) -> LeaseLost:
    return LeaseLost(
        f"run {held.run!r} was taken over by another process, as this one had not been heard of "
        "for too long; it goes on there"
    )


def _settle(done: Future[T], work: Callable[[], T]) -> None:
    try:
        result = work()
    except Exception as error:
        done.set_exception(error)
    else:
        done.set_result(result)


def _raise(error: Exception | None) -> None:
    if error is not None:
        raise error
