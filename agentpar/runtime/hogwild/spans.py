"""What each worker of a group sees: which tokens of which rows, standing at which positions.

A *row* is one sequence in an engine's cache: the group's prefix, then what one worker was told
and wrote, or what a tool brought. Nothing is copied to share it. A worker's *view* is a list of
spans of rows, and a layout is nothing but the order of that list.

Pure integers: must never know a tensor, a model or an engine. Layouts after Hogwild! Inference
(arXiv 2504.06261, section 3.2).
"""

from __future__ import annotations

from dataclasses import dataclass

from agentpar.workers import Layout


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens ``start <= i < stop`` of ``row``, read as if the first stood at position ``at``."""

    row: str
    start: int
    stop: int
    at: int

    @property
    def shift(self) -> int:
        """Positions from where the tokens are in their row to where they are read."""
        return self.at - self.start


def rotation(span: Span, own: Span) -> int:
    """How many positions a query of the span ``own`` is rotated further to look at ``span``.

    An engine has rotated query and key by their indices in their own rows, p and i. Between
    their places in the view lie ``(p + own.shift) - (i + span.shift)`` positions, which is what
    the two see of each other once the query is rotated by this much more: the same for all
    queries of ``own`` and all keys of ``span``, and 0 for ``own`` itself.
    """
    return own.shift - span.shift


class Board:
    """What a group has written so far, and so what each of its rows sees.

    One engine step is: `write` for every row that runs in it, then the `view` of each (what is
    written in a step is seen in the same step), then `end_step` and `close` for those whose
    token ended a step or the row.
    """

    def __init__(self, prefix: int, layout: Layout = "contiguous") -> None:
        """``prefix``: number of tokens that all rows begin with."""
        self.prefix = prefix
        self.layout: Layout = layout
        self._length: dict[str, int] = {}  # tokens of each row, in the order they joined
        self._tail: dict[str, int] = {}  # where the unfinished step of each row begins
        self._history: list[tuple[str, int, int]] = []  # finished steps: row, start, stop

    def join(self, row: str) -> None:
        """Add a row; it holds the prefix, and comes after those that are there."""
        if row in self._length:
            raise ValueError(f"row {row!r} is in the group already")
        self._length[row] = self._tail[row] = self.prefix

    def write(self, row: str, count: int) -> None:
        """Append ``count`` tokens, which all rows see from now on."""
        self._length[row] += count

    def end_step(self, row: str) -> None:
        """What ``row`` wrote since its last step is a finished step."""
        start, stop = self._tail[row], self._length[row]
        if self.layout == "contiguous" or start == stop:
            return
        self._tail[row] = stop
        if self._history and self._history[-1][0] == row and self._history[-1][2] == start:
            self._history[-1] = (row, self._history[-1][1], stop)
        else:
            self._history.append((row, start, stop))

    def close(self, row: str) -> None:
        """``row`` writes no more: what it wrote stays in sight, as finished."""
        self.end_step(row)

    def length(self, row: str) -> int:
        """Tokens of ``row``, the prefix included."""
        return self._length[row]

    @property
    def rows(self) -> tuple[str, ...]:
        """All rows, in the order they joined."""
        return tuple(self._length)

    def view(self, row: str) -> tuple[Span, ...]:
        """What a query of ``row`` behind the prefix sees; the last span is its own unfinished step.

        Of that last span a query sees the tokens up to itself, of the others all. Queries within
        the prefix see the prefix up to themselves and nothing else.
        """
        pieces = [(row, 0, self.prefix), *self._history]
        if self.layout != "interleaved":
            pieces += [(r, self._tail[r], n) for r, n in self._length.items() if r != row]
        spans, at = [], 0
        for name, start, stop in pieces:
            if start < stop:
                spans.append(Span(name, start, stop, at))
                at += stop - start
        return (*spans, Span(row, self._tail[row], self._length[row], at))
