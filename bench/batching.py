"""Batching: what one request for several calls saves, and where it loses.

    python bench/batching.py [--repeat N] [--save]

The real driver on the real clock, tools that ask a real HTTP server on the loopback interface, in
a process of its own, over kept-alive connections. The server is one of two:

- **serial** works on one request at a time. A request costs 10 ms, each item in it 1 ms: a
  database, or an API with a rate.
- **parallel** works on all requests at once. An item takes 20 ms, one in ten 200 ms (by the seed),
  and a request as long as its slowest item: here a batch saves requests and loses time.

Each shape of plan runs without a batch function and with one of up to 16 calls, in turns. Printed
are the medians of the seconds of a run (lowest and highest) and the requests that the server has
counted.

The gates: on the serial server the fan takes at most half as long with batches, and a chain, in
which there is never any company, at most 1.1 times. The exit status is 1 where one fails.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import machine_facts
from one_run import perform

from agentpar import tool
from agentpar.plan import Ok, Ref, Task
from agentpar.tools.base import Tool

REQUEST, ITEM = 0.010, 0.001  # seconds on the serial server
QUICK, SLOW, SLOW_SHARE = 0.020, 0.200, 0.1  # on the parallel one
SIZE = 16
FAN_GATE, CHAIN_GATE = 0.5, 1.1


# The server


async def serve() -> None:
    """Answer POST /serial and /parallel until stdin ends; the first line out is the port."""
    one_at_a_time = asyncio.Lock()

    async def answer(path: str, items: Sequence[dict[str, Any]]) -> None:
        if path == "/serial":
            async with one_at_a_time:
                await asyncio.sleep(REQUEST + ITEM * len(items))
        else:
            await asyncio.sleep(max(item["seconds"] for item in items))

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                [length] = (int(line[15:]) for line in head.lower().splitlines()
                            if line.startswith("content-length:"))  # fmt: skip
                items = json.loads(await reader.readexactly(length))
                await answer(head.split()[1], items)
                body = json.dumps([item["n"] for item in items]).encode()
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    listener = await asyncio.start_server(handle, "127.0.0.1", 0)
    print(listener.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)


@asynccontextmanager
async def server() -> AsyncIterator[str]:
    """Its address while it runs, in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, "--serve",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(await process.stdout.readline())}"
    finally:
        process.stdin.close()
        await process.wait()


# The plans


def fan() -> list[Task]:
    """64 calls that need nothing."""
    return [Task.of(id, "get", n=id) for id in range(1, 65)]


def chains() -> list[Task]:
    """Eight chains of eight beside each other."""
    return [Task.of(id, "get", n=id, after=Ref(id - 8) if id > 8 else 0) for id in range(1, 65)]


def chain() -> list[Task]:
    """One chain of sixteen."""
    return [Task.of(id, "get", n=id, after=Ref(id - 1) if id > 1 else 0) for id in range(1, 17)]


@dataclass(frozen=True, slots=True)
class Shape:
    name: str
    path: str
    plan: Callable[[], list[Task]]


SHAPES = (
    Shape("fan, serial", "/serial", fan),
    Shape("chains, serial", "/serial", chains),
    Shape("chain, serial", "/serial", chain),
    Shape("fan, parallel", "/parallel", fan),
    Shape("chains, parallel", "/parallel", chains),
)


@dataclass(slots=True)
class Measured:
    """The runs of one variant of a shape."""

    seconds: list[float] = field(default_factory=list)
    requests: list[int] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def told(self) -> str:
        low, high = min(self.seconds), max(self.seconds)
        return f"{1000 * self.median:.0f} ({1000 * low:.0f}-{1000 * high:.0f})"


def getter(client: httpx.AsyncClient, url: str, *, batched: bool) -> tuple[Tool, list[int]]:
    """The tool of the plans, and how many items each of its requests has carried."""
    sizes: list[int] = []

    def item(n: int) -> dict[str, Any]:
        slow = random.Random(n).random() < SLOW_SHARE
        return {"n": n, "seconds": SLOW if slow else QUICK}

    async def ask(items: list[dict[str, Any]]) -> list[int]:
        sizes.append(len(items))
        response = await client.post(url, json=items)
        found: list[int] = response.raise_for_status().json()
        return found

    async def get(n: int, after: int = 0) -> int:
        """Ask the server for one number."""
        [found] = await ask([item(n)])
        return found

    async def many(calls: list[dict[str, Any]]) -> list[int]:
        return await ask([item(one["n"]) for one in calls])

    return tool(get, batch=many if batched else None, batch_size=SIZE if batched else None), sizes


async def measure(shape: Shape, origin: str, repeat: int) -> tuple[Measured, Measured]:
    """``shape`` without and with batches, in turns; the first pair of runs warms up."""
    alone, together = Measured(), Measured()
    limits = httpx.Limits(max_connections=64, max_keepalive_connections=64)
    async with httpx.AsyncClient(limits=limits, timeout=60) as client:
        for turn in range(repeat + 1):
            for measured in (alone, together):
                get, sizes = getter(client, origin + shape.path, batched=measured is together)
                began = time.perf_counter()
                machine, _ = await perform(shape.plan(), [get], slots=64)
                took = time.perf_counter() - began
                assert machine.outcomes == {task.id: Ok(task.id) for task in shape.plan()}
                if turn:
                    measured.seconds.append(took)
                    measured.requests.append(len(sizes))
    return alone, together


async def run(repeat: int) -> tuple[list[str], bool]:
    rows, failed = [], []
    async with server() as origin:
        for shape in SHAPES:
            alone, together = await measure(shape, origin, repeat)
            ratio = together.median / alone.median
            requests = [f"{statistics.median(m.requests):.0f}" for m in (alone, together)]
            cells = [alone.told(), together.told(), f"{ratio:.2f}x", *requests]
            rows.append(f"| {shape.name} | {' | '.join(cells)} |")
            gate = {SHAPES[0]: FAN_GATE, SHAPES[2]: CHAIN_GATE}.get(shape)
            if gate is not None:
                failed.append(ratio > gate)
                rows[-1] += f" {'FAIL' if ratio > gate else 'PASS'} (at most {gate}x) |"
            else:
                rows[-1] += " |"
    return rows, any(failed)


def report(rows: Sequence[str], repeat: int) -> Iterator[str]:
    yield from machine_facts.lines(["httpx"])
    yield f"- {repeat} runs of each, in turns; up to {SIZE} calls in a batch"
    yield ""
    yield "| plan, server | ms alone | ms in batches | ratio | requests alone | in batches | gate |"
    yield "|---|---|---|---|---|---|---|"
    yield from rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="write results/batching.md")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve())
        return
    rows, failed = asyncio.run(run(options.repeat))
    lines = list(report(rows, options.repeat))
    print("\n".join(lines))
    if options.save:
        machine_facts.save("batching", "Batching", lines)
    sys.exit(failed)


if __name__ == "__main__":
    main()
