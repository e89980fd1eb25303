"""A worker's account of its groups: which tokens of each step belong to which row.

Drives one `Board` a group from what vLLM runs, step by step, and writes down the transcript.
Pure but for that file: must never know vLLM or a tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from agentpar.runtime.hogwild.plugin.notice import Joined, Notice
from agentpar.runtime.hogwild.spans import Board
from agentpar.runtime.hogwild.transcript import Step, Transcript


@dataclass(frozen=True, slots=True)
class Chunk:
    """What a step computes of one request: tokens ``start <= i`` of its row.

    ``offset``: where its first token stands in the batch. ``blocks``: the row's blocks in the
    cache, in order; vLLM's own list, which grows with the row.
    """

    request: str
    offset: int
    start: int
    tokens: Sequence[int]
    blocks: Sequence[int]

    @property
    def stop(self) -> int:
        return self.start + len(self.tokens)


@dataclass(frozen=True, slots=True)
class Queries:
    """Queries of one row in a step that see the group: indices ``start <= i < stop`` of the row.

    ``offset``: where the first of them stands in the batch.
    """

    row: str
    offset: int
    start: int
    stop: int


@dataclass(slots=True)
class _Record:
    """A `Step` as long as it can still change."""

    wrote: dict[str, int] = field(default_factory=dict)
    joined: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)

    def step(self) -> Step:
        return Step(self.wrote, tuple(self.joined), tuple(self.ended), tuple(self.closed))


class Group:
    """Rows of one prefix, and what they have written."""

    def __init__(self, joined: Joined, *, record: bool = False) -> None:
        """``record``: whether a transcript will be asked for."""
        self.number = joined.number
        self.name = joined.member.group
        self.board = Board(joined.member.prefix, joined.member.layout)
        self.blocks: dict[str, Sequence[int]] = {}
        """The blocks of each row on the board."""
        self._prefix = joined.prefix
        self._rows: dict[str, Joined] = {}  # by request; those that may still write
        self._on_board: set[str] = set()
        self._record = record
        self._records: list[_Record] = []
        self._tokens: dict[str, list[int]] = {}
        self._ran: list[Chunk] = []

    def join(self, joined: Joined) -> None:
        """A request becomes a row. Others see it once its first own token is written."""
        self._rows[joined.request] = joined

    def begin(self, chunks: Iterable[Chunk]) -> tuple[Queries, ...]:
        """Write what this step computes; the queries in it that see the group.

        All rows are written first: what is written in a step is seen in the same step.
        """
        self._ran = []
        for chunk in chunks:
            row = self._rows.get(chunk.request)
            if row is None:
                continue
            if chunk.start >= row.prompt and chunk.tokens[-1] in row.stops:
                # It ended one step ago. vLLM runs it once more where it schedules ahead.
                self.close(chunk.request)
            else:
                self._ran.append(chunk)
        record = _Record()
        queries = []
        for chunk in self._ran:
            start = max(chunk.start, self.board.prefix)
            if (count := chunk.stop - start) <= 0:
                continue
            name = self._rows[chunk.request].member.worker
            if name not in self._on_board:
                self._on_board.add(name)
                self.board.join(name)
                record.joined.append(name)
            self.board.write(name, count)
            self.blocks[name] = chunk.blocks
            record.wrote[name] = count
            queries.append(Queries(name, chunk.offset + start - chunk.start, start, chunk.stop))
            if self._record:
                self._tokens.setdefault(name, []).extend(chunk.tokens[start - chunk.start :])
        if record.wrote:
            if not self._record:
                self._records.clear()  # only the step that may still change is kept
            self._records.append(record)
        return tuple(queries)

    def end(self) -> None:
        """The step that `begin` began is computed: what it ended is ended, then rows are closed."""
        ran, self._ran = self._ran, []
        for chunk in ran:
            row = self._rows[chunk.request]
            if chunk.stop > row.prompt and chunk.tokens[-1] in row.member.steps:
                self.board.end_step(row.member.worker)
                self._records[-1].ended.append(row.member.worker)
        for chunk in ran:
            if chunk.stop >= self._rows[chunk.request].limit:
                self.close(chunk.request)

    def close(self, request: str) -> None:
        """The row of ``request`` writes no more; what it wrote stays in sight."""
        row = self._rows.pop(request, None)
        if row is not None and row.member.worker in self._on_board:
            self.board.close(row.member.worker)
            self._records[-1].closed.append(row.member.worker)

    def transcript(self) -> Transcript:
        """What happened so far."""
        return Transcript(
            self._prefix,
            {name: tuple(ids) for name, ids in self._tokens.items()},
            tuple(record.step() for record in self._records),
            self.board.layout,
        )


class Groups:
    """All groups that a worker has rows of."""

    def __init__(self, folder: Path | None = None) -> None:
        """``folder``: where the transcript of each group is left when it ends, if anywhere."""
        self._folder = folder
        self._groups: dict[int, Group] = {}
        self._of: dict[str, Group] = {}  # by request

    def __bool__(self) -> bool:
        return bool(self._groups)

    def hear(self, notice: Notice | None, finished: Iterable[str]) -> None:
        """Before a step: requests that have finished, then what the scheduler has to say."""
        for request in finished:
            if group := self._of.pop(request, None):
                group.close(request)
        if notice is None:
            return
        for number in notice.ended:
            if group := self._groups.pop(number, None):
                self._leave(group)
        for joined in notice.joined:
            group = self._groups.get(joined.number)
            if group is None:
                group = Group(joined, record=self._folder is not None)
                self._groups[joined.number] = group
            group.join(joined)
            self._of[joined.request] = group

    def has(self, request: str) -> bool:
        """Whether ``request`` is a row of a group."""
        return request in self._of

    def begin(self, chunks: Sequence[Chunk]) -> list[tuple[Group, tuple[Queries, ...]]]:
        """A step of all groups: for each that runs in it, the queries that see the group."""
        running: dict[int, list[Chunk]] = {}
        for chunk in chunks:
            if group := self._of.get(chunk.request):
                running.setdefault(group.number, []).append(chunk)
        begun = [(self._groups[number], own) for number, own in running.items()]
        return [(group, group.begin(own)) for group, own in begun]

    def end(self) -> None:
        """The step that `begin` began is computed."""
        for group in self._groups.values():
            group.end()

    def _leave(self, group: Group) -> None:
        if self._folder is None:
            return
        transcript = group.transcript()
        if transcript.steps:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"{quote(group.name, safe='')}.{group.number}.json"
            part = path.with_suffix(".part")
            part.write_text(transcript.to_json() + "\n", encoding="utf-8")
            part.replace(path)  # whoever finds it finds it whole
