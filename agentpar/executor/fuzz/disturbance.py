"""What a seed changes in a recorded run: how long calls take, which fail, when the process dies.

Pure: equal seeds give equal disturbances.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Literal

BLOCK, WITHOUT = 20, 10
"""Of each 20 seeds in a row, the first 10 are without faults, and the others share theirs."""

Fault = Literal["fails", "fails at first", "hangs"]
Pace = Literal["as recorded", "all at once", "shuffled", "stretched", "one straggles"]
_PACES: tuple[Pace, ...] = ("all at once", "shuffled", "stretched", "one straggles")


@dataclass(frozen=True, slots=True)
class Disturbance:
    """What one seed changes: how long each call takes, which calls go wrong, and when, after
    what share of the recorded events, the process ``dies`` and another carries on from its
    journal.

    The seeds of one set of faults differ in order alone; in a ``mortal`` set, whose fault is
    the death, all but the first of them die, each at a moment of its own.
    """

    seed: int
    set: int
    pace: Pace
    faults: Mapping[str, Fault]
    mortal: bool = False
    dies: float | None = None

    @classmethod
    def of(cls, seed: int, calls: Iterable[str]) -> Disturbance:
        """The disturbance with this number; the first of each set has the recorded pace."""
        block, place = divmod(seed, BLOCK)
        number = block + 1 if place >= WITHOUT else 0
        first = seed == first_of(seed)
        pace: Pace = "as recorded" if first else Random(f"{seed} pace").choice(_PACES)
        mortal = number % 3 == 2
        faults = {} if mortal else _faults(number, sorted(calls))
        dies = Random(f"{seed} dies").random() if mortal and not first else None
        return cls(seed, number, pace, faults, mortal, dies)

    @property
    def without_death(self) -> Disturbance:
        """The same, in a process that lives."""
        return replace(self, dies=None)

    def seconds(self, call: str, time: int, recorded: float, longest: float) -> float:
        """How long the call with this text takes that is made for the ``time``-th time."""
        chance = Random(f"{self.seed} {call} {time}")
        match self.pace:
            case "as recorded":
                return recorded
            case "all at once":
                return 0.0
            case "shuffled":
                return chance.uniform(0, longest)
            case "stretched":
                return recorded * chance.choice((0.1, 0.5, 1, 2, 10))
            case "one straggles":
                return longest * 10 if chance.random() < 0.2 else recorded


def first_of(seed: int) -> int:
    """The first seed that has the same faults as ``seed``: what it is compared with."""
    block, place = divmod(seed, BLOCK)
    return block * BLOCK + WITHOUT if place >= WITHOUT else 0


def _faults(number: int, calls: list[str]) -> dict[str, Fault]:
    if number == 0 or not calls:
        return {}
    chance = Random(f"faults {number}")
    kinds: tuple[Fault, ...] = ("fails", "fails at first", "hangs")
    hit = chance.sample(calls, min(len(calls), chance.randint(1, 3)))
    return {call: chance.choice(kinds) for call in hit}
