"""What a bank would have done for teams that were recorded without one: their calls, again, in
virtual time.

Pure: a heap of moments, milliseconds a question. Everything a team did is taken as recorded but
for the calls that a bank spares it. So plans, answers and their tokens are those of the recording:
that a model may plan otherwise when it is shown what the bank can answer is not in it, and neither
is that teams on one model server wait for each other, but for a constant ``slowdown``.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, TypeVar

from agentpar.errors import UsageError
from agentpar.memory.admission import Admission, Decision, Proposal
from agentpar.memory.credit import Ledger, Prices, worth
from agentpar.memory.embed import HashedNgrams
from agentpar.memory.entry import Entry, Producer, Reading
from agentpar.memory.features import Features
from agentpar.memory.learning.logs import Logged
from agentpar.memory.learning.recorded import RecordedCall, RecordedTeam
from agentpar.tools.passages import words

T = TypeVar("T")
Embed = Callable[[str], Sequence[float]]

PAUSE = 1.0
"""Seconds before an attempt that no recording has, as the recorded one went well at once."""
CLOSE = 0.5
"""From this cosine, or share of common words, on a planner is shown a call of the bank's; as in
`agentpar.memory.seat`."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """Under which recorded teams run again.

    ``leases``: of equal calls one is made while the others wait, ``hold`` seconds at most, and
    have what it brings, admitted or not. ``concurrency`` calls of one team run at once. The model
    server writes ``texts`` at once while others wait in order (None: as many as are asked for, each
    as fast as one alone). ``slowdown`` multiplies what the model took, ``calls`` what calls did.
    ``read`` is what asking the bank takes, in seconds. ``offers`` calls that the bank can answer
    are shown to a planner at most.
    """

    leases: bool = True
    hold: float = 30.0
    concurrency: int = 64
    texts: int | None = None
    slowdown: float = 1.0
    calls: float = 1.0
    read: float = 0.0
    offers: int = 8


@dataclass(frozen=True, slots=True)
class Offered:
    """One decision: what the policy saw and said, of which ``entry``, and by which ``team``."""

    entry: str
    team: int
    features: Features
    decision: Decision


@dataclass(frozen=True, slots=True)
class Replayed:
    """One question, again. ``ends`` are the seconds at which each team was done; ``made`` calls
    were made, ``used`` were settled by what another had found, ``awaited`` of them after waiting
    for it. ``changed`` of those brought another value than the team had found itself. ``tokens``
    are the model's, ``offered`` of them for lines of the bank. ``entries`` and ``chars`` are what
    the bank holds afterwards.
    """

    ends: tuple[float, ...]
    made: int
    used: int
    awaited: int
    changed: int
    tokens: int
    offered: int
    entries: int
    chars: int
    decisions: tuple[Offered, ...] = ()
    readings: tuple[Reading, ...] = ()

    @property
    def seconds(self) -> float:
        """Until the last team was done."""
        return max(self.ends, default=0.0)


@dataclass(frozen=True, slots=True)
class Kept:
    """An entry of a replayed bank."""

    id: str
    like: str
    question: str
    value: str
    chars: int
    seconds: float
    producer: tuple[str, int]
    literal: bool
    vector: Sequence[float] = ()


@dataclass(slots=True)
class ReplayBank:
    """What a replayed bank holds; given to the next replay it is a project's."""

    kept: dict[str, Kept] = field(default_factory=dict)

    @property
    def chars(self) -> int:
        return sum(entry.chars for entry in self.kept.values())


class Oracle:
    """Admits what another team is still going to ask for. It knows what nobody can know."""

    name = "oracle"

    async def decide(self, proposal: Proposal) -> Decision:
        raise UsageError("the oracle decides in a replay only, where what comes is known")


def replay(
    teams: Sequence[RecordedTeam],
    admission: Admission | None,
    conditions: Conditions | None = None,
    *,
    bank: ReplayBank | None = None,
    run_id: str = "replay",
    later: Iterable[str] = (),
    embed: Embed | None = None,
) -> Replayed:
    """Run ``teams``, all on one question, side by side over one bank; without an ``admission``
    over none.

    With a ``bank`` what others have left in it stands there already, and what is admitted stays
    (scope "project"); ``later`` are the `RecordedCall.like` that runs to come will ask for, which
    only the oracle is told. ``embed`` turns a text into a vector of length 1, by default hashed
    pieces of words. Deterministic where ``admission`` is.
    """
    world = _World(
        teams, admission, conditions or Conditions(), bank, run_id, frozenset(later), embed
    )
    return world.run()


@lru_cache(maxsize=100_000)
def _hashed(text: str) -> Sequence[float]:
    return HashedNgrams().embed([text])[0]


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns that waits for nothing."""
    try:
        work.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    work.close()
    raise UsageError("this policy waits for something (a model?): it cannot be replayed")


@dataclass(slots=True)
class _Team:
    """A recorded team while it runs again."""

    number: int
    recorded: RecordedTeam
    round: int = -1
    plan_ended: bool = False
    written: dict[int, RecordedCall] = field(default_factory=dict)
    begun: set[int] = field(default_factory=set)
    ended: dict[int, bool] = field(default_factory=dict)
    running: int = 0
    ready: list[RecordedCall] = field(default_factory=list)
    at: float | None = None

    @property
    def calls(self) -> tuple[RecordedCall, ...]:
        """Those of the round that it is in."""
        return self.recorded.rounds[self.round].calls if self.round >= 0 else ()


@dataclass(slots=True)
class _Line:
    """Who waits for a call, and with which attempt of theirs."""

    waiting: list[tuple[_Team, RecordedCall, int]] = field(default_factory=list)


@dataclass(slots=True)
class _Held:
    """A lease: who makes the call, and who waits for it."""

    team: int
    fence: int
    line: _Line


class _World:
    def __init__(
        self,
        teams: Sequence[RecordedTeam],
        admission: Admission | None,
        conditions: Conditions,
        bank: ReplayBank | None,
        run_id: str,
        later: frozenset[str],
        embed: Embed | None,
    ) -> None:
        if len({team.question for team in teams}) > 1:
            raise UsageError("teams that are replayed together must be on one question")
        self.teams = [_Team(number, team) for number, team in enumerate(teams, 1)]
        self.admission = admission
        self.conditions = conditions
        self.project = bank is not None
        self.bank = bank or ReplayBank()
        self.run_id = run_id
        self.later = later
        self.embed = embed or _hashed
        self.leases: dict[str, _Held] = {}
        self.fences = 0
        self.heap: list[tuple[float, int, Callable[[], None]]] = []
        self.order = 0
        self.now = 0.0
        self.made = self.used = self.awaited = self.changed = self.offered = 0
        self.writing = 0
        self.queue: deque[Callable[[], None]] = deque()
        self.decisions: list[Offered] = []
        self.readings: list[Reading] = []

    def run(self) -> Replayed:
        for team in self.teams:
            self.begin_round(team)
        while self.heap:
            self.now, _, act = heapq.heappop(self.heap)
            act()
        stuck = [team.number for team in self.teams if team.at is None]
        if stuck:
            raise UsageError(
                f"the recording of team {stuck[0]} on {self.teams[0].recorded.question!r} has a "
                "call that waits for one that never ends"
            )
        tokens = sum(team.recorded.tokens for team in self.teams) + self.offered
        return Replayed(
            tuple(team.at or 0.0 for team in self.teams),
            self.made,
            self.used,
            self.awaited,
            self.changed,
            tokens,
            self.offered,
            len(self.bank.kept),
            self.bank.chars,
            tuple(self.decisions),
            tuple(self.readings),
        )

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        self.order += 1
        heapq.heappush(self.heap, (self.now + seconds, self.order, act))

    # Plans

    def begin_round(self, team: _Team) -> None:
        team.round += 1
        team.plan_ended = False
        if team.round >= len(team.recorded.rounds):
            team.at = self.now
            return
        self.ask(lambda: self.plan(team))

    def plan(self, team: _Team) -> None:
        """The model begins to write the plan."""
        if self.admission is not None:
            self.offered += self.shown(team)
        round, slow = team.recorded.rounds[team.round], self.conditions.slowdown
        for call in round.calls:
            self.after(call.written * slow, partial(self.write, team, call))
        self.after(round.plan_seconds * slow, lambda: self.end_plan(team))

    def join(self, team: _Team) -> None:
        """The model begins to write the answer, or that a result is missing."""
        seconds = team.recorded.rounds[team.round].join_seconds * self.conditions.slowdown
        self.after(seconds, lambda: self.end_join(team))

    def end_join(self, team: _Team) -> None:
        self.asked()
        self.begin_round(team)

    def ask(self, begin: Callable[[], None]) -> None:
        """Have the model write, as soon as its server does."""
        most = self.conditions.texts
        if most is not None and self.writing >= most:
            self.queue.append(begin)
        else:
            self.writing += 1
            begin()

    def asked(self) -> None:
        """A text is written: the server takes the next."""
        if self.queue:
            self.queue.popleft()()
        else:
            self.writing -= 1

    def shown(self, team: _Team) -> int:
        """Tokens of the lines that tell its planner what the bank can answer."""
        question, own = team.recorded.question, f"{self.run_id}.{team.number}"
        vector = self.embed(question)
        lines = []
        for kept in self.bank.kept.values():
            if not kept.literal or kept.producer[0] == own:
                continue
            score = max(_dot(vector, kept.vector), _overlap(kept.question, question))
            if score >= CLOSE:
                lines.append((score, 1 + len(kept.question) // 4))
        lines.sort(key=lambda line: -line[0])
        return sum(tokens for _, tokens in lines[: self.conditions.offers])

    def write(self, team: _Team, call: RecordedCall) -> None:
        team.written[call.id] = call
        self.look(team)

    def end_plan(self, team: _Team) -> None:
        team.plan_ended = True
        self.asked()
        self.look(team)

    def look(self, team: _Team) -> None:
        """Begin what can begin in ``team``, and its joiner when all is done."""
        for call in team.calls:
            waits = call.id in team.begun or call.id not in team.written
            needs = (*call.needs, call.twin) if call.twin else call.needs
            if waits or not all(id in team.ended for id in needs):
                continue
            team.begun.add(call.id)
            if call.seconds is None:  # it was skipped, or stood for by one that it needs
                self.end(team, call)
                return
            team.ready.append(call)
        while team.ready and team.running < self.conditions.concurrency:
            team.running += 1
            ranks = _ranks(team)
            call = max(team.ready, key=lambda call: ranks[call.id])  # the first of equals
            team.ready.remove(call)
            self.claim(team, call)
        if team.plan_ended and all(call.id in team.ended for call in team.calls):
            team.plan_ended = False
            self.ask(lambda: self.join(team))

    def end(self, team: _Team, call: RecordedCall) -> None:
        team.ended[call.id] = call.ok
        self.look(team)

    def settle(self, team: _Team, call: RecordedCall) -> None:
        """A call that ran, or was stood for, is over."""
        team.running -= 1
        self.end(team, call)

    # Calls

    def claim(self, team: _Team, call: RecordedCall, attempt: int = 1) -> None:
        """The call is about to be made: unless the bank has it, or another makes it."""
        if self.admission is None or not call.shared:
            self.make(team, call, attempt, None)
            return
        kept = self.bank.kept.get(call.like)
        if kept is not None:
            self.use(team, call, kept)
            return
        held = self.leases.get(call.like)
        if not self.conditions.leases:
            self.make(team, call, attempt, None)
        elif held is None:
            self.lease(team, call, attempt, _Line())
        else:
            self.awaited += 1
            held.line.waiting.append((team, call, attempt))

    def lease(self, team: _Team, call: RecordedCall, attempt: int, line: _Line) -> None:
        self.fences += 1
        held = self.leases[call.like] = _Held(team.number, self.fences, line)
        self.after(self.conditions.hold, lambda: self.run_out(call.like, held.fence))
        self.make(team, call, attempt, held)

    def run_out(self, like: str, fence: int) -> None:
        """The lease's time is over: the first that waits makes the call, the others wait on."""
        held = self.leases.get(like)
        if held is not None and held.fence == fence and held.line.waiting:
            team, call, attempt = held.line.waiting.pop(0)
            self.lease(team, call, attempt, held.line)

    def make(self, team: _Team, call: RecordedCall, attempt: int, held: _Held | None) -> None:
        self.made += attempt == 1
        _, seconds = call.attempts[attempt - 1]
        self.after(seconds * self.conditions.calls, lambda: self.bring(team, call, attempt, held))

    def bring(self, team: _Team, call: RecordedCall, attempt: int, held: _Held | None) -> None:
        """An attempt has ended: what it brought is offered, and whoever waited goes on."""
        ok = call.ok and attempt == len(call.attempts)
        late = held is not None and self.leases.get(call.like) is not held
        line = held.line if held is not None and not late else _Line()
        if held is not None and not late:
            del self.leases[call.like]
        found = None
        if ok and call.shared and not late and self.admission is not None:
            found = self.offer(team, call, len(line.waiting))
        if found is not None:
            for other, theirs, _ in line.waiting:
                self.use(other, theirs, found)
        elif line.waiting and ok:  # it was not admitted, and those who wait do not see it
            (other, theirs, number), *line.waiting = line.waiting
            self.lease(other, theirs, number, line)
        else:
            for other, theirs, number in line.waiting:
                self.lose(other, theirs, number)
        if ok:
            # Those who waited go on first: the bank has told them when the call's run hears of it.
            self.after(self.conditions.read, lambda: self.settle(team, call))
        else:
            self.lose(team, call, attempt)

    def lose(self, team: _Team, call: RecordedCall, attempt: int) -> None:
        """An attempt has failed, one's own or one that was waited for: the next follows, if there
        was one; one that was to go well is made again."""
        if attempt < len(call.attempts):
            pause, _ = call.attempts[attempt]
            self.after(pause, lambda: self.claim(team, call, attempt + 1))
        elif call.ok:
            self.after(PAUSE, lambda: self.claim(team, call, attempt))
        else:
            self.after(self.conditions.read, lambda: self.settle(team, call))

    def use(self, team: _Team, call: RecordedCall, kept: Kept) -> None:
        self.used += 1
        self.changed += kept.value != call.value
        run_id = f"{self.run_id}.{team.number}"
        if kept.producer[0] != run_id:  # what a run finds itself spares it nothing that counts
            spared = kept.seconds
            self.readings.append(
                Reading(kept.id, run_id, call.id, team.number, spared_seconds=spared, at=self.now)
            )
        self.after(self.conditions.read, lambda: self.settle(team, call))

    # Admission

    def offer(self, team: _Team, call: RecordedCall, waiting: int) -> Kept | None:
        """Have the policy decide; what now stands for equal calls, if anything does."""
        vector = self.embed(call.question)
        features = self.features(team, call, waiting, vector)
        producer = Producer(f"{self.run_id}.{team.number}", call.id, team.number)
        kept = Kept(
            f"{call.like}-{call.value}",
            call.like,
            call.question,
            call.value,
            call.chars,
            call.seconds or 0.0,
            (producer.run_id, call.id),
            not call.needs and team.round == 0,
            vector,
        )
        if isinstance(self.admission, Oracle):
            wanted = waiting > 0 or call.like in self.later or self.wanted(team, call.like)
            decision = Decision(wanted, "oracle", float(wanted))
        else:
            assert self.admission is not None
            proposal = Proposal(team.recorded.question, _entry(call, kept, producer), features)
            decision = at_once(self.admission.decide(proposal))
        self.decisions.append(Offered(kept.id, team.number, features, decision))
        if decision.admitted:
            return self.bank.kept.setdefault(call.like, kept)
        return kept if waiting else None

    def wanted(self, team: _Team, like: str) -> bool:
        """Whether another team will still ask for it."""
        return any(
            call.like == like and call.shared and call.seconds is not None
            for other in self.teams
            if other is not team
            for at, round in enumerate(other.recorded.rounds)
            if at >= other.round
            for call in round.calls
            if at > other.round or call.id not in other.begun or call in other.ready
        )

    def features(
        self, team: _Team, call: RecordedCall, waiting: int, vector: Sequence[float]
    ) -> Features:
        others = [other for other in self.teams if other is not team and other.at is None]
        tasks = [(other, id) for other in others for id in other.written]
        ended = sum(id in other.ended for other, id in tasks)
        demand = sum(
            theirs.like == call.like
            for other in others
            for theirs in other.written.values()
            # What stands in place of a reference is not known before that has ended.
            if not theirs.needs and (theirs.id not in other.begun or theirs in other.ready)
        )
        near = max((_dot(vector, kept.vector) for kept in self.bank.kept.values()), default=0.0)
        return Features(
            demand=demand,
            waiting=waiting,
            seconds=call.seconds or 0.0,
            length=call.chars,
            novelty=min(1.0, max(0.0, 1.0 - near)),
            closeness=max(0.0, _dot(vector, self.embed(team.recorded.question))),
            quality=call.quality,
            progress=ended / len(tasks) if tasks else 0.0,
            depth=len(_before(call, team.recorded, team.round)),
            others=len(others),
            project=self.project,
        )


def _entry(call: RecordedCall, kept: Kept, producer: Producer) -> Entry:
    """What a policy is shown of it: its value is a hash."""
    return Entry(
        kept.id,
        "replay",
        call.like,
        call.like,
        call.tool,
        {},
        call.question,
        call.value,
        (call.question,),
        producer,
        literal=kept.literal,
        seconds=kept.seconds,
    )


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def _overlap(call: str, question: str) -> float:
    """The share of the words of a call that stand in ``question``."""
    asked = words(call.partition(": ")[2])
    return len(asked & words(question)) / len(asked) if asked else 0.0


def _ranks(team: _Team) -> dict[int, int]:
    """How many calls, one after the other, end with what waits longest for each: as the executor
    orders calls that wait for a place, each taken to last as long."""
    after: dict[int, int] = {}
    for call in sorted(team.written.values(), key=lambda call: -call.id):
        if call.id in team.ended:
            continue
        rank = after[call.id] = after.get(call.id, 0) + 1
        for need in call.needs:
            after[need] = max(after.get(need, 0), rank)
    return after


def _before(call: RecordedCall, team: RecordedTeam, round: int) -> set[int]:
    """The calls that went into its arguments: those it needs, over any number of steps, and all
    that its planner had read."""
    calls = {other.id: other for other in team.rounds[round].calls}
    before = {other.id for earlier in team.rounds[:round] for other in earlier.calls}
    left = [call.id]
    while left:
        needs = calls[left.pop()].needs
        left += [id for id in needs if id in calls and id not in before]
        before.update(needs)
    return before


def together(teams: Iterable[RecordedTeam]) -> list[list[RecordedTeam]]:
    """Recorded teams that were, or could have been, on one question side by side, in the order of
    their numbers."""
    found: dict[tuple[str, str], list[RecordedTeam]] = {}
    for team in teams:
        found.setdefault((team.group, team.question), []).append(team)
    return [sorted(some, key=lambda team: team.team) for some in found.values()]


def logged(
    replayed: Replayed, *, run_id: str = "replay", prices: Prices | None = None
) -> list[Logged]:
    """The decisions of a replay, with what each entry turned out to be worth: what a learner
    reads. ``run_id`` is the one that the replay was given."""
    of: dict[str, list[Reading]] = {}
    for reading in replayed.readings:
        of.setdefault(reading.entry_id, []).append(reading)
    made = []
    for offer in replayed.decisions:
        credit = None
        if offer.decision.admitted:
            producers = frozenset((f"{run_id}.{offer.team}",))
            ledger = Ledger(tuple(of.get(offer.entry, ())), producers)
            credit = worth(ledger, prices).net
        odds, admitted = offer.decision.probability, offer.decision.admitted
        vector = offer.features.vector()
        made.append(Logged(vector, odds, admitted, credit, offer.decision.policy, run_id))
    return made


def trial(
    groups: Sequence[Sequence[RecordedTeam]],
    conditions: Conditions | None = None,
    prices: Prices | None = None,
    *,
    call: float = 0.0,
) -> Callable[[Callable[[Features], bool]], list[float]]:
    """A paired replay, as a promotion wants it: a function that plays every group under a gate and
    tells the utility of each, in seconds below zero: until the last team was done, what the bank's
    lines in prompts cost, and ``call`` for each call that was made."""
    prices = prices or Prices()

    def play(gate: Callable[[Features], bool]) -> list[float]:
        found = [replay(teams, _Gated(gate), conditions) for teams in groups]
        return [-(one.seconds + one.offered * prices.token + one.made * call) for one in found]

    return play


class _Gated:
    name = "gate"

    def __init__(self, gate: Callable[[Features], bool]) -> None:
        self._gate = gate

    async def decide(self, proposal: Proposal) -> Decision:
        admitted = self._gate(proposal.features)
        return Decision(admitted, self.name, float(admitted))


__all__ = [
    "Conditions",
    "Offered",
    "Oracle",
    "ReplayBank",
    "Replayed",
    "logged",
    "replay",
    "together",
    "trial",
]
