"""Tools of an MCP server, over stdio or streamable HTTP.

It never decides when a tool runs or whether a risky one may: it only says, from the
server's hints, which ones change the world.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from types import TracebackType
from typing import IO, Any

from agentpar.errors import BackendError, MissingPackage, UsageError
from agentpar.redact import Redactor, credentials, public_url, url_credentials
from agentpar.tools.arguments import check_schema, tidy
from agentpar.tools.base import Effect, Tool
from agentpar.tools.dialects import modern
from agentpar.tools.names import plan_name
from agentpar.tools.outputs import written_out


class McpServer:
    """The tools of one MCP server, while the connection is open.

    Give ``url`` (streamable HTTP, with optional ``headers``) or ``command`` (started as a
    child process that speaks over stdio; it sees only PATH, HOME and the like, and ``env``).
    ``allowed_tools`` names the tools to use; the server's own names and their plan form
    (``read-file`` is ``read_file``) both count. ``timeout`` is in seconds, for opening the
    connection and for each call.

    A tool is "read" only where the server says ``readOnlyHint: true``; every other one is
    "write" and waits for approval. ``effect`` overrides that for all of them: it is the
    caller's word against a missing hint. One that the server calls open to the world
    (``openWorldHint: true``) and not read-only also ``sends``, which no override takes back: for
    that, give the agent a rule. What a server returns is never taken for trusted.

    Opening and closing may happen in different tasks. A connection that drops is opened again
    once per call; then a "read" call is sent again, while a "write" call, which may have
    happened, fails and says so.

    >>> async with McpServer(command=["npx", "-y", "some-mcp-server"]) as tools:
    ...     agent = Agent(tools=tools, model=...)
    """

    def __init__(
        self,
        *,
        url: str | None = None,
        command: Sequence[str] | None = None,
        allowed_tools: Sequence[str] | None = None,
        headers: Mapping[str, str] | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 30.0,
        effect: Effect | None = None,
    ) -> None:
        if (url is None) == (not command):
            raise UsageError("an MCP server needs either url=… or command=[…], and not both")
        if isinstance(command, str):
            raise UsageError(f"command must be a list of words, got {command!r}")
        if command and headers:
            raise UsageError("headers go with url=…; give a command its settings with env=…")
        self._url = url
        self._command = tuple(command or ())
        self._allowed = None if allowed_tools is None else tuple(allowed_tools)
        self._headers = dict(headers or {})
        self._env = dict(env or {})
        self._timeout = timeout
        self._effect = effect
        self.secrets = (
            *url_credentials(url or ""),
            *credentials(self._headers),
            *credentials(self._env),
        )
        self._redactor = Redactor(self.secrets)
        self._hide = self._redactor.text
        self._connection: _Connection | None = None
        # Held while the connection changes, so that calls that saw the same drop open one.
        self._changing = asyncio.Lock()

    def __str__(self) -> str:
        where = public_url(self._url) if self._url else self._hide(" ".join(self._command))
        return f"MCP server {where!r}"

    async def start(self) -> list[Tool]:
        """Connect, and list the server's tools.

        Raises `BackendError` where the server cannot be started or reached, `UsageError`
        where an allowed tool does not exist, `MissingPackage` without the ``mcp`` extra.
        """
        async with self._changing:
            if self._connection is not None:
                raise UsageError(f"{self} is already open")
            connection = await self._open()
            try:
                tools = self._chosen(await self._listed(connection))
            except BaseException:
                await connection.close()
                raise
            self._connection = connection
        return tools

    async def stop(self) -> None:
        """Close the connection and end the server's process; harmless when it is not open."""
        async with self._changing:
            connection, self._connection = self._connection, None
            if connection is not None:
                await connection.close()

    async def __aenter__(self) -> list[Tool]:
        return await self.start()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def _open(self) -> _Connection:
        connection = _Connection(
            self._url, self._command, self._headers, self._env, self._timeout, self._hide
        )
        try:
            await connection.open()
        except TimeoutError:
            raise BackendError(
                f"{self} did not answer within {self._timeout:g} s{connection.last_words()}"
            ) from None
        except _Dropped as error:
            raise BackendError(f"{self} could not be opened: {error}") from error
        return connection

    async def _listed(self, connection: _Connection) -> list[Any]:
        try:
            async with asyncio.timeout(self._timeout):
                return await connection.list_tools()
        except TimeoutError:
            raise BackendError(
                f"{self} was still listing its tools after {self._timeout:g} s"
            ) from None
        except _Dropped as error:
            raise BackendError(f"{self} went away while it listed its tools: {error}") from error

    def _chosen(self, listed: Sequence[Any]) -> list[Tool]:
        if self._allowed is not None:
            known = {tool.name for tool in listed} | {plan_name(tool.name) for tool in listed}
            if unknown := [name for name in self._allowed if name not in known]:
                raise UsageError(
                    f"{self} has no tool {unknown[0]!r}; it has "
                    f"{', '.join(repr(tool.name) for tool in listed) or 'none'}"
                )
            listed = [t for t in listed if {t.name, plan_name(t.name)} & set(self._allowed)]
        return [self._tool(tool) for tool in listed]

    def _tool(self, listed: Any) -> Tool:
        hints = listed.annotations
        read_only = hints is not None and hints.read_only_hint is True
        effect: Effect = self._effect or ("read" if read_only else "write")
        name = plan_name(listed.name)
        # What a server says of itself goes to the model: it may quote its environment.
        schema = tidy(name, self._redactor.data(listed.input_schema))
        output = modern(listed.output_schema or {})
        return Tool(
            name=name,
            description=self._hide(listed.description or listed.title or "").strip(),
            parameters=schema,
            call=partial(self._call, listed.name, effect, _wrapped(output)),
            validate=check_schema(name, schema),
            effect=effect,
            sends=hints is not None and hints.open_world_hint is True and not read_only,
            returns=_returns(output),
            output=_value_schema(name, output),
        )

    async def _call(self, name: str, effect: Effect, wrapped: bool, /, **args: Any) -> Any:
        connection = self._current()
        try:
            result = await connection.call(name, args)
        except _Dropped as drop:
            await self._reconnect(connection, drop)
            if effect == "write":
                raise BackendError(
                    f"{self} dropped the connection during {name!r} ({drop}); it may have "
                    f"happened, so it was not sent again"
                ) from drop
            try:
                result = await self._current().call(name, args)
            except _Dropped as again:
                raise BackendError(f"{self} dropped {name!r} twice: {again}") from again
        if result.is_error:
            raise BackendError(_text(result.content) or f"{self}: {name!r} failed, saying nothing")
        if (data := result.structured_content) is None:
            return _text(result.content)
        return data["result"] if wrapped else data

    def _current(self) -> _Connection:
        if self._connection is None:
            raise UsageError(f"{self} is closed: call its tools while it is open")
        return self._connection

    async def _reconnect(self, dropped: _Connection, why: _Dropped) -> None:
        async with self._changing:
            if self._connection is not dropped:
                return
            await dropped.close()
            try:
                self._connection = await self._open()
            except BackendError as error:
                raise BackendError(f"{self} went away ({why}); {error}") from error


class _Dropped(Exception):
    """The connection could not be opened, or ended under a call."""


class _Connection:
    """One connection. The task that opens it also closes it, as the mcp client demands."""

    def __init__(
        self,
        url: str | None,
        command: tuple[str, ...],
        headers: dict[str, str],
        env: dict[str, str],
        timeout: float,
        hide: Callable[[str], str],
    ) -> None:
        try:
            import mcp
        except ImportError:
            raise MissingPackage("mcp", extra="mcp", purpose="an MCP server") from None
        self._mcp = mcp
        self._url, self._command = url, command
        self._headers, self._env = headers, env
        self._timeout = timeout
        self._hide = hide
        self._log: IO[str] | None = None
        self._words = ""
        self._closing = asyncio.Event()
        self._ready: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._owner: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Raises `_Dropped` with the reason, `TimeoutError`; nothing is left open then."""
        self._owner = asyncio.create_task(self._own(), name="mcp connection")
        try:
            async with asyncio.timeout(self._timeout):
                await asyncio.wait({self._owner, self._ready}, return_when="FIRST_COMPLETED")
        except BaseException:
            self._owner.cancel()
            await _end_of(self._owner)
            raise
        if not self._ready.done():
            raise self._dropped()

    async def _own(self) -> None:
        async with AsyncExitStack() as stack:
            transport = await self._transport(stack)
            client = self._mcp.Client(transport, read_timeout_seconds=self._timeout)
            self._ready.set_result(await stack.enter_async_context(client))
            await self._closing.wait()

    async def _transport(self, stack: AsyncExitStack) -> Any:
        if self._url is not None:
            from mcp.client.streamable_http import create_mcp_http_client, streamable_http_client

            http = await stack.enter_async_context(create_mcp_http_client(headers=self._headers))
            return streamable_http_client(self._url, http_client=http)
        # What the server writes to stderr is its last words if it dies.
        log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (the stack closes it)
        self._log = stack.enter_context(log)
        stack.callback(self._keep_last_words)
        program, *words = self._command
        parameters = self._mcp.StdioServerParameters(command=program, args=words, env=self._env)
        return self._mcp.stdio_client(parameters, errlog=self._log)

    async def list_tools(self) -> list[Any]:
        """Every page of the list, up to the last one or one that was read already."""
        tools: list[Any] = []
        cursors: list[str | None] = [None]
        while True:
            page = await self._ask(partial(self._ready.result().list_tools, cursor=cursors[-1]))
            tools += page.tools
            if page.next_cursor in cursors:
                return tools
            cursors.append(page.next_cursor)

    async def call(self, name: str, args: Mapping[str, Any]) -> Any:
        return await self._ask(partial(self._ready.result().call_tool, name, dict(args)))

    async def _ask(self, request: Any) -> Any:
        """Send one request; `_Dropped` where the connection ends first."""
        from mcp.types import CONNECTION_CLOSED, REQUEST_TIMEOUT

        assert self._owner is not None
        asking = asyncio.ensure_future(request())
        try:
            await asyncio.wait({asking, self._owner}, return_when="FIRST_COMPLETED")
            if not asking.done():
                raise self._dropped()
            return asking.result()
        except self._mcp.MCPError as error:
            if error.code == CONNECTION_CLOSED:
                raise self._dropped() from error
            if error.code == REQUEST_TIMEOUT:
                raise BackendError(f"no answer within {self._timeout:g} s") from error
            raise BackendError(self._hide(str(error))) from error
        finally:
            if not asking.done():
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)

    async def close(self) -> None:
        self._closing.set()
        if self._owner is not None:
            await _end_of(self._owner)

    def _dropped(self) -> _Dropped:
        reason: BaseException | None = None
        if self._owner is not None and self._owner.done() and not self._owner.cancelled():
            reason = self._owner.exception()
        while isinstance(reason, BaseExceptionGroup):
            reason = reason.exceptions[0]
        what = f"{type(reason).__name__}: {reason}" if reason else "the connection closed"
        return _Dropped(self._hide(what) + self.last_words())

    def last_words(self) -> str:
        """The end of what the server wrote to stderr, for an error message."""
        if self._log is not None and not self._log.closed:
            self._keep_last_words()
        return f"; it last wrote: {self._words}" if self._words else ""

    def _keep_last_words(self, limit: int = 300) -> None:
        assert self._log is not None
        self._log.seek(0)
        self._words = self._hide(self._log.read()).strip()[-limit:]


async def _end_of(task: asyncio.Task[None]) -> None:
    """Wait for a task that is closing, also when cancelled meanwhile: closing is bounded."""
    try:
        await asyncio.wait({task})
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise
    finally:
        if task.done() and not task.cancelled():
            task.exception()  # a failure of a connection we give up has been told already


def _text(content: Sequence[Any]) -> str:
    """The content as text; what is not text is named in its place."""
    return "\n".join(map(_block, content))


def _block(block: Any) -> str:
    match block.type:
        case "text":
            return str(block.text)
        case "resource":
            resource = block.resource
            return str(getattr(resource, "text", f"[binary resource {resource.uri}]"))
        case "resource_link":
            return str(block.uri)
        case other:
            return f"[{other} {getattr(block, 'mime_type', '')}]"


def _wrapped(output: Mapping[str, Any]) -> bool:
    """Whether a value that is no object travels as ``{"result": value}``, as SDK servers do."""
    return list(output.get("properties", ())) == ["result"]


def _value_schema(name: str, output: Mapping[str, Any]) -> dict[str, Any] | None:
    """The schema of the value that `McpServer` hands on."""
    if _wrapped(output):
        output = {**output["properties"]["result"], "$defs": output.get("$defs", {})}
    return written_out(name, output) or None


def _returns(output: Mapping[str, Any]) -> str:
    properties = output.get("properties", {})
    if _wrapped(output):
        return str(properties["result"].get("type", ""))
    return f"object with fields {', '.join(properties)}" if properties else ""
