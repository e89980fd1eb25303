"""What a journal gives an agent's user: the same run by the same id, at any later time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import acting
import pytest

from agentpar import (
    Agent,
    Failed,
    Ok,
    RunFailed,
    ScriptedRuntime,
    UsageError,
    current_call,
    tool,
)
from agentpar.events import (
    ApprovalGiven,
    AttemptFailed,
    Event,
    RunFinished,
    RunStarted,
    TaskDone,
    TaskPlanned,
    TaskStarted,
    Usage,
)
from agentpar.executor.journal import open_journal
from agentpar.executor.journal.calls import PastCalls
from agentpar.executor.journal.spill import LIMIT
from agentpar.executor.record import read_record, replay
from agentpar.plan import Task
from agentpar.ports import ModelRequest
from agentpar.tools.call import call_key

PLAN = "1. double(n=21)\n2. double(n=$1)\njoin()"
ANSWER = "It is 84 [2].\nAnswer: 84 [2]"


@tool
async def double(n: int) -> int:
    """Twice n."""
    return 2 * n


def agent_of(url: str, *texts: str | Exception, tools: Any = (double,), **more: Any) -> Agent:
    return Agent(tools, runtime=ScriptedRuntime(texts), journal=url, **more)


async def test_the_same_id_gives_the_recorded_answer(url: str) -> None:
    """From another agent whose model says nothing, equal in every field."""
    async with agent_of(url, PLAN, ANSWER) as agent:
        first = await agent.ask("How much?", run_id="sum")
    async with agent_of(url) as agent:
        assert await agent.ask("How much?", run_id="sum") == first
        assert await agent.resume("sum") == first
        async with agent.run("How much?", run_id="sum") as run:
            events = [event async for event in run]
    assert isinstance(events[0], RunStarted)
    assert isinstance(events[-1], RunFinished)


async def test_an_id_belongs_to_its_question(url: str) -> None:
    """Another question under it is a mistake that names both."""
    async with agent_of(url, PLAN, ANSWER) as agent:
        await agent.ask("How much?", run_id="sum")
        with pytest.raises(UsageError, match="'sum' asks 'How much\\?', not 'How many\\?'"):
            await agent.ask("How many?", run_id="sum")


async def test_a_run_that_nobody_knows_is_a_mistake(url: str) -> None:
    """It names the nearest; an agent without a journal says what is missing."""
    async with agent_of(url, PLAN, ANSWER) as agent:
        await agent.ask("How much?", run_id="sums")
        with pytest.raises(UsageError, match=r"no run 'sum' in the journal .*; there is 'sums'"):
            await agent.resume("sum")
    with pytest.raises(UsageError, match="journal="):
        await Agent([double], runtime=ScriptedRuntime([])).resume("sum")


async def test_a_failed_run_fails_again(url: str) -> None:
    """That is how it ended: to try anew takes a new id."""
    async with agent_of(url, "no plan at all", "", tools=()) as agent:
        with pytest.raises(RunFailed) as first:
            await agent.ask("How much?", run_id="sum")
    async with agent_of(url) as agent:
        with pytest.raises(RunFailed, match=str(first.value)):
            await agent.resume("sum")


async def test_a_cancelled_run_is_carried_on(url: str, tmp_path: Path) -> None:
    """At once, by anybody who asks; its record begins anew, holds both parts, and replays."""
    started, calls = asyncio.Event(), []

    @tool
    async def slow(n: int) -> int:
        """Slow the first time."""
        calls.append(n)
        started.set()
        if len(calls) == 1:
            await asyncio.sleep(60)
        return n + 1

    plan = "1. double(n=21)\n2. slow(n=$1)\njoin()"
    runs = tmp_path / "runs"
    async with agent_of(url, plan, tools=(double, slow), runs=runs) as agent:
        asking = asyncio.create_task(agent.ask("How much?", run_id="sum"))
        await asyncio.wait_for(started.wait(), 10)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert await agent.resume_orphan() is None  # nobody takes over what was stopped
    async with agent_of(url, "43 [2].\nAnswer: 43", tools=(double, slow), runs=runs) as agent:
        answer = await agent.resume("sum")
    assert answer.outcomes == {1: Ok(42), 2: Ok(43)}
    assert calls == [42, 42]
    record = read_record(runs / "sum" / "events.jsonl")
    assert replay(record).difference == ""
    events = list(record.events)
    assert [event.task_id for event in events if isinstance(event, TaskDone)] == [1, 2]
    assert [type(event) for event in events].count(RunFinished) == 1


async def test_two_questions_at_once_share_a_journal(url: str) -> None:
    """Many runs, one writer; each comes back with its own."""

    @tool
    async def echo(text: str) -> str:
        """The text."""
        await asyncio.sleep(0.001)
        return text

    class Echo(ScriptedRuntime):
        async def stream(self, request: Any) -> Any:
            asked = request.messages[-1].content
            name = asked.rpartition("Question: ")[2].partition("\n")[0]
            text = f"Answer: {name}" if asked.startswith("Results") else f'1. echo(text="{name}")'
            async for piece in ScriptedRuntime([text]).stream(request):
                yield piece

    names = [f"q{n}" for n in range(20)]
    async with Agent([echo], runtime=Echo([]), journal=url) as agent:
        await asyncio.gather(*(agent.ask(name, run_id=name) for name in names))
    async with Agent([echo], runtime=ScriptedRuntime([]), journal=url) as agent:
        for name in names:
            assert (await agent.resume(name)).outcomes == {1: Ok(name)}


async def test_a_run_is_worked_on_once_at_a_time(url: str) -> None:
    """Also within one process."""
    entered = asyncio.Event()
    go = asyncio.Event()

    @tool
    async def wait() -> str:
        """Wait."""
        entered.set()
        await go.wait()
        return ""

    async with agent_of(url, "1. wait()", "Answer: ok", tools=(wait,)) as agent:
        asking = asyncio.create_task(agent.ask("?", run_id="one"))
        await asyncio.wait_for(entered.wait(), 10)
        with pytest.raises(UsageError, match="'one' is at work already"):
            await agent.ask("?", run_id="one")
        go.set()
        assert (await asking).text == "Answer: ok"


async def test_a_large_result_comes_back_whole(tmp_path: Path) -> None:
    """It lies in a file named by its content, which the row names; equal ones share it."""

    @tool
    async def large(n: int) -> str:
        """Large."""
        return "\ud800\0ä" * LIMIT

    url = f"sqlite:///{tmp_path / 'j.db'}"
    plan = "1. large(n=1)\n2. large(n=1)\njoin()"
    async with agent_of(url, plan, "Answer: ok", tools=(large,)) as agent:
        first = await agent.ask("?", run_id="one")
    files = [path for path in (tmp_path / "j.db.d").rglob("*") if path.is_file()]
    assert len(files) == 2  # two tasks are two events
    assert (tmp_path / "j.db").stat().st_size < LIMIT * 2
    async with agent_of(url, tools=(large,)) as agent:
        assert await agent.resume("one") == first


async def test_what_a_call_is_for_is_known_inside_it(url: str) -> None:
    """Run, task, attempt and a key that depends on nothing else; in sync tools too."""
    seen: list[tuple[str, int, int, str]] = []

    def look(n: int) -> int:
        """Look."""
        call = current_call()
        seen.append((call.run_id, call.task_id, call.attempt, call.idempotency_key))
        return n

    plan = "1. look(n=1)\n2. look(n=2)\njoin()"
    for run_id in ("a", "b", "c"):
        where = {"journal": url} if run_id != "c" else {}
        async with Agent([look], runtime=ScriptedRuntime([plan, "ok"]), **where) as agent:
            await agent.ask("?", run_id=run_id)
    assert sorted(entry[:3] for entry in seen) == [(run, n, 1) for run in "abc" for n in (1, 2)]
    assert len({key for *_, key in seen}) == 6
    with pytest.raises(UsageError, match="here nobody does"):
        current_call()


# What is kept between runs


async def test_results_and_latencies_outlive_a_run(url: str) -> None:
    """A result until it is stale, latencies until others take their place."""
    async with open_journal(url) as journal:
        await journal.cache("fresh", {"a": [1, None, "\0"]}, 3600)
        await journal.cache("stale", 1, 0)
        await journal.keep_latencies("search", [0.5])
        await journal.keep_latencies("search", [0.1, 0.25])
    async with open_journal(url) as journal:
        assert await journal.cached("fresh") == {"a": [1, None, "\0"]}
        assert await journal.cached("stale") is None
        assert await journal.latencies() == {"search": [0.1, 0.25]}


# Branches


START = RunStarted("run", "?")


def planned(id: int) -> TaskPlanned:
    return TaskPlanned(1, Task.of(id, "double", n=id))


async def test_a_journal_that_is_ahead_holds(url: str) -> None:
    """A caller who comes back with less of the same run gets all of it."""
    async with open_journal(url) as journal:
        run = await journal.begin("run", "?")
        for event in (START, planned(1), planned(2)):
            run.append(event)
        await run.close("interrupted")
        again = await journal.begin("run", "?", history=[START])
        assert again.history == (START, planned(1), planned(2))
        await again.close("interrupted")


async def test_a_caller_who_is_ahead_is_written(url: str) -> None:
    """An approval that a graph's caller gave, say."""
    approved = ApprovalGiven(1, True)
    async with open_journal(url) as journal:
        run = await journal.begin("run", "?")
        run.append(START)
        await run.close("waiting")
        again = await journal.begin("run", "?", history=[START, approved])
        again.append(planned(1))
        await again.close("interrupted")
    async with open_journal(url) as journal:
        assert (await journal.begin("run", "?")).history == (START, approved, planned(1))


async def test_a_branch_that_was_left_keeps_its_results(url: str) -> None:
    """Where a caller parts ways the caller's events hold; what calls brought still stands."""
    key = call_key(double, {"n": 1})
    done: list[tuple[Event, str]] = [
        (START, ""),
        (planned(1), ""),
        (TaskStarted(1, {"n": 1}), key),
        (TaskDone(1, Ok(2)), ""),
        (RunFinished("answered"), ""),
    ]
    async with open_journal(url) as journal:
        run = await journal.begin("run", "?")
        for event, of in done:
            run.append(event, of)
        await run.close("answered")
        other = (START, planned(2))
        again = await journal.begin("run", "?", history=other)
        assert again.history == other
        assert again.calls.outcome(1, key, double) == Ok(2)
        await again.close("interrupted")
    async with open_journal(url) as journal:
        assert (await journal.begin("run", "?")).history == other


# Which calls are made again


@tool(effect="write")
async def send(n: int) -> int:
    """Send."""
    return n


@tool(sends=True)
async def post(n: int) -> int:
    """Hand n to others."""
    return n


@tool(effect="write", idempotent=True)
async def put(n: int) -> int:
    """Put."""
    return n


BEGUN = (("k", TaskStarted(1, {"n": 1})),)
FAILED = (*BEGUN, ("", TaskDone(1, Failed("no"))))
GOES_ON = (*BEGUN, ("", AttemptFailed(1, Failed("late", "timeout"), abandoned=True)))
GIVEN_UP = (*GOES_ON, ("", TaskDone(1, Failed("late", "timeout"))))
GOT = (*BEGUN, ("", TaskDone(1, Ok(5))))


@pytest.mark.parametrize(
    ("rows", "of", "kind"),
    [
        ((), send, None),
        (BEGUN, double, None),
        (BEGUN, put, None),
        (BEGUN, send, "interrupted"),
        (BEGUN, post, "interrupted"),
        (FAILED, double, None),
        (FAILED, send, "tool"),
        (GOES_ON, send, "interrupted"),
        (GOES_ON, double, None),
        (GIVEN_UP, send, "timeout"),
        (GOT, double, "ok"),
        (GOT, send, "ok"),
    ],
)
def test_a_call_is_made_again_only_where_it_may(rows: Any, of: Any, kind: str | None) -> None:
    """By what is known of it: nothing, that it began, that it failed, what it brought."""
    outcome = PastCalls.of(rows).outcome(1, "k", of)
    assert (None if outcome is None else getattr(outcome, "kind", "ok")) == kind


TWICE = (("k", TaskStarted(1)), ("k", TaskStarted(1, attempt=2)))
NO = Failed("no")


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        ((*TWICE, ("", AttemptFailed(1, NO, attempt=2))), "interrupted"),
        ((*TWICE, ("", AttemptFailed(1, NO, attempt=1))), "interrupted"),
        ((*TWICE, ("", AttemptFailed(1, NO)), ("", AttemptFailed(1, NO, attempt=2))), None),
        ((*TWICE, ("", AttemptFailed(1, NO, attempt=2)), ("", TaskDone(1, Ok(5)))), "ok"),
        ((*BEGUN, ("", AttemptFailed(1, NO)), ("", TaskDone(1, NO))), "tool"),
    ],
    ids=["the second failed", "the first failed", "both failed", "the first came", "it was final"],
)
def test_an_attempt_that_failed_says_nothing_of_the_other(rows: Any, kind: str | None) -> None:
    """A call is in doubt as long as one of its attempts may have happened."""
    outcome = PastCalls.of(rows).outcome(1, "k", send)
    assert (None if outcome is None else getattr(outcome, "kind", "ok")) == kind


def test_a_call_is_known_by_task_and_inputs() -> None:
    """Another task with equal inputs, or other inputs of the same task, is another call."""
    calls = PastCalls.of(GOT)
    assert calls.outcome(2, "k", double) is None
    assert calls.outcome(1, "other", double) is None


def test_chains_that_interleave_keep_their_results() -> None:
    """What ended in another order than it began belongs to its own task."""
    begun = [(f"k{n}", TaskStarted(n, {"n": n})) for n in range(12)]
    done = [("", TaskDone(n, Ok(n))) for n in reversed(range(12))]
    calls = PastCalls.of([*begun, *done])
    assert [calls.outcome(n, f"k{n}", double) for n in range(12)] == [Ok(n) for n in range(12)]


def test_a_key_is_of_tool_version_and_inputs() -> None:
    """The order of fields does not matter, all else does."""
    from dataclasses import replace

    args = {"a": 1, "b": {"x": [1, 2], "y": None}}
    turned = {"b": {"y": None, "x": [1, 2]}, "a": 1}
    key = call_key(double, args)
    assert call_key(double, turned) == key
    others = [
        call_key(send, args),
        call_key(replace(double, version="2"), args),
        call_key(double, {**args, "a": 1.5}),
        call_key(double, {**args, "b": {"x": [2, 1], "y": None}}),
    ]
    assert len({key, *others}) == 5


# Where the agent is


async def test_the_world_is_the_same_with_and_without(url: str, tmp_path: Path) -> None:
    """A journal changes no answer."""
    texts = []
    for n, more in enumerate(({}, {"journal": url})):
        world = acting.World(tmp_path / f"{n}.db")
        agent = acting.agent_of(more.get("journal"), world)  # type: ignore[arg-type]
        async with agent:
            texts.append((await agent.ask(acting.QUESTION)).text)
    assert texts[0] == texts[1]


class Stuck(ScriptedRuntime):
    """Writes its texts, and never comes to the end of the last."""

    async def stream(self, request: ModelRequest) -> AsyncGenerator[str | Usage, None]:
        async for piece in super().stream(request):
            if isinstance(piece, Usage) and self._given == len(self._texts):
                await asyncio.Event().wait()
            yield piece


async def test_a_plan_that_broke_off_behind_a_list_goes_on_in_the_same_words(url: str) -> None:
    """The calls for the elements of the list were never lines of it."""

    @tool
    async def numbers() -> list[int]:
        """Some numbers."""
        return [1, 2]

    lines = "1. numbers()\n2. double(n=$1[*])\n"
    runtime = Stuck([lines])
    async with (
        Agent([numbers, double], runtime=runtime, journal=url) as agent,
        agent.run("How much?", run_id="list") as run,
    ):
        async for event in run:
            if isinstance(event, TaskDone) and event.task_id == 2:
                break
    texts = (f"{lines}3. double(n=$2[1])\njoin()", "It is 8 [3].\nAnswer: 8 [3]")
    async with agent_of(url, *texts, tools=(numbers, double)) as agent:
        answer = await agent.resume("list")
    assert answer.outcomes == {1: Ok([1, 2]), 2: Ok([2, 4]), 3: Ok(8)}
    assert answer.faults == ()


async def test_a_new_agent_knows_how_long_calls_took(url: str, tmp_path: Path) -> None:
    """What an earlier one has learned is what its runs begin with."""
    async with agent_of(url, PLAN, ANSWER) as agent:
        await agent.ask("How much?")
    async with agent_of(url, PLAN, ANSWER, runs=tmp_path) as agent:
        await agent.ask("How much?", run_id="next")
    known = read_record(tmp_path / "next" / "events.jsonl").terms.latencies
    assert len(known["double"]) == 2


async def test_a_plan_that_broke_off_behind_a_change_changes_nothing_again(url: str) -> None:
    """What it has cancelled and replaced stands, and the calls in their place are not made
    anew."""
    made: list[int] = []
    failing = asyncio.Event()

    @tool
    async def broken() -> int:
        """Fails once all that is planned runs."""
        await failing.wait()
        raise ValueError("no")

    @tool
    async def slow(n: int) -> int:
        """Takes long for n below 10."""
        made.append(n)
        if made == [2, 3]:
            failing.set()
        if n < 10:
            await asyncio.Event().wait()
        return n

    first = "1. broken()\n2. slow(n=2)\n3. slow(n=3)\njoin()"
    lines = "replace($3, slow(n=33))\ncancel($2)\n4. slow(n=44)\n"
    more: Any = {"journal": url, "replan_early": True}
    async with (
        Agent([broken, slow], runtime=Stuck([first, lines]), **more) as agent,
        agent.run("How much?", run_id="changed") as run,
    ):
        async for event in run:
            if isinstance(event, TaskDone) and event.task_id == 4:
                break
    texts = [f"{lines}5. slow(n=$4)\njoin()", "It is 44 [5].\nAnswer: 44 [5]"]
    runtime = ScriptedRuntime(texts)
    async with Agent([broken, slow], runtime=runtime, **more) as agent:
        answer = await agent.resume("changed")
    assert made == [2, 3, 33, 44]
    assert answer.faults == ()
    assert answer.outcomes[5] == Ok(44)
    assert "slow(n=3)" in runtime.requests[0].messages[-1].content, "asked as it was then"


# A plan that broke off, and comes out differently


async def half_planned(url: str, lines: str, tools: Any, ended: int) -> None:
    """A run that breaks off inside its plan, once task ``ended`` has."""
    async with (
        Agent(tools, runtime=Stuck([lines]), journal=url) as agent,
        agent.run("How much?", run_id="half") as run,
    ):
        async for event in run:
            if isinstance(event, TaskDone) and event.task_id == ended:
                break


async def test_a_plan_that_comes_out_differently_is_made_anew_behind_what_stands(url: str) -> None:
    """What has begun keeps its number and is not called again; the model is shown it, and its
    further lines count on from there."""
    made: list[int] = []

    @tool
    async def count(n: int) -> int:
        """Count."""
        made.append(n)
        return n

    await half_planned(url, "1. count(n=1)\n2. count(n=2)\n", [count], 2)
    other = "1. count(n=7)\njoin()"
    runtime = ScriptedRuntime([other, "3. count(n=$2)\n4. count(n=9)\njoin()", "Answer: ok"])
    async with Agent([count], runtime=runtime, journal=url) as agent:
        answer = await agent.resume("half")
    assert made == [1, 2, 9], "3 is the same call as 2, and 7 was never told"
    assert answer.outcomes == {1: Ok(1), 2: Ok(2), 3: Ok(2), 4: Ok(9)}
    assert (answer.faults, answer.rounds) == ((), 1)
    same, anew, _ = (request.messages[-1].content for request in runtime.requests)
    assert "count(n=1)" not in same
    assert "$1: count(n=1) = 1" in anew
    assert "as far as the calls above do not find it" in anew


async def test_a_plan_that_was_made_anew_and_broke_off_is_asked_for_once_more(url: str) -> None:
    """In the words of the second time: what stood before it stands, what stands of it too."""
    made: list[int] = []

    @tool
    async def count(n: int) -> int:
        """Count."""
        made.append(n)
        return n

    await half_planned(url, "1. count(n=1)\n", [count], 1)
    lines = "2. count(n=2)\n3. count(n=3)\n"
    async with (
        Agent([count], runtime=Stuck(["1. count(n=7)\njoin()", lines]), journal=url) as agent,
        agent.run("How much?", run_id="half") as run,
    ):
        async for event in run:
            if isinstance(event, TaskDone) and event.task_id == 3:
                break
    runtime = ScriptedRuntime([f"{lines}4. count(n=4)\njoin()", "Answer: ok"])
    async with Agent([count], runtime=runtime, journal=url) as agent:
        answer = await agent.resume("half")
    assert made == [1, 2, 3, 4]
    assert answer.outcomes == {n: Ok(n) for n in (1, 2, 3, 4)}
    assert answer.faults == ()
    assert "Still missing: what the question asks for" in runtime.requests[0].messages[-1].content


async def test_a_write_that_stands_is_not_planned_a_second_time(url: str) -> None:
    """A model that writes its plan anew under other numbers pays nobody twice."""
    paid: list[int] = []

    @tool(effect="write")
    def pay(amount: int) -> str:
        """Pay."""
        paid.append(amount)
        return "paid"

    async def allowed(task: Task, args: Any) -> bool:
        return True

    lines = "1. pay(amount=5)\n"
    async with (
        Agent([pay], runtime=Stuck([lines]), journal=url, approve=allowed) as agent,
        agent.run("How much?", run_id="half") as run,
    ):
        async for event in run:
            if isinstance(event, TaskDone):
                break
    runtime = ScriptedRuntime(
        ["join()", "2. pay(amount=5)\n3. pay(amount=6)\njoin()", "Answer: ok"]
    )
    async with Agent([pay], runtime=runtime, journal=url, approve=allowed) as agent:
        answer = await agent.resume("half")
    assert paid == [5, 6]
    assert [fault.message for fault in answer.faults] == [
        "pay: this very call stands already, as task 1"
    ]
