"""Policies and limits: the real driver and machine, in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import pytest

from agentpar import UsageError, tool
from agentpar.events import (
    Answered,
    AttemptEnded,
    AttemptFailed,
    Event,
    JoinStarted,
    ModelUsed,
    PlanEnded,
    PlanStarted,
    PlanText,
    RunFinished,
    RunStarted,
    TaskCancelled,
    TaskDone,
    TaskPlanned,
    TaskStarted,
    Usage,
    Woke,
)
from agentpar.executor.commands import Cancel, Conclude, Execute, Finish, Join, Plan
from agentpar.executor.driver import Driver, Emit
from agentpar.executor.machine import PATIENCE, Machine
from agentpar.executor.results import MemoryResults
from agentpar.executor.resume import catch_up
from agentpar.executor.simulate import run
from agentpar.permissions import Permissions
from agentpar.plan import Failed, Ok, Ref, Skipped, Task
from agentpar.policy import Limits, Policy, Price
from agentpar.tools.base import Tool


class Busy(Exception):
    """What an HTTP client raises for a 429."""

    status = 429

    def __init__(self, retry_after: float | None = None) -> None:
        super().__init__("too many requests")
        self.retry_after = retry_after


class Flaky:
    """A tool that does what ``script`` says, call by call; the last for ever."""

    def __init__(self, *script: float | Exception, name: str = "get", **policy: Any) -> None:
        self.script = list(script)
        self.began: list[float] = []
        self.running = self.most = self.cancelled = 0
        self.effect = policy.pop("effect", "read")

        async def call(n: int = 0, url: str = "", after: Any = None) -> int:
            """Do the next thing of the script."""
            self.began.append(asyncio.get_running_loop().time())
            step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
            self.running += 1
            self.most = max(self.most, self.running)
            try:
                if isinstance(step, Exception):
                    raise step
                await asyncio.sleep(step)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
            finally:
                self.running -= 1
            return n

        self.tool = tool(call, name=name, effect=self.effect, **policy)


def drive(
    tasks: Iterable[Task],
    *things: Flaky | Tool,
    limits: Limits | None = None,
    latencies: Mapping[str, list[float]] | None = None,
    planning: Callable[[Plan, Emit], Awaitable[None]] | None = None,
    join: Callable[[Join, Emit], Awaitable[None]] | None = None,
    inside: Callable[[Driver], Awaitable[None]] | None = None,
    answer_seconds: float = 0.0,
    **options: Any,
) -> tuple[Machine, list[Event]]:
    """One run over ``tasks``, planned at once."""
    tools = {t.name: t for t in (x.tool if isinstance(x, Flaky) else x for x in things)}
    machine = Machine(
        limits,
        Permissions.of(tools),
        policies={name: t.policy for name, t in tools.items()},
        latencies=latencies,
        seed="seed",
    )
    events: list[Event] = []

    async def plan(command: Plan, emit: Emit) -> None:
        for task in tasks:
            emit(TaskPlanned(command.round, task))
        emit(PlanEnded(command.round))

    async def answer(command: Join, emit: Emit) -> None:
        await asyncio.sleep(answer_seconds)
        emit(Answered(command.round, f"{'final ' * command.final}{command.why}".strip()))

    async def conclude(command: Conclude, emit: Emit) -> None:
        emit(Answered(command.round, f"concluded: {command.why}"))

    async def main() -> None:
        driver = Driver(
            machine,
            tools=tools,
            plan=planning or plan,
            join=join or answer,
            conclude=conclude,
            observers=[events.append],
            **options,
        )
        async with asyncio.TaskGroup() as group:
            if inside is not None:
                group.create_task(inside(driver))
            await driver.run(RunStarted("run", "?"))
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(main(), seed=1)
    assert [e for e in events if isinstance(e, RunFinished)] == [events[-1]]
    return machine, events


def calls(count: int, tool: str = "get", **args: Any) -> list[Task]:
    return [Task.of(id, tool, n=id, **args) for id in range(1, count + 1)]


def done(events: list[Event], id: int) -> TaskDone:
    (found,) = (e for e in events if isinstance(e, TaskDone) and e.task_id == id)
    return found


# Retries


def test_a_failed_attempt_is_followed_by_others() -> None:
    """Two failures, then the value; each failed attempt is told, the task ends once."""
    get = Flaky(ValueError("no"), ValueError("no"), 0.1, retries=2, backoff=1.0)
    machine, events = drive(calls(1), get)
    assert machine.outcomes == {1: Ok(1)}
    failed = [e for e in events if isinstance(e, AttemptFailed)]
    assert [(e.attempt, e.outcome.kind) for e in failed] == [(1, "tool"), (2, "tool")]
    first, second = get.began[1] - get.began[0], get.began[2] - get.began[1]
    assert 0.5 <= first <= 1.0
    assert 1.0 <= second <= 2.0, "the pause doubles"
    assert machine.budget.steps == 3


def test_when_all_attempts_failed_the_last_error_counts() -> None:
    """And what needs the value is skipped."""
    get = Flaky(ValueError("one"), ValueError("two"), retries=1)
    machine, _ = drive([*calls(1), Task.of(2, "get", after=Ref(1))], get)
    assert machine.outcomes == {1: Failed("ValueError: two"), 2: Skipped(1)}


def test_a_timeout_is_tried_again() -> None:
    """A hang is a failure of the world, too."""
    get = Flaky(1000.0, 0.1, retries=1, timeout=5.0, backoff=0.1)
    machine, events = drive(calls(1), get)
    assert machine.outcomes == {1: Ok(1)}
    assert get.cancelled == 1
    assert done(events, 1).at < 6


def test_a_mistake_in_the_arguments_is_not_tried_again() -> None:
    """A second attempt would make it again."""
    get = Flaky(UsageError("n must be even"), retries=5)
    machine, _ = drive(calls(1), get)
    assert machine.outcomes == {1: Failed("n must be even", "arguments")}
    assert len(get.began) == 1


def test_what_is_not_idempotent_is_not_tried_again_after_it_may_have_begun() -> None:
    """Except where it was refused before anything was done."""
    send = Flaky(ValueError("broke off"), 0.1, retries=3, idempotent=False)
    machine, _ = drive(calls(1), send)
    assert isinstance(machine.outcomes[1], Failed)
    assert len(send.began) == 1
    send = Flaky(Busy(), 0.1, retries=3, idempotent=False)
    machine, _ = drive(calls(1), send)
    assert machine.outcomes == {1: Ok(1)}


def test_pauses_differ_between_tasks_and_are_equal_for_equal_seeds() -> None:
    """So that what failed together does not come again together."""
    policy = Policy(backoff=1.0, max_backoff=10.0)
    pauses = [policy.pause(1, f"seed/{id}") for id in range(50)]
    assert pauses == [policy.pause(1, f"seed/{id}") for id in range(50)]
    assert len(set(pauses)) == 50
    assert all(0.5 <= pause < 1.0 for pause in pauses)
    assert 5.0 <= policy.pause(40, "seed") < 10.0


# What equal calls and failures mean


def test_identical_read_calls_run_once() -> None:
    """Whether the first is still running or has ended; each result says where it is from."""
    get = Flaky(1.0)
    tasks = [Task.of(1, "get", n=7), Task.of(2, "get", n=7), Task.of(3, "get", n=7, after=Ref(1))]
    tasks.append(Task.of(4, "get", after=7, n=7))
    machine, events = drive(tasks, get)
    assert machine.outcomes == dict.fromkeys((1, 2, 3, 4), Ok(7))
    assert len(get.began) == 2
    assert [done(events, id).via for id in (1, 2, 3, 4)] == [
        "", "same call as 1", "same call as 4", "",
    ]  # fmt: skip


def test_identical_calls_that_write_all_run() -> None:
    """Sending twice is not sending once."""
    get = Flaky(0.1, idempotent=False)
    drive([Task.of(1, "get", n=7), Task.of(2, "get", n=7)], get)
    assert len(get.began) == 2


def test_on_error_keep_passes_the_error_on() -> None:
    """What needs the value gets the error as a value."""
    get = Flaky(ValueError("no"), name="get", on_error="keep")
    seen: list[Any] = []

    @tool
    async def see(what: Any) -> str:
        """See."""
        seen.append(what)
        return "seen"

    machine, _ = drive([*calls(1), Task.of(2, "see", what=Ref(1, ("error",)))], get, see)
    assert seen == ["ValueError: no"]
    assert isinstance(machine.outcomes[1], Failed)
    assert machine.outcomes[2] == Ok("seen")


def test_on_error_fail_ends_the_run() -> None:
    """At once, with what runs cancelled, and the reason named."""
    bad, slow = Flaky(0.5, name="bad", on_error="fail"), Flaky(1000.0, name="slow")
    bad.script = [0.5, ValueError("no")]
    tasks = [Task.of(1, "bad"), Task.of(2, "slow"), Task.of(3, "bad", after=Ref(1))]
    machine, events = drive(tasks, bad, slow)
    end = events[-1]
    assert isinstance(end, RunFinished)
    assert (end.status, end.error) == ("failed", "task 3 (bad) failed: ValueError: no")
    assert end.at < 1
    assert slow.cancelled == 1
    assert 2 not in machine.outcomes


def test_a_plan_that_a_failure_breaks_off_is_paid_for() -> None:
    """What it has written by then was asked for: the run's last event counts what it may cost."""
    bad = Flaky(ValueError("no"), name="bad", on_error="fail")

    async def plan(command: Plan, emit: Emit) -> None:
        emit(TaskPlanned(1, Task.of(1, "bad")))
        await asyncio.sleep(1000.0)

    limits = Limits(plan_tokens=500, price=Price(1.0, 1000.0))
    machine, events = drive([], bad, limits=limits, planning=plan)
    assert machine.budget.tokens == 500
    assert isinstance(events[-1], RunFinished)
    assert events[-1].cost_usd == pytest.approx(0.5)


# Places


def test_a_tool_has_its_own_limit() -> None:
    """Others are not held up by it."""
    narrow, wide = Flaky(1.0, name="narrow", concurrency=2), Flaky(1.0, name="wide")
    _, events = drive(
        [*calls(6, "narrow"), *(Task.of(10 + n, "wide", n=n) for n in range(6))], narrow, wide
    )
    assert (narrow.most, wide.most) == (2, 6)
    assert done(events, 6).at == pytest.approx(3.0)
    assert done(events, 15).at == pytest.approx(1.0)


def test_a_rate_spreads_the_starts() -> None:
    """A burst of one second's worth, then one after the other."""
    get = Flaky(0.0, rate=4.0)
    drive(calls(12), get)
    assert get.began[:4] == [0.0] * 4
    for count in range(4, 12):
        assert get.began[count] == pytest.approx(0.25 * (count - 3))


def test_a_lock_is_held_by_one() -> None:
    """By name, across tools."""
    one, two = Flaky(1.0, name="one", lock="disk"), Flaky(1.0, name="two", lock="disk")
    _, events = drive([*calls(2, "one"), Task.of(8, "two"), Task.of(9, "two", n=1)], one, two)
    starts = sorted(e.at for e in events if isinstance(e, TaskStarted))
    assert starts == pytest.approx([0.0, 1.0, 2.0, 3.0])


def test_a_host_has_its_own_limit() -> None:
    """Whatever tool goes there."""
    get = Flaky(1.0, host="url")
    tasks = [Task.of(n, "get", n=n, url=f"http://{'ab'[n % 2]}.org/{n}") for n in range(1, 9)]
    _, events = drive(tasks, get, limits=Limits(per_host=1))
    assert get.most == 2
    assert events[-1].at == pytest.approx(4.0)


def test_too_many_requests_shrink_the_window_for_all() -> None:
    """Nobody goes there before the time that the server named, and then fewer at once."""
    get = Flaky(*[Busy(10.0)] * 8, 1.0, retries=3, backoff=0.1)
    machine, _ = drive(calls(16), get, limits=Limits(concurrency=8))
    assert all(isinstance(outcome, Ok) for outcome in machine.outcomes.values())
    assert sum(at < 10.0 for at in get.began) == 8, "one Retry-After, heard by all"
    again = [at for at in get.began if at >= 10.0]
    assert sum(at < 10.9 for at in again) == 4, "half the window"
    assert get.most == 4 or sum(at < 12.9 for at in again) > 8, "and it widens again"


# Priority and hedging


def test_the_critical_path_goes_first() -> None:
    """With one place, the head of a long chain starts before calls that nobody waits for."""
    get = Flaky(1.0, concurrency=1)
    loose = [Task.of(n, "get", n=n) for n in range(1, 6)]
    chain = [Task.of(6, "get", n=6)]
    chain += [Task.of(n, "get", n=n, after=Ref(n - 1)) for n in range(7, 10)]
    _, events = drive([*loose, *chain], get)
    order = [e.task_id for e in events if isinstance(e, TaskStarted)]
    assert order[:4] == [1, 6, 7, 8], "9 is as far from the end as the loose ones"


def test_learned_latencies_decide_what_is_critical() -> None:
    """A slow tool's branch is longer than one of two quick tools."""
    quick, slow = Flaky(0.1, name="quick"), Flaky(9.0, name="slow")
    tasks = [Task.of(1, "quick", n=1), Task.of(2, "quick", n=2)]
    tasks += [Task.of(3, "quick", n=3, after=Ref(2)), Task.of(4, "slow", n=4)]
    _, events = drive(
        tasks,
        quick,
        slow,
        limits=Limits(concurrency=1),
        latencies={"quick": [0.1] * 20, "slow": [9.0] * 20},
    )
    order = [e.task_id for e in events if isinstance(e, TaskStarted)]
    assert order == [1, 4, 2, 3]


def test_what_a_run_learns_ranks_anew_those_who_wait() -> None:
    """Twenty calls count twenty seconds, until three of them have turned out to be quick."""
    quick, slow = Flaky(0.1, name="quick"), Flaky(9.0, name="slow")
    chain = [Task.of(n, "quick", n=n, after=Ref(n - 1) if n > 2 else 0) for n in range(2, 22)]
    tasks = [Task.of(1, "slow", n=1), *chain, Task.of(22, "slow", n=22)]
    _, events = drive(tasks, quick, slow, limits=Limits(concurrency=1))
    order = [e.task_id for e in events if isinstance(e, TaskStarted)]
    assert order[:6] == [1, 2, 3, 4, 22, 5]


def test_a_straggler_is_called_a_second_time_and_the_first_result_counts() -> None:
    """After the 95th percentile; the loser is cancelled; at most one call in twenty is hedged."""
    get = Flaky(*[0.1] * 39, 500.0, 0.1, hedge=True)
    chain = [Task.of(n, "get", n=n, after=Ref(n - 1) if n > 1 else 0) for n in range(1, 41)]
    machine, events = drive(chain, get, latencies={"get": [0.1] * 100})
    assert machine.outcomes[40] == Ok(40)
    assert (len(get.began), get.cancelled) == (41, 1)
    assert events[-1].at == pytest.approx(40 * 0.1 + 0.1, abs=0.01)


def test_hedges_stay_within_their_share() -> None:
    """Where everything straggles, doubling everything would make it worse."""
    get = Flaky(5.0, hedge=True)
    machine, _ = drive(
        calls(100), get, latencies={"get": [0.1] * 100}, limits=Limits(concurrency=100)
    )
    assert machine.budget.steps == 105


def test_what_is_not_idempotent_is_never_hedged() -> None:
    """Twice would be done twice."""
    get = Flaky(5.0, hedge=True, idempotent=False)
    machine, _ = drive(calls(100), get, latencies={"get": [0.1] * 100})
    assert machine.budget.steps == 100


# Budgets


def test_steps_are_never_passed() -> None:
    """1,000 calls at once and 100 steps: 100 run, the rest is told, the answer is final."""
    get = Flaky(1.0)
    limits = Limits(max_steps=100, concurrency=50)
    machine, events = drive(calls(1000), get, limits=limits)
    assert len(get.began) == machine.budget.steps == 100
    spent = [o for o in machine.outcomes.values() if isinstance(o, Failed) and o.kind == "limit"]
    assert len(spent) == 900
    (answered,) = (e for e in events if isinstance(e, Answered))
    assert answered.text == "final max_steps=100"
    assert machine.stopped_by == "max_steps=100"


def test_money_is_never_passed() -> None:
    """Retries and hedges cost, too."""
    get = Flaky(ValueError("no"), retries=9, cost=0.3, backoff=0.1)
    machine, _ = drive(calls(4), get, limits=Limits(max_cost_usd=1.0))
    assert len(get.began) == 3
    assert machine.budget.cost == pytest.approx(0.9)
    assert machine.stopped_by == "max_cost_usd=1"


def test_a_plan_that_cannot_be_paid_is_not_asked_for() -> None:
    """Nor an answer: then what is known is the answer."""
    limits = Limits(max_tokens=1000, plan_tokens=800, answer_tokens=400)
    machine, events = drive(calls(1), Flaky(0.1), limits=limits)
    assert machine.finished is not None
    assert machine.finished.error == "max_tokens=1000 does not allow a plan"

    async def plan(command: Plan, emit: Emit) -> None:
        emit(TaskPlanned(1, Task.of(1, "get")))
        emit(ModelUsed("plan", 1, Usage(900, 50, calls=1)))
        emit(PlanEnded(1))

    limits = Limits(max_tokens=1000, plan_tokens=100, answer_tokens=400)
    machine, events = drive([], Flaky(0.1), limits=limits, planning=plan)
    (answered,) = (e for e in events if isinstance(e, Answered))
    assert answered.text == "concluded: max_tokens=1000"
    assert machine.budget.tokens == 950


def test_tokens_cost_money() -> None:
    """At the model's price, for a million."""

    async def plan(command: Plan, emit: Emit) -> None:
        emit(ModelUsed("plan", 1, Usage(1_000_000, 500_000, calls=1)))
        emit(PlanEnded(1))

    machine, _ = drive([], limits=Limits(price=Price(1.0, 4.0)), planning=plan)
    assert machine.budget.cost == pytest.approx(3.0)


# Deadline


def test_at_the_deadline_what_is_known_is_the_answer() -> None:
    """What runs is cancelled early enough for an answer; what is missing is told."""
    quick, slow = Flaky(0.5, name="quick"), Flaky(1000.0, name="slow")
    machine, events = drive(
        [Task.of(1, "quick"), Task.of(2, "slow"), Task.of(3, "quick", after=Ref(2))],
        quick,
        slow,
        limits=Limits(deadline=10.0),
        answer_seconds=1.0,
    )
    assert machine.outcomes == {
        1: Ok(0),
        2: Failed("stopped by deadline=10 s", "limit"),
        3: Skipped(2),
    }
    (answered,) = (e for e in events if isinstance(e, Answered))
    assert answered.text == "final deadline=10 s"
    assert events[-1].at == pytest.approx(8.0), "3 of 10 s are kept for an answer"
    assert slow.cancelled == 1


def test_an_answer_that_comes_too_late_is_not_waited_for() -> None:
    """Then no model makes the answer."""
    machine, events = drive(
        calls(1), Flaky(0.5), limits=Limits(deadline=10.0), answer_seconds=1000.0
    )
    (answered,) = (e for e in events if isinstance(e, Answered))
    assert answered.text == "concluded: deadline=10 s"
    assert events[-1].at == pytest.approx(10.0)
    assert machine.outcomes == {1: Ok(1)}


def test_a_planner_that_is_still_writing_is_stopped() -> None:
    """What it has planned so far stands."""

    async def plan(command: Plan, emit: Emit) -> None:
        emit(TaskPlanned(1, Task.of(1, "get")))
        while True:
            await asyncio.sleep(1.0)
            emit(PlanText(1, "…"))

    machine, events = drive([], Flaky(0.5), limits=Limits(deadline=10.0), planning=plan)
    assert events[-1].at == pytest.approx(7.0)
    assert machine.outcomes == {1: Ok(0)}
    assert not any(isinstance(e, PlanText) and e.at > 7 for e in events)


def test_pauses_are_cut_short_by_the_deadline() -> None:
    """A retry that would come too late is not waited for."""
    get = Flaky(Busy(500.0), retries=3)
    _, events = drive(calls(1), get, limits=Limits(deadline=10.0))
    assert events[-1].at == pytest.approx(7.0)


# Cancelling


def test_one_task_can_be_cancelled() -> None:
    """Running, waiting for a place, waiting for its needs: its dependants are skipped."""

    async def cancel(driver: Driver) -> None:
        await asyncio.sleep(1.0)
        for id in (1, 3, 4):
            driver.emit(TaskCancelled(id, "not needed", driver.clock.now()))

    get = Flaky(5.0, concurrency=2)
    tasks = [*calls(3), Task.of(4, "get", n=4, after=Ref(2)), Task.of(5, "get", n=5, after=Ref(4))]
    machine, events = drive(tasks, get, inside=cancel)
    gone = Failed("cancelled: not needed", "cancelled")
    assert machine.outcomes == {1: gone, 2: Ok(2), 3: gone, 4: gone, 5: Skipped(4)}
    assert get.cancelled == 1
    assert len(get.began) == 2
    assert events[-1].at == pytest.approx(5.0)


def test_cancelling_a_call_that_others_share_does_not_cancel_it_for_them() -> None:
    """The next one makes it."""

    async def cancel(driver: Driver) -> None:
        await asyncio.sleep(1.0)
        driver.emit(TaskCancelled(1, "", driver.clock.now()))

    get = Flaky(5.0)
    machine, _ = drive([Task.of(1, "get", n=7), Task.of(2, "get", n=7)], get, inside=cancel)
    assert machine.outcomes == {1: Failed("cancelled", "cancelled"), 2: Ok(7)}


def test_a_tool_that_does_not_stop_is_given_up_on() -> None:
    """Its timeout is told in time, the run goes on, and its end names what is left behind."""

    @tool(timeout=5.0)
    async def stubborn() -> str:
        """Swallow every cancellation."""
        for _ in range(100):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(1000.0)
        return "at last"

    machine, events = drive([Task.of(1, "stubborn")], stubborn, grace=200_000.0)
    assert isinstance(machine.outcomes[1], Failed)
    assert "does not stop when cancelled" in machine.outcomes[1].error
    assert done(events, 1).at == pytest.approx(6.0)


class Deaf:
    """A tool whose first call swallows cancellations until ``seconds`` are over."""

    def __init__(self, seconds: float, **policy: Any) -> None:
        self.spans: list[tuple[int, float, float]] = []  # which call, from when to when

        async def call(n: int = 0) -> int:
            """Hear nothing."""
            now = asyncio.get_running_loop().time
            began = now()
            until = began + (seconds if not self.spans else 0.5)
            self.spans.append((n, began, until))
            while now() < until:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(until - now())
            return n

        self.tool = tool(call, name="deaf", **policy)


def abandoned(events: list[Event]) -> list[tuple[float, int]]:
    """Which calls were given up on while they ran, and when."""
    return [(e.at, e.task_id) for e in events if isinstance(e, AttemptFailed) and e.abandoned]


@pytest.mark.parametrize("bound", [{"lock": "one"}, {"concurrency": 1}])
def test_what_a_deaf_call_holds_is_held_until_it_has_ended(bound: dict[str, Any]) -> None:
    """Its failure is told in time, and the next call begins behind its real end."""
    deaf = Deaf(8.0, timeout=2.0, **bound)
    machine, events = drive(calls(2, "deaf"), deaf.tool)
    assert abandoned(events) == [(3.0, 1)]
    assert deaf.spans == [(1, 0.0, 8.0), (2, 8.0, 8.5)]
    assert AttemptEnded(1, 1, 8.0) in events
    assert machine.outcomes[2] == Ok(2)


def test_a_place_of_the_run_is_held_by_a_deaf_call_too() -> None:
    """No more calls run than ``concurrency`` says, those that were dropped included."""

    async def drop(driver: Driver) -> None:
        await asyncio.sleep(1.0)
        driver.emit(TaskCancelled(1, "not wanted", driver.clock.now()))

    deaf = Deaf(8.0)
    _, events = drive(calls(2, "deaf"), deaf.tool, limits=Limits(concurrency=1), inside=drop)
    assert done(events, 1).at == 1.0
    assert deaf.spans == [(1, 0.0, 8.0), (2, 8.0, 8.5)]


@pytest.mark.parametrize(
    ("policy", "begins"),
    [
        ({}, [0.0, 3.5]),  # beside the first, which still runs
        ({"lock": "one"}, [0.0, 8.0]),  # behind it
        ({"idempotent": False}, [0.0]),
    ],
)
def test_a_deaf_call_is_tried_again_where_it_may_be_made_twice(
    policy: dict[str, Any], begins: list[float]
) -> None:
    """Beside the one that goes on, unless a lock forbids that."""
    deaf = Deaf(8.0, timeout=2.0, retries=1, backoff=1.0, **policy)
    machine, events = drive(calls(1, "deaf"), deaf.tool, grace=10.0)
    assert [began for _, began, _ in deaf.spans] == pytest.approx(begins, abs=0.5)
    assert isinstance(machine.outcomes[1], Ok) == (len(begins) == 2)
    assert isinstance(done(events, 1).outcome, Ok) == (len(begins) == 2)


def test_nobody_waits_without_end_for_a_call_that_never_stops() -> None:
    """Where nothing else goes on, who waits for its lock is given up, and the run ends."""
    deaf = Deaf(1e6, timeout=2.0, lock="one")
    machine, events = drive([*calls(2, "deaf"), Task.of(3, "deaf", n=2)], deaf.tool, grace=2e6)
    error = "not called: call 1 does not stop when cancelled, and leaves no place for it"
    assert machine.outcomes[2] == machine.outcomes[3] == Failed(error, "timeout")
    assert done(events, 2).at == done(events, 3).at == pytest.approx(3.0 + PATIENCE)
    assert len(deaf.spans) == 1


def test_a_call_that_was_given_up_ended_with_its_process() -> None:
    """Cut anywhere, what was let go of holds nothing in the next part of the run."""
    deaf = Deaf(8.0, timeout=2.0, lock="one")
    machine, events = drive(calls(2, "deaf"), deaf.tool)
    held = 0
    for cut in range(len(events)):
        again = Machine(policies={"deaf": deaf.tool.policy}, seed="seed")
        gone = [c for c in catch_up(again, events[:cut]) if isinstance(c, Cancel)]
        wanted = [
            command
            for cancel in gone
            for command in again.handle(AttemptEnded(cancel.id, cancel.attempt, 3.0))
        ]
        assert [type(command) for command in wanted] == [Execute] * len(gone)
        held += len(gone)
    assert held > 0
    assert machine.outcomes[2] == Ok(2)


# Caches


def test_a_cached_result_says_so_and_costs_no_step() -> None:
    """The second run asks nobody, until the time is over."""
    now = [0.0]
    results = MemoryResults(now=lambda: now[0])
    get = Flaky(1.0, cache=60.0)
    for expected, steps, via in ((1, 1, ""), (1, 0, "cache")):
        machine, events = drive(calls(1), get, results=results)
        assert machine.outcomes == {1: Ok(1)}
        assert (len(get.began), machine.budget.steps) == (expected, steps)
        assert done(events, 1).via == via
    now[0] = 60.0
    drive(calls(1), get, results=results)
    assert len(get.began) == 2


def test_failures_are_not_cached() -> None:
    """A second run may have more luck."""
    results = MemoryResults()
    get = Flaky(ValueError("no"), 1.0, cache=60.0)
    drive(calls(1), get, results=results)
    machine, _ = drive(calls(1), get, results=results)
    assert machine.outcomes == {1: Ok(1)}


# Going on after a break


def test_a_retry_that_was_due_is_made_after_the_break() -> None:
    """Cut anywhere, the run goes on to the same outcome, and no attempt is made twice."""
    get = Flaky(ValueError("no"), 0.1, retries=2, backoff=1.0)
    machine, events = drive(calls(1), get)
    for cut in range(len(events)):
        again = Machine(policies={"get": get.tool.policy}, seed="seed")
        due = catch_up(again, events[:cut])
        for event in events[cut:]:
            again.handle(event)
        assert again.outcomes == machine.outcomes
        assert len(due) == len({repr(command) for command in due})


def test_an_attempt_that_is_made_again_after_a_crash_counts_again() -> None:
    """What it may have cost was paid twice."""
    machine = Machine(Limits(max_steps=9), policies={"get": Policy(cost=0.5)})
    begun = [TaskStarted(1, {"n": 1}), TaskStarted(1, {"n": 1})]
    for event in [RunStarted("run", "?"), TaskPlanned(1, calls(1)[0]), *begun]:
        machine.handle(event)
    assert (machine.budget.steps, machine.budget.cost) == (2, 1.0)


@pytest.mark.parametrize(("via", "steps"), [("", 1), ("journal", 1), ("cache", 0)])
def test_a_result_of_the_journal_was_paid_for_when_it_was_called(via: str, steps: int) -> None:
    """Its one call was made before the crash; only what needed no call gives its step back."""
    machine = Machine(Limits(max_steps=9), policies={"get": Policy(cost=0.5)})
    told = [TaskStarted(1, {"n": 1}), TaskDone(1, Failed("unknown", "interrupted"), via=via)]
    for event in [RunStarted("run", "?"), TaskPlanned(1, calls(1)[0]), *told]:
        machine.handle(event)
    assert (machine.budget.steps, machine.budget.cost) == (steps, steps * 0.5)


def test_a_model_call_that_is_made_again_after_a_crash_counts_again() -> None:
    """Nobody was told what the one that broke off took: all that was set aside for it is spent,
    so that a run that dies again and again comes to its limit."""
    limits = Limits(max_tokens=5000, plan_tokens=1000, answer_tokens=100)
    machine = Machine(limits)
    plans = [PlanStarted(1), PlanStarted(1), PlanStarted(1), PlanEnded(1)]
    used = [ModelUsed("plan", 1, Usage(300, 50)), JoinStarted(1), JoinStarted(1)]
    for event in [RunStarted("run", "?"), *plans, *used]:
        machine.handle(event)
    assert machine.budget.tokens == 2 * 1000 + 350 + 100
    assert machine.budget.forbids("plan", 2550)
    assert not machine.budget.forbids("plan", 2000)


def test_a_call_that_was_stopped_may_tell_later_what_it_took() -> None:
    """Until then all that was set aside counts. Then its prompt does, and of an estimate still the
    whole text, since more may have been written than came; of what a server says, just that. Also
    behind the end of the run."""
    price = Price(1.0, 10.0)
    for usage, tokens in ((Usage(300, 20, estimated=True), 1300), (Usage(300, 20), 320)):
        machine = Machine(Limits(deadline=1.0, plan_tokens=1000, answer_tokens=100, price=price))
        for event in [RunStarted("run", "?"), PlanStarted(1), Woke(0.8)]:
            machine.handle(event)
        assert machine.budget.tokens == 1000
        machine.handle(Answered(1, "nothing is known"))
        assert machine.finished is not None
        assert machine.handle(ModelUsed("plan", 1, usage)) == []
        assert machine.budget.tokens == tokens
        assert machine.budget.cost == pytest.approx((300 + 10 * (tokens - 300)) / 1e6)


def test_a_server_that_tells_nothing_has_taken_all_that_was_set_aside() -> None:
    """No estimate of a text is a bound on it: not where the model thinks unseen, nor where it
    writes on behind what was read."""
    machine = Machine(Limits(max_tokens=2000, plan_tokens=1000, answer_tokens=600))
    machine.handle(RunStarted("run", "?"))
    machine.handle(ModelUsed("plan", 1, Usage(300, 20, estimated=True)))
    assert machine.budget.tokens == 1300
    assert not machine.budget.forbids("join", 600)
    assert machine.budget.forbids("join", 701)


@pytest.mark.parametrize(("begun", "spent"), [(True, 1), (False, 0)])
def test_a_write_that_a_crash_left_open_has_been_paid_for(begun: bool, spent: int) -> None:
    """It is not made again, but it may have been made; what the journal knows from a branch that
    was left costs this one nothing."""
    machine = Machine(policies={"get": Policy(cost=0.5)})
    told = [TaskStarted(1, {"n": 1})] * begun
    end = TaskDone(1, Failed("may or may not have happened", "interrupted"), via="journal")
    for event in [RunStarted("run", "?"), TaskPlanned(1, calls(1)[0]), *told, end]:
        machine.handle(event)
    assert (machine.budget.steps, machine.budget.cost) == (spent, spent * 0.5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"retries": -1}, "retries must be at least 0, got -1"),
        ({"timeout": 0}, "timeout must be more than 0, or None, got 0"),
        ({"on_error": "explode"}, "on_error must be skip, keep or fail, got 'explode'"),
        ({"concurrency": 0}, "concurrency must be at least 1, or None, got 0"),
        ({"cache": -5}, "cache must be more than 0, or None, got -5"),
        ({"retires": 1}, "retires"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(fields: dict[str, Any], message: str) -> None:
    """Where the tool is made, with its name."""
    with pytest.raises(UsageError, match="tool 'get'") as caught:
        tool(lambda: None, name="get", description="", **fields)
    assert message in str(caught.value)


def test_what_runs_beside_a_call_that_fails_the_run_is_stopped() -> None:
    """The second attempt of that call, too."""
    policies = {"get": Policy(hedge=True, on_error="fail")}
    machine = Machine(policies=policies, latencies={"get": [1.0] * 40})
    machine.handle(RunStarted("run", "?"))
    for task in calls(30):
        machine.handle(TaskPlanned(1, task))
    for task in calls(29):
        machine.handle(TaskDone(task.id, Ok(1), at=0.5))
    (hedge,) = machine.handle(Woke(at=2.0))
    assert hedge == Execute(Task.of(30, "get", n=30), {"n": 30}, 2, retry=True)
    commands = machine.handle(TaskDone(30, Failed("deaf", "timeout"), at=2.5))
    assert any(isinstance(c, Cancel) and (c.id, c.attempt) == (30, 2) for c in commands)
    assert isinstance(commands[-1], Finish)


def test_nobody_is_asked_about_a_call_that_can_not_be_paid_any_more() -> None:
    """The run does not wait for an approver whose word changes nothing."""

    async def approve(task: Task, args: Mapping[str, Any]) -> bool:
        await asyncio.sleep(600.0)
        return True

    send, get = Flaky(1.0, name="send", effect="write"), Flaky(1.0)
    tasks = [Task.of(1, "send"), Task.of(2, "get", n=2), Task.of(3, "get", n=3, after=Ref(2))]
    machine, events = drive(tasks, send, get, limits=Limits(max_steps=1), approve=approve)
    assert events[-1].at == pytest.approx(1.0)
    stopped = Failed("not called: the run was stopped by max_steps=1", "limit")
    assert (machine.outcomes[1], machine.outcomes[3]) == (stopped, stopped)
