"""Fuzzing with the rooms wired: the real joiner's prompts and the real citation check.

A model is never asked: the joiner reads what it would read, and says what it said.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from agentpar.errors import BackendError, UsageError
from agentpar.events import Answered, Event, Source, TeamStarted, Usage
from agentpar.executor import fuzz
from agentpar.executor.commands import Conclude, Join
from agentpar.executor.driver import Emit
from agentpar.executor.machine import Machine
from agentpar.executor.record import Terms, read_record
from agentpar.memory.evidence import Checked, check
from agentpar.permissions import Permissions
from agentpar.plan import Ok, Outcome
from agentpar.planner.joiner import Joiner
from agentpar.ports import Capability, Clock, ModelRequest
from agentpar.session import Settings, conclusion, join_request
from agentpar.tools.base import Tool


def fuzz_run(
    record: Path,
    seeds: Iterable[int],
    *,
    settings: Settings | None = None,
    tools: Mapping[str, Tool] | None = None,
    instructions: str = "",
    max_answer_tokens: int = 512,
) -> fuzz.Report:
    """Run the recorded run again under each of ``seeds``; what it decides, compared.

    ``settings`` and ``tools`` are an agent's: its limits and its tools' policies hold, and for
    tools that are not given, or without settings, what the record says. Takes no model and no
    network. Raises `UsageError` for what is no record, and inside a running event loop, since
    virtual time needs one of its own.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        raise UsageError("an event loop is running here already: fuzz in a thread, or outside")
    whole = read_record(record)
    if teams := [event.run_id for event in whole.events if isinstance(event, TeamStarted)]:
        raise UsageError(
            f"{str(record)!r} is about several teams and has no call of its own: each team's run "
            f"has its record, {', '.join(teams)}"
        )
    rules = fuzz.Rules(whole.terms)
    if settings is not None:
        terms = _terms(whole.terms, settings, tools or {})
        rules = fuzz.Rules(terms, settings.timeout, settings.max_result_bytes)
    reciting = _Reciting(instructions, max_answer_tokens)
    return fuzz.fuzz(fuzz.material(whole), rules, seeds, join=reciting.join, conclude=_conclude)


def _terms(recorded: Terms, settings: Settings, tools: Mapping[str, Tool]) -> Terms:
    """The record's terms with what the agent says now."""
    flows = {n: flow for n, flow in recorded.permissions.flows.items() if n not in tools}
    given = Permissions.of(tools, settings.permissions)
    return replace(
        recorded,
        limits=settings.limits,
        permissions=replace(given, flows={**flows, **given.flows}),
        policies={**recorded.policies, **{name: tool.policy for name, tool in tools.items()}},
    )


def _conclude(command: Conclude, machine: Machine, events: Iterable[Event], at: float) -> Answered:
    return conclusion(machine, command, events, at)


class _Reciting:
    """Joins with recorded texts. Most schedules read the same sources, so that a check is
    made once for each text and what it was held against."""

    def __init__(self, instructions: str, max_tokens: int) -> None:
        self._instructions = instructions
        self._max_tokens = max_tokens
        self._checked: dict[tuple[str, tuple[Source, ...], str], Checked] = {}

    async def join(
        self,
        command: Join,
        machine: Machine,
        said: fuzz.Said,
        emit: Emit,
        clock: Clock,
        read: Callable[[str], None],
    ) -> None:
        joiner = Joiner(
            _Recited(said, read),
            self._check,
            instructions=self._instructions,
            max_tokens=self._max_tokens,
        )
        await joiner.join(join_request(machine, command), emit, clock)

    def _check(
        self, text: str, known: Mapping[int, Source], outcomes: Mapping[int, Outcome]
    ) -> Checked:
        lost = {id: outcome for id, outcome in outcomes.items() if not isinstance(outcome, Ok)}
        key = text, tuple(known.values()), repr(lost)
        if key not in self._checked:
            self._checked[key] = check(text, known, outcomes)
        return self._checked[key]


class _Recited:
    """A runtime that hears a prompt and says what was said."""

    def __init__(self, said: fuzz.Said, read: Callable[[str], None]) -> None:
        self._said = said
        self._read = read

    async def stream(self, request: ModelRequest) -> AsyncGenerator[str | Usage, None]:
        self._read("\n".join(f"{message.role}: {message.content}" for message in request.messages))
        await asyncio.sleep(self._said.seconds)
        if self._said.error:
            raise BackendError(self._said.error)
        yield self._said.text
        yield self._said.usage

    async def capabilities(self) -> frozenset[Capability]:
        return frozenset()

    async def aclose(self) -> None:
        """Nothing to release."""
