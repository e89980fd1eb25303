"""Calls over lists, picks, and plans that change while they run: on the real driver, in virtual
time, and held against the plain interpreter."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_plans import call, plans
from test_policies import Flaky, calls, done, drive

from agentpar import PlanError, tool
from agentpar.events import (
    Event,
    PlanEnded,
    PlanStarted,
    RunStarted,
    TaskCancelled,
    TaskDone,
    TaskItem,
    TaskPlanned,
    TaskReplaced,
    TaskStarted,
)
from agentpar.executor.commands import Cancel, Execute, Expand, Join, Plan, Settle
from agentpar.executor.driver import Driver, Emit
from agentpar.executor.machine import Machine
from agentpar.executor.naive import interpret
from agentpar.executor.resume import catch_up
from agentpar.labels import brought_in
from agentpar.plan import EACH, Failed, Ok, Outcome, Pick, Ref, Skipped, Task
from agentpar.policy import Limits, Policy


@tool
async def pages(count: int = 3) -> list[dict[str, int]]:
    """A list."""
    await asyncio.sleep(1.0)
    return [{"n": n} for n in range(count)]


@tool
async def ticks(count: int = 3, every: float = 1.0, first: int = 0) -> AsyncIterator[int]:
    """A list that takes its time."""
    for n in range(first, first + count):
        await asyncio.sleep(every)
        yield n


EACH_N = Ref(1, (EACH, "n"))


def started(events: list[Event]) -> list[tuple[int, float]]:
    return [(e.task_id, e.at) for e in events if isinstance(e, TaskStarted)]


# Over lists


def test_a_call_over_a_list_runs_once_for_each_element() -> None:
    """Side by side; its value is the list of the results, in the list's order."""
    get = Flaky(3.0, 2.0, 1.0)
    machine, events = drive([Task.of(1, "pages"), Task.of(2, "get", n=EACH_N)], pages, get)
    assert machine.outcomes[2] == Ok([0, 1, 2])
    assert get.most == 3
    assert events[-1].at == pytest.approx(4.0)
    assert machine.next_id == 3, "parts take no numbers of the plan"


def test_an_empty_list_is_an_empty_result() -> None:
    """Nothing is called."""
    get = Flaky(1.0)
    tasks = [Task.of(1, "pages", count=0), Task.of(2, "get", n=EACH_N)]
    machine, _ = drive(tasks, pages, get)
    assert machine.outcomes[2] == Ok([])
    assert not get.began


def test_a_part_is_a_call_like_any_other() -> None:
    """It is tried again, waits for its place, and counts as a step."""
    get = Flaky(ValueError("no"), 1.0, retries=1, concurrency=1, backoff=0.1)
    machine, _ = drive([Task.of(1, "pages"), Task.of(2, "get", n=EACH_N)], pages, get)
    assert machine.outcomes[2] == Ok([0, 1, 2])
    assert get.most == 1
    assert machine.budget.steps == 5


def test_the_first_element_that_fails_is_told() -> None:
    """The first of the list, whichever failed first; with on_error=keep it leaves an error."""
    get = Flaky(1.0, ValueError("b"), ValueError("c"))
    tasks = [Task.of(1, "pages"), Task.of(2, "get", n=EACH_N)]
    machine, _ = drive(tasks, pages, get)
    assert machine.outcomes[2] == Failed("element 1: ValueError: b")
    get = Flaky(1.0, ValueError("b"), 1.0, on_error="keep")
    machine, _ = drive(tasks, pages, get)
    assert machine.outcomes[2] == Ok([0, {"error": "ValueError: b"}, 2])


def test_what_is_no_list_is_said() -> None:
    """A reference that leads nowhere, found at run time."""
    tasks = [Task.of(1, "get", n=7), Task.of(2, "get", n=Ref(1, (EACH,)))]
    machine, _ = drive(tasks, Flaky(1.0))
    assert machine.outcomes[2] == Failed(
        "$1[*]: $1 is int, which has no parts: [*] needs a list", "reference"
    )


def test_a_list_that_is_coming_is_gone_over_as_it_comes() -> None:
    """The first call begins with the first element, not with the end of the list."""
    get = Flaky(1.0)
    tasks = [Task.of(1, "ticks"), Task.of(2, "get", n=Ref(1, (EACH,)))]
    machine, events = drive(tasks, ticks, get)
    assert machine.outcomes == {**machine.outcomes, 1: Ok([0, 1, 2]), 2: Ok([0, 1, 2])}
    assert get.began == pytest.approx([1.0, 2.0, 3.0])
    assert events[-1].at == pytest.approx(4.0)


def test_a_list_that_breaks_off_is_no_list() -> None:
    """What had begun with its elements is skipped with it, and it is not begun again."""

    @tool(retries=3)
    async def breaks() -> AsyncIterator[int]:
        """Break off."""
        yield 1
        await asyncio.sleep(1.0)
        raise ValueError("no more")

    tasks = [Task.of(1, "breaks"), Task.of(2, "get", n=Ref(1, (EACH,)))]
    machine, _ = drive(tasks, breaks, Flaky(0.1))
    assert machine.outcomes[1] == Failed("ValueError: no more")
    assert machine.outcomes[2] == Skipped(1)


def test_cancelling_a_call_over_a_list_cancels_its_parts() -> None:
    """None runs on, none begins."""

    async def cancel(driver: Driver) -> None:
        await asyncio.sleep(1.5)
        driver.emit(TaskCancelled(2, "enough", driver.clock.now()))

    get = Flaky(5.0, concurrency=1)
    tasks = [Task.of(1, "pages"), Task.of(2, "get", n=EACH_N)]
    machine, events = drive(tasks, pages, get, inside=cancel)
    assert machine.outcomes[2] == Failed("cancelled: enough", "cancelled")
    assert (len(get.began), get.cancelled) == (1, 1)
    assert events[-1].at == pytest.approx(1.5)


def test_a_run_that_breaks_off_plans_only_the_parts_that_are_missing() -> None:
    """Whatever the moment."""
    get = Flaky(1.0)
    tasks = [Task.of(1, "pages"), Task.of(2, "get", n=EACH_N)]
    machine, events = drive(tasks, pages, get)
    policies = {"get": get.tool.policy, "pages": Policy()}
    for cut in range(len(events)):
        again = Machine(policies=policies)
        due = catch_up(again, events[:cut])
        planned = {e.task.id for e in events[:cut] if isinstance(e, TaskPlanned)}
        wanted = [part.id for c in due if isinstance(c, Expand) for part in c.parts]
        assert not planned & set(wanted)
        for event in events[cut:]:
            again.handle(event)
        assert again.outcomes == machine.outcomes


# Picks


def test_the_first_good_one_is_taken_and_the_rest_is_cancelled() -> None:
    """A failure is no good one."""
    quick, bad, slow = (
        Flaky(1.0, name="quick"),
        Flaky(ValueError("no"), name="bad"),
        Flaky(99.0, name="slow"),
    )
    tasks = [Task.of(1, "slow", n=1), Task.of(2, "bad"), Task.of(3, "quick", n=3)]
    tasks.append(Task.of(4, "quick", n=4, after=Pick((Ref(1), Ref(2), Ref(3)))))
    machine, events = drive(tasks, quick, bad, slow)
    assert machine.outcomes[4] == Ok(4)
    assert machine.outcomes[1] == Failed("cancelled: task 4 has what it needs", "cancelled")
    assert slow.cancelled == 1
    assert events[-1].at == pytest.approx(2.0)


def test_k_of_n_are_taken() -> None:
    """In writing order, whichever ended first."""
    seen: list[Any] = []

    @tool
    async def see(what: list[int]) -> str:
        """See."""
        seen.append(what)
        return "seen"

    get = Flaky(3.0, 1.0, 2.0)
    tasks = [*calls(3), Task.of(4, "see", what=Pick((Ref(1), Ref(2), Ref(3)), 2))]
    _, events = drive(tasks, get, see)
    assert seen == [[2, 3]]
    assert events[-1].at == pytest.approx(2.0)


def test_where_too_few_are_good_the_pick_is_skipped() -> None:
    """Naming the first that has no value."""
    bad = Flaky(ValueError("no"), name="bad")
    tasks = [Task.of(1, "bad", n=1), Task.of(2, "bad", n=2)]
    machine, _ = drive([*tasks, Task.of(3, "bad", after=Pick((Ref(1), Ref(2))))], bad)
    assert machine.outcomes[3] == Skipped(1)


def test_what_somebody_else_needs_is_not_cancelled() -> None:
    """Nor what a line that is still being written may need."""
    quick, slow = Flaky(1.0, name="quick"), Flaky(9.0, name="slow")
    pick = Pick((Ref(1), Ref(2)))

    async def plan(command: Plan, emit: Emit) -> None:
        for task in (
            Task.of(1, "slow", n=1),
            Task.of(2, "quick", n=2),
            Task.of(3, "quick", after=pick),
        ):
            emit(TaskPlanned(1, task))
        await asyncio.sleep(5.0)
        emit(TaskPlanned(1, Task.of(4, "quick", n=4, after=Ref(1))))
        emit(PlanEnded(1))

    machine, _ = drive([], quick, slow, planning=plan)
    assert machine.outcomes[1] == Ok(1)
    assert machine.outcomes[4] == Ok(4)


# Against the plain interpreter


@settings(max_examples=150, deadline=None)
@given(plans(), st.integers(0, 2**32))
def test_the_machine_comes_to_what_the_plain_interpreter_comes_to(
    tasks: list[Task], seed: int
) -> None:
    """On random plans with failures, lists and picks, in any order of completion."""
    random = Random(seed)
    machine = Machine()
    todo: list[Event] = []
    wanted = machine.handle(RunStarted("run", "?"))
    todo += [TaskPlanned(1, task) for task in tasks]
    running: list[TaskDone] = []

    def perform(commands: Any) -> None:
        for command in commands:
            match command:
                case Execute(task, args):
                    running.append(TaskDone(task.id, call(task.tool, args)))
                case Expand(_, parts):
                    todo[:0] = [TaskPlanned(1, part) for part in parts]
                case Settle(id, outcome):
                    todo.insert(0, TaskDone(id, outcome))
                case Cancel("call", id):
                    running[:] = [event for event in running if event.task_id != id]
                case Join():
                    assert not todo
                    assert not running

    perform(wanted)
    todo.append(PlanEnded(1))
    while todo or running:
        if todo and (not running or random.random() < 0.5):
            perform(machine.handle(todo.pop(0)))
        else:
            perform(machine.handle(running.pop(random.randrange(len(running)))))
    written = {task.id for task in tasks}
    order = [id for id in machine.outcomes if id in written]
    plain = interpret(tasks, call, order)
    for id in order:
        if not (
            isinstance(machine.outcomes[id], Failed) and machine.outcomes[id].kind == "cancelled"
        ):  # type: ignore[union-attr]
            assert machine.outcomes[id] == plain[id]


# Plans that change


def test_a_failure_asks_for_the_next_plan_while_others_go_on() -> None:
    """It adds, replaces and cancels; survivors keep running, and what has ended stands."""
    bad, slow = Flaky(ValueError("no"), name="bad"), Flaky(10.0, name="slow")
    get = Flaky(1.0)

    async def plan(command: Plan, emit: Emit) -> None:
        emit(PlanStarted(command.round))
        if command.round == 1:
            for task in (
                Task.of(1, "slow", n=1),
                Task.of(2, "bad"),
                Task.of(3, "slow", n=3),
                Task.of(4, "get", n=4, after=Ref(3)),
                Task.of(5, "get", n=5),
            ):
                emit(TaskPlanned(1, task))
        else:
            assert command.why == "call 2 (bad) failed: ValueError: no"
            await asyncio.sleep(2.0)
            emit(TaskReplaced(2, Task.of(3, "get", n=33)))
            emit(TaskPlanned(2, Task.of(command.first_id, "get", n=6)))
        emit(PlanEnded(command.round))

    limits = Limits(replan_early=True, max_replans=1)
    machine, events = drive([], bad, slow, get, planning=plan, limits=limits)
    assert machine.outcomes == {
        1: Ok(1),
        2: Failed("ValueError: no"),
        3: Ok(33),
        4: Ok(4),
        5: Ok(5),
        6: Ok(6),
    }
    assert slow.cancelled == 1
    assert len(slow.began) == 2
    assert done(events, 4).at == pytest.approx(4.0)
    assert events[-1].at == pytest.approx(10.0), "task 1 was never touched"
    assert sum(id == 5 for id, _ in started(events)) == 1


def test_a_failure_while_the_plan_is_written_is_mended_when_it_is_complete() -> None:
    """Two planners at once would write over each other."""
    bad, slow = Flaky(ValueError("no"), name="bad"), Flaky(10.0, name="slow")
    rounds: list[tuple[int, str]] = []

    async def plan(command: Plan, emit: Emit) -> None:
        rounds.append((command.round, command.why))
        if command.round == 1:
            emit(TaskPlanned(1, Task.of(1, "bad")))
            emit(TaskPlanned(1, Task.of(2, "slow")))
            await asyncio.sleep(2.0)
        emit(PlanEnded(command.round))

    limits = Limits(replan_early=True, max_replans=1)
    drive([], bad, slow, planning=plan, limits=limits)
    assert rounds == [(1, ""), (2, "call 1 (bad) failed: ValueError: no")]


def test_a_call_that_has_ended_is_not_replaced() -> None:
    """Its result stands."""
    machine = Machine()
    machine.handle(RunStarted("run", "?"))
    machine.handle(TaskPlanned(1, Task.of(1, "get")))
    machine.handle(TaskDone(1, Ok(1)))
    assert machine.handle(TaskReplaced(2, Task.of(1, "other"))) == []
    assert machine.outcomes == {1: Ok(1)}


def test_a_circle_is_refused_with_its_path() -> None:
    """It cannot be written, but a change could make one."""
    machine = Machine()
    machine.handle(RunStarted("run", "?"))
    for task in (Task.of(1, "get"), Task.of(2, "get", a=Ref(1)), Task.of(3, "get", a=Ref(2))):
        machine.handle(TaskPlanned(1, task))
    with pytest.raises(PlanError, match=r"\$1 needs \$3 needs \$2 needs \$1"):
        machine.handle(TaskReplaced(2, Task.of(1, "get", a=Ref(3))))


def test_calls_that_shared_the_replaced_one_make_their_own() -> None:
    """A replaced call takes nothing away from others."""
    get, other = Flaky(5.0), Flaky(1.0, name="other")

    async def change(driver: Driver) -> None:
        await asyncio.sleep(1.0)
        driver.emit(TaskReplaced(1, Task.of(1, "other", n=9), driver.clock.now()))

    tasks = [Task.of(1, "get", n=7), Task.of(2, "get", n=7)]
    machine, _ = drive(tasks, get, other, inside=change)
    assert machine.outcomes == {1: Ok(9), 2: Ok(7)}
    assert get.cancelled == 1


def test_what_stands_in_the_place_of_a_running_call_is_another_attempt() -> None:
    """It has a number of its own, so the end of the one that was stopped is not taken for its."""
    slow, get = Flaky(10.0, name="slow"), Flaky(1.0)

    async def change(driver: Driver) -> None:
        await asyncio.sleep(2.0)
        driver.emit(TaskReplaced(1, Task.of(1, "get", n=5), driver.clock.now()))

    machine, events = drive([Task.of(1, "slow", n=1)], slow, get, inside=change)
    assert machine.outcomes == {1: Ok(5)}
    assert [e.attempt for e in events if isinstance(e, TaskStarted)] == [1, 2]
    assert events[-1].at == pytest.approx(3.0)
    assert machine.latency.of("get").newest() == pytest.approx([1.0])


def test_a_call_over_a_list_is_replaced_by_another() -> None:
    """The parts of the old one stop; those of the new one have numbers of their own."""
    get, other = Flaky(5.0), Flaky(1.0, name="other")

    async def change(driver: Driver) -> None:
        await asyncio.sleep(2.0)
        driver.emit(TaskReplaced(1, Task.of(2, "other", n=EACH_N), driver.clock.now()))

    tasks = [Task.of(1, "pages"), Task.of(2, "get", n=EACH_N)]
    machine, events = drive(tasks, pages, get, other, inside=change)
    assert machine.outcomes[2] == Ok([0, 1, 2])
    assert (get.cancelled, len(other.began)) == (3, 3)
    assert events[-1].at == pytest.approx(3.0)


def test_a_list_that_is_replaced_while_it_comes_is_gone_over_anew() -> None:
    """No result of an element of the old list gets among those of the new one."""
    get = Flaky(0.1)

    async def change(driver: Driver) -> None:
        await asyncio.sleep(2.5)
        driver.emit(TaskReplaced(1, Task.of(1, "ticks", first=7), driver.clock.now()))

    tasks = [Task.of(1, "ticks"), Task.of(2, "get", n=Ref(1, (EACH,)))]
    machine, _ = drive(tasks, ticks, get, inside=change)
    assert machine.outcomes[2] == Ok([7, 8, 9])
    assert get.began == pytest.approx([1.0, 2.0, 3.5, 4.5, 5.5])


def test_a_part_that_is_planned_too_late_is_not_called() -> None:
    """Its task was cancelled in the very moment in which the list was there."""
    machine = Machine()
    machine.handle(RunStarted("run", "?"))
    machine.handle(TaskPlanned(1, Task.of(1, "pages")))
    machine.handle(TaskPlanned(1, Task.of(2, "get", n=EACH_N)))
    (expand,) = machine.handle(TaskDone(1, Ok([{"n": 1}])))
    assert isinstance(expand, Expand)
    machine.handle(TaskCancelled(2, "enough"))
    (part,) = expand.parts
    gone = Failed("cancelled: nobody waits for it", "cancelled")
    assert machine.handle(TaskPlanned(1, part)) == [Settle(part.id, gone)]


def test_a_task_that_shares_a_call_can_be_replaced() -> None:
    """The result of the call that it shared is not its own any more."""
    get, other = Flaky(5.0), Flaky(9.0, name="other")

    async def change(driver: Driver) -> None:
        await asyncio.sleep(2.0)
        driver.emit(TaskReplaced(1, Task.of(2, "other", n=99), driver.clock.now()))

    tasks = [Task.of(1, "get", n=7), Task.of(2, "get", n=7)]
    machine, events = drive(tasks, get, other, inside=change)
    assert machine.outcomes == {1: Ok(7), 2: Ok(99)}
    assert events[-1].at == pytest.approx(11.0)


def test_the_watch_over_a_straggler_ends_when_it_is_replaced() -> None:
    """What stands in its place is of a tool that is never hedged."""
    get, other = Flaky(9.0, hedge=True), Flaky(9.0, name="other")

    async def change(driver: Driver) -> None:
        await asyncio.sleep(0.5)
        driver.emit(TaskReplaced(1, Task.of(1, "other", n=5), driver.clock.now()))

    latencies = {"get": [1.0] * 40}
    machine, _ = drive(calls(1), get, other, inside=change, latencies=latencies)
    assert machine.outcomes == {1: Ok(5)}
    assert len(other.began) == 1


def test_a_loser_whose_call_another_task_shares_goes_on() -> None:
    """It would be made again from the beginning; where nobody else is left, it is cancelled."""
    slow, quick = Flaky(5.0, name="slow"), Flaky(4.0, name="quick")
    tasks = [Task.of(1, "slow", n=1), Task.of(2, "slow", n=1), Task.of(3, "quick", n=3)]
    picky = Task.of(4, "quick", n=4, after=Pick((Ref(1), Ref(3))))
    machine, _ = drive([*tasks, picky], slow, quick)
    assert (machine.outcomes[2], slow.began) == (Ok(1), [0.0])
    picky = Task.of(4, "quick", n=4, after=Pick((Ref(1), Ref(2), Ref(3))))
    machine, events = drive([*tasks, picky], slow, quick)
    assert (slow.cancelled, events[-1].at) == (1, pytest.approx(8.0))


def test_a_failed_element_asks_for_a_plan_by_the_number_of_its_task_and_once() -> None:
    """The planner has never seen the numbers of parts."""
    machine = Machine(Limits(replan_early=True, max_replans=3))
    machine.handle(RunStarted("run", "?"))
    tasks = [Task.of(1, "pages"), Task.of(2, "get", n=EACH_N), Task.of(3, "get")]
    for task in tasks:
        machine.handle(TaskPlanned(1, task))
    machine.handle(PlanEnded(1))
    (expand,) = machine.handle(TaskDone(1, Ok([{"n": 1}])))
    assert isinstance(expand, Expand)
    (part,) = expand.parts
    machine.handle(TaskPlanned(1, part))
    why = "call 2 (get) failed: element 0: no"
    asked, settled = machine.handle(TaskDone(part.id, Failed("no")))
    assert asked == Plan(2, 4, why)
    machine.handle(PlanEnded(2))
    assert isinstance(settled, Settle)
    assert machine.handle(TaskDone(2, settled.outcome)) == []


def test_the_parts_of_a_long_branch_go_before_a_single_call() -> None:
    """Each is as urgent as the whole of which it is a part."""
    get, other = Flaky(1.0), Flaky(1.0, name="other")
    tasks = [
        Task.of(1, "pages"),
        Task.of(2, "other", n=2),
        Task.of(3, "other", n=3),
        Task.of(4, "get", n=EACH_N),
        Task.of(5, "get", n=7, after=Ref(4)),
    ]
    _, events = drive(tasks, pages, get, other, limits=Limits(concurrency=1))
    order = [id for id, _ in started(events)]
    assert order.index(4_000_003) < order.index(3)


def test_a_plan_that_breaks_off_asks_for_nothing_more() -> None:
    """So what a pick did without is cancelled then, as at the end of a plan."""
    quick, slow = Flaky(1.0, name="quick"), Flaky(9.0, name="slow")
    tasks = [Task.of(1, "slow", n=1), Task.of(2, "quick", n=2)]
    tasks.append(Task.of(3, "quick", n=3, after=Pick((Ref(1), Ref(2)))))

    async def plan(command: Plan, emit: Emit) -> None:
        for task in tasks:
            emit(TaskPlanned(1, task))
        await asyncio.sleep(1.5)
        raise ConnectionError("the model server went away")

    _, events = drive([], quick, slow, planning=plan)
    assert slow.cancelled == 1
    assert events[-1].at == pytest.approx(2.0)


def test_a_task_ends_once() -> None:
    """One that has failed in the moment in which nobody wants it any more has failed."""
    get = Flaky(1.0)
    tasks = [
        Task.of(1, "get", n=1),
        Task.of(2, "get", n=Ref(1, (EACH,))),
        Task.of(3, "get", n=Ref(2)),
        Task.of(4, "get", n=4, after=Pick((Ref(3), Ref(1)))),
    ]
    _, events = drive(tasks, get)
    (outcome,) = (e.outcome for e in events if isinstance(e, TaskDone) and e.task_id == 2)
    assert isinstance(outcome, Failed)
    assert outcome.kind == "reference"


def test_a_loser_that_waits_for_the_winner_ends() -> None:
    """It was put in its place after the pick was planned, and stands behind it in line."""
    machine = Machine()
    machine.handle(RunStarted("r", "?"))
    machine.handle(TaskPlanned(1, Task.of(1, "get", n=1)))
    machine.handle(TaskPlanned(1, Task.of(2, "get", n=2)))
    machine.handle(TaskPlanned(1, Task.of(3, "see", what=Pick((Ref(1), Ref(2))))))
    machine.handle(TaskReplaced(1, Task.of(2, "get", n=Ref(1))))
    machine.handle(PlanEnded(1))
    commands = machine.handle(TaskDone(1, Ok(7)))
    dropped = Failed("cancelled: task 3 has what it needs", "cancelled")
    assert commands[1:] == [Settle(2, dropped)]
    machine.handle(TaskDone(2, dropped))
    assert machine.handle(TaskDone(3, Ok(7))) == [Join(1, False)]


def test_elements_that_nobody_wants_are_not_told() -> None:
    """A list that goes on although its call was cancelled is heard by nobody."""

    @tool
    async def deaf() -> AsyncIterator[int]:
        """Go on whatever happens."""
        for n in range(3):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(1.0)
            yield n

    async def cancel(driver: Driver) -> None:
        await asyncio.sleep(1.5)
        driver.emit(TaskCancelled(1, "enough", driver.clock.now()))

    _, events = drive([Task.of(1, "deaf")], deaf, inside=cancel)
    assert [e.index for e in events if isinstance(e, TaskItem)] == [0]


def test_a_planner_reads_whole_lists_and_not_their_parts() -> None:
    """So where a later call comes from is said by the numbers of the plan."""
    tasks = {1: Task.of(1, "pages"), 2: Task.of(2, "get", n=EACH_N)}
    tasks[2_000_001] = Task(2_000_001, "get", {"n": 0}, (1,), part=(2, 0))
    outcomes = {1: Ok([{"n": 0}]), 2_000_001: Ok(0), 2: Ok([0])}
    assert brought_in(tasks, outcomes, ()) == (1, 2)


def test_a_list_longer_than_max_tasks_is_not_begun() -> None:
    """The whole would fail for its last elements anyway."""
    get = Flaky(1.0)
    tasks = [Task.of(1, "pages", count=9), Task.of(2, "get", n=EACH_N)]
    machine, _ = drive(tasks, pages, get, limits=Limits(max_tasks=10))
    assert machine.outcomes[2] == Failed("the plan has more than max_tasks=10 tasks", "plan")
    assert get.began == []


class Stream:
    """A tool that streams two elements, which tell by which call they came. Among calls of it
    that are quick one is slow, so that it may be hedged."""

    def __init__(self, *firsts: float, **policy: Any) -> None:
        self.firsts = list(firsts)  # seconds before the first element, call by call
        self.cancelled: list[int] = []
        self.calls = 0

        async def items(n: int) -> AsyncIterator[int]:
            """Two elements, five seconds apart."""
            if n > 1:
                return
            number = self.calls
            self.calls += 1
            try:
                await asyncio.sleep(self.firsts[number])
                yield number
                await asyncio.sleep(5.0)
            except asyncio.CancelledError:
                self.cancelled.append(number)
                raise
            yield number

        self.tool = tool(items, name="items", **policy)

    def run(self) -> tuple[Machine, list[Event]]:
        """One run in which a call goes over the slow list."""
        tasks = [Task.of(1, "items", n=1), Task.of(2, "get", n=Ref(1, (EACH,)))]
        quick = [Task.of(n, "items", n=n) for n in range(3, 23)]
        latencies = {"items": [1.0] * 100}
        return drive([*tasks, *quick], self.tool, Flaky(1.0), latencies=latencies)


def test_a_list_that_is_being_told_is_not_read_a_second_time() -> None:
    """A straggler is hedged before its first element, never behind it."""
    stream = Stream(0.5, hedge=True)
    machine, _ = stream.run()
    assert stream.calls == 1
    assert machine.outcomes[1] == Ok([0, 0])


@pytest.mark.parametrize(("firsts", "winner"), [((9.0, 2.0), 1), ((3.0, 9.0), 0)])
def test_of_two_attempts_the_one_that_tells_an_element_first_goes_on_alone(
    firsts: tuple[float, float], winner: int
) -> None:
    """So that a list is never put together from two."""
    stream = Stream(*firsts, hedge=True)
    machine, events = stream.run()
    assert stream.calls == 2
    assert stream.cancelled == [1 - winner]
    assert machine.outcomes[2] == machine.outcomes[1] == Ok([winner, winner])
    assert {e.attempt for e in events if isinstance(e, TaskItem)} == {winner + 1}


REREAD = "its list was read again and differs from the elements that calls have begun on"


@pytest.mark.parametrize(
    ("again", "outcome"),
    [
        ([TaskItem(1, 0, "a"), TaskItem(1, 1, "b"), TaskDone(1, Ok(["a", "b"]))], Ok(["a", "b"])),
        ([TaskDone(1, Ok(["a"]))], Ok(["a"])),
        ([TaskItem(1, 0, "b")], Failed(REREAD)),
        ([TaskDone(1, Ok(["b", "a"]))], Failed(REREAD)),
        ([TaskDone(1, Ok([]))], Failed(REREAD)),
    ],
)
def test_a_list_read_again_after_a_crash_begins_with_what_was_told(
    again: list[Event], outcome: Outcome
) -> None:
    """Otherwise the call has failed: others have begun on what it told first."""
    tasks = [Task.of(1, "items", n=1), Task.of(2, "get", n=Ref(1, (EACH,)))]
    history: list[Event] = [RunStarted("run", "?"), *(TaskPlanned(1, task) for task in tasks)]
    history += [TaskStarted(1), TaskItem(1, 0, "a")]
    machine = Machine()
    due = catch_up(machine, history)
    assert [c.task.id for c in due if isinstance(c, Execute)] == [1]
    pending = list(again)
    while pending:
        wanted = machine.handle(pending.pop(0))
        pending += (TaskDone(c.task_id, c.outcome) for c in wanted if isinstance(c, Settle))
    assert machine.outcomes[1] == outcome


def test_what_needs_the_whole_list_as_well_waits_for_it() -> None:
    """Beside an element, the first of the list is asked for, which is there when the list is."""
    tasks = [Task.of(1, "ticks"), Task.of(2, "get", n=Ref(1, (EACH,)), after=Ref(1, (0,)))]
    machine, events = drive(tasks, ticks, Flaky(1.0))
    assert machine.outcomes[2] == Ok([0, 1, 2])
    assert [at for id, at in started(events)[1:]] == pytest.approx([3.0] * 3)


def test_lists_that_the_parts_bring_are_not_gone_over() -> None:
    """A call over a list may stream lists itself: their elements are no further ones."""
    tasks = [Task.of(1, "pages", count=2), Task.of(2, "ticks", count=3, first=EACH_N)]
    machine, events = drive(tasks, pages, ticks)
    assert machine.outcomes[2] == Ok([[0, 1, 2], [1, 2, 3]])
    assert len(started(events)) == 3


@pytest.mark.parametrize("breaks", [False, True])
def test_a_call_over_a_list_that_also_picks_waits_for_its_parts(breaks: bool) -> None:
    """The list may end, or break off, while they run."""

    @tool
    async def stream(after: int) -> AsyncIterator[int]:
        """Two elements."""
        yield 7
        yield 8
        if breaks:
            raise ValueError("no more")

    tasks = [
        Task.of(1, "get", n=1),
        Task.of(2, "stream", after=Ref(1)),
        Task.of(3, "slow", n=Ref(2, (EACH,)), after=Pick((Ref(1),))),
    ]
    machine, _ = drive(tasks, Flaky(1.0), stream, Flaky(2.0, name="slow"))
    assert machine.outcomes[3] == (Skipped(2) if breaks else Ok([7, 8]))


def test_a_call_in_the_place_of_one_that_is_asked_for_is_asked_for_anew() -> None:
    """The question about the old one is withdrawn; the answer to the new one is heard."""
    send = Flaky(1.0, name="send", effect="write")
    asked: list[int] = []

    async def approve(task: Task, args: Any) -> bool:
        asked.append(args["n"])
        await asyncio.sleep(3.0)
        return True

    async def change(driver: Driver) -> None:
        await asyncio.sleep(1.0)
        driver.emit(TaskReplaced(1, Task.of(1, "send", n=2), driver.clock.now()))

    machine, events = drive([Task.of(1, "send", n=1)], send, inside=change, approve=approve)
    assert machine.outcomes == {1: Ok(2)}
    assert asked == [1, 2]
    assert events[-1].at == pytest.approx(5.0)


def test_a_list_that_breaks_off_is_no_list_although_its_error_is_kept() -> None:
    """What came of its first elements is not taken for the whole."""

    @tool(on_error="keep")
    async def stream() -> AsyncIterator[int]:
        """One element, and no more."""
        yield 7
        raise ValueError("no more")

    tasks = [Task.of(1, "stream"), Task.of(2, "get", n=Ref(1, (EACH,)))]
    machine, _ = drive(tasks, stream, Flaky(1.0))
    outcome = machine.outcomes[2]
    assert isinstance(outcome, Failed)
    assert outcome.error == "$1[*]: $1 has the fields 'error': [*] needs a list"
