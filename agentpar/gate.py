"""The gate: every request that the web tools of one run send waits here for its host.

How much a host can take is `resource`'s rule; here somebody waits for it. It must never know what
is asked of a host, or in which protocol; only whether the host said that it was too much.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from agentpar.errors import FetchError
from agentpar.policy import Limits
from agentpar.resource import NEVER, Resource

Caller = tuple[int, int]
"""Whose request it is: a task's id, and the number of the attempt."""

Tell = Callable[[Caller, str, float | None], None]
"""Is told that this caller found a host asking for less, and for how many seconds of peace."""

Visiting = Callable[[str, float], AbstractAsyncContextManager["Visit"]]
"""``visiting(host, patience)``: a stay at a host that begins as soon as there is a place.

A host that wants to be left alone for more than ``patience`` seconds is not waited for: that
raises `FetchError`, with the seconds that are left.
"""


class Visit:
    """A stay at a host: for one request, from before it is sent until all of it has come back."""

    def throttled(self, retry_after: float | None) -> None:
        """The host said that this was too much, and perhaps for how many seconds to keep away. It
        takes nothing up there any more."""

    def succeeded(self) -> None:
        """The host did not mind."""


@asynccontextmanager
async def unlimited(host: str, patience: float) -> AsyncIterator[Visit]:
    """Where nobody counts: a tool that is called outside a run."""
    yield Visit()


@dataclass(slots=True, eq=False)
class _Turn:
    """A request that waits, and for how long it may: see `Visiting`. It ``goes`` or not."""

    goes: asyncio.Future[bool]
    patience: float


@dataclass(slots=True, eq=False)
class _Line:
    """Those who want to go to one host, first come, first served."""

    host: str
    resource: Resource
    waiting: deque[_Turn] = field(default_factory=deque)
    timer: asyncio.TimerHandle | None = None


@dataclass(slots=True)
class _Wait:
    """How long a caller has stood at the gate, with any of its requests."""

    requests: int = 0
    since: float = 0.0
    seconds: float = 0.0


class HostGate:
    """The hosts of one run, within ``per_host`` and ``host_rate`` of its limits.

    It belongs to the event loop in which it is made. In another one (of a sync tool that runs
    its own) it stops nobody.
    """

    def __init__(self, limits: Limits, tell: Tell | None = None) -> None:
        self._limits = limits
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self._lines: dict[str, _Line] = {}
        self._waits: dict[Caller, _Wait] = {}

    @asynccontextmanager
    async def visit(self, host: str, patience: float, caller: Caller) -> AsyncIterator[Visit]:
        """See `Visiting`."""
        if asyncio.get_running_loop() is not self._loop:
            yield Visit()
            return
        line = self._line(host)
        await self._enter(line, patience, caller)
        stay = _Stay(self, line, caller, self._loop.time())
        try:
            yield stay
        finally:
            stay.end()

    def recall(self, host: str, retry_after: float | None, ago: float) -> None:
        """An earlier process of this run was told so by ``host``, ``ago`` seconds of the run since.

        The time it asked for is kept, and then it gets one request at a time, and more as it
        takes them well: how many it had been getting is nowhere written.
        """
        then = self._loop.time() - ago
        self._line(host).resource.throttled(then, then, retry_after)

    def held_back(self, caller: Caller) -> float:
        """Seconds that ``caller`` has waited here: they are no fault of its tool."""
        wait = self._waits.get(caller)
        if wait is None:
            return 0.0
        return wait.seconds + (self._loop.time() - wait.since if wait.requests else 0.0)

    def close(self) -> None:
        """The run is over: nobody is told of anything any more."""
        self._tell = None

    def leave(self, line: _Line) -> None:
        """A visit to the host of ``line`` is over."""
        line.resource.give_back()
        self._admit(line)

    def throttled(self, line: _Line, caller: Caller, began: float, wait: float | None) -> None:
        """A visit that ``began`` then is over: the host of ``line`` said that it was too much."""
        now, resource = self._loop.time(), line.resource
        resource.give_back()
        resource.throttled(now, began, wait)
        closed = resource.closed_until - now
        for turn in line.waiting:
            if closed > turn.patience and not turn.goes.done():
                turn.goes.set_result(False)
        self._admit(line)
        if self._tell is not None:
            self._tell(caller, line.host, wait)

    def succeeded(self, line: _Line) -> None:
        """The host of ``line`` did not mind a request."""
        line.resource.succeeded()
        self._admit(line)

    # Inside

    def _line(self, host: str) -> _Line:
        line = self._lines.get(host)
        if line is None:
            slots = self._limits.per_host
            bound = NEVER if slots is None else float(slots)
            line = _Line(host, Resource(f"host {host}", bound, self._limits.host_rate))
            self._lines[host] = line
        return line

    async def _enter(self, line: _Line, patience: float, caller: Caller) -> None:
        now, resource = self._loop.time(), line.resource
        if not line.waiting and resource.opens(now) <= now:
            resource.take(now)
            return
        if resource.closed_until - now > patience:
            raise self._refusal(line, caller)
        goes: asyncio.Future[bool] = self._loop.create_future()
        line.waiting.append(_Turn(goes, patience))
        self._admit(line)
        with self._waiting(caller):
            try:
                if not await goes:
                    raise self._refusal(line, caller)
            except asyncio.CancelledError:
                if goes.done() and not goes.cancelled() and goes.result():
                    resource.give_back()  # it had just been let in
                self._admit(line)
                raise

    def _refusal(self, line: _Line, caller: Caller) -> FetchError:
        """The host of ``line`` is closed for longer than the request waits."""
        closed = line.resource.closed_until - self._loop.time()
        if self._tell is not None:
            self._tell(caller, line.host, closed)
        return FetchError(
            f"not asked: {line.host!r} wants to be left alone for {closed:.1f} s more",
            status=429,
            retry_after=closed,
        )

    @contextmanager
    def _waiting(self, caller: Caller) -> Iterator[None]:
        wait = self._waits.setdefault(caller, _Wait())
        if not wait.requests:
            wait.since = self._loop.time()
        wait.requests += 1
        try:
            yield
        finally:
            wait.requests -= 1
            if not wait.requests:
                wait.seconds += self._loop.time() - wait.since

    def _admit(self, line: _Line) -> None:
        """Let in whoever may begin now; come back when the next one may."""
        if line.timer is not None:
            line.timer.cancel()
            line.timer = None
        now, waiting = self._loop.time(), line.waiting
        while waiting:
            if waiting[0].goes.done():  # it was cancelled, or sent away
                waiting.popleft()
            elif (at := line.resource.opens(now)) <= now:
                line.resource.take(now)
                waiting.popleft().goes.set_result(True)
            else:
                if at < NEVER:
                    line.timer = self._loop.call_at(at, self._admit, line)
                return


class _Stay(Visit):
    """A visit that counts."""

    def __init__(self, gate: HostGate, line: _Line, caller: Caller, began: float) -> None:
        self._gate, self._line, self._caller, self._began = gate, line, caller, began
        self._ended = False

    def end(self) -> None:
        if not self._ended:
            self._ended = True
            self._gate.leave(self._line)

    def throttled(self, retry_after: float | None) -> None:
        self._ended = True
        self._gate.throttled(self._line, self._caller, self._began, retry_after)

    def succeeded(self) -> None:
        self._gate.succeeded(self._line)
