"""Fuzzing a record: what is taken from it, what a seed changes, what is compared."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentpar import Agent, RunFailed, ScriptedRuntime, UsageError, tool
from agentpar.errors import FetchError
from agentpar.events import RunResumed
from agentpar.executor.fuzz import (
    BLOCK,
    WITHOUT,
    Decided,
    Disturbance,
    FaultSet,
    Group,
    Report,
    call_text,
    first_of,
    material,
)
from agentpar.executor.record import encode, read_record
from agentpar.executor.simulate import run
from agentpar.fuzzing import fuzz_run
from agentpar.permissions import Permissions
from agentpar.plan import Failed, Ok

CALLS = [f"size(of={letter})" for letter in "abcdefg"]


def recorded(folder: Path, tools: list[Any], texts: list[str | Exception], **options: Any) -> Path:
    """The record of a run in virtual time, with or without an answer."""

    async def main() -> None:
        runtime = ScriptedRuntime(texts, delay=0.01)
        agent = Agent(tools, runtime=runtime, runs=folder, **options)
        with contextlib.suppress(RunFailed):
            await agent.ask("What?", run_id="one")

    run(main())
    return folder / "one" / "events.jsonl"


def fuzzed(path: Path, count: int = 40, **options: Any) -> Report:
    return fuzz_run(path, range(count), **options)


@tool
async def size(of: str) -> int:
    """Size of a thing."""
    await asyncio.sleep(1 + len(of))
    return len(of)


@tool
async def broken(of: str) -> int:
    """Fails."""
    await asyncio.sleep(1)
    raise ValueError(f"no {of}")


def test_equal_inputs_are_one_call() -> None:
    """In whatever order they are written; other inputs, even other types, are another."""
    assert call_text("f", {"a": 1, "b": {"x": 1, "y": 2}}) == call_text(
        "f", {"b": {"y": 2, "x": 1}, "a": 1}
    )
    assert call_text("f", {"a": 1}) != call_text("f", {"a": "1"})


def test_a_record_is_taken_apart(tmp_path: Path) -> None:
    """Plans with their pace, joins with their words, results with their seconds."""
    texts = ["1. size(of='ab')\njoin()", "Replan: more", "2. broken(of='x')\njoin()", "Two [1]."]
    found = material(read_record(recorded(tmp_path, [size, broken], texts)))
    assert found.question == "What?"
    assert found.results['size(of="ab")'][0].outcome == Ok(2)
    assert found.results['size(of="ab")'][0].seconds == pytest.approx(3.0)
    assert found.results['broken(of="x")'][0].outcome == Failed("ValueError: no x")
    assert {round: said.text for round, said in found.joins.items()} == {
        1: "Replan: more",
        2: "Two [1].",
    }
    assert set(found.plans) == {1, 2}
    assert found.plans[2][0].at == 0.0
    assert found.plans[2][-1].at == pytest.approx(0.04, abs=0.02)


def test_a_record_without_a_run_is_refused(tmp_path: Path) -> None:
    """Only its header was written."""
    path = recorded(tmp_path, [size], ["join()", "x"])
    path.write_text(path.read_text().splitlines()[0] + "\n")
    with pytest.raises(UsageError, match="the record holds no run"):
        fuzzed(path)


@given(st.integers(0, 10_000), st.permutations(CALLS))
def test_a_seed_says_it_all(seed: int, calls: list[str]) -> None:
    """Equal seeds, equal disturbances, in whatever order the calls are known; the seeds that
    are compared share their faults."""
    one = Disturbance.of(seed, calls)
    assert one == Disturbance.of(seed, CALLS)
    assert one.faults == Disturbance.of(first_of(seed), CALLS).faults
    assert bool(one.faults or one.mortal) == (seed % BLOCK >= WITHOUT)
    assert (one.dies is not None) == (one.mortal and seed != first_of(seed))
    assert one.seconds("f()", 0, 1.0, 5.0) == one.seconds("f()", 0, 1.0, 5.0) >= 0


def test_rounds_are_planned_and_joined_again(tmp_path: Path) -> None:
    """A run that planned twice comes out as it was, in every order."""
    texts = ["1. size(of='ab')\njoin()", "Replan: more", "2. size(of=$1)\njoin()", "Two [1]."]
    texts[2] = "2. size(of='abc')\n3. broken(of='x')\njoin()"
    report = fuzzed(recorded(tmp_path, [size, broken], texts))
    assert not report.order_matters
    assert not report.findings
    without = report.sets[0].groups[0].decided
    assert without.answer[0] == "the answer is 'Two [1].'"
    assert without.calls == ('broken(of="x")', 'size(of="ab")', 'size(of="abc")')
    assert dict(without.outcomes)[3] == "failed: ValueError: no x"
    assert len(without.prompts) == 2


def test_retries_get_what_each_attempt_got(tmp_path: Path) -> None:
    """The first attempt is refused again, the second brings the value."""
    tried: list[int] = []

    @tool(retries=2)
    async def busy() -> str:
        """Refuses at first."""
        tried.append(1)
        if len(tried) == 1:
            raise FetchError("too many requests", status=429, retry_after=2.0)
        return "there"

    path = recorded(tmp_path, [busy], ["1. busy()\njoin()", "It is there [1]."])
    results = material(read_record(path)).results["busy()"]
    assert [result.outcome for result in results] == [
        Failed("too many requests", "throttled"),
        Ok("there"),
    ]
    assert results[0].retry_after == 2.0
    report = fuzzed(path)
    assert not report.order_matters
    (group,) = report.sets[0].groups
    assert group.decided.calls == ("busy()", "busy()")
    assert group.decided.outcomes == ((1, '"there"'),)


def test_verdicts_are_given_again(tmp_path: Path) -> None:
    """What was allowed is, what was refused is not, with the reason."""

    @tool(effect="write")
    async def send(to: str) -> str:
        """Send."""
        return f"sent to {to}"

    async def approve(task: Any, args: Any) -> bool | str:
        await asyncio.sleep(3)
        return True if args["to"] == "a" else "not them"

    texts: list[str | Exception] = ["1. send(to='a')\n2. send(to='b')\njoin()", "Sent [1]."]
    report = fuzzed(recorded(tmp_path, [send], texts, approve=approve))
    (group,) = report.sets[0].groups
    assert group.decided.calls == ('send(to="a")',)
    assert dict(group.decided.outcomes)[2] == "failed: not approved: not them"
    assert not report.order_matters


def test_a_record_that_broke_off_is_told(tmp_path: Path) -> None:
    """Neither result nor answer: two findings, no crash."""
    path = recorded(tmp_path, [size], ["1. size(of='ab')\njoin()", "Two [1]."])
    lines = path.read_text().splitlines(keepends=True)
    started = next(i for i, line in enumerate(lines) if '"TaskStarted"' in line)
    path.write_text("".join(lines[: started + 1]))
    findings = " ".join(fuzzed(path).findings)
    assert 'no result is recorded for size(of="ab")' in findings
    assert "the record has no answer of round 1" in findings


def test_a_joiner_that_broke_breaks_again(tmp_path: Path) -> None:
    """A run that failed fails alike in every order."""
    path = recorded(tmp_path, [size], ["1. size(of='ab')\njoin()", ValueError("model gone")])
    report = fuzzed(path, 10)
    assert not report.order_matters
    (line,) = report.sets[0].groups[0].decided.answer
    assert line == "the run ends as failed: ValueError: model gone"


def test_other_rules_than_the_records_are_told(tmp_path: Path) -> None:
    """Under an agent that allows fewer tasks the recorded order itself comes out otherwise."""
    path = recorded(tmp_path, [size], ["1. size(of='a')\n2. size(of='b')\njoin()", "One [1]."])
    agent = Agent([size], runtime=ScriptedRuntime([]), max_tasks=1)
    report = agent.fuzz(path, schedules=10)
    assert any("on the recorded order task 2 ends as" in text for text in report.findings)


def test_a_record_of_a_run_that_was_carried_on_otherwise_is_told(tmp_path: Path) -> None:
    """The rules that it had from then on are no part of a fuzz."""
    path = recorded(tmp_path, [size], ["1. size(of='a')\njoin()", "One [1]."])
    lines = path.read_text().splitlines(keepends=True)
    event = encode(RunResumed(("tool 'pay' is new",), Permissions()))
    path.write_text("".join([*lines[:2], json.dumps(event) + "\n", *lines[2:]]))
    report = fuzzed(path, 10)
    assert any("carried on with an agent that had changed" in text for text in report.findings)
    assert not report.differs


def test_what_a_hanging_call_costs_is_virtual(tmp_path: Path) -> None:
    """Every set of faults in which a call hangs ends by its timeout, and the report says what
    the run is then: the same in every order."""
    path = recorded(tmp_path, [size], ["1. size(of='a')\njoin()", "One [1]."])
    report = fuzzed(path, 400)
    hung = [one for one in report.sets if "hangs" in one.faults.values()]
    assert hung
    for one in hung:
        (group,) = one.groups
        assert group.decided.outcomes == ((1, "failed: size gave no result within 60 s"),)


@tool
async def things() -> list[str]:
    """Names of things."""
    await asyncio.sleep(1)
    return ["a", "bb", "ccc"]


def test_a_call_over_a_list_is_planned_once(tmp_path: Path) -> None:
    """The record has its parts as well, which the machine plans by itself."""
    plan = "1. things()\n2. size(of=$1[*])\njoin()"
    path = recorded(tmp_path, [things, size], [plan, "Answer: six"])
    report = fuzzed(path)
    assert not report.findings
    assert not report.order_matters


def test_a_deadline_is_told_from_the_order(tmp_path: Path) -> None:
    """Where all would come to the same with more time, it is the time that made the difference."""
    plan = "1. size(of='ab')\n2. size(of='abcd')\njoin()"
    path = recorded(tmp_path, [size], [plan, "Two [1]."])
    agent = Agent([size], runtime=ScriptedRuntime([]), deadline=20.0)
    report = agent.fuzz(path, schedules=WITHOUT)
    (one,) = report.sets
    assert {group.cause for group in one.groups} == {"", "limit"}
    assert {group.limit for group in one.groups[1:]} == {"deadline=20 s"}
    assert (report.order_matters, report.limits_matter, report.differs) == (False, True, True)
    text = list(report.lines())
    assert "before a limit is reached: deadline=20 s" in text[-2]
    assert text[-1] == "without limits it would not depend on the order of events"


def test_a_timeout_is_told_from_the_order(tmp_path: Path) -> None:
    """A call that takes ten times as long as it did is not in time any more."""
    path = recorded(tmp_path, [size], ["1. size(of='ab')\njoin()", "Two [1]."])
    agent = Agent([size], runtime=ScriptedRuntime([]), timeout=9.0)
    report = agent.fuzz(path, schedules=WITHOUT)
    assert not report.order_matters
    assert {group.limit for group in report.differing("limit")} == {"the timeout of size"}


def mortal(report: Report) -> list[FaultSet]:
    found = [one for one in report.sets if one.mortal]
    assert found
    return found


def test_a_run_is_carried_on_whenever_its_process_dies(tmp_path: Path) -> None:
    """Over rounds, lists and failures it comes to what it came to in one piece."""
    texts = [
        "1. things()\n2. size(of=$1[*])\n3. broken(of='x')\n4. size(of=$3)\njoin()",
        "Replan: more",
        "5. size(of='ab')\n6. size(of=any($2[0], $1[1]))\njoin()",
        "Two [5].",
    ]
    report = fuzzed(recorded(tmp_path, [things, size, broken], texts), 200)
    died = [seed for one in mortal(report) for group in one.groups for seed in group.seeds]
    assert len(died) == 30
    assert [len(one.groups) for one in mortal(report)] == [1, 1, 1]
    assert not report.findings


@pytest.mark.parametrize("idempotent", [False, True])
def test_a_write_that_a_crash_left_open_is_told(tmp_path: Path, idempotent: bool) -> None:
    """Of one that may be made twice nothing is open: it is made again."""

    @tool(effect="write", idempotent=idempotent)
    async def send(to: str) -> str:
        """Send."""
        await asyncio.sleep(5)
        return f"sent to {to}"

    texts = ["1. send(to='a')\n2. size(of='abcd')\njoin()", "Sent [1]."]
    path = recorded(tmp_path, [send, size], texts, approve=lambda task, args: True)
    report = fuzzed(path, 100)
    causes = {group.cause for one in mortal(report) for group in one.groups}
    assert causes == ({""} if idempotent else {"", "open"})
    assert not report.differs
    told = any("a crash may leave it open" in line for line in report.lines())
    assert told == (not idempotent)


def test_a_limit_that_a_crash_brings_nearer_is_told_from_the_crash(tmp_path: Path) -> None:
    """The call in flight counts twice, so that the last one is not made; with more steps it is."""
    plan = "1. size(of='ab')\n2. size(of=$1)\n3. size(of=$2)\njoin()"

    @tool
    async def size(of: object) -> str:
        """Size of a thing."""
        await asyncio.sleep(2)
        return f"{of}."

    path = recorded(tmp_path, [size], [plan, "Two [1]."], max_steps=3)
    report = fuzzed(path, 60)
    others = [group for one in mortal(report) for group in one.groups[1:]]
    assert {(group.cause, group.limit) for group in others} == {
        ("limit", "max_steps=3, which a crash brings nearer")
    }
    assert (report.crash_matters, report.limits_matter) == (False, True)


def test_a_plan_that_does_without_a_call_is_read_again(tmp_path: Path) -> None:
    """The line that cancels it, too, and once, although the process dies in the middle."""
    texts = ["1. size(of='abcdefghijkl')\n2. broken(of='x')\njoin()"]
    texts += ["cancel($1)\n3. size(of='ab')\njoin()", "Two [3]."]
    path = recorded(tmp_path, [size, broken], texts, replan_early=True)
    report = fuzzed(path, 60)
    first = report.sets[0].groups[0].decided
    assert dict(first.outcomes)[1] == "failed: cancelled: the plan of round 2 does without it"
    assert 0 not in report.findings.values()
    groups = [one.groups for one in mortal(report)]
    assert not any(group.cause == "crash" for found in groups for group in found)


def test_a_run_without_calls_is_told_in_one_line() -> None:
    """Where no call can fail every set is one without faults, and all of them are one line."""
    decided = Decided((), (), (), ("no answer",))
    sets = tuple(FaultSet({}, (Group(decided, (seed,)),)) for seed in (0, 10, 30))
    text = list(Report("What?", 3, sets).lines())
    assert text[0] == "3 schedules of 'What?': 1 distinct outcome"
    assert [line for line in text if "without faults" in line] == [
        "without faults: 3 schedules, 1 outcome"
    ]


def test_what_only_a_crash_changes_is_said() -> None:
    """And counts: a run is to come to the same, in however many pieces."""
    one = Decided((), ((1, "1"),), ("reads 1",), ("the answer is 'One'",))
    other = Decided((), ((1, "2"),), ("reads 2",), ("the answer is 'One'",))
    groups = (Group(one, (30,)), Group(other, (31,), cause="crash"))
    report = Report("What?", 2, (FaultSet({}, groups, mortal=True),))
    assert report.differs
    text = list(report.lines())
    assert "where the process dies: 2 schedules, 2 outcomes" in text
    assert "differs, after a crash, in the results and the joiner's prompt:" in text[3]
    assert text[-2] == "what the answer is written from is another one after a crash"
    assert text[-1] == "the answer does not depend on the order of events"
