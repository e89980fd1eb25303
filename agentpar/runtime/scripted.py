"""A runtime that says what it is told, for tests of agents and of agentpar itself.

It stands in for a model where the claim is about the agent; it must never stand where
the claim is about a real model.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence

from agentpar.errors import UsageError
from agentpar.events import Usage
from agentpar.ports import Capability, ModelRequest


class ScriptedRuntime:
    """Gives ``texts`` in order, one for each call of `stream`.

    A text comes in pieces of ``chunk`` characters with ``delay`` seconds before each. An
    exception among the texts is raised instead. As on a real server, a text ends before the
    first of the request's ``stop`` strings. A ``background`` request takes no text, as nobody
    reads what it would write. ``requests`` holds what was asked so far.
    Usage counts words between white space, since there is no tokenizer.

    Example: ``ScriptedRuntime(['1. population(country="Chile")\\\\njoin()', "19.6 million [1]"])``
    """

    def __init__(
        self,
        texts: Sequence[str | Exception],
        *,
        chunk: int = 8,
        delay: float = 0.0,
        capabilities: Iterable[Capability] = (),
    ) -> None:
        if isinstance(texts, str):
            raise UsageError(f"texts is one string, {texts[:40]!r}; give a list of texts")
        if chunk < 1:
            raise UsageError(f"chunk is {chunk!r}; a piece has at least 1 character")
        self.requests: list[ModelRequest] = []
        self._texts = list(texts)
        self._given = 0
        self._chunk = chunk
        self._delay = delay
        self._capabilities = frozenset(capabilities)

    @property
    def provider(self) -> str:
        """Nobody serves it: ``"scripted"``."""
        return "scripted"

    @property
    def model_name(self) -> str:
        """There is no model: ``"scripted"``."""
        return "scripted"

    async def stream(self, request: ModelRequest) -> AsyncGenerator[str | Usage, None]:
        """Yield the next text in pieces, then its `Usage`; `UsageError` after the last text."""
        text = self._next(request)
        self.requests.append(request)
        if isinstance(text, Exception):
            raise text
        for stop in request.stop:
            text = text.partition(stop)[0]
        for start in range(0, len(text), self._chunk):
            await asyncio.sleep(self._delay)
            yield text[start : start + self._chunk]
        asked = sum(len(message.content.split()) for message in request.messages)
        yield Usage(prompt_tokens=asked, completion_tokens=len(text.split()), calls=1)

    def _next(self, request: ModelRequest) -> str | Exception:
        if request.background:
            return ""
        number = self._given
        if number >= len(self._texts):
            raise UsageError(
                f"the script has {number} texts and a further one was asked for; each "
                "plan and each answer takes one, and again after a replan"
            )
        self._given += 1
        return self._texts[number]

    async def capabilities(self) -> frozenset[Capability]:
        """What the script was said to be capable of; it enforces nothing."""
        return self._capabilities

    async def aclose(self) -> None:
        """Nothing to release."""
