"""Web tools over a mini-web that lives as long as the agent has them open.

It starts and stops the mini-web and hands its origin to whoever makes the tools; it must
never know how they search or fetch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from agentpar.miniweb.faults import Faults
from agentpar.miniweb.server import MiniWeb
from agentpar.ports import Progress, silent
from agentpar.tools.base import Tool


class MiniWebTools:
    """A `ToolSource`: ``make`` gets the origin of a running mini-web and returns tools for it.

    The other arguments are `MiniWeb`'s. ``progress`` may be set until the start; the first
    one on a machine builds the library, which takes seconds. Show ``banner``: it says what
    is simulated.
    """

    def __init__(
        self,
        make: Callable[[str], Sequence[Tool]],
        *,
        latency: float = 0.08,
        jitter: float = 0.0,
        faults: Faults | None = None,
    ) -> None:
        self._make = make
        self._running = False
        self._web = MiniWeb(latency=latency, jitter=jitter, faults=faults, progress=self._tell)
        self.progress: Progress = silent

    @property
    def banner(self) -> str:
        """What is simulated, in one sentence; before the start without address and size."""
        if self._running:
            return self._web.banner
        low, high = self._web.latency * 1000, (self._web.latency + self._web.jitter) * 1000
        delay = f"{low:.0f} ms" if low == high else f"{low:.0f} to {high:.0f} ms"
        said = f"mini-web: simulated pages on this machine, each reply delayed {delay}"
        wrong = self._web.faults.sentence()
        return f"{said}; {wrong}" if wrong else said

    async def start(self) -> Sequence[Tool]:
        """Start the mini-web; its tools. Raises `MissingPackage` without the miniweb extra."""
        await self._web.__aenter__()
        self._running = True
        return self._make(self._web.origin)

    async def stop(self) -> None:
        """Stop the mini-web; harmless where it does not run."""
        self._running = False
        await self._web.__aexit__()

    def _tell(self, step: str, done: float, total: float) -> None:
        self.progress(step, done, total)
