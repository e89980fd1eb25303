"""Fuzzing a recorded run: the same results in other orders and with faults; what is decided?

The real machine and driver run again in virtual time. Tools give what the record holds for
a call, the planner writes what it wrote, at its pace; who joins is handed in. It must never
know a model, a prompt or a real tool.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Literal

from agentpar.errors import AgentparError, BackendError, FetchError, UsageError
from agentpar.events import (
    Answered,
    ApprovalAsked,
    ApprovalGiven,
    AttemptFailed,
    Event,
    JoinFailed,
    JoinStarted,
    JoinText,
    ModelUsed,
    PlanEnded,
    PlanFailed,
    PlanFault,
    PlanStarted,
    PlanText,
    ReplanAsked,
    RunFinished,
    RunStarted,
    TaskDone,
    TaskPlanned,
    TaskReplaced,
    TaskStarted,
    Usage,
)
from agentpar.executor.commands import Conclude, Join, Plan
from agentpar.executor.driver import Driver, Emit, RunClock
from agentpar.executor.machine import Machine
from agentpar.executor.record import Record, Terms
from agentpar.executor.simulate import run
from agentpar.plan import Failed, Ok, Outcome, Task
from agentpar.policy import PLAIN
from agentpar.ports import Clock
from agentpar.tools.base import Tool

BLOCK, WITHOUT = 20, 10
"""Of each 20 seeds in a row, the first 10 are without faults, and the others share theirs."""


# What a record holds


@dataclass(frozen=True, slots=True)
class Result:
    """One recorded attempt of a call: how long it took, how it ended, and for how many seconds
    the far side then asked to be left alone."""

    seconds: float
    outcome: Outcome
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class Said:
    """What the joiner wrote in one round, ``seconds`` after it was asked; ``error`` where it
    broke instead."""

    text: str
    seconds: float = 0.0
    error: str = ""
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True, slots=True)
class Recorded:
    """A record as material: what to plan, return, allow and say again.

    ``plans`` holds each round's planner events, their ``at`` counted from the round's start.
    ``results`` and ``verdicts`` are by call (`call_text`); a call that was made several times,
    or tried again, has several results, in the order of their beginning. ``outcomes`` says how
    each task ended.
    """

    question: str
    plans: Mapping[int, tuple[Event, ...]]
    joins: Mapping[int, Said]
    results: Mapping[str, tuple[Result, ...]]
    verdicts: Mapping[str, tuple[float, bool, str]]
    outcomes: Mapping[int, Outcome]


def call_text(tool: str, args: Mapping[str, Any]) -> str:
    """The call in words, ``size(of="a")``: equal for equal inputs, whatever their order."""
    given = ", ".join(
        f"{name}={json.dumps(args[name], ensure_ascii=False, sort_keys=True, default=str)}"
        for name in sorted(args)
    )
    return f"{tool}({given})"


def material(record: Record) -> Recorded:
    """What there is to fuzz in ``record``; `UsageError` where no run began in it."""
    events = list(record.events)
    question = next((event.question for event in events if isinstance(event, RunStarted)), None)
    if question is None:
        raise UsageError("the record holds no run: it ends before its first event")
    return Recorded(
        question,
        _plans(events),
        _joins(events),
        _results(events),
        _verdicts(events),
        {event.task_id: event.outcome for event in events if isinstance(event, TaskDone)},
    )


def _plans(events: Iterable[Event]) -> dict[int, tuple[Event, ...]]:
    plans: dict[int, list[Event]] = {}
    began: dict[int, float] = {}
    for event in events:
        if isinstance(event, TaskPlanned) and event.task.part is not None:
            continue  # the machine plans these itself, from the list
        match event:
            case PlanStarted(round=round, at=at):
                began.setdefault(round, at)
                plans.setdefault(round, []).append(replace(event, at=at - began[round]))
            case (
                PlanText(round=round, at=at)
                | TaskPlanned(round=round, at=at)
                | TaskReplaced(round=round, at=at)
                | PlanFault(round=round, at=at)
                | PlanEnded(round=round, at=at)
                | PlanFailed(round=round, at=at)
                | ModelUsed(purpose="plan", round=round, at=at)
            ) if round in began:
                plans[round].append(replace(event, at=at - began[round]))
    return {round: tuple(said) for round, said in plans.items()}


def _joins(events: Iterable[Event]) -> dict[int, Said]:
    joins: dict[int, Said] = {}
    began = 0.0
    pieces: list[str] = []
    usage = Usage()
    for event in events:
        match event:
            case JoinStarted(at=at):
                began, pieces, usage = at, [], Usage()
            case JoinText(text=text):
                pieces.append(text)
            case ModelUsed(purpose="join"):
                usage = event.usage
            case Answered(round=round, at=at):
                # Behind a text that was cut off, the joiner says so in a piece of its own.
                text = "".join(pieces[:-1] if usage.cut else pieces)
                joins.setdefault(round, Said(text, at - began, usage=usage))
            case ReplanAsked(round=round, why=why, at=at):
                joins[round] = Said(f"Replan: {why}", at - began, usage=usage)
            case JoinFailed(round=round, error=error, at=at):
                joins[round] = Said("", at - began, error)
    return joins


def _results(events: Iterable[Event]) -> dict[str, tuple[Result, ...]]:
    tools: dict[int, str] = {}
    started: dict[tuple[int, int], tuple[int, str, float]] = {}
    results: dict[str, list[tuple[int, Result]]] = defaultdict(list)
    for place, event in enumerate(events):
        match event:
            case TaskPlanned(task=task) | TaskReplaced(task=task):
                tools[task.id] = task.tool
            case TaskStarted(task_id=id, args=args, at=at, attempt=attempt) if id in tools:
                started[id, attempt] = (place, call_text(tools[id], args), at)
            case AttemptFailed() | TaskDone() if (event.task_id, event.attempt) in started:
                began, call, since = started.pop((event.task_id, event.attempt))
                wait = event.retry_after if isinstance(event, AttemptFailed) else None
                results[call].append((began, Result(event.at - since, event.outcome, wait)))
    return {
        call: tuple(result for _, result in sorted(found, key=lambda pair: pair[0]))
        for call, found in results.items()
    }


def _verdicts(events: Iterable[Event]) -> dict[str, tuple[float, bool, str]]:
    tools: dict[int, str] = {}
    asked: dict[int, tuple[str, float]] = {}
    verdicts: dict[str, tuple[float, bool, str]] = {}
    for event in events:
        match event:
            case TaskPlanned(task=task) | TaskReplaced(task=task):
                tools[task.id] = task.tool
            case ApprovalAsked(task_id=id, args=args, at=at) if id in tools:
                asked[id] = (call_text(tools[id], args), at)
            case ApprovalGiven(task_id=id, allowed=allowed, reason=reason, at=at) if id in asked:
                call, since = asked.pop(id)
                verdicts[call] = (at - since, allowed, reason)
    return verdicts


# What a schedule is

Fault = Literal["fails", "fails at first", "hangs"]
Pace = Literal["as recorded", "all at once", "shuffled", "stretched", "one straggles"]
_PACES: tuple[Pace, ...] = ("all at once", "shuffled", "stretched", "one straggles")


@dataclass(frozen=True, slots=True)
class Disturbance:
    """What one seed changes: how long each call takes, and which calls go wrong.

    The seeds of one set of faults differ in order alone.
    """

    seed: int
    set: int
    pace: Pace
    faults: Mapping[str, Fault]

    @classmethod
    def of(cls, seed: int, calls: Iterable[str]) -> Disturbance:
        """The disturbance with this number; the first of each set has the recorded pace."""
        block, place = divmod(seed, BLOCK)
        number = block + 1 if place >= WITHOUT else 0
        pace: Pace = (
            "as recorded" if seed == first_of(seed) else Random(f"{seed} pace").choice(_PACES)
        )
        return cls(seed, number, pace, _faults(number, sorted(calls)))

    def seconds(self, call: str, time: int, recorded: float, longest: float) -> float:
        """How long the call with this text takes that is made for the ``time``-th time."""
        chance = Random(f"{self.seed} {call} {time}")
        match self.pace:
            case "as recorded":
                return recorded
            case "all at once":
                return 0.0
            case "shuffled":
                return chance.uniform(0, longest)
            case "stretched":
                return recorded * chance.choice((0.1, 0.5, 1, 2, 10))
            case "one straggles":
                return longest * 10 if chance.random() < 0.2 else recorded


def first_of(seed: int) -> int:
    """The first seed that has the same faults as ``seed``: what it is compared with."""
    block, place = divmod(seed, BLOCK)
    return block * BLOCK + WITHOUT if place >= WITHOUT else 0


def _faults(number: int, calls: list[str]) -> dict[str, Fault]:
    if number == 0 or not calls:
        return {}
    chance = Random(f"faults {number}")
    kinds: tuple[Fault, ...] = ("fails", "fails at first", "hangs")
    hit = chance.sample(calls, min(len(calls), chance.randint(1, 3)))
    return {call: chance.choice(kinds) for call in hit}


# What came of it


@dataclass(frozen=True, slots=True)
class Decided:
    """All that a run has decided: which calls it made (sorted), how its tasks ended, what its
    joiner read, and what its answer is worth."""

    calls: tuple[str, ...]
    outcomes: tuple[tuple[int, str], ...]
    prompts: tuple[str, ...]
    answer: tuple[str, ...]

    def unlike(self, other: Decided) -> list[str]:
        """The parts in which ``other`` differs, in words."""
        parts = {"calls": "the calls", "outcomes": "the results", "prompts": "the joiner's prompt"}
        parts["answer"] = "the answer"
        return [said for name, said in parts.items() if getattr(self, name) != getattr(other, name)]


@dataclass(frozen=True, slots=True)
class Group:
    """Schedules that decided alike. ``order`` is that in which the tasks of the first ended."""

    decided: Decided
    seeds: tuple[int, ...]
    order: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class FaultSet:
    """The schedules that share their faults: where they are of several groups, order matters."""

    faults: Mapping[str, Fault]
    groups: tuple[Group, ...]

    @property
    def order_matters(self) -> bool:
        """Whether the answer, or what it is written from, depends on the order."""
        return len({(group.decided.prompts, group.decided.answer) for group in self.groups}) > 1


@dataclass(frozen=True, slots=True)
class Report:
    """What fuzzing found; ``findings`` are things to know, with the first seed that showed each."""

    question: str
    schedules: int
    sets: tuple[FaultSet, ...]
    findings: Mapping[str, int] = field(default_factory=dict)

    @property
    def order_matters(self) -> bool:
        """Whether the answer, or what it is written from, depends on the order of events."""
        return any(one.order_matters for one in self.sets)

    @property
    def answer_differs(self) -> bool:
        """Whether the recorded answer comes out otherwise: its text, or what carries it."""
        return any(len({group.decided.answer for group in one.groups}) > 1 for one in self.sets)

    @property
    def outcomes(self) -> int:
        """How many different things were decided, over all sets of faults."""
        return len({group.decided for one in self.sets for group in one.groups})

    def lines(self) -> Iterator[str]:
        """The report in plain words."""
        yield f"{self.schedules} schedules of {self.question!r}: {self.outcomes} distinct outcomes"
        for one in self.sets:
            count = sum(len(group.seeds) for group in one.groups)
            if not one.faults:
                yield f"without faults: {count} schedules, {_many(len(one.groups), 'outcome')}"
            if len(one.groups) > 1:
                if one.faults:
                    faults = ", ".join(f"{call} {fault}" for call, fault in one.faults.items())
                    yield f"where {faults}: {count} schedules, {len(one.groups)} outcomes"
                yield from _compared(one.groups)
        faulty = [one for one in self.sets if one.faults]
        if faulty:
            count = sum(len(group.seeds) for one in faulty for group in one.groups)
            differing = sum(len(one.groups) > 1 for one in faulty)
            yield (
                f"with faults: {count} schedules in {_many(len(faulty), 'set')} of faults; "
                f"in {differing} of them the outcome depends on the order"
            )
        for finding, seed in self.findings.items():
            yield f"note (seed {seed}): {finding}"
        yield (
            "not seen: tools whose results depend on what ran before, for results are those of the "
            "record; and what a model would write on another prompt"
        )
        if self.answer_differs:
            yield "the answer depends on the order of events"
        elif self.order_matters:
            yield "what the answer is written from depends on the order of events"
        else:
            yield "the answer does not depend on the order of events"


def _many(count: int, word: str) -> str:
    return f"1 {word}" if count == 1 else f"{count} {word}s"


def _compared(groups: tuple[Group, ...]) -> Iterator[str]:
    first, *others = groups
    yield f"  {_like(first)}"
    for group in others:
        *parts, last = first.decided.unlike(group.decided)
        differing = f"{', '.join(parts)} and {last}" if parts else last
        yield f"  {_like(group)}; differs in {differing}:"
        yield f"    {difference(group.decided, group.seeds[0], first.decided, first.seeds[0])}"


def _like(group: Group) -> str:
    order = ", ".join(map(str, group.order[:30])) + (", …" if len(group.order) > 30 else "")
    count = _many(len(group.seeds), "schedule")
    return f"{count} as seed {group.seeds[0]}, where tasks end in the order {order or '(none)'}"


def difference(one: Decided, seed: int, base: Decided, base_seed: int) -> str:
    """The first thing that ``one`` decided otherwise than ``base``, in plain words."""
    more, less = Counter(one.calls), Counter(base.calls)
    if extra := sorted((more - less).elements()):
        return f"seed {seed} calls {_short(extra[0])}, seed {base_seed} does not"
    if missing := sorted((less - more).elements()):
        return f"seed {seed} does not call {_short(missing[0])}, seed {base_seed} does"
    ends, base_ends = dict(one.outcomes), dict(base.outcomes)
    for id in sorted(ends.keys() | base_ends.keys()):
        if ends.get(id) != base_ends.get(id):
            end, base_end = _aside(ends.get(id, "no outcome"), base_ends.get(id, "no outcome"))
            return f"task {id} ends as {end} with seed {seed}, as {base_end} with seed {base_seed}"
    if one.prompts != base.prompts:
        line, base_line = _first_line("\n".join(one.prompts), "\n".join(base.prompts))
        return f"the joiner reads {line} with seed {seed}, {base_line} with seed {base_seed}"
    pairs = zip(one.answer, base.answer, strict=False)
    for said, base_said in pairs:
        if said != base_said:
            return f"seed {seed}: {_short(said)}; seed {base_seed}: {_short(base_said)}"
    longer, number = (one, seed) if len(one.answer) > len(base.answer) else (base, base_seed)
    return f"only seed {number}: {_short(longer.answer[min(len(one.answer), len(base.answer))])}"


def _first_line(text: str, other: str) -> tuple[str, str]:
    lines, other_lines = text.splitlines(), other.splitlines()
    for line, other_line in zip(lines, other_lines, strict=False):
        if line != other_line:
            return _aside(repr(line), repr(other_line))
    return f"{len(lines)} lines", f"{len(other_lines)} lines"


def _aside(text: str, other: str, room: int = 100) -> tuple[str, str]:
    """Both texts from shortly before where they part."""
    same = next(
        (at for at, (a, b) in enumerate(zip(text, other, strict=False)) if a != b),
        min(len(text), len(other)),
    )
    start = max(0, same - room // 2) if max(len(text), len(other)) > room else 0
    before = "…" if start else ""
    return before + _short(text[start:], room), before + _short(other[start:], room)


def _short(text: str, room: int = 200) -> str:
    text = text.replace("\n", "\\n")
    return text if len(text) <= room else f"{text[:room]}…"


# Doing it

JoinAgain = Callable[[Join, Machine, Said, Emit, Clock, Callable[[str], None]], Awaitable[None]]
"""Joins with what the joiner has said in the record: builds the prompt, tells it to the last
argument, and emits what follows from the text (`Answered` with its citations checked anew)."""


ConcludeAgain = Callable[[Conclude, Machine, Iterable[Event], float], Answered]
"""The answer that needs no model, of a run that a limit has stopped."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What the runs are held to: what their machine decides by, and what their driver does.

    ``timeout`` is for tools without one of their own.
    """

    terms: Terms
    timeout: float | None = 60.0
    max_result_bytes: int = 2_000_000


def fuzz(
    recorded: Recorded,
    rules: Rules,
    seeds: Iterable[int],
    *,
    join: JoinAgain,
    conclude: ConcludeAgain,
) -> Report:
    """Run what was recorded under each of ``seeds`` and compare what is decided.

    Equal seeds give equal schedules. Seed 0 is the recorded order and has no faults.
    """
    sets: dict[int, dict[Decided, list[int]]] = {}
    orders: dict[tuple[int, Decided], tuple[int, ...]] = {}
    faults: dict[int, Mapping[str, Fault]] = {}
    findings: dict[str, int] = {}
    for call, results in recorded.results.items():
        if len({repr(result.outcome) for result in results}) > 1:
            text = f"{_short(call)} was called {len(results)} times, with different results"
            findings[f"{text}: what it returns depends on when it is called"] = 0
    for seed in seeds:
        disturbance = Disturbance.of(seed, recorded.results)
        rerun = _Rerun(recorded, rules, disturbance, join, conclude)
        decided = rerun.decide()
        for finding in rerun.findings:
            findings.setdefault(finding, seed)
        if seed == 0:
            findings |= dict.fromkeys(_unlike_the_record(decided, recorded), 0)
        faults[disturbance.set] = disturbance.faults
        sets.setdefault(disturbance.set, {}).setdefault(decided, []).append(seed)
        orders.setdefault((disturbance.set, decided), rerun.order)
    groups = {
        number: tuple(
            Group(decided, tuple(alike), orders[number, decided])
            for decided, alike in found.items()
        )
        for number, found in sorted(sets.items())
    }
    return Report(
        recorded.question,
        sum(len(group.seeds) for found in groups.values() for group in found),
        tuple(FaultSet(faults[number], found) for number, found in groups.items()),
        findings,
    )


def _unlike_the_record(decided: Decided, recorded: Recorded) -> Iterator[str]:
    """Where the recorded order, run again, does not come out as recorded: other rules, say."""
    ends = {id: _told(outcome) for id, outcome in recorded.outcomes.items()}
    for id, end in decided.outcomes:
        if id in ends and ends[id] != end:
            now, then = _aside(end, ends[id])
            yield f"on the recorded order task {id} ends as {now}, in the record as {then}"
            return


class _Rerun:
    """One run of a record under a disturbance."""

    def __init__(
        self,
        recorded: Recorded,
        rules: Rules,
        disturbance: Disturbance,
        join: JoinAgain,
        conclude: ConcludeAgain,
    ) -> None:
        self.findings: list[str] = []
        self._recorded = recorded
        self._rules = rules
        self._join_again = join
        self._conclude_again = conclude
        self._disturbance = disturbance
        self._times: Counter[str] = Counter()
        self._prompts: list[str] = []
        self._events: list[Event] = []
        longest = (result.seconds for results in recorded.results.values() for result in results)
        self._longest = max(longest, default=0.0)

    @property
    def order(self) -> tuple[int, ...]:
        """The tasks in the order in which they ended."""
        return tuple(event.task_id for event in self._events if isinstance(event, TaskDone))

    def decide(self) -> Decided:
        """Run it, in virtual time; a fault of ours is the run's end, and a finding."""
        machine = self._rules.terms.machine()
        error = ""
        try:
            run(self._live(machine), seed=self._disturbance.seed)
        except AgentparError as broke:
            error = f"the run broke: {broke}"
            self.findings.append(error)
        calls = (
            call_text(machine.tasks[event.task_id].tool, event.args)
            for event in self._events
            if isinstance(event, TaskStarted)
        )
        return Decided(
            tuple(sorted(calls)),
            tuple((id, _told(outcome)) for id, outcome in sorted(machine.outcomes.items())),
            tuple(self._prompts),
            tuple(_answer(self._events, error)),
        )

    async def _live(self, machine: Machine) -> None:
        clock = RunClock()

        async def conclude(command: Conclude, emit: Emit) -> None:
            emit(self._conclude_again(command, machine, self._events, clock.now()))

        driver = Driver(
            machine,
            tools=self._tools(),
            plan=self._plan,
            join=lambda command, emit: self._join(command, machine, emit, clock),
            conclude=conclude,
            clock=clock,
            approve=self._approve,
            timeout=self._rules.timeout,
            max_result_bytes=self._rules.max_result_bytes,
            observers=[self._events.append],
        )
        await driver.run(RunStarted("fuzz", self._recorded.question))

    def _tools(self) -> dict[str, Tool]:
        plans = (event for events in self._recorded.plans.values() for event in events)
        names = {e.task.tool for e in plans if isinstance(e, TaskPlanned | TaskReplaced)}
        return {name: self._tool(name) for name in sorted(names)}

    def _tool(self, name: str) -> Tool:
        """Answers from the record, in the place of the agent's tool of this name."""

        def validate(args: Mapping[str, Any]) -> dict[str, Any]:
            results = self._recorded.results.get(call_text(name, args), ())
            match results:
                case (Result(outcome=Failed(error, "arguments")), *_):
                    raise UsageError(error)
            return dict(args)

        async def call(**args: Any) -> Any:
            return await self._call(name, args)

        terms = self._rules.terms
        policy = terms.policies.get(name, PLAIN)
        return Tool(name, "", {"type": "object"}, call, validate, policy=policy)

    async def _call(self, tool: str, args: Mapping[str, Any]) -> Any:
        text = call_text(tool, args)
        time = self._times[text]
        self._times[text] += 1
        results = self._recorded.results.get(text)
        if results is None:
            self.findings.append(f"no result is recorded for {_short(text)}: it fails here")
            raise BackendError("the record has no result for this call")
        result = results[min(time, len(results) - 1)]
        disturbance = self._disturbance
        await asyncio.sleep(disturbance.seconds(text, time, result.seconds, self._longest))
        match disturbance.faults.get(text), result.outcome:
            case "fails", _:
                raise BackendError("a fault that fuzzing has put in")
            case "fails at first", _ if time == 0:
                raise BackendError("a fault that fuzzing has put in")
            case "hangs", _:
                await asyncio.get_running_loop().create_future()
            case _, Ok(value):
                return value
            case _, Failed(error, "throttled"):
                raise FetchError(error, status=429, retry_after=result.retry_after)
            case _, Failed(error, "tool" | "timeout"):
                raise BackendError(error)
            case _, Failed(error):
                raise UsageError(error)  # what no second attempt mends
        return None

    async def _plan(self, command: Plan, emit: Emit) -> None:
        events = self._recorded.plans.get(command.round)
        if events is None:
            self.findings.append(f"plan {command.round} was asked for, which the record has not")
            raise BackendError(f"the record has no plan {command.round}")
        clock = RunClock()
        for event in events:
            await asyncio.sleep(event.at - clock.now())
            if isinstance(event, PlanFailed):
                raise BackendError(event.error)
            emit(replace(event, at=asyncio.get_running_loop().time()))

    async def _join(self, command: Join, machine: Machine, emit: Emit, clock: Clock) -> None:
        said = self._recorded.joins.get(command.round)
        if said is None:
            said = Said("", error=f"the record has no answer of round {command.round}")
            self.findings.append(f"round {command.round} was to be answered: {said.error}")
        await self._join_again(command, machine, said, emit, clock, self._prompts.append)

    async def _approve(self, task: Task, args: Mapping[str, Any]) -> bool | str:
        text = call_text(task.tool, args)
        verdict = self._recorded.verdicts.get(text)
        if verdict is None:
            self.findings.append(f"nobody was asked about {_short(text)}: it is denied here")
            return "the record has no verdict on this call"
        seconds, allowed, reason = verdict
        await asyncio.sleep(self._disturbance.seconds(text, -1, seconds, self._longest))
        return allowed or reason


def _told(outcome: Outcome) -> str:
    match outcome:
        case Ok(value):
            return json.dumps(value, ensure_ascii=False, sort_keys=True)
        case Failed(error):
            return f"failed: {error}"
        case _:
            return f"skipped, as task {outcome.because} has no value"


def _answer(events: Iterable[Event], error: str) -> Iterator[str]:
    """What there is to compare of an answer, a line each."""
    for event in events:
        match event:
            case Answered(text=text, citations=citations, unsupported=unsupported):
                yield f"the answer is {text!r}"
                for one in citations:
                    state = "supported" if one.supported else f"not supported ({one.problem})"
                    read = f", by {one.passage!r} of {one.source!r}" if one.passage else ""
                    yield f"[{one.n}] of {one.sentence!r} is {state}{read}"
                for sentence in unsupported:
                    yield f"unsupported: {sentence!r}"
            case RunFinished(status=status, error=why):
                yield f"the run ends as {status}{f': {why}' if why else ''}"
    if error:
        yield error
