"""The server manager: one server for all, nothing left behind, and why it would not start."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import importlib.metadata
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentpar.errors import MissingPackage, ModelServerError, UsageError
from agentpar.runtime import launch, models, server

SMALL = "smollm2-135m"


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, in which the converted 135M weights are found."""
    folder = models.resolve(SMALL)
    home = tmp_path / "home"
    (home / "models").mkdir(parents=True)
    (home / "models" / SMALL).symlink_to(folder)
    monkeypatch.setenv("AGENTPAR_HOME", str(home))
    return home


def states(home: Path) -> list[Path]:
    return list((home / "servers").glob("*.json"))


def processes(home: Path) -> list[str]:
    """The commands of all processes that were started with ``home`` as their cache."""
    mark = f"AGENTPAR_HOME={home}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if process.name != str(os.getpid()) and mark in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:  # it has ended, or is not ours
            continue
    return found


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_two_starters_end_with_one_server_and_stop_ends_it(own_home: Path) -> None:
    """Together they start one; a third call finds it at once; stopping leaves nothing."""
    stages: list[str] = []
    first, second = await asyncio.gather(
        server.ensure(SMALL, progress=lambda step, done, total: stages.append(step)),
        server.ensure(SMALL),
    )
    try:
        assert first.pid == second.pid
        assert [first.started, second.started].count(True) == 1
        third = await server.ensure(SMALL)
        assert (third.pid, third.started) == (first.pid, False)
        assert [handle.pid for handle in server.running()] == [first.pid]
        assert any("loading weights" in stage or "another process" in stage for stage in stages)
        assert SMALL in json.loads((own_home / "servers" / "seconds").read_text())
    finally:
        stopped = await asyncio.to_thread(server.stop)
    assert [handle.pid for handle in stopped] == [first.pid]
    assert processes(own_home) == []
    assert states(own_home) == []
    with socket.socket() as caller:
        assert caller.connect_ex(("127.0.0.1", first.port)) != 0


@pytest.mark.vllm
@pytest.mark.timeout(120)
def test_ctrl_c_while_starting_leaves_nothing(own_home: Path) -> None:
    """A real SIGINT to a real starter: no process, no state file."""
    code = (
        "import asyncio; from agentpar.runtime import server\n"
        "tell = lambda step, done, total: print(step, flush=True)\n"
        f"asyncio.run(server.ensure({SMALL!r}, progress=tell))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as starter:
        assert starter.stdout is not None
        assert starter.stdout.readline().startswith(SMALL)
        assert len(states(own_home)) == 1
        starter.send_signal(signal.SIGINT)
        starter.communicate(timeout=60)
    assert processes(own_home) == []
    assert states(own_home) == []


@pytest.mark.vllm
@pytest.mark.timeout(120)
async def test_server_that_ends_says_why(own_home: Path) -> None:
    """vLLM's own line and the path of the log; nothing is left."""
    with pytest.raises(ModelServerError, match=r"unrecognized arguments: --no-such-flag") as caught:
        await server.ensure(SMALL, extra_args=["--no-such-flag"])
    assert str(own_home / "servers") in str(caught.value)
    assert processes(own_home) == []
    assert states(own_home) == []


async def test_port_that_is_taken_is_an_error_only_if_asked_for(own_home: Path) -> None:
    """A port named by the user is not silently changed; otherwise another one is found."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port} cannot be used"):
            await server.ensure(SMALL, port=port)
    assert processes(own_home) == []


def test_any_free_port_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """The usual port is taken: the system chooses."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setattr(server, "PORT", taken.getsockname()[1])
        assert server._free_port(None) != taken.getsockname()[1]


@pytest.mark.parametrize("state", ["dead", "stranger", "damaged"])
def test_stale_state_is_cleaned(own_home: Path, state: str) -> None:
    """A dead server, a number that another program has by now, half a file: all are removed."""
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True
    ) as stranger:
        handle = {
            "base_url": "http://127.0.0.1:9/v1",
            "pid": stranger.pid if state == "stranger" else 2**22 + 1,
            "port": 9,
            "log": "x.log",
            "model": SMALL,
            "extra_args": [],
            "started": False,
        }
        text = json.dumps(handle)
        file = own_home / "servers" / "9.json"
        file.parent.mkdir()
        file.write_text(text[:30] if state == "damaged" else text)
        assert server.running() == []
        assert server.stop() == []
        assert states(own_home) == []
        assert stranger.poll() is None
        stranger.communicate(b"\n")


@pytest.fixture
def pretend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts processes that pass for servers, with their state files in a cache of their own."""
    monkeypatch.setenv("AGENTPAR_HOME", str(tmp_path))
    (tmp_path / "servers").mkdir()
    with contextlib.ExitStack() as stack:

        def start(model: str, port: int, since: float = 0.0) -> subprocess.Popen[bytes]:
            command = [sys.executable, "-c", "print(flush=True); input()", "vllm"]
            pipe = subprocess.PIPE
            process = subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True)
            stack.enter_context(process)
            stack.callback(process.kill)
            assert process.stdout is not None
            process.stdout.readline()  # only now the kernel is sure to show its command
            url = f"http://127.0.0.1:{port}/v1"
            state = {"base_url": url, "pid": process.pid, "port": port, "since": since}
            state |= {"log": "x.log", "model": model}
            (tmp_path / "servers" / f"{port}.json").write_text(json.dumps(state))
            return process

        yield start


def test_a_server_lives_from_the_moment_it_was_spawned() -> None:
    """The kernel has no command to show then, and on a busy machine for longer."""
    for _ in range(20):
        pid = os.posix_spawn("/bin/sleep", ["vllm", "60"], {}, setsid=True)
        try:
            assert server._lives(pid, new=True)
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        assert not server._lives(pid, new=True)


def test_running_servers_come_oldest_first(pretend: Any, tmp_path: Path) -> None:
    """A state file that is gone before it is read, as when another stops its server, is none."""
    pretend("new", 7, since=2.0)
    pretend("old", 8, since=1.0)
    (tmp_path / "servers" / "9.json").symlink_to(tmp_path / "gone")
    assert [handle.model for handle in server.running()] == ["old", "new"]


def test_a_server_of_another_version_is_found(pretend: Any, tmp_path: Path) -> None:
    """Its state file says more than is known here; forgotten, the server would run for ever."""
    pretend("newer", 7)
    file = tmp_path / "servers" / "7.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"invented": 1}))
    assert [handle.model for handle in server.running()] == ["newer"]
    assert file.exists()


def test_a_folder_is_stopped_by_the_words_it_was_served_by(
    pretend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``--model ./folder`` both times; what else runs stays."""
    monkeypatch.chdir(tmp_path)
    process = pretend(server._served_name("./folder", Path("./folder")), 7)
    pretend("other", 8)
    assert [handle.port for handle in server.stop("./folder")] == [7]
    process.wait(10)
    assert [handle.port for handle in server.running()] == [8]


def test_a_server_that_cannot_be_noted_down_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full: without its state file nobody would ever find the process."""
    monkeypatch.setenv("AGENTPAR_HOME", str(tmp_path))
    command = [sys.executable, "-c", "import time; time.sleep(60)", "vllm"]
    monkeypatch.setattr(launch, "command", lambda *_, **__: command)

    def full(path: Path, data: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(server, "write_whole", full)
    with pytest.raises(OSError, match="No space left"):
        server._spawn("m", tmp_path, "cpu", 7, ())
    assert processes(tmp_path) == []


def test_absent_vllm_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """``cpu`` on a machine without an NVIDIA GPU, ``vllm`` on one with it."""
    installed: dict[str, str] = {}

    def version(package: str) -> str:
        if package not in installed:
            raise importlib.metadata.PackageNotFoundError(package)
        return installed[package]

    monkeypatch.setattr(importlib.metadata, "version", version)
    for nvidia, extra in ((False, "cpu"), (True, "vllm")):
        monkeypatch.setattr(launch, "has_nvidia", lambda nvidia=nvidia: nvidia)
        with pytest.raises(MissingPackage, match=rf"agentpar\[{extra}\]"):
            launch.engine()
    installed["vllm"] = "0.32.0"
    assert launch.engine() == launch.Engine("cuda", "0.32.0")
    monkeypatch.setattr(launch, "has_nvidia", lambda: False)
    with pytest.raises(ModelServerError, match=r"built for NVIDIA GPUs.*agentpar\[cpu\]"):
        launch.engine()
    installed["vllm"] = "0.32.0+cpu"
    assert launch.engine().device == "cpu"


def test_too_little_memory_is_said_before_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Otherwise the kernel kills something half a minute later."""
    monkeypatch.setenv("AGENTPAR_HOME", str(tmp_path))
    monkeypatch.setattr(launch, "available_memory", lambda: launch.GIB)
    with pytest.raises(ModelServerError, match=r"needs about 2\.0 GiB of memory, free are 1\.0"):
        server._require_memory("m", tmp_path, "cpu")


async def test_where_a_second_server_has_no_room_the_one_that_runs_will_do(
    pretend: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Sharing a cache would be better, and is not insisted on; whoever insists hears of memory."""
    pretend(SMALL, 7)
    monkeypatch.setattr(launch, "engine", lambda: launch.Engine("cpu", "0.32.0"))
    monkeypatch.setattr(launch, "available_memory", lambda: launch.GIB)
    monkeypatch.setattr(launch, "can_share", lambda *_: True)
    monkeypatch.setattr(models, "resolve", lambda *_, **__: tmp_path)
    monkeypatch.setattr(server, "healthy", lambda _: True)
    handle = await server.ensure(SMALL, sharing=None)
    assert (handle.port, handle.sharing, handle.started) == (7, False, False)
    with pytest.raises(ModelServerError, match="of memory"):
        await server.ensure(SMALL, sharing=True)


def test_users_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the user has set for vLLM is left alone."""
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "7")
    assert "VLLM_CPU_KVCACHE_SPACE" not in launch.environment("cpu")
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE")
    assert int(launch.environment("cpu")["VLLM_CPU_KVCACHE_SPACE"]) >= 1


def test_reason_is_found_in_a_long_log() -> None:
    """The cause, not the traceback, not vLLM's remark that something failed."""
    log = """\
(APIServer pid=1) INFO 11-21 01:32:16 [api_utils.py:286] non-default args: {}
(EngineCore pid=2) ERROR 11-21 01:32:31 [core.py:1] EngineCore failed to start.
(EngineCore pid=2) ERROR 11-21 01:32:31 [core.py:1] Traceback (most recent call last):
(EngineCore pid=2) ERROR 11-21 01:32:31 [core.py:1]   File "worker.py", line 1, in f
(EngineCore pid=2) ERROR 11-21 01:32:31 [core.py:1] ValueError: Available memory is too small
(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above.
"""
    assert server._why(log) == "ValueError: Available memory is too small"


def test_the_reason_why_no_cache_can_be_shared_is_found() -> None:
    """The plugin's refusal of a setting, a model or a vLLM is no `…Error`, and is the cause."""
    said = "agentpar.errors.CannotShare: workers cannot share a cache on this server: …"
    log = f"""\
(Worker pid=3) ERROR 11-26 07:50:29 [multiproc_executor.py:953]     raise CannotShare(
(Worker pid=3) ERROR 11-26 07:50:29 [multiproc_executor.py:953] {said}
(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above.
"""
    assert server._why(log) == said
