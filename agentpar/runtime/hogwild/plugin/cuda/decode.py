"""A step in which each row of a group has one query: all groups at once, by the group kernel.

Steps with more than that (prompts, injected texts) are answered in plain torch, as are models whose
heads the kernel does not take. Knows torch, and Triton where it is used; must never know vLLM.

Has run in Triton's interpreter only, and is built for GPUs that were not there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from agentpar.runtime.hogwild.kernel import Part, Room, Shape, Work, attend
from agentpar.runtime.hogwild.plugin import attention
from agentpar.runtime.hogwild.plugin.attention import Cache
from agentpar.runtime.hogwild.plugin.groups import Group, Queries
from agentpar.runtime.hogwild.plugin.step import Answer, Asked
from agentpar.runtime.hogwild.rope import Rope
from agentpar.runtime.hogwild.worklist import items

CHUNK = 256
"""Tokens that one program of the kernel reads. Not tuned: that takes a GPU."""
MAX_LANES = 128
"""Queries of one KV head that a program holds at once: at twice as many, registers spill."""
CAPTURED_ITEMS = 512
"""Items that a CUDA graph has room for, of all groups together: some 130,000 tokens."""
CAPTURED_WORKERS = 8
"""Workers of a group that a CUDA graph has room for."""


class Decode:
    """What answers rows of one query each in a step, for all layers."""

    def __init__(self, work: Work) -> None:
        self.work = work

    def attend(
        self, query: torch.Tensor, kv_cache: torch.Tensor, output: torch.Tensor, scale: float
    ) -> None:
        """Overwrite the rows of ``output`` that the work asks for; shapes as of `Plan.attend`.

        ``kv_cache`` has a head's keys and values of one token side by side, in any strides.
        """
        keys, values = kv_cache.split(query.shape[-1], dim=-1)
        attend(query, keys, values, self.work, scale, output)


class Standing(Decode):
    """The answer that a captured CUDA graph gives: the same tensors in whichever step it is
    replayed. Holds nothing at first."""

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        self._busy = False

    def hold(self, parts: Sequence[Part]) -> bool:
        """Answer ``parts`` from now on; False, and nothing is answered, if they do not fit."""
        fit = self.work.room.holds(Room.of(parts))
        held = parts if fit else ()
        if held or self._busy:
            self.work.load(held)
        self._busy = bool(held)
        return fit


@dataclass(frozen=True, slots=True)
class Heads:
    """A model's, on this GPU: how many, how many of keys, and the numbers of each."""

    count: int
    kv: int
    numbers: int


class Decoding:
    """The planner on CUDA.

    ``standing``: None where no graph is captured over attention. A step gets it as its answer if
    all that its groups ask is for the kernel, and fits.
    """

    def __init__(
        self, rope: Rope, cache: Cache, heads: Heads, *, captured_queries: int = 0
    ) -> None:
        """``captured_queries``: rows that a captured step may have, 0 if none is captured."""
        self._rope = rope
        self._cache = cache
        self._shape = Shape(heads.count, heads.kv, heads.numbers, cache.block_size, CHUNK)
        self._frequencies = torch.tensor(rope.frequencies, dtype=torch.float64, device=cache.device)
        self._most = MAX_LANES // self._shape.sharing
        self._kernel = fits(rope, heads.numbers) and self._most > 0
        self.standing: Standing | None = None
        if captured_queries and self._kernel:
            workers = min(CAPTURED_WORKERS, self._most)
            self.standing = Standing(self._empty(CAPTURED_ITEMS, captured_queries, workers))

    def __call__(self, asked: Sequence[Asked]) -> list[Answer | None]:
        answers: list[Answer | None] = []
        parts: dict[int, Part] = {}  # of the groups that the kernel answers
        for number, (group, queries) in enumerate(asked):
            plainly = None
            if not self._takes(queries):
                plainly = attention.plan_of(group, queries, self._rope, self._cache)
            elif part := part_of(group, queries):
                parts[number] = part
            answers.append(plainly)
        decode = self._decode(tuple(parts.values()), alone=not any(answers))
        for number in parts:
            answers[number] = decode
        return answers

    def warm(self, kv_cache: torch.Tensor, dtype: torch.dtype) -> None:
        """Have the kernel built for every number of lanes, before a request waits for it.

        ``kv_cache``: a layer's, of which nothing is read; ``dtype``: that of queries.
        """
        if not self._kernel:
            return
        shape = self._shape
        query = kv_cache.new_zeros((1, shape.heads, shape.width), dtype=dtype)
        for lanes in sorted({shape.lanes(workers) for workers in range(1, self._most + 1)}):
            work = self._empty(1, 1, lanes // shape.sharing)
            Decode(work).attend(query, kv_cache, torch.empty_like(query), 1.0)

    def _takes(self, queries: Sequence[Queries]) -> bool:
        single = all(asked.stop - asked.start == 1 for asked in queries)
        return self._kernel and single and len(queries) <= self._most

    def _decode(self, parts: Sequence[Part], *, alone: bool) -> Decode:
        """``alone``: no group is answered otherwise in this step."""
        held = self.standing is not None and self.standing.hold(parts if alone else ())
        if self.standing is not None and held and alone:
            return self.standing
        return Decode(Work.of(parts, self._shape, self._frequencies))

    def _empty(self, count: int, queries: int, workers: int) -> Work:
        room = Room(count, queries, count * workers, workers)
        return Work(self._shape, room, self._frequencies)


def fits(rope: Rope, numbers: int) -> bool:
    """Whether the kernel takes heads of ``numbers`` numbers that turn like ``rope``.

    All of a head has to turn, one half against the other, in powers of two.
    """
    half = numbers // 2
    power = half >= 16 and half & (half - 1) == 0
    return rope.style == "halves" and rope.dim == numbers and power


def part_of(group: Group, queries: Sequence[Queries]) -> Part | None:
    """What ``queries`` read, one a row, which the group's board has written already.

    None where each row sees itself as it is.
    """
    views = {asked.row: group.board.view(asked.row) for asked in queries}
    if attention.plain(queries, list(views.values())):
        return None
    reads = items(views, group.board.prefix, CHUNK)
    return Part(reads, group.blocks, [asked.offset for asked in queries])
