"""What a user of `Agent` sees of policies and limits: partial answers, usage, caches, records."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from agentpar import Agent, Failed, Ok, RunFailed, ScriptedRuntime, UsageError, tool
from agentpar.answer import recorded_answer
from agentpar.events import (
    AttemptFailed,
    Event,
    ModelUsed,
    RunFinished,
    RunStarted,
    TaskDone,
    Usage,
)
from agentpar.executor.record import read_record, replay
from agentpar.executor.simulate import run
from agentpar.policy import Price
from agentpar.ports import ModelRequest

PLAN = '1. population(country="Chile")\n2. population(country="Peru")\njoin()'


def populations(seconds: dict[str, float], **policy: Any) -> tuple[Any, list[str]]:
    """A tool that takes its time, and what it was asked."""
    asked: list[str] = []

    @tool(**policy)
    async def population(country: str) -> int:
        """Population of a country. country: English name."""
        asked.append(country)
        await asyncio.sleep(seconds.get(country, 0.0))
        return {"Chile": 19_116_201, "Peru": 32_971_854}[country]

    return population, asked


def test_at_the_deadline_the_answer_is_what_is_known() -> None:
    """The joiner gets the rest, and usage names the deadline."""
    population, _ = populations({"Peru": 1000.0})
    runtime = ScriptedRuntime([PLAN, "Chile has 19,116,201 people [1].\nAnswer: not found"])
    agent = Agent([population], runtime=runtime)
    answer = run(agent.ask("Chile or Peru?", deadline=20.0))
    assert answer.outcomes == {
        1: Ok(19_116_201),
        2: Failed("stopped by deadline=20 s", "limit"),
    }
    assert answer.usage.stopped_by == "deadline=20 s"
    assert answer.usage.steps == 2
    assert answer.seconds <= 20.0
    assert not answer.unsupported


class Slow:
    """A model whose answer never ends."""

    async def stream(self, request: ModelRequest) -> AsyncGenerator[str | Usage, None]:
        if "Results:" not in request.messages[-1].content:
            yield PLAN
            return
        yield "Chile has 19,116,201 people [1]. Peru has 99 people [2]. Both "
        await asyncio.sleep(1000.0)
        yield "are large."

    async def capabilities(self) -> frozenset[Any]:
        return frozenset()

    async def aclose(self) -> None:
        pass


def test_an_answer_that_is_cut_off_keeps_what_is_verified() -> None:
    """A sentence that its source does not carry is not in it; what is missing is said."""
    population, _ = populations({"Peru": 1000.0})
    answer = run(Agent([population], runtime=Slow()).ask("Chile or Peru?", deadline=20.0))
    assert answer.text.splitlines() == [
        "Chile has 19,116,201 people [1].",
        "Answer: not complete, the run was stopped by deadline=20 s; missing: "
        'population(country="Peru") (stopped by deadline=20 s)',
    ]
    assert [c.supported for c in answer.citations] == [True]
    assert answer.status == "answered"
    assert answer.seconds == pytest.approx(20.0)


def test_without_a_verified_sentence_the_results_are_the_answer() -> None:
    """Nothing is left to ask the model with: the program tells what it knows."""
    population, _ = populations({})

    class Thirsty(ScriptedRuntime):
        async def stream(self, request: ModelRequest) -> AsyncGenerator[str | Usage, None]:
            async for piece in super().stream(request):
                yield Usage(900, 90, calls=1) if isinstance(piece, Usage) else piece

    agent = Agent(
        [population],
        runtime=Thirsty([PLAN, "never asked"]),
        max_tokens=1000,
        max_plan_tokens=100,
        max_answer_tokens=100,
    )
    answer = agent.ask_sync("Chile or Peru?")
    assert answer.text.splitlines() == [
        "population(Chile): 19116201 [1]",
        "population(Peru): 32971854 [2]",
        "Answer: not complete, the run was stopped by max_tokens=1000",
    ]
    assert answer.usage.stopped_by == "max_tokens=1000"
    assert not answer.unsupported


def test_usage_says_what_was_spent() -> None:
    """Attempts of calls, and money for calls and tokens."""
    population, _ = populations({}, cost=0.5)
    runtime = ScriptedRuntime([PLAN, "Answer: Peru [2]"])
    agent = Agent([population], runtime=runtime, price=Price(1_000_000.0, 0.0))
    usage = agent.ask_sync("Chile or Peru?").usage
    assert (usage.steps, usage.stopped_by) == (2, "")
    assert usage.cost_usd == pytest.approx(1.0 + usage.prompt_tokens)


def test_a_write_is_never_served_by_a_cache() -> None:
    """It would be told as done, and not be done."""
    sent: list[str] = []

    @tool(effect="write")
    async def send(to: str) -> str:
        """Send. to: whom."""
        sent.append(to)
        return "sent"

    script = ['1. send(to="ann")\njoin()', "It was sent [1]."]
    agent = Agent(
        [send],
        runtime=ScriptedRuntime(script * 2),
        approve=lambda task, args: True,
        policies={"*": {"cache": 60.0}},
    )
    agent.ask_sync("Greet Ann")
    agent.ask_sync("Greet Ann")
    assert sent == ["ann", "ann"]
    with pytest.raises(UsageError, match="cannot be served by a cache"):
        tool(send.function, effect="write", cache=60.0)


def test_a_recorded_answer_is_the_answer(tmp_path: Path) -> None:
    """What was spent and what an error stands for included."""
    population, _ = populations({}, cost=0.5, on_error="keep", retries=1, backoff=0.01)
    runtime = ScriptedRuntime(
        [PLAN.replace("Peru", "Atlantis"), "Chile has 19,116,201 people [1]."]
    )

    async def twice() -> None:
        url = f"sqlite:///{tmp_path / 'j.db'}"
        async with Agent([population], runtime=runtime, journal=url) as agent:
            answer = await agent.ask("Chile or Atlantis?", run_id="one")
            assert (answer.usage.steps, answer.usage.cost_usd) == (3, 1.5)
            assert await agent.resume("one") == answer

    asyncio.run(twice())


def test_a_cache_serves_the_next_question_and_says_so() -> None:
    """As long as the agent lives."""
    population, asked = populations({})
    runtime = ScriptedRuntime([PLAN, "Answer: Peru [2]", PLAN, "Answer: Peru [2]"])
    agent = Agent([population], runtime=runtime, policies={"pop*": {"cache": 60.0}})
    agent.ask_sync("Chile or Peru?")

    async def watched() -> list[str]:
        async with agent.run("Chile or Peru?") as running:
            return [event.via async for event in running if isinstance(event, TaskDone)]

    assert asyncio.run(watched()) == ["cache", "cache"]
    assert asked == ["Chile", "Peru"]


def test_a_run_with_retries_replays_from_its_record(tmp_path: Path) -> None:
    """Pauses and limits included; the record names the attempts."""
    luck = [ValueError("no"), ValueError("no"), None]

    @tool(retries=3, backoff=0.01, rate=50.0)
    async def population(country: str) -> int:
        """Population of a country. country: English name."""
        if error := luck.pop(0):
            raise error
        return 19

    runtime = ScriptedRuntime(['1. population(country="Chile")\njoin()', "Chile has 19 [1]."])
    agent = Agent([population], runtime=runtime, runs=tmp_path, max_steps=10)
    agent.ask_sync("How many?", run_id="one")
    record = read_record(tmp_path / "one" / "events.jsonl")
    assert [e.attempt for e in record.events if isinstance(e, AttemptFailed)] == [1, 2]
    assert replay(record).difference == ""
    assert record.terms.limits.max_steps == 10


def test_a_failure_that_ends_the_run_is_raised_with_what_was_found() -> None:
    """`on_error="fail"`: the caller gets the reason, and the answer so far."""
    population, _ = populations({}, on_error="fail")
    runtime = ScriptedRuntime([PLAN.replace("Peru", "Atlantis"), "never asked"])
    with pytest.raises(RunFailed, match=r"task 2 \(population\) failed: KeyError") as caught:
        Agent([population], runtime=runtime).ask_sync("Chile or Atlantis?")
    assert caught.value.answer.outcomes[1] == Ok(19_116_201)  # type: ignore[attr-defined]


def test_the_end_of_a_run_names_the_limit(tmp_path: Path) -> None:
    """For those who only read the record."""
    population, _ = populations({})
    runtime = ScriptedRuntime([PLAN, "Answer: Chile [1]"])
    Agent([population], runtime=runtime, runs=tmp_path, max_steps=1).ask_sync("?", run_id="one")
    *_, end = read_record(tmp_path / "one" / "events.jsonl").events
    assert isinstance(end, RunFinished)
    assert end.stopped_by == "max_steps=1"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": -1}, "max_steps must be at least 0, got -1"),
        ({"deadline": 0}, "deadline must be more than 0, or None, got 0"),
        ({"max_cost_usd": -1}, "max_cost_usd must be more than 0, or None, got -1"),
        ({"deadline": "20s"}, "deadline must be a number (times in seconds), got '20s'"),
        ({"policies": {"*": {"retires": 3}}}, "a policy has no 'retires'"),
        ({"policies": {"*": {"cache": "1h"}}}, "policy for '*': cache must be a number"),
        ({"policies": [{"retries": 3}]}, "policies are fields by pattern"),
    ],
)
def test_limits_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    """Where the agent is made."""
    with pytest.raises(UsageError) as caught:
        Agent([], runtime=ScriptedRuntime([]), **options)
    assert message in str(caught.value)


async def test_setting_the_time_of_day_moves_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks hears another day: pauses, timeouts, the deadline and the journal's lease go by
    clocks that nobody sets."""
    real, days = time.time, itertools.cycle((0, 86_400, -86_400))
    monkeypatch.setattr(time, "time", lambda: real() + next(days))
    failed: list[str] = []

    @tool(retries=1, backoff=0.01, timeout=5.0)
    async def population(country: str) -> int:
        """Population of a country."""
        if not failed:
            failed.append(country)
            raise ConnectionError("not now")
        return 19_116_201

    runtime = ScriptedRuntime(['1. population(country="Chile")\njoin()', "Answer: 19,116,201"])
    journal = f"sqlite:///{tmp_path / 'j.db'}"
    async with (
        Agent([population], runtime=runtime, journal=journal, deadline=20.0) as agent,
        agent.run("Chile?") as running,
    ):
        events = [event async for event in running]
    assert running.answer.outcomes == {1: Ok(19_116_201)}
    assert [event.at for event in events] == sorted(event.at for event in events)
    assert 0.0 <= events[-1].at < 15.0


def test_reading_ahead_is_no_text_that_was_cut_off() -> None:
    """It is asked for one token, which nobody reads."""
    events: list[Event] = [
        RunStarted("run", "?"),
        ModelUsed("prefill", 1, Usage(prompt_tokens=9, completion_tokens=1, calls=1, cut=True)),
        RunFinished("answered"),
    ]
    usage = recorded_answer("run", events).usage
    assert (usage.prompt_tokens, usage.calls, usage.cut) == (9, 1, False)
