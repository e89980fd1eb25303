"""LangGraph's StateGraph: a node per task, an edge per need, results in a dict beside the state.

Results in the state would cost it more: a reducer that copies the growing dict at each step.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypedDict

from shapes import Node, Shape

from peers import Executor, Run


class State(TypedDict):
    """LangGraph wants one field at least."""

    question: str


def prepare(shape: Shape) -> Run:
    from langgraph.graph import START, StateGraph

    depths: dict[int, int] = {}

    def node_of(node: Node) -> Callable[[State], Awaitable[None]]:
        async def work(state: State) -> None:
            if node.seconds:
                await asyncio.sleep(node.seconds)
            depths[node.id] = 1 + max((depths[need] for need in node.needs), default=0)

        return work

    builder: Any = StateGraph(State)
    for node in shape.nodes:
        builder.add_node(str(node.id), node_of(node))
        match [str(need) for need in node.needs]:
            case []:
                builder.add_edge(START, str(node.id))
            case [need]:
                builder.add_edge(need, str(node.id))
            case needs:
                builder.add_edge(needs, str(node.id))
    graph = builder.compile()

    async def run() -> int:
        depths.clear()
        await graph.ainvoke({"question": ""}, {"recursion_limit": len(shape.nodes) + 10})
        return sum(depths.values())

    return run


EXECUTOR = Executor("LangGraph StateGraph", prepare)
