"""One run's wiring: what the machine asks for is handed to planner, tools and joiner.

A session knows which room does what; it never knows where the rooms came from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from agentpar.answer import Answer, answer_of
from agentpar.events import Event, RunStarted
from agentpar.executor.driver import Approve, Driver, Emit, RunClock
from agentpar.executor.machine import Command, Join, Limits, Machine, Plan, catch_up
from agentpar.executor.record import RecordWriter
from agentpar.memory.evidence import sources
from agentpar.planner.joiner import Joiner, JoinRequest
from agentpar.planner.planner import Planner, PlanRequest
from agentpar.ports import RunInfo, Watch
from agentpar.redact import Redactor
from agentpar.tools.base import Tool
from agentpar.watchers import Watchers


@dataclass(frozen=True, slots=True)
class Settings:
    """How a run is executed. ``timeout`` in seconds; ``record`` is the JSONL file to write;
    ``note`` is what the run's reader must know (see `RunStarted`)."""

    limits: Limits
    timeout: float | None
    max_result_bytes: int
    approve: Approve | None
    record: Path | None = None
    note: str = ""


class Session:
    """Runs one question, or the rest of one.

    ``history`` is what happened in an earlier part of the run, `due` what it left to do;
    ``hold`` keeps commands back (see `Driver`). `events` has every event of the run,
    earlier parts included. ``observers`` are part of the run: one that raises ends it.
    ``watch`` is not, and is told of ``info`` first. ``redactor`` takes secrets out of
    whatever happens, before anyone sees it.
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
        watch: Sequence[Watch] = (),
        info: RunInfo | None = None,
        redactor: Redactor | None = None,
    ) -> None:
        self.run_id = run_id
        self.events: list[Event] = list(history)
        risky = frozenset(name for name, tool in tools.items() if tool.effect == "write")
        self.machine = Machine(settings.limits, risky)
        self.due = catch_up(self.machine, self.events)
        self._planner = planner
        self._joiner = joiner
        self._settings = settings
        writer = None
        if settings.record is not None:
            writer = RecordWriter(settings.record, self.machine, history=tuple(self.events))
        self._writer = writer
        redactor = redactor or Redactor()
        self._watchers = Watchers(watch, info or RunInfo(run_id), redactor.text)
        self.driver = Driver(
            self.machine,
            tools=tools,
            plan=self._plan,
            join=self._join,
            clock=RunClock(self.events[-1].at if self.events else 0.0),
            approve=settings.approve,
            hold=hold,
            timeout=settings.timeout,
            max_result_bytes=settings.max_result_bytes,
            observers=[
                self.events.append,
                *([writer.event] if writer else []),
                *observers,
                *([self._watchers] if watch else []),
            ],
            command_observers=[writer.command] if writer else [],
            redact=redactor.data if redactor else None,
        )

    @property
    def held(self) -> list[Command]:
        """The commands that ``hold`` kept back."""
        return self.driver.held

    def started(self, question: str) -> RunStarted:
        """The event that begins this run."""
        return RunStarted(self.run_id, question, self._settings.note)

    async def run(self, *events: Event) -> None:
        """Do what is due, act on ``events``, until all is quiet.

        Raises only what cannot be data of the run: a record that cannot be written.
        """
        with ExitStack() as stack:
            if self._writer is not None:
                stack.enter_context(self._writer)
            stack.enter_context(self._watchers)
            await self.driver.run(*events, due=self.due)

    def answer(self) -> Answer:
        return answer_of(self.run_id, self.machine, self.events)

    async def _plan(self, command: Plan, emit: Emit) -> None:
        machine = self.machine
        request = PlanRequest(
            machine.question,
            command.round,
            command.first_id,
            command.why,
            dict(machine.tasks),
            dict(machine.outcomes),
        )
        await self._planner.plan(request, emit, self.driver.clock)

    async def _join(self, command: Join, emit: Emit) -> None:
        machine = self.machine
        request = JoinRequest(
            machine.question,
            command.round,
            command.final,
            machine.tasks,
            machine.outcomes,
            machine.faults,
            sources(machine.tasks, machine.outcomes),
        )
        await self._joiner.join(request, emit, self.driver.clock)
