"""Several teams on the command line: run, look at, prove, and carry on."""

from __future__ import annotations

import json
import re
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from harness import Always, Cli, Hang, ModelServer

from agentpar.errors import UsageError
from agentpar.fuzzing import fuzz_run

Serve = Callable[..., ModelServer]

QUESTION = "How large is it?"
PLAN = '1. calc(expression="19 + 14")\njoin()\n'
ANSWER = "It is 33 [1].\nAnswer: 33 [1]"


def joining(folder: Path, teams: int) -> None:
    """Wait until so many teams write their answers, as the journal has it."""
    give_up = time.monotonic() + 100
    with closing(sqlite3.connect(folder / "runs" / "journal.db")) as journal:
        query = "SELECT count(*) FROM events WHERE line LIKE '%\"JoinStarted\"%'"
        while journal.execute(query).fetchone()[0] < teams:
            assert time.monotonic() < give_up
            time.sleep(0.01)


@pytest.fixture
def asked(cli: Cli, model_server: Serve) -> ModelServer:
    """A run of two teams by the name of ``last``; each team says the same."""
    (cli.folder / "agent.yaml").write_text("tools: [calc]\n")
    server = model_server(Always(PLAN, ANSWER))
    done = cli("run", "agent.yaml", QUESTION, "--model-url", server.url, "--teams", "2")
    assert done.returncode == 0, done.stderr
    assert " chosen (vote): 2 of 2 came to it" in done.stdout  # whoever was there first
    assert "It is 33 [1]." in done.stdout
    return server


def runs_in(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "runs").iterdir() if path.is_dir())


def test_each_team_has_a_folder_of_its_own(cli: Cli, asked: ModelServer) -> None:
    """With all that a run's folder has."""
    whole, one, two = runs_in(cli.folder)
    assert (one, two) == (f"{whole}.1", f"{whole}.2")
    for name in (whole, one, two):
        for file in ("events.jsonl", "timeline.html", "plan.mmd"):
            assert (cli.folder / "runs" / name / file).stat().st_size
    page = (cli.folder / "runs" / whole / "timeline.html").read_text()
    assert 'id="task-2.1"' in page


def test_last_is_the_run_and_not_its_last_team(cli: Cli, asked: ModelServer) -> None:
    """Shown with all teams, drawn as the chosen one, proved team by team."""
    done = cli("trace")
    assert "team 2: ok 1" in done.stdout
    assert " chosen (vote)" in done.stdout
    assert "calc" in cli("graph", "last").stdout
    done = cli("replay")
    assert done.stdout.count("gave the same") == 2
    assert "of 2 teams the same is chosen again" in done.stdout
    whole, one, _ = runs_in(cli.folder)
    assert "chosen" not in cli("trace", one).stdout
    assert cli("trace", whole[:-2]).returncode == 0


def test_fuzz_plays_the_team_whose_answer_was_taken(cli: Cli, asked: ModelServer) -> None:
    """The record of the whole has no call, and would agree with itself whatever happens."""
    whole, one, two = runs_in(cli.folder)
    done = cli("fuzz", "last", "--schedules", "4")
    assert done.returncode == 0, done.stderr
    assert any(f"{name}/events.jsonl" in done.stdout for name in (one, two))
    with pytest.raises(UsageError, match=f"several teams.*{one}, {two}"):
        fuzz_run(cli.folder / "runs" / whole / "events.jsonl", range(2))


def test_another_choice_than_recorded_is_found(cli: Cli, asked: ModelServer) -> None:
    """Exit 1, and both are named."""
    record = cli.folder / "runs" / runs_in(cli.folder)[0] / "events.jsonl"
    text = record.read_text()
    found = re.search(r'"event": "TeamChosen", "team": (\d)', text)
    assert found
    team = int(found[1])
    record.write_text(text.replace(found[0], f"{found[0][:-1]}{3 - team}"))
    done = cli("replay")
    assert done.returncode == 1
    assert f"differs: team {3 - team} was chosen, now it is team {team}" in done.stderr


def test_a_run_that_has_ended_shows_its_answer(cli: Cli, asked: ModelServer) -> None:
    """Out of the journal, with its teams; no model is asked."""
    done = cli("resume", "last", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["text"], answer["chosen"], len(answer["teams"])) == (ANSWER, answer["chosen"], 2)
    assert f"team {answer['chosen']} chosen" in cli("resume", "last").stdout


def test_a_run_of_teams_is_carried_on(cli: Cli, model_server: Serve) -> None:
    """By its own name, which is the last: every team is."""
    (cli.folder / "agent.yaml").write_text("tools: [calc]\nteams: {n: 2, select: best}\n")
    server = model_server(Always(PLAN, Hang("It is")))
    words = ("run", "agent.yaml", QUESTION, "--model-url", server.url)
    cut = cli.interrupt("joining", *words, first=lambda _: joining(cli.folder, 2))
    assert cut.returncode == 130
    whole = runs_in(cli.folder)[0]
    assert f"carry it on: agentpar resume {whole}" in cut.stderr
    server.texts[:] = [Always('1. calc(expression="0")\njoin()', ANSWER)]
    done = cli("resume", "last", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["run_id"], answer["text"], len(answer["teams"])) == (whole, ANSWER, 2)
    assert answer["changes"] == []
    assert [team["tasks"] for team in answer["teams"]] == [{"1": {"tool": "calc", "ok": True}}] * 2
    assert answer["citations"][0]["source"] == "calc(19 + 14)"  # no plan was asked for again


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--select", "first"), "--select chooses among teams: give --teams, too"),
        (("--teams", "99"), "n is 99; 1 to 16 can work on one question"),
        (("--teams", "2", "--select", "luck"), "select is 'luck'; there are vote, first"),
    ],
)
def test_what_cannot_be_meant_exits_with_2(cli: Cli, words: tuple[str, ...], message: str) -> None:
    """Before anything is asked."""
    (cli.folder / "agent.yaml").write_text("tools: [calc]\n")
    done = cli("run", "agent.yaml", QUESTION, "--model-url", "http://127.0.0.1:9/v1", *words)
    assert done.returncode == 2
    assert message in done.stderr
