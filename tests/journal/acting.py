"""An agent whose world counts what is done to it: for processes that are killed.

Its model is a script that answers by what it is asked, so it can be asked again by another
process; its joiner repeats every result, so two answers are equal where all results are.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from agentpar import Agent, ScriptedRuntime, current_call, tool
from agentpar.events import Usage
from agentpar.executor.journal import Journal
from agentpar.ports import Capability, ModelRequest

QUESTION = "Who was paid?"
TWO_ROUNDS = (
    '1. look(x="a")\n2. look(x="b")\n3. pay(to=$1, amount=1)\n4. pay(to=$2, amount=2)\n'
    "5. look(x=$3)\njoin()",
    "6. pay(to=$5, amount=3)\njoin()",
)
CHAINS = (
    "".join(
        f'{2 * n + 1}. look(x="chain {n}")\n{2 * n + 2}. pay(to=${2 * n + 1}, amount={n})\n'
        for n in range(12)
    )
    + "join()",
)


class Model:
    """Writes ``plans[0]``, asks for each further one, then answers with all results."""

    def __init__(self, plans: tuple[str, ...]) -> None:
        self._plans = plans

    async def stream(self, request: ModelRequest) -> AsyncGenerator[str | Usage, None]:
        async for piece in ScriptedRuntime([self._text(request)], chunk=7).stream(request):
            yield piece

    def _text(self, request: ModelRequest) -> str:
        asked = request.messages[-1].content
        if asked.startswith("Results:"):
            results = asked.removeprefix("Results:").partition("\n\nQuestion:")[0]
            if len(self._plans) == 2 and "amount=3" not in results:
                return "Replan: the last payment"
            return f"Answer: {' '.join(results.split())}"
        return self._plans[1 if "Still missing" in asked else 0]

    async def capabilities(self) -> frozenset[Capability]:
        return frozenset()

    async def aclose(self) -> None:
        """Nothing to release."""


class World:
    """What has been done: every payment as it came (``raw``), and by its key (``once``)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._connected() as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS raw (key TEXT, payment TEXT)")
            connection.execute("CREATE TABLE IF NOT EXISTS once (key TEXT UNIQUE, payment TEXT)")

    def pay(self, key: str, payment: str) -> None:
        with self._connected() as connection:
            connection.execute("INSERT INTO raw VALUES (?, ?)", (key, payment))
            connection.execute("INSERT OR IGNORE INTO once VALUES (?, ?)", (key, payment))

    def payments(self, table: str) -> list[str]:
        with self._connected() as connection:
            rows = connection.execute(f"SELECT payment FROM {table} ORDER BY payment").fetchall()
        return [payment for (payment,) in rows]

    def _connected(self) -> Any:
        connection = sqlite3.connect(self.path, timeout=10)
        connection.execute("PRAGMA synchronous = OFF")  # processes die here, never the machine
        return _Closing(connection)


class _Closing:
    """A connection that commits and closes."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> sqlite3.Connection:
        return self._connection

    def __exit__(self, *_: object) -> None:
        self._connection.commit()
        self._connection.close()


def agent_of(
    journal: str | Journal,
    world: World,
    *,
    plans: tuple[str, ...] = TWO_ROUNDS,
    idempotent: bool = True,
    seed: int = 0,
    more: tuple[Any, ...] = (),
) -> Agent:
    chance = random.Random(seed)

    @tool
    async def look(x: str) -> str:
        """Look at x."""
        await asyncio.sleep(chance.uniform(0, 0.003))
        return f"<{x}>"

    @tool(effect="write", idempotent=idempotent)
    def pay(to: str, amount: int) -> str:
        """Pay somebody."""
        world.pay(current_call().idempotency_key, f"{to} {amount}")
        return f"{to} got {amount}"

    return Agent(
        [look, pay, *more], runtime=Model(plans), journal=journal, approve=lambda task, args: True
    )
