"""What the mini-web does wrong on purpose, and when. Pure: chance is a function of the seed."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

from agentpar.errors import UsageError


@dataclass(frozen=True, slots=True)
class Faults:
    """Shares (0 to 1) of the replies that go wrong, and how.

    ``too_many``: 429 with ``Retry-After: retry_after`` (seconds). ``broken``: 503.
    ``redirect``: 302 to the same page. ``drip``: the body comes in pieces over
    ``drip_seconds``. ``injections`` serves, and finds, pages that try to give orders to the
    program that reads them. ``seed`` settles which replies: the same address asked for the
    same number of times meets the same fate, in whatever order requests arrive.
    """

    too_many: float = 0.0
    broken: float = 0.0
    redirect: float = 0.0
    drip: float = 0.0
    retry_after: float = 1.0
    drip_seconds: float = 2.0
    injections: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("too_many", "broken", "redirect", "drip"):
            share = getattr(self, name)
            if not 0.0 <= share <= 1.0:
                raise UsageError(f"Faults({name}={share!r}): a share lies between 0 and 1")
        for name in ("retry_after", "drip_seconds"):
            seconds = getattr(self, name)
            if not 0.0 <= seconds < 3600.0:
                raise UsageError(f"Faults({name}={seconds!r}): seconds lie between 0 and 3600")

    def sentence(self) -> str:
        """What is switched on, in words; empty where nothing is."""
        said = [
            f"{share:.0%} of replies {what}"
            for share, what in (
                (self.too_many, f"are 429 (Retry-After {self.retry_after:g} s)"),
                (self.broken, "are 503"),
                (self.redirect, "are redirects"),
                (self.drip, f"drip for {self.drip_seconds:g} s"),
            )
            if share
        ]
        if self.injections:
            said.append("prompt-injection pages are served")
        return ", ".join(said)


def chance(seed: int, what: str, address: str, visit: int) -> float:
    """A number in [0, 1), the same for the same arguments on every machine."""
    drawn = blake2b(f"{seed}|{what}|{address}|{visit}".encode(), digest_size=8).digest()
    return int.from_bytes(drawn, "big") / 2**64
