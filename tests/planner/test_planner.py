"""The planner over a scripted model: what becomes of a grammar that the server refuses."""

from __future__ import annotations

import pytest

from agentpar.errors import GrammarRefused
from agentpar.events import Event, PlanEnded, PlanFault, TaskPlanned
from agentpar.planner.planner import Planner, PlanRequest
from agentpar.runtime.scripted import ScriptedRuntime
from agentpar.tools.calc import calc

PLAN = '1. calc(expression="1 + 1")\n2. clac(expression="1")\njoin()'
REFUSAL = GrammarRefused("Invalid grammar specification")


class Clock:
    def now(self) -> float:
        return 0.0


def refusing() -> ScriptedRuntime:
    return ScriptedRuntime([REFUSAL, PLAN, PLAN], capabilities=["grammar"])


async def test_a_refused_grammar_is_told_and_planned_without() -> None:
    """The plan is asked for again without the grammar, and the parser checks its lines."""
    runtime, events = refusing(), list[Event]()
    planner = Planner(runtime, {"calc": calc})
    await planner.plan(PlanRequest("What is 1 + 1?"), events.append, Clock())
    first, second = runtime.requests
    assert first.grammar
    assert second.grammar is None
    assert second.messages == first.messages
    told, wrong = (event.message for event in events if isinstance(event, PlanFault))
    assert told == "the plan was written without a grammar: Invalid grammar specification"
    assert "'clac'" in wrong
    assert [event.task.id for event in events if isinstance(event, TaskPlanned)] == [1]
    assert [type(event) for event in events].count(PlanEnded) == 1


async def test_a_refusal_is_remembered() -> None:
    """The next round does not send the grammar again."""
    runtime, events = refusing(), list[Event]()
    planner = Planner(runtime, {"calc": calc})
    for round in (1, 2):
        await planner.plan(PlanRequest("What is 1 + 1?", round), events.append, Clock())
    assert [request.grammar is None for request in runtime.requests] == [False, True, True]


async def test_a_grammar_that_is_insisted_on_is_not_dropped() -> None:
    """With ``grammar=True`` the refusal is the caller's to know."""
    planner = Planner(refusing(), {"calc": calc}, grammar=True)
    with pytest.raises(GrammarRefused):
        await planner.plan(PlanRequest("What is 1 + 1?"), lambda event: None, Clock())
