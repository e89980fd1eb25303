"""How admission is learned: simulator, learners, promotion, and the controller's file."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from agentpar.errors import UsageError
from agentpar.memory.controller import Controller, load, loads, shipped
from agentpar.memory.features import NAMES, Features
from agentpar.memory.learning import (
    OTHERS,
    REGIMES,
    Logged,
    Regime,
    evaluate,
    learners,
    policies,
    promotion,
    read,
    train,
    write,
)
from agentpar.memory.learning.linear import Ridge
from agentpar.memory.learning.policies import Gate
from agentpar.memory.learning.simulator import Policy, play, regime_of, world
from agentpar.memory.rule import Rule

DEFAULT = REGIMES[0]
SMALL = Regime("small", (2,), teams=3)
COSTLY = replace(SMALL, line=120, token=1 / 100)
"""A small regime in which what nobody reads is expensive."""


def utilities(policy: Policy, regime: Regime, count: int, leases: bool = True) -> list[float]:
    found = (world(f"try {i}", regime) for i in range(count))
    return [play(one, policy, leases=leases, seed=i).utility for i, one in enumerate(found)]


# The simulator


@pytest.mark.parametrize("regime", [*REGIMES, *OTHERS], ids=lambda regime: regime.name)
def test_equal_seeds_give_equal_episodes(regime: Regime) -> None:
    """World, decisions and credit; another seed gives others."""

    def episode(seed: int) -> Any:
        return play(world(seed, regime), policies.constant(0.5), leases=True, seed=seed)

    assert episode(1) == episode(1)
    assert episode(1) != episode(2)


@pytest.mark.parametrize("regime", [*REGIMES, *OTHERS], ids=lambda regime: regime.name)
def test_every_team_answers_all_it_needs(regime: Regime) -> None:
    """Nobody waits for ever, with and without leases, whatever is admitted."""
    for seed in range(5):
        one = world(seed, regime)
        for policy in (policies.none(), policies.everything(), policies.ruled(Rule())):
            for leases in (False, True):
                episode = play(one, policy, leases=leases)
                assert 0 < episode.seconds < 10_000
                assert 0 <= episode.right <= 1
                assert all(len(one.vector) == len(NAMES) for one in episode.decided)


def test_with_no_bank_nothing_is_reused() -> None:
    """No hits, no entries, no lines in a prompt."""
    episode = play(world(3, DEFAULT), policies.none(), leases=False)
    assert (episode.hits, episode.waits, episode.entries) == (0, 0, 0)


def test_leases_spare_double_work() -> None:
    """With everything admitted, fewer calls are made and more is read than without."""
    found = [world(f"lease {i}", DEFAULT) for i in range(30)]
    without = [play(one, policies.everything(), leases=False) for one in found]
    with_them = [play(one, policies.everything(), leases=True) for one in found]
    assert sum(one.calls for one in with_them) < sum(one.calls for one in without)
    assert sum(one.hits for one in with_them) > sum(one.hits for one in without)
    assert all(one.waits == 0 for one in without)


def test_the_oracle_gains_and_its_ledger_says_so() -> None:
    """What it admits is worth something by its credit; it does better than no bank."""
    found = [world(f"oracle {i}", DEFAULT) for i in range(60)]
    told = [play(one, policies.oracle(), leases=True) for one in found]
    nothing = [play(one, policies.none(), leases=False) for one in found]
    assert fmean(e.utility for e in told) > fmean(e.utility for e in nothing)
    credits = [d.credit for e in told for d in e.decided if d.admitted]
    assert fmean(credits) > 0
    assert all(d.credit == 0 for e in told for d in e.decided if not d.admitted)


def test_the_smooth_utility_is_nearly_the_utility() -> None:
    """Over many episodes: learners climb what is reported."""
    found = [world(f"smooth {i}", DEFAULT) for i in range(150)]
    told = [play(one, policies.everything(), leases=True) for one in found]
    assert fmean(e.smooth for e in told) == pytest.approx(fmean(e.utility for e in told), abs=20)


def test_what_is_seen_is_what_a_live_policy_sees() -> None:
    """The vector is that of its features, and comes back from a log."""
    episode = play(world(5, OTHERS[1]), policies.everything(), leases=True)
    for decided in episode.decided:
        assert decided.vector == decided.features.vector()
        seen = Logged(decided.vector, 1.0, True).seen
        assert seen.vector() == pytest.approx(decided.vector)


# Learners


@pytest.mark.parametrize("learner", ["ledger", "bandit"])
def test_a_learner_does_better_than_chance(learner: str) -> None:
    """Where lines are dear: better than to admit half by lot, in worlds it has not seen."""
    if learner == "bandit":
        gate = learners.bandit(COSTLY, 1, episodes=80)
    else:
        gate = learners.reinforce(COSTLY, 1, episodes=80)
    ours = utilities(policies.controlled(gate, guarded=False), COSTLY, 80)
    chance = utilities(policies.constant(0.5), COSTLY, 80)
    assert promotion.compare(chance, ours).promoted


def test_evolution_begins_at_the_rule() -> None:
    """Without a round it is the rule; with some it is another gate, the same for equal seeds."""
    start = learners.evolve(SMALL, 1, rounds=0)
    assert utilities(policies.controlled(start), SMALL, 10) == utilities(
        policies.ruled(Rule()), SMALL, 10
    )
    one, two = (learners.evolve(SMALL, 1, rounds=2, pairs=2, size=2) for _ in range(2))
    assert one == two != start


def test_the_race_keeps_the_best() -> None:
    """Of a gate that shares nothing, one that shares everything, and the rule."""
    never = Controller((-1.0, *[0.0] * (len(NAMES) - 1)))
    rule = Controller((0.0,) * len(NAMES), 1.0)
    assert learners.race([never, rule], SMALL, 1, episodes=80) is rule


def test_ridge_finds_a_line() -> None:
    """Weights come back from exact examples; drawn ones lie around them."""
    chance = random.Random(1)
    ridge = Ridge(3, penalty=1e-6)
    for _ in range(50):
        x = [1.0, chance.random(), chance.random()]
        ridge.add(x, 2 - 3 * x[1] + x[2])
    assert ridge.solve() == pytest.approx([2, -3, 1], abs=1e-4)
    draws = [ridge.draw(chance, 0.1) for _ in range(200)]
    assert [fmean(column) for column in zip(*draws, strict=True)] == pytest.approx(
        [2, -3, 1], abs=0.1
    )


# Promotion


def test_promotion_refuses_noise() -> None:
    """Equal policies with luck: of 40 such, at most a few are let through."""
    chance = random.Random(7)
    passed = 0
    for seed in range(40):
        champion = [chance.gauss(0, 50) for _ in range(100)]
        challenger = [one + chance.gauss(0, 20) for one in champion]
        passed += promotion.compare(champion, challenger, seed=seed, resamples=400).promoted
    assert passed <= 4  # 2.5 % are expected


def test_promotion_sees_what_is_better() -> None:
    """And says by how much; equal seeds give equal bounds."""
    chance = random.Random(7)
    champion = [chance.gauss(0, 50) for _ in range(200)]
    challenger = [one + chance.gauss(5, 10) for one in champion]
    found = promotion.compare(champion, challenger, seed=3)
    assert found.promoted
    assert 0 < found.low < found.mean < found.high
    assert found == promotion.compare(champion, challenger, seed=3)


def test_promotion_needs_the_same_episodes_and_enough_of_them() -> None:
    """A few are never enough; what is not paired is a mistake."""
    assert not promotion.compare([0.0] * 10, [1.0] * 10).promoted
    assert not promotion.compare([], []).promoted
    with pytest.raises(UsageError, match="the same episodes"):
        promotion.compare([0.0], [1.0, 2.0])
    with pytest.raises(UsageError, match="finite"):
        promotion.compare([0.0], [float("nan")])


# Training


def logged(count: int = 400, seed: int = 1) -> list[Logged]:
    """Decisions of a policy that draws lots, where only demand is worth anything."""
    chance = random.Random(seed)
    found = []
    for _ in range(count):
        demand, admitted = chance.choice((0, 2)), chance.random() < 0.5
        features = Features(demand=demand, others=2, quality=chance.random())
        credit = (20.0 if demand else -10.0) + chance.gauss(0, 5) if admitted else None
        found.append(Logged(features.vector(), 0.5, admitted, credit, "rule", "R"))
    return found


def test_training_on_logs_promotes_nothing_by_itself() -> None:
    """It learns what was worth something, and leaves the rule in charge."""
    found = train(logged())
    wanted = Features(demand=2, others=2, quality=0.5)
    assert found.score(wanted) > 0 > found.score(replace(wanted, demand=0))
    assert not found.promoted
    assert "no paired replay" in found.record["promotion"]
    assert found.record["decisions"] == 400


def test_a_paired_replay_promotes_what_was_learned_from_logs() -> None:
    """If it is ahead in it; and not if it is not."""

    def replay(by: float) -> Any:
        def played(gate: Gate) -> Sequence[float]:
            learned = not gate(Features(demand=2, others=2, quality=0.1))
            return [10.0 * i + (0.0 if learned else by) for i in range(50)]

        return played

    assert train(logged(), replay=replay(5.0)).promoted
    assert not train(logged(), replay=replay(-5.0)).promoted


def test_too_few_decisions_teach_nothing(tmp_path: Path) -> None:
    """The error has the numbers."""
    with pytest.raises(UsageError, match="20 decisions"):
        train(logged(20))
    with pytest.raises(UsageError, match="no file of decisions and no regime"):
        train("elsewhere")
    with pytest.raises(UsageError, match="effort"):
        train(SMALL, effort=0)
    with pytest.raises(UsageError, match="cannot be read"):
        train(tmp_path)


def test_training_in_the_simulator_records_how(tmp_path: Path) -> None:
    """Seeds, episodes, the race and the numbers of the promotion; equal seeds train alike."""
    said: list[str] = []
    found = train(SMALL, seed=3, effort=0.01, paired=40, say=said.append)
    assert found.record["seed"] == 3
    assert found.record["promotion"]["episodes"] == 40
    assert found.promoted == found.record["promotion"]["promoted"]
    assert len(said) == 3
    assert found == train(SMALL, seed=3, effort=0.01, paired=40)


def test_evaluation_lays_the_controller_beside_others(tmp_path: Path) -> None:
    """In the simulator, by name too; and on a file of decisions, as an estimate."""
    report = evaluate(shipped(), SMALL, episodes=6)
    assert [row.policy for row in report.rows] == ["admit all", "rule", "controller", "oracle"]
    assert len(list(report.lines())) == 8
    assert {row.regime for row in evaluate(shipped(), "little overlap", episodes=2).rows} == {
        "little overlap"
    }
    path = tmp_path / "log.jsonl"
    write(path, logged())
    found = evaluate(train(path), path)
    rule, ours = found.rows
    assert ours.gain >= rule.gain > 0


# Logs


def test_decisions_come_back_from_their_file(tmp_path: Path) -> None:
    """Written, appended, read."""
    path = tmp_path / "log.jsonl"
    some = logged(5)
    assert write(path, some) == 5
    write(path, some[:1], append=True)
    assert read(path) == [*some, some[0]]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "no logged decision"),
        ("[]", "it needs"),
        ('{"features": [1], "probability": 1, "admitted": true}', "13 finite numbers"),
        ('{"features": "x", "probability": 1, "admitted": true}', "must be a list"),
        (json.dumps({"features": [0] * 13, "probability": 2, "admitted": True}), "probability 2"),
        (json.dumps({"features": [0] * 13, "probability": 1, "admitted": 1}), "true or false"),
        ('{"features": [NaN], "probability": 1, "admitted": true}', "finite"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, says: str) -> None:
    """With its number, and what is wrong with it."""
    path = tmp_path / "log.jsonl"
    write(path, logged(1))
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UsageError, match=rf"log.jsonl:2: .*{says}"):
        read(path)


# The controller's file


def test_a_controller_comes_back_from_its_file(tmp_path: Path) -> None:
    """Weights, ranges, rule and record."""
    found = train(logged())
    found.save(tmp_path / "c.json")
    assert load(tmp_path / "c.json") == found


def test_the_shipped_controller_says_how_it_was_trained() -> None:
    """A few kilobytes, with data, seed, episodes, and the numbers of its promotion."""
    found = shipped()
    assert found.promoted
    assert found.record["promotion"]["low"] > 0
    assert {"data", "seed", "episodes", "learner"} <= set(found.record)
    assert len(found.dumps()) < 8000
    assert found.rule == Rule()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": "x"}, "no controller"),
        ({"version": 2}, "of version 2"),
        ({"features": ["one"]}, "its features are"),
        ({"weights": {"one": 1.0}}, "weights must have one entry"),
        ({"weights": dict.fromkeys(NAMES, "much")}, "not a number"),
        ({"weights": dict.fromkeys(NAMES, float("nan"))}, "not a number"),
        ({"ranges": {name: [2, 1] for name in NAMES}}, r"not \[low, high\]"),
        ({"rule_weight": None}, "rule_weight"),
        ({"rule": {"quality": 1}}, "the rule is"),
        ({"rule": Rule().to_json() | {"quality": True}}, "quality is True"),
        ({"promoted": "yes"}, "promoted"),
        ({"record": []}, "record"),
    ],
)
def test_a_bad_controller_is_refused(change: dict[str, Any], says: str) -> None:
    """With the file's name, and what is wrong with it."""
    data = json.loads(shipped().dumps()) | change
    with pytest.raises(UsageError, match=rf"^mine\.json: .*{says}"):
        loads(json.dumps(data), "mine.json")


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    """Absent, or no JSON."""
    with pytest.raises(UsageError, match=r"absent\.json: the controller cannot be read"):
        load(tmp_path / "absent.json")
    (tmp_path / "bad.json").write_text("{", encoding="utf-8")
    with pytest.raises(UsageError, match=r"bad\.json: no JSON"):
        load(tmp_path / "bad.json")
    with pytest.raises(UsageError, match="1 weights"):
        Controller((1.0,))


def test_regimes_have_names() -> None:
    """By which they are found."""
    assert all(regime_of(one.name) is one for one in (*REGIMES, *OTHERS))
