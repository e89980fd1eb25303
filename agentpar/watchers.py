"""A run's watchers, kept apart from the run: one that raises is told of once and left out.

The record is an observer that a run cannot do without; a watcher is not. It must never know
what a watcher does with the events.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

from agentpar.events import Event
from agentpar.ports import RunInfo, Watch

logger = logging.getLogger("agentpar.watch")


class Watchers:
    """Opens ``watch`` for one run, tells each every event, closes them; raises nothing.

    What a watcher raises goes to the logger ``agentpar.watch`` as one warning, through ``hide``.
    """

    def __init__(
        self, watch: Sequence[Watch], run: RunInfo, hide: Callable[[str], str] = str
    ) -> None:
        self._watch = tuple(watch)
        self._hide = hide
        self._run = run
        self._watching: list[_Watcher] = []

    def __enter__(self) -> Self:
        for watch in self._watch:
            try:
                context = watch(self._run)
                observe = context.__enter__()
            except Exception as error:
                self._told(_name(watch), error)
            else:
                self._watching.append(_Watcher(_name(watch), context, observe))
        return self

    def __call__(self, event: Event) -> None:
        lost: list[_Watcher] = []
        for watcher in self._watching:
            try:
                watcher.observe(event)
            except Exception as error:
                self._told(watcher.name, error)
                lost.append(watcher)
        for watcher in lost:
            self._watching.remove(watcher)
            watcher.close()  # its complaints are about what has been told already

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        watching, self._watching = self._watching, []
        for watcher in reversed(watching):
            if (failure := watcher.close()) is not None:
                self._told(watcher.name, failure)

    def _told(self, name: str, error: Exception) -> None:
        logger.warning(
            "the watcher %s sees no more of run %s: %s: %s",
            name,
            self._run.run_id,
            type(error).__name__,
            self._hide(str(error)),
        )


class _Watcher:
    def __init__(
        self,
        name: str,
        context: AbstractContextManager[Callable[[Event], None]],
        observe: Callable[[Event], None],
    ) -> None:
        self.name = name
        self.observe = observe
        self._context = context

    def close(self) -> Exception | None:
        """What went wrong while closing, if anything did."""
        try:
            self._context.__exit__(None, None, None)
        except Exception as error:
            return error
        return None


def _name(watch: Watch) -> str:
    return str(getattr(watch, "__qualname__", type(watch).__name__))
