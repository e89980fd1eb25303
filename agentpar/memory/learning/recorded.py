"""Runs as a bank's replay needs them: which calls a team wrote when, and what each took.

Pure: a recorded team is folded from the events of its run, or read from a line of JSON. Of what
was found it keeps the hash and the length, never the content.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from agentpar.errors import UsageError
from agentpar.events import (
    Answered,
    AttemptFailed,
    EntryUsed,
    Event,
    JoinFailed,
    JoinStarted,
    ModelUsed,
    PlanEnded,
    PlanFailed,
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
from agentpar.fingerprint import fingerprint
from agentpar.memory.entry import likeness, question_of
from agentpar.memory.seat import quality
from agentpar.plan import Ok, Task
from agentpar.tools.base import Tool
from agentpar.tools.passages import words

COMPUTING = ("calc", "think")
"""Tools whose calls nobody shares, where the tools themselves are not at hand."""
SEARCHING: Mapping[str, tuple[str, ...]] = {
    "web_lookup": ("query", "find"),
    "web_search": ("query",),
}
"""Arguments that are search words, where the tools themselves are not at hand."""


_TEAM = re.compile(r"(.+)\.(\d{1,2})")
"""A team's run has the name of the run that it is a team of, and its number."""


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """One task of a plan.

    ``written``: seconds from the beginning of its round until its line stood there. ``seconds`` is
    what the call took; None: none was made, as it was skipped, or as an equal one of its own
    run stood for it, the call number ``twin``. ``like`` is that of all calls that ask for the same
    (`likeness`), ``question`` the call as a text, ``value`` a hash of what it brought and ``chars``
    its length as JSON, in bytes.
    ``tries`` are its attempts, where they were several: the seconds of the pause before each, and
    its own. ``shared``: it may serve, and be served by, other teams. ``pieces`` of the planner's
    text had been written when its line was: a server sends one a token. ``quality`` is what is
    known of how sound it looks (`agentpar.memory.seat.quality`).
    """

    id: int
    tool: str
    question: str
    like: str
    written: float
    seconds: float | None
    ok: bool
    needs: tuple[int, ...] = ()
    twin: int = 0
    value: str = ""
    chars: int = 0
    shared: bool = True
    pieces: int = 0
    quality: float = 1.0
    tries: tuple[tuple[float, float], ...] = ()

    @property
    def attempts(self) -> tuple[tuple[float, float], ...]:
        """Each attempt: the seconds of the pause before it, and its own."""
        return self.tries or ((0.0, self.seconds or 0.0),)


@dataclass(frozen=True, slots=True)
class RecordedRound:
    """A plan, its calls, and the joiner's work: seconds and tokens of both texts."""

    calls: tuple[RecordedCall, ...]
    plan_seconds: float
    join_seconds: float
    plan_tokens: int = 0
    join_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a model server is: seconds until a text begins, and for each token of it."""

    first: float
    token: float

    def seconds(self, tokens: int) -> float:
        return self.first + self.token * tokens


@dataclass(frozen=True, slots=True)
class RecordedTeam:
    """One run. ``team`` is the variation that it was, ``group`` the run whose teams it and others
    were, empty where it was recorded by itself; ``right`` whether its answer was, None where
    nobody knows; ``carried`` whether all of it was carried by what was read."""

    question: str
    rounds: tuple[RecordedRound, ...]
    seconds: float
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    conclusion: str = ""
    right: bool | None = None
    carried: bool = False
    family: str = ""
    team: int = 0
    group: str = ""

    @property
    def tokens(self) -> int:
        """Tokens that the model read or wrote."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def calls(self) -> Iterator[RecordedCall]:
        for round in self.rounds:
            yield from round.calls

    def at(self, pace: Pace) -> RecordedTeam:
        """This team at a steady ``pace`` of the model, whatever the machine was busy with when it
        was recorded. What its calls took stays."""
        rounds = tuple(
            RecordedRound(
                tuple(replace(call, written=pace.seconds(call.pieces)) for call in each.calls),
                pace.seconds(each.plan_tokens),
                pace.seconds(each.join_tokens) if each.join_seconds else 0.0,
                each.plan_tokens,
                each.join_tokens,
            )
            for each in self.rounds
        )
        return replace(self, rounds=rounds)

    def line(self) -> str:
        """This team as one line of JSON, without the newline."""
        data = {
            name: getattr(self, name)
            for name in ("family", "question", "team", "group", "conclusion", "right", "carried")
        }
        data["seconds"] = round(self.seconds, 3)
        data["tokens"] = [self.prompt_tokens, self.cached_tokens, self.completion_tokens]
        data["rounds"] = [
            {
                "plan": [round(each.plan_seconds, 3), each.plan_tokens],
                "join": [round(each.join_seconds, 3), each.join_tokens],
                "calls": [_call_data(call) for call in each.calls],
            }
            for each in self.rounds
        ]
        return json.dumps(data, ensure_ascii=False)

    @classmethod
    def from_line(cls, line: str) -> RecordedTeam:
        """The team that `line` wrote. Raises `UsageError` where it is none."""
        try:
            data = json.loads(line)
            rounds = tuple(
                RecordedRound(
                    tuple(map(_call_of, each["calls"])),
                    each["plan"][0],
                    each["join"][0],
                    each["plan"][1],
                    each["join"][1],
                )
                for each in data.pop("rounds")
            )
            prompt, cached, completion = data.pop("tokens")
            return cls(
                rounds=rounds,
                prompt_tokens=prompt,
                cached_tokens=cached,
                completion_tokens=completion,
                **data,
            )
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"not a recorded team ({error!r}): {line[:80]!r}") from None


def _call_data(call: RecordedCall) -> list[Any]:
    seconds = None if call.seconds is None else round(call.seconds, 3)
    written, needs = round(call.written, 3), list(call.needs)
    found = [int(call.ok), call.twin, call.value, call.chars, int(call.shared), call.pieces]
    found += [round(call.quality, 2), [[round(n, 3) for n in each] for each in call.tries]]
    return [call.id, call.tool, call.question, call.like, written, seconds, needs, *found]


def _call_of(data: list[Any]) -> RecordedCall:
    id, tool, question, like, written, seconds, needs, *found = data
    ok, twin, value, chars, shared, pieces, quality, tries = found
    return RecordedCall(
        id,
        tool,
        question,
        like,
        written,
        seconds,
        bool(ok),
        tuple(needs),
        twin,
        value,
        chars,
        bool(shared),
        pieces,
        quality,
        tuple((pause, took) for pause, took in tries),
    )


@dataclass(slots=True)
class _Round:
    """A round while its events are read; times are the run's."""

    began: float
    tasks: dict[int, tuple[Task, float, int]] = field(default_factory=dict)
    pieces: int = 0
    plan_tokens: int = 0
    join_tokens: int = 0
    planned: float | None = None
    joining: float | None = None
    joined: float | None = None


def recorded_team(
    events: Iterable[Event], tools: Mapping[str, Tool] | None = None, **known: Any
) -> RecordedTeam:
    """What a run's events say of it as a team; ``known`` are further fields of `RecordedTeam`.

    Without the ``tools`` it is taken from their names what may be shared and which arguments are
    search words. A call that a bank has settled counts with the seconds that it was spared. Raises
    `UsageError` where no run has ended here.
    """
    rounds: dict[int, _Round] = {}
    args: dict[int, Mapping[str, Any]] = {}
    started: dict[int, list[float]] = {}
    failed: dict[int, list[float]] = {}
    done: dict[int, TaskDone] = {}
    spared: dict[int, float] = {}
    usage, seconds, question = Usage(), None, ""
    answered: Answered | None = None
    for event in events:
        match event:
            case RunStarted(run_id, question):
                if number := _TEAM.fullmatch(run_id):
                    known = {"group": number[1], "team": int(number[2]), **known}
            case PlanStarted():
                rounds.setdefault(event.round, _Round(event.at))
            case PlanText(round) if round in rounds:
                rounds[round].pieces += 1
            case TaskPlanned(round, task, at) | TaskReplaced(round, task, at):
                for each in rounds.values():
                    each.tasks.pop(task.id, None)
                writing = rounds.setdefault(round, _Round(at))
                writing.tasks[task.id] = task, at, writing.pieces
            case PlanEnded(round, at) | PlanFailed(round, at=at) if round in rounds:
                rounds[round].planned = at
            case TaskStarted():
                args.setdefault(event.task_id, event.args)
                started.setdefault(event.task_id, []).append(event.at)
            case AttemptFailed(id, at=at):
                failed.setdefault(id, []).append(at)
            case EntryUsed():
                spared[event.task_id] = event.spared
            case TaskDone():
                done[event.task_id] = event
            case JoinStarted(round, at) if round in rounds:
                rounds[round].joining = at
            case Answered(round, at=at) | ReplanAsked(round, at=at) | JoinFailed(round, at=at):
                if round in rounds:
                    rounds[round].joined = at
                answered = event if isinstance(event, Answered) else answered
            case ModelUsed():
                usage += event.usage
                written = event.usage.completion_tokens
                if event.round in rounds and event.purpose == "plan":
                    rounds[event.round].plan_tokens += written
                elif event.round in rounds and event.purpose == "join":
                    rounds[event.round].join_tokens += written
            case RunFinished():
                seconds = event.at
    if seconds is None:
        raise UsageError("these events are of no run that has ended")
    text = "" if answered is None else answered.text

    def call_of(task: Task, at: float, pieces: int, round: _Round) -> RecordedCall:
        end = done.get(task.id)
        value = end.outcome.value if end is not None and isinstance(end.outcome, Ok) else None
        ok = end is not None and isinstance(end.outcome, Ok)
        took, twin = None, 0
        tries: tuple[tuple[float, float], ...] = ()
        via = end.via if end is not None else ""
        if via == "bank":
            took = spared.get(task.id, 0.0)
        elif via.startswith("same call as "):
            twin = int(via.rpartition(" ")[2])
        elif end is not None and task.id in started and not via:
            took = end.at - started[task.id][0]
            ended = (*failed.get(task.id, ()), end.at)
            tries = _tries(started[task.id], ended[: len(started[task.id])])
        tool = None if tools is None else tools.get(task.tool)
        inputs = args.get(task.id, {} if task.needs else task.args)
        return RecordedCall(
            task.id,
            task.tool,
            question_of(task.tool, inputs),
            _like(task.tool, tool, inputs),
            at - round.began,
            took,
            ok,
            task.needs,
            twin,
            fingerprint(value)[:12] if ok else "",
            len(json.dumps(value, ensure_ascii=False).encode()) if ok else 0,
            task.tool not in COMPUTING if tool is None else tool.may_be_shared,
            pieces,
            quality(value) if ok else 0.0,
            tries,
        )

    whole = []
    for each in rounds.values():
        calls = tuple(call_of(*planned, each) for planned in each.tasks.values())
        parts = {id: task.part for id, (task, _, _) in each.tasks.items()}
        ended = each.planned if each.planned is not None else each.began
        joined = 0.0
        if each.joining is not None and each.joined is not None:
            joined = each.joined - each.joining
        whole.append(
            RecordedRound(
                _with_parts(calls, parts),
                ended - each.began,
                joined,
                each.plan_tokens,
                each.join_tokens,
            )
        )
    return RecordedTeam(
        question,
        tuple(whole),
        seconds,
        usage.prompt_tokens,
        usage.cached_tokens,
        usage.completion_tokens,
        text.rpartition("Answer:")[2].strip(),
        **known,
    )


def _tries(begun: Sequence[float], ended: Sequence[float]) -> tuple[tuple[float, float], ...]:
    """Attempts one after the other; none where they were not (a hedge)."""
    if len(begun) < 2 or len(begun) != len(ended):
        return ()
    pauses = [0.0, *(b - e for b, e in zip(begun[1:], ended, strict=False))]
    took = [e - b for b, e in zip(begun, ended, strict=True)]
    return () if min(*pauses, *took) < 0 else tuple(zip(pauses, took, strict=True))


def _with_parts(
    calls: tuple[RecordedCall, ...], parts: Mapping[int, tuple[int, int] | None]
) -> tuple[RecordedCall, ...]:
    """A task over the elements of a list waits for its parts, and they for what it needs."""
    by_id = {call.id: call for call in calls}
    of: dict[int, tuple[int, ...]] = {}
    for id, part in parts.items():
        if part is not None and part[0] in by_id:
            of[part[0]] = (*of.get(part[0], ()), id)
    if not of:
        return calls
    made = []
    for call in calls:
        part = parts[call.id]
        if call.id in of:
            call = replace(call, needs=of[call.id], seconds=None)
        elif part is not None and part[0] in by_id:
            whole = by_id[part[0]]
            call = replace(call, needs=whole.needs, written=whole.written, pieces=whole.pieces)
        made.append(call)
    return tuple(made)


def _like(name: str, tool: Tool | None, args: Mapping[str, Any]) -> str:
    """A short form of `likeness`, also where only the tool's name is known."""
    if tool is not None:
        return likeness(tool, args)[:16]
    loose = {
        key: sorted(words(value))
        if key in SEARCHING.get(name, ()) and isinstance(value, str)
        else value
        for key, value in args.items()
    }
    return fingerprint([name, loose])[:16]
