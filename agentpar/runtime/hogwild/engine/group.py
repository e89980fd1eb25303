"""A group of workers over one cache: who runs in a step, where its keys go, what each one sees.

A row's table begins with the whole blocks of the prefix, which all rows hold together; the block
in which the prefix ends is each row's own, and used from there on. The prefix itself is read by its
own table. `Board` says what a query sees; here that becomes pieces of the cache. Knows nothing of
layers or heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Literal, Self

import torch

from agentpar.errors import CacheFull, UsageError
from agentpar.runtime.hogwild.engine.attention import Piece, wide
from agentpar.runtime.hogwild.engine.cache import Cache
from agentpar.runtime.hogwild.engine.model import Batch, Decoder
from agentpar.runtime.hogwild.engine.picking import Picker
from agentpar.runtime.hogwild.sampling import Sampling
from agentpar.runtime.hogwild.spans import Board, rotation
from agentpar.runtime.hogwild.transcript import Step, Transcript
from agentpar.workers import Layout

Finish = Literal["stop", "length", "read", "left", "cancelled"]
"""Why a row writes no more: a token that ends it; its own, the cache's or the context's limit; an
injected text has been read; it left; the group ended before it did."""


@dataclass(slots=True)
class Member:
    """One row of a group: a worker, or (``sampling`` None) a text that was injected.

    ``head`` is what it was told, ``output`` what it wrote, the token that ended it included.
    ``computed`` counts those of both whose keys and values lie in the cache.
    """

    name: str
    head: tuple[int, ...]
    sampling: Sampling | None
    output: list[int] = field(default_factory=list)
    computed: int = 0
    finish: Finish | None = None

    @property
    def own(self) -> tuple[int, ...]:
        """Head and output."""
        return (*self.head, *self.output)


@dataclass(slots=True)
class _Row:
    """A member as the group keeps it: with the blocks of its row, those of the prefix first."""

    member: Member
    blocks: list[int]
    picker: Picker | None


class Group:
    """Rows that all begin with ``prefix``; `Engine.group` makes one.

    Between steps rows `join`, `leave` and are injected (`inject`). A `step` computes what each
    running row has to compute: up to ``chunk`` tokens of its head, or the token it picked last.
    What is written in a step is seen by all rows in that same step. Rows that have ended stay in
    sight, and in the cache, until the group is closed.
    """

    def __init__(
        self,
        decoder: Decoder,
        cache: Cache,
        prefix: tuple[int, ...],
        *,
        layout: Layout,
        separators: frozenset[int],
        ends: frozenset[int],
        chunk: int,
        encode: Callable[[str | Sequence[int]], tuple[int, ...]],
    ) -> None:
        self.prefix = prefix
        #: The scores [vocabulary] from which each worker's token of the last step was picked.
        self.logits: dict[str, torch.Tensor] = {}
        self._decoder = decoder
        self._cache = cache
        self._separators = separators
        self._ends = ends
        self._chunk = chunk
        self._encode = encode
        self._board = Board(len(prefix), layout)
        self._rows: dict[str, _Row] = {}
        self._steps: list[Step] = []
        self._joined: list[str] = []  # since the last recorded step
        self._closed_unseen: list[str] = []  # of those, the ones that have ended already
        self._read = 0  # tokens of the prefix that are computed
        self._after_prefix: torch.Tensor | None = None  # the scores behind its last token
        self._closed = False
        if len(prefix) >= decoder.context:
            raise UsageError(
                f"a prefix of {len(prefix)} tokens fills the model's context of {decoder.context}"
            )
        self._blocks = self._take(cache.blocks_for(len(prefix)), "the prefix of a group")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # Who is in it

    @property
    def layout(self) -> Layout:
        """In which order a view is put together."""
        return self._board.layout

    @property
    def members(self) -> Mapping[str, Member]:
        """All rows by name, in the order they joined, those that have ended included."""
        return {name: row.member for name, row in self._rows.items()}

    @property
    def running(self) -> bool:
        """Whether any row has something to compute yet."""
        return any(row.member.finish is None for row in self._rows.values())

    def join(
        self, name: str, head: str | Sequence[int] = (), sampling: Sampling | None = None
    ) -> Member:
        """Add a worker, which is told ``head`` (text or token ids) and writes from there on.

        It sees all that is there from its first token on, and is seen by all. Raises `UsageError`
        for a name that is taken or a head that can never fit, `CacheFull` for one that does not
        fit now; the group stays as it was.
        """
        return self._add(name, head, sampling or Sampling())

    def inject(self, name: str, text: str | Sequence[int]) -> Member:
        """Add a row that only says ``text``, such as a tool's result. Raises as `join` does."""
        return self._add(name, text, None)

    def leave(self, name: str) -> None:
        """``name`` writes no more; what it wrote stays in sight. Of one that has ended: nothing."""
        self._require_open()
        if name not in self._rows:
            there = ", ".join(map(repr, self._rows)) or "none"
            raise UsageError(f"no {name!r} in this group; it has {there}")
        member = self._rows[name].member
        if member.finish is None:
            self._end(member, "left")

    def close(self) -> None:
        """End the group: whoever still runs is cancelled, and all blocks are given back."""
        if self._closed:
            return
        self._closed = True
        for row in self._rows.values():
            row.member.finish = row.member.finish or "cancelled"
            self._cache.pool.release(row.blocks)
            row.blocks = []
        self._cache.pool.release(self._blocks)
        self._blocks = []

    @property
    def blocks(self) -> tuple[tuple[int, ...], ...]:
        """The blocks of the prefix, and of each row in the order they joined."""
        return (tuple(self._blocks), *(tuple(row.blocks) for row in self._rows.values()))

    def transcript(self) -> Transcript:
        """What has been computed so far, and in which steps; also of a group that is closed."""
        computed = {
            name: member.own[: member.computed]
            for name, member in self.members.items()
            if name not in self._joined
        }
        return Transcript(self.prefix, computed, tuple(self._steps), self.layout)

    def _add(self, name: str, text: str | Sequence[int], sampling: Sampling | None) -> Member:
        self._require_open()
        if name in self._rows:
            raise UsageError(f"{name!r} is in the group already: give each row its own name")
        head = self._encode(text)
        if not head and not self.prefix:
            raise UsageError(f"{name!r} has nothing to begin with: prefix and head are empty")
        if len(self.prefix) + len(head) >= self._decoder.context:
            raise UsageError(
                f"the row of {name!r} would begin with {len(self.prefix) + len(head)} tokens, "
                f"which fills the model's context of {self._decoder.context}"
            )
        shared = self._blocks[: len(self.prefix) // self._cache.block_size]
        blocks = self._cache.blocks_for(len(self.prefix) + len(head))
        own = self._take(blocks - len(shared), f"the row of {name!r}")
        self._cache.pool.retain(shared)
        member = Member(name, head, sampling)
        self._rows[name] = _Row(member, [*shared, *own], Picker(sampling) if sampling else None)
        self._board.join(name)
        self._joined.append(name)
        if not head and not sampling:
            self._end(member, "read")
        return member

    def _take(self, count: int, whose: str) -> list[int]:
        pool = self._cache.pool
        taken = pool.take(count)
        if taken is not None:
            return taken
        size = self._cache.block_size
        if count > pool.count:
            raise UsageError(
                f"{whose} needs {count} blocks of {size} tokens, and the cache has "
                f"{pool.count}: shorten it, or give the engine more (blocks=...)"
            )
        raise CacheFull(
            f"{whose} needs {count} blocks of {size} tokens, and {pool.free} of {pool.count} "
            "are free: wait until another group ends, or give the engine more (blocks=...)"
        )

    def _require_open(self) -> None:
        if self._closed:
            raise UsageError("this group is closed: begin a new one")

    # What happens in a step

    def step(self) -> dict[str, int]:
        """Compute one step; the token that each worker picked in it, by name.

        Empty while prompts are read, and when nothing runs. If it raises, the group is closed.
        """
        self._require_open()
        try:
            with torch.no_grad():
                if self._read < len(self.prefix):
                    self._read_prefix()
                    return {}
                return self._step()
        except BaseException:
            self.close()
            raise

    def _read_prefix(self) -> None:
        start, stop = self._read, min(self._read + self._chunk, len(self.prefix))
        table = self._cache.table(self._blocks)
        positions = torch.arange(start, stop, device=self._decoder.device)
        sight = Piece(
            table,
            0,
            stop,
            self._cache.slots(table, 0, stop),
            queries=positions - start,
            limits=positions + 1,
        )
        batch = Batch(
            self._ids(self.prefix[start:stop]),
            positions,
            self._cache.slots(table, start, stop),
            (sight,),
        )
        hidden = self._decoder.hidden(batch, self._cache)
        self._read = stop
        if stop == len(self.prefix):
            self._after_prefix = self._decoder.logits(hidden[-1:])[0]

    def _step(self) -> dict[str, int]:
        wrote = self._write()
        if not wrote:
            return self._pick({})
        scores = self._compute(wrote)
        for name, count in wrote.items():
            self._rows[name].member.computed += count
        ended = tuple(name for name in wrote if self._has_ended_a_step(name))
        for name in ended:
            self._board.end_step(name)
        self._steps.append(Step(wrote, tuple(self._joined), ended, tuple(self._closed_unseen)))
        self._joined, self._closed_unseen = [], []
        return self._pick(scores)

    def _has_ended_a_step(self, name: str) -> bool:
        """Whether the token of ``name`` that was computed last is a separator it wrote itself."""
        member = self._rows[name].member
        return member.computed > len(member.head) and member.own[-1] in self._separators

    def _write(self) -> dict[str, int]:
        """Let each running row have the blocks for what it computes now; how much that is."""
        due = {
            name: min(self._chunk, len(member.own) - member.computed)
            for name, member in self.members.items()
            if member.finish is None
        }
        wrote: dict[str, int] = {}
        for name, count in due.items():
            row = self._rows[name]
            length = self._board.length(name) + count
            missing = max(0, self._cache.blocks_for(length) - len(row.blocks))
            own = self._board.view(name)[-1]
            # The others may write before it, and its place moves by as much.
            place = own.at + own.stop - own.start + sum(due.values())
            if place > self._decoder.context or (more := self._cache.pool.take(missing)) is None:
                self._end(row.member, "length")
                continue
            row.blocks += more
            if count:
                wrote[name] = count
        for name, count in wrote.items():
            self._board.write(name, count)
        return wrote

    def _compute(self, wrote: Mapping[str, int]) -> dict[str, torch.Tensor]:
        """Compute what is written on the board already; the scores behind each row's last token."""
        hidden = self._decoder.hidden(self._batch(wrote), self._cache)
        lasts, end = [], 0
        for count in wrote.values():
            end += count
            lasts.append(end - 1)
        return dict(zip(wrote, self._decoder.logits(hidden[lasts]), strict=True))

    def _batch(self, wrote: Mapping[str, int]) -> Batch:
        """The tokens that rows compute in this step, one row after the other, and their pieces."""
        device, cache = self._decoder.device, self._cache
        tables = {name: cache.table(row.blocks) for name, row in self._rows.items()}
        prefix = cache.table(self._blocks)
        tokens: list[int] = []
        positions, slots = [], []
        looks: dict[tuple[str | None, int, int], list[_Look]] = {}
        for name, count in wrote.items():
            member = self._rows[name].member
            stop = self._board.length(name)
            first = len(tokens)
            tokens += member.own[member.computed : member.computed + count]
            positions.append(torch.arange(stop - count, stop, device=device))
            slots.append(cache.slots(tables[name], stop - count, stop))
            view = self._board.view(name)
            own = view[-1]
            for span in view:
                # All rows have the prefix, and look at one copy of it.
                row = None if span.start < len(self.prefix) else span.row
                looks.setdefault((row, span.start, span.stop), []).append(
                    _Look(first, count, rotation(span, own), own.stop if span is own else None)
                )
        return Batch(
            self._ids(tokens),
            torch.cat(positions),
            torch.cat(slots),
            [
                self._piece(prefix if row is None else tables[row], start, stop, who)
                for (row, start, stop), who in looks.items()
            ],
        )

    def _piece(self, table: torch.Tensor, start: int, stop: int, looks: Sequence[_Look]) -> Piece:
        """The tokens ``start <= i < stop`` of a row, and who looks at them in this step."""
        queries, turns, limits = list[int](), list[int](), list[int]()
        for look in looks:
            queries += range(look.first, look.first + look.count)
            turns += [look.rotation] * look.count
            limits += (
                [stop] * look.count
                if look.own_stop is None
                else range(look.own_stop - look.count + 1, look.own_stop + 1)
            )
        dtype = wide(self._decoder.dtype)
        return Piece(
            table,
            start,
            stop,
            self._cache.slots(table, start, stop),
            queries=self._ids(queries),
            turn=self._decoder.rotary.turn(self._ids(turns), dtype) if any(turns) else None,
            limits=self._ids(limits) if any(limit < stop for limit in limits) else None,
        )

    def _pick(self, scores: Mapping[str, torch.Tensor]) -> dict[str, int]:
        """Let each worker whose tokens are all computed pick the next, and end who is done."""
        self.logits = {}
        for row in self._rows.values():
            member, sampling = row.member, row.member.sampling
            if member.finish is not None or member.computed < len(member.own):
                continue
            if row.picker is None or sampling is None:
                self._end(member, "read")
                continue
            # A worker that was told nothing begins with what follows the prefix.
            found = scores.get(member.name) if member.own else self._after_prefix
            assert found is not None
            token = row.picker.pick(found)
            self.logits[member.name] = found
            member.output.append(token)
            if token in sampling.stop or (token in self._ends and not sampling.ignore_eos):
                self._end(member, "stop")
            elif len(member.output) == sampling.max_tokens:
                self._end(member, "length")
        return {name: self._rows[name].member.output[-1] for name in self.logits}

    def _end(self, member: Member, finish: Finish) -> None:
        """``member`` writes no more, from the last recorded step on."""
        member.finish = finish
        self._board.close(member.name)
        if member.name in self._joined:
            self._closed_unseen.append(member.name)
        else:
            last = self._steps[-1]
            self._steps[-1] = replace(last, closed=(*last.closed, member.name))

    def _ids(self, numbers: Sequence[int]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=self._decoder.device)


@dataclass(frozen=True, slots=True)
class _Look:
    """``count`` queries of one row from ``first`` on in the batch, rotated by ``rotation``.

    ``own_stop``: they look at their own row, which ends there, each up to itself.
    """

    first: int
    count: int
    rotation: int
    own_stop: int | None
