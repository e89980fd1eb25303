"""The fold that every view reads."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample import TASKS, events

from agentpar.events import (
    Event,
    PlanStarted,
    RunFinished,
    RunStarted,
    TaskDone,
    TaskPlanned,
    TaskStarted,
)
from agentpar.executor.record import decode
from agentpar.plan import EACH, Failed, Ok, Ref, Skipped, Task
from agentpar.story import UNPLANNED, Story


def test_story_knows_how_each_task_went() -> None:
    """Times, arguments, rounds and outcomes are those of the events."""
    story = Story.of(events())
    assert {id: story.state(task) for id, task in story.tasks.items()} == {
        1: "ok", 2: "ok", 3: "ok", 4: "failed", 5: "skipped", 6: "ok", 7: "ok",
    }  # fmt: skip
    fetch = story.tasks[3]
    assert (fetch.planned, fetch.started, fetch.ended, fetch.round) == (1.24, 1.24, 2.3, 1)
    assert fetch.task is TASKS[3]
    assert fetch.filled == {"url": "http://atlas.example/chile"}
    assert story.tasks[5].outcome == Skipped(4)
    assert story.status == "answered"
    assert story.usage().completion_tokens == 118 + 14 + 52 + 61


def test_totals_are_measured_on_real_times() -> None:
    """Tool seconds add up; the wall under them is counted once; overlap is shared time."""
    story = Story.of(events())
    assert story.tool_seconds() == pytest.approx(0.48 + 0.66 + 1.06 + 1.59 + 1.1 + 0.01)
    assert story.tool_wall() == pytest.approx((3.2 - 0.62) + (5.61 - 4.5))
    assert story.overlap() == pytest.approx((2.45 - 0.62) + (5.2 - 4.5))
    assert story.wall() == pytest.approx(7.66)
    assert story.first_answer_text() == pytest.approx(6.0)


def test_critical_path_is_the_chain_the_answer_waited_for() -> None:
    """Round 1 waited for search 2 and fetch 4, round 2 for fetch 6 and calc 7."""
    assert Story.of(events()).critical_path() == (2, 4, 6, 7)


def test_the_critical_path_goes_through_the_part_of_a_list_that_was_waited_for() -> None:
    """A task over a list makes no call itself: its slowest part does."""
    whole = Task.of(2, "get", url=Ref(1, (EACH,)))
    parts = [Task(2_000_000 + n, "get", {"url": n}, (1,), part=(2, n - 1)) for n in (1, 2, 3)]
    planned = [Task.of(1, "search"), whole, *parts, Task.of(3, "sum", of=Ref(2))]
    spans = {1: (0, 1), 2_000_001: (1, 2), 2_000_002: (1, 4), 2_000_003: (1, 3), 3: (4, 5)}
    told: list[Event] = [RunStarted("r", "q"), PlanStarted(1)]
    told += [TaskPlanned(1, task) for task in planned]
    for id, (began, ended) in spans.items():
        told += [TaskStarted(id, {}, began), TaskDone(id, Ok(1), ended)]
    told.append(TaskDone(2, Ok([1, 1, 1]), 4))
    assert Story.of(told).critical_path() == (1, 2_000_002, 3)


def test_a_run_cut_short_leaves_stopped_tasks() -> None:
    """Neither a running nor a waiting task is shown as running once the run is over."""
    story = Story.of(
        [
            RunStarted("r", "q"),
            PlanStarted(1),
            TaskPlanned(1, Task.of(1, "a"), 0.1),
            TaskPlanned(1, Task.of(2, "a"), 0.1),
            TaskStarted(1, {}, 0.2),
        ]
    )
    assert [story.state(task) for task in story.tasks.values()] == ["running", "waiting"]
    story.add(RunFinished("cancelled", at=1.0))
    assert [story.state(task) for task in story.tasks.values()] == ["stopped", "stopped"]
    assert story.tool_seconds() == pytest.approx(0.8)


def test_a_record_without_a_note_is_told() -> None:
    """Records did not always say what is simulated."""
    story = Story.of([decode({"event": "RunStarted", "run_id": "r", "question": "q", "at": 0.5})])
    assert (story.question, story.note, story.began) == ("q", "", 0.5)


def test_an_outcome_without_a_plan_line_is_kept() -> None:
    """A faulty line settles as failed though no task of it was ever planned."""
    story = Story.of([PlanStarted(1), TaskDone(4, Failed("no such tool", "plan"), 0.5)])
    assert story.tasks[4].task.tool == UNPLANNED
    assert story.outcomes() == {4: Failed("no such tool", "plan")}


@given(st.lists(st.tuples(st.floats(0, 9), st.floats(0, 9)), max_size=20), st.data())
def test_totals_hold_for_any_times(spans: list[tuple[float, float]], data: st.DataObject) -> None:
    """wall of tools ≤ sum, sum ≤ tasks × wall, and the critical path is a real chain."""
    run = [RunStarted("r", "q"), PlanStarted(1)]
    for id, (start, length) in enumerate(spans, 1):
        needs = data.draw(st.lists(st.integers(1, 21), max_size=2)) if id > 1 else []
        run += [
            TaskPlanned(1, Task(id, "t", {}, tuple(needs)), 0.0),
            TaskStarted(id, {}, start),
            TaskDone(id, Ok(None), start + length),
        ]
    story = Story.of(run)
    assert story.tool_wall() <= story.tool_seconds() + 1e-6
    assert story.tool_seconds() <= len(spans) * story.tool_wall() + 1e-6
    assert story.overlap() <= story.tool_wall() + 1e-6
    path = story.critical_path()
    assert len(set(path)) == len(path)
    for before, after in pairwise(path):
        assert before in story.tasks[after].task.needs


@given(st.permutations(events()))
def test_any_order_of_events_is_survived(shuffled: list[object]) -> None:
    """A view never breaks, whatever a damaged record holds."""
    story = Story.of(shuffled)  # type: ignore[arg-type]
    story.critical_path()
    assert story.tool_seconds() >= 0
