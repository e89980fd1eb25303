"""Runs the group kernel in Triton's interpreter beside plain attention over each view put together.

A program of its own, as the interpreter has to be chosen before Triton is imported. Prints, as
JSON, the largest error of each case and how many tokens were read.
"""

from __future__ import annotations

import itertools
import json
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import torch

from agentpar.runtime.hogwild.kernel import Work, attend
from agentpar.runtime.hogwild.spans import Board
from agentpar.runtime.hogwild.worklist import items
from agentpar.workers import Layout

BLOCK = 16
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


def case(
    layout: Layout, workers: int, group: int, width: int, prefix: int, dtype: torch.dtype
) -> tuple[float, int, int]:
    """The largest error, the tokens read, and those that reading worker by worker would read."""
    torch.manual_seed(workers * 1000 + group * 100 + width)
    board = played(layout, workers, prefix)
    views = {name: board.view(name) for name in board.rows if name != "tool"}
    inverse = 1.0 / 10_000.0 ** (torch.arange(0, width, 2).double() / width)
    common = torch.randn(2, KV_HEADS, prefix, width)  # keys and values of the prefix, not rotated
    raw = {
        row: torch.cat([common, torch.randn(2, KV_HEADS, board.length(row) - prefix, width)], 2)
        for row in board.rows
    }
    # The rows as an engine has them: in blocks anywhere, keys rotated by their own index.
    longest = max(map(board.length, board.rows)) // BLOCK + 1
    tables = 1 + torch.randperm(len(raw) * longest).view(len(raw), longest).to(torch.int32)
    cache = torch.zeros(2, len(raw) * longest + 1, KV_HEADS, BLOCK, width, dtype=dtype)
    for number, (keys, values) in enumerate(raw.values()):
        at = torch.arange(keys.shape[1])
        stored = torch.stack([rotated(head, at, inverse) for head in keys])
        where = tables[number][at // BLOCK].long(), at % BLOCK
        cache[0][where[0], :, where[1]] = stored.transpose(0, 1).to(dtype)
        cache[1][where[0], :, where[1]] = values.transpose(0, 1).to(dtype)
    asked = torch.randn(workers, KV_HEADS * group, width)
    queries = torch.stack(
        [
            rotated(asked[n], torch.tensor([board.length(name) - 1]), inverse)
            for n, name in enumerate(views)
        ]
    ).to(dtype)
    work_items = items(views, prefix, chunk=32)
    numbers = {row: number for number, row in enumerate(raw)}
    work = Work.of(work_items, numbers, inverse)
    got = attend(queries, cache[0], cache[1], tables, work, width**-0.5)
    error = 0.0
    for number, view in enumerate(views.values()):
        keys, values = (
            torch.cat([raw[span.row][part][:, span.start : span.stop] for span in view], 1)
            for part in (0, 1)
        )
        at = torch.arange(keys.shape[1])
        keys = torch.stack([rotated(head, at, inverse) for head in keys])
        query = rotated(asked[number], at[-1:], inverse)
        scores = torch.einsum("hd,hkd->hk", query, keys.repeat_interleave(group, 0)) * width**-0.5
        weights = scores.softmax(-1)
        want = torch.einsum("hk,hkd->hd", weights, values.double().repeat_interleave(group, 0))
        error = max(error, (want - got[number].double()).abs().max().item())
    read = sum(item.stop - item.start for item in work_items)
    each = sum(span.stop - span.start for view in views.values() for span in view)
    return error, read, each


def main() -> None:
    cases: list[tuple[Layout, int, int, int, int, torch.dtype]] = [
        ("contiguous", workers, group, width, 37, torch.float32)
        for workers, group, width in ((1, 1, 32), (2, 4, 64), (4, 8, 128), (8, 2, 64))
    ]
    # No bfloat16: the interpreter multiplies its bits as if they were whole numbers.
    cases += [
        (layout, 3, 2, 64, prefix, dtype)
        for layout in ("contiguous", "interleaved", "combined")
        for prefix, dtype in ((32, torch.float16), (41, torch.float32))
    ]
    found = {}
    for one in cases:
        layout, workers, group, width, prefix, dtype = one
        error, read, each = case(*one)
        kind = str(dtype).removeprefix("torch.")
        name = f"{layout} {workers} workers GQA {group} width {width} prefix {prefix} {kind}"
        found[name] = (error, read, each)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
