"""The group kernel reads each token once, and computes what plain attention computes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentpar.runtime.hogwild.spans import Board, rotation
from agentpar.runtime.hogwild.worklist import items
from agentpar.workers import Layout

LAYOUTS: tuple[Layout, ...] = ("contiguous", "interleaved", "combined")
ROWS = ("Alice", "Bob", "Carol")

moves = st.lists(
    st.tuples(st.sampled_from(ROWS), st.sampled_from(("write", "end")), st.integers(1, 40)),
    max_size=25,
)


@given(
    layout=st.sampled_from(LAYOUTS),
    moves=moves,
    prefix=st.integers(1, 50),
    chunk=st.integers(1, 40),
)
def test_the_items_of_a_step_are_what_each_worker_sees(
    layout: Layout, moves: list[tuple[str, str, int]], prefix: int, chunk: int
) -> None:
    """Each token that a worker sees, once and with its rotation; and no token in two items."""
    board = Board(prefix, layout)
    for row in ROWS:
        board.join(row)
        board.write(row, 1)
    for row, move, count in moves:
        if move == "write":
            board.write(row, count)
        else:
            board.end_step(row)
    views = {row: board.view(row) for row in ROWS}
    work = items(views, prefix, chunk)
    assert all(0 < item.stop - item.start <= chunk for item in work)
    read = [(item.row, at) for item in work for at in range(item.start, item.stop)]
    assert len(read) == len(set(read))
    for number, (me, view) in enumerate(views.items()):
        seen = {
            (item.row, at): item.rotations[number]
            for item in work
            for at in range(item.start, item.stop)
            if item.rotations[number] is not None
        }
        wanted = {
            (ROWS[0] if span.stop <= prefix else span.row, at): rotation(span, view[-1])
            for span in view
            for at in range(span.start, span.stop)
        }
        assert seen == wanted, me


@pytest.fixture(scope="module")
def interpreted() -> Any:
    """What `kernel_cases` found in Triton's interpreter."""
    program = Path(__file__).with_name("kernel_cases.py")
    ran = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, check=False, timeout=600
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.mark.slow
def test_the_kernel_computes_plain_attention_and_reads_each_token_once(interpreted: Any) -> None:
    """Layouts, 1 to 8 workers, GQA 1 to 8, heads of 32, 64 and 128, unaligned prefixes, in
    float32, float16 and bfloat16."""
    most = {"float32": 1e-6, "float16": 6e-4, "bfloat16": 5e-3}
    assert len(interpreted["cases"]) == 16
    for case, (error, read, each) in interpreted["cases"].items():
        assert error < most[case.split()[-1]], case
        workers = int(case.split()[1])
        assert read < each or workers == 1, case


@pytest.mark.slow
def test_work_with_room_to_spare_gives_the_same_bits_from_the_same_place(interpreted: Any) -> None:
    """Over four steps, whole groups, fewer items, none, two groups at once: no tensor moves, and
    what lies behind the count, set to lead astray, is not looked at."""
    kept = interpreted["kept"]
    assert kept["moved"] == []
    assert kept["equal"] == [True, True, True]
    assert kept["none"] is True
    assert max(kept["both"]) < 1e-6
    assert kept["fits"] == [True, False]


@pytest.mark.slow
def test_the_first_hour_with_a_gpu_is_rehearsed_without_one() -> None:
    """All of its code runs at toy size; it stops where the kernel is wrong, and says no time."""
    program = Path(__file__).parents[2] / "bench" / "hogwild_cuda.py"
    command = [sys.executable, str(program), "--rehearse"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert "no times" in ran.stdout
    assert [line for line in ran.stdout.splitlines() if line.startswith("## ")] == [
        "## Right",
        "## From a graph",
        "## Attention of a layer",
        "## Whole steps",
        "## Attention of a layer, by the tokens of an item",
    ]
    timed = ran.stdout.partition("## Attention of a layer")[2].splitlines()
    rows = [line.split("|")[2:-1] for line in timed if line.startswith("| 40 ")]
    assert len(rows) == 5
    for row in rows:
        assert {cell.strip() for cell in row[-2:]} == {"-"}
    saved = subprocess.run([*command, "--save"], capture_output=True, text=True, check=False)
    assert "a rehearsal has no results" in saved.stderr
