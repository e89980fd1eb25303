"""The warmer: while tools still run, the model reads what the joiner will ask it.

A server that keeps what it has read (vLLM's prefix cache) then reads, once the last tool has
ended, only what that one has brought. The warmer asks for text that nobody reads; it must
never change what the joiner asks, and nothing of the run waits for it.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from inspect import CORO_CLOSED, getcoroutinestate
from typing import Any, Protocol

from agentpar.events import (
    Event,
    ModelUsed,
    PlanEnded,
    PlanFailed,
    PlanFault,
    PlanStarted,
    Source,
    TaskDone,
    Usage,
)
from agentpar.plan import Outcome, Task
from agentpar.planner.prompts import MAX_RESULTS, join_prefix
from agentpar.planner.reply import asking
from agentpar.ports import Clock, Message, ModelRequest, Runtime

LEAST_NEWS = 400
"""Characters by which the beginning of the prompt must have grown to be read again. A server
keeps whole blocks of tokens (16 on most, 128 on vLLM's CPU build), and what does not fill one is
read for nothing; text full of figures has 2.9 characters a token (`bench/prefill.py`)."""


class RunView(Protocol):
    """What is known of a run (`Machine` has it)."""

    @property
    def round(self) -> int: ...

    @property
    def tasks(self) -> dict[int, Task]: ...

    @property
    def outcomes(self) -> dict[int, Outcome]: ...

    @property
    def faults(self) -> list[PlanFault]: ...

    @property
    def final_round(self) -> bool: ...


class Warmer:
    """Has ``runtime`` read ahead for the joiner of one run.

    ``sources`` numbers what the tasks have brought; it and ``instructions`` are the
    joiner's. A runtime without the capability "prefill" is left alone, unless ``always``;
    so is one that has refused, for the rest of the run.
    """

    def __init__(
        self,
        runtime: Runtime,
        sources: Callable[[Mapping[int, Task], Mapping[int, Outcome]], Mapping[int, Source]],
        *,
        instructions: str = "",
        always: bool = False,
    ) -> None:
        self._runtime = runtime
        self._sources = sources
        self._instructions = instructions
        self._always = always
        self._planning = False
        self._work: Coroutine[Any, Any, None] | None = None
        self._gave_up = False
        self._read: tuple[int, int] = (0, 0)  # the round, and the characters that were read for it

    def after(
        self, event: Event, run: RunView, emit: Callable[[Event], None], clock: Clock
    ) -> Coroutine[Any, Any, None] | None:
        """What to read because of ``event``, or None. Never more than one at a time."""
        match event:
            case PlanStarted():
                self._planning = True
            case PlanEnded() | PlanFailed():
                self._planning = False
            case TaskDone():
                pass
            case _:
                return None
        # While a plan is written, reading would keep the model from writing it.
        if self._planning or self._gave_up or self._reads():
            return None
        messages = self._news(run)
        self._work = None if messages is None else self._follow(messages, run, emit, clock)
        return self._work

    def _reads(self) -> bool:
        # The coroutine is asked, as one that is cancelled before its first step says nothing.
        return self._work is not None and getcoroutinestate(self._work) != CORO_CLOSED

    async def _follow(
        self,
        messages: tuple[Message, ...] | None,
        run: RunView,
        emit: Callable[[Event], None],
        clock: Clock,
    ) -> None:
        """Read until there is no news; cancelled where a joiner starts."""
        if not self._always and not await self._is_able():
            self._gave_up = True
            return
        while messages is not None:
            self._read = (run.round, _length(messages))
            told: list[ModelUsed] = []
            try:
                request = ModelRequest(messages, max_tokens=1, background=True)
                asked = asking(self._runtime, request, clock, told.append, "prefill", run.round)
                async with asked as reply:
                    async for _ in reply:
                        pass
            except Exception as problem:
                error = str(problem) or type(problem).__name__
                nothing = ModelUsed("prefill", run.round, Usage(calls=1), error=error)
                told = told or [replace(nothing, at=clock.now())]
                self._gave_up = True
                return
            finally:
                for used in told:
                    emit(used)
            messages = self._news(run)

    async def _is_able(self) -> bool:
        try:
            return "prefill" in await self._runtime.capabilities()
        except Exception:  # planner and joiner, who need the runtime, will say what is wrong
            return False

    def _news(self, run: RunView) -> tuple[Message, ...] | None:
        """What can be read now, where that is enough more than was read, and in time."""
        tasks, outcomes = run.tasks, run.outcomes  # worked out anew at each look
        if len(tasks) > MAX_RESULTS or tasks.keys() <= outcomes.keys():
            return None
        messages = join_prefix(
            tasks,
            outcomes,
            run.faults,
            self._sources(tasks, outcomes),
            final=run.final_round,
            instructions=self._instructions,
        )
        round, read = self._read
        grown = _length(messages) - (read if round == run.round else 0)
        return messages if grown >= LEAST_NEWS else None


def _length(messages: Sequence[Message]) -> int:
    return sum(len(message.content) for message in messages)
