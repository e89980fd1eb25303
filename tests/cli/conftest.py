"""The command and its model server, as fixtures."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import Cli, Hang, ModelServer


@pytest.fixture
def model_server() -> Iterator[Callable[..., ModelServer]]:
    """Starts a `ModelServer` with the given texts; it ends with the test."""
    running: list[tuple[ModelServer, threading.Thread]] = []

    def start(*texts: str | Hang) -> ModelServer:
        server = ModelServer(*texts)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        running.append((server, thread))
        return server

    yield start
    for server, thread in running:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)
