"""Results kept for tools with a ``cache``: they serve later runs.

It must never know what a tool does, or which calls are equal: their key says so.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from agentpar.executor.journal import Journal
from agentpar.plan import Ok

MOST = 10_000
"""Results kept in memory at once; the one that served longest ago goes first."""


class MemoryResults:
    """The simplest `agentpar.ports.Results`: they last as long as the process."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._kept: OrderedDict[str, tuple[float, Ok]] = OrderedDict()  # until when, what

    async def get(self, key: str) -> Ok | None:
        until, outcome = self._kept.get(key, (0.0, None))
        if outcome is None:
            return None
        if self._now() >= until:
            del self._kept[key]
            return None
        self._kept.move_to_end(key)
        return outcome

    async def put(self, key: str, outcome: Ok, seconds: float) -> None:
        self._kept[key] = (self._now() + seconds, outcome)
        self._kept.move_to_end(key)
        while len(self._kept) > MOST:
            self._kept.popitem(last=False)


class JournalResults:
    """Results in the journal: any process that uses it has them."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    async def get(self, key: str) -> Ok | None:
        kept = await self._journal.cached(key)
        return None if kept is None else Ok(kept["value"])

    async def put(self, key: str, outcome: Ok, seconds: float) -> None:
        await self._journal.cache(key, {"value": outcome.value}, seconds)
