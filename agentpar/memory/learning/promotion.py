"""When a challenger takes the champion's place.

Pure; its only chance is a seed. Both were tried on the same episodes. The challenger wins if it
would still be ahead, had the episodes been others of the same kind: if the lower end of a 95 %
interval of the mean difference lies above zero.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from agentpar.errors import UsageError

LEAST = 20
"""Paired episodes below which nothing is promoted."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """``mean`` is how much the challenger is ahead, an episode; ``low`` and ``high`` the ends of
    the interval; ``episodes`` how many pairs there were."""

    promoted: bool
    mean: float
    low: float
    high: float
    episodes: int

    def to_json(self) -> dict[str, float]:
        return asdict(self)


def compare(
    champion: Sequence[float],
    challenger: Sequence[float],
    *,
    seed: int = 0,
    level: float = 0.95,
    resamples: int = 2000,
) -> Comparison:
    """Hold the utilities of two policies on the same episodes against each other.

    The interval is a bootstrap over episodes. Raises `UsageError` where the episodes are not
    paired or a utility is no finite number.
    """
    if len(champion) != len(challenger):
        raise UsageError(
            f"promotion: {len(champion)} episodes of the champion and {len(challenger)} of the "
            "challenger; they must be the same episodes"
        )
    differences = [ours - theirs for theirs, ours in zip(champion, challenger, strict=True)]
    if not all(map(math.isfinite, differences)):
        raise UsageError("promotion: a utility is no finite number")
    if not differences:
        return Comparison(False, 0.0, 0.0, 0.0, 0)
    mean = sum(differences) / len(differences)
    low, high = interval(differences, seed=seed, level=level, resamples=resamples)
    promoted = len(differences) >= LEAST and low > 0
    return Comparison(promoted, mean, low, high, len(differences))


def interval(
    values: Sequence[float], *, seed: int = 0, level: float = 0.95, resamples: int = 2000
) -> tuple[float, float]:
    """A bootstrap interval of the mean of ``values``: what the means of samples of the same size,
    drawn from them with replacement, lie between in a share ``level`` of the cases."""
    count = len(values)
    chance = random.Random(f"bootstrap {seed}")
    means = sorted(sum(chance.choices(values, k=count)) / count for _ in range(resamples))
    tail = (1 - level) / 2
    return means[int(tail * resamples)], means[min(resamples - 1, int((1 - tail) * resamples))]
