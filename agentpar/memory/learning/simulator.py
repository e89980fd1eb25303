"""Teams at work, simulated: what admission is worth, tried in milliseconds.

It must never know a policy. It says nothing about real runs: calls, pages and prompts are numbers
drawn from a seed, and the drawing is a guess at what teams do. What it does share with real runs
is what a policy sees, `Features`, and how an entry's worth is counted, `credit`.

A world is everything that chance decides, drawn beforehand, so that all policies meet the same.
Each team has a plan of tasks. A task is a call that answers a need from a pool which all teams
draw from; before it there may be a dead end, which other teams run into as well, and calls that
no other team makes. A team works on two tasks at once, and reads lines about the bank's entries
before each. Two calls are equal if they answer one need in the same words. An equal call is
settled by the bank; with leases, one of two that run at once waits for the other, and has what that
finds, whether the bank keeps it or not.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from agentpar.memory.credit import Ledger, Presence, Prices, Use, Verdict, worth
from agentpar.memory.entry import Reading
from agentpar.memory.features import Features

Vector = tuple[float, ...]
Key = tuple[int, bool]
"""What equal calls have in common: the need, and whether they answer it (or are a dead end)."""


@dataclass(frozen=True, slots=True)
class Family:
    """A kind of question. ``pool`` needs, of which a team has ``fewest`` to ``most``, the first
    ones more often (``core``). ``kinds``: how often a need is a search, a page, a computation, a
    thought; ``right``: how often what each finds is true. ``dead``: how often a dead end stands
    before a need; ``own``: how many calls of a team's own. ``alike``: how often a need has one
    that resembles it."""

    pool: int
    fewest: int
    most: int
    core: float
    kinds: tuple[float, float, float, float]
    right: tuple[float, float, float, float]
    dead: float
    own: float
    alike: float


FAMILIES = (
    Family(16, 8, 11, 0.9, (0.45, 0.30, 0.15, 0.10), (0.93, 0.90, 0.92, 0.80), 0.30, 0.5, 0.3),
    Family(24, 8, 13, 0.5, (0.30, 0.45, 0.10, 0.15), (0.93, 0.88, 0.90, 0.78), 0.45, 0.6, 0.4),
    Family(12, 6, 9, 0.7, (0.20, 0.20, 0.45, 0.15), (0.95, 0.92, 0.95, 0.85), 0.20, 0.4, 0.2),
    Family(40, 8, 11, 0.1, (0.40, 0.30, 0.10, 0.20), (0.92, 0.90, 0.90, 0.80), 0.35, 0.8, 0.4),
    Family(14, 9, 12, 0.9, (0.25, 0.50, 0.15, 0.10), (0.90, 0.82, 0.90, 0.75), 0.55, 0.3, 0.5),
    Family(30, 10, 15, 0.4, (0.50, 0.20, 0.10, 0.20), (0.94, 0.92, 0.93, 0.75), 0.25, 1.0, 0.3),
    Family(16, 8, 11, 0.9, (0.35, 0.35, 0.20, 0.10), (0.97, 0.50, 0.97, 0.90), 0.30, 0.5, 0.3),
)
SECONDS = (9.0, 22.0, 14.0, 6.0)
LENGTHS = (600, 1400, 350, 250)  # in tokens
CHARS = 4  # of a token
DEAD_SECONDS, DEAD_LENGTH = 12.0, 180
OWN_SECONDS, OWN_LENGTH = 4.0, 220

STEP_SECONDS, STEP_TOKENS = 2.0, 2500  # before a task begins, the team thinks
FETCH_SECONDS = 0.6  # to take an entry from the bank
DETOUR_SECONDS = 3.0  # a line about something like it leads astray
ASTRAY, MISTAKEN = 0.15, 0.08  # how often each such line does, and how often it is then believed
LANES = 2  # tasks at once
MOST_CALLS = 40  # of a team; what is left is guessed
GUESSED = 0.25
EQUAL, EQUAL_SHOWN = 0.85, 0.97  # two teams use the same words; if the bank's were shown
DROPPED = 0.1  # planned and never done
LATER = 0.3  # planned only when the rest has begun
COMMON = 0.5  # equal calls find the same; else each is right or wrong by itself
ENOUGH = 0.85  # of its needs a team must have right to answer right
NOTICED = 0.3  # what is not true is found to be so


@dataclass(frozen=True, slots=True)
class Regime:
    """Conditions. ``families`` by index; ``teams`` on a question; ``dead`` times as long do dead
    ends take; ``signal`` by which quality differs; tokens a ``line`` of a prompt takes, ``lines``
    of it at most, read before each task or (``once``) each plan; ``prefill`` tokens a second;
    ``token``: seconds that one is worth. ``pace``: calls take so many times as long, between
    these two; ``bulk`` and ``fit``: the same for what they find and for how near that is to the
    question (embeddings differ). ``cheap``: how often calls cost no tokens. ``later``: teams that
    get a question of the same family afterwards, and find the bank as it was left. ``wrong``:
    seconds that a wrong answer is worth."""

    name: str
    families: tuple[int, ...] = (0, 1, 2, 3)
    teams: int = 3
    leases: bool = True
    dead: float = 1.0
    signal: float = 0.12
    line: int = 28
    lines: int = 60
    once: bool = False
    prefill: float = 6000.0
    token: float = 1 / 2000
    pace: tuple[float, float] = (1.0, 1.0)
    bulk: tuple[float, float] = (1.0, 1.0)
    fit: tuple[float, float] = (1.0, 1.0)
    cheap: float = 0.0
    later: int = 0
    wrong: float = 200.0


REGIMES = (
    Regime("default"),
    Regime("held-out families", (4, 5)),
    Regime("8 teams", teams=8),
    Regime("slow failures", dead=5.0),
    Regime("wrong pages", (6,), signal=0.0),
    Regime("costly context", line=120, token=1 / 400, prefill=2000.0),
    Regime("little overlap", (3,)),
)
"""Those that the issue's table has; the first is the one that is trained on."""

OTHERS = (
    Regime("short prompts", lines=8, once=True),
    Regime("two questions", later=3),
)
"""Two more: eight lines a plan, as agentpar's planners are shown; and a bank that outlives a
question."""


def regime_of(name: str) -> Regime:
    """Raises KeyError."""
    return {one.name: one for one in (*REGIMES, *OTHERS)}[name]


def training_mix(regime: Regime, chance: random.Random) -> Regime:
    """``regime`` as it is drawn for one episode of training: other numbers of teams, faster and
    slower calls, other sizes and embeddings, with and without leases, with and without a question
    afterwards. What is not varied is what the shifted regimes differ in."""
    return replace(
        regime,
        teams=chance.choice((2, 3, 3, 3, 4, 5)) if regime.teams == 3 else regime.teams,
        leases=chance.random() < 0.75,
        pace=(0.02, 1.5) if chance.random() < 0.3 else regime.pace,
        bulk=(0.02, 2.0) if chance.random() < 0.3 else regime.bulk,
        fit=(0.1, 1.1) if chance.random() < 0.5 else regime.fit,
        cheap=0.2,
        later=chance.choice((0, 0, 0, 0, 0, 0, 0, 0, 1, 3)),
        lines=8 if chance.random() < 0.2 else regime.lines,
    )


# A world


@dataclass(slots=True)
class Call:
    """``key`` None: nobody else makes it. ``words``: below `EQUAL` they are those of the others."""

    key: Key | None
    seconds: float
    length: int
    tokens: int
    right: bool
    dead: bool
    words: float
    closeness: float
    quality: float
    jitter: float

    @property
    def answers(self) -> bool:
        return self.key is not None and self.key[1]


@dataclass(slots=True)
class Job:
    """A task of a plan: its calls, the last of which answers ``need``."""

    need: int
    calls: list[Call]
    round: int
    dropped: bool
    astray: float
    mistaken: float
    guessed: bool
    noticed: float


@dataclass(slots=True)
class World:
    """One question, or two that follow on each other. ``near[i][j]``: how alike needs are."""

    regime: Regime
    plans: list[list[Job]]
    starts: list[float]
    waves: list[int]
    near: list[list[float]]


def world(seed: int | str, regime: Regime, family: int | None = None) -> World:
    """The world with this number. Equal seeds give equal worlds; leases are no part of one."""
    chance = random.Random(f"world {seed}")
    kind = FAMILIES[chance.choice(regime.families) if family is None else family]
    near = _near(chance, kind)
    pool = range(kind.pool)
    kinds = chance.choices(range(4), kind.kinds, k=kind.pool)
    hard = [math.exp(chance.gauss(0, 0.45)) for _ in pool]
    dead = [chance.random() < kind.dead for _ in pool]
    right = [chance.random() < kind.right[kinds[i]] for i in pool]
    close = [chance.gauss(0.6, 0.08) for _ in pool]
    pace, bulk, fit = (
        low * (high / low) ** chance.random()
        for low, high in (regime.pace, regime.bulk, regime.fit)
    )
    thrift = 0 if chance.random() < regime.cheap else 1
    weight = [math.exp(-4 * kind.core * i / kind.pool) for i in pool]

    def call(need: int, key: Key | None, seconds: float, length: float) -> Call:
        is_dead = key is not None and not key[1]
        answers = key is not None and key[1]
        found = chance.random() < kind.right[kinds[need]]
        same = chance.random() < COMMON
        fine = (right[need] if same else found) if answers else False
        quality = 0.5 + (regime.signal if fine else -regime.signal) + chance.gauss(0, 0.22)
        length = int(length * bulk * math.exp(chance.gauss(0, 0.35)))
        return Call(
            key,
            seconds * pace * math.exp(chance.gauss(0, 0.3)),
            length,
            thrift * (STEP_TOKENS + length),
            fine,
            is_dead,
            chance.random(),
            fit * ((close[need] if key else chance.gauss(0.52, 0.12)) + chance.gauss(0, 0.05)),
            min(1.0, max(0.0, quality)),
            chance.gauss(0, 0.05),
        )

    def job(need: int, place: int) -> Job:
        calls = []
        if dead[need] and chance.random() < 0.8:
            calls.append(call(need, (need, False), DEAD_SECONDS * regime.dead, DEAD_LENGTH))
        while chance.random() < kind.own / (1 + kind.own):
            calls.append(call(need, None, OWN_SECONDS, OWN_LENGTH))
        seconds = SECONDS[kinds[need]] * hard[need]
        calls.append(call(need, (need, True), seconds, LENGTHS[kinds[need]]))
        return Job(
            need,
            calls,
            int(place > 0 and chance.random() < LATER),
            chance.random() < DROPPED,
            chance.random(),
            chance.random(),
            chance.random() < GUESSED,
            chance.random(),
        )

    def plan() -> list[Job]:
        count = min(kind.pool, chance.randint(kind.fewest, kind.most))
        # Without replacement, by weight (Efraimidis and Spirakis).
        drawn = sorted(pool, key=lambda i: -(chance.random() ** (1 / weight[i])))[:count]
        drawn.sort(key=lambda i: i / kind.pool + chance.gauss(0, 0.5))
        return sorted((job(need, place) for place, need in enumerate(drawn)), key=lambda j: j.round)

    teams = regime.teams + regime.later
    plans = [plan() for _ in range(teams)]
    starts = [chance.uniform(0, 6) for _ in range(teams)]
    waves = [0] * regime.teams + [1] * regime.later
    return World(regime, plans, starts, waves, near)


def _near(chance: random.Random, kind: Family) -> list[list[float]]:
    near = [[0.0] * kind.pool for _ in range(kind.pool)]
    like = list(range(kind.pool))
    for i in range(1, kind.pool):
        if chance.random() < kind.alike:
            like[i] = like[chance.randrange(i)]
    for i in range(kind.pool):
        near[i][i] = 0.9
        for j in range(i):
            middle = 0.72 if like[i] == like[j] else 0.3
            near[i][j] = near[j][i] = middle + chance.gauss(0, 0.08)
    return near


# An episode


@dataclass(frozen=True, slots=True)
class Truth:
    """What only an oracle knows of a finding: whether it is ``sound`` (true, or a dead end that is
    one), whether another team will yet make an equal call (``wanted``), whether the bank ``has``
    one."""

    sound: bool
    wanted: bool
    has: bool


@dataclass(slots=True)
class Decided:
    """A decision, and what became of it: ``credit`` in seconds, ``used`` how often."""

    id: str
    features: Features
    vector: Vector
    probability: float
    admitted: bool
    credit: float = 0.0
    used: int = 0


@dataclass(frozen=True, slots=True)
class Episode:
    """``utility`` in seconds, never above 0: minus run time, tokens and a wrong answer. ``smooth``
    is the same with a rightness that grows with what the teams have right: less noisy to learn
    from, and never what is reported. ``failed`` is the share of teams that answered wrong."""

    utility: float
    smooth: float
    failed: float
    seconds: float
    tokens: int
    calls: int
    right: float
    hits: int
    waits: int
    entries: int
    decided: list[Decided] = field(default_factory=list)


Policy = Callable[[Features, Vector, Truth, random.Random], tuple[bool, float]]
"""Whether a finding enters, and with which probability it does so."""


@dataclass(slots=True)
class _Entry:
    """``shown`` in so many prompts; ``held`` up teams for so many seconds."""

    number: int
    team: int
    need: int
    call: Call
    decided: Decided
    readings: list[Reading]
    shown: int = 0
    held: float = 0.0


@dataclass(slots=True)
class _Team:
    jobs: list[Job]
    wave: int
    begin: float
    pending: list[int]
    mine: Counter[Key] = field(default_factory=Counter)
    mine_coming: Counter[Key] = field(default_factory=Counter)
    shown: list[_Entry] = field(default_factory=list)
    results: list[bool] = field(default_factory=list)
    read: list[_Entry] = field(default_factory=list)
    active: bool = False
    planned: int = -1
    busy: int = 0
    calls: int = 0
    tokens: int = 0
    ended: float = 0.0


def play(
    world: World, policy: Policy, *, leases: bool, seed: int = 0, failures: float = 0.0
) -> Episode:
    """One episode. ``seed`` is for what the policy draws. ``failures``: see `Prices`."""
    return _Play(world, policy, leases, seed).run(failures)


class _Play:
    """An episode as it goes on; `run` is its only door."""

    def __init__(self, world: World, policy: Policy, leases: bool, seed: int) -> None:
        self.near, self.regime = world.near, world.regime
        self.policy, self.leases = policy, leases
        self.chance = random.Random(seed)
        self.bank: list[_Entry] = []
        self.by_key: dict[Key, _Entry] = {}
        self.decided: list[Decided] = []
        self.holders: dict[Key, int] = {}
        self.waiters: dict[Key, list[tuple[int, int, int]]] = {}
        self.heap: list[tuple[float, int, str, int, int, int]] = []
        self.number = self.hits = self.waits = 0
        self.teams = [
            _Team(jobs, wave, start, list(range(len(jobs))))
            for jobs, wave, start in zip(world.plans, world.waves, world.starts, strict=True)
        ]
        # Calls not begun: those that stand in a plan, and all that will be made.
        self.demand: Counter[Key] = Counter()
        self.coming: Counter[Key] = Counter()
        for team in self.teams:
            for job in team.jobs:
                if not job.dropped:
                    _count(job, 1, self.coming, team.mine_coming)

    def run(self, failures: float) -> Episode:
        self._start(0, 0.0)
        while self.heap:
            at, _, what, k, j, place = heapq.heappop(self.heap)
            if what == "begin":
                self._begin(at, k)
            elif what == "call":
                self._call(at, k, j, place)
            else:
                self._finish(at, k, j, place)
        return self._end(failures)

    def _push(self, at: float, what: str, k: int, j: int = 0, place: int = 0) -> None:
        self.number += 1
        heapq.heappush(self.heap, (at, self.number, what, k, j, place))

    def _start(self, wave: int, at: float) -> None:
        """The teams of one question begin."""
        for k, team in enumerate(self.teams):
            if team.wave == wave:
                team.active, team.busy = True, LANES
                self._plan(k, 0)
                for _ in range(LANES):
                    self._push(at + team.begin, "begin", k)

    def _plan(self, k: int, round: int) -> None:
        team = self.teams[k]
        team.planned = round
        for j in team.pending:
            if team.jobs[j].round == round:
                _count(team.jobs[j], 1, self.demand, team.mine)
        if self.regime.once:
            self._read(k)

    def _begin(self, at: float, k: int) -> None:
        """A lane of team ``k`` takes its next task, or is done."""
        team = self.teams[k]
        if team.calls >= MOST_CALLS:
            left = [self._take(k, j) for j in tuple(team.pending)]
            team.results += [job.guessed for job in left if not job.dropped]
        while team.pending:
            if all(team.jobs[j].round > team.planned for j in team.pending):
                self._plan(k, team.planned + 1)
            j = self._next(team)
            job = self._take(k, j)
            if job.dropped:
                continue
            if not self.regime.once:
                self._read(k)
            team.tokens += STEP_TOKENS
            held, mistaken = self._astray(team, job)
            lines = 0 if self.regime.once else len(team.shown)
            reading = self.regime.line * lines / self.regime.prefill
            self._push(at + STEP_SECONDS + reading + held, "call", k, j, -1 if mistaken else 0)
            return
        team.busy -= 1
        if not team.busy:
            team.ended, team.active = at, False
            if not any(one.active for one in self.teams):
                self._start(team.wave + 1, at)

    def _next(self, team: _Team) -> int:
        """The first task; with leases, the first whose call no other team is at."""
        if self.leases:
            for j in team.pending:
                job = team.jobs[j]
                call = job.calls[0]
                if job.round <= team.planned and (
                    call.key not in self.holders or call.words >= EQUAL
                ):
                    return j
        return team.pending[0]

    def _take(self, k: int, j: int) -> Job:
        """Task ``j`` is pending no longer: it begins, or never will."""
        team = self.teams[k]
        team.pending.remove(j)
        job = team.jobs[j]
        if job.round <= team.planned:
            _count(job, -1, self.demand, team.mine)
        if not job.dropped:
            _count(job, -1, self.coming, team.mine_coming)
        return job

    def _read(self, k: int) -> None:
        """Team ``k`` reads a line for each entry of others; of the nearest, if those are many."""
        team = self.teams[k]
        shown = [entry for entry in self.bank if entry.team != k]
        if len(shown) > self.regime.lines:
            shown.sort(key=lambda entry: -entry.call.closeness)
            del shown[self.regime.lines :]
        for entry in shown:
            entry.shown += 1
        team.tokens += self.regime.line * len(shown)
        team.shown = shown

    def _astray(self, team: _Team, job: Job) -> tuple[float, bool]:
        """How long lines that are only like what it looks for hold a team up, and whether it
        believes one."""
        if any(entry.need == job.need and entry.call.answers for entry in team.shown):
            return 0.0, False  # what it looks for is there
        near = self.near[job.need]
        like = [e for e in team.shown if not e.call.dead and near[e.need] + e.call.jitter > 0.65]
        if job.astray >= 1 - (1 - ASTRAY) ** len(like):
            return 0.0, False
        entry = like[-1]
        seconds = DETOUR_SECONDS + entry.call.length / self.regime.prefill
        team.tokens += entry.call.length
        entry.held += seconds + entry.call.length * self.regime.token
        mistaken = job.mistaken < MISTAKEN
        if mistaken:
            entry.held += self.regime.wrong / len(team.jobs)
        return seconds, mistaken

    def _call(self, at: float, k: int, j: int, place: int) -> None:
        team = self.teams[k]
        job = team.jobs[j]
        if place < 0:  # it believed another's answer
            team.results.append(False)
            self._push(at, "begin", k)
            return
        call = job.calls[place]
        key = call.key
        if key is not None:
            entry = self.by_key.get(key)
            shown = entry is not None and any(entry is one for one in team.shown)
            if call.words < (EQUAL_SHOWN if shown else EQUAL):
                if entry is not None and entry.team != k:
                    self._use(at, k, j, place, entry)
                    return
                if self.leases:
                    if key in self.holders:
                        self.waits += 1
                        self.waiters.setdefault(key, []).append((k, j, place))
                        return
                    self.holders[key] = k
        team.calls += 1
        self._push(at + call.seconds, "finish", k, j, place)

    def _use(self, at: float, k: int, j: int, place: int, entry: _Entry) -> None:
        """An entry stands for the call."""
        team, call = self.teams[k], entry.call
        self.hits += 1
        team.tokens += call.length
        team.read.append(entry)
        entry.decided.used += 1
        reading = Reading(entry.decided.id, str(k), j, k, call.seconds, call.tokens, call.length)
        entry.readings.append(reading)
        self._go_on(at + FETCH_SECONDS + call.length / self.regime.prefill, k, j, place, call)

    def _go_on(self, at: float, k: int, j: int, place: int, call: Call) -> None:
        team = self.teams[k]
        if place + 1 < len(team.jobs[j].calls):
            self._push(at, "call", k, j, place + 1)
        else:
            team.results.append(call.right)
            self._push(at, "begin", k)

    def _finish(self, at: float, k: int, j: int, place: int) -> None:
        """A call ends; what it found is offered, and whoever waited goes on."""
        team = self.teams[k]
        job = team.jobs[j]
        call = job.calls[place]
        team.tokens += call.tokens
        key = call.key if call.words < EQUAL else None
        entry = self._offer(k, job, call, key)
        if key is not None and self.holders.get(key) == k:
            del self.holders[key]
            for waiter in self.waiters.pop(key, ()):  # theirs, whether it is kept or not
                self._use(at, *waiter, entry)
        self._go_on(at, k, j, place, call)

    def _offer(self, k: int, job: Job, call: Call, key: Key | None) -> _Entry:
        """What a call found, as an entry; in the bank if it is let in."""
        team = self.teams[k]
        demand = coming = waiting = 0
        if key is not None:
            demand = self.demand[key] - team.mine[key]
            coming = self.coming[key] - team.mine_coming[key]
            waiting = len(self.waiters.get(key, ()))
        others = [one for one in self.teams if one is not team and one.active]
        jobs = sum(len(one.jobs) for one in others)
        near = self.near[job.need]
        like = max((near[entry.need] + entry.call.jitter for entry in self.bank), default=0.0)
        features = Features(
            demand,
            waiting,
            call.seconds,
            call.tokens,
            CHARS * call.length,
            1 - min(1.0, max(0.0, like + call.jitter)),
            call.closeness,
            call.quality,
            sum(len(one.results) for one in others) / jobs if jobs else 0.0,
            job.round + job.calls.index(call),
            len(others),
            self.regime.later > 0,
        )
        vector = features.vector()
        known = key is not None and key in self.by_key
        truth = Truth(call.right or call.dead, coming + waiting > 0, known)
        admitted, probability = self.policy(features, vector, truth, self.chance)
        decided = Decided(str(len(self.decided)), features, vector, probability, admitted)
        self.decided.append(decided)
        entry = _Entry(len(self.bank), k, job.need, call, decided, [])
        if admitted:
            self.bank.append(entry)
            if key is not None:
                self.by_key.setdefault(key, entry)
        return entry

    def _end(self, failures: float) -> Episode:
        regime, teams = self.regime, self.teams
        good = [sum(team.results) >= ENOUGH * len(team.results) for team in teams]
        self._settle(good, failures)
        waves = range(teams[-1].wave + 1)
        right = nearly = 0.0
        for wave in waves:
            votes = [fine for fine, team in zip(good, teams, strict=True) if team.wave == wave]
            right += (2 * sum(votes) > len(votes)) / len(waves)
            nearly += _majority([_nearly(t) for t in teams if t.wave == wave]) / len(waves)
        seconds = max(team.ended for team in teams)
        tokens = sum(team.tokens for team in teams)
        spent = tokens * regime.token * len(waves) / len(teams)
        utility = -(seconds + spent + regime.wrong * (1 - right) * len(waves))
        return Episode(
            utility,
            -(seconds + spent + regime.wrong * (1 - nearly) * len(waves)),
            1 - sum(good) / len(good),
            seconds,
            tokens,
            sum(team.calls for team in teams),
            right,
            self.hits,
            self.waits,
            len(self.bank),
            self.decided,
        )

    def _settle(self, good: Sequence[bool], failures: float) -> None:
        """Credit each entry by its ledger."""
        regime = self.regime
        prices = Prices(regime.token, regime.wrong * 0.3, regime.wrong * 0.3, failures)
        for entry in self.bank:
            uses: dict[str, Use] = {}
            for reading in entry.readings:
                team = self.teams[reading.team]
                job = team.jobs[reading.task_id]
                wrong = entry.call.answers and not entry.call.right
                verdict: Verdict = "sound" if good[reading.team] else "failed"
                if wrong and job.noticed < NOTICED:
                    verdict = "contradicted"
                uses[reading.run_id] = Use(verdict, len(team.read))
            there = Presence(
                entry.shown * regime.line, entry.shown * regime.line / regime.prefill + entry.held
            )
            ledger = Ledger(tuple(entry.readings), frozenset((str(entry.team),)), uses, there)
            entry.decided.credit = worth(ledger, prices).net


def _nearly(team: _Team) -> float:
    """How right a team's answer is, from 0 to 1: a half where it just has enough."""
    share = sum(team.results) / max(1, len(team.results))
    return 1 / (1 + math.exp(-25 * (share - ENOUGH)))


def _majority(chances: Sequence[float]) -> float:
    """How likely more than half of them come true. Teams that share an error err together, which
    a mean over teams would not see."""
    counts = [1.0]  # of how many so far, with which probability
    for p in chances:
        counts = [
            (counts[i] * (1 - p) if i < len(counts) else 0.0) + (counts[i - 1] * p if i else 0.0)
            for i in range(len(counts) + 1)
        ]
    return sum(counts[len(chances) // 2 + 1 :])


def _count(job: Job, by: int, all: Counter[Key], mine: Counter[Key]) -> None:
    for call in job.calls:
        if call.key is not None and call.words < EQUAL:
            all[call.key] += by
            mine[call.key] += by
