"""What an executor costs: five shapes of plan, ours beside a hand-written loop and peers.

    python bench/executor.py [--repeat N] [--only KEYS] [--llmcompiler PATH] [--save]

Every executor runs the same shapes (`shapes.py`), in turns, so that a noisy machine troubles all
alike, and each shape in a process of its own, so that none pays for what another has left in the
memory. Printed are median (lowest-highest) over the repetitions:
wall seconds, CPU microseconds a task, and these as a multiple of the hand-written loop's (which
carries further than microseconds do: machines differ); for shapes that sleep the wall time as a
multiple of the critical path; and the seconds an executor took to build its graph beforehand.
Each run is checked: every task ran once, after its needs, and got their values.

Peers that are not installed are left out, with a word on how to get them. ``--llmcompiler``
names a checkout of github.com/SqueezeAILab/LLMCompiler (or set LLMCOMPILER). A peer runs three
times at most, and once where that takes long. ``--save`` writes the table to
``results/executor.md``. The exit status is 1 where a gate fails.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import machine_facts
from peers import (
    Executor,
    dask_distributed,
    floor,
    haystack_pipeline,
    langgraph_stategraph,
    llmcompiler,
    ours,
)
from shapes import SHAPES, Shape, tangle

from agentpar.executor.machine import Machine
from agentpar.policy import Limits

CPU_GATE = 15e-6  # seconds of CPU a task, shapes a to c
EVENT_GATE = 10e-6  # seconds a machine event
OVERHEAD_GATES = {"d": 1.05, "e": 1.02}  # multiples of the critical path
LOOP = floor.EXECUTOR.name
GATED = (ours.PLAIN.name, ours.TIMED.name, LOOP)

OURS = (ours.PLAIN, ours.TIMED, floor.EXECUTOR)
PEERS = (  # the module that must be there, what brings it, the peer
    ("langgraph", "agentpar[langgraph]", langgraph_stategraph.EXECUTOR),
    ("haystack", "haystack-ai", haystack_pipeline.EXECUTOR),
    ("distributed", "dask[distributed]", dask_distributed.EXECUTOR),
)


@dataclass(frozen=True, slots=True)
class Run:
    """One repetition, in seconds."""

    build: float
    wall: float
    cpu: float


def measure(executor: Executor, shape: Shape) -> Run:
    """Build and run ``shape`` once, in an event loop of its own."""
    begin = time.perf_counter()
    run = executor.prepare(shape)
    build = time.perf_counter() - begin
    # What was there before is not collected: nobody pays for the imports of another.
    gc.unfreeze()
    gc.collect()
    gc.freeze()

    async def timed() -> Run:
        wall, cpu = time.perf_counter(), time.process_time()
        result = await run()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        if result != shape.depth_sum:
            raise SystemExit(f"{executor.name} ran shape {shape.key} wrong: {result}")
        return Run(build, wall, cpu)

    return asyncio.run(timed())


def event_cost() -> float:
    """Seconds the machine alone takes per event of shape c."""
    shape = SHAPES[2]
    run = ours.Journaled(ours.plan_of(shape))
    asyncio.run(run())
    machine = Machine(Limits(max_tasks=len(shape.nodes)))
    gc.collect()
    begin = time.process_time()
    for event in run.journal:
        machine.handle(event)
    return (time.process_time() - begin) / len(run.journal)


def spread(values: Sequence[float], form: str) -> str:
    """Median (lowest-highest), or the one value there is."""
    middle = format(statistics.median(values), form)
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):{form}}-{max(values):{form}})"


def cpu(runs: Sequence[Run]) -> float:
    """Seconds of a whole run, median."""
    return statistics.median(run.cpu for run in runs)


def rows(shape: Shape, runs: Mapping[str, Sequence[Run]]) -> Iterator[str]:
    """The table of one shape, in Markdown."""
    sleeps = shape.critical_path > 0
    yield f"\n**{shape.key}**: {shape.title}" + (
        f"; critical path {shape.critical_path:.3f} s" if sleeps else ""
    )
    yield (
        "\n| executor | wall s | CPU µs a task | × loop |"
        + (" × critical path |" if sleeps else "")
        + (" build s |")
    )
    yield "|---" * (6 if sleeps else 5) + "|"
    for name, done in runs.items():
        cells = [
            name,
            spread([run.wall for run in done], ".3f"),
            spread([run.cpu / len(shape.nodes) * 1e6 for run in done], ".1f"),
            f"{cpu(done) / cpu(runs[LOOP]):.1f}",
        ]
        if sleeps:
            cells.append(spread([run.wall / shape.critical_path for run in done], ".3f"))
        cells.append(f"{statistics.median(run.build for run in done):.3f}")
        yield "| " + " | ".join(cells) + " |"


def gate(shape: Shape, runs: Mapping[str, Sequence[Run]]) -> tuple[str, bool]:
    """What is asked of ours on this shape, and whether the median is within it."""
    done = runs[ours.PLAIN.name]
    if shape.key in OVERHEAD_GATES:
        limit = OVERHEAD_GATES[shape.key]
        ratio = statistics.median(run.wall for run in done) / shape.critical_path
        return f"{shape.key}: {ratio:.3f} x the critical path, at most {limit}", ratio <= limit
    seconds, loop = (cpu(runs[name]) / len(shape.nodes) for name in (ours.PLAIN.name, LOOP))
    return (
        f"{shape.key}: {seconds * 1e6:.1f} µs CPU a task, at most {CPU_GATE * 1e6:.0f}"
        f" (the hand-written loop: {loop * 1e6:.1f})",
        seconds <= CPU_GATE,
    )


class Runner:
    """An executor in a process of its own, which has run a small plan once."""

    def __init__(self, name: str, checkout: str) -> None:
        self.name = name
        spawn = multiprocessing.get_context("spawn")
        self._process = ProcessPoolExecutor(1, spawn, _become, (name, checkout))

    def __enter__(self) -> Runner:
        self.measure(Shape("w", "to warm up", tangle(10, 3)))
        return self

    def __exit__(self, *_: object) -> None:
        self._process.shutdown()

    def measure(self, shape: Shape) -> Run:
        return self._process.submit(_measure, shape).result()


def _become(name: str, checkout: str) -> None:
    global _executor
    if name == llmcompiler.EXECUTOR.name:
        llmcompiler.use(Path(checkout))
    known = (*OURS, *(peer for *_, peer in PEERS), llmcompiler.EXECUTOR)
    _executor = next(executor for executor in known if executor.name == name)


def _measure(shape: Shape) -> Run:
    return measure(_executor, shape)


_executor: Executor  # of the process that this is


def names(checkout: str) -> Iterator[str]:
    """Ours first, then what is here to compare with; says what is left out, and why."""
    for executor in OURS:
        yield executor.name
    for module, package, peer in PEERS:
        if find_spec(module):
            yield peer.name
        else:
            print(f"without {peer.name}: pip install '{package}'", file=sys.stderr)
    try:
        if not checkout:
            raise ImportError("name a checkout of its repository with --llmcompiler PATH")
        llmcompiler.use(Path(checkout))
        yield llmcompiler.EXECUTOR.name
    except ImportError as error:
        print(f"without LLMCompiler: {error}", file=sys.stderr)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--repeat", type=int, default=5, help="repetitions (5)")
    options.add_argument("--only", default="abcde", help="the shapes to run (abcde)")
    options.add_argument("--llmcompiler", default=os.environ.get("LLMCOMPILER", ""))
    options.add_argument("--save", action="store_true", help="write results/executor.md")
    given = options.parse_args()

    report = [*machine_facts.lines(["langgraph", "haystack-ai", "distributed"])]
    gates: list[tuple[str, bool]] = []
    present = list(names(given.llmcompiler))
    for shape in (shape for shape in SHAPES if shape.key in given.only):
        runs: dict[str, list[Run]] = {name: [] for name in present}
        with ExitStack() as stack:
            runners = [stack.enter_context(Runner(name, given.llmcompiler)) for name in present]
            for turn in range(given.repeat):
                for runner in runners:
                    done = runs[runner.name]
                    # A second for a whole run is enough to see; repeat what is quick to repeat.
                    slow = done and done[0].wall > 20 * shape.critical_path + 1
                    if runner.name in GATED or (turn < 3 and not slow):
                        done.append(runner.measure(shape))
        report += rows(shape, runs)
        gates.append(gate(shape, runs))
    cost = statistics.median(event_cost() for _ in range(given.repeat))
    gates.append((f"machine: {cost * 1e6:.1f} µs CPU an event, at most 10", cost <= EVENT_GATE))

    report.append("\nGates:\n")
    report += [f"- {'PASS' if passed else 'FAIL'} {text}" for text, passed in gates]
    print("\n".join(report))
    if given.save:
        machine_facts.save("executor", "What an executor costs", report)
    return 0 if all(passed for _, passed in gates) else 1


if __name__ == "__main__":
    sys.exit(main())
