"""Fuzzing with the rooms wired: the real joiner's prompts and the real citation check.

A model is never asked: the joiner reads what it would read, and says what it said.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from pathlib import Path

from agentpar.errors import BackendError, UsageError
from agentpar.events import Source, Usage
from agentpar.executor import fuzz
from agentpar.executor.driver import Emit
from agentpar.executor.machine import Join, Machine
from agentpar.executor.record import read_record
from agentpar.memory.evidence import Checked, check
from agentpar.planner.joiner import Joiner
from agentpar.ports import Capability, Clock, ModelRequest
from agentpar.session import Settings, join_request
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

    Without ``settings`` the limits and the risky tools are the record's own. Takes no model
    and no network. Raises `UsageError` for what is no record, and inside a running event
    loop, since virtual time needs one of its own.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        raise UsageError("an event loop is running here already: fuzz in a thread, or outside")
    whole = read_record(record)
    rules = fuzz.Rules(whole.terms.limits, tools or {}, whole.terms.risky)
    if settings is not None:
        rules = fuzz.Rules(
            settings.limits,
            tools or {},
            whole.terms.risky,
            settings.timeout,
            settings.max_result_bytes,
        )
    reciting = _Reciting(instructions, max_answer_tokens)
    return fuzz.fuzz(fuzz.material(whole), rules, reciting.join, seeds)


class _Reciting:
    """Joins with recorded texts. Most schedules read the same sources, so that a check is
    made once for each text and what it was held against."""

    def __init__(self, instructions: str, max_tokens: int) -> None:
        self._instructions = instructions
        self._max_tokens = max_tokens
        self._checked: dict[tuple[str, tuple[Source, ...]], Checked] = {}

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

    def _check(self, text: str, known: Mapping[int, Source]) -> Checked:
        key = text, tuple(known.values())
        if key not in self._checked:
            self._checked[key] = check(text, known)
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
        yield Usage(calls=1, cut=self._said.cut)

    async def capabilities(self) -> frozenset[Capability]:
        return frozenset()

    async def aclose(self) -> None:
        """Nothing to release."""
