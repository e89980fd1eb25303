"""What a process that dies leaves behind, in virtual time: its journal, and a plan half told.

It starts nothing and must never know what a run is about.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from agentpar.events import Event, PlanFault, PlanStarted, TaskCancelled, TaskPlanned, TaskReplaced
from agentpar.executor.journal.calls import PastCalls
from agentpar.plan import Task


class Life:
    """A process up to its event number ``ends_at``, or to the end. What a dead one still does,
    nobody sees; ``on_death`` is told."""

    def __init__(self, ends_at: int | None, on_death: Callable[[], None]) -> None:
        self.over = False
        self._left = ends_at
        self._on_death = on_death

    def seen(self, observe: Callable[[Any], None]) -> Callable[[Any], None]:
        """``observe``, as long as it lasts."""
        if self._left is None:
            return observe
        return lambda it: None if self.over else observe(it)

    def count(self, event: Event) -> None:
        """The last observer: the others have seen the event at which it ends."""
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                self.over = True
                self._on_death()


class MemoryJournal:
    """One run's place in a journal that is a list. What nobody has waited for may be lost."""

    def __init__(self) -> None:
        self.calls = PastCalls()
        self._rows: list[tuple[str, Event]] = []
        self._on_disk = 0

    @property
    def history(self) -> list[Event]:
        return [event for _, event in self._rows]

    def append(self, event: Event, key: str = "") -> None:
        self._rows.append((key, event))

    async def flush(self) -> None:
        self._on_disk = len(self._rows)

    def lose(self, count: int) -> None:
        """The process has died: the next one finds all but the last ``count`` rows, or all that
        are on disk for sure."""
        del self._rows[max(self._on_disk, len(self._rows) - count) :]
        self._on_disk = len(self._rows)
        self.calls = PastCalls.of(self._rows)


def lines_told(history: Sequence[Event], round: int) -> int:
    """How many lines of that round's plan have come to something."""
    return sum(is_line(event, round) for event in history)


def lines_before_anew(history: Sequence[Event], round: int) -> int | None:
    """How many of those there were when that round's plan was asked for anew; None if it was
    not."""
    for place, event in enumerate(history):
        if isinstance(event, PlanStarted) and event.round == round and event.anew:
            return lines_told(history[:place], round)
    return None


def is_line(event: Event, round: int) -> bool:
    """Whether this is what a line of that round's plan has come to."""
    match event:
        case TaskPlanned(of, Task(part=None)) | TaskReplaced(of):
            return of == round
        case PlanFault(of, line=line):
            return of == round and bool(line)
        case TaskCancelled(why=why):
            return why == does_without(round)
    return False


def does_without(round: int) -> str:
    """Why a planner cancels a call, in its words."""
    return f"the plan of round {round} does without it"
