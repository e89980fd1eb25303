"""Workers as rows of one KV cache: each reads the others' tokens from the moment they are there.

Knows what a row is asked for, and not how a server shares its cache.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from agentpar.errors import UsageError
from agentpar.events import Usage
from agentpar.ids import new_run_id
from agentpar.ports import Message
from agentpar.runtime.hogwild import prompts
from agentpar.runtime.hogwild.group import WorkerGroup
from agentpar.workers import Backend, Layout, Workers

HOLD = 10.0
"""Seconds for which a server keeps what a group wrote when nobody writes, for who comes next."""


@dataclass(frozen=True, slots=True)
class Row:
    """What a server is asked to write into a group.

    ``tokens``: the prompt, whose first ``prefix`` are those of all rows of ``group``; ``name``
    is not that of another row. ``size`` rows are waited for before the first one is read; 0 is
    for a row that comes later, and is refused where the group is no more. ``steps``: token ids that
    end a step. What the group wrote is kept for ``hold`` seconds after its last row has ended.
    """

    group: str
    name: str
    tokens: tuple[int, ...]
    prefix: int
    size: int
    max_tokens: int
    layout: Layout
    steps: tuple[int, ...] = ()
    hold: float = 0.0
    temperature: float = 0.0
    seed: int | None = None


class RowServer(Protocol):
    """Writes requests that share their cache."""

    async def cannot_share(self) -> str:
        """Why requests cannot share a cache here; empty where they can."""
        ...

    async def tokenize(self, text: str | Sequence[Message]) -> tuple[int, ...]:
        """Token ids of a text as it is, or of a chat up to where the assistant begins."""
        ...

    async def step_tokens(self) -> tuple[int, ...]:
        """The token ids whose text ends with a blank line."""
        ...

    def write(self, row: Row) -> AsyncGenerator[str | Usage, None]:
        """Yield what the model writes behind ``row``, then its `Usage`; closing it ends the row."""
        ...


@runtime_checkable
class SharesRows(Protocol):
    """A runtime some of whose kind share their cache."""

    def rows(self) -> RowServer | None:
        """What writes rows; whether it can, `RowServer.cannot_share` says."""
        ...


def row_server(runtime: object) -> RowServer | None:
    """What ``runtime`` writes rows with, None where its kind has no cache to share."""
    return runtime.rows() if isinstance(runtime, SharesRows) else None


class RowGroup(WorkerGroup):
    """Rows of one cache on ``server``."""

    backend: Backend = "rows"

    def __init__(
        self,
        server: RowServer,
        messages: Sequence[Message],
        workers: Sequence[str],
        settings: Workers,
    ) -> None:
        super().__init__(messages, workers, settings)
        self._server = server
        self._id = new_run_id()
        self._ready = asyncio.Lock()
        self._prefix: tuple[int, ...] = ()
        self._steps: tuple[int, ...] = ()
        self._rows = 0

    async def inject(self, name: str, text: str) -> None:
        prompts.check_name(name)
        row = await self._row(name, prompts.told(name, text), 1)
        async with aclosing(self._server.write(row)) as pieces:
            async for piece in pieces:
                if isinstance(piece, Usage):  # the one token it wrote is nobody's text
                    self._spent(replace(piece, completion_tokens=0))

    async def answer(
        self, instruction: str = "", *, max_tokens: int = 512
    ) -> AsyncGenerator[str, None]:
        row = await self._row("answer", prompts.finish(instruction), max_tokens)
        async with aclosing(self._server.write(replace(row, hold=0.0))) as pieces:
            async for piece in pieces:
                if isinstance(piece, Usage):
                    self._spent(piece, cut=piece.cut)
                    continue
                if self.workers:  # they stop once this row is in the group, which lives by rows
                    await self._stop()
                yield piece

    async def _work(self, name: str, number: int) -> None:
        left = self.settings.max_tokens
        at_once = self.settings.check_every or left
        head = prompts.head(name)
        size = len(self._first) if number < len(self._first) else 0
        while left > 0:
            row = await self._row(name, head, min(left, at_once), size=size, number=number)
            wrote = await self._stream(name, row)
            if not wrote.cut:  # it has ended by itself
                return
            left -= wrote.completion_tokens
            head, size = prompts.check(name), 0
            if left > 0:
                self._wrote(name, head)

    async def _stream(self, name: str, row: Row) -> Usage:
        usage = Usage(calls=1)
        async with aclosing(self._server.write(row)) as pieces:
            async for piece in pieces:
                if isinstance(piece, Usage):
                    usage = piece
                else:
                    self._wrote(name, piece)
        self._spent(usage)
        return usage

    async def _row(
        self, name: str, text: str, max_tokens: int, *, size: int = 0, number: int = 0
    ) -> Row:
        async with self._ready:
            if not self._prefix:
                self._prefix = await self._server.tokenize(self.messages)
                if self.settings.layout != "contiguous":
                    self._steps = await self._server.step_tokens()
        own = await self._server.tokenize(text)
        if not own:
            raise UsageError(f"the text {text!r} has no tokens")
        self._rows += 1
        seed = self.settings.seed
        return Row(
            group=self._id,
            name=f"{name}.{self._rows}",
            tokens=self._prefix + own,
            prefix=len(self._prefix),
            size=size,
            max_tokens=max_tokens,
            layout=self.settings.layout,
            steps=self._steps,
            hold=HOLD,
            temperature=self.settings.temperature,
            seed=None if seed is None else seed + number,
        )
