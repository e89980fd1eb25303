"""Several runs at one bank: what the tests of banks and seats are made with."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, TypeVar

from agentpar import Agent, ScriptedRuntime
from agentpar.events import Event
from agentpar.memory.admission import Admission, admission_of
from agentpar.memory.banks import Banks
from agentpar.memory.settings import Memory
from agentpar.memory.store import Store, open_store
from agentpar.session import Session

T = TypeVar("T")
QUESTION = "How many people live in Lima, and how many in Quito?"


class Side:
    """One of several runs on a question, which ``begins`` after so many seconds and writes
    ``plan``. Everything it told is in ``events``."""

    def __init__(
        self,
        plan: str,
        tools: Iterable[Any],
        *,
        begins: float = 0.0,
        ends: float | None = None,
        question: str = QUESTION,
        answers: Iterable[str] = ("Answer: done",),
        **options: Any,
    ) -> None:
        self.runtime = ScriptedRuntime([f"{plan}\njoin()", *answers], chunk=10_000)
        self.tools = list(tools)
        self.begins = begins
        self.ends = ends
        self.question = question
        self.options = options
        self.latencies: dict[str, list[float]] = {}
        self.session: Session | None = None
        self.seconds = 0.0

    @property
    def events(self) -> list[Event]:
        assert self.session is not None
        return self.session.events

    def all(self, kind: type[T]) -> list[T]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def outcomes(self) -> dict[int, Any]:
        assert self.session is not None
        return self.session.machine.outcomes


async def together(
    *sides: Side,
    memory: Memory | None = None,
    run: str = "R",
    admission: Admission | None = None,
    store: Store | None = None,
) -> None:
    """Run them as the teams 1, 2, … of one question."""
    memory = memory or Memory()
    own = Banks(
        memory,
        agent="agent",
        open_store=lambda: store or open_store(memory.bank),
        admission=lambda: admission or admission_of(memory.decides),
    )
    made: list[Agent] = []

    async def one(number: int, side: Side, agent: Agent) -> None:
        await asyncio.sleep(side.begins)
        loop = asyncio.get_running_loop()
        began = loop.time()
        side.session = await agent._session(f"{run}.{number}", side.question, team=number)
        work = asyncio.ensure_future(side.session.run(side.session.started(side.question)))
        if side.ends is not None:
            loop.call_later(side.ends, work.cancel)
        await asyncio.wait([work])
        if not work.cancelled():
            work.result()
        side.seconds = loop.time() - began

    try:
        for side in sides:
            agent = Agent(side.tools, runtime=side.runtime, memory=memory, **side.options)
            agent._latencies = dict(side.latencies)
            if admission is not None or store is not None:
                agent._sharing._banks = own
            elif made:
                agent._sharing = made[0]._sharing  # they are one agent's teams
            made.append(agent)
        async with made[0]._sharing.holding(run):
            await asyncio.gather(*map(one, range(1, 99), sides, made))
    finally:
        for agent in made:
            await agent.aclose()
