"""What went wrong in the reference planner and executor, one claim each, through the public door.

Each docstring names the fault as it was reproduced there; each test is what happens here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from agentpar import Agent, Answer, Failed, ModelServerError, Ok, RunFailed, ScriptedRuntime, tool
from agentpar.events import TaskDone, TaskPlanned, TaskStarted
from agentpar.planner.parser import PlanParser

SEEN: list[Any] = []


@tool(idempotent=False)
async def show(value: Any = None, more: Any = None) -> Any:
    """Keep what came, and give it back."""
    SEEN.append(value)
    return value


@tool
async def add(a: float, b: float) -> float:
    """Add."""
    return a + b


@tool
async def search(query: str) -> str:
    """Search."""
    return f"found {query}"


@tool
async def broken() -> str:
    """Raise."""
    raise ValueError("the tool broke")


@tool(idempotent=False)
async def nap(seconds: float) -> str:
    """Sleep."""
    await asyncio.sleep(seconds)
    return "woke"


TOOLS = [show, add, search, broken, nap]


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    SEEN.clear()


async def ask(*texts: str | Exception, chunk: int = 8, **options: Any) -> Answer:
    """One question; the joiner's text is appended where it is not given."""
    script = [*texts, "done"] if len(texts) == 1 else list(texts)
    async with asyncio.timeout(10):
        runtime = ScriptedRuntime(script, chunk=chunk)
        return await Agent(TOOLS, runtime=runtime, **options).ask("?")


async def test_a_raising_tool_does_not_hang_the_run() -> None:
    """A tool that raised hung the run for ever."""
    answer = await ask("1. broken()\n2. show(1)\njoin()")
    assert answer.outcomes == {1: Failed("ValueError: the tool broke"), 2: Ok(1)}


async def test_a_raising_planner_does_not_hang_the_run() -> None:
    """A planner that raised hung the run for ever."""
    with pytest.raises(RunFailed, match="the server is gone"):
        await ask(ModelServerError("the server is gone"))


async def test_a_ready_task_does_not_wait_for_the_next_line() -> None:
    """A ready task waited for the next plan line: ready at 0.10 s, started at 1.00 s."""
    plan = "1. show(1)\n2. show(2)\n" + "#" * 60 + "\njoin()"
    runtime = ScriptedRuntime([plan, "done"], chunk=11, delay=0.05)
    async with Agent(TOOLS, runtime=runtime).run("?") as run:
        events = [event async for event in run]
    planned = {e.task.id: e.at for e in events if isinstance(e, TaskPlanned)}
    started = {e.task_id: e.at for e in events if isinstance(e, TaskStarted)}
    assert started[1] < planned[2]
    assert all(started[id] - planned[id] < 0.04 for id in (1, 2))


async def test_nothing_is_polled() -> None:
    """The scheduler polled every 10 ms. A chain of 50 calls takes 50 polls there, 0.5 s."""
    chain = "".join(f"{id}. show(${id - 1})\n" for id in range(2, 51))
    start = time.perf_counter()
    await ask(f"1. show(1)\n{chain}", chunk=100_000)
    assert len(SEEN) == 50
    assert time.perf_counter() - start < 0.25


async def test_gaps_in_the_numbers_are_fine() -> None:
    """A gap in the ids raised KeyError."""
    answer = await ask("2. show(1)\n5. add($2, 2)\n9. show($5)\njoin()")
    assert answer.outcomes == {2: Ok(1), 5: Ok(3), 9: Ok(3)}


async def test_keyword_arguments_are_arguments() -> None:
    """``search(query="x")`` passed the literal text ``query="x"``."""
    assert (await ask('1. search(query="x")')).outcomes == {1: Ok("found x")}


async def test_two_references_are_two_arguments() -> None:
    """``add($1, $2)`` became one string."""
    assert (await ask("1. show(2)\n2. show(3)\n3. add($1, $2)")).outcomes[3] == Ok(5)


@pytest.mark.parametrize("literal", ["1", "2.5", "true", "null", "[1, 2]"])
async def test_literals_keep_their_type(literal: str) -> None:
    """Numbers became text."""
    await ask(f"1. show({literal})\n2. show($1)")
    value = {"1": 1, "2.5": 2.5, "true": True, "null": None, "[1, 2]": [1, 2]}[literal]
    assert [(type(seen), seen) for seen in SEEN] == [(type(value), value)] * 2


async def test_references_inside_dicts_and_lists_are_filled() -> None:
    """References in dict arguments were not substituted."""
    await ask('1. show(7)\n2. show({"a": $1, "b": [$1, {"c": $1}]})')
    assert SEEN[1] == {"a": 7, "b": [7, {"c": 7}]}


async def test_an_output_that_contains_a_reference_is_not_expanded() -> None:
    """Outputs containing ``$1`` were expanded again."""
    await ask('1. show("secret")\n2. show("see $1 and ${1}")\n3. show($2)\n4. show([$3])')
    assert SEEN[3] == ["see $1 and ${1}"]


async def test_money_is_no_reference() -> None:
    """``"costing $1"`` was read as a reference."""
    answer = await ask('1. show("a thing")\n2. show("costing $1")')
    assert SEEN[1] == "costing $1"
    assert answer.tasks[2].needs == ()


@pytest.mark.parametrize("newline", ["\n", "\\n"])
async def test_a_newline_in_an_argument_keeps_the_task(newline: str) -> None:
    """A newline in an argument dropped the task."""
    await ask(f'1. show("one{newline}two")\n2. show(2)')
    assert SEEN == ["one\ntwo", 2]


@pytest.mark.parametrize("chunk", [1, 7, 100_000])
async def test_chunks_of_any_size_lose_nothing(chunk: int) -> None:
    """A large stream chunk lost tasks and the join."""
    plan = "".join(f"{id}. show({id})\n" for id in range(1, 40)) + "join()\nand more"
    answer = await ask(plan, chunk=chunk)
    assert len(answer.outcomes) == 39
    assert answer.status == "answered"


async def test_brackets_in_an_answer_survive() -> None:
    """``Finish(Mission: Impossible (film))`` was cut at the first bracket."""
    answer = await ask("join()", "Finish(Mission: Impossible (film))")
    assert answer.text == "Mission: Impossible (film)"


def test_parsing_is_linear() -> None:
    """Parsing was quadratic. Four times the plan takes about four times as long, not sixteen."""

    def seconds(lines: int) -> float:
        text = "".join(f'{id}. show("{id}", more=$1)\n' for id in range(1, lines + 1))
        parser, start = PlanParser(), time.perf_counter()
        for at in range(0, len(text), 16):
            parser.feed(text[at : at + 16])
        parser.close()
        return time.perf_counter() - start

    small, large = (min(seconds(lines) for _ in range(3)) for lines in (1000, 4000))
    assert large < 9 * small


async def test_model_text_is_not_evaluated() -> None:
    """``math`` evaluated model text."""
    from agentpar.tools.calc import calc

    hostile = "().__class__.__base__.__subclasses__()"
    runtime = ScriptedRuntime([f'1. calc("{hostile}")\n2. calc("2 * 21")', "done"])
    answer = await Agent([calc], runtime=runtime).ask("?")
    assert isinstance(answer.outcomes[1], Failed)
    assert answer.outcomes[2] == Ok(42)


async def test_replanning_runs() -> None:
    """Replanning never ran."""
    answer = await ask("1. show(1)", "Replan: the second", "2. add($1, 1)", "two [2]")
    assert (answer.rounds, answer.outcomes[2], answer.text) == (2, Ok(2), "two [2]")


async def test_there_is_a_timeout() -> None:
    """No timeout: one hanging tool hung the run."""
    failed = (await ask("1. nap(60)", timeout=0.05)).outcomes[1]
    assert failed == Failed("nap gave no result within 0.05 s", "timeout")


async def test_there_is_a_limit_on_calls_at_once() -> None:
    """No limit: every ready task ran at once."""
    start = time.perf_counter()
    await ask("1. nap(0.05)\n2. nap(0.05)\n3. nap(0.05)", concurrency=1)
    assert time.perf_counter() - start > 0.15


async def test_there_is_a_limit_on_tasks() -> None:
    """No limit: a plan that went on and on was run."""
    answer = await ask("1. show(1)\n2. show(2)\n3. show(3)", max_tasks=2)
    assert SEEN == [1, 2]
    assert answer.outcomes[3] == Failed("the plan has more than max_tasks=2 tasks", "plan")


async def test_a_run_can_be_cancelled() -> None:
    """No cancel: tools ran on after their run was given up."""
    before = asyncio.all_tasks()
    asked = asyncio.create_task(ask("1. nap(60)\njoin()"))
    await asyncio.sleep(0.05)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert asyncio.all_tasks() == before


async def test_a_run_can_be_resumed_without_repeating_a_call() -> None:
    """No resume: whatever broke off began anew."""
    from agentpar.executor.commands import Execute
    from agentpar.executor.machine import Machine
    from agentpar.executor.resume import catch_up

    runtime = ScriptedRuntime(["1. show(1)\n2. show(2)\n3. add($1, $2)", "done"])
    async with Agent(TOOLS, runtime=runtime).run("?") as run:
        events = [event async for event in run]
    cut = events.index(next(e for e in events if isinstance(e, TaskStarted) and e.task_id == 2)) + 1
    assert any(isinstance(event, TaskDone) and event.task_id == 1 for event in events[:cut])
    due = catch_up(Machine(), events[:cut])
    assert [command.task.id for command in due if isinstance(command, Execute)] == [2]


@pytest.mark.parametrize("broken_call", [lambda: "1. show(", lambda: "1. shwo(1)", lambda: "???"])
async def test_a_line_that_cannot_be_read_is_told(broken_call: Callable[[], str]) -> None:
    """Lines that could not be read were dropped without a word."""
    answer = await ask(f"{broken_call()}\n2. show(2)")
    assert SEEN == [2]
    assert answer.faults
