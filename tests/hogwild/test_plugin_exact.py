"""Rows of groups inside vLLM write what the reference engine writes, token for token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from driving import finish, writing
from served import Served, served
from tiny import VOCABULARY, ids, tiny

from agentpar.runtime.hogwild.spans import Layout

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore")]

SHAPES = {
    "gqa 1, head 32": {"heads": 4, "kv_heads": 4, "head_dim": 32},
    "gqa 2, head 64": {"heads": 4, "kv_heads": 2, "head_dim": 64},
    "gqa 4, head 128": {"heads": 8, "kv_heads": 2, "head_dim": 128},
    "gqa 8, head 32": {"heads": 8, "kv_heads": 1, "head_dim": 32},
}


@pytest.fixture(scope="module", params=SHAPES)
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    model = tiny(dtype=torch.float32, **SHAPES[request.param])
    with served(model, tmp_path_factory.mktemp("served")) as engine:
        yield engine


def reference(
    engine: Served,
    prefix: list[int],
    heads: dict[str, list[int]],
    counts: dict[str, int],
    layout: Layout = "contiguous",
    steps: tuple[int, ...] = (),
) -> dict[str, list[int]]:
    """What the reference engine writes."""
    with engine.reference().group(prefix, layout=layout, separators=steps) as group:
        for name, head in heads.items():
            group.join(name, head, writing(counts[name]))
        finish(group)
        return {name: member.output for name, member in group.members.items()}


def run(
    engine: Served,
    name: str,
    prefix: list[int],
    heads: dict[str, list[int]],
    counts: dict[str, int],
    **settings: Any,
) -> dict[str, str]:
    """The same in vLLM; the requests by worker."""
    rows = {
        worker: engine.row(name, worker, prefix, head, counts[worker], size=len(heads), **settings)
        for worker, head in heads.items()
    }
    engine.run()
    return rows


@pytest.mark.parametrize(
    ("workers", "prefix"), [(1, 70), (2, 31), (2, 64), (3, 70), (4, 1), (4, 33)]
)
def test_rows_write_what_the_reference_writes(engine: Served, workers: int, prefix: int) -> None:
    """1 to 4 workers, prefixes that end inside a block and at its edge."""
    shared = ids(prefix, seed=prefix)
    heads = {f"w{i}": ids(3 + 4 * i, seed=100 + i) for i in range(workers)}
    counts = dict.fromkeys(heads, 24)
    name = f"exact-{workers}-{prefix}"
    rows = run(engine, name, shared, heads, counts)
    expected = reference(engine, shared, heads, counts)
    assert {worker: engine.written[row].tokens for worker, row in rows.items()} == expected
    engine.require_replay(name, rows)
    engine.require_clean()


@pytest.mark.parametrize("layout", ["contiguous", "interleaved", "combined"])
def test_each_layout_is_the_references(engine: Served, layout: Layout) -> None:
    """Steps end at three tokens of five, and members at different times."""
    shared = ids(45, seed=1)
    heads = {name: ids(5, seed=k) for k, name in enumerate(("Alice", "Bob", "Carol"))}
    counts = {"Alice": 40, "Bob": 11, "Carol": 29}
    steps = tuple(token for token in range(VOCABULARY) if token % 5 < 3)
    rows = run(engine, layout, shared, heads, counts, layout=layout, steps=steps)
    expected = reference(engine, shared, heads, counts, layout, steps)
    assert {worker: engine.written[row].tokens for worker, row in rows.items()} == expected
    transcript = engine.require_replay(layout, rows)
    assert any(step.ended for step in transcript.steps)
    engine.require_clean()


def test_sharing_changes_what_is_written(engine: Served) -> None:
    """The same prompts alone give other texts, or the tests above would say nothing."""
    shared, heads = ids(40, seed=2), {"A": ids(4, seed=3), "B": ids(6, seed=4)}
    rows = run(engine, "differ", shared, heads, {"A": 16, "B": 16})
    alone = {worker: engine.add([*shared, *head], 16) for worker, head in heads.items()}
    engine.run()
    for worker, row in rows.items():
        assert engine.written[row].tokens != engine.written[alone[worker]].tokens
