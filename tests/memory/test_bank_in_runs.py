"""Runs that share what they find: an equal call is made once, and trouble stays with the bank."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sharing import Side, together

from agentpar import Failed, Tool, tool
from agentpar.events import (
    BankFailed,
    EntryOffered,
    EntryUsed,
    LeaseAwaited,
    TaskDone,
)
from agentpar.executor.simulate import run as in_virtual_time
from agentpar.memory.settings import Memory
from agentpar.plan import Ok

ALL = Memory(admission="all")


class Town:
    """A tool that counts its calls and takes ``seconds`` for each."""

    def __init__(self, seconds: float = 2.0, **policy: Any) -> None:
        self.calls: list[str] = []
        self.seconds = seconds
        self.failures: list[Exception | float] = []
        self.value: Any = None

        @tool(words=("query",), **policy)
        async def lookup(query: str) -> Any:
            """Look something up. query: what."""
            self.calls.append(query)
            this = self.failures.pop(0) if self.failures else self.seconds
            if isinstance(this, Exception):
                await asyncio.sleep(self.seconds)
                raise this
            await asyncio.sleep(this)
            return f"all about {query}" if self.value is None else self.value

        self.tool: Tool = lookup


def test_an_equal_call_is_made_once() -> None:
    """Two teams ask the same at once: one calls, the other waits and has the result then."""
    town = Town()
    one = Side('1. lookup(query="Lima")', [town.tool])
    two = Side('1. lookup(query="Lima")', [town.tool])
    in_virtual_time(together(one, two, memory=ALL))
    assert town.calls == ["Lima"]
    assert one.outcomes == two.outcomes == {1: Ok("all about Lima")}
    [awaited], [used] = two.all(LeaseAwaited), two.all(EntryUsed)
    assert awaited.holder == used.producer == ("R.1", 1)
    assert (awaited.team, used.team, used.spared) == (1, 1, 2.0)
    assert [event.via for event in two.all(TaskDone)] == ["bank"]
    [offered] = one.all(EntryOffered)
    assert (offered.admitted, offered.policy) == (True, "all")
    assert two.seconds == pytest.approx(one.seconds, abs=0.2)
