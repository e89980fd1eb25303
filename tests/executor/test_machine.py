"""The machine under random plans, completion orders, failures, approvals, limits and replans.

A `World` says what every task, approver, planner and joiner will do; only the order in
which they do it is drawn anew. So whatever differs between two walks through one world is
a fault of the machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentpar.errors import PlanError
from agentpar.events import (
    Answered,
    ApprovalGiven,
    AttemptFailed,
    Event,
    JoinFailed,
    PlanEnded,
    PlanFailed,
    PlanFault,
    PlanText,
    ReplanAsked,
    RunResumed,
    RunStarted,
    TaskDone,
    TaskPlanned,
    TaskStarted,
)
from agentpar.executor.commands import Ask, Command, Execute, Finish, Join, Plan, Settle, Wake
from agentpar.executor.machine import Machine
from agentpar.executor.resume import catch_up
from agentpar.permissions import Flow, Permissions, Rule
from agentpar.plan import Failed, Ok, Outcome, Ref, Skipped, Task
from agentpar.planner.prompts import observations
from agentpar.policy import Limits, Policy

RISKY = Permissions(flows={"send": Flow("write")})
START = RunStarted("run", "Chile or Peru?")


@dataclass(frozen=True)
class World:
    """What will happen, but not when. ``plans``: per round its lines and how it ends."""

    plans: Sequence[Sequence[Event]]
    broken: frozenset[int]  # tasks whose tool raises
    denied: frozenset[int]  # calls that the approver refuses
    limits: Limits
    stubborn: bool  # the joiner asks for another plan even where it may not

    def after(self, command: Command, told: Sequence[Event]) -> list[Event]:
        """What happens because of ``command``; ``told`` is what a broken-off plan has said."""
        match command:
            case Execute(task):
                if task.id in self.broken:
                    return [TaskDone(task.id, Failed(f"tool {task.id} broke"))]
                return [TaskDone(task.id, Ok({"of": task.id}))]
            case Settle(id, outcome):
                return [TaskDone(id, outcome)]
            case Ask(task, bound=bound):
                return [ApprovalGiven(task.id, task.id not in self.denied, "no", bound)]
            case Plan(round):
                left = list(told)  # a line may come twice
                return [e for e in self.plans[round - 1] if not _taken(left, e)]
            case Join(round, final):
                more = self.stubborn or (not final and round < len(self.plans))
                return [ReplanAsked(round, "more") if more else Answered(round, "done")]
            case Finish():
                return []


def _taken(left: list[Event], event: Event) -> bool:
    """Whether ``event`` is one of ``left``, which then has one less."""
    if event not in left:
        return False
    left.remove(event)
    return True


@st.composite
def worlds(draw: st.DrawFn) -> World:
    limits = Limits(
        max_tasks=draw(st.integers(1, 12)),
        max_replans=draw(st.integers(0, 2)),
        concurrency=draw(st.integers(1, 4)),
    )
    plans: list[list[Event]] = []
    known: list[int] = []
    last = 0
    for round in range(1, limits.max_replans + 2):
        lines: list[Event] = []
        for _ in range(draw(st.integers(0, 6))):
            id = last + draw(st.sampled_from([1, 1, 1, 2, 5]))
            kind = draw(st.sampled_from(["task"] * 8 + ["fault", "loose fault"]))
            if kind == "loose fault":
                lines.append(PlanFault(round, f"cannot be read after {last}", "???"))
                continue
            last = id
            if kind == "fault":
                lines.append(PlanFault(round, f"line {id} is bad", "???", id))
            else:
                targets = st.sampled_from([*known, *known, id, id + 1]) if known else st.just(id)
                needs = draw(st.lists(targets, max_size=3)) if known else []
                # A path that leads nowhere now and then.
                paths = st.sampled_from([(), ("of",), ("of",), ("none",)])
                args = {f"a{n}": Ref(need, draw(paths)) for n, need in enumerate(needs)}
                tool = draw(st.sampled_from(["get", "get", "send"]))
                lines.append(TaskPlanned(round, Task.of(id, tool, "", **args)))
            known.append(id)
        broke = draw(st.sampled_from([False] * 5 + [True]))
        lines.append(PlanFailed(round, "planner broke") if broke else PlanEnded(round))
        plans.append(lines)
    some = st.frozensets(st.sampled_from(known), max_size=4) if known else st.just(frozenset())
    stubborn = draw(st.sampled_from([False, False, True]))
    return World(plans, draw(some), draw(some), limits, stubborn)


@dataclass
class Walk:
    """One walk through a world: answers the machine's commands in an order of ``random``."""

    world: World
    random: Random
    machine: Machine = field(init=False)
    history: list[Event] = field(default_factory=list)
    commands: list[Command] = field(default_factory=list)
    executed: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.machine = Machine(self.world.limits, RISKY)
        self._open: list[list[Event]] = []  # per command not yet met: what will happen
        self._running: set[int] = set()

    def go(self) -> Walk:
        self.take(START)
        return self.finish()

    def resume(self, history: Sequence[Event]) -> Walk:
        self.history = list(history)
        for command in catch_up(self.machine, history):
            self.want(command)
        if not history:
            self.take(START)
        return self.finish()

    def finish(self) -> Walk:
        while self._open:
            at = self.random.randrange(len(self._open))
            event = self._open[at].pop(0)
            if not self._open[at]:
                del self._open[at]
            self.take(event)
        return self

    def take(self, event: Event) -> None:
        self.history.append(event)
        if isinstance(event, TaskDone):
            assert event.task_id not in self.machine.outcomes, "settled twice"
            self._running.discard(event.task_id)
        for command in self.machine.handle(event):
            self.want(command)

    def want(self, command: Command) -> None:
        self.commands.append(command)
        match command:
            case Execute(task):
                assert task.id not in self.executed, "executed twice"
                assert all(isinstance(self.machine.outcomes[need], Ok) for need in task.needs)
                self.executed.append(task.id)
                self._running.add(task.id)
                assert len(self._running) <= self.world.limits.concurrency
            case Plan(round, first_id):
                used = [line.task.id for line in self.told(round) if isinstance(line, TaskPlanned)]
                assert not used or first_id > max(used)
        if events := self.world.after(command, self.history):
            self._open.append(events)

    def told(self, round: int) -> list[Event]:
        return [event for event in self.world.plans[round - 1] if event in self.history]

    @property
    def seen(self) -> tuple[dict[int, Outcome], str]:
        """How it ended, and what the joiner saw."""
        machine = self.machine
        text = observations(machine.tasks, machine.outcomes, machine.faults)
        return dict(sorted(machine.outcomes.items())), text


@given(worlds(), st.randoms(use_true_random=False))
def test_every_run_ends_and_every_task_with_it(world: World, random: Random) -> None:
    """No world and no order makes it hang, settle twice, or break a limit."""
    machine = (walk := Walk(world, random).go()).machine
    assert machine.finished is not None
    assert set(machine.tasks) <= set(machine.outcomes)
    assert len(walk.executed) <= world.limits.max_tasks
    assert machine.round <= world.limits.max_replans + 1
    done = [event.task_id for event in walk.history if isinstance(event, TaskDone)]
    assert sorted(done) == sorted(machine.tasks)
    assert [c for c in walk.commands if isinstance(c, Finish)] == [machine.finished]


@given(worlds(), st.randoms(use_true_random=False))
def test_outcomes_are_what_the_needs_allow(world: World, random: Random) -> None:
    """Skipped names a need that has no value; Ok and tool failures had all of theirs."""
    machine = (walk := Walk(world, random).go()).machine
    for id, task in machine.tasks.items():
        outcome = machine.outcomes[id]
        without = [
            need for need in task.needs if not isinstance(machine.outcomes.get(need, None), Ok)
        ]
        match outcome:
            case Ok():
                assert not without
                assert id in walk.executed
            case Skipped(because):
                assert because == without[0]
                assert id not in walk.executed
            case Failed(_, "denied"):
                assert id in world.denied
                assert id not in walk.executed
            case Failed(_, "tool"):
                assert id in world.broken
                assert id in walk.executed
            case Failed(_, kind):
                assert kind in ("plan", "reference")
                assert id not in walk.executed


@given(worlds(), st.randoms(use_true_random=False), st.randoms(use_true_random=False))
def test_order_changes_nothing_that_the_joiner_sees(world: World, one: Random, two: Random) -> None:
    """Two orders of completion: equal outcomes, and the same text for the joiner."""
    first, second = Walk(world, one).go(), Walk(world, two).go()
    assert first.seen == second.seen
    assert first.machine.finished == second.machine.finished


@given(worlds(), st.randoms(use_true_random=False))
def test_equal_facts_give_equal_commands(world: World, random: Random) -> None:
    """A fresh machine told the same history wants the same things in the same order."""
    walk = Walk(world, random).go()
    again = Machine(world.limits, RISKY)
    assert [c for event in walk.history for c in again.handle(event)] == walk.commands


@given(worlds(), st.randoms(use_true_random=False), st.data())
def test_a_cut_history_carries_on(world: World, random: Random, data: Any) -> None:
    """Wherever a run breaks off: the rest ends alike, and no finished task runs again."""
    whole = Walk(world, random).go()
    cut = data.draw(st.integers(0, len(whole.history)))
    past = whole.history[:cut]
    rest = Walk(world, random).resume(past)
    assert rest.seen == whole.seen
    assert rest.machine.finished == whole.machine.finished
    finished = {event.task_id for event in past if isinstance(event, TaskDone)}
    assert finished.isdisjoint(rest.executed)


# By hand: what the properties would only say in passing


def machine_of(*tasks: Task, **limits: int) -> tuple[Machine, list[Command]]:
    machine = Machine(Limits(**limits), RISKY)
    machine.handle(START)
    return machine, [c for task in tasks for c in machine.handle(TaskPlanned(1, task))]


def test_task_runs_while_the_plan_is_still_written() -> None:
    """Execute comes with the task's own line, not with the plan's end."""
    task = Task.of(1, "get", country="Chile")
    _, commands = machine_of(task)
    assert commands == [Execute(task, {"country": "Chile"})]


def test_dependant_gets_values() -> None:
    """A reference is filled with the value it points to, of its type."""
    machine, _ = machine_of(Task.of(1, "get"), second := Task.of(2, "get", n=Ref(1, ("items", 0))))
    assert machine.handle(TaskDone(1, Ok({"items": [19]}))) == [Execute(second, {"n": 19})]


def test_skip_names_the_first_need_whichever_failed_first() -> None:
    """Both needs fail; the skip waits for both and names the first in writing order."""
    for order in ((1, 2), (2, 1)):
        machine, _ = machine_of(
            Task.of(1, "get"), Task.of(2, "get"), Task.of(3, "get", a=Ref(1), b=Ref(2))
        )
        assert machine.handle(TaskDone(order[0], Failed("x"))) == []
        assert machine.handle(TaskDone(order[1], Failed("x"))) == [Settle(3, Skipped(1))]


def test_limit_queues_in_order() -> None:
    """Ready calls beyond the limit wait, and go first come, first served."""
    tasks = [Task.of(id, "get") for id in range(1, 5)]
    machine, commands = machine_of(*tasks, concurrency=2)
    assert commands == [Execute(tasks[0]), Execute(tasks[1])]
    assert machine.handle(TaskDone(2, Ok(1))) == [Execute(tasks[2])]
    assert machine.handle(TaskDone(1, Ok(1))) == [Execute(tasks[3])]


def test_calls_that_wait_for_approval_leave_room() -> None:
    """An unanswered question to the user holds up nothing but its own call."""
    send, get = Task.of(1, "send"), Task.of(2, "get")
    machine, commands = machine_of(send, get, concurrency=1)
    ask, second = commands
    assert isinstance(ask, Ask)
    assert second == Execute(get)
    assert machine.handle(ApprovalGiven(1, True, bound=ask.bound)) == []  # the limit holds here too
    assert machine.handle(TaskDone(2, Ok(1))) == [Execute(send)]


def test_second_verdict_changes_nothing() -> None:
    """Approval is given once."""
    machine, [ask] = machine_of(Task.of(1, "send"))
    assert isinstance(ask, Ask)
    assert len(machine.handle(ApprovalGiven(1, False, bound=ask.bound))) == 1
    assert machine.handle(ApprovalGiven(1, True, bound=ask.bound)) == []


def test_tasks_over_the_limit_are_told_not_dropped() -> None:
    """Every line beyond max_tasks ends as a failure that says so."""
    _, commands = machine_of(*(Task.of(id, "get") for id in (1, 2, 3)), max_tasks=2)
    assert commands[2] == Settle(3, Failed("the plan has more than max_tasks=2 tasks", "plan"))


@pytest.mark.parametrize("first", [TaskPlanned(1, Task.of(1, "get")), PlanFault(1, "bad", "", 1)])
def test_a_number_is_used_once(first: Event) -> None:
    """The planner sees to it; a machine told otherwise says so."""
    machine, _ = machine_of()
    machine.handle(first)
    with pytest.raises(PlanError, match="task 1 is planned twice"):
        machine.handle(TaskPlanned(1, Task.of(1, "get")))


def test_numbers_go_on_in_the_next_round() -> None:
    """Faulty lines use up their numbers, so old references stay what they were."""
    machine, _ = machine_of(Task.of(3, "get"))
    machine.handle(PlanFault(1, "bad", "7. x(", 7))
    machine.handle(TaskDone(3, Ok(1)))
    assert machine.handle(PlanEnded(1)) == [Join(1, final=False)]
    assert machine.handle(ReplanAsked(1, "more")) == [Plan(2, 8, "more")]


def test_empty_plan_is_joined() -> None:
    """No task at all still gets an answer."""
    machine, _ = machine_of()
    assert machine.handle(PlanEnded(1)) == [Join(1, final=False)]


def test_broken_planner_without_tasks_fails_the_run() -> None:
    """There is nothing to answer from, so the planner's error is the run's."""
    machine, _ = machine_of()
    assert machine.handle(PlanFailed(1, "server gone")) == [Finish("failed", "server gone")]


def test_broken_planner_with_tasks_is_joined() -> None:
    """What was planned before the break stands."""
    machine, _ = machine_of(Task.of(1, "get"))
    machine.handle(PlanFailed(1, "server gone"))
    assert machine.handle(TaskDone(1, Ok(1))) == [Join(1, final=False)]


def test_planner_that_breaks_after_its_end_joins_once() -> None:
    """A late error changes nothing: the plan is complete."""
    machine, _ = machine_of()
    machine.handle(PlanEnded(1))
    assert machine.handle(PlanFailed(1, "late")) == []


def test_asking_again_when_plans_are_spent_fails_the_run() -> None:
    """Rounds are bounded, and the message names the setting and what was missing."""
    machine, _ = machine_of(max_replans=0)
    assert machine.handle(PlanEnded(1)) == [Join(1, final=True)]
    spent = Finish("failed", "asked to replan, but max_replans=0 is spent: Peru")
    assert machine.handle(ReplanAsked(1, "Peru")) == [spent]


def test_facts_after_the_end_want_nothing() -> None:
    """A finished run stays finished."""
    machine, _ = machine_of()
    assert machine.handle(JoinFailed(1, "gone")) == [Finish("failed", "gone")]
    assert machine.handle(TaskPlanned(1, Task.of(1, "get"))) == []


def test_text_decides_nothing() -> None:
    """Pieces of a stream are for the readers."""
    machine, _ = machine_of()
    assert machine.handle(PlanText(1, "1. get(")) == []


def test_a_plan_that_broke_off_goes_on_behind_its_last_number() -> None:
    """What it planned stands; asking again must not plan the same numbers."""
    machine = Machine()
    due = catch_up(machine, [START, TaskPlanned(1, task := Task.of(4, "get"))])
    assert due == [Plan(1, 5), Execute(task)]


def test_an_event_of_a_clock_that_was_set_back_moves_no_time() -> None:
    """A pause counts on from the latest time that was ever told."""
    policies = {"get": Policy(retries=1, backoff=1.0)}
    machine = Machine(policies=policies)
    machine.handle(START)
    machine.handle(TaskPlanned(1, Task(1, "get", {}), at=100.0))
    (wake,) = machine.handle(AttemptFailed(1, Failed("no"), at=5.0))
    assert isinstance(wake, Wake)
    assert 100.5 <= wake.at <= 101.0


def test_a_call_that_is_judged_anew_keeps_the_tries_that_it_has_spent() -> None:
    """One of two has failed when the process dies; the next one asks, and makes one more."""
    machine = Machine(policies={"get": Policy(retries=1)})
    machine.handle(START)
    machine.handle(TaskPlanned(1, Task(1, "get", {})))
    machine.handle(TaskStarted(1))
    assert isinstance(machine.handle(AttemptFailed(1, Failed("no")))[0], Wake)
    rules = Permissions((Rule("get", "ask"),))
    (ask,) = machine.handle(RunResumed((), rules))
    assert isinstance(ask, Ask)
    (call,) = machine.handle(ApprovalGiven(1, True, bound=ask.bound))
    assert isinstance(call, Execute)
    assert call.attempt == 2
    machine.handle(TaskStarted(1, attempt=2))
    assert machine.handle(AttemptFailed(1, Failed("no"), attempt=2)) == [Settle(1, Failed("no"))]
