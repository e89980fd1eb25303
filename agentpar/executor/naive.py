"""The executor in its simplest form: one task after the other.

What a plan means, without limits, waiting or chance. Whatever runs plans faster, or makes them
smaller, is held against it. It starts nothing and knows no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from agentpar.errors import PlanError
from agentpar.plan import (
    Failed,
    Outcome,
    Skipped,
    Task,
    blocker,
    collect,
    each,
    element_args,
    elements,
    fill,
)

Call = Callable[[str, Mapping[str, Any]], Outcome]
"""Calls a tool with its arguments."""


def interpret(
    tasks: Iterable[Task], call: Call, order: Sequence[int] | None = None
) -> dict[int, Outcome]:
    """How every task ends, in the order in which they did.

    ``order`` has the ids, each behind those it needs; by default it is that of the plan.
    """
    plan = {task.id: task for task in tasks}
    outcomes: dict[int, Outcome] = {}
    for id in plan if order is None else order:
        outcomes[id] = perform(plan[id], call, outcomes)
    return outcomes


def perform(task: Task, call: Call, outcomes: Mapping[int, Outcome]) -> Outcome:
    """How ``task`` ends, once all that it needs has ended with ``outcomes``."""
    because = blocker(task.args, outcomes)
    if because is not None:
        return Skipped(because)

    try:
        over = each(task.args)
        if over is None:
            return call(task.tool, fill(task.args, outcomes))
        items = elements(over, outcomes)
    except PlanError as error:
        return Failed(str(error), "reference")
    return collect([_perform_one(task, call, outcomes, *item) for item in enumerate(items)])


def _perform_one(
    task: Task, call: Call, outcomes: Mapping[int, Outcome], index: int, element: Any
) -> Outcome:
    try:
        args = element_args(task.args, index, element, outcomes)
    except PlanError as error:
        return Failed(str(error), "reference")
    return call(task.tool, args)
