"""The real command in a process of its own, and a model server that says what a test wrote."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

import pytest

# Ctrl-C reaches the command even where the suite itself runs in the background.
_START = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from agentpar.cli import main; main()"
)
_TIMEOUT = 100  # seconds for one command, on the busiest machine


@dataclass(frozen=True)
class Hang:
    """A text after which the model says nothing more and keeps the stream open."""

    text: str


@dataclass(frozen=True)
class Always:
    """What is said to every planner and to every joiner, in whichever order they ask."""

    plan: str
    answer: str | Hang


class ModelServer(ThreadingHTTPServer):
    """Speaks OpenAI's streaming protocol on loopback; gives its texts in order."""

    daemon_threads = False
    block_on_close = True

    def __init__(self, *texts: str | Hang | Always) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.texts = list(texts)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: ModelServer

    def do_GET(self) -> None:
        found = self.path == "/v1/models"
        self._head(200 if found else 404, "application/json")
        self.wfile.write(json.dumps({"data": [{"id": "scripted"}]} if found else {}).encode())

    def do_POST(self) -> None:
        with contextlib.suppress(ConnectionError):  # the command was interrupted
            self._answer()

    def _answer(self) -> None:
        asked = self.rfile.read(int(self.headers["content-length"]))
        if isinstance(text := self.server.texts[0], Always):
            text = text.answer if b"You answer a question" in asked else text.plan
        else:
            self.server.texts.pop(0)
        self._head(200, "text/event-stream")
        said = text.text if isinstance(text, Hang) else text
        for start in range(0, len(said), 16):
            self._send({"choices": [{"delta": {"content": said[start : start + 16]}}]})
        if isinstance(text, Hang):
            self.connection.settimeout(_TIMEOUT)
            self.connection.recv(1)  # comes back when the client hangs up
            return
        self._send({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 7}})
        self.wfile.write(b"data: [DONE]\n\n")

    def _head(self, status: int, kind: str) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.end_headers()

    def _send(self, data: object) -> None:
        self.wfile.write(f"data: {json.dumps(data)}\n\n".encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@dataclass
class Cli:
    """Runs ``agentpar`` in ``folder``, with a cache folder of its own."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.argv(words),
            cwd=self.folder,
            env=self.env(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
        )

    def interrupt(
        self,
        at: str,
        *words: str,
        sign: int = signal.SIGINT,
        watch: Literal["stdout", "stderr"] = "stdout",
        first: Callable[[str], None] = lambda line: None,
    ) -> subprocess.CompletedProcess[str]:
        """Run until a line with ``at`` is printed, send the signal, wait for the end.

        ``first`` is called with that line before the signal is sent.
        """
        process = self.start(*words)
        watched = getattr(process, watch)
        seen = ""
        try:
            for line in watched:
                seen += line
                if at in line:
                    break
            else:
                pytest.fail(f"{at!r} was never printed: {seen}{process.communicate()}")
            first(line)
            process.send_signal(sign)
            out, err = process.communicate(timeout=_TIMEOUT)
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()
        out, err = (seen + out, err) if watch == "stdout" else (out, seen + err)
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.argv(words),
            cwd=self.folder,
            env=self.env(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def argv(self, words: tuple[str, ...]) -> list[str]:
        return [sys.executable, "-c", _START, *words]

    def env(self) -> dict[str, str]:
        return {
            **os.environ,
            "AGENTPAR_HOME": str(self.folder / "cache"),
            "COLUMNS": "120",
            "NO_COLOR": "1",
            **self.environment,
        }
