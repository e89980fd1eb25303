"""Attention of whole groups in one decode step, in Triton: each tile of the cache is read once.

`attend` is the door. The queries come as the engine rotated them; the further rotation of each
worker and piece happens in registers, from a table of cosines, so the cache is only ever read.
What a step reads stands in tensors, its length too: they may be larger than what they hold, and
stay where they are over many steps, as a CUDA graph wants it.

Runs where Triton does: on CUDA, or with ``TRITON_INTERPRET=1`` on a CPU, slowly, as its proof.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl

from agentpar.runtime.hogwild.worklist import Item

MERGED = 16
"""Items whose results are added up at once."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a model and its cache fix: heads, numbers of each, tokens in a block and in an item."""

    heads: int
    kv_heads: int
    width: int
    block: int
    chunk: int

    @property
    def sharing(self) -> int:
        """How many query heads share a KV head."""
        return self.heads // self.kv_heads

    @property
    def span(self) -> int:
        """In how many blocks the tokens of an item may lie."""
        return (self.chunk + self.block - 2) // self.block + 1

    def lanes(self, workers: int) -> int:
        """Queries of one KV head that a program holds for ``workers``: few sizes, so that the
        kernel is built a few times only. A matrix product wants 16 rows."""
        return max(16, 1 << (workers * self.sharing - 1).bit_length())


@dataclass(frozen=True, slots=True)
class Sizes:
    """How the kernel is built for a number of lanes."""

    tile: int
    warps: int
    stages: int


def sizes(lanes: int, width: int, bits: int) -> Sizes:
    """For keys of ``width`` numbers with ``bits`` each.

    Chosen by what the compiler says of registers, shared memory and loads; not by time, which
    takes a GPU.
    """
    if bits == 32:  # no tensor cores, and vLLM stores none on CUDA: only to prove the kernel
        return Sizes(tile=32, warps=8, stages=3)
    return Sizes(tile=64, warps=8 if lanes > 64 and width > 32 else 4, stages=3)


@dataclass(frozen=True, slots=True)
class Part:
    """What one group reads in a step.

    ``blocks``: of each row in ``items``, in order. ``places``: where the query of each worker
    stands among all queries, in the order of the items' rotations.
    """

    items: Sequence[Item]
    blocks: Mapping[str, Sequence[int]]
    places: Sequence[int]


@dataclass(frozen=True, slots=True)
class Room:
    """How much a `Work` can hold, of all groups together; ``workers``: of one group."""

    items: int
    queries: int
    turns: int
    workers: int

    @classmethod
    def of(cls, parts: Sequence[Part]) -> Room:
        """Just enough for ``parts``."""
        return cls(
            items=sum(len(part.items) for part in parts),
            queries=sum(len(part.places) for part in parts),
            turns=len(_rotations(parts)),
            workers=max((len(part.places) for part in parts), default=1),
        )

    def holds(self, other: Room) -> bool:
        """Whether all of ``other`` fits."""
        return (
            self.items >= other.items
            and self.queries >= other.queries
            and self.turns >= other.turns
            and self.workers >= other.workers
        )


class Work:
    """What a step reads, on the device of a cache.

    The tensors are as long as ``room`` says and never move. Programs of the kernel behind the
    ``count`` of items end at once, as do queries whose place is -1; what stands there is not read.

    - ``count``: int32 [1]
    - ``bounds``: int32 [items, 2]: of which tokens, counted from the first of its blocks
    - ``tables``: int32 [items, `Shape.span`]: its blocks
    - ``seats``: int32 [items, workers, 2]: the place of a worker's query, and the row of ``cos``
      and ``sin`` (float32 [turns, width / 2]) that it is rotated by, -1 where it does not see the
      item
    - ``asked``: int32 [queries, 4]: place, number of the worker in its group, and the group's
      items from the first to before the last
    """

    def __init__(self, shape: Shape, room: Room, frequencies: torch.Tensor) -> None:
        """``frequencies`` [width / 2]: radians per position, on the device. Holds nothing yet."""
        device = frequencies.device
        self.shape = shape
        self.room = room
        self.lanes = shape.lanes(room.workers)
        self._frequencies = frequencies.cpu().double().numpy()
        self._seats = self.lanes // shape.sharing

        def integers(*size: int) -> torch.Tensor:
            return torch.zeros(size, dtype=torch.int32, device=device)

        def floats(*size: int) -> torch.Tensor:
            return torch.empty(size, dtype=torch.float32, device=device)

        self.count = integers(1)
        self.bounds = integers(room.items, 2)
        self.tables = integers(room.items, shape.span)
        self.seats = integers(room.items, self._seats, 2)
        self.asked = integers(room.queries, 4).fill_(-1)
        self.cos = floats(room.turns, shape.width // 2)
        self.sin = floats(room.turns, shape.width // 2)
        # What the items' programs leave for the merge, in each layer again.
        self.partial = floats(room.items, shape.kv_heads, self.lanes, shape.width)
        self.weights = floats(room.items, shape.kv_heads, self.lanes)

    @classmethod
    def of(cls, parts: Sequence[Part], shape: Shape, frequencies: torch.Tensor) -> Work:
        """Holds ``parts`` and has no more room."""
        work = cls(shape, Room.of(parts), frequencies)
        work.load(parts)
        return work

    def load(self, parts: Sequence[Part]) -> None:
        """Hold ``parts`` from now on, which have to fit (`Room.holds`).

        Angles are worked out in float64: in float32, one of 100,000 positions is off by 0.01.
        """
        rotations = _rotations(parts)
        angles = np.array(rotations, np.float64)[:, None] * self._frequencies
        _put(self.cos, np.cos(angles).astype(np.float32))
        _put(self.sin, np.sin(angles).astype(np.float32))
        row_of = {turn: row for row, turn in enumerate(rotations)}
        count = sum(len(part.items) for part in parts)
        bounds = np.zeros((count, 2), np.int32)
        tables = np.zeros((count, self.shape.span), np.int32)
        seats = np.full((count, self._seats, 2), -1, np.int32)
        asked = np.full((self.asked.shape[0], 4), -1, np.int32)
        first = query = 0
        for part in parts:
            last = first + len(part.items)
            for at, item in enumerate(part.items, first):
                block = item.start // self.shape.block
                own = part.blocks[item.row][block : -(-item.stop // self.shape.block)]
                tables[at, : len(own)] = own
                begin = block * self.shape.block
                bounds[at] = item.start - begin, item.stop - begin
                for worker, turn in enumerate(item.rotations):
                    if turn is not None:
                        seats[at, worker] = part.places[worker], row_of[turn]
            for worker, place in enumerate(part.places):
                asked[query] = place, worker, first, last
                query += 1
            first = last
        _put(self.bounds, bounds)
        _put(self.tables, tables)
        _put(self.seats, seats)
        _put(self.asked, asked)
        _put(self.count, np.array([count], np.int32))


def _rotations(parts: Sequence[Part]) -> list[int]:
    """The different ones, in order."""
    turns = {turn for part in parts for item in part.items for turn in item.rotations}
    return sorted(turn for turn in turns if turn is not None)


def _put(tensor: torch.Tensor, values: Any) -> None:
    """Write ``values`` to the front of ``tensor``; what lies behind stays as it is."""
    tensor[: len(values)].copy_(torch.from_numpy(values))


def attend(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    work: Work,
    scale: float,
    out: torch.Tensor,
) -> None:
    """Write the attention of each query that ``work`` knows over what its worker sees.

    ``queries``, ``out``: [places, heads, width], the numbers of a head side by side; queries are
    rotated at each row's own index, halves against each other (NeoX). ``keys``, ``values``:
    [blocks, kv_heads, block, width], any strides with the last 1. Sums are float32, whatever the
    cache holds. Allocates nothing, and starts the same two kernels for the same ``work``, whatever
    it holds: so it can be captured once and replayed for other steps.
    """
    shape, lanes = work.shape, work.lanes
    size = sizes(lanes, shape.width, 8 * keys.element_size())
    _pieces[(work.room.items, shape.kv_heads)](
        queries,
        keys,
        values,
        work.count,
        work.bounds,
        work.tables,
        work.seats,
        work.cos,
        work.sin,
        work.partial,
        work.weights,
        scale,
        queries.stride(0),
        queries.stride(1),
        keys.stride(0),
        keys.stride(1),
        keys.stride(2),
        values.stride(0),
        values.stride(1),
        values.stride(2),
        SHARING=shape.sharing,
        LANES=lanes,
        HALF=shape.width // 2,
        BLOCK=shape.block,
        SPAN=shape.span,
        TILE=size.tile,
        num_warps=size.warps,
        num_stages=size.stages,
    )
    _merge[(work.room.queries, shape.heads)](
        work.partial,
        work.weights,
        work.asked,
        out,
        out.stride(0),
        out.stride(1),
        KV_HEADS=shape.kv_heads,
        SHARING=shape.sharing,
        LANES=lanes,
        WIDTH=shape.width,
        MERGED=MERGED,
        num_warps=4,
    )


@triton.jit
def _pieces(  # type: ignore[no-untyped-def]
    queries,
    keys,
    values,
    count,
    bounds,
    tables,
    seats,
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
    SHARING: tl.constexpr,
    LANES: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    SPAN: tl.constexpr,
    TILE: tl.constexpr,
):
    """One item for one KV head: a softmax over its tokens for each (worker, query head)."""
    item = tl.program_id(0)
    head = tl.program_id(1)
    if item >= tl.load(count):
        return
    lane = tl.arange(0, LANES)  # a worker and one of the query heads of this KV head
    worker = lane // SHARING
    half = tl.arange(0, HALF)
    seat = seats + (item * (LANES // SHARING) + worker) * 2
    real = worker < LANES // SHARING
    place = tl.load(seat, mask=real, other=-1)
    turn = tl.load(seat + 1, mask=real, other=-1)
    sees = (turn >= 0)[:, None]

    at = place.to(tl.int64) * query_stride + (head * SHARING + lane % SHARING) * query_head_stride
    low = tl.load(queries + at[:, None] + half[None, :], mask=sees, other=0.0).to(tl.float32)
    high = tl.load(queries + at[:, None] + HALF + half[None, :], mask=sees, other=0.0)
    high = high.to(tl.float32)
    angle = turn[:, None] * HALF + half[None, :]
    cos = tl.load(cosines + angle, mask=sees, other=1.0)
    sin = tl.load(sines + angle, mask=sees, other=0.0)
    kind = keys.dtype.element_ty
    turned_low = (low * cos - high * sin).to(kind)
    turned_high = (high * cos + low * sin).to(kind)

    start = tl.load(bounds + item * 2)
    stop = tl.load(bounds + item * 2 + 1)
    most = tl.full([LANES], -1.0e30, tl.float32)
    total = tl.zeros([LANES], tl.float32)
    sum_low = tl.zeros([LANES, HALF], tl.float32)
    sum_high = tl.zeros([LANES, HALF], tl.float32)
    for first in range(start, stop, TILE):
        token = first + tl.arange(0, TILE)
        there = token < stop
        block = tl.load(tables + item * SPAN + token // BLOCK, mask=there, other=0)
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

    row = (item * tl.num_programs(1) + head) * LANES + lane
    out = row[:, None] * (2 * HALF) + half[None, :]
    tl.store(partial + out, sum_low / total[:, None], mask=sees)
    tl.store(partial + out + HALF, sum_high / total[:, None], mask=sees)
    tl.store(weights + row, tl.where(turn >= 0, most + tl.log(total), -1.0e30))


@triton.jit
def _merge(  # type: ignore[no-untyped-def]
    partial,
    weights,
    asked,
    out,
    out_stride,
    out_head_stride,
    KV_HEADS: tl.constexpr,
    SHARING: tl.constexpr,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
    MERGED: tl.constexpr,
):
    """All items of one worker and query head, weighted by their log-sum-exp."""
    query = tl.program_id(0)
    head = tl.program_id(1)
    place = tl.load(asked + query * 4)
    if place < 0:
        return
    lane = tl.load(asked + query * 4 + 1) * SHARING + head % SHARING
    start = tl.load(asked + query * 4 + 2)
    stop = tl.load(asked + query * 4 + 3)
    wide = tl.arange(0, WIDTH)
    most = -1.0e30
    total = 0.0
    summed = tl.zeros([WIDTH], tl.float32)
    for first in range(start, stop, MERGED):
        item = first + tl.arange(0, MERGED)
        row = (item * KV_HEADS + head // SHARING) * LANES + lane
        weight = tl.load(weights + row, mask=item < stop, other=-1.0e30)
        seen = weight > -1.0e29
        new_most = tl.maximum(most, tl.max(weight, 0))
        kept = tl.exp(most - new_most)
        share = tl.where(seen, tl.exp(weight - new_most), 0.0)
        found = tl.load(partial + row[:, None] * WIDTH + wide, mask=seen[:, None], other=0.0)
        summed = summed * kept + tl.sum(share[:, None] * found, 0)
        total = total * kept + tl.sum(share, 0)
        most = new_most
    at = place.to(tl.int64) * out_stride + head * out_head_stride
    tl.store(out + at + wide, (summed / total).to(out.dtype.element_ty))
