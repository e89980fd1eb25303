"""Batches: one call on the wire for calls that are ready together, and nothing else changes."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_plans import READS, WRITE, call, plans
from test_policies import Busy, drive

from agentpar import Agent, ScriptedRuntime, UsageError, current_call, current_calls, tool
from agentpar.events import AttemptEnded, AttemptFailed, Event, TaskCancelled, TaskDone, TaskStarted
from agentpar.executor.driver import Driver
from agentpar.executor.machine import Machine
from agentpar.executor.naive import interpret
from agentpar.plan import EACH, Failed, Ok, Ref, Task
from agentpar.policy import Limits, Policy
from agentpar.tools.base import Tool


class Bulk:
    """A tool that doubles numbers, alone or many at once, and what went over the wire.

    A batch goes as its ``script`` says: a number of seconds, or what it raises; a negative number
    fails alone.
    """

    def __init__(self, script: Any = 1.0, size: int = 16, **policy: Any) -> None:
        self.script = [script] if not isinstance(script, list) else script
        self.wire: list[tuple[float, list[int]]] = []  # when, and the numbers of one call
        self.ended: list[float] = []

        async def double(n: int) -> int:
            """Twice the number."""
            [result] = await self.go([{"n": n}])
            if isinstance(result, Exception):
                raise result
            return result

        self.tool = tool(double, batch=self.go, batch_size=size, **policy)

    async def go(self, calls: list[dict[str, Any]]) -> Any:
        now = asyncio.get_running_loop().time
        self.wire.append((now(), [one["n"] for one in calls]))
        step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        try:
            if isinstance(step, BaseException):
                raise step
            await asyncio.sleep(step)
        finally:
            self.ended.append(now())
        return [2 * one["n"] if one["n"] >= 0 else ValueError("negative") for one in calls]


def doubling(*numbers: int) -> list[Task]:
    return [Task.of(id, "double", n=n) for id, n in enumerate(numbers, 1)]


def wired(bulk: Bulk) -> list[list[int]]:
    return [numbers for _, numbers in bulk.wire]


def test_calls_that_are_ready_together_go_as_one() -> None:
    """In parts of batch_size; each has events of its own, and what is left alone goes alone."""
    bulk = Bulk(size=3)
    machine, events = drive(doubling(1, 2, 3, 4, 5, 6, 7), bulk.tool)
    assert wired(bulk) == [[1, 2, 3], [4, 5, 6], [7]]
    assert [machine.outcomes[id] for id in range(1, 8)] == [Ok(2 * n) for n in range(1, 8)]
    assert sum(isinstance(event, TaskStarted) for event in events) == 7
    assert machine.budget.steps == 7


def test_the_parts_of_a_list_go_as_one() -> None:
    """So do the calls that one result makes ready."""

    @tool
    async def numbers() -> list[int]:
        """Some."""
        return [3, 5, 7]

    bulk = Bulk()
    tasks = [Task.of(1, "numbers"), Task.of(2, "double", n=Ref(1, (EACH,)))]
    tasks += [Task.of(id, "double", n=Ref(2, (id - 3,))) for id in (3, 4, 5)]
    machine, _ = drive(tasks, numbers, bulk.tool)
    assert wired(bulk) == [[3, 5, 7], [6, 10, 14]]
    assert [machine.outcomes[id] for id in (3, 4, 5)] == [Ok(12), Ok(20), Ok(28)]


def test_nothing_waits_for_company() -> None:
    """A call that is ready later begins at once, beside the batch that is on its way."""

    @tool
    async def wait() -> int:
        """Half a second."""
        await asyncio.sleep(0.5)
        return 9

    bulk = Bulk()
    _, events = drive([*doubling(1, 2), Task.of(3, "wait"), Task.of(4, "double", n=Ref(3))],
                      wait, bulk.tool)  # fmt: skip
    assert bulk.wire == [(0.0, [1, 2]), (0.5, [9])]
    assert events[-1].at == 1.5


def test_limits_count_calls_and_not_batches() -> None:
    """A place is a call's, so a batch is never larger than the places."""
    bulk = Bulk(concurrency=2)
    drive(doubling(1, 2, 3, 4, 5), bulk.tool)
    assert wired(bulk) == [[1, 2], [3, 4], [5]]
    bulk = Bulk(lock="one")
    drive(doubling(1, 2, 3), bulk.tool)
    assert wired(bulk) == [[1], [2], [3]]


def test_an_element_that_is_an_exception_fails_its_call_alone() -> None:
    """It is tried again alone; the others have their results."""
    bulk = Bulk(retries=1, backoff=1.0)
    machine, events = drive(doubling(1, -2, 3), bulk.tool)
    assert machine.outcomes == {1: Ok(2), 3: Ok(6), 2: Failed("ValueError: negative")}
    assert wired(bulk) == [[1, -2, 3], [-2]]
    assert [e.task_id for e in events if isinstance(e, AttemptFailed)] == [2, 2]


@pytest.mark.parametrize(
    ("script", "failure"),
    [
        (ValueError("no"), Failed("ValueError: no")),
        (SystemExit(3), Failed("SystemExit: 3")),
        (asyncio.CancelledError(), Failed("the call cancelled itself")),
        (Busy(), Failed("Busy: too many requests", "throttled")),
    ],
)
def test_a_batch_that_fails_fails_each_call(script: BaseException, failure: Failed) -> None:
    """Each says so for itself, and the run goes on."""
    bulk = Bulk(script)
    machine, _ = drive(doubling(1, 2), bulk.tool)
    assert machine.outcomes == {1: failure, 2: failure}


def test_calls_of_a_batch_that_failed_are_each_tried_again() -> None:
    """Behind pauses of their own; a batch is no unit of retrying."""
    bulk = Bulk([ValueError("no"), 1.0], retries=1, backoff=1.0)
    machine, _ = drive(doubling(1, 2), bulk.tool)
    assert machine.outcomes == {1: Ok(2), 2: Ok(4)}
    assert sorted(wired(bulk)) == [[1], [1, 2], [2]]


@pytest.mark.parametrize(
    ("returned", "what"), [([1], "1 results"), ([1, 2, 3], "3 results"), ("ab", "a str")]
)
def test_a_batch_that_returns_something_else_is_told(returned: Any, what: str) -> None:
    """Results cannot be told apart then, so nobody gets one."""

    async def wrong(calls: list[dict[str, Any]]) -> Any:
        return returned

    @tool(batch=wrong)
    async def double(n: int) -> int:
        """Twice the number."""
        return 2 * n

    machine, _ = drive(doubling(1, 2), double)
    error = f"the batch of 'double' returned {what} for 2 calls: it must return a list with one "
    for outcome in machine.outcomes.values():
        assert isinstance(outcome, Failed)
        assert outcome.error.startswith(error)


def test_arguments_that_do_not_fit_stay_out_of_the_batch() -> None:
    """They are checked before, call by call."""
    bulk = Bulk()
    tasks = [*doubling(1, 2), Task.of(3, "double", n="many")]
    machine, _ = drive(tasks, bulk.tool)
    assert wired(bulk) == [[1, 2]]
    assert isinstance(failed := machine.outcomes[3], Failed)
    assert failed.kind == "arguments"


# Cancelling and time


async def _drop(driver: Driver, *ids: int) -> None:
    await asyncio.sleep(0.5)
    for id in ids:
        driver.emit(TaskCancelled(id, "not wanted", driver.clock.now()))


def test_a_call_that_is_cancelled_leaves_its_batch() -> None:
    """The others get their results; its place is free when the batch has ended."""
    bulk = Bulk()
    machine, events = drive(doubling(1, 2, 3), bulk.tool, inside=lambda driver: _drop(driver, 2))
    assert [type(machine.outcomes[id]) for id in (1, 2, 3)] == [Ok, Failed, Ok]
    assert bulk.ended == [1.0]
    assert AttemptEnded(2, 1, 1.0) in events


def test_a_batch_that_nobody_wants_is_cancelled() -> None:
    """With its last call."""
    bulk = Bulk(60.0)
    drive(doubling(1, 2), bulk.tool, inside=lambda driver: _drop(driver, 1, 2))
    assert bulk.ended == [0.5]


def test_a_batch_has_the_time_of_its_calls() -> None:
    """Each call's timeout ends, and the batch with them; they are then tried again."""
    bulk = Bulk([60.0, 1.0], timeout=2.0, retries=1, backoff=0.0)
    machine, events = drive(doubling(1, 2), bulk.tool)
    assert bulk.ended[0] == 2.0
    assert machine.outcomes == {1: Ok(2), 2: Ok(4)}
    failed = [e for e in events if isinstance(e, AttemptFailed)]
    assert {e.outcome for e in failed} == {Failed("double gave no result within 2 s", "timeout")}
    assert not any(e.abandoned for e in failed)


def test_a_batch_that_does_not_stop_keeps_the_places_of_its_calls() -> None:
    """As a single call would."""

    async def deaf(calls: list[dict[str, Any]]) -> list[int]:
        now = asyncio.get_running_loop().time
        while now() < 8.0:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(8.0 - now())
        return [0] * len(calls)

    began: list[float] = []

    @tool(batch=deaf, timeout=2.0, concurrency=2)
    async def double(n: int) -> int:
        """Twice the number."""
        began.append(asyncio.get_running_loop().time())
        return 2 * n

    machine, _ = drive(doubling(1, 2, 3), double)
    assert began == [8.0]
    assert machine.outcomes[3] == Ok(6)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 10),
    st.integers(1, 5),
    st.sampled_from((None, 0.55)),
    st.lists(st.tuples(st.sampled_from((0.1, 0.5, 2.0)), st.booleans()), min_size=1, max_size=6),
    st.lists(st.tuples(st.sampled_from((0.0, 0.1, 0.4, 0.6)), st.integers(1, 10)), max_size=4),
)
def test_whoever_leaves_a_batch_the_places_hold(
    count: int,
    places: int,
    timeout: float | None,
    goes: list[tuple[float, bool]],
    drops: list[tuple[float, int]],
) -> None:
    """Whatever times out, is dropped or does not stop: no more items are asked for at once than
    there are places, every call ends, and nothing is left."""
    now_asked = most = 0

    async def many(calls: list[dict[str, Any]]) -> list[int]:
        nonlocal now_asked, most
        seconds, deaf = goes.pop(0) if len(goes) > 1 else goes[0]
        now_asked += len(calls)
        most = max(most, now_asked)
        time = asyncio.get_running_loop().time
        until = time() + seconds
        try:
            while time() < until:
                with contextlib.suppress(*([asyncio.CancelledError] if deaf else [])):
                    await asyncio.sleep(until - time())
        finally:
            now_asked -= len(calls)
        return [2 * one["n"] for one in calls]

    async def double(n: int) -> int:
        """Twice the number."""
        return (await many([{"n": n}]))[0]

    async def drop(driver: Driver) -> None:
        began = driver.clock.now()
        for second, id in sorted(drops):
            await asyncio.sleep(max(0.0, began + second - driver.clock.now()))
            if id <= count and driver.machine.finished is None:
                driver.emit(TaskCancelled(id, "not wanted", driver.clock.now()))

    policy = {"concurrency": places, "timeout": timeout, "retries": 1, "backoff": 0.1}
    made = tool(double, batch=many, batch_size=3, **policy)  # type: ignore[call-overload]
    machine, _ = drive(doubling(*range(1, count + 1)), made, inside=drop, limits=Limits())
    assert most <= places
    assert sorted(machine.outcomes) == list(range(1, count + 1))
    for id, outcome in machine.outcomes.items():
        assert outcome == Ok(2 * id) or isinstance(outcome, Failed)


# Who is called


async def test_a_batch_knows_its_calls() -> None:
    """In the order of the arguments, each with a key of its own; there is no single one."""
    seen: list[tuple[list[int], list[int], set[str]]] = []

    def together(calls: list[dict[str, Any]]) -> list[int]:  # in a thread
        with pytest.raises(UsageError, match="a batch of 2"):
            current_call()
        named = current_calls()
        keys = {one.idempotency_key for one in named}
        seen.append(([one["n"] for one in calls], [one.args["n"] for one in named], keys))
        return [2 * one["n"] for one in calls]

    @tool(batch=together, effect="write")
    async def double(n: int) -> int:
        """Twice the number."""
        assert current_calls() == (current_call(),)
        return 2 * n

    lines = "1. double(n=1)\n2. double(n=$1)\n3. double(n=$1)\njoin()"
    runtime = ScriptedRuntime([lines, "Done [1]."])
    answer = await Agent([double], runtime=runtime, approve=lambda task, args: True).ask("?")
    [(given, named, keys)] = seen
    assert given == named == [2, 2]
    assert len(keys) == 2, "equal calls that write both happen"
    assert answer.outcomes[3] == Ok(4)


def nothing() -> None:
    """Takes no list."""


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch": 3}, "batch must be a function, got 3"),
        ({"batch": nothing}, "its batch takes one argument"),
        ({"batch": list, "batch_size": 1}, "batch_size must be at least 2, got 1"),
        ({"batch_size": 8}, "batch_size=8 needs batch="),
    ],
)
def test_a_batch_that_makes_no_sense_is_refused(fields: dict[str, Any], message: str) -> None:
    """When the tool is made."""

    async def double(n: int) -> int:
        """Twice the number."""
        return 2 * n

    with pytest.raises(UsageError, match=message):
        tool(double, **fields)


# Against the plain interpreter


def world(wire: list[list[str]], batched: Mapping[str, int]) -> list[Tool]:
    """The tools of random plans, each call a second long whatever it is part of; those in
    ``batched`` take so many at once."""

    def answer(name: str, args: Mapping[str, Any]) -> Any:
        outcome = call(name, args)
        return outcome.value if isinstance(outcome, Ok) else ValueError(outcome.error)  # type: ignore[union-attr]

    def made(name: str) -> Tool:
        async def one(**args: Any) -> Any:
            [result] = await many([args])
            if isinstance(result, Exception):
                raise result
            return result

        async def many(calls: list[dict[str, Any]]) -> list[Any]:
            wire.append([json.dumps([name, args], sort_keys=True) for args in calls])
            await asyncio.sleep(1.0)
            return [answer(name, args) for args in calls]

        size = batched.get(name, 0)
        plain = Tool(name, "Simulated.", {"type": "object"}, one, dict, policy=Policy(retries=1))
        return replace(plain, batch=many, batch_size=size) if size else plain

    return [made(name) for name in (*READS, WRITE)]


@settings(max_examples=150, deadline=None)
@given(
    plans(picks=False),
    st.dictionaries(st.sampled_from((*READS, WRITE)), st.integers(2, 4)),
    st.sampled_from((1, 3, 64)),
)
def test_batches_change_nothing_but_the_number_of_requests(
    tasks: list[Task], batched: dict[str, int], concurrency: int
) -> None:
    """On random plans: the outcomes are those of the plain interpreter, every call goes over the
    wire once in a batch of its size, and where there is a place for every call, every event comes
    at the same moment as without batches. Where places are few, which of two that are ready in
    one moment goes first may differ."""

    def perform(sizes: dict[str, int]) -> tuple[Machine, list[Event], list[list[str]]]:
        wire: list[list[str]] = []
        limits = Limits(concurrency=concurrency)
        return *drive(tasks, *world(wire, sizes), limits=limits), wire

    machine, events, wire = perform(batched)
    plain, plain_events, plain_wire = perform({})
    written = {task.id for task in tasks}
    ended = [id for id in machine.outcomes if id in written]
    expected = interpret(tasks, call, ended)
    for id in ended:
        have = machine.outcomes[id]
        if isinstance(have, Failed):
            have = replace(have, error=have.error.replace("ValueError: ", ""))
        assert have == expected[id]
    if concurrency >= len(plain_wire):
        assert _told(events) == _told(plain_events)
    assert machine.outcomes == plain.outcomes
    assert sorted(one for calls in wire for one in calls) == sorted(
        one for calls in plain_wire for one in calls
    )
    for calls in wire:
        assert len(calls) <= max(1, batched.get(json.loads(calls[0])[0], 1))


def _told(events: list[Event]) -> list[tuple[Any, ...]]:
    """What happened when; within a moment in the order of tasks."""
    kinds = (TaskStarted, TaskDone, AttemptFailed)
    found = [e for e in events if isinstance(e, kinds)]
    return sorted((e.at, e.task_id, type(e).__name__, e.attempt) for e in found)
