"""Haystack's Pipeline, run async: a component per task, a connection per need.

Values travel along the connections. As many components may run at once as `ours` has calls.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Any

from shapes import Node, Shape

from peers import Executor, Run

CONCURRENCY = 64


def prepare(shape: Shape) -> Run:
    os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "False")
    from haystack import Pipeline, component

    logging.getLogger("haystack").setLevel(logging.ERROR)
    depths: dict[int, int] = {}

    @component
    class Work:
        def __init__(self, node: Node) -> None:
            self._node = node
            for need in node.needs:
                component.set_input_type(self, f"after_{need}", int)

        @component.output_types(depth=int)
        def run(self, **after: int) -> dict[str, int]:
            raise NotImplementedError("this pipeline is run async")

        @component.output_types(depth=int)
        async def run_async(self, **after: int) -> dict[str, int]:
            if self._node.seconds:
                await asyncio.sleep(self._node.seconds)
            depth = depths[self._node.id] = 1 + max(after.values(), default=0)
            return {"depth": depth}

    pipeline: Any = Pipeline()
    for node in shape.nodes:
        pipeline.add_component(str(node.id), Work(node))
    for node in shape.nodes:
        for need in node.needs:
            pipeline.connect(f"{need}.depth", f"{node.id}.after_{need}")

    async def run() -> int:
        depths.clear()
        await pipeline.run_async({}, concurrency_limit=CONCURRENCY)
        return sum(depths.values())

    return run


EXECUTOR = Executor("Haystack Pipeline", prepare)
