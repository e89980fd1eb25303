"""A process that holds a run: ``python holder.py JOURNAL-URL WORLD LEASE``.

Its second call waits for a line on stdin, after ``started`` on stdout. Prints how it ended.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import acting

from agentpar import AgentparError, tool
from agentpar.executor.journal import open_journal

PLAN = ('1. look(x="a")\n2. wait(x=$1)\n3. pay(to=$2, amount=1)\njoin()',)


@tool
def wait(x: str) -> str:
    """Wait."""
    print("started", flush=True)
    sys.stdin.readline()
    return f"late {x}"


async def main(url: str, world: str, lease: str) -> None:
    journal = open_journal(url, lease=float(lease))
    async with acting.agent_of(journal, acting.World(Path(world)), plans=PLAN, more=(wait,)) as one:
        try:
            print((await one.ask(acting.QUESTION, run_id="run")).text, flush=True)
        except AgentparError as error:
            print(f"{type(error).__name__}: {error}", flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
