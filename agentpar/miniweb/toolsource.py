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
        self._web = MiniWeb(latency=latency, jitter=jitter, faults=faults, progress=self._tell)
        self.progress: Progress = silent

    @property
    def banner(self) -> str:
        """What is simulated, in one sentence; before the start without address and size."""
        return self._web.banner

    async def start(self) -> Sequence[Tool]:
        """Start the mini-web; its tools. Raises `MissingPackage` without the miniweb extra."""
        await self._web.__aenter__()
        return self._make(self._web.origin)

    async def stop(self) -> None:
        """Stop the mini-web; harmless where it does not run."""
        await self._web.__aexit__()

    def _tell(self, step: str, done: float, total: float) -> None:
        self.progress(step, done, total)
