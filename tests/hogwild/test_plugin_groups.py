"""A worker's account of its groups: what a step writes, ends and closes, and the transcript."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentpar.runtime.hogwild.plugin.groups import Chunk, Groups, Queries
from agentpar.runtime.hogwild.plugin.notice import Joined, Notice
from agentpar.runtime.hogwild.plugin.params import Member
from agentpar.runtime.hogwild.transcript import Step, Transcript

PREFIX = (1, 2, 3, 4)


def joined(worker: str, *, head: int = 2, limit: int = 99, number: int = 1) -> Joined:
    member = Member("g", worker, len(PREFIX), steps=frozenset({13}), layout="interleaved")
    return Joined(worker.lower(), number, member, PREFIX, len(PREFIX) + head, limit, frozenset({0}))


def chunk(request: str, start: int, *tokens: int, offset: int = 0) -> Chunk:
    return Chunk(request, offset, start, tokens, blocks=[7])


def test_a_chunk_within_the_prefix_writes_nothing() -> None:
    """Its queries see the prefix up to themselves, which vLLM's own kernel answers."""
    groups = Groups()
    groups.hear(Notice(joined=(joined("Alice"),)), ())
    ((group, queries),) = groups.begin([chunk("alice", 0, 1, 2, 3)])
    assert queries == ()
    assert group.board.rows == ()
    ((group, queries),) = groups.begin([chunk("alice", 3, 4, 8, 9, offset=5)])
    assert queries == (Queries("Alice", offset=6, start=4, stop=6),)
    assert group.board.length("Alice") == 6


def test_all_rows_write_before_any_looks() -> None:
    """In the step in which they begin, both are on the board."""
    groups = Groups()
    groups.hear(Notice(joined=(joined("Alice"), joined("Bob"))), ())
    ((group, _),) = groups.begin(
        [chunk("alice", 4, 8, 9), chunk("bob", 4, 6, 7, offset=2), chunk("stranger", 0, 5)]
    )
    assert [group.board.length(row) for row in ("Alice", "Bob")] == [6, 6]


def test_a_separator_ends_a_step_only_where_it_was_generated() -> None:
    """13 ends a step; in the head (its last token even) it does not."""
    groups = Groups()
    groups.hear(Notice(joined=(joined("Alice"), joined("Bob"))), ())
    ((group, _),) = groups.begin([chunk("alice", 4, 8, 13), chunk("bob", 4, 6, 7)])
    groups.end()
    assert group.board.view("Bob")[-1].at == 4
    groups.begin([chunk("alice", 6, 13), chunk("bob", 6, 5)])
    groups.end()
    assert [(s.row, s.start, s.stop) for s in group.board.view("Bob")[1:]] == [
        ("Alice", 4, 7),
        ("Bob", 4, 7),
    ]


def test_steps_end_before_rows_are_closed(tmp_path: Path) -> None:
    """In the common history a row that is closed comes behind the steps that ended with it."""
    groups = Groups(tmp_path)
    groups.hear(Notice(joined=(joined("Alice", limit=7), joined("Bob"))), ())
    groups.begin([chunk("alice", 4, 8, 9), chunk("bob", 4, 6, 7)])
    groups.end()
    ((group, _),) = groups.begin([chunk("alice", 6, 5), chunk("bob", 6, 13)])
    groups.end()
    assert [span.row for span in group.board.view("Bob")[1:-1]] == ["Bob", "Alice"]
    told = list(group.transcript().boards())
    assert told[-1][1].view("Bob") == group.board.view("Bob")


def test_the_token_that_ended_a_row_is_never_written() -> None:
    """Where vLLM runs ahead it computes that token, too: nobody sees it."""
    groups = Groups()
    groups.hear(Notice(joined=(joined("Alice"),)), ())
    groups.begin([chunk("alice", 4, 8, 9)])
    groups.end()
    ((group, queries),) = groups.begin([chunk("alice", 6, 0)])
    groups.end()
    assert queries == ()
    assert group.transcript().steps == (Step({"Alice": 2}, joined=("Alice",), closed=("Alice",)),)


def test_a_row_that_has_all_its_tokens_is_closed_at_once() -> None:
    """With a limit of 6, the step that computes the sixth is its last."""
    groups = Groups()
    groups.hear(Notice(joined=(joined("Alice", limit=6),)), ())
    ((group, _),) = groups.begin([chunk("alice", 4, 8, 9)])
    groups.end()
    assert group.transcript().steps[-1].closed == ("Alice",)
    groups.hear(None, ["alice"])
    assert group.transcript().steps[-1].closed == ("Alice",)


def test_the_transcript_is_left_when_the_group_ends(tmp_path: Path) -> None:
    """With names that are no file names, and not before the scheduler says so."""
    folder = tmp_path / "deep" / "records"
    groups = Groups(folder)
    member = Member("a/b c", "Alice", len(PREFIX))
    row = Joined("alice", 4, member, PREFIX, 6, 99, frozenset())
    groups.hear(Notice(joined=(row,)), ())
    groups.begin([chunk("alice", 2, 3, 4, 8, 9)])
    groups.end()
    groups.begin([chunk("alice", 6, 5)])
    groups.end()
    groups.hear(None, ["alice"])
    assert groups
    assert not folder.exists()
    groups.hear(Notice(ended=(4,)), ())
    assert not groups
    (path,) = folder.iterdir()
    assert path.name == "a%2Fb%20c.4.json"
    assert Transcript.from_json(path.read_text()) == Transcript(
        PREFIX,
        {"Alice": (8, 9, 5)},
        (Step({"Alice": 2}, joined=("Alice",)), Step({"Alice": 1}, closed=("Alice",))),
    )


@pytest.mark.parametrize("ended_first", [True, False])
def test_a_later_group_of_the_same_name_is_another(ended_first: bool) -> None:
    """The number tells them apart, even in one notice."""
    groups = Groups()
    groups.hear(Notice(joined=(joined("Alice"),)), ())
    groups.begin([chunk("alice", 4, 8, 9)])
    groups.end()
    if ended_first:
        groups.hear(Notice(ended=(1,)), ["alice"])
        groups.hear(Notice(joined=(joined("Bob", number=2),)), ())
    else:
        groups.hear(Notice(ended=(1,), joined=(joined("Bob", number=2),)), ["alice"])
    ((group, _),) = groups.begin([chunk("bob", 4, 8, 9)])
    assert group.board.rows == ("Bob",)
