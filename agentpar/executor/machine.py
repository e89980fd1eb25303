"""The machine: facts in, wishes out.

It decides which task runs when, what is skipped, when to join and when to plan again.
It awaits nothing, reads no clock and draws nothing at random, so the same facts always
give the same commands: that is what makes a run replayable. It must never know what a
tool does or how a model is reached.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from agentpar.errors import PlanError
from agentpar.events import (
    Answered,
    ApprovalGiven,
    Event,
    JoinFailed,
    PlanEnded,
    PlanFailed,
    PlanFault,
    ReplanAsked,
    RunStarted,
    TaskDone,
    TaskPlanned,
)
from agentpar.plan import Failed, Ok, Outcome, Skipped, Task, fill


@dataclass(frozen=True, slots=True)
class Limits:
    """What a run may spend. ``concurrency`` counts tool calls in flight."""

    max_tasks: int = 1000
    max_replans: int = 2
    concurrency: int = 64


@dataclass(frozen=True, slots=True)
class Plan:
    """Ask the planner for tasks numbered from ``first_id``; ``why`` is set when replanning."""

    round: int
    first_id: int
    why: str = ""


@dataclass(frozen=True, slots=True)
class Execute:
    """Call the task's tool with ``args``, in which every reference is already a value."""

    task: Task
    args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Settle:
    """No call is needed: the task has ended with ``outcome``."""

    task_id: int
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Ask:
    """Get approval before this call of a risky tool."""

    task: Task
    args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Join:
    """Ask the joiner for an answer; a ``final`` one may not ask for another plan."""

    round: int
    final: bool


@dataclass(frozen=True, slots=True)
class Finish:
    status: Literal["answered", "failed"]
    error: str = ""


Command = Plan | Execute | Settle | Ask | Join | Finish


class Machine:
    """One run's state. `handle` is its only door; the attributes are for reading."""

    def __init__(self, limits: Limits | None = None, risky: frozenset[str] = frozenset()) -> None:
        self.limits = limits or Limits()
        self.risky = risky
        self.question = ""
        self.round = 0
        self.tasks: dict[int, Task] = {}
        self.outcomes: dict[int, Outcome] = {}
        self.faults: list[PlanFault] = []
        self.finished: Finish | None = None
        self._planning = False
        self._plan_error = ""
        self._unmet: dict[int, int] = {}  # task not ended -> how many of its needs have not ended
        self._dependants: dict[int, list[int]] = {}
        self._asked: dict[int, Ask] = {}
        self._ready: deque[Execute] = deque()
        self._running: set[int] = set()
        self._last_id = 0
        self._handlers: dict[type, Callable[[Any], list[Command]]] = {
            TaskPlanned: self._task_planned,
            TaskDone: self._task_done,
            RunStarted: self._run_started,
            PlanFault: self._plan_fault,
            PlanEnded: self._plan_ended,
            PlanFailed: self._plan_failed,
            ApprovalGiven: self._approval_given,
            ReplanAsked: self._replan_asked,
            Answered: self._answered,
            JoinFailed: self._join_failed,
        }

    def handle(self, event: Event) -> list[Command]:
        """Take one fact and return what is wanted because of it, in order.

        Facts that decide nothing (text pieces, token counts) return an empty list.
        """
        handler = self._handlers.get(type(event))
        if handler is None or self.finished is not None:
            return []
        return handler(event)

    @property
    def next_id(self) -> int:
        """The number from which the next plan counts."""
        return self._last_id + 1

    @property
    def final_round(self) -> bool:
        """Whether a joiner of this round may not ask for another plan."""
        return self.round > self.limits.max_replans

    # Planning

    def _run_started(self, event: RunStarted) -> list[Command]:
        self.question = event.question
        return self._plan(why="")

    def _plan(self, why: str) -> list[Command]:
        self.round += 1
        self._planning = True
        self._plan_error = ""
        return [Plan(self.round, self.next_id, why)]

    def _task_planned(self, event: TaskPlanned) -> list[Command]:
        task = event.task
        id = task.id
        if id in self.tasks or id in self.outcomes:
            raise PlanError(f"task {id} is planned twice")
        self.tasks[id] = task
        self._last_id = max(self._last_id, id)
        self._unmet[id] = 0
        if len(self.tasks) > self.limits.max_tasks:
            return [Settle(id, self._too_many())]
        for need in task.needs:
            if need == id or (need not in self.tasks and need not in self.outcomes):
                error = f"refers to ${need}, which is not planned before task {id}"
                return [Settle(id, Failed(error, "plan"))]
        unmet = [need for need in task.needs if need not in self.outcomes]
        for need in unmet:
            self._dependants.setdefault(need, []).append(id)
        self._unmet[id] = len(unmet)
        return [] if unmet else self._start(task)

    def _too_many(self) -> Failed:
        return Failed(f"the plan has more than max_tasks={self.limits.max_tasks} tasks", "plan")

    def _plan_fault(self, event: PlanFault) -> list[Command]:
        """A line that cannot be used still ends: later lines may refer to its number."""
        self.faults.append(event)
        id = event.task_id
        if id is None or id in self.tasks:
            return []
        self._last_id = max(self._last_id, id)
        self.outcomes[id] = Failed(event.message, "plan")
        return []

    def _plan_ended(self, event: PlanEnded) -> list[Command]:
        self._planning = False
        return self._join_if_quiet()

    def _plan_failed(self, event: PlanFailed) -> list[Command]:
        if not self._planning:
            return []  # the plan was complete before its planner broke
        self._planning = False
        self._plan_error = event.error
        return self._join_if_quiet()

    # Running tasks

    def _start(self, task: Task) -> list[Command]:
        """The task's last need has ended: run it, ask first, queue it, or skip it.

        A skip waits for every need, so that which one it names, the first in writing
        order, does not depend on which ended first. It costs nothing: so does the joiner.
        """
        for need in task.needs:
            if not isinstance(self.outcomes[need], Ok):
                return [Settle(task.id, Skipped(need))]
        try:
            args = fill(task.args, self.outcomes) if task.needs else task.args
        except PlanError as error:
            return [Settle(task.id, Failed(str(error), "reference"))]
        if task.tool in self.risky:
            ask = self._asked[task.id] = Ask(task, args)
            return [ask]
        return self._admit(Execute(task, args))

    def _admit(self, call: Execute) -> list[Command]:
        if len(self._running) >= self.limits.concurrency:
            self._ready.append(call)
            return []
        self._running.add(call.task.id)
        return [call]

    def _approval_given(self, event: ApprovalGiven) -> list[Command]:
        ask = self._asked.pop(event.task_id, None)
        if ask is None:
            return []
        if event.allowed:
            return self._admit(Execute(ask.task, ask.args))
        return [Settle(event.task_id, Failed(f"not approved: {event.reason}", "denied"))]

    def _task_done(self, event: TaskDone) -> list[Command]:
        id = event.task_id
        if self._unmet.get(id) != 0:
            return []  # ended already
        del self._unmet[id]
        self._running.discard(id)
        self.outcomes[id] = event.outcome
        commands: list[Command] = []
        for dependant in self._dependants.pop(id, ()):
            self._unmet[dependant] -= 1
            if self._unmet[dependant] == 0:
                commands += self._start(self.tasks[dependant])
        while self._ready and len(self._running) < self.limits.concurrency:
            call = self._ready.popleft()
            self._running.add(call.task.id)
            commands.append(call)
        return commands or self._join_if_quiet()

    # Joining

    def _join_if_quiet(self) -> list[Command]:
        if self._planning or self._unmet:
            return []
        if self._plan_error and not self.tasks:
            return self._finish(Finish("failed", self._plan_error))
        return [Join(self.round, final=self.final_round)]

    def _replan_asked(self, event: ReplanAsked) -> list[Command]:
        if self.final_round:
            spent = f"max_replans={self.limits.max_replans} is spent"
            return self._finish(Finish("failed", f"asked to replan, but {spent}: {event.why}"))
        return self._plan(event.why)

    def _answered(self, event: Answered) -> list[Command]:
        return self._finish(Finish("answered"))

    def _join_failed(self, event: JoinFailed) -> list[Command]:
        return self._finish(Finish("failed", event.error))

    def _finish(self, command: Finish) -> list[Command]:
        self.finished = command
        return [command]


def catch_up(machine: Machine, history: Iterable[Event]) -> list[Command]:
    """Tell ``machine`` what has happened already; the commands that no fact has met yet.

    Performing those, and nothing else, carries an interrupted run on. A plan that broke
    off is asked for from the first number it has not used; what it planned stands.
    """
    due: dict[tuple[str, int], Command] = {}
    for event in history:
        match event:
            case TaskDone() | ApprovalGiven():
                due.pop(("task", event.task_id), None)
            case PlanEnded() | PlanFailed():
                due.pop(("plan", event.round), None)
            case Answered() | ReplanAsked() | JoinFailed():
                due.pop(("join", event.round), None)
        for command in machine.handle(event):
            match command:
                case Execute() | Ask():
                    due["task", command.task.id] = command
                case Settle():
                    due["task", command.task_id] = command
                case Plan():
                    due["plan", command.round] = command
                case Join():
                    due["join", command.round] = command
    return [
        replace(command, first_id=machine.next_id) if isinstance(command, Plan) else command
        for command in due.values()
    ]
