"""Virtual time: an event loop whose clock jumps to the next timer instead of waiting for it.

What runs in it is real asyncio code: tasks, timeouts, cancellation. An hour of sleep takes
no time, and everything comes out the same each time it is run. So nothing from outside may
wake this loop: it must never know a socket, a process or a thread.
"""

from __future__ import annotations

import asyncio
import math
import selectors
import threading
from collections.abc import Callable, Coroutine
from contextvars import Context
from random import Random
from typing import Any, NoReturn, TypeVar, TypeVarTuple
from weakref import WeakSet

from agentpar.errors import Deadlock, UsageError

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

TURNS = 100_000
"""How often the loop may turn at one instant before it counts as stuck."""
HORIZON = 1e9
"""The end of virtual time in seconds, some 31 years: who waits beyond it waits for ever."""
_DIGITS = 9  # times lie on a grid of nanoseconds, so that 0.1 + 0.2 and 0.3 are one instant
_TICK = 1e-9
_ASIDE = 4e-10  # less than half of that: rounding takes it away again


def run(main: Coroutine[Any, Any, T], *, seed: int | None = None) -> T:
    """Run ``main`` from second 0 on in virtual time and return what it returns.

    Timers that are due at the same instant, between which asyncio promises no order, fire in
    an order that ``seed`` decides; equal seeds give equal runs. Callbacks that are ready
    keep their order, which asyncio does promise.

    Raises `Deadlock` where all wait and nothing will come, and where a loop turns for ever at
    one instant. Sockets, processes and threads that reach into the loop raise `UsageError`;
    blocking calls (``asyncio.to_thread``, sync tools) run in place and take no virtual time.
    """
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(seed)) as runner:
        return runner.run(main)


class VirtualLoop(asyncio.SelectorEventLoop):
    """The event loop of `run`, for an `asyncio.Runner` of your own."""

    virtual_time = True
    """What code that would start a thread looks for: it may not, here."""

    def __init__(self, seed: int | None = None) -> None:
        self._jump = _Jump()
        self._chance = None if seed is None else Random(seed)
        self._set_timers: WeakSet[asyncio.TimerHandle] = WeakSet()
        self._thread = threading.get_ident()
        super().__init__(self._jump)
        self._jump.sealed = True  # only the loop's own wake-up pipe is in it

    def time(self) -> float:
        return self._jump.now

    def call_at(
        self,
        when: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        now, asked, when = self.time(), when, round(when, _DIGITS)
        if when <= now < asked:
            when = _after(now)  # whoever waits until a time must see it come
        if self._chance is not None:
            when += self._chance.random() * _ASIDE
        timer = super().call_at(when, callback, *args, context=context)
        self._set_timers.add(timer)
        return timer

    def timers(self) -> list[asyncio.TimerHandle]:
        """The timers that have neither fired nor been cancelled."""
        now = self.time()
        return [timer for timer in self._set_timers if not timer.cancelled() and timer.when() > now]

    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        if threading.get_ident() != self._thread:
            self._jump.intruder = threading.current_thread().name
            raise RuntimeError("virtual time cannot be reached from another thread")
        return super().call_soon_threadsafe(callback, *args, context=context)

    def run_in_executor(
        self, executor: Any, func: Callable[[*Ts], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """Call ``func`` here and now: beside a clock that jumps no thread can be waited for."""
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    async def create_server(self, *args: Any, **kwargs: Any) -> NoReturn:
        _refuse("a server")

    async def subprocess_exec(self, *args: Any, **kwargs: Any) -> NoReturn:
        _refuse("a process")

    async def subprocess_shell(self, *args: Any, **kwargs: Any) -> NoReturn:
        _refuse("a process")


class _Jump(selectors.SelectSelector):
    """A selector that waits for nothing: where the loop would wait, its clock moves."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.sealed = False
        self.intruder = ""
        self._turns = 0

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        if self.sealed:
            _refuse("a socket or a pipe")
        return super().register(fileobj, events, data)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self.intruder:
            thread, self.intruder = self.intruder, ""
            _refuse(f"thread {thread!r}")
        if timeout is None:
            raise Deadlock(
                f"at {self.now:g} s {_waiting()}, and no timer is set: nothing will come"
            )
        before, self.now = self.now, round(self.now + timeout, _DIGITS)
        if self.now > before and self.now + _TICK == self.now:
            self.now = _after(self.now)  # floats this far out are no finer
        self._turns = self._turns + 1 if self.now == before else 0
        if self._turns > TURNS:
            self._turns = 0  # the tasks are cancelled now, which takes some turns
            raise Deadlock(f"at {self.now:g} s {_waiting()}, and the loop turns without end")
        if before <= HORIZON < self.now:
            raise Deadlock(f"{_waiting()} beyond the end of virtual time ({HORIZON:g} s)")
        return []


def _after(now: float) -> float:
    """The next instant."""
    return max(round(now + _TICK, _DIGITS), math.nextafter(now, math.inf))


def _refuse(what: str) -> NoReturn:
    raise UsageError(
        f"{what} has no place in virtual time, which cannot wait for the world: "
        "use asyncio.run, or give the code under test something that sleeps instead"
    )


def _waiting() -> str:
    """Who waits, and where: the innermost line of each task that is not asyncio's own."""
    places = sorted(map(_place, asyncio.all_tasks()))
    more = f" and {len(places) - 5} more" if len(places) > 5 else ""
    who = "1 task waits" if len(places) == 1 else f"{len(places)} tasks wait"
    return f"{who} ({', '.join(places[:5])}{more})"


def _place(task: asyncio.Task[Any]) -> str:
    """``driver.py:237 in _call``: what a task's coroutine awaits at last."""
    at: Any = task.get_coro()
    place = getattr(at, "__qualname__", task.get_name())
    while at is not None:
        frame = getattr(at, "cr_frame", None) or getattr(at, "gi_frame", None)
        if frame is not None and not frame.f_globals.get("__name__", "").startswith("asyncio."):
            file = frame.f_code.co_filename.rpartition("/")[2]
            place = f"{file}:{frame.f_lineno} in {frame.f_code.co_name}"
        at = getattr(at, "cr_await", None) or getattr(at, "gi_yieldfrom", None)
    return place
