"""Performs a `Schedule`: the real machine and driver, in virtual time, among simulated tools.

A process that dies takes its event loop with it. The next one gets what the journal has and
carries on, as `agentpar.session.Session` does. It must never judge what comes of it: that is the
business of `agentpar.executor.invariants`.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from agentpar.errors import AgentparError, FetchError
from agentpar.events import (
    Answered,
    Event,
    HostThrottled,
    JoinStarted,
    ModelUsed,
    PlanEnded,
    PlanFault,
    PlanStarted,
    ReplanAsked,
    RunFinished,
    RunResumed,
    RunStarted,
    TaskCancelled,
    TaskDone,
    TaskPlanned,
    TaskReplaced,
)
from agentpar.executor.commands import Command, Conclude, Join, Plan
from agentpar.executor.crashes import (
    Life,
    MemoryJournal,
    does_without,
    lines_before_anew,
    lines_told,
)
from agentpar.executor.driver import Driver, Emit, RunClock
from agentpar.executor.ledger import Ledger
from agentpar.executor.machine import Machine
from agentpar.executor.record import RecordWriter, Terms
from agentpar.executor.resume import catch_up
from agentpar.executor.schedules import (
    FLOWS,
    LIST,
    MAX_RESULT_BYTES,
    TOOLS,
    WAITS,
    Behaviour,
    Crash,
    Line,
    Schedule,
    host_visited,
    name_of,
    value_of,
)
from agentpar.executor.setup import Setup, resumption
from agentpar.executor.simulate import VirtualLoop, run
from agentpar.gate import Caller, HostGate, Visit
from agentpar.permissions import Flow, Permissions
from agentpar.plan import Ok, Task, circle_of
from agentpar.policy import PLAIN
from agentpar.ports import Shared
from agentpar.tools.base import Tool
from agentpar.tools.call import CurrentCall, call_key, current_call, current_calls, visiting


@dataclass(frozen=True, slots=True)
class Effect:
    """A call of a sink as the far side saw it: of which task, with what, under which key;
    ``refused`` where it did nothing."""

    task_id: int
    tool: str
    args: str
    key: str
    refused: bool


@dataclass(frozen=True, slots=True)
class Request:
    """What a host saw: at which second of the run, from the how-manieth process."""

    host: str
    at: float
    process: int


@dataclass(slots=True)
class Performed:
    """What came of a schedule: all that the invariants look at.

    ``log`` holds events and commands in order, those of earlier processes as they are on disk;
    ``cuts`` are the places in it at which one of them broke off. ``effects`` is what the world
    saw, whatever is on disk, ``requests`` what the hosts did; ``batches`` are the sizes of those
    that went out. ``peak`` is the largest number of calls that really ran at once,
    ``overlaps`` has those that held one lock together (the lock, a call, those before it),
    ``left`` what stood in the loop behind the run's end, ``error`` what the run raised.
    """

    schedule: Schedule
    machine: Machine
    log: list[Event | Command] = field(default_factory=list)
    record: bytes = b""
    peak: int = 0
    overlaps: list[tuple[str, str, list[str]]] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
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


_LATENCIES = {name: [0.02] * 25 for name in TOOLS}
"""From earlier runs, so that hedges have something to go by."""
_RUN_ID = "simulated"


Others = Callable[[Emit], Shared]
"""Makes what stands for other teams, given where they tell of themselves."""


def perform(schedule: Schedule, others: Others | None = None) -> Performed:
    """Run the real machine and driver through ``schedule``, in virtual time; ``others`` are the
    teams that it shares its calls with."""
    machine = Machine(
        schedule.limits,
        Permissions(schedule.rules, FLOWS),
        policies=schedule.policies,
        latencies=_LATENCIES,
        seed=str(schedule.seed),
    )
    performed = Performed(schedule, machine)
    journal = MemoryJournal() if schedule.crashes else None
    for number, crash in enumerate((*schedule.crashes, None)):
        process = _Process(performed, journal, crash, others)
        try:
            run(process.live(), seed=schedule.seed + number)
        except AgentparError as error:  # a deadlock, or a fault of the machine's
            performed.error = error
        if crash is None or journal is None or not process.dead:
            break
        journal.lose(crash.lost)
        _begin_anew(performed, journal.history)
    return performed


def _begin_anew(performed: Performed, history: Sequence[Event]) -> None:
    """All that a process of this run knows is what is on disk."""
    terms = Terms.of(performed.machine)
    performed.machine, before = terms.machine(), terms.machine()
    performed.error = None
    performed.log = []
    for event in history:
        performed.log += [event, *before.handle(event)]
    performed.cuts.append(len(performed.log))


class _Process:
    """The planner, the tools, the approver and the joiner of one schedule, until it has ended or
    the process that runs it is ``dead``."""

    def __init__(
        self,
        performed: Performed,
        journal: MemoryJournal | None,
        crash: Crash | None,
        others: Others | None = None,
    ) -> None:
        self._others = others
        self._performed = performed
        self._schedule = performed.schedule
        self._journal = journal
        self._history = [] if journal is None else journal.history
        died = len(performed.cuts)
        self._rules = None if died == 0 else performed.schedule.crashes[died - 1].rules
        self._life = Life(None if crash is None else crash.after, self._die)
        self._in_flight = 0
        self._holders: dict[str, list[str]] = {}
        self._deaf: set[asyncio.Task[Any]] = set()
        self._work: asyncio.Task[None] | None = None
        self._emit: Emit | None = None
        self._now: Callable[[], float] = lambda: 0.0

    async def live(self) -> None:
        performed, loop = self._performed, asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        history, machine = self._history, performed.machine
        due = catch_up(machine, history)
        if history and isinstance(history[-1], RunFinished):
            return  # it died behind the end
        tools = {name: self._tool(name) for name in TOOLS}
        kept = {
            call_key(tools[task.tool], task.args): Ok(value_of(task.tool, task.args))
            for task in self._schedule.tasks
            if task.args["me"] in self._schedule.kept
        }
        text = io.StringIO()
        start = history[-1].at if history else 0.0
        gate = HostGate(self._schedule.limits, self._throttled)
        for event in history:
            if isinstance(event, HostThrottled):
                gate.recall(event.host, event.retry_after, start - event.at)
        ledger = Ledger(_RUN_ID, machine, self._journal, gate)
        life = self._life
        with RecordWriter(text, machine, history=history) as writer:
            driver = Driver(
                machine,
                tools=tools,
                plan=self._plan,
                join=self._join,
                conclude=self._conclude,
                clock=RunClock(start),
                approve=self._approve,
                results=_Kept(kept),
                shared=None if self._others is None else self._others(self._tell),
                calls=ledger,
                timeout=self._schedule.timeout,
                max_result_bytes=MAX_RESULT_BYTES,
                observers=[
                    life.seen(ledger.observe),
                    life.seen(performed.log.append),
                    life.seen(writer.event),
                    life.count,
                ],
                command_observers=[
                    life.seen(performed.log.append),
                    life.seen(writer.command),
                ],
            )
            self._emit, self._now = driver.emit, driver.clock.now
            first: list[Event] = [] if history else [RunStarted(_RUN_ID, "?")]
            if (resumed := self._resumed(tools)) is not None:
                first.append(replace(resumed, at=start))
            work = self._work = loop.create_task(driver.run(*first, due=due))
            timers = [
                loop.call_at(second - start, work.cancel)
                for second in self._schedule.cancels
                if second >= start
            ]
            timers += [
                loop.call_at(second - start, self._drop, id)
                for second, id in self._schedule.drops
                if second >= start
            ]
            try:
                await asyncio.wait([work])
            finally:
                for timer in timers:
                    timer.cancel()
                gate.close()
        performed.record = text.getvalue().encode("utf-8", "surrogatepass")
        performed.error = asyncio.CancelledError() if work.cancelled() else work.exception()
        if self.dead:
            return
        heard = len(performed.log)
        for _ in range(3):
            await asyncio.sleep(0)  # what is ready now is of the run, and should not be
        others = asyncio.all_tasks() - {asyncio.current_task()}
        # Those that hear nothing are left behind, as they must be.
        performed.left = [f"task {task.get_coro()}" for task in others - self._deaf]
        timers = loop.timers()
        if len(timers) > len(self._deaf):
            performed.left += map(str, timers)
        performed.left += map(repr, performed.log[heard:])

    @property
    def dead(self) -> bool:
        return self._life.over

    def _tell(self, event: Event) -> None:
        assert self._emit is not None
        self._emit(replace(event, at=self._now()))

    def _resumed(self, tools: Mapping[str, Tool]) -> RunResumed | None:
        """What there is to tell where the agent has other rules than the run began with."""
        if self._rules is None:
            return None
        then = Setup.of(Terms.of(self._performed.machine), tools)
        rules = Permissions(self._rules, FLOWS)
        now = replace(then, terms=replace(then.terms, permissions=rules))
        return resumption(then, now, self._history)

    def _throttled(self, caller: Caller, host: str, retry_after: float | None) -> None:
        task_id, attempt = caller
        self._tell(HostThrottled(task_id, host, retry_after, attempt=attempt))

    def _die(self) -> None:
        assert self._work is not None
        self._work.cancel()

    def _drop(self, id: int) -> None:
        """The caller wants task ``id`` no more, if it was planned by now."""
        assert self._emit is not None
        if id in self._performed.machine.tasks and self._performed.end is None:
            self._emit(TaskCancelled(id, "not wanted", self._now()))

    # Tools

    def _tool(self, name: str) -> Tool:
        async def call(**args: Any) -> Any:
            with self._calling(name, args) as behaviour:
                async with self._visiting(args) as visit:
                    await self._wait(behaviour, behaviour.latency)
                    if behaviour.fault == "throttled":
                        visit.throttled(behaviour.lag)
                    value = await self._behave(behaviour, args, value_of(name, args))
                    visit.succeeded()
                return value

        async def batch(several: list[dict[str, Any]]) -> list[Any]:
            return await self._together(name, several)

        async def stream(**args: Any) -> AsyncIterator[Any]:
            with self._calling(name, args) as behaviour:
                elements = value_of(name, args)
                pause = behaviour.latency * 100 // max(1, len(elements)) / 100
                for element in elements:
                    yield element
                    if await self._wait(behaviour, pause):
                        return
                await self._wait(behaviour, behaviour.latency - pause * len(elements))
                await self._behave(behaviour, args, None)

        flow = FLOWS.get(name, Flow())
        made: Any = stream if name == LIST else call
        return Tool(
            name,
            "Simulated.",
            {"type": "object"},
            made,
            dict,
            flow.effect,
            flow.sends,
            flow.pure,
            policy=self._schedule.policies.get(name, PLAIN),
            streams=name == LIST,
            batch=batch if name in self._schedule.batches else None,
            batch_size=self._schedule.batches.get(name, 1),
        )

    @asynccontextmanager
    async def _visiting(self, args: Mapping[str, Any]) -> AsyncIterator[Visit]:
        """The last of a call's requests to its host, which may have refused others before."""
        host = host_visited(self._schedule, args)
        refusals = self._schedule.refusals.get(name_of(args), ())
        if not host:
            yield Visit()
            return
        for wait in refusals if current_call().attempt == 1 else ():
            async with visiting(host, WAITS) as visit:
                self._ask(host)
                visit.throttled(wait)
        async with visiting(host, WAITS) as visit:
            self._ask(host)
            yield visit

    def _ask(self, host: str) -> None:
        performed = self._performed
        performed.requests.append(Request(host, self._now(), len(performed.cuts)))

    async def _together(self, tool: str, several: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Several calls as one, which takes as long as the longest of them and hears as badly."""
        self._performed.batches.append(len(several))
        replies: list[Any] = []
        with ExitStack() as calling:
            behaviours = [
                calling.enter_context(self._calling(tool, args, call))
                for args, call in zip(several, current_calls(), strict=True)
            ]
            slowest = max(behaviours, key=lambda behaviour: behaviour.latency)
            await self._wait(slowest, slowest.latency)
            for args, call, behaviour in zip(several, current_calls(), behaviours, strict=True):
                try:
                    value = value_of(tool, args)
                    replies.append(await self._behave(behaviour, args, value, call))
                except (Exception, SystemExit) as error:
                    replies.append(error)
        return replies

    @contextmanager
    def _calling(
        self, tool: str, args: Mapping[str, Any], call: CurrentCall | None = None
    ) -> Iterator[Behaviour]:
        """A call from its beginning to its end, and how it goes."""
        if self.dead:
            raise asyncio.CancelledError
        performed, name, call = self._performed, name_of(args), call or current_call()
        behaviours = self._schedule.calls[name]
        behaviour = behaviours[min(call.attempt, len(behaviours)) - 1]
        if call.tool.sink:
            refused = behaviour.fault == "throttled"
            performed.effects.append(
                Effect(call.task_id, tool, repr(args), call.idempotency_key, refused)
            )
        self._in_flight += 1
        performed.peak = max(performed.peak, self._in_flight)
        try:
            with self._holding(self._schedule.policies.get(tool, PLAIN).lock, name):
                yield behaviour
        finally:
            self._in_flight -= 1

    @contextmanager
    def _holding(self, lock: str, name: str) -> Iterator[None]:
        """Notices who holds the same lock for a time. One that was cancelled leaves within the
        instant in which the next one comes: that is no overlap."""
        if not lock:
            yield
            return
        began = self._now()
        holders = self._holders.setdefault(lock, [])
        others = [*holders]
        holders.append(name)
        try:
            yield
        finally:
            holders.remove(name)
            both = [other for other in others if other in holders]
            if self._now() > began and both and not self.dead:
                self._performed.overlaps.append((lock, name, both))

    async def _wait(self, behaviour: Behaviour, seconds: float) -> bool:
        """Whether it was cancelled meanwhile, and heard that late or never."""
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            match behaviour.fault:
                case "stubborn":
                    await asyncio.sleep(behaviour.lag)
                case "deaf":
                    await self._sleep_on(behaviour.lag)
                case _:
                    raise
            return True
        return False

    async def _sleep_on(self, seconds: float) -> None:
        """Sleep, whoever cancels it."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        self._deaf.add(task)
        until = loop.time() + seconds
        while (left := until - loop.time()) > 0:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(left)
        self._deaf.discard(task)

    async def _behave(
        self,
        behaviour: Behaviour,
        args: Mapping[str, Any],
        value: Any,
        call: CurrentCall | None = None,
    ) -> Any:
        me = args["me"]
        match behaviour.fault:
            case "hangs":
                await asyncio.get_running_loop().create_future()
            case "raises":
                raise ValueError(f"call {me} broke")
            case "exits":
                raise SystemExit(me)
            case "throttled":
                raise FetchError(f"call {me} came too soon", status=429, retry_after=behaviour.lag)
            case "cancels itself":
                raise asyncio.CancelledError
            case "cancels its task":
                current = asyncio.current_task()
                assert current is not None
                current.cancel()
                await asyncio.sleep(0)
            case "done twice":
                assert self._emit is not None
                task_id = (call or current_call()).task_id
                self._emit(TaskDone(task_id, Ok(value), at=self._now()))
            case "large":
                return "x" * (2 * MAX_RESULT_BYTES)
            case "not data":
                return b"12"
        return value

    # Models and people

    async def _plan(self, command: Plan, emit: Emit) -> None:
        now = self._now
        one = self._schedule.rounds[command.round - 1]
        before, anew = lines_told(self._history, command.round), one.anew
        stood = lines_before_anew(self._history, command.round)
        lines = one.lines
        emit(PlanStarted(command.round, now(), anew=stood is not None))
        if anew is not None and before and stood is None:
            # The model was asked again and wrote something else: it is asked for another plan.
            emit(ModelUsed("plan", command.round, one.plan_usage, at=now()))
            emit(PlanStarted(command.round, now(), anew=True))
            stood = before
        if anew is not None and stood is not None:
            lines = (*lines[:stood], *(line for line in lines[stood:] if line.id not in anew))
        for line in lines[before:]:
            if line.gap or not self._schedule.batches:  # else it comes in one piece with the last
                await asyncio.sleep(line.gap)
            emit(self._planned(line, command.round))
        match one.plan_end:
            case "ends":
                emit(ModelUsed("plan", command.round, one.plan_usage, at=now()))
                emit(PlanEnded(command.round, now()))
            case "raises":
                raise ConnectionError("the model server went away")

    def _planned(self, line: Line, round: int) -> Event:
        """What a line comes to. As the real planner does, one that would change a call that has
        ended, or make a circle, is a fault."""
        machine, now = self._performed.machine, self._now()
        if line.change:
            unusable = line.id not in machine.tasks or line.id in machine.outcomes
            if unusable or (line.task is not None and circle_of(line.task, machine.tasks)):
                return PlanFault(round, f"{line.change} {line.id}: cannot be", "?", None, now)
            if line.task is None:
                return TaskCancelled(line.id, does_without(round), now)
            return TaskReplaced(round, line.task, now)
        if line.task is None:
            return PlanFault(round, "not usable", "?", line.id, now)
        return TaskPlanned(round, line.task, now)

    async def _join(self, command: Join, emit: Emit) -> None:
        one = self._schedule.rounds[command.round - 1]
        emit(JoinStarted(command.round, self._now()))
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
        id = task.id if task.part is None else task.part[0]
        seconds, verdict = self._schedule.verdicts[id]
        if verdict == "not judged: the approver breaks":
            raise ValueError("the approver broke")
        if seconds == 0:
            return verdict == "allowed"

        async def think() -> bool | str:
            await asyncio.sleep(seconds)
            return True if verdict == "allowed" else "not today"

        return think()


class _Kept:
    """Results of an earlier run, by `call_key`."""

    def __init__(self, kept: Mapping[str, Ok]) -> None:
        self._kept = kept

    async def get(self, key: str) -> Ok | None:
        return self._kept.get(key)

    async def put(self, key: str, outcome: Ok, seconds: float) -> None:
        """What this run brings is of no use to another here."""
