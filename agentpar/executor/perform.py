"""Performs a `Schedule`: the real machine and driver, in virtual time, among simulated tools.

It must never judge what comes of it: that is the business of `agentpar.executor.invariants`.
"""

from __future__ import annotations

import asyncio
import io
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from agentpar.errors import AgentparError, FetchError
from agentpar.events import (
    Answered,
    Event,
    ModelUsed,
    PlanEnded,
    PlanFault,
    PlanStarted,
    ReplanAsked,
    RunFinished,
    RunStarted,
    TaskCancelled,
    TaskDone,
    TaskPlanned,
)
from agentpar.executor.commands import Command, Conclude, Join, Plan
from agentpar.executor.driver import Driver, Emit
from agentpar.executor.machine import Machine
from agentpar.executor.record import RecordWriter
from agentpar.executor.schedules import (
    MAX_RESULT_BYTES,
    READ,
    WRITE,
    Behaviour,
    Schedule,
    value_of,
)
from agentpar.executor.simulate import VirtualLoop, run
from agentpar.permissions import Flow, Permissions
from agentpar.plan import Ok, Task
from agentpar.policy import PLAIN
from agentpar.tools.base import Tool
from agentpar.tools.call import call_key


@dataclass(slots=True)
class Performed:
    """What came of a schedule: all that the invariants look at.

    ``log`` holds events and commands in order. ``peak`` is the largest number of calls that
    really ran at once, ``overlaps`` has those that held one lock together (the lock, a call,
    those before it), ``left`` what stood in the loop behind the run's end, ``error`` what the
    run raised.
    """

    schedule: Schedule
    machine: Machine
    log: list[Event | Command] = field(default_factory=list)
    record: bytes = b""
    peak: int = 0
    overlaps: list[tuple[str, int, list[int]]] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    error: BaseException | None = None

    @property
    def events(self) -> list[Event]:
        return [entry for entry in self.log if isinstance(entry, Event)]

    @property
    def cancelled(self) -> bool:
        return isinstance(self.error, asyncio.CancelledError)

    @property
    def end(self) -> RunFinished | None:
        """The run's last event, where it is the one that ends runs."""
        last = self.log[-1] if self.log else None
        return last if isinstance(last, RunFinished) else None


_LATENCIES = {name: [0.02] * 25 for name in (*READ, WRITE)}
"""From earlier runs, so that hedges have something to go by."""


def perform(schedule: Schedule) -> Performed:
    """Run the real machine and driver through ``schedule``, in virtual time."""
    machine = Machine(
        schedule.limits,
        Permissions(flows={WRITE: Flow("write")}),
        policies=schedule.policies,
        latencies=_LATENCIES,
        seed=str(schedule.seed),
    )
    performed = Performed(schedule, machine)
    try:
        run(_World(performed).live(), seed=schedule.seed)
    except AgentparError as error:  # a deadlock, or a fault of the machine's
        performed.error = error
    return performed


class _World:
    """The planner, the tools, the approver and the joiner of one schedule."""

    def __init__(self, performed: Performed) -> None:
        self._performed = performed
        self._schedule = performed.schedule
        self._in_flight = 0
        self._holders: dict[str, list[int]] = {}
        self._called: Counter[int] = Counter()
        self._emit: Emit | None = None
        self._now: Callable[[], float] = lambda: 0.0

    async def live(self) -> None:
        performed, loop = self._performed, asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        tools = {name: self._tool(name) for name in (*READ, WRITE)}
        kept = {
            call_key(tools[task.tool], task.args): Ok(value_of(task.tool, task.args))
            for task in self._schedule.tasks
            if task.args["me"] in self._schedule.kept
        }
        text = io.StringIO()
        with RecordWriter(text, performed.machine) as writer:
            driver = Driver(
                performed.machine,
                tools=tools,
                plan=self._plan,
                join=self._join,
                conclude=self._conclude,
                approve=self._approve,
                results=_Kept(kept),
                timeout=self._schedule.timeout,
                max_result_bytes=MAX_RESULT_BYTES,
                observers=[performed.log.append, writer.event],
                command_observers=[performed.log.append, writer.command],
            )
            self._emit, self._now = driver.emit, driver.clock.now
            work = loop.create_task(driver.run(RunStarted("simulated", "?")))
            timers = [loop.call_at(second, work.cancel) for second in self._schedule.cancels]
            timers += [loop.call_at(second, self._drop, id) for second, id in self._schedule.drops]
            try:
                await asyncio.wait([work])
            finally:
                for timer in timers:
                    timer.cancel()
        performed.record = text.getvalue().encode("utf-8", "surrogatepass")
        performed.error = asyncio.CancelledError() if work.cancelled() else work.exception()
        heard = len(performed.log)
        for _ in range(3):
            await asyncio.sleep(0)  # what is ready now is of the run, and should not be
        others = asyncio.all_tasks() - {asyncio.current_task()}
        deaf = {task for task in others if _is_deaf(task)}  # left behind, as it must be
        performed.left = [f"task {task.get_coro()}" for task in others - deaf]
        timers = loop.timers()
        if len(timers) > len(deaf):
            performed.left += map(str, timers)
        performed.left += map(repr, performed.log[heard:])

    def _drop(self, id: int) -> None:
        """The caller wants task ``id`` no more, if it was planned by now."""
        assert self._emit is not None
        if id in self._performed.machine.tasks and self._performed.end is None:
            self._emit(TaskCancelled(id, "not wanted", self._now()))

    def _tool(self, name: str) -> Tool:
        async def call(**args: Any) -> Any:
            return await self._call(name, args)

        effect: Literal["read", "write"] = "write" if name == WRITE else "read"
        policy = self._schedule.policies.get(name, PLAIN)
        return Tool(name, "Simulated.", {"type": "object"}, call, dict, effect, policy=policy)

    async def _call(self, tool: str, args: Mapping[str, Any]) -> Any:
        id = args["me"]
        behaviours = self._schedule.calls[id]
        behaviour = behaviours[min(self._called[id], len(behaviours) - 1)]
        self._called[id] += 1
        self._in_flight += 1
        self._performed.peak = max(self._performed.peak, self._in_flight)
        try:
            with self._holding(self._schedule.policies.get(tool, PLAIN).lock, id):
                return await self._behave(behaviour, id, value_of(tool, args))
        finally:
            self._in_flight -= 1

    @contextmanager
    def _holding(self, lock: str, id: int) -> Iterator[None]:
        """Notices who holds the same lock for a time. One that was cancelled leaves within the
        instant in which the next one comes: that is no overlap."""
        if not lock:
            yield
            return
        began = self._now()
        holders = self._holders.setdefault(lock, [])
        others = [*holders]
        holders.append(id)
        try:
            yield
        finally:
            holders.remove(id)
            if self._now() > began and (both := [other for other in others if other in holders]):
                self._performed.overlaps.append((lock, id, both))

    async def _behave(self, behaviour: Behaviour, id: int, value: Any) -> Any:
        try:
            await asyncio.sleep(behaviour.latency)
            if behaviour.fault == "hangs":
                await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            match behaviour.fault:
                case "stubborn":
                    await asyncio.sleep(behaviour.lag)
                case "deaf":
                    await _deaf(behaviour.lag)
                case _:
                    raise
        match behaviour.fault:
            case "raises":
                raise ValueError(f"call {id} broke")
            case "exits":
                raise SystemExit(id)
            case "throttled":
                raise FetchError(f"call {id} came too soon", status=429, retry_after=behaviour.lag)
            case "cancels itself":
                raise asyncio.CancelledError
            case "cancels its task":
                current = asyncio.current_task()
                assert current is not None
                current.cancel()
                await asyncio.sleep(0)
            case "done twice":
                assert self._emit is not None
                self._emit(TaskDone(id, Ok(value), at=self._now()))
            case "large":
                return "x" * (2 * MAX_RESULT_BYTES)
            case "not data":
                return b"12"
        return value

    async def _plan(self, command: Plan, emit: Emit) -> None:
        now = self._now
        one = self._schedule.rounds[command.round - 1]
        emit(PlanStarted(command.round, now()))
        for line in one.lines:
            await asyncio.sleep(line.gap)
            if line.task is None:
                emit(PlanFault(command.round, "not usable", "?", line.id, now()))
            else:
                emit(TaskPlanned(command.round, line.task, now()))
        match one.plan_end:
            case "ends":
                emit(ModelUsed("plan", command.round, one.plan_usage, at=now()))
                emit(PlanEnded(command.round, now()))
            case "raises":
                raise ConnectionError("the model server went away")

    async def _join(self, command: Join, emit: Emit) -> None:
        one = self._schedule.rounds[command.round - 1]
        await asyncio.sleep(one.join_seconds)
        now = self._now()
        if one.join_end in ("answers", "replans"):
            emit(ModelUsed("join", command.round, one.join_usage, seconds=one.join_seconds, at=now))
        match one.join_end:
            case "replans" if command.final:
                emit(Answered(command.round, "No answer was found", at=now))
            case "answers":
                emit(Answered(command.round, "done", at=now))
            case "replans":
                emit(ReplanAsked(command.round, "more", now))
            case "raises":
                raise ConnectionError("the model server went away")

    async def _conclude(self, command: Conclude, emit: Emit) -> None:
        emit(Answered(command.round, f"stopped by {command.why}", at=self._now()))

    def _approve(self, task: Task, args: Mapping[str, Any]) -> Awaitable[bool | str] | bool | str:
        seconds, verdict = self._schedule.verdicts[task.id]
        if verdict == "not judged: the approver breaks":
            raise ValueError("the approver broke")
        if seconds == 0:
            return verdict == "allowed"

        async def think() -> bool | str:
            await asyncio.sleep(seconds)
            return True if verdict == "allowed" else "not today"

        return think()


async def _deaf(seconds: float) -> None:
    """Sleep, whoever cancels it."""
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    while (left := until - loop.time()) > 0:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(left)


def _is_deaf(task: asyncio.Task[Any]) -> bool:
    """Whether ``task`` is in `_deaf`."""
    at: Any = task.get_coro()
    while at is not None and getattr(at, "__name__", "") != _deaf.__name__:
        at = getattr(at, "cr_await", None)
    return at is not None


class _Kept:
    """Results of an earlier run, by `call_key`."""

    def __init__(self, kept: Mapping[str, Ok]) -> None:
        self._kept = kept

    async def get(self, key: str) -> Ok | None:
        return self._kept.get(key)

    async def put(self, key: str, outcome: Ok, seconds: float) -> None:
        """What this run brings is of no use to another here."""
