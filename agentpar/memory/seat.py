"""A seat at the bank: one run's, which may be one team's of several.

It stands between the run's driver and the bank. It listens to the run's events, so that others may
ask what this run still wants, and it knows of each finding what went into it. It must never know
how a call is made, nor let trouble with the bank become trouble of the run.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import (
    AsyncIterator,
    Callable,
    Collection,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from types import TracebackType
from typing import Any, Self

from agentpar.errors import BankError, UsageError
from agentpar.events import (
    BankFailed,
    EntryOffered,
    EntryUsed,
    Event,
    LeaseAwaited,
    RunFinished,
    RunStarted,
    TaskCancelled,
    TaskDone,
    TaskPlanned,
    TaskReplaced,
    TaskStarted,
)
from agentpar.memory.admission import Proposal
from agentpar.memory.bank import Bank, Embed, Flight, Found, Lost
from agentpar.memory.entry import (
    Entry,
    Producer,
    Reading,
    entry_of,
    likeness,
    question_of,
)
from agentpar.memory.features import Features
from agentpar.memory.store.base import Store
from agentpar.plan import Failed, Ok, Outcome, Task
from agentpar.tools.base import Tool
from agentpar.tools.call import call_key
from agentpar.tools.page import is_page, pages_of, unread_of
from agentpar.tools.passages import words

MOMENT = 0.05
"""Seconds for which a call that went well waits to be offered; a policy that thinks longer, a
model's say, is not waited for."""
LINGER = 10.0
"""Seconds for which a run that has ended waits for what it has offered."""
CLOSE = 0.5
"""From this cosine, or share of common words, on a call is about the question."""
LOOKED_AT = 2_000
"""Entries that are looked through for calls to show a planner, where nothing finds the nearest."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A call of which the bank has the result."""

    tool: str
    args: Mapping[str, Any]


class Seat:
    """Implements `agentpar.ports.Shared` for the run ``run_id``, which is ``team``'s.

    ``tools`` are the run's. ``tell`` takes the events of the bank, ``redact`` takes secrets out of
    what goes into it, and ``read`` says which results a task's planner had read. Use as an async
    context manager around the run.
    """

    def __init__(
        self,
        bank: Bank,
        run_id: str,
        *,
        team: int = 0,
        tools: Mapping[str, Tool] | None = None,
        tell: Callable[[Event], None] = lambda event: None,
        redact: Callable[[Any], Any] = lambda value: value,
        read: Callable[[int], Collection[int]] = lambda task: (),
    ) -> None:
        self.bank = bank
        self.run_id = run_id
        self.team = team
        self.tell = tell
        self.redact = redact
        self.read = read
        self.tools = dict(tools or {})
        self.question = ""
        self._out_of_order = False
        self._over = False
        self._planned: dict[int, Task] = {}
        self._parts: dict[int, list[int]] = {}  # of a task over a list, those planned for it
        self._ended: set[int] = set()
        self._wanted: Counter[str] = Counter()
        self._wants: dict[int, str] = {}  # task that has not begun -> the likeness of its call
        self._called: dict[int, Mapping[str, Any]] = {}  # task that runs -> its arguments
        self._entries: dict[int, str] = {}  # task -> what of the bank its result is
        self._shown: dict[str, int] = {}  # entry -> tokens of the line that showed it
        self._offers: set[asyncio.Task[None]] = set()
        self._begun_at_all = False
        self._untold: list[Event] = []  # until the run has begun
        self._asked: Sequence[float] | None = None  # the vector of the question

    async def __aenter__(self) -> Self:
        """Sit down. A bank that cannot be opened is told of, and the run goes on without it."""
        self.bank.seats.append(self)
        try:
            await self.bank.start()
        except Exception as error:
            self._failed(error)
        except BaseException:  # cancelled: whoever has not sat down keeps no bank open
            self.bank.seats.remove(self)
            await self.bank.leave()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Get up, once the bank has what this run has offered it."""
        self._over = True
        self.bank.seats.remove(self)
        try:
            if self._offers:
                _, late = await asyncio.wait(self._offers, timeout=LINGER)
                for offer in late:
                    offer.cancel()
        finally:
            await self.bank.leave()

    # What others ask

    def demand(self, like: str) -> int:
        """Tasks of this run that have not begun and ask for ``like``."""
        return self._wanted[like]

    def progress(self) -> tuple[int, int]:
        """Tasks of this run that have ended, and all that are planned."""
        return len(self._ended), len(self._planned)

    # What the run tells

    def observe(self, event: Event) -> None:
        """Take in what happens in the run."""
        if not self._begun_at_all:
            self._begun_at_all = True
            untold, self._untold = self._untold, []
            for held_back in untold:  # behind this event, which the machine has yet to see
                asyncio.get_running_loop().call_soon(self._told, held_back)
        match event:
            case TaskStarted(id, args):
                self._begun(id)
                self._called[id] = args
            case TaskPlanned(task=task):
                self._wish(task)
            case TaskDone(id, outcome, via=via):
                self._begun(id)
                self._ended.add(id)
                args = self._called.pop(id, {})
                if via.startswith("same call as "):
                    self._same(id, int(via.rpartition(" ")[2]))
                elif via == "cache" and isinstance(outcome, Ok):
                    self._kept(id, args, outcome)
            case TaskReplaced(task=task):
                self._begun(task.id)
                self._entries.pop(task.id, None)
                self._wish(task)
            case TaskCancelled(id):
                self._begun(id)
            case EntryUsed(id, entry):
                self._entries[id] = entry
            case EntryOffered(id, entry):
                self._entries.setdefault(id, entry)
            case RunStarted(question=question):
                self.question = question
            case RunFinished():
                self._over = True
                self._wants.clear()
                self._wanted.clear()

    def _wish(self, task: Task) -> None:
        self._planned[task.id] = task
        if task.part is not None:
            self._parts.setdefault(task.part[0], []).append(task.id)
        tool = self.tools.get(task.tool)
        if task.needs or task.special or tool is None or not tool.may_be_shared:
            return
        try:
            like = likeness(tool, task.args)
        except UsageError:  # no JSON: it will fail by itself
            return
        self._wants[task.id] = like
        self._wanted[like] += 1

    def _begun(self, id: int) -> None:
        if (like := self._wants.pop(id, None)) is not None:
            self._wanted[like] -= 1

    def _kept(self, id: int, args: Mapping[str, Any], outcome: Ok) -> None:
        """Of an earlier part of the run nothing else tells what of the bank a kept result is."""
        task = self._planned.get(id)
        tool = None if task is None else self.tools.get(task.tool)
        if id in self._entries or tool is None or not tool.may_be_shared:
            return
        if (entry := self._entry(tool, args, outcome, id)) is not None:
            self._entries[id] = entry.id

    def _same(self, id: int, first: int) -> None:
        if (entry := self._entries.get(first)) is not None:
            self._entries[id] = entry

    # A call

    @asynccontextmanager
    async def claim(
        self, tool: Tool, args: Mapping[str, Any], task_id: int, attempt: int
    ) -> AsyncIterator[_Claim]:
        """See `agentpar.ports.Shared`."""
        claim = _Claim(self, tool, args, task_id, attempt)
        if not self._out_of_order:
            try:
                claim.key, claim.like = call_key(tool, args), likeness(tool, args)
            except UsageError:  # arguments that are no JSON data name no call
                pass
            else:
                await self._look(claim)
        try:
            yield claim
        finally:
            if claim.flight is not None:
                self.bank.give_up(claim.flight)

    async def _look(self, claim: _Claim) -> None:
        """Find what answers the call, or the right to make it."""
        bank, task_id = self.bank, claim.task_id
        me = Producer(self.run_id, task_id, self.team)
        try:
            alone = bank.settings.lease is None or not bank.leases
            entry = await bank.find(claim.key, claim.like) if alone else None
            if entry is not None:
                self._use(claim, _found(entry), None)
                return
            if bank.settings.lease is None:
                return
            waited = False
            while (flight := bank.flight(claim.like)) is not None:
                if flight.found is not None:
                    self._use(claim, flight.found, flight)
                    return
                if flight.holder == me:  # an attempt of the same call: a second one is to be
                    claim.flight = flight  # quicker, and does not wait for it
                    flight.crew += 1
                    return
                if not waited:
                    waited = True
                    self._await(claim, flight.holder)
                match await bank.wait(flight):
                    case None:
                        break
                    case Found() as found:
                        self._use(claim, found, flight)
                        return
                    case Lost(outcome, retry_after) if claim.tool.policy.retries:
                        claim.found, claim.retry_after = outcome, retry_after
                        return
                    case Lost() if bank.flight(claim.like) is not None:
                        return  # it is made once only: all who waited make it, side by side
                    case Lost():
                        break
            claim.flight = flight = bank.take_off(claim.like, me)
            if not bank.leases:
                return
            entry = await bank.acquire(flight, claim.key, lambda holder: self._await(claim, holder))
            if entry is not None:
                claim.flight = None
                flight.kept = True
                bank.land(flight, _found(entry))
                bank.clear(flight)
                self._use(claim, _found(entry), None)
        except Exception as error:  # of whatever kind: a bank is no reason for a run to fail
            self._failed(error, task_id)
        except BaseException:
            if claim.flight is not None:
                bank.give_up(claim.flight)
            raise

    def _await(self, claim: _Claim, holder: Producer) -> None:
        waits = (holder.run_id, holder.task_id)
        self._told(LeaseAwaited(claim.task_id, waits, holder.team, attempt=claim.attempt))

    def _use(self, claim: _Claim, found: Found, flight: Flight | None) -> None:
        """The call is settled by what was ``found``. What a run finds itself spares it nothing
        that counts."""
        by, own = found.producer, found.producer.run_id == self.run_id
        claim.found = found.outcome
        spared = 0.0 if own else found.seconds
        self._entries[claim.task_id] = found.entry
        used = EntryUsed(claim.task_id, found.entry, (by.run_id, by.task_id), by.team, spared)
        self._told(replace(used, attempt=claim.attempt))
        if own:
            return
        context = self._shown.get(found.entry, 0)
        reading = Reading(
            found.entry, self.run_id, claim.task_id, self.team, spared, found.tokens, context
        )
        if flight is None or flight.kept:
            self._later(self._write(reading))
        elif flight.kept is None:
            flight.readings.append(reading)  # once it is in the bank, if it gets there
        elif flight.entry is not None:
            self._later(self._trace(flight.entry, [reading]))

    async def _write(self, reading: Reading) -> None:
        try:
            await self.bank.ask(partial(_used, reading))
        except Exception as error:
            self._failed(error, reading.task_id)

    async def settle(
        self, claim: _Claim, outcome: Outcome, seconds: float, retry_after: float | None
    ) -> None:
        """The call of ``claim`` was made: those who wait have what it brought, and the bank is
        offered it. A failure is theirs as well, and for nobody else."""
        flight, bank = claim.flight, self.bank
        if not isinstance(outcome, Ok) or not claim.like:
            if flight is not None and isinstance(outcome, Failed):
                flight.lost = Lost(self.redact(outcome), retry_after)
            return
        entry = self._entry(claim.tool, claim.args, outcome, claim.task_id, seconds)
        if entry is None:
            return
        self._entries[claim.task_id] = entry.id
        if flight is not None and flight.over:
            # It took so long that another makes the call: this result comes too late for others.
            self._later(self._trace(entry))
            return
        waiting = 0
        if flight is not None:
            claim.flight = None
            waiting = len(flight.waiting)
            flight.entry = entry
            bank.land(flight, Found(Ok(entry.value), entry.id, entry.producer, seconds))
        if self._out_of_order:  # nothing more is offered, and nobody waits for it
            if flight is not None:
                flight.kept = False
                bank.clear(flight)
            return
        offer = self._later(self._offer(entry, claim.attempt, flight, waiting))
        await asyncio.wait((offer,), timeout=MOMENT)

    async def _offer(self, entry: Entry, attempt: int, flight: Flight | None, waiting: int) -> None:
        """Ask the policy, and keep what it admits; of the rest the bank is to know whose it was."""
        kept = False
        try:
            kept = await self._keep(entry, attempt, flight, waiting)
        except Exception as error:
            self._failed(error, entry.producer.task_id)
        finally:
            if flight is not None:
                flight.kept = kept
                self.bank.clear(flight)
        if not kept:
            await self._trace(entry, () if flight is None else flight.readings)

    async def _keep(self, entry: Entry, attempt: int, flight: Flight | None, waiting: int) -> bool:
        """Whether the bank has the entry by now."""
        bank = self.bank
        size = _size(entry.value)
        if size > (most := bank.settings.max_entry_bytes):
            why = f"{size:,} bytes are more than max_entry_bytes={most:,}"
            self._tell_offer(entry, attempt, False, "size", 0.0, why)
            return False
        vectors = await self._vectors(entry)
        features = await self._features(entry, waiting, size, vectors)
        decision = await bank.admission.decide(Proposal(self.question, entry, features))
        kept = None
        if decision.admitted:
            lease = None if flight is None else flight.lease
            kept = await bank.put(entry, vectors[0] if vectors else None, lease)
            for reading in () if flight is None or kept is None else flight.readings:
                await bank.ask(partial(_used, reading))
        admitted, why = decision.admitted, decision.why
        if admitted and kept is None:
            admitted, why = False, "another has taken the call over meanwhile"
        elif kept is not None and kept.revoked:
            admitted, why = False, "it was withdrawn from the bank, or made of what was"
        odds, seen = decision.probability, features.vector()
        self._tell_offer(entry, attempt, admitted, decision.policy, odds, why, seen)
        return kept is not None

    async def _trace(self, entry: Entry, readings: Iterable[Reading] = ()) -> None:
        """What the bank does not keep has touched this run's answer all the same, and those of
        whoever waited for it."""
        others = (Producer(one.run_id, one.task_id, one.team) for one in readings)
        if self._out_of_order or not self.bank.revocable:
            return
        try:
            for by in (entry.producer, *others):
                await self.bank.ask(partial(_traced, replace(entry, producer=by)))
        except Exception as error:
            self._failed(error, entry.producer.task_id)

    async def stands(self, tool: Tool, args: Mapping[str, Any], outcome: Ok, task_id: int) -> bool:
        """See `agentpar.ports.Shared`."""
        if not self.bank.revocable:
            return True
        entry = self._entry(tool, args, outcome, task_id)
        if entry is None or self._out_of_order:
            return False
        try:
            stands = await self.bank.ask(partial(_traced, entry))
        except Exception as error:
            self._failed(error, task_id)
            return False
        if stands:
            self._entries[task_id] = entry.id
        return stands

    def _entry(
        self,
        tool: Tool,
        args: Mapping[str, Any],
        outcome: Ok,
        task_id: int,
        seconds: float = 0.0,
    ) -> Entry | None:
        """What this task has found, as the bank has it; None where that is no JSON data."""
        try:
            return entry_of(
                tool,
                args,
                self.redact(outcome.value),
                Producer(self.run_id, task_id, self.team),
                namespace=self.bank.namespace,
                parents=self._parents(task_id),
                literal=self._is_literal(task_id),
                seconds=seconds,
            )
        except UsageError:
            return None

    def _tell_offer(
        self,
        entry: Entry,
        attempt: int,
        admitted: bool,
        policy: str,
        odds: float,
        why: str,
        seen: tuple[float, ...] = (),
    ) -> None:
        self._told(
            EntryOffered(
                entry.producer.task_id,
                entry.id,
                admitted,
                policy,
                odds,
                why,
                attempt=attempt,
                features=seen,
            )
        )

    # What a finding is

    async def _vectors(self, entry: Entry) -> list[Sequence[float]]:
        """Of the call and of the question; none where nothing makes vectors."""
        embed = self.bank.embed
        if embed is None:
            return []
        if self._asked is None:
            self._asked = await self._embed(embed, self.question or entry.question)
        return [await self._embed(embed, entry.question), self._asked]

    async def _embed(self, embed: Embed, text: str) -> Sequence[float]:
        [vector] = await self.bank.ask(lambda store: embed([text]))
        return vector

    async def _features(
        self, entry: Entry, waiting: int, size: int, vectors: Sequence[Sequence[float]]
    ) -> Features:
        bank, id = self.bank, entry.producer.task_id
        others = [seat for seat in bank.seats if seat is not self]
        counts = [seat.progress() for seat in others]
        planned = sum(all for _, all in counts)
        features = Features(
            demand=sum(seat.demand(entry.like) for seat in others),
            waiting=waiting,
            seconds=entry.seconds,
            tokens=entry.tokens,
            length=size,
            closeness=_overlap(entry.args, self.question),
            quality=quality(entry.value),
            progress=sum(ended for ended, _ in counts) / planned if planned else 0.0,
            depth=len(self._before(id, lambda task: ())),
            others=len(others),
            project=bank.settings.scope == "project",
        )
        if not vectors:
            return features
        near = await bank.ask(lambda store: store.nearest(bank.namespace, vectors[0], 1))
        novelty = 1.0 - max((cosine for _, cosine in near), default=0.0)
        return replace(features, novelty=_share(novelty), closeness=_share(_cosine(*vectors)))

    def _before(self, id: int, read: Callable[[int], Collection[int]]) -> list[int]:
        """The tasks whose results went into the arguments of task ``id``, over any number of
        steps: those it names and their parts, and those that its planner had ``read``."""
        seen: dict[int, None] = {}
        left = [id]
        while left:
            at = left.pop()
            task = self._planned.get(at)
            needs = () if task is None else task.needs
            for need in (*needs, *read(at), *(self._parts.get(at, ()) if at != id else ())):
                if need not in seen and need != id:
                    seen[need] = None
                    left.append(need)
        return list(seen)

    def _parents(self, id: int) -> tuple[str, ...]:
        parents = (self._entries.get(task) for task in self._before(id, self.read))
        return tuple(dict.fromkeys(parent for parent in parents if parent is not None))

    def _is_literal(self, id: int) -> bool:
        task = self._planned.get(id)
        return task is not None and not task.needs and not self.read(id)

    # What a planner is shown

    async def offers(self) -> list[Offer]:
        """Calls about the question of which the bank has the result, the closest first."""
        bank = self.bank
        if self._out_of_order or not bank.settings.offers:
            return []
        try:
            close = await bank.ask(self._closest)
        except Exception as error:
            self._failed(error)
            return []
        shown: dict[str, Entry] = {}
        for entry in close:
            tool = self.tools.get(entry.tool)
            if tool is None or not tool.may_be_shared or entry.like in shown:
                continue
            if entry.producer.run_id != self.run_id:
                shown[entry.like] = entry
        chosen = list(shown.values())[: bank.settings.offers]
        self._shown = {entry.id: 1 + len(entry.question) // 4 for entry in chosen}
        return [Offer(entry.tool, entry.args) for entry in chosen]

    def _closest(self, store: Store) -> list[Entry]:
        bank = self.bank
        if bank.embed is None:
            near = [(entry, 0.0) for entry in islice(store.entries(bank.namespace), LOOKED_AT)]
        else:
            [vector] = bank.embed([self.question])
            near = store.nearest(bank.namespace, vector, 4 * bank.settings.offers)
        scored: list[tuple[float, Entry]] = []
        for entry, cosine in near:
            score = max(cosine, _overlap(entry.args, self.question))
            if entry.literal and score >= CLOSE:
                scored.append((score, entry))
        scored.sort(key=lambda pair: -pair[0])
        return [entry for _, entry in scored]

    # Trouble

    def _failed(self, error: Exception, task_id: int | None = None) -> None:
        """The bank is of no use to this run any more: told once."""
        if not self._out_of_order:
            self._out_of_order = True
            text = (
                str(error) if isinstance(error, BankError) else f"{type(error).__name__}: {error}"
            )
            self._told(BankFailed(text, task_id))

    def _told(self, event: Event) -> None:
        if not self._begun_at_all:
            self._untold.append(event)
        elif not self._over:
            self.tell(event)

    def _later(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self.bank.begin(work)
        self._offers.add(task)
        task.add_done_callback(self._offers.discard)
        return task


class _Claim:
    """See `agentpar.ports.Claim`."""

    def __init__(
        self, seat: Seat, tool: Tool, args: Mapping[str, Any], task_id: int, attempt: int
    ) -> None:
        self.found: Outcome | None = None
        self.retry_after: float | None = None
        self.tool = tool
        self.args = args
        self.task_id = task_id
        self.attempt = attempt
        self.key = ""
        self.like = ""
        self.flight: Flight | None = None
        self._seat = seat

    async def settle(
        self, outcome: Outcome, seconds: float, retry_after: float | None = None
    ) -> None:
        await self._seat.settle(self, outcome, seconds, retry_after)


def quality(value: Any) -> float:
    """How far a result looks sound, 0 to 1: nothing for an empty one; half for a page without what
    was looked for; less for each page that was to be read and could not be."""
    if value is None or value in ("", [], {}) or (isinstance(value, str) and not value.strip()):
        return 0.0
    if not is_page(value):
        return 1.0
    sound = 1.0 if value.get("value", "") not in (None, "") or "value" not in value else 0.5
    if not value["text"].strip() and sound < 1.0:
        return 0.0
    read, unread = len(pages_of(value)), len(unread_of(value))
    return sound * read / (read + unread)


def _found(entry: Entry) -> Found:
    return Found(Ok(entry.value), entry.id, entry.producer, entry.seconds, entry.tokens)


def _size(value: Any) -> int:
    """Bytes of ``value`` as JSON."""
    return len(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"))


def _overlap(args: Mapping[str, Any], question: str) -> float:
    """The share of the words of a call's arguments that stand in ``question``."""
    asked = words(question_of("", args))
    return len(asked & words(question)) / len(asked) if asked else 0.0


def _traced(entry: Entry, store: Store) -> bool:
    return store.trace(entry)


def _used(reading: Reading, store: Store) -> None:
    store.used(reading)


def _share(number: float) -> float:
    return min(1.0, max(0.0, number))


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))
