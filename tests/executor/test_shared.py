"""Runs that share their calls with other teams, on the schedules of the executor: with faults,
limits, crashes and cancellation, every promise holds, and what another found counts as its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from random import Random
from typing import Any

import pytest

from agentpar.events import AttemptFailed, LeaseAwaited, TaskDone
from agentpar.executor.draws import drawn
from agentpar.executor.driver import Emit
from agentpar.executor.invariants import broken
from agentpar.executor.perform import perform
from agentpar.executor.schedules import value_of
from agentpar.plan import Failed, Ok, Outcome
from agentpar.tools.base import Tool

THEIRS = Failed("another's attempt failed")


class Claim:
    def __init__(self, found: Outcome | None) -> None:
        self.found = found

    retry_after: float | None = None

    async def settle(
        self, outcome: Outcome, seconds: float, retry_after: float | None = None
    ) -> None:
        await asyncio.sleep(0)


class Others:
    """Other teams: some have the result already, some make the call and bring it or do not."""

    def __init__(self, seed: int, tell: Emit) -> None:
        self._seed = seed
        self._tell = tell

    @asynccontextmanager
    async def claim(
        self, tool: Tool, args: Mapping[str, Any], task_id: int, attempt: int
    ) -> AsyncIterator[Claim]:
        chance = Random(f"{self._seed} {args['me']} {attempt}")
        how = chance.choice(("nobody", "nobody", "there", "waits", "waits in vain", "waits, fails"))
        if how.startswith("waits"):
            self._tell(LeaseAwaited(task_id, ("R.2", 1), 2, attempt=attempt))
            await asyncio.sleep(chance.choice((0.0, 0.01, 0.5, 5.0)))
        found: Outcome | None = None
        if how in ("there", "waits"):
            found = Ok(value_of(tool.name, args))
        elif how == "waits, fails" and attempt <= tool.policy.retries:
            found = THEIRS
        yield Claim(found)

    async def stands(self, tool: Tool, args: Mapping[str, Any], outcome: Ok, task_id: int) -> bool:
        return True


@pytest.mark.parametrize("first", range(0, 400, 100))
def test_the_promises_hold_beside_other_teams(first: int) -> None:
    """Nothing is lost, overspent, made twice or left behind, and every record replays."""
    used = waited = 0
    for seed in range(first, first + 100):
        performed = perform(drawn(seed), partial(Others, seed))
        wrong = broken(performed)
        if any(isinstance(e, AttemptFailed) and e.outcome == THEIRS for e in performed.events):
            # Whether a call goes well is no longer its own affair, as it is one by one.
            wrong = [which for which in wrong if not which.startswith("as_one_by_one")]
        assert not wrong, f"seed {seed}: {wrong}"
        ends = [event for event in performed.events if isinstance(event, TaskDone)]
        used += sum(event.via == "bank" for event in ends)
        waited += sum(isinstance(event, LeaseAwaited) for event in performed.events)
    assert used > 20
    assert waited > 20
