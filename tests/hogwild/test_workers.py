"""An agent whose answers several workers think about first: what they read, what is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentpar import Agent, tool
from agentpar.config import load
from agentpar.errors import ModelServerError, UsageError
from agentpar.events import (
    Event,
    JoinStarted,
    JoinText,
    ModelUsed,
    RunStarted,
    TaskPlanned,
    TaskStarted,
    Usage,
    WorkersEnded,
    WorkersStarted,
    WorkerText,
)
from agentpar.executor.record import decode, encode, read_record, replay
from agentpar.executor.simulate import run as in_virtual_time
from agentpar.plan import Failed, Ok, Task
from agentpar.ports import Capability, ModelRequest
from agentpar.runtime.scripted import ScriptedRuntime
from agentpar.story import Story
from agentpar.timeline import render_timeline
from agentpar.workers import Workers

PLAN = '1. population(country="Chile")\njoin()'
THINKS = (
    '1. population(country="Chile")\n2. population(country="Peru")\n'
    '3. think(question="Which has more people?", given=[$1, $2])\njoin()'
)


@tool
async def population(country: str) -> int:
    """Population of a country. country: English name."""
    return {"Chile": 19_600_000, "Peru": 34_000_000}[country]


async def events_of(agent: Agent, question: str) -> list[Event]:
    async with agent, agent.run(question) as run:
        return [event async for event in run]


async def test_workers_think_before_the_answer_is_written() -> None:
    """Two texts of workers, told as theirs, then one answer behind both."""
    runtime = ScriptedRuntime([PLAN, "19.6 million people.", "I check that.", "19.6 million [1]."])
    agent = Agent([population], runtime=runtime, workers=Workers(2))
    events = await events_of(agent, "How many people live in Chile?")
    started = next(event for event in events if isinstance(event, WorkersStarted))
    assert started.workers == ("Alice", "Bob")
    assert started.backend == "log"
    assert "ScriptedRuntime" in started.why or "no cache" in started.why
    texts = {
        name: "".join(e.text for e in events if isinstance(e, WorkerText) and e.worker == name)
        for name in ("Alice", "Bob")
    }
    assert texts == {"Alice": "19.6 million people.", "Bob": "I check that."}
    assert "".join(e.text for e in events if isinstance(e, JoinText)) == "19.6 million [1]."
    final = runtime.requests[-1].messages[-2].content
    assert "Alice: 19.6 million people." in final
    assert "Bob: I check that." in final


async def test_what_the_workers_took_is_counted() -> None:
    """Three requests in one join."""
    runtime = ScriptedRuntime([PLAN, "one", "two", "19.6 million [1]."])
    agent = Agent([population], runtime=runtime, workers=Workers(2))
    events = await events_of(agent, "How many people live in Chile?")
    join = next(e for e in events if isinstance(e, ModelUsed) and e.purpose == "join")
    assert join.usage.calls == 3


async def test_a_plan_may_have_workers_think_about_results() -> None:
    """They see what the call is given, and their answer is the task's result."""
    texts = [THINKS, "Peru: 34.", "Chile: 19.6.", "Peru has more.", "a", "b", "Peru [3]."]
    runtime = ScriptedRuntime(texts)
    agent = Agent([population], runtime=runtime, workers=Workers(2))
    events = await events_of(agent, "Which has more people, Chile or Peru?")
    given = runtime.requests[1].messages[-1].content
    assert "Which has more people?" in given
    assert "[19600000, 34000000]" in given
    story = Story.of(events)
    assert story.tasks[3].outcome == Ok("Peru has more.")
    assert story.tasks[3].group.lanes["Alice"].text == "Peru: 34."
    used = next(e for e in events if isinstance(e, ModelUsed) and e.purpose == "think")
    assert used.usage.calls == 3


async def test_the_planner_is_told_of_think_only_where_there_are_workers() -> None:
    """A tool like any other, in the list that the planner reads."""
    for workers, there in ((None, False), (Workers(2), True)):
        async with Agent([population], runtime=ScriptedRuntime([]), workers=workers) as agent:
            assert ("think" in await agent.tools()) is there


async def test_a_timeline_has_a_lane_for_each_worker(tmp_path: Path) -> None:
    """Above the join, with what they wrote below."""
    runtime = ScriptedRuntime([PLAN, "one <b>", "two", "19.6 million [1]."], delay=0.01)
    agent = Agent([population], runtime=runtime, workers=Workers(2))
    page = render_timeline(await events_of(agent, "How many people live in Chile?"))
    assert page.count('class="row lane worker"') == 2
    assert "<dt>Alice</dt><dd>one &lt;b&gt;</dd>" in page


async def test_workers_may_be_a_number() -> None:
    """As in YAML, and as teams may; anything else is said to be none."""
    runtime = ScriptedRuntime([])
    for workers in (2, Workers(2)):
        async with Agent([population], runtime=runtime, workers=workers) as agent:
            assert "think" in await agent.tools()
    for wrong in (0, 9):
        with pytest.raises(UsageError, match=f"n is {wrong}; a group has 1 to 8 workers"):
            Agent([population], runtime=runtime, workers=wrong)
    for odd in (True, "2", [2]):
        with pytest.raises(UsageError, match=r"workers must be a number or Workers\("):
            Agent([population], runtime=runtime, workers=odd)  # type: ignore[arg-type]


async def test_a_record_with_workers_replays(tmp_path: Path) -> None:
    """Their events decide nothing, and are there."""
    runtime = ScriptedRuntime([PLAN, "one", "two", "19.6 million [1]."])
    agent = Agent([population], runtime=runtime, workers=Workers(2), runs=tmp_path)
    async with agent:
        answer = await agent.ask("How many people live in Chile?")
    record = read_record(tmp_path / answer.run_id / "events.jsonl")
    assert any(isinstance(event, WorkerText) for event in record.events)
    assert replay(record).difference == ""


def test_a_yaml_file_sets_workers(tmp_path: Path) -> None:
    """One line."""
    file = tmp_path / "agent.yaml"
    file.write_text("tools: [calc]\nworkers: {mode: hogwild, n: 3, max_tokens: 100}\n")
    assert load(file).arguments()["workers"] == Workers(3, max_tokens=100)


@pytest.mark.parametrize("n", [0, 9])
async def test_a_call_cannot_ask_for_more_workers_than_there_are_names(n: int) -> None:
    """Nor for none: the call fails, the run goes on."""
    plan = f'1. think(question="Why?", workers={n})\njoin()'
    runtime = ScriptedRuntime([plan, "a", "b", "No answer."])
    agent = Agent([population], runtime=runtime, workers=Workers(2))
    story = Story.of(await events_of(agent, "Why?"))
    assert f"workers is {n}" in str(story.tasks[1].outcome)


def test_a_tool_of_the_users_own_named_think_is_refused() -> None:
    """Rather than replaced in silence."""

    @tool
    def think(thought: str) -> str:
        """Think. thought: a thought."""
        return thought

    with pytest.raises(UsageError, match="think"):
        Agent([think], runtime=ScriptedRuntime([]), workers=Workers(2))


class Thinking:
    """A model whose workers write ``seconds`` for each word and go on until they are stopped; it
    plans and answers at once."""

    def __init__(self, plan: str = PLAN, *, seconds: float = 1.0) -> None:
        self.open = 0
        self._plan = plan
        self._seconds = seconds

    async def stream(self, request: ModelRequest) -> AsyncGenerator[str | Usage, None]:
        last = request.messages[-1].content
        tokens = request.max_tokens
        if "You are " in last:
            self.open += 1
            try:
                for _ in range(tokens):
                    await asyncio.sleep(self._seconds)
                    yield "hm "
                yield Usage(0, tokens, calls=1, cut=True)
            finally:
                self.open -= 1
            return
        if request.messages[0].content.startswith("Think"):
            yield "About 20 million."
        elif "Results:" in last:
            yield "Chile has 19,600,000 people [1]."
        else:
            yield self._plan
        yield Usage(0, 10, calls=1)

    async def capabilities(self) -> frozenset[Capability]:
        return frozenset()

    async def aclose(self) -> None: ...


def test_at_the_deadline_workers_are_stopped_and_what_is_known_is_the_answer() -> None:
    """Nothing of them is left, whether they think about the answer or in a call."""
    for plan in (
        PLAN,
        '1. population(country="Chile")\n2. think(question="Why?", given=$1)\njoin()',
    ):
        runtime = Thinking(plan, seconds=3.0)
        agent = Agent([population], runtime=runtime, workers=Workers(2, max_tokens=1000))
        answer = in_virtual_time(agent.ask("How many people live in Chile?", deadline=60.0))
        assert answer.usage.stopped_by == "deadline=60 s"
        assert "19600000" in answer.text or "19,600,000" in answer.text
        assert answer.seconds <= 60.0
        assert runtime.open == 0


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_calls_that_think_at_once_share_what_is_left_of_the_tokens(workers: int) -> None:
    """What one may take is set aside before it begins, however many a call asks for."""
    thoughts = "".join(
        f'{id}. think(question="Why {id}?", workers={workers})\n' for id in range(1, 7)
    )
    runtime = Thinking(thoughts + "join()", seconds=0.1)
    agent = Agent(
        [population],
        runtime=runtime,
        workers=Workers(2, max_tokens=50),
        max_plan_tokens=10,
        max_answer_tokens=10,
        max_tokens=10 + 2 * 150 + 110 + 20,
    )
    answer = in_virtual_time(agent.ask("Why?"))
    thought = [id for id, outcome in answer.outcomes.items() if isinstance(outcome, Ok)]
    assert thought == [1, 2]
    assert answer.usage.stopped_by == "max_tokens=440"
    assert answer.usage.completion_tokens <= 440


async def test_tokens_of_a_call_that_fails_count_as_spent() -> None:
    """Nobody has told how many there were."""
    texts: list[Any] = ['1. think(question="Why?")\njoin()', "a", "b", ModelServerError("gone")]
    agent = Agent(
        [population],
        runtime=ScriptedRuntime(texts),
        workers=Workers(2, max_tokens=50),
        max_plan_tokens=10,
        max_answer_tokens=10,
        max_tokens=1000,
        max_replans=0,
    )
    async with agent:
        session = await agent._session("r", "Why?")
        await session.run(session.started("Why?"))
    assert session.machine.outcomes[1] == Failed("gone", "tool")
    assert session.machine.budget.tokens >= 150


async def test_policies_hold_for_think_as_for_any_tool() -> None:
    """It is called by a name, like others."""
    agent = Agent(
        [population],
        runtime=ScriptedRuntime([]),
        workers=Workers(2),
        policies={"think": {"timeout": 5.0}},
    )
    async with agent:
        assert (await agent.tools())["think"].policy.timeout == 5.0


async def test_what_the_workers_did_not_do_as_meant_is_told(tmp_path: Path) -> None:
    """In the events, in the record, on the page; the answer comes."""
    texts: list[Any] = [
        PLAN,
        "19.6 million.",
        ModelServerError("row <3> broke"),
        "19.6 million [1].",
    ]
    agent = Agent([population], runtime=ScriptedRuntime(texts), workers=Workers(2), runs=tmp_path)
    events = await events_of(agent, "How many people live in Chile?")
    (ended,) = (event for event in events if isinstance(event, WorkersEnded))
    assert ended.faults == ("Bob broke off: row <3> broke",)
    page = render_timeline(events)
    assert "Bob broke off: row &lt;3&gt; broke" in page
    for event in events:
        assert decode(encode(event)) == event


async def test_a_run_that_is_cut_while_workers_write_begins_them_anew(tmp_path: Path) -> None:
    """What the first ones wrote stands in the record, and not among what the second ones wrote."""
    url = f"sqlite:///{tmp_path}/j.db"
    workers = Workers(2)
    first = ScriptedRuntime([PLAN, "first of Alice", "first of Bob"], delay=0.01)
    cut = Agent([population], runtime=first, workers=workers, journal=url)
    async with cut, cut.run("How many people live in Chile?", run_id="r") as run:
        async for event in run:
            if isinstance(event, WorkerText):
                break
    second = ScriptedRuntime(["second of Alice", "second of Bob", "19.6 million [1]."])
    async with Agent([population], runtime=second, workers=workers, journal=url) as agent:
        async with agent.run("How many people live in Chile?", run_id="r") as run:
            events = [event async for event in run]
        assert run.answer.text == "19.6 million [1]."
    assert sum(isinstance(event, JoinStarted) for event in events) == 2
    group = Story.of(events).rounds[1].group
    assert group is not None
    assert {name: lane.text for name, lane in group.lanes.items()} == {
        "Alice": "second of Alice",
        "Bob": "second of Bob",
    }


def test_lanes_are_those_of_the_attempt_that_began_last() -> None:
    """What an earlier one still tells goes nowhere; a join that begins again begins with none."""
    task = Task.of(1, "think", question="Why?")
    started = WorkersStarted(1, ("Alice",), "log", task_id=1)
    text = WorkerText(1, "Alice", "new", task_id=1, attempt=2)
    story = Story.of(
        [
            RunStarted("r", "Why?"),
            TaskPlanned(1, task),
            TaskStarted(1),
            started,
            TaskStarted(1, attempt=2),
            replace(started, attempt=2),
            text,
            replace(text, text="old", attempt=1),
            JoinStarted(2),
            WorkersStarted(2, ("Alice",), "log"),
            JoinStarted(2),
        ]
    )
    ((where, group),) = story.groups()
    assert (where, group.lanes["Alice"].text) == ("Task 1", "new")


async def test_the_model_reads_ahead_how_the_workers_prompts_begin() -> None:
    """Reading ahead is for them, too: what comes to the results stands behind these."""
    runtime = ScriptedRuntime([PLAN, "one", "two", "19.6 million [1]."])
    agent = Agent([population], runtime=runtime, workers=Workers(2), prefill=True)
    await events_of(agent, "How many people live in Chile?")
    plain = ScriptedRuntime([PLAN, "19.6 million [1]."])
    await events_of(Agent([population], runtime=plain), "How many people live in Chile?")
    asked = plain.requests[-1].messages
    for request in runtime.requests[-3:]:
        same = request.messages[: len(asked)]
        assert same[:-1] == asked[:-1]
        assert same[-1].content.startswith(asked[-1].content)


async def test_workers_leave_the_answers_randomness_to_the_model() -> None:
    """Theirs is their own."""
    runtime = ScriptedRuntime([PLAN, "one", "two", "19.6 million [1]."])
    workers = Workers(2, temperature=0.8, seed=1)
    agent = Agent([population], runtime=runtime, workers=workers, temperature=0.1, seed=9)
    await events_of(agent, "How many people live in Chile?")
    sampled = [(request.temperature, request.seed) for request in runtime.requests[-3:]]
    assert sampled == [(0.8, 1), (0.8, 2), (0.1, 9)]


def test_what_comes_from_a_source_cannot_take_the_name_think() -> None:
    """An MCP server's tool, say, is not replaced in silence."""

    class Source:
        async def start(self) -> list[Any]:
            @tool
            def think(thought: str) -> str:
                """Think. thought: a thought."""
                return thought

            return [think]

        async def stop(self) -> None: ...

    agent = Agent([Source()], runtime=ScriptedRuntime([]), workers=Workers(2))
    with pytest.raises(UsageError, match="'think' has the name"):
        agent.ask_sync("Why?")


async def test_the_example_runs_on_the_mini_web() -> None:
    """A page is read, two think about it, and what the answer cites was read."""
    texts = [
        '1. web_lookup(query="Lima", find="population")\njoin()',
        "Lima has 7,737,002 people.",
        "The page says so.",
        "The population of Lima is 7,737,002 [1].",
    ]
    path = Path(__file__).parents[2] / "examples" / "workers" / "agent.yaml"
    agent = Agent.from_yaml(path, runtime=ScriptedRuntime(texts))
    async with agent, agent.run("How many people live in Lima?") as run:
        events = [event async for event in run]
    assert [citation.supported for citation in run.answer.citations] == [True]
    (group,) = [group for where, group in Story.of(events).groups() if where == "Join 1"]
    assert [lane.text for lane in group.lanes.values()] == texts[1:3]
