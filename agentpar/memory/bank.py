"""The bank: the findings of one namespace, and who is making which call for it right now.

It lives as long as the agent, or as the run whose teams it is for. Within the process equal calls
meet in a *flight*, at once; across processes in a lease of the store. It must never know a run, a
plan or an event: those are the seat's.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

from agentpar.errors import BankError
from agentpar.memory.admission import Admission
from agentpar.memory.entry import Entry, Lease, Producer, Reading
from agentpar.memory.settings import Memory
from agentpar.memory.store.base import Put, Store
from agentpar.plan import Failed, Ok

T = TypeVar("T")

TERM = 6.0
"""Seconds for which a lease is taken at a time: so late a holder that died is missed."""
FIRST_PAUSE = 0.02
LONGEST_PAUSE = 1.0
"""Between two looks at a call that another process makes, seconds."""
PATIENCE = 20.0
"""Seconds within which a store has to answer."""

Embed = Callable[[Sequence[str]], Sequence[Sequence[float]]]
"""Texts to vectors of one size, each of length 1."""


class Member(Protocol):
    """A seat, as far as the others at the bank see it."""

    run_id: str

    def demand(self, like: str) -> int:
        """Tasks that have not begun and ask for ``like``."""
        ...

    def progress(self) -> tuple[int, int]:
        """Tasks that have ended, and all that are planned."""
        ...


@dataclass(frozen=True, slots=True)
class Found:
    """What a call brought, and who made it in how many seconds. ``entry`` names it in the bank."""

    outcome: Ok
    entry: str
    producer: Producer
    seconds: float
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Lost:
    """An attempt of a call has failed, and how long the far side asked to be left alone."""

    outcome: Failed
    retry_after: float | None = None


@dataclass(eq=False, slots=True)
class Flight:
    """A call that is being made, and those in this process who wait for what it brings.

    ``crew`` counts the attempts of that call. ``until`` (the loop's seconds) is when the others are
    to wait no longer. It is ``over`` once another has taken it over. What it ``found`` serves those
    who come while it is being offered to the bank as ``entry``, which has ``kept`` it (None: not
    known yet); of those are the ``readings``. ``lost`` is how its last attempt failed.
    """

    like: str
    holder: Producer
    until: float
    crew: int = 1
    lost: Lost | None = None
    waiting: deque[asyncio.Future[Found | Lost | None]] = field(default_factory=deque)
    lease: Lease | None = None
    renewing: asyncio.Task[None] | None = None
    over: bool = False
    found: Found | None = None
    entry: Entry | None = None
    kept: bool | None = None
    readings: list[Reading] = field(default_factory=list)


class Bank:
    """What is shared in one ``namespace``, which lies in ``store``.

    ``embed`` turns texts into vectors, for `Features.novelty` and `Features.closeness`. With
    ``alone`` no other process sees the store, which then answers at once and in place; else it is
    asked on a thread of its own. Methods that ask the store raise `BankError`.
    """

    def __init__(
        self,
        store: Store,
        admission: Admission,
        *,
        namespace: str,
        settings: Memory,
        embed: Embed | None = None,
        alone: bool | None = None,
    ) -> None:
        self.admission = admission
        self.namespace = namespace
        self.settings = settings
        self.embed = embed
        self.seats: list[Member] = []
        self.held = 0
        """How many want it open although nobody sits there."""
        self._store = store
        self._alone = settings.bank is None if alone is None else alone
        self._thread: _Thread | None = None
        self._in_place = True  # whether the store is asked without a thread
        self._flights: dict[str, Flight] = {}
        self._work: set[asyncio.Task[Any]] = set()
        self._opened = False
        self._opening = asyncio.Lock()  # protects the opening from runs that begin at once

    async def start(self) -> None:
        """Open the store, unless it is open."""
        async with self._opening:
            if self._opened:
                return
            virtual = getattr(asyncio.get_running_loop(), "virtual_time", False)
            self._in_place = self._alone or virtual
            if not (self._in_place or self._thread):
                self._thread = _Thread()
            await self.ask(_open)
            self._opened = True

    async def leave(self) -> None:
        """Somebody has got up: it closes behind the last."""
        if not self.seats and not self.held:
            await self.stop()

    async def stop(self) -> None:
        """Let what is on its way to the store arrive, and close it. Raises nothing. Cancelled, it
        closes all the same, and no thread or connection is left."""
        for flight in list(self._flights.values()):
            self.clear(flight)
        loop = asyncio.get_running_loop()
        give_up = loop.time() + PATIENCE
        try:
            while self._work and (left := give_up - loop.time()) > 0:
                await asyncio.wait(self._work, timeout=left)
        finally:
            closed = self._close()
        if closed is not None:
            await asyncio.wait((asyncio.wrap_future(closed),), timeout=PATIENCE)

    def _close(self) -> Future[None] | None:
        """Close the store, behind all that was asked of it. What comes later finds it closed."""
        self._opened = False
        self._opening = asyncio.Lock()  # the next to open it may be in another event loop
        thread, self._thread = self._thread, None
        if thread is None:
            if self._in_place:
                _close(self._store)
            return None
        closed = thread.call(partial(_close, self._store))
        thread.stop()
        return closed

    async def ask(self, work: Callable[[Store], T]) -> T:
        """What ``work`` makes of the store."""
        if self._in_place:
            return work(self._store)
        if self._thread is None:
            raise BankError("the bank is closed")
        future = asyncio.wrap_future(self._thread.call(partial(work, self._store)))
        # Whoever is cancelled, or gives up waiting, does not ask how it went.
        future.add_done_callback(lambda future: future.cancelled() or future.exception())
        done, _ = await asyncio.wait((future,), timeout=PATIENCE)
        if not done:
            raise BankError(f"the bank has given no answer within {PATIENCE:g} s")
        return future.result()

    def begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do ``work``, which raises nothing, beside the caller; `stop` waits for it."""
        task = asyncio.get_running_loop().create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return task

    # Who makes a call

    def flight(self, like: str) -> Flight | None:
        """Who makes a call like this one now."""
        return self._flights.get(like)

    def take_off(self, like: str, holder: Producer) -> Flight:
        """``holder`` makes this call; those who wait for another's wait for this one."""
        now = asyncio.get_running_loop().time()
        flight = Flight(like, holder, now + (self.settings.lease or 0.0))
        if (before := self._flights.get(like)) is not None:
            before.over = True
            flight.waiting = before.waiting
            self._let_go(before)
        self._flights[like] = flight
        return flight

    async def wait(self, flight: Flight) -> Found | Lost | None:
        """What a flight brings, be it a failure; None where it is the caller's turn: it takes off
        at once."""
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[Found | Lost | None] = loop.create_future()
        line = flight.waiting
        line.append(turn)
        try:
            while not turn.done():
                now = loop.time()
                current = self._flights.get(flight.like)
                if current is None or current.until <= now:
                    return None
                await asyncio.wait((turn,), timeout=current.until - now)
            return turn.result()
        except asyncio.CancelledError:
            if turn.done() and turn.result() is None:  # the turn goes on to the next
                self._pass_on(flight.like)
            raise
        finally:
            if turn in line:
                line.remove(turn)

    def land(self, flight: Flight, found: Found) -> None:
        """The call went well: all who wait have it, at once. It stands until `clear`."""
        flight.found = found
        while flight.waiting:
            turn = flight.waiting.popleft()
            if not turn.done():
                turn.set_result(found)

    def clear(self, flight: Flight) -> None:
        """What the flight found is in the bank, or will not be."""
        if self._flights.get(flight.like) is flight:
            del self._flights[flight.like]
        self._let_go(flight)

    def give_up(self, flight: Flight) -> None:
        """An attempt has come to nothing. After the last of them all who wait are told how it
        failed; of one that was broken off there is nothing to tell, and the next makes the call."""
        flight.crew -= 1
        if flight.crew or flight.over or flight.found is not None:
            return
        flight.over = True
        self._let_go(flight)
        if flight.lost is None:
            self._pass_on(flight.like)
            return
        del self._flights[flight.like]
        while flight.waiting:
            turn = flight.waiting.popleft()
            if not turn.done():
                turn.set_result(flight.lost)

    def _pass_on(self, like: str) -> None:
        flight = self._flights.get(like)
        while flight is not None and flight.waiting:
            turn = flight.waiting.popleft()
            if not turn.done():
                flight.over = True
                turn.set_result(None)
                return
        if flight is not None and flight.over:
            del self._flights[like]

    # Leases: who makes a call in which process

    async def acquire(
        self, flight: Flight, key: str, told: Callable[[Producer], None]
    ) -> Entry | None:
        """Wait until no other process makes this call: then it is the flight's to make. An entry
        where one has come up meanwhile. ``told`` of each holder that is waited for."""
        pause, term = FIRST_PAUSE, self._term
        holder: Producer | None = None
        while True:
            asked = self._asked(partial(_find_or_lease, self, key, flight, term))
            try:
                entry, lease = await asyncio.shield(asked)
            except asyncio.CancelledError:
                asked.add_done_callback(partial(self._unwanted, flight.holder))
                raise
            if entry is not None:
                return entry
            if lease is None:
                return None
            if lease.holder == flight.holder:
                if flight.over:  # another of this process has taken the call over meanwhile
                    self.begin(self._release(lease))
                else:
                    self._hold(flight, lease)
                return None
            if lease.holder != holder:
                holder = lease.holder
                told(holder)
            self._extend(flight)
            await asyncio.sleep(pause)
            pause = min(1.5 * pause, LONGEST_PAUSE)

    async def find(self, key: str, like: str) -> Entry | None:
        """The entry that answers this call."""
        return await self.ask(lambda store: store.find(self.namespace, key, like))

    async def put(
        self, entry: Entry, vector: Sequence[float] | None, lease: Lease | None
    ) -> Put | None:
        """Keep ``entry``, for as long as the settings say; None where the lease under which it
        was found is another's by now."""
        ttl = self.settings.ttl

        def keep(store: Store) -> Put | None:
            if lease is not None and store.renew(lease, TERM) is None:
                return None
            dated = entry if ttl is None else replace(entry, expires=store.now() + ttl)
            return store.put(dated, vector)

        return await self.ask(keep)

    def _asked(self, work: Callable[[Store], T]) -> asyncio.Task[T]:
        """`ask`, in a task that ends although whoever waits for it is cancelled."""
        task = asyncio.get_running_loop().create_task(self.ask(work))
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return task

    def _unwanted(self, holder: Producer, asked: asyncio.Task[Any]) -> None:
        """Whoever asked for a lease is gone, and it came after that. An attempt that has asked
        since then has a fence of its own, so that nothing of it is given up here."""
        if asked.cancelled() or asked.exception() is not None:
            return
        _, lease = asked.result()
        if lease is not None and lease.holder == holder:
            self.begin(self._release(lease))

    @property
    def _term(self) -> float:
        return min(TERM, self.settings.lease or TERM)

    def _extend(self, flight: Flight) -> None:
        flight.until = asyncio.get_running_loop().time() + (self.settings.lease or 0.0)

    def _hold(self, flight: Flight, lease: Lease) -> None:
        flight.lease = lease
        self._extend(flight)
        flight.renewing = self.begin(self._renew(flight))

    async def _renew(self, flight: Flight) -> None:
        """Keep the lease while the call runs, but not beyond the time that others wait for it."""
        loop = asyncio.get_running_loop()
        while flight.lease is not None:
            await asyncio.sleep(self._term / 3)
            left = flight.until - loop.time()
            if left <= 0 or flight.lease is None:
                return
            lease, seconds = flight.lease, min(left, self._term)
            try:
                await self.ask(partial(_renew, lease, seconds))
            except BankError:
                return

    def _let_go(self, flight: Flight) -> None:
        if flight.renewing is not None:
            flight.renewing.cancel()
            flight.renewing = None
        if flight.lease is not None:
            lease, flight.lease = flight.lease, None
            self.begin(self._release(lease))

    async def _release(self, lease: Lease) -> None:
        with contextlib.suppress(BankError):
            await self.ask(lambda store: store.release(lease))

    @property
    def revocable(self) -> bool:
        """Whether it lies where somebody can withdraw from it."""
        return not self._alone

    @property
    def leases(self) -> bool:
        """Whether other processes may make the same calls."""
        return not self._alone


def _open(store: Store) -> None:
    store.open()
    store.remove_expired()


def _close(store: Store) -> None:
    with contextlib.suppress(BankError):
        store.close()


def _find_or_lease(
    bank: Bank, key: str, flight: Flight, term: float, store: Store
) -> tuple[Entry | None, Lease | None]:
    entry = store.find(bank.namespace, key, flight.like)
    if entry is not None:
        return entry, None
    holder = flight.holder
    lease = store.lease(
        bank.namespace, flight.like, holder.run_id, holder.task_id, holder.team, term
    )
    if lease.holder != holder:  # it may have ended between the two
        entry = store.find(bank.namespace, key, flight.like)
    return entry, lease


def _renew(lease: Lease, seconds: float, store: Store) -> None:
    store.renew(lease, seconds)


class _Thread:
    """One thread, which the end of the process does not wait for."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        threading.Thread(target=self._serve, name="agentpar-bank", daemon=True).start()

    def call(self, work: Callable[[], T]) -> Future[T]:
        """Do ``work`` when what was asked for before is done."""
        future: Future[T] = Future()
        self._queue.put((future, work))
        return future

    def stop(self) -> None:
        self._queue.put(None)

    def _serve(self) -> None:
        while (asked := self._queue.get()) is not None:
            future, work = asked
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = work()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
