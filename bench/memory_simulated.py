"""Which findings should enter the bank? Every admission policy in simulated teams.

    python bench/memory_simulated.py [--episodes N] [--test N] [--seeds N] [--save]

Simulated: calls, pages and prompts are numbers drawn from seeds
(`agentpar/memory/learning/simulator.py`). Nothing here says what a bank saves in real runs.

Learners train on a mixture around the default regime only (``--episodes`` of them, once for each
of ``--seeds`` seeds), and are then tried in all regimes, without training there. The test worlds
of a regime (``--test``) are dealt out to the seeds: each seed's learners play its share of them,
and all else plays all, so every interval holds the luck of training as well. All policies meet
the same worlds.

Printed are the share of the oracle's gain over no bank: of the oracle that decides on admission
alone, without leases, with 95 % intervals; with and without leases; ablations; paired differences;
and the gates. ``--save`` writes the tables to ``results/memory_simulated.md``. The exit status is
1 where a gate fails.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from statistics import fmean, stdev

import machine_facts

from agentpar.memory.controller import Controller, shipped
from agentpar.memory.learning import OTHERS, REGIMES, Regime, learners, policies
from agentpar.memory.learning.simulator import Episode, Policy, play, world
from agentpar.memory.rule import Rule

DEFAULT, SHIFTED = REGIMES[0], REGIMES[1:]
CHOSEN = "chosen controller"
NAMES = (  # in the order of the tables
    "no bank",
    "random half",
    "novelty",
    "admit all",
    "judge, right in 80 %",
    "LTS-like credit",
    "terminal reward",
    "REINFORCE, ledger",
    "ledger bandit",
    "ledger bandit, no demand",
    "rule",
    "rule, no demand",
    "evolved from the rule",
    "evolved, no demand",
    CHOSEN,
    "oracle",
)
WITHOUT_LEASES = (
    "no bank",
    "novelty",
    "admit all",
    "LTS-like credit",
    "ledger bandit",
    "rule",
    "evolved from the rule",
    CHOSEN,
    "oracle",
)
GATE_DEFAULT, GATE_SHIFTED = 0.80, 0.55
BONFERRONI = 2.64  # deviations for 95 % over six regimes at once


@dataclass(frozen=True, slots=True)
class Told:
    """An episode as far as the tables need it."""

    utility: float
    seconds: float
    tokens: int
    calls: int
    right: float
    entries: int
    hits: int


Results = dict[tuple[str, bool, str], list[Told]]
"""By regime, leases and policy; the episodes of all policies in one order."""


def trained(job: tuple[str, int, int]) -> Controller:
    """One learner with one seed."""
    name, seed, episodes = job
    blind = name.endswith("no demand")
    match name.removesuffix(", no demand"):
        case "LTS-like credit":
            return learners.reinforce(DEFAULT, seed, episodes=episodes, reward="usage")
        case "terminal reward":
            return learners.reinforce(DEFAULT, seed, episodes=episodes, reward="terminal")
        case "REINFORCE, ledger":
            return learners.reinforce(DEFAULT, seed, episodes=episodes)
        case "ledger bandit":
            return learners.bandit(DEFAULT, seed, episodes=episodes, blind=blind)
        case _:
            rounds = max(4, episodes // 25)
            return learners.evolve(DEFAULT, seed, rounds=rounds, blind=blind)


LEARNERS = (
    "evolved from the rule",
    "evolved, no demand",
    "LTS-like credit",
    "terminal reward",
    "REINFORCE, ledger",
    "ledger bandit",
    "ledger bandit, no demand",
)


def policies_of(learned: dict[str, Controller]) -> dict[str, Policy]:
    found = {
        "no bank": policies.none(),
        "random half": policies.constant(0.5),
        "novelty": policies.novelty(),
        "admit all": policies.everything(),
        "judge, right in 80 %": policies.judge(),
        "rule": policies.ruled(Rule()),
        "rule, no demand": policies.blind(policies.ruled(Rule())),
        CHOSEN: policies.controlled(shipped()),
        "oracle": policies.oracle(),
    }
    for name, controller in learned.items():
        policy = policies.controlled(controller, guarded=False)
        found[name] = policies.blind(policy) if name.endswith("no demand") else policy
    return {name: found[name] for name in NAMES}


def tried(job: tuple[Regime, int, int, dict[str, Controller]]) -> Results:
    """One seed's share of a regime's worlds, under every policy."""
    regime, seed, count, learned = job
    families = regime.families
    numbers = range(count)
    found = [world(f"held out {seed} {i}", regime, families[i % len(families)]) for i in numbers]
    results: Results = {}
    for name, policy in policies_of(learned).items():
        for leases in (False, True) if name in WITHOUT_LEASES else (True,):
            results[regime.name, leases, name] = [
                told(play(one, policy, leases=leases, seed=i)) for i, one in enumerate(found)
            ]
    return results


def told(episode: Episode) -> Told:
    return Told(
        episode.utility,
        episode.seconds,
        episode.tokens,
        episode.calls,
        episode.right,
        episode.entries,
        episode.hits,
    )


class Tables:
    """What is made of the results."""

    def __init__(self, results: Results) -> None:
        self.results = results

    def utilities(self, regime: str, leases: bool, policy: str) -> list[float]:
        return [one.utility for one in self.results[regime, leases, policy]]

    def gains(self, regime: str, leases: bool, policy: str) -> list[float]:
        """Over no bank, without leases, world by world."""
        nothing = self.utilities(regime, False, "no bank")
        return less(self.utilities(regime, leases, policy), nothing)

    def share(self, regime: str, leases: bool, policy: str) -> tuple[float, float]:
        """Of the admission oracle's gain, and half of its 95 % interval (delta method)."""
        ours, most = self.gains(regime, leases, policy), self.gains(regime, False, "oracle")
        share = fmean(ours) / fmean(most)
        rests = [(a - share * b) / fmean(most) for a, b in zip(ours, most, strict=True)]
        return share, half(rests)

    def ahead(self, regime: str, policy: str, of: str) -> tuple[float, float]:
        """How far one policy is ahead of another, with leases; half of its 95 % interval."""
        differences = less(self.utilities(regime, True, policy), self.utilities(regime, True, of))
        return fmean(differences), half(differences)

    def pooled(self, policy: str, of: str) -> tuple[float, float]:
        """The same over the seven regimes, each counting as much."""
        found = [self.ahead(regime.name, policy, of) for regime in REGIMES]
        mean = fmean(mean for mean, _ in found)
        return mean, math.sqrt(sum(half**2 for _, half in found)) / len(found)

    def shares(self, leases: bool, regimes: Sequence[Regime]) -> Iterator[str]:
        yield "| admission | " + " | ".join(regime.name for regime in regimes) + " |"
        yield "|---" * (len(regimes) + 1) + "|"
        for name in NAMES if leases else WITHOUT_LEASES:
            cells = [self.share(regime.name, leases, name) for regime in regimes]
            shown = " | ".join(f"{share:.2f} ± {by:.2f}" for share, by in cells)
            yield f"| {name} | {shown} |"

    def means(self, regime: str) -> Iterator[str]:
        yield (
            "| admission | leases | gain, s | run, s | thousand tokens | calls | right | entries "
            "| from the bank |"
        )
        yield "|---" * 9 + "|"
        for name in NAMES:
            for leases in (False, True):
                if not leases and name not in WITHOUT_LEASES:
                    continue
                of = self.results[regime, leases, name]
                gains = self.gains(regime, leases, name)
                yield (
                    f"| {name} | {'yes' if leases else 'no'} "
                    f"| {fmean(gains):+.1f} ± {half(gains):.1f} "
                    f"| {fmean(one.seconds for one in of):.1f} "
                    f"| {fmean(one.tokens for one in of) / 1000:.0f} "
                    f"| {fmean(one.calls for one in of):.1f} "
                    f"| {fmean(one.right for one in of):.3f} "
                    f"| {fmean(one.entries for one in of):.1f} "
                    f"| {fmean(one.hits for one in of):.1f} |"
                )

    def differences(self) -> Iterator[str]:
        against = ("LTS-like credit", "novelty", "admit all", "terminal reward", "rule")
        yield "| regime | " + " | ".join(f"above {name}" for name in against) + " |"
        yield "|---" * (len(against) + 1) + "|"
        for regime in (*REGIMES, *OTHERS):
            cells = [self.ahead(regime.name, CHOSEN, name) for name in against]
            yield f"| {regime.name} | " + " | ".join(f"{m:+.1f} ± {h:.1f}" for m, h in cells) + " |"
        cells = [self.pooled(CHOSEN, name) for name in against]
        yield "| the seven pooled | " + " | ".join(f"{m:+.1f} ± {h:.1f}" for m, h in cells) + " |"

    def ablations(self) -> Iterator[str]:
        """Each beside what it was taken from, in seconds, all with leases but the last."""
        yield "| without | taken from | default | the seven pooled |"
        yield "|---|---|---|---|"
        for what, less_, of in (
            ("demand", "rule, no demand", "rule"),
            ("demand", "ledger bandit, no demand", "ledger bandit"),
            ("demand", "evolved, no demand", "evolved from the rule"),
            ("ledger (terminal reward)", "terminal reward", "REINFORCE, ledger"),
            ("ledger (LTS-like credit)", "LTS-like credit", "REINFORCE, ledger"),
        ):
            (m, h), (pm, ph) = self.ahead(DEFAULT.name, less_, of), self.pooled(less_, of)
            yield f"| {what} | {of} | {m:+.1f} ± {h:.1f} | {pm:+.1f} ± {ph:.1f} |"
        for name in ("rule", CHOSEN):
            found = []
            for regime in REGIMES:
                off = self.utilities(regime.name, False, name)
                gone = less(off, self.utilities(regime.name, True, name))
                found.append((fmean(gone), half(gone)))
            m, h = found[0]
            pm = fmean(mean for mean, _ in found)
            ph = math.sqrt(sum(by**2 for _, by in found)) / len(found)
            yield f"| leases | {name} | {m:+.1f} ± {h:.1f} | {pm:+.1f} ± {ph:.1f} |"

    def gates(self) -> Iterator[tuple[bool, str]]:
        share, by = self.share(DEFAULT.name, True, CHOSEN)
        yield (
            share >= GATE_DEFAULT,
            f"in distribution: share {share:.2f} ± {by:.2f}, at least {GATE_DEFAULT:.2f}",
        )
        for regime in SHIFTED:
            share, by = self.share(regime.name, True, CHOSEN)
            yield (
                share >= GATE_SHIFTED,
                f"{regime.name}: share {share:.2f} ± {by:.2f}, at least {GATE_SHIFTED:.2f}",
            )
        gains = {one.name: fmean(self.gains(one.name, True, CHOSEN)) for one in REGIMES}
        worst = min(gains, key=lambda name: gains[name])
        yield (
            gains[worst] >= 0,
            f"never below no bank: least gain {gains[worst]:+.1f} s ({worst})",
        )
        for of in ("LTS-like credit", "novelty", "admit all"):
            m, h = self.pooled(CHOSEN, of)
            yield m - h > 0, f"above {of}, the seven pooled: {m:+.1f} ± {h:.1f} s"
            m, h = self.ahead(DEFAULT.name, CHOSEN, of)
            yield m - h > 0, f"above {of}, in distribution: {m:+.1f} ± {h:.1f} s"
        aheads = {one.name: self.ahead(one.name, CHOSEN, "rule") for one in SHIFTED}
        best = max(aheads, key=lambda name: aheads[name][0] / max(aheads[name][1], 1e-9))
        m, h = aheads[best]
        h *= BONFERRONI / 1.96
        yield (
            m - h > 0,
            f"above the rule in a shifted regime: {m:+.1f} ± {h:.1f} s ({best}, of six)",
        )


def less(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(ours, theirs, strict=True)]


def half(values: Sequence[float]) -> float:
    """Half of the 95 % interval of their mean."""
    return 1.96 * stdev(values) / math.sqrt(len(values))


def measure(episodes: int, test: int, seeds: int, workers: int) -> Results:
    results: Results = {}
    with ProcessPoolExecutor(workers) as pool:
        jobs = [(name, seed, episodes) for name in LEARNERS for seed in range(1, seeds + 1)]
        gates = dict(zip(jobs, pool.map(trained, jobs), strict=True))
        print(f"{len(jobs)} learners trained", file=sys.stderr, flush=True)
        tests = []
        for regime in sorted((*REGIMES, *OTHERS), key=lambda one: -one.teams):
            count = max(2, test // seeds // (3 if regime.teams > 3 else 1))
            for seed in range(1, seeds + 1):
                learned = {name: gates[name, seed, episodes] for name in LEARNERS}
                tests.append((regime, seed, count, learned))
        for (regime, seed, _, _), part in zip(tests, pool.map(tried, tests), strict=True):
            for key, episodes_ in part.items():
                results.setdefault(key, []).extend(episodes_)
            if seed == seeds:
                print(f"{regime.name}: done", file=sys.stderr, flush=True)
    return results


def report(tables: Tables, args: argparse.Namespace) -> Iterator[str]:
    yield from machine_facts.lines()
    yield (
        f"- simulated; {args.episodes} training episodes a learner, {args.seeds} seeds, "
        f"{args.test} test worlds a regime (a third with 8 teams)"
    )
    yield f"- chosen: the controller that is shipped ({shipped().record.get('learner')})"
    yield "\n## Share of the oracle's gain, with leases\n"
    yield (
        "1 is what an oracle of admission gains over no bank without leases, 0 is no bank; so "
        "the last row is what that oracle gains with leases.\n"
    )
    yield from tables.shares(True, REGIMES)
    yield "\n## The same without leases\n"
    yield from tables.shares(False, REGIMES)
    yield "\n## Two more regimes, with leases\n"
    yield from tables.shares(True, OTHERS)
    yield "\n## In the default regime\n"
    yield from tables.means(DEFAULT.name)
    yield "\n## The chosen controller against others, seconds a question, with leases\n"
    yield from tables.differences()
    yield "\n## What is missing without …, seconds a question\n"
    yield from tables.ablations()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--episodes", type=int, default=1000, help="to train on, a learner")
    parser.add_argument("--test", type=int, default=1500, help="worlds to test in, a regime")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
    begun = time.perf_counter()
    tables = Tables(measure(args.episodes, args.test, args.seeds, workers))
    lines = list(report(tables, args))
    gates = list(tables.gates())
    lines += ["\n## Gates, for leases and the chosen controller\n"]
    lines += [f"- {'PASS' if passed else 'FAIL'} {what}" for passed, what in gates]
    lines += [f"\n{time.perf_counter() - begun:.0f} seconds in all, {workers} processes."]
    print("\n".join(lines))
    if args.save:
        machine_facts.save("memory_simulated", "Admission policies, simulated", lines)
    return 0 if all(passed for passed, _ in gates) else 1


if __name__ == "__main__":
    sys.exit(main())
