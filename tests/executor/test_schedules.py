"""Ten thousand runs with faults, each drawn from its number, and what holds after every one.

``AGENTPAR_SCHEDULES=100000`` runs more of them. A failure names the schedule and tells it;
``perform(drawn(4711))`` runs it again.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from many_schedules import complaints, nothing_depends_on_time, told

from agentpar.errors import Deadlock
from agentpar.events import (
    Answered,
    HostThrottled,
    ModelUsed,
    PlanStarted,
    RunFinished,
    RunResumed,
    TaskCancelled,
    TaskDone,
    TaskItem,
    TaskPlanned,
    TaskReplaced,
    TaskStarted,
    Usage,
)
from agentpar.executor.commands import Ask, Cancel, Conclude, Execute, Expand, Join, Plan
from agentpar.executor.draws import drawn
from agentpar.executor.invariants import INVARIANTS, broken
from agentpar.executor.perform import Effect, Performed, Request, perform
from agentpar.executor.schedules import FAULTS, SINKS, Behaviour, Crash, name_of
from agentpar.permissions import Rule
from agentpar.plan import Failed, Ok, Pick, Ref, Task
from agentpar.policy import Limits, Policy

COUNT = int(os.environ.get("AGENTPAR_SCHEDULES", "10000"))
BLOCK = 500


@pytest.fixture(scope="module")
def blocks(request: pytest.FixtureRequest) -> Iterator[dict[int, Future[str]]]:
    """What the blocks of schedules that are asked for come to, on all cores."""
    name = test_whatever_happens_the_promises_hold.__name__
    items = [item for item in request.session.items if isinstance(item, pytest.Function)]
    firsts = [item.callspec.params["first"] for item in items if item.originalname == name]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        yield {one: pool.submit(complaints, one, min(one + BLOCK, COUNT)) for one in firsts}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("first", range(0, COUNT, BLOCK))
def test_whatever_happens_the_promises_hold(first: int, blocks: dict[int, Future[str]]) -> None:
    """Each schedule ends as it must; every eighth again, which gives the same record; and those
    with a crash without it, which comes to the same."""
    if complaint := blocks[first].result():
        pytest.fail(complaint)


@given(st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_hypothesis_finds_no_smaller_schedule_that_breaks(chance: Random) -> None:
    """The same claim with chance that shrinks: what fails here is told in its simplest form."""
    performed = perform(drawn(0, lambda dimension: chance))
    assert not broken(performed), told(performed)


def test_schedules_are_of_every_kind() -> None:
    """What the claims are about does happen: faults, ends, cancelling, limits, policies, lists,
    picks, batches, hosts that ask for less, plans that change others, rules, crashes, and what
    changes across one."""
    seen: Counter[str] = Counter()
    for seed in range(1500):
        performed = perform(drawn(seed))
        schedule, machine = performed.schedule, performed.machine
        assert performed.end is not None
        seen[performed.end.status] += 1
        seen["several rounds"] += machine.round > 1
        seen["at the limit"] += performed.peak == schedule.limits.concurrency
        seen["left behind"] += "does not end" in performed.end.error
        seen["died"] += bool(performed.cuts)
        seen["died twice"] += len(performed.cuts) > 1
        seen["a batch"] += len(performed.batches)
        seen["a full batch"] += sum(size > 2 for size in performed.batches)
        closed = [
            event.at + event.retry_after
            for event in performed.log[: performed.cuts[0] if performed.cuts else 0]
            if isinstance(event, HostThrottled) and event.retry_after is not None
        ]
        seen["died while a host was closed"] += any(
            request.process > 0 and request.at >= max(closed, default=math.inf)
            for request in performed.requests
        )
        seen["died, and nothing differs"] += bool(performed.cuts) and nothing_depends_on_time(
            performed
        )
        for entry in performed.log:
            match entry:
                case Execute(task, args, attempt):
                    found = schedule.calls[name_of(args)]
                    seen[found[min(attempt, len(found)) - 1].fault] += 1
                    seen["again"] += attempt > 1
                    seen["a hedging tool again"] += (
                        attempt > 1 and schedule.policies[task.tool].hedge
                    )
                    seen["a sink"] += task.tool in SINKS
                case TaskDone(outcome=Failed(kind=kind, error=error)):
                    seen[f"failed: {kind}"] += 1
                    seen["a loser"] += "has what it needs" in error
                    seen["given up"] += "leaves no place for it" in error
                    seen["denied"] += error.startswith("denied by rule")
                    seen["not asked"] += error.startswith("not asked: ")
                    seen["denied while it was made"] += "was being called" in error
                case TaskDone(via=via) if via:
                    seen[via.rstrip("0123456789 ")] += 1
                case Cancel(what=what, why=why):
                    seen[f"cancelled {what}"] += 1
                    seen[f"{what}: {why}"] += 1
                case PlanStarted(anew=True):
                    seen["anew"] += 1
                case HostThrottled(retry_after=wait):
                    seen["HostThrottled"] += 1
                    seen["HostThrottled without a time"] += wait is None
                case RunResumed():
                    seen["RunResumed"] += 1
                case Ask(label=label):
                    seen["asked, with data from outside"] += bool(label.data)
                    seen["asked, planned after reading"] += bool(label.plan)
                case Plan(why=why) if why.startswith("call "):
                    seen["an early plan"] += 1
                case TaskPlanned(task=task):
                    seen["a pick"] += any(isinstance(value, Pick) for value in task.args.values())
                case TaskPlanned() | TaskReplaced() | TaskCancelled() | Expand() | TaskItem():
                    seen[type(entry).__name__] += 1
                case Join(why=why) | Conclude(why=why) if why:
                    seen[why.partition("=")[0]] += 1
    expected = {"answered", "failed", "cancelled", "several rounds", "at the limit", *FAULTS}
    expected |= {"left behind", "again", "a hedging tool again", "same call as", "cache"}
    expected |= {"max_steps", "max_tokens", "max_cost_usd", "deadline", "a sink", "denied"}
    expected |= {"died", "died twice", "died, and nothing differs"}
    expected |= {"asked, with data from outside", "asked, planned after reading"}
    expected |= {"a pick", "a loser", "given up", "an early plan", "Expand", "TaskItem"}
    expected |= {"TaskReplaced", "TaskCancelled", "a batch", "a full batch", "anew", "RunResumed"}
    expected |= {"HostThrottled", "HostThrottled without a time", "not asked"}
    expected |= {"died while a host was closed", "denied while it was made"}
    expected |= {"call: the rules have changed"}
    expected |= {f"cancelled {what}" for what in ("call", "ask", "plan", "join")}
    kinds = ("plan", "reference", "tool", "timeout", "throttled", "size", "denied", "limit")
    expected |= {f"failed: {kind}" for kind in (*kinds, "cancelled", "interrupted")}
    assert not {kind for kind in expected if seen[kind] < 2}


def test_a_schedule_can_be_read() -> None:
    """A failing one is told whole: limits, plan, calls, cancelling."""
    text = str(next(schedule for seed in range(1000) if (schedule := drawn(seed)).cancels))
    for part in (
        "concurrency=",
        "timeout ",
        "round 1: the planner ",
        "the joiner ",
        "cancelled at",
    ):
        assert part in text


def test_equal_seeds_give_equal_records_in_another_process() -> None:
    """Nothing depends on addresses, hashes or what ran before."""
    script = (
        "import hashlib\n"
        "from agentpar.executor.perform import perform\n"
        "from agentpar.executor.draws import drawn\n"
        "records = b''.join(perform(drawn(seed)).record for seed in range(60))\n"
        "print(hashlib.sha256(records).hexdigest())"
    )
    here = hashlib.sha256(b"".join(perform(drawn(seed)).record for seed in range(60))).hexdigest()
    for salt in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": salt},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.stdout.strip() == here, done.stderr


# The invariants themselves

POLICY = Policy(concurrency=64, rate=1000.0, lock="one", retries=1, hedge=True, cost=0.01)
LIMITS = Limits(
    concurrency=64,
    max_steps=60,
    max_cost_usd=1.0,
    max_tokens=10_000,
    plan_tokens=30,
    answer_tokens=20,
    deadline=50.0,
)


def _quiet() -> Performed:
    """A run without faults in which calls were made, under every limit and none reached."""
    for seed in range(1000):
        schedule = drawn(seed)
        if sum(not task.needs for task in schedule.tasks) < 5 or schedule.cancels or schedule.drops:
            continue
        calls = {id: (Behaviour(0.1),) for id in schedule.calls}
        policies = {task.tool: POLICY for task in schedule.tasks}
        quiet = dataclasses.replace(
            schedule,
            calls=calls,
            policies=policies,
            limits=LIMITS,
            kept=frozenset(),
            rules=(),
            crashes=(),
            refusals={},
            batches={},
        )
        performed = perform(quiet)
        if any(isinstance(entry, Answered) for entry in performed.log):
            return performed
    raise AssertionError("no such schedule")


def _call(performed: Performed) -> Execute:
    return next(entry for entry in performed.log if isinstance(entry, Execute))


def _raised(performed: Performed) -> None:
    performed.error = Deadlock("all wait")


def _cancelled_by_nobody(performed: Performed) -> None:
    performed.error = asyncio.CancelledError()


def _no_end(performed: Performed) -> None:
    performed.log.pop()


def _late_event(performed: Performed) -> None:
    performed.log.append(TaskDone(1, Ok(1), at=99))


def _left(performed: Performed) -> None:
    performed.left.append("task Task-7")


def _lost(performed: Performed) -> None:
    performed.machine.outcomes.popitem()


def _other_value(performed: Performed) -> None:
    performed.machine.outcomes[next(iter(performed.machine.outcomes))] = Ok("other")


def _crowd(performed: Performed) -> None:
    performed.peak = performed.schedule.limits.concurrency + 1


def _lock_taken_twice(performed: Performed) -> None:
    performed.log.insert(performed.log.index(_call(performed)), _call(performed))
    other = next(e for e in reversed(performed.log) if isinstance(e, Execute))
    performed.log.insert(performed.log.index(_call(performed)), other)


def _overlap(performed: Performed) -> None:
    one, other, *_ = performed.schedule.calls
    performed.overlaps.append(("one", one, [other]))


def _rush(performed: Performed) -> None:
    starts = [entry for entry in performed.log if isinstance(entry, TaskStarted)]
    performed.log += [dataclasses.replace(starts[0], attempt=n) for n in range(2, 2000)]


def _overspent(performed: Performed) -> None:
    performed.log += [_call(performed)] * 200


def _many_tokens(performed: Performed) -> None:
    performed.log.append(ModelUsed("join", 1, Usage(completion_tokens=20_000)))


def _planned_twice(performed: Performed) -> None:
    """As if a process had died over the plan, and what that took counted for nothing."""
    at = next(i for i, entry in enumerate(performed.log) if isinstance(entry, PlanStarted))
    performed.log.insert(at, performed.log[at])


def _too_late(performed: Performed) -> None:
    performed.log.insert(-1, Answered(1, "late", at=60.0))


def _lingering(performed: Performed) -> None:
    performed.log[-1] = RunFinished("answered", at=performed.events[-2].at + 7.0)


def _again_and_again(performed: Performed) -> None:
    call = _call(performed)
    failed = Failed("no")
    for attempt in range(2, 6):
        performed.log += [dataclasses.replace(call, attempt=attempt)]
        performed.log += [TaskDone(call.task.id, failed, attempt=attempt)]


def _hedged(performed: Performed) -> None:
    call = _call(performed)
    performed.log.insert(performed.log.index(call), dataclasses.replace(call, attempt=2))


def _equal_call(performed: Performed) -> None:
    call = next(e for e in performed.log if isinstance(e, Execute) and e.task.tool != "send")
    twin = Task(999, call.task.tool, call.args)
    performed.machine.tasks[999] = twin
    performed.log.append(Execute(twin, call.args))


def _started_twice(performed: Performed) -> None:
    at = next(i for i, entry in enumerate(performed.log) if isinstance(entry, TaskStarted))
    performed.log.insert(at, performed.log[at])


def _started_again_behind_its_end(performed: Performed) -> None:
    """A process died, but not while this call was in flight."""
    ended = next(e for e in performed.log if isinstance(e, TaskDone))
    performed.cuts.append(len(performed.log) - 1)
    performed.log.insert(-1, TaskStarted(ended.task_id, at=performed.events[-1].at))


def _effect_twice(performed: Performed) -> None:
    performed.effects += [Effect(1, "look", "{}", "key", refused=False)] * 2


def _effect_under_another_key(performed: Performed) -> None:
    performed.effects += [Effect(1, "send", "{}", key, refused=True) for key in ("one", "other")]


def _asked_too_early(performed: Performed) -> None:
    """The process that was told died, and the next one asks at once."""
    performed.log.insert(1, HostThrottled(1, "a.example", 5.0))
    performed.cuts.append(2)
    performed.requests.append(Request("a.example", 4.0, 1))


def _cancelled_for_nothing(performed: Performed) -> None:
    at, done = next((i, e) for i, e in enumerate(performed.log) if isinstance(e, TaskDone))
    outcome = Failed("cancelled: who knows", "cancelled")
    performed.log[at] = dataclasses.replace(done, outcome=outcome)
    performed.machine.outcomes[done.task_id] = outcome


def _unapproved(performed: Performed) -> None:
    _sneak_in(performed, Task(998, "send", {"me": 998}))


def _denied_by_the_new_rules(performed: Performed) -> None:
    """The agent came back with rules that let nothing run, and something ran."""
    crash = Crash(1, rules=(Rule("*", "deny"),))
    performed.schedule = dataclasses.replace(performed.schedule, crashes=(crash,))
    performed.cuts.append(len(performed.log) - 1)
    _sneak_in(performed, Task(998, "look", {"me": 998}))


def _filled_from_outside(performed: Performed) -> None:
    """A rule that allows sinks does not allow them data from outside by the way."""
    performed.schedule = dataclasses.replace(performed.schedule, rules=(Rule("*", "allow"),))
    fetched = next(id for id, task in performed.machine.tasks.items() if task.tool == "look")
    _sneak_in(performed, Task.of(998, "send", me=998, a=Ref(fetched)))


def _planned_after_reading(performed: Performed) -> None:
    """No rule allows a sink that a page may have asked for."""
    rules = (Rule("*", "allow", "any"),)
    performed.schedule = dataclasses.replace(performed.schedule, rules=rules)
    performed.log.insert(-1, PlanStarted(2))
    _sneak_in(performed, Task(998, "send", {"me": 998}))


def _sneak_in(performed: Performed, task: Task) -> None:
    performed.log[-1:-1] = [TaskPlanned(1, task), TaskStarted(task.id)]


def _back_in_time(performed: Performed) -> None:
    performed.log[-1] = RunFinished("answered", at=0.0)


def _forged_command(performed: Performed) -> None:
    made = b'"command": "Execute", "task_id": '
    performed.record = performed.record.replace(made, made + b"9", 1)


def _other_event(performed: Performed) -> None:
    started = performed.log[0]
    assert not isinstance(started, Execute)
    performed.log[0] = dataclasses.replace(started, at=0.001)


@pytest.mark.parametrize(
    ("spoil", "name"),
    [
        (_raised, "ended"),
        (_cancelled_by_nobody, "ended"),
        (_no_end, "one_end"),
        (_late_event, "one_end"),
        (_left, "nothing_left"),
        (_lost, "all_ended"),
        (_crowd, "within_concurrency"),
        (_lock_taken_twice, "within_concurrency"),
        (_overlap, "locks_hold"),
        (_rush, "within_rates"),
        (_overspent, "within_budget"),
        (_many_tokens, "within_budget"),
        (_planned_twice, "within_budget"),
        (_too_late, "by_the_deadline"),
        (_lingering, "ends_soon"),
        (_again_and_again, "within_retries"),
        (_hedged, "few_hedges"),
        (_equal_call, "once_for_equals"),
        (_started_twice, "in_order"),
        (_started_again_behind_its_end, "in_order"),
        (_back_in_time, "in_order"),
        (_started_again_behind_its_end, "not_again"),
        (_effect_twice, "effects_once"),
        (_effect_under_another_key, "effects_once"),
        (_asked_too_early, "leaves_hosts_alone"),
        (_cancelled_for_nothing, "cancelled_for_a_reason"),
        (_unapproved, "permitted"),
        (_denied_by_the_new_rules, "permitted"),
        (_filled_from_outside, "permitted"),
        (_planned_after_reading, "permitted"),
        (_forged_command, "replays"),
        (_other_event, "replays"),
        (_lost, "as_one_by_one"),
        (_other_value, "as_one_by_one"),
    ],
)
def test_an_invariant_notices(spoil: Callable[[Performed], None], name: str) -> None:
    """Each of them fails on a run that was spoilt in its respect."""
    performed = _quiet()
    assert not broken(performed)
    spoil(performed)
    assert name in {complaint.partition(":")[0] for complaint in broken(performed)}


def test_every_invariant_is_explained_and_was_spoilt() -> None:
    """No invariant without a docstring, none that the test above leaves out."""
    assert all(invariant.__doc__ for invariant in INVARIANTS)
    (mark,) = (m for m in test_an_invariant_notices.pytestmark if m.name == "parametrize")
    assert {name for _, name in mark.args[1]} == {invariant.__name__ for invariant in INVARIANTS}


def test_a_run_that_hangs_is_told_and_not_waited_for() -> None:
    """A call without end, no timeout and nobody who cancels: the deadlock names the call."""
    schedule = _quiet().schedule
    calls = {id: (Behaviour(0.1, "hangs"),) for id in schedule.calls}
    hung = perform(
        dataclasses.replace(schedule, calls=calls, timeout=None, limits=Limits(), policies={})
    )
    assert isinstance(hung.error, Deadlock)
    assert "perform.py" in str(hung.error)
    assert any(complaint.startswith("ended") for complaint in broken(hung))
    assert isinstance(hung.end, RunFinished)
