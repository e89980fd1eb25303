"""How long tools take: quantiles learned from the calls of this run and of earlier ones.

Pure. It knows names and seconds, not calls or clocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

WINDOW = 256
"""Samples kept of each tool: the newest."""
LEAST = 20
"""Samples below which a tool has no quantile."""
UNKNOWN = 1.0
"""Seconds that a tool is expected to take of which nothing is known."""


class Latency:
    """The newest `WINDOW` samples of each tool; ``known`` are those of earlier runs."""

    def __init__(self, known: Mapping[str, Sequence[float]] | None = None) -> None:
        self._samples = {name: list(found)[-WINDOW:] for name, found in (known or {}).items()}
        self._counts = {name: len(found) for name, found in self._samples.items()}
        self._sorted: dict[str, tuple[int, list[float]]] = {}

    def add(self, name: str, seconds: float) -> None:
        """A call of ``name`` has taken ``seconds``."""
        samples = self._samples.get(name)
        if samples is None:
            samples = self._samples[name] = []
        count = self._counts.get(name, 0)
        if len(samples) < WINDOW:
            samples.append(seconds)
        else:
            samples[count % WINDOW] = seconds
        self._counts[name] = count + 1

    def quantile(self, name: str, share: float) -> float | None:
        """Seconds within which ``share`` of the calls ended; None where too few are known."""
        samples = self._samples.get(name, ())
        if len(samples) < LEAST:
            return None
        ordered = self._ordered(name)  # of a little earlier: it may have fewer samples
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    def expected(self, name: str) -> float:
        """Seconds that a call of ``name`` takes: the median of what is known."""
        if not self._samples.get(name):
            return UNKNOWN
        ordered = self._ordered(name)
        return ordered[len(ordered) // 2]

    def samples(self) -> dict[str, list[float]]:
        """What is known now, to begin a later run with; oldest first."""
        found = {}
        for name, samples in self._samples.items():
            at = self._counts[name] % WINDOW if len(samples) == WINDOW else 0
            found[name] = samples[at:] + samples[:at]
        return found

    def _ordered(self, name: str) -> list[float]:
        """The samples in order; sorted again once there are a twentieth more."""
        count = self._counts[name]
        sorted_at, ordered = self._sorted.get(name, (-1, []))
        if sorted_at < 0 or count - sorted_at > max(1, min(count, WINDOW) // 20):
            ordered = sorted(self._samples[name])
            self._sorted[name] = (count, ordered)
        return ordered
