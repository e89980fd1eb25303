"""Attention of a whole group in one decode step, in Triton: each tile of the cache is read once.

`attend` is the door. The queries come as the engine rotated them; the further rotation of each
worker and piece happens in registers, from a table of cosines, so the cache is only ever read.
Runs where Triton does: on CUDA, or with ``TRITON_INTERPRET=1`` on a CPU, slowly, as its proof.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from agentpar.runtime.hogwild.worklist import Item


@dataclass(frozen=True, slots=True)
class Work:
    """`Item`\\ s as tensors on the device of a cache.

    ``rows``, ``starts``, ``stops``: int32 [items]. ``turns``: int32 [items, workers], the row of
    ``cos`` and ``sin`` (float32 [turns, head_dim / 2]) that a worker's query is rotated by, -1
    where the worker does not see the item.
    """

    rows: torch.Tensor
    starts: torch.Tensor
    stops: torch.Tensor
    turns: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor

    @classmethod
    def of(
        cls,
        items: Sequence[Item],
        numbers: Mapping[str, int],
        inverse_frequencies: torch.Tensor,
    ) -> Work:
        """``numbers``: the line of each row in the block table.

        Angles are worked out in float64: in float32, one of 100,000 positions is off by 0.01.
        """
        device = inverse_frequencies.device
        rotations = sorted({turn for item in items for turn in item.rotations if turn is not None})
        place = {turn: at for at, turn in enumerate(rotations)}
        angles = torch.tensor(rotations, dtype=torch.float64, device=device)[:, None]
        angles = angles * inverse_frequencies.to(torch.float64)
        turns = [[-1 if t is None else place[t] for t in item.rotations] for item in items]

        def integers(values: Any) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.int32, device=device)

        return cls(
            integers([numbers[item.row] for item in items]),
            integers([item.start for item in items]),
            integers([item.stop for item in items]),
            integers(turns),
            angles.cos().to(torch.float32),
            angles.sin().to(torch.float32),
        )


def attend(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    tables: torch.Tensor,
    work: Work,
    scale: float,
) -> torch.Tensor:
    """The attention of one query per worker over what it sees.

    ``queries``: [workers, heads, head_dim], rotated at each row's own index, halves rotated
    against each other (NeoX). ``keys``, ``values``: [blocks, kv_heads, block_size, head_dim], any
    strides with the last 1. ``tables``: int32 [rows, blocks of a row]. Returns [workers, heads,
    head_dim]. Sums are float32, whatever the cache holds.
    """
    workers, heads, width = queries.shape
    kv_heads, block = keys.shape[1], keys.shape[2]
    group = heads // kv_heads
    folded = max(16, triton.next_power_of_2(workers * group))  # a matrix product wants 16 rows
    count = work.rows.shape[0]
    partial = torch.empty(
        (count, kv_heads, folded, width), dtype=torch.float32, device=queries.device
    )
    weights = torch.empty((count, kv_heads, folded), dtype=torch.float32, device=queries.device)
    out = torch.empty_like(queries)
    _pieces[(count, kv_heads)](
        queries,
        keys,
        values,
        tables,
        work.rows,
        work.starts,
        work.stops,
        work.turns,
        work.cos,
        work.sin,
        partial,
        weights,
        scale,
        queries.stride(0),
        queries.stride(1),
        keys.stride(0),
        keys.stride(1),
        keys.stride(2),
        values.stride(0),
        values.stride(1),
        values.stride(2),
        tables.stride(0),
        WORKERS=workers,
        GROUP=group,
        FOLDED=folded,
        HALF=width // 2,
        BLOCK=block,
        TILE=max(16, min(64, block)),
    )
    _merge[(workers, heads)](
        partial,
        weights,
        out,
        count,
        out.stride(0),
        out.stride(1),
        KV_HEADS=kv_heads,
        GROUP=group,
        FOLDED=folded,
        WIDTH=width,
    )
    return out


@triton.jit
def _pieces(  # type: ignore[no-untyped-def]
    queries,
    keys,
    values,
    tables,
    rows,
    starts,
    stops,
    turns,
    cosines,
    sines,
    partial,
    weights,
    scale,
    query_stride,
    query_head_stride,
    key_block_stride,
    key_head_stride,
    key_stride,
    value_block_stride,
    value_head_stride,
    value_stride,
    table_stride,
    WORKERS: tl.constexpr,
    GROUP: tl.constexpr,
    FOLDED: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    """One item for one KV head: a softmax over its tokens for each (worker, query head)."""
    item = tl.program_id(0)
    head = tl.program_id(1)
    lane = tl.arange(0, FOLDED)  # a worker and one of the query heads of this KV head
    worker = lane // GROUP
    half = tl.arange(0, HALF)
    turn = tl.load(turns + item * WORKERS + worker, mask=worker < WORKERS, other=-1)
    sees = (turn >= 0)[:, None]

    at = worker * query_stride + (head * GROUP + lane % GROUP) * query_head_stride
    low = tl.load(queries + at[:, None] + half[None, :], mask=sees, other=0.0).to(tl.float32)
    high = tl.load(queries + at[:, None] + HALF + half[None, :], mask=sees, other=0.0)
    high = high.to(tl.float32)
    angle = turn[:, None] * HALF + half[None, :]
    cos = tl.load(cosines + angle, mask=sees, other=1.0)
    sin = tl.load(sines + angle, mask=sees, other=0.0)
    kind = keys.dtype.element_ty
    turned_low = (low * cos - high * sin).to(kind)
    turned_high = (high * cos + low * sin).to(kind)

    row = tl.load(rows + item)
    start = tl.load(starts + item)
    stop = tl.load(stops + item)
    most = tl.full([FOLDED], -1.0e30, tl.float32)
    total = tl.zeros([FOLDED], tl.float32)
    sum_low = tl.zeros([FOLDED, HALF], tl.float32)
    sum_high = tl.zeros([FOLDED, HALF], tl.float32)
    for first in range(start, stop, TILE):
        token = first + tl.arange(0, TILE)
        there = token < stop
        block = tl.load(tables + row * table_stride + token // BLOCK, mask=there, other=0)
        block = block.to(tl.int64)
        key = block * key_block_stride + head * key_head_stride + (token % BLOCK) * key_stride
        key_low = tl.load(keys + key[:, None] + half[None, :], mask=there[:, None], other=0.0)
        key_high = tl.load(
            keys + key[:, None] + HALF + half[None, :], mask=there[:, None], other=0.0
        )
        score = tl.dot(turned_low, tl.trans(key_low), input_precision="ieee")
        score += tl.dot(turned_high, tl.trans(key_high), input_precision="ieee")
        score = tl.where(there[None, :], score * scale, -1.0e30)
        new_most = tl.maximum(most, tl.max(score, 1))
        weight = tl.exp(score - new_most[:, None])
        kept = tl.exp(most - new_most)
        most = new_most
        total = total * kept + tl.sum(weight, 1)
        value = (
            block * value_block_stride + head * value_head_stride + (token % BLOCK) * value_stride
        )
        value_low = tl.load(values + value[:, None] + half[None, :], mask=there[:, None], other=0.0)
        value_high = tl.load(
            values + value[:, None] + HALF + half[None, :], mask=there[:, None], other=0.0
        )
        weight = weight.to(value_low.dtype)
        sum_low = sum_low * kept[:, None] + tl.dot(weight, value_low, input_precision="ieee")
        sum_high = sum_high * kept[:, None] + tl.dot(weight, value_high, input_precision="ieee")

    place = (item * tl.num_programs(1) + head) * FOLDED + lane
    out = place[:, None] * (2 * HALF) + half[None, :]
    tl.store(partial + out, sum_low / total[:, None])
    tl.store(partial + out + HALF, sum_high / total[:, None])
    tl.store(weights + place, tl.where(turn >= 0, most + tl.log(total), -1.0e30))


@triton.jit
def _merge(  # type: ignore[no-untyped-def]
    partial,
    weights,
    out,
    count,
    out_stride,
    out_head_stride,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    FOLDED: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """All items of one worker and query head, weighted by their log-sum-exp."""
    worker = tl.program_id(0)
    head = tl.program_id(1)
    lane = worker * GROUP + head % GROUP
    wide = tl.arange(0, WIDTH)
    most = -1.0e30
    total = 0.0
    summed = tl.zeros([WIDTH], tl.float32)
    for item in range(count):
        place = (item * KV_HEADS + head // GROUP) * FOLDED + lane
        weight = tl.load(weights + place)
        new_most = tl.maximum(most, weight)
        kept = tl.exp(most - new_most)
        share = tl.where(weight > -1.0e29, tl.exp(weight - new_most), 0.0)
        summed = summed * kept + share * tl.load(partial + place * WIDTH + wide)
        total = total * kept + share
        most = new_most
    result = summed / total
    tl.store(
        out + worker * out_stride + head * out_head_stride + wide, result.to(out.dtype.element_ty)
    )
