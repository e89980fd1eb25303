"""A real HTTP server on the loopback address that answers, or fails to, as a test says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

Answer = Callable[["Connection"], Awaitable[None]]


@dataclass
class Connection:
    """One request as the server saw it, and the way to answer it byte by byte."""

    path: str
    headers: dict[str, str]
    body: Any
    writer: asyncio.StreamWriter
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    async def send(self, data: bytes | str) -> None:
        self.writer.write(data.encode() if isinstance(data, str) else data)
        await self.writer.drain()

    async def head(
        self, status: str = "200 OK", kind: str = "text/event-stream", *more: str
    ) -> None:
        lines = [f"HTTP/1.1 {status}", f"content-type: {kind}", "connection: close", *more]
        await self.send("\r\n".join(lines) + "\r\n\r\n")

    async def chunk(self, text: str | None, **more: Any) -> None:
        choices = [] if text is None else [{"delta": {"content": text}, "finish_reason": None}]
        await self.send(f"data: {json.dumps({'choices': choices, **more}, ensure_ascii=False)}\n\n")

    async def end(self, **usage: Any) -> None:
        await self.chunk(None, usage=usage or None)
        await self.send("data: [DONE]\n\n")


class Wire:
    """The server: ``answers`` are used up in order, the last one stays."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.requests: list[Connection] = []
        self.asked = asyncio.Event()
        self.is_vllm = False
        self.metrics = ""
        self.door: tuple[str, str] | None = None
        self.most_at_once = 0
        self._open = 0
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read one request, answer it, hang up."""
        try:
            await self._serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client left, as some tests have it do
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.strip().split("\r\n")
        headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}
        length = int(headers.get("content-length", 0))
        body = json.loads(await reader.readexactly(length)) if length else None
        request = Connection(first.split()[1], headers, body, writer)
        watch = asyncio.create_task(self._watch(reader, request))
        self._open += 1
        self.most_at_once = max(self.most_at_once, self._open)
        try:
            await self._answer(request)
        finally:
            self._open -= 1
            watch.cancel()

    async def _watch(self, reader: asyncio.StreamReader, request: Connection) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.read()  # ends when the client hangs up
        request.gone.set()

    async def _answer(self, request: Connection) -> None:
        match request.path:
            case "/v1/models":
                await request.head(kind="application/json")
                await request.send(json.dumps({"data": [{"id": "m", "object": "model"}]}))
            case "/version" if self.is_vllm:
                await request.head(kind="application/json")
                await request.send('{"version": "0.32.0"}')
            case "/metrics" if self.metrics:
                await request.head(kind="text/plain")
                await request.send(self.metrics)
            case "/hogwild" if self.door:
                status, answer = self.door
                await request.head(status, "application/json")
                await request.send(answer)
            case "/v1/chat/completions" | "/v1/completions":
                self.requests.append(request)
                self.asked.set()
                answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                await answer(request)
            case _:
                await request.head("404 Not Found", "text/plain")


@contextlib.asynccontextmanager
async def serving(wire: Wire) -> AsyncIterator[Wire]:
    """Have ``wire`` listen, and at the end wait until its last connection is closed."""
    handlers: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        handlers.add(task)
        await wire.serve(reader, writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    wire.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield wire
    finally:
        server.close()
        await asyncio.wait_for(asyncio.gather(*handlers), 20)


@pytest.fixture
async def wire() -> AsyncIterator[Wire]:
    async with serving(Wire()) as wire:
        yield wire


@pytest.fixture
def wire_thread() -> Iterator[str]:
    """The address of a server with one good answer, in a thread, for tests with own loops."""

    async def hello(request: Connection) -> None:
        await request.head()
        await request.chunk("Hello")
        await request.end()

    async def main() -> None:
        wire = Wire()
        wire.answers = [hello]
        end = asyncio.Event()
        async with serving(wire):
            started.put((wire.url, asyncio.get_running_loop(), end))
            await end.wait()

    started: queue.Queue[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = queue.Queue()
    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    url, loop, end = started.get(timeout=20)
    yield url
    loop.call_soon_threadsafe(end.set)
    thread.join(20)
