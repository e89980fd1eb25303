"""Whether a group may begin: the blocks it may come to need, beside those promised to others.

A running group is never made to wait for memory, since what its rows wrote under each other's
eyes cannot be computed again by a row alone. So each group is promised its worst case before it
begins. A group that has the cache to itself begins even if the worst case is too much: a row that
then finds no block left ends there, and the others go on. Pure: integers only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["begin", "wait", "refuse"]


@dataclass(frozen=True, slots=True)
class Row:
    """Token counts of one row: ``prompt``, the most it will ever hold (``limit``), and the
    ``prefix`` that begins its prompt."""

    prompt: int
    limit: int
    prefix: int


@dataclass(frozen=True, slots=True)
class Pool:
    """A cache of ``total`` blocks of ``size`` tokens.

    ``shares``: whether rows of one prefix hold its full blocks in common (vLLM's prefix caching).
    """

    total: int
    size: int
    shares: bool

    def common(self, row: Row) -> int:
        """Blocks at the beginning of ``row`` that all rows of its group hold in common.

        The last token of a prompt is always computed, so its block never counts.
        """
        return min(row.prefix, row.prompt - 1) // self.size if self.shares else 0

    def prompts(self, rows: Iterable[Row]) -> int:
        """Blocks for the prompts of ``rows``, all of one group."""
        return self._blocks((self.common(row), row.prompt) for row in rows)

    def worst(self, rows: Iterable[Row]) -> int:
        """The most blocks that ``rows``, all of one group, can come to hold."""
        return self._blocks((self.common(row), row.limit) for row in rows)

    def verdict(self, rows: Iterable[Row], *, joining: Iterable[Row], promised: int) -> Verdict:
        """Whether ``joining`` may begin beside ``rows``, the rows that their group has already.

        ``promised``: blocks promised to other groups. ``wait``: once other groups have ended, or
        this one has, it may.
        """
        present, new = list(rows), list(joining)
        if self.prompts(new) > self.total:
            return "refuse"
        if self.worst([*present, *new]) + promised <= self.total:
            return "begin"
        if promised:
            return "wait"
        # Alone: what is there may grow to its worst case only if a prompt still finds its place.
        fits = self.worst(present) + self.prompts(new) if present else self.prompts(new)
        return "begin" if fits <= self.total else "wait"

    def _blocks(self, rows: Iterable[tuple[int, int]]) -> int:
        found = [(common, -(-tokens // self.size)) for common, tokens in rows]
        return max((c for c, _ in found), default=0) + sum(n - c for c, n in found)
