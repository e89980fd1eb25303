"""The joiner: streams an answer out of the model, or asks for another plan.

Its plain text is the answer; only a first line ``Replan: why`` is an instruction to us.
What tools returned reaches the model as text to read and can never add a call: asking for
another plan is all that the model can do with it, and the number of plans is bounded.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Protocol

from agentpar.errors import ModelServerError
from agentpar.events import (
    Answered,
    Citation,
    Event,
    JoinStarted,
    JoinText,
    ModelUsed,
    PlanFault,
    ReplanAsked,
    Source,
    Usage,
)
from agentpar.plan import Outcome, Task
from agentpar.planner.prompts import join_messages
from agentpar.planner.reply import reading
from agentpar.ports import Clock, ModelRequest, Runtime
from agentpar.workers import Group, OpenGroup, Workers, think_and_answer


class Checked(Protocol):
    """What a citation check found."""

    @property
    def citations(self) -> tuple[Citation, ...]: ...

    @property
    def unsupported(self) -> tuple[str, ...]: ...


@dataclass(frozen=True, slots=True)
class JoinRequest:
    """What to answer from; ``sources`` are the numbers that an answer may cite.

    A ``final`` request may not ask for another plan.
    """

    question: str
    round: int = 1
    final: bool = True
    tasks: Mapping[int, Task] = field(default_factory=dict)
    outcomes: Mapping[int, Outcome] = field(default_factory=dict)
    faults: Sequence[PlanFault] = ()
    sources: Mapping[int, Source] = field(default_factory=dict)


class Joiner:
    """Asks ``runtime`` for the answer and has ``check`` hold it against what was read: its text,
    the sources, and how every task ended.

    An answer that is cut off at ``max_tokens`` says so in a last line of its own. With several
    ``workers``, ``open_group`` sets them to work on the prompt before the answer is written.
    """

    def __init__(
        self,
        runtime: Runtime,
        check: Callable[[str, Mapping[int, Source], Mapping[int, Outcome]], Checked],
        *,
        instructions: str = "",
        max_tokens: int = 512,
        temperature: float = 0.0,
        seed: int | None = None,
        workers: Workers | None = None,
        open_group: OpenGroup | None = None,
    ) -> None:
        self._runtime = runtime
        self._check = check
        self._instructions = instructions
        self._max_tokens = max_tokens
        self._temperature = temperature
        self._seed = seed
        self._workers = workers
        self._open_group = open_group

    async def join(self, request: JoinRequest, emit: Callable[[Event], None], clock: Clock) -> None:
        """Stream one answer and emit `JoinStarted`, `JoinText`, …, `Answered` or `ReplanAsked`.

        Raises what the runtime raises, and `ModelServerError` where the model wrote nothing.
        """
        emit(JoinStarted(request.round, clock.now()))
        messages = join_messages(
            request.question,
            request.tasks,
            request.outcomes,
            request.faults,
            request.sources,
            final=request.final,
            instructions=self._instructions,
        )
        asked = ModelRequest(
            messages, max_tokens=self._max_tokens, temperature=self._temperature, seed=self._seed
        )
        text = ""
        shown = 0  # characters passed on; the first line waits until it is known not to be Replan
        groups: list[Group] = []
        stream = self._pieces(request.round, asked, emit, clock, groups)

        def tell(used: ModelUsed) -> None:
            if groups:  # it knows, though it was cancelled, what its workers took
                used = replace(used, usage=groups[0].usage)
            emit(used)

        async with reading(stream, asked, clock, tell, "join", request.round) as reply:
            async for piece in reply:
                text += piece
                if shown or not may_replan(text):
                    emit(JoinText(request.round, text[shown:], clock.now()))
                    shown = len(text)
        why = replan_reason(text)
        if why is not None and not request.final:
            emit(ReplanAsked(request.round, why, clock.now()))
            return
        answer = answer_text(text) if why is None else f"No answer was found: {why}"
        within = f"{self._max_tokens} tokens (max_answer_tokens)"
        if not answer:
            at = f" within {within}" if reply.usage.cut else ""
            raise ModelServerError(f"the model wrote an empty answer{at}")
        if shown == 0:
            emit(JoinText(request.round, answer, clock.now()))
        checked = self._check(answer, request.sources, request.outcomes)
        if reply.usage.cut:  # our word, not the model's: nothing to check
            note = f"\n[the answer was cut off after {within}]"
            emit(JoinText(request.round, note, clock.now()))
            answer += note
        emit(Answered(request.round, answer, checked.citations, checked.unsupported, clock.now()))

    async def _pieces(
        self,
        round: int,
        asked: ModelRequest,
        emit: Callable[[Event], None],
        clock: Clock,
        groups: list[Group],
    ) -> AsyncGenerator[str | Usage, None]:
        """The answer as the model writes it, by itself or when workers have thought; their group
        is put into ``groups``."""
        if self._workers is None or self._open_group is None:
            async with aclosing(self._runtime.stream(asked)) as pieces:
                async for piece in pieces:
                    yield piece
            return
        async with self._open_group(asked.messages, self._workers) as group:
            groups.append(group)
            answer = think_and_answer(
                group,
                lambda event: emit(replace(event, round=round, at=clock.now())),
                max_tokens=asked.max_tokens,
                temperature=asked.temperature,
                seed=asked.seed,
            )
            async with aclosing(answer) as texts:
                async for text in texts:
                    yield text
            yield group.usage


_REPLAN = re.compile(r"\s*[*_`]*replan[*_`]*\s*:\s*(?P<why>[^\n]*)", re.IGNORECASE)
_UP_TO_THE_COLON = re.compile(r"replan[*_`]*\s*(:.*)?", re.DOTALL)


def may_replan(text: str) -> bool:
    """Whether ``text``, the beginning of an answer, may still turn out to be ``Replan: …``."""
    start = text.lstrip().lstrip("*_`").lower()
    return "replan".startswith(start) or _UP_TO_THE_COLON.fullmatch(start) is not None


def replan_reason(text: str) -> str | None:
    """What is missing, where ``text`` begins with ``Replan:``; otherwise None."""
    match = _REPLAN.match(text)
    return match.group("why").strip() if match else None


_FINISH = re.compile(r"(?:^|\n)[ \t]*(?:\d+\.[ \t]*)?(?:Action:[ \t]*)?Finish\(")


def answer_text(text: str) -> str:
    """The answer in what the joiner wrote: all of it, or what stands in ``Finish(…)``.

    Up to the last bracket, so that ``Finish(Mission: Impossible (film))`` stays whole.
    """
    text = text.strip()
    if (match := _FINISH.search(text)) and (end := text.rfind(")", match.end())) >= 0:
        return text[match.end() : end].strip()
    return text
