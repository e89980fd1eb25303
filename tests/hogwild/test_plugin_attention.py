"""The attention of a step's plan, against each query's view laid out key by key."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agentpar.runtime.hogwild.plugin import attention
from agentpar.runtime.hogwild.plugin.attention import Cache, plan_of
from agentpar.runtime.hogwild.plugin.groups import Chunk, Groups, Queries
from agentpar.runtime.hogwild.plugin.layout import Layout as BlockLayout
from agentpar.runtime.hogwild.plugin.layout import place
from agentpar.runtime.hogwild.plugin.notice import Joined, Notice
from agentpar.runtime.hogwild.plugin.params import Member
from agentpar.runtime.hogwild.rope import Rope
from agentpar.runtime.hogwild.spans import Layout

SIZE, NUMBERS, KV, HEADS = 8, 16, 2, 4
PLAIN = BlockLayout(tokens=((SIZE, NUMBERS),), numbers=((NUMBERS, 1),))
COLUMNS = BlockLayout(tokens=((SIZE, 1),), numbers=((NUMBERS, SIZE),))
PAIRS = BlockLayout(tokens=((SIZE, 2),), numbers=((NUMBERS // 2, 2 * SIZE), (2, 1)))
PACKED = BlockLayout(tokens=((SIZE, 2 * NUMBERS),), numbers=((NUMBERS, 1),))
TOKEN_PAIRS = BlockLayout(tokens=((SIZE // 2, 2 * NUMBERS), (2, 1)), numbers=((NUMBERS, 2),))
TILES = BlockLayout(tokens=((SIZE // 4, 4 * NUMBERS), (4, 2)), numbers=((NUMBERS // 2, 8), (2, 1)))
ROWS = ("Alice", "Bob", "Carol", "Dora")
STEP, OTHER = 1, 2  # tokens: the first ends a step

moves = st.lists(
    st.dictionaries(st.sampled_from(ROWS), st.tuples(st.integers(1, 5), st.booleans()), min_size=1),
    min_size=1,
    max_size=12,
)
ropes = st.sampled_from(
    [
        Rope(tuple(100 ** (-i / 8) for i in range(8))),
        Rope(tuple(100 ** (-i / 8) for i in range(8)), "pairs"),
        Rope(tuple(100 ** (-i / 4) for i in range(4))),  # half of a head does not turn
    ]
)


class Rows:
    """Keys and values of all rows, as they are and as they lie in blocks."""

    def __init__(self, prefix: int, rope: Rope, dtype: torch.dtype, cache: Cache) -> None:
        self.prefix, self.rope, self.cache = prefix, rope, cache
        draw = torch.Generator().manual_seed(prefix)
        self._draw = draw
        shared = torch.randn(2, prefix, KV, NUMBERS, generator=draw)
        self._stored = {row: self._computed(shared, dtype) for row in ROWS}
        self.per_row = -(-(prefix + 80) // SIZE)
        blocks = 1 + len(ROWS) * self.per_row
        self.kv = torch.zeros(blocks, KV, SIZE, 2 * NUMBERS, dtype=dtype)
        order = torch.randperm(blocks - 1, generator=draw) + 1
        self.blocks = {
            row: order[k * self.per_row : (k + 1) * self.per_row].tolist()
            for k, row in enumerate(ROWS)
        }

    def _computed(self, shared: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        own = torch.randn(2, 80, KV, NUMBERS, generator=self._draw)
        k, v = torch.cat((shared, own), 1).to(dtype)
        return rotated(k, torch.arange(len(k))[:, None, None], self.rope).to(dtype), v

    def stored(self, row: str, start: int, stop: int) -> tuple[torch.Tensor, ...]:
        """Keys (each rotated at its index in the row) and values, [tokens, KV, NUMBERS] each."""
        keys, values = self._stored[row]
        return keys[start:stop], values[start:stop]

    def write(self, row: str, start: int, stop: int) -> None:
        """Into the blocks, as a kernel with this layout does."""
        flat = self.kv.view(len(self.kv), KV, 2 * SIZE * NUMBERS)
        for index in range(start, stop):
            block, token = self.blocks[row][index // SIZE], index % SIZE
            stored = self.stored(row, index, index + 1)
            layouts = self.cache.keys, self.cache.values
            for which, ((numbers,), layout) in enumerate(zip(stored, layouts, strict=True)):
                places = [
                    which * self.cache.behind
                    + place(layout.tokens, token)
                    + place(layout.numbers, c)
                    for c in range(NUMBERS)
                ]
                flat[block, :, places] = numbers


def rotated(x: torch.Tensor, positions: float | torch.Tensor, rope: Rope) -> torch.Tensor:
    """``x`` [..., NUMBERS] turned, in float64; all by one position, or by those that broadcast."""
    x = x.double()
    angle = positions * torch.tensor(rope.frequencies, dtype=torch.float64)
    half = rope.dim // 2
    if rope.style == "halves":
        one, two = slice(0, half), slice(half, rope.dim)
    else:
        one, two = slice(0, rope.dim, 2), slice(1, rope.dim, 2)
    out = x.clone()
    out[..., one] = x[..., one] * angle.cos() - x[..., two] * angle.sin()
    out[..., two] = x[..., two] * angle.cos() + x[..., one] * angle.sin()
    return out


def expected(rows: Rows, group: Any, asked: Queries, query: torch.Tensor) -> torch.Tensor:
    """What the queries [Q, HEADS, NUMBERS] of one row find, each key at its place in the view."""
    view = group.board.view(asked.row)
    own = view[-1]
    found = []
    for number, index in enumerate(range(asked.start, asked.stop)):
        keys, values = [], []
        for span in view:
            stop = index + 1 if span is own else span.stop
            key, value = rows.stored(span.row, span.start, stop)
            keys.append(rotated(key, span.shift, rows.rope))
            values.append(value.double())
        q = rotated(query[number], own.shift, rows.rope)
        k = torch.cat(keys).repeat_interleave(HEADS // KV, 1)
        v = torch.cat(values).repeat_interleave(HEADS // KV, 1)
        weights = torch.einsum("hd,thd->ht", q, k).mul(0.25).softmax(-1)
        found.append(torch.einsum("ht,thd->hd", weights, v))
    return torch.stack(found)


@pytest.mark.parametrize("layout", ["contiguous", "interleaved", "combined"])
@pytest.mark.parametrize(
    ("dtype", "keys", "values"),
    [
        (torch.float32, COLUMNS, PLAIN),
        (torch.bfloat16, PAIRS, TOKEN_PAIRS),
        (torch.bfloat16, TILES, PLAIN),
        (torch.bfloat16, PLAIN, PLAIN),
        (torch.bfloat16, PACKED, PACKED),
    ],
    ids=["columns", "pairs", "tiles", "plain half", "packed half"],
)
@settings(deadline=None, max_examples=25)
@given(
    played=moves,
    rope=ropes,
    prefix=st.integers(1, 20),
    piece=st.sampled_from([1, 1 << 24]),
    run=st.sampled_from([2, 4, 32]),
    strided=st.booleans(),
    gap=st.sampled_from([0, 2]),
)
def test_each_query_finds_what_its_view_holds(
    layout: Layout,
    dtype: torch.dtype,
    keys: BlockLayout,
    values: BlockLayout,
    played: list[dict[str, tuple[int, bool]]],
    rope: Rope,
    prefix: int,
    piece: int,
    run: int,
    strided: bool,
    gap: int,
) -> None:
    """Whoever writes how much in which step, in blocks of any order and layout, read in whatever
    runs, where a block's heads do not lie one behind the other, and with others between."""
    cache = Cache(SIZE, keys, values, NUMBERS if keys is PACKED else SIZE * NUMBERS)
    rows = Rows(prefix, rope, dtype, cache)
    groups = Groups()
    member = {row: Member("g", row, prefix, 1, layout, frozenset({STEP})) for row in ROWS}
    groups.hear(
        Notice(
            joined=tuple(
                Joined(row, 1, member[row], (0,) * prefix, prefix, 999, frozenset()) for row in ROWS
            )
        ),
        (),
    )
    lengths = dict.fromkeys(ROWS, prefix)
    for row in ROWS:
        rows.write(row, 0, prefix)
    for step in played:
        chunks, offset = [], 3  # three tokens of others come first in the batch
        for row, (count, ends) in step.items():
            tokens = [OTHER] * (count - 1) + [STEP if ends else OTHER]
            rows.write(row, lengths[row], lengths[row] + count)
            chunks.append(Chunk(row, offset, lengths[row], tokens, rows.blocks[row]))
            lengths[row] += count
            offset += count + gap
        ((group, queries),) = groups.begin(chunks)
        query = torch.randn(offset, HEADS, NUMBERS, generator=rows._draw).to(dtype)
        output = torch.full_like(query, 7)
        kv = rows.kv.transpose(0, 1).contiguous().transpose(0, 1) if strided else rows.kv
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(attention, "MAX_SCORES", piece)
            patch.setattr(attention, "RUN", run)
            plan = plan_of(group, queries, rope, cache)
            if plan is not None:
                plan.attend(query, kv, output, 0.25)
        others = torch.ones(offset, dtype=torch.bool)
        for chunk in chunks:
            others[chunk.offset : chunk.offset + len(chunk.tokens)] = False
        assert (output[others] == 7).all()
        for asked in queries:
            part = slice(asked.offset, asked.offset + asked.stop - asked.start)
            wanted = expected(rows, group, asked, query[part])
            if plan is None:  # then each sees its own row as it is
                assert {span.row for span in group.board.view(asked.row)} == {asked.row}
            else:
                close = 2e-5 if dtype == torch.float32 else 3e-2
                assert (output[part].double() - wanted).abs().max() < close
        groups.end()
