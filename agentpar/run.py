"""One run in progress, as its caller sees it: events as they happen, and the answer at the end.

It must never know what makes them happen.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from agentpar.answer import Answer
from agentpar.errors import RunFailed, UsageError
from agentpar.events import Event
from agentpar.teams import Teams


class Run:
    """One run in progress: iterate it for events; `answer` is there when it has ended."""

    def __init__(
        self,
        id: str,
        question: str,
        *,
        deadline: float | None = None,
        strict: bool = False,
        teams: Teams | None = None,
        team: int = 0,
    ) -> None:
        self.id = id
        self.question = question
        self.deadline = deadline
        self.strict = strict
        self.teams = teams
        self.team = team
        self._events: list[Event] = []
        self._news = asyncio.Event()
        self._answer: Answer | None = None
        self._error: Exception | None = None

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Every event from the first on, as it happens, until the run ends.

        Of a run of several teams: what is about all of them, and what each does as `FromTeam`.
        """
        seen = 0
        while True:
            while seen < len(self._events):
                yield self._events[seen]
                seen += 1
            if self.ended:
                return
            self._news.clear()
            await self._news.wait()

    @property
    def ended(self) -> bool:
        """Whether `answer` is there, or the error in its place."""
        return self._answer is not None or self._error is not None

    async def wait(self) -> Answer:
        """Let the run end; the answer, or the error, is `answer`'s."""
        async for _ in self:
            pass
        return self.answer

    @property
    def answer(self) -> Answer:
        """The answer. Raises `RunFailed` where the run ended without one."""
        if self._error is not None:
            raise self._error
        if self._answer is None:
            raise UsageError("the run has not ended: iterate it to the end, or await run.wait()")
        if self._answer.status != "answered":
            raise RunFailed(self._answer.error, self._answer)
        return self._answer

    def hear(self, event: Event) -> None:
        """An event has happened: for whoever drives the run."""
        self._events.append(event)
        self._news.set()

    def end(self, answer: Answer | None = None, error: Exception | None = None) -> None:
        """It has ended, with an answer or an error: for whoever drives the run."""
        self._answer, self._error = answer, error
        self._news.set()
