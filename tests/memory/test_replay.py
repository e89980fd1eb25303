"""What a replay of recorded teams says is what the executor does over a real bank."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

import pytest

from agentpar.errors import BackendError, UsageError
from agentpar.events import (
    Answered,
    EntryOffered,
    EntryUsed,
    Event,
    JoinStarted,
    LeaseAwaited,
    ModelUsed,
    PlanEnded,
    PlanStarted,
    PlanText,
    RunFinished,
    RunStarted,
    TaskDone,
    TaskPlanned,
    TaskStarted,
    Usage,
)
from agentpar.executor.commands import Join, Plan
from agentpar.executor.driver import Driver, Emit, RunClock
from agentpar.executor.machine import Machine
from agentpar.executor.simulate import run
from agentpar.memory.admission import Admission, Always, ByRule, Novelty
from agentpar.memory.bank import Bank
from agentpar.memory.embed import HashedNgrams
from agentpar.memory.learning.recorded import Pace, RecordedTeam, recorded_team
from agentpar.memory.learning.replay import (
    Conditions,
    Oracle,
    ReplayBank,
    logged,
    replay,
    together,
    trial,
)
from agentpar.memory.seat import Seat
from agentpar.memory.settings import Memory
from agentpar.memory.store import open_store
from agentpar.plan import Ok, Ref, Task
from agentpar.policy import Limits
from agentpar.tools.base import Tool
from agentpar.tools.calc import calc
from agentpar.tools.function import tool

QUESTION = "How do Lima, Quito, La Paz, Bogota and Caracas compare?"
PLACES = ("Lima", "Quito", "La Paz", "Bogota", "Caracas")
INSTANT = Conditions(read=0.0)


@dataclass(frozen=True)
class Script:
    """What one team will do: its tasks with the seconds at which they are written, what each place
    takes to look up, and when plan and answer are there."""

    tasks: tuple[tuple[float, Task], ...]
    seconds: Mapping[str, float]
    plan: float
    join: float
    missing: frozenset[str] = frozenset()


def drawn(seed: int, team: int) -> Script:
    """A team's script: places it looks up, some of them only when another is known."""
    random = Random(f"{seed} {team}")
    at, tasks = random.uniform(0.1, 0.5), []
    for id in range(1, random.randint(2, 5) + 1):
        after = None
        if id > 1 and random.random() < 0.4:
            after = Ref(random.randrange(1, id))
        tasks.append((at, Task.of(id, "look", place=random.choice(PLACES), after=after)))
        at += random.uniform(0.1, 0.9)
    seconds = {place: random.uniform(0.5, 3.0) for place in PLACES}
    missing = frozenset(Random(seed).sample(PLACES, seed % 3))
    return Script(tuple(tasks), seconds, at, random.uniform(0.2, 1.0), missing)


def finding(script: Script) -> Script:
    """The same where nothing is missing."""
    return replace(script, missing=frozenset())


def look(script: Script) -> Tool:
    @tool(name="look", retries=1)
    async def look(place: str, after: str | None = None) -> str:
        """Look a place up.

        Args:
            place: its name
            after: what is known by then
        """
        await asyncio.sleep(script.seconds[place])
        if place in script.missing:
            raise BackendError(f"no page is about {place}")
        return f"{place} is where it is"

    return look


async def perform(script: Script, seat: Seat | None = None, concurrency: int = 64) -> list[Event]:
    """Run a script on the real driver, with a place at a bank or alone."""
    own = look(script)
    chance = str(script.seconds)  # as each run has its own: no two make a call again at one instant
    machine = Machine(Limits(concurrency=concurrency), policies={"look": own.policy}, seed=chance)
    events: list[Event] = []

    async def plan(command: Plan, emit: Emit) -> None:
        emit(PlanStarted(command.round, clock.now()))
        for at, task in script.tasks:
            await asyncio.sleep(at - clock.now())
            emit(TaskPlanned(command.round, task, clock.now()))
        await asyncio.sleep(script.plan - clock.now())
        emit(PlanEnded(command.round, clock.now()))

    async def join(command: Join, emit: Emit) -> None:
        emit(JoinStarted(command.round, clock.now()))
        await asyncio.sleep(script.join)
        emit(Answered(command.round, "Answer: done", at=clock.now()))

    clock = RunClock()
    listening: list[Callable[[Event], None]] = [events.append]
    driver = Driver(
        machine,
        tools={"look": own},
        plan=plan,
        join=join,
        clock=clock,
        shared=seat,
        observers=[*listening, seat.observe] if seat else listening,
    )
    started = RunStarted("R", QUESTION)
    if seat is None:
        await driver.run(started)
        return events
    seat.tell = lambda event: driver.emit(replace(event, at=clock.now()))
    seat.tools = {"look": own}
    async with seat:
        await driver.run(started)
    return events


async def side_by_side(
    scripts: Sequence[Script], admission: Admission, lease: float | None, concurrency: int
) -> tuple[list[list[Event]], int]:
    """The scripts' teams over one real bank; their events, and the entries it holds."""
    store = open_store(None)
    settings = Memory(lease=lease)
    embed = HashedNgrams().embed
    bank = Bank(store, admission, namespace="t", settings=settings, embed=embed)
    bank.held += 1  # it stays when the last of its teams has gone
    await bank.start()
    seats = [Seat(bank, f"R.{team}", team=team) for team in range(1, len(scripts) + 1)]
    events = await asyncio.gather(
        *(perform(script, seat, concurrency) for script, seat in zip(scripts, seats, strict=True))
    )
    entries = store.statistics().entries
    await bank.stop()
    return list(events), entries


def alone(script: Script, **known: object) -> RecordedTeam:
    return recorded_team(run(perform(script)), {"look": look(script)}, **known)


@pytest.mark.parametrize("concurrency", [64, 2])
@pytest.mark.parametrize("lease", [30.0, None])
@pytest.mark.parametrize("policy", ["none", "all", "novelty", "rule"])
def test_a_replay_agrees_with_the_executor_over_a_real_bank(
    policy: str, lease: float | None, concurrency: int
) -> None:
    """Teams recorded alone and replayed come to the same times, calls, uses and entries as the
    same teams run over a bank in SQLite, in virtual time."""

    def admission() -> Admission:
        match policy:
            case "novelty":
                return Novelty()
            case "rule":
                return ByRule()
            case _:
                return Always(policy == "all")

    used = 0
    for seed in range(12):
        scripts = [drawn(seed, team) for team in range(1, 2 + seed % 3 + 1)]
        if concurrency < 64:  # a call that waits to be made again leaves its place to others
            scripts = [finding(script) for script in scripts]
        teams = [alone(script, team=team) for team, script in enumerate(scripts, 1)]
        conditions = replace(INSTANT, leases=lease is not None, concurrency=concurrency)
        again = replay(teams, admission(), conditions)
        events, entries = run(side_by_side(scripts, admission(), lease, concurrency))
        ends = [told[-1].at for told in events]
        uses = [event for told in events for event in told if isinstance(event, EntryUsed)]
        waits = [event for told in events for event in told if isinstance(event, LeaseAwaited)]
        offers = [event for told in events for event in told if isinstance(event, EntryOffered)]
        assert again.ends == pytest.approx(ends, abs=0.005), seed
        assert again.used == len(uses), seed
        assert again.awaited == len(waits), seed
        assert again.entries == entries, seed
        said = [(offer.team, offer.decision.admitted) for offer in again.decisions]
        assert sorted(said) == sorted(
            (team, event.admitted)
            for team, told in enumerate(events, 1)
            for event in told
            if isinstance(event, EntryOffered)
        ), seed
        assert len(said) == len(offers)
        used += again.used
    assert used > 0 or (policy in ("none", "rule") and lease is None)


def test_replays_are_equal_each_time() -> None:
    """Nothing of a replay is left to chance."""
    teams = [alone(drawn(3, team), team=team) for team in (1, 2, 3)]
    assert replay(teams, Novelty()) == replay(teams, Novelty())


def test_without_a_bank_each_team_does_what_it_did_alone() -> None:
    """A replay without a policy is the recording: its times, and all its calls."""
    teams = [alone(drawn(5, team), team=team) for team in (1, 2, 3)]
    again = replay(teams, None)
    assert again.ends == pytest.approx([team.seconds for team in teams], abs=1e-6)
    assert again.made == sum(call.seconds is not None for team in teams for call in team.calls)
    assert (again.used, again.entries, again.decisions) == (0, 0, ())


def test_the_oracle_keeps_only_what_is_used_and_makes_no_more_calls_than_anyone() -> None:
    """It admits what another team will still ask for: as few calls as with everything admitted,
    and no entry that nobody reads."""
    for seed in range(12):
        teams = [alone(drawn(seed, team), team=team) for team in (1, 2, 3)]
        oracle, everything = replay(teams, Oracle()), replay(teams, Always(True))
        assert oracle.made == everything.made
        assert oracle.entries <= everything.entries
        read = {reading.entry_id for reading in oracle.readings}
        admitted = {offer.entry for offer in oracle.decisions if offer.decision.admitted}
        assert admitted <= read


def test_a_project_s_bank_spares_the_next_day_its_calls() -> None:
    """What one replay leaves in a bank serves the next; its readings tell of entries from then."""
    teams = [alone(finding(drawn(4, team)), team=team) for team in (1, 2)]
    bank = ReplayBank()
    first = replay(teams, Always(True), bank=bank, run_id="monday")
    second = replay(teams, Always(True), bank=bank, run_id="tuesday")
    assert first.made > 0
    assert second.made == 0
    assert second.seconds < first.seconds
    assert len(second.readings) == second.used


def test_a_server_that_writes_one_text_at_a_time_puts_the_teams_in_a_line() -> None:
    """Plans and answers wait for each other: the last team is done no sooner than all of them
    were written, and then it finds in the bank what the first has found."""
    script = finding(drawn(0, 1))
    teams = [alone(script, team=team) for team in (1, 2, 3)]
    free, one = replay(teams, Always(True)), replay(teams, Always(True), Conditions(texts=1))
    writing = 3 * (script.plan + script.join)
    assert free.seconds < writing <= one.seconds
    assert one.made == free.made == replay(teams[:1], Always(True)).made


def test_a_lease_that_runs_out_is_taken_over() -> None:
    """Who has waited as long as a lease holds makes the call itself."""
    slow, quick = drawn(0, 1), drawn(0, 1)
    tasks = ((0.1, Task.of(1, "look", place="Lima")),)
    slow = replace(slow, tasks=tasks, seconds={"Lima": 9.0})
    quick = replace(quick, tasks=((0.2, Task.of(1, "look", place="Lima")),), seconds={"Lima": 1.0})
    teams = [alone(slow, team=1), alone(quick, team=2)]
    again = replay(teams, Always(True), Conditions(hold=2.0))
    assert again.made == 2
    assert again.ends[1] == pytest.approx(0.1 + 2.0 + 1.0 + quick.join)


def test_a_recorded_team_is_the_same_after_it_was_written_and_read() -> None:
    """One line of JSON holds all that a replay needs."""
    team = alone(drawn(7, 1), team=1, family="places", right=True)
    back = RecordedTeam.from_line(team.line())
    assert back.line() == team.line()
    assert (back.family, back.right, back.team) == ("places", True, 1)
    with pytest.raises(UsageError, match="not a recorded team"):
        RecordedTeam.from_line('{"question": "?"}')


def test_a_pace_gives_the_planner_s_lines_their_time() -> None:
    """Lines come when as many pieces of text are written; what calls took stays."""
    task = Task.of(1, "look", place="Lima")
    events: list[Event] = [
        RunStarted("R", QUESTION),
        PlanStarted(1, 0.0),
        PlanText(1, "1. look", 5.0),
        PlanText(1, '(place="Lima")', 6.0),
        TaskPlanned(1, task, 6.0),
        TaskStarted(1, {"place": "Lima"}, 6.0),
        PlanText(1, "join()", 7.0),
        PlanEnded(1, 7.0),
        ModelUsed("plan", 1, Usage(100, 3, 0, 1), at=7.0),
        TaskDone(1, Ok("there"), 8.0),
        JoinStarted(1, 8.0),
        ModelUsed("join", 1, Usage(200, 4, 50, 1), at=9.0),
        Answered(1, "Answer: Lima", at=9.0),
        RunFinished("answered", at=9.0),
    ]
    team = recorded_team(events)
    assert (team.conclusion, team.tokens, team.seconds) == ("Lima", 307, 9.0)
    paced = team.at(Pace(0.5, 0.1))
    [call] = paced.calls
    assert call.written == pytest.approx(0.7)
    assert call.seconds == pytest.approx(2.0)
    assert paced.rounds[0].plan_seconds == pytest.approx(0.8)
    assert paced.rounds[0].join_seconds == pytest.approx(0.9)


def test_calls_that_compute_are_nobody_else_s() -> None:
    """A call of calc is made by each team itself, also where only its name is recorded."""
    events: list[Event] = [
        RunStarted("R", QUESTION),
        PlanStarted(1, 0.0),
        TaskPlanned(1, Task.of(1, "calc", expression="1 + 1"), 0.1),
        TaskStarted(1, {"expression": "1 + 1"}, 0.1),
        TaskDone(1, Ok(2), 0.2),
        PlanEnded(1, 0.3),
        RunFinished("failed", at=0.4),
    ]
    for tools in (None, {"calc": calc}):
        team = recorded_team(events, tools)
        again = replay([team, team], Always(True))
        assert (again.made, again.used, again.entries) == (2, 0, 0)


def test_a_gate_is_tried_on_the_same_episodes_as_any_other() -> None:
    """What promotion asks for: the utility of each recorded question under any gate, in seconds,
    never above 0, and with everything admitted at least what it is with nothing."""
    groups = [
        [alone(finding(drawn(seed, team)), team=team) for team in (1, 2, 3)] for seed in range(6)
    ]
    tried = trial(groups, Conditions(leases=False))
    nothing, everything = tried(lambda seen: False), tried(lambda seen: True)
    assert len(nothing) == len(everything) == 6
    assert all(one <= 0 for one in nothing)
    assert sum(everything) > sum(nothing)


def test_teams_are_put_together_by_their_question_and_run() -> None:
    """Teams of one question stand together in the order of their number; a run of teams by
    itself."""
    one = alone(drawn(1, 1), team=1)
    some = [
        replace(one, team=team, question=question, group=group)
        for team, question, group in ((2, "a", ""), (1, "a", ""), (1, "b", ""), (2, "a", "R"))
    ]
    found = [[(t.question, t.group, t.team) for t in teams] for teams in together(some)]
    assert found == [[("a", "", 1), ("a", "", 2)], [("b", "", 1)], [("a", "R", 2)]]
    with pytest.raises(UsageError, match="on one question"):
        replay(some, None)
    events = [RunStarted("20261126-1.3", "a"), RunFinished("failed")]
    assert (recorded_team(events).group, recorded_team(events).team) == ("20261126-1", 3)


def test_a_replay_s_decisions_are_what_learners_read() -> None:
    """Each decision has its features and, where it was admitted, what its readers were spared."""
    teams = [alone(drawn(3, team), team=team) for team in (1, 2, 3)]
    again = replay(teams, Always(True), run_id="R")
    lines = logged(again, run_id="R")
    assert len(lines) == len(again.decisions)
    spared = sum(reading.spared_seconds for reading in again.readings)
    assert sum(line.credit or 0.0 for line in lines) == pytest.approx(spared)
    assert spared > 0
    kept_out = logged(replay(teams, Always(False), run_id="R"), run_id="R")
    assert all(line.credit is None and not line.admitted for line in kept_out)
