"""What fuzzing found, and how it is said. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from agentpar.executor.fuzz.disturbance import Fault


@dataclass(frozen=True, slots=True)
class Decided:
    """All that a run has decided: which calls it made (sorted), how its tasks ended, what its
    joiner read, and what its answer is worth."""

    calls: tuple[str, ...]
    outcomes: tuple[tuple[int, str], ...]
    prompts: tuple[str, ...]
    answer: tuple[str, ...]

    def unlike(self, other: Decided) -> list[str]:
        """The parts in which ``other`` differs, in words."""
        parts = {"calls": "the calls", "outcomes": "the results", "prompts": "the joiner's prompt"}
        parts["answer"] = "the answer"
        return [said for name, said in parts.items() if getattr(self, name) != getattr(other, name)]


Cause = Literal["", "order", "limit", "crash", "open"]
"""Why schedules of one set decided otherwise than its first: the order in which things ended; a
limit (deadline, budget, timeout) that some of them reached, at times because what broke off counts
as spent; the death of the process; or a write that it left open, which nobody makes again."""


@dataclass(frozen=True, slots=True)
class Group:
    """Schedules that decided alike. ``order`` is that in which the tasks of the first ended.

    ``cause`` is why they decided otherwise than the first group of their set, found by running
    again without the death, and without limits; ``limit`` says which those were.
    """

    decided: Decided
    seeds: tuple[int, ...]
    order: tuple[int, ...] = ()
    cause: Cause = ""
    limit: str = ""


@dataclass(frozen=True, slots=True)
class FaultSet:
    """The schedules that share their faults; in a ``mortal`` set, that their process dies."""

    faults: Mapping[str, Fault]
    groups: tuple[Group, ...]
    mortal: bool = False

    def differing(self, *causes: Cause) -> list[Group]:
        """The groups of which the answer, or what it is written from, is not that of the first,
        for one of these causes."""
        first = self.groups[0].decided
        return [
            group
            for group in self.groups
            if group.cause in causes
            and (group.decided.prompts, group.decided.answer) != (first.prompts, first.answer)
        ]


@dataclass(frozen=True, slots=True)
class Report:
    """What fuzzing found; ``findings`` are things to know, with the first seed that showed each."""

    question: str
    schedules: int
    sets: tuple[FaultSet, ...]
    findings: Mapping[str, int] = field(default_factory=dict)

    def differing(self, *causes: Cause) -> list[Group]:
        """See `FaultSet.differing`."""
        return [group for one in self.sets for group in one.differing(*causes)]

    @property
    def order_matters(self) -> bool:
        """Whether the answer, or what it is written from, depends on the order of events."""
        return bool(self.differing("order"))

    @property
    def limits_matter(self) -> bool:
        """Whether it depends on how long things take because a limit is reached or not."""
        return bool(self.differing("limit"))

    @property
    def crash_matters(self) -> bool:
        """Whether it is another one after a crash, although no write was left open."""
        return bool(self.differing("crash"))

    @property
    def differs(self) -> bool:
        """Whether any of these three holds."""
        return self.order_matters or self.limits_matter or self.crash_matters

    @property
    def answer_differs(self) -> bool:
        """Whether the recorded answer comes out otherwise: its text, or what carries it."""
        return any(
            group.decided.answer != one.groups[0].decided.answer
            for one in self.sets
            for group in one.differing("order", "limit", "crash")
        )

    @property
    def outcomes(self) -> int:
        """How many different things were decided, over all sets of faults."""
        return len({group.decided for one in self.sets for group in one.groups})

    def lines(self) -> Iterator[str]:
        """The report in plain words."""
        outcomes = _many(self.outcomes, "distinct outcome")
        yield f"{self.schedules} schedules of {self.question!r}: {outcomes}"
        plain = [one for one in self.sets if not one.faults and not one.mortal]
        if plain:  # several where there is no call that could fail
            count = sum(len(group.seeds) for one in plain for group in one.groups)
            found = len({group.decided for one in plain for group in one.groups})
            yield f"without faults: {count} schedules, {_many(found, 'outcome')}"
        for one in self.sets:
            if len(one.groups) > 1:
                if one.faults or one.mortal:
                    faults = ", ".join(f"{call} {fault}" for call, fault in one.faults.items())
                    where = faults or "the process dies"
                    count = sum(len(group.seeds) for group in one.groups)
                    yield f"where {where}: {count} schedules, {len(one.groups)} outcomes"
                yield from _compared(one.groups)
        faulty = [one for one in self.sets if one.faults or one.mortal]
        if faulty:
            count = sum(len(group.seeds) for one in faulty for group in one.groups)
            differing = sum(any(g.cause == "order" for g in one.groups) for one in faulty)
            yield (
                f"with faults: {count} schedules in {_many(len(faulty), 'set')} of faults; "
                f"in {differing} of them the outcome depends on the order"
            )
        for finding, seed in self.findings.items():
            yield f"note (seed {seed}): {finding}"
        yield (
            "not seen: tools whose results depend on what ran before, for results are those of the "
            "record; and what a model would write on another prompt"
        )
        yield from self._conclusion()

    def _conclusion(self) -> Iterator[str]:
        if self.differing("open"):
            yield (
                "a crash may leave it open whether a call that changes something was made, and the "
                "run then goes on without it; one that is declared idempotent is made again"
            )
        what = "the answer" if self.answer_differs else "what the answer is written from"
        if self.crash_matters:
            yield f"{what} is another one after a crash"
        if self.limits_matter:
            limits = sorted({group.limit for group in self.differing("limit")})
            yield f"{what} depends on what is done before a limit is reached: {', '.join(limits)}"
        if self.order_matters:
            yield f"{what} depends on the order of events"
        elif self.limits_matter:
            yield "without limits it would not depend on the order of events"
        else:
            yield "the answer does not depend on the order of events"


def _many(count: int, word: str) -> str:
    return f"1 {word}" if count == 1 else f"{count} {word}s"


def _compared(groups: tuple[Group, ...]) -> Iterator[str]:
    first, *others = groups
    yield f"  {_like(first)}"
    for group in others:
        *parts, last = first.decided.unlike(group.decided)
        differing = f"{', '.join(parts)} and {last}" if parts else last
        yield f"  {_like(group)}; differs{_because(group)} in {differing}:"
        yield f"    {difference(group.decided, group.seeds[0], first.decided, first.seeds[0])}"


def _because(group: Group) -> str:
    match group.cause:
        case "limit":
            return f", not by order but by a limit ({group.limit}),"
        case "crash":
            return ", after a crash,"
        case "open":
            return ", after a crash that left open whether a call was made,"
        case _:
            return ""


def _like(group: Group) -> str:
    order = ", ".join(map(str, group.order[:30])) + (", …" if len(group.order) > 30 else "")
    count = _many(len(group.seeds), "schedule")
    return f"{count} as seed {group.seeds[0]}, where tasks end in the order {order or '(none)'}"


def difference(one: Decided, seed: int, base: Decided, base_seed: int) -> str:
    """The first thing that ``one`` decided otherwise than ``base``, in plain words."""
    more, less = Counter(one.calls), Counter(base.calls)
    if extra := sorted((more - less).elements()):
        return f"seed {seed} calls {short(extra[0])}, seed {base_seed} does not"
    if missing := sorted((less - more).elements()):
        return f"seed {seed} does not call {short(missing[0])}, seed {base_seed} does"
    ends, base_ends = dict(one.outcomes), dict(base.outcomes)
    for id in sorted(ends.keys() | base_ends.keys()):
        if ends.get(id) != base_ends.get(id):
            end, base_end = aside(ends.get(id, "no outcome"), base_ends.get(id, "no outcome"))
            return f"task {id} ends as {end} with seed {seed}, as {base_end} with seed {base_seed}"
    if one.prompts != base.prompts:
        line, base_line = _first_line("\n".join(one.prompts), "\n".join(base.prompts))
        return f"the joiner reads {line} with seed {seed}, {base_line} with seed {base_seed}"
    pairs = zip(one.answer, base.answer, strict=False)
    for said, base_said in pairs:
        if said != base_said:
            return f"seed {seed}: {short(said)}; seed {base_seed}: {short(base_said)}"
    longer, number = (one, seed) if len(one.answer) > len(base.answer) else (base, base_seed)
    return f"only seed {number}: {short(longer.answer[min(len(one.answer), len(base.answer))])}"


def _first_line(text: str, other: str) -> tuple[str, str]:
    lines, other_lines = text.splitlines(), other.splitlines()
    for line, other_line in zip(lines, other_lines, strict=False):
        if line != other_line:
            return aside(repr(line), repr(other_line))
    return f"{len(lines)} lines", f"{len(other_lines)} lines"


def aside(text: str, other: str, room: int = 100) -> tuple[str, str]:
    """Both texts from shortly before where they part."""
    same = next(
        (at for at, (a, b) in enumerate(zip(text, other, strict=False)) if a != b),
        min(len(text), len(other)),
    )
    start = max(0, same - room // 2) if max(len(text), len(other)) > room else 0
    before = "…" if start else ""
    return before + short(text[start:], room), before + short(other[start:], room)


def short(text: str, room: int = 200) -> str:
    text = text.replace("\n", "\\n")
    return text if len(text) <= room else f"{text[:room]}…"
