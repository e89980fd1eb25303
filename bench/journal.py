"""What a journal costs: events a second, and microseconds added to a task.

    python bench/journal.py [--tasks N] [--repeat N] [--postgres URL] [--save]

One run of N calls that do nothing, through driver and ledger: without a journal, then into
SQLite and, where a URL is given, into Postgres, in turns. "until flushed" counts until the last
event is on disk. A write waits for the disk before its call; that wait is measured on a chain of
writes. The directory of the SQLite file is the current one, as disks differ.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import machine_facts

from agentpar import Tool, tool
from agentpar.events import Answered, PlanEnded, RunStarted, TaskPlanned
from agentpar.executor.commands import Join, Plan
from agentpar.executor.driver import Driver, Emit
from agentpar.executor.journal import Journal, RunJournal, open_journal
from agentpar.executor.ledger import Ledger
from agentpar.executor.machine import Machine
from agentpar.ids import new_run_id
from agentpar.plan import Ref, Task
from agentpar.policy import Limits


@tool
async def read(n: int) -> int:
    """Nothing."""
    return n


@tool(effect="write")
async def write(n: int) -> int:
    """Nothing, but it says that it changes something."""
    return n


@dataclass(frozen=True, slots=True)
class Run:
    """Seconds of one run, and how many events it had."""

    events: int
    wall: float
    flushed: float
    cpu: float


async def one_run(tasks: list[Task], tools: list[Tool], journal: Journal | None) -> Run:
    """Drive ``tasks`` and, with a journal, wait until all is on disk."""

    async def plan(command: Plan, emit: Emit) -> None:
        for task in tasks:
            emit(TaskPlanned(command.round, task))
        emit(PlanEnded(command.round))

    async def join(command: Join, emit: Emit) -> None:
        emit(Answered(command.round, "done"))

    run_id = f"{new_run_id()}-{time.perf_counter_ns()}"
    kept: RunJournal | None = None if journal is None else await journal.begin(run_id, "?")
    machine = Machine(Limits(max_tasks=len(tasks)))
    ledger = Ledger(run_id, machine, kept)
    count = 0

    def counted(event: object) -> None:
        nonlocal count
        count += 1

    driver = Driver(
        machine,
        tools={one.name: one for one in tools},
        plan=plan,
        join=join,
        calls=ledger,
        observers=[ledger.observe, counted],
    )
    cpu, began = time.process_time(), time.perf_counter()
    await driver.run(RunStarted(run_id, "?"))
    wall = time.perf_counter() - began
    if kept is not None:
        await kept.close("answered")
    flushed = time.perf_counter() - began
    return Run(count, wall, flushed, time.process_time() - cpu)


async def measured(arguments: argparse.Namespace, folder: Path) -> Iterator[str]:
    wide = [Task.of(n, "read", n=n) for n in range(1, arguments.tasks + 1)]
    chain = [Task.of(1, "write", n=1)]
    chain += [Task.of(n, "write", n=Ref(n - 1)) for n in range(2, arguments.writes + 1)]
    urls = {"none": None, "SQLite": f"sqlite:///{folder}/j.db"}
    if arguments.postgres:
        urls["Postgres"] = arguments.postgres
    journals = {name: open_journal(url) if url else None for name, url in urls.items()}
    for journal in journals.values():
        if journal is not None:
            await journal.start()
    found: dict[str, list[tuple[Run, Run]]] = {name: [] for name in journals}
    for _ in range(arguments.repeat):
        for name, journal in journals.items():
            found[name].append(
                (await one_run(wide, [read], journal), await one_run(chain, [write], journal))
            )
    for journal in journals.values():
        if journal is not None:
            await journal.stop()
    return _table(found, arguments)


def _table(found: dict[str, list[tuple[Run, Run]]], arguments: argparse.Namespace) -> Iterator[str]:
    yield f"{arguments.tasks:,} reads at once, {arguments.writes} writes in a chain; the median of"
    yield f"{arguments.repeat} runs in turns, and in brackets the least and the most."
    yield ""
    yield "| journal | events/s until flushed | µs CPU a task | added µs a task | ms a write |"
    yield "|---|---|---|---|---|"
    base = [run.cpu for run, _ in found["none"]]
    for name, runs in found.items():
        rates = [run.events / run.flushed for run, _ in runs]
        cpu = [run.cpu / arguments.tasks * 1e6 for run, _ in runs]
        # Each run beside the one without a journal of the same turn: both had the same machine.
        added = [
            (run.cpu - alone) / arguments.tasks * 1e6
            for (run, _), alone in zip(runs, base, strict=True)
        ]
        writes = [run.wall / arguments.writes * 1e3 for _, run in runs]
        yield (
            f"| {name} | {_spread(rates, ',.0f')} | {_spread(cpu, '.1f')} "
            f"| {'–' if name == 'none' else _spread(added, '.1f')} | {_spread(writes, '.2f')} |"
        )


def _spread(values: Sequence[float], form: str) -> str:
    """Median, least and most."""
    return f"{statistics.median(values):{form}} [{min(values):{form}}, {max(values):{form}}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tasks", type=int, default=5000)
    parser.add_argument("--writes", type=int, default=100)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--postgres", metavar="URL", help="of a database that may be written to")
    parser.add_argument("--save", action="store_true", help="write results/journal.md")
    arguments = parser.parse_args()
    facts = list(machine_facts.lines(["psycopg"] if arguments.postgres else []))
    with tempfile.TemporaryDirectory(dir=".") as folder:
        table = list(asyncio.run(measured(arguments, Path(folder).resolve())))
    report = [*facts, "", *table]
    sys.stdout.write("\n".join(report) + "\n")
    if arguments.save:
        machine_facts.save("journal", "What a journal costs", report)


if __name__ == "__main__":
    main()
