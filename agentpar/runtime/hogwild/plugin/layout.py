"""How vLLM's kernels lay out a block of keys or values.

On a CPU that is measured, not assumed: kernels for different instruction sets order the numbers of
a block in different ways (columns first, or tiles of pairs). Numbers that tell where they came from
are written through vLLM's own kernel; what comes out says which strides read the block as
``[head_dim, tokens]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agentpar.errors import CannotShare

Axis = tuple[tuple[int, int], ...]
"""An axis as (size, stride) pairs, the slowest first: index ``i`` written in these sizes has its
number at the sum of digit times stride."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where number ``c`` of token ``t`` lies in a block: at ``place(tokens, t) +
    place(numbers, c)``."""

    tokens: Axis
    numbers: Axis


def layout_of(places: Sequence[int], tokens: int, numbers: int) -> Layout:
    """The layout in which number ``c`` of token ``t`` lies at ``places[t * numbers + c]``.

    Raises `CannotShare` where no strides say that: then a kernel stores something else.
    """
    if sorted(places) != list(range(tokens * numbers)):
        raise CannotShare(
            "vLLM's CPU kernel does not store the keys and values of a block one number after the "
            f"other, in some order ({tokens} tokens of {numbers} numbers)"
        )
    along = axis([places[t * numbers] for t in range(tokens)])
    across = axis([places[c] - places[0] for c in range(numbers)])
    layout = Layout(along, across)
    for t in range(tokens):
        for c in range(numbers):
            if places[t * numbers + c] != place(along, t) + place(across, c):
                raise CannotShare(
                    "vLLM's CPU kernel orders the numbers of a block in a way that strides do not "
                    f"describe (number {c} of token {t} of {tokens} x {numbers})"
                )
    return layout


def axis(places: Sequence[int]) -> Axis:
    """The (size, stride) pairs of ``places``, as far as there are any; `layout_of` checks them."""
    pairs: list[tuple[int, int]] = []
    block = 1  # how many neighbours the pairs so far describe
    while block < len(places):
        stride = places[block] - places[0]
        size = 1
        while size * block < len(places) and places[size * block] - places[0] == size * stride:
            size += 1
        while len(places) % (size * block):
            size -= 1
        if size == 1:
            break
        pairs.insert(0, (size, stride))
        block *= size
    return tuple(pairs)


def place(pairs: Axis, index: int) -> int:
    """The distance from the first number of an axis to number ``index``."""
    found = 0
    for size, stride in reversed(pairs):
        index, digit = divmod(index, size)
        found += digit * stride
    return found


def beginning(pairs: Axis, count: int) -> Axis:
    """The axis of the first ``count`` indices; ``count`` divides the axis, digit by digit."""
    kept: list[tuple[int, int]] = []
    for size, stride in reversed(pairs):
        part = min(size, count)
        if size % part or count % part:
            raise CannotShare(f"{count} tokens are no whole part of a block in the layout {pairs}")
        if part > 1:
            kept.insert(0, (part, stride))
        count //= part
    return tuple(kept)
