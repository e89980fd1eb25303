"""One run of a plan on agentpar's own machine and driver, with no model: planned at once.

What the benches of policies share. Real or virtual time is the caller's choice of event loop.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from agentpar.events import Answered, Event, PlanEnded, RunStarted, TaskPlanned
from agentpar.executor.commands import Join, Plan
from agentpar.executor.driver import Driver, Emit, RunClock
from agentpar.executor.machine import Machine
from agentpar.plan import Task
from agentpar.policy import Limits
from agentpar.tools.base import Tool


async def perform(
    tasks: Sequence[Task],
    tools: Iterable[Tool],
    *,
    slots: int,
    latencies: Mapping[str, Sequence[float]] | None = None,
    machine: type[Machine] = Machine,
) -> tuple[Machine, list[Event]]:
    """Run ``tasks`` with ``slots`` calls at once; the machine afterwards, and every event.

    ``latencies`` are seconds that earlier runs have seen, by tool.
    """
    by_name = {tool.name: tool for tool in tools}
    deciding = machine(
        Limits(max_tasks=len(tasks), concurrency=slots),
        policies={name: tool.policy for name, tool in by_name.items()},
        latencies=latencies,
    )
    events: list[Event] = []

    async def plan(command: Plan, emit: Emit) -> None:
        for task in tasks:
            emit(TaskPlanned(command.round, task, clock.now()))
        emit(PlanEnded(command.round, clock.now()))

    async def join(command: Join, emit: Emit) -> None:
        emit(Answered(command.round, "done", at=clock.now()))

    clock = RunClock()
    driver = Driver(
        deciding, tools=by_name, plan=plan, join=join, clock=clock, observers=[events.append]
    )
    await driver.run(RunStarted("bench", "run the plan"))
    return deciding, events
