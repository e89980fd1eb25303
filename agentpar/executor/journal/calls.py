"""What earlier parts of a run know of a call: a fold over its events. Pure.

A call is found by task and inputs, never by the order of calls: two chains that ran side by
side come back each with its own results. It must never know where the events were kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

from agentpar.events import AttemptFailed, Event, TaskDone, TaskStarted
from agentpar.plan import Failed, Ok, Outcome
from agentpar.tools.base import Tool


class PastCalls:
    """The calls of earlier parts of a run, those of branches that were left included."""

    def __init__(self) -> None:
        self._outcomes: dict[tuple[int, str], Outcome | None] = {}  # None: it began, no more

    @classmethod
    def of(cls, rows: Iterable[tuple[str, Event]]) -> Self:
        """Fold ``rows``, in the order of writing: each event, with the key of the call that
        it begins (`call_key`)."""
        calls = cls()
        known = calls._outcomes
        running: dict[int, dict[int, str]] = {}  # task -> attempt that has not ended -> key
        last: dict[int, str] = {}  # task -> key of the attempt that began last
        for key, event in rows:
            match event:
                case TaskStarted(id, attempt=attempt):
                    running.setdefault(id, {})[attempt] = last[id] = key
                    known[id, key] = None
                case AttemptFailed(id, attempt=attempt, abandoned=False) if attempt in running.get(
                    id, ()
                ):
                    key = running[id].pop(attempt)
                    if key not in running[id].values():
                        known.pop((id, key), None)  # no attempt of it is in doubt
                case TaskDone(id, outcome) if id in last:
                    known[id, last.pop(id)] = outcome
                    running.pop(id, None)
        return calls

    def outcome(self, task_id: int, key: str, tool: Tool) -> Outcome | None:
        """What stands in place of this call; None where the call is to be made.

        A read that failed, or broke off, may be made again; a write may not, unless its
        tool is idempotent and nothing is known of how it ended.
        """
        if (task_id, key) not in self._outcomes:
            return None
        known = self._outcomes[task_id, key]
        if isinstance(known, Ok):
            return known
        if not tool.sink:
            return None
        if known is None and not tool.policy.idempotent:
            return Failed(
                f"{tool.name} may or may not have happened: the run broke off while it was "
                "being called, and it is not declared idempotent, so it was not called again",
                "interrupted",
            )
        return known
