"""Whole engines with the plugin's CUDA side, on a CPU (see `rehearsal`), held against what they
should write.

A program of its own, as Triton's interpreter has to be chosen before Triton is imported. Raises
where a text differs; prints, as JSON, the strides of each engine's cache and how many rows each
call of the group kernel had, by engine and case.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch
from driving import plain
from rehearsal import rehearsed
from served import PREFIX, Served, start
from tiny import VOCABULARY, ids, tiny

STEPS = tuple(token for token in range(VOCABULARY) if token % 5 < 3)

ENGINES: dict[str, tuple[str, dict[str, int]]] = {
    # name: vLLM's order of a cache's axes (layers, blocks, heads, tokens, numbers), the model
    "tokens outside": ("LBNHC", {"heads": 4, "kv_heads": 2, "head_dim": 32}),
    "layers inside": ("BLHNC", {"heads": 4, "kv_heads": 2, "head_dim": 32}),
    "no head for the kernel": ("LBHNC", {"heads": 4, "kv_heads": 2, "head_dim": 48}),
}


def contiguous(engine: Served) -> None:
    """Three rows beside an ordinary request, which writes what transformers writes."""
    rows = start(engine, "contiguous", 5)
    stranger = engine.add(ids(50, seed=9), 7)
    engine.run()
    engine.require_replay("contiguous", rows)
    written = engine.written[stranger]
    assert written.tokens == plain(engine.model, written.prompt, 7)


def combined(engine: Served) -> None:
    """Steps end, a text is injected (its tokens in one step with others' queries), one leaves."""
    rows = start(engine, "combined", 7, layout="combined", steps=STEPS)
    engine.steps(2)
    rows["tool"] = engine.row("combined", "tool", PREFIX, ids(21, seed=8), 1, layout="combined")
    engine.steps(1)
    engine.abort(rows["Bob"])
    engine.run()
    transcript = engine.require_replay("combined", rows)
    (read,) = (step for step in transcript.steps if "tool" in step.wrote)
    assert read.wrote["tool"] == 21
    assert len(read.wrote) > 1
    assert any(step.ended for step in transcript.steps)


def interleaved(engine: Served) -> None:
    """Two groups at once, on a prefix that ends inside a block."""
    rows = start(engine, "interleaved", 5, layout="interleaved", steps=STEPS)
    other = {
        name: engine.row("other", name, ids(17, seed=20), ids(4, seed=k), 3, size=2)
        for k, name in enumerate(("A", "B"))
    }
    engine.run()
    engine.require_replay("interleaved", rows)
    engine.require_replay("other", other)


def alone(engine: Served) -> None:
    """A group of one is plain generation."""
    row = engine.row("alone", "Alice", ids(20, seed=5), ids(4, seed=6), 4)
    engine.run()
    assert engine.written[row].tokens == plain(engine.model, engine.written[row].prompt, 4)


CASES = (contiguous, combined, interleaved, alone), (contiguous,), (combined,)
"""Of each engine."""


def main() -> None:
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for number, (name, (order, shape)) in enumerate(ENGINES.items()):
        os.environ["VLLM_KV_CACHE_LAYOUT"] = order
        model = tiny(dtype=torch.float32, layers=2, seed=number, **shape)
        with (
            tempfile.TemporaryDirectory() as folder,
            rehearsed(model, Path(folder)) as (engine, kernel),
        ):
            worker = engine.core.model_executor.driver_worker.worker
            calls: dict[str, list[int]] = {}
            for case in CASES[number]:
                kernel.clear()
                case(engine)
                calls[case.__name__] = [*kernel]
                engine.require_clean()
            found[name] = {"strides": worker._caches[0].stride(), "kernel": calls}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
