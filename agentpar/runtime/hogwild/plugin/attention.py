"""Attention of a group's queries over the group's rows, as they lie in vLLM's cache: in torch.

A step's `Plan` is made once and serves all layers. In each layer it reads every row once, for all
workers together: the blocks of the prefix and of each row side by side make one axis of *slots*.
What a worker sees of a slot, and at which distance, is a bias and a rotation of its query.

It runs wherever torch does, and takes any number of queries for each row. Knows torch; must never
know vLLM.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from math import gcd, prod
from typing import Literal, NamedTuple

import numpy as np
import torch

from agentpar.runtime.hogwild.plugin.groups import Group, Queries
from agentpar.runtime.hogwild.plugin.layout import Layout, beginning, place
from agentpar.runtime.hogwild.rope import Rope
from agentpar.runtime.hogwild.spans import Span, rotation

MAX_SCORES = 1 << 24
"""Scores that are held at once, in numbers: queries of a long prompt go in pieces."""

RUN = 32
"""Tokens of a block that are read together. A row ends somewhere in a block: with blocks of 128,
rows that have just begun would have mostly slots without a token."""

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


def run_of(cache: Cache) -> int:
    """Tokens that are read together in ``cache``, which divide a block."""
    return gcd(cache.block_size, RUN)


@dataclass(frozen=True, slots=True)
class Turn:
    """A rotation by a number of positions each: ``x * cos + x[partners] * sin``, for all numbers.

    Three ops, whatever the style of the rope, and numbers that do not turn need none of their own.
    """

    cos: torch.Tensor
    sin: torch.Tensor
    partners: torch.Tensor

    @classmethod
    def by(cls, positions: np.ndarray, rope: Rope, numbers: int, device: torch.device) -> Turn:
        """``positions`` [...] gives tables [..., numbers]; float64 until the last moment."""
        angles = positions[..., None] * np.asarray(rope.frequencies)
        first, second = _pairs(rope)
        cos, sin = np.ones((*positions.shape, numbers)), np.zeros((*positions.shape, numbers))
        cos[..., first] = cos[..., second] = np.cos(angles)
        sin[..., second] = np.sin(angles)
        sin[..., first] = -sin[..., second]
        partners = np.arange(numbers)
        partners[first], partners[second] = partners[second].copy(), partners[first].copy()
        return cls(
            torch.from_numpy(cos.astype(np.float32)).to(device),
            torch.from_numpy(sin.astype(np.float32)).to(device),
            torch.from_numpy(partners).to(device),
        )

    def write(self, x: torch.Tensor, axis: int, out: torch.Tensor) -> None:
        """``x`` turned, whose numbers lie along ``axis``, into ``out``; tables broadcast."""
        partner = x.index_select(axis, self.partners)
        torch.mul(x, self.cos, out=out).addcmul_(partner, self.sin)


def _pairs(rope: Rope) -> tuple[slice, slice]:
    if rope.style == "halves":
        return slice(0, rope.dim // 2), slice(rope.dim // 2, rope.dim)
    return slice(0, rope.dim, 2), slice(1, rope.dim, 2)


@dataclass(frozen=True, slots=True)
class Stretch:
    """Slots ``start <= i < stop``, which all are read with queries turned in one way."""

    start: int
    stop: int
    way: int


class Plan:
    """What a group's queries of one step see, for all layers.

    ``positions`` [Q]: where the queries stand in the batch. ``runs``: of all rows, side by side;
    they make the slots. ``bias`` [Q, slots]: 0 where a query sees a slot, else minus infinity.
    ``deltas`` [Q, ways]: positions by which a query is turned, in several ways; ``stretches`` says
    which way is for which slots. ``shifts`` [slots]: positions by which keys are turned, where it
    is simpler to turn these.

    A step of one token a row in each of many layers takes as long as its ops are many. So what one
    layer needs and the next needs again is made with the first: indices, tables, memory, views.
    """

    def __init__(
        self,
        rope: Rope,
        cache: Cache,
        *,
        positions: np.ndarray,
        runs: Sequence[int],
        bias: np.ndarray,
        deltas: np.ndarray,
        stretches: Sequence[Stretch],
        shifts: np.ndarray | None,
    ) -> None:
        self._rope = rope
        self._cache = cache
        self._positions = positions
        self._runs = np.asarray(runs)
        self._bias = torch.from_numpy(bias).to(cache.device)
        self._stretches = tuple(stretches)
        self._deltas = deltas
        self._shifts = shifts
        self._layers: _Layers | None = None

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
        if self._layers is None or self._layers.scale != scale:
            self._layers = self._made(query.shape, kv_cache, scale)
        self._layers.answer(query, kv_cache, output)

    def _made(self, shape: torch.Size, kv_cache: torch.Tensor, scale: float) -> _Layers:
        _, heads, numbers = shape
        device, kv = self._cache.device, kv_cache.shape[1]
        reader = _Reader(self._cache, kv_cache, self._runs, numbers)
        keys, turn = reader.keys, None
        if self._shifts is not None:
            turn = Turn.by(self._shifts, self._rope, numbers, device)
            turn = Turn(turn.cos.T.contiguous(), turn.sin.T.contiguous(), turn.partners)
            keys = torch.empty_like(keys)
        # For queries [kv heads, Q, heads of one, numbers]: tables [ways, 1, Q, 1, numbers].
        ways = Turn.by(self._deltas.T[:, None, :, None], self._rope, numbers, device)
        ways = Turn(ways.cos * scale, ways.sin * scale, ways.partners)

        def made(part: slice) -> _Piece:
            where = self._positions[part]
            return _Piece(
                _where(where, device),
                torch.empty(kv, len(where), heads // kv, numbers, device=device),
                Turn(ways.cos[:, :, part], ways.sin[:, :, part], ways.partners),
                self._stretches,
                keys,
                reader.values,
                self._bias[part, None],
            )

        most = max(1, MAX_SCORES // (heads * self.slots))
        if len(self._positions) <= most:
            return _Layers(scale, reader, turn, keys, (made(slice(None)),).__iter__)
        # Not kept: all of them would hold the scores of a whole prompt.
        parts = [slice(start, start + most) for start in range(0, len(self._positions), most)]
        return _Layers(scale, reader, turn, keys, lambda: map(made, parts))


@dataclass(frozen=True, slots=True)
class _Layers:
    """A plan in the shapes of a layer. ``turn``: from the reader's keys to ``keys``, if need be.
    ``pieces``: of all its queries, which share ``scale``."""

    scale: float
    reader: _Reader
    turn: Turn | None
    keys: torch.Tensor
    pieces: Callable[[], Iterator[_Piece]]

    def answer(self, query: torch.Tensor, kv_cache: torch.Tensor, output: torch.Tensor) -> None:
        self.reader.read(kv_cache)
        if self.turn is not None:
            self.turn.write(self.reader.keys, 1, self.keys)
        for piece in self.pieces():
            piece.answer(query, output)


class _Piece:
    """Queries that are answered at once, and room for what is between them and their answers.

    ``where`` they are in a batch. ``asked`` [kv heads, queries, heads of one, numbers]: room for
    them. ``ways``: the tables that turn these, the scale of the scores in them. ``keys`` [kv heads,
    numbers, slots] and ``values`` [kv heads, slots, numbers]: where those of a layer will be.
    """

    def __init__(
        self,
        where: slice | torch.Tensor,
        asked: torch.Tensor,
        ways: Turn,
        stretches: Sequence[Stretch],
        keys: torch.Tensor,
        values: torch.Tensor,
        bias: torch.Tensor,
    ) -> None:
        kv, count, shared, numbers = asked.shape
        self._where, self._asked, self._turn, self._bias = where, asked, ways, bias
        self._ways = asked.new_empty(len(ways.cos), *asked.shape)
        queries = self._ways.view(-1, kv, count * shared, numbers)
        # Views of the same memory in all layers: making them takes as long as small products do.
        self._products = [
            (queries[s.way], keys[:, :, s.start : s.stop], keys.new_empty(kv, count * shared, n))
            for s in stretches
            if (n := s.stop - s.start)
        ]
        self._parts = [part for _, _, part in self._products]
        self._scores = keys.new_empty(kv, count * shared, keys.shape[2])
        self._biased = self._scores.view(kv, count, shared, -1)
        self._values = values

    def answer(self, query: torch.Tensor, output: torch.Tensor) -> None:
        kv, count, shared, numbers = self._asked.shape
        by_heads = count, kv, shared, numbers
        self._asked.copy_(query[self._where].view(by_heads).transpose(0, 1))
        self._turn.write(self._asked, -1, self._ways)
        for asked, keys, part in self._products:
            torch.bmm(asked, keys, out=part)
        torch.cat(self._parts, dim=2, out=self._scores)
        self._biased.add_(self._bias)
        found = torch.bmm(torch.softmax(self._scores, dim=2), self._values)
        found = found.view(kv, count, shared, numbers).transpose(0, 1)
        if isinstance(self._where, slice):  # then a view: written at once
            output[self._where].view(by_heads).copy_(found)
        else:
            output[self._where] = found.flatten(1, 2).to(output.dtype)


def _where(positions: np.ndarray, device: torch.device) -> slice | torch.Tensor:
    """``positions`` as an index, a slice if that says it."""
    first, last = int(positions[0]), int(positions[-1])
    if last - first == len(positions) - 1 and (np.diff(positions) == 1).all():
        return slice(first, last + 1)
    return torch.from_numpy(positions).to(device)


class _Reader:
    """Reads the runs of a group in one layer after the other, into the same memory.

    ``keys`` [kv heads, numbers, slots] and ``values`` [kv heads, slots, numbers] of the layer that
    was read last, in float32.
    """

    def __init__(
        self, cache: Cache, kv_cache: torch.Tensor, runs: np.ndarray, numbers: int
    ) -> None:
        """``kv_cache``: one layer's; the others are like it."""
        run = run_of(cache)
        parts = cache.block_size // run
        self._blocks: torch.Tensor | None = None
        if not kv_cache.is_contiguous():  # then its blocks are copied, and read from the copy
            blocks, runs_of = np.unique(runs // parts, return_inverse=True)
            self._blocks = torch.from_numpy(blocks).to(cache.device)
            runs = runs_of * parts + runs % parts
        self._keys = _Half(cache.keys, 0, kv_cache, runs, run, numbers, tokens_last=True)
        self._values = _Half(
            cache.values, cache.behind, kv_cache, runs, run, numbers, tokens_last=False
        )

        self.keys, self.values = self._keys.floats, self._values.floats

    def read(self, kv_cache: torch.Tensor) -> None:
        """Slots without a token hold zeros or another row's numbers (see `RunningStep`): whatever
        it is, it is finite, and the bias makes it count for nothing."""
        if self._blocks is not None:
            kv_cache = kv_cache.index_select(0, self._blocks)
        self._keys.read(kv_cache)
        self._values.read(kv_cache)


class _Half:
    """Reads the keys of runs, or their values.

    What lies side by side in a run is a unit: one `index_select` takes all units of a layer, in the
    order in which they are wanted, and one copy makes ``floats`` of them.
    """

    def __init__(
        self,
        layout: Layout,
        offset: int,
        kv_cache: torch.Tensor,
        runs: np.ndarray,
        run: int,
        numbers: int,
        *,
        tokens_last: bool,
    ) -> None:
        """``offset``: where the numbers of a head begin in a block."""
        _, kv, size, double = kv_cache.shape
        head, parts = size * double, size // run
        run_begins = (
            runs // parts * kv * head
            + np.array([place(layout.tokens, part * run) for part in range(parts)])[runs % parts]
        )
        tokens = [_Axis("runs", len(runs), 0)]
        tokens += [_Axis("token", *axis) for axis in beginning(layout.tokens, run)]
        across = [_Axis("number", *axis) for axis in layout.numbers]
        heads = _Axis("heads", kv, head)
        wanted = [heads, *across, *tokens] if tokens_last else [heads, *tokens, *across]
        within = _unit([axis for axis in wanted if axis.name in {"token", "number"}])
        unit = prod(axis.size for axis in within)
        outside = [axis for axis in wanted if axis not in within]
        begins = np.full((1,) * len(outside), offset)
        for number, axis in enumerate(outside):
            along = run_begins if axis.name == "runs" else np.arange(axis.size) * axis.stride
            begins = begins + along.reshape(-1, *(1,) * (len(outside) - 1 - number))
        self._units = torch.from_numpy(begins.reshape(-1) // unit).to(kv_cache.device)
        self._found = kv_cache.new_empty((len(self._units), unit))
        floats = torch.empty([axis.size for axis in wanted], device=kv_cache.device)
        slots = len(runs) * run
        self.floats = floats.view((kv, numbers, slots) if tokens_last else (kv, slots, numbers))
        # The same numbers twice, by the axes in which they are found.
        stored = outside + within
        self._source = self._found.view([axis.size for axis in stored])
        self._target = floats.permute([wanted.index(axis) for axis in stored])
        self._pairs = kv_cache.dtype == torch.bfloat16 and stored[-1][1:] == PAIR
        if self._pairs:
            self._source = self._source.view(torch.int32).squeeze(-1)
            self._target = self._target.view(torch.int32)

    def read(self, kv_cache: torch.Tensor) -> None:
        """Into ``floats``, in the order that is wanted."""
        units = kv_cache.view(-1, self._found.shape[1])
        torch.index_select(units, 0, self._units, out=self._found)
        if self._pairs:
            # A bfloat16 is the upper half of a float32. Taken apart like this, runs of neighbours
            # are written at once, where each number would be looked up otherwise.
            torch.bitwise_left_shift(self._source, 16, out=self._target[..., 0])
            torch.bitwise_and(self._source, -(1 << 16), out=self._target[..., 1])
        else:
            self._target.copy_(self._source)


class _Axis(NamedTuple):
    """An axis of what is read, and how far its neighbours lie apart in the cache."""

    name: Literal["heads", "number", "runs", "token"]
    size: int
    stride: int


def _unit(axes: Sequence[_Axis]) -> list[_Axis]:
    """Those of ``axes`` whose numbers lie one after the other, the slowest first."""
    found: list[_Axis] = []
    for axis in sorted(axes, key=lambda axis: axis.stride):
        if axis.stride == prod(inner.size for inner in found):
            found.insert(0, axis)
    return found


PAIR = (2, 1)
"""The axis along which two neighbours lie side by side."""


def plan_of(group: Group, queries: Sequence[Queries], rope: Rope, cache: Cache) -> Plan | None:
    """The plan for ``queries``, which the group's board has written already.

    None where each of them sees its own row as it is: then vLLM's own kernel is right.
    """
    board = group.board
    views = [board.view(asked.row) for asked in queries]
    if plain(queries, views):
        return None
    common = _common(views, whole_history=board.layout != "contiguous")
    rows = dict.fromkeys(span.row for view in views for span in view if span.start >= board.prefix)
    lanes = _Lanes(group, queries[0].row, tuple(rows), cache)

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
        runs=lanes.runs,
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
    """Where the tokens of a group stand among the slots: the prefix, then each row's own runs."""

    def __init__(self, group: Group, leader: str, rows: Sequence[str], cache: Cache) -> None:
        """``leader``: the row in which the prefix is read."""
        run = run_of(cache)
        parts = cache.block_size // run
        self._prefix = group.board.prefix
        first = self._prefix // run  # the first run with a row's own tokens
        self._base = first * run  # the index of the token at which a row's slots begin
        self.runs: list[int] = []

        def read(row: str, start: int, stop: int) -> None:
            blocks = group.blocks[row]
            self.runs += [blocks[n // parts] * parts + n % parts for n in range(start, stop)]

        read(leader, 0, -(-self._prefix // run))
        self._leading = len(self.runs) * run
        self._bounds: dict[str, tuple[int, int]] = {}  # slots of each row
        for row in rows:
            start = len(self.runs) * run
            read(row, first, -(-group.board.length(row) // run))
            self._bounds[row] = (start, len(self.runs) * run)
        self.slots = len(self.runs) * run

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
