"""Labels: from which calls the data in a task came.

What a tool returns from outside is not to be trusted, and neither is what is made of it. A
label is worked out from the plan's edges when it is asked for, and never stored beside them,
so the two cannot disagree. Nothing here knows a rule, or what becomes of a call.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from agentpar.errors import PlanError
from agentpar.fingerprint import canonical
from agentpar.plaintext import one_line
from agentpar.plan import Failed, Outcome, Ref, Skipped, Task, fill

SHOWN = 80
"""Characters of one argument that an origin shows."""


@dataclass(frozen=True, slots=True)
class Origin:
    """A call that brought something in from outside; ``call`` is made fit to be shown."""

    task_id: int
    call: str

    def __str__(self) -> str:
        return f"{self.task_id} {self.call}"


@dataclass(frozen=True, slots=True)
class Label:
    """What a call is made of: origins by task id, none of them twice.

    ``data``: the calls whose results, or what other tools made of them, stand in the
    arguments. ``plan``: the calls whose results the planner had read when it wrote the call,
    or one that the call needs; such a text may have had a say in *that* it is called.
    """

    data: tuple[Origin, ...] = ()
    plan: tuple[Origin, ...] = ()

    @property
    def untrusted(self) -> bool:
        """Whether anything from outside has a part in the call."""
        return bool(self.data or self.plan)

    def as_data(self) -> dict[str, list[dict[str, Any]]]:
        """As JSON-like data."""
        return {
            "data": [asdict(origin) for origin in self.data],
            "plan": [asdict(origin) for origin in self.plan],
        }

    def __str__(self) -> str:
        parts = []
        if self.data:
            parts.append(f"data from {_listed(self.data)}")
        if self.plan:
            parts.append(f"planned after reading {_listed(self.plan)}")
        return "; ".join(parts) or "nothing from outside"


TRUSTED = Label()
"""The label of a call that was planned from the question alone, with literal arguments."""

Read = Mapping[int, tuple[int, ...]]
"""By task: the tasks whose results its planner had read. A task of a first plan is not in it."""


def label_of(
    task: Task,
    tasks: Mapping[int, Task],
    *,
    pure: Collection[str],
    read: Read,
    outcomes: Mapping[int, Outcome],
) -> Label:
    """The label of a call of ``task``.

    The tools named in ``pure`` bring nothing in and pass on what they were given; the result
    of every other one is an origin, and carries on what went into it. ``outcomes`` fills in
    the arguments with which an origin was called.
    """
    data: set[int] = set()
    plan = set(read.get(task.id, ()))
    seen: set[int] = set()
    left = list(task.needs)
    while left:
        id = left.pop()
        if id in seen or id not in tasks:  # not in: a faulty line, which has no value
            continue
        seen.add(id)
        plan.update(read.get(id, ()))
        left += tasks[id].needs
        if tasks[id].tool not in pure:
            data.add(id)
    return Label(_origins(data, tasks, outcomes), _origins(plan, tasks, outcomes))


def brought_in(
    tasks: Mapping[int, Task], outcomes: Mapping[int, Outcome], pure: Collection[str]
) -> tuple[int, ...]:
    """The tasks whose results a reader of ``outcomes`` reads text from outside in.

    A failure counts, too: its message is the far side's. A call that was never made has none, and
    what is said of one that was stopped is ours.
    Of a task over a list the whole is read, and not its parts.
    """
    return tuple(
        id
        for id, task in tasks.items()
        if task.part is None and task.tool not in pure and _was_called(outcomes.get(id))
    )


_OURS = ("plan", "reference", "denied", "limit", "cancelled", "interrupted")
"""Kinds of failures whose words come from the run itself."""


def _was_called(outcome: Outcome | None) -> bool:
    match outcome:
        case None | Skipped():
            return False
        case Failed(kind=kind):
            return kind not in _OURS
        case _:
            return True


def _origins(
    ids: Iterable[int], tasks: Mapping[int, Task], outcomes: Mapping[int, Outcome]
) -> tuple[Origin, ...]:
    return tuple(Origin(id, _call(tasks[id], outcomes)) for id in sorted(ids))


def _call(task: Task, outcomes: Mapping[int, Outcome]) -> str:
    """The call with the values that went into it, or as planned where they are not known."""
    try:
        args: Mapping[str, Any] = fill(task.args, outcomes)
    except PlanError:
        args = task.args
    return f"{task.tool}({', '.join(map(_value, args.values()))})"


def _value(value: Any) -> str:
    match value:
        case str():
            text = value
        case Ref():
            text = str(value)
        case _:
            text = canonical(value)
    return one_line(text, SHOWN)


def _listed(origins: Sequence[Origin], most: int = 4) -> str:
    text = ", ".join(map(str, origins[:most]))
    return f"{text} and {len(origins) - most} more" if len(origins) > most else text
