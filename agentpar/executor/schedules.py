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
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from random import Random
from typing import Any, Literal

from agentpar.errors import AgentparError, FetchError, PlanError
from agentpar.events import (
    Answered,
    AttemptFailed,
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
    TaskStarted,
    Usage,
)
from agentpar.executor.driver import GRACE, Driver, Emit
from agentpar.executor.machine import (
    HEDGE_SHARE,
    Cancel,
    Command,
    Conclude,
    Execute,
    Join,
    Machine,
    Plan,
)
from agentpar.executor.record import RecordWriter, parse_record, replay
from agentpar.executor.simulate import LoopClock, VirtualLoop, run
from agentpar.plan import Failed, Ok, Outcome, Ref, Skipped, Task, fill, has_value, needs
from agentpar.policy import PLAIN, Limits, Policy
from agentpar.tools.base import Tool

MAX_RESULT_BYTES = 10_000
"""The cap on a result in every schedule; the results of tools that go well are far below it."""

Fault = Literal[
    "",
    "raises",
    "exits",  # sys.exit()
    "hangs",  # until it is cancelled
    "stubborn",  # goes on for `lag` seconds after it was cancelled, then returns
    "deaf",  # the same, but hears no second cancellation either
    "throttled",  # too many requests: come back in `lag` seconds
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
    "deaf",
    "throttled",
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
        lag = f" for {self.lag:g} s" * (self.fault in ("stubborn", "deaf", "throttled"))
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
    plan_usage: Usage = field(default_factory=Usage)
    join_usage: Usage = field(default_factory=Usage)


Verdict = Literal["allowed", "refused", "not judged: the approver breaks"]


@dataclass(frozen=True, slots=True)
class Schedule:
    """All that can differ between two runs. `drawn` makes one; ``print(schedule)`` tells it.

    ``calls`` holds for each task how its first, second, … call goes; the last holds for all
    further ones; twins, tasks with equal calls, share what holds for the first of them.
    ``verdicts`` are for the tasks whose tool is risky: seconds, and what is said. ``kept`` are
    calls whose results are there from an earlier run. ``cancels`` are the seconds at which the
    caller cancels the run, ``drops`` those at which it wants a task no more, and which.
    """

    seed: int
    rounds: tuple[Round, ...]
    calls: Mapping[int, tuple[Behaviour, ...]]
    verdicts: Mapping[int, tuple[float, Verdict]] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    policies: Mapping[str, Policy] = field(default_factory=dict)
    timeout: float | None = None
    kept: frozenset[int] = frozenset()
    cancels: tuple[float, ...] = ()
    drops: tuple[tuple[float, int], ...] = ()

    @property
    def tasks(self) -> list[Task]:
        """All that the rounds may plan, in order."""
        lines = (line for one in self.rounds for line in one.lines)
        return [line.task for line in lines if line.task is not None]

    def __str__(self) -> str:
        timeout = "none" if self.timeout is None else f"{self.timeout:g} s"
        text = [f"schedule {self.seed}: {_told(self.limits)}, timeout {timeout}"]
        for number, one in enumerate(self.rounds, 1):
            text.append(f"  round {number}: the planner {one.plan_end}")
            text += (f"    {line}" for line in one.lines)
            text.append(f"    the joiner {one.join_end} after {one.join_seconds:g} s")
        for id, behaviours in self.calls.items():
            text.append(f"  call {id}: {', then '.join(map(str, behaviours))}")
        text += (f"  call {id} is {said} after {s:g} s" for id, (s, said) in self.verdicts.items())
        text += (f"  tool {name}: {_told(policy)}" for name, policy in self.policies.items())
        text += (f"  the result of call {id} is kept" for id in sorted(self.kept))
        text += (f"  task {id} is dropped at {second:g} s" for second, id in self.drops)
        text += (f"  cancelled at {second:g} s" for second in self.cancels)
        return "\n".join(text)


def _told(value: Limits | Policy) -> str:
    """The fields that are not as by default."""
    plain = type(value)()
    names = (each.name for each in fields(value))
    changed = (n for n in names if getattr(value, n) != getattr(plain, n))
    return ", ".join(f"{n}={getattr(value, n)!r}" for n in changed) or "as by default"


Chance = Callable[[str], Random]
"""The source of chance for one dimension of schedules, by its name."""

READ, WRITE = ("look", "sum_up", "fetch"), "send"
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
    policies = _policies(chance("policy"))
    timeout = _timeout(chance("timeout"))
    cancels = _cancels(chance("cancel"))
    calls = _calls(chance("latency"), chance("fault"), tasks)
    hangs = any(b.fault == "hangs" for behaviours in calls.values() for b in behaviours)
    if hangs and timeout is None and not cancels:
        timeout = 2.005  # else the run waits for ever, as it should
    return Schedule(
        seed,
        rounds,
        calls,
        _verdicts(chance("approval"), tasks),
        limits,
        policies,
        timeout,
        _kept(chance("cache"), tasks, policies),
        cancels,
        _drops(chance("drop"), tasks),
    )


def _limits(chance: Random) -> Limits:
    tokens = chance.choice((None, None, None, None, None, 40, 100, 400))
    return Limits(
        max_tasks=chance.choice((1000, 1000, 1000, 4)),
        max_replans=chance.choice((0, 1, 2)),
        concurrency=chance.choice((1, 2, 3, 8, 64)),
        max_steps=chance.choice((None, None, None, None, 0, 2, 5, 9)),
        max_cost_usd=chance.choice((None, None, None, None, 0.02, 0.1)),
        deadline=chance.choice((None, None, None, None, 0.605, 1.505, 4.005)),
        per_host=chance.choice((None, 1, 2)),
        host_rate=chance.choice((None, None, 2.0, 10.0)),
        max_tokens=tokens,
        plan_tokens=0 if tokens is None else 30,
        answer_tokens=0 if tokens is None else 20,
    )


def _policies(chance: Random) -> dict[str, Policy]:
    """Plain in half of the schedules. The hosts and locks of tools are of every kind."""
    plain = chance.random() < 0.5
    return {name: _policy(chance, name, plain) for name in (*READ, WRITE)}


def _policy(chance: Random, name: str, plain: bool) -> Policy:
    host = "url" if name == "fetch" else ""
    if plain:
        return Policy(host=host)
    return Policy(
        timeout=chance.choice((None, None, 0.305)),
        retries=chance.choice((0, 0, 1, 3)),
        backoff=chance.choice((0.0, 0.05, 0.5)),
        idempotent=chance.choice((None, None, True, False)),
        lock=chance.choice(("", "", "one", "two")),
        on_error=chance.choices(("skip", "keep", "fail"), (6, 3, 1))[0],
        cache=chance.choice((None, None, 60.0)),
        concurrency=chance.choice((None, None, 1, 2)),
        rate=chance.choice((None, None, 3.0, 20.0)),
        hedge=chance.random() < 0.3,
        cost=chance.choice((0.0, 0.01)),
        host=host,
    )


def _kept(chance: Random, tasks: list[Task], policies: Mapping[str, Policy]) -> frozenset[int]:
    cached = [task.args["me"] for task in tasks if policies[task.tool].cache is not None]
    return frozenset(id for id in cached if chance.random() < 0.3)


def _drops(chance: Random, tasks: list[Task]) -> tuple[tuple[float, int], ...]:
    if not tasks or chance.random() < 0.9:
        return ()
    some = chance.sample(tasks, min(len(tasks), chance.randint(1, 3)))
    return tuple((chance.randint(0, 150) / _STEP, task.id) for task in some)


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
        asked = ends.choice((0, 0, 60))
        rounds.append(
            Round(
                lines,
                plan_end,
                join_end,
                ends.randint(0, 20) / _STEP,
                Usage(asked, ends.randint(0, 30), calls=1),
                Usage(asked, ends.randint(0, 20), calls=1),
            )
        )
        if join_end != "replans" or len(rounds) > max_replans:
            return tuple(rounds)


def _lines(chance: Random, known: list[int]) -> Iterator[Line]:
    """One plan: a chain, a fan or anything between; ``known`` grows by its numbers."""
    pace = chance.choice((0, 0, 3, 10))
    most = chance.choice((0, 1, 2, 3))  # needs of a call
    near = chance.choice((1, 3, 100))  # how far back they reach
    risky = chance.random() < 0.25
    alone: list[Task] = []  # that have no needs: what a twin can be of
    tools = READ if chance.random() < 0.7 else (chance.choice(READ),)
    for _ in range(chance.choices((0, 1, 3, 6, 9, 14, 45), (3, 3, 4, 4, 4, 4, 1))[0]):
        id = (known[-1] if known else 0) + chance.choice((1, 1, 1, 1, 3))
        gap = chance.randint(0, pace) / _STEP
        tool = WRITE if risky and chance.random() < 0.3 else chance.choice(tools)
        args: dict[str, Any] = {"me": id}
        if tool == "fetch":
            args["url"] = f"http://{chance.choice('ab')}.example/{id}"
        for place in range(chance.randint(0, most) if known else 0):
            args["abc"[place]] = _reference(chance, known[-near:], id)
        task: Task | None = Task(id, tool, args, needs(args))
        kind = chance.random()
        if kind < 0.04:
            task = None
        elif kind < 0.12 and alone:
            twin = chance.choice(alone)
            task = Task(id, twin.tool, twin.args)
        elif not needs(args):
            alone.append(Task(id, tool, args))
        yield Line(gap, task, id)
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
    firsts = Counter(task.args["me"] for task in tasks)
    calls: dict[int, tuple[Behaviour, ...]] = {}
    for task in tasks:
        if (me := task.args["me"]) in calls:
            continue
        found: list[Behaviour] = []
        # What a twin gets must not depend on which of the two comes first.
        for _ in range(1 if firsts[me] > 1 else 4):
            seconds = latency.randint(0, most) / _STEP * (20 if latency.random() < tail else 1)
            kind = fault.choice(FAULTS) if fault.random() < often else ""
            if kind == "done twice" and firsts[me] > 1:
                kind = ""
            if kind in ("stubborn", "deaf") and fault.random() < 0.7:
                seconds += 5  # beyond every timeout: it will be cancelled
            longest = 2000 if kind == "deaf" else 150
            found.append(Behaviour(seconds, kind, fault.randint(1, longest) / _STEP + 0.003))
            if kind == "":
                break
        calls[me] = tuple(found)
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
        frozenset({WRITE}),
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
        text = io.StringIO()
        with RecordWriter(text, performed.machine) as writer:
            driver = Driver(
                performed.machine,
                tools={name: self._tool(name) for name in (*READ, WRITE)},
                plan=self._plan,
                join=self._join,
                conclude=self._conclude,
                clock=LoopClock(),
                approve=self._approve,
                results=_Kept(self._schedule.kept),
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
        return Tool(name, "Simulated.", {"type": "object"}, call, dict, effect, policy)

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
    """Results of an earlier run: those of the calls ``kept``."""

    def __init__(self, kept: frozenset[int]) -> None:
        self._kept = kept

    async def get(self, tool: str, version: str, args: Mapping[str, Any]) -> Ok | None:
        return Ok(value_of(tool, args)) if args["me"] in self._kept else None

    async def put(
        self, tool: str, version: str, args: Mapping[str, Any], outcome: Ok, seconds: float
    ) -> None:
        """What this run brings is of no use to another here."""


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
    """No task, timer or late event is left in the loop, but for calls that hear nothing."""
    if performed.left:
        yield f"left in the loop: {', '.join(performed.left)}"


def all_ended(performed: Performed) -> Iterator[str]:
    """Every planned task has an outcome, unless the run was cancelled or a tool failed it."""
    lost = performed.machine.tasks.keys() - performed.machine.outcomes.keys()
    if lost and not performed.cancelled and not _failed_at_once(performed):
        yield f"tasks {sorted(lost)} never ended"


def _failed_at_once(performed: Performed) -> bool:
    """Whether a tool whose failure fails the run has failed."""
    policies, outcomes = performed.schedule.policies, performed.machine.outcomes
    return any(
        isinstance(outcomes.get(id), Failed) and policies.get(task.tool, PLAIN).on_error == "fail"
        for id, task in performed.machine.tasks.items()
    )


def within_concurrency(performed: Performed) -> Iterator[str]:
    """No more calls are in flight, in all, of a tool or at a host, than the limits say."""
    schedule, tasks = performed.schedule, performed.machine.tasks
    running: Counter[str] = Counter()
    bounds = {"calls": schedule.limits.concurrency}
    for name, policy in schedule.policies.items():
        if policy.concurrency is not None:
            bounds[f"calls of {name}"] = policy.concurrency
        if policy.lock:
            bounds[f"holders of {policy.lock!r}"] = 1
    if schedule.limits.per_host is not None:
        bounds |= {f"calls at {host}.example": schedule.limits.per_host for host in "ab"}
    for task_id, change in _flights(performed):
        task = tasks[task_id]
        policy = schedule.policies.get(task.tool, PLAIN)
        host = str(task.args.get("url", "")).split("/")[2:3]
        names = ["calls", f"calls of {task.tool}", f"holders of {policy.lock!r}"]
        for name in names + [f"calls at {one}" for one in host]:
            running[name] += change
            if running[name] > bounds.get(name, running[name]):
                yield f"{running[name]} {name} at once, {bounds[name]} may"
    if running["calls"] and not performed.cancelled:
        yield f"{running['calls']} calls still run at the end"
    faults = {b.fault for behaviours in schedule.calls.values() for b in behaviours}
    if performed.peak > bounds["calls"] and not faults & {"stubborn", "deaf"}:
        yield f"{performed.peak} calls really ran at once, {bounds['calls']} may"


def _flights(performed: Performed) -> Iterator[tuple[int, int]]:
    """Attempts that begin (+1) and end (-1), by task, as the machine sees them."""
    flying: dict[int, set[int]] = defaultdict(set)
    for entry in performed.log:
        match entry:
            case Execute(task, _, attempt):
                flying[task.id].add(attempt)
                yield task.id, 1
            case (
                TaskDone(task_id=id, attempt=attempt)
                | AttemptFailed(task_id=id, attempt=attempt)
                | Cancel("call", id, attempt)
            ) if attempt in flying[id]:
                flying[id].remove(attempt)
                yield id, -1


def _at_once(performed: Performed) -> Iterator[int]:
    """How many attempts of one call fly, each time that it changes."""
    flying: Counter[int] = Counter()
    for id, change in _flights(performed):
        flying[id] += change
        yield flying[id]


def locks_hold(performed: Performed) -> Iterator[str]:
    """No two calls really hold one lock, but beside one that does not stop when cancelled."""
    faults = {id: {b.fault for b in found} for id, found in performed.schedule.calls.items()}
    for lock, id, others in performed.overlaps:
        if heard := [other for other in others if not faults[other] & {"stubborn", "deaf"}]:
            yield f"lock {lock!r}: call {id} ran beside {heard}"


def within_rates(performed: Performed) -> Iterator[str]:
    """In no span of time more calls begin than a burst of one second's worth and the rate."""
    schedule, tasks = performed.schedule, performed.machine.tasks
    begun: dict[str, list[float]] = defaultdict(list)
    rates: dict[str, float] = {}
    for event in performed.log:
        if isinstance(event, TaskStarted):
            task = tasks[event.task_id]
            begun[task.tool].append(event.at)
            if (rate := schedule.policies.get(task.tool, PLAIN).rate) is not None:
                rates[task.tool] = rate
            if (url := task.args.get("url")) and (rate := schedule.limits.host_rate) is not None:
                host = url.split("/")[2]
                begun[host].append(event.at)
                rates[host] = rate
    for name, rate in rates.items():
        times = begun[name]
        for first, since in enumerate(times):
            for last in range(first, len(times)):
                most = max(1.0, rate) + rate * (times[last] - since)
                if last - first + 1 > most + 1e-6:
                    yield f"{last - first + 1} calls of {name} in {times[last] - since:g} s"
                    return


def within_budget(performed: Performed) -> Iterator[str]:
    """Steps and money are never overspent; tokens only by prompts, whose length nobody knows
    before the first of its kind."""
    schedule, limits = performed.schedule, performed.schedule.limits
    tasks = performed.machine.tasks
    steps, cost, tokens, prompts = 0, 0.0, 0, 0
    for entry in performed.log:
        match entry:
            case Execute(task):
                steps += 1
                cost += schedule.policies.get(task.tool, PLAIN).cost
            case TaskDone(task_id=id, via="cache"):
                steps -= 1
                cost -= schedule.policies.get(tasks[id].tool, PLAIN).cost
            case ModelUsed(usage=usage):
                tokens += usage.prompt_tokens + usage.completion_tokens
                prompts += usage.prompt_tokens
        if limits.max_steps is not None and steps > limits.max_steps:
            yield f"{steps} steps, max_steps is {limits.max_steps}"
            return
        if limits.max_cost_usd is not None and cost > limits.max_cost_usd + 1e-9:
            yield f"{cost:g} USD, max_cost_usd is {limits.max_cost_usd}"
            return
        if limits.max_tokens is not None and tokens > limits.max_tokens + prompts:
            yield f"{tokens} tokens, max_tokens is {limits.max_tokens}"
            return


def by_the_deadline(performed: Performed) -> Iterator[str]:
    """The run has its answer by then; what hears no cancellation keeps it a little longer."""
    deadline, end = performed.schedule.limits.deadline, performed.end
    if deadline is None or end is None or performed.cancelled:
        return
    answered = max((e.at for e in performed.log if isinstance(e, Answered)), default=0.0)
    faults = {b.fault for behaviours in performed.schedule.calls.values() for b in behaviours}
    grace = GRACE if faults & {"stubborn", "deaf"} else 0.0
    if answered > deadline + 1e-6 or end.at > deadline + grace + 1e-6:
        yield f"answered at {answered:g} s, ended at {end.at:g} s, deadline is {deadline:g} s"


def within_retries(performed: Performed) -> Iterator[str]:
    """No call is tried more often than its policy allows; what is not idempotent is made again
    only where it was refused."""
    schedule, tasks = performed.schedule, performed.machine.tasks
    made: Counter[int] = Counter()
    refused: Counter[int] = Counter()
    for entry in performed.log:
        match entry:
            case Execute(task):
                made[task.id] += 1
            case AttemptFailed(task_id=id, outcome=Failed(kind="throttled")):
                refused[id] += 1
    for id, count in made.items():
        policy = schedule.policies.get(tasks[id].tool, PLAIN)
        twice = policy.idempotent is None and tasks[id].tool != WRITE
        may = 1 + policy.retries + policy.hedge
        if not (policy.idempotent or twice):
            may = min(1 + policy.retries, 1 + refused[id])
        if count > may:
            yield f"call {id} was made {count} times, {may} is the most"


def few_hedges(performed: Performed) -> Iterator[str]:
    """Of the calls of a tool no more than one in twenty is made a second time beside itself."""
    tasks = performed.machine.tasks
    flying: Counter[int] = Counter()
    begun: Counter[str] = Counter()
    hedges: Counter[str] = Counter()
    for id, change in _flights(performed):
        flying[id] += change
        if change > 0:
            tool = tasks[id].tool
            (hedges if flying[id] > 1 else begun)[tool] += 1
            if hedges[tool] > HEDGE_SHARE * begun[tool]:
                yield f"{hedges[tool]} hedges beside {begun[tool]} calls of {tool}"


def once_for_equals(performed: Performed) -> Iterator[str]:
    """Of equal calls that may be shared, one is made at a time, and none behind a good one."""
    schedule = performed.schedule
    open_now: dict[str, int] = {}
    well: dict[str, int] = {}
    for entry in performed.log:
        match entry:
            case Execute(task, args):
                if (
                    task.tool == WRITE
                    or schedule.policies.get(task.tool, PLAIN).idempotent is False
                ):
                    continue
                call = f"{task.tool}{sorted(args.items())}"
                other = well.get(call, open_now.get(call, task.id))
                if other != task.id:
                    yield f"call {task.id} was made, although it equals call {other}"
                open_now[call] = task.id
            case TaskDone(task_id=id, outcome=outcome):
                mine = [call for call, owner in open_now.items() if owner == id]
                for call in mine:
                    del open_now[call]
                    if isinstance(outcome, Ok):
                        well[call] = id


def in_order(performed: Performed) -> Iterator[str]:
    """Time never goes back; an attempt starts once, planned, after all that it needs."""
    planned: dict[int, Task] = {}
    valued: set[int] = set()
    started: set[tuple[int, int]] = set()
    at = 0.0
    for event in performed.events:
        if event.at < at - 1e-8:  # a timer may fire a little early
            yield f"{type(event).__name__} at {event.at:g} s comes behind {at:g} s"
        at = event.at
        match event:
            case TaskPlanned(task=task):
                planned[task.id] = task
            case TaskDone(task_id=id) if has_value(performed.machine.outcomes.get(id)):
                valued.add(id)
            case TaskStarted(task_id=id, attempt=attempt):
                if id not in planned or (id, attempt) in started:
                    yield f"call {id} started {'unplanned' if id not in planned else 'again'}"
                elif not valued.issuperset(planned[id].needs):
                    yield f"call {id} started before {set(planned[id].needs) - valued}"
                started.add((id, attempt))


def replays(performed: Performed) -> Iterator[str]:
    """The record holds every event, and deciding again from it gives the same commands."""
    if performed.error is not None and not performed.cancelled:
        return  # there is no whole record
    record = parse_record(performed.record)
    if list(record.events) != performed.events:
        yield "the record holds other events"
    found = replay(record)
    if found.difference:
        yield f"replay differs after {found.events} events: {found.difference}"


def as_one_by_one(performed: Performed) -> Iterator[str]:
    """Every outcome is what running one call after the other gives, whatever ended first, unless
    somebody or a limit has stopped something."""
    if performed.error is not None or performed.schedule.drops:
        return
    if performed.machine.stopped_by or _failed_at_once(performed):
        return
    if any(flying > 1 for flying in _at_once(performed)):
        return  # which of two attempts brings it depends on their speed
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
    locks_hold,
    within_rates,
    within_budget,
    by_the_deadline,
    within_retries,
    few_hedges,
    once_for_equals,
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
        if not has_value(outcomes[need]):
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
    outcome = _tried(schedule, task, args)
    if isinstance(outcome, Failed) and _policy_of(schedule, task).on_error == "keep":
        return replace(outcome, kept=True)
    return outcome


def _policy_of(schedule: Schedule, task: Task) -> Policy:
    return schedule.policies.get(task.tool, PLAIN)


def _tried(schedule: Schedule, task: Task, args: Mapping[str, Any]) -> Outcome:
    """Call until it goes well, or nothing is left to try."""
    policy, me = _policy_of(schedule, task), task.args["me"]
    if policy.cache is not None and me in schedule.kept:
        return Ok(value_of(task.tool, args))
    idempotent = task.tool != WRITE if policy.idempotent is None else policy.idempotent
    behaviours = schedule.calls[me]
    for attempt in range(policy.retries + 1):
        behaviour = behaviours[min(attempt, len(behaviours) - 1)]
        outcome = _called(schedule, task, args, behaviour)
        again = (
            isinstance(outcome, Failed)
            and _DEAF not in outcome.error
            and (
                outcome.kind == "throttled" or (idempotent and outcome.kind in ("tool", "timeout"))
            )
        )
        if not again:
            break
    return outcome


_DEAF = ", and does not stop when cancelled"
"""What is said of a call that goes on; it is not made again beside itself."""


def _called(
    schedule: Schedule, task: Task, args: Mapping[str, Any], behaviour: Behaviour
) -> Outcome:
    own = _policy_of(schedule, task).timeout
    timeout = schedule.timeout if own is None else own
    if timeout is not None and (behaviour.fault == "hangs" or behaviour.latency > timeout):
        error = f"{task.tool} gave no result within {timeout:g} s"
        if behaviour.fault in ("stubborn", "deaf") and behaviour.lag > 1:
            error += _DEAF
        return Failed(error, "timeout")
    me = task.args["me"]
    match behaviour.fault:
        case "raises":
            return Failed(f"ValueError: call {me} broke")
        case "exits":
            return Failed(f"SystemExit: {me}")
        case "throttled":
            return Failed(f"call {me} came too soon", "throttled")
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
