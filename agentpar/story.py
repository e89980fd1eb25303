"""A run told from its events: the one fold that every view reads.

Pure: it reads no clock, draws nothing and knows no terminal, file or browser. All times
are the events' own, in seconds since the run began.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self, assert_never

from agentpar.events import (
    Answered,
    ApprovalAsked,
    ApprovalGiven,
    AttemptEnded,
    AttemptFailed,
    BankFailed,
    EntryOffered,
    EntryUsed,
    Event,
    FromTeam,
    HostThrottled,
    JoinFailed,
    JoinStarted,
    JoinText,
    LeaseAwaited,
    ModelUsed,
    PlanEnded,
    PlanFailed,
    PlanFault,
    PlanStarted,
    PlanText,
    ReplanAsked,
    RunFinished,
    RunResumed,
    RunStarted,
    TaskCancelled,
    TaskDone,
    TaskItem,
    TaskPlanned,
    TaskReplaced,
    TaskStarted,
    TeamChosen,
    TeamEnded,
    TeamStarted,
    Usage,
    Woke,
    WorkersEnded,
    WorkersStarted,
    WorkerText,
)
from agentpar.plan import Failed, Ok, Outcome, Skipped, Task
from agentpar.planner.parser import format_call

State = Literal["waiting", "asking", "running", "ok", "failed", "skipped", "stopped"]
Status = Literal["running", "answered", "failed", "cancelled"]
Span = tuple[float, float]

UNPLANNED = "?"  # the tool of a task that has an outcome but was never planned (a faulty line)


@dataclass(slots=True)
class LaneStory:
    """What one of several workers wrote, and when. Changed by `Story.add` only."""

    worker: str
    began: float | None = None
    ended: float | None = None
    pieces: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.pieces)

    def add(self, text: str, at: float) -> None:
        """Take in the next piece."""
        if self.began is None:
            self.began = at
        self.ended = at
        self.pieces.append(text)


@dataclass(slots=True)
class GroupStory:
    """Workers who wrote together. Changed by `Story.add` only."""

    attempt: int
    backend: str
    why: str
    started: float
    ended: float | None = None
    lanes: dict[str, LaneStory] = field(default_factory=dict)
    faults: tuple[str, ...] = ()


@dataclass(slots=True)
class TaskStory:
    """What is known of one task. Changed by `Story.add` only."""

    task: Task
    round: int
    planned: float
    filled: Mapping[str, Any] | None = None
    started: float | None = None
    ended: float | None = None
    outcome: Outcome | None = None
    asking: bool = False
    attempts: int = 0
    failures: list[AttemptFailed] = field(default_factory=list)
    via: str = ""
    group: GroupStory | None = None  # who thought about it, in the attempt that began last
    awaited: LeaseAwaited | None = None
    used: EntryUsed | None = None
    throttled: list[HostThrottled] = field(default_factory=list)

    def span(self, now: float) -> Span | None:
        """From start to end, or to ``now`` while it runs; None for a task that never ran."""
        if self.started is None:
            return None
        return self.started, now if self.ended is None else self.ended


@dataclass(slots=True)
class RoundStory:
    """What is known of one round: a plan, then a join. Changed by `Story.add` only.

    ``plans`` and ``joins`` count how often they were begun: more than once in a run that was
    carried on.
    """

    number: int
    plans: int = 0
    plan_started: float | None = None
    plan_first_text: float | None = None
    plan_ended: float | None = None
    plan_text: list[str] = field(default_factory=list)
    plan_error: str = ""
    joins: int = 0
    join_started: float | None = None
    join_first_text: float | None = None
    join_ended: float | None = None
    join_text: list[str] = field(default_factory=list)
    join_error: str = ""
    replan: str = ""
    group: GroupStory | None = None  # who thought about the answer

    def plan_span(self, now: float) -> Span | None:
        """The time the planner wrote, up to ``now`` while it still writes."""
        return _span(self.plan_started, self.plan_ended, now)

    def join_span(self, now: float) -> Span | None:
        """The time the joiner wrote, up to ``now`` while it still writes."""
        return _span(self.join_started, self.join_ended, now)

    def writing(self) -> str:
        """The line the planner is in the middle of."""
        return "".join(self.plan_text).rpartition("\n")[2]


@dataclass(slots=True)
class TeamStory:
    """What is known of one of several teams on the question. Changed by `Story.add` only.

    Times in its ``story`` count from ``began``, seconds of the run that is about all teams.
    """

    number: int
    run_id: str = ""
    how: str = ""
    began: float = 0.0
    end: TeamEnded | None = None
    story: Story = field(default_factory=lambda: Story())


def finder(run: str, team: int, own: str) -> str:
    """Who found what run ``own`` uses: another team on its question by number, else a run by id.

    A bank outlives a run, so that team 3 may be one of yesterday's.
    """
    if team and run.rpartition(".")[0] == own.rpartition(".")[0]:
        return f"team {team}"
    return f"run {run}"


class Story:
    """Everything a view shows about a run. One door in: `add`."""

    def __init__(self) -> None:
        self.run_id = ""
        self.question = ""
        self.note = ""
        self.status: Status = "running"
        self.error = ""
        self.stopped_by = ""
        self.resumed: list[RunResumed] = []
        self.began = 0.0
        self.now = 0.0
        self.tasks: dict[int, TaskStory] = {}
        self.rounds: dict[int, RoundStory] = {}
        self.faults: list[PlanFault] = []
        self.models: list[ModelUsed] = []
        self.answer: Answered | None = None
        self.teams: dict[int, TeamStory] = {}
        self.choice: TeamChosen | None = None

    @property
    def changes(self) -> tuple[str, ...]:
        """What differs from the agent that the run began with, as it was told last."""
        return self.resumed[-1].changes if self.resumed else ()

    @classmethod
    def of(cls, events: Iterable[Event]) -> Self:
        """The story of a whole stream."""
        story = cls()
        for event in events:
            story.add(event)
        return story

    def add(self, event: Event) -> None:
        """Take in the next fact. Linear over a run; never raises, whatever the order."""
        self.now = max(self.now, event.at)
        match event:
            case RunStarted(run_id, question, note, at):
                self.run_id, self.question, self.note, self.began = run_id, question, note, at
            case RunResumed():
                self.resumed.append(event)
            case PlanStarted(number, at):
                round_ = self._round(number)
                round_.plans += 1
                if round_.plan_started is None:
                    round_.plan_started = at
                round_.plan_text.clear()  # the run was carried on, and the plan written again
            case PlanText(number, text, at):
                round_ = self._round(number)
                round_.plan_text.append(text)
                if round_.plan_first_text is None:
                    round_.plan_first_text = at
            case TaskPlanned(number, task, at):
                self._round(number)
                self.tasks[task.id] = TaskStory(task, number, at)
            case PlanFault():
                self.faults.append(event)
            case PlanEnded(number, at):
                self._round(number).plan_ended = at
            case PlanFailed(number, error, at):
                round_ = self._round(number)
                round_.plan_ended, round_.plan_error = at, error
            case ApprovalAsked(id, args):
                task_ = self._task(id)
                task_.filled, task_.asking = args, True
            case ApprovalGiven(id):
                self._task(id).asking = False
            case TaskStarted(id, args, at):
                task_ = self._task(id)
                task_.filled, task_.asking = args, False
                task_.started = at if task_.started is None else task_.started
                task_.attempts += 1
                task_.group = None
            case AttemptFailed(id):
                self._task(id).failures.append(event)
            case TaskDone(id, outcome, at):
                task_ = self._task(id)
                task_.outcome, task_.ended, task_.asking = outcome, at, False
                task_.via = event.via
            case TaskReplaced(number, task, at):
                self.tasks[task.id] = TaskStory(task, number, at)
            case HostThrottled(id):
                self._task(id).throttled.append(event)
            case TaskItem() | TaskCancelled() | AttemptEnded() | Woke():
                pass  # what comes of it is told by other events
            case LeaseAwaited(id):
                self._task(id).awaited = event
            case EntryUsed(id):
                self._task(id).used = event
            case EntryOffered() | BankFailed():
                pass
            case JoinStarted(number, at):
                round_ = self._round(number)
                round_.joins += 1
                if round_.join_started is None:
                    round_.join_started = at
                round_.join_text.clear()
                round_.group = None
            case JoinText(number, text, at):
                round_ = self._round(number)
                round_.join_text.append(text)
                if round_.join_first_text is None:
                    round_.join_first_text = at
            case ReplanAsked(number, why, at):
                round_ = self._round(number)
                round_.join_ended, round_.replan = at, why
            case Answered(number, at=at):
                self._round(number).join_ended = at
                self.answer = event
            case JoinFailed(number, error, at):
                round_ = self._round(number)
                round_.join_ended, round_.join_error = at, error
            case WorkersStarted(number, workers, backend, why, id, at, attempt):
                group = GroupStory(attempt, backend, why, at)
                group.lanes = {name: LaneStory(name) for name in workers}
                self._thought_for(number, id).group = group
            case WorkerText(number, worker, text, id, at, attempt):
                if (writing := self._thought_for(number, id).group) and writing.attempt == attempt:
                    writing.lanes.setdefault(worker, LaneStory(worker)).add(text, at)
            case WorkersEnded(number, faults, id, at, attempt):
                if (ended := self._thought_for(number, id).group) and ended.attempt == attempt:
                    ended.faults, ended.ended = faults, at
            case ModelUsed():
                self.models.append(event)
            case TeamStarted(number, run_id, how, at):
                team = self._team(number)
                team.run_id, team.how, team.began = run_id, how, at
            case TeamEnded(number):
                self._team(number).end = event
            case TeamChosen():
                self.choice = event
            case FromTeam(number, told):
                self._team(number).story.add(told)
            case RunFinished(status, error, _):
                self.status, self.error = status, error
                self.stopped_by = event.stopped_by
            case _:
                assert_never(event)

    def _team(self, number: int) -> TeamStory:
        return self.teams.setdefault(number, TeamStory(number))

    def _round(self, number: int) -> RoundStory:
        return self.rounds.setdefault(number, RoundStory(number))

    def _thought_for(self, number: int, id: int | None) -> RoundStory | TaskStory:
        """What workers think about: a round's answer, or a task."""
        return self._round(number) if id is None else self._task(id)

    def _task(self, id: int) -> TaskStory:
        """The task, or a stand-in for one whose plan line could not be used."""
        if id not in self.tasks:
            number = max(self.rounds, default=1)
            self.tasks[id] = TaskStory(Task(id, UNPLANNED), number, self.now)
        return self.tasks[id]

    def state(self, task: TaskStory) -> State:
        """Where the task stands; ``stopped`` where the run ended before the task did."""
        match task.outcome:
            case Ok():
                return "ok"
            case Failed():
                return "failed"
            case Skipped():
                return "skipped"
        if self.status != "running":
            return "stopped"
        if task.asking:
            return "asking"
        return "waiting" if task.started is None else "running"

    def outcomes(self) -> dict[int, Outcome]:
        """How each settled task ended, by id."""
        return {id: task.outcome for id, task in self.tasks.items() if task.outcome is not None}

    def text(self) -> str:
        """The answer, or as much of it as the joiner of the last round has written."""
        if self.answer is not None:
            return self.answer.text
        last = self.rounds[max(self.rounds)] if self.rounds else RoundStory(1)
        return "".join(last.join_text)

    def parts(self) -> Iterator[tuple[int, Story]]:
        """Each team's number and story; of a run without teams 0 and this one."""
        if not self.teams:
            yield 0, self
        for number in sorted(self.teams):
            yield number, self.teams[number].story

    def taken(self) -> Story:
        """The story in which the answer came about: that of the team that was chosen, or this."""
        if self.choice is not None and self.choice.team in self.teams:
            return self.teams[self.choice.team].story
        return self

    def all_tasks(self) -> Iterator[tuple[Story, TaskStory]]:
        """Every task, with the story that it belongs to."""
        for _, story in self.parts():
            for task in story.tasks.values():
                yield story, task

    def groups(self) -> Iterator[tuple[str, GroupStory]]:
        """Workers who wrote together, and for what, round by round."""
        for number in sorted({*self.rounds, *(task.round for task in self.tasks.values())}):
            for task in self.tasks.values():
                if task.round == number and task.group is not None:
                    yield f"Task {task.task.label}", task.group
            round_ = self.rounds.get(number)
            if round_ is not None and round_.group is not None:
                yield f"Join {number}", round_.group

    def usage(self) -> Usage:
        """Tokens of all model calls together, those of teams included."""
        own = sum((model.usage for model in self.models), Usage())
        return sum((team.story.usage() for team in self.teams.values()), own)

    def first_answer_text(self) -> float | None:
        """When the first piece of the answer was there."""
        if self.answer is None:
            return None
        return self._round(self.answer.round).join_first_text

    def wall(self) -> float:
        """Seconds from the run's first event to its last."""
        return self.now - self.began

    def tool_seconds(self) -> float:
        """Seconds of all tool calls added up: what they would take one after another."""
        return sum(end - start for start, end in self._tool_spans())

    def tool_wall(self) -> float:
        """Seconds in which at least one tool call ran."""
        return _length(_union(self._tool_spans()))

    def speedup(self) -> float:
        """How many times faster than one call after another; 1.0 where no call took time."""
        wall = self.tool_wall()
        return self.tool_seconds() / wall if wall > 0 else 1.0

    def overlap(self) -> float:
        """Seconds in which tools ran while a planner was still writing; not of several teams."""
        spans = (round_.plan_span(self.now) for round_ in self.rounds.values())
        planning = _union(span for span in spans if span is not None)
        return _length(_common(planning, _union(self._tool_spans())))

    def critical_path(self) -> tuple[int, ...]:
        """The chain of tasks that the answer waited for.

        In each round: the task that ended last, before it the task it needed that ended
        last, and so on. Rounds follow each other, so their chains do too. A call over a list
        stands there as the part of it that was waited for.
        """
        path: list[int] = []
        parts: dict[int, list[int]] = {}
        for id, task in self.tasks.items():
            if task.task.part is not None:
                parts.setdefault(task.task.part[0], []).append(id)
        for number in sorted(self.rounds):
            ran = {
                id: task.ended
                for id, task in self.tasks.items()
                if task.round == number and task.started is not None and task.ended is not None
            }
            chain: list[int] = []
            last = max(ran, key=lambda id: (ran[id], -id), default=None)
            while last is not None:
                chain.append(last)
                # A task leaves `ran` once walked, so that a broken record cannot loop.
                del ran[last]
                needs = self._waited_for(last, ran, parts)
                last = max(needs, key=lambda id: (ran[id], -id), default=None)
            path.extend(reversed(chain))
        return tuple(path)

    def _waited_for(
        self, id: int, ran: Container[int], parts: Mapping[int, Sequence[int]]
    ) -> list[int]:
        """The calls in ``ran`` whose end task ``id`` waited for. A task that made no call of its
        own, since it is made of ``parts``, say, ended with what it needed."""
        found: list[int] = []
        pending, seen = list(self.tasks[id].task.needs), {id}
        while pending:
            need = pending.pop()
            if need in seen or need not in self.tasks:
                continue
            seen.add(need)
            if need in ran:
                found.append(need)
            elif self.tasks[need].started is None:
                pending += [*parts.get(need, ()), *self.tasks[need].task.needs]
        return found

    def _tool_spans(self) -> list[Span]:
        calls = (task for task in self.tasks.values() if task.used is None)
        spans = (task.span(self.now) for task in calls)
        own = [span for span in spans if span is not None]
        for team in self.teams.values():
            shifted = team.story._tool_spans()
            own += [(start + team.began, end + team.began) for start, end in shifted]
        return own


def arguments(task: Task) -> str:
    """The arguments as the plan writes them, on one line: ``query="paris", limit=$1.n``."""
    try:
        return format_call(task.tool, task.args)[len(task.tool) + 1 : -1]
    except ValueError:  # a task made in Python can hold what no plan can: an object, a NaN
        return ", ".join(f"{name}={value!r}" for name, value in task.args.items())


def call(task: Task) -> str:
    """The whole call as the plan writes it: ``search(query="paris", limit=$1.n)``."""
    return f"{task.tool}({arguments(task)})"


def _span(start: float | None, end: float | None, now: float) -> Span | None:
    return None if start is None else (start, now if end is None else end)


def _union(spans: Iterable[Span]) -> list[Span]:
    """The time covered by any of ``spans``, as spans that do not touch, in order."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def _common(left: list[Span], right: list[Span]) -> list[Span]:
    """The time covered by both; each side as `_union` returns it."""
    shared: list[Span] = []
    i = j = 0
    while i < len(left) and j < len(right):
        start, end = max(left[i][0], right[j][0]), min(left[i][1], right[j][1])
        if start < end:
            shared.append((start, end))
        if left[i][1] < right[j][1]:
            i += 1
        else:
            j += 1
    return shared


def _length(spans: Iterable[Span]) -> float:
    return sum(end - start for start, end in spans)
