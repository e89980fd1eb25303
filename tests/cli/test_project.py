"""Commands about a project and this machine: validate, schema, init, doctor, serve, miniweb."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from harness import Cli

from agentpar.cli import templates


def test_validate_tells_every_mistake_of_every_file(cli: Cli) -> None:
    """Exit 2, all mistakes of all files with their places; the good file is named as fine."""
    (cli.folder / "good.yaml").write_text("tools: [calc]\n")
    (cli.folder / "bad.yaml").write_text("tools: [clac]\nlimits: {max_result_byte: 1}\n")
    done = cli("validate", "bad.yaml", "good.yaml", "absent.yaml")
    assert done.returncode == 2
    assert "bad.yaml:1:" in done.stderr
    assert "bad.yaml:2:" in done.stderr
    assert "absent.yaml" in done.stderr
    assert done.stdout == "good.yaml: fine\n"


def test_schema_is_json(cli: Cli) -> None:
    """Editors can read what is printed."""
    assert "tools" in json.loads(cli("schema").stdout)["properties"]


def test_the_demo_is_the_example() -> None:
    """The installed command asks the agent that the repository shows, served by default."""
    example = Path(__file__).parents[2] / "examples" / "web_research" / "agent.yaml"
    shown = [line for line in example.read_text().splitlines() if not line.startswith("#")]
    assert templates.DEMO.splitlines() == shown
    assert f":-{templates.DEFAULT_MODEL}}}" in templates.DEMO


@pytest.mark.slow
def test_init_makes_a_project_whose_test_passes(cli: Cli) -> None:
    """The files fit together: the YAML is valid and the test is green, with no model."""
    done = cli("init", "mine")
    assert done.returncode == 0
    folder = cli.folder / "mine"
    assert sorted(file.name for file in folder.iterdir()) == [
        "agent.yaml", "test_agent.py", "tools.py",
    ]  # fmt: skip
    assert cli("validate", "mine/agent.yaml", "--allow-module", "tools").returncode == 0
    test = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_agent.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert test.returncode == 0, test.stdout


def test_init_never_overwrites(cli: Cli) -> None:
    """A file that is there stays as it is, and the others are not written either."""
    (cli.folder / "tools.py").write_text("mine\n")
    done = cli("init", ".")
    assert done.returncode == 2
    assert "tools.py" in done.stderr
    assert [file.name for file in cli.folder.iterdir()] == ["tools.py"]
    assert (cli.folder / "tools.py").read_text() == "mine\n"


def test_doctor_names_the_command_that_mends(cli: Cli) -> None:
    """Weights are not in this test's cache: the finding comes with what to type."""
    cli.environment["HF_HUB_CACHE"] = str(cli.folder)
    done = cli("doctor")
    assert "python" in done.stdout
    assert "mend: agentpar weights smollm2-135m" in done.stdout
    assert done.returncode == ("missing:" in done.stdout)


def test_serve_without_servers_says_so(cli: Cli) -> None:
    """Nothing runs in a fresh cache: both questions are answered, none is an error."""
    for word in ("--status", "--stop"):
        done = cli("serve", word)
        assert done.returncode == 0
        assert "server runs" in done.stdout


def test_miniweb_on_a_taken_port_exits_with_2(cli: Cli) -> None:
    """The port is named; nothing keeps running."""
    _share_library(cli)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = cli("miniweb", "--port", str(port))
    assert done.returncode == 2
    assert str(port) in done.stderr


def test_miniweb_ends_at_ctrl_c(cli: Cli) -> None:
    """It says where it is and what is simulated, and its end is no error."""
    _share_library(cli)
    done = cli.interrupt("Ctrl-C", "miniweb", "--port", "0")
    assert done.returncode == 0
    assert "simulated pages at http://127.0.0.1:" in done.stdout


def _share_library(cli: Cli) -> None:
    """The mini-web's library takes seconds to build: use the user's, not one per test."""
    pytest.importorskip("tantivy")
    home = os.environ.get("AGENTPAR_HOME") or Path("~/.cache/agentpar").expanduser()
    cli.environment["AGENTPAR_HOME"] = str(home)


@pytest.mark.vllm
def test_ctrl_c_while_a_server_starts_leaves_no_server(cli: Cli) -> None:
    """The process and its state file are gone, and the next start is not in the way."""
    _lend_weights(cli)
    process = cli.start("serve", "--model", "smollm2-135m")
    assert process.stderr is not None
    for line in process.stderr:
        if "importing vLLM" in line:
            break
    process.send_signal(2)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert "no server runs" in cli("serve", "--status").stdout
    assert not list((cli.folder / "cache" / "servers").glob("*.json"))


@pytest.mark.vllm
def test_serve_on_a_taken_port_exits_with_2(cli: Cli) -> None:
    """A port that was asked for and is taken is the caller's to change."""
    _lend_weights(cli)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = cli("serve", "--model", "smollm2-135m", "--port", port)
    assert done.returncode == 2
    assert f"port {port} cannot be used" in done.stderr


def _lend_weights(cli: Cli) -> None:
    """The cache of this test holds the user's weights and no server."""
    from agentpar.runtime import models

    (cli.folder / "cache").mkdir()
    folder = models.resolve("smollm2-135m")
    (cli.folder / "cache" / "models").mkdir()
    (cli.folder / "cache" / "models" / "smollm2-135m").symlink_to(folder)
