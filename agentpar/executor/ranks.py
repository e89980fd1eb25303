"""How far each task is from the end of the plan: the order in which waiting calls should go.

Pure. The rank of a task is the length of the longest path from its start to the plan's end,
each task counted with the seconds it is expected to take (the upward rank of HEFT, Topcuoglu
et al. 2002, without communication). Whoever stands on the critical path goes first.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from agentpar.plan import Task


def upward_ranks(
    open_tasks: Collection[int], tasks: Mapping[int, Task], expected: Mapping[str, float]
) -> dict[int, float]:
    """Seconds from the start of each task in ``open_tasks`` to the end of the last that waits
    for it. ``expected`` has seconds by tool, one where it has none.

    A plan counts its tasks upwards along the references, so one pass from the last to the first
    is enough. Where a later round has turned that around, a rank may be too small: calls then
    go in a worse order, and nothing else changes.
    """
    after = dict.fromkeys(open_tasks, 0.0)
    for id in sorted(open_tasks, reverse=True):
        task = tasks[id]
        rank = after[id] = after[id] + expected.get(task.tool, 1.0)
        for need in task.needs:
            if (known := after.get(need)) is not None and known < rank:
                after[need] = rank
    return after
