"""The key in an agent's file goes to the server that the file names, and to no other."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import typer

from agentpar import Agent, ScriptedRuntime
from agentpar.cli.asking import Wish, ask

KEY = "sk-of-the-file"
QUESTION = "What is 1 + 1?"
TEXTS = ('1. calc(expression="1 + 1")\njoin()', "1 + 1 is 2 [1].\nAnswer: 2")


class Server(ThreadingHTTPServer):
    """A model server that remembers every key it was shown and every model it was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.texts = list(TEXTS)
        self.keys: set[str | None] = set()
        self.models: set[str] = set()


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.keys.add(self.headers["authorization"])
        self._head(200 if self.path == "/v1/models" else 404, "application/json")
        self.wfile.write(b'{"data": [{"id": "its-own"}]}')

    def do_POST(self) -> None:
        self.server.keys.add(self.headers["authorization"])
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.models.add(asked["model"])
        self._head(200, "text/event-stream")
        chunk = {"choices": [{"delta": {"content": self.server.texts.pop(0)}}]}
        self.wfile.write(f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n".encode())

    def _head(self, status: int, kind: str) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.end_headers()

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


def agent_file(folder: Path, url: str = "http://127.0.0.1:9/v1") -> Path:
    path = folder / "agent.yaml"
    model = f"{{id: of-the-file, base_url: '{url}', api_key: {KEY}}}"
    path.write_text(f"version: 1\nmodel: {model}\ntools: [calc]\n")
    return path


def test_the_key_goes_to_the_server_of_the_file(server: Server, tmp_path: Path) -> None:
    """Where the file names the server, key and model name are sent to it."""
    answer = Agent.from_yaml(agent_file(tmp_path, server.url)).ask_sync(QUESTION)
    assert answer.conclusion == "2"
    assert server.keys == {f"Bearer {KEY}"}
    assert server.models == {"of-the-file"}


def test_another_model_does_not_get_the_key(server: Server, tmp_path: Path) -> None:
    """``from_yaml(path, model=…)`` takes neither the key nor the model's name along."""
    answer = Agent.from_yaml(agent_file(tmp_path), model=server.url).ask_sync(QUESTION)
    assert answer.conclusion == "2"
    assert server.keys == {None}
    assert server.models == {"its-own"}


def test_a_runtime_takes_the_place_of_the_model(tmp_path: Path) -> None:
    """``from_yaml(path, runtime=…)`` works with a file that names a model."""
    agent = Agent.from_yaml(agent_file(tmp_path), runtime=ScriptedRuntime(TEXTS))
    assert agent.ask_sync(QUESTION).conclusion == "2"


@pytest.mark.parametrize("flag", ["model_url", "model"])
def test_a_server_from_the_command_line_does_not_get_the_key(
    server: Server, tmp_path: Path, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """``--model-url URL`` and ``--model URL`` take neither the key nor the name along."""
    given = {"model_url": None, "model": None, flag: server.url}
    file = agent_file(tmp_path)
    with pytest.raises(typer.Exit) as ended:
        ask(Wish(file, QUESTION, output="quiet", runs=tmp_path / "runs", **given))
    assert ended.value.exit_code == 0, capsys.readouterr().err
    assert server.keys == {None}
    assert server.models == {"its-own"}
