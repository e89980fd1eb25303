"""What a whole plan could do without: equal calls, dead calls, calls that can go together.

Pure functions from tasks to tasks, in the order in which they were planned. None changes what
the tasks that stay come to, which `agentpar.executor.naive` is the measure of. A task of a tool
that is in ``risky`` changes the world: it is never merged, dropped or batched.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from agentpar.errors import UsageError
from agentpar.plan import Pick, Ref, Task, each, picks


@dataclass(frozen=True, slots=True)
class Merged:
    """A plan without equal calls. ``same`` leads from each that is gone to the one that stands
    for it, and has its value."""

    tasks: tuple[Task, ...]
    same: Mapping[int, int]


def merge_equal(tasks: Iterable[Task], risky: Collection[str] = ()) -> Merged:
    """Of calls of one tool with equal arguments only the first; references go there.

    Arguments are equal as JSON is, in which 1, 1.0 and true are three things. A call that an
    ``any(…)`` or ``some(…)`` chooses from stays: who lets equal calls race wants both.
    """
    plan = list(tasks)
    raced = {ref.task for task in plan for pick in picks(task.args) for ref in pick.refs}
    same: dict[int, int] = {}
    first: dict[Any, int] = {}
    kept: list[Task] = []
    for task in plan:
        task = _rewired(task, same)
        if task.tool not in risky:
            call = task.tool, _key(dict(sorted(task.args.items())))
            if call in first and task.id not in raced:
                same[task.id] = first[call]
                continue
            first.setdefault(call, task.id)
        kept.append(task)
    return Merged(tuple(kept), same)


def drop_dead(
    tasks: Iterable[Task], goals: Collection[int] | None = None, risky: Collection[str] = ()
) -> tuple[Task, ...]:
    """The tasks that a goal needs, however far back, and those of ``risky`` tools.

    Without ``goals`` those that no other task needs are goals, so that all stay. Raises
    `UsageError` for a goal that is no task.
    """
    plan = list(tasks)
    by_id = {task.id: task for task in plan}
    if goals is None:
        goals = by_id.keys() - {need for task in plan for need in task.needs}
    if unknown := sorted(set(goals) - by_id.keys()):
        raise UsageError(f"the plan has no task {unknown[0]}, which is named as a goal")
    alive: set[int] = set()
    pending = [*goals, *(task.id for task in plan if task.tool in risky)]
    while pending:
        id = pending.pop()
        if id in by_id and id not in alive:
            alive.add(id)
            pending += by_id[id].needs
    return tuple(task for task in plan if task.id in alive)


def batches(
    tasks: Iterable[Task], limits: Mapping[str, int], risky: Collection[str] = ()
) -> list[tuple[int, ...]]:
    """The calls that one request could carry: of one tool, and equally deep in the plan.

    ``limits`` says how many calls of a tool go into one. None in a group needs another, and
    groups can run in the order given. A task that goes over a list is a batch of its own
    and stands in no group.
    """
    depth: dict[int, int] = {}
    found: dict[tuple[int, str], list[int]] = {}
    for task in tasks:
        depth[task.id] = at = 1 + max((depth.get(need, 0) for need in task.needs), default=0)
        if task.tool in limits and task.tool not in risky and each(task.args) is None:
            found.setdefault((at, task.tool), []).append(task.id)
    return [
        tuple(ids[start : start + limits[tool]])
        for (_, tool), ids in sorted(found.items())
        for start in range(0, len(ids), limits[tool])
        if len(ids) - start > 1 and limits[tool] > 1
    ]


def _rewired(task: Task, same: Mapping[int, int]) -> Task:
    if same.keys().isdisjoint(task.needs):
        return task
    args = {name: _redirected(value, same) for name, value in task.args.items()}
    return replace(task, args=args, needs=_each_once(same.get(need, need) for need in task.needs))


def _redirected(value: Any, same: Mapping[int, int]) -> Any:
    match value:
        case Ref(task, path):
            return Ref(same.get(task, task), path)
        case Mapping():
            return {key: _redirected(item, same) for key, item in value.items()}
        case list() | tuple():
            return [_redirected(item, same) for item in value]
    return value


def _each_once(ids: Iterable[int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(ids))


def _key(value: Any) -> Any:
    """Something hashable that is equal exactly where two arguments are."""
    match value:
        case Ref() | Pick():
            return value
        case Mapping():
            return "dict", tuple((key, _key(item)) for key, item in value.items())
        case list() | tuple():
            return "list", tuple(map(_key, value))
    return type(value).__name__, repr(value)
