"""Alarms: whoever has not ended within its seconds is told of, by one timer for all that have as
many.

A timer of the event loop for each call costs more than most calls. Those that have equal times run
out in the order in which they began, so only the first one's end need be watched. It must never
know what runs, or what becomes of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Alarms(Generic[K]):
    """Those of one run; to be used inside its event loop.

    ``ring(key, seconds)`` is called once for each key whose time is over, unless it was cleared.
    """

    def __init__(self, ring: Callable[[K, float], None]) -> None:
        self._ring = ring
        self._loop = asyncio.get_running_loop()
        self._due: dict[float, dict[K, float]] = {}  # by seconds: when each is over, in order
        self._timers: dict[float, asyncio.TimerHandle] = {}  # by seconds, one where one waits

    def set(self, key: K, seconds: float) -> None:
        """From now on ``key`` has so many seconds."""
        at = self._loop.time() + seconds
        due = self._due.get(seconds)
        if due is None:
            due = self._due[seconds] = {}
        due[key] = at
        if seconds not in self._timers:
            self._timers[seconds] = self._loop.call_at(at, self._look, seconds)

    def clear(self, key: K, seconds: float) -> None:
        """``key``, which was given ``seconds``, has ended; nothing where it was too late."""
        self._due[seconds].pop(key, None)

    def close(self) -> None:
        """No timer is left."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _look(self, seconds: float) -> None:
        """Ring for those of ``seconds`` whose time is over, and come back for the next."""
        due, now = self._due[seconds], self._loop.time()
        del self._timers[seconds]
        over = []
        for key, at in due.items():
            if at > now:
                self._timers[seconds] = self._loop.call_at(at, self._look, seconds)
                break
            over.append(key)
        for key in over:
            del due[key]
        for key in over:
            self._ring(key, seconds)
