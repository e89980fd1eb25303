"""The call that a tool is in: which run and task it is for, and a name that stays the same
when the call is made again.

It must never know how calls are made or kept: it gives them their names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from agentpar.errors import UsageError
from agentpar.events import ModelUsed, WorkersEnded, WorkersStarted, WorkerText
from agentpar.gate import HostGate, Visit, unlimited
from agentpar.quick import quick
from agentpar.tools.base import Tool

Told = WorkersStarted | WorkerText | WorkersEnded | ModelUsed
"""What a call may tell of the model that is at work in it."""

_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


def call_key(tool: Tool, args: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of what decides a call's result: the tool, its version, the inputs.

    Inputs that are equal as JSON give equal keys, whatever the order of their fields. Anything else
    raises `UsageError`: under this key a result stands for a call that is then not made, so it must
    not be made up from how a value prints, as a `agentpar.fingerprint` may be.
    """
    try:
        text = _CANONICAL([tool.name, tool.version, args])
    except (TypeError, ValueError) as error:
        raise UsageError(f"the inputs of {tool.name!r} are no JSON data: {error}") from None
    return hashlib.sha256(text.encode()).hexdigest()


@quick
@dataclass(frozen=True, slots=True)
class CurrentCall:
    """What a tool may know of the call it is in. ``attempt`` counts from 1."""

    run_id: str
    task_id: int
    attempt: int
    tool: Tool
    args: Mapping[str, Any]
    gate: HostGate | None = field(default=None, repr=False, compare=False)
    tell: Callable[[Told], None] = field(default=lambda _: None, compare=False, repr=False)
    """Tell the run what a model is doing in this call; when and for which task is filled in."""

    @property
    def idempotency_key(self) -> str:
        """The same for every attempt of this call, in any process: hand it to the far side.

        64 hex digits, SHA-256 over run, task, tool, its version, and the inputs.
        """
        text = json.dumps([self.run_id, self.task_id, call_key(self.tool, self.args)])
        return hashlib.sha256(text.encode()).hexdigest()


_entered: ContextVar[tuple[CurrentCall, ...]] = ContextVar("agentpar_current_calls", default=())


def current_call() -> CurrentCall:
    """The call that this tool is in, for sync tools as for async ones.

    Raises `UsageError` where no agent is calling, and in a batch of several calls.

    >>> @tool(effect="write", idempotent=True)
    ... def pay(to: str, amount: int) -> str:
    ...     return bank.pay(to, amount, key=current_call().idempotency_key)
    """
    calls = current_calls()
    if len(calls) > 1:
        raise UsageError(
            f"current_call() is for one call, and this is a batch of {len(calls)}: "
            "current_calls() has them in the order of their arguments"
        )
    return calls[0]


def visiting(host: str, patience: float) -> AbstractAsyncContextManager[Visit]:
    """A stay at ``host`` within the limits of the run that the current call is of; see
    `agentpar.gate.Visiting`."""
    calls = _entered.get()
    if not calls or calls[0].gate is None:
        return unlimited(host, patience)
    call = calls[0]  # a batch is one visit, for the first of its calls
    assert call.gate is not None
    return call.gate.visit(host, patience, (call.task_id, call.attempt))


def current_calls() -> tuple[CurrentCall, ...]:
    """The calls that this batch is made of, in the order of their arguments; outside of a batch
    the one call. Raises `UsageError` where no agent is calling."""
    calls = _entered.get()
    if not calls:
        raise UsageError("current_call() is for tools that an agent calls; here nobody does")
    return calls


def entered_calls() -> tuple[CurrentCall, ...]:
    """What `current_calls` gives; nothing where no agent is calling."""
    return _entered.get()


def enter_calls(*calls: CurrentCall) -> None:
    """Make ``calls`` the current ones of this coroutine and of all that it starts."""
    _entered.set(calls)
