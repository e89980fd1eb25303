"""Metrics of runs, read as a Prometheus reads them: over HTTP, with its own parser."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable

import httpx
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from rivals_model import Rivals
from sample import HOSTILE, events, hostile_events

from agentpar import Agent, ScriptedRuntime, Teams, UsageError, tool
from agentpar.events import (
    ApprovalAsked,
    ApprovalGiven,
    BankFailed,
    EntryOffered,
    EntryUsed,
    Event,
    HostThrottled,
    LeaseAwaited,
    RunFinished,
    RunStarted,
    TaskDone,
    TaskPlanned,
    TaskReplaced,
    TaskStarted,
)
from agentpar.plan import Ok, Task
from agentpar.ports import RunInfo
from agentpar.watch import Prometheus

Samples = dict[tuple[str, frozenset[str]], float]


def samples(text: str) -> Samples:
    """Each sample by its name and its labels' values."""
    return {
        (sample.name, frozenset(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def counted(run: Iterable[Event], *, agent: str = "a") -> Samples:
    registry = CollectorRegistry()
    with Prometheus(registry=registry)(RunInfo("r", agent)) as observe:
        for event in run:
            observe(event)
    return samples(generate_latest(registry).decode())


def of(found: Samples, name: str, *labels: str) -> float:
    return found.get((f"agentpar_{name}", frozenset({"a", *labels})), 0.0)


@tool
async def double(n: int) -> int:
    """Twice the number."""
    return 2 * n


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_a_run_is_counted() -> None:
    """Runs, calls by tool and outcome, seconds, tokens by purpose and kind, faults."""
    found = counted(events())
    assert of(found, "runs_total", "answered") == 1
    assert of(found, "run_seconds_sum", "answered") == 7.66
    assert of(found, "tool_calls_total", "web_search", "ok") == 2
    assert of(found, "tool_calls_total", "web_fetch", "ok") == 2
    assert of(found, "tool_calls_total", "web_fetch", "tool") == 1
    assert of(found, "tool_calls_total", "calc", "skipped") == 1
    assert of(found, "tool_seconds_count", "web_fetch") == 3
    assert of(found, "tool_seconds_sum", "calc") == pytest.approx(0.01)
    assert of(found, "tokens_total", "plan", "prompt") == 612 + 905
    assert of(found, "tokens_total", "join", "completion") == 14 + 61
    assert of(found, "tokens_total", "join", "cached") == 840
    assert of(found, "time_to_first_token_seconds_count", "plan") == 2
    assert of(found, "plan_faults_total") == 1
    assert of(found, "tool_calls_in_flight", "web_fetch") == 0
    assert of(found, "runs_in_flight") == 0


async def test_a_run_of_teams_is_one_run() -> None:
    """Its teams are counted apart, and the judge's tokens once."""
    registry = CollectorRegistry()
    watch = [Prometheus(registry=registry)]
    async with Agent([double], runtime=Rivals(), name="a", seed=0, watch=watch) as agent:
        answer = await agent.ask("Which?", teams=Teams(2, "judge"))
    found = samples(generate_latest(registry).decode())
    assert of(found, "runs_total", "answered") == 1
    assert of(found, "team_runs_total", "answered") == 2
    assert of(found, "run_seconds_sum", "answered") == answer.seconds
    assert of(found, "tokens_total", "judge", "prompt") == 10
    tokens = sum(of(found, "tokens_total", one, "prompt") for one in ("plan", "join", "judge"))
    assert tokens == answer.usage.prompt_tokens
    assert of(found, "runs_in_flight") == 0


def test_approvals_and_retries_are_counted() -> None:
    """A call that starts again has been tried again."""
    run = [
        *(event for event in events() if event.at < 1.0),
        ApprovalAsked(2, {}, 1.0),
        ApprovalGiven(2, allowed=False, at=1.1),
        TaskStarted(1, {}, 1.2),
    ]
    found = counted(run)
    assert of(found, "approvals_total", "web_search", "asked") == 1
    assert of(found, "approvals_total", "web_search", "denied") == 1
    assert of(found, "tool_retries_total", "web_search") == 1


def test_hosts_that_ask_for_less_are_counted() -> None:
    """By the tool that was told so; the host, which a page may have named, is no label."""
    run = [
        RunStarted("r", "?"),
        TaskPlanned(1, Task(1, "lookup", {})),
        TaskStarted(1, at=1.0),
        HostThrottled(1, "a.example", 30.0, at=1.1),
        HostThrottled(1, "b.example", at=1.2),
    ]
    found = counted(run)
    assert of(found, "hosts_throttled_total", "lookup") == 2
    assert not any("example" in label for _, labels in found for label in labels)


def test_what_the_bank_spared_is_counted() -> None:
    """Hits, waits, offers and seconds by tool; a result of another is no time of the tool's."""
    found = counted(
        [
            RunStarted("R.2", "?"),
            *(TaskPlanned(1, Task(id, "double", {"n": id})) for id in (1, 2)),
            TaskStarted(1, at=1.0),
            LeaseAwaited(1, ("R.1", 4), 1, at=1.0),
            EntryUsed(1, "e", ("R.1", 4), 1, 1.9, at=2.5),
            TaskDone(1, Ok(2), at=2.5, via="bank"),
            TaskStarted(2, at=1.0),
            EntryOffered(2, "f", False, "rule", 0.0, "of no use", at=1.5),
            TaskDone(2, Ok(4), at=1.5),
            BankFailed("the disk is full", at=2.0),
            RunFinished("answered", at=3.0),
        ]
    )
    assert of(found, "bank_hits_total", "double") == 1
    assert of(found, "bank_waits_total", "double") == 1
    assert of(found, "bank_spared_seconds_total", "double") == 1.9
    assert of(found, "bank_offers_total", "double", "refused") == 1
    assert of(found, "bank_failures_total") == 1
    assert of(found, "tool_calls_total", "double", "ok") == 2
    assert of(found, "tool_seconds_count", "double") == 1


def test_nothing_stays_in_flight_after_a_run_that_broke_off() -> None:
    """A gauge that never comes down again would count ghosts."""
    found = counted(event for event in events() if event.at < 1.3)
    assert of(found, "tool_calls_in_flight", "web_search") == 0
    assert of(found, "tool_calls_in_flight", "web_fetch") == 0
    assert of(found, "runs_in_flight") == 0


def test_no_text_of_a_model_or_a_page_becomes_a_label() -> None:
    """Labels are what a program chose: a page cannot make a million series."""
    registry = CollectorRegistry()
    with Prometheus(registry=registry)(RunInfo("r")) as observe:
        for event in hostile_events():
            # A plan names no tool that the agent does not have: that line is a fault.
            if not (isinstance(event, TaskPlanned) and event.task.tool == HOSTILE):
                observe(event)
    text = generate_latest(registry).decode()
    assert "pwned" not in text
    assert of(samples(text.replace('"agent"', '"a"')), "plan_faults_total") == 1


async def test_a_scrape_shows_calls_in_flight(port: int) -> None:
    """Over HTTP while a run is at work, and once it is over."""
    begun, go = asyncio.Event(), asyncio.Event()

    @tool
    async def wait() -> int:
        """Waits to be told."""
        begun.set()
        await go.wait()
        return 1

    watch = Prometheus(port=port, registry=CollectorRegistry())
    runtime = ScriptedRuntime(["1. wait()\njoin()", "Answer: 1"])
    url = f"http://127.0.0.1:{port}/metrics"
    try:
        async with (
            httpx.AsyncClient(trust_env=False) as client,
            Agent([wait], runtime=runtime, name="a", watch=[watch]) as agent,
            agent.run("?") as run,
        ):
            await begun.wait()
            during = samples((await client.get(url)).text)
            go.set()
            await run.wait()
            after = samples((await client.get(url)).text)
    finally:
        await asyncio.to_thread(watch.close)
    assert of(during, "tool_calls_in_flight", "wait") == 1
    assert of(during, "runs_in_flight") == 1
    assert of(after, "tool_calls_in_flight", "wait") == 0
    assert of(after, "tool_calls_total", "wait", "ok") == 1
    assert of(after, "runs_total", "answered") == 1


async def test_agents_share_a_registry_and_a_port_and_are_told_apart(port: int) -> None:
    """Two watchers of one process: one server, two values of the label ``agent``."""
    registry = CollectorRegistry()
    watches = [Prometheus(port=port, registry=registry) for _ in range(2)]
    text = "1. double(n=1)\njoin()"
    try:
        await asyncio.gather(
            *(
                Agent([double], runtime=ScriptedRuntime([text, "Answer: 2"]), name=name, watch=[w])
                .ask("?")
                for name, w in zip("ab", watches, strict=True)
            )
        )  # fmt: skip
        async with httpx.AsyncClient(trust_env=False) as client:
            found = samples((await client.get(f"http://127.0.0.1:{port}/metrics")).text)
    finally:
        await asyncio.to_thread(watches[0].close)
        watches[1].close()  # closed already: nothing to do
    for name in "ab":
        assert found["agentpar_runs_total", frozenset({name, "answered"})] == 1


async def test_a_port_that_is_taken_is_told_and_ends_no_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The answer comes; the log says which port and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        watch = Prometheus(port=port, registry=CollectorRegistry())
        runtime = ScriptedRuntime(["1. double(n=1)\njoin()", "Answer: 2"])
        async with Agent([double], runtime=runtime, watch=[watch]) as agent:
            assert (await agent.ask("?")).conclusion == "2"
    assert f"metrics cannot be served at 127.0.0.1:{port}" in caplog.text
    assert "give Prometheus another port" in caplog.text


def test_a_port_that_is_none_is_the_callers_mistake() -> None:
    """Said at once, not at the first run."""
    with pytest.raises(UsageError, match="port must be a number from 1 to 65535, got 70000"):
        Prometheus(port=70000)


def test_a_call_in_the_place_of_another_is_counted_for_its_own_tool() -> None:
    """The one that ran there was cancelled."""
    found = counted(
        [
            RunStarted("r", "?"),
            TaskPlanned(1, Task.of(1, "slow")),
            TaskStarted(1, {}, 1.0),
            TaskReplaced(2, Task.of(1, "quick"), 2.0),
            TaskStarted(1, {}, 2.0, 2),
            TaskDone(1, Ok(1), 3.0, 2),
            RunFinished("answered", "", 4.0),
        ]
    )
    assert of(found, "tool_calls_total", "slow", "cancelled") == 1
    assert of(found, "tool_calls_total", "quick", "ok") == 1
    assert of(found, "tool_calls_in_flight", "slow") == 0
