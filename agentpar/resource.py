"""Something that only so many may take up at once, so often: a tool, a host, a lock.

Pure: time comes in as an argument. It must never know who takes it up, or what for. The machine
counts calls with it, the gate (`agentpar.gate`) requests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from urllib.parse import urlsplit

NEVER = math.inf


@dataclass(slots=True, eq=False)
class Resource:
    """What is left of it.

    ``slots`` bounds the calls at once, ``rate`` those that begin in a second (a burst of one
    second's worth may begin at once). `window` is what is left of the slots since the far side
    asked for less: it halves at each such word and grows by one in each round of successes
    (additive increase, multiplicative decrease: Chiu and Jain 1989).
    """

    name: str
    slots: float = math.inf
    rate: float | None = None
    running: int = 0
    window: float = math.inf
    closed_until: float = -NEVER
    _next: float = -NEVER  # when the next call may begin if the burst is used up
    _shrunk_at: float = -NEVER

    def opens(self, now: float) -> float:
        """When a call may begin: at once (``now``), later, or only when another ends."""
        if self.running >= min(self.slots, max(1, int(min(self.window, 1e9)))):
            return NEVER
        at = max(now, self.closed_until)
        if self.rate is not None:
            at = max(at, self._next - max(1.0, self.rate) / self.rate + 1 / self.rate)
        return at

    def take(self, now: float) -> None:
        self.running += 1
        if self.rate is not None:
            self._next = max(self._next, now) + 1 / self.rate

    def give_back(self) -> None:
        self.running -= 1

    def succeeded(self) -> None:
        """A call went well: the window widens until the slots, or nothing, bounds it again."""
        if self.window < math.inf:
            self.window += 1 / max(1.0, self.window)
            if self.window >= self.slots:
                self.window = math.inf

    def throttled(self, now: float, began: float, retry_after: float | None) -> None:
        """The far side asked for less, and perhaps for how long to keep away.

        Calls that had begun when it said so the last time tell nothing new, nor do any while that
        time lasts.
        """
        known = began <= self._shrunk_at or now < self.closed_until
        if retry_after is not None:
            self.closed_until = max(self.closed_until, now + retry_after)
        if known:
            return
        self._shrunk_at = now
        before = min(self.window, self.slots, float(self.running + 1))
        self.window = max(1.0, before / 2)


def host_of(url: str) -> str:
    """The host that ``url`` names, as it goes over the wire; empty where it names none."""
    try:
        host = (urlsplit(url).hostname or "").rstrip(".")
        return host if host.isascii() else host.encode("idna").decode("ascii")
    except ValueError:  # UnicodeError is one
        return ""
