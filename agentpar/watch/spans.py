"""A run's events as a tree of spans, in OpenTelemetry's words for generative AI.

    invoke_agent NAME
    ├── plan              one a round
    │   └── chat MODEL
    ├── execute_tool T    one an attempt, with a link to each whose result it was given
    │   ├── chat MODEL    where workers thought in it
    │   ├── search_memory what another had found, and the wait for it
    │   └── create_memory what the bank was offered
    └── join              one a round
        └── chat MODEL    all that several workers wrote included

A run of several teams has the tree of each below its root, and the judge's ``chat``. A plan and its
tools overlap, so the tools' parent is the run. Pure: it reads no clock and
knows no tracer; times are the events' own. Arguments, results and texts, error messages
included, go into spans only where ``content`` is set.

Names: OpenTelemetry semantic conventions for generative AI (``gen_ai.*``), ``error.type``;
``agentpar.*`` for what they have no word for. Kept here, as the conventions still move.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

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
    TaskDone,
    TaskPlanned,
    TaskReplaced,
    TaskStarted,
    TeamChosen,
    TeamEnded,
    Usage,
    WorkersStarted,
    WorkerText,
)
from agentpar.plan import Failed, Ok, Skipped, Task
from agentpar.ports import RunInfo

OPERATION: Final = "gen_ai.operation.name"
PROVIDER: Final = "gen_ai.provider.name"
MODEL: Final = "gen_ai.request.model"
AGENT: Final = "gen_ai.agent.name"
TOOL: Final = "gen_ai.tool.name"
TOOL_TYPE: Final = "gen_ai.tool.type"
CALL: Final = "gen_ai.tool.call.id"
ARGUMENTS: Final = "gen_ai.tool.call.arguments"
RESULT: Final = "gen_ai.tool.call.result"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
CACHED_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"
INPUT: Final = "gen_ai.input.messages"
OUTPUT: Final = "gen_ai.output.messages"
ERROR: Final = "error.type"
RUN: Final = "agentpar.run.id"
STATUS: Final = "agentpar.run.status"
ROUND: Final = "agentpar.round"
ATTEMPT: Final = "agentpar.task.attempt"
ESTIMATED: Final = "agentpar.usage.estimated"
VIA: Final = "agentpar.task.via"
NEEDS: Final = "agentpar.task.needs"
BECAUSE: Final = "agentpar.task.because"
ALLOWED: Final = "agentpar.approval.allowed"
REPLAN: Final = "agentpar.replan"
MESSAGE: Final = "agentpar.message"
CHANGES: Final = "agentpar.run.changes"
HOST: Final = "server.address"
RETRY_AFTER: Final = "agentpar.host.retry_after_seconds"
WORKERS: Final = "agentpar.workers"
SHARING: Final = "agentpar.workers.backend"
NUMBER: Final = "agentpar.team"
TEAMS: Final = "agentpar.teams"
ENTRY: Final = "agentpar.memory.entry"
PRODUCER: Final = "agentpar.memory.producer.run"
PRODUCED: Final = "agentpar.memory.producer.task"
TEAM: Final = "agentpar.memory.producer.team"
SPARED: Final = "agentpar.memory.spared_seconds"
ADMITTED: Final = "agentpar.memory.admitted"
POLICY: Final = "agentpar.memory.policy"
PROBABILITY: Final = "agentpar.memory.probability"

Value = str | bool | int | float | Sequence[str] | Sequence[int]
Key = (
    tuple[Literal["run", "plan", "join", "chat", "memory"], int] | tuple[Literal["call"], int, int]
)
"""Of a call: its task and which attempt. Several may be open at once."""
ROOT: Final[Key] = ("run", 0)


@dataclass(frozen=True, slots=True)
class Opened:
    """A span began ``at`` seconds into the run. ``links`` are spans that were opened before."""

    key: Key
    parent: Key | None
    name: str
    at: float
    attributes: Mapping[str, Value] = field(default_factory=dict)
    links: tuple[Key, ...] = ()
    client: bool = False


@dataclass(frozen=True, slots=True)
class Closed:
    """A span ended. ``error`` is what sort of failure it was, empty for none; ``message`` its
    text, which is content."""

    key: Key
    at: float
    attributes: Mapping[str, Value] = field(default_factory=dict)
    error: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Noted:
    """Something happened in the run that took no time of its own: an event of the root span."""

    name: str
    at: float
    attributes: Mapping[str, Value] = field(default_factory=dict)


Change = Opened | Closed | Noted


class SpanTree:
    """Folds the events of one run, or of one part of it, into changes of its spans.

    Two doors: `add` for each event, `end` once there are no more. Whatever the events were,
    every span that was opened is closed after `end`.
    """

    def __init__(self, run: RunInfo, *, content: bool = False) -> None:
        self._run = run
        self._content = content
        self._open: dict[Key, None] = {}  # in the order of opening
        self._seen: set[Key] = set()
        self._tasks: dict[int, tuple[int, Task]] = {}
        self._result: dict[int, Key] = {}  # the attempt that brought it, or the last, by task
        self._texts: dict[Key, list[str]] = {}
        self._workers: dict[Key, WorkersStarted] = {}
        self._thoughts: dict[Key, dict[str, list[str]]] = {}  # what each of several workers wrote
        self._usage = Usage()
        self._chats = 0
        self._memories = 0
        self._awaited: dict[Key, float] = {}  # since when an attempt waits for another's call
        self._at = 0.0
        for event in run.history:
            if isinstance(event, TaskPlanned | TaskReplaced):
                self._tasks[event.task.id] = event.round, event.task

    def begin(self, at: float) -> list[Change]:
        """Open the root before there is an event, as others are to lie under it."""
        self._at = at
        return [self._root(at)]

    def add(self, event: Event) -> list[Change]:
        """The changes that ``event`` makes, in order."""
        self._at = event.at
        changes: list[Change] = [] if self._seen else [self._root(event.at, event)]
        match event:
            case TeamEnded(team, status, at=at):
                changes.append(Noted("team.ended", at, {NUMBER: team, STATUS: status}))
            case TeamChosen(team, _, why, at=at):
                told = {NUMBER: team, **self._if_content({MESSAGE: why})}
                changes.append(Noted("team.chosen", at, told))
            case PlanStarted(round, at):
                said: dict[str, Value] = {OPERATION: "plan", ROUND: round}
                changes += self._opened(Opened(("plan", round), ROOT, "plan", at, said))
            case PlanEnded(round, at):
                changes += self._closed(("plan", round), at)
            case PlanFailed(round, error, at):
                changes += self._closed(("plan", round), at, error="plan", message=error)
            case TaskPlanned(round, task):
                self._tasks[task.id] = round, task
            case TaskReplaced(round, task):
                self._tasks[task.id] = round, task
            case TaskStarted():
                changes += self._task_started(event)
            case AttemptFailed(id, outcome, at, attempt):
                key: Key = ("call", id, attempt)
                changes += self._closed(key, at, error=outcome.kind, message=outcome.error)
            case AttemptEnded(id, attempt, at):  # it was stopped
                changes += self._closed(("call", id, attempt), at, error="cancelled")
            case TaskDone():
                changes += self._task_done(event)
            case LeaseAwaited(id, (run, task), team, at, attempt):
                self._awaited["call", id, attempt] = at
                made = {**self._call(id), PRODUCER: run, PRODUCED: task, TEAM: team}
                changes.append(Noted("memory.awaited", at, made))
            case EntryUsed():
                changes += self._entry_used(event)
            case EntryOffered():
                changes += self._entry_offered(event)
            case BankFailed(error, _, at):
                changes.append(Noted("memory.failed", at, self._if_content({MESSAGE: error})))
            case HostThrottled(id, host, wait, at, attempt):
                said = {**self._call(id), ATTEMPT: attempt, **self._if_content({HOST: host})}
                said |= {} if wait is None else {RETRY_AFTER: wait}
                changes.append(Noted("host.throttled", at, said))
            case RunResumed(told, at=at):
                changes.append(Noted("run.resumed", at, {CHANGES: told} if told else {}))
            case JoinStarted(round, at):
                changes += self._opened(Opened(("join", round), ROOT, "join", at, {ROUND: round}))
            case Answered(round, at=at):
                changes += self._closed(("join", round), at)
            case ReplanAsked(round, why, at):
                said = {REPLAN: True, **self._if_content({MESSAGE: why})}
                changes += self._closed(("join", round), at, said)
            case JoinFailed(round, error, at):
                changes += self._closed(("join", round), at, error="join", message=error)
            case ModelUsed():
                changes += self._model_used(event)
            case PlanText(round, text) if self._content:
                self._texts.setdefault(("plan", round), []).append(text)
            case JoinText(round, text) if self._content:
                self._texts.setdefault(("join", round), []).append(text)
            case WorkersStarted():
                maker = _maker(event)
                self._workers[maker] = event
                self._thoughts[maker] = {}
            case WorkerText(worker=worker, text=text) if self._content:
                thoughts = self._thoughts.setdefault(_maker(event), {})
                thoughts.setdefault(worker, []).append(text)
            case PlanFault(round, message, at=at):
                said = {ROUND: round, **self._if_content({MESSAGE: message})}
                changes.append(Noted("plan.fault", at, said))
            case ApprovalAsked(id, args, at=at):
                changes.append(Noted("approval.asked", at, self._call(id, args)))
            case ApprovalGiven(id, allowed, reason, at=at):
                said = {ALLOWED: allowed, **self._if_content({MESSAGE: reason})}
                changes.append(Noted("approval.given", at, {**self._call(id), **said}))
            case RunFinished():
                changes += self._finished(event.status, event.error, event.at)
        return changes

    def end(self) -> list[Change]:
        """Close what is open: the run paused here, or broke off without a last event."""
        return self._finished("paused", "", self._at) if self._open else []

    def _root(self, at: float, event: Event | None = None) -> Opened:
        run = self._run
        named: dict[str, Value] = {OPERATION: "invoke_agent", AGENT: run.agent, RUN: run.run_id}
        named |= {NUMBER: run.team} if run.team else {}
        named |= {TEAMS: run.teams} if run.teams else {}
        if isinstance(event, RunStarted):
            named |= self._if_content({INPUT: _json([_message("user", event.question)])})
        root = Opened(ROOT, None, f"invoke_agent {run.agent}", at, named)
        self._opened(root)
        return root

    def _task_started(self, event: TaskStarted) -> list[Change]:
        key: Key = ("call", event.task_id, event.attempt)
        round, task = self._task(event.task_id)
        named: dict[str, Value] = {
            OPERATION: "execute_tool",
            TOOL_TYPE: "function",
            ROUND: round,
            ATTEMPT: event.attempt,
            **self._call(task.id, event.args),
        }
        if task.needs:
            named[NEEDS] = task.needs
        links = tuple(self._result[need] for need in task.needs if need in self._result)
        self._result[task.id] = key
        span = Opened(key, ROOT, f"execute_tool {task.tool}", event.at, named, links)
        return [*self._closed(key, event.at), *self._opened(span)]

    def _task_done(self, event: TaskDone) -> list[Change]:
        key: Key = ("call", event.task_id, event.attempt)
        said: dict[str, Value]
        if key in self._open:
            self._result[event.task_id] = key
        match event.outcome:
            case Ok() if key not in self._open:  # its value was known without a call
                said = {**self._call(event.task_id), **({VIA: event.via} if event.via else {})}
                return [Noted("task.reused", event.at, said)]
            case Ok(value):
                said = {RESULT: _json(value)} if self._content else {}
                if event.via:
                    said[VIA] = event.via
                return self._closed(key, event.at, said)
            case Failed(error, kind):
                if key in self._open:
                    return self._closed(key, event.at, error=kind, message=error)
                said = {ERROR: kind, **self._if_content({MESSAGE: error})}
                return [Noted("task.failed", event.at, {**self._call(event.task_id), **said})]
            case Skipped(because):
                skipped = {**self._call(event.task_id), BECAUSE: because}
                return [Noted("task.skipped", event.at, skipped)]

    def _entry_used(self, event: EntryUsed) -> list[Change]:
        caller: Key = ("call", event.task_id, event.attempt)
        run, task = event.producer
        told: dict[str, Value] = {ENTRY: event.entry, PRODUCER: run, PRODUCED: task}
        told |= {TEAM: event.team, SPARED: event.spared}
        began = self._awaited.pop(caller, event.at)
        return self._memory("search_memory", caller, began, event.at, told)

    def _entry_offered(self, event: EntryOffered) -> list[Change]:
        caller: Key = ("call", event.task_id, event.attempt)
        told: dict[str, Value] = {ENTRY: event.entry, ADMITTED: event.admitted}
        told |= {POLICY: event.policy, PROBABILITY: event.probability}
        told |= self._if_content({MESSAGE: event.why})
        return self._memory("create_memory", caller, event.at, event.at, told)

    def _memory(
        self, operation: str, caller: Key, began: float, at: float, told: Mapping[str, Value]
    ) -> list[Change]:
        self._memories += 1
        key: Key = ("memory", self._memories)
        parent = caller if caller in self._seen else ROOT
        span = Opened(key, parent, operation, began, {OPERATION: operation, **told})
        return [*self._opened(span), *self._closed(key, at)]

    def _model_used(self, event: ModelUsed) -> list[Change]:
        self._chats += 1
        self._usage += event.usage
        key: Key = ("chat", self._chats)
        maker = ROOT  # what is read ahead is nobody's text
        if event.purpose in ("plan", "join"):
            maker = (event.purpose, event.round)
        elif event.purpose == "think":
            maker = _maker(event)
        named: dict[str, Value] = {
            OPERATION: "chat",
            **self._model(),
            **_tokens(event.usage),
            FINISH_REASONS: ("length" if event.usage.cut else "stop",),
            FIRST_CHUNK: event.first_token,
        }
        if (workers := self._workers.pop(maker, None)) is not None:
            named |= {WORKERS: workers.workers, SHARING: workers.backend}
        written = [
            _message("assistant", "".join(pieces), name)
            for name, pieces in self._thoughts.pop(maker, {}).items()
        ]
        if text := "".join(self._texts.pop(maker, ())):
            written.append(_message("assistant", text))
        if written:
            named[OUTPUT] = _json(written)
        began = max(0.0, event.at - event.seconds)
        name = f"chat {named.get(MODEL, '')}".strip()
        parent = maker if maker in self._seen else ROOT
        span = Opened(key, parent, name, began, named, client=True)
        return [*self._opened(span), *self._closed(key, event.at)]

    def _finished(self, status: str, error: str, at: float) -> list[Change]:
        cut_short = "" if status == "paused" else "cancelled"
        changes: list[Change] = []
        for key in reversed(list(self._open)):
            if key != ROOT:
                changes += self._closed(key, at, error=cut_short)
        totals: dict[str, Value] = {STATUS: status, **self._model(), **_tokens(self._usage)}
        failed = "" if status in ("answered", "paused") else status
        return changes + self._closed(ROOT, at, totals, error=failed, message=error)

    def _opened(self, span: Opened) -> list[Change]:
        self._open[span.key] = None
        self._seen.add(span.key)
        return [span]

    def _closed(
        self,
        key: Key,
        at: float,
        attributes: Mapping[str, Value] | None = None,
        *,
        error: str = "",
        message: str = "",
    ) -> list[Change]:
        if key not in self._open:
            return []
        del self._open[key]
        named = {**(attributes or {}), **({ERROR: error} if error else {})}
        return [Closed(key, at, named, error, message if self._content else "")]

    def _task(self, id: int) -> tuple[int, Task]:
        """The task, or a stand-in for one whose line of the plan could not be used."""
        return self._tasks.get(id, (0, Task(id, "?")))

    def _call(self, id: int, args: Mapping[str, Any] | None = None) -> dict[str, Value]:
        named: dict[str, Value] = {TOOL: self._task(id)[1].tool, CALL: str(id)}
        if self._content and args is not None:
            named[ARGUMENTS] = _json(args)
        return named

    def _model(self) -> dict[str, Value]:
        """Who served which model, as far as that is known by now."""
        runtime = self._run.runtime
        told = {} if runtime is None else {PROVIDER: runtime.provider, MODEL: runtime.model_name}
        return {name: value for name, value in told.items() if value}

    def _if_content(self, attributes: Mapping[str, Value]) -> dict[str, Value]:
        return {n: value for n, value in attributes.items() if value} if self._content else {}


def _tokens(usage: Usage) -> dict[str, Value]:
    return {
        INPUT_TOKENS: usage.prompt_tokens,
        OUTPUT_TOKENS: usage.completion_tokens,
        CACHED_TOKENS: usage.cached_tokens,
        **({ESTIMATED: True} if usage.estimated else {}),
    }


def _maker(event: WorkersStarted | WorkerText | ModelUsed) -> Key:
    """In whose span workers think: an attempt's, or a join's."""
    if event.task_id is None:
        return "join", event.round
    return "call", event.task_id, event.attempt


def _message(role: str, text: str, name: str = "") -> dict[str, Any]:
    named = {"name": name} if name else {}
    return {"role": role, **named, "parts": [{"type": "text", "content": text}]}


def _json(value: Any) -> str:
    """ASCII, so that lone surrogates of a page come through."""
    return json.dumps(value, default=str)
