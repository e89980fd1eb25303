"""How an approver is asked.

It never decides: what is asked for is the machine's choice, and what the answer means, too.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable

from agentpar.executor.commands import Ask

Approve = Callable[..., Awaitable[bool | str] | bool | str]
"""``approve(task, args)``, sync or async, says whether a call may run: True, or False, or the
reason why not. One that names a parameter ``label`` is told where the call's data come from
(`agentpar.labels.Label`)."""


def consult(approve: Approve, ask: Ask) -> Awaitable[bool | str] | bool | str:
    """Ask ``approve`` for this call."""
    if "label" in inspect.signature(approve).parameters:
        return approve(ask.task, ask.args, label=ask.label)
    return approve(ask.task, ask.args)
