"""Who decides what enters the bank: the door behind which every admission policy stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from agentpar.memory.entry import Entry
from agentpar.memory.features import Features

AdmissionName = Literal["none", "all", "novelty", "rule", "judge", "learned"]


@dataclass(frozen=True, slots=True)
class Proposal:
    """A finding that could enter the bank, and the ``question`` for which it was sought."""

    question: str
    entry: Entry
    features: Features


@dataclass(frozen=True, slots=True)
class Decision:
    """``probability`` is that with which ``policy`` admits such a proposal, 0 or 1 where it draws
    no lots; ``why`` says it in words."""

    admitted: bool
    policy: str
    probability: float
    why: str = ""


class Admission(Protocol):
    """Decides about one proposal after the other. Lots are drawn from a seeded source."""

    name: str

    async def decide(self, proposal: Proposal) -> Decision: ...


class Always:
    """Admits everything (``all``) or nothing (``none``)."""

    def __init__(self, admit: bool) -> None:
        self.name = "all" if admit else "none"
        self._admit = admit

    async def decide(self, proposal: Proposal) -> Decision:
        return Decision(self._admit, self.name, float(self._admit))
