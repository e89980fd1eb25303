"""The agent over a real vLLM with the 135M weights: how a run goes, never what it says."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import httpx
import pytest

from agentpar import Agent, tool
from agentpar.answer import Answer
from agentpar.errors import RunFailed
from agentpar.events import (
    Answered,
    Event,
    JoinStarted,
    ModelUsed,
    PlanEnded,
    PlanFault,
    PlanStarted,
    PlanText,
    RunFinished,
    RunStarted,
    TaskDone,
    TaskStarted,
)
from agentpar.executor.record import read_record, replay
from agentpar.plan import Ok
from agentpar.run import Run

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(180)]

LONG = "A horse, a cart and a hay barn. " * 80  # some 700 tokens
E = TypeVar("E", bound=Event)


# A grammar leaves these weights no choice but calls that can run.
@tool
async def look(direction: Literal["north", "south", "east", "west"]) -> str:
    """What one sees in a direction."""
    return f"There is a house in the {direction}."


@tool
async def recite(text: Literal[LONG]) -> str:  # type: ignore[valid-type]
    """Say the text."""
    return "said"


@dataclass(frozen=True)
class Ran:
    """One run: its events, and the file they were recorded in."""

    events: Sequence[Event]
    record: Path

    def all(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]

    def one(self, kind: type[E]) -> E:
        (event,) = self.all(kind)
        return event


@pytest.fixture(scope="module")
def ran(vllm_url: str, tmp_path_factory: pytest.TempPathFactory) -> list[Ran]:
    """Two agents that asked one server side by side."""

    async def ask(question: str) -> Ran:
        runs = tmp_path_factory.mktemp("runs")
        async with (
            Agent([look], model=vllm_url, grammar=True, max_replans=0, runs=runs) as agent,
            agent.run(question) as run,
        ):
            events = [event async for event in run]
        return Ran(events, runs / run.id / "events.jsonl")

    async def both() -> list[Ran]:
        return list(await asyncio.gather(ask("What is in the north?"), ask("What is in the west?")))

    return asyncio.run(both())


def test_a_run_is_told_from_question_to_answer(ran: list[Ran]) -> None:
    """Plan, tasks, answer, in that order; each event at a time not before the last one's."""
    for run in ran:
        assert isinstance(run.events[0], RunStarted)
        end = run.events[-1]
        assert isinstance(end, RunFinished)
        assert (end.status, end.error, end.stopped_by) == ("answered", "", "")
        assert end.steps == sum(isinstance(event, TaskStarted) for event in run.events) > 0
        order = [PlanStarted, PlanText, PlanEnded, JoinStarted, Answered]
        firsts = [run.events.index(run.all(kind)[0]) for kind in order]
        assert firsts == sorted(firsts)
        times = [event.at for event in run.events]
        assert times == sorted(times)
        assert run.one(Answered).text


def test_tasks_run_while_the_planner_still_writes(ran: list[Ran]) -> None:
    """The first result is there before the plan's last line is."""
    for run in ran:
        assert len(run.all(TaskStarted)) > 1
        assert run.all(TaskStarted)[0].at < run.one(PlanEnded).at
        assert run.all(TaskDone)[0].at < run.one(PlanEnded).at


def test_every_line_under_the_grammar_can_run(ran: list[Ran]) -> None:
    """Weights that cannot plan still write nothing but known calls with right arguments."""
    for run in ran:
        assert not run.all(PlanFault)
        assert all(isinstance(done.outcome, Ok) for done in run.all(TaskDone))


def test_agents_share_a_server(ran: list[Ran]) -> None:
    """Neither waits for the other: both planned at once, each with its own question."""
    assert {run.one(RunStarted).question[-6:] for run in ran} == {"north?", " west?"}
    assert len({run.one(RunStarted).run_id for run in ran}) == 2
    for run, other in (ran, ran[::-1]):
        assert run.all(PlanText)[0].at < other.one(PlanEnded).at


def test_tokens_are_counted(ran: list[Ran]) -> None:
    """Both calls of a run say what they read and wrote, and when the first token came."""
    for run in ran:
        assert [used.purpose for used in run.all(ModelUsed)] == ["plan", "join"]
        for used in run.all(ModelUsed):
            assert used.usage.prompt_tokens > 50
            assert used.usage.completion_tokens > 1
            assert used.usage.calls == 1
            assert 0 < used.first_token <= used.seconds


def test_a_record_replays_equal(ran: list[Ran]) -> None:
    """The file holds every event, and the same facts give the same commands again."""
    for run in ran:
        record = read_record(run.record)
        assert list(record.events) == list(run.events)
        result = replay(record)
        assert result.difference == ""
        assert result.events == len(run.events)
        assert result.commands > 3


async def test_a_question_asked_again_is_read_from_the_cache(vllm_url: str) -> None:
    """The server has most of the planner's prompt already."""
    async with Agent([look], model=vllm_url, grammar=True) as agent:
        async with agent.run("What is in the south?") as run:
            await first(run, PlanText)
        async with agent.run("What is in the south?") as run:
            usage = (await first(run, ModelUsed)).usage
    assert usage.cached_tokens > usage.prompt_tokens / 2


async def test_leaving_a_run_stops_the_model(vllm_url: str) -> None:
    """Once the block is left, vLLM runs no request, though the plan was far from its end."""
    async with Agent([recite], model=vllm_url, grammar=True) as agent:
        async with agent.run("Say the text.") as run:
            await first(run, PlanText)
            assert await running(vllm_url) >= 1
        async with asyncio.timeout(5):
            busy = 1.0
            while busy:
                busy = await running(vllm_url)
    with pytest.raises(RunFailed, match="cancelled") as caught:
        _ = run.answer
    answer = caught.value.answer
    assert isinstance(answer, Answer)
    assert (answer.status, answer.tasks) == ("cancelled", {})


async def first(run: Run, kind: type[E]) -> E:
    """The first event of that kind, once it has happened."""
    async for event in run:
        if isinstance(event, kind):
            return event
    raise AssertionError(f"the run ended without a {kind.__name__}")


async def running(url: str) -> float:
    """How many requests the server is working on."""
    async with httpx.AsyncClient(trust_env=False) as client:
        text = (await client.get(url.removesuffix("/v1") + "/metrics")).text
    found = re.findall(r"^vllm:num_requests_running{.*} (\S+)$", text, re.MULTILINE)
    return sum(map(float, found))
