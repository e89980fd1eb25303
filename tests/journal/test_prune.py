"""Old runs are removed, with all that was theirs; nothing that is wanted is."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from agentpar import Agent, Ok, ScriptedRuntime, UsageError, tool
from agentpar.events import Event, RunFinished, RunStarted, TaskDone
from agentpar.executor.journal import Journal, Pruned, open_journal
from agentpar.executor.journal.spill import LIMIT

DAY = 86_400.0
LARGE = "x" * 2 * LIMIT


async def ended(journal: Journal, name: str, *more: Event) -> None:
    """A run that has ended."""
    run = await journal.begin(name, "?")
    for event in (RunStarted(name, "?"), *more, RunFinished("answered")):
        run.append(event)
    await run.close("answered")


async def age(journal: Journal, name: str, seconds: float) -> None:
    """Have the run ended so long ago."""
    await changed(journal, "UPDATE agentpar_runs SET ended = {} WHERE id = ?", seconds, name)


async def changed(journal: Journal, statement: str, seconds: float, name: str) -> None:
    """``statement``, in which ``{}`` is the time so many seconds ago."""

    def change(store: Any) -> None:
        with store._writing() as execute:
            execute(statement.format(store._ago), seconds, name)

    await journal._ask(change)


async def names(journal: Journal) -> list[str]:
    return [run.id for run in await journal.runs()]


async def test_runs_that_ended_long_ago_are_removed(url: str) -> None:
    """With their events; their ids are free, and younger ones stay."""
    async with open_journal(url) as journal:
        for name, days in (("old", 31), ("young", 29)):
            await ended(journal, name, TaskDone(1, Ok(name)))
            await age(journal, name, days * DAY)
        assert (await journal.prune(30 * DAY, dry_run=True)).runs == ("old",)
        assert await names(journal) == ["old", "young"]
        assert await journal.prune(30 * DAY) == Pruned(("old",), 0, 0)
        assert await names(journal) == ["young"]
        assert await journal._ask(lambda store: store.rows("old")) == []
        again = await journal.begin("old", "another question")
        assert (again.history, again.known) == ((), False)
        await again.close("interrupted")
        assert await journal.prune(30 * DAY) == Pruned((), 0, 0)


@pytest.mark.parametrize("status", ["interrupted", "waiting", "running"])
async def test_a_run_that_has_not_ended_is_never_removed(url: str, status: Any) -> None:
    """However old: somebody will carry it on, or holds it."""
    async with open_journal(url) as journal:
        run = await journal.begin("run", "?")
        run.append(RunStarted("run", "?"))
        if status != "running":
            await run.close(status)
        await age(journal, "run", 1000 * DAY)
        assert (await journal.prune(0.0)).runs == ()
        assert not await journal._ask(lambda store: store.remove("run", 0.0))
        assert await names(journal) == ["run"]
        if status == "running":
            await run.close("interrupted")


async def test_a_run_that_is_held_again_is_not_removed(url: str) -> None:
    """A graph went back in a run that had ended: the moment it is held it is no old one."""
    async with open_journal(url) as journal:
        await ended(journal, "run")
        await age(journal, "run", 1000 * DAY)
        assert await journal._ask(lambda store: store.old(DAY)) == ["run"]
        other = (RunStarted("run", "?", "another branch"),)
        run = await journal.begin("run", "?", history=other)
        assert run.held
        assert (await journal.prune(DAY)).runs == ()
        await run.close("interrupted")


async def test_large_results_go_with_the_last_that_names_them(tmp_path: Path) -> None:
    """Two runs share a file, the cache has another: each stays as long as it is wanted. What a
    process left behind that died while writing goes too."""
    url = f"sqlite:///{tmp_path / 'j.db'}"
    shared, own = TaskDone(1, Ok(LARGE)), TaskDone(2, Ok(LARGE + "own"))

    def files() -> int:
        return sum(path.is_file() for path in (tmp_path / "j.db.d").rglob("*"))

    async with open_journal(url) as journal:
        await ended(journal, "old", shared, own)
        await ended(journal, "young", shared)
        await journal.cache("key", LARGE + "cached", 1000.0)
        await age(journal, "old", 2 * DAY)
        assert files() == 3
        (tmp_path / "j.db.d" / "ab").mkdir(exist_ok=True)
        (tmp_path / "j.db.d" / "ab" / ".abcd.1").write_text("half")
        assert await journal.prune(DAY) == Pruned(("old",), 0, 1)
        assert files() == 2
        assert (await journal.begin("young", "?")).history[1] == shared
        assert await journal.cached("key") == LARGE + "cached"


async def test_cached_results_past_their_time_are_removed(url: str) -> None:
    """The others serve on."""
    async with open_journal(url) as journal:
        await journal.cache("long", "kept", 1000.0)
        await journal.cache("short", "gone", 1000.0)
        await changed(journal, "UPDATE agentpar_cache SET expires = {} WHERE key = ?", 1.0, "short")
        assert await journal.cached("short") is None
        assert (await journal.prune(DAY, dry_run=True)).cached == 1
        assert await journal.prune(DAY) == Pruned((), 1, 0)
        assert await journal.cached("long") == "kept"


async def test_a_journal_that_keeps_for_a_time_prunes_when_it_is_opened(url: str) -> None:
    """Before anything runs; by default it keeps all."""

    @tool
    async def look() -> str:
        """Look."""
        return "seen"

    def agent(**options: Any) -> Agent:
        texts = ["1. look()\njoin()", "Answer: seen"]
        journal = open_journal(url, **options)
        return Agent([look], runtime=ScriptedRuntime(texts), journal=journal)

    async with agent() as first:
        await first.ask("?", run_id="old")
    async with open_journal(url) as journal:
        await age(journal, "old", 2 * DAY)
    async with agent() as second:
        assert (await second.resume("old")).text == "Answer: seen"
    async with agent(keep=DAY) as third:
        await third.ask("?", run_id="new")
        with pytest.raises(UsageError, match="there is no run 'old'"):
            await third.resume("old")
    async with open_journal(url) as journal:
        assert await names(journal) == ["new"]


async def test_runs_are_written_while_old_ones_go(url: str) -> None:
    """From another connection: nobody waits for more than one transaction, nothing is lost."""
    async with open_journal(url) as journal, open_journal(url) as other:
        for n in range(20):
            await ended(journal, f"old{n}", *(TaskDone(id, Ok("x" * 100)) for id in range(50)))
            await age(journal, f"old{n}", 2 * DAY)
        run = await other.begin("run", "?")
        pruning = asyncio.create_task(journal.prune(DAY))
        done = [TaskDone(n, Ok(n)) for n in range(200)]
        for event in done:
            run.append(event)
            await run.flush()
        assert len((await pruning).runs) == 20
        await run.close("interrupted")
        assert (await journal.begin("run", "?")).history == tuple(done)


@pytest.mark.parametrize("age", [-1.0, float("inf"), float("nan")])
async def test_an_age_that_is_none_is_refused(tmp_path: Path, age: float) -> None:
    """As the mistake that it is."""
    url = f"sqlite:///{tmp_path / 'j.db'}"
    with pytest.raises(UsageError, match="keep must be at least 0 seconds"):
        open_journal(url, keep=age)
    async with open_journal(url) as journal:
        with pytest.raises(UsageError, match="older_than must be at least 0 seconds"):
            await journal.prune(age)
