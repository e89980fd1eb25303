"""A runtime whose model neither reads nor writes a secret.

What a model writes is looked at in many small ways (parsed, checked, quoted word by word), so
secrets go out of its text before anyone reads it, not out of what was made of it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from agentpar.events import Usage
from agentpar.ports import Capability, ModelRequest, Runtime
from agentpar.redact import Redactor


class RedactedRuntime:
    """``runtime`` with the secrets of ``redactor`` hidden in requests and in texts."""

    def __init__(self, runtime: Runtime, redactor: Redactor) -> None:
        self._runtime = runtime
        self._redactor = redactor

    async def stream(self, request: ModelRequest) -> AsyncGenerator[str | Usage, None]:
        """As the runtime's own; the beginning of what may be a secret waits for the next piece."""
        messages = tuple(
            replace(message, content=self._redactor.text(message.content))
            for message in request.messages
        )
        text = self._redactor.stream()
        asked = replace(request, messages=messages)
        async with aclosing(self._runtime.stream(asked)) as pieces:
            async for piece in pieces:
                if isinstance(piece, Usage):
                    if rest := text.close():
                        yield rest
                    yield piece
                elif said := text.feed(piece):
                    yield said
        if rest := text.close():
            yield rest

    async def capabilities(self) -> frozenset[Capability]:
        """The runtime's own."""
        return await self._runtime.capabilities()

    async def aclose(self) -> None:
        """Close the runtime."""
        await self._runtime.aclose()
