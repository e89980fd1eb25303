"""Tensor parallelism: each of two worker processes has half of the heads of every row."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

pytest.importorskip("vllm")

import torch
from served import Served, serving, start
from tiny import ids, tiny

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,  # two processes that import vLLM
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore"),
]


@pytest.mark.skipif(
    not importlib.metadata.entry_points(group="vllm.general_plugins", name="agentpar_hogwild"),
    reason="worker processes find the plugin by its entry point: install the package",
)
def test_two_ranks_write_what_one_does(tmp_path: Path) -> None:
    """Exactly; both keep the account of groups, and one of them leaves the transcript."""
    # In this order, so that what `serving` sets is set again before it is taken back.
    with serving(tmp_path / "records"), pytest.MonkeyPatch.context() as patch:
        patch.delenv("VLLM_PLUGINS")
        engine = Served(
            tiny(dtype=torch.float32),
            tmp_path,
            tensor_parallel_size=2,
            distributed_executor_backend="mp",
        )
        try:
            rows = start(engine, "ranks", 12)
            beside = engine.add(ids(20, seed=9), 8)
            engine.run()
            engine.require_replay("ranks", rows)
            assert len(engine.written[beside].tokens) == 8
            assert engine.free == engine.blocks
            assert [path.name for path in engine.records.iterdir()] == ["ranks.1.json"]
        finally:
            engine.engine.engine_core.shutdown()
