"""The step that vLLM's runner runs at the moment, as far as groups are in it.

The runner builds attention metadata deep inside a step, and nothing of ours is handed down to
there. So the worker leaves the step here while it runs, and the metadata builder finds it. One
process runs one step at a time.

Reads vLLM's first model runner, that of GPUs, of which the CPU's is a subclass. Must never know
on which device it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from agentpar.runtime.hogwild.plugin.groups import Chunk, Group, Groups, Queries

_running: list[RunningStep] = []


def current() -> RunningStep | None:
    """The step that is running, None where no group has rows."""
    return _running[-1] if _running else None


class Answer(Protocol):
    """What answers the queries of one group in a step, in each layer."""

    def attend(
        self, query: torch.Tensor, kv_cache: torch.Tensor, output: torch.Tensor, scale: float
    ) -> None:
        """Overwrite the group's rows of ``output``; `Plan.attend` has the shapes."""


Asked = tuple[Group, tuple[Queries, ...]]
"""Queries of a group in a step, which its board has written already."""
Planner = Callable[[Sequence[Asked]], Sequence[Answer | None]]
"""Makes the answer for each group of a step, one for several where these are answered together;
None where vLLM's own kernel is right."""


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers of a step; ``alone``: they answer all of its queries."""

    plans: tuple[Answer, ...] = ()
    alone: bool = False

    def attend(
        self, query: torch.Tensor, kv_cache: torch.Tensor, output: torch.Tensor, scale: float
    ) -> None:
        """Overwrite what groups asked in ``output``, which may have any shape of a query's size."""
        for plan in self.plans:
            plan.attend(query, kv_cache, output.view_as(query), scale)


NONE = Answers()


def answered(batch: Any) -> tuple[Any, Answers]:
    """The answers of the running step, and ``batch`` without what they answer.

    ``batch`` is vLLM's ``CommonAttentionMetadata``. What the stock kernel says of rows that are
    answered is thrown away. So their lengths are cut to what they ask, which costs it the least.
    """
    step = current()
    if step is None:
        return batch, NONE
    plans = step.plans(batch.query_start_loc_cpu)
    if not step.answered:
        return batch, Answers(plans)
    lengths = batch.seq_lens.clone()
    rows = torch.tensor(list(step.answered), device=lengths.device)
    lengths[rows] = torch.tensor(
        list(step.answered.values()), dtype=lengths.dtype, device=lengths.device
    )
    alone = sum(step.answered.values()) == batch.num_actual_tokens
    return replace(batch, seq_lens=lengths), Answers(plans, alone)


class RunningStep:
    """One step of ``runner`` in which ``groups`` may have rows.

    ``caches`` are those of all layers, of blocks with ``size`` tokens each. The blocks of a group
    may be read whole. So a block that a row has just been given is cleared: what another request
    left in it may be no number, and would spoil the sums.
    """

    def __init__(
        self,
        runner: Any,
        groups: Groups,
        caches: Sequence[torch.Tensor],
        size: int,
        planner: Planner,
    ) -> None:
        self._runner = runner
        self._groups = groups
        self._caches = caches
        self._size = size
        self._planner = planner
        self._plans: tuple[Answer, ...] | None = None
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

    def plans(self, begins: torch.Tensor) -> tuple[Answer, ...]:
        """The answers of this step; ``begins`` [rows + 1]: where each row of the batch does."""
        if self._plans is None:  # the builders of all layers share them
            self._plans = self._made(begins.tolist())
        return self._plans

    def _made(self, bounds: Sequence[int]) -> tuple[Answer, ...]:
        runner = self._runner
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
        size = self._size
        fresh = [b for c in chunks for b in c.blocks[-(-c.start // size) : -(-c.stop // size)]]
        for cache in self._caches if fresh else ():
            cache[fresh] = 0
        asked = [(group, queries) for group, queries in self._groups.begin(chunks) if queries]
        plans: dict[Answer, None] = {}
        for (_, queries), plan in zip(asked, self._planner(asked), strict=True):
            if plan is None:
                continue
            plans[plan] = None
            for one in queries:
                # Keyed by where a chunk begins: one that starts in the prefix is not all ours.
                row, count = row_of.get(one.offset, (-1, 0))
                if count == one.stop - one.start:
                    self.answered[row] = count
        return tuple(plans)
