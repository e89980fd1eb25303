"""Hedging: what a second call for stragglers does to the slowest calls, and what it costs.

    python bench/hedging.py [--repeat N] [--only KEYS] [--seed N] [--save]

The real driver on the real clock, tools that sleep. 60 chains of 15 calls each run side by side,
so 900 calls to a run. How long a call takes is drawn from one of the shapes below by the seed,
the call and the attempt, so each variant meets the same stragglers, and a second call is a draw
of its own. A typical call takes some 20 ms; the main shape follows the picture that Dean and
Barroso draw ("The Tail at Scale", Communications of the ACM 56(2), 2013): nearly all calls are
quick, a few are slower by an order of magnitude and more, for reasons that a second call does
not meet again. Other shapes are there because hedging must lose on them.

Three variants in turns: without ``hedge``; with it, latencies learned from nothing within the
run (the calls before that are in the numbers); with it, beginning with what the run before has
learned. A call's latency is from the start of its first attempt to its result. Printed are
medians over the repetitions (of p99 the lowest and the highest, too), extra calls over all.

The gates ask on the main shape, of both variants: p99 at most half, extra calls at most 5 %. The
exit status is 1 where one fails.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import machine_facts
from one_run import perform

from agentpar import tool
from agentpar.events import TaskDone, TaskStarted
from agentpar.plan import Ok, Ref, Task
from agentpar.tools.base import Tool

CHAINS, LENGTH = 60, 15
LONGEST = 1.0  # seconds: where every tail is cut, so that a run ends
P99_GATE = 0.5  # of the p99 without hedging
EXTRA_GATE = 0.05  # of all calls

Draw = Callable[[random.Random], float]
"""Seconds that one call takes."""


def body(draw: random.Random) -> float:
    """Lognormal around 20 ms; nineteen of twenty take 12 to 33 ms."""
    return 0.020 * math.exp(draw.gauss(0.0, 0.25))


def straggling(share: float) -> Draw:
    """``body``, of which ``share`` take at least 200 ms, with a Pareto tail."""

    def seconds(draw: random.Random) -> float:
        if draw.random() < share:
            return min(LONGEST, 0.2 * draw.paretovariate(1.5))
        return body(draw)

    return seconds


def lognormal(sigma: float) -> Draw:
    return lambda draw: min(LONGEST, 0.020 * math.exp(draw.gauss(0.0, sigma)))


def pareto(alpha: float) -> Draw:
    """At least 10 ms."""
    return lambda draw: min(LONGEST, 0.010 * draw.paretovariate(alpha))


@dataclass(frozen=True, slots=True)
class Shape:
    """A far side. ``slots`` bounds the run's calls at once. Where a call is ``stuck``, each
    attempt takes equally long; ``flat``: the calls are independent, and all are ready at once.
    ``servers`` is how many calls the far side works on at once; it
    does not notice that a call was cancelled, as most do not."""

    key: str
    title: str
    seconds: Draw
    slots: int = 2 * CHAINS
    stuck: bool = False
    flat: bool = False
    servers: int | None = None


SHAPES = (
    Shape(
        "a", "main: lognormal 20 ms, 2 % stragglers from 200 ms on (Pareto 1.5)", straggling(0.02)
    ),
    Shape("b", "lognormal, sigma 1", lognormal(1.0)),
    Shape("c", "Pareto 1.5 from 10 ms on", pareto(1.5)),
    Shape("d", "as a, but places for half of the chains only", straggling(0.02), slots=CHAINS // 2),
    Shape("e", "no tail: lognormal 20 ms alone", body),
    Shape("f", "as a, but 10 % straggle: more than the extra calls may cover", straggling(0.1)),
    Shape("g", "as a, but a slow call is slow each time", straggling(0.02), stuck=True),
    Shape(
        "h",
        "as a, but independent calls that all wait for a place: a second call waits behind them",
        straggling(0.02),
        slots=CHAINS // 2,
        flat=True,
    ),
    Shape("i", "20 ms behind a far side that works on 45 calls at once", body, servers=45),
)
MAIN = SHAPES[0]


@dataclass
class FarSide:
    """What is called: sleeps as long as the shape and the seed say for each attempt."""

    shape: Shape
    seed: str
    _attempts: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._free = None if self.shape.servers is None else asyncio.Semaphore(self.shape.servers)
        self._working: set[asyncio.Task[None]] = set()

    async def __call__(self, id: int) -> None:
        attempt = self._attempts[id] = self._attempts.get(id, 0) + 1
        drawn = random.Random(f"{self.seed}/{id}/{1 if self.shape.stuck else attempt}")
        seconds = self.shape.seconds(drawn)
        if self._free is None:
            await asyncio.sleep(seconds)
            return
        work = asyncio.create_task(self._work(self._free, seconds))
        self._working.add(work)
        work.add_done_callback(self._working.discard)
        await asyncio.shield(work)

    async def _work(self, free: asyncio.Semaphore, seconds: float) -> None:
        async with free:
            await asyncio.sleep(seconds)

    async def quiet(self) -> None:
        """Wait for what nobody waits for any more."""
        await asyncio.gather(*self._working)


@dataclass(frozen=True, slots=True)
class Run:
    """One run: seconds of each call and of the whole, extra calls, and what was learned."""

    latencies: list[float]
    seconds: float
    extra: int
    learned: Mapping[str, Sequence[float]]


def call(hedge: bool, far: FarSide) -> Tool:
    @tool(name="call", hedge=hedge)
    async def calling(id: int, after: int) -> int:
        """Ask the far side. after: the call before."""
        await far(id)
        return id

    return calling


def plan(shape: Shape) -> list[Task]:
    """Chains, numbered across: the first calls of all, then the second; or no chains."""
    first = CHAINS * LENGTH if shape.flat else CHAINS
    return [
        Task.of(id, "call", id=id, after=Ref(id - CHAINS) if id > first else 0)
        for id in range(1, CHAINS * LENGTH + 1)
    ]


async def measure(
    shape: Shape, seed: str, *, hedge: bool, known: Mapping[str, Sequence[float]] | None = None
) -> Run:
    far = FarSide(shape, seed)
    tasks = plan(shape)
    machine, events = await perform(tasks, [call(hedge, far)], slots=shape.slots, latencies=known)
    await far.quiet()
    began: dict[int, float] = {}
    latencies = []
    for event in events:
        match event:
            case TaskStarted(id, at=at):
                began.setdefault(id, at)
            case TaskDone(id, Ok(value), at=at) if value == id:
                latencies.append(at - began[id])
    if len(latencies) != len(tasks):
        raise SystemExit(f"{len(tasks) - len(latencies)} calls of shape {shape.key} went wrong")
    return Run(
        latencies, events[-1].at, machine.budget.steps - len(tasks), machine.latency.samples()
    )


VARIANTS = ("without", "hedged", "hedged, known")


def in_turns(shape: Shape, seeds: Sequence[str]) -> dict[str, list[Run]]:
    """Each variant with each seed."""
    runs: dict[str, list[Run]] = {variant: [] for variant in VARIANTS}
    for seed in seeds:
        plain = asyncio.run(measure(shape, seed, hedge=False))
        first = asyncio.run(measure(shape, seed, hedge=True))
        second = asyncio.run(measure(shape, seed, hedge=True, known=first.learned))
        for variant, run in zip(VARIANTS, (plain, first, second), strict=True):
            runs[variant].append(run)
    return runs


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of all do not pass."""
    return sorted(values)[math.ceil(share * len(values)) - 1]


def middle(runs: Sequence[Run], share: float) -> float:
    """The median of the runs' quantiles."""
    return statistics.median(quantile(run.latencies, share) for run in runs)


def extra(runs: Sequence[Run]) -> float:
    """Extra calls as a share of the calls that a run without hedging makes."""
    return sum(run.extra for run in runs) / sum(len(run.latencies) for run in runs)


def rows(shape: Shape, runs: Mapping[str, Sequence[Run]]) -> Iterator[str]:
    """The table of one shape, in Markdown."""
    yield f"\n**{shape.key}**: {shape.title}; {shape.slots} places\n"
    yield "| variant | p50 ms | p95 | p99 (lowest-highest) | max | p99 × | extra calls | run s |"
    yield "|---|---|---|---|---|---|---|---|"
    plain = middle(runs[VARIANTS[0]], 0.99)
    for variant, done in runs.items():
        p50, p95, p99, most = (middle(done, share) * 1e3 for share in (0.5, 0.95, 0.99, 1.0))
        single = [quantile(run.latencies, 0.99) * 1e3 for run in done]
        yield (
            f"| {variant} | {p50:.1f} | {p95:.1f} | {p99:.1f} ({min(single):.1f}-{max(single):.1f})"
            f" | {most:.0f} | {p99 / plain / 1e3:.2f} | {extra(done):.1%}"
            f" | {statistics.median(run.seconds for run in done):.2f} |"
        )


def gates(runs: Mapping[str, Sequence[Run]]) -> Iterator[tuple[str, bool]]:
    """What is asked on the main shape, and whether it is so."""
    plain = middle(runs[VARIANTS[0]], 0.99)
    for variant in VARIANTS[1:]:
        ratio, more = middle(runs[variant], 0.99) / plain, extra(runs[variant])
        yield (
            f"{variant}: p99 is {ratio:.2f} of that without, at most {P99_GATE}",
            (ratio <= P99_GATE),
        )
        yield f"{variant}: {more:.1%} extra calls, at most {EXTRA_GATE:.0%}", more <= EXTRA_GATE


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--repeat", type=int, default=3, help="repetitions, a seed each (3)")
    options.add_argument("--only", default="abcdefghi", help="the shapes to run (abcdefghi)")
    options.add_argument("--seed", type=int, default=1, help="of the first repetition (1)")
    options.add_argument("--save", action="store_true", help="write results/hedging.md")
    given = options.parse_args()

    seeds = [str(given.seed + turn) for turn in range(given.repeat)]
    report = [
        *machine_facts.lines(),
        f"- seeds {', '.join(seeds)}; {CHAINS} chains of {LENGTH} calls",
    ]
    passed: list[tuple[str, bool]] = []
    for shape in (shape for shape in SHAPES if shape.key in given.only):
        runs = in_turns(shape, seeds)
        report += rows(shape, runs)
        if shape is MAIN:
            passed += gates(runs)
    report.append("\nGates, on shape a:\n")
    report += [f"- {'PASS' if good else 'FAIL'} {text}" for text, good in passed]
    print("\n".join(report))
    if given.save:
        machine_facts.save("hedging", "What hedging does to the slowest calls", report)
    return 0 if all(good for _, good in passed) else 1


if __name__ == "__main__":
    sys.exit(main())
