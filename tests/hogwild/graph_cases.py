"""Whole engines whose attention runs as if replayed from CUDA graphs (see `rehearsal`), held
against what they should write.

A program of its own, as Triton's interpreter has to be chosen before Triton is imported. Raises
where a text differs; prints, as JSON, for each case the modes of its steps, and how many sets of
tensors the captured kernels have seen.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"
os.environ["AGENTPAR_HOGWILD_GRAPHS"] = "decode"

import torch
from cuda_cases import combined, contiguous
from driving import plain
from rehearsal import CapturingWorker, rehearsed
from served import Served
from tiny import ids, tiny

from agentpar.runtime.hogwild.plugin.cuda import decode


def strangers(engine: Served) -> None:
    """After the groups, graphs answer nothing of theirs."""
    requests = [engine.add(ids(20 + n, seed=30 + n), 5) for n in range(3)]
    engine.run()
    for request in requests:
        written = engine.written[request]
        assert written.tokens == plain(engine.model, written.prompt, 5)


def crowded(engine: Served) -> None:
    """More workers than a graph has room for."""
    rows = {
        name: engine.row("crowd", name, ids(33, seed=40), ids(3, seed=41 + n), 3, size=3)
        for n, name in enumerate(("A", "B", "C"))
    }
    engine.run()
    engine.require_replay("crowd", rows)


CASES = {
    "contiguous": (contiguous, 8),
    "strangers": (strangers, 8),
    "combined": (combined, 8),
    "crowded": (crowded, 2),
}
"""Of each: what runs, and the workers of a group that a graph has room for."""


def main() -> None:
    torch.set_num_threads(1)
    model = tiny(dtype=torch.float32, layers=2, heads=4, kv_heads=2, head_dim=32)
    found: dict[str, Any] = {}
    for room in (8, 2):
        decode.CAPTURED_ITEMS, decode.CAPTURED_WORKERS = 16, room
        with (
            tempfile.TemporaryDirectory() as folder,
            rehearsed(model, Path(folder), CapturingWorker) as (engine, _),
        ):
            worker = engine.core.model_executor.driver_worker.worker
            for name, (case, workers) in CASES.items():
                if workers != room:
                    continue
                worker.modes.clear()
                case(engine)
                engine.require_clean()
                found[name] = [*worker.modes]
            if worker.addresses:
                found["sets of tensors"] = len(worker.addresses)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
