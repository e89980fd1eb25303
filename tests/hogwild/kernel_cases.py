"""Runs the group kernel in Triton's interpreter beside plain attention over each view put together.

A program of its own, as the interpreter has to be chosen before Triton is imported. Prints, as
JSON, the largest error of each case and how many tokens were read; then, of a `Work` with room to
spare that serves one step after the other, what of it moved and which answers changed by that.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import bfloat16
import torch

from agentpar.runtime.hogwild.kernel import Part, Room, Shape, Work, attend
from agentpar.runtime.hogwild.spans import Board
from agentpar.runtime.hogwild.worklist import items
from agentpar.workers import Layout

BLOCK = 16
CHUNK = 32
KV_HEADS = 2


def rotated(x: torch.Tensor, positions: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    angles = positions[:, None].double() * inverse
    cos, sin = torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)
    low, high = x.double().chunk(2, -1)
    return x.double() * cos + torch.cat([-high, low], -1) * sin


def played(layout: Layout, workers: int, prefix: int) -> Board:
    """A board on which steps have ended, and one more row than workers has been injected."""
    board = Board(prefix, layout)
    names = [f"w{number}" for number in range(workers)]
    for name in names:
        board.join(name)
    for turn, name in enumerate(itertools.islice(itertools.cycle(names), 3 * workers)):
        board.write(name, 3 + 5 * turn % 17)
        if turn % 2:
            board.end_step(name)
            board.write(name, 1 + turn % 4)
    board.join("tool")
    board.write("tool", 11)
    board.close("tool")
    return board


class Case:
    """One group: its rows in a cache of its own, the queries of its workers, and what is right."""

    def __init__(
        self, layout: Layout, workers: int, group: int, width: int, prefix: int, dtype: torch.dtype
    ) -> None:
        torch.manual_seed(workers * 1000 + group * 100 + width)
        self.shape = Shape(KV_HEADS * group, KV_HEADS, width, BLOCK, CHUNK)
        board = played(layout, workers, prefix)
        self.views = {name: board.view(name) for name in board.rows if name != "tool"}
        inverse = 1.0 / 10_000.0 ** (torch.arange(0, width, 2).double() / width)
        self.inverse = inverse
        common = torch.randn(2, KV_HEADS, prefix, width)  # of the prefix, not rotated
        self.raw = {
            row: torch.cat([common, torch.randn(2, KV_HEADS, board.length(row) - prefix, width)], 2)
            for row in board.rows
        }
        # The rows as an engine has them: in blocks anywhere, keys rotated by their own index.
        longest = max(map(board.length, board.rows)) // BLOCK + 1
        tables = 1 + torch.randperm(len(self.raw) * longest).view(len(self.raw), longest)
        self.cache = torch.zeros(
            2, len(self.raw) * longest + 1, KV_HEADS, BLOCK, width, dtype=dtype
        )
        for number, (keys, values) in enumerate(self.raw.values()):
            at = torch.arange(keys.shape[1])
            stored = torch.stack([rotated(head, at, inverse) for head in keys])
            where = tables[number][at // BLOCK], at % BLOCK
            self.cache[0][where[0], :, where[1]] = stored.transpose(0, 1).to(dtype)
            self.cache[1][where[0], :, where[1]] = values.transpose(0, 1).to(dtype)
        self.blocks = {row: tables[number].tolist() for number, row in enumerate(self.raw)}
        self.asked = torch.randn(workers, KV_HEADS * group, width)
        self.queries = torch.stack(
            [
                rotated(self.asked[n], torch.tensor([board.length(name) - 1]), inverse)
                for n, name in enumerate(self.views)
            ]
        ).to(dtype)
        self.items = items(self.views, prefix, CHUNK)

    def part(self, first: int = 0, blocks_behind: int = 0) -> Part:
        """``first``: where the first query stands; ``blocks_behind``: where the cache begins."""
        blocks = {row: [b + blocks_behind for b in own] for row, own in self.blocks.items()}
        return Part(self.items, blocks, [first + n for n in range(len(self.views))])

    def error(self, got: torch.Tensor) -> float:
        """The largest, against plain attention in float64 over each view put together."""
        error, sharing = 0.0, self.shape.sharing
        for number, view in enumerate(self.views.values()):
            keys, values = (
                torch.cat([self.raw[span.row][part][:, span.start : span.stop] for span in view], 1)
                for part in (0, 1)
            )
            at = torch.arange(keys.shape[1])
            keys = torch.stack([rotated(head, at, self.inverse) for head in keys])
            query = rotated(self.asked[number], at[-1:], self.inverse)
            scores = torch.einsum("hd,hkd->hk", query, keys.repeat_interleave(sharing, 0))
            weights = (scores * self.shape.width**-0.5).softmax(-1)
            wide = values.double().repeat_interleave(sharing, 0)
            want = torch.einsum("hk,hkd->hd", weights, wide)
            error = max(error, (want - got[number].double()).abs().max().item())
        return error

    @property
    def read(self) -> int:
        """Tokens that are read."""
        return sum(item.stop - item.start for item in self.items)

    @property
    def each(self) -> int:
        """Those that reading worker by worker would read."""
        return sum(span.stop - span.start for view in self.views.values() for span in view)


def answered(case: Case, work: Work, cache: torch.Tensor | None = None) -> torch.Tensor:
    out = torch.full_like(case.queries, torch.nan)
    keys, values = case.cache if cache is None else cache
    attend(case.queries, keys, values, work, case.shape.width**-0.5, out)
    return out


def kept() -> dict[str, Any]:
    """One `Work` with room to spare, over three steps: whole groups, fewer items, none."""
    big, small = (Case("combined", workers, 2, 32, 37, torch.float32) for workers in (4, 2))
    work = Work(big.shape, Room(items=64, queries=16, turns=64, workers=4), big.inverse)
    where = addresses(work)
    spoil(work)
    found: dict[str, Any] = {"equal": []}
    for case in (big, small, big):
        work.load([case.part()])
        got = answered(case, work)
        found["equal"].append(
            torch.equal(got, answered(case, Work.of([case.part()], case.shape, case.inverse)))
        )
    work.load([])
    found["none"] = bool(answered(big, work).isnan().all())
    # Two groups in one launch, in a cache that holds both.
    cache = torch.cat([big.cache, small.cache], 1)
    both = [big.part(), small.part(4, big.cache.shape[1])]
    work.load(both)
    queries = torch.cat([big.queries, small.queries])
    out = torch.full_like(queries, torch.nan)
    attend(queries, cache[0], cache[1], work, big.shape.width**-0.5, out)
    found["both"] = [big.error(out[:4]), small.error(out[4:])]
    found["moved"] = [name for name, at in addresses(work).items() if where[name] != at]
    found["fits"] = [work.room.holds(Room.of(both)), Room(64, 5, 64, 4).holds(Room.of(both))]
    return found


def addresses(work: Work) -> dict[str, int]:
    return {name: t.data_ptr() for name, t in vars(work).items() if isinstance(t, torch.Tensor)}


def spoil(work: Work) -> None:
    """Fill what holds nothing with what nobody may read: to look there ends the program."""
    for name in ("bounds", "tables", "seats"):
        getattr(work, name).fill_(1 << 30)
    for name in ("cos", "sin", "partial", "weights"):
        getattr(work, name).fill_(torch.nan)


def main() -> None:
    bfloat16.repair()
    cases: list[tuple[Layout, int, int, int, int, torch.dtype]] = [
        ("contiguous", workers, group, width, 37, dtype)
        for workers, group, width, dtype in (
            (1, 1, 32, torch.float32),
            (2, 4, 64, torch.float32),
            (4, 8, 128, torch.float32),
            (8, 2, 64, torch.float32),
            (3, 7, 32, torch.float32),
            (2, 4, 128, torch.bfloat16),
            (4, 2, 64, torch.bfloat16),
        )
    ]
    cases += [
        (layout, 3, 2, 64, prefix, dtype)
        for layout in ("contiguous", "interleaved", "combined")
        for prefix, dtype in (
            (32, torch.float16),
            (41, torch.float32),
            (41, torch.bfloat16),
        )
    ]
    found = {}
    for one in cases:
        layout, workers, group, width, prefix, dtype = one
        case = Case(*one)
        got = answered(case, Work.of([case.part()], case.shape, case.inverse))
        kind = str(dtype).removeprefix("torch.")
        name = f"{layout} {workers} workers GQA {group} width {width} prefix {prefix} {kind}"
        found[name] = (case.error(got), case.read, case.each)
    json.dump({"cases": found, "kept": kept()}, sys.stdout)


if __name__ == "__main__":
    main()
