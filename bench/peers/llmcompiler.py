"""LLMCompiler's own executor, ``TaskFetchingUnit.aschedule``, from a checkout of its repository
that the user names (``--llmcompiler PATH``). The plan lies in its queue before the run begins."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from shapes import Node, Shape

from peers import Executor, Run


def use(checkout: Path) -> None:
    """Make the checkout importable; raises `ImportError` where it is none."""
    sys.path.append(str(checkout))
    from src.utils import logger_utils  # type: ignore[import-not-found]

    logger_utils.LOG_ENABLED = False


def prepare(shape: Shape) -> Run:
    from src.llm_compiler.task_fetching_unit import (  # type: ignore[import-not-found]
        Task,
        TaskFetchingUnit,
    )

    def tool_of(node: Node) -> Callable[..., Awaitable[int]]:
        async def work(*after: str) -> int:
            if node.seconds:
                await asyncio.sleep(node.seconds)
            return 1 + max(map(int, after), default=0)

        return work

    async def run() -> int:
        queue: asyncio.Queue[object] = asyncio.Queue()
        tasks = [
            Task(n.id, "work", tool_of(n), [f"${need}" for need in n.needs], n.needs)
            for n in shape.nodes
        ]
        for task in (*tasks, None):
            queue.put_nowait(task)
        await TaskFetchingUnit().aschedule(queue, None)
        return sum(int(task.observation) for task in tasks)

    return run


EXECUTOR = Executor("LLMCompiler aschedule", prepare)
