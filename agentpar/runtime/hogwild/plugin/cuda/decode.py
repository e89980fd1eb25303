"""A step in which each row of a group has one query: all of them by the group kernel.

Steps with more than that (prompts, injected texts) are answered in plain torch, as are models whose
heads the kernel does not take. Knows torch, and Triton where it is used; must never know vLLM.

Has run in Triton's interpreter only, in float32 and float16: in bfloat16, as GPUs serve models, its
products are wrong, so of that nothing has run.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from agentpar.runtime.hogwild.kernel import Work, attend
from agentpar.runtime.hogwild.plugin import attention
from agentpar.runtime.hogwild.plugin.attention import Cache
from agentpar.runtime.hogwild.plugin.groups import Group, Queries
from agentpar.runtime.hogwild.plugin.step import Answer, Planner
from agentpar.runtime.hogwild.rope import Rope
from agentpar.runtime.hogwild.worklist import items

CHUNK = 256
"""Tokens that one program of the kernel reads. Not tuned: that takes a GPU."""
MAX_LANES = 128
"""Queries of one KV head that the kernel holds at once. Not tuned either."""


class Decode:
    """What a group's rows, of one query each, see in a step, for all layers.

    ``positions`` [rows]: where the queries stand in the batch. ``tables`` [rows of the group,
    blocks]: int32, the blocks of each row that anybody looks at. All on the cache's device.
    """

    def __init__(self, positions: torch.Tensor, tables: torch.Tensor, work: Work) -> None:
        self._positions = positions
        self._tables = tables
        self._work = work

    def attend(
        self, query: torch.Tensor, kv_cache: torch.Tensor, output: torch.Tensor, scale: float
    ) -> None:
        """Overwrite the group's rows of ``output``; the shapes are those of `Plan.attend`.

        ``kv_cache`` has a head's keys and values of one token side by side, in any strides.
        """
        keys, values = kv_cache.split(query.shape[-1], dim=-1)
        asked = query[self._positions]
        output[self._positions] = attend(asked, keys, values, self._tables, self._work, scale)


def planner(rope: Rope, cache: Cache, *, numbers: int, sharing: int) -> Planner:
    """What answers groups of a model with heads of ``numbers`` numbers.

    ``sharing``: how many query heads share a KV head.
    """
    plainly = partial(attention.plan_of, rope=rope, cache=cache)
    if not fits(rope, cache.block_size, numbers):
        return plainly
    frequencies = torch.tensor(rope.frequencies, dtype=torch.float64, device=cache.device)
    most = MAX_LANES // sharing

    def plan_of(group: Group, queries: Sequence[Queries]) -> Answer | None:
        if len(queries) > most or any(asked.stop - asked.start > 1 for asked in queries):
            return plainly(group, queries)
        return decode_of(group, queries, frequencies)

    return plan_of


def fits(rope: Rope, block_size: int, numbers: int) -> bool:
    """Whether the kernel takes heads of ``numbers`` numbers that turn like ``rope``.

    All of a head has to turn, one half against the other, in powers of two.
    """
    tile = min(64, block_size)
    powers = all(n >= 16 and n & (n - 1) == 0 for n in (tile, numbers // 2))
    return rope.style == "halves" and rope.dim == numbers and powers and block_size % tile == 0


def decode_of(group: Group, queries: Sequence[Queries], frequencies: torch.Tensor) -> Decode | None:
    """The answer to ``queries``, one a row, which the group's board has written already.

    ``frequencies`` [numbers / 2]: radians per position, on the cache's device. None where each row
    sees itself as it is.
    """
    views = {asked.row: group.board.view(asked.row) for asked in queries}
    if attention.plain(queries, list(views.values())):
        return None
    pieces = items(views, group.board.prefix, CHUNK)
    numbers = {row: number for number, row in enumerate(dict.fromkeys(p.row for p in pieces))}
    device = frequencies.device
    longest = max(len(group.blocks[row]) for row in numbers)
    tables = torch.zeros(len(numbers), longest, dtype=torch.int32)
    for row, number in numbers.items():
        blocks = group.blocks[row]
        tables[number, : len(blocks)] = torch.tensor(blocks, dtype=torch.int32)
    positions = torch.tensor([asked.offset for asked in queries], dtype=torch.int64)
    work = Work.of(pieces, numbers, frequencies)
    return Decode(positions.to(device), tables.to(device), work)
