"""The driver: what it runs at once, what goes wrong as data, and that it leaves nothing."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest

from agentpar import tool
from agentpar.events import (
    Answered,
    ApprovalAsked,
    ApprovalGiven,
    AttemptEnded,
    AttemptFailed,
    Event,
    PlanEnded,
    PlanFailed,
    PlanText,
    ReplanAsked,
    RunFinished,
    RunStarted,
    TaskCancelled,
    TaskDone,
    TaskPlanned,
    TaskStarted,
)
from agentpar.executor.commands import Command, Join, Plan
from agentpar.executor.driver import Driver, Emit, exceeds, running
from agentpar.executor.machine import Machine
from agentpar.permissions import Permissions
from agentpar.plan import Failed, Ok, Outcome, Ref, Skipped, Task
from agentpar.policy import Limits
from agentpar.tools.base import Tool

START = RunStarted("run", "?")
Planned = Callable[[Plan, Emit], Awaitable[None]]


class Run:
    """A driver over ``tools`` whose planner writes ``tasks``, and all that it told."""

    def __init__(
        self,
        *tasks: Task,
        tools: Mapping[str, Tool] | None = None,
        plan: Planned | None = None,
        limits: Limits | None = None,
        **options: Any,
    ) -> None:
        async def write(command: Plan, emit: Emit) -> None:
            for task in tasks:
                emit(TaskPlanned(command.round, task))
            emit(PlanEnded(command.round))

        async def answer(command: Join, emit: Emit) -> None:
            emit(Answered(command.round, "done"))

        self.events: list[Event] = []
        box = TOOLS if tools is None else tools
        policies = options.pop("policies", None)
        self.machine = Machine(limits, Permissions.of(box), policies=policies)
        observers = [self.events.append, *options.pop("observers", ())]
        options = {"plan": plan or write, "join": answer, **options}
        self.driver = Driver(self.machine, tools=box, observers=observers, **options)

    async def go(self) -> Run:
        before = asyncio.all_tasks()
        try:
            async with asyncio.timeout(10):
                await self.driver.run(START)
        finally:
            assert asyncio.all_tasks() == before
            ends = [event for event in self.events if isinstance(event, RunFinished)]
            assert [self.events[-1]] == ends, "RunFinished is the last event, once"
        return self

    @property
    def end(self) -> RunFinished:
        assert isinstance(self.events[-1], RunFinished)
        return self.events[-1]

    def at(self, kind: type, id: int) -> float:
        return next(e.at for e in self.events if isinstance(e, kind) and e.task_id == id)  # type: ignore[attr-defined]


@tool
async def echo(value: Any = None) -> Any:
    """Give back what came."""
    return value


@tool
async def nap(seconds: float, after: Any = None) -> float:
    """Sleep."""
    await asyncio.sleep(seconds)
    return seconds


@tool
async def broken() -> str:
    """Raise."""
    raise ValueError("the tool broke")


@tool
async def cancels_itself() -> str:
    """Raise what looks like a cancellation."""
    raise asyncio.CancelledError


@tool
async def cancels_its_task() -> str:
    """Cancel the task it runs in."""
    current = asyncio.current_task()
    assert current is not None
    current.cancel()
    await asyncio.sleep(0)
    return "still here"


@tool
async def leaves() -> str:
    """Call sys.exit, as command line code does."""
    sys.exit(3)


@tool
async def times_out_inside() -> str:
    """A TimeoutError that is not the driver's."""
    raise TimeoutError("the socket timed out")


@tool
async def huge() -> str:
    """Return 50 MB."""
    return "x" * 50_000_000


@tool
async def odd() -> Any:
    """Return what is no data."""
    return {"file": object()}


@tool
def blocks(seconds: float) -> str:
    """A sync tool that blocks its thread."""
    time.sleep(seconds)
    return "woke"


@tool(effect="write")
async def send(text: str) -> str:
    """A risky tool."""
    return f"sent {text}"


TOOLS = {
    made.name: made
    for made in (
        echo,
        nap,
        broken,
        cancels_itself,
        cancels_its_task,
        leaves,
        times_out_inside,
        huge,
        odd,
        blocks,
        send,
    )
}


# At the same time


async def test_tasks_start_while_the_planner_still_writes() -> None:
    """The planner here does not go on before the first task has ended."""
    done = asyncio.Event()

    async def plan(command: Plan, emit: Emit) -> None:
        emit(TaskPlanned(1, Task.of(1, "echo", value=1)))
        await done.wait()
        emit(TaskPlanned(1, Task.of(2, "echo", value=2)))
        emit(PlanEnded(1))

    def watch(event: Event) -> None:
        if isinstance(event, TaskDone):
            done.set()

    run = await Run(plan=plan, observers=[watch]).go()
    assert run.machine.outcomes == {1: Ok(1), 2: Ok(2)}


async def test_a_slow_sibling_does_not_hold_up_a_fast_chain() -> None:
    """Three links in a chain end while the sibling of the first still sleeps."""
    run = await Run(
        Task.of(1, "nap", seconds=0.3),
        Task.of(2, "nap", seconds=0.01),
        Task.of(3, "nap", seconds=0.01, after=Ref(2)),
        Task.of(4, "nap", seconds=0.01, after=Ref(3)),
    ).go()
    assert run.at(TaskDone, 4) < run.at(TaskDone, 1)


async def test_a_thousand_tasks_run_together() -> None:
    """Each sleeps 0.1 s; one after another they would take 100 s."""
    tasks = [Task.of(id, "nap", seconds=0.1) for id in range(1, 1001)]
    run = await Run(*tasks, limits=Limits(concurrency=1000)).go()
    assert set(run.machine.outcomes.values()) == {Ok(0.1)}
    assert run.end.at < 50


async def test_a_long_chain_ends() -> None:
    """A thousand tasks, each needing the one before; and a thousand skips, without recursion."""
    chain = [
        Task.of(1, "echo", value=7),
        *(Task.of(id, "echo", value=Ref(id - 1)) for id in range(2, 1001)),
    ]
    assert (await Run(*chain).go()).machine.outcomes[1000] == Ok(7)
    chain[0] = Task.of(1, "broken")
    assert (await Run(*chain).go()).machine.outcomes[1000] == Skipped(999)


async def test_no_more_calls_at_once_than_allowed() -> None:
    """Counted inside the tool, not in the events."""
    now = most = 0

    @tool
    async def count() -> None:
        """Count."""
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.001)
        now -= 1

    tasks = [Task.of(id, "count") for id in range(1, 31)]
    await Run(*tasks, tools={"count": count}, limits=Limits(concurrency=3)).go()
    assert most == 3


async def test_a_blocking_tool_does_not_block_the_loop() -> None:
    """Sync tools have threads: an async one ends meanwhile."""
    run = await Run(Task.of(1, "blocks", seconds=0.2), Task.of(2, "nap", seconds=0.01)).go()
    assert run.at(TaskDone, 2) < run.at(TaskDone, 1)


# What goes wrong is data


@pytest.mark.parametrize(
    ("task", "outcome"),
    [
        (Task.of(1, "broken"), Failed("ValueError: the tool broke")),
        (Task.of(1, "cancels_itself"), Failed("the call cancelled itself")),
        (Task.of(1, "cancels_its_task"), Failed("the call cancelled itself")),
        (Task.of(1, "leaves"), Failed("SystemExit: 3")),
        (Task.of(1, "times_out_inside"), Failed("TimeoutError: the socket timed out")),
        (Task.of(1, "nap", seconds=60), Failed("nap gave no result within 0.1 s", "timeout")),
        (
            Task.of(1, "blocks", seconds=0.4),
            Failed(
                "blocks gave no result within 0.1 s, and does not stop when cancelled", "timeout"
            ),
        ),
        (Task.of(1, "huge"), Failed("huge returned more than max_result_bytes=2,000,000", "size")),
        (Task.of(1, "vanished"), Failed("the agent has no tool 'vanished' any more", "plan")),
    ],
    ids=lambda value: value.tool if isinstance(value, Task) else "",
)
async def test_failure_is_data(task: Task, outcome: Outcome) -> None:
    """The task fails, its dependant is skipped, a sibling goes on, and the run is answered."""
    more = Task.of(2, "echo", value=Ref(1)), Task.of(3, "echo", value=3)
    timeout = 0.1 if getattr(outcome, "kind", "") == "timeout" else 60.0
    run = await Run(task, *more, timeout=timeout).go()
    assert run.machine.outcomes == {1: outcome, 2: Skipped(1), 3: Ok(3)}
    assert run.end.status == "answered"


async def test_what_is_no_data_is_a_failure_that_says_where() -> None:
    """An object in a result cannot be recorded, referred to or shown."""
    failed = (await Run(Task.of(1, "odd")).go()).machine.outcomes[1]
    assert isinstance(failed, Failed)
    assert "value.file" in failed.error


@pytest.mark.parametrize("args", [{}, {"seconds": "soon"}, {"seconds": 1, "more": 2}])
async def test_bad_arguments_are_a_failure(args: dict[str, Any]) -> None:
    """References can bring anything, so arguments are checked again before the call."""
    failed = (await Run(Task.of(1, "nap", **args)).go()).machine.outcomes[1]
    assert isinstance(failed, Failed)
    assert failed.kind == "arguments"


async def test_a_check_of_arguments_that_raises_is_a_failure() -> None:
    """A tool made by hand may raise anything there."""

    def check(args: Mapping[str, Any]) -> dict[str, Any]:
        raise KeyError("country")

    made = Tool("made", "", {}, call=echo.call, validate=check)
    run = await Run(Task.of(1, "made"), tools={"made": made}).go()
    assert run.machine.outcomes[1] == Failed("KeyError: 'country'", "arguments")


async def test_a_tools_own_timeout_comes_first() -> None:
    """The agent's timeout is for tools that have none."""

    @tool(timeout=0.02)
    async def slow() -> None:
        """Hang."""
        await asyncio.sleep(60)

    run = await Run(Task.of(1, "slow"), tools={"slow": slow}, timeout=30).go()
    assert run.machine.outcomes[1] == Failed("slow gave no result within 0.02 s", "timeout")


async def test_a_broken_planner_ends_the_run() -> None:
    """It never hangs: without tasks the run fails, with the planner's words."""

    async def plan(command: Plan, emit: Emit) -> None:
        raise ConnectionError("no server")

    run = await Run(plan=plan).go()
    assert run.end == RunFinished("failed", "ConnectionError: no server", run.end.at)


async def test_a_planner_that_breaks_off_keeps_its_tasks() -> None:
    """What was planned runs, and is answered from."""

    async def plan(command: Plan, emit: Emit) -> None:
        emit(TaskPlanned(1, Task.of(1, "echo", value=1)))
        raise ConnectionError("no server")

    run = await Run(plan=plan).go()
    assert run.machine.outcomes == {1: Ok(1)}
    assert run.end.status == "answered"


async def test_a_broken_joiner_ends_the_run() -> None:
    """It never hangs."""

    async def join(command: Join, emit: Emit) -> None:
        raise ConnectionError("no server")

    run = await Run(Task.of(1, "echo", value=1), join=join).go()
    assert (run.end.status, run.end.error) == ("failed", "ConnectionError: no server")


async def test_planner_and_joiner_that_cancel_themselves_end_the_run() -> None:
    """A cancellation that nobody asked for is an error like any other."""

    async def cancel(command: Any, emit: Emit) -> None:
        raise asyncio.CancelledError

    for part in ("plan", "join"):
        run = await Run(**{part: cancel}).go()  # type: ignore[arg-type]
        assert (run.end.status, run.end.error) == ("failed", "the call cancelled itself")


async def test_a_planner_that_just_stops_ends_the_run() -> None:
    """No PlanEnded, no error: there is nothing left to wait for, and the run says so."""

    async def plan(command: Plan, emit: Emit) -> None:
        pass

    assert (await Run(plan=plan).go()).end.status == "failed"


# Approval


async def test_risky_calls_without_an_approver_are_refused() -> None:
    """As data that says how to allow them."""
    failed = (await Run(Task.of(1, "send", text="hi")).go()).machine.outcomes[1]
    assert isinstance(failed, Failed)
    assert failed.kind == "denied"
    assert "pass approve=" in failed.error


@pytest.mark.parametrize(
    ("verdict", "outcome"),
    [
        (True, Ok("sent hi")),
        (False, Failed("not approved: refused", "denied")),
        (None, Failed("not approved: refused", "denied")),
        ("not on Sundays", Failed("not approved: not on Sundays", "denied")),
        (1, Failed("not approved: 1", "denied")),
    ],
)
async def test_only_true_is_a_yes(verdict: Any, outcome: Outcome) -> None:
    """Anything else is a no; text is its reason. The approver sees the very arguments."""
    seen: list[tuple[str, Any]] = []

    async def approve(task: Task, args: Mapping[str, Any]) -> Any:
        seen.append((task.tool, dict(args)))
        return verdict

    tasks = Task.of(1, "echo", value="hi"), Task.of(2, "send", text=Ref(1))
    run = await Run(*tasks, approve=approve).go()
    assert run.machine.outcomes[2] == outcome
    assert seen == [("send", {"text": "hi"})]


async def test_a_plain_function_may_approve() -> None:
    """As a plain function may be a tool."""
    for verdict, outcome in (
        (True, Ok("sent hi")),
        ("not on Sundays", Failed("not approved: not on Sundays", "denied")),
    ):
        run = await Run(Task.of(1, "send", text="hi"), approve=lambda task, args, v=verdict: v).go()
        assert run.machine.outcomes[1] == outcome


@pytest.mark.parametrize("error", [ValueError("no terminal"), asyncio.CancelledError()])
async def test_a_broken_approver_refuses(error: BaseException) -> None:
    """Never a yes by accident, never a hang."""

    async def approve(task: Task, args: Mapping[str, Any]) -> bool:
        raise error

    failed = (await Run(Task.of(1, "send", text="hi"), approve=approve).go()).machine.outcomes[1]
    assert isinstance(failed, Failed)
    assert failed.kind == "denied"
    assert "the approver failed" in failed.error


async def test_a_call_waits_for_its_approval() -> None:
    """Others run meanwhile; the call starts after the yes."""

    async def approve(task: Task, args: Mapping[str, Any]) -> bool:
        await asyncio.sleep(0.05)
        return True

    run = await Run(
        Task.of(1, "send", text="hi"), Task.of(2, "echo", value=1), approve=approve
    ).go()
    asked, given = run.at(ApprovalAsked, 1), run.at(ApprovalGiven, 1)
    assert asked <= run.at(TaskDone, 2) < given <= run.at(TaskStarted, 1)


async def test_held_commands_are_kept() -> None:
    """With nothing else to do the run returns, not finished, and hands them back."""
    run = Run(Task.of(1, "echo", value=1), hold=lambda command: isinstance(command, Join))
    await run.driver.run(START)
    assert run.driver.held == [Join(1, final=False)]
    assert run.machine.outcomes == {1: Ok(1)}
    assert not isinstance(run.events[-1], RunFinished)


# Observers


@pytest.mark.parametrize("kind", [RunStarted, TaskPlanned, TaskStarted, TaskDone, Answered])
async def test_an_observer_that_raises_ends_the_run(kind: type) -> None:
    """Its own error comes out, whoever was just reporting; those behind it hear the end."""
    behind: list[Event] = []

    def watch(event: Event) -> None:
        if isinstance(event, kind):
            raise OSError("the disk is full")

    run = Run(Task.of(1, "echo", value=1), observers=[watch, behind.append])
    with pytest.raises(OSError, match="the disk is full"):
        await run.go()
    assert run.end.error == "OSError: the disk is full"
    assert behind[-1] == run.end


async def test_an_observer_that_always_raises_hides_no_end() -> None:
    """Even RunFinished itself may not reach one; the others get it."""
    behind: list[Event] = []

    def watch(event: Event) -> None:
        raise OSError("the disk is full")

    run = Run(observers=[watch, behind.append])
    with pytest.raises(OSError, match="the disk is full"):
        await run.go()
    assert behind == [run.end]


async def test_every_observer_sees_the_same_order() -> None:
    """What follows from an event comes behind it, for each of them."""
    first: list[Event] = []
    second: list[Event] = []
    tasks = [Task.of(id, "echo", value=id) for id in range(1, 20)]
    run = await Run(*tasks, observers=[first.append, second.append]).go()
    assert first == second == run.events
    times = [event.at for event in run.events if event.at]
    assert times == sorted(times)


async def test_a_fact_told_meanwhile_waits_its_turn() -> None:
    """An observer that reports something itself does not come between an event and its readers."""
    behind: list[Event] = []

    def watch(event: Event) -> None:
        if isinstance(event, TaskPlanned):
            run.driver.emit(PlanText(1, "meanwhile"))

    run = Run(Task.of(1, "echo", value=1), observers=[watch, behind.append])
    await run.go()
    assert behind == run.events
    assert PlanText(1, "meanwhile") in behind


async def test_commands_are_told_after_their_event() -> None:
    """A record interleaves them so."""
    log: list[Event | Command] = []
    run = Run(observers=[log.append], command_observers=[log.append])
    await run.go()
    assert log[:2] == [START, Plan(1, 1)]


# Cancellation


def busy() -> Run:
    """A run with everything in it: chains, failures, skips, an approval, a second plan."""

    async def plan(command: Plan, emit: Emit) -> None:
        base = command.first_id
        for task in (
            Task.of(base, "nap", seconds=0.001),
            Task.of(base + 1, "send", text="hi"),
            Task.of(base + 2, "broken"),
            Task.of(base + 3, "echo", value=Ref(base + 2)),
            Task.of(base + 4, "echo", value=Ref(base)),
        ):
            await asyncio.sleep(0)
            emit(TaskPlanned(command.round, task))
        emit(PlanEnded(command.round))

    async def join(command: Join, emit: Emit) -> None:
        await asyncio.sleep(0)
        replan = command.round == 1
        emit(ReplanAsked(1, "more") if replan else Answered(command.round, "done"))

    async def approve(task: Task, args: Mapping[str, Any]) -> bool:
        await asyncio.sleep(0)
        return True

    return Run(plan=plan, join=join, approve=approve)


async def test_cancelling_at_any_moment_leaves_nothing() -> None:
    """Cancelled after every number of loop turns: no task is left, the last event says so."""
    cancelled = 0
    for turns in range(1, 500):
        run = busy()
        task = asyncio.create_task(run.go())
        for _ in range(turns):
            await asyncio.sleep(0)
        if task.done():
            assert run.end.status == "answered"
            break
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        cancelled += 1
        assert run.end.status in ("cancelled", "answered")
    assert cancelled > 10


async def test_a_call_that_is_cancelled_before_it_begins_is_seen_to_end() -> None:
    """Its coroutine never runs, so it cannot tell of its end itself."""

    async def plan(command: Plan, emit: Emit) -> None:
        emit(TaskPlanned(command.round, Task.of(1, "nap", seconds=60)))
        emit(TaskCancelled(1, "not wanted"))
        emit(PlanEnded(command.round))

    run = await Run(plan=plan).go()
    assert run.machine.outcomes == {1: Failed("cancelled: not wanted", "cancelled")}
    assert not any(isinstance(event, TaskStarted) for event in run.events)


async def test_a_loop_that_cancels_everything_leaves_nothing() -> None:
    """As `asyncio.run` does at its end: calls that had not begun do not hold the run up."""

    async def plan(command: Plan, emit: Emit) -> None:
        for id in range(1, 4):
            emit(TaskPlanned(command.round, Task.of(id, "nap", seconds=60)))
        for task in asyncio.all_tasks() - others:
            task.cancel()

    others = asyncio.all_tasks()
    run = Run(plan=plan, grace=30.0)
    task = asyncio.create_task(run.go())
    with pytest.raises(asyncio.CancelledError):
        await task
    assert run.end.status == "cancelled"
    assert run.end.error == "cancelled by the caller"


async def test_a_tool_that_is_slow_to_stop_starts_nothing_more() -> None:
    """It swallows the cancellation and returns: its result is told, its dependant never runs."""
    started = asyncio.Event()

    @tool
    async def stubborn() -> str:
        """Take one's time."""
        started.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0.01)
        return "late"

    tasks = Task.of(1, "stubborn"), Task.of(2, "echo", value=Ref(1))
    run = Run(*tasks, tools={"stubborn": stubborn, "echo": echo})
    task = asyncio.create_task(run.go())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert run.end.status == "cancelled"
    assert run.machine.outcomes == {1: Ok("late")}


async def test_a_lock_is_held_for_as_long_as_a_thread_runs() -> None:
    """Its call has failed by then; the next one does not begin beside it."""
    told: list[str] = []
    given_up = threading.Event()

    @tool(timeout=0.05, lock="file")
    def save(name: str) -> str:
        """Outlive the timeout, the first time."""
        told.append(f"{name} begins")
        if name == "a":
            given_up.wait(10)
            time.sleep(0.05)
        told.append(f"{name} ends")
        return name

    def observe(event: Event) -> None:
        if isinstance(event, AttemptFailed):
            assert event.abandoned
            given_up.set()

    tasks = Task.of(1, "save", name="a"), Task.of(2, "save", name="b")
    policies = {"save": save.policy}
    run = await Run(*tasks, tools={"save": save}, policies=policies, observers=[observe]).go()
    assert told == ["a begins", "a ends", "b begins", "b ends"]
    assert run.machine.outcomes[2] == Ok("b")
    assert [(e.task_id, e.attempt) for e in run.events if isinstance(e, AttemptEnded)] == [(1, 1)]


async def test_a_planner_that_is_slow_to_stop_starts_nothing_more() -> None:
    """Its error while being cancelled does not replace the cancellation."""
    started = asyncio.Event()

    async def plan(command: Plan, emit: Emit) -> None:
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            raise ConnectionError("broke while closing")

    run = Run(plan=plan)
    task = asyncio.create_task(run.go())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [type(event) for event in run.events[-2:]] == [PlanFailed, RunFinished]


async def test_work_beside_a_block_ends_with_it() -> None:
    """Left in peace or by an error, which reaches the caller as it is."""
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    async def leave() -> None:
        async with running(work()):
            await asyncio.sleep(0)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await leave()
    assert ended.is_set()


# Size


@pytest.mark.parametrize(
    ("value", "limit", "too_large"),
    [
        (None, 0, False),
        (10**100, 0, False),
        ("abc", 3, False),
        ("abcd", 3, True),
        (["ab", "ab"], 7, True),
        (["ab", "ab"], 8, False),
        ({"key": {"in": "x" * 100}}, 100, True),
        ([[]] * 1000, 1000, True),
        ([1] * 1000, 5999, True),
    ],
)
def test_size_is_counted_up_to_the_limit(value: Any, limit: int, too_large: bool) -> None:
    """Text by its length, anything else by about what JSON takes."""
    assert exceeds(value, limit) is too_large


def test_counting_stops_at_the_limit() -> None:
    """A value far above it costs no more than one just above it."""
    value = [["x" * 1000] * 1000] * 1000  # a billion characters, though few in memory
    start = time.process_time()
    assert exceeds(value, 10_000)
    assert time.process_time() - start < 0.1


# Work beside the run


async def test_work_beside_the_run_ends_when_the_joiner_starts() -> None:
    """It is asked for after every event, runs at once, and the joiner does not wait for it."""
    begun, ended = asyncio.Event(), asyncio.Event()
    heard: list[Event] = []

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    def beside(event: Event) -> Any:
        heard.append(event)
        return work() if isinstance(event, PlanEnded) else None

    @tool
    async def late() -> str:
        """Ends once the work beside has begun."""
        await begun.wait()
        assert not ended.is_set()
        return "late"

    run = await Run(Task.of(1, "late"), tools={"late": late}, beside=beside).go()
    assert ended.is_set()
    assert run.end.status == "answered"
    assert heard == run.events[:-1]


async def test_work_beside_a_held_joiner_ends_too() -> None:
    """A run that stops in front of its joiner leaves nothing behind and can go on."""

    async def forever() -> None:
        await asyncio.Event().wait()

    def beside(event: Event) -> Any:
        return forever() if isinstance(event, TaskPlanned) else None

    run = Run(Task.of(1, "nap"), beside=beside, hold=lambda command: isinstance(command, Join))
    async with asyncio.timeout(5):
        await run.driver.run(START)
    assert run.driver.held == [Join(1, final=False)]
