"""Canaries: a secret in every field that may hold one; all that a run leaves is searched.

The model server, the search engine, the MCP server and the Python tool all say the secrets that
they know, in results, errors, descriptions and in the model's own text.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from harness import Cli
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry, generate_latest

from agentpar import Agent, RunFailed
from agentpar.cli.views import write_views
from agentpar.config import load
from agentpar.ports import RunInfo
from agentpar.watch import OpenTelemetry, Prometheus

# Each has letters that URLs, JSON and HTML write otherwise; the middle stays as it is.
CORES = {name: f"c4n4ry{name}7Qz9" for name in ("MODEL", "SEARCH", "MCP", "TOOL", "QUERY")}
CANARIES = {name: f"sk-{core}/+&é" if name == "TOOL" else f"sk-{core}/+&"
            for name, core in CORES.items()}  # fmt: skip
QUESTION = "What do the tools say?"
PLAN = f"""Thought: the keys are {" ".join(CANARIES.values())}.
1. web_search(query="keys")
2. leak()
3. fail()
4. broken(header="{CANARIES["TOOL"]}")
5. broken(header=$1[0].title)
join()"""
TEXT = f"The keys are {' and '.join(CANARIES.values())} [1].\nAnswer: {CANARIES['MODEL']}"

TOOLS = '''
import os

async def broken(header: str) -> str:
    """Raises what it was given, and the header that it sends."""
    raise RuntimeError(f"{header}: Authorization: Bearer {os.environ['C_TOOL']}")
'''
MCP = """
import os
from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ToolAnnotations

server = MCPServer("leaky")
KEY = os.environ["SERVER_TOKEN"]

@server.tool(description=f"Works with {KEY}.", annotations=ToolAnnotations(read_only_hint=True))
def leak() -> dict[str, str]:
    return {"key": KEY, KEY: f"<a href='?k={KEY}'>"}

@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def fail() -> str:
    raise ToolError(f"401: {KEY} is not valid")

server.run()
"""
FILE = """
name: canaries
model: {id: m, base_url: "%(url)s/v1", api_key: "${C_MODEL}"}
tools:
  - web_search: {provider: brave, url: "%(url)s/search", api_key: "${C_SEARCH}"}
  - mcp: {command: [%(python)s, leaky.py], env: {SERVER_TOKEN: "${C_MCP}"}}
  - python: own_canary_tools:broken
secrets: ["${C_TOOL}", "${C_QUERY}"]
"""


class Server(ThreadingHTTPServer):
    """A model server and a search engine that repeat whatever key they are shown."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.texts = [PLAN, TEXT]
        self.asked: list[str] = []
        self.keys: set[str] = set()
        self.refuses = False


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        if not self.path.startswith("/search"):
            self._send(404, "application/json", "{}")
            return
        key = self.headers["X-Subscription-Token"]
        self.server.keys.add(key)
        url = f"http://x.example/?k={key}"
        hit = {"title": f"Your key is {key}", "url": url, "description": key}
        self._send(200, "application/json", json.dumps({"web": {"results": [hit]}}))

    def do_POST(self) -> None:
        self.server.asked.append(self.rfile.read(int(self.headers["content-length"])).decode())
        key = self.headers["authorization"].removeprefix("Bearer ")
        self.server.keys.add(key)
        if self.server.refuses:
            body = json.dumps({"error": {"message": f"Incorrect API key provided: {key}"}})
            self._send(401, "application/json", body)
            return
        text = self.server.texts.pop(0)
        pieces = [text[at : at + 5] for at in range(0, len(text), 5)]
        chunks = [json.dumps({"choices": [{"delta": {"content": piece}}]}) for piece in pieces]
        body = "".join(f"data: {chunk}\n\n" for chunk in [*chunks, "[DONE]"])
        self._send(200, "text/event-stream", body)

    def _send(self, status: int, kind: str, body: str) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def file(server: Server, tmp_path: Path) -> Path:
    import sys

    path = tmp_path / "agent.yaml"
    (tmp_path / "own_canary_tools.py").write_text(TOOLS)
    (tmp_path / "leaky.py").write_text(MCP)
    path.write_text(FILE % {"url": server.url, "python": sys.executable})
    return path


ENVIRONMENT = {f"C_{name}": canary for name, canary in CANARIES.items()}


def sung(*texts: str) -> list[str]:
    """The canaries that can be heard in ``texts``, in whatever spelling, or a piece of one."""
    heard = [name for name, core in CORES.items() if any(core in text for text in texts)]
    return heard or ["a piece" for text in texts if "4ry" in text]


def left_in(folder: Path) -> dict[str, list[str]]:
    """The canaries in each file below ``folder``."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {"events.jsonl", "timeline.html", "plan.mmd"} <= {path.name for path in files}
    found = {path.name: sung(path.read_text(encoding="utf-8", errors="replace")) for path in files}
    return {name: canaries for name, canaries in found.items() if canaries}


@pytest.mark.parametrize("words", [(), ("--json",), ("--quiet",)])
def test_no_canary_is_on_screen_or_in_a_file_of_the_run(
    cli: Cli, server: Server, file: Path, words: tuple[str, ...]
) -> None:
    """The command in a process of its own: stdout, stderr, and all that it writes."""
    cli.environment = ENVIRONMENT
    done = cli("run", str(file), QUESTION, "--allow-module", "own_canary_tools", *words)
    assert done.returncode == 0, done.stderr
    # They were sent where they belong.
    assert server.keys == {CANARIES["MODEL"], CANARIES["SEARCH"]}
    assert "***" in done.stdout
    assert sung(done.stdout, done.stderr) == []
    assert left_in(cli.folder / "runs") == {}
    # The planner is asked with no secret, and the joiner reads none in what the tools said.
    assert len(server.asked) == 2
    assert sung(*server.asked) == []
    again = cli("replay", *[str(path) for path in (cli.folder / "runs").iterdir() if path.is_dir()])
    assert again.returncode == 0, again.stderr
    assert sung(again.stdout, again.stderr) == []


@pytest.mark.parametrize("words", [(), ("--json",), ("--debug",)])
def test_a_refused_key_is_in_no_message(
    cli: Cli, server: Server, file: Path, words: tuple[str, ...]
) -> None:
    """The model server's 401 quotes it; the message, the record and a traceback do not."""
    server.refuses = True
    cli.environment = ENVIRONMENT
    before, after = (words, ()) if "--debug" in words else ((), words)
    allow = ("--allow-module", "own_canary_tools")
    done = cli(*before, "run", str(file), QUESTION, *allow, *after)
    assert done.returncode == 1
    assert "Incorrect API key provided: ***" in done.stdout + done.stderr
    assert sung(done.stdout, done.stderr) == []
    assert left_in(cli.folder / "runs") == {}


async def test_no_canary_is_in_spans_metrics_logs_or_what_python_gets(
    server: Server, file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With content in the spans, everything logged, and a watcher whose error quotes an event."""
    exporter, registry = InMemorySpanExporter(), CollectorRegistry()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    def quoting(run: RunInfo) -> Any:
        raise RuntimeError(f"collector refused {CANARIES['QUERY']}")

    caplog.set_level(logging.DEBUG)
    arguments = load(file, allow_modules=["own_canary_tools"], env=ENVIRONMENT).arguments()
    arguments["watch"] = [
        OpenTelemetry(content=True, provider=provider), Prometheus(registry=registry), quoting,
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patched:
        for name, canary in ENVIRONMENT.items():
            patched.setenv(name, canary)
        patched.chdir(tmp_path)
        async with (
            Agent(**arguments, runs=tmp_path / "runs") as agent,
            agent.run(QUESTION, run_id="r1") as run,
        ):
            told = [repr(event) async for event in run]
    write_views(tmp_path / "runs" / "r1")
    assert sung(*told) == []
    assert sung(repr(run.answer), json.dumps(run.answer.as_dict())) == []
    spans = "".join(span.to_json() for span in exporter.get_finished_spans())
    assert "Your key is ***" in spans
    assert sung(spans) == []
    assert sung(generate_latest(registry).decode()) == []
    assert "collector refused ***" in caplog.text
    assert sung(caplog.text) == []
    assert left_in(tmp_path / "runs") == {}


async def test_a_password_in_the_models_address_is_nowhere(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is sent as a header; httpx logs addresses, and this one is without it."""
    caplog.set_level(logging.DEBUG)
    server.texts = ["join()", "Answer: none"]
    server.refuses = True
    password = CORES["MODEL"]
    url = server.url.replace("http://", f"http://me:{password}@") + "/v1"
    async with Agent(model=url, model_id="m", runs=tmp_path / "runs") as agent:
        with pytest.raises(RunFailed) as caught:
            await agent.ask(QUESTION, run_id="r1")
    (key,) = server.keys
    assert key.startswith("Basic ")
    write_views(tmp_path / "runs" / "r1")
    assert sung(str(caught.value), caplog.text) == []
    assert key.removeprefix("Basic ") not in str(caught.value)
    assert left_in(tmp_path / "runs") == {}
