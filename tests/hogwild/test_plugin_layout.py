"""How a kernel lays out a block is found from where its numbers lie, or refused."""

from __future__ import annotations

import math
import random

import pytest

from agentpar.errors import CannotShare
from agentpar.runtime.hogwild.plugin.layout import Axis, beginning, layout_of, place


def pairs_first(t: int, c: int, tokens: int, numbers: int) -> int:
    """Tiles of 16 tokens, in which two numbers of a token lie side by side."""
    tile, inside = divmod(t, 16)
    return tile * 16 * numbers + c // 2 * 32 + inside * 2 + c % 2


LAYOUTS = {
    "rows": lambda t, c, tokens, numbers: t * numbers + c,
    "columns": lambda t, c, tokens, numbers: c * tokens + t,
    "tiles of pairs": pairs_first,
    "tokens in pairs": lambda t, c, tokens, numbers: t // 2 * 2 * numbers + c * 2 + t % 2,
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize(("tokens", "numbers"), [(32, 32), (32, 80), (128, 64), (64, 96)])
def test_strides_are_found(name: str, tokens: int, numbers: int) -> None:
    """Every number is found where the layout put it."""
    layout = LAYOUTS[name]
    places = [layout(t, c, tokens, numbers) for t in range(tokens) for c in range(numbers)]
    found = layout_of(places, tokens, numbers)
    for t in range(tokens):
        for c in range(numbers):
            assert place(found.tokens, t) + place(found.numbers, c) == layout(t, c, tokens, numbers)


@pytest.mark.parametrize("count", [1, 2, 8, 32, 64])
@pytest.mark.parametrize("axis", [((64, 3),), ((4, 96), (16, 2)), ((32, 96), (2, 1))])
def test_the_beginning_of_an_axis_lies_where_it_did(axis: Axis, count: int) -> None:
    """Its first indices alone, in the same places; of one index nothing is left."""
    found = beginning(axis, count)
    assert [place(found, i) for i in range(count)] == [place(axis, i) for i in range(count)]
    assert math.prod(size for size, _ in found) == count


def test_a_beginning_that_cuts_a_tile_unevenly_is_refused() -> None:
    """Six indices of tiles of four: no axis has a half of it."""
    with pytest.raises(CannotShare, match="6 tokens are no whole part"):
        beginning(((4, 8), (4, 1)), 6)


def test_numbers_that_are_lost_are_refused() -> None:
    """A kernel that stores something else (8 bits, say) writes some numbers twice."""
    with pytest.raises(CannotShare, match="one number after the other"):
        layout_of([0, 1, 2, 2], 2, 2)


def test_an_order_without_strides_is_refused() -> None:
    """Shuffled, each number is there, but no stride reads them."""
    places = list(range(32 * 32))
    random.Random(0).shuffle(places)
    with pytest.raises(CannotShare, match="strides do not describe"):
        layout_of(places, 32, 32)
