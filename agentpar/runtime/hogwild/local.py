"""The reference engine as a runtime: a model in this process, in plain torch, with one cache.

Slow, and exact: for a look at workers where no vLLM can share, and to hold others against. All
work on the model is done in one thread, a step at a time, while the event loop goes on.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentpar.errors import AgentparError, ModelServerError, UsageError
from agentpar.events import Usage
from agentpar.ids import new_run_id
from agentpar.ports import Capability, Message, ModelRequest
from agentpar.runtime.hogwild.opening import OpensGroups
from agentpar.runtime.hogwild.pieces import Pieces
from agentpar.runtime.hogwild.prompts import STEP_END
from agentpar.runtime.hogwild.rows import Row
from agentpar.runtime.hogwild.sampling import Sampling
from agentpar.runtime.tokens import token_ids
from agentpar.workers import Layout

if TYPE_CHECKING:
    from agentpar.runtime.hogwild.engine import Engine, Group

_TOGETHER = 10.0  # seconds that the first rows of a group are waited for


@dataclass(slots=True)
class _Writing:
    """One row on its way: what of it is text by now, and who waits."""

    row: Row
    pieces: Pieces
    news: asyncio.Queue[str | Exception | None] = field(default_factory=asyncio.Queue)


class TorchRuntime(OpensGroups):
    """Streams from the weights in ``model``, a folder or a name as for `models.resolve`.

    ``settings`` are those of `Engine.load`: ``dtype``, ``device``, ``blocks`` and more. Constraints
    on what is written (a grammar, a schema) are not known here.
    """

    def __init__(self, model: str | Path, **settings: Any) -> None:
        self._name = str(model)
        self._settings = settings
        self._engine: Engine | None = None
        self._opening = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="torch engine")
        self._groups: dict[str, _Live] = {}
        self._steps: tuple[int, ...] | None = None

    def __repr__(self) -> str:
        return f"TorchRuntime({self._name!r})"

    @property
    def provider(self) -> str:
        return "torch"

    @property
    def model_name(self) -> str:
        return self._name

    def rows(self) -> TorchRuntime:
        """It shares its cache itself."""
        return self

    async def cannot_share(self) -> str:
        """A model whose views cannot be shared is refused when it is loaded."""
        await self._open()
        return ""

    async def stream(self, request: ModelRequest) -> AsyncGenerator[str | Usage, None]:
        """Yield text pieces, then one `Usage`: a group of one worker.

        Raises `UsageError` for a request with a grammar or a schema.
        """
        held = {"grammar": request.grammar, "json_schema": request.json_schema}
        if asked := [name for name, constraint in held.items() if constraint is not None]:
            raise UsageError(
                f"the request has a {asked[0]}, but {self!r} cannot hold a text to one: leave it "
                f"out, or take a vLLM (model='vllm:{self._name}')"
            )
        tokens = await self.tokenize(request.messages)
        row = Row(
            group=f"alone-{new_run_id()}",
            name="alone",
            tokens=tokens,
            prefix=len(tokens),
            size=1,
            max_tokens=request.max_tokens,
            layout="contiguous",
            temperature=request.temperature,
            seed=request.seed,
        )
        async with aclosing(self._write(row, request.stop)) as pieces:
            async for piece in pieces:
                yield piece

    async def capabilities(self) -> frozenset[Capability]:
        """Nothing beyond writing."""
        return frozenset()

    async def tokenize(self, text: str | Sequence[Message]) -> tuple[int, ...]:
        tokenizer = (await self._open()).tokenizer
        return token_ids(tokenizer, text)

    async def step_tokens(self) -> tuple[int, ...]:
        engine = await self._open()
        if self._steps is None:  # a look at each word of the vocabulary
            look = asyncio.get_running_loop().run_in_executor
            self._steps = tuple(await look(self._thread, engine.tokens_with, STEP_END))
        return self._steps

    def write(self, row: Row) -> AsyncGenerator[str | Usage, None]:
        return self._write(row)

    async def _write(self, row: Row, stop: Sequence[str] = ()) -> AsyncGenerator[str | Usage, None]:
        engine = await self._open()
        live = self._groups.get(row.group)
        if live is None:
            if not row.size:
                raise _gone(row)
            live = self._groups[row.group] = _Live(engine, row, self._thread, self._forget)
        writing = _Writing(row, Pieces(engine.tokenizer))
        live.join(writing)
        text = ""
        try:
            while isinstance(said := await writing.news.get(), str):
                before, text = len(text), text + said
                if ends := [at for word in stop if (at := text.find(word)) >= 0]:
                    yield text[before : min(ends)]
                    break
                yield said
            if isinstance(said, Exception):
                raise said
            yield live.usage(row)
        finally:
            live.leave(row)

    async def aclose(self) -> None:
        """End all groups, and let the model go."""
        for live in list(self._groups.values()):
            await live.close()
        self._engine = None
        self._thread.shutdown()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="torch engine")

    def _forget(self, name: str) -> None:
        self._groups.pop(name, None)

    async def _open(self) -> Engine:
        async with self._opening:
            if self._engine is None:
                loop = asyncio.get_running_loop()
                self._engine = await loop.run_in_executor(self._thread, self._load)
            return self._engine

    def _load(self) -> Engine:
        # Threads of a pool that spin while they wait take the cores from each other.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        from agentpar.runtime import models
        from agentpar.runtime.hogwild.engine import Engine

        return Engine.load(models.resolve(self._name), **self._settings)


def _gone(row: Row) -> ModelServerError:
    return ModelServerError(f"row {row.name!r} comes late: its group is no more")


class _Live:
    """One group of an engine, stepped while any of its rows writes.

    Who is in it is settled in the event loop; the engine's thread only computes.
    """

    def __init__(self, engine: Engine, first: Row, thread: ThreadPoolExecutor, over: Any) -> None:
        self._engine = engine
        self._name = first.group
        self._first = first
        self._thread = thread
        self._over = over
        self._group: Group | None = None
        self._coming: list[_Writing] = []
        self._leaving: list[str] = []
        self._writing: dict[str, _Writing] = {}
        self._news = asyncio.Event()
        self._hold = first.hold
        self._task = asyncio.create_task(self._run())

    def join(self, writing: _Writing) -> None:
        name = writing.row.name
        there = () if self._group is None else self._group.members
        if name in there or name in self._writing or any(c.row.name == name for c in self._coming):
            raise UsageError(f"row {name!r} is in its group already: give each a name of its own")
        self._coming.append(writing)
        self._hold = writing.row.hold
        self._news.set()

    def leave(self, row: Row) -> None:
        self._coming = [writing for writing in self._coming if writing.row is not row]
        writing = self._writing.get(row.name)
        if writing is not None and writing.row is row:
            del self._writing[row.name]
            self._leaving.append(row.name)
        self._news.set()

    def usage(self, row: Row) -> Usage:
        """What ``row`` has taken, which has begun."""
        assert self._group is not None
        member = self._group.members[row.name]
        return Usage(
            prompt_tokens=len(row.tokens),
            completion_tokens=len(member.output),
            calls=1,
            cut=member.finish == "length",
        )

    async def close(self) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        error: Exception | None = None
        try:
            # Who leaves before all are there is waited for by nobody.
            while self._coming and len(self._coming) < self._first.size:
                if not await self._wait(_TOGETHER):
                    break
            if self._coming:
                await self._go_on()
        except Exception as raised:
            error = raised
        finally:
            self._over(self._name)
            if self._group is not None:  # in its thread, where a last step may still be computed
                self._thread.submit(self._group.close)
            for writing in (*self._coming, *self._writing.values()):
                writing.news.put_nowait(error or _gone(writing.row))

    async def _go_on(self) -> None:
        """Step while anyone writes, and wait for those who come late."""
        loop = asyncio.get_running_loop()
        while True:
            leaving, self._leaving = self._leaving, []
            coming, self._coming = self._coming, []
            self._writing |= {writing.row.name: writing for writing in coming}
            step = loop.run_in_executor(self._thread, self._step, leaving, coming)
            tokens, refused = await step
            for name, error in refused.items():
                if (writing := self._writing.pop(name, None)) is not None:
                    writing.news.put_nowait(error)
            self._leaving = [name for name in self._leaving if name not in refused]
            self._tell(tokens)
            while not (self._coming or self._writing):
                if not await self._wait(self._hold):
                    return

    async def _wait(self, seconds: float) -> bool:
        """Wait for somebody to join or leave; False after ``seconds`` without."""
        if not seconds:
            return False
        try:
            await asyncio.wait_for(self._news.wait(), seconds)
        except TimeoutError:
            return False
        self._news.clear()
        return True

    def _step(
        self, leaving: list[str], coming: list[_Writing]
    ) -> tuple[dict[str, int], dict[str, AgentparError]]:
        """In the engine's thread: who leaves, who joins, one step. The token that each picked, and
        why those who could not join could not."""
        if self._group is None:
            prefix = self._first.tokens[: self._first.prefix]
            layout: Layout = self._first.layout
            self._group = self._engine.group(prefix, layout=layout, separators=self._first.steps)
        group = self._group
        for name in leaving:
            group.leave(name)
        refused: dict[str, AgentparError] = {}
        for writing in coming:
            row = writing.row
            sampling = Sampling(row.max_tokens, row.temperature, seed=row.seed)
            try:
                if row.tokens[: row.prefix] != group.prefix:
                    raise UsageError(f"row {row.name!r} has another prefix than its group")
                group.join(row.name, row.tokens[row.prefix :], sampling)
            except AgentparError as error:
                refused[row.name] = error
        return (group.step() if group.running else {}), refused

    def _tell(self, tokens: dict[str, int]) -> None:
        assert self._group is not None
        for name, writing in list(self._writing.items()):
            text = writing.pieces.push(tokens[name]) if name in tokens else ""
            ended = self._group.members[name].finish is not None
            if ended:
                text += writing.pieces.rest()
            if text:
                writing.news.put_nowait(text)
            if ended:
                writing.news.put_nowait(None)
                del self._writing[name]
