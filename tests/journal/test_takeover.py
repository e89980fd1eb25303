"""Two processes on one journal: who works on a run, who takes it over, who may write no more."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import acting
import holder
import pytest

from agentpar import Agent, Answer, LeaseLost, Memory, UsageError, tool
from agentpar.events import RunStarted
from agentpar.executor.journal import Journal, open_journal
from agentpar.executor.journal.host import Owner
from agentpar.executor.journal.sqlite import SqliteStore
from agentpar.executor.journal.store import RunRow, Store

HERE = Path(__file__).parent


@contextmanager
def holding(url: str, world: acting.World, lease: float) -> Iterator[subprocess.Popen[str]]:
    """A process in the middle of the run, until the block ends."""
    words = [sys.executable, str(HERE / "holder.py"), url, str(world.path), str(lease)]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "started\n"
            yield process
        finally:
            process.kill()


def stop_between_writes(process: subprocess.Popen[str], url: str) -> None:
    """Stop the process while it does not write: in the middle of that, it would keep SQLite's
    one lock, and everybody would wait for it."""
    while True:
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)  # it has stopped
        if not url.startswith("sqlite"):
            return
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"), timeout=0.2)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError:
                process.send_signal(signal.SIGCONT)


@tool
async def wait(x: str) -> str:
    """Wait, which is over at once here."""
    return f"soon {x}"


def other(url: str, world: acting.World) -> Agent:
    journal = open_journal(url, lease=30.0)
    return acting.agent_of(journal, world, plans=holder.PLAN, more=(wait,))


async def taken_over(agent: Agent) -> Answer:
    """The answer of the first run that is left behind, as soon as one is."""
    give_up = time.monotonic() + 60
    while (answer := await agent.resume_orphan()) is None:
        assert time.monotonic() < give_up, "nothing was ever left behind"
        await asyncio.sleep(0.02)
    return answer


@pytest.fixture
def world(tmp_path: Path) -> acting.World:
    return acting.World(tmp_path / "world.db")


async def test_a_killed_process_is_taken_over(url: str, world: acting.World) -> None:
    """By another one that was told nothing but the journal; each payment is made once."""
    async with other(url, world) as agent:
        with holding(url, world, lease=1.0) as process:
            assert await agent.resume_orphan() is None  # it lives
            process.kill()
            process.wait()
            answer = await taken_over(agent)
            assert await agent.resume_orphan() is None
    assert "soon <a> got 1" in answer.text
    assert world.payments("raw") == ["soon <a> 1"]


async def test_a_dead_process_need_not_be_waited_for(url: str, world: acting.World) -> None:
    """Who asks for the run by name, on the same machine, sees that its process is gone."""
    async with other(url, world) as agent:
        with holding(url, world, lease=600.0) as process:
            with pytest.raises(UsageError, match=rf"at work already, in process {process.pid} on"):
                await agent.resume("run")
            process.kill()
            process.wait()
            assert "soon <a>" in (await agent.resume("run")).text


async def test_a_process_that_comes_back_late_may_write_no_more(
    url: str, world: acting.World
) -> None:
    """Stopped for longer than its lease and woken again, it ends; the run is the other's."""
    async with other(url, world) as agent:
        with holding(url, world, lease=0.5) as process:
            stop_between_writes(process, url)
            answer = await taken_over(agent)
            process.send_signal(signal.SIGCONT)
            told, _ = process.communicate("go on\n", timeout=20)
        assert told.startswith("LeaseLost: run 'run' was taken over by another process")
        assert world.payments("raw") == ["soon <a> 1"]
        again = await agent.resume("run")
    assert (again.text, again.outcomes) == (answer.text, answer.outcomes)


async def test_a_live_process_keeps_its_run_beyond_the_lease(url: str, world: acting.World) -> None:
    """It is heard of again and again, also while a tool takes its time."""
    async with other(url, world) as agent:
        with holding(url, world, lease=0.6) as process:
            ends = time.monotonic() + 1.5
            while time.monotonic() < ends:
                assert await agent.resume_orphan() is None
                await asyncio.sleep(0.05)
            told, _ = process.communicate("go on\n", timeout=20)
    assert "late <a> got 1" in told


# Teams


TWO = '1. wait(x="a")\njoin()'


def rival(journal: Journal | str, *more: Any) -> Agent:
    """One of several agents whose two teams share nothing but the journal."""
    runtime = acting.Model((TWO,))
    memory = Memory(admission="none", lease=None)
    return Agent(more or [wait], runtime=runtime, journal=journal, memory=memory)


async def left_behind(url: str, **leases: float) -> None:
    """The run "r" of two teams, in the middle, and its process gone: its own runs are held by
    nobody, those in ``leases`` (by team) for so many seconds more, as far as one can see."""
    begun = asyncio.Event()

    @tool(name="wait")
    async def hang(x: str) -> str:
        """Wait."""
        begun.set()
        await asyncio.sleep(60)
        return x

    async with rival(url, hang) as agent, agent.run("Which?", run_id="r", teams=2):
        await begun.wait()
        await asyncio.sleep(0.2)
    async with open_journal(url) as journal:
        for run in ("r", "r.1", "r.2"):
            owner, lease = Owner.new(), leases.get(run.replace(".", ""), 0.0)
            if not lease:
                owner.end()
            claim = partial(claimed, run=run, owner=str(owner), lease=lease or 60.0)
            assert await journal._ask(claim) is not None


def claimed(store: Store, run: str, owner: str, lease: float) -> int | None:
    return store.claim(run, owner, lease)


async def test_who_looks_for_a_run_touches_no_team_of_one_that_goes_on(url: str) -> None:
    """Not for an instant: whoever has just taken the whole run would find its team at work."""
    await left_behind(url)
    async with open_journal(url) as first, open_journal(url) as second:
        taken = await first.claim_orphan()
        assert taken is not None
        assert taken[0].id == "r"
        before = {run.id: await first._ask(partial(_row, run=run.id)) for run in await first.runs()}
        assert await second.claim_orphan() is None
        after = {run.id: await first._ask(partial(_row, run=run.id)) for run in await first.runs()}
        assert before == after
        await taken[1].leave()


def _row(store: Store, run: str) -> RunRow | None:
    return store.find(run)


async def test_of_many_who_look_one_carries_on_all_teams(url: str) -> None:
    """Each team ends, and the others find nothing to do."""
    await left_behind(url)
    agents = [rival(url) for _ in range(4)]
    found = await asyncio.gather(*(agent.resume_orphan() for agent in agents))
    for agent in agents:
        await agent.aclose()
    [answer] = [one for one in found if one is not None]
    assert [team.status for team in answer.teams] == ["answered", "answered"]


async def test_a_team_whose_lease_ends_last_is_waited_for(url: str) -> None:
    """The whole run's lease is over, its team's not yet, or another carries on that team alone:
    whoever has the run takes the team up after that."""
    await left_behind(url, r1=0.6)
    async with rival(url) as agent:
        answer = await agent.resume_orphan()
    assert answer is not None
    assert [team.status for team in answer.teams] == ["answered", "answered"]
    assert answer.error == ""


async def test_a_team_of_a_run_that_has_ended_is_an_orphan_like_any_other(url: str) -> None:
    """Nobody else would carry it on."""
    await left_behind(url)
    async with open_journal(url) as journal:
        taken = await journal.claim_orphan()
        assert taken is not None
        await taken[1].close("failed")
        found = await journal.claim_orphan()
        assert found is not None
        assert (found[0].id, found[0].whole) == ("r.1", "r")
        await found[1].leave()


# A run that was lost


async def test_a_lost_run_ends_at_once(url: str) -> None:
    """Not at its next event: whoever waits for a slow tool is told by the heartbeat."""
    lost: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
    async with open_journal(url, lease=0.3) as journal, open_journal(url) as thief:
        run = await journal.begin("run", "?")
        run.append(RunStarted("run", "?"))
        await run.flush()
        run.on_error = lost.set_result
        await thief._ask(_steal)
        error = await asyncio.wait_for(lost, 10)
        assert isinstance(error, LeaseLost)
        with pytest.raises(LeaseLost):
            run.append(RunStarted("run", "?"))
        with pytest.raises(LeaseLost):
            await run.flush()
        assert len(await thief._ask(lambda store: store.rows("run"))) == 1


async def test_a_heartbeat_that_goes_wrong_stops_no_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it raises: the thread that writes goes on, and nobody waits for it in vain."""
    renewed = threading.Event()

    def broken(*_: object) -> None:
        renewed.set()
        raise UsageError("is no journal")

    monkeypatch.setattr(SqliteStore, "renew", broken)
    async with open_journal(f"sqlite:///{tmp_path / 'j.db'}", lease=0.1) as journal:
        run = await journal.begin("run", "?")
        assert await asyncio.to_thread(renewed.wait, 10)
        run.append(RunStarted("run", "?"))
        await asyncio.wait_for(run.flush(), 10)
        await run.close("interrupted")


def _steal(store: Any) -> None:
    """Give ``run`` to another holder, as a claim does, although its own one lives."""
    with store._writing() as execute:
        execute("UPDATE agentpar_runs SET epoch = epoch + 1")


async def test_setting_the_clock_moves_no_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite's leases count on a clock since the machine started: a day more or less of the
    time of day neither frees a run that is held nor holds one that is free."""
    real = time.time
    url = f"sqlite:///{tmp_path / 'j.db'}"
    async with open_journal(url) as journal:
        run = await journal.begin("run", "?")
        for day in (-86_400, 86_400):
            monkeypatch.setattr(time, "time", lambda day=day: real() + day)
            with pytest.raises(UsageError, match="at work already"):
                await journal.begin("run", "?")
        await run.close("interrupted")
        monkeypatch.setattr(time, "time", lambda: real() - 86_400)
        assert (await journal.begin("run", "?")).known


def test_an_owner_is_gone_only_where_that_is_certain() -> None:
    """Its own process lives; a start or an id that is not there is gone; another machine's,
    boot's or container's cannot be seen."""
    own = Owner.new()
    assert Owner.parse(str(own)) == own
    assert not own.is_gone
    changed = {
        "start": ("1", True),
        "pid": (2**22 + 1, True),
        "boot": ("another", False),
        "namespace": ("another", False),
    }
    for name, (value, gone) in changed.items():
        fields = {field: getattr(own, field) for field in Owner.__slots__} | {name: value}
        assert Owner(**fields).is_gone is gone, name
