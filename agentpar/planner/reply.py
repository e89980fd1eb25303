"""One model call being read: its text as it comes, and however it ends, what it took.

It must never know what is asked, or what the text means.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, suppress
from typing import Literal, Self

from agentpar.estimate import known
from agentpar.events import ModelUsed, Usage
from agentpar.ports import Clock, ModelRequest, Runtime

Purpose = Literal["plan", "join", "prefill", "judge"]


class Reply:
    """Iterate it for the pieces of text that answer ``request``."""

    def __init__(
        self, pieces: AsyncIterator[str | Usage], request: ModelRequest, clock: Clock
    ) -> None:
        self._pieces = pieces
        self._request = request
        self._clock = clock
        self._started = clock.now()
        self._first_text: float | None = None
        self._text: list[str] = []
        self._told = Usage(calls=1)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        while isinstance(piece := await anext(self._pieces), Usage):
            self._told = piece
        if self._first_text is None:
            self._first_text = self._clock.now()
        self._text.append(piece)
        return piece

    @property
    def usage(self) -> Usage:
        """What the call took up to now, an estimate until the server has said it."""
        return known(self._told, self._request.messages, "".join(self._text))

    @property
    def begun(self) -> bool:
        """Whether anything has come."""
        return self._first_text is not None

    async def let_end(self, *, seconds: float, characters: int) -> None:
        """All that is wanted has come: let the server end by itself, since it says only then what
        the call took; but for no longer than ``seconds``, and no more than ``characters``.

        Raises nothing: whatever happens now, the text is there.
        """
        with suppress(Exception):
            async with asyncio.timeout(seconds):
                async for piece in self:
                    if (characters := characters - len(piece)) < 0:
                        return

    def used(self, purpose: Purpose, round: int, error: str = "") -> ModelUsed:
        """What the call took, up to now, as an event."""
        now = self._clock.now()
        first = 0.0 if self._first_text is None else self._first_text - self._started
        return ModelUsed(purpose, round, self.usage, first, now - self._started, now, error)


def asking(
    runtime: Runtime,
    request: ModelRequest,
    clock: Clock,
    tell: Callable[[ModelUsed], None],
    purpose: Purpose,
    round: int = 0,
) -> AbstractAsyncContextManager[Reply]:
    """The reply of ``runtime`` to ``request``, as `reading` it."""
    return reading(runtime.stream(request), request, clock, tell, purpose, round)


@asynccontextmanager
async def reading(
    stream: AsyncGenerator[str | Usage, None],
    request: ModelRequest,
    clock: Clock,
    tell: Callable[[ModelUsed], None],
    purpose: Purpose,
    round: int = 0,
) -> AsyncIterator[Reply]:
    """What ``stream`` brings in answer to ``request``; leaving the block stops the model, and
    ``tell`` hears what the call took, also where it was cancelled or broke off. A request that
    was refused, before any text, took nothing.

    Raises what the runtime raises.
    """
    reply = Reply(stream, request, clock)
    refused, error = False, ""
    try:
        async with aclosing(stream):
            yield reply
    except Exception as problem:
        refused, error = not reply.begun, str(problem) or type(problem).__name__
        raise
    except BaseException:
        error = "the run went on without waiting for it"
        raise
    finally:
        if not refused:
            tell(reply.used(purpose, round, error))
