"""One model call being read: its text as it comes, and in the end what it took.

It must never know what is asked, or what the text means.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Literal, Self

from agentpar.events import ModelUsed, Usage
from agentpar.ports import Clock, ModelRequest, Runtime


class Reply:
    """Iterate it for the pieces of text; `used` is complete behind the last of them."""

    def __init__(self, pieces: AsyncIterator[str | Usage], clock: Clock) -> None:
        self.usage = Usage(calls=1)  # of a server that does not say more
        self._pieces = pieces
        self._clock = clock
        self._started = clock.now()
        self._first_text: float | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        while isinstance(piece := await anext(self._pieces), Usage):
            self.usage = piece
        if self._first_text is None:
            self._first_text = self._clock.now()
        return piece

    def used(self, purpose: Literal["plan", "join", "prefill", "judge"], round: int) -> ModelUsed:
        """What the call took, up to now."""
        now = self._clock.now()
        first = 0.0 if self._first_text is None else self._first_text - self._started
        return ModelUsed(purpose, round, self.usage, first, now - self._started, now)


def asking(
    runtime: Runtime, request: ModelRequest, clock: Clock
) -> AbstractAsyncContextManager[Reply]:
    """The reply of ``runtime`` to ``request``, as `reading` it."""
    return reading(runtime.stream(request), clock)


@asynccontextmanager
async def reading(stream: AsyncGenerator[str | Usage, None], clock: Clock) -> AsyncIterator[Reply]:
    """What ``stream`` brings; leaving the block stops the model.

    Raises what the runtime raises.
    """
    async with aclosing(stream) as pieces:
        yield Reply(pieces, clock)
