"""What an admission policy may look at: numbers about a finding and about who else may want it.

Pure. Everything is known when the call ends; nothing looks ahead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

NAMES = (
    "one",
    "demand",
    "waiting",
    "seconds",
    "tokens",
    "length",
    "novelty",
    "closeness",
    "quality",
    "progress",
    "depth",
    "others",
    "project",
)
"""The numbers of `Features.vector`, in order."""


@dataclass(frozen=True, slots=True)
class Features:
    """Of one finding, at the moment it is offered.

    ``demand``: tasks of other teams that have not begun and ask for the same. ``waiting``: calls
    that wait for this very one. ``seconds`` and ``tokens`` it took to find, ``length`` its
    characters. ``novelty``: 1 less the largest cosine to what the bank holds. ``closeness``: its
    cosine to the question. ``quality`` (0 to 1): how far it looks sound, by program. ``progress``:
    the share of the other teams' tasks that have ended. ``depth``: how many calls stand before it
    in its plan. ``others``: teams beside this one that still work. ``project``: the bank outlives
    the run.
    """

    demand: int = 0
    waiting: int = 0
    seconds: float = 0.0
    tokens: int = 0
    length: int = 0
    novelty: float = 1.0
    closeness: float = 0.0
    quality: float = 1.0
    progress: float = 0.0
    depth: int = 0
    others: int = 0
    project: bool = False

    def vector(self) -> tuple[float, ...]:
        """The numbers of `NAMES`: a constant, counts and sizes as logarithms, shares as they
        are."""
        return (
            1.0,
            math.log1p(self.demand),
            math.log1p(self.waiting),
            math.log1p(self.seconds),
            math.log1p(self.tokens / 100),
            math.log1p(self.length / 1000),
            self.novelty,
            self.closeness,
            self.quality,
            self.progress,
            math.log1p(self.depth),
            math.log1p(self.others),
            float(self.project),
        )
