"""Priority: how long random plans take when places are few, by the order of those who wait.

    python bench/priority.py [--seeds N] [--only FAMILIES] [--save]

The real driver and machine in virtual time, where nothing costs time but the calls themselves:
each number is exact and comes out the same on any machine. Plans of five families (120 tasks)
meet 2, 4, 8 and 16 places at once. Four tools take 0.2, 1, 3 and 10 s, each call by its own
lognormal factor (sigma 0.3) that nobody knows beforehand.

Who waits for a place is served

- **FIFO**: first come, first served: the machine with one rank for all;
- **unlearned**: by the critical path, where all tools count one second until the run has seen
  them;
- **learned**: by the critical path, with the latencies that an earlier run of another plan with
  these tools has seen: what a second run of an agent has;
- **exact**: by the critical path, where the machine knows of each call how long it will take;
- **misled**: by the critical path, with the latencies of the quickest tool told of the slowest,
  and so on: as wrong as can be.

The bound is max(critical path, work / places), which no order can beat and often none can reach.
Ratios are geometric means over the seeds with a 95 % interval (bootstrap over the seeds); a seed
is lost where FIFO is quicker by more than 0.1 %. Chains beside loose calls are where FIFO is at
its worst; layers and forks are where there is least to choose. The gate: over all plans, learned
priority is quicker than FIFO, interval included. The exit status is 1 where it fails.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import machine_facts
import shapes
from one_run import perform

from agentpar import tool
from agentpar.executor.machine import Machine
from agentpar.executor.simulate import run as in_virtual_time
from agentpar.plan import Ok, Ref, Task

TASKS = 120
PLACES = (2, 4, 8, 16)
TOOLS = {"note": 0.2, "fetch": 1.0, "search": 3.0, "reason": 10.0}
"""Seconds that a call typically takes, quickest first."""
SIGMA = 0.3
ORDERS = ("FIFO", "unlearned", "learned", "exact", "misled")

Needs = Sequence[Sequence[int]]
"""Of tasks 1, 2, …: the smaller ids that each needs."""


class Fifo(Machine):
    """Nobody is more urgent than another."""

    def _rank(self, call: object) -> float:
        return 0.0


# Families of plans


def layered(draw: random.Random) -> Needs:
    """Ten layers of twelve; each task needs two of the layer before."""
    nodes = shapes.layers(10, 12, 2, [0.0] * TASKS, seed=draw.getrandbits(32))
    return [node.needs for node in nodes]


def chains_and_loose(draw: random.Random) -> Needs:
    """Three chains of twenty, written after sixty calls that nobody waits for."""
    return [[] if id <= 63 else [id - 3] for id in range(1, TASKS + 1)]


def fork_join(draw: random.Random) -> Needs:
    """A task, then four to twelve beside each other, then one that needs them all, and again."""
    needs: list[list[int]] = [[]]
    while len(needs) < TASKS:
        start, width = len(needs), min(draw.randint(4, 12), TASKS - len(needs))
        needs += [[start] for _ in range(width)]
        if len(needs) < TASKS:
            needs.append(list(range(start + 1, start + width + 1)))
    return needs


def in_trees(draw: random.Random) -> Needs:
    """Sixty leaves; each further task gathers two that nobody has gathered yet."""
    needs: list[list[int]] = [[] for _ in range(TASKS // 2)]
    loose = list(range(1, TASKS // 2 + 1))
    while len(loose) > 1:
        pair = sorted(draw.sample(loose, 2))
        needs.append(pair)
        loose = [id for id in loose if id not in pair] + [len(needs)]
    return needs


def any_dag(draw: random.Random) -> Needs:
    """Each task needs up to three of the thirty before it."""
    return [
        sorted(draw.sample(range(max(1, id - 30), id), min(id - 1, draw.randint(0, 3))))
        for id in range(1, TASKS + 1)
    ]


FAMILIES: Mapping[str, Callable[[random.Random], Needs]] = {
    "layered": layered,
    "chains beside loose calls": chains_and_loose,
    "fork and join": fork_join,
    "in-trees": in_trees,
    "any DAG": any_dag,
}


# One plan


@dataclass(frozen=True)
class Drawn:
    """A plan whose task ``i + 1`` calls ``tools[i]``, which takes ``seconds[i]``."""

    needs: Needs
    tools: Sequence[str]
    seconds: Sequence[float]

    def bound(self, places: int) -> float:
        """Seconds that no order can beat."""
        ends: list[float] = []
        for needs, seconds in zip(self.needs, self.seconds, strict=True):
            ends.append(seconds + max((ends[need - 1] for need in needs), default=0.0))
        return max(max(ends), sum(self.seconds) / places)

    def seen(self) -> dict[str, list[float]]:
        """What a run of this plan teaches about the tools."""
        found: dict[str, list[float]] = {name: [] for name in TOOLS}
        for name, seconds in zip(self.tools, self.seconds, strict=True):
            found[name].append(seconds)
        return found


def draw_plan(family: str, seed: str) -> Drawn:
    draw = random.Random(f"{family}/{seed}")
    needs = FAMILIES[family](draw)
    tools = draw.choices(list(TOOLS), k=len(needs))
    factors = (math.exp(draw.gauss(0.0, SIGMA)) for _ in needs)
    return Drawn(needs, tools, [TOOLS[name] * f for name, f in zip(tools, factors, strict=True)])


def makespan(plan: Drawn, places: int, order: str, known: Mapping[str, list[float]]) -> float:
    """Seconds until the last call has ended; ``known`` is what an earlier run has seen."""
    names: Sequence[str] = plan.tools
    latencies: Mapping[str, Sequence[float]] = {}
    match order:
        case "learned":
            latencies = known
        case "misled":
            latencies = dict(zip(known, reversed(known.values()), strict=True))
        case "exact":  # each call is a tool of its own, whose latency is known
            names = [f"{name}_{id}" for id, name in enumerate(plan.tools, 1)]
            latencies = {name: [sec] for name, sec in zip(names, plan.seconds, strict=True)}
    tasks = [
        Task.of(id, name, id=id, after=[Ref(need) for need in needs])
        for id, (name, needs) in enumerate(zip(names, plan.needs, strict=True), 1)
    ]

    @tool
    async def sleeping(id: int, after: list[int]) -> int:
        """Sleep. after: what must have ended."""
        await asyncio.sleep(plan.seconds[id - 1])
        return id

    machine, events = in_virtual_time(
        perform(
            tasks,
            [replace(sleeping, name=name) for name in dict.fromkeys(names)],
            slots=places,
            latencies=latencies,
            machine=Fifo if order == "FIFO" else Machine,
        )
    )
    if not all(machine.outcomes[task.id] == Ok(task.id) for task in tasks):
        raise SystemExit(f"a plan went wrong: {machine.outcomes}")
    return events[-1].at


# All of them

Ends = dict[tuple[str, int, str, int], float]
"""The makespan by family, places, order and seed."""


def run_all(families: Sequence[str], seeds: Sequence[int]) -> tuple[Ends, Ends]:
    """The makespans, and as multiples of the bound."""
    ends: Ends = {}
    multiples: Ends = {}
    for family in families:
        for seed in seeds:
            plan = draw_plan(family, str(seed))
            known = draw_plan(family, f"the run before {seed}").seen()
            for places in PLACES:
                bound = plan.bound(places)
                for order in ORDERS:
                    end = makespan(plan, places, order, known)
                    if end < bound * (1 - 1e-6):
                        raise SystemExit(f"{order} beat the bound: {end} s of {bound} s")
                    ends[family, places, order, seed] = end
                    multiples[family, places, order, seed] = end / bound
    return ends, multiples


@dataclass(frozen=True, slots=True)
class Mean:
    """A geometric mean and its 95 % interval."""

    middle: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.middle:.3f} [{self.low:.3f}, {self.high:.3f}]"


def mean(by_seed: Sequence[Sequence[float]]) -> Mean:
    """Over seeds, each with one ratio or several, which count as one."""
    logs = [statistics.fmean(map(math.log, ratios)) for ratios in by_seed]
    draw = random.Random(0)
    again = sorted(statistics.fmean(draw.choices(logs, k=len(logs))) for _ in range(1000))
    return Mean(*(math.exp(log) for log in (statistics.fmean(logs), again[25], again[974])))


def quotients(
    ends: Ends, families: Sequence[str], places: Sequence[int], order: str, seeds: Sequence[int]
) -> list[list[float]]:
    """FIFO's makespan over that of ``order``, for each seed: above 1 where FIFO is slower."""
    return [
        [
            ends[family, number, "FIFO", seed] / ends[family, number, order, seed]
            for family in families
            for number in places
        ]
        for seed in seeds
    ]


def lost(ratios: Sequence[Sequence[float]]) -> str:
    flat = [ratio for of_seed in ratios for ratio in of_seed]
    return f"{sum(ratio < 0.999 for ratio in flat)} of {len(flat)}"


def family_rows(family: str, ends: Ends, multiples: Ends, seeds: Sequence[int]) -> Iterator[str]:
    """The table of one family, in Markdown."""
    yield f"\n**{family}**: {(FAMILIES[family].__doc__ or '').rstrip('.')}\n"
    yield (
        "| places | FIFO × bound | learned × bound | FIFO / learned [95 %] | least | most | lost |"
    )
    yield "|---|---|---|---|---|---|---|"
    for places in PLACES:
        over = [
            f"{mean([[multiples[family, places, order, seed]] for seed in seeds]).middle:.3f}"
            for order in ("FIFO", "learned")
        ]
        ratios = quotients(ends, [family], [places], "learned", seeds)
        least, most = min(ratios)[0], max(ratios)[0]
        yield (
            f"| {places} | {over[0]} | {over[1]} | {mean(ratios)} | {least:.3f} | {most:.3f}"
            f" | {lost(ratios)} |"
        )


def knowledge_rows(ends: Ends, families: Sequence[str], seeds: Sequence[int]) -> Iterator[str]:
    """FIFO over each other order, over all places: what knowing latencies is worth."""
    yield "\n**What knowing latencies is worth**: FIFO's makespan over each other's, all places\n"
    yield f"| family | {' | '.join(ORDERS[1:])} |"
    yield "|---" * len(ORDERS) + "|"
    for name, members in (*((family, [family]) for family in families), ("all", families)):
        cells = [str(mean(quotients(ends, members, PLACES, o, seeds))) for o in ORDERS[1:]]
        yield f"| {name} | {' | '.join(cells)} |"
    lose = [lost(quotients(ends, families, PLACES, order, seeds)) for order in ORDERS[1:]]
    yield f"| lost | {' | '.join(lose)} |"


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--seeds", type=int, default=20, help="plans of each family (20)")
    options.add_argument("--only", nargs="*", choices=FAMILIES, help="the families (all)")
    options.add_argument("--save", action="store_true", help="write results/priority.md")
    given = options.parse_args()

    families, seeds = given.only or list(FAMILIES), range(1, given.seeds + 1)
    ends, multiples = run_all(families, seeds)
    report = [
        *machine_facts.lines(),
        f"- {TASKS} tasks a plan, seeds 1 to {len(seeds)}, virtual time: exact on any machine",
    ]
    for family in families:
        report += family_rows(family, ends, multiples, seeds)
    report += knowledge_rows(ends, families, seeds)
    total = mean(quotients(ends, families, PLACES, "learned", seeds))
    passed = total.low > 1
    report.append(
        f"\nGate:\n\n- {'PASS' if passed else 'FAIL'} FIFO takes {total} times as long as learned"
        " priority over all plans, more than 1"
    )
    print("\n".join(report))
    if given.save:
        machine_facts.save("priority", "How long plans take when places are few", report)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
