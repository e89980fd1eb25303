"""How a run ended, as a value: a fold over the machine and the events of the run."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from agentpar.events import (
    Answered,
    Citation,
    Event,
    ModelUsed,
    PlanFault,
    RunFinished,
    RunResumed,
    Usage,
)
from agentpar.executor.machine import Machine
from agentpar.executor.resume import catch_up
from agentpar.plan import Ok, Outcome, Task, whole
from agentpar.policy import Limits


@dataclass(frozen=True, slots=True)
class Answer:
    """How a run ended.

    ``text`` is all that the joiner wrote, with its ``[n]`` marks; `conclusion` is what
    stands behind the last ``Answer:``. The ``task_id`` of a citation is a key into
    ``tasks`` and ``outcomes``. ``unsupported`` holds the sentences that nothing the run has
    read carries. ``usage`` says what was spent and, in ``stopped_by``, which limit ended the run
    before its plan was done; the text then says what is missing. ``prefill`` is the part of it
    that read the joiner's prompt ahead. ``seconds`` is wall time. ``changes`` says what had changed
    in the agent when the run was carried on.

    Of a run of several ``teams`` these are their answers, by number, each with its own usage;
    ``chosen`` is the number of the one that is this answer (0: there were no teams, or none
    answered), ``why`` says for what reason. Text, citations, tasks and outcomes are that team's;
    ``usage`` and ``prefill`` are the sum over all teams and the judge, but for ``stopped_by`` and
    ``cut``; ``seconds`` are those of all.
    """

    run_id: str
    question: str
    text: str = ""
    citations: tuple[Citation, ...] = ()
    unsupported: tuple[str, ...] = ()
    tasks: Mapping[int, Task] = field(default_factory=dict)
    outcomes: Mapping[int, Outcome] = field(default_factory=dict)
    faults: tuple[PlanFault, ...] = ()
    usage: Usage = field(default_factory=Usage)
    prefill: Usage = field(default_factory=Usage)
    rounds: int = 0
    seconds: float = 0.0
    changes: tuple[str, ...] = ()
    status: Literal["answered", "failed", "cancelled"] = "answered"
    error: str = ""
    teams: tuple[Answer, ...] = ()
    chosen: int = 0
    why: str = ""

    @property
    def conclusion(self) -> str:
        """The answer without the facts before it."""
        return self.text.rpartition("Answer:")[2].strip()

    def as_dict(self) -> dict[str, Any]:
        """JSON-like data, for ``--json`` and for passing on."""
        return {
            "run_id": self.run_id,
            "question": self.question,
            "status": self.status,
            "error": self.error,
            "text": self.text,
            "conclusion": self.conclusion,
            "citations": [
                {
                    "n": c.n,
                    "task_id": c.task_id,
                    "source": c.source,
                    "title": c.title,
                    "sentence": c.sentence,
                    "passage": c.passage,
                    "supported": c.supported,
                    "problem": c.problem,
                }
                for c in self.citations
            ],
            "unsupported": list(self.unsupported),
            "tasks": {
                str(id): {"tool": task.tool, "ok": isinstance(self.outcomes.get(id), Ok)}
                for id, task in self.tasks.items()
            },
            "faults": [fault.message for fault in self.faults],
            "usage": {
                "prompt_tokens": self.usage.prompt_tokens,
                "completion_tokens": self.usage.completion_tokens,
                "cached_tokens": self.usage.cached_tokens,
                "calls": self.usage.calls,
                "cut": self.usage.cut,
                "steps": self.usage.steps,
                "cost_usd": round(self.usage.cost_usd, 6),
                "stopped_by": self.usage.stopped_by,
                "estimated": self.usage.estimated,
                "prefill": {
                    "prompt_tokens": self.prefill.prompt_tokens,
                    "completion_tokens": self.prefill.completion_tokens,
                    "cached_tokens": self.prefill.cached_tokens,
                    "calls": self.prefill.calls,
                },
            },
            "rounds": self.rounds,
            "seconds": round(self.seconds, 3),
            "changes": list(self.changes),
            "chosen": self.chosen,
            "why": self.why,
            "teams": [team.as_dict() for team in self.teams],
        }


def answer_of(run_id: str, machine: Machine, events: Iterable[Event]) -> Answer:
    """The answer of a run that has ended, or what there is of it where it broke off."""
    text = error = ""
    citations: tuple[Citation, ...] = ()
    unsupported: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    status: Literal["answered", "failed", "cancelled"] = "cancelled"
    usage = prefill = Usage()
    at = 0.0
    stopped_by = machine.stopped_by
    steps, cost = machine.budget.steps, machine.budget.cost
    for event in events:
        at = event.at
        match event:
            case Answered():
                text, citations = event.text, event.citations
                unsupported = event.unsupported
            case ModelUsed():
                used = event.usage
                if event.purpose == "prefill":
                    used = replace(used, cut=False)  # it was never to write more
                    prefill += used
                usage += used
            case RunResumed():
                changes = event.changes
            case RunFinished():
                status, error = event.status, event.error
                stopped_by, steps, cost = event.stopped_by, event.steps, event.cost_usd
    tasks, outcomes = whole(machine.tasks, machine.outcomes)
    return Answer(
        run_id=run_id,
        question=machine.question,
        text=text,
        citations=citations,
        unsupported=unsupported,
        tasks=dict(sorted(tasks.items())),
        outcomes=dict(sorted(outcomes.items())),
        faults=tuple(machine.faults),
        usage=replace(usage, steps=steps, cost_usd=cost, stopped_by=stopped_by),
        prefill=prefill,
        rounds=machine.round,
        seconds=at,
        changes=changes,
        status=status,
        error=error,
    )


def recorded_answer(run_id: str, events: Iterable[Event]) -> Answer:
    """The answer of a run that is only known by its events."""
    events = list(events)
    machine = Machine(Limits(sys.maxsize, sys.maxsize, sys.maxsize))  # it decides nothing here
    catch_up(machine, events)
    return answer_of(run_id, machine, events)
