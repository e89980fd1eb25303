"""One run's wiring: what the machine asks for is handed to planner, tools and joiner.

A session knows which room does what; it never knows where the rooms came from.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agentpar.answer import Answer, answer_of
from agentpar.events import (
    Answered,
    Event,
    HostThrottled,
    JoinText,
    PlanFault,
    PlanStarted,
    RunFinished,
    RunStarted,
    TaskCancelled,
    TaskPlanned,
    TaskReplaced,
)
from agentpar.executor.approval import Approve
from agentpar.executor.commands import Command, Conclude, Join, Plan
from agentpar.executor.driver import Driver, Emit, RunClock
from agentpar.executor.journal import RunJournal
from agentpar.executor.ledger import Ledger
from agentpar.executor.machine import Machine
from agentpar.executor.record import RecordWriter, Terms
from agentpar.executor.resume import catch_up
from agentpar.executor.setup import Setup, resumption
from agentpar.gate import Caller, HostGate
from agentpar.memory.evidence import sources
from agentpar.memory.seat import Seat
from agentpar.partial import partial_answer
from agentpar.permissions import Permissions, Rule
from agentpar.plan import Outcome, Task, whole
from agentpar.planner.joiner import Joiner, JoinRequest
from agentpar.planner.planner import Line, Planner, PlanRequest
from agentpar.planner.warmer import Warmer
from agentpar.policy import Limits
from agentpar.ports import Results, RunInfo, Watch
from agentpar.redact import Redactor
from agentpar.tools.base import Tool
from agentpar.watchers import Watchers


@dataclass(frozen=True, slots=True)
class Settings:
    """How a run is executed. ``timeout`` in seconds; ``record`` is the JSONL file to write;
    ``note`` is what the run's reader must know (see `RunStarted`); ``latencies`` are seconds
    that calls took in earlier runs, by tool; ``results`` keeps what tools with a cache return."""

    limits: Limits
    timeout: float | None
    max_result_bytes: int
    approve: Approve | None
    permissions: tuple[Rule, ...] = ()
    record: Path | None = None
    note: str = ""
    latencies: Mapping[str, Sequence[float]] = field(default_factory=dict)
    results: Results | None = None


class Session:
    """Runs one question, or the rest of one.

    ``history`` is what happened in an earlier part of the run, `due` what it left to do;
    ``hold`` keeps commands back (see `Driver`). Without a ``warmer`` the model reads nothing
    before the joiner asks. `events` has every event of the run, earlier parts included. With a
    ``journal``, the journal's history is the run's. ``observers`` are part of the run: one that
    raises ends it. ``watch`` is not, and is told of ``info`` first. ``redactor`` takes secrets out
    of whatever happens, before anyone sees it. ``setup`` is the agent as it is now; a run that
    began with another goes on by that one's terms, but for a ``deadline`` that is given (seconds
    from its beginning), and tells what has changed.
    """

    def __init__(
        self,
        run_id: str,
        planner: Planner,
        joiner: Joiner,
        tools: Mapping[str, Tool],
        settings: Settings,
        *,
        history: Iterable[Event] = (),
        hold: Callable[[Command], bool] | None = None,
        observers: Sequence[Callable[[Event], None]] = (),
        journal: RunJournal | None = None,
        warmer: Warmer | None = None,
        watch: Sequence[Watch] = (),
        info: RunInfo | None = None,
        redactor: Redactor | None = None,
        seat: Seat | None = None,
        setup: Setup | None = None,
        deadline: float | None = None,
    ) -> None:
        self.run_id = run_id
        self._past = tuple(history if journal is None else journal.history)
        self.events: list[Event] = list(self._past)
        now = setup or Setup.of(terms_of(run_id, tools, settings), tools)
        then = now if journal is None or not journal.known else journal.setup
        terms = (then or now).terms_with(now, deadline=deadline)
        self._resumed = None if self.over else resumption(then, now, self._past)
        tools = {name: replace(tool, policy=terms.policies[name]) for name, tool in tools.items()}
        self.machine = terms.machine()
        self.due = catch_up(self.machine, self.events)
        self._planner = planner
        self._joiner = joiner
        self._warmer = warmer
        self._settings = settings
        self._journal = journal
        start = self.events[-1].at if self.events else 0.0
        self._gate = HostGate(settings.limits, self._throttled)
        for event in self._past:
            if isinstance(event, HostThrottled):
                self._gate.recall(event.host, event.retry_after, start - event.at)
        ledger = Ledger(run_id, self.machine, journal, self._gate, then)
        writer = None
        if settings.record is not None:
            known = journal is not None and journal.known
            writer = RecordWriter(settings.record, self.machine, history=self._past, known=known)
        self._writer = writer
        redactor = redactor or Redactor()
        self._seat = seat
        self._watchers = Watchers(watch, info or RunInfo(run_id), redactor.text)
        self.driver = Driver(
            self.machine,
            tools=tools,
            plan=self._plan,
            join=self._join,
            conclude=self._conclude,
            results=settings.results,
            shared=seat,
            clock=RunClock(start),
            approve=settings.approve,
            hold=hold,
            calls=ledger,
            timeout=settings.timeout,
            max_result_bytes=settings.max_result_bytes,
            # The journal first: nobody sees what it could not take.
            observers=[
                ledger.observe,
                self.events.append,
                *([seat.observe] if seat else []),
                *([writer.event] if writer else []),
                *observers,
                *([self._watchers] if watch else []),
            ],
            command_observers=[writer.command] if writer else [],
            beside=self._beside if warmer else None,
            redact=redactor.data if redactor else None,
        )
        ledger.emit = lambda event: self.driver.emit_in_time(
            replace(event, at=self.driver.clock.now())
        )
        if seat is not None:
            seat.tools = tools
            seat.redact = redactor.data
            seat.read = lambda task: self.machine.read.get(task, ())
            seat.tell = lambda event: self.driver.tell(replace(event, at=self.driver.clock.now()))
            for event in self._past:
                seat.observe(event)
        if journal is not None:
            journal.on_error = self.driver.fail

    @property
    def held(self) -> list[Command]:
        """The commands that ``hold`` kept back."""
        return self.driver.held

    def started(self, question: str) -> RunStarted:
        """The event that begins this run."""
        return RunStarted(self.run_id, question, self._settings.note)

    @property
    def over(self) -> bool:
        """Whether the run has ended in an earlier part: there is nothing left to do."""
        return bool(self._past) and isinstance(self._past[-1], RunFinished)

    async def run(self, *events: Event) -> None:
        """Do what is due, act on ``events``, until all is quiet; on disk, with a journal.

        Raises only what cannot be data of the run: a record or a journal that cannot be
        written.
        """
        journal = self._journal
        if journal is None:
            await self._run(*events)
            return
        if not journal.held:  # it has ended, and was only read
            return
        try:
            if not self.over:
                await self._run(*events)
        except BaseException:
            await journal.leave()
            raise
        finished = self.machine.finished
        if finished is not None:
            await journal.close(finished.status)
        else:
            await journal.close("waiting" if self.held else "interrupted")

    async def _run(self, *events: Event) -> None:
        async with AsyncExitStack() as stack:
            if self._writer is not None:
                stack.enter_context(self._writer)
            stack.enter_context(self._watchers)
            stack.callback(self._gate.close)
            if self._seat is not None:
                await stack.enter_async_context(self._seat)
            if self._resumed is not None:
                events = (*events, replace(self._resumed, at=self.driver.clock.now()))
            await self.driver.run(*events, due=self.due)

    def answer(self) -> Answer:
        return answer_of(self.run_id, self.machine, self.events)

    async def _plan(self, command: Plan, emit: Emit) -> None:
        before, standing, anew = _broken_off(self._past, command.round)
        clock = self.driver.clock
        there = [] if self._seat is None else await self._seat.offers()
        offers = tuple((offer.tool, offer.args) for offer in there)
        if standing:  # the plan broke off: it is asked for again, in the same words
            asked = Terms.of(self.machine).machine()
            catch_up(asked, before)
            request = _plan_request(asked, asked.next_id, command, standing, anew)
            request = replace(request, ended=self._ended, offers=offers)
            if await self._planner.plan(request, emit, clock):
                return
            anew = True
        first_id = self.machine.next_id if anew else command.first_id
        request = _plan_request(self.machine, first_id, command, (), anew)
        await self._planner.plan(replace(request, ended=self._ended, offers=offers), emit, clock)

    @property
    def _ended(self) -> Collection[int]:
        return self.machine.outcomes.keys()

    async def _join(self, command: Join, emit: Emit) -> None:
        await self._joiner.join(join_request(self.machine, command), emit, self.driver.clock)

    async def _conclude(self, command: Conclude, emit: Emit) -> None:
        emit(conclusion(self.machine, command, self.events, self.driver.clock.now()))

    def _throttled(self, caller: Caller, host: str, retry_after: float | None) -> None:
        now, (task_id, attempt) = self.driver.clock.now(), caller
        self.driver.tell(HostThrottled(task_id, host, retry_after, now, attempt))

    def _beside(self, event: Event) -> Coroutine[Any, Any, None] | None:
        assert self._warmer is not None
        return self._warmer.after(
            event, _Written(self.machine), self.driver.emit, self.driver.clock
        )


def terms_of(run_id: str, tools: Mapping[str, Tool], settings: Settings) -> Terms:
    """By what a run of this name that begins now is decided."""
    return Terms(
        settings.limits,
        Permissions.of(tools, settings.permissions),
        {name: tool.policy for name, tool in tools.items()},
        {name: tuple(samples) for name, samples in settings.latencies.items()},
        run_id,
    )


class _Written:
    """A run as the joiner will see it: its plan as it was written (see `whole`)."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    @property
    def round(self) -> int:
        return self._machine.round

    @property
    def tasks(self) -> dict[int, Task]:
        return whole(self._machine.tasks, {})[0]

    @property
    def outcomes(self) -> dict[int, Outcome]:
        return whole(self._machine.tasks, self._machine.outcomes)[1]

    @property
    def faults(self) -> list[PlanFault]:
        return self._machine.faults

    @property
    def final_round(self) -> bool:
        return self._machine.final_round


def join_request(machine: Machine, command: Join) -> JoinRequest:
    """What the joiner is asked when ``machine`` wants to ``command`` it."""
    tasks, outcomes = whole(machine.tasks, machine.outcomes)
    return JoinRequest(
        machine.question,
        command.round,
        command.final,
        tasks,
        outcomes,
        machine.faults,
        sources(tasks, outcomes),
    )


def conclusion(machine: Machine, command: Conclude, events: Iterable[Event], at: float) -> Answered:
    """No model can be asked any more: what was verified, and what is missing."""
    written = "".join(
        event.text
        for event in events
        if isinstance(event, JoinText) and event.round == command.round
    )
    tasks, outcomes = whole(machine.tasks, machine.outcomes)
    return partial_answer(
        command.round,
        command.why,
        written,
        tasks,
        outcomes,
        sources(tasks, outcomes),
        at,
    )


def _plan_request(
    asked: Machine, first_id: int, command: Plan, standing: tuple[Line, ...], anew: bool
) -> PlanRequest:
    """What the planner is asked when ``asked`` wants a plan. One that is made anew is for
    whatever the calls that stand do not find."""
    why = command.why
    if anew:
        why = f"{why or 'what the question asks for'}, as far as the calls above do not find it"
    tasks, outcomes = whole(asked.tasks, asked.outcomes)
    return PlanRequest(
        asked.question, command.round, first_id, why, tasks, outcomes, standing, anew
    )


def _broken_off(
    events: Sequence[Event], round: int
) -> tuple[Sequence[Event], tuple[Line, ...], bool]:
    """What the lines of a round's plan came to, as far as it got; what was before it; and whether
    it was one that was made anew."""
    before = writing = 0
    standing: list[Line] = []
    anew = False
    for place, event in enumerate(events):
        match event:
            case PlanStarted():
                writing = event.round
                if event.anew and event.round == round:
                    standing, anew = [], True
                if not standing:
                    before = place
            case TaskPlanned(_, task) if event.round == round and task.part is None:
                standing.append(event)
            case TaskReplaced() if event.round == round:
                standing.append(event)
            case TaskCancelled() if writing == round:
                standing.append(event)
            case PlanFault() if event.round == round and event.line:
                standing.append(event)
    return events[:before], tuple(standing), anew
