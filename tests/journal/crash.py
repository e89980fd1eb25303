"""A process that forks children which kill themselves at the n-th commit of their journal.

    python crash.py JOURNAL-URL FOLDER PLANS IDEMPOTENT

For n = 1, 2, … until a child gets through, and for kills before and after the commit: a child
asks in a new journal and dies (SIGKILL), a second one carries on and dies at its own n-th
commit, the last one carries on to the end. Prints a JSON line for each n: where it died, the
answer, and what was done to the world.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import sqlite3
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import acting

import agentpar.executor.journal.sqlite as sqlite_store


class Deadly:
    """Counts commits; the ``n``-th is the last thing this process does, or does not."""

    def __init__(self, n: int, when: str) -> None:
        self._left = n
        self._when = when

    def __call__(self, commit: Callable[[], Any]) -> Any:
        self._left -= 1
        if self._left == 0 and self._when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        done = commit()
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return done


def make_deadly(deadly: Deadly, url: str) -> None:
    """From now on, commits to the journal go through ``deadly``."""
    if url.startswith("sqlite"):

        class Connection(sqlite3.Connection):
            def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
                run = super().execute
                return deadly(lambda: run(sql, *args)) if sql == "COMMIT" else run(sql, *args)

        class Patched:  # the world's own connections stay as they are
            def __getattr__(self, name: str) -> Any:
                return getattr(sqlite3, name)

            def connect(self, *args: Any, **options: Any) -> sqlite3.Connection:
                return sqlite3.connect(*args, factory=Connection, **options)

        sqlite_store.sqlite3 = Patched()  # type: ignore[assignment]
    else:
        import psycopg

        commit = psycopg.Connection.commit
        psycopg.Connection.commit = lambda self: deadly(lambda: commit(self))  # type: ignore


def forked(work: Callable[[], None]) -> bool:
    """Do ``work`` in a child; whether it killed itself."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    assert status == 0, f"a child ended with {status}"
    return False


def main(url: str, folder: Path, plans: tuple[str, ...], idempotent: bool) -> None:
    # Once in this process, so that no child has to load what a run needs: most of its time.
    unharmed = new_journal(url, folder, "unharmed")
    asyncio.run(asked(unharmed, acting.World(folder / "world-unharmed.db"), plans, idempotent, 0))
    for when in ("before", "after"):
        for n in itertools.count(1):
            line = one_death(url, folder, plans, idempotent, n, when)
            print(json.dumps(line), flush=True)
            if not line["killed"]:
                break


def one_death(
    url: str, folder: Path, plans: tuple[str, ...], idempotent: bool, n: int, when: str
) -> dict[str, Any]:
    """A run in a new world that dies at its ``n``-th commit, and how it is carried on."""
    journal = new_journal(url, folder, f"{when}{n}")
    world = acting.World(folder / f"world-{when}{n}.db")
    result = folder / f"answer-{when}{n}.json"

    def ask(deadly: Deadly | None, seed: int) -> None:
        if deadly is not None:
            make_deadly(deadly, url)
        data = asyncio.run(asked(journal, world, plans, idempotent, seed))
        result.write_text(json.dumps(data))

    killed = forked(lambda: ask(Deadly(n, when), seed=n))
    if killed:
        forked(lambda: ask(Deadly(n, when), seed=n + 1))
        forked(lambda: ask(None, seed=n + 2))
    return {
        "n": n,
        "when": when,
        "killed": killed,
        "raw": world.payments("raw"),
        "once": world.payments("once"),
        **json.loads(result.read_text()),
    }


async def asked(
    journal: str, world: acting.World, plans: tuple[str, ...], idempotent: bool, seed: int
) -> dict[str, Any]:
    """The run in this process, begun or carried on: its answer, and how each task ended."""
    async with acting.agent_of(
        journal, world, plans=plans, idempotent=idempotent, seed=seed
    ) as agent:
        answer = await agent.ask(acting.QUESTION, run_id="run")
    kinds = {id: getattr(outcome, "kind", "ok") for id, outcome in answer.outcomes.items()}
    return {"text": answer.text, "kinds": kinds}


def new_journal(url: str, folder: Path, name: str) -> str:
    if url.startswith("sqlite"):
        return f"sqlite:///{folder}/{name}.db"
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {name}")  # type: ignore[call-overload]
    return f"{url}&options=-csearch_path%3D{name}"


if __name__ == "__main__":
    _, address, place, which, repeatable = sys.argv
    main(address, Path(place), getattr(acting, which), repeatable == "idempotent")
