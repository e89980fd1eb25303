"""One of two processes that share a bank: asks one question and writes what it called.

``python one_of_two.py BANK RUN SECONDS LOG``; the call takes SECONDS.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

from agentpar import Agent, Memory, ScriptedRuntime, tool


def main(bank: str, run: str, seconds: float, log: str) -> None:
    @tool(version="1")
    def lookup(query: str) -> str:
        """Look something up. query: what."""
        with Path(log).open("a") as file:
            file.write(f"{run}\n")
        time.sleep(seconds)
        return f"all about {query}"

    async def ask() -> None:
        memory = Memory(bank, scope="project", admission="all", lease=20.0)
        plan = '1. lookup(query="Lima")\njoin()'
        runtime = ScriptedRuntime([plan, "Answer: done"], chunk=1000)
        agent = Agent([lookup], runtime=runtime, memory=memory)
        async with agent, agent.run("What of Lima?", run_id=run) as asked:
            async for event in asked:
                print(type(event).__name__, getattr(event, "via", ""), flush=True)

    asyncio.run(ask())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4])
