"""The planner: tasks leave while it writes, what cannot be used is told, and when it stops."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from agentpar import tool
from agentpar.errors import ModelServerError, UsageError
from agentpar.events import (
    Event,
    ModelUsed,
    PlanEnded,
    PlanFault,
    PlanStarted,
    PlanText,
    TaskCancelled,
    TaskPlanned,
    TaskReplaced,
    Usage,
)
from agentpar.plan import Failed, Ok, Outcome, Ref, Task
from agentpar.planner.planner import Planner, PlanRequest, plan_problems, usable_examples
from agentpar.planner.prompts import EXAMPLES, EXTENDED_EXAMPLES, Example
from agentpar.ports import ModelRequest
from agentpar.runtime.scripted import ScriptedRuntime
from agentpar.tools.base import Tool


@tool
async def population(country: str) -> int:
    """Population of a country."""
    return 19


@tool
async def add(a: float, b: float) -> float:
    """Add."""
    return a + b


@tool(effect="write")
async def send(text: int) -> int:
    """Send."""
    return text


TOOLS: Mapping[str, Tool] = {"population": population, "add": add}


class Clock:
    """Seconds that pass when they are read."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        self.seconds += 1
        return self.seconds


async def plan(
    text: str | Exception,
    request: PlanRequest | None = None,
    *,
    chunk: int = 5,
    **options: Any,
) -> list[Event]:
    events: list[Event] = []
    planner = Planner(ScriptedRuntime([text], chunk=chunk), TOOLS, **options)
    await planner.plan(request or PlanRequest("Chile?"), events.append, Clock())
    return events


def tasks(events: list[Event]) -> list[Task]:
    return [event.task for event in events if isinstance(event, TaskPlanned)]


def faults(events: list[Event]) -> list[PlanFault]:
    return [event for event in events if isinstance(event, PlanFault)]


async def test_a_task_leaves_at_its_closing_bracket() -> None:
    """Before the model has written another letter."""
    events = await plan('1. population("Chile")\n2. population("Peru")\njoin()', chunk=1)
    at = next(n for n, event in enumerate(events) if isinstance(event, TaskPlanned))
    written = "".join(event.text for event in events[:at] if isinstance(event, PlanText))
    assert written == '1. population("Chile")'
    assert isinstance(events[0], PlanStarted)
    assert isinstance(events[-2], ModelUsed)
    assert isinstance(events[-1], PlanEnded)


async def test_tasks_are_bound_to_their_tools() -> None:
    """Places become names, references become needs."""
    events = await plan('1. population("Chile")\nThought: twice\n2. add($1, b=$1)')
    assert tasks(events)[1] == Task(2, "add", {"a": Ref(1), "b": Ref(1)}, (1,), "twice")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('1. poplation("Chile")', "did you mean 'population'"),
        ('1. population("Chile", "Peru")', "takes 1 arguments"),
        ('1. population(city="Lima")', "no argument 'city'"),
        ("1. population()", "needs 'country'"),
        ('1. add("one", 2)', "argument 'a'"),
        ("1. add($7, 2)", "which is not planned before it"),
        ("1. add($1, 2)", "refers to itself"),
        ("1. add(1,", "closed"),
    ],
)
async def test_what_cannot_be_used_is_told(line: str, message: str) -> None:
    """With its number and its text; the next line is not lost."""
    events = await plan(f'{line}\n2. population("Peru")\njoin()')
    (fault,) = faults(events)
    assert message in fault.message
    assert fault.task_id == 1
    assert fault.line
    assert [task.id for task in tasks(events)] == [2]


async def test_a_faulty_line_keeps_its_number() -> None:
    """Who refers to it is skipped because of it, not refused."""
    events = await plan("1. unknown()\n2. add($1, 2)")
    assert [task.needs for task in tasks(events)] == [(1,)]


async def test_a_number_used_twice_is_told_without_settling_the_first() -> None:
    """The fault has no number, so the first task stands."""
    events = await plan('1. population("Chile")\n1. population("Peru")')
    assert len(tasks(events)) == 1
    (fault,) = faults(events)
    assert fault.task_id is None
    assert "task 1 already" in fault.message


@pytest.mark.parametrize("text", ["", "\n\n", "join()", "<END_OF_PLAN>"])
async def test_an_empty_plan_is_a_plan(text: str) -> None:
    """No task, no fault, an end."""
    events = await plan(text)
    assert tasks(events) == faults(events) == []
    assert isinstance(events[-1], PlanEnded)


async def test_prose_is_told() -> None:
    """Text that is no plan at all."""
    assert "I cannot" in faults(await plan("I cannot plan this."))[0].line


async def test_nothing_is_read_after_join() -> None:
    """A model that writes on adds no tasks."""
    events = await plan('1. population("Chile")\njoin()\n2. population("Peru")', chunk=1000)
    assert [task.id for task in tasks(events)] == [1]


async def test_the_stream_is_closed_at_join() -> None:
    """Closing it is what makes a server stop writing."""
    closed: list[bool] = []

    class Endless(ScriptedRuntime):
        async def stream(self, request: ModelRequest) -> AsyncGenerator[str | Usage, None]:
            try:
                yield "join()\n"
                while True:
                    yield "and more "
            finally:
                closed.append(True)

    events: list[Event] = []
    await Planner(Endless([]), TOOLS).plan(PlanRequest("?"), events.append, Clock())
    assert closed == [True]
    assert isinstance(events[-1], PlanEnded)


async def test_a_broken_server_keeps_what_was_planned() -> None:
    """The error comes out; the tasks before it have been told."""

    class Breaks(ScriptedRuntime):
        async def stream(self, request: ModelRequest) -> AsyncGenerator[str | Usage, None]:
            yield '1. population("Chile")\n2. pop'
            raise ModelServerError("gone")

    events: list[Event] = []
    with pytest.raises(ModelServerError, match="gone"):
        await Planner(Breaks([]), TOOLS).plan(PlanRequest("?"), events.append, Clock())
    assert [task.id for task in tasks(events)] == [1]
    assert not [event for event in events if isinstance(event, PlanEnded)]


async def test_tokens_are_counted() -> None:
    """As the server says; the server ends the text before join()."""
    events = await plan('1. population("Chile")\njoin()')
    used = next(event for event in events if isinstance(event, ModelUsed))
    assert (used.purpose, used.usage.completion_tokens, used.usage.calls) == ("plan", 2, 1)
    assert 0 < used.first_token < used.seconds


# Later rounds


async def test_a_later_round_may_use_earlier_results() -> None:
    """Their numbers are known, and taken."""
    past = {1: Task.of(1, "population", country="Chile")}
    request = PlanRequest("Chile?", 2, 3, "Peru", past, {1: Ok(19), 2: Failed("bad line", "plan")})
    runtime = ScriptedRuntime(["3. add($1, $2)\n1. add(1, 1)"])
    events: list[Event] = []
    await Planner(runtime, TOOLS).plan(request, events.append, Clock())
    assert [task.needs for task in tasks(events)] == [(1, 2)]
    assert "task 1 already" in faults(events)[0].message
    asked = runtime.requests[0].messages[-1].content
    assert "Still missing: Peru" in asked
    assert '$1: population(country="Chile") = 19' in asked


# Grammar


async def test_a_grammar_where_the_server_has_one() -> None:
    """By default; False never, True or an error."""
    for capable, wanted, used in (
        (True, None, True),
        (True, True, True),
        (True, False, False),
        (False, None, False),
        (False, False, False),
    ):
        runtime = ScriptedRuntime(["join()"], capabilities=["grammar"] if capable else [])
        planner = Planner(runtime, TOOLS, grammar=wanted)
        await planner.plan(PlanRequest("?"), lambda event: None, Clock())
        assert (runtime.requests[0].grammar is not None) is used


async def test_insisting_on_a_grammar_in_vain() -> None:
    """Says what to do."""
    with pytest.raises(UsageError, match="use vLLM, or leave grammar out"):
        await plan("join()", grammar=True)


async def test_settings_reach_the_model() -> None:
    """Temperature, seed and the bound on tokens."""
    runtime = ScriptedRuntime(["join()"])
    planner = Planner(
        runtime, TOOLS, temperature=0.7, seed=3, max_tokens=99, instructions="Be quick."
    )
    await planner.plan(PlanRequest("Chile?"), lambda event: None, Clock())
    (request,) = runtime.requests
    assert (request.temperature, request.seed, request.max_tokens) == (0.7, 3, 99)
    assert "Be quick." in request.messages[0].content
    assert "population(country: string)" in request.messages[0].content


# Examples


def test_examples_are_those_that_the_tools_can_run() -> None:
    """An agent without web tools is shown none that use them."""
    assert usable_examples(TOOLS) == ()
    for example in EXAMPLES:
        assert plan_problems(example.plan, TOOLS)


def test_every_built_in_example_runs_with_the_built_in_tools() -> None:
    """A tool that changes its signature takes its examples with it; none may go unnoticed."""
    from agentpar.tools.calc import calc
    from agentpar.tools.lookup import web_lookup
    from agentpar.tools.search import web_search
    from agentpar.tools.web import web_fetch

    search, fetch = web_search(url="http://localhost:8888"), web_fetch()
    tools = (calc, search, fetch, web_lookup(search=search, fetch=fetch))
    named = {made.name: made for made in tools}
    assert usable_examples(named) == EXAMPLES
    assert usable_examples(named, extended=True) == (*EXTENDED_EXAMPLES, *EXAMPLES)


async def test_own_examples_are_shown() -> None:
    """Question and plan, as an exchange."""
    runtime = ScriptedRuntime(["join()"])
    own = Example("How many in Peru?", '1. population(country="Peru")\njoin()')
    planner = Planner(runtime, TOOLS, examples=[own])
    await planner.plan(PlanRequest("Chile?"), lambda event: None, Clock())
    contents = [message.content for message in runtime.requests[0].messages]
    assert contents[1:3] == ["Question: How many in Peru?", own.plan]


def test_problems_of_a_plan() -> None:
    """One message for each line that cannot run."""
    assert plan_problems('1. population("Chile")\n2. add($1, 2)\njoin()\nmore', TOOLS) == []
    problems = plan_problems("1. unknown()\nprose\n2. add(1)\n", TOOLS)
    assert len(problems) == 3


# Plans that are cut off


class Cut(ScriptedRuntime):
    """A server that stops at max_tokens."""

    async def stream(self, request: ModelRequest) -> AsyncGenerator[str | Usage, None]:
        async for piece in super().stream(request):
            yield Usage(calls=1, cut=True) if isinstance(piece, Usage) else piece


@pytest.mark.parametrize("chunk", [3, 1000])
async def test_a_plan_that_is_cut_off_is_told(chunk: int) -> None:
    """Its whole lines stand, and the joiner hears that there would have been more."""
    events: list[Event] = []
    planner = Planner(Cut(['1. population("Chile")\n2. popul'], chunk=chunk), TOOLS, max_tokens=9)
    await planner.plan(PlanRequest("Chile?"), events.append, Clock())
    assert [task.id for task in tasks(events)] == [1]
    assert faults(events)[-1].message == "the plan was cut off after 9 tokens (max_plan_tokens)"
    assert isinstance(events[-1], PlanEnded)


async def test_a_plan_whose_last_token_is_its_end_is_whole() -> None:
    """join() was written: nothing is missing, whatever the server says."""
    events: list[Event] = []
    runtime = Cut(['1. population("Chile")\njoin()'], capabilities=["grammar"])
    await Planner(runtime, TOOLS).plan(PlanRequest("Chile?"), events.append, Clock())
    assert faults(events) == []


async def test_the_lines_of_a_grammar_are_bounded_as_asked() -> None:
    """More lines, a longer grammar."""
    grammars = []
    for lines in (2, 40):
        runtime = ScriptedRuntime(["join()"], capabilities=["grammar"])
        planner = Planner(runtime, TOOLS, max_lines=lines)
        await planner.plan(PlanRequest("?"), lambda event: None, Clock())
        grammars.append(runtime.requests[0].grammar or "")
    assert ['"40. ' in grammar for grammar in grammars] == [False, True]


# A plan that broke off

LINES = (
    '1. population("Chile")\n2. poplation("Peru")\n3. population("Peru")\n4. add($1, $3)\njoin()'
)


@pytest.mark.parametrize("written", range(6))
async def test_a_plan_that_broke_off_goes_on_where_it_stood(written: int) -> None:
    """Asked for again in the same words, only what is new is told, faults included."""
    whole = [event for event in await plan(LINES) if isinstance(event, TaskPlanned | PlanFault)]
    standing = tuple(whole[:written])
    events = await plan(LINES, PlanRequest("Chile?", standing=standing))
    told = [event for event in events if isinstance(event, TaskPlanned | PlanFault)]
    assert [replace(event, at=0) for event in told] == [
        replace(event, at=0) for event in whole[written:]
    ]


@pytest.mark.parametrize(
    ("stood", "text"),
    [
        (("Peru",), LINES),
        (("Chile", "Peru"), '1. population("Chile")\njoin()'),
        (("Chile", "Peru"), '1. population("Chile")\n'),
    ],
    ids=["another line", "fewer lines", "cut off"],
)
async def test_a_plan_that_comes_out_differently_is_told_no_further(
    stood: tuple[str, ...], text: str
) -> None:
    """Nothing of it is new, and it does not end: whoever asked asks for another behind it."""
    lines = [
        TaskPlanned(1, Task.of(n, "population", country=name)) for n, name in enumerate(stood, 1)
    ]
    events: list[Event] = []
    request = PlanRequest("Chile?", standing=tuple(lines))
    assert not await Planner(ScriptedRuntime([text]), TOOLS).plan(request, events.append, Clock())
    assert (tasks(events), faults(events)) == ([], [])
    assert not any(isinstance(event, PlanEnded) for event in events)


async def test_a_plan_that_is_made_anew_repeats_no_write() -> None:
    """A call that stands and has consequences is a fault; one that only reads is not."""
    standing = {
        1: Task.of(1, "population", country="Chile"),
        2: Task.of(2, "send", text=Ref(1)),
    }
    events: list[Event] = []
    text = '3. population("Chile")\n4. send($1)\n5. send($3)\njoin()'
    planner = Planner(ScriptedRuntime([text]), {**TOOLS, "send": send})
    request = PlanRequest("?", first_id=3, tasks=standing, anew=True)
    assert await planner.plan(request, events.append, Clock())
    assert [task.id for task in tasks(events)] == [3, 5]
    (fault,) = faults(events)
    assert "this very call stands already, as task 2" in fault.message
    assert events[0] == PlanStarted(1, events[0].at, anew=True)


async def test_a_reference_that_cannot_fit_is_a_fault_of_the_plan() -> None:
    """Told with its line before the call it refers to has run; the rest of the plan stands."""
    events = await plan('1. population("Chile")\n2. add($1.people, 1)\n3. add($1, 1)\njoin()')
    [fault] = [event for event in events if isinstance(event, PlanFault)]
    assert fault.message == ("add: $1.people: $1 (population) is an integer; did you mean $1?")
    assert fault.task_id == 2
    assert [task.id for task in tasks(events)] == [1, 3]


async def test_references_to_an_earlier_round_are_checked_too() -> None:
    """The tasks of that round say which tool made the value."""
    request = PlanRequest("?", 2, 2, "more", {1: Task(1, "population")}, {1: Ok(19)})
    events = await plan("2. add($1[0], 1)\njoin()", request)
    assert [e.message for e in events if isinstance(e, PlanFault)] == [
        "add: $1[0]: $1 (population) is an integer; did you mean $1?"
    ]


class Keeps(ScriptedRuntime):
    """Takes a grammar, and keeps what it was asked in ``asked``."""

    def __init__(self, texts: list[str], asked: list[ModelRequest]) -> None:
        super().__init__(texts)
        self._asked = asked

    async def capabilities(self) -> Any:
        return frozenset({"grammar"})

    def stream(self, request: ModelRequest) -> AsyncGenerator[str | Usage, None]:
        self._asked.append(request)
        return super().stream(request)


async def asked_while_a_call_runs(surgery: bool) -> ModelRequest:
    """What the model is asked after a failure, while call 2 still runs."""
    known = {1: Task(1, "population"), 2: Task(2, "population"), 3: Task(3, "population")}
    outcomes: dict[int, Outcome] = {1: Ok(19), 3: Failed("gone")}
    request = PlanRequest("?", 2, 4, "call 3 failed: gone", known, outcomes, ended={1, 3})
    asked: list[ModelRequest] = []
    planner = Planner(Keeps(["join()"], asked), TOOLS, surgery=surgery)
    await planner.plan(request, [].append, Clock())
    return asked[0]


async def test_changes_reach_prompt_and_grammar() -> None:
    """One option for both, and both name only what still runs."""
    for surgery in (False, True):
        asked = await asked_while_a_call_runs(surgery)
        assert ("cancel($2)" in asked.messages[-1].content) is surgery
        changes = [line for line in str(asked.grammar).splitlines() if '"cancel("' in line]
        assert bool(changes) is surgery
        assert all('("" [2])' in line for line in changes)


async def test_what_still_runs_may_be_referred_to() -> None:
    """Under the grammar, too: its value will come. What has failed may not."""
    asked = await asked_while_a_call_runs(False)
    (reference,) = (line for line in str(asked.grammar).splitlines() if '"$" ("" [12])' in line)
    assert reference.startswith("ref")


async def test_the_extended_language_reaches_prompt_and_grammar() -> None:
    """One option for both; a plan may use it in any case."""
    text = '1. population("a")\n2. add(any($1, $1), 1)\njoin()'
    asked: list[ModelRequest] = []
    for extended in (False, True):
        events: list[Event] = []
        planner = Planner(Keeps([text], asked), TOOLS, extended=extended)
        await planner.plan(PlanRequest("?"), events.append, Clock())
        assert [task.id for task in tasks(events)] == [1, 2]
    plain, more = asked
    assert "any(" not in f"{plain.messages[0].content}{plain.grammar}"
    assert "any(" in more.messages[0].content
    assert "any(" in str(more.grammar)


async def test_a_plan_may_change_what_has_not_ended() -> None:
    """What has ended stands, and the line that would change it is told."""
    known = {1: Task(1, "population"), 2: Task(2, "population"), 3: Task(3, "population")}
    request = PlanRequest("?", 2, 4, "more", known, {3: Ok(19)}, ended={3})
    text = "cancel($1)\nreplace($2, add(1, 2))\ncancel($3)\nreplace($9, add(1, 2))\njoin()"
    events = await plan(text, request)
    changes = [event for event in events if isinstance(event, TaskCancelled | TaskReplaced)]
    assert [replace(event, at=0.0) for event in changes] == [
        TaskCancelled(1, "the plan of round 2 does without it"),
        TaskReplaced(2, Task.of(2, "add", a=1, b=2)),
    ]
    assert [(fault.line, fault.message) for fault in faults(events)] == [
        ("cancel($3)", "cancel: $3 has ended already; its result stands"),
        ("replace($9, add(1, 2))", "replace: there is no call 9"),
    ]
