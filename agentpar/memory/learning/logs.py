"""Decisions as they were logged: what a learner reads of runs that have been.

Pure but for reading and writing lines of JSON. A line is one decision with what came of it; what
it was about (question, call, page) is not in it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from agentpar.errors import UsageError
from agentpar.memory.features import NAMES, Features
from agentpar.memory.rule import is_number


@dataclass(frozen=True, slots=True)
class Logged:
    """One decision: what it saw (`Features.vector`), how likely it was to be admitted, whether it
    was, by which policy and in which run.

    ``credit`` is what the entry turned out to be worth in seconds (`agentpar.memory.credit`);
    None where it was not admitted, as then nobody can know.
    """

    features: tuple[float, ...]
    probability: float
    admitted: bool
    credit: float | None = None
    policy: str = ""
    run_id: str = ""

    def __post_init__(self) -> None:
        if len(self.features) != len(NAMES) or not all(map(is_number, self.features)):
            raise UsageError(
                f"a logged decision has features {self.features!r:.300}; needed are "
                f"{len(NAMES)} finite numbers: {', '.join(NAMES)}"
            )
        if not is_number(self.probability) or not 0 <= self.probability <= 1:
            raise UsageError(f"a logged decision has probability {self.probability!r}; 0 to 1")
        if self.credit is not None and not is_number(self.credit):
            raise UsageError(f"a logged decision has credit {self.credit!r}; a number, or None")

    @property
    def seen(self) -> Features:
        """The features as they were before they became numbers, counts and sizes rounded."""
        _, demand, waiting, seconds, tokens, length, *rest = self.features
        novelty, closeness, quality, progress, depth, others, project = rest
        return Features(
            round(math.expm1(demand)),
            round(math.expm1(waiting)),
            math.expm1(seconds),
            round(100 * math.expm1(tokens)),
            round(1000 * math.expm1(length)),
            novelty,
            closeness,
            quality,
            progress,
            round(math.expm1(depth)),
            round(math.expm1(others)),
            project > 0.5,
        )


def write(path: str | Path, decisions: Iterable[Logged], *, append: bool = False) -> int:
    """Write ``decisions`` as JSON lines; how many those were."""
    count = 0
    with open(path, "a" if append else "w", encoding="utf-8") as file:
        for decision in decisions:
            file.write(json.dumps(asdict(decision), allow_nan=False) + "\n")
            count += 1
    return count


def read(path: str | Path) -> list[Logged]:
    """The decisions in a file. Raises `UsageError` with the line of the first bad one."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: the logged decisions cannot be read: {error}") from None
    return list(_lines(text, str(path)))


def _lines(text: str, where: str) -> Iterator[Logged]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            yield _logged(json.loads(line))
        except (ValueError, TypeError, RecursionError, UsageError) as error:
            raise UsageError(f"{where}:{number}: no logged decision: {error}") from None


def _logged(data: Any) -> Logged:
    names = {field.name for field in fields(Logged)}
    needed = {"features", "probability", "admitted"}
    if not isinstance(data, dict) or not needed <= set(data) <= names:
        raise UsageError(f"it needs {', '.join(sorted(needed))}; it is {data!r:.200}")
    if not isinstance(data["features"], list) or not isinstance(data["admitted"], bool):
        raise UsageError("features must be a list, admitted true or false")
    return Logged(**{**data, "features": tuple(data["features"])})


def ranges_of(vectors: Iterable[tuple[float, ...]]) -> tuple[tuple[float, float], ...]:
    """The lowest and the highest value of each feature; of no vectors: nothing is inside."""
    low, high = [math.inf] * len(NAMES), [-math.inf] * len(NAMES)
    for vector in vectors:
        low = list(map(min, low, vector))
        high = list(map(max, high, vector))
    if low[0] == math.inf:
        return ((0.0, 0.0),) * len(NAMES)
    return tuple(zip(low, high, strict=True))
