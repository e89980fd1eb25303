"""Training and trying controllers from the command line, on small data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from harness import Cli

from agentpar import Agent, ScriptedRuntime, tool
from agentpar.events import EntryOffered
from agentpar.executor.record import encode
from agentpar.memory.controller import load, shipped
from agentpar.memory.entry import Producer, Reading, entry_of
from agentpar.memory.features import Features
from agentpar.memory.learning import Logged, write
from agentpar.memory.store import open_store


@tool
async def find(what: str) -> str:
    """Find."""
    return what


@pytest.fixture
def logged(cli: Cli) -> Path:
    """240 decisions: what others wait for is worth something, the rest costs."""
    path = cli.folder / "decisions.jsonl"
    write(
        path,
        (
            Logged(
                Features(demand=at % 3, seconds=float(at % 7), others=2).vector(),
                0.5,
                at % 2 == 0,
                (5.0 * (at % 3) - 2.0) if at % 2 == 0 else None,
            )
            for at in range(240)
        ),
    )
    return path


async def runs_of(cli: Cli, count: int) -> None:
    """A bank and ``count`` recorded runs, of each of which another has used the finding."""
    store = open_store(f"sqlite:///{cli.folder / 'bank.db'}")
    store.open()
    for at in range(count):
        id = f"20260101-{at:03}"
        runtime = ScriptedRuntime(["1. find('x')\njoin()", "It is x [1]."])
        async with Agent([find], runtime=runtime, runs=cli.folder / "runs") as agent:
            await agent.ask("?", run_id=id)
        entry = entry_of(find, {"what": str(at)}, str(at), Producer(id, 1), namespace="n")
        store.put(entry)
        store.used(Reading(entry.id, "another", 1, 0, 2.0))
        offers = (
            EntryOffered(1, entry.id if at else f"{at}", at % 2 == 0, "rule", 0.5, features=seen)
            for at, seen in enumerate([Features(demand=n).vector() for n in range(8)])
        )
        record = cli.folder / "runs" / id / "events.jsonl"
        lines = record.read_text().splitlines()
        lines[-1:-1] = [json.dumps(encode(offer)) for offer in offers]
        record.write_text("\n".join(lines) + "\n")
    store.close()


def test_a_controller_is_trained_on_logged_decisions(cli: Cli, logged: Path) -> None:
    """Written where it is told to, with its record; not promoted, and that is said."""
    done = cli("memory", "train", "decisions.jsonl", "-o", "mine.json")
    assert done.returncode == 0, done.stderr
    assert "| decisions.jsonl | controller |" in done.stdout
    assert "not promoted" in done.stderr
    assert "written to mine.json" in done.stderr
    controller = load(cli.folder / "mine.json")
    assert not controller.promoted
    assert controller.record["decisions"] == 240
    tried = cli("memory", "eval", "mine.json", "--on", "decisions.jsonl")
    assert tried.stdout == done.stdout


async def test_runs_and_their_bank_are_what_is_learned_from(cli: Cli) -> None:
    """Too few of them are told; with enough there is a controller, and it can be estimated."""
    await runs_of(cli, 2)
    words = ("--bank", "sqlite:///bank.db")
    done = cli("memory", "train", *words, "-o", "mine.json")
    assert done.returncode == 2
    assert "decisions" in done.stderr
    assert "are needed to learn from" in done.stderr
    assert not (cli.folder / "mine.json").exists()
    tried = cli("memory", "eval", *words)
    assert tried.returncode == 0, tried.stderr
    assert tried.stdout.splitlines()[0].endswith("decisions in runs.")
    assert [line.split()[0] for line in tried.stdout.splitlines()[1:]] == ["rule", "controller"]
    assert "from fewer than 200 decisions this says little" in tried.stderr


async def test_teams_that_were_recorded_are_replayed_to_promote(cli: Cli) -> None:
    """Of forty questions that two teams have worked on every second is played under the rule and
    under what was learned from the others; the record says how that came out."""
    runtime = ScriptedRuntime(["1. find('x')\njoin()", "It is x [1]."] * 80)
    async with Agent([find], runtime=runtime, runs=cli.folder / "runs") as agent:
        for at in range(40):
            await agent.ask(f"question {at}?", run_id=f"Q{at}", teams=2)
    await runs_of(cli, 60)
    done = cli("memory", "train", "--bank", "sqlite:///bank.db", "-o", "mine.json")
    assert done.returncode == 0, done.stderr
    assert "paired replay of 20 questions, which are not learned from" in done.stderr
    promotion = load(cli.folder / "mine.json").record["promotion"]
    assert promotion["episodes"] == 20


def test_the_simulator_gives_a_table(cli: Cli) -> None:
    """A row for each policy; by default it is the shipped controller that is tried."""
    done = cli("memory", "eval", "--on", "default", "--episodes", "4")
    assert done.returncode == 0, done.stderr
    rows = [line.split("|")[2].strip() for line in done.stdout.splitlines() if "| default" in line]
    assert rows == ["admit all", "rule", "controller", "oracle"]
    assert ("was not promoted" in done.stderr) != shipped().promoted


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "default"], "say where the controller goes: -o controller.json"),
        (["train", "defautl", "-o", "c.json"], "'defautl' is no file of logged decisions and no"),
        (["train", "-o", "c.json"], "say what to learn from"),
        (["train", "default", "-o", "decisions.jsonl"], "is there already, and nothing is over"),
        (["train", "default", "-o", "none/c.json"], "there is no folder 'none'"),
        (["train", "default", "-o", "c.json", "--effort", "0"], "effort is 0.0"),
        (["train", "--bank", "sqlite:///bank.db", "-o", "c.json"], "no recorded runs in 'runs'"),
        (["train", "default", "-o", "c.json", "--bank", "sqlite:///b.db"], "give DATA or a bank"),
        (["eval", "none.json"], "none.json: the controller cannot be read"),
        (["eval", "decisions.jsonl"], "decisions.jsonl"),
        (["eval", "--on", "none.jsonl"], "'none.jsonl' is no file of logged decisions"),
        (["eval", "--on", "default", "--bank", "sqlite:///b.db"], "give --on or a bank, not both"),
        (["eval", "--on", "default", "--episodes", "1"], "episodes is 1"),
    ],
)
def test_a_mistake_is_told(cli: Cli, logged: Path, words: list[str], message: str) -> None:
    """Before anything is trained; exit 2, and no file is written."""
    before = logged.read_text()
    done = cli("memory", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert not (cli.folder / "c.json").exists()
    assert logged.read_text() == before
