"""Teams: how many agents work on one question, and how one of their answers is chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from agentpar.errors import UsageError

Select = Literal["vote", "first", "judge", "best"]
MOST = 16
"""Teams that may work on one question."""


@dataclass(frozen=True, slots=True)
class Teams:
    """``n`` agents on one question, each with a plan and a seed of its own.

    ``select``: "vote" takes the answer that most came to; "first" the first whose every sentence
    is carried by what was read, and stops the others; "judge" asks the model; "best" takes the
    one of which most is carried by what was read.
    """

    n: int = 3
    select: Select = "vote"

    def __post_init__(self) -> None:
        if not 1 <= self.n <= MOST:
            raise UsageError(f"teams: n is {self.n!r}; 1 to {MOST} can work on one question")
        if self.select not in get_args(Select):
            known = ", ".join(get_args(Select))
            raise UsageError(f"teams: select is {self.select!r}; there are {known}")
