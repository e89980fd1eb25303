"""The learned admission policy as a value: a few weights, and what they were trained on.

Pure but for reading and writing its file, which is JSON. It must never know how it was trained.
The gate is the hand-made rule's vote (1 or -1) and the features, weighed and summed: above zero a
finding enters. With all weights zero but the rule's it is the rule.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from agentpar.errors import UsageError
from agentpar.memory.features import NAMES, Features
from agentpar.memory.rule import Rule, is_number

FORMAT = "agentpar admission controller"
VERSION = 1
"""Of the file. One of another version is refused: its weights may mean other things."""

SLACK = 0.1
"""A value this far beyond the range of training, as a share of its width, is still inside."""


RULE = Rule()


@dataclass(frozen=True, slots=True)
class Controller:
    """``weights`` for `NAMES` in their order and ``rule_weight`` for the vote of ``rule``.

    ``ranges`` are the lowest and the highest value of each feature in training. ``promoted``: it
    beat the rule in paired replays; one that did not decides nothing. ``record`` says how it was
    trained (data, seeds, episodes, the numbers of its promotion); JSON data.
    """

    weights: tuple[float, ...]
    rule_weight: float = 0.0
    ranges: tuple[tuple[float, float], ...] = ((-math.inf, math.inf),) * len(NAMES)
    rule: Rule = RULE
    promoted: bool = False
    record: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for what, values in (("weights", self.weights), ("ranges", self.ranges)):
            if len(values) != len(NAMES):
                raise UsageError(
                    f"the controller has {len(values)} {what}; there are {len(NAMES)} features"
                )

    def score(self, features: Features, vector: Sequence[float] | None = None) -> float:
        """Above zero: it enters. ``vector`` is that of ``features``, where it is at hand."""
        vector = features.vector() if vector is None else vector
        total = sum(map(float.__mul__, self.weights, vector))
        if self.rule_weight:
            total += self.rule_weight if self.rule.admits(features) else -self.rule_weight
        return total

    def outside(self, vector: Sequence[float]) -> str:
        """Which feature lies outside what it was trained on, in words; empty if none does."""
        for name, value, (low, high) in zip(NAMES, vector, self.ranges, strict=True):
            slack = SLACK * (high - low) if high - low < math.inf else 0.0
            if not low - slack <= value <= high + slack:
                return f"{name} is {value:.3g}, outside {low:.3g} to {high:.3g} of its training"
        return ""

    def dumps(self) -> str:
        """As the text of its file."""
        data = {
            "format": FORMAT,
            "version": VERSION,
            "features": list(NAMES),
            "weights": dict(zip(NAMES, self.weights, strict=True)),
            "rule_weight": self.rule_weight,
            "ranges": {name: list(of) for name, of in zip(NAMES, self.ranges, strict=True)},
            "rule": self.rule.to_json(),
            "promoted": self.promoted,
            "record": self.record,
        }
        return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def save(self, path: str | Path) -> None:
        Path(path).write_text(self.dumps(), encoding="utf-8")


def load(path: str | Path) -> Controller:
    """The controller in a file. Raises `UsageError` where it cannot be read or is none."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise UsageError(f"{path}: the controller cannot be read: {why}") from None
    return loads(text, str(path))


@cache
def shipped() -> Controller:
    """The controller that comes with agentpar."""
    file = files("agentpar.memory").joinpath("controller.json")
    return loads(file.read_text(encoding="utf-8"), "agentpar/memory/controller.json")


def loads(text: str, where: str = "the controller") -> Controller:
    """A controller from the text of its file; ``where`` is named in the `UsageError` of a bad
    one."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: no JSON: {error}") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise UsageError(f"{where}: no controller: its format is not {FORMAT!r}")
    if data.get("version") != VERSION:
        raise UsageError(
            f"{where}: a controller of version {data.get('version')!r}; this agentpar reads "
            f"{VERSION}: train it again (agentpar memory train)"
        )
    if data.get("features") != list(NAMES):
        raise UsageError(
            f"{where}: its features are {data.get('features')!r:.300}; this agentpar has "
            f"{', '.join(NAMES)}: train it again (agentpar memory train)"
        )
    weights, ranges = _by_name(data, "weights", where), _by_name(data, "ranges", where)
    for name, weight in weights.items():
        if not is_number(weight):
            raise UsageError(f"{where}: the weight of {name!r} is {weight!r:.100}; not a number")
    for name, ends in ranges.items():
        if (
            not isinstance(ends, list)
            or len(ends) != 2
            or not all(map(is_number, ends))
            or ends[0] > ends[1]
        ):
            raise UsageError(f"{where}: the range of {name!r} is {ends!r:.100}; not [low, high]")
    if not is_number(data.get("rule_weight")):
        raise UsageError(f"{where}: rule_weight is {data.get('rule_weight')!r:.100}; not a number")
    if not isinstance(data.get("promoted"), bool) or not isinstance(data.get("record"), dict):
        raise UsageError(f"{where}: promoted (true or false) or record (an object) is missing")
    try:
        rule = Rule.from_json(data.get("rule"))
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    return Controller(
        tuple(float(weights[name]) for name in NAMES),
        float(data["rule_weight"]),
        tuple((float(ranges[name][0]), float(ranges[name][1])) for name in NAMES),
        rule,
        data["promoted"],
        data["record"],
    )


def _by_name(data: Mapping[str, Any], what: str, where: str) -> dict[str, Any]:
    found = data.get(what)
    if not isinstance(found, dict) or set(found) != set(NAMES):
        raise UsageError(f"{where}: {what} must have one entry for each of {', '.join(NAMES)}")
    return found
