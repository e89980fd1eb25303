"""What a run has spent, whatever its model server tells of it and however a call ends."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from agentpar import Agent, Answer, RunFailed, Teams, tool
from agentpar.events import ModelUsed, RunFinished
from agentpar.policy import Price

PLAN = '1. population(country="Chile")\n2. join()'
ANSWER = "Chile has 19116201 people [1].\nAnswer: 19116201"
PRICE = Price(prompt=1.0, completion=10.0)
TOLD = {"prompt_tokens": 900, "completion_tokens": 20}


@tool
def population(country: str) -> int:
    """Population of a country. country: English name."""
    return 19_116_201


async def said(request: Any, text: str) -> None:
    """``text``, a few characters at a time; a server that knows no stop strings."""
    await request.head()
    for start in range(0, len(text), 4):
        await request.chunk(text[start : start + 4])


async def finish(request: Any, **usage: Any) -> None:
    """The text has ended by itself; what it took comes behind that, if the server says it."""
    stop = {"choices": [{"delta": {}, "finish_reason": "stop"}]}
    await request.send(f"data: {json.dumps(stop)}\n\n")
    await request.end(**usage)


def saying(text: str, **usage: Any) -> Any:
    async def answer(request: Any) -> None:
        await said(request, text)
        await finish(request, **usage)

    return answer


async def writes_on(request: Any) -> None:
    """Behind join(), until somebody hangs up."""
    await said(request, PLAN)
    while not request.gone.is_set():
        await request.chunk("\n3. population")
        await asyncio.sleep(0.005)


async def falls_silent(request: Any) -> None:
    await said(request, PLAN)
    await request.gone.wait()


async def breaks_off(request: Any) -> None:
    await said(request, PLAN)


def answers_by(wire: Any, plan: Any, join: Any) -> None:
    """Have requests for a plan answered by ``plan``, those for an answer by ``join``."""

    async def answer(request: Any) -> None:
        joins = "Results:" in request.body["messages"][-1]["content"]
        await (join if joins else plan)(request)

    wire.answers = [answer]


def prompt_of(request: Any) -> str:
    return "".join(message["content"] for message in request.body["messages"])


async def ask(wire: Any, **settings: Any) -> Answer:
    async with Agent([population], model=wire.url, price=PRICE, **settings) as agent:
        return await agent.ask("How many people live in Chile?")


async def test_usage_that_comes_behind_join_is_counted(wire: Any) -> None:
    """The plan has ended, and the server says what it took: exactly that, and no estimate."""
    answers_by(wire, saying(PLAN, **TOLD), saying(ANSWER, prompt_tokens=500, completion_tokens=10))
    usage = (await ask(wire)).usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.calls) == (1400, 30, 2)
    assert not usage.estimated
    assert usage.cost_usd == pytest.approx((1400 * 1.0 + 30 * 10.0) / 1e6)


async def test_a_server_that_never_tells_usage_is_estimated(wire: Any) -> None:
    """From what was sent and what came; the answer, its data and its events say that it is so."""
    answers_by(wire, saying(PLAN), saying(ANSWER))
    answer = await ask(wire, max_plan_tokens=100, max_answer_tokens=50)
    usage = answer.usage
    sent = sum(len(prompt_of(request)) for request in wire.requests)
    assert sent / 5 < usage.prompt_tokens < sent / 2
    assert len(PLAN + ANSWER) / 5 < usage.completion_tokens < len(PLAN + ANSWER)
    assert usage.estimated
    assert answer.as_dict()["usage"]["estimated"] is True
    # Money is counted as the most that it can have been.
    assert usage.cost_usd == pytest.approx((usage.prompt_tokens + 150 * 10.0) / 1e6)


@pytest.mark.parametrize("limit", [{"max_tokens": 1000}, {"max_cost_usd": 0.0095}])
@pytest.mark.parametrize("plan", [saying(PLAN), writes_on])
async def test_limits_hold_on_a_server_that_tells_nothing(
    wire: Any, plan: Any, limit: dict[str, Any]
) -> None:
    """Nothing is begun that could pass them: here the answer, behind a plan of 768 tokens at
    most and its prompt."""
    answers_by(wire, plan, saying(ANSWER))
    answer = await ask(wire, **limit, max_plan_tokens=768, max_answer_tokens=180)
    assert answer.usage.stopped_by.startswith(next(iter(limit)))
    assert len(wire.requests) == 1


async def test_a_model_that_writes_on_behind_join_is_stopped(
    wire: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Soon, and what it took is an estimate of what came: not nothing, and not what it would have
    written. Nobody waits for the end of what nobody reads."""
    monkeypatch.setattr("agentpar.planner.planner.LAST_WORD", 60.0)  # for servers that are quiet
    answers_by(wire, writes_on, saying(ANSWER, prompt_tokens=500, completion_tokens=10))
    began = time.monotonic()
    answer = await ask(wire)
    assert time.monotonic() - began < 30
    plan, _ = wire.requests
    await asyncio.wait_for(plan.gone.wait(), 20)
    usage = answer.usage
    assert usage.estimated
    assert usage.prompt_tokens > 500 + len(prompt_of(plan)) / 5
    assert 10 + len(PLAN) / 5 < usage.completion_tokens < 10 + 2 * len(PLAN)
    assert len(answer.tasks) == 1


@pytest.mark.parametrize("plan", [falls_silent, breaks_off])
async def test_what_a_server_does_behind_join_spoils_no_plan(
    wire: Any, plan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that says nothing more is waited for a short time, one that breaks off not at all."""
    monkeypatch.setattr("agentpar.planner.planner.LAST_WORD", 0.1)
    answers_by(wire, plan, saying(ANSWER, prompt_tokens=500, completion_tokens=10))
    answer = await ask(wire)
    assert answer.text == ANSWER
    assert answer.usage.estimated
    assert answer.usage.prompt_tokens > 500 + len(prompt_of(wire.requests[0])) / 5


async def test_an_answer_that_the_deadline_cuts_off_is_counted(wire: Any) -> None:
    """Its prompt, which is the longest of the run, and all that it might have written."""

    async def slow(request: Any) -> None:
        await said(request, "Chile has 19116201 people [1]. ")
        await request.gone.wait()

    answers_by(wire, saying(PLAN, **TOLD), slow)
    answer = await ask(wire, deadline=1.5, max_answer_tokens=50)
    usage = answer.usage
    assert usage.stopped_by == "deadline=1.5 s"
    assert (usage.calls, usage.estimated) == (2, True)
    read = usage.prompt_tokens - 900
    assert len(prompt_of(wire.requests[1])) / 5 < read < len(prompt_of(wire.requests[1])) / 2
    assert 20 < usage.completion_tokens < 50
    assert usage.cost_usd == pytest.approx((900 + read + (20 + 50) * 10.0) / 1e6)


async def test_a_plan_that_the_deadline_cuts_off_is_counted_once(wire: Any) -> None:
    """All that was set aside for it counted until it was known what had come."""

    async def slow(request: Any) -> None:
        await said(request, '1. population(country="Chile")\n')
        await request.gone.wait()

    answers_by(wire, slow, saying(ANSWER, prompt_tokens=500, completion_tokens=10))
    usage = (await ask(wire, deadline=2.0, max_plan_tokens=100)).usage
    assert (usage.calls, usage.estimated) == (2, True)
    assert usage.cost_usd == pytest.approx((usage.prompt_tokens + (100 + 10) * 10.0) / 1e6)


@pytest.mark.parametrize("begun", [True, False])
async def test_the_call_of_a_run_that_is_cancelled_is_counted(wire: Any, begun: bool) -> None:
    """Also one of which no text has come: its prompt was sent."""

    async def slow(request: Any) -> None:
        await said(request, "1. popul" if begun else "")
        await request.gone.wait()

    wire.answers = [slow]
    async with Agent([population], model=wire.url, price=PRICE, max_plan_tokens=100) as agent:
        async with agent.run("How many people live in Chile?") as run:
            await wire.asked.wait()
            await asyncio.sleep(0.1)
        seen = [event async for event in run]
    (used,) = (event for event in seen if isinstance(event, ModelUsed))
    (end,) = (event for event in seen if isinstance(event, RunFinished))
    assert seen[-1] is end
    assert used.usage.estimated
    assert used.usage.prompt_tokens > len(prompt_of(wire.requests[0])) / 5
    assert (used.usage.completion_tokens > 0) == begun
    assert "without waiting" in used.error
    assert end.cost_usd == pytest.approx((used.usage.prompt_tokens + 100 * 10.0) / 1e6)


async def test_teams_that_are_stopped_have_spent_what_they_have(wire: Any) -> None:
    """The first verified answer stops the others in the middle of their calls."""
    plans = 0
    all_ask = asyncio.Event()

    async def plan(request: Any) -> None:
        nonlocal plans
        plans += 1
        if plans == 3:
            all_ask.set()
        if plans == 1:
            await all_ask.wait()
            await saying(PLAN, **TOLD)(request)
        else:
            await said(request, "1. popul")
            await request.gone.wait()

    answers_by(wire, plan, saying(ANSWER, prompt_tokens=500, completion_tokens=10))
    answer = await ask(wire, teams=Teams(3, "first"))
    stopped = [team for team in answer.teams if team.status == "cancelled"]
    assert len(stopped) == 2
    for team in stopped:
        assert (team.usage.calls, team.usage.estimated) == (1, True)
        assert team.usage.prompt_tokens > 100
        assert team.usage.cost_usd > 0
    assert answer.usage.estimated
    assert answer.usage.prompt_tokens == 1400 + sum(team.usage.prompt_tokens for team in stopped)


async def test_a_judge_that_is_not_waited_for_any_more_is_counted(
    wire: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has read all answers, though it chose none of them."""
    monkeypatch.setattr("agentpar.rivals.JUDGE_SECONDS", 0.2)
    joins = 0

    async def plan(request: Any) -> None:
        if request.body["max_tokens"] != 16:
            await saying(PLAN, **TOLD)(request)
            return
        await request.head()  # of the judge
        await request.gone.wait()

    async def join(request: Any) -> None:
        nonlocal joins
        joins += 1
        text = f"It is not known.\nAnswer: {joins}"
        await saying(text, prompt_tokens=500, completion_tokens=10)(request)

    answers_by(wire, plan, join)
    answer = await ask(wire, teams=Teams(2, "judge"))
    assert "no time left for the judge" in answer.why
    assert (answer.usage.calls, answer.usage.estimated) == (5, True)
    assert answer.usage.prompt_tokens > 2 * 1400


async def test_a_think_call_that_is_stopped_is_counted(wire: Any) -> None:
    """By its workers' texts, once, though the tokens of the whole call were set aside."""

    async def plan(request: Any) -> None:
        if "Think about the question" not in prompt_of(request):
            await saying('1. think(question="How many?")\n2. join()', **TOLD)(request)
            return
        await said(request, "I think that Chile ")
        await request.gone.wait()

    answers_by(wire, plan, saying(ANSWER, prompt_tokens=500, completion_tokens=10))
    async with (
        Agent([population], model=wire.url, price=PRICE, workers=2) as agent,
        agent.run("How many people live in Chile?", deadline=1.5) as run,
    ):
        events = [event async for event in run]
    usages = {event.purpose: event.usage for event in events if isinstance(event, ModelUsed)}
    think, join = usages["think"], usages["join"]
    assert think.estimated
    assert think.calls >= 1
    assert think.prompt_tokens > 50
    # What was set aside for its text counts, the workers' and the answer's: 3 of 256 tokens.
    prompts = 900 + think.prompt_tokens + join.prompt_tokens
    written = 20 + 3 * 256 + max(join.completion_tokens, 512 + 2 * 256 if join.estimated else 0)
    assert events[-1].cost_usd == pytest.approx((prompts + 10.0 * written) / 1e6)


async def test_a_request_that_was_refused_took_nothing(wire: Any) -> None:
    """No tokens are made up for a server that has read none."""

    async def refuse(request: Any) -> None:
        await request.head("400 Bad Request", "application/json")
        await request.send('{"error": {"message": "no such model"}}')

    wire.answers = [refuse]
    with pytest.raises(RunFailed, match="no such model") as caught:
        await ask(wire)
    assert caught.value.answer.usage.calls == 0


async def test_an_answer_that_breaks_off_is_counted(wire: Any) -> None:
    """The run has failed, and has cost something."""
    answers_by(wire, saying(PLAN, **TOLD), breaks_off)
    with pytest.raises(RunFailed, match="broke off") as caught:
        await ask(wire, max_answer_tokens=50)
    usage = caught.value.answer.usage
    assert (usage.calls, usage.estimated) == (2, True)
    assert usage.cost_usd == pytest.approx((usage.prompt_tokens + (20 + 50) * 10.0) / 1e6)


async def test_workers_that_are_stopped_are_counted(wire: Any) -> None:
    """What they had read and written by then is in the answer's usage."""

    async def slow(request: Any) -> None:
        await said(request, "I think that Chile ")
        await request.gone.wait()

    answers_by(wire, saying(PLAN, **TOLD), slow)
    answer = await ask(wire, deadline=1.5, workers=2)
    joins = len(wire.requests) - 1
    assert joins >= 1
    assert answer.usage.calls == 1 + joins
    assert answer.usage.estimated
    assert answer.usage.prompt_tokens > 900 + len(prompt_of(wire.requests[1])) / 5
