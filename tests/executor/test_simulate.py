"""Virtual time: it jumps, it is the same each time, and nothing from outside gets in."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable

import pytest

from agentpar import Agent, Ok, ScriptedRuntime, tool
from agentpar.errors import Deadlock, UsageError
from agentpar.executor.driver import RunClock
from agentpar.executor.simulate import VirtualLoop, run
from agentpar.ports import Clock


async def order(count: int) -> list[int]:
    """In which order ``count`` tasks wake that sleep until the same instant."""
    woken: list[int] = []

    async def sleep(number: int) -> None:
        await asyncio.sleep(1)
        woken.append(number)

    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(sleep(number))
    return woken


def test_a_year_takes_no_time() -> None:
    """The loop's clock moves by what was slept, the real one hardly."""

    async def main() -> float:
        await asyncio.sleep(365 * 24 * 3600)
        return asyncio.get_running_loop().time()

    began = time.process_time()
    assert run(main()) == pytest.approx(365 * 24 * 3600)
    assert time.process_time() - began < 1


def test_what_is_due_at_the_same_time_fires_at_the_same_instant() -> None:
    """0.1 s and then 0.2 s end when 0.3 s end; floats would see two instants."""

    async def main() -> list[float]:
        seen: list[float] = []

        async def sleep(*seconds: float) -> None:
            for each in seconds:
                await asyncio.sleep(each)
            seen.append(asyncio.get_running_loop().time())

        async with asyncio.TaskGroup() as group:
            group.create_task(sleep(0.1, 0.2))
            group.create_task(sleep(0.3))
        return seen

    assert 0.1 + 0.2 != 0.3
    assert run(main()) == run(main(), seed=1) == [0.3, 0.3]


def test_a_time_that_is_waited_for_comes() -> None:
    """A loop that sleeps until a time between two instants ends, however small the rest."""

    async def main() -> float:
        loop = asyncio.get_running_loop()
        until = 0.1 + 0.2 + 1e-10
        while (left := until - loop.time()) > 0:  # noqa: ASYNC110  # this is the code in question
            await asyncio.sleep(left)
        return loop.time()

    assert run(main()) == pytest.approx(0.3)


def test_a_seed_decides_who_wakes_first() -> None:
    """The same order for the same seed; over seeds each of six sleepers comes first."""
    assert run(order(6), seed=3) == run(order(6), seed=3)
    assert {run(order(6), seed=seed)[0] for seed in range(60)} == set(range(6))


def test_ready_callbacks_keep_their_order() -> None:
    """asyncio promises it, so no seed may change it."""

    async def main() -> list[int]:
        seen: list[int] = []
        for number in range(20):
            asyncio.get_running_loop().call_soon(seen.append, number)
        await asyncio.sleep(0)
        return seen

    assert all(run(main(), seed=seed) == list(range(20)) for seed in range(20))


def test_timeouts_and_cancellation_work_as_ever() -> None:
    """asyncio.timeout fires at its second, and a cancelled timer never does."""

    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2.5):
                await asyncio.sleep(1000)
        async with asyncio.timeout(100):
            await asyncio.sleep(1)
        return asyncio.get_running_loop().time()

    assert run(main(), seed=0) == 3.5


def test_a_deadlock_is_told_and_not_waited_for() -> None:
    """Where nothing will come the error says when, who waits and in which line."""

    async def main() -> None:
        await asyncio.sleep(7)
        never = asyncio.Event()
        await never.wait()

    with pytest.raises(Deadlock, match=r"at 7 s 1 task waits \(test_simulate.py:\d+ in main\)"):
        run(main())


def test_a_loop_that_turns_without_end_is_told() -> None:
    """A callback that calls itself never lets time pass."""

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def again() -> None:
            loop.call_soon(again)

        again()
        await loop.create_future()

    with pytest.raises(Deadlock, match="turns without end"):
        run(main())


@pytest.mark.parametrize("seconds", [math.inf, 1e12])
def test_time_has_an_end(seconds: float) -> None:
    """Who sleeps for ever, or beyond all runs, waits for nothing."""

    async def main() -> None:
        await asyncio.sleep(seconds)

    with pytest.raises(Deadlock, match="beyond the end of virtual time"):
        run(main())


def test_after_a_deadlock_every_task_is_unwound() -> None:
    """`finally` blocks run, and Python has nothing to complain about."""
    unwound: list[str] = []

    async def wait(name: str) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            unwound.append(name)

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(wait("a"))
            group.create_task(wait("b"))

    with pytest.raises(Deadlock):
        run(main())
    gc.collect()
    assert sorted(unwound) == ["a", "b"]


async def _connect() -> None:
    await asyncio.open_connection("127.0.0.1", 9)


async def _serve() -> None:
    await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)


async def _read() -> None:
    one, other = socket.socketpair()
    with contextlib.closing(one), contextlib.closing(other):
        asyncio.get_running_loop().add_reader(one, print)


async def _spawn() -> None:
    await asyncio.create_subprocess_exec(sys.executable, "-c", "")


@pytest.mark.parametrize("reach", [_connect, _serve, _read, _spawn])
def test_the_world_is_refused(reach: Callable[[], Awaitable[None]]) -> None:
    """Sockets, pipes and processes raise at once, with what to do instead."""

    async def main() -> None:
        await reach()

    with pytest.raises(UsageError, match="has no place in virtual time"):
        run(main())
    gc.collect()


def test_a_foreign_thread_is_found_out() -> None:
    """A result that a thread brings would come at no particular time: it is an error."""
    refused: list[str] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def bring() -> None:
            try:
                loop.call_soon_threadsafe(print)
            except RuntimeError as error:
                refused.append(str(error))

        thread = threading.Thread(target=bring, name="bringer")
        thread.start()
        thread.join()
        await asyncio.sleep(1)

    with pytest.raises(UsageError, match="thread 'bringer' has no place"):
        run(main())
    assert refused == ["virtual time cannot be reached from another thread"]


def test_blocking_code_runs_in_place() -> None:
    """asyncio.to_thread and sync tools run in the loop's own thread and take no virtual time."""

    @tool
    def where(of: int) -> str:
        """Name of the thread."""
        return threading.current_thread().name

    async def main() -> tuple[str, object, float]:
        there = await asyncio.to_thread(lambda: threading.current_thread().name)
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 / 0)
        ours = await where.call(of=1)
        return there, ours, asyncio.get_running_loop().time()

    here = threading.current_thread().name
    assert run(main()) == (here, here, 0.0)


def test_timers_that_wait_are_known() -> None:
    """Neither a timer that has fired nor a cancelled one counts."""

    async def main() -> list[float]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        kept = [loop.call_later(after, list) for after in (1, 2, 3)]
        kept[2].cancel()
        await asyncio.sleep(1)
        return [timer.when() for timer in loop.timers()]

    assert run(main()) == [2.0]


def test_the_clock_counts_from_where_it_is_told() -> None:
    """As the clock of a run that goes on does."""

    async def main() -> list[float]:
        await asyncio.sleep(5)
        clock: Clock = RunClock(start=10.0)
        await asyncio.sleep(2)
        return [clock.now(), RunClock().now()]

    assert run(main()) == [12.0, 0.0]


def test_a_whole_agent_runs_in_virtual_time() -> None:
    """Users test theirs so: a day of waiting, and the answer at once."""

    @tool
    async def ferment(days: float) -> str:
        """Let it stand."""
        await asyncio.sleep(days * 24 * 3600)
        return "wine"

    async def main() -> object:
        runtime = ScriptedRuntime(["1. ferment(days=300)\njoin()", "It is wine [1]."])
        answer = await Agent([ferment], runtime=runtime, timeout=None).ask("What is it?")
        return answer.outcomes, answer.seconds

    assert run(main()) == ({1: Ok("wine")}, pytest.approx(300 * 24 * 3600))


def test_a_deadline_is_one_of_virtual_time() -> None:
    """The run's own clock is the loop's: ten minutes pass in it, and no more than two."""

    @tool
    async def crawl() -> str:
        """Take ten minutes."""
        await asyncio.sleep(600)
        return "there"

    async def main() -> float:
        runtime = ScriptedRuntime(["1. crawl()\njoin()", "Answer: not found"])
        answer = await Agent([crawl], runtime=runtime, timeout=None).ask("Where?", deadline=120)
        assert answer.usage.stopped_by == "deadline=120 s"
        return answer.seconds

    assert 0 < run(main()) <= 120
