"""Views: every token once, in places that follow each other, and the rotation that gets there."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentpar.errors import UsageError
from agentpar.runtime.hogwild.spans import Board, Span, rotation
from agentpar.runtime.hogwild.transcript import Step, Transcript
from agentpar.workers import Layout

LAYOUTS: tuple[Layout, ...] = ("contiguous", "interleaved", "combined")
ROWS = ("Alice", "Bob", "Carol")

moves = st.lists(
    st.tuples(
        st.sampled_from(ROWS),
        st.sampled_from(("write", "end_step", "close")),
        st.integers(1, 5),
    ),
    max_size=40,
)


def played(layout: Layout, played_moves: list[tuple[str, str, int]]) -> Board:
    board, closed = Board(7, layout), set[str]()
    for row in ROWS:
        board.join(row)
    for row, move, count in played_moves:
        if row in closed:
            continue
        if move == "write":
            board.write(row, count)
        elif move == "end_step":
            board.end_step(row)
        else:
            board.close(row)
            closed.add(row)
    return board


@pytest.mark.parametrize("layout", LAYOUTS)
@given(moves=moves)
def test_a_view_has_each_token_once_at_positions_without_gaps(
    layout: Layout, moves: list[tuple[str, str, int]]
) -> None:
    """No token twice, none left out (but others' unfinished steps when interleaved)."""
    board = played(layout, moves)
    for me in ROWS:
        view = board.view(me)
        at = 0
        for span in view:
            assert span.at == at
            at += span.stop - span.start
        assert view[-1].row == me
        assert view[-1].stop == board.length(me)
        seen = [(s.row, i) for s in view[1:] for i in range(s.start, s.stop)]
        assert len(seen) == len(set(seen))
        everything = {(row, i) for row in ROWS for i in range(7, board.length(row))}
        if layout == "interleaved":
            assert set(seen) <= everything
            assert {token for token in everything if token[0] == me} <= set(seen)
        else:
            assert set(seen) == everything


@pytest.mark.parametrize("layout", LAYOUTS)
@given(moves=moves)
def test_a_rotation_is_the_distance_in_the_view_less_the_distance_in_the_rows(
    layout: Layout, moves: list[tuple[str, str, int]]
) -> None:
    """Query index p rotated on, minus key index i, is their distance in the view."""
    board = played(layout, moves)
    for me in ROWS:
        *others, own = board.view(me)
        p = own.stop - 1  # a query at the end of the own row
        u = own.at + (p - own.start)
        for span in (*others, own):
            for i in (span.start, span.stop - 1):
                v = span.at + (i - span.start)
                assert (p + rotation(span, own)) - i == u - v


def test_the_three_layouts_of_one_history() -> None:
    """Bob ended a step, Alice did not: where their tokens stand for Alice."""
    seen: dict[Layout, tuple[Span, ...]] = {}
    for layout in LAYOUTS:
        board = Board(10, layout)
        board.join("Alice")
        board.join("Bob")
        board.write("Alice", 4)
        board.write("Bob", 3)
        board.end_step("Bob")
        board.write("Bob", 2)
        seen[layout] = board.view("Alice")
    prefix = Span("Alice", 0, 10, 0)
    assert seen["contiguous"] == (prefix, Span("Bob", 10, 15, 10), Span("Alice", 10, 14, 15))
    assert seen["interleaved"] == (prefix, Span("Bob", 10, 13, 10), Span("Alice", 10, 14, 13))
    assert seen["combined"] == (
        prefix,
        Span("Bob", 10, 13, 10),
        Span("Bob", 13, 15, 13),
        Span("Alice", 10, 14, 15),
    )


def test_steps_of_one_row_that_follow_each_other_are_one_span() -> None:
    """A view grows with the turns taken, not with the steps ended."""
    board = Board(2, "interleaved")
    board.join("Alice")
    board.join("Bob")
    for _ in range(5):
        board.write("Bob", 3)
        board.end_step("Bob")
    assert board.view("Alice") == (
        Span("Alice", 0, 2, 0),
        Span("Bob", 2, 17, 2),
        Span("Alice", 2, 2, 17),
    )


def test_one_worker_sees_its_row_as_it_is() -> None:
    """Alone, nothing is rotated: the group is plain generation."""
    for layout in LAYOUTS:
        board = Board(5, layout)
        board.join("Alice")
        for _ in range(3):
            board.write("Alice", 4)
            board.end_step("Alice")
        assert {span.shift for span in board.view("Alice")} == {0}


def test_a_row_joins_once() -> None:
    """Two workers of one name would overwrite each other's place."""
    board = Board(1)
    board.join("Alice")
    with pytest.raises(ValueError, match="'Alice' is in the group already"):
        board.join("Alice")


def test_a_transcript_survives_its_json() -> None:
    """What a group's record says is read back as it was."""
    transcript = Transcript(
        prefix=(1, 2),
        tokens={"Alice": (3, 4), "Bob": (5,)},
        steps=(
            Step({"Alice": 3, "Bob": 1}, joined=("Alice", "Bob"), closed=("Bob",)),
            Step({"Alice": 1}, ended=("Alice",)),
        ),
        layout="combined",
    )
    assert Transcript.from_json(transcript.to_json()) == transcript


def test_a_transcript_shows_the_board_as_each_step_saw_it() -> None:
    """Written in the step: seen. Ended by the step: from the next one on."""
    transcript = Transcript(
        prefix=(1, 2),
        tokens={"Alice": (3, 4), "Bob": (5,)},
        steps=(
            Step({"Alice": 1, "Bob": 1}, joined=("Alice", "Bob"), closed=("Bob",)),
            Step({"Alice": 1}),
        ),
        layout="interleaved",
    )
    views = [board.view("Alice") for _, board in transcript.boards()]
    assert [span.row for span in views[0]] == ["Alice", "Alice"]
    assert [span.row for span in views[1]] == ["Alice", "Bob", "Alice"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 7}', '{"format": 1}'])
def test_what_is_no_transcript_is_refused(text: Literal[""]) -> None:
    """A file of something else, or of another version."""
    with pytest.raises(UsageError, match="transcript"):
        Transcript.from_json(text)
