"""What `agentpar graph --optimize` does to a plan, and says of it on stderr."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import typer

from agentpar.errors import UsageError

if TYPE_CHECKING:  # loads when a plan is read, not when the command line is
    from agentpar.plan import Task


def optimized(
    tasks: Sequence[Task],
    goals: Collection[int] | None,
    write: Collection[str],
    limits: Sequence[str],
) -> list[Task]:
    """``tasks`` without equal calls and without those that no goal needs.

    ``limits`` are texts such as ``web_fetch=8``. Raises `UsageError` for one that is none.
    """
    from agentpar.optimize import batches, drop_dead, merge_equal

    merged = merge_equal(tasks, write)
    for gone, kept in merged.same.items():
        typer.echo(f"{gone} is the same call as {kept}", err=True)
    wanted = None if not goals else [merged.same.get(goal, goal) for goal in goals]
    alive = drop_dead(merged.tasks, wanted, write)
    left = {task.id for task in alive}
    for task in merged.tasks:
        if task.id not in left:
            typer.echo(f"{task.id} is needed by no goal", err=True)
    for group in batches(alive, dict(map(_limit, limits)), write):
        typer.echo(f"{', '.join(map(str, group))} can go together", err=True)
    return list(alive)


def _limit(text: str) -> tuple[str, int]:
    tool, _, count = text.partition("=")
    if not tool or not count.isdecimal() or int(count) < 1:
        raise UsageError(f"--batch {text!r} is no limit: write a tool and a number, web_fetch=8")
    return tool, int(count)
