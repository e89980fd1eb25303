"""A real HTTP server on the loopback interface that says whatever bytes a test wants."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

Answer = bytes | Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Server:
    """What came in: connections, and the heads of the requests."""

    port: int = 0
    scheme: str = "http"
    host: str = "127.0.0.1"
    connections: int = 0
    heads: list[str] = field(default_factory=list)
    routes: dict[str, list[Answer]] = field(default_factory=dict)

    @property
    def origin(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                self.heads.append(head)
                for line in head.splitlines():
                    if line.lower().startswith("content-length:"):
                        await reader.readexactly(int(line.split(":")[1]))
                answers = self.routes.get(head.split()[1], [reply(b"no such page", status=404)])
                answer = answers.pop(0) if len(answers) > 1 else answers[0]
                if not isinstance(answer, bytes):
                    await answer(writer)
                    return
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def reply(
    body: bytes | str = b"",
    media_type: str = "text/html; charset=utf-8",
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> bytes:
    """A complete HTTP response."""
    body = body.encode() if isinstance(body, str) else body
    lines = {"content-type": media_type, "content-length": str(len(body)), **(headers or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value)
    return f"HTTP/1.1 {status} Said\r\n{head}\r\n".encode() + body


def redirect(target: str, status: int = 302) -> bytes:
    return reply(status=status, headers={"location": target})


@asynccontextmanager
async def serving(
    routes: Mapping[str, Answer | list[Answer]] | None = None,
    tls: ssl.SSLContext | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
) -> AsyncIterator[Server]:
    """The server while it runs; a list of answers is given out one by one, the last for ever."""
    server = Server(scheme="https" if tls else "http", host=host)
    server.routes = {
        path: list(answer) if isinstance(answer, list) else [answer]
        for path, answer in (routes or {}).items()
    }
    tasks: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await server.handle(reader, writer)
        except asyncio.CancelledError:
            pass
        finally:
            tasks.discard(task)

    listener = await asyncio.start_server(handle, host, port, ssl=tls)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
