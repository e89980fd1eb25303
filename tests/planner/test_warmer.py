"""Reading ahead: what is read is what the joiner will ask, and nothing waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentpar import Agent, ScriptedRuntime, tool
from agentpar.answer import Answer
from agentpar.errors import ModelServerError
from agentpar.events import Event, ModelUsed, PlanFault, TaskDone, Usage
from agentpar.memory.evidence import sources
from agentpar.plan import Failed, Ok, Outcome, Ref, Skipped, Task
from agentpar.planner.prompts import RESULTS_CHARS, join_messages, join_prefix, observations
from agentpar.planner.warmer import LEAST_NEWS
from agentpar.ports import Message, ModelRequest

# The prefix, as a function


@st.composite
def endings(draw: st.DrawFn) -> tuple[dict[int, Task], dict[int, Outcome], list[PlanFault]]:
    """A complete plan with references and faults, and how each of its tasks ended."""
    page = st.fixed_dictionaries(
        {"text": st.text(max_size=1200), "title": st.text(max_size=20), "url": st.text(max_size=9)},
        optional={"value": st.none() | st.integers() | st.text(max_size=70)},
    )
    value = (
        st.integers()
        | st.text(max_size=50)
        | st.integers(0, 300).map("word ".__mul__)
        | st.integers(0, 80).map(["word"].__mul__)  # told in fewer words once it was used
        | page
        | st.builds(lambda first, more: {**first, "others": more}, page, st.lists(page, max_size=3))
    )
    ended = st.builds(Ok, value) | st.builds(Failed, st.text(max_size=500))
    tasks: dict[int, Task] = {}
    outcomes: dict[int, Outcome] = {}
    faults: list[PlanFault] = []
    for id in range(1, draw(st.integers(1, 9)) + 1):
        if draw(st.integers(0, 9)) == 0:  # a line that cannot be used
            own = draw(st.sampled_from([id, None]))
            faults.append(PlanFault(1, draw(st.text(max_size=50)), "a line", own))
            if own is not None:
                outcomes[id] = Failed("unusable", "plan")
            continue
        needs = draw(st.lists(st.integers(1, max(1, id - 1)), max_size=2)) if id > 1 else []
        args = {f"a{n}": Ref(need) for n, need in enumerate(needs)}
        tasks[id] = Task.of(id, "tool", **args, other=draw(st.text(max_size=30)))
        bad = [need for need in needs if not isinstance(outcomes.get(need), Ok)]
        outcomes[id] = Skipped(bad[0]) if bad else draw(ended)
    return tasks, outcomes, faults


def ended_at(tasks: dict[int, Task], outcomes: dict[int, Outcome], order: Sequence[int]) -> Any:
    """The states of the run: after each task that ends, in an order the plan allows."""
    known = {id: outcome for id, outcome in outcomes.items() if id not in tasks}
    yield dict(known)
    left = list(order)
    while left:
        # A task ends behind those it needs, except where what it needs will never be there.
        id = next(id for id in left if not set(tasks[id].needs) & set(left))
        left.remove(id)
        known[id] = outcomes[id]
        yield dict(known)


def begins(whole: tuple[Message, ...], prefix: tuple[Message, ...]) -> bool:
    *sure, last = prefix
    end = whole[len(sure)]
    same = list(whole[: len(sure)]) == sure and len(whole) == len(prefix)
    return same and end.role == last.role and end.content.startswith(last.content)


@given(endings(), st.randoms(use_true_random=False), st.booleans(), st.text(max_size=20))
def test_what_is_read_ahead_begins_the_final_prompt(
    plan: tuple[dict[int, Task], dict[int, Outcome], list[PlanFault]],
    chance: Any,
    final: bool,
    instructions: str,
) -> None:
    """At every moment, in any order of ending, as long as all results have room."""
    tasks, outcomes, faults = plan
    found = sources(tasks, outcomes)
    words = {"final": final, "instructions": instructions}
    whole = join_messages("Why?", tasks, outcomes, faults, found, **words)  # type: ignore[arg-type]
    fits = len(observations(tasks, outcomes, faults, found)) < RESULTS_CHARS
    order = sorted(tasks)
    chance.shuffle(order)
    for known in ended_at(tasks, outcomes, order):
        prefix = join_prefix(tasks, known, faults, sources(tasks, known), **words)  # type: ignore[arg-type]
        assert begins(whole, prefix) or not fits
        assert prefix[:-1] == whole[:-1]


def known(*values: object, of: int) -> tuple[dict[int, Task], dict[int, Outcome]]:
    """A plan of ``of`` independent tasks whose first ones ended with ``values``."""
    tasks = {id: Task.of(id, "get", n=id) for id in range(1, of + 1)}
    return tasks, {id: Ok(value) for id, value in enumerate(values, start=1)}


def read(tasks: dict[int, Task], outcomes: dict[int, Outcome]) -> str:
    return join_prefix(tasks, outcomes, (), sources(tasks, outcomes))[-1].content


def test_results_are_read_up_to_the_first_that_is_missing() -> None:
    """By number, not by the order of ending: the third stands behind the second."""
    tasks, outcomes = known("one", of=4)
    outcomes[3] = Ok("three")
    assert read(tasks, outcomes) == "Results:\n[1] get(n=1) = one\n"
    outcomes[2] = Ok("two")
    assert read(tasks, outcomes).endswith("[2] get(n=2) = two\n[3] get(n=3) = three\n")


def test_a_result_that_may_yet_be_shortened_is_not_read() -> None:
    """A long list is told in fewer words once it has fed another call, if that goes well."""
    hits = [{"title": "x" * 80}] * 4
    tasks = {1: Task.of(1, "search"), 2: Task.of(2, "fetch", url=Ref(1, (0, "title")))}
    assert read(tasks, {1: Ok(hits)}) == "Results:\n"
    tasks[3] = Task.of(3, "get")
    assert len(read(tasks, {1: Ok(hits), 2: Ok("page")})) > 100


def test_where_results_will_not_fit_none_is_read() -> None:
    """Twenty pages are shortened at the end, so the first of them is not read as it is."""
    page = "x" * 900
    assert "x" not in read(*known(page, of=20))
    assert "x" in read(*known(page, of=10))


# The warmer, in a run


class Watched(ScriptedRuntime):
    """A script that can prefill: ``asked`` is set once it shall, ``read`` once it has read
    all that is there before the last tool ends."""

    def __init__(self, *texts: str, fails: bool = False, hangs: bool = False) -> None:
        super().__init__(texts, capabilities=["prefill"], chunk=1000)
        self.fails, self.hangs = fails, hangs
        self.asked = asyncio.Event()
        self.read = asyncio.Event()
        self.closed = 0

    async def stream(self, request: ModelRequest) -> AsyncGenerator[str | Usage, None]:
        if request.background:
            self.asked.set()
            if self.fails:
                self.requests.append(request)
                raise ModelServerError("no room")
            if self.hangs:
                try:
                    await asyncio.Event().wait()
                finally:
                    self.closed += 1
        async for piece in super().stream(request):
            yield piece
        if request.background and "Page 2." in text_of(request):
            self.read.set()

    @property
    def ahead(self) -> list[ModelRequest]:
        return [request for request in self.requests if request.background]

    @property
    def joining(self) -> ModelRequest:
        return next(r for r in reversed(self.requests) if not r.background)


PLAN = "1. page(n=1)\n2. page(n=2)\n3. late()\njoin()"


def text_of(request: ModelRequest) -> str:
    return "".join(message.content for message in request.messages)


async def ask(runtime: ScriptedRuntime, wait: Callable[[], Any], **options: Any) -> Ran:
    """Two pages at once, and a last tool that ends when ``wait`` does."""

    @tool
    async def page(n: int) -> str:
        """A page."""
        return f"Page {n}. " * 80

    @tool
    async def late() -> str:
        """A tool that takes its time."""
        await wait()
        return "late"

    events: list[Event] = []
    agent = Agent([page, late], runtime=runtime, max_replans=0, **options)
    async with agent, agent.run("Why?") as run:
        events += [event async for event in run]
    return Ran(run.answer, events)


class Ran:
    def __init__(self, answer: Answer, events: list[Event]) -> None:
        self.answer = answer
        self.ahead = [e for e in events if isinstance(e, ModelUsed) and e.purpose == "prefill"]
        self.late = next(e.at for e in events if isinstance(e, TaskDone) and e.task_id == 3)


async def test_finished_results_are_read_while_the_last_tool_runs() -> None:
    """Both pages, as the very beginning of what the joiner asks then."""
    runtime = Watched(PLAN, "Answer: so")
    ran = await ask(runtime, runtime.read.wait)
    ahead = runtime.ahead[-1]
    assert "Page 1." in text_of(ahead)
    assert "Page 2." in text_of(ahead)
    assert begins(runtime.joining.messages, ahead.messages)
    assert ahead.max_tokens == 1
    assert ran.answer.text == "Answer: so"


async def test_the_joiner_is_asked_the_same_with_and_without() -> None:
    """Byte for byte."""
    with_it, without = Watched(PLAN, "Answer: so"), Watched(PLAN, "Answer: so")
    await ask(with_it, with_it.read.wait)
    await ask(without, lambda: asyncio.sleep(0), prefill=False)
    assert with_it.ahead
    assert not without.ahead
    assert with_it.joining == without.joining


async def test_the_joiner_does_not_wait_for_reading_ahead() -> None:
    """It is closed when the last tool ends, and the record says that it was not finished."""
    runtime = Watched(PLAN, "Answer: so", hangs=True)
    async with asyncio.timeout(5):
        ran = await ask(runtime, runtime.asked.wait)
    assert runtime.closed == 1
    (used,) = ran.ahead
    assert used.error == "the run went on without waiting for it"
    assert used.at >= ran.late
    assert ran.answer.status == "answered"


async def test_a_run_that_is_left_reads_no_further() -> None:
    """Cancelling the run closes the request."""
    runtime = Watched(PLAN, "Answer: so", hangs=True)
    left = asyncio.create_task(ask(runtime, asyncio.Event().wait))
    await runtime.asked.wait()
    left.cancel()
    with pytest.raises(asyncio.CancelledError):
        await left
    assert runtime.closed == 1


async def test_a_refusal_ends_reading_ahead_and_not_the_run() -> None:
    """The record says why; the server is not asked again."""
    runtime = Watched(PLAN, "Answer: so", fails=True)
    ran = await ask(runtime, runtime.asked.wait)
    assert [used.error for used in ran.ahead] == ["no room"]
    assert ran.answer.status == "answered"


async def test_what_it_costs_is_counted_and_told_apart() -> None:
    """`usage` has every call, `prefill` those whose text nobody read."""
    runtime = Watched(PLAN, "Answer: so")
    answer = (await ask(runtime, runtime.read.wait)).answer
    ahead = len(runtime.ahead)
    assert (answer.usage.calls, answer.prefill.calls) == (2 + ahead, ahead)
    assert answer.usage.prompt_tokens > answer.prefill.prompt_tokens > 100
    assert answer.as_dict()["usage"]["prefill"]["calls"] == ahead


@pytest.mark.parametrize(("prefill", "reads"), [(None, False), (False, False), (True, True)])
async def test_a_runtime_that_is_not_known_to_cache(prefill: bool | None, reads: bool) -> None:
    """It is left alone, unless the user knows better."""
    runtime = ScriptedRuntime([PLAN, "Answer: so"], chunk=1000)

    async def a_few_steps() -> None:
        for _ in range(50):
            await asyncio.sleep(0)

    await ask(runtime, a_few_steps, prefill=prefill)
    assert any(request.background for request in runtime.requests) == reads


async def test_small_news_is_not_worth_a_request() -> None:
    """A handful of characters makes no block of tokens."""

    @tool
    async def small(n: int) -> int:
        """A number."""
        return n

    @tool
    async def late() -> str:
        """A tool that ends when the instructions have been read."""
        await runtime.asked.wait()
        return "late"

    plan = "\n".join([*(f"{n}. small(n={n})" for n in range(1, 9)), "9. late()", "join()"])
    runtime = Watched(plan, "Answer: so")
    async with Agent([small, late], runtime=runtime, max_replans=0) as agent:
        await agent.ask("Why?")
    assert len(runtime.ahead) == 1  # with the instructions, which no run has read before
    assert len("[1] small(n=1) = 1\n") * 8 < LEAST_NEWS
