"""The journal as the event loop sees it: runs that are begun, carried on and taken over.

Writing never waits; `RunJournal.flush` does. It knows events and their lines; it must never
know how they are stored, or what a run does with them.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, TypeVar

from agentpar.errors import JournalError, LeaseLost, UsageError
from agentpar.events import Event
from agentpar.executor.journal.calls import PastCalls
from agentpar.executor.journal.host import Owner
from agentpar.executor.journal.store import ENDED, EventRow, RunRow, Status, Store
from agentpar.executor.journal.writer import Held, Writer
from agentpar.executor.record import decode, encode
from agentpar.executor.setup import Setup
from agentpar.ids import question_run

T = TypeVar("T")

PAUSE = 0.25
"""Between two looks at a run that is waited for, seconds."""

_ENCODE = json.JSONEncoder(separators=(",", ":")).encode  # made once: it costs more than its use


@dataclass(frozen=True, slots=True)
class JournaledRun:
    """A run as the journal has it.

    ``held``: a process that may still live works on it. ``spec`` is what was given to
    `Journal` when it began, ``setup`` what its agent was then; None where a journal of an
    earlier format kept none.
    """

    id: str
    question: str
    agent: str
    status: Status
    held: bool
    spec: Mapping[str, Any]
    setup: Setup | None

    @property
    def ended(self) -> bool:
        """Whether the run has ended, with an answer or without."""
        return self.status in ENDED

    @property
    def whole(self) -> str | None:
        """The run of all teams on its question, where it is one team's; else None."""
        team = 0 if self.setup is None else self.setup.team
        return question_run(self.id, team) if team else None


@dataclass(frozen=True, slots=True)
class Pruned:
    """What `Journal.prune` has removed: ids of runs, results past their time, files."""

    runs: tuple[str, ...]
    cached: int
    files: int


class RunJournal:
    """The journal of one run: its `history`, and the place for what comes.

    ``on_error`` may be set to a function that is told, inside the event loop, that nothing
    more can be written.
    """

    def __init__(
        self,
        writer: Writer,
        held: Held | None,
        rows: Sequence[EventRow],
        *,
        setup: Setup | None = None,
        known: bool = True,
    ) -> None:
        self._writer = writer
        self._held = held
        self._loop = asyncio.get_running_loop()
        self.setup = setup
        """What the agent was when the run began; None where that was not kept."""
        self.known = known
        """Whether the run had begun before, if only to the point where it has an id."""
        self.on_error: Callable[[JournalError], None] | None = None
        events = [(row, _event_of(row.line)) for row in rows]
        self.history: tuple[Event, ...] = tuple(event for row, event in events if row.seq >= 0)
        """Every event so far, in order."""
        self.calls = PastCalls.of((row.key, event) for row, event in events)
        """What is known of calls that were made already."""
        self._next = len(self.history)

    @property
    def held(self) -> bool:
        """Whether events may be appended; not so for a run that has ended."""
        return self._held is not None

    def append(self, event: Event, key: str = "") -> None:
        """Write ``event`` soon; ``key`` is that of the call which it begins.

        Raises what keeps it from being written: `JournalError` once the journal has failed,
        `UsageError` for a value that JSON has no word for.
        """
        held = self._holding()
        if held.error is not None:
            raise held.error
        row = EventRow(self._next, key, _line_of(event))
        self._next += 1
        self._writer.write(held, row)

    async def flush(self) -> None:
        """Wait until all that was appended is on disk. Raises `JournalError` where it is not."""
        await _result(self._writer.flush(self._holding()))

    async def close(self, status: Status) -> None:
        """Wait until the run is on disk, with how it stands, and hold it no more."""
        held = self._holding()
        self._writer.hold(held, False)
        # Both are asked for before the first wait, so that a cancelled one loses neither.
        flushed = self._writer.flush(held)
        released = self._writer.call(
            lambda store: held.error is None and store.release(held.run, held.epoch, status)
        )
        try:
            await _result(flushed)
            if not await _result(released):
                raise LeaseLost(f"run {held.run!r} was taken over by another process at its end")
        finally:
            held.owner.end()

    async def leave(self) -> None:
        """The run broke off: hold it no more, so that it can be carried on at once.

        Raises nothing, as there is an error under way already.
        """
        with contextlib.suppress(JournalError):
            await self.close("interrupted")

    def _holding(self) -> Held:
        if self._held is None:
            raise UsageError("this run has ended: its journal is only read")
        return self._held

    def _failed(self, error: JournalError) -> None:
        """In the writer's thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended, and so has the run
            self._loop.call_soon_threadsafe(self._tell, error)

    def _tell(self, error: JournalError) -> None:
        if self.on_error is not None:
            self.on_error(error)


class Journal:
    """All runs that are kept in one store.

    ``lease`` (seconds): a process that is not heard of for so long has lost its runs.
    ``patience`` (seconds): how long a database that is away is waited for. ``keep`` (seconds):
    runs that ended longer ago are removed whenever the journal is started; None keeps all.
    ``spec`` is kept with every run that begins here, for whoever carries it on.

    Use as ``async with``, or call `start` and `stop`; it may be started again.
    """

    def __init__(
        self,
        store: Store,
        *,
        lease: float = 30.0,
        patience: float = 30.0,
        keep: float | None = None,
        spec: Mapping[str, Any] | None = None,
    ) -> None:
        if lease <= 0 or patience < 0:
            raise UsageError(f"lease and patience are seconds, got {lease!r} and {patience!r}")
        if keep is not None:
            _check_age("keep", keep)
        self._store = store
        self._lease = lease
        self._patience = patience
        self._keep = keep
        self._spec = _text_of(dict(spec or {}))
        self._writer: Writer | None = None

    @property
    def place(self) -> str:
        """Which journal this is, in words."""
        return self._store.place

    async def start(self) -> None:
        """Open the store. Raises `UsageError` or `JournalError` where that cannot be."""
        writer = Writer(self._store, lease=self._lease, patience=self._patience)
        try:
            await _result(writer.call(lambda store: store.open()))
        except BaseException:
            writer.stop()
            raise
        self._writer = writer
        if self._keep is not None:
            try:
                await self.prune(self._keep)
            except BaseException:
                await self.stop()
                raise

    async def stop(self) -> None:
        """Write what is left, and close the store."""
        writer, self._writer = self._writer, None
        if writer is not None:
            await _result(writer.stop())

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    # Runs

    async def runs(self) -> list[JournaledRun]:
        """All runs, oldest first."""
        return [_run_of(row) for row in await self._ask(lambda store: store.runs())]

    async def find(self, run_id: str) -> JournaledRun:
        """The run; `UsageError` with the nearest ones where there is none."""
        row = await self._ask(lambda store: store.find(run_id))
        if row is not None:
            return _run_of(row)
        ids = [run.id for run in await self.runs()]
        near = difflib.get_close_matches(run_id, ids, n=3) or ids[-3:]
        known = f"; there is {', '.join(map(repr, near))}" if near else ", which holds none"
        raise UsageError(f"there is no run {run_id!r} in the journal {self.place}{known}")

    async def prune(self, older_than: float, *, dry_run: bool = False) -> Pruned:
        """Remove the runs that ended more than ``older_than`` seconds ago, results that may
        serve no more, and the files of both.

        A run that has not ended, however old, stays. With ``dry_run`` nothing is removed, and
        files are not counted. Each run goes in a transaction of its own: whoever works meanwhile
        waits for one at most.
        """
        _check_age("older_than", older_than)
        old = await self._ask(lambda store: store.old(older_than))
        if dry_run:
            return Pruned(tuple(old), await self._ask(lambda store: store.stale()), 0)
        gone = [run for run in old if await self._ask(partial(_remove, run=run, age=older_than))]
        stale = await self._ask(lambda store: store.drop_stale())
        files = await self._ask(lambda store: store.sweep()) if gone or stale else 0
        return Pruned(tuple(gone), stale, files)

    async def begin(
        self,
        run_id: str,
        question: str,
        *,
        agent: str = "agent",
        setup: Setup | None = None,
        history: Sequence[Event] = (),
        wait: bool = False,
    ) -> RunJournal:
        """Hold the run, new or carried on; a new one is kept with ``setup``.

        ``history`` is what the caller has of it. The journal may have more, which then holds;
        where the two part ways the caller's holds, and what the journal had becomes a branch
        that was left. A run that has ended is only read. One that is at work elsewhere is waited
        for if ``wait``, until it has ended there or its holder is gone.

        Raises `UsageError` where the run is another question's, or is at work elsewhere.
        """
        owner = Owner.new()
        try:
            run = None
            while run is None:  # the run of that id may have been pruned on the way
                run = await self._begun(run_id, question, agent, setup, history, owner, wait)
        except BaseException:
            owner.end()
            raise
        if not run.held:
            owner.end()
        return run

    async def _begun(
        self,
        run_id: str,
        question: str,
        agent: str,
        setup: Setup | None,
        history: Sequence[Event],
        owner: Owner,
        wait: bool,
    ) -> RunJournal | None:
        """None where to look again: the run was there, and is there no more, or is waited for."""
        kept = "" if setup is None else _text_of(setup.as_dict())
        words = (run_id, _text_of(question), _text_of(agent), self._spec, kept, str(owner))
        epoch = await self._ask(lambda store: store.begin(*words, self._lease))
        if epoch is not None:
            return await self._take(run_id, owner, epoch, setup, history, known=False)
        row = await self._ask(lambda store: store.find(run_id))
        if row is None:
            return None
        found = _run_of(row)
        if found.question != json.loads(_text_of(question)):
            raise UsageError(
                f"run {run_id!r} asks {found.question!r}, not {question!r}: another question "
                "needs another run_id"
            )
        rows = await self._ask(lambda store: store.rows(run_id))
        if not rows and await self._ask(lambda store: store.find(run_id)) is None:
            return None
        if found.ended and _agree(history, rows):
            return RunJournal(self._writing, None, rows, setup=found.setup)
        epoch = await self._ask(lambda store: store.claim(run_id, str(owner), self._lease))
        if epoch is None:
            if await self._ask(lambda store: store.find(run_id)) is None:
                return None
            if wait:
                await asyncio.sleep(PAUSE)
                return None
            raise UsageError(
                f"run {run_id!r} is at work already, in {await self._holder(run_id)}: wait for it"
            )
        return await self._take(run_id, owner, epoch, found.setup, history)

    async def claim_orphan(self, agent: str = "agent") -> tuple[JournaledRun, RunJournal] | None:
        """Take over the oldest run of ``agent`` whose process is gone; None where there is none.

        A team's run is passed over as long as the run of all teams has not ended: whoever takes
        that one carries on its teams.
        """
        owner, name = Owner.new(), _text_of(agent)
        try:
            for run in map(_run_of, await self._ask(lambda store: store.orphans(name))):
                if run.whole is not None and await self._goes_on(run.whole):
                    continue
                claim = partial(_claim_orphan, run=run.id, owner=str(owner), lease=self._lease)
                if (epoch := await self._ask(claim)) is not None:
                    return run, await self._take(run.id, owner, epoch, run.setup)
        except BaseException:
            owner.end()
            raise
        owner.end()
        return None

    async def _goes_on(self, run_id: str) -> bool:
        """Whether there is such a run that has not ended. One that has never goes on again."""
        row = await self._ask(lambda store: store.find(run_id))
        return row is not None and row.status not in ENDED

    async def _take(
        self,
        run_id: str,
        owner: Owner,
        epoch: int,
        setup: Setup | None,
        history: Sequence[Event] = (),
        *,
        known: bool = True,
    ) -> RunJournal:
        """The run, now that it is ours; its events are brought to agree with ``history``."""
        rows = await self._ask(lambda store: store.rows(run_id))
        lines = [_line_of(event) for event in history]
        ours = [row.line for row in rows if row.seq >= 0]
        same = _common(lines, ours)
        if same < len(lines) and same < len(ours):
            await self._ask(lambda store: store.supersede(run_id, epoch, same))
            rows = await self._ask(lambda store: store.rows(run_id))
        more = [EventRow(same + n, "", line) for n, line in enumerate(lines[same:])]
        opened: list[RunJournal] = []
        held = Held(run_id, owner, epoch, lambda error: opened[0]._failed(error))
        run = RunJournal(self._writing, held, [*rows, *more], setup=setup, known=known)
        opened.append(run)
        self._writing.hold(held)
        for row in more:
            self._writing.write(held, row)
        return run

    async def _holder(self, run_id: str) -> str:
        row = await self._ask(lambda store: store.find(run_id))
        if row is None:
            return "another process"
        owner = Owner.parse(row.owner)
        return f"process {owner.pid} on {owner.host}"

    # What is kept between runs

    async def cached(self, key: str) -> Any | None:
        """The value kept under ``key``, as long as it is fresh; None where there is none."""
        text = await self._ask(lambda store: store.cached(key))
        return None if text is None else json.loads(text)

    async def cache(self, key: str, value: Any, seconds: float) -> None:
        """Keep ``value`` (JSON-like data, not None) for ``seconds``."""
        text = _text_of(value)
        await self._ask(lambda store: store.cache(key, text, seconds))

    async def latencies(self) -> dict[str, list[float]]:
        """The samples kept for each tool, in seconds."""
        found = await self._ask(lambda store: store.latencies())
        return {tool: json.loads(samples) for tool, samples in found.items()}

    async def keep_latencies(self, tool: str, samples: Sequence[float]) -> None:
        """Keep ``samples`` (seconds) for ``tool``, in place of those kept before."""
        text = _text_of(list(samples))
        await self._ask(lambda store: store.keep_latencies(tool, text))

    # The writer

    @property
    def _writing(self) -> Writer:
        if self._writer is None:
            raise UsageError("the journal is not started: use it as `async with journal:`")
        return self._writer

    async def _ask(self, work: Callable[[Store], T]) -> T:
        return await _result(self._writing.call(work))


def _agree(history: Sequence[Event], rows: Sequence[EventRow]) -> bool:
    """Whether the journal's events begin with ``history``."""
    ours = [row.line for row in rows if row.seq >= 0]
    return _common([_line_of(event) for event in history], ours) == len(history)


def _common(left: Sequence[str], right: Sequence[str]) -> int:
    """How many lines both begin with."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((n for n, (one, other) in pairs if one != other), min(len(left), len(right)))


def _line_of(event: Event) -> str:
    try:
        return _text_of(encode(event))
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"{type(event).__name__} cannot be kept in the journal: {error}") from None


def _text_of(value: Any) -> str:
    """JSON in ASCII: every database takes it, whatever a text holds (NUL, lone surrogates)."""
    return _ENCODE(value)


def _event_of(line: str) -> Event:
    try:
        return decode(json.loads(line))
    except (ValueError, UsageError) as error:
        raise JournalError(f"a line of the journal cannot be read: {error}: {line:.80}") from None


def _claim_orphan(store: Store, *, run: str, owner: str, lease: float) -> int | None:
    return store.claim_orphan(run, owner, lease)


def _remove(store: Store, *, run: str, age: float) -> bool:
    return store.remove(run, age)


def _check_age(name: str, seconds: float) -> None:
    if not 0 <= seconds < math.inf:
        raise UsageError(f"{name} must be at least 0 seconds, got {seconds!r}")


def _run_of(row: RunRow) -> JournaledRun:
    try:
        setup = Setup.from_dict(json.loads(row.setup)) if row.setup else None
    except (KeyError, TypeError, ValueError, UsageError) as error:
        raise JournalError(
            f"what is kept of the agent of run {row.id!r} cannot be read: {error}"
        ) from None
    return JournaledRun(
        row.id,
        json.loads(row.question),
        json.loads(row.agent),
        row.status,
        row.held,
        json.loads(row.spec),
        setup,
    )


async def _result(future: Future[T]) -> T:
    """Wait for the writer; a wait that is cancelled takes nothing back."""
    done = asyncio.wrap_future(future)
    # Of a wait that was cancelled, nobody asks how it went: whoever holds the run is told that.
    done.add_done_callback(lambda done: done.cancelled() or done.exception())
    return await asyncio.shield(done)
