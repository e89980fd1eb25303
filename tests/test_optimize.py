"""Smaller plans: they come to what the whole plan comes to, whatever fails on the way."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_plans import READS, WRITE, call, plans

from agentpar.errors import UsageError
from agentpar.events import PlanEnded, RunStarted, TaskDone, TaskPlanned
from agentpar.executor.commands import Execute, Settle
from agentpar.executor.machine import Machine
from agentpar.executor.naive import interpret, perform
from agentpar.optimize import batches, drop_dead, merge_equal
from agentpar.plan import EACH, Failed, Ok, Outcome, Pick, Ref, Skipped, Task, each

RISKY = {WRITE}


class World:
    """Calls the tools of `random_plans` and counts the calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []

    def __call__(self, tool: str, args: Mapping[str, Any]) -> Outcome:
        self.calls.append((tool, repr(args)))
        return call(tool, args)


def renamed(outcome: Outcome, same: Mapping[int, int]) -> Outcome:
    """``outcome`` with the ids it names after merging; a reference's words are left aside."""
    match outcome:
        case Skipped(because):
            return Skipped(same.get(because, because))
        case Failed(_, "reference"):
            return Failed("", "reference")
    return outcome


@given(plans())
@settings(max_examples=150, deadline=None)
def test_merging_equal_calls_changes_no_outcome(tasks: list[Task]) -> None:
    """Failures, skips, picks and lists included; and no call is made that was not made before."""
    plain, smaller = World(), World()
    whole = interpret(tasks, plain)
    merged = merge_equal(tasks, RISKY)
    kept = interpret(merged.tasks, smaller)
    for task in tasks:
        now = kept[merged.same.get(task.id, task.id)]
        assert renamed(now, merged.same) == renamed(whole[task.id], merged.same)
    assert sorted(kept) == sorted({t.id for t in tasks} - merged.same.keys())
    left = list(plain.calls)
    for made in smaller.calls:
        left.remove(made)
    assert all(tool != WRITE for tool, _ in left)


@given(plans())
@settings(max_examples=80, deadline=None)
def test_of_equal_calls_one_stays(tasks: list[Task]) -> None:
    """Merging again finds nothing, and what is gone is a read that nothing races."""
    merged = merge_equal(tasks, RISKY)
    assert merge_equal(merged.tasks, RISKY) == type(merged)(merged.tasks, {})
    tools = {task.id: task.tool for task in tasks}
    assert all(tools[gone] == tools[kept] in READS for gone, kept in merged.same.items())


@given(plans(), st.data())
@settings(max_examples=100, deadline=None)
def test_without_dead_calls_every_goal_comes_to_the_same(
    tasks: list[Task], data: st.DataObject
) -> None:
    """And every write is still made."""
    goals = data.draw(st.none() | st.sets(st.sampled_from([task.id for task in tasks])))
    whole, alive = World(), World()
    before = interpret(tasks, whole)
    after = interpret(drop_dead(tasks, goals, RISKY), alive)
    assert after == {id: before[id] for id in after}
    assert after.keys() >= (before.keys() if goals is None else goals)
    assert [c for c in alive.calls if c[0] == WRITE] == [c for c in whole.calls if c[0] == WRITE]


@given(plans(), st.integers(1, 3))
@settings(max_examples=100, deadline=None)
def test_batches_come_to_what_their_calls_come_to(tasks: list[Task], limit: int) -> None:
    """A plan run level by level, each batch before any of it has ended, is the plan run one by one.

    One by one in that same order: a pick goes by what ended first.
    """
    groups = batches(tasks, dict.fromkeys(READS, limit), RISKY)
    assert all(1 < len(group) <= limit for group in groups)
    plan = {task.id: task for task in tasks}
    depth: dict[int, int] = {}
    for task in tasks:
        depth[task.id] = 1 + max((depth[need] for need in task.needs), default=0)
    group_of = {id: group for group in groups for id in group}
    outcomes: dict[int, Outcome] = {}
    for id in sorted(plan, key=lambda id: (depth[id], id)):
        if id in outcomes:
            continue
        group = group_of.get(id, (id,))
        assert len({(plan[i].tool, depth[i]) for i in group}) == 1
        outcomes |= {i: perform(plan[i], call, dict(outcomes)) for i in group}
    assert outcomes == interpret(tasks, call, order=list(outcomes))
    left = [t for t in tasks if t.id not in group_of and t.tool in READS and each(t.args) is None]
    levels = [(depth[t.id], t.tool) for t in left]
    assert limit == 1 or all(levels.count(level) == 1 for level in levels)


@given(plans(picks=False, stars=False), st.randoms(use_true_random=False))
@settings(max_examples=80, deadline=None)
def test_the_machine_comes_to_what_the_naive_interpreter_comes_to(
    tasks: list[Task], random: Any
) -> None:
    """Whatever the order in which its calls end."""
    machine = Machine()
    machine.handle(RunStarted("r", "?"))
    due: deque[Any] = deque()
    for event in (*(TaskPlanned(1, task) for task in tasks), PlanEnded(1)):
        due.extend(machine.handle(event))
    while due:
        due.rotate(random.randrange(len(due)))
        match due.popleft():
            case Execute(task, args):
                due.extend(machine.handle(TaskDone(task.id, call(task.tool, args))))
            case Settle(id, outcome):
                due.extend(machine.handle(TaskDone(id, outcome)))
    assert machine.outcomes == interpret(tasks, call)


def test_equal_calls_behind_equal_calls_merge_too() -> None:
    """Two searches, then two pages of theirs: one search and one page."""
    merged = merge_equal(
        [
            Task.of(1, "search", query="x"),
            Task.of(2, "search", query="x"),
            Task.of(3, "fetch", url=Ref(1, ("url",)), find="a"),
            Task.of(5, "fetch", find="a", url=Ref(2, ("url",))),
            Task.of(7, "show", of=[Ref(5), Ref(3)]),
        ]
    )
    assert merged.same == {2: 1, 5: 3}
    assert merged.tasks[-1] == Task.of(7, "show", of=[Ref(3), Ref(3)])


@pytest.mark.parametrize(
    ("one", "other"),
    [({"a": 1}, {"a": True}), ({"a": 1}, {"a": 1.0}), ({"a": "1"}, {"a": 1}), ({}, {"a": None})],
)
def test_what_python_takes_for_equal_is_not_merged(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    """A tool can tell 1 from true."""
    assert not merge_equal([Task(1, "f", one), Task(2, "f", other)]).same


def test_calls_that_race_or_write_stay() -> None:
    """``any($1, $2)`` of equal calls is a hedge, and sending twice is not sending once."""
    race = [Task.of(1, "f"), Task.of(2, "f"), Task.of(3, "g", x=Pick((Ref(1), Ref(2))))]
    assert not merge_equal(race).same
    assert not merge_equal([Task.of(1, "send"), Task.of(2, "send")], {"send"}).same


def test_a_batch_holds_calls_of_one_depth() -> None:
    """In pieces of the tool's limit; a call over a list is a batch already."""
    tasks = [
        Task.of(1, "search"),
        *(Task.of(id, "fetch", url=Ref(1, (id, "url"))) for id in range(2, 7)),
        Task.of(7, "fetch", url=Ref(2)),
        Task.of(8, "fetch", url=Ref(1, (EACH, "url"))),
    ]
    assert batches(tasks, {"fetch": 2, "search": 9}) == [(2, 3), (4, 5)]
    assert batches(tasks, {"fetch": 1}) == []


def test_a_goal_that_is_no_task_is_refused() -> None:
    """With its number."""
    with pytest.raises(UsageError, match="no task 9"):
        drop_dead([Task.of(1, "f")], [9])


def test_the_naive_interpreter_runs_a_call_for_each_element() -> None:
    """In the list's order; the first element that fails, fails the task."""
    tasks = [Task.of(1, "list"), Task.of(2, "echo", x=Ref(1, (EACH,)), y=Ref(1, (0,)))]

    def world(tool: str, args: Mapping[str, Any]) -> Outcome:
        if tool == "list":
            return Ok([3, 5, 7])
        return Failed("odd") if args["x"] == bad else Ok([args["x"], args["y"]])

    bad = 0
    assert interpret(tasks, world)[2] == Ok([[3, 3], [5, 3], [7, 3]])
    bad = 5
    assert interpret(tasks, world)[2] == Failed("element 1: odd")
