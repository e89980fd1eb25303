"""``agentpar run`` as a user meets it: answers, bad input, Ctrl-C, approval."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import socket
import subprocess
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import Cli, Hang, ModelServer

QUESTION = "Which has more people, Chile or Peru?"
PLAN = '1. population(country="Chile")\n2. population(country="Peru")\njoin()\n'
ANSWER = "Peru has 34 million people [2].\nAnswer: Peru"
TOOLS = '''
import asyncio, time
from agentpar import tool

@tool
async def population(country: str) -> str:
    """Population of a country."""
    return f"{country} has {dict(Chile=19, Peru=34)[country]} million people"

@tool
async def wait() -> str:
    """Never ends."""
    await asyncio.sleep(600)

@tool
def stuck() -> str:
    """Never ends, and holds a thread."""
    time.sleep(600)

@tool(effect="write")
async def send(text: str) -> str:
    """Send a text."""
    open("sent", "a").write(text)
    return "sent"
'''
YAML = """\
version: 1
tools:
  - python: own_tools:population
  - python: own_tools:wait
  - python: own_tools:stuck
  - python: own_tools:send
"""

Serve = Callable[..., ModelServer]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "agent.yaml").write_text(YAML)
    (tmp_path / "own_tools.py").write_text(TOOLS)
    return tmp_path


def words(server: ModelServer | str, *more: str) -> tuple[str, ...]:
    url = server if isinstance(server, str) else server.url
    asked = ("run", "agent.yaml", QUESTION, "--model-url", url, "--allow-module", "own_tools")
    return (*asked, *more)


def the_run(folder: Path) -> Path:
    (run,) = filter(Path.is_dir, (folder / "runs").iterdir())
    return run


def events(run: Path) -> list[dict[str, Any]]:
    """The record's lines; each must be whole."""
    text = (run / "events.jsonl").read_text()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def test_a_question_gives_an_answer_and_a_run_folder(
    cli: Cli, folder: Path, model_server: Serve
) -> None:
    """The view ends with the answer; record, timeline and plan are there, and nothing else."""
    done = cli(*words(model_server(PLAN, ANSWER)))
    assert (done.returncode, done.stderr) == (0, "")
    assert "Peru has 34 million people [2]." in done.stdout
    run = the_run(folder)
    assert sorted(file.name for file in run.iterdir()) == [
        "events.jsonl", "plan.mmd", "timeline.html",
    ]  # fmt: skip
    assert events(run)[-1]["status"] == "answered"
    assert "population" in (run / "plan.mmd").read_text()


def test_json_is_one_object_and_nothing_else(cli: Cli, folder: Path, model_server: Serve) -> None:
    """--json: stdout parses as one object with answer, citations and run folder."""
    done = cli(*words(model_server(PLAN, ANSWER), "--json"))
    data = json.loads(done.stdout)
    assert (done.returncode, data["status"], data["conclusion"]) == (0, "answered", "Peru")
    assert data["citations"][0]["n"] == 2
    assert folder / data["folder"] == the_run(folder)


def test_quiet_is_the_answer_and_its_sources(cli: Cli, folder: Path, model_server: Serve) -> None:
    """--quiet: no events, no banner, no summary."""
    done = cli(*words(model_server(PLAN, ANSWER), "--quiet"))
    assert done.returncode == 0
    assert done.stdout.startswith("Peru has 34 million people [2].")
    assert "planning" not in done.stdout


@pytest.mark.slow
def test_a_server_that_is_not_there_fails_the_run(cli: Cli, folder: Path) -> None:
    """Exit 1; its address is told on stderr, without a traceback, and the JSON says failed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        done = cli(*words(url, "--json"))
    assert done.returncode == 1
    assert url in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads(done.stdout)["status"] == "failed"


def test_a_plan_that_is_none_fails_the_run_with_a_message(
    cli: Cli, folder: Path, model_server: Serve
) -> None:
    """A model that talks instead of planning cannot make the command hang or crash."""
    chatter = "I would love to help you with that!\n"
    done = cli(*words(model_server(*[chatter] * 8), "--json"))
    data = json.loads(done.stdout)
    assert data["faults"]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("tools: [calc]\nplaner: {}\n", "agent.yaml:2:1"),
        ("tools: [\n", "agent.yaml:"),
        ("", "agent.yaml:1:1"),
    ],
)
def test_a_bad_file_exits_with_2_and_its_position(
    cli: Cli, folder: Path, yaml: str, message: str
) -> None:
    """The caller's mistake is told on stderr before anything starts."""
    (folder / "agent.yaml").write_text(yaml)
    done = cli(*words("http://127.0.0.1:9/v1"))
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "runs").exists()


def test_weights_that_nobody_knows_exit_with_2_and_a_suggestion(cli: Cli, folder: Path) -> None:
    """A misspelled model is the caller's mistake, and the near one is named."""
    asked = ("run", "agent.yaml", QUESTION, "--allow-module", "own_tools")
    done = cli(*asked, "--model", "smollm2-135")
    assert done.returncode == 2
    assert "did you mean 'smollm2-135m'?" in done.stderr


def test_weights_that_are_missing_exit_with_1(cli: Cli, folder: Path) -> None:
    """A folder without weights is named; no server is started."""
    asked = ("run", "agent.yaml", QUESTION, "--allow-module", "own_tools")
    done = cli(*asked, "--model", "./nowhere")
    assert done.returncode == 1
    assert "'./nowhere'" in done.stderr


def test_no_model_at_all_is_told_with_what_to_give(cli: Cli, folder: Path) -> None:
    """A file without a model needs one on the command line."""
    done = cli("run", "agent.yaml", QUESTION, "--allow-module", "own_tools")
    assert done.returncode == 2
    assert "--model-url" in done.stderr


def test_a_server_without_a_scheme_is_told_as_an_address(cli: Cli, folder: Path) -> None:
    """``localhost:8000`` is no name of weights, and the message does not list those."""
    asked = ("run", "agent.yaml", QUESTION, "--allow-module", "own_tools")
    done = cli(*asked, "--model-url", "localhost:8000")
    assert done.returncode == 2
    assert done.stderr == (
        "agentpar: --model-url must begin with http:// or https://, such as http://localhost:8000/v1\n"
    )


def test_debug_shows_the_traceback(cli: Cli, folder: Path) -> None:
    """What users are spared, those who mend agentpar can ask for."""
    (folder / "agent.yaml").write_text("")
    done = cli("--debug", *words("http://127.0.0.1:9/v1"))
    assert "Traceback" in done.stderr
    assert "ConfigError" in done.stderr


PLANNING = Hang('1. population(country="Chile")\n')
MOMENTS = {
    "planning": ([PLANNING], "ok 1"),
    "a tool runs": (["1. wait()\njoin()\n"], "started 1"),
    "a tool is stuck": (["1. stuck()\njoin()\n"], "started 1"),
    "joining": ([PLAN, Hang("Peru has")], "joining"),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_leaves_nothing_half_done(
    cli: Cli, folder: Path, model_server: Serve, moment: str
) -> None:
    """Exit 130, how to carry on, and one word; the record is whole, its views are there."""
    texts, line = MOMENTS[moment]
    server = model_server(*texts)
    done = cli.interrupt(line, *words(server))
    assert done.returncode == 130
    run = the_run(folder)
    assert done.stderr == f"carry it on: agentpar resume {run.name}\nagentpar: cancelled\n"
    assert events(run)[-1] | {"at": 0} == {
        "event": "RunFinished", "status": "cancelled", "error": "cancelled by the caller", "at": 0,
        "stopped_by": "", "steps": events(run)[-1]["steps"], "cost_usd": 0.0,
    }  # fmt: skip
    assert sorted(file.name for file in run.iterdir()) == [
        "events.jsonl", "plan.mmd", "timeline.html",
    ]  # fmt: skip


def test_a_polite_kill_is_a_ctrl_c(cli: Cli, folder: Path, model_server: Serve) -> None:
    """SIGTERM, as a CI system sends it, cleans up too."""
    done = cli.interrupt("started 1", *words(model_server("1. wait()\n")), sign=signal.SIGTERM)
    assert done.returncode == 130
    assert events(the_run(folder))[-1]["status"] == "cancelled"


SEND = '1. send(text="hello")\njoin()\n'


def test_a_risky_call_is_denied_where_nobody_can_be_asked(
    cli: Cli, folder: Path, model_server: Serve
) -> None:
    """Without a terminal a tool that changes things does not run, and the run says why."""
    done = cli(*words(model_server(SEND, "Nothing was sent.")))
    assert "standard input is no terminal" in done.stdout
    assert not (folder / "sent").exists()


def test_yes_approves_risky_calls(cli: Cli, folder: Path, model_server: Serve) -> None:
    """--yes is the user's word for all of them."""
    assert cli(*words(model_server(SEND, "Sent [1]."), "--yes")).returncode == 0
    assert (folder / "sent").read_text() == "hello"


@pytest.mark.parametrize(("key", "sent"), [(b"y", True), (b"n", False)])
def test_one_key_at_the_terminal_decides(
    cli: Cli, folder: Path, model_server: Serve, key: bytes, sent: bool
) -> None:
    """The call is shown; y allows it, any other key denies it."""
    shown, said_yes = asked_at_a_terminal(cli, folder, model_server(SEND, "Done."), key)
    assert b'send(text="hello")' in shown
    assert b"data from" not in shown
    assert said_yes is sent


def asked_at_a_terminal(
    cli: Cli, folder: Path, server: ModelServer, key: bytes
) -> tuple[bytes, bool]:
    """All that was shown, and whether the call ran, where ``key`` answers the question."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        cli.argv(words(server)),
        cwd=folder,
        env=cli.env(),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    try:
        shown = b""
        while b"y allows" not in shown:
            shown += os.read(ours, 4096)
        os.write(ours, key)
        while chunk := _read(ours):
            shown += chunk
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    return shown, (folder / "sent").exists()


def test_the_question_says_where_the_data_come_from(
    cli: Cli, folder: Path, model_server: Serve
) -> None:
    """Whoever presses y sees which call brought in what is sent."""
    plan = '1. population(country="Chile")\n2. send(text=$1)\njoin()\n'
    shown, sent = asked_at_a_terminal(cli, folder, model_server(plan, "Done."), b"n")
    assert b'send(text="Chile has 19 million people")' in shown
    assert b"data from 1 population(Chile)" in shown
    assert not sent


def test_ctrl_c_at_the_question_gives_the_terminal_back(
    cli: Cli, folder: Path, model_server: Serve
) -> None:
    """Exit 130, nothing was sent, the record is whole, and the terminal echoes lines again."""
    server = model_server(SEND)
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    process = subprocess.Popen(
        cli.argv(words(server)),
        cwd=folder,
        env=cli.env(),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    try:
        shown = b""
        while b"y allows" not in shown:
            shown += os.read(ours, 4096)
        assert termios.tcgetattr(theirs) != before
        process.send_signal(signal.SIGINT)
        while process.poll() is None:  # what is not read could fill the terminal
            if select.select([ours], [], [], 0.05)[0]:
                os.read(ours, 4096)
        assert process.returncode == 130
        assert termios.tcgetattr(theirs) == before
    finally:
        process.kill()
        process.wait()
        os.close(theirs)
        os.close(ours)
    assert not (folder / "sent").exists()
    run = the_run(folder)
    assert events(run)[-1]["status"] == "cancelled"
    assert (run / "timeline.html").exists()


MINIWEB = """\
version: 1
tools:
  - web_lookup: {search: {url: "miniweb://?latency=0s"}}
"""


def test_ctrl_c_while_the_miniweb_is_built_begins_no_run(
    cli: Cli, folder: Path, model_server: Serve
) -> None:
    """Exit 130 and one word after the progress; no run, no library, no part of one."""
    pytest.importorskip("tantivy")
    (folder / "agent.yaml").write_text(MINIWEB)
    done = cli.interrupt("writing", *words(model_server()), watch="stderr")
    assert done.returncode == 130
    assert done.stderr.endswith("\nagentpar: cancelled\n")
    assert "Traceback" not in done.stderr
    assert [path.name for path in (folder / "runs").iterdir()] == ["journal.db"]
    assert list((folder / "cache" / "miniweb").iterdir()) == []


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # the other side was closed
        return b""
