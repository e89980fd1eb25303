"""``agentpar resume``: what a killed command left behind is carried on, from its id alone."""

from __future__ import annotations

import json
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from harness import Cli, ModelServer

Serve = Callable[..., ModelServer]

QUESTION = "What is late?"
PLAN = '1. look(x="a")\n2. late(x=$1)\n3. send(text=$2)\njoin()\n'
ANSWER = "It was sent [3].\nAnswer: sent"
TOOLS = '''
import asyncio, pathlib
from agentpar import tool

@tool
async def look(x: str) -> str:
    """Look."""
    with open("looked", "a") as file:
        file.write(x)
    return x * 2

@tool
async def late(x: str) -> str:
    """Late, until there is a file named go."""
    if not pathlib.Path("go").exists():
        await asyncio.sleep(600)
    return f"late {x}"

@tool(effect="write")
async def send(text: str) -> str:
    """Send a text."""
    with open("sent", "a") as file:
        file.write(text)
    return "sent"
'''
YAML = "tools: [{python: own:look}, {python: own:late}, {python: own:send}]\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "agent.yaml").write_text(YAML)
    (tmp_path / "own.py").write_text(TOOLS)
    return tmp_path


def words(server: ModelServer, *more: str) -> tuple[str, ...]:
    asked = ("run", "agent.yaml", QUESTION, "--model-url", server.url, "--allow-module", "own")
    return (*asked, "--yes", *more)


def planned(folder: Path, name: str = "runs/journal.db") -> None:
    """Wait until the journal has the whole plan: else the model would be asked for it again."""
    give_up = time.monotonic() + 100
    with closing(sqlite3.connect(folder / name)) as journal:
        query = (
            "SELECT (SELECT count(*) FROM events WHERE line LIKE '%\"PlanEnded\"%')"
            " = (SELECT count(*) FROM runs)"
        )
        while not journal.execute(query).fetchone()[0]:
            assert time.monotonic() < give_up
            time.sleep(0.01)


def the_id(folder: Path) -> str:
    (record,) = (folder / "runs").glob("*/events.jsonl")
    return record.parent.name


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_a_run_is_carried_on_from_its_id_alone(
    cli: Cli, folder: Path, model_server: Serve, sign: int
) -> None:
    """Agent, model, modules and --yes come from the journal; what is done is not done again."""
    server = model_server(PLAN, ANSWER)
    cli.interrupt("started 2", *words(server), sign=sign, first=lambda _: planned(folder))
    (folder / "go").touch()
    done = cli("resume", the_id(folder))
    assert (done.returncode, done.stderr) == (0, "")
    assert "It was sent [3]." in done.stdout
    assert ((folder / "looked").read_text(), (folder / "sent").read_text()) == ("a", "late aa")
    assert cli("replay", the_id(folder)).returncode == 0


def test_a_carried_on_run_can_be_approved(cli: Cli, folder: Path, model_server: Serve) -> None:
    """Begun without --yes, it gets --yes where it is carried on, and its write runs."""
    server = model_server(PLAN, ANSWER)
    asked = [word for word in words(server) if word != "--yes"]
    cli.interrupt("started 2", *asked, sign=signal.SIGKILL, first=lambda _: planned(folder))
    (folder / "go").touch()
    assert cli("resume", the_id(folder), "--yes").returncode == 0
    assert (folder / "sent").read_text() == "late aa"


def test_a_run_that_has_ended_shows_its_answer(cli: Cli, folder: Path, model_server: Serve) -> None:
    """No model is asked, no tool called: the model server has nothing left to say."""
    (folder / "go").touch()
    server = model_server(PLAN, ANSWER)
    first = json.loads(cli(*words(server, "--json")).stdout)
    again = cli("resume", "last", "--json")
    assert again.returncode == 0
    assert json.loads(again.stdout) | {"folder": ""} == first | {"folder": ""}
    assert cli("resume", "last", "--quiet").stdout.startswith("It was sent [3].")
    assert (folder / "sent").read_text() == "late aa"


def test_orphans_are_carried_on_one_by_one(cli: Cli, folder: Path, model_server: Serve) -> None:
    """Those whose process was killed; one that was cancelled is left alone."""
    server = model_server(PLAN, PLAN, ANSWER)
    for sign in (signal.SIGINT, signal.SIGKILL):
        cli.interrupt("started 2", *words(server), sign=sign, first=lambda _: planned(folder))
    (folder / "go").touch()
    done = cli("resume", "--orphans")
    assert done.returncode == 0
    assert done.stderr.count("run 2") == 1
    assert done.stdout.count("It was sent [3].") == 1
    assert cli("resume", "--orphans").stderr == "no run is left behind\n"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("resume", "nobody"), "there is no journal in 'runs'"),
        (("resume",), "name a run, or 'last', or give --orphans"),
        (("resume", "x", "--orphans"), "name a run, or 'last', or give --orphans"),
        (("resume", "x", "--journal", "redis://h"), "an address of 'redis'"),
        (("resume", "x", "--journal", "sqlite:///agent.yaml"), "is no journal"),
    ],
)
def test_what_cannot_be_meant_exits_with_2(
    cli: Cli, folder: Path, asked: tuple[str, ...], message: str
) -> None:
    """Each with what to do."""
    done = cli(*asked)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (folder / "runs").exists()


def test_a_run_may_have_no_journal_or_another(cli: Cli, folder: Path, model_server: Serve) -> None:
    """--no-journal keeps none; --journal and the file's own ``journal:`` name another."""
    (folder / "go").touch()
    assert cli(*words(model_server(PLAN, ANSWER), "--no-journal")).returncode == 0
    assert not (folder / "runs" / "journal.db").exists()
    named = ("--journal", "sqlite:///kept.db")
    assert cli(*words(model_server(PLAN, ANSWER), *named)).returncode == 0
    assert cli("resume", "last", *named).returncode == 0
    (folder / "agent.yaml").write_text(f"{YAML}journal: sqlite:///yaml.db\n")
    assert cli(*words(model_server(PLAN, ANSWER))).returncode == 0
    assert (folder / "yaml.db").is_file()
    assert not (folder / "runs" / "journal.db").exists()


def test_the_journal_of_a_run_is_found_in_the_agents_file(
    cli: Cli, folder: Path, model_server: Serve
) -> None:
    """The file's own ``journal:`` needs naming nowhere; what is told after Ctrl-C does it. The
    file may have moved."""
    (folder / "agent.yaml").write_text(f"{YAML}journal: {{url: 'sqlite:///${{DB}}', keep: 30d}}\n")
    cli.environment["DB"] = "yaml.db"
    server = model_server(PLAN, ANSWER)
    killed = cli.interrupt("started 2", *words(server), first=lambda _: planned(folder, "yaml.db"))
    run_id = the_id(folder)
    assert f"carry it on: agentpar resume {run_id} agent.yaml" in killed.stderr
    (folder / "go").touch()
    (folder / "agent.yaml").rename(folder / "moved.yaml")
    done = cli("resume", "last", "moved.yaml")
    assert (done.returncode, done.stderr) == (0, "")
    assert "It was sent [3]." in done.stdout
    assert (folder / "looked").read_text() == "a"
    assert cli("resume", "--orphans", "moved.yaml").stderr == "no run is left behind\n"


def test_a_changed_agent_is_told_and_may_be_refused(
    cli: Cli, folder: Path, model_server: Serve
) -> None:
    """--strict leaves the run as it is; without it, the run goes on by its own terms. No step is
    told twice in the same words."""
    server = model_server(PLAN, ANSWER)
    cli.interrupt("started 2", *words(server), first=lambda _: planned(folder))
    (folder / "go").touch()
    (folder / "agent.yaml").write_text(f"{YAML}instructions: Be brief.\n")
    refused = cli("resume", "last", "--strict")
    assert refused.returncode == 2
    assert "has changed since it began: the instructions are others" in refused.stderr
    done = cli("resume", "last")
    assert done.returncode == 0
    assert "changed in the agent since the run began: the instructions are others" in done.stdout
    lines = [line.partition(" s  ")[2] for line in done.stdout.splitlines() if " s  " in line]
    assert len(lines) == len(set(lines)), lines
    assert "started 2 again" in lines


def test_old_runs_are_pruned(cli: Cli, folder: Path, model_server: Serve) -> None:
    """Those that have ended, after a look; what broke off stays and is carried on."""
    server = model_server(PLAN, ANSWER, PLAN, ANSWER)
    cli.interrupt("started 2", *words(server), first=lambda _: planned(folder))
    left = the_id(folder)
    server.texts[:] = [PLAN, ANSWER, ANSWER]
    (folder / "go").touch()
    ended = json.loads(cli(*words(server, "--json")).stdout)["run_id"]
    assert cli("prune").returncode == 2
    assert (
        cli("prune", "--older-than", "1d").stderr == "0 runs, 0 cached results, 0 files removed\n"
    )
    looked = cli("prune", "--older-than", "1ms", "--dry-run")
    assert looked.stdout == f"{ended}\n"
    assert looked.stderr == "1 runs, 0 cached results would be removed\n"
    assert cli("prune", "--older-than", "1ms").stdout == f"{ended}\n"
    assert f"no run '{ended}'" in cli("resume", ended).stderr
    assert cli("resume", left).returncode == 0
