"""The joiner: its text is the answer, only a first line ``Replan:`` is an instruction."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import pytest

from agentpar.errors import ModelServerError
from agentpar.events import (
    Answered,
    Citation,
    Event,
    JoinStarted,
    JoinText,
    ModelUsed,
    PlanFault,
    ReplanAsked,
    Source,
    Usage,
)
from agentpar.plan import Failed, Ok, Task
from agentpar.planner.joiner import Joiner, JoinRequest, answer_text, may_replan, replan_reason
from agentpar.ports import ModelRequest
from agentpar.runtime.scripted import ScriptedRuntime


class Clock:
    """Seconds that pass when they are read."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        self.seconds += 1
        return self.seconds


class Nothing:
    """A check that finds nothing to say."""

    citations: tuple[Citation, ...] = ()
    unsupported: tuple[str, ...] = ("all of it",)


async def join(text: str | Exception, *, chunk: int = 4, **request: Any) -> list[Event]:
    events: list[Event] = []
    joiner = Joiner(ScriptedRuntime([text], chunk=chunk), lambda *_: Nothing())
    await joiner.join(JoinRequest("Chile?", **request), events.append, Clock())
    return events


def shown(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, JoinText)]


async def test_the_text_is_the_answer() -> None:
    """It streams as it is written, then comes whole, checked."""
    events = await join("Chile has 19 people [1].")
    assert events[0] == JoinStarted(1, 1.0)
    assert "".join(shown(events)) == "Chile has 19 people [1]."
    assert len(shown(events)) > 3
    assert isinstance(events[-2], ModelUsed)
    last = events[-1]
    assert isinstance(last, Answered)
    assert (last.text, last.unsupported) == ("Chile has 19 people [1].", ("all of it",))


@pytest.mark.parametrize("chunk", [1, 3, 1000])
@pytest.mark.parametrize(
    "text", ["Replan: Peru", "  replan : Peru\nBecause …", "**Replan**: Peru", "REPLAN:Peru \n"]
)
async def test_replan_is_asked_and_never_shown(text: str, chunk: int) -> None:
    """However it comes in; what stands behind the first line is not read."""
    events = await join(text, chunk=chunk, final=False)
    assert isinstance(events[-1], ReplanAsked)
    assert events[-1].why == "Peru"
    assert shown(events) == []


async def test_the_last_round_answers_anyway() -> None:
    """A final joiner that still asks is answered for, with what it misses."""
    events = await join("Replan: Peru", final=True)
    assert isinstance(events[-1], Answered)
    assert events[-1].text == "No answer was found: Peru"
    assert shown(events) == ["No answer was found: Peru"]


@pytest.mark.parametrize(
    "text",
    [
        "Chile.\nReplan: Peru",
        "Replanting Chile's woods takes long.",
        "The Replan: a book",
        "Replan",
    ],
)
async def test_only_a_first_line_is_an_instruction(text: str) -> None:
    """Anything else, a page that says so included, is text."""
    events = await join(text, final=False)
    assert isinstance(events[-1], Answered)
    assert "".join(shown(events)) == events[-1].text == text


async def test_nothing_written_is_an_error() -> None:
    """A model that says nothing has not answered."""
    with pytest.raises(ModelServerError, match="empty answer"):
        await join(" \n ")


async def test_errors_of_the_server_come_out() -> None:
    """The driver makes them data."""
    with pytest.raises(ModelServerError, match="gone"):
        await join(ModelServerError("gone"))


async def test_the_model_is_given_everything() -> None:
    """Question, results with the number of their source, failures, faults, and instructions."""
    runtime = ScriptedRuntime(["x", "x"])
    joiner = Joiner(runtime, lambda *_: Nothing(), instructions="Answer in Dutch.")
    request = JoinRequest(
        "Chile or Peru?",
        final=False,
        tasks={1: Task.of(1, "population", country="Chile"), 2: Task.of(2, "broken")},
        outcomes={1: Ok(19), 2: Failed("the tool broke")},
        faults=[PlanFault(1, "unknown tool 'x'", "3. x()", 3)],
        sources={1: Source(1, 1, "population(Chile)", "", "19")},
    )
    await joiner.join(request, lambda event: None, Clock())
    sent = runtime.requests[0].messages
    assert "Answer in Dutch." in sent[0].content
    assert "Replan:" in sent[0].content
    for part in ("Chile or Peru?", "[1]", 'population(country="Chile")', "19", "the tool broke"):
        assert part in sent[-1].content
    assert "unknown tool 'x'" in sent[-1].content
    await joiner.join(JoinRequest("?", final=True), lambda event: None, Clock())
    assert "Replan:" not in runtime.requests[1].messages[0].content


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Finish(Mission: Impossible (film))", "Mission: Impossible (film)"),
        ("Thought: known.\nAction: Finish(Lima)", "Lima"),
        ("3. Finish(Lima)\n", "Lima"),
        ("Finish(two\nlines)", "two\nlines"),
        ("Finish(f(x) and g(y)) <END>", "f(x) and g(y)"),
        ("They Finish(ed) first", "They Finish(ed) first"),
        ("Finish(never closed", "Finish(never closed"),
        (" plain (text) ", "plain (text)"),
    ],
)
def test_finish_is_unwrapped(text: str, answer: str) -> None:
    """For models that write it so; up to the last bracket."""
    assert answer_text(text) == answer


def test_a_long_blank_text_is_read_at_once() -> None:
    """No regular expression goes back and forth over it."""
    assert answer_text("a" + "\n" * 100_000 + "b").endswith("b")
    assert answer_text("\nFinish(" * 20_000).endswith("Finish(")
    assert replan_reason(" " * 100_000 + "x") is None


@pytest.mark.parametrize(
    "text", ["", " ", "R", "re", "**Rep", "Replan", "**Replan** ", "replan: x", "Replan:\ny"]
)
def test_what_may_become_replan_waits(text: str) -> None:
    """Before it is shown."""
    assert may_replan(text)


@pytest.mark.parametrize("text", ["C", "Rd", "The", "19", "Replant", "Replan the", "Replanning: a"])
def test_what_cannot_is_shown_at_once(text: str) -> None:
    """Time to the first word matters."""
    assert not may_replan(text)


class Cut(ScriptedRuntime):
    """A server that stops at max_tokens."""

    async def stream(self, request: ModelRequest) -> AsyncGenerator[str | Usage, None]:
        async for piece in super().stream(request):
            yield Usage(calls=1, cut=True) if isinstance(piece, Usage) else piece


async def test_an_answer_that_is_cut_off_says_so() -> None:
    """In a line of its own, which the check never sees; the stream has it, too."""
    checked: list[str] = []

    def check(text: str, sources: object, outcomes: object) -> Nothing:
        checked.append(text)
        return Nothing()

    events: list[Event] = []
    joiner = Joiner(Cut(["Chile has 19"]), check, max_tokens=3)
    await joiner.join(JoinRequest("Chile?"), events.append, Clock())
    last = events[-1]
    assert isinstance(last, Answered)
    cut = "Chile has 19\n[the answer was cut off after 3 tokens (max_answer_tokens)]"
    assert last.text == cut == "".join(shown(events))
    assert checked == ["Chile has 19"]


async def test_an_empty_answer_that_is_cut_off_says_so() -> None:
    """A model that thinks first may have used up its tokens."""
    joiner = Joiner(Cut([""]), lambda *_: Nothing(), max_tokens=3)
    with pytest.raises(ModelServerError, match="empty answer within 3 tokens"):
        await joiner.join(JoinRequest("Chile?"), lambda event: None, Clock())


async def test_an_answer_that_begins_like_replan_streams() -> None:
    """It is held back only until it can no longer be ``Replan:``."""
    events = await join("Replanting the woods of Chile takes long.", chunk=1, final=False)
    assert len(shown(events)) > 20
