"""dask.distributed: the plan as one graph of delayed calls, sent to a scheduler and a worker in
this process.

The worker runs coroutines in its event loop, as many at once as it has threads: 64, as `ours`
has calls. Starting both belongs to the run: they live in its event loop.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from shapes import Shape

from peers import Executor, Run

CONCURRENCY = 64


async def _work(seconds: float, *after: int) -> int:
    if seconds:
        await asyncio.sleep(seconds)
    return 1 + max(after, default=0)


def prepare(shape: Shape) -> Run:
    from dask import delayed
    from distributed import Client, LocalCluster

    logging.getLogger("distributed").setLevel(logging.ERROR)

    work: Any = delayed(_work, pure=False)
    calls: dict[int, Any] = {}
    for node in shape.nodes:
        calls[node.id] = work(node.seconds, *(calls[need] for need in node.needs))

    async def run() -> int:
        cluster: Any
        client: Any
        async with (
            LocalCluster(
                n_workers=1,
                threads_per_worker=CONCURRENCY,
                processes=False,
                asynchronous=True,
                dashboard_address=None,
            ) as cluster,
            Client(cluster, asynchronous=True) as client,
        ):
            futures = client.compute(list(calls.values()), optimize_graph=False)
            return sum(await client.gather(futures))

    return run


EXECUTOR = Executor("dask.distributed", prepare)
