"""A runtime whose model neither reads nor writes a secret.

What a model writes is looked at in many small ways (parsed, checked, quoted word by word), so
secrets go out of its text before anyone reads it, not out of what was made of it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import replace

from agentpar.events import Usage
from agentpar.ports import Capability, Message, ModelRequest, Named, Runtime
from agentpar.redact import Redactor
from agentpar.runtime.hogwild.group import WorkerGroup
from agentpar.runtime.hogwild.opening import OpensGroups, open_group
from agentpar.runtime.hogwild.rows import Row, RowServer, row_server
from agentpar.workers import Workers


class RedactedRuntime(OpensGroups):
    """``runtime`` with the secrets of ``redactor`` hidden in requests and in texts."""

    def __init__(self, runtime: Runtime, redactor: Redactor) -> None:
        self._runtime = runtime
        self._redactor = redactor

    def stream(self, request: ModelRequest) -> AsyncGenerator[str | Usage, None]:
        """As the runtime's own; the beginning of what may be a secret waits for the next piece."""
        asked = replace(request, messages=_hidden(request.messages, self._redactor))
        return _hiding(self._runtime.stream(asked), self._redactor)

    @property
    def provider(self) -> str:
        """Who serves the runtime, or what it is."""
        runtime = self._runtime
        return runtime.provider if isinstance(runtime, Named) else type(runtime).__name__

    @property
    def model_name(self) -> str:
        """The runtime's own, empty where it has none."""
        return self._runtime.model_name if isinstance(self._runtime, Named) else ""

    def group(
        self,
        shared: str | Sequence[Message],
        workers: Sequence[str],
        settings: Workers | None = None,
    ) -> AbstractAsyncContextManager[WorkerGroup]:
        """As the runtime's own; a secret that a worker writes in two rounds of a log is hidden."""
        return open_group(self, shared, workers, settings, redactor=self._redactor)

    def rows(self) -> RowServer | None:
        """The runtime's own, with secrets hidden likewise."""
        rows = row_server(self._runtime)
        return rows and _RedactedRows(rows, self._redactor)

    async def capabilities(self) -> frozenset[Capability]:
        """The runtime's own."""
        return await self._runtime.capabilities()

    async def aclose(self) -> None:
        """Close the runtime."""
        await self._runtime.aclose()


class _RedactedRows:
    def __init__(self, rows: RowServer, redactor: Redactor) -> None:
        self._rows = rows
        self._redactor = redactor

    async def cannot_share(self) -> str:
        return await self._rows.cannot_share()

    async def step_tokens(self) -> tuple[int, ...]:
        return await self._rows.step_tokens()

    async def tokenize(self, text: str | Sequence[Message]) -> tuple[int, ...]:
        if isinstance(text, str):
            return await self._rows.tokenize(self._redactor.text(text))
        return await self._rows.tokenize(_hidden(text, self._redactor))

    def write(self, row: Row) -> AsyncGenerator[str | Usage, None]:
        return _hiding(self._rows.write(row), self._redactor)


def _hidden(messages: Sequence[Message], redactor: Redactor) -> tuple[Message, ...]:
    return tuple(replace(message, content=redactor.text(message.content)) for message in messages)


async def _hiding(
    stream: AsyncGenerator[str | Usage, None], redactor: Redactor
) -> AsyncGenerator[str | Usage, None]:
    text = redactor.stream()
    async with aclosing(stream) as pieces:
        async for piece in pieces:
            if isinstance(piece, Usage):
                if rest := text.close():
                    yield rest
                yield piece
            elif said := text.feed(piece):
                yield said
    if rest := text.close():
        yield rest
