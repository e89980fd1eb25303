"""Schedules: whole runs as values, with all that can differ between two of them.

A `Schedule` says when the planner writes which call, how long each call takes and how it
goes wrong, what the limits, policies and rules are, who cancels when, and when the process
dies. Values only: where they come from is `agentpar.executor.draws`, what performs one
`agentpar.executor.perform`, what must hold after it `agentpar.executor.invariants`.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from agentpar.events import Usage
from agentpar.permissions import Flow, Rule
from agentpar.plan import Task
from agentpar.policy import PLAIN, Limits, Policy
from agentpar.resource import host_of

READ, LIST, SINKS = ("look", "sum_up", "fetch"), "browse", ("send", "post")
"""The simulated tools: those that read, the one that brings a list bit by bit, and those whose
calls have consequences."""
TOOLS = (*READ, LIST, *SINKS)
PURE = "sum_up"
"""The tool that brings nothing in from outside."""
FLOWS = {"send": Flow("write"), "post": Flow(sends=True), PURE: Flow(pure=True)}

ELSEWHERE = "a.example"
"""The host of calls that are refused and name none."""
WAITS = 1.0
"""For how many seconds a simulated call waits for a host that wants to be left alone."""

MOST_ELEMENTS = 4
"""Of the lists that a simulated tool brings."""
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


Change = Literal["", "replaces", "cancels"]


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a plan, ``gap`` seconds behind the one before: a task, or a number without one.

    With a ``change`` it is about an earlier call, ``id``: ``task`` replaces it, or nothing does.
    """

    gap: float
    task: Task | None
    id: int
    change: Change = ""

    def __str__(self) -> str:
        if self.change == "cancels":
            return f"+{self.gap:g} s  cancel {self.id}"
        said = "an unusable line"
        if self.task is not None:
            args = ", ".join(f"{name}={value}" for name, value in self.task.args.items())
            said = f"{self.task.tool}({args})"
        number = f"replace {self.id}" if self.change else self.id
        return f"+{self.gap:g} s  {number}. {said}"


PlanEnd = Literal["ends", "raises", "says nothing"]
JoinEnd = Literal["answers", "replans", "raises", "says nothing"]


@dataclass(frozen=True, slots=True)
class Round:
    """One plan, how its planner stops, and what the joiner makes of it.

    ``anew``: where the process dies while it is written, the next one's planner writes another,
    behind what stands: the lines of these numbers are not in it. None: the same again.
    """

    lines: tuple[Line, ...]
    plan_end: PlanEnd = "ends"
    join_end: JoinEnd = "answers"
    join_seconds: float = 0.0
    plan_usage: Usage = field(default_factory=Usage)
    join_usage: Usage = field(default_factory=Usage)
    anew: frozenset[int] | None = None


Verdict = Literal["allowed", "refused", "not judged: the approver breaks"]


@dataclass(frozen=True, slots=True)
class Crash:
    """The process dies at the event with number ``after`` (of those that it tells itself), and
    of the last events up to ``lost`` have not come to disk. Another process carries on, by other
    ``rules`` where there are some."""

    after: int
    lost: int = 0
    rules: tuple[Rule, ...] | None = None

    def __str__(self) -> str:
        told = f"the process dies at its event {self.after}, {self.lost} are not on disk"
        if self.rules is None:
            return told
        rules = ", ".join(map(str, self.rules)) or "none"
        return f"{told}, and the next one has other rules: {rules}"


@dataclass(frozen=True, slots=True)
class Schedule:
    """All that can differ between two runs. `drawn` makes one; ``print(schedule)`` tells it.

    ``calls`` holds for each call, by its `name_of`, how its first, second, … attempt goes; the
    last holds for all further ones; twins, tasks with equal calls, share what holds for the first
    of them. ``verdicts`` are for the tasks about which somebody may be asked: seconds, and what is
    said. ``kept`` are calls whose results are there from an earlier run. ``cancels`` are the
    seconds at which the caller cancels the run, ``drops`` those at which it wants a task no more,
    and which. ``refusals`` are of calls which their host tells at first that it is too much, for
    so many seconds or without a word of how long (None). Of the tools in ``batches`` up to so many
    calls go as one.
    """

    seed: int
    rounds: tuple[Round, ...]
    calls: Mapping[str, tuple[Behaviour, ...]]
    verdicts: Mapping[int, tuple[float, Verdict]] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    policies: Mapping[str, Policy] = field(default_factory=dict)
    timeout: float | None = None
    kept: frozenset[int] = frozenset()
    cancels: tuple[float, ...] = ()
    drops: tuple[tuple[float, int], ...] = ()
    rules: tuple[Rule, ...] = ()
    crashes: tuple[Crash, ...] = ()
    refusals: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)
    batches: Mapping[str, int] = field(default_factory=dict)

    @property
    def tasks(self) -> list[Task]:
        """All that the rounds may plan, in order; those that replace others included."""
        lines = (line for one in self.rounds for line in one.lines)
        return [line.task for line in lines if line.task is not None]

    def __str__(self) -> str:
        timeout = "none" if self.timeout is None else f"{self.timeout:g} s"
        text = [f"schedule {self.seed}: {_told(self.limits)}, timeout {timeout}"]
        for number, one in enumerate(self.rounds, 1):
            text.append(f"  round {number}: the planner {one.plan_end}")
            text += (f"    {line}" for line in one.lines)
            if one.anew is not None:
                text.append(f"    written anew after a crash: without {sorted(one.anew)}")
            text.append(f"    the joiner {one.join_end} after {one.join_seconds:g} s")
        for name, behaviours in self.calls.items():
            text.append(f"  call {name}: {', then '.join(map(str, behaviours))}")
        text += (f"  rule {rule}" for rule in self.rules)
        text += (f"  call {id} is {said} after {s:g} s" for id, (s, said) in self.verdicts.items())
        text += (f"  tool {name}: {_told(policy)}" for name, policy in self.policies.items())
        text += (f"  tool {name}: in batches of {most}" for name, most in self.batches.items())
        text += (
            f"  call {name} is refused first: {waits}" for name, waits in self.refusals.items()
        )
        text += (f"  the result of call {id} is kept" for id in sorted(self.kept))
        text += (f"  task {id} is dropped at {second:g} s" for second, id in self.drops)
        text += (f"  cancelled at {second:g} s" for second in self.cancels)
        text += (f"  {crash}" for crash in self.crashes)
        return "\n".join(text)


def _told(value: Limits | Policy) -> str:
    """The fields that are not as by default."""
    plain = type(value)()
    names = (each.name for each in fields(value))
    changed = (n for n in names if getattr(value, n) != getattr(plain, n))
    return ", ".join(f"{n}={getattr(value, n)!r}" for n in changed) or "as by default"


# What the simulated tools do


def name_of(args: Mapping[str, Any]) -> str:
    """What a schedule calls the call with these arguments: ``"5"``, or ``"5[2]"`` for the third
    element of a list."""
    match args.get("each"):
        case None:
            return str(args["me"])
        case {"n": index}:
            return f"{args['me']}[{index}]"
        case _:
            return f"{args['me']}[0]"


def names_of(task: Task) -> Iterator[str]:
    """The names of all calls that may come of ``task``."""
    if "each" not in task.args:
        yield str(task.args["me"])
    else:
        yield from (f"{task.args['me']}[{index}]" for index in range(MOST_ELEMENTS))


def host_visited(schedule: Schedule, args: Mapping[str, Any]) -> str:
    """The host that the call with these arguments sends requests to; empty for none."""
    if (url := args.get("url")) is not None:
        return host_of(url)
    return ELSEWHERE if name_of(args) in schedule.refusals else ""


def value_of(tool: str, args: Mapping[str, Any]) -> Any:
    """What a simulated tool returns: a wrong argument anywhere above shows in ``sum``."""
    text = json.dumps([tool, args], sort_keys=True)
    sum = zlib.crc32(text.encode())
    if tool == LIST:  # now and then an empty one
        count = sum % (MOST_ELEMENTS + 1)
        return [{"n": index, "of": args["me"], "sum": sum} for index in range(count)]
    items = [{"n": index} for index in range(1 + sum % (MOST_ELEMENTS - 1))]
    return {"of": args["me"], "sum": sum, "items": items}


def policy_of(schedule: Schedule, task: Task) -> Policy:
    """How the tool of ``task`` is called."""
    return schedule.policies.get(task.tool, PLAIN)
