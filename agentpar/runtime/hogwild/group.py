"""A group of workers that write at once and read each other: one interface, whatever shares."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Self

from agentpar.errors import BackendError, UsageError
from agentpar.estimate import known
from agentpar.events import Usage
from agentpar.ports import Message, ModelRequest, Runtime
from agentpar.runtime.hogwild import prompts
from agentpar.workers import Backend, Piece, Workers


class WorkerGroup(ABC):
    """Workers at work: iterate for what they write, until all have ended.

    An async context: leaving it stops whoever still writes. What a backend must do is write
    (`_work`), be told something (`inject`), and answer (`answer`). A worker whose request fails
    ends; the others go on, and `faults` says why it did.
    """

    backend: Backend

    def __init__(
        self,
        runtime: Runtime,
        messages: Sequence[Message],
        workers: Sequence[str],
        settings: Workers,
        *,
        why: str = "",
    ) -> None:
        self.messages = prompts.shared(messages, workers)
        self.settings = settings
        self.why = why
        self.usage = Usage()
        self._runtime = runtime
        self._first = tuple(workers)
        self._names: list[str] = []  # whoever was in the group, by the order of joining
        self._sources: list[str] = []  # under whose names something was injected
        self._writing: dict[str, asyncio.Task[None]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._news: asyncio.Queue[Piece | BaseException | None] = asyncio.Queue()
        self._faults: list[str] = []
        self._heard = False  # a worker has written something

    @property
    def workers(self) -> tuple[str, ...]:
        """Those who still write."""
        return tuple(self._writing)

    @property
    def faults(self) -> tuple[str, ...]:
        """What has gone otherwise than it was meant to, in words: whose request failed, say."""
        return tuple(self._faults)

    async def __aenter__(self) -> Self:
        for name in self._first:
            self.join(name)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stop()

    async def __aiter__(self) -> AsyncIterator[Piece]:
        """What workers write, as they write it.

        Raises what the last one's request raised where all have failed before anyone wrote.
        """
        while self._writing or not self._news.empty():
            match await self._news.get():
                case BaseException() as error:
                    raise error
                case Piece() as piece:
                    yield piece

    def join(self, name: str) -> None:
        """``name`` begins to write, and sees all that is there. Names are not used twice."""
        prompts.check_name(name)
        if name in self._names or name in self._sources:
            raise UsageError(f"worker {name!r} is or was in this group: take another name")
        task = asyncio.create_task(self._work(name, len(self._names)))
        task.add_done_callback(partial(self._finished, name))
        self._names.append(name)
        self._tasks.append(task)
        self._writing[name] = task

    def leave(self, name: str) -> None:
        """``name`` stops; what it wrote stays in sight. One that has ended may leave, too."""
        if name not in self._names:
            raise UsageError(f"no worker {name!r} in this group; it has {self._names}")
        if (task := self._writing.pop(name, None)) is not None:
            task.cancel()

    @abstractmethod
    async def inject(self, name: str, text: str) -> None:
        """All workers see ``text``, headed by ``name``, from now on: a tool's result, say."""

    @abstractmethod
    def answer(
        self,
        instruction: str = "",
        *,
        max_tokens: int = 512,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> AsyncGenerator[str, None]:
        """Stop the workers and write one text with all that they wrote in sight.

        ``instruction`` is how that text is asked for. What is spent goes to `usage`, whose
        ``cut`` says whether this text ended at ``max_tokens``.
        """

    @abstractmethod
    async def _work(self, name: str, number: int) -> None:
        """Let worker ``number`` write, telling each piece to `_wrote`."""

    def _source(self, name: str) -> None:
        """Take note of who something is injected from; raises `UsageError` for a worker's name."""
        prompts.check_name(name)
        if name in self._names or name in self._first:
            raise UsageError(f"{name!r} is a worker of this group: inject under another name")
        if name not in self._sources:
            self._sources.append(name)

    async def _answer_plainly(
        self, log: str, instruction: str, *, max_tokens: int, temperature: float, seed: int | None
    ) -> AsyncGenerator[str, None]:
        """An answer by an ordinary request that reads ``log``, what all have written."""
        asked = prompts.finish(instruction).strip()
        request = ModelRequest(
            prompts.log_messages(self.messages, log, asked),
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
        )
        stream = self._counted(self._runtime.stream(request), request.messages, answers=True)
        async with aclosing(stream) as pieces:
            async for piece in pieces:
                if isinstance(piece, str):
                    yield piece

    async def _counted(
        self,
        stream: AsyncGenerator[str | Usage, None],
        prompt: int | Iterable[Message],
        *,
        answers: bool = False,
    ) -> AsyncGenerator[str | Usage, None]:
        """What ``stream`` brings. What it took goes to `usage` however it ends; a request that was
        refused, before any text, took nothing."""
        told, text, refused = Usage(calls=1), "", False
        try:
            async with aclosing(stream) as pieces:
                async for piece in pieces:
                    if isinstance(piece, Usage):
                        told = piece
                    else:
                        text += piece
                    yield piece
        except Exception:
            refused = not text
            raise
        finally:
            if not refused:
                self._spent(known(told, prompt, text), cut=answers and told.cut)

    def _seed(self, number: int) -> int | None:
        """What worker ``number`` samples with."""
        return None if self.settings.seed is None else self.settings.seed + number

    def _wrote(self, worker: str, text: str) -> None:
        self._heard = True
        self._news.put_nowait(Piece(worker, text))

    def _spent(self, usage: Usage, *, cut: bool = False) -> None:
        self.usage = replace(self.usage + usage, cut=cut)

    def _over(self, name: str) -> None:
        """``name`` writes no more."""
        self._writing.pop(name, None)
        self._news.put_nowait(None)  # whoever iterates looks whether all have ended

    def _finished(self, name: str, task: asyncio.Task[None]) -> None:
        # Not in the coroutine itself: one that is cancelled before its first step has no finally.
        if not task.cancelled() and (error := task.exception()) is not None:
            if isinstance(error, BackendError):
                self._faults.append(f"{name} broke off: {error}")
            if not isinstance(error, BackendError) or not (self._heard or len(self._writing) > 1):
                self._news.put_nowait(error)
        self._over(name)

    async def _stop(self) -> None:
        for name in self.workers:
            self.leave(name)
        await asyncio.gather(*self._tasks, return_exceptions=True)
