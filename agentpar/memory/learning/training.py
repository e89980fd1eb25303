"""From episodes or logs to a controller, and what a controller is worth.

It puts learners, race and promotion together. A controller is promoted only by a paired replay:
the same episodes under the rule and under it. Logs alone tell what the admitted were worth, not
what would have been; so a controller that was trained on them without a replay stays unpromoted,
and `Learned` then leaves the decisions to the rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from agentpar.errors import UsageError
from agentpar.memory.controller import Controller
from agentpar.memory.learning import learners, logs, policies, promotion
from agentpar.memory.learning.learners import worlds
from agentpar.memory.learning.logs import Logged
from agentpar.memory.learning.policies import Gate
from agentpar.memory.learning.simulator import (
    OTHERS,
    REGIMES,
    Policy,
    Regime,
    play,
    regime_of,
    world,
)
from agentpar.memory.rule import Rule

Replay = Callable[[Gate], Sequence[float]]
"""Plays the same recorded episodes under any gate; the utility of each, in seconds."""

Say = Callable[[str], None]

LEAST_DECISIONS, LEAST_ADMITTED = 200, 50
"""Logged decisions that are needed, and of these such as were admitted and have a credit."""


def train(
    source: Regime | str | Path | Sequence[Logged],
    *,
    seed: int = 0,
    effort: float = 1.0,
    paired: int = 1500,
    replay: Replay | None = None,
    rule: Rule | None = None,
    say: Say | None = None,
) -> Controller:
    """A controller that was trained on ``source``, promoted over ``rule`` or not.

    ``source`` is a regime of the simulator or its name, or logged decisions or their file.
    ``effort`` 1 is some 12,000 simulated episodes, a minute or less; they are as many times as
    many. ``paired`` episodes, none of which was trained on, decide on the promotion; for logged
    decisions ``replay`` does, and without one nothing is promoted. Raises `UsageError` where the
    source is unknown or too small.
    """
    rule = rule or Rule()
    say = say or (lambda line: None)
    match source:
        case Regime():
            return _simulated(source, seed, effort, paired, rule, say)
        case str() if source in _names():
            return _simulated(regime_of(source), seed, effort, paired, rule, say)
        case str() | Path():
            if isinstance(source, str) and not Path(source).is_file():
                known = ", ".join(map(repr, _names()))
                raise UsageError(f"{source!r} is no file of decisions and no regime ({known})")
            return _logged(logs.read(source), str(source), seed, replay, rule, say)
        case _:
            return _logged(source, "logged decisions", seed, replay, rule, say)


def _names() -> list[str]:
    return [one.name for one in (*REGIMES, *OTHERS)]


def _simulated(
    regime: Regime, seed: int, effort: float, paired: int, rule: Rule, say: Say
) -> Controller:
    if not effort > 0 or paired < promotion.LEAST:
        raise UsageError(
            f"train: effort is {effort!r}, paired {paired!r}; above 0, and at least "
            f"{promotion.LEAST}"
        )
    episodes = max(40, int(1000 * effort))
    rounds = max(4, int(40 * effort**0.5))
    size = max(4, int(16 * effort**0.5))
    say(f"ledger bandit: {episodes} episodes")
    banded = learners.bandit(regime, seed, episodes=episodes, rule=rule)
    say(f"from the rule: {rounds} rounds of {12 * size} episodes")
    evolved = learners.evolve(regime, seed, rounds=rounds, size=size, rule=rule)
    by_rule = replace(evolved, weights=(0.0,) * len(evolved.weights), rule_weight=1.0)
    named = {"the rule": by_rule, "evolved from the rule": evolved, "ledger bandit": banded}
    first = max(64, int(400 * effort))
    best = learners.race(list(named.values()), regime, seed, episodes=first)
    learner = next(name for name, one in named.items() if one is best)
    say(f"won the race: {learner}; {paired} paired episodes against the rule")
    compared = promote(best, regime, seed=seed, episodes=paired)
    record = {
        "data": f"simulator, mixture around {regime.name!r}",
        "seed": seed,
        "episodes": {"bandit": episodes, "evolution": rounds * 12 * size, "paired": paired},
        "learner": learner,
        "promotion": _rounded(compared.to_json()),
        "note": "simulated teams; says nothing of real runs",
    }
    return replace(best, promoted=compared.promoted, record=record)


def promote(
    challenger: Controller, regime: Regime, *, seed: int, episodes: int
) -> promotion.Comparison:
    """The paired replay in the simulator: the challenger, with its guard, and its rule."""
    source = worlds(regime, seed, "promotion")
    pairs = [next(source) for _ in range(episodes)]
    champion = policies.ruled(challenger.rule)
    ours = policies.controlled(challenger)
    return promotion.compare(
        [play(one, champion, leases=leases).utility for one, leases in pairs],
        [play(one, ours, leases=leases).utility for one, leases in pairs],
        seed=seed,
    )


def _logged(
    logged: Sequence[Logged], name: str, seed: int, replay: Replay | None, rule: Rule, say: Say
) -> Controller:
    known = [one for one in logged if one.admitted and one.credit is not None]
    if len(logged) < LEAST_DECISIONS or len(known) < LEAST_ADMITTED:
        raise UsageError(
            f"{name}: {len(logged)} decisions, {len(known)} of them admitted with a credit; "
            f"{LEAST_DECISIONS} and {LEAST_ADMITTED} are needed to learn from"
        )
    say(f"learning from {len(logged)} decisions, {len(known)} of them with a credit")
    found = learners.from_logs(logged, rule=rule)
    record: dict[str, Any] = {
        "data": name,
        "seed": seed,
        "decisions": len(logged),
        "credited": len(known),
        "learner": "ledger ridge on logged decisions",
        "estimated": {
            "rule": round(estimate(rule.admits, logged), 4),
            "controller": round(estimate(lambda seen: found.score(seen) > 0, logged), 4),
            "note": "seconds a decision, off-policy; screens, and never promotes",
        },
    }
    if replay is None:
        record["promotion"] = "none: there was no paired replay"
        return replace(found, record=record)
    compared = promotion.compare(replay(rule.admits), replay(guarded(found)), seed=seed)
    record["promotion"] = _rounded(compared.to_json())
    return replace(found, promoted=compared.promoted, record=record)


def guarded(controller: Controller) -> Gate:
    """The controller as a gate for a replay: by its rule where an input lies outside its
    training."""

    def gate(features: Any) -> bool:
        vector = features.vector()
        if controller.outside(vector):
            return controller.rule.admits(features)
        return controller.score(features, vector) > 0

    return gate


def estimate(gate: Gate, logged: Sequence[Logged]) -> float:
    """Seconds of credit a decision that ``gate`` would have brought, by what was admitted with
    which probability (inverse propensity, at most tenfold)."""
    total = 0.0
    for one in logged:
        if one.admitted and one.credit is not None and gate(one.seen):
            total += one.credit * min(10.0, 1 / max(one.probability, 1e-3))
    return total / max(1, len(logged))


def _rounded(numbers: dict[str, Any]) -> dict[str, Any]:
    return {key: round(n, 3) if isinstance(n, float) else n for key, n in numbers.items()}


# Reports


@dataclass(frozen=True, slots=True)
class Row:
    """One policy in one regime, or on logs. ``gain`` over no bank, seconds an episode, between
    ``low`` and ``high`` (95 %); ``share`` of what the oracle gains, None where that is nothing;
    ``ahead`` of the rule by so much, between ``ahead_low`` and ``ahead_high``."""

    regime: str
    policy: str
    episodes: int
    gain: float
    low: float
    high: float
    share: float | None
    ahead: float
    ahead_low: float
    ahead_high: float


@dataclass(frozen=True, slots=True)
class Report:
    """What a controller is worth beside others. ``about`` says what it was tried on."""

    about: str
    rows: tuple[Row, ...]

    def lines(self) -> Iterator[str]:
        """As a Markdown table."""
        yield self.about
        yield ""
        yield "| regime | policy | gain, s | share of oracle | against the rule, s |"
        yield "|---|---|---|---|---|"
        for row in self.rows:
            half, ahead = (row.high - row.low) / 2, (row.ahead_high - row.ahead_low) / 2
            share = "–" if row.share is None else f"{row.share:.2f}"
            yield (
                f"| {row.regime} | {row.policy} | {row.gain:+.1f} ± {half:.1f} | {share} | "
                f"{row.ahead:+.1f} ± {ahead:.1f} |"
            )


def evaluate(
    controller: Controller,
    source: Sequence[Regime] | Regime | str | Path | None = None,
    *,
    seed: int = 0,
    episodes: int = 300,
    say: Say | None = None,
) -> Report:
    """Try a controller in regimes of the simulator (by default the seven) beside no bank, admit
    all, the rule and the oracle, all with leases, on the same worlds. On a file of logged
    decisions: estimate it beside the rule.
    """
    if isinstance(source, str | Path) and source not in _names():
        return _estimated(controller, source)
    if source is None:
        regimes: Sequence[Regime] = REGIMES
    elif isinstance(source, Regime):
        regimes = (source,)
    else:
        regimes = (regime_of(source),) if isinstance(source, str) else source
    if episodes < 2:
        raise UsageError(f"evaluate: episodes is {episodes!r}; at least 2")
    tried = {
        "admit all": policies.everything(),
        "rule": policies.ruled(controller.rule),
        "controller": policies.controlled(controller),
        "oracle": policies.oracle(),
    }
    rows: list[Row] = []
    for regime in regimes:
        if say is not None:
            say(f"{regime.name}: {episodes} episodes")
        rows += _tried(regime, tried, seed, episodes)
    about = f"Simulated teams, {episodes} episodes a regime, leases on, seed {seed}."
    return Report(about, tuple(rows))


def _tried(regime: Regime, tried: dict[str, Policy], seed: int, episodes: int) -> Iterator[Row]:
    families = regime.families
    found = [
        world(f"evaluate {seed} {number}", regime, families[number % len(families)])
        for number in range(episodes)
    ]

    def played(policy: Policy, leases: bool = True) -> list[float]:
        return [
            play(one, policy, leases=leases, seed=number).utility
            for number, one in enumerate(found)
        ]

    nothing = played(policies.none(), leases=False)
    # As a share of what the oracle of admission alone, without leases, would gain.
    most = fmean(played(policies.oracle(), leases=False)) - fmean(nothing)
    utilities = {name: played(policy) for name, policy in tried.items()}
    for name, ours in utilities.items():
        gain = _paired(ours, nothing)
        share = gain[0] / most if most > 0 else None
        yield Row(regime.name, name, episodes, *gain, share, *_paired(ours, utilities["rule"]))


def _paired(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """The mean difference and its 95 % interval."""
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    mean = fmean(differences)
    half = 1.96 * stdev(differences) / len(differences) ** 0.5
    return mean, mean - half, mean + half


def _estimated(controller: Controller, path: str | Path) -> Report:
    logged = logs.read(path)
    if not logged:
        raise UsageError(f"{path}: no logged decisions")
    rule = estimate(controller.rule.admits, logged)
    ours = estimate(guarded(controller), logged)
    rows = [
        Row(str(path), name, len(logged), value, value, value, None, ahead, ahead, ahead)
        for name, value, ahead in (("rule", rule, 0.0), ("controller", ours, ours - rule))
    ]
    about = f"Seconds of credit a decision, estimated from {len(logged)} logged decisions."
    return Report(about, tuple(rows))
