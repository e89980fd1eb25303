"""The real machine and driver once more, in virtual time, on what a record holds.

Tools give what the record has for a call, the planner writes what it wrote, at its pace; who
joins is handed in. It must never know a model, a prompt or a real tool.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from agentpar.errors import AgentparError, BackendError, FetchError, UsageError
from agentpar.events import (
    Answered,
    Event,
    PlanFailed,
    RunFinished,
    RunStarted,
    TaskDone,
    TaskPlanned,
    TaskReplaced,
    TaskStarted,
)
from agentpar.executor.commands import Conclude, Join, Plan
from agentpar.executor.crashes import Life, MemoryJournal, is_line, lines_told
from agentpar.executor.driver import Driver, Emit, RunClock
from agentpar.executor.fuzz.disturbance import Disturbance
from agentpar.executor.fuzz.material import Recorded, Result, Said, call_text
from agentpar.executor.fuzz.report import Cause, Decided, FaultSet, Group, Report, aside, short
from agentpar.executor.ledger import Ledger
from agentpar.executor.machine import Machine
from agentpar.executor.record import Terms
from agentpar.executor.resume import catch_up
from agentpar.executor.simulate import run
from agentpar.plan import Failed, Ok, Outcome, Task
from agentpar.policy import PLAIN
from agentpar.ports import Clock
from agentpar.tools.base import Tool
from agentpar.tools.call import current_call

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

    @property
    def without_limits(self) -> Rules:
        """The same without deadline and budgets, and with all the time in the world for a call."""
        terms = self.terms
        policies = {name: replace(one, timeout=None) for name, one in terms.policies.items()}
        limits = replace(
            terms.limits, max_steps=None, max_tokens=None, max_cost_usd=None, deadline=None
        )
        free = replace(terms, limits=limits, policies=policies)
        return replace(self, terms=free, timeout=_AGES)


_AGES = 1e6
"""Seconds; a call that hangs still ends."""


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

    def again(disturbance: Disturbance, rules: Rules = rules) -> _Rerun:
        return _Rerun(recorded, rules, disturbance, join, conclude)

    sets: dict[int, dict[Decided, tuple[_Rerun, list[int]]]] = {}  # the first to decide so; all
    findings: dict[str, int] = {}
    for call, results in recorded.results.items():
        if len({repr(result.outcome) for result in results}) > 1:
            text = f"{short(call)} was called {len(results)} times, with different results"
            findings[f"{text}: what it returns depends on when it is called"] = 0
    if recorded.resumed:
        findings[
            "the run was carried on with an agent that had changed, which is not done here"
        ] = 0
    for seed in seeds:
        rerun = again(Disturbance.of(seed, recorded.results))
        for finding in rerun.findings:
            findings.setdefault(finding, seed)
        if seed == 0:
            findings |= dict.fromkeys(_unlike_the_record(rerun.decided, recorded), 0)
        groups = sets.setdefault(rerun.disturbance.set, {})
        groups.setdefault(rerun.decided, (rerun, []))[1].append(seed)
    found = []
    for _, groups in sorted(sets.items()):
        first, *_ = (one for one, _ in groups.values())
        alike = tuple(
            Group(decided, tuple(numbers), one.order, *_cause(one, first, again))
            for decided, (one, numbers) in groups.items()
        )
        found.append(FaultSet(first.disturbance.faults, alike, first.disturbance.mortal))
    count = sum(len(numbers) for groups in sets.values() for _, numbers in groups.values())
    return Report(recorded.question, count, tuple(found), findings)


def _cause(one: _Rerun, first: _Rerun, again: Callable[..., _Rerun]) -> tuple[Cause, str]:
    """Why ``one`` has decided otherwise than ``first``, by taking away what may be the cause."""
    if one is first:
        return "", ""
    dies, living = one.disturbance.dies, one.disturbance.without_death
    free = one.rules.without_limits
    if dies is not None and again(living).decided == first.decided:
        if one.left_open:
            return "open", ""
        # What broke off counts as spent: then it is the limit that is near, wherever it died.
        reached = one.limits - first.limits
        if reached and again(one.disturbance, free).decided == again(living, free).decided:
            return "limit", f"{', '.join(sorted(reached))}, which a crash brings nearer"
        return "crash", ""
    unlimited = [again(each.disturbance.without_death, free).decided for each in (one, first)]
    if unlimited[0] == unlimited[1]:
        reached = one.limits ^ first.limits or one.limits | first.limits
        return "limit", ", ".join(sorted(reached)) or "a timeout"
    return "order", ""


def _unlike_the_record(decided: Decided, recorded: Recorded) -> Iterator[str]:
    """Where the recorded order, run again, does not come out as recorded: other rules, say."""
    ends = {id: _told(outcome) for id, outcome in recorded.outcomes.items()}
    for id, end in decided.outcomes:
        if id in ends and ends[id] != end:
            now, then = aside(end, ends[id])
            yield f"on the recorded order task {id} ends as {now}, in the record as {then}"
            return


class _Rerun:
    """One run of a record under a disturbance, and what it has decided."""

    def __init__(
        self,
        recorded: Recorded,
        rules: Rules,
        disturbance: Disturbance,
        join: JoinAgain,
        conclude: ConcludeAgain,
    ) -> None:
        self.findings: list[str] = []
        self.rules = rules
        self.disturbance = disturbance
        self._recorded = recorded
        self._join_again = join
        self._conclude_again = conclude
        self._times: Counter[str] = Counter()
        self._time_of: dict[tuple[int, int], int] = {}  # of each attempt, the how-manieth call
        self._prompts: dict[int, str] = {}
        self._events: list[Event] = []
        self._history: list[Event] = []
        longest = (result.seconds for results in recorded.results.values() for result in results)
        self._longest = max(longest, default=0.0)
        self._machine = rules.terms.machine()
        self.decided = self._decide()

    @property
    def order(self) -> tuple[int, ...]:
        """The tasks in the order in which they ended."""
        return tuple(event.task_id for event in self._events if isinstance(event, TaskDone))

    @property
    def limits(self) -> set[str]:
        """The limits that it has reached."""
        stopped = {self._machine.stopped_by} - {""}
        return stopped | {
            f"the timeout of {self._machine.tasks[id].tool}"
            for id, outcome in self._machine.outcomes.items()
            if isinstance(outcome, Failed) and outcome.kind == "timeout"
        }

    @property
    def left_open(self) -> bool:
        """Whether a crash has left a call open of which nobody knows if it was made."""
        outcomes = self._machine.outcomes.values()
        return any(isinstance(one, Failed) and one.kind == "interrupted" for one in outcomes)

    def _decide(self) -> Decided:
        """Run it, in virtual time; a fault of ours is the run's end, and a finding."""
        error = ""
        try:
            self._run()
        except AgentparError as broke:
            error = f"the run broke: {broke}"
            self.findings.append(error)
        machine = self._machine
        started = {
            (event.task_id, event.attempt): call_text(machine.tasks[event.task_id].tool, event.args)
            for event in self._events
            if isinstance(event, TaskStarted)
        }
        return Decided(
            tuple(sorted(started.values())),
            tuple((id, _told(outcome)) for id, outcome in sorted(machine.outcomes.items())),
            tuple(self._prompts.values()),
            tuple(_answer(self._events, error)),
        )

    def _run(self) -> None:
        dies, seed = self.disturbance.dies, self.disturbance.seed
        if dies is None:
            run(self._live(None, None), seed=seed)
            return
        journal = MemoryJournal()
        run(self._live(journal, 1 + int(dies * self._recorded.events)), seed=seed)
        if self._events and isinstance(self._events[-1], RunFinished):
            return  # it had ended before
        journal.lose(0)
        self._events = self._history = journal.history
        self._machine = self.rules.terms.machine()
        run(self._live(journal, None), seed=seed)

    async def _live(self, journal: MemoryJournal | None, ends_at: int | None) -> None:
        machine, history = self._machine, [*self._history]
        clock = RunClock(history[-1].at if history else 0.0)

        async def conclude(command: Conclude, emit: Emit) -> None:
            emit(self._conclude_again(command, machine, self._events, clock.now()))

        def die() -> None:
            work.cancel()

        ledger, life = Ledger("fuzz", machine, journal), Life(ends_at, die)
        due = catch_up(machine, history)
        driver = Driver(
            machine,
            tools=self._tools(),
            plan=self._plan,
            join=lambda command, emit: self._join(command, machine, emit, clock),
            conclude=conclude,
            clock=clock,
            approve=self._approve,
            calls=ledger,
            timeout=self.rules.timeout,
            max_result_bytes=self.rules.max_result_bytes,
            observers=[life.seen(ledger.observe), life.seen(self._events.append), life.count],
        )
        first = () if history else (RunStarted("fuzz", self._recorded.question),)
        work = asyncio.create_task(driver.run(*first, due=due))
        await asyncio.wait([work])
        if not life.over:
            work.result()

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

        terms = self.rules.terms
        flow, policy = terms.permissions.flow(name), terms.policies.get(name, PLAIN)
        does = flow.effect, flow.sends, flow.pure
        return Tool(name, "", {"type": "object"}, call, validate, *does, policy=policy)

    async def _call(self, tool: str, args: Mapping[str, Any]) -> Any:
        text, call = call_text(tool, args), current_call()
        attempt = call.task_id, call.attempt
        if attempt not in self._time_of:  # else it broke off with its process
            self._time_of[attempt] = self._times[text]
            self._times[text] += 1
        time = self._time_of[attempt]
        results = self._recorded.results.get(text)
        if results is None:
            self.findings.append(f"no result is recorded for {short(text)}: it fails here")
            raise BackendError("the record has no result for this call")
        result = results[min(time, len(results) - 1)]
        disturbance = self.disturbance
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
        clock, started = RunClock(), self._events[-1].at
        standing = lines_told(self._history, command.round)
        for event in events:
            if standing and is_line(event, command.round):
                standing -= 1
                continue
            await asyncio.sleep(event.at - clock.now())
            if isinstance(event, PlanFailed):
                raise BackendError(event.error)
            emit(replace(event, at=started + clock.now()))

    async def _join(self, command: Join, machine: Machine, emit: Emit, clock: Clock) -> None:
        said = self._recorded.joins.get(command.round)
        if said is None:
            said = Said("", error=f"the record has no answer of round {command.round}")
            self.findings.append(f"round {command.round} was to be answered: {said.error}")

        def read(prompt: str) -> None:
            self._prompts[command.round] = prompt

        await self._join_again(command, machine, said, emit, clock, read)

    async def _approve(self, task: Task, args: Mapping[str, Any]) -> bool | str:
        text = call_text(task.tool, args)
        verdict = self._recorded.verdicts.get(text)
        if verdict is None:
            self.findings.append(f"nobody was asked about {short(text)}: it is denied here")
            return "the record has no verdict on this call"
        seconds, allowed, reason = verdict
        await asyncio.sleep(self.disturbance.seconds(text, -1, seconds, self._longest))
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
