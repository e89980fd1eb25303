"""What can be tried in the simulator: fixed policies, gates, and the oracle.

The judge here is no model: it errs at random, and is there so that a judge has a row at all.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from agentpar.memory.controller import Controller
from agentpar.memory.features import Features
from agentpar.memory.learning.simulator import Policy, Truth, Vector
from agentpar.memory.rule import Rule

Gate = Callable[[Features], bool]
"""What a replay is played with: whether a finding enters."""


def constant(probability: float) -> Policy:
    def decide(_: Features, __: Vector, ___: Truth, chance: random.Random) -> tuple[bool, float]:
        return chance.random() < probability, probability

    return decide


def gated(gate: Gate) -> Policy:
    def decide(features: Features, *_: object) -> tuple[bool, float]:
        admitted = gate(features)
        return admitted, float(admitted)

    return decide


def none() -> Policy:
    return gated(lambda features: False)


def everything() -> Policy:
    return gated(lambda features: True)


def novelty(threshold: float = 0.25) -> Policy:
    return gated(lambda features: features.novelty >= threshold)


def ruled(rule: Rule) -> Policy:
    return gated(rule.admits)


def judge(right: float = 0.8) -> Policy:
    """Knows in so many cases whether a finding is sound, and errs in the others."""

    def decide(_: Features, __: Vector, truth: Truth, chance: random.Random) -> tuple[bool, float]:
        return (chance.random() < right) == truth.sound, 1.0

    return decide


def oracle() -> Policy:
    """Admits what is sound, will be asked for by another team, and is not there yet."""

    def decide(_: Features, __: Vector, truth: Truth, ___: random.Random) -> tuple[bool, float]:
        admitted = truth.sound and truth.wanted and not truth.has
        return admitted, float(admitted)

    return decide


def controlled(controller: Controller, *, guarded: bool = True) -> Policy:
    """As `Learned` decides: by the rule where an input lies outside what was trained on, unless
    not ``guarded``."""

    def decide(
        features: Features, vector: Vector, _: Truth, __: random.Random
    ) -> tuple[bool, float]:
        if guarded and controller.outside(vector):
            admitted = controller.rule.admits(features)
        else:
            admitted = controller.score(features, vector) > 0
        return admitted, float(admitted)

    return decide


def blind(policy: Policy) -> Policy:
    """The same policy, which is not told who else asks for a finding."""

    def decide(
        features: Features, _: Vector, truth: Truth, chance: random.Random
    ) -> tuple[bool, float]:
        seen = replace(features, demand=0, waiting=0)
        return policy(seen, seen.vector(), truth, chance)

    return decide
