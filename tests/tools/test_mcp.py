"""The tools of a real MCP server, over stdio and over loopback HTTP."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentpar.errors import BackendError, UsageError
from agentpar.tools import Tool, toolbox
from agentpar.tools.mcp import McpServer

pytest.importorskip("mcp")

SCRIPT = str(Path(__file__).with_name("mcp_server.py"))
COMMAND = [sys.executable, SCRIPT]


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The server over HTTP, shared by the tests that do not kill it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([*COMMAND, str(port)], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not listens(port):
            assert time.monotonic() < deadline, "the MCP server did not start"
            assert process.poll() is None, "the MCP server died"
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.kill()
        process.wait()


async def use(tool: Tool, **args: Any) -> Any:
    return await tool.call(**tool.validate(args))


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_tools_of_a_url_carry_schema_effect_and_results(url: str) -> None:
    """One server, all kinds of results."""
    async with McpServer(url=url, headers={"X-Team": "a"}) as tools:
        box = toolbox(tools)
        assert box["add"].parameters == {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer", "default": 1}},
            "required": ["a"],
            "additionalProperties": False,
        }
        assert (box["add"].description, box["add"].returns) == ("Add two numbers.", "integer")
        assert box["find_city"].returns == "object with fields name, people"
        # The schema of the value, not of the envelope in which a number travels.
        assert box["add"].output == {"type": "integer"}
        city = box["find_city"].output or {}
        assert city["properties"] == {"name": {"type": "string"}, "people": {"type": "integer"}}
        assert box["look"].output is None
        # Without a hint that it only reads, a tool counts as one that writes.
        assert (box["add"].effect, box["look"].effect) == ("read", "write")
        assert await use(box["add"], a="2") == 3
        assert await use(box["find_city"], name="Lima") == {"name": "Lima", "people": 7}
        assert await use(box["look"]) == "a tower\n[image image/png]\na bridge"
        with pytest.raises(BackendError, match="no such city: Atlantis"):
            await use(box["fail"], city="Atlantis")
        with pytest.raises(UsageError, match="add: argument 'a' must be an integer, got 'x'"):
            box["add"].validate({"a": "x"})


async def test_the_caller_chooses_tools_and_vouches_for_them(url: str) -> None:
    """Both spellings of a name count; an unknown one is refused, with what there is."""
    async with McpServer(url=url, allowed_tools=["look", "find_city"], effect="read") as tools:
        assert {(tool.name, tool.effect) for tool in tools} == {
            ("look", "read"),
            ("find_city", "read"),
        }
    with pytest.raises(UsageError, match="no tool 'serach'; it has 'add', 'find-city'"):
        await McpServer(url=url, allowed_tools=["serach"]).start()


async def test_what_a_server_opens_to_the_world_sends(url: str) -> None:
    """Whoever vouches for a server's effects has not said that its tools keep things in."""
    async with McpServer(url=url, effect="read") as tools:
        flags = {tool.name: (tool.effect, tool.sends, tool.pure) for tool in tools}
    assert flags["post"] == ("read", True, False)
    assert flags["look"] == flags["add"] == ("read", False, False)


async def test_many_calls_run_at_once_and_a_cancelled_one_hurts_no_other(url: str) -> None:
    """Cancelling one call leaves the connection to the others."""
    async with McpServer(url=url) as tools:
        box = toolbox(tools)
        sleeping = asyncio.create_task(use(box["sleep"]))
        sums = await asyncio.gather(*(use(box["add"], a=n) for n in range(20)))
        assert sums == [n + 1 for n in range(20)]
        sleeping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sleeping
        assert await use(box["add"], a=1) == 2


async def test_a_call_that_takes_too_long_says_so(url: str) -> None:
    """``timeout`` bounds each call."""
    async with McpServer(url=url, timeout=0.5) as tools:
        with pytest.raises(BackendError, match=r"no answer within 0\.5 s"):
            await use(toolbox(tools)["sleep"])


async def test_stdio_opens_in_one_task_and_closes_in_another_leaving_no_process() -> None:
    """A server's death is survived once for reads, told for writes, and leaves nothing."""
    server = McpServer(command=COMMAND)
    box = toolbox(await asyncio.create_task(server.start()))
    first = await use(box["pid"])
    assert alive(first)

    with pytest.raises(BackendError, match=r"'die_writing' .*out of cheese.* not sent again"):
        await use(box["die_writing"])
    second = await use(box["pid"])
    assert second != first
    assert not alive(first)

    with pytest.raises(BackendError, match=r"dropped 'die_reading' twice: .*out of cheese"):
        await use(box["die_reading"])
    third = await use(box["pid"])

    await asyncio.create_task(server.stop())
    await server.stop()
    assert not alive(third)
    with pytest.raises(UsageError, match="is closed"):
        await use(box["add"], a=1)


async def test_cancelling_a_block_leaves_no_process() -> None:
    """Ctrl-C in the middle of a call ends the server too."""
    pids: list[int] = []

    async def work() -> None:
        async with McpServer(command=COMMAND) as tools:
            box = toolbox(tools)
            pids.append(await use(box["pid"]))
            await use(box["sleep"])

    task = asyncio.create_task(work())
    while not pids:
        await asyncio.sleep(0.05)
        assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not alive(pids[0])


PAGES = """
import asyncio, itertools, os, sys
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.types import ListToolsResult, Tool

cursors = eval(sys.argv[1])

async def page(context, params):
    cursor = next(cursors) or os._exit(3)
    tool = Tool(name=f"after_{params and params.cursor}", input_schema={"type": "object"})
    return ListToolsResult(tools=[tool], next_cursor=None if cursor == "end" else cursor)

async def main():
    server = Server("pages", on_list_tools=page)
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("cursors", "names"),
    [
        ("iter(['a', 'b', 'end'])", ["after_None", "after_a", "after_b"]),
        ("itertools.cycle(['a', 'b'])", ["after_None", "after_a", "after_b"]),
    ],
    ids=["ends", "begins again"],
)
async def test_every_page_of_the_list_is_read_once(cursors: str, names: list[str]) -> None:
    """Also where the server never says that there are no more."""
    async with McpServer(command=[sys.executable, "-c", PAGES, cursors]) as tools:
        assert [tool.name for tool in tools] == names


@pytest.mark.parametrize(
    ("cursors", "patience", "message"),
    [
        ("map(str, itertools.count(1))", 1.0, r"was still listing its tools after 1 s"),
        ("iter(['a', ''])", 60.0, "went away while it listed its tools"),
    ],
    ids=["endless", "dies"],
)
async def test_a_list_that_does_not_end_is_given_up(
    cursors: str, patience: float, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages without end, or a server that dies between two: the address and the reason."""
    server = McpServer(command=[sys.executable, "-c", PAGES, cursors], timeout=60)
    open_it = server._open

    async def and_lose_patience() -> Any:
        """Opening takes as long as Python does to start: only what comes then is bounded."""
        connection = await open_it()
        server._timeout = patience
        return connection

    monkeypatch.setattr(server, "_open", and_lose_patience)
    with pytest.raises(BackendError, match=message):
        await server.start()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo set the API key first >&2; exit 1", "set the API key first"),
        ("echo waiting >&2; cat >&2", r"did not answer within 1 s.*waiting"),
    ],
    ids=["dies", "is silent"],
)
async def test_a_server_that_cannot_start_says_why(script: str, message: str) -> None:
    """With the last thing it wrote."""
    with pytest.raises(BackendError, match=message):
        await McpServer(command=["sh", "-c", script], timeout=1).start()


async def test_a_server_that_is_not_there_says_where() -> None:
    """An address where nobody listens, a program that does not exist."""
    with pytest.raises(
        BackendError, match=r"http://127\.0\.0\.1:9/mcp.*could not be opened.*ConnectError"
    ):
        await McpServer(url="http://127.0.0.1:9/mcp", timeout=5).start()
    with pytest.raises(BackendError, match="no-such-program"):
        await McpServer(command=["no-such-program"]).start()


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"url": "http://x", "command": ["y"]},
        {"command": "npx server"},
        {"command": ["x"], "headers": {"a": "b"}},
    ],
)
def test_contradicting_settings_are_refused(wrong: dict[str, Any]) -> None:
    """Before anything is started."""
    with pytest.raises(UsageError):
        McpServer(**wrong)
