"""Schedules: whole runs in virtual time, drawn from a seed, with faults, and what must hold.

A `Schedule` says all that can differ between two runs: when the planner writes which call,
how long each call takes and how it goes wrong, who cancels when. `perform` runs the real
machine and driver through one; `INVARIANTS` are what must hold after each. Here stands no
test and no model: `agentpar.executor.simulate` gives the time.
"""

from __future__ import annotations

import asyncio
import io
import json
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal

from agentpar.errors import AgentparError, PlanError
from agentpar.events import (
    Answered,
    Event,
    PlanEnded,
    PlanFault,
    PlanStarted,
    ReplanAsked,
    RunFinished,
    RunStarted,
    TaskDone,
    TaskPlanned,
    TaskStarted,
)
from agentpar.executor.driver import Driver, Emit
from agentpar.executor.machine import Join, Machine, Plan
from agentpar.executor.record import RecordWriter, parse_record, replay
from agentpar.executor.simulate import LoopClock, VirtualLoop, run
from agentpar.plan import Failed, Ok, Outcome, Ref, Skipped, Task, fill, needs
from agentpar.policy import Limits
from agentpar.tools.base import Tool

MAX_RESULT_BYTES = 10_000
"""The cap on a result in every schedule; the results of tools that go well are far below it."""

Fault = Literal[
    "",
    "raises",
    "exits",  # sys.exit()
    "hangs",  # until it is cancelled
    "stubborn",  # goes on for `lag` seconds after it was cancelled, then returns
    "cancels itself",  # raises CancelledError
    "cancels its task",  # asyncio.current_task().cancel()
    "done twice",  # says itself that it is done, and then is done
    "large",  # a result over the cap
    "not data",  # a result that is no JSON-like data
]
FAULTS: tuple[Fault, ...] = (
    "raises",
    "exits",
    "hangs",
    "stubborn",
    "cancels itself",
    "cancels its task",
    "done twice",
    "large",
    "not data",
)


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How one call goes: ``latency`` seconds, then its value, unless it has a ``fault``."""

    latency: float = 0.0
    fault: Fault = ""
    lag: float = 0.0

    def __str__(self) -> str:
        lag = f" for {self.lag:g} s" if self.fault == "stubborn" else ""
        return f"{self.latency:g} s{f', {self.fault}{lag}' if self.fault else ''}"


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a plan, ``gap`` seconds behind the one before: a task, or a number without one."""

    gap: float
    task: Task | None
    id: int

    def __str__(self) -> str:
        said = "an unusable line"
        if self.task is not None:
            args = ", ".join(f"{name}={value}" for name, value in self.task.args.items())
            said = f"{self.task.tool}({args})"
        return f"+{self.gap:g} s  {self.id}. {said}"


PlanEnd = Literal["ends", "raises", "says nothing"]
JoinEnd = Literal["answers", "replans", "raises", "says nothing"]


@dataclass(frozen=True, slots=True)
class Round:
    """One plan, how its planner stops, and what the joiner makes of it."""

    lines: tuple[Line, ...]
    plan_end: PlanEnd = "ends"
    join_end: JoinEnd = "answers"
    join_seconds: float = 0.0


Verdict = Literal["allowed", "refused", "not judged: the approver breaks"]


@dataclass(frozen=True, slots=True)
class Schedule:
    """All that can differ between two runs. `drawn` makes one; ``print(schedule)`` tells it.

    ``calls`` holds for each task how its first, second, … call goes; the last holds for all
    further ones. ``verdicts`` are for the tasks whose tool is risky: seconds, and what is said.
    ``cancels`` are the seconds at which the caller cancels the run.
    """

    seed: int
    rounds: tuple[Round, ...]
    calls: Mapping[int, tuple[Behaviour, ...]]
    verdicts: Mapping[int, tuple[float, Verdict]] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    timeout: float | None = None
    cancels: tuple[float, ...] = ()

    @property
    def tasks(self) -> list[Task]:
        """All that the rounds may plan, in order."""
        lines = (line for one in self.rounds for line in one.lines)
        return [line.task for line in lines if line.task is not None]

    def __str__(self) -> str:
        timeout = "none" if self.timeout is None else f"{self.timeout:g} s"
        text = [f"schedule {self.seed}: {self.limits}, timeout {timeout}"]
        for number, one in enumerate(self.rounds, 1):
            text.append(f"  round {number}: the planner {one.plan_end}")
            text += (f"    {line}" for line in one.lines)
            text.append(f"    the joiner {one.join_end} after {one.join_seconds:g} s")
        for id, behaviours in self.calls.items():
            text.append(f"  call {id}: {', then '.join(map(str, behaviours))}")
        text += (f"  call {id} is {said} after {s:g} s" for id, (s, said) in self.verdicts.items())
        text += (f"  cancelled at {second:g} s" for second in self.cancels)
        return "\n".join(text)


Chance = Callable[[str], Random]
"""The source of chance for one dimension of schedules, by its name."""

READ, WRITE = ("look", "sum_up"), "send"
_STEP = 100  # latencies are hundredths of a second, so that ties are common


def seeded(seed: int) -> Chance:
    """Each dimension draws from a stream of its own: a new one changes none of the others."""
    return lambda dimension: Random(f"{seed} {dimension}")


def drawn(seed: int, chance: Chance | None = None) -> Schedule:
    """The schedule with this number. Equal seeds give equal schedules."""
    chance = chance or seeded(seed)
    limits = _limits(chance("limits"))
    rounds = _rounds(chance("plan"), limits.max_replans, chance("rounds"))
    tasks = [line.task for one in rounds for line in one.lines if line.task is not None]
    timeout = _timeout(chance("timeout"))
    cancels = _cancels(chance("cancel"))
    calls = _calls(chance("latency"), chance("fault"), tasks)
    hangs = any(b.fault == "hangs" for behaviours in calls.values() for b in behaviours)
    if hangs and timeout is None and not cancels:
        timeout = 2.005  # else the run waits for ever, as it should
    return Schedule(
        seed, rounds, calls, _verdicts(chance("approval"), tasks), limits, timeout, cancels
    )


def _limits(chance: Random) -> Limits:
    return Limits(
        max_tasks=chance.choice((1000, 1000, 1000, 4)),
        max_replans=chance.choice((0, 1, 2)),
        concurrency=chance.choice((1, 2, 3, 8, 64)),
    )


def _timeout(chance: Random) -> float | None:
    """Between two hundredths: no call ends at the very instant at which its time is over."""
    return None if chance.random() < 0.3 else chance.randint(20, 400) / _STEP + 0.005


def _cancels(chance: Random) -> tuple[float, ...]:
    """Most runs are left alone; an impatient caller cancels again."""
    if chance.random() < 0.85:
        return ()
    first = chance.randint(0, 300) / _STEP
    return (first, first + chance.randint(0, 50) / _STEP) if chance.random() < 0.3 else (first,)


def _rounds(plan: Random, max_replans: int, ends: Random) -> tuple[Round, ...]:
    rounds: list[Round] = []
    known: list[int] = []
    while True:
        lines = tuple(_lines(plan, known))
        plan_end: PlanEnd = ends.choices(("ends", "raises", "says nothing"), (94, 4, 2))[0]
        join_end: JoinEnd = ends.choices(
            ("answers", "replans", "raises", "says nothing"), (76, 20, 3, 1)
        )[0]
        rounds.append(Round(lines, plan_end, join_end, ends.randint(0, 20) / _STEP))
        if join_end != "replans" or len(rounds) > max_replans:
            return tuple(rounds)


def _lines(chance: Random, known: list[int]) -> Iterator[Line]:
    """One plan: a chain, a fan or anything between; ``known`` grows by its numbers."""
    pace = chance.choice((0, 0, 3, 10))
    most = chance.choice((0, 1, 2, 3))  # needs of a call
    near = chance.choice((1, 3, 100))  # how far back they reach
    risky = chance.random() < 0.25
    for _ in range(chance.choice((0, 1, 3, 6, 9, 14))):
        id = (known[-1] if known else 0) + chance.choice((1, 1, 1, 1, 3))
        gap = chance.randint(0, pace) / _STEP
        tool = WRITE if risky and chance.random() < 0.3 else chance.choice(READ)
        args: dict[str, Any] = {"me": id}
        for place in range(chance.randint(0, most) if known else 0):
            args["abc"[place]] = _reference(chance, known[-near:], id)
        unusable = chance.random() < 0.04
        yield Line(gap, None if unusable else Task(id, tool, args, needs(args)), id)
        known.append(id)


def _reference(chance: Random, known: list[int], id: int) -> Any:
    """Mostly a part of an earlier result; now and then nowhere, or inside a list."""
    kind = chance.random()
    if kind < 0.02:
        return Ref(id + 1)  # not planned before
    of = chance.choice(known)
    if kind < 0.05:
        return Ref(of, ("items", 7))
    if kind < 0.15:
        return [Ref(of, ("sum",)), {"deep": Ref(chance.choice(known))}]
    return chance.choice((Ref(of), Ref(of, ("sum",)), Ref(of, ("items", 0))))


def _calls(latency: Random, fault: Random, tasks: list[Task]) -> dict[int, tuple[Behaviour, ...]]:
    most = latency.choice((0, 2, 20, 100))  # hundredths; 0 and 2 make everything a tie
    tail = latency.choice((0.0, 0.1))
    often = fault.choice((0.0, 0.0, 0.1, 0.4))
    calls: dict[int, tuple[Behaviour, ...]] = {}
    for task in tasks:
        seconds = latency.randint(0, most) / _STEP
        if latency.random() < tail:
            seconds *= 20
        kind = fault.choice(FAULTS) if fault.random() < often else ""
        calls[task.id] = (Behaviour(seconds, kind, fault.randint(1, 100) / _STEP),)
    return calls


def _verdicts(chance: Random, tasks: list[Task]) -> dict[int, tuple[float, Verdict]]:
    words: tuple[Verdict, ...] = (
        "allowed",
        "allowed",
        "refused",
        "not judged: the approver breaks",
    )
    return {
        task.id: (chance.randint(0, 30) / _STEP, chance.choice(words))
        for task in tasks
        if task.tool == WRITE
    }


# Performing


@dataclass(slots=True)
class Performed:
    """What came of a schedule: all that the invariants look at.

    ``peak`` is the largest number of calls in flight, ``left`` what stood in the loop
    behind the run's end, ``error`` what the run raised.
    """

    schedule: Schedule
    machine: Machine
    events: list[Event] = field(default_factory=list)
    record: bytes = b""
    peak: int = 0
    left: list[str] = field(default_factory=list)
    error: BaseException | None = None

    @property
    def cancelled(self) -> bool:
        return isinstance(self.error, asyncio.CancelledError)

    @property
    def end(self) -> RunFinished | None:
        """The run's last event, where it is the one that ends runs."""
        last = self.events[-1] if self.events else None
        return last if isinstance(last, RunFinished) else None


def perform(schedule: Schedule) -> Performed:
    """Run the real machine and driver through ``schedule``, in virtual time."""
    performed = Performed(schedule, Machine(schedule.limits, frozenset({WRITE})))
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
        self._called: Counter[int] = Counter()
        self._emit: Emit | None = None
        self._now: Callable[[], float] = lambda: 0.0

    async def live(self) -> None:
        performed, loop = self._performed, asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        text = io.StringIO()
        with RecordWriter(text, performed.machine) as writer:
            driver = Driver(
                performed.machine,
                tools={name: self._tool(name) for name in (*READ, WRITE)},
                plan=self._plan,
                join=self._join,
                clock=LoopClock(),
                approve=self._approve,
                timeout=self._schedule.timeout,
                max_result_bytes=MAX_RESULT_BYTES,
                observers=[performed.events.append, writer.event],
                command_observers=[writer.command],
            )
            self._emit, self._now = driver.emit, driver.clock.now
            work = loop.create_task(driver.run(RunStarted("simulated", "?")))
            cancels = [loop.call_at(second, work.cancel) for second in self._schedule.cancels]
            try:
                await asyncio.wait([work])
            finally:
                for timer in cancels:
                    timer.cancel()
        performed.record = text.getvalue().encode("utf-8", "surrogatepass")
        performed.error = asyncio.CancelledError() if work.cancelled() else work.exception()
        heard = len(performed.events)
        for _ in range(3):
            await asyncio.sleep(0)  # what is ready now is of the run, and should not be
        others = asyncio.all_tasks() - {asyncio.current_task()}
        performed.left = [f"task {task.get_name()}" for task in others]
        performed.left += (f"timer at {timer.when():g} s" for timer in loop.timers())
        performed.left += map(repr, performed.events[heard:])

    def _tool(self, name: str) -> Tool:
        async def call(**args: Any) -> Any:
            return await self._call(name, args)

        effect: Literal["read", "write"] = "write" if name == WRITE else "read"
        return Tool(name, "Simulated.", {"type": "object"}, call, dict, effect=effect)

    async def _call(self, tool: str, args: Mapping[str, Any]) -> Any:
        id = args["me"]
        behaviours = self._schedule.calls[id]
        behaviour = behaviours[min(self._called[id], len(behaviours) - 1)]
        self._called[id] += 1
        self._in_flight += 1
        self._performed.peak = max(self._performed.peak, self._in_flight)
        try:
            return await self._behave(behaviour, id, value_of(tool, args))
        finally:
            self._in_flight -= 1

    async def _behave(self, behaviour: Behaviour, id: int, value: Any) -> Any:
        try:
            await asyncio.sleep(behaviour.latency)
            if behaviour.fault == "hangs":
                await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            if behaviour.fault != "stubborn":
                raise
            await asyncio.sleep(behaviour.lag)
        match behaviour.fault:
            case "raises":
                raise ValueError(f"call {id} broke")
            case "exits":
                raise SystemExit(id)
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
                emit(PlanEnded(command.round, now()))
            case "raises":
                raise ConnectionError("the model server went away")

    async def _join(self, command: Join, emit: Emit) -> None:
        one = self._schedule.rounds[command.round - 1]
        await asyncio.sleep(one.join_seconds)
        now = self._now()
        match one.join_end:
            case "answers":
                emit(Answered(command.round, "done", at=now))
            case "replans":
                emit(ReplanAsked(command.round, "more", now))
            case "raises":
                raise ConnectionError("the model server went away")

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


def value_of(tool: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """What a simulated tool returns: a wrong argument anywhere above shows in ``sum``."""
    text = json.dumps([tool, args], sort_keys=True)
    return {"of": args["me"], "sum": zlib.crc32(text.encode()), "items": [args["me"]]}


# What must hold


Invariant = Callable[[Performed], Iterator[str]]
"""Looks at what came of a schedule and yields what is wrong with it, in words."""


def ended(performed: Performed) -> Iterator[str]:
    """The run came to an end by itself or by its caller's cancelling, and raised nothing else."""
    if performed.error is not None and not (performed.cancelled and performed.schedule.cancels):
        yield f"the run raised {performed.error!r}"


def one_end(performed: Performed) -> Iterator[str]:
    """There is one `RunFinished`, and nothing comes behind it."""
    ends = [place for place, e in enumerate(performed.events, 1) if isinstance(e, RunFinished)]
    if ends != [len(performed.events)]:
        yield f"RunFinished at {ends} of {len(performed.events)} events"


def nothing_left(performed: Performed) -> Iterator[str]:
    """No task, no timer and no late event is left in the loop."""
    if performed.left:
        yield f"left in the loop: {', '.join(performed.left)}"


def all_ended(performed: Performed) -> Iterator[str]:
    """Every planned task has an outcome, unless the run was cancelled."""
    lost = performed.machine.tasks.keys() - performed.machine.outcomes.keys()
    if lost and not performed.cancelled:
        yield f"tasks {sorted(lost)} never ended"


def within_concurrency(performed: Performed) -> Iterator[str]:
    """No more calls were in flight than the limit says."""
    most = performed.schedule.limits.concurrency
    if performed.peak > most:
        yield f"{performed.peak} calls in flight, concurrency is {most}"


def in_order(performed: Performed) -> Iterator[str]:
    """Time never goes back; a call starts once, planned, after all that it needs went well."""
    planned: dict[int, Task] = {}
    well: set[int] = set()
    started: set[int] = set()
    at = 0.0
    for event in performed.events:
        if event.at < at:
            yield f"{type(event).__name__} at {event.at:g} s comes behind {at:g} s"
        at = event.at
        match event:
            case TaskPlanned(task=task):
                planned[task.id] = task
            case TaskDone(task_id=id, outcome=Ok()):
                well.add(id)
            case TaskStarted(task_id=id):
                if id not in planned or id in started:
                    yield f"call {id} started {'again' if id in started else 'unplanned'}"
                elif not well.issuperset(planned[id].needs):
                    yield f"call {id} started before {set(planned[id].needs) - well}"
                started.add(id)


def replays(performed: Performed) -> Iterator[str]:
    """The record holds every event, and deciding again from it gives the same commands."""
    if isinstance(performed.error, AgentparError):
        return  # there is no whole record
    record = parse_record(performed.record)
    if list(record.events) != performed.events:
        yield "the record holds other events"
    found = replay(record)
    if found.difference:
        yield f"replay differs after {found.events} events: {found.difference}"


def as_one_by_one(performed: Performed) -> Iterator[str]:
    """Every outcome is what running one call after the other gives, whatever ended first."""
    if performed.cancelled or isinstance(performed.error, AgentparError):
        return
    expected = one_by_one(performed.schedule, performed.machine.round)
    for id in sorted(expected.keys() | performed.machine.outcomes.keys()):
        want, have = expected.get(id), performed.machine.outcomes.get(id)
        if want != have:
            yield f"task {id} ended as {have}, one by one as {want}"


INVARIANTS: tuple[Invariant, ...] = (
    ended,
    one_end,
    nothing_left,
    all_ended,
    within_concurrency,
    in_order,
    replays,
    as_one_by_one,
)


def broken(performed: Performed) -> list[str]:
    """What does not hold after a schedule, each with the name of its invariant."""
    return [
        f"{invariant.__name__}: {complaint}"
        for invariant in INVARIANTS
        for complaint in invariant(performed)
    ]


def one_by_one(schedule: Schedule, rounds: int) -> dict[int, Outcome]:
    """The outcomes of the first ``rounds`` rounds, by the plainest interpreter there is.

    It knows neither time nor order: the tasks come as they are written, and each call goes as
    the schedule says.
    """
    outcomes: dict[int, Outcome] = {}
    count = 0
    for one in schedule.rounds[:rounds]:
        for line in one.lines:
            if line.task is None:
                outcomes[line.id] = Failed("not usable", "plan")
                continue
            count += 1
            outcomes[line.id] = _alone(schedule, line.task, outcomes, count)
    return outcomes


def _alone(schedule: Schedule, task: Task, outcomes: Mapping[int, Outcome], count: int) -> Outcome:
    most = schedule.limits.max_tasks
    if count > most:
        return Failed(f"the plan has more than max_tasks={most} tasks", "plan")
    for need in task.needs:
        if need not in outcomes:
            error = f"refers to ${need}, which is not planned before task {task.id}"
            return Failed(error, "plan")
    for need in task.needs:
        if not isinstance(outcomes[need], Ok):
            return Skipped(need)
    try:
        args = fill(task.args, outcomes)
    except PlanError as error:
        return Failed(str(error), "reference")
    if task.tool == WRITE:
        seconds, verdict = schedule.verdicts[task.id]
        if verdict == "not judged: the approver breaks":
            why = "the approver failed: ValueError: the approver broke"
            return Failed(f"not approved: {why}", "denied")
        if verdict == "refused":
            return Failed(f"not approved: {'not today' if seconds else 'refused'}", "denied")
    return _called(schedule, task, args)


def _called(schedule: Schedule, task: Task, args: Mapping[str, Any]) -> Outcome:
    behaviour = schedule.calls[task.id][0]
    timeout = schedule.timeout
    late = timeout is not None and (behaviour.fault == "hangs" or behaviour.latency > timeout)
    if late and behaviour.fault != "stubborn":
        return Failed(f"{task.tool} gave no result within {timeout:g} s", "timeout")
    match behaviour.fault:
        case "raises":
            return Failed(f"ValueError: call {task.id} broke")
        case "exits":
            return Failed(f"SystemExit: {task.id}")
        case "cancels itself" | "cancels its task":
            return Failed("the call cancelled itself")
        case "large":
            limit = f"max_result_bytes={MAX_RESULT_BYTES:,}"
            return Failed(f"{task.tool} returned more than {limit}", "size")
        case "not data":
            return Failed(
                "value is 2 bytes, which is not data: decode it to text, or save it and "
                "return its path"
            )
    return Ok(value_of(task.tool, args))
