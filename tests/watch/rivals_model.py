"""A model for runs of teams that are watched."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from agentpar.events import Usage
from agentpar.ports import Capability, ModelRequest


class Rivals:
    """Each team calls ``double(n=1)`` and comes to an answer of its own; the judge takes the
    second. With ``hang`` no team gets to its answer. Every request costs 10 tokens of prompt."""

    def __init__(self, *, hang: bool = False) -> None:
        self.hang = hang

    async def stream(self, request: ModelRequest) -> AsyncGenerator[str | Usage, None]:
        system, asked = request.messages[0].content, request.messages[-1].content
        if "number of the best answer" in asked:
            yield "2"
        elif "You answer a question" in system:
            if self.hang:
                await asyncio.sleep(60)
            yield f"Answer: {request.seed}"
        else:
            yield "1. double(n=1)\njoin()"
        yield Usage(10, 1, calls=1)

    async def capabilities(self) -> frozenset[Capability]:
        return frozenset()

    async def aclose(self) -> None:
        pass
