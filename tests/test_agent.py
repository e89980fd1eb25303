"""The agent's public doors: ask, ask_sync, run; and that it leaves nothing open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from agentpar import (
    Agent,
    Answer,
    ConfigError,
    Failed,
    ModelServerError,
    Ok,
    RunFailed,
    ScriptedRuntime,
    Tool,
    UsageError,
    tool,
)
from agentpar.events import JoinText, PlanStarted, RunFinished, RunStarted, TaskDone, Usage
from agentpar.executor.record import read_record
from agentpar.ports import ModelRequest
from agentpar.tools.base import ToolSource

PLAN = '1. population(country="Chile")\n2. population(country="Peru")\njoin()'
ANSWER = "Chile has 19 people [1]. Peru has 33 people [2].\nAnswer: Peru [2]"


@tool
async def population(country: str) -> int:
    """Population of a country. country: English name."""
    return {"Chile": 19, "Peru": 33}[country]


@tool
async def hang() -> str:
    """Hang."""
    await asyncio.sleep(60)
    return ""


def agent_of(*texts: str | Exception, **options: Any) -> Agent:
    return Agent([population, hang], runtime=ScriptedRuntime(texts), **options)


class Chat:
    """A model that answers by what it is asked, so that runs may interleave."""

    def __init__(self) -> None:
        self.closed = 0

    async def stream(self, request: ModelRequest) -> AsyncGenerator[str | Usage, None]:
        await asyncio.sleep(0)
        asked = request.messages[-1].content
        country = "Chile" if "Chile?" in asked else "Peru"
        joining = "Results:" in asked
        yield f"{country} it is" if joining else f'1. population(country="{country}")'
        yield Usage(1, 1, calls=1)

    async def capabilities(self) -> frozenset[Any]:
        return frozenset()

    async def aclose(self) -> None:
        self.closed += 1


# ask


async def test_ask() -> None:
    """Text, checked citations, tasks, outcomes, tokens and an id."""
    answer = await agent_of(PLAN, ANSWER).ask("Chile or Peru?")
    assert (answer.text, answer.conclusion) == (ANSWER, "Peru [2]")
    assert [(c.n, c.task_id, c.supported) for c in answer.citations] == [
        (1, 1, True),
        (2, 2, True),
        (2, 2, True),
    ]
    assert answer.unsupported == ()
    assert answer.outcomes == {1: Ok(19), 2: Ok(33)}
    assert answer.tasks[1].args == {"country": "Chile"}
    assert answer.usage.calls == 2
    assert answer.usage.completion_tokens == 4 + 13
    assert (answer.status, answer.rounds, answer.faults) == ("answered", 1, ())
    assert answer.run_id
    assert answer.seconds > 0


async def test_a_made_up_number_is_found_out() -> None:
    """The check is wired in: what no source carries is listed, the answer stands."""
    answer = await agent_of(PLAN, "Chile has 99 people [1].").ask("Chile?")
    assert answer.unsupported == ("Chile has 99 people [1].",)
    assert answer.citations[0].problem == "the number 99 is not in the cited result"


async def test_concurrent_questions_to_one_agent() -> None:
    """Runs share tools and a model, nothing else."""
    agent = Agent([population], runtime=Chat())
    questions = ["Chile?", "Peru?"] * 10
    answers = await asyncio.gather(*map(agent.ask, questions))
    assert [a.text for a in answers] == ["Chile it is", "Peru it is"] * 10
    assert [a.outcomes[1] for a in answers] == [Ok(19), Ok(33)] * 10
    assert len({a.run_id for a in answers}) == 20


@pytest.mark.parametrize("question", ["", "  \n"])
async def test_an_empty_question_is_refused(question: str) -> None:
    """Before anything is asked of a model."""
    agent = agent_of()
    with pytest.raises(UsageError, match="the question is empty"):
        await agent.ask(question)
    with pytest.raises(UsageError, match="the question is empty"):
        async with agent.run(question):
            pass


async def test_a_failed_run_raises_and_carries_what_it_found() -> None:
    """The joiner's server went away: outcomes and tokens are not lost."""
    with pytest.raises(RunFailed, match="the server is gone") as raised:
        await agent_of(PLAN, ModelServerError("the server is gone")).ask("Chile or Peru?")
    answer = raised.value.answer
    assert isinstance(answer, Answer)
    assert answer.outcomes == {1: Ok(19), 2: Ok(33)}
    assert (answer.status, answer.error) == ("failed", "the server is gone")
    assert answer.usage.calls == 1


@pytest.mark.parametrize("text", ["", "  \n"])
async def test_an_empty_answer_is_a_failure(text: str) -> None:
    """A model that says nothing has not answered."""
    with pytest.raises(RunFailed, match="empty answer"):
        await agent_of(PLAN, text).ask("Chile?")


@pytest.mark.parametrize("plan", ["", "I cannot plan.", "join()", "1. unknown()\njoin()"])
async def test_no_plan_is_answered_from_nothing(plan: str) -> None:
    """Text that is no plan runs no tool; the joiner hears why."""
    agent = agent_of(plan, "Answer: not found")
    answer = await agent.ask("Chile?")
    assert answer.outcomes.keys() <= {1}
    assert answer.text == "Answer: not found"
    assert bool(answer.faults) == ("plan" in plan or "unknown" in plan)


async def test_timeouts_are_per_call() -> None:
    """The agent's timeout holds for tools without one."""
    answer = await agent_of("1. hang()", "x", timeout=0.02).ask("?")
    assert answer.outcomes[1] == Failed("hang gave no result within 0.02 s", "timeout")


# ask_sync


def test_ask_sync_twice() -> None:
    """Each call has an event loop of its own; a runtime that was given stays open."""
    chat = Chat()
    agent = Agent([population], runtime=chat)
    assert agent.ask_sync("Chile?").text == "Chile it is"
    assert agent.ask_sync("Peru?").text == "Peru it is"
    assert chat.closed == 0


async def test_ask_sync_inside_a_loop_says_what_to_do() -> None:
    """As in a notebook."""
    with pytest.raises(UsageError, match=r"use `await agent\.ask"):
        agent_of().ask_sync("Chile?")


def test_loops_one_after_another() -> None:
    """Concurrent questions in one loop, then in the next: nothing is bound to the first."""

    async def both(agent: Agent) -> list[str]:
        async with agent:
            answers = await asyncio.gather(agent.ask("Chile?"), agent.ask("Peru?"))
            return [answer.text for answer in answers]

    agent = Agent([population, Country()], runtime=Chat())
    for _ in range(2):
        assert asyncio.run(both(agent)) == ["Chile it is", "Peru it is"]


def test_ask_sync_from_two_threads() -> None:
    """They take turns: connections belong to one thread's loop at a time."""
    source = Country(start_seconds=0.05)
    agent = Agent([population, source], runtime=Chat())
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(agent.ask_sync, ["Chile?", "Peru?"], timeout=20))
    assert [answer.text for answer in answers] == ["Chile it is", "Peru it is"]
    assert (source.started, source.stopped) == (2, 2)


# run


async def test_run_gives_every_event_as_it_happens() -> None:
    """From RunStarted to RunFinished; afterwards the answer is there."""
    async with agent_of(PLAN, ANSWER).run("Chile or Peru?", run_id="mine") as run:
        events = [event async for event in run]
        assert run.answer.text == ANSWER
    assert events[0] == RunStarted("mine", "Chile or Peru?")
    assert isinstance(events[-1], RunFinished)
    assert "".join(e.text for e in events if isinstance(e, JoinText)) == ANSWER
    assert run.answer.run_id == "mine"


async def test_run_can_be_watched_by_several() -> None:
    """Each sees every event; so does who comes late."""
    async with agent_of(PLAN, ANSWER).run("Chile or Peru?") as run:

        async def watch() -> list[Any]:
            return [event async for event in run]

        first, second = await asyncio.gather(watch(), watch())
    assert first == second == await watch()


async def test_run_without_watching() -> None:
    """`wait` lets it end; before that there is no answer."""
    async with agent_of(PLAN, ANSWER).run("Chile or Peru?") as run:
        with pytest.raises(UsageError, match=r"await run\.wait"):
            _ = run.answer
        assert (await run.wait()).text == ANSWER


async def test_leaving_early_cancels() -> None:
    """No task is left; the answer says cancelled and carries what was found."""
    before = asyncio.all_tasks()
    plan = '1. population(country="Chile")\n2. hang()\njoin()'
    async with agent_of(plan).run("?") as run:
        async for event in run:
            if isinstance(event, TaskDone):
                break
    assert asyncio.all_tasks() == before
    with pytest.raises(RunFailed, match="cancelled") as raised:
        _ = run.answer
    assert isinstance(raised.value.answer, Answer)
    assert raised.value.answer.outcomes == {1: Ok(19)}
    assert isinstance([event async for event in run][-1], RunFinished)


async def test_leaving_while_it_opens_cancels_too() -> None:
    """A source of tools that takes long to start: the run ends, and so does who waits for it."""
    source = Country(start_seconds=60)
    agent = Agent([source], runtime=Chat())
    async with agent.run("Chile?") as run:
        await asyncio.sleep(0.01)
    with pytest.raises(RunFailed, match="cancelled"):
        await asyncio.wait_for(run.wait(), 1)
    assert (source.started, source.stopped) == (0, 1)


async def test_an_error_in_the_block_reaches_the_caller() -> None:
    """As it is, and the run is cancelled."""
    before = asyncio.all_tasks()

    async def leave() -> None:
        async with agent_of("1. hang()\njoin()").run("?"):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await leave()
    assert asyncio.all_tasks() == before


async def test_cancelling_ask_leaves_nothing() -> None:
    """At whatever moment it comes."""
    before = asyncio.all_tasks()
    for turns in range(1, 60, 3):
        asked = asyncio.create_task(agent_of(PLAN, ANSWER).ask("Chile or Peru?"))
        for _ in range(turns):
            await asyncio.sleep(0)
        if asked.done():
            break
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert asyncio.all_tasks() == before
    assert turns > 10


# Replanning


async def test_replanning_goes_on_where_it_stopped() -> None:
    """Numbers continue, old results stay usable, tokens add up."""
    texts = ['1. population(country="Chile")', "Replan: Peru", '2. population("Peru")', ANSWER]
    runtime = ScriptedRuntime(texts)
    answer = await Agent([population], runtime=runtime).ask("Chile or Peru?")
    assert (answer.rounds, answer.outcomes, answer.text) == (2, {1: Ok(19), 2: Ok(33)}, ANSWER)
    assert answer.usage.calls == 4
    asked = runtime.requests[2].messages[-1].content
    assert '$1: population(country="Chile") = 19' in asked
    assert "Peru" in asked
    assert "from 2 on" in asked


@pytest.mark.parametrize("extended", [False, True])
async def test_a_plan_that_a_failure_asks_for_is_told_what_still_runs(extended: bool) -> None:
    """As running, with what waits for it; what the failure keeps from running is told as such.
    The plan may change what runs, and is told how with ``extended_plans``."""

    @tool
    async def double(number: int) -> int:
        """Double a number."""
        return 2 * number

    first = '1. population("Mars")\n2. double($1)\n3. hang()\n4. double($3)\njoin()'
    texts = [first, 'replace($3, population("Peru"))\njoin()', "Answer: 66 [4]"]
    runtime = ScriptedRuntime(texts)
    tools = [population, hang, double]
    agent = Agent(tools, runtime=runtime, replan_early=True, extended_plans=extended)
    answer = await agent.ask("?")
    assert (answer.outcomes[3], answer.outcomes[4]) == (Ok(33), Ok(66))
    asked = runtime.requests[1].messages[-1].content
    assert (
        "Failed, without a result; do not repeat these:\n"
        "$1: population(country=\"Mars\") failed: KeyError: 'Mars'\n"
        "$2: double(number=$1) skipped, because call 1 has no value\n\n"
        "Still running, usable as $3, $4; do not plan these again:\n"
        "$3: hang()\n"
        "$4: double(number=$3) waits for $3\n\n" in asked
    )
    assert "Done already" not in asked
    assert ("cancel($3)" in asked) is extended


async def test_a_result_of_an_earlier_round_can_be_referred_to() -> None:
    """By its number."""

    @tool
    async def double(number: int) -> int:
        """Double a number."""
        return 2 * number

    texts = ['1. population("Chile")', "Replan: twice", "2. double($1)", "Answer: 38 [2]"]
    answer = await Agent([population, double], runtime=ScriptedRuntime(texts)).ask("?")
    assert answer.outcomes[2] == Ok(38)
    assert answer.unsupported == ()


async def test_replans_are_bounded() -> None:
    """The last round may not ask again; a model that does is answered for."""
    texts = ["join()", "Replan: a", "join()", "Replan: b", "join()", "Replan: c"]
    answer = await agent_of(*texts).ask("?")
    assert (answer.rounds, answer.text) == (3, "No answer was found: c")
    answer = await agent_of("join()", "Replan: a", max_replans=0).ask("?")
    assert (answer.rounds, answer.text) == (1, "No answer was found: a")


async def test_tasks_are_counted_over_all_rounds() -> None:
    """Replanning is no way around max_tasks."""
    texts = ['1. population("Chile")', "Replan: Peru", '2. population("Peru")', "x"]
    answer = await agent_of(*texts, max_tasks=1).ask("?")
    assert answer.outcomes[2] == Failed("the plan has more than max_tasks=1 tasks", "plan")


# What it holds


class Country:
    """A source with one tool, counted."""

    def __init__(self, start_seconds: float = 0.0, error: Exception | None = None) -> None:
        self.started = self.stopped = 0
        self._seconds = start_seconds
        self.error = error

    async def start(self) -> Sequence[Tool]:
        await asyncio.sleep(self._seconds)
        if self.error is not None:
            raise self.error
        self.started += 1

        @tool
        async def capital(country: str) -> str:
            """Capital of a country."""
            return "Lima"

        return [capital]

    async def stop(self) -> None:
        self.stopped += 1


async def test_sources_start_once_and_stop() -> None:
    """For all questions together, those at the same time included; a closed agent opens again."""
    source = Country(start_seconds=0.01)
    assert isinstance(source, ToolSource)
    async with Agent([population, source], runtime=Chat()) as agent:
        await asyncio.gather(agent.ask("Chile?"), agent.ask("Peru?"))
        await agent.ask("Chile?")
        assert list(await agent.tools()) == ["population", "capital"]
        assert (source.started, source.stopped) == (1, 0)
    assert (source.started, source.stopped) == (1, 1)
    await agent.ask("Chile?")
    assert source.started == 2
    await agent.aclose()
    await agent.aclose()
    assert source.stopped == 2


async def test_a_run_begins_with_what_its_sources_say_of_themselves(tmp_path: Path) -> None:
    """What is simulated stands in the run's first event, and so in its record."""
    web = Country()
    web.banner = "mini-web: each reply delayed 80 ms"  # type: ignore[attr-defined]
    async with (
        Agent([population, web], runtime=Chat(), runs=tmp_path) as agent,
        agent.run("Chile?", run_id="one") as run,
    ):
        await run.wait()
    first = next(read_record(tmp_path / "one" / "events.jsonl").events)
    assert first == RunStarted("one", "Chile?", "mini-web: each reply delayed 80 ms")


async def test_what_opened_is_closed_if_the_next_does_not_open() -> None:
    """The second source fails: the first is stopped, and the next question starts both anew."""
    good, bad = Country(), Country(error=ConnectionError("no server"))
    agent = Agent([good, bad], runtime=Chat())
    with pytest.raises(ConnectionError, match="no server"):
        await agent.ask("Chile?")
    assert (good.started, good.stopped) == (1, 1)
    good.error = ConnectionError("gone as well")
    with pytest.raises(ConnectionError, match="gone as well"):
        await agent.ask("Chile?")
    assert good.started == 1


async def test_two_tools_of_one_name_are_refused() -> None:
    """Whether given or from a source; what was opened is closed."""
    with pytest.raises(UsageError, match="two tools are named 'population'"):
        Agent([population, population], runtime=Chat())
    first, second = Country(), Country()
    with pytest.raises(UsageError, match="two tools are named 'capital'"):
        await Agent([first, second], runtime=Chat()).ask("Chile?")
    assert (first.stopped, second.stopped) == (1, 1)


async def test_tools_are_closed_with_the_agent() -> None:
    """What a tool holds open is released."""
    closed: list[str] = []

    async def close() -> None:
        closed.append("closed")

    held = Tool(
        "held", "", population.parameters, population.call, population.validate, close=close
    )
    async with Agent([held], runtime=Chat()) as agent:
        await agent.tools()
        assert closed == []
    assert closed == ["closed"]


# Wrong arguments


@pytest.mark.parametrize("model", [{}, {"model": "http://x/v1", "runtime": Chat()}])
def test_exactly_one_model(model: dict[str, Any]) -> None:
    """Neither and both are refused, with what to write."""
    with pytest.raises(UsageError, match="either model="):
        Agent([population], **model)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_plan_tokens", 0),
        ("max_plan_lines", 0),
        ("max_answer_tokens", 0),
        ("max_tasks", 0),
        ("max_replans", -1),
        ("concurrency", 0),
        ("max_result_bytes", 0),
        ("timeout", 0),
        ("timeout", -1.5),
        ("timeout", float("nan")),
    ],
)
def test_limits_out_of_range_are_refused(option: str, value: float) -> None:
    """By name and value, when the agent is made."""
    with pytest.raises(UsageError, match=rf"{option} must be .*{value!r}"):
        agent_of(**{option: value})


async def test_grammar_without_a_server_that_has_it() -> None:
    """``grammar=True`` insists, and the run says why it cannot."""
    with pytest.raises(RunFailed, match="grammar=True, but this model server cannot"):
        await agent_of(PLAN, grammar=True).ask("Chile?")


def test_a_file_runs_only_the_code_that_is_allowed(tmp_path: Path) -> None:
    """``from_yaml`` with ``allow_modules``; without, the message says how."""
    code = "async def people(country: str) -> int:\n    return 19\n"
    (tmp_path / "allowed_people.py").write_text(code)
    file = tmp_path / "agent.yaml"
    file.write_text("version: 1\ntools: [{python: 'allowed_people:people'}]\n")
    runtime = ScriptedRuntime(['1. people(country="Chile")', "Chile has 19 [1]."])
    with pytest.raises(ConfigError, match=r"Agent\.from_yaml\(path, allow_modules=\['allowed_"):
        Agent.from_yaml(file, runtime=runtime)
    agent = Agent.from_yaml(file, allow_modules=["allowed_people"], runtime=runtime)
    assert agent.ask_sync("Chile?").outcomes == {1: Ok(19)}


async def test_events_tell_the_rounds() -> None:
    """Readers can group by them."""
    texts = ["join()", "Replan: a", "join()", "x"]
    async with agent_of(*texts).run("?") as run:
        rounds = [event.round async for event in run if isinstance(event, PlanStarted)]
    assert rounds == [1, 2]


@pytest.mark.parametrize("run_id", ["../above", "a/b", "", ".hidden", "a" * 200])
async def test_a_run_id_that_is_no_folder_name_is_refused(run_id: str) -> None:
    """It names the run's folder, and must not lead out of ``runs``."""
    agent = Agent([], runtime=ScriptedRuntime(["join()", "42"]))
    with pytest.raises(UsageError, match="cannot name a folder"):
        await agent.ask("What?", run_id=run_id)


def test_an_approver_that_cannot_be_called_is_refused_at_once() -> None:
    """Not in the middle of a run, as one more refused call."""
    with pytest.raises(UsageError, match=r"approve must be a function .* got True"):
        Agent([], runtime=ScriptedRuntime([]), approve=True)  # type: ignore[arg-type]
