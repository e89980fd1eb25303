"""One run's dealings with its journal: what is written when, and which calls are made again.

It sits between driver and journal and starts nothing. It must never know how a call is made
or where the journal lies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Protocol

from agentpar.events import Event, RunFinished, TaskStarted
from agentpar.executor.commands import Execute
from agentpar.executor.journal.calls import PastCalls
from agentpar.executor.machine import Machine
from agentpar.executor.setup import Setup
from agentpar.gate import HostGate
from agentpar.plan import Outcome
from agentpar.tools.base import Tool
from agentpar.tools.call import CurrentCall, Told, call_key, enter_calls


class Rows(Protocol):
    """One run's place in a journal (`RunJournal`), as far as calls go."""

    @property
    def calls(self) -> PastCalls:
        """What is known of calls that were made already."""
        ...

    def append(self, event: Event, key: str = "") -> None:
        """Write ``event`` soon; ``key`` is that of the call which it begins."""
        ...

    async def flush(self) -> None:
        """Wait until all that was appended is on disk."""
        ...


class Ledger:
    """Of the run ``run_id`` that ``machine`` decides; without a journal it only names calls.

    The calls are handed ``gate``, where they wait for hosts.
    ``setup`` is what the agent was when the run began, where that is known: in one run a call
    keeps its name, though its tool be of another version by now.
    """

    def __init__(
        self,
        run_id: str,
        machine: Machine,
        journal: Rows | None = None,
        gate: HostGate | None = None,
        setup: Setup | None = None,
    ) -> None:
        self._run_id = run_id
        self._machine = machine
        self._journal = journal
        self._gate = gate
        self._setup = setup
        self._keys: dict[int, str] = {}
        self._tools: dict[str, Tool] = {}
        self.emit: Callable[[Event], None] = lambda _: None
        """Where what calls tell of themselves goes."""

    def known(self, call: Execute, tool: Tool) -> Outcome | None:
        """What stands in place of ``call``; None where it is to be made."""
        if self._journal is None:
            return None
        tool = self._named(tool)
        key = self._keys[call.task.id] = call_key(tool, call.args)
        return self._journal.calls.outcome(call.task.id, key, tool)

    async def intend(self, call: Execute, tool: Tool) -> None:
        """Right before ``call`` is made, in its coroutine: it gets its name, and that it begins
        is on disk if it will change something.

        Raises `JournalError`: such a call must then not be made.
        """
        tool = self._named(tool)
        current = CurrentCall(
            self._run_id,
            call.task.id,
            call.attempt,
            tool,
            call.args,
            self._gate,
            partial(self._tell, call),
        )
        enter_calls(current)
        if self._journal is not None and tool.sink:
            await self._journal.flush()

    def held_back(self, task_id: int, attempt: int) -> float:
        """Seconds that an attempt has waited at the gate."""
        return 0.0 if self._gate is None else self._gate.held_back((task_id, attempt))

    def _tell(self, call: Execute, event: Told) -> None:
        round, id = self._machine.round, call.task.id
        self.emit(replace(event, round=round, task_id=id, attempt=call.attempt))

    def observe(self, event: Event) -> None:
        """Write ``event`` to the journal. Raises what keeps it from being written.

        The end of a run that broke off is not written: it goes on one day.
        """
        if self._journal is None:
            return
        if isinstance(event, RunFinished) and self._machine.finished is None:
            return
        key = self._keys.pop(event.task_id, "") if isinstance(event, TaskStarted) else ""
        self._journal.append(event, key)

    def _named(self, tool: Tool) -> Tool:
        """``tool`` as its calls are named in this run: worked out once, for a copy of a tool takes
        longer than all else that a call is handed."""
        if self._setup is None:
            return tool
        named = self._tools.get(tool.name)
        if named is None:
            named = self._tools[tool.name] = self._setup.tool(tool)
        return named
