"""What an entry was worth: what its readers were spared, less what reading it cost them.

Pure. It knows the readings of one entry and how the readers' runs ended, and nothing of policies.
Everything is in seconds; `Prices` says how many seconds a token and a wrong answer are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from agentpar.memory.entry import Reading

Verdict = Literal["sound", "uncited", "failed", "contradicted"]
"""What became of a reading. ``sound``: nothing speaks against it. ``uncited``: the reader's answer
does not rest on it. ``failed``: the reader's answer is wrong, or there is none. ``contradicted``:
what was read is not true."""


@dataclass(frozen=True, slots=True)
class Prices:
    """What things are worth in seconds.

    ``token``: one that a model reads or writes. ``failed``: a run without a right answer, which
    all that it read shares in. ``contradicted``: passing on what is not true, for each reader.
    ``failures`` is the share of runs that fail anyway: a reading in one that does not is credited
    with as much, so that an entry is not blamed for the times it lives in.
    """

    token: float = 1 / 2000
    failed: float = 60.0
    contradicted: float = 60.0
    failures: float = 0.0


@dataclass(frozen=True, slots=True)
class Presence:
    """What it costs that an entry is there, read or not: ``tokens`` of lines in the prompts of
    others, ``seconds`` that they were held up by them."""

    tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Use:
    """How a run ended that read: its ``verdict`` on what it read, and how many entries that were,
    who share the blame where it failed."""

    verdict: Verdict = "sound"
    read: int = 1


SOUND = Use()


@dataclass(frozen=True, slots=True)
class Credit:
    """In seconds: ``gain`` is what was spared, ``loss`` what it cost. ``readers``: of the readings
    that count, how many."""

    gain: float = 0.0
    loss: float = 0.0
    readers: int = 0

    @property
    def net(self) -> float:
        return self.gain - self.loss


@dataclass(frozen=True, slots=True)
class Ledger:
    """All that is known of one entry's life. ``producers`` are the runs that brought it: what
    these read of it is their own and does not count. ``uses`` tells of runs how they ended; one
    that it does not name counts as sound."""

    readings: tuple[Reading, ...] = ()
    producers: frozenset[str] = frozenset()
    uses: Mapping[str, Use] = field(default_factory=dict)
    presence: Presence = Presence()


def worth(ledger: Ledger, prices: Prices | None = None) -> Credit:
    """What one entry was worth."""
    prices = prices or Prices()
    gain = 0.0
    loss = ledger.presence.seconds + ledger.presence.tokens * prices.token
    count = 0
    for reading in foreign(ledger.readings, ledger.producers):
        count += 1
        use = ledger.uses.get(reading.run_id, SOUND)
        loss += reading.context_tokens * prices.token
        loss += blame(use, prices)
        if use.verdict in ("sound", "failed"):
            gain += reading.spared_seconds + reading.spared_tokens * prices.token
    return Credit(gain, loss, count)


def blame(use: Use, prices: Prices) -> float:
    """What one reading loses by how its run ended, in seconds; below 0 where that speaks for it."""
    share = prices.failed / max(1, use.read)
    match use.verdict:
        case "contradicted":
            return prices.contradicted
        case "failed":
            return share * (1 - prices.failures)
        case _:
            return -share * prices.failures


def foreign(readings: Iterable[Reading], producers: Collection[str]) -> list[Reading]:
    """The readings by others than those who brought the entry."""
    return [reading for reading in readings if reading.run_id not in producers]
