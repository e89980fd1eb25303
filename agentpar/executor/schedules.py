"""Schedules: whole runs drawn from a seed, with all that can differ between two of them.

A `Schedule` says when the planner writes which call, how long each call takes and how it
goes wrong, what the limits and policies are, who cancels when. Values and chance only: what
performs one is `agentpar.executor.perform`, what must hold after it
`agentpar.executor.invariants`.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from random import Random
from typing import Any, Literal

from agentpar.events import (
    Usage,
)
from agentpar.plan import Ref, Task, needs
from agentpar.policy import PLAIN, Limits, Policy

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
    """Of calls whose arguments are known beforehand."""
    plain = [task for task in tasks if not task.needs]
    cached = [
        task.args["me"]
        for task in plain
        if task.tool != WRITE
        and policies[task.tool].cache is not None
        and policies[task.tool].idempotent is not False
    ]
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
    twins = chance.choice((0.1, 0.1, 0.5))
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
        elif kind < 0.04 + twins and alone:
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


def value_of(tool: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """What a simulated tool returns: a wrong argument anywhere above shows in ``sum``."""
    text = json.dumps([tool, args], sort_keys=True)
    return {"of": args["me"], "sum": zlib.crc32(text.encode()), "items": [args["me"]]}


def policy_of(schedule: Schedule, task: Task) -> Policy:
    """How the tool of ``task`` is called."""
    return schedule.policies.get(task.tool, PLAIN)
