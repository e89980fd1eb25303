"""A recorded run taken apart: what was planned, returned, allowed and said. Pure."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from agentpar.errors import UsageError
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
    RunResumed,
    RunStarted,
    TaskCancelled,
    TaskDone,
    TaskPlanned,
    TaskReplaced,
    TaskStarted,
    Usage,
)
from agentpar.executor.crashes import does_without
from agentpar.executor.record import Record
from agentpar.plan import Outcome


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
    each task ended, ``events`` how many there were; ``resumed`` is whether the run was carried on
    with an agent that was another by then.
    """

    question: str
    plans: Mapping[int, tuple[Event, ...]]
    joins: Mapping[int, Said]
    results: Mapping[str, tuple[Result, ...]]
    verdicts: Mapping[str, tuple[float, bool, str]]
    outcomes: Mapping[int, Outcome]
    events: int = 0
    resumed: bool = False


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
        len(events),
        any(isinstance(event, RunResumed) for event in events),
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
            case TaskCancelled(why=why, at=at):
                for round in began:
                    if why == does_without(round):
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
