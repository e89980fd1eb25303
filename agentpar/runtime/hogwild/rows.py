"""Workers as rows of one KV cache: each reads the others' tokens from the moment they are there.

Knows what a row is asked for, and not how a server shares its cache.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from agentpar.errors import BackendError
from agentpar.events import Usage
from agentpar.ids import new_run_id
from agentpar.ports import Message, Runtime
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
    """Rows of one cache on ``server``, which ``runtime`` has for ordinary requests, too."""

    backend: Backend = "rows"

    def __init__(
        self,
        runtime: Runtime,
        server: RowServer,
        messages: Sequence[Message],
        workers: Sequence[str],
        settings: Workers,
    ) -> None:
        super().__init__(runtime, messages, workers, settings)
        self._server = server
        self._id = new_run_id()
        self._begun = asyncio.Event()  # a row has been read: others may come late
        self._texts: dict[str, str] = {}  # what stands in the rows, for whom no row can be
        self._ready = asyncio.Lock()  # the prefix is asked for once
        self._prefix: tuple[int, ...] = ()
        self._last: tuple[int, ...] = ()
        self._steps: tuple[int, ...] = ()
        self._rows = 0

    async def inject(self, name: str, text: str) -> None:
        self._source(name)
        told = prompts.told(name, text)
        try:
            row = await self._row(name, told, 1)
            async with aclosing(self._server.write(row)) as pieces:
                async for piece in pieces:
                    if isinstance(piece, Usage):  # the one token it wrote is nobody's text
                        self._spent(replace(piece, completion_tokens=0))
        except BackendError as error:
            if self.workers:
                raise
            self._faults.append(f"only the answer is told of {name!r}: {error}")
        self._texts[name] = self._texts.get(name, "") + told

    async def answer(
        self,
        instruction: str = "",
        *,
        max_tokens: int = 512,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> AsyncGenerator[str, None]:
        """As a row; where there can be none (the group has ended on the server, say), by an
        ordinary request that reads what the workers wrote, and `why` and `faults` say so."""
        begun = False
        try:
            row = await self._row("answer", prompts.finish(instruction), max_tokens)
            row = replace(row, hold=0.0, temperature=temperature, seed=seed)
            stream = self._counted(self._server.write(row), len(row.tokens), answers=True)
            async with aclosing(stream) as pieces:
                async for piece in pieces:
                    if not begun:
                        begun = True
                        await self._stop()  # not before this row holds the group
                    if isinstance(piece, str):
                        yield piece
        except BackendError as error:
            if begun:
                raise
            self.why = f"the answer was written from the workers' texts, not their cache: {error}"
            self._faults.append(self.why)
        if begun:
            return
        await self._stop()
        log = "".join(self._texts.values())
        answer = self._answer_plainly(
            log, instruction, max_tokens=max_tokens, temperature=temperature, seed=seed
        )
        async with aclosing(answer) as texts:
            async for text in texts:
                yield text

    async def _work(self, name: str, number: int) -> None:
        left = self.settings.max_tokens
        at_once = self.settings.check_every or left
        head = prompts.head(name) if len(self._first) > 1 or number else ""
        size = len(self._first) if number < len(self._first) else 0
        while left > 0:
            row = await self._row(name, head, min(left, at_once), size=size, number=number)
            wrote = await self._stream(name, row)
            if not wrote.cut:  # it has ended by itself
                return
            left -= wrote.completion_tokens or row.max_tokens  # of a server that counts none
            head, size = prompts.check(name), 0
            if left > 0:
                self._wrote(name, head)

    async def _stream(self, name: str, row: Row) -> Usage:
        usage = Usage(calls=1)
        async with aclosing(self._counted(self._server.write(row), len(row.tokens))) as pieces:
            async for piece in pieces:
                self._begun.set()
                if isinstance(piece, Usage):
                    usage = piece
                else:
                    self._wrote(name, piece)
        return usage

    def _wrote(self, worker: str, text: str) -> None:
        self._texts[worker] = self._texts.get(worker, prompts.head(worker)) + text
        super()._wrote(worker, text)

    def _over(self, name: str) -> None:
        super()._over(name)
        self._begun.set()

    async def _row(
        self, name: str, text: str, max_tokens: int, *, size: int = 0, number: int = 0
    ) -> Row:
        async with self._ready:
            if not self._prefix:
                # Each row has the last token of the prompt for its own, behind which one who is
                # alone writes at once.
                *prefix, last = await self._server.tokenize(self.messages)
                self._prefix, self._last = tuple(prefix), (last,)
                if self.settings.layout != "contiguous":
                    self._steps = await self._server.step_tokens()
        own = self._last + (await self._server.tokenize(text) if text else ())
        if not size:
            await self._begun.wait()
        self._rows += 1
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
            seed=self._seed(number),
        )
