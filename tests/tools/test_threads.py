"""Blocking tools: each in its own thread, which nobody has to wait for."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from typing import Any

import pytest
from loopback import reply, serving

from agentpar.tools import search, tool, web
from agentpar.tools.threads import in_thread


async def test_two_hundred_waiting_tools_wait_at_once() -> None:
    """For each other; asyncio's own threads are 32 at most."""
    together = threading.Barrier(200)

    @tool
    def doze(n: int) -> int:
        together.wait(20)
        return n

    values = await asyncio.gather(*(doze.call(n=n) for n in range(200)))
    assert values == list(range(200))


async def test_pages_and_searches_wait_for_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty are read at once, and forty are searched for: asyncio's own threads are 32 at most."""
    together = threading.Barrier(40)
    monkeypatch.setattr(web, "_digest", lambda *_: together.wait(10))
    monkeypatch.setattr(search, "_ddgs", lambda *_: [together.wait(10)])
    async with serving({"/": reply("x")}) as server:
        fetch = web.web_fetch(allow_origins=[server.origin])
        await asyncio.gather(*(fetch.call(url=f"{server.origin}/") for _ in range(40)))
        assert fetch.close is not None
        await fetch.close()
    ddgs = search.web_search(provider="ddgs")
    await asyncio.gather(*(ddgs.call(query="x") for _ in range(40)))


HANGING = """
import asyncio, threading
from agentpar.tools.threads import in_thread

async def main():
    async with asyncio.timeout(0.05):
        await in_thread(threading.Event().wait)

try:
    asyncio.run(main())
except TimeoutError:
    print("over")
"""


def test_a_tool_that_hangs_does_not_keep_the_program_from_ending() -> None:
    """Neither `asyncio.run` nor the interpreter waits for it, and nothing is complained of."""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", HANGING], capture_output=True, text=True, timeout=20
    )
    assert (done.stdout, done.stderr, done.returncode) == ("over\n", "", 0)


@pytest.mark.parametrize(
    "error",
    [
        SystemExit(3),
        KeyboardInterrupt(),
        StopIteration(),
        GeneratorExit(),
        asyncio.CancelledError(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_what_would_end_more_than_the_call_comes_as_its_cause(error: BaseException) -> None:
    """A tool that calls `sys.exit` fails; the program goes on."""

    @tool
    def leave() -> None:
        raise error

    with pytest.raises(RuntimeError, match=type(error).__name__) as raised:
        await leave.call()
    assert raised.value.__cause__ is error


async def test_an_ordinary_error_comes_as_it_is() -> None:
    """The executor describes it to the joiner."""

    def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError, match="x"):
        await in_thread(fail)


@pytest.mark.parametrize("fails", [False, True])
async def test_what_comes_after_a_cancel_is_dropped_quietly(fails: bool) -> None:
    """Neither a result nor an error reaches the loop's complaints."""
    complaints: list[Any] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    started, release = threading.Event(), threading.Event()
    threads: list[threading.Thread] = []

    def late() -> int:
        threads.append(threading.current_thread())
        started.set()
        release.wait(10)
        return 1 // (not fails)

    call = asyncio.create_task(in_thread(late))
    assert await in_thread(started.wait, 10)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    release.set()
    threads[0].join(10)  # its last act was to hand the result to the loop
    await asyncio.sleep(0)
    assert complaints == []


def test_what_comes_after_the_loop_is_closed_is_dropped_quietly() -> None:
    """pytest would turn an error in the thread into a failure."""
    release, threads = threading.Event(), list[threading.Thread]()

    def late() -> None:
        threads.append(threading.current_thread())
        release.wait(10)

    async def main() -> None:
        async with asyncio.timeout(0.05):
            await in_thread(late)

    with pytest.raises(TimeoutError):
        asyncio.run(main())
    release.set()
    threads[0].join(10)
    assert not threads[0].is_alive()


async def test_arguments_may_have_any_name() -> None:
    """``fn`` too."""

    def echo(**given: Any) -> dict[str, Any]:
        return given

    assert await in_thread(echo, fn=1, loop=2, args=3) == {"fn": 1, "loop": 2, "args": 3}
