"""How long tools take: quantiles learned from the calls of this run and of earlier ones.

Pure. It knows names and seconds, not calls or clocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

WINDOW = 256
"""Samples kept of each tool: the newest."""
LEAST = 20
"""Samples below which a tool has no quantile."""


class Samples:
    """Seconds that one tool took, the newest `WINDOW`, in any order."""

    __slots__ = ("_count", "_ordered", "_ordered_at", "_seconds")

    def __init__(self, known: Sequence[float] = ()) -> None:
        self._seconds = list(known)[-WINDOW:]
        self._count = len(self._seconds)
        self._ordered: list[float] = []
        self._ordered_at = -1

    def add(self, seconds: float) -> None:
        if self._count < WINDOW:
            self._seconds.append(seconds)
        else:
            self._seconds[self._count % WINDOW] = seconds
        self._count += 1

    def quantile(self, share: float) -> float | None:
        """Seconds within which ``share`` of the calls ended; None where too few are known."""
        if self._count < LEAST:
            return None
        return self._in_order()[min(len(self._ordered) - 1, int(share * len(self._ordered)))]

    def median(self) -> float | None:
        """Seconds that half of the calls took at most; None where none is known."""
        return self._in_order()[len(self._ordered) // 2] if self._count else None

    def newest(self) -> list[float]:
        """The samples, oldest first."""
        at = self._count % WINDOW if self._count > WINDOW else 0
        return self._seconds[at:] + self._seconds[:at]

    def _in_order(self) -> list[float]:
        """The samples sorted; sorted again once there are a twentieth more."""
        if self._ordered_at < 0 or self._count - self._ordered_at > len(self._ordered) // 20:
            self._ordered = sorted(self._seconds)
            self._ordered_at = self._count
        return self._ordered


class Latency:
    """The `Samples` of each tool; ``known`` are those of earlier runs."""

    def __init__(self, known: Mapping[str, Sequence[float]] | None = None) -> None:
        self._tools = {name: Samples(found) for name, found in (known or {}).items()}

    def of(self, tool: str) -> Samples:
        """What is known of ``tool``, to be read and added to."""
        found = self._tools.get(tool)
        if found is None:
            found = self._tools[tool] = Samples()
        return found

    def expected(self) -> dict[str, float]:
        """Seconds that a call of each known tool takes: the median."""
        medians = ((name, samples.median()) for name, samples in self._tools.items())
        return {name: median for name, median in medians if median is not None}

    def samples(self) -> dict[str, list[float]]:
        """What is known now, to begin a later run with; oldest first."""
        return {name: samples.newest() for name, samples in self._tools.items()}
