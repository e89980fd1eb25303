"""agentpar: the machine and its driver, a real `@tool`, events kept in a list as the journal.

64 calls at once, as an `Agent` has it where nobody says otherwise.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from shapes import Shape

from agentpar import tool
from agentpar.events import Answered, Event, PlanEnded, RunStarted, TaskPlanned
from agentpar.executor.commands import Join, Plan
from agentpar.executor.driver import Driver, Emit
from agentpar.executor.machine import Machine
from agentpar.plan import Ok, Ref, Task
from agentpar.policy import Limits
from peers import Executor


@tool
async def work(id: int, seconds: float, after: list[int]) -> int:
    """Sleep, then return the depth of this task. after: the depths of what it needs."""
    if seconds:
        await asyncio.sleep(seconds)
    return 1 + max(after, default=0)


def plan_of(shape: Shape) -> list[Task]:
    return [
        Task.of(
            node.id,
            "work",
            id=node.id,  # no two calls are the same, which would run once
            seconds=node.seconds,
            after=[Ref(need) for need in node.needs],
        )
        for node in shape.nodes
    ]


@dataclass
class Journaled:
    """One run, its journal readable afterwards. ``timeout`` in seconds for each call."""

    tasks: list[Task]
    timeout: float | None = None
    journal: list[Event] = field(default_factory=list)

    async def __call__(self) -> int:
        policies = {work.name: work.policy}
        machine = Machine(Limits(max_tasks=len(self.tasks)), policies=policies)
        driver = Driver(
            machine,
            tools={work.name: work},
            plan=self._plan,
            join=self._join,
            timeout=self.timeout,
            observers=[self.journal.append],
        )
        self._clock = driver.clock
        await driver.run(RunStarted("bench", "run the shape"))
        return sum(outcome.value for outcome in machine.outcomes.values() if type(outcome) is Ok)

    async def _plan(self, command: Plan, emit: Emit) -> None:
        for task in self.tasks:
            emit(TaskPlanned(command.round, task, self._clock.now()))
        emit(PlanEnded(command.round, self._clock.now()))

    async def _join(self, command: Join, emit: Emit) -> None:
        emit(Answered(command.round, "done", at=self._clock.now()))


PLAIN = Executor("agentpar", lambda shape: Journaled(plan_of(shape)))
TIMED = Executor("agentpar, 60 s limit a call", lambda shape: Journaled(plan_of(shape), 60.0))
