"""Workers that share a log: for any server, none of whose parts needs to know of groups.

Every ``sync_every`` tokens each worker's text goes to the end of one log, the same for all, and
all go on behind it. A server that caches prefixes then reads each log once; what is read again
is counted by `recomputed`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from agentpar.events import Usage
from agentpar.ports import Message, ModelRequest, Runtime
from agentpar.runtime.hogwild import prompts
from agentpar.runtime.hogwild.group import WorkerGroup
from agentpar.workers import Backend, Workers


def recomputed(workers: int, tokens: int, sync_every: int, header: float, block: int) -> float:
    """Prompt tokens that are computed while ``workers`` write ``tokens`` each, by the formula.

    Every token is read once as part of the log; and at each of the tokens/sync_every rounds each
    worker reads ``header`` tokens of its own and, on average, half a cache ``block`` again.
    """
    return workers * tokens + (tokens / sync_every) * workers * (header + block / 2)


class LogGroup(WorkerGroup):
    """Workers on ``runtime`` that go on from one log, round by round."""

    backend: Backend = "log"

    def __init__(
        self,
        runtime: Runtime,
        messages: Sequence[Message],
        workers: Sequence[str],
        settings: Workers,
        *,
        why: str = "",
    ) -> None:
        super().__init__(runtime, messages, workers, settings, why=why)
        self._log = ""
        self._texts: dict[str, str] = {}  # of this round, by worker or by who was injected
        self._waiting: dict[str, asyncio.Future[None]] = {}  # for the next round
        self._going: list[str] = []  # who takes part, by the order of joining
        self._warm = asyncio.Event()  # the first of this round has had the server read the log

    @property
    def log(self) -> str:
        """What all workers see: the rounds that are over."""
        return self._log

    async def inject(self, name: str, text: str) -> None:
        self._source(name)
        self._texts[name] = self._texts.get(name, "") + prompts.told(name, text)

    async def answer(
        self,
        instruction: str = "",
        *,
        max_tokens: int = 512,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> AsyncGenerator[str, None]:
        await self._stop()
        self._close_round()
        answer = self._answer_plainly(
            self._log, instruction, max_tokens=max_tokens, temperature=temperature, seed=seed
        )
        async with aclosing(answer) as texts:
            async for text in texts:
                yield text

    def join(self, name: str) -> None:
        super().join(name)
        self._going.append(name)

    def leave(self, name: str) -> None:
        super().leave(name)
        self._out(name)

    def _over(self, name: str) -> None:
        super()._over(name)
        self._out(name)

    async def _work(self, name: str, number: int) -> None:
        left, since_check = self.settings.max_tokens, 0
        while left > 0:
            await self._next_round(name)
            checks = 0 < self.settings.check_every <= since_check
            most = min(left, self.settings.sync_every)
            wrote = await self._write(name, number, most, checks)
            tokens = wrote.completion_tokens or most  # of a server that counts none
            left -= tokens
            since_check = tokens + (0 if checks else since_check)
            if not wrote.cut:  # it has ended by itself
                return

    async def _write(self, name: str, number: int, tokens: int, checks: bool) -> Usage:
        """What ``name`` writes in this round."""
        leads = self._going[0] == name
        if not leads:  # read behind the first, the log is in the server's cache
            await self._warm.wait()
        request = ModelRequest(
            prompts.log_messages(self.messages, self._log, prompts.turn(name, checks=checks)),
            max_tokens=tokens,
            temperature=self.settings.temperature,
            seed=self._seed(number),
        )
        usage = Usage(calls=1)
        self._texts[name] = prompts.head(name)
        async with aclosing(self._runtime.stream(request)) as pieces:
            async for piece in pieces:
                if leads:
                    self._warm.set()
                if isinstance(piece, Usage):
                    usage = piece
                else:
                    self._texts[name] += piece
                    self._wrote(name, piece)
        self._spent(usage)
        return usage

    async def _next_round(self, name: str) -> None:
        self._waiting[name] = asyncio.get_running_loop().create_future()
        future = self._waiting[name]
        self._begin_round()
        await future

    def _out(self, name: str) -> None:
        """Nobody waits for ``name`` any more."""
        if name in self._going:
            self._going.remove(name)
            self._waiting.pop(name, None)
            self._warm.set()
            self._begin_round()

    def _begin_round(self) -> None:
        """Begin the next round once all who take part wait for it."""
        if not self._going or set(self._waiting) != set(self._going):
            return
        self._close_round()
        self._warm.clear()
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_result(None)

    def _close_round(self) -> None:
        order = [*self._names, *(name for name in self._texts if name not in self._names)]
        for name in order:
            self._log += self._texts.pop(name, "").rstrip()
        self._log = self._log.lstrip()
