"""Results kept in memory for tools with a ``cache``: they serve later runs of one process.

It must never know what a tool does; an equal call is one of the same tool and version with
equal arguments.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from agentpar.plan import Ok

MOST = 10_000
"""Results kept at once; the one that served longest ago goes first."""


class MemoryResults:
    """The simplest `agentpar.ports.Results`: a dict with an end to its trust."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._kept: OrderedDict[str, tuple[float, Ok]] = OrderedDict()  # until when, what

    async def get(self, tool: str, version: str, args: Mapping[str, Any]) -> Ok | None:
        key = _key(tool, version, args)
        until, outcome = self._kept.get(key, (0.0, None))
        if outcome is None:
            return None
        if self._now() >= until:
            del self._kept[key]
            return None
        self._kept.move_to_end(key)
        return outcome

    async def put(
        self, tool: str, version: str, args: Mapping[str, Any], outcome: Ok, seconds: float
    ) -> None:
        key = _key(tool, version, args)
        self._kept[key] = (self._now() + seconds, outcome)
        self._kept.move_to_end(key)
        while len(self._kept) > MOST:
            self._kept.popitem(last=False)


def _key(tool: str, version: str, args: Mapping[str, Any]) -> str:
    return repr((tool, version, sorted(args.items())))
