"""``agentpar graph --proof``: the plan, the tools and the rules that a proof is about.

It starts an agent's tool sources (an MCP server) to learn what their tools do, calls no tool
and no model, and stops them again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from agentpar.cli.records import find_run, read_text
from agentpar.errors import PlanError, UsageError

if TYPE_CHECKING:  # loads when something is proved, not when the command line is
    from agentpar.executor.proof import Proof
    from agentpar.permissions import Permissions
    from agentpar.plan import Task
    from agentpar.tools.base import Tool


def tell(plan: str, runs: Path, agent: Path | None, modules: tuple[str, ...]) -> int:
    """Print the proof of a run or of a plan in a text file; the exit code."""
    from agentpar.executor.proof import describe, prove

    if not plan.endswith(".txt"):
        proof = _of_run(find_run(plan, runs), agent, modules)
    elif agent is None:
        raise UsageError(
            f"{plan} does not say what its tools do: add --agent agent.yaml (a recorded run knows)"
        )
    else:
        tools, permissions = _known(agent, modules)
        proof = prove(_tasks(Path(plan), tools), permissions)
    typer.echo(describe(proof), nl=False)
    return 1 if proof.unapproved else 0


def _of_run(record: Path, agent: Path | None, modules: tuple[str, ...]) -> Proof:
    """The proof of all plans of a run, under its own permissions or those of ``agent``."""
    from agentpar.executor.machine import Machine
    from agentpar.executor.proof import prove
    from agentpar.executor.record import read_record

    recorded = read_record(record)
    permissions = recorded.terms.permissions if agent is None else _known(agent, modules)[1]
    machine = Machine(recorded.terms.limits, permissions)
    for event in recorded.events:
        machine.handle(event)
    return prove(machine.tasks.values(), permissions, machine.read)


def _known(agent: Path, modules: tuple[str, ...]) -> tuple[Mapping[str, Tool], Permissions]:
    """The agent's tools, those of its sources included, and what its rules make of them."""
    from agentpar.config import load
    from agentpar.permissions import Permissions
    from agentpar.thinking import planned_think
    from agentpar.tools.base import ToolSource
    from agentpar.tools.function import toolbox

    arguments = load(agent, allow_modules=modules).arguments()

    async def tools() -> Mapping[str, Tool]:
        workers = arguments.get("workers")
        things: list[object] = [] if workers is None else [planned_think(workers)]
        async with AsyncExitStack() as stack:
            for thing in arguments["tools"]:
                if isinstance(thing, ToolSource):
                    stack.push_async_callback(thing.stop)
                    things += await thing.start()
                else:
                    things.append(thing)
        return toolbox(things)

    box = asyncio.run(tools())
    return box, Permissions.of(box, arguments["permissions"])


def _tasks(path: Path, tools: Mapping[str, Tool]) -> list[Task]:
    """The tasks that the planner would make of a plan; a line that could not run is told."""
    from agentpar.planner.binding import bind
    from agentpar.planner.parser import BadLine, Call, PlanParser

    parser = PlanParser()
    tasks: dict[int, Task] = {}
    for item in [*parser.feed(read_text(path)), *parser.close()]:
        match item:
            case Call():
                try:
                    tasks[item.id] = bind(item, tools, tasks)
                except PlanError as error:
                    typer.echo(f"{path}: left out, as it would not run: {error}", err=True)
            case BadLine(line, message):
                typer.echo(f"{path}: left out, as it would not run: {message}: {line!r}", err=True)
    if not tasks:
        raise UsageError(f"{path} holds no call that these tools could run")
    return list(tasks.values())
