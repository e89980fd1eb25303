"""What a decode step of a group reads: every token of the cache once, for all who see it.

A kernel that walks these items loads a tile of keys and values once and uses it for every worker
of the group, where one that goes worker by worker would load it once for each. Pure integers: must
never know a tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from agentpar.runtime.hogwild.spans import Span, rotation


@dataclass(frozen=True, slots=True)
class Item:
    """Tokens ``start <= i < stop`` of ``row``, and the rotation of each worker that sees them.

    ``rotations`` is in the order of the workers; None for one that does not see these tokens.
    """

    row: str
    start: int
    stop: int
    rotations: tuple[int | None, ...]


def items(views: Mapping[str, Sequence[Span]], prefix: int, chunk: int) -> list[Item]:
    """What the workers whose `Board.view`\\ s are ``views`` read, in pieces of ``chunk`` tokens.

    Each worker has one query, behind all tokens of its view. Every row begins with the same
    ``prefix`` tokens, so they are read from the first worker's row for all.
    """
    first = next(iter(views))
    seen: dict[str, list[tuple[int, int, int, int]]] = {}  # by row: start, stop, worker, rotation
    for number, view in enumerate(views.values()):
        for span in view:
            row = first if span.stop <= prefix else span.row
            turn = rotation(span, view[-1])
            if span.start < span.stop:
                seen.setdefault(row, []).append((span.start, span.stop, number, turn))
    return [
        Item(row, at, min(at + chunk, stop), rotations)
        for row, spans in seen.items()
        for start, stop, rotations in _pieces(spans, len(views))
        for at in range(start, stop, chunk)
    ]


def _pieces(
    spans: Sequence[tuple[int, int, int, int]], workers: int
) -> Iterator[tuple[int, int, tuple[int | None, ...]]]:
    """One row cut where any worker's spans begin or end; what nobody sees is left out."""
    cuts = sorted({edge for start, stop, _, _ in spans for edge in (start, stop)})
    for start, stop in pairwise(cuts):
        rotations: list[int | None] = [None] * workers
        for begins, ends, worker, turn in spans:
            if begins <= start and stop <= ends:
                rotations[worker] = turn
        if any(turn is not None for turn in rotations):
            yield start, stop, tuple(rotations)
