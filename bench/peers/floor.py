"""The floor: the shortest honest loop. No events, checks, limits, errors or plan: what a
scheduler costs when it does nothing but schedule."""

from __future__ import annotations

import asyncio

from shapes import Node, Shape

from peers import Executor, Run


def prepare(shape: Shape) -> Run:
    async def run() -> int:
        unmet = {node.id: len(node.needs) for node in shape.nodes}
        dependants: dict[int, list[Node]] = {node.id: [] for node in shape.nodes}
        for node in shape.nodes:
            for need in node.needs:
                dependants[need].append(node)
        depths: dict[int, int] = {}

        async def work(node: Node) -> None:
            if node.seconds:
                await asyncio.sleep(node.seconds)
            depths[node.id] = 1 + max((depths[need] for need in node.needs), default=0)
            for dependant in dependants[node.id]:
                unmet[dependant.id] -= 1
                if not unmet[dependant.id]:
                    group.create_task(work(dependant))

        async with asyncio.TaskGroup() as group:
            for node in shape.nodes:
                if not node.needs:
                    group.create_task(work(node))
        return sum(depths.values())

    return run


EXECUTOR = Executor("hand-written loop", prepare)
