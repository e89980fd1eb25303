"""Spans of a run: a pure fold of its events, and what an OpenTelemetry SDK makes of it."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from rivals_model import Rivals
from sample import HOSTILE, events, hostile_events

from agentpar import Agent, RunFailed, ScriptedRuntime, Teams, UsageError, tool
from agentpar.events import (
    Answered,
    AttemptEnded,
    AttemptFailed,
    BankFailed,
    EntryOffered,
    EntryUsed,
    Event,
    HostThrottled,
    JoinStarted,
    JoinText,
    LeaseAwaited,
    ModelUsed,
    RunFinished,
    RunResumed,
    RunStarted,
    TaskDone,
    TaskPlanned,
    TaskReplaced,
    TaskStarted,
    Usage,
    WorkersEnded,
    WorkersStarted,
    WorkerText,
)
from agentpar.permissions import Permissions
from agentpar.plan import Failed, Ok, Ref, Task
from agentpar.ports import RunInfo
from agentpar.watch import OpenTelemetry
from agentpar.watch.spans import ROOT, Closed, Noted, Opened, SpanTree

BEGAN = 1_700_000_000_000_000_000  # nanoseconds


class Tracing:
    """The real SDK with an exporter that keeps the spans."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        return self.exporter.get_finished_spans()

    def tree(self) -> str:
        """Every span under its parent in order of starting, with times, kind, links, status."""
        lines: list[str] = []

        def walk(parent: int | None, depth: int) -> None:
            own = [s for s in self.spans if (s.parent.span_id if s.parent else None) == parent]
            for span in sorted(own, key=lambda s: (s.start_time, s.name)):
                lines.append("  " * depth + self._line(span))
                walk(span.context.span_id, depth + 1)

        walk(None, 0)
        return "\n".join(lines)

    def _line(self, span: ReadableSpan) -> str:
        names = {s.context.span_id: s.attributes["gen_ai.tool.call.id"] for s in self.spans
                 if "gen_ai.tool.call.id" in s.attributes}  # fmt: skip
        start, end = ((at - BEGAN) / 1e9 for at in (span.start_time, span.end_time))
        text = f"{span.name} {start:.2f}-{end:.2f}"
        if "gen_ai.tool.call.id" in span.attributes:
            text += f" #{span.attributes['gen_ai.tool.call.id']}"
        if span.links:
            text += f" after {', '.join(names[link.context.span_id] for link in span.links)}"
        if span.status.status_code is StatusCode.ERROR:
            text += f" ERROR {span.attributes['error.type']}"
        return text + "".join(f" [{event.name}]" for event in span.events)


def watched(run: Iterable[Event], *, content: bool = False, info: RunInfo | None = None) -> Tracing:
    """``run`` told to the watcher."""
    tracing = Tracing()
    watch = OpenTelemetry(provider=tracing.provider, content=content, wall=lambda: BEGAN)
    with watch(info or RunInfo("r1", "atlas", ScriptedRuntime([]))) as observe:
        for event in run:
            observe(event)
    return tracing


GOLDEN = """\
invoke_agent atlas 0.00-7.66 [plan.fault] [task.skipped]
  plan 0.02-2.45
    chat scripted 0.02-2.45
  execute_tool web_search 0.62-1.10 #1
  execute_tool web_search 0.95-1.61 #2
  execute_tool web_fetch 1.24-2.30 #3 after 1
  execute_tool web_fetch 1.61-3.20 #4 after 2 ERROR tool
  join 3.21-3.95
    chat scripted 3.21-3.95
  plan 3.96-5.20
    chat scripted 3.96-5.20
  execute_tool web_fetch 4.50-5.60 #6 after 2
  execute_tool calc 5.60-5.61 #7 after 6, 3
  join 5.62-7.65
    chat scripted 5.65-7.65"""


def test_what_the_bank_did_lies_under_its_call() -> None:
    """The wait for another's finding, whose that was, and what was offered; no texts of pages."""
    tracing = watched(
        [
            RunStarted("R.2", "?"),
            *(TaskPlanned(1, Task(id, "look", {"q": "x"})) for id in (1, 2)),
            TaskStarted(1, at=1.0),
            LeaseAwaited(1, ("R.1", 4), 1, at=1.0),
            EntryUsed(1, "e", ("R.1", 4), 1, 1.9, at=2.5),
            TaskDone(1, Ok("found"), at=2.5, via="bank"),
            TaskStarted(2, at=1.0),
            EntryOffered(2, "f", True, "rule", 1.0, "two want it", at=1.5),
            TaskDone(2, Ok("found"), at=1.5),
            BankFailed("the disk is full", at=2.0),
            RunFinished("answered", at=3.0),
        ]
    )
    assert (
        tracing.tree()
        == """\
invoke_agent atlas 0.00-3.00 [memory.awaited] [memory.failed]
  execute_tool look 1.00-2.50 #1
    search_memory 1.00-2.50
  execute_tool look 1.00-1.50 #2
    create_memory 1.50-1.50"""
    )
    found = {span.name: span.attributes for span in tracing.spans}
    assert found["search_memory"] == {
        "gen_ai.operation.name": "search_memory",
        "agentpar.memory.entry": "e",
        "agentpar.memory.producer.run": "R.1",
        "agentpar.memory.producer.task": 4,
        "agentpar.memory.producer.team": 1,
        "agentpar.memory.spared_seconds": 1.9,
    }
    assert found["create_memory"]["agentpar.memory.admitted"] is True
    assert "two want it" not in str(found)


def test_a_run_is_one_tree_of_spans() -> None:
    """Plans and tools overlap under the run; calls link to the calls they needed."""
    tracing = watched(events())
    assert tracing.tree() == GOLDEN
    assert len({span.context.trace_id for span in tracing.spans}) == 1


def test_spans_speak_the_conventions_for_generative_ai() -> None:
    """Operation, provider, model, agent, tool, tokens; kinds of span."""
    spans = {span.name: span for span in watched(events()).spans}
    root, chat = spans["invoke_agent atlas"], spans["chat scripted"]
    call = spans["execute_tool calc"]
    assert dict(root.attributes) == {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.name": "atlas",
        "gen_ai.provider.name": "scripted",
        "gen_ai.request.model": "scripted",
        "gen_ai.usage.input_tokens": 612 + 840 + 905 + 1204,
        "gen_ai.usage.output_tokens": 118 + 14 + 52 + 61,
        "gen_ai.usage.cache_read.input_tokens": 512 + 600 + 840,
        "agentpar.run.id": "r1",
        "agentpar.run.status": "answered",
    }
    assert dict(chat.attributes) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "scripted",
        "gen_ai.request.model": "scripted",
        "gen_ai.usage.input_tokens": 1204,
        "gen_ai.usage.output_tokens": 61,
        "gen_ai.usage.cache_read.input_tokens": 840,
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.response.time_to_first_chunk": 0.38,
    }
    assert dict(call.attributes) == {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "calc",
        "gen_ai.tool.type": "function",
        "gen_ai.tool.call.id": "7",
        "agentpar.round": 2,
        "agentpar.task.attempt": 1,
        "agentpar.task.needs": (6, 3),
    }
    assert (chat.kind, call.kind) == (SpanKind.CLIENT, SpanKind.INTERNAL)
    assert spans["plan"].attributes["gen_ai.operation.name"] == "plan"


def everything(spans: Iterable[ReadableSpan]) -> str:
    return "".join(span.to_json() for span in spans)


def test_content_leaves_only_when_it_is_asked_for() -> None:
    """Arguments, results, texts and error messages; the question is one of them."""
    words = ("Chile", "19629590", "http://atlas.example", "HTTP 404", "Thought", "serach")
    assert not [word for word in words if word in everything(watched(events()).spans)]
    spans = watched(events(), content=True).spans
    assert [word for word in words if word not in everything(spans)] == []
    (call,) = (s for s in spans if s.attributes.get("gen_ai.tool.call.id") == "7" and s.links)
    assert json.loads(call.attributes["gen_ai.tool.call.result"]) == 14723129
    assert json.loads(call.attributes["gen_ai.tool.call.arguments"])["a"] == 34352719
    (root,) = (s for s in spans if s.parent is None)
    assert json.loads(root.attributes["gen_ai.input.messages"]) == [
        {
            "role": "user",
            "parts": [{"type": "text", "content": "Which has more people, Chile or Peru?"}],
        }
    ]


def test_whatever_a_page_says_can_be_sent() -> None:
    """Lone surrogates, control characters: the exporter's protobuf takes them all."""
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

    hostile = [*hostile_events()]
    hostile[1:1] = [RunResumed(("tool '\ud83d' is new",), Permissions())]
    spans = watched(hostile, content=True).spans
    sent = encode_spans(spans).SerializeToString()
    assert b"tool '?' is new" in sent
    assert HOSTILE[:20] in everything(spans)


@given(st.data())
@settings(deadline=None)
def test_every_span_that_was_opened_is_closed_once(data: st.DataObject) -> None:
    """Also where the run is cut off anywhere, or facts are missing."""
    every = [event for event in events() if data.draw(st.booleans())]
    tree = SpanTree(RunInfo("r"), content=data.draw(st.booleans()))
    changes = [change for event in every for change in tree.add(event)] + tree.end()
    opened = [c.key for c in changes if isinstance(c, Opened)]
    closed = [c.key for c in changes if isinstance(c, Closed)]
    assert sorted(opened) == sorted(closed)
    assert len(set(opened)) == len(opened)
    known: set[Any] = set()
    for change in changes:
        match change:
            case Opened():
                assert {*change.links, *([change.parent] if change.parent else [])} <= known
                known.add(change.key)
            case Noted():
                assert ROOT in known
    if changes:
        assert isinstance(changes[-1], Closed)
        assert changes[-1].key == ROOT


def test_a_cancelled_run_closes_what_was_at_work() -> None:
    """Its spans end with the run and say that they were cancelled."""
    cut = [event for event in events() if event.at < 1.3]
    tracing = watched([*cut, RunFinished("cancelled", "by the caller", 1.3)])
    ended = {s.name: s for s in tracing.spans}
    assert ended["invoke_agent atlas"].status.status_code is StatusCode.ERROR
    assert ended["execute_tool web_fetch"].attributes["error.type"] == "cancelled"
    assert ended["plan"].attributes["error.type"] == "cancelled"


def test_a_run_carried_on_knows_what_was_planned() -> None:
    """Another part of a run is a tree of its own under the same run id; its tools have names."""
    every = events()
    cut = next(n for n, event in enumerate(every) if isinstance(event, TaskDone))
    tracing = watched(every[cut:], info=RunInfo("r1", "atlas", history=tuple(every[:cut])))
    assert "execute_tool ?" not in {span.name for span in tracing.spans}
    (root,) = (span for span in tracing.spans if span.parent is None)
    assert root.attributes["agentpar.run.id"] == "r1"


def test_a_host_that_asks_for_less_and_a_run_carried_on_are_told() -> None:
    """Who was told so, and for how long, and what had changed; the host's name is content."""
    run = [
        RunStarted("r1", "?"),
        TaskPlanned(1, Task(1, "lookup", {})),
        TaskStarted(1, at=1.0),
        HostThrottled(1, "a.example", 30.0, at=1.5),
        RunResumed(("tool 'pay' is new",), Permissions(), at=2.0),
        RunFinished("answered", at=3.0),
    ]
    for content in (False, True):
        (root,) = (s for s in watched(run, content=content).spans if s.parent is None)
        throttled, resumed = root.events
        assert (throttled.name, resumed.name) == ("host.throttled", "run.resumed")
        assert throttled.timestamp == BEGAN + 1_500_000_000
        assert throttled.attributes["gen_ai.tool.name"] == "lookup"
        assert throttled.attributes["agentpar.host.retry_after_seconds"] == 30.0
        assert throttled.attributes.get("server.address") == ("a.example" if content else None)
        assert resumed.attributes["agentpar.run.changes"] == ("tool 'pay' is new",)


def test_a_value_known_without_a_call_is_told_and_is_no_span() -> None:
    """What took no time is an event of the run's span, so that the trace leaves out nothing."""
    run = [
        event for event in events() if not (isinstance(event, TaskStarted) and event.task_id == 7)
    ]
    tracing = watched(run)
    assert "execute_tool calc" not in {span.name for span in tracing.spans}
    (root,) = (span for span in tracing.spans if span.parent is None)
    (reused,) = (event for event in root.events if event.name == "task.reused")
    assert reused.attributes == {"gen_ai.tool.name": "calc", "gen_ai.tool.call.id": "7"}


def test_a_run_that_pauses_is_no_error() -> None:
    """LangGraph's interrupt: the part's root span ends, and says that the run is paused."""
    (root,) = (s for s in watched(events()[:1]).spans if s.parent is None)
    assert root.attributes["agentpar.run.status"] == "paused"
    assert root.status.status_code is StatusCode.UNSET


# ── Whole agents ─────────────────────────────────────────────────────────────────


@tool
async def double(n: int) -> int:
    """Twice the number."""
    return 2 * n


@tool
async def broken(n: int) -> int:
    """Never works."""
    raise ValueError(f"no {n}")


def script(*numbers: int, name: str = "double") -> list[str]:
    calls = [f"{id}. {name}(n={number})\n" for id, number in enumerate(numbers, 1)]
    return ["".join(calls) + "join()", "Answer: done"]


async def test_two_runs_at_once_do_not_mix() -> None:
    """Each has its own trace, with its own calls in it."""
    import asyncio

    tracing = Tracing()
    watch = OpenTelemetry(provider=tracing.provider, content=True)

    async def one(name: str, *numbers: int) -> None:
        runtime = ScriptedRuntime(script(*numbers), delay=0.001)
        async with Agent([double], runtime=runtime, name=name, watch=[watch]) as agent:
            await agent.ask("?")

    await asyncio.gather(one("a", 1, 2, 3), one("b", 10, 20))
    results: dict[str, list[str]] = {}
    roots = {s.context.trace_id: s.attributes["gen_ai.agent.name"]
             for s in tracing.spans if s.parent is None}  # fmt: skip
    for span in tracing.spans:
        if (result := span.attributes.get("gen_ai.tool.call.result")) is not None:
            results.setdefault(roots[span.context.trace_id], []).append(result)
    assert {name: sorted(found) for name, found in results.items()} == {
        "a": ["2", "4", "6"],
        "b": ["20", "40"],
    }


async def test_a_run_is_the_child_of_the_span_it_begins_in() -> None:
    """So that an agent in a web service is part of the request's trace."""
    tracing = Tracing()
    tracer = tracing.provider.get_tracer("service")
    watch = OpenTelemetry(provider=tracing.provider)
    async with Agent([double], runtime=ScriptedRuntime(script(1)), watch=[watch]) as agent:
        with tracer.start_as_current_span("request") as request:
            await agent.ask("?")
    (root,) = (span for span in tracing.spans if span.name == "invoke_agent agent")
    assert root.parent is not None
    assert root.parent.span_id == request.get_span_context().span_id


def answers_of_teams(tracing: Tracing) -> tuple[ReadableSpan, list[ReadableSpan]]:
    """The last root of all, and the roots of teams below it."""
    roots = [span for span in tracing.spans if span.name == "invoke_agent agent"]
    whole = [span for span in roots if "agentpar.teams" in span.attributes][-1]
    below = [s for s in roots if s.parent and s.parent.span_id == whole.context.span_id]
    return whole, sorted(below, key=lambda span: span.attributes["agentpar.team"])


async def test_a_run_of_teams_is_one_tree() -> None:
    """The run on top, its teams and the judge below; the judge's tokens are the run's own."""
    tracing = Tracing()
    watch = OpenTelemetry(provider=tracing.provider, content=True)
    async with Agent([double], runtime=Rivals(), seed=0, watch=[watch]) as agent:
        answer = await agent.ask("Which?", run_id="r", teams=Teams(2, "judge"))
    assert answer.chosen == 2
    whole, teams = answers_of_teams(tracing)
    assert whole.parent is None
    assert len({span.context.trace_id for span in tracing.spans}) == 1
    assert [span.attributes["agentpar.run.id"] for span in (whole, *teams)] == ["r", "r.1", "r.2"]
    assert [span.attributes["agentpar.team"] for span in teams] == [1, 2]
    assert "Which?" in whole.attributes["gen_ai.input.messages"]
    chats = [span for span in tracing.spans if span.name.startswith("chat")]
    judging = [s for s in chats if s.parent and s.parent.span_id == whole.context.span_id]
    assert (len(chats), len(judging)) == (5, 1)
    assert whole.attributes["gen_ai.usage.input_tokens"] == 10
    spent = sum(span.attributes["gen_ai.usage.input_tokens"] for span in (whole, *teams))
    assert spent == answer.usage.prompt_tokens
    assert [event.name for event in whole.events][-1] == "team.chosen"


async def test_a_run_of_teams_that_is_carried_on_has_its_teams_below_it(tmp_path: Path) -> None:
    """Although it tells nothing by itself before they do."""
    tracing = Tracing()
    watch = OpenTelemetry(provider=tracing.provider)
    journal = f"sqlite:///{tmp_path}/j.db"
    for runtime in (Rivals(hang=True), Rivals()):
        agent = Agent([double], runtime=runtime, seed=0, watch=[watch], journal=journal)
        async with agent, agent.run("Which?", run_id="r", teams=2) as run:
            async for event in run:
                if runtime.hang and isinstance(getattr(event, "told", None), TaskDone):
                    break
    whole, teams = answers_of_teams(tracing)
    assert whole.attributes["agentpar.run.status"] == "answered"
    assert [span.attributes["agentpar.run.id"] for span in teams] == ["r.1", "r.2"]


async def test_a_failed_tool_and_a_failed_model_are_errors_in_the_trace() -> None:
    """By kind; the run that has no answer is one too."""
    tracing = Tracing()
    texts = [script(1, name="broken")[0], RuntimeError("gone")]
    watch = OpenTelemetry(provider=tracing.provider)
    async with Agent([broken], runtime=ScriptedRuntime(texts), watch=[watch]) as agent:
        with pytest.raises(RunFailed):
            await agent.ask("?")
    errors = {s.name: s.attributes["error.type"] for s in tracing.spans if not s.status.is_ok}
    assert errors == {"execute_tool broken": "tool", "join": "join", "invoke_agent agent": "failed"}


async def test_leaving_a_run_early_ends_its_spans() -> None:
    """Cancellation is a way to end, not a way to lose the trace."""
    import asyncio

    begun = asyncio.Event()

    @tool
    async def wait() -> int:
        """Waits for ever."""
        begun.set()
        await asyncio.Event().wait()
        return 1

    tracing = Tracing()
    runtime = ScriptedRuntime(["1. wait()\njoin()"])
    watch = OpenTelemetry(provider=tracing.provider)
    async with Agent([wait], runtime=runtime, watch=[watch]) as agent, agent.run("?"):
        await begun.wait()
    ended = {span.name: span.attributes.get("error.type") for span in tracing.spans}
    assert ended["execute_tool wait"] == "cancelled"
    assert ended["invoke_agent agent"] == "cancelled"


# ── A watcher's own faults ───────────────────────────────────────────────────────


@contextmanager
def raising(run: RunInfo) -> Iterator[Callable[[Event], None]]:
    def observe(event: Event) -> None:
        raise ZeroDivisionError("in the watcher")

    yield observe


def unopened(run: RunInfo) -> Any:
    raise OSError("no way to open")


@contextmanager
def unclosed(run: RunInfo) -> Iterator[Callable[[Event], None]]:
    yield lambda event: None
    raise OSError("no way to close")


@pytest.mark.parametrize("watch", [raising, unopened, unclosed])
async def test_a_watcher_that_raises_is_told_of_once_and_the_run_goes_on(
    watch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The record ends a run that it cannot keep; a watcher does not. Others see everything."""
    seen: list[Event] = []

    @contextmanager
    def other(run: RunInfo) -> Iterator[Callable[[Event], None]]:
        yield seen.append

    with caplog.at_level(logging.WARNING):
        runtime = ScriptedRuntime(script(1, 2))
        async with Agent([double], runtime=runtime, watch=[watch, other]) as agent:
            answer = await agent.ask("?", run_id="r7")
    assert answer.conclusion == "done"
    assert isinstance(seen[-1], RunFinished)
    (record,) = caplog.records
    assert record.name == "agentpar.watch"
    assert f"the watcher {watch.__name__} sees no more of run r7" in record.getMessage()


def test_a_watcher_that_is_none_is_the_callers_mistake() -> None:
    """Said where the agent is made, with what was given."""
    with pytest.raises(UsageError, match="watch takes watchers such as OpenTelemetry"):
        Agent(runtime=ScriptedRuntime([]), watch=["otel"])  # type: ignore[list-item]


# ── Over the wire ────────────────────────────────────────────────────────────────


class Receiver(ThreadingHTTPServer):
    """Takes what an OTLP/HTTP exporter sends."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.got: list[ExportTraceServiceRequest] = []


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.got.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def received(receiver: Receiver) -> Mapping[str, Any]:
    return {
        span.name: span
        for request in receiver.got
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    }


async def test_spans_arrive_over_otlp(receiver: Receiver) -> None:
    """Through the SDK's own exporter to a real HTTP server, parents and all."""
    provider = TracerProvider()
    endpoint = f"http://127.0.0.1:{receiver.server_port}/v1/traces"
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint)))
    watch = OpenTelemetry(provider=provider)
    async with Agent([double], runtime=ScriptedRuntime(script(4)), watch=[watch]) as agent:
        await agent.ask("?")
    provider.shutdown()
    spans = received(receiver)
    assert set(spans) == {
        "invoke_agent agent", "plan", "chat scripted", "execute_tool double", "join",
    }  # fmt: skip
    assert spans["execute_tool double"].parent_span_id == spans["invoke_agent agent"].span_id


def test_an_agent_file_traces_where_the_environment_says(receiver: Receiver, tmp_path: Any) -> None:
    """``watch: {otel: true}`` in a process that has set up nothing: all is sent by its end."""
    import os
    import subprocess
    import sys

    file = tmp_path / "agent.yaml"
    file.write_text("name: filed\ntools: [calc]\nwatch: {otel: true}\n")
    program = (
        "from agentpar import Agent, ScriptedRuntime\n"
        "texts = ['1. calc(expression=\"1 + 1\")\\njoin()', 'Answer: 2']\n"
        f"Agent.from_yaml({str(file)!r}, runtime=ScriptedRuntime(texts)).ask_sync('?')\n"
    )
    environment = {
        **os.environ,
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{receiver.server_port}",
        "NO_PROXY": "127.0.0.1",
    }
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert {"invoke_agent filed", "execute_tool calc"} <= set(received(receiver))


def test_a_call_in_the_place_of_another_has_a_span_of_its_own() -> None:
    """With the name of its tool; the one that ran there ends as cancelled."""
    tracing = watched(
        [
            RunStarted("r", "?"),
            TaskPlanned(1, Task.of(1, "slow")),
            TaskStarted(1, {}, 1.0),
            TaskReplaced(2, Task.of(1, "quick"), 2.0),
            AttemptEnded(1, 1, 2.0),
            TaskStarted(1, {}, 2.5, 2),
            TaskDone(1, Ok(1), 3.0, 2),
            RunFinished("answered", "", 4.0),
        ]
    )
    assert tracing.tree().splitlines()[1:] == [
        "  execute_tool slow 1.00-2.00 #1 ERROR cancelled",
        "  execute_tool quick 2.50-3.00 #1",
    ]


def test_each_attempt_has_a_span_of_its_own() -> None:
    """The loser of a hedge ends when it has ended, and whoever got the result is linked to the
    attempt that brought it; so is who came behind a failed attempt."""
    tracing = watched(
        [
            RunStarted("r", "?"),
            TaskPlanned(1, Task.of(1, "get")),
            TaskPlanned(1, Task.of(2, "put", value=Ref(1))),
            TaskStarted(1, {}, 1.0),
            TaskStarted(1, {}, 2.0, 2),
            TaskDone(1, Ok(1), 3.0, 2),
            TaskStarted(2, {}, 3.0),
            AttemptEnded(1, 1, 3.5),
            AttemptFailed(2, Failed("no"), 4.0),
            TaskStarted(2, {}, 5.0, 2),
            TaskDone(2, Ok(1), 6.0, 2),
            RunFinished("answered", "", 7.0),
        ]
    )
    assert tracing.tree().splitlines()[1:] == [
        "  execute_tool get 1.00-3.50 #1 ERROR cancelled",
        "  execute_tool get 2.00-3.00 #1",
        "  execute_tool put 3.00-4.00 #2 after 1 ERROR tool",
        "  execute_tool put 5.00-6.00 #2 after 1",
    ]
    attempts = {s.context.span_id: s.attributes["agentpar.task.attempt"] for s in tracing.spans
                if s.name.startswith("execute")}  # fmt: skip
    linked = [attempts[link.context.span_id] for span in tracing.spans for link in span.links]
    assert linked == [2, 2]


def test_workers_are_named_and_what_they_wrote_is_content() -> None:
    """In the span of the model call they are part of: under the join, or under their task."""
    run = [
        RunStarted("r", "Why?"),
        TaskPlanned(1, Task.of(1, "think", question="Why?"), at=1.0),
        TaskStarted(1, {"question": "Why?"}, at=1.0),
        WorkersStarted(1, ("Alice", "Bob"), "rows", task_id=1, at=1.0),
        WorkerText(1, "Alice", "canary one", task_id=1, at=2.0),
        WorkersEnded(1, ("Bob broke off",), task_id=1, at=3.0),
        ModelUsed("think", 1, Usage(5, 6, calls=3), 0.1, 2.0, 3.0, task_id=1),
        TaskDone(1, Ok("So."), at=3.0),
        JoinStarted(1, at=4.0),
        WorkersStarted(1, ("Alice",), "log", "no cache", at=4.0),
        WorkerText(1, "Alice", "canary ", at=5.0),
        WorkerText(1, "Alice", "two", at=5.0),
        JoinText(1, "It is so.", at=6.0),
        WorkersEnded(1, at=6.0),
        ModelUsed("join", 1, Usage(7, 8, calls=2), 0.1, 2.0, 6.0),
        Answered(1, "It is so.", at=6.0),
        RunFinished("answered", at=6.0),
    ]
    tracing = watched(run, content=True)
    parents = {span.context.span_id: span.name for span in tracing.spans}
    chats = {
        parents[span.parent.span_id]: dict(span.attributes or {})
        for span in tracing.spans
        if span.kind is SpanKind.CLIENT and span.parent is not None
    }
    think, join = chats["execute_tool think"], chats["join"]
    assert think["agentpar.workers"] == ("Alice", "Bob")
    assert (think["agentpar.workers.backend"], join["agentpar.workers.backend"]) == ("rows", "log")
    said = [
        (message.get("name"), message["parts"][0]["content"])
        for message in json.loads(str(join["gen_ai.output.messages"]))
    ]
    assert said == [("Alice", "canary two"), (None, "It is so.")]
    assert "canary one" in str(think["gen_ai.output.messages"])
    assert "canary" not in everything(watched(run).spans)
