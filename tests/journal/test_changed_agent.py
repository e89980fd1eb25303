"""A run that is carried on by another agent than began it: by which terms, and what is told."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentpar import Agent, Failed, Ok, Rule, ScriptedRuntime, Tool, UsageError, current_call, tool
from agentpar.events import PlanEnded, RunResumed
from agentpar.executor.journal import open_journal
from agentpar.executor.record import read_record, replay

ANSWER = "Answer: done"
PLAN = "1. first(n=1)\n2. second(n=$1)\n3. third(n=$2)\njoin()"


class Calls:
    """Three tools that pass a number on and note their calls; ``second`` waits for ever in the
    first process."""

    def __init__(self) -> None:
        self.made: list[tuple[str, str, int]] = []
        self.keys: list[str] = []
        self.called = asyncio.Event()

    def tools(self, *, version: str = "", stuck: bool = False, **second: Any) -> list[Tool]:
        def noting(name: str, **options: Any) -> Tool:
            async def call(n: int) -> int:
                self.made.append((name, version, n))
                self.keys.append(current_call().idempotency_key)
                if stuck and name == "second":
                    self.called.set()
                    await asyncio.Event().wait()
                return n + 1

            call.__name__ = name
            call.__doc__ = name
            return replace(tool(**options)(call), version=version)

        return [noting("first"), noting("second", **second), noting("third")]


async def broken_off(url: str, calls: Calls, tools: list[Tool], **more: Any) -> None:
    """A run that breaks off while ``second`` is being called, its plan complete."""
    runtime = ScriptedRuntime([PLAN])
    async with (
        Agent(tools, runtime=runtime, journal=url, **more) as agent,
        agent.run("?", run_id="run") as run,
    ):
        async for event in run:
            if isinstance(event, PlanEnded):
                break
        await asyncio.wait_for(calls.called.wait(), 10)


def again(url: str, tools: list[Tool], **more: Any) -> Agent:
    return Agent(tools, runtime=ScriptedRuntime([ANSWER]), journal=url, **more)


async def test_a_run_goes_on_by_the_limits_it_began_with(url: str) -> None:
    """More steps today are no more for a run that began with three: its own count, that of the
    first process included."""
    calls = Calls()
    await broken_off(url, calls, calls.tools(stuck=True), max_steps=3)
    async with again(url, calls.tools(), max_steps=100) as agent:
        answer = await agent.resume("run")
    assert answer.usage.stopped_by == "max_steps=3"
    assert answer.usage.steps == 3, "the call that broke off was begun twice"
    assert answer.outcomes[2] == Ok(3)
    assert answer.changes == ("max_steps is 100, it was 3, and the run keeps that",)


async def test_a_deadline_that_is_given_anew_holds(url: str) -> None:
    """It is the one limit that belongs to the question; nothing has changed in the agent."""
    calls = Calls()
    await broken_off(url, calls, calls.tools(stuck=True), deadline=500.0)
    async with (
        again(url, calls.tools(), deadline=500.0) as agent,
        agent.run("?", run_id="run", deadline=1e-6) as run,
    ):
        answer = await run.wait()
    assert answer.usage.stopped_by == "deadline=1e-06 s"
    assert answer.changes == ()


async def test_a_run_keeps_the_policies_of_its_tools(url: str) -> None:
    """What was to be tried three times is tried three times, by a tool that is not any more."""
    tried: list[int] = []

    @tool
    async def flaky(n: int) -> int:
        """Flaky."""
        tried.append(n)
        raise ValueError("no")

    calls = Calls()
    tools = [*calls.tools(stuck=True)[:2], replace(flaky, name="third")]
    fields = {"third": {"retries": 2, "backoff": 0.0}}
    await broken_off(url, calls, tools, policies=fields)
    async with again(url, [*calls.tools()[:2], replace(flaky, name="third")]) as agent:
        answer = await agent.resume("run")
    assert tried == [3, 3, 3]
    assert answer.changes == (
        "tool 'third': retries is 0, it was 2, and the run keeps that",
        "tool 'third': backoff is 0.5, it was 0.0, and the run keeps that",
    )


async def test_results_stand_and_what_has_not_ended_is_called_as_of_today(
    url: str, tmp_path: Path
) -> None:
    """The event says so, the record replays, and a further part says nothing again."""
    calls = Calls()
    await broken_off(url, calls, calls.tools(version="1", stuck=True))
    async with (
        again(url, calls.tools(version="2"), runs=tmp_path) as agent,
        agent.run("?", run_id="run") as run,
    ):
        events = [event async for event in run]
    assert calls.made == [
        ("first", "1", 1),
        ("second", "1", 2),
        ("second", "2", 2),
        ("third", "2", 3),
    ]
    (resumed,) = [event for event in events if isinstance(event, RunResumed)]
    assert resumed.changes[1] == (
        "tool 'second' is of version '2', it was of '1': results that are there stand, calls "
        "that have not ended are made with today's"
    )
    assert run.answer.changes == resumed.changes
    assert replay(read_record(tmp_path / "run" / "events.jsonl")).difference == ""


async def test_a_tool_that_is_gone_fails_its_calls_and_no_others(url: str) -> None:
    """The result that it brought is used."""
    calls = Calls()
    await broken_off(url, calls, calls.tools(stuck=True))
    async with again(url, calls.tools()[1:2]) as agent:
        answer = await agent.resume("run")
    assert (answer.outcomes[1], answer.outcomes[2]) == (Ok(2), Ok(3))
    assert answer.outcomes[3] == Failed("the agent has no tool 'third' any more", "plan")
    assert answer.changes[0] == "tool 'first' is gone: a call of it that has not ended fails"


async def test_a_write_of_another_version_is_not_made_twice(url: str) -> None:
    """It began as version 1, and nobody knows how it ended: that the tool has changed makes it no
    other call."""
    calls = Calls()
    allow = {"permissions": [Rule("second", "allow", data="any")]}
    once = {"effect": "write"}
    await broken_off(url, calls, calls.tools(version="1", stuck=True, **once), **allow)
    async with again(url, calls.tools(version="2", **once), **allow) as agent:
        answer = await agent.resume("run")
    outcome = answer.outcomes[2]
    assert isinstance(outcome, Failed)
    assert outcome.kind == "interrupted"
    assert [name for name, *_ in calls.made] == ["first", "second"]
    assert answer.usage.steps == 2, "the write was begun once, and that counts"


async def test_an_idempotent_write_of_another_version_keeps_its_key(url: str) -> None:
    """By which the far side knows that it has happened."""
    calls = Calls()
    allow = {"permissions": [Rule("second", "allow", data="any")]}
    repeatable = {"effect": "write", "idempotent": True}
    await broken_off(url, calls, calls.tools(version="1", stuck=True, **repeatable), **allow)
    async with again(url, calls.tools(version="2", **repeatable), **allow) as agent:
        assert (await agent.resume("run")).outcomes[2] == Ok(3)
    assert [name for name, *_ in calls.made] == ["first", "second", "second", "third"]
    assert calls.keys[1] == calls.keys[2]


@pytest.mark.parametrize(
    ("then", "now"), [(True, None), (True, False)], ids=["says nothing now", "says no now"]
)
async def test_a_write_that_may_not_be_repeated_any_more_is_not(
    url: str, then: bool, now: bool | None
) -> None:
    """Idempotent when it began, and not by what its author knows today."""
    calls = Calls()
    allow = {"permissions": [Rule("second", "allow", data="any")]}
    was: dict[str, Any] = {"effect": "write", "idempotent": then}
    await broken_off(url, calls, calls.tools(stuck=True, **was), **allow)
    async with again(url, calls.tools(effect="write", idempotent=now), **allow) as agent:
        outcome = (await agent.resume("run")).outcomes[2]
    assert isinstance(outcome, Failed)
    assert outcome.kind == "interrupted"


# Permissions


async def test_a_rule_of_today_denies_what_has_not_ended(url: str) -> None:
    """What has ended stands, what was being called is not called again, and its step counts."""
    calls = Calls()
    await broken_off(url, calls, calls.tools(stuck=True))
    async with again(url, calls.tools(), permissions=[Rule("*", "deny")]) as agent:
        answer = await agent.resume("run")
    assert answer.outcomes[1] == Ok(2)
    assert answer.outcomes[2] == Failed(
        "denied by rule 1: {tools: *, action: deny}; it was being called when the run broke off",
        "denied",
    )
    assert [name for name, *_ in calls.made] == ["first", "second"]
    assert answer.usage.steps == 2
    assert answer.changes == (
        "the permissions are others: the stricter of both hold for what has not ended",
    )


async def test_a_rule_of_then_holds_although_today_allows(url: str) -> None:
    """A run does not get around the rules it began with by being killed."""
    calls = Calls()
    await broken_off(url, calls, calls.tools(stuck=True), permissions=[Rule("third", "deny")])
    async with again(url, calls.tools()) as agent:
        outcome = (await agent.resume("run")).outcomes[3]
    assert isinstance(outcome, Failed)
    assert outcome.kind == "denied"


async def test_a_rule_of_today_asks_for_what_has_not_ended(url: str) -> None:
    """The one call that was being made, and the one behind it."""
    asked: list[int] = []

    def approve(task: Any, args: Any) -> bool:
        asked.append(task.id)
        return True

    calls = Calls()
    await broken_off(url, calls, calls.tools(stuck=True))
    rules = [Rule("*", "ask")]
    async with again(url, calls.tools(), permissions=rules, approve=approve) as agent:
        answer = await agent.resume("run")
    assert asked == [2, 3]
    assert answer.outcomes == {1: Ok(2), 2: Ok(3), 3: Ok(4)}
    assert answer.usage.steps == 4


async def test_an_approval_stays_one(url: str) -> None:
    """Nobody is asked a second time about the very call that was approved."""
    asked: list[int] = []

    def approve(task: Any, args: Any) -> bool:
        asked.append(task.id)
        return True

    calls = Calls()
    rules = [Rule("second", "ask")]
    await broken_off(url, calls, calls.tools(stuck=True), permissions=rules, approve=approve)
    more = [Rule("first", "deny"), *rules]
    async with again(url, calls.tools(), permissions=more, approve=approve) as agent:
        assert (await agent.resume("run")).outcomes[2] == Ok(3)
    assert asked == [2]


# What is told, and refused


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda tools: {"instructions": "Be brief."}, "the instructions are others"),
        (lambda tools: {"tools": [*tools, extra]}, "tool 'extra' is new"),
        (
            lambda tools: {"tools": [*tools[:2], replace(tools[2], parameters={})]},
            "tool 'third' takes or returns something else",
        ),
        (
            lambda tools: {"tools": [*tools[:2], replace(tools[2], sends=True)]},
            "tool 'third' sends data out, it was one that only reads: both count",
        ),
    ],
    ids=["instructions", "new tool", "schema", "flow"],
)
async def test_what_has_changed_is_told_and_refused_where_that_is_wanted(
    url: str, change: Callable[[list[Tool]], dict[str, Any]], told: str
) -> None:
    """`strict` leaves the run as it is: whoever asks without it carries it on."""
    calls = Calls()
    await broken_off(url, calls, calls.tools(stuck=True))
    changed = {"tools": calls.tools(), **change(calls.tools())}
    async with again(url, **changed) as agent:
        with pytest.raises(UsageError, match=f"'run' is not carried on, .* {told}"):
            await agent.resume("run", strict=True)
        assert told in (await agent.resume("run")).changes
        # It has ended: there is nothing to refuse.
        assert (await agent.resume("run", strict=True)).text == ANSWER


@tool
async def extra() -> int:
    """One more."""
    return 0


async def test_the_same_agent_is_told_nothing(url: str) -> None:
    """Not even by the strict."""
    calls = Calls()
    await broken_off(url, calls, calls.tools(stuck=True), instructions="Be brief.")
    async with again(url, calls.tools(), instructions="Be brief.") as agent:
        async with agent.run("?", run_id="run", strict=True) as run:
            assert not [event async for event in run if isinstance(event, RunResumed)]
        assert run.answer.changes == ()


async def test_another_model_is_told(url: str) -> None:
    """By its name, without a key that its address holds."""
    calls = Calls()
    runtime = {"runtime": None, "model": "http://u:topsecret@127.0.0.1:1/v1"}
    agent = Agent(calls.tools(), **{**runtime, "journal": url})
    async with agent:
        session = await agent._session("run", "?")
        await session._journal.leave()  # type: ignore[union-attr]
    async with open_journal(url) as journal:
        setup = (await journal.find("run")).setup
    assert setup is not None
    assert setup.model == "http://u:***@127.0.0.1:1/v1"


async def test_a_journal_of_the_first_format_is_brought_up(tmp_path: Path) -> None:
    """Its runs are carried on, with the agent of today, which is told; its oldest are as old as
    their beginning."""
    path = tmp_path / "j.db"
    url = f"sqlite:///{path}"
    calls = Calls()
    await broken_off(url, calls, calls.tools(stuck=True))
    with closing(sqlite3.connect(path)) as connection:
        for column in ("setup", "ended"):
            connection.execute(f"ALTER TABLE runs DROP COLUMN {column}")
        connection.execute("PRAGMA user_version = 1")
    async with again(url, calls.tools()) as agent:
        with pytest.raises(UsageError, match="nothing of the agent that the run began with"):
            await agent.resume("run", strict=True)
        answer = await agent.resume("run")
    assert answer.outcomes == {1: Ok(2), 2: Ok(3), 3: Ok(4)}
    assert answer.changes == (
        "the journal has nothing of the agent that the run began with: today's holds",
    )
    json.dumps(answer.as_dict())
