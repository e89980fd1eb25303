"""Recorded teams over a replayed bank: every admission policy, with leases and without.

The teams were recorded one by one without a bank (`memory_record.py`, in `recordings/`). Here 1, 3
or 8 of them run again side by side in virtual time, as the executor would have run them
(`agentpar.memory.learning.replay`). What the model wrote and what it took to write it is the
recording's, at one steady pace; so answers, and votes, are the same under every policy. Seeds pick
which of the eight recorded teams of a question take part.

    python bench/memory_recorded.py --save
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from statistics import fmean, median

sys.path.insert(0, str(Path(__file__).parent))

import machine_facts
from memory_questions import FAMILIES

from agentpar.answer import Answer
from agentpar.memory.admission import Admission, Always, ByRule, Learned, Novelty
from agentpar.memory.controller import Controller, shipped
from agentpar.memory.learning.policies import Gate
from agentpar.memory.learning.promotion import interval
from agentpar.memory.learning.recorded import Pace, RecordedTeam
from agentpar.memory.learning.replay import (
    Conditions,
    Oracle,
    ReplayBank,
    Replayed,
    logged,
    replay,
    together,
    trial,
)
from agentpar.memory.learning.training import train
from agentpar.teams import Ended, vote

RECORDING = Path(__file__).parent / "recordings" / "qwen2.5-coder-0.5b.jsonl"
HELD_OUT = frozenset(family.name for family in FAMILIES if family.held_out)

Make = Callable[[], Admission | None]
POLICIES: dict[str, Make] = {
    "no bank": lambda: None,
    "none": lambda: Always(False),
    "all": lambda: Always(True),
    "novelty": Novelty,
    "rule": ByRule,
    "learned": Learned,
    "oracle": Oracle,
}


@dataclass(frozen=True, slots=True)
class Episode:
    """A question and the recorded teams that a seed has picked for it."""

    question: str
    teams: tuple[RecordedTeam, ...]


def episodes(
    groups: Sequence[list[RecordedTeam]], n: int, seeds: int, first: int = 0
) -> list[Episode]:
    return [
        Episode(teams[0].question, tuple(Random(f"{seed} {teams[0].question}").sample(teams, n)))
        for teams in groups
        for seed in range(first, first + seeds)
    ]


def by_question(found: Sequence[tuple[Episode, float]]) -> list[float]:
    """One number for each question, the mean of its seeds: what an interval is made of."""
    of: dict[str, list[float]] = {}
    for episode, value in found:
        of.setdefault(episode.question, []).append(value)
    return [fmean(values) for values in of.values()]


def told(values: Sequence[float], digits: int = 1) -> str:
    """Mean and 95 % interval over questions."""
    low, high = interval(values)
    return f"{fmean(values):.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def voted(teams: Sequence[RecordedTeam], ends: Sequence[float]) -> bool:
    """Whether the vote of the recorded answers is right; ties go to who was done first."""
    order = sorted(range(len(teams)), key=lambda at: ends[at])
    ended = [
        Ended(at, Answer("", teams[at].question, f"Answer: {teams[at].conclusion}")) for at in order
    ]
    choice = vote(ended)
    return choice is not None and bool(teams[choice.team].right)


HEADER = (
    "| teams | policy | seconds [95 %] | saved, s [95 %] | tool calls [95 %] | spared, of the "
    "oracle's | beside the rule [95 %] | model tokens | used | entries | kB |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|"
)


def table(
    groups: Sequence[list[RecordedTeam]], conditions: Conditions, seeds: int, ns: Sequence[int]
) -> Iterator[str]:
    yield HEADER
    for n in ns:
        chosen = episodes(groups, n, seeds)
        found = {
            name: [replay(episode.teams, make(), conditions) for episode in chosen]
            for name, make in POLICIES.items()
        }
        for name in POLICIES:
            yield _row(n, name, chosen, found)


def _row(
    n: int, name: str, chosen: Sequence[Episode], found: Mapping[str, Sequence[Replayed]]
) -> str:
    def each(what: Callable[[Replayed], float], of: str = name) -> list[float]:
        return by_question([(e, what(f)) for e, f in zip(chosen, found[of], strict=True)])

    def fewer(what: Callable[[Replayed], float], than: str, of: str = name) -> list[float]:
        return [a - b for a, b in zip(each(what, than), each(what, of), strict=True)]

    def seconds(one: Replayed) -> float:
        return one.seconds

    def made(one: Replayed) -> float:
        return one.made

    most = fmean(fewer(made, "no bank", "oracle"))
    share = f"{fmean(fewer(made, 'no bank')) / most:.2f}" if most >= 0.05 else "–"
    beside = "–" if name in ("no bank", "rule") else told([-x for x in fewer(made, "rule")], 2)
    return (
        f"| {n} | {name} | {told(each(seconds))} | {told(fewer(seconds, 'no bank'), 2)} "
        f"| {told(each(made))} | {share} | {beside} | {fmean(each(lambda f: f.tokens)):.0f} "
        f"| {fmean(each(lambda f: f.used)):.1f} | {fmean(each(lambda f: f.entries)):.1f} "
        f"| {fmean(each(lambda f: f.chars)) / 1000:.1f} |"
    )


def days(groups: Sequence[list[RecordedTeam]], n: int, seeds: int) -> Iterator[str]:
    """A project's bank: the questions of a family one after the other."""
    families: dict[str, list[list[RecordedTeam]]] = {}
    for teams in groups:
        families.setdefault(teams[0].family, []).append(teams)
    yield (
        "| teams | policy | seconds of a question [95 %] | tool calls | tokens of offers "
        "| entries at the end |\n|---|---|---|---|---|---|"
    )
    for name, make in POLICIES.items():
        seconds, calls, offered, entries = [], [], [], []
        for family, questions in families.items():
            for seed in range(seeds):
                picked = [
                    Random(f"{seed} {teams[0].question}").sample(teams, n) for teams in questions
                ]
                bank, policy = ReplayBank(), make()
                for at, teams in enumerate(picked):
                    later = {c.like for rest in picked[at + 1 :] for t in rest for c in t.calls}
                    again = replay(teams, policy, bank=bank, run_id=f"{family} {at}", later=later)
                    episode = Episode(teams[0].question, tuple(teams))
                    seconds.append((episode, again.seconds))
                    calls.append((episode, float(again.made)))
                    offered.append((episode, float(again.offered)))
                entries.append(len(bank.kept))
        yield (
            f"| {n} | {name} | {told(by_question(seconds))} | {told(by_question(calls))} "
            f"| {fmean(by_question(offered)):.0f} | {fmean(entries):.1f} |"
        )


def pace_of(teams: Sequence[RecordedTeam]) -> Pace:
    """The model's pace while it was recorded: medians over texts of at least 20 tokens."""
    texts = [(r.plan_seconds, r.plan_tokens) for t in teams for r in t.rounds]
    texts += [(r.join_seconds, r.join_tokens) for t in teams for r in t.rounds]
    longer = [(seconds, tokens) for seconds, tokens in texts if tokens >= 20]
    waits = [c.written for t in teams for c in t.rounds[0].calls[:1]]
    pieces = [c.pieces for t in teams for c in t.rounds[0].calls[:1]]
    token = median(
        (a[0] - b[0]) / (a[1] - b[1])
        for at, a in enumerate(longer)
        for b in longer[at % 7 : at : 7]
        if abs(a[1] - b[1]) >= 20
    )
    first = median(wait - token * count for wait, count in zip(waits, pieces, strict=True))
    return Pace(max(0.0, first), token)


def learn(groups: Sequence[list[RecordedTeam]], seeds: int) -> Controller:
    """A controller learned from these recordings: from what the rule decided in replays, with a lot
    in half of the cases, and what came of it; promoted over the rule by a paired replay of other
    picks of teams, in which a call costs a second."""
    servers = (None, 1, 2)
    lines = [
        line
        for n in (3, 8)
        for texts in servers
        for number, episode in enumerate(episodes(groups, n, seeds))
        for line in logged(
            replay(episode.teams, ByRule(seed=number, explore=0.5), Conditions(texts=texts))
        )
    ]
    others = [episode.teams for episode in episodes(groups, 3, seeds, first=seeds)]
    plays = [trial(others, Conditions(texts=texts), call=1.0) for texts in servers]

    def paired(gate: Gate) -> list[float]:
        return [fmean(each) for each in zip(*(play(gate) for play in plays), strict=True)]

    return train(lines, replay=paired)


def accuracy(groups: Sequence[list[RecordedTeam]], seeds: int) -> Iterator[str]:
    for n in (1, 3, 8):
        chosen = episodes(groups, n, seeds)
        right = [(e, float(voted(e.teams, replay(e.teams, None).ends))) for e in chosen]
        yield f"| {n} | {told(by_question(right), 2)} |"


def report(
    recorded: Sequence[RecordedTeam], seeds: int, controller: Path | None = None
) -> Iterator[str]:
    pace = pace_of(recorded)
    whole = [teams for teams in together(t.at(pace) for t in recorded) if len(teams) >= 8]
    held = [teams for teams in whole if teams[0].family in HELD_OUT]
    rest = [teams for teams in whole if teams[0].family not in HELD_OUT]
    shared = [c for ts in whole for t in ts for c in t.calls if c.shared and c.seconds is not None]
    redundant = {
        n: fmean(
            by_question(
                [
                    (e, 1 - len({c.like for c in calls}) / len(calls))
                    for e in episodes(whole, n, seeds)
                    if (calls := [c for t in e.teams for c in t.calls if c.shared and c.seconds])
                ]
            )
        )
        for n in (1, 3, 8)
    }
    failed = sum(not call.ok for call in shared) / len(shared)
    yield (
        f"- {len(whole)} questions, eight teams each, {len(held)} of them of held-out families; "
        f"{seeds} seeds pick the teams; intervals are bootstraps over questions, each the mean of "
        "its seeds"
    )
    yield (
        f"- the model at one pace for all: {pace.first:.2f} s to the first token, "
        f"{pace.token * 1000:.0f} ms a token; tools as recorded, {failed:.0%} of the calls that "
        "can be shared failed, after retries"
    )
    yield (
        "- answers, and so accuracy, are the recording's under every policy: see the votes at the "
        "end; the shares are of the calls that the oracle spares, as time is hardly spared at all"
    )
    yield (
        "- calls that another of the teams makes, too (1 less the share of different ones): "
        + ", ".join(f"{share:.0%} with {n}" for n, share in redundant.items())
    )
    record = shipped().record
    yield (
        f"- the shipped controller is {'' if shipped().promoted else 'not '}promoted, trained on "
        f"{record.get('data', 'nothing')}; where it is not, or sees what it was not trained on, "
        "the rule decides; a judge was not replayed: what pages said is not in the recordings"
    )
    yield (
        '- "no bank": teams share nothing; "none": they wait for each other\'s equal calls and '
        "keep nothing; the oracle admits what another team will still ask for"
    )
    began = time.perf_counter()
    own = learn(rest, seeds)
    if controller is not None:
        own.save(controller)
    POLICIES["learned here"] = lambda: Learned(replace(own, promoted=True))
    found = own.record["promotion"]
    yield (
        f'- "learned here": a controller trained on replays of the {len(rest)} questions for '
        f"training ({own.record['decisions']} decisions), {'' if own.promoted else 'not '}promoted "
        f"by a paired replay of them with a second a call: {found['mean']:+.2f} s "
        f"[{found['low']:+.2f}, {found['high']:+.2f}] beside the rule"
    )
    plain = Conditions()
    small = Conditions(texts=1)
    for title, groups, conditions, ns in (
        ("Held-out families, all teams at once, with leases", held, plain, (1, 3, 8)),
        ("The same without leases", held, replace(plain, leases=False), (3, 8)),
        ("Held-out families, a server that writes one text at a time", held, small, (3, 8)),
        ("The same without leases", held, replace(small, leases=False), (3, 8)),
        (
            "The same with leases, and pages four times as slow",
            held,
            replace(small, calls=4),
            (3, 8),
        ),
        ("Families for training, one text at a time", rest, small, (3, 8)),
    ):
        yield f"\n## {title}\n"
        yield from table(groups, conditions, seeds, ns)
    yield "\n## A bank that outlives the run: the questions of a family one after the other\n"
    yield from days(whole, 1, seeds)
    yield ""
    yield from days(whole, 3, seeds)
    yield "\n## Votes against ground truth (the same under every policy)\n"
    yield "| teams | right, held-out families [95 %] |\n|---|---|"
    yield from accuracy(held, seeds)
    took = time.perf_counter() - began
    yield f"\nAll of it was replayed in {took:.1f} s."


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--recording", type=Path, default=RECORDING)
    options.add_argument("--seeds", type=int, default=10)
    options.add_argument("--controller", type=Path, help="write what is learned here to this file")
    options.add_argument("--save", action="store_true", help="write a page to bench/results")
    chosen = options.parse_args()
    text = chosen.recording.read_text(encoding="utf-8")
    recorded = [RecordedTeam.from_line(line) for line in text.splitlines()]
    lines = [
        *machine_facts.lines(),
        f"- recorded: {chosen.recording.name}, {len(recorded)} runs",
        *report(recorded, chosen.seeds, chosen.controller),
    ]
    print("\n".join(lines))
    if chosen.save:
        machine_facts.save("memory_recorded", "Recorded teams over a replayed bank", lines)


if __name__ == "__main__":
    main()
