"""Commands about a project and this machine: validate, schema, init, doctor, serve, miniweb."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from harness import Cli

from agentpar import doctor
from agentpar.cli import templates
from agentpar.errors import MissingPackage
from agentpar.runtime import launch


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


def test_init_prints_commands_that_a_shell_understands(cli: Cli) -> None:
    """A folder with a space is quoted, and the question is one that the new tools can answer."""
    done = cli("init", "my shop")
    told = [line.removeprefix("ask: ") for line in done.stdout.splitlines() if "ask: " in line]
    words = shlex.split(told[0])
    assert words[:3] == ["cd", "my shop", "&&"]
    assert words[-1] == templates.FIRST_QUESTION
    for country in ("Chile", "Peru"):
        assert country in words[-1]
        assert f'"{country}":' in (cli.folder / "my shop" / "tools.py").read_text()


def test_init_takes_no_file_for_a_folder(cli: Cli) -> None:
    """A slip of the pen is told as one, and the file stays as it is."""
    (cli.folder / "agent.yaml").write_text("mine\n")
    done = cli("init", "agent.yaml")
    assert done.returncode == 2
    assert done.stderr == "agentpar: 'agent.yaml' is a file: name the folder of a project\n"


def test_doctor_names_the_command_that_mends(cli: Cli) -> None:
    """Weights are not in this test's cache: the finding comes with what to type."""
    cli.environment["HF_HUB_CACHE"] = str(cli.folder)
    done = cli("doctor")
    assert "python" in done.stdout
    assert "mend: agentpar weights smollm2-135m" in done.stdout
    assert done.returncode == ("missing:" in done.stdout)


@pytest.mark.parametrize(
    ("engine", "state", "says"),
    [
        (launch.Engine("cpu", "0.32.0+cpu"), "ok", "serve --hogwild"),
        (launch.Engine("cpu", "0.99.0"), "unsure", "not in 0.99.0"),
        (launch.Engine("cuda", "0.32.0"), "optional", "share a log"),
    ],
)
def test_doctor_says_whether_workers_can_share_a_cache(
    engine: launch.Engine, state: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the vLLM that is here; without one there is nothing to say."""
    monkeypatch.setattr(launch, "engine", lambda: engine)
    (found,) = (finding for finding in doctor.examine() if finding.what == "workers")
    assert found.state == state
    assert says in found.detail
    assert bool(found.mend) is (state == "unsure")

    def none() -> launch.Engine:
        raise MissingPackage("vllm", extra="cpu", purpose="running a model")

    monkeypatch.setattr(launch, "engine", none)
    assert not [finding for finding in doctor.examine() if finding.what == "workers"]


def test_status_says_which_server_shares_its_cache(cli: Cli) -> None:
    """A process that passes for a server is listed with what it was started for."""
    folder = cli.folder / "home" / "servers"
    folder.mkdir(parents=True)
    command = [sys.executable, "-c", "print(flush=True); input()", "vllm"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        state = {"base_url": "http://127.0.0.1:9/v1", "pid": process.pid, "port": 9, "log": "x"}
        (folder / "9.json").write_text(json.dumps({**state, "model": "m", "sharing": True}))
        cli.environment["AGENTPAR_HOME"] = str(cli.folder / "home")
        assert (
            "m at http://127.0.0.1:9/v1, with a shared KV cache" in cli("serve", "--status").stdout
        )
        process.kill()


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


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_miniweb_serves_until_it_is_told_to_end(cli: Cli, sign: int) -> None:
    """It says where it is and what is simulated, does it, and its end is no error."""
    _share_library(cli)

    def look(banner: str) -> None:
        origin = banner.split(" at ")[1].split(",")[0]
        assert httpx.get(f"{origin}/atlas/country/chile").status_code == 503

    address = "miniweb://?latency=5ms&broken=1"
    done = cli.interrupt("simulated", "miniweb", address, "--port", "0", sign=sign, first=look)
    assert (done.returncode, done.stderr) == (0, "")
    assert "each reply delayed 5 ms; 100% of replies are 503" in done.stdout


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("miniweb://?latency=0.5x", "must be a duration such as 500ms"),
        ("miniweb://?latencey=5ms", "did you mean latency?"),
        ("http://localhost", "write miniweb://"),
    ],
)
def test_miniweb_reads_an_address_as_an_agents_file_does(
    cli: Cli, address: str, message: str
) -> None:
    """One spelling of the switches everywhere; a wrong one exits with 2 before anything starts."""
    done = cli("miniweb", address)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def test_ctrl_c_while_the_library_is_built_leaves_none(cli: Cli) -> None:
    """Exit 130, and the cache holds neither a library nor a part of one."""
    pytest.importorskip("tantivy")
    done = cli.interrupt("writing", "miniweb", "--port", "0", watch="stderr")
    assert done.returncode == 130
    assert done.stderr.endswith("agentpar: cancelled\n")
    assert list((cli.folder / "cache" / "miniweb").iterdir()) == []


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
