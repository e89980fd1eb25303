"""One timer for all that have as many seconds."""

from __future__ import annotations

import asyncio

from agentpar.executor.alarms import Alarms
from agentpar.executor.simulate import run


def test_each_is_told_of_when_its_time_is_over() -> None:
    """In virtual time, with different seconds; what has ended is not told of."""
    told: list[tuple[str, float, float]] = []

    async def work() -> None:
        loop = asyncio.get_running_loop()
        alarms: Alarms[str] = Alarms(lambda key, of: told.append((key, of, loop.time() - zero)))
        zero = loop.time()
        alarms.set("a", 5.0)
        alarms.set("b", 2.0)
        await asyncio.sleep(1.0)
        alarms.set("c", 5.0)
        alarms.set("d", 5.0)
        await asyncio.sleep(1.0)
        alarms.set("e", 5.0)
        alarms.clear("c", 5.0)
        await asyncio.sleep(10.0)
        alarms.set("f", 5.0)
        await asyncio.sleep(10.0)

    run(work())
    assert told == [
        ("b", 2.0, 2.0),
        ("a", 5.0, 5.0),
        ("d", 5.0, 6.0),
        ("e", 5.0, 7.0),
        ("f", 5.0, 17.0),
    ]


def test_those_that_begin_together_are_over_together() -> None:
    """A ring that ends another changes nothing for the rest; a closed one rings for nobody."""
    told: list[int] = []

    async def work() -> None:
        alarms: Alarms[int] = Alarms(lambda key, of: told.append(key))
        for key in range(3):
            alarms.set(key, 1.0)
        await asyncio.sleep(2.0)
        alarms.clear(0, 1.0)
        alarms.set(3, 1.0)
        alarms.close()
        await asyncio.sleep(2.0)

    run(work())
    assert told == [0, 1, 2]
