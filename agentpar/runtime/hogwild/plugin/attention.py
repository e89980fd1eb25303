"""Attention of a group's queries over the group's rows, as they lie in vLLM's cache: in torch.

A step's `Plan` is made once and serves all layers. In each layer it reads every row once, for all
workers together: the blocks of the prefix and of each row side by side make one axis of *slots*.
What a worker sees of a slot, and at which distance, is a bias and a rotation of its query.

It runs wherever torch does, and takes any number of queries for each row. Knows torch; must never
know vLLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
import torch

from agentpar.runtime.hogwild.plugin.groups import Group, Queries
from agentpar.runtime.hogwild.plugin.layout import Axis, Layout
from agentpar.runtime.hogwild.rope import Rope
from agentpar.runtime.hogwild.spans import Span, rotation

MAX_SCORES = 1 << 24
"""Scores that are held at once, in numbers: queries of a long prompt go in pieces."""

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Cache:
    """How a layer's cache is read: tokens in a block, and how keys and values lie in one.

    ``behind``: numbers from where the keys of a head begin in a block to where its values do.
    ``device``: where the cache is.
    """

    block_size: int
    keys: Layout
    values: Layout
    behind: int
    device: torch.device = CPU


@dataclass(frozen=True, slots=True)
class Turn:
    """A rotation by a number of positions each: ``cos`` and ``sin`` of the turning pairs."""

    cos: torch.Tensor
    sin: torch.Tensor

    @classmethod
    def by(cls, positions: np.ndarray, rope: Rope, device: torch.device) -> Turn:
        """``positions`` [...] gives tables [..., pairs]; float64 until the last moment."""
        angles = positions[..., None] * np.asarray(rope.frequencies)
        return cls(
            torch.from_numpy(np.cos(angles).astype(np.float32)).to(device),
            torch.from_numpy(np.sin(angles).astype(np.float32)).to(device),
        )


def turned(x: torch.Tensor, turn: Turn, rope: Rope, axis: int) -> torch.Tensor:
    """``x`` with the pairs along ``axis`` turned; tables and ``x`` broadcast."""
    first, second = _pairs(rope)
    one, two = _along(x, axis, first), _along(x, axis, second)
    shape = list(torch.broadcast_shapes(one.shape, turn.cos.shape))
    shape[axis] = x.shape[axis]
    out = x.new_empty(shape)
    torch.mul(one, turn.cos, out=_along(out, axis, first)).addcmul_(two, turn.sin, value=-1)
    torch.mul(two, turn.cos, out=_along(out, axis, second)).addcmul_(one, turn.sin)
    if rope.dim < x.shape[axis]:
        rest = slice(rope.dim, x.shape[axis])
        _along(out, axis, rest).copy_(_along(x, axis, rest))
    return out


def _pairs(rope: Rope) -> tuple[slice, slice]:
    if rope.style == "halves":
        return slice(0, rope.dim // 2), slice(rope.dim // 2, rope.dim)
    return slice(0, rope.dim, 2), slice(1, rope.dim, 2)


def _along(x: torch.Tensor, axis: int, part: slice) -> torch.Tensor:
    index: list[slice] = [slice(None)] * x.dim()
    index[axis] = part
    return x[tuple(index)]


@dataclass(frozen=True, slots=True)
class Stretch:
    """Slots ``start <= i < stop``, which all are read with queries turned in one way."""

    start: int
    stop: int
    way: int


class Plan:
    """What a group's queries of one step see, for all layers.

    ``positions`` [Q]: where the queries stand in the batch. ``blocks``: of all rows, side by side;
    they make the slots. ``bias`` [Q, slots]: 0 where a query sees a slot, else minus infinity.
    ``deltas`` [Q, ways]: positions by which a query is turned, in several ways; ``stretches`` says
    which way is for which slots. ``shifts`` [slots]: positions by which keys are turned, where it
    is simpler to turn these.
    """

    def __init__(
        self,
        rope: Rope,
        cache: Cache,
        *,
        positions: np.ndarray,
        blocks: Sequence[int],
        bias: np.ndarray,
        deltas: np.ndarray,
        stretches: Sequence[Stretch],
        shifts: np.ndarray | None,
    ) -> None:
        self._rope = rope
        self._cache = cache
        device = cache.device
        self._positions = torch.from_numpy(positions).to(device)
        self._blocks = torch.tensor(blocks, dtype=torch.int64, device=device)
        self._bias = torch.from_numpy(bias).to(device)
        self._stretches = tuple(stretches)
        # Tables [ways, 1, Q, 1, pairs], for queries [kv heads, Q, heads of one, numbers].
        self._ways = Turn.by(deltas.T[:, None, :, None], rope, device)
        # Tables [pairs, slots], for keys [kv heads, numbers, slots].
        self._keys = None
        if shifts is not None:
            turn = Turn.by(shifts, rope, device)
            self._keys = Turn(turn.cos.T.contiguous(), turn.sin.T.contiguous())
        self._reader: _Reader | None = None

    @property
    def slots(self) -> int:
        """Tokens that are read in each layer, those in nobody's sight included."""
        return int(self._bias.shape[1])

    def attend(
        self, query: torch.Tensor, kv_cache: torch.Tensor, output: torch.Tensor, scale: float
    ) -> None:
        """Overwrite the group's rows of ``output``.

        ``query``, ``output``: [tokens, heads, numbers]. ``kv_cache``: [blocks, kv heads, block
        size, twice the numbers], one layer's.
        """
        numbers = query.shape[-1]
        keys, values = self._read(kv_cache, numbers)
        if self._keys is not None:
            keys = turned(keys, self._keys, self._rope, axis=1)
        heads = query.shape[1]
        piece = max(1, MAX_SCORES // (heads * self.slots))
        for start in range(0, len(self._positions), piece):
            part = slice(start, start + piece)
            where = self._positions[part]
            found = self._attend(query[where], keys, values, part, scale)
            output[where] = found.to(output.dtype)

    def _attend(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        part: slice,
        scale: float,
    ) -> torch.Tensor:
        count, heads, numbers = query.shape
        kv = keys.shape[0]
        asked = query.view(count, kv, heads // kv, numbers).permute(1, 0, 2, 3).float() * scale
        tables = Turn(self._ways.cos[:, :, part], self._ways.sin[:, :, part])
        # [ways, kv heads, queries of all its heads, numbers]
        ways = turned(asked[None], tables, self._rope, axis=-1).flatten(2, 3)
        scores = torch.cat(
            [torch.bmm(ways[s.way], keys[:, :, s.start : s.stop]) for s in self._stretches], dim=2
        )
        scores.view(kv, count, -1, self.slots).add_(self._bias[None, part, None])
        found = torch.bmm(torch.softmax(scores, dim=2), values)
        return found.view(kv, count, -1, numbers).permute(1, 0, 2, 3).reshape(query.shape)

    def _read(self, kv_cache: torch.Tensor, numbers: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys [kv heads, numbers, slots] and values [kv heads, slots, numbers] of all rows.

        Slots without a token hold zeros or another row's numbers (see `RunningStep`): whatever it
        is, it is finite, and the bias makes it count for nothing.
        """
        if self._reader is None:
            self._reader = _Reader(self._cache, kv_cache, self._blocks, numbers)
        return self._reader.read(kv_cache)


class _Reader:
    """Reads the blocks of a group in one layer after the other, into the same memory."""

    def __init__(
        self, cache: Cache, kv_cache: torch.Tensor, blocks: torch.Tensor, numbers: int
    ) -> None:
        """``kv_cache``: one layer's; the others are like it."""
        kv, size, count = kv_cache.shape[1], cache.block_size, len(blocks)
        self._blocks = blocks
        self._found = kv_cache.new_empty((count, *kv_cache.shape[1:]))
        self._keys = torch.empty(kv, numbers, count * size, device=cache.device)
        self._values = torch.empty(kv, count * size, numbers, device=cache.device)
        head = 2 * size * numbers
        of_heads, of_blocks = ((kv, head),), ((count, kv * head),)
        self._of_keys = (*of_heads, *cache.keys.numbers, *of_blocks, *cache.keys.tokens)
        self._of_values = (*of_heads, *of_blocks, *cache.values.tokens, *cache.values.numbers)
        self._behind_keys = cache.behind
        self._halves: tuple[torch.Tensor, torch.Tensor] | None = None
        if kv_cache.dtype == torch.bfloat16 and PAIR in self._of_keys and PAIR in self._of_values:
            like = self._found.view(torch.int32)
            self._halves = torch.empty_like(like), torch.empty_like(like)

    def read(self, kv_cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys [kv heads, numbers, slots] and values [kv heads, slots, numbers], good until the
        next layer is read."""
        torch.index_select(kv_cache, 0, self._blocks, out=self._found)
        if self._halves is None:
            found = self._found.float()
            _copy(self._keys, found, self._of_keys, 0)
            _copy(self._values, found, self._of_values, self._behind_keys)
        else:
            halves = _unpack(self._found, self._halves)
            _copy_halves(self._keys, halves, self._of_keys, 0)
            _copy_halves(self._values, halves, self._of_values, self._behind_keys)
        return self._keys, self._values


PAIR = (2, 1)
"""The axis along which two neighbours lie side by side."""


def _copy(out: torch.Tensor, source: torch.Tensor, axes: Axis, offset: int) -> None:
    sizes, strides = [size for size, _ in axes], [stride for _, stride in axes]
    out.view(sizes).copy_(source.as_strided(sizes, strides, offset))


def _unpack(
    source: torch.Tensor, halves: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The first and the second of each two neighbours, in float32, written into ``halves``.

    A bfloat16 is the upper half of a float32. Taken apart like this, runs of neighbours are copied
    at once, where each number would be looked up otherwise: that takes 3.7 times as long.
    """
    both, (first, second) = source.view(torch.int32), halves
    torch.bitwise_left_shift(both, 16, out=first)
    torch.bitwise_and(both, -(1 << 16), out=second)
    return first.view(torch.float32), second.view(torch.float32)


def _copy_halves(
    out: torch.Tensor, halves: tuple[torch.Tensor, torch.Tensor], axes: Axis, offset: int
) -> None:
    """`_copy` from what `_unpack` made of the source; ``axes`` have a `PAIR`."""
    pair = axes.index(PAIR)
    rest = [axis for number, axis in enumerate(axes) if number != pair]
    sizes, strides = [size for size, _ in rest], [stride // 2 for _, stride in rest]
    places = out.view([size for size, _ in axes])
    for which, half in enumerate(halves):
        places.select(pair, which).copy_(half.as_strided(sizes, strides, offset // 2))


def plan_of(group: Group, queries: Sequence[Queries], rope: Rope, cache: Cache) -> Plan | None:
    """The plan for ``queries``, which the group's board has written already.

    None where each of them sees its own row as it is: then vLLM's own kernel is right.
    """
    board, size = group.board, cache.block_size
    views = [board.view(asked.row) for asked in queries]
    if plain(queries, views):
        return None
    common = _common(views, whole_history=board.layout != "contiguous")
    rows = dict.fromkeys(span.row for view in views for span in view if span.start >= board.prefix)
    lanes = _Lanes(group, queries[0].row, tuple(rows), size)

    bias = np.full((sum(q.stop - q.start for q in queries), lanes.slots), -np.inf, np.float32)
    shifts = np.zeros(lanes.slots)
    for span in common:
        part = lanes.of(span)
        bias[:, part] = 0
        shifts[part] = span.shift
    # What each query sees at a distance of its own: the unfinished step of a row, one for each.
    apart = dict.fromkeys((span.row, span.start) for view in views for span in view[len(common) :])
    ways = {key: number for number, key in enumerate(apart, 1)}
    deltas = np.zeros((len(bias), 1 + len(ways)))
    positions = []
    first = 0
    for asked, view in zip(queries, views, strict=True):
        own = view[-1]
        mine = slice(first, first + asked.stop - asked.start)
        deltas[mine, 0] = own.shift
        for span in view[len(common) :]:
            deltas[mine, ways[span.row, span.start]] = rotation(span, own)
            bias[mine, lanes.of(span)] = 0
        for number, index in enumerate(range(asked.start, asked.stop - 1)):
            # Of its own row a query sees nothing behind itself.
            bias[
                first + number, lanes.slot(own.row, index + 1) : lanes.slot(own.row, own.stop)
            ] = -np.inf
        positions.append(np.arange(asked.offset, asked.offset + asked.stop - asked.start))
        first = mine.stop
    return Plan(
        rope,
        cache,
        positions=np.concatenate(positions),
        blocks=lanes.blocks,
        bias=bias,
        deltas=deltas,
        stretches=lanes.stretches(common, ways),
        shifts=shifts if shifts.any() else None,
    )


def plain(queries: Sequence[Queries], views: Sequence[Sequence[Span]]) -> bool:
    """Whether each of ``queries`` sees its own row as it is; ``views`` are theirs, in order."""
    return all(
        span.row == asked.row and span.shift == 0
        for asked, view in zip(queries, views, strict=True)
        for span in view
    )


def _common(views: Sequence[Sequence[Span]], *, whole_history: bool) -> tuple[Span, ...]:
    """The spans that stand at the same places in all views: the prefix, and what is finished.

    Their keys can be turned once for all, instead of each query once for each of them. Of a
    contiguous view that is not worth it: its spans are few.
    """
    if not whole_history:
        return tuple(views[0][:1])
    first = views[0][0]
    # Each view begins with the prefix in its own row: the same tokens.
    alike = zip(*((first, *view[1:-1]) for view in views), strict=False)
    return tuple(spans[0] for spans in takewhile(lambda spans: len(set(spans)) == 1, alike))


class _Lanes:
    """Where the tokens of a group stand among the slots: the prefix, then each row's own blocks."""

    def __init__(self, group: Group, leader: str, rows: Sequence[str], size: int) -> None:
        """``leader``: the row in which the prefix is read."""
        self._prefix = group.board.prefix
        first = self._prefix // size  # the first block with a row's own tokens
        self._base = first * size  # the index of the token at which a row's slots begin
        self.blocks = list(group.blocks[leader][: -(-self._prefix // size)])
        self._leading = len(self.blocks) * size
        self._bounds: dict[str, tuple[int, int]] = {}  # slots of each row
        for row in rows:
            start = len(self.blocks) * size
            self.blocks += group.blocks[row][first : -(-group.board.length(row) // size)]
            self._bounds[row] = (start, len(self.blocks) * size)
        self.slots = len(self.blocks) * size

    def slot(self, row: str, index: int) -> int:
        """The slot of token ``index`` of ``row``, which lies behind the prefix."""
        return self._bounds[row][0] + index - self._base

    def of(self, span: Span) -> slice:
        """The slots of ``span``."""
        if span.stop <= self._prefix:
            return slice(span.start, span.stop)
        return slice(self.slot(span.row, span.start), self.slot(span.row, span.stop))

    def stretches(self, common: Sequence[Span], ways: dict[tuple[str, int], int]) -> list[Stretch]:
        """All slots, cut where the way changes. A row's common tokens come before the others."""
        with_common = {span.row for span in common[1:]}
        begins = dict(ways.keys())  # where the unfinished step of a row begins, by row
        found = [Stretch(0, self._leading, 0)]
        for row, (start, stop) in self._bounds.items():
            if row not in begins:
                parts = [Stretch(start, stop, 0)]
            elif row not in with_common:
                parts = [Stretch(start, stop, ways[row, begins[row]])]
            else:
                cut = self.slot(row, begins[row])
                parts = [Stretch(start, cut, 0), Stretch(cut, stop, ways[row, begins[row]])]
            for part in parts:
                if found[-1].way == part.way:
                    found[-1] = Stretch(found[-1].start, part.stop, part.way)
                elif part.start < part.stop:
                    found.append(part)
        return found
