"""Learners: from simulated episodes, or logged decisions, to the weights of a gate.

Everything is drawn from a seed: equal seeds give equal gates. No learner promotes what it has
learned; `promotion` does.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from agentpar.memory.controller import Controller
from agentpar.memory.features import NAMES, Features
from agentpar.memory.learning import policies
from agentpar.memory.learning.linear import Ridge, dot
from agentpar.memory.learning.logs import Logged, ranges_of
from agentpar.memory.learning.simulator import (
    Episode,
    Policy,
    Regime,
    Truth,
    Vector,
    World,
    play,
    training_mix,
    world,
)
from agentpar.memory.rule import Rule

Reward = Literal["ledger", "terminal", "usage"]
"""What a policy gradient is told: each entry's ledger; how the episode ended, beside others of
the same world; the same with a bonus for entries that were used in a good one and a price for
each that is kept, as in Learning to Share."""

UNIT = 20.0
"""Seconds of credit that count as one."""

SIZE = len(NAMES)
DEMAND = (NAMES.index("demand"), NAMES.index("waiting"))


@dataclass(frozen=True, slots=True)
class Scale:
    """How features lie in training: learners see them with mean 0 and deviation 1."""

    means: tuple[float, ...]
    deviations: tuple[float, ...]
    ranges: tuple[tuple[float, float], ...]

    def of(self, vector: Vector) -> list[float]:
        return [(x - m) / d for x, m, d in zip(vector, self.means, self.deviations, strict=True)]

    def raw(self, weights: Sequence[float]) -> tuple[float, ...]:
        """Weights for the features as they are. The first feature is 1 and takes up the means."""
        found = [w / d for w, d in zip(weights, self.deviations, strict=True)]
        found[0] -= sum(w * m for w, m in zip(found[1:], self.means[1:], strict=True))
        return tuple(found)


def worlds(regime: Regime, seed: int, name: str) -> Iterator[tuple[World, bool]]:
    """Worlds of the mixture around ``regime``, and whether there are leases."""
    chance = random.Random(f"{name} {seed}")
    number = 0
    while True:
        one = training_mix(regime, chance)
        yield world(f"{name} {seed} {number}", one), one.leases
        number += 1


def survey(regime: Regime, seed: int, episodes: int = 150) -> Scale:
    """What features look like under a policy that admits half."""
    vectors: list[Vector] = []
    for number, (one, leases) in enumerate(worlds(regime, seed, "survey")):
        if number == episodes:
            break
        episode = play(one, policies.constant(0.5), leases=leases, seed=number)
        vectors += (decided.vector for decided in episode.decided)
    return scale_of(vectors)


def scale_of(vectors: Sequence[Vector]) -> Scale:
    count = max(1, len(vectors))
    columns = list(zip(*vectors, strict=True)) or [(0.0,)] * SIZE
    means = [sum(column) / count for column in columns]
    spread = [
        math.sqrt(sum((x - m) ** 2 for x in column) / count)
        for column, m in zip(columns, means, strict=True)
    ]
    # What never varies teaches nothing; the first feature is the constant, and stays 1.
    means[0], spread[0] = 0.0, 1.0
    return Scale(tuple(means), tuple(d if d > 1e-9 else 1.0 for d in spread), ranges_of(vectors))


# Policy gradient


def reinforce(
    regime: Regime,
    seed: int,
    *,
    episodes: int = 1000,
    reward: Reward = "ledger",
    rule: Rule | None = None,
    blind: bool = False,
) -> Controller:
    """Stepwise REINFORCE over a logistic gate, with a baseline and clipped weights.

    With the ledger each decision is told what its own entry was worth, less what is expected of
    such entries. Otherwise a group of episodes in one world is played, and all decisions of one
    are told how it did beside the others.
    """
    scale = survey(regime, seed)
    gate = _Gate(scale)
    value = _Gate(scale)
    failures = _Mean(0.4, 0.005)
    group = 1 if reward == "ledger" else 4
    rounds = max(1, episodes // group)
    source = worlds(regime, seed, "train")
    for number in range(rounds):
        one, leases = next(source)
        played: list[Episode] = []
        for rollout in range(group):
            policy = gate.lots(blind=blind)
            chance = number * group + rollout
            played.append(play(one, policy, leases=leases, seed=chance, failures=failures.now))
            failures.add(played[-1].failed)
        rate = 0.03 * (1 - 0.9 * number / rounds)
        advantages = _beside([episode.utility for episode in played])
        steps: list[tuple[Vector, float]] = []
        for episode, ahead in zip(played, advantages, strict=True):
            for decided in episode.decided:
                vector = _blinded(decided.vector) if blind else decided.vector
                p = gate.probability(vector)
                match reward:
                    case "ledger":
                        told = decided.credit / UNIT if decided.admitted else 0.0
                        expected = value.score(vector)
                        if decided.admitted:
                            value.step([(vector, _clip(told - expected, 3.0))], 0.02)
                        told = _clip(told - p * expected, 3.0)
                    case "usage":
                        told = ahead - 0.3 * decided.admitted
                        told += decided.admitted and decided.used > 0 and ahead > 0
                    case "terminal":
                        told = ahead
                warm = -0.01 * p * (1 - p) * gate.score(vector)  # keeps it from being too sure
                steps.append((vector, (decided.admitted - p) * told + warm))
        gate.step(steps, rate)
    return gate.controller(rule)


def _beside(utilities: Sequence[float]) -> list[float]:
    """How each did beside the others, in deviations."""
    mean = sum(utilities) / len(utilities)
    spread = math.sqrt(sum((u - mean) ** 2 for u in utilities) / len(utilities))
    return [(u - mean) / (spread + 1e-6) for u in utilities]


class _Gate:
    """A logistic gate that is moved by Adam (Kingma and Ba, 2015)."""

    BOUND = 8.0

    def __init__(self, scale: Scale) -> None:
        self.scale = scale
        self.weights = [0.0] * SIZE
        self.first, self.second, self.steps = [0.0] * SIZE, [0.0] * SIZE, 0

    def score(self, vector: Vector) -> float:
        return dot(self.weights, self.scale.of(vector))

    def probability(self, vector: Vector) -> float:
        return 1 / (1 + math.exp(-_clip(self.score(vector), 12)))

    def lots(self, *, blind: bool = False) -> Policy:
        raw = self.scale.raw(self.weights)

        def decide(
            _: Features, vector: Vector, __: Truth, chance: random.Random
        ) -> tuple[bool, float]:
            score = dot(raw, _blinded(vector) if blind else vector)
            p = 1 / (1 + math.exp(-_clip(score, 12)))
            return chance.random() < p, p

        return decide

    def step(self, told: Sequence[tuple[Vector, float]], rate: float) -> None:
        """Climb: each vector's score is to grow by so much."""
        slope = [0.0] * SIZE
        for vector, by in told:
            for i, x in enumerate(self.scale.of(vector)):
                slope[i] += by * x / len(told)
        self.steps += 1
        for i, g in enumerate(slope):
            self.first[i] = 0.9 * self.first[i] + 0.1 * g
            self.second[i] = 0.999 * self.second[i] + 0.001 * g * g
            m = self.first[i] / (1 - 0.9**self.steps)
            v = self.second[i] / (1 - 0.999**self.steps)
            self.weights[i] = _clip(self.weights[i] + rate * m / (math.sqrt(v) + 1e-8), self.BOUND)

    def controller(self, rule: Rule | None) -> Controller:
        raw = self.scale.raw(self.weights)
        return Controller(raw, 0.0, self.scale.ranges, rule or Rule())


# The online bandit


def bandit(
    regime: Regime,
    seed: int,
    *,
    episodes: int = 1000,
    rule: Rule | None = None,
    blind: bool = False,
    every: int = 5,
) -> Controller:
    """Learns what an entry is worth from the ledgers of those it admitted (ridge regression), and
    admits what it expects to be worth more than nothing, by weights drawn from what it knows so
    far (Thompson sampling)."""
    scale = survey(regime, seed)
    ridge = Ridge(SIZE)
    chance = random.Random(f"bandit {seed}")
    failures = _Mean(0.4, 0.005)
    source = worlds(regime, seed, "train")
    raw: tuple[float, ...] = ()
    for number in range(episodes):
        if number % every == 0:
            raw = scale.raw(ridge.draw(chance, 0.3))
        one, leases = next(source)
        policy = _linear(raw, explore=0.05, blind=blind)
        episode = play(one, policy, leases=leases, seed=number, failures=failures.now)
        failures.add(episode.failed)
        for decided in episode.decided:
            if decided.admitted:
                vector = _blinded(decided.vector) if blind else decided.vector
                ridge.add(scale.of(vector), _clip(decided.credit / UNIT, 5))
    return Controller(scale.raw(ridge.solve()), 0.0, scale.ranges, rule or Rule())


def from_logs(logged: Sequence[Logged], *, rule: Rule | None = None) -> Controller:
    """The same from decisions that others have made: what was unlikely to be admitted counts the
    more where it was (up to 10 times)."""
    scale = scale_of([one.features for one in logged])
    ridge = Ridge(SIZE)
    for one in logged:
        if one.admitted and one.credit is not None:
            weight = min(10.0, 1 / max(one.probability, 1e-3))
            ridge.add(scale.of(one.features), _clip(one.credit / UNIT, 5), weight)
    return Controller(scale.raw(ridge.solve()), 0.0, scale.ranges, rule or Rule())


def _linear(raw: Sequence[float], *, explore: float, blind: bool) -> Policy:
    def decide(_: Features, vector: Vector, __: Truth, chance: random.Random) -> tuple[bool, float]:
        admit = dot(raw, _blinded(vector) if blind else vector) > 0
        probability = explore / 2 + (1 - explore) * admit
        return chance.random() < probability, probability

    return decide


def _blinded(vector: Vector) -> Vector:
    return tuple(0.0 if i in DEMAND else x for i, x in enumerate(vector))


# Evolution from the rule


def evolve(
    regime: Regime,
    seed: int,
    *,
    rounds: int = 40,
    pairs: int = 6,
    size: int = 16,
    start: Controller | None = None,
    rule: Rule | None = None,
    blind: bool = False,
) -> Controller:
    """Starts as the rule (or ``start``), and follows what does better in whole episodes.

    An evolution strategy with mirrored pairs (Salimans et al., 2017): each round ``pairs`` of
    gates, one shifted by as much as the other is shifted back, meet the same ``size`` worlds.
    The gate is the mean of those of the second half.
    """
    scale = survey(regime, seed)
    start = start or Controller((0.0,) * SIZE, 1.0, scale.ranges, rule or Rule())
    chance = random.Random(f"evolve {seed}")
    source = worlds(regime, seed, "train")
    weights, momentum = [0.0] * SIZE, [0.0] * SIZE
    total, kept = [0.0] * SIZE, 0

    def moved(by: Sequence[float]) -> Controller:
        shift = scale.raw(by)
        return replace(
            start, weights=tuple(a + b for a, b in zip(start.weights, shift, strict=True))
        )

    for number in range(rounds):
        batch = [next(source) for _ in range(size)]
        tried: list[tuple[list[float], float]] = []
        for _ in range(pairs):
            noise = [chance.gauss(0, 1) for _ in weights]
            if blind:
                noise = list(_blinded(tuple(noise)))
            ends = []
            for sign in (1, -1):
                gate = moved([w + sign * 0.3 * n for w, n in zip(weights, noise, strict=True)])
                policy = policies.controlled(gate, guarded=False)
                policy = policies.blind(policy) if blind else policy
                ends.append(sum(play(w, policy, leases=on).smooth for w, on in batch))
            tried.append((noise, ends[0] - ends[1]))
        unit = sum(abs(ahead) for _, ahead in tried) / pairs + 1e-9
        for i in range(SIZE):
            slope = sum(noise[i] * ahead for noise, ahead in tried) / pairs / unit
            momentum[i] = 0.7 * momentum[i] + 0.3 * slope
            weights[i] += 0.25 * momentum[i] * (1 - 0.7 * number / rounds)
        if number >= rounds // 2:
            total = [a + b for a, b in zip(total, weights, strict=True)]
            kept += 1
    return moved([one / max(1, kept) for one in total])


def race(
    candidates: Sequence[Controller], regime: Regime, seed: int, *, episodes: int = 400
) -> Controller:
    """The best of ``candidates``: all play the first episodes, the better half the next twice as
    many, and so on (successive halving)."""
    source = worlds(regime, seed, "race")
    left = list(candidates)
    sums = [0.0] * len(left)
    number = max(8, episodes // 8)
    while len(left) > 1:
        for one, leases in (next(source) for _ in range(number)):
            for i, candidate in enumerate(left):
                policy = policies.controlled(candidate, guarded=False)
                sums[i] += play(one, policy, leases=leases).smooth
        order = sorted(range(len(left)), key=lambda i: -sums[i])[: (len(left) + 1) // 2]
        left, sums = [left[i] for i in order], [sums[i] for i in order]
        number *= 2
    return left[0]


class _Mean:
    """A mean that forgets."""

    def __init__(self, start: float, rate: float) -> None:
        self.now, self._rate = start, rate

    def add(self, value: float) -> None:
        self.now += self._rate * (value - self.now)


def _clip(value: float, bound: float) -> float:
    return max(-bound, min(bound, value))
