"""Workers that share a log: for any server, none of whose parts needs to know of groups.

Every ``sync_every`` tokens each worker's text goes to the end of one log, the same for all, and
all go on behind it. A server that caches prefixes then reads each log once; what is read again
is counted by `recomputed`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from agentpar.events import Usage
from agentpar.ports import Message, ModelRequest, Runtime
from agentpar.redact import RedactedStream, Redactor
from agentpar.runtime.hogwild import prompts
from agentpar.runtime.hogwild.group import WorkerGroup
from agentpar.workers import Backend, Workers


def recomputed(
    workers: int, tokens: int, sync_every: int, *, prompt: float, header: float, block: int
) -> float:
    """Prompt tokens that are computed while ``workers`` write ``tokens`` each, by the formula.

    The ``prompt`` is read once; so is, as part of the log, every token but those of the last round,
    which only the answer reads. At each round each worker reads ``header`` tokens of its own and,
    on average and but for the very first, half a cache ``block`` again.
    """
    rounds = math.ceil(tokens / sync_every)
    read = prompt + workers * sync_every * (rounds - 1)
    return read + rounds * workers * header + (rounds * workers - 1) * block / 2


@dataclass(slots=True)
class _Said:
    """What one worker wrote in a round, or what was injected in it."""

    name: str
    head: str = ""
    text: str = ""

    @property
    def head_and_text(self) -> str:
        return f"{self.head}{self.text}".rstrip()


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
        redactor: Redactor,
    ) -> None:
        super().__init__(runtime, messages, workers, settings, why=why)
        self._redactor = redactor
        self._log = ""
        self._said: list[_Said] = []  # what is in the log
        self._texts: dict[str, _Said] = {}  # of this round, by worker or by who was injected
        self._telling: dict[str, RedactedStream] = {}  # by worker, over all rounds
        self._waiting: dict[str, asyncio.Future[None]] = {}  # for the next round
        self._going: list[str] = []  # who takes part, by the order of joining
        self._warm = asyncio.Event()  # the first of this round has had the server read the log

    @property
    def log(self) -> str:
        """What all workers see: the rounds that are over."""
        return self._log

    async def inject(self, name: str, text: str) -> None:
        self._source(name)
        self._texts.setdefault(name, _Said(name)).text += prompts.told(name, text)

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
        self._out(name)
        super()._over(name)

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
        said = self._texts[name] = _Said(name, prompts.head(name))
        telling = self._telling.setdefault(name, self._redactor.stream())
        stream = self._counted(self._runtime.stream(request), request.messages)
        async with aclosing(stream) as pieces:
            async for piece in pieces:
                if leads:
                    self._warm.set()
                if isinstance(piece, Usage):
                    usage = piece
                else:
                    said.text += piece
                    if told := telling.feed(piece):
                        self._wrote(name, told)
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
            if (telling := self._telling.get(name)) and (rest := telling.close()):
                self._wrote(name, rest)
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
        texts, self._texts = self._texts, {}
        order = [*self._names, *(name for name in texts if name not in self._names)]
        self._said += [texts[name] for name in order if name in texts]
        if self._redactor:
            self._hide_what_was_cut()
        self._log = "".join(said.head_and_text for said in self._said).lstrip()

    def _hide_what_was_cut(self) -> None:
        """A request's text is without secrets, but one may go on from a round to the next."""
        for name in self._names:
            said = [one for one in self._said if one.name == name]
            for one, text in zip(said, self._redactor.parts([o.text for o in said]), strict=True):
                one.text = text
