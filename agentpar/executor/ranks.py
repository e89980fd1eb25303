"""How far each task is from the end of the plan: the order in which waiting calls should go.

Pure. The rank of a task is the length of the longest path from its start to the plan's end,
each task counted with the seconds it is expected to take (the upward rank of HEFT, Topcuoglu
et al. 2002, without communication). Whoever stands on the critical path goes first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from agentpar.plan import Task


def upward_ranks(
    open_tasks: Iterable[int],
    tasks: Mapping[int, Task],
    dependants: Mapping[int, Sequence[int]],
    expected: Callable[[str], float],
) -> dict[int, float]:
    """Seconds from the start of each task in ``open_tasks`` to the end of the last that waits
    for it. ``dependants`` names who waits for whom; only tasks in ``open_tasks`` count."""
    ranks: dict[int, float] = {}
    ids = set(open_tasks)
    for first in sorted(ids, reverse=True):  # those planned last wait for those before
        if first in ranks:
            continue
        stack = [first]
        while stack:
            id = stack[-1]
            unknown = [d for d in dependants.get(id, ()) if d in ids and d not in ranks]
            if unknown:
                stack += unknown
                continue
            stack.pop()
            after = max((ranks[d] for d in dependants.get(id, ()) if d in ids), default=0.0)
            ranks[id] = expected(tasks[id].tool) + after
    return ranks
