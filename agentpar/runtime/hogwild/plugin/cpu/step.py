"""The step that vLLM's CPU runner runs at the moment, as far as groups are in it.

The runner builds attention metadata deep inside a step, and nothing of ours is handed down to
there. So the worker leaves the step here while it runs, and the metadata builder finds it. One
process runs one step at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from agentpar.runtime.hogwild.plugin.cpu.attention import Cache, Plan, plan_of
from agentpar.runtime.hogwild.plugin.groups import Chunk, Groups
from agentpar.runtime.hogwild.rope import Rope

_running: list[RunningStep] = []


def current() -> RunningStep | None:
    """The step that is running, None where no group has rows."""
    return _running[-1] if _running else None


class RunningStep:
    """One step of ``runner`` in which ``groups`` may have rows; ``caches`` are those of all layers.

    The blocks of a group are read whole. So a block that a row has just been given is cleared:
    what another request left in it may be no number, and would spoil the sums.
    """

    def __init__(
        self, runner: Any, groups: Groups, rope: Rope, cache: Cache, caches: Sequence[Any]
    ) -> None:
        self._runner = runner
        self._groups = groups
        self._caches = caches
        self._rope = rope
        self._cache = cache
        self._plans: tuple[Plan, ...] | None = None
        self.answered: dict[int, int] = {}
        """Rows of the batch whose queries are all answered by a plan, and how many they are."""

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within this, `current` is this step."""
        _running.append(self)
        try:
            yield
        finally:
            _running.remove(self)
        self._groups.end()

    def plans(self, batch: Any) -> tuple[Plan, ...]:
        """The plans of this step; ``batch`` is vLLM's ``CommonAttentionMetadata``."""
        if self._plans is None:  # the builders of all layers share them
            self._plans = self._made(batch)
        return self._plans

    def _made(self, batch: Any) -> tuple[Plan, ...]:
        runner = self._runner
        bounds = batch.query_start_loc_cpu.tolist()
        computed = runner.input_batch.num_computed_tokens_cpu
        tokens = runner.input_ids.cpu
        chunks, row_of = [], {}
        for row, request in enumerate(runner.input_batch.req_ids):
            if not self._groups.has(request):
                continue
            start, stop = bounds[row], bounds[row + 1]
            chunks.append(
                Chunk(
                    request,
                    offset=start,
                    start=int(computed[row]),
                    tokens=tokens[start:stop].tolist(),
                    blocks=runner.requests[request].block_ids[0],
                )
            )
            row_of[start] = (row, stop - start)
        size = self._cache.block_size
        fresh = [b for c in chunks for b in c.blocks[-(-c.start // size) : -(-c.stop // size)]]
        for cache in self._caches if fresh else ():
            cache[fresh] = 0
        plans = []
        for group, queries in self._groups.begin(chunks):
            plan = plan_of(group, queries, self._rope, self._cache) if queries else None
            if plan is None:
                continue
            plans.append(plan)
            for asked in queries:
                # Keyed by where a chunk begins: one that starts in the prefix is not all ours.
                row, count = row_of.get(asked.offset, (-1, 0))
                if count == asked.stop - asked.start:
                    self.answered[row] = count
        return tuple(plans)
