"""Commands: what the machine wants done. Values; the driver performs them.

Events say what has happened, commands what is wanted because of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from agentpar.labels import TRUSTED, Label
from agentpar.plan import Outcome, Task
from agentpar.quick import quick


@dataclass(frozen=True, slots=True)
class Plan:
    """Ask the planner for tasks numbered from ``first_id``; ``why`` is set when replanning."""

    round: int
    first_id: int
    why: str = ""


@quick
@dataclass(frozen=True, slots=True)
class Execute:
    """Call the task's tool with ``args``, in which every reference is already a value.

    With ``retry``, a failure of this attempt is not yet one of the task: tell it as
    `AttemptFailed`.
    """

    task: Task
    args: Mapping[str, Any] = field(default_factory=dict)
    attempt: int = 1
    retry: bool = False


@dataclass(frozen=True, slots=True)
class Settle:
    """No call is needed: the task has ended with ``outcome``; ``via`` as in `TaskDone`."""

    task_id: int
    outcome: Outcome
    via: str = ""


@dataclass(frozen=True, slots=True)
class Expand:
    """The task is one call for each element of a list: plan these."""

    task_id: int
    parts: tuple[Task, ...]


@dataclass(frozen=True, slots=True)
class Ask:
    """Get approval before this call; an answer counts only if it says what it is ``bound`` to.

    ``label`` says where its data come from, ``because`` why it needs approval.
    """

    task: Task
    args: Mapping[str, Any] = field(default_factory=dict)
    label: Label = TRUSTED
    because: str = ""
    bound: str = ""


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop what an earlier command began: an attempt of a call, a question to the approver
    (``id``: the task's), the planner or the joiner (``id``: the round's)."""

    what: Literal["call", "ask", "plan", "join"]
    id: int
    attempt: int = 0
    why: str = ""


@dataclass(frozen=True, slots=True)
class Wake:
    """Tell `Woke` at this time (seconds of the run), unless a later `Wake` names an earlier."""

    at: float


@dataclass(frozen=True, slots=True)
class Join:
    """Ask the joiner for an answer; a ``final`` one may not ask for another plan. ``why`` names
    the limit that leaves some of the plan undone."""

    round: int
    final: bool
    why: str = ""


@dataclass(frozen=True, slots=True)
class Conclude:
    """No model can be asked any more, because of ``why``: answer from what is known."""

    round: int
    why: str


@dataclass(frozen=True, slots=True)
class Finish:
    status: Literal["answered", "failed"]
    error: str = ""


Command = Plan | Execute | Expand | Settle | Ask | Cancel | Wake | Join | Conclude | Finish
