"""The rule by hand: what other teams are going to ask for is kept, if it looks sound.

Pure. It is the champion that every learned policy is measured against, and what a learned one
falls back on; so it stands below both, and knows of neither.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from agentpar.errors import UsageError
from agentpar.memory.features import Features


@dataclass(frozen=True, slots=True)
class Rule:
    """A finding enters if somebody can use it, it looks sound, and it is asked for.

    Asked for: by a call that waits for it or a planned one (``demand``). Where no demand is seen,
    for others may still be planning (their ``progress`` is below ``early``) or the bank outlives
    the run: a finding that is new to the bank by ``novelty`` and near the question by
    ``closeness``. Below ``quality`` nothing enters; what others wait for needs ``waited`` only.
    """

    quality: float = 0.4
    waited: float = 0.1
    early: float = 0.6
    novelty: float = 0.1
    closeness: float = 0.4

    def judge(self, features: Features) -> tuple[bool, str]:
        """Whether it enters, and why, in words."""
        if features.waiting:
            if features.quality >= self.waited:
                return True, f"{features.waiting} wait for it"
            return False, f"quality {features.quality:.2f}, though {features.waiting} wait for it"
        if not features.others and not features.project:
            return False, "nobody is there who could use it"
        if features.quality < self.quality:
            return False, f"quality {features.quality:.2f} is below {self.quality:g}"
        if features.demand:
            return True, f"{features.demand} planned calls ask for it"
        if not features.project and features.progress >= self.early:
            return False, "no other plan asks for it"
        if features.novelty < self.novelty:
            return False, "no other plan asks for it, and the bank has its like"
        if features.closeness < self.closeness:
            return False, "no other plan asks for it, and it is far from the question"
        return True, "new and near the question; others may yet ask for it"

    def admits(self, features: Features) -> bool:
        return self.judge(features)[0]

    def to_json(self) -> dict[str, float]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: object) -> Rule:
        """Raises `UsageError` unless each threshold is there, and is a number."""
        names = [field.name for field in fields(cls)]
        if not isinstance(data, Mapping) or set(data) != set(names):
            raise UsageError(f"the rule is {data!r:.200}; it needs {', '.join(names)}")
        for name in names:
            if not is_number(data[name]):
                raise UsageError(f"the rule's {name} is {data[name]!r:.200}; a number is needed")
        return cls(**{name: float(data[name]) for name in names})


def is_number(value: object) -> bool:
    """A finite number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
