"""Journals that are damaged, foreign, read-only, full or gone: a clear word, and nothing lost."""

from __future__ import annotations

import asyncio
import gc
import os
import select
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import acting
import pytest
from server import Postgres

from agentpar import Agent, AgentparError, JournalError, Ok, ScriptedRuntime, UsageError, tool
from agentpar.events import Event, RunStarted, TaskDone, TaskPlanned
from agentpar.executor.journal import open_journal
from agentpar.executor.journal.postgres import PostgresStore
from agentpar.executor.journal.spill import LIMIT
from agentpar.executor.journal.store import Unreachable
from agentpar.plan import Task

HERE = Path(__file__).parent
EVENTS: tuple[Event, ...] = (
    RunStarted("run", "?"),
    *(TaskDone(n, Ok("x" * 3000)) for n in range(60)),
    TaskDone(60, Ok("y" * 2 * LIMIT)),
)


def write(path: Path) -> None:
    """A journal at ``path`` with one long run."""

    async def written() -> None:
        async with open_journal(f"sqlite:///{path}") as journal:
            run = await journal.begin("run", "?")
            for event in EVENTS:
                run.append(event)
            await run.close("interrupted")

    asyncio.run(written())


def read(path: Path) -> tuple[Event, ...]:
    """What the journal at ``path`` has of the run."""

    async def found() -> tuple[Event, ...]:
        async with open_journal(f"sqlite:///{path}") as journal:
            await journal.find("run")
            return (await journal.begin("run", "?")).history

    return asyncio.run(found())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "j.db"
    write(path)
    return path


def test_a_truncated_file_is_never_taken_for_less_of_a_run(path: Path) -> None:
    """Cut anywhere: an error that names the file, or (the cut took nothing) all of it."""
    whole = path.read_bytes()
    cuts = [*range(0, len(whole), len(whole) // 40), 1, 15, 99, 101, len(whole) - 1, len(whole)]
    told: list[str] = []
    for cut in cuts:
        path.write_bytes(whole[:cut])
        try:
            found = read(path)
        except AgentparError as error:
            told.append(str(error))
        else:
            assert found == EVENTS
        for log in path.parent.glob("j.db-*"):
            log.unlink()
    assert all(str(path) in error for error in told)
    assert len(told) >= len(cuts) - 2


@pytest.mark.parametrize("fate", ["removed", "moved", "replaced"])
async def test_a_file_that_goes_away_in_the_middle_of_a_run_ends_it(
    tmp_path: Path, fate: str
) -> None:
    """SQLite would write on to a file without a name, and the run's end would be nowhere."""
    path = tmp_path / "j.db"

    @tool
    async def lose(x: str) -> str:
        """Lose the journal."""
        match fate:
            case "removed":
                path.unlink()
            case "moved":
                path.rename(tmp_path / "k.db")
            case _:
                (tmp_path / "new").write_bytes(b"")
                (tmp_path / "new").replace(path)
        return x

    runtime = ScriptedRuntime(['1. lose(x="a")\njoin()', "a [1]."])
    with pytest.raises(JournalError, match=r"j\.db' was removed or replaced while it was in use"):
        async with Agent([lose], runtime=runtime, journal=f"sqlite:///{path}") as agent:
            await agent.ask("?", run_id="run")


def test_a_damaged_page_is_told(path: Path) -> None:
    """Bytes that turned in the middle of the file: the file is named, and left as it is."""
    data = bytearray(path.read_bytes())
    data[8 * 4096 : 30 * 4096] = b"\x55" * (22 * 4096)
    path.write_bytes(data)
    with pytest.raises(JournalError, match=r"j\.db' is damaged .* left as it is"):
        read(path)


@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_a_large_result_that_is_damaged_is_told(path: Path, damage: str) -> None:
    """A result is never another one, nor half of it."""
    (file,) = (file for file in (path.parent / "j.db.d").rglob("*") if file.is_file())
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(JournalError, match=file.name):
        read(path)


def test_another_version_is_refused_and_left_alone(path: Path) -> None:
    """It says which versions are meant, and changes nothing."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    before = path.read_bytes()
    with pytest.raises(UsageError, match=r"j\.db' is of format 99, .* reads format 2"):
        read(path)
    assert path.read_bytes() == before


@pytest.mark.postgres
async def test_another_version_in_postgres_is_refused(postgres: Postgres) -> None:
    """The same in a database."""
    import psycopg

    url = postgres.new_database()
    async with open_journal(url):
        pass
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE agentpar_journal SET version = 99")
    with pytest.raises(UsageError, match=r"is of format 99, .* reads format 2"):
        await open_journal(url).start()


def test_what_is_no_journal_is_refused_and_left_alone(tmp_path: Path) -> None:
    """A text, another program's database, a folder."""
    text = tmp_path / "notes.txt"
    text.write_text("dear diary " * 1000)
    with pytest.raises(UsageError, match=r"notes\.txt' is no journal"):
        read(text)
    assert text.read_text() == "dear diary " * 1000
    foreign = tmp_path / "other.db"
    with closing(sqlite3.connect(foreign)) as connection:
        connection.execute("CREATE TABLE runs (id TEXT)")
    with pytest.raises(UsageError, match=r"other\.db' is a database of another program"):
        read(foreign)
    with pytest.raises(UsageError, match="is a folder: name a file in it"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://root:secret@host/db", "sqlite:///FILE or postgresql://…, got .* 'mysql'"),
        ("sqlite:///", "sqlite:///FILE"),
        ("sqlite:///:memory:", "outlives nothing"),
        ("postgresql://u:secret@h/db?nonsense=1", "none that Postgres knows"),
        ("j.db", "got 'j.db': write 'sqlite:///j.db'"),
    ],
)
def test_an_address_that_is_none_is_refused(url: str, message: str) -> None:
    """At once, and without the password in it."""
    with pytest.raises(UsageError, match=message) as found:
        open_journal(url)
    assert "secret" not in str(found.value)


@contextmanager
def unprivileged() -> Iterator[None]:
    """As nobody, where the tests run as root, whom no permission binds."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder whose parents everybody may enter, unlike those of ``tmp_path``."""
    import tempfile

    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


@pytest.mark.parametrize("what", ["the file", "the folder", "the folder of a new one"])
def test_a_read_only_place_is_refused_before_anything_runs(open_folder: Path, what: str) -> None:
    """No model and no tool is asked, and the message names the place."""
    path = open_folder / "j.db"
    if what != "the folder of a new one":
        write(path)
        path.chmod(0o444)
        for file in (open_folder / "j.db.d").rglob("*"):
            file.chmod(0o555)
    if what != "the file":
        open_folder.chmod(0o555)
    runtime = ScriptedRuntime(["join()", "Answer: no"])
    agent = Agent([], runtime=runtime, journal=f"sqlite:///{path}")
    with unprivileged(), pytest.raises(UsageError, match=r"j\.db' cannot be written"):
        agent.ask_sync("?")
    assert runtime.requests == []


FULL = """
import asyncio, resource, sys
from pathlib import Path
import acting
from agentpar import AgentparError

async def main(url, world, limit):
    async with acting.agent_of(url, acting.World(Path(world)), plans=acting.CHAINS) as agent:
        await agent.tools()
        if int(limit):
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), -1))
        try:
            print((await agent.ask(acting.QUESTION, run_id="run")).text)
        except AgentparError as error:
            print(f"{type(error).__name__}: {error}")

asyncio.run(main(*sys.argv[1:]))
"""


def asked_with_room(url: str, world: acting.World, bytes: int) -> str:
    done = subprocess.run(
        [sys.executable, "-c", FULL, url, str(world.path), str(bytes)],
        env={**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parent.parent}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_full_disk_ends_the_run_and_room_lets_it_go_on(tmp_path: Path) -> None:
    """No file may grow beyond a limit, as on a full disk: the run says so; carried on with
    more room, it has its answer, and every payment is made once."""
    url = f"sqlite:///{tmp_path / 'j.db'}"
    world = acting.World(tmp_path / "world.db")
    told = asked_with_room(url, world, 45_000)
    assert told.startswith("JournalError: the journal "), told
    text = asked_with_room(url, world, 0)
    own = sorted(f"<chain {n}> {n}" for n in range(12))
    assert world.payments("once") == own
    for n in range(12):
        assert f"<chain {n}> got {n}" in text


async def test_a_value_that_json_has_no_word_for_ends_the_run(tmp_path: Path) -> None:
    """It is refused where it is written, by name; what was written before stands."""
    async with open_journal(f"sqlite:///{tmp_path / 'j.db'}") as journal:
        run = await journal.begin("run", "?")
        run.append(RunStarted("run", "?"))
        with pytest.raises(UsageError, match="TaskPlanned cannot be kept in the journal: set"):
            run.append(TaskPlanned(1, Task.of(1, "look", x={1, 2})))
        await run.close("interrupted")
        assert (await journal.begin("run", "?")).history == (RunStarted("run", "?"),)


# A Postgres that goes away


def waiting_agent(url: str, world: acting.World, gone: Any, *, patience: float) -> Agent:
    """Its second call is ``gone``, in a thread, while the server is up and down."""

    @tool
    def wait(x: str) -> str:
        """Wait."""
        gone()
        return f"after {x}"

    plan = ('1. look(x="a")\n2. wait(x=$1)\n3. pay(to=$2, amount=1)\njoin()',)
    journal = open_journal(url, patience=patience, lease=5.0)
    return acting.agent_of(journal, world, plans=plan, more=(wait,))


@pytest.mark.postgres
async def test_a_postgres_that_comes_back_is_waited_for(postgres: Postgres, tmp_path: Path) -> None:
    """It crashes in the middle of the run and starts again: the run does not notice."""
    url = postgres.new_database()
    world = acting.World(tmp_path / "world.db")

    def restart() -> None:
        postgres.stop()
        postgres.start()

    async with waiting_agent(url, world, restart, patience=30.0) as agent:
        answer = await agent.ask(acting.QUESTION, run_id="run")
        assert "after <a> got 1" in answer.text
        assert await agent.resume("run") == answer
    assert world.payments("raw") == ["after <a> 1"]


@pytest.mark.postgres
async def test_a_postgres_that_stays_away_ends_the_run(postgres: Postgres, tmp_path: Path) -> None:
    """Before the write is made, with a clear word; when it is back, the run is carried on."""
    url = postgres.new_database()
    world = acting.World(tmp_path / "world.db")
    try:
        with pytest.raises(JournalError, match=r"is gone: .* \(waited 0\.5 s\)"):
            async with waiting_agent(url, world, postgres.stop, patience=0.5) as agent:
                await agent.ask(acting.QUESTION, run_id="run")
        assert world.payments("raw") == []
    finally:
        postgres.start()
    async with waiting_agent(url, world, lambda: None, patience=5.0) as agent:
        assert "after <a> got 1" in (await agent.resume("run")).text
    assert world.payments("raw") == ["after <a> 1"]


@pytest.mark.postgres
async def test_a_wait_that_was_cancelled_leaves_no_error_behind(postgres: Postgres) -> None:
    """A call that was stopped while it waited for its begin to be on disk hears no more of it, and
    asyncio prints nothing about a future whose error nobody took."""
    printed: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, told: printed.append(told))

    async def cancelled() -> None:
        async with open_journal(postgres.new_database(), patience=0.3) as journal:
            run = await journal.begin("run", "?")
            await run.flush()
            postgres.stop()
            run.append(RunStarted("run", "?"))
            wait = asyncio.ensure_future(run.flush())
            await asyncio.sleep(0)
            wait.cancel()
            with pytest.raises(JournalError, match="is gone"):
                await run.flush()
            await run.leave()

    try:
        await cancelled()
    finally:
        postgres.start()
    gc.collect()
    assert printed == []


@pytest.mark.postgres
async def test_a_session_that_the_server_ended_is_begun_anew(postgres: Postgres) -> None:
    """A process that was stopped inside a transaction finds it ended when it wakes: that is no
    damage, and the same again succeeds."""
    soon = "&options=-cidle_in_transaction_session_timeout%3D50"
    store = PostgresStore(postgres.new_database() + soon)
    store.open()

    def stand_still() -> None:
        with store._writing() as execute:
            execute("SELECT 1")
            connection = store._database._connection
            assert connection is not None
            ready, _, _ = select.select([connection.pgconn.socket], [], [], 10)
            assert ready, "the server has not said its last word"
            execute("SELECT 1")

    with pytest.raises(Unreachable, match="idle-in-transaction"):
        stand_still()
    assert store.runs() == []
    store.close()
