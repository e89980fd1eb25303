"""An agent whose answers several workers think about first: what they read, what is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentpar import Agent, tool
from agentpar.config import load
from agentpar.errors import UsageError
from agentpar.events import Event, JoinText, ModelUsed, WorkersStarted, WorkerText
from agentpar.executor.record import read_record, replay
from agentpar.plan import Ok
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
    final = runtime.requests[-1].messages[-1].content
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
