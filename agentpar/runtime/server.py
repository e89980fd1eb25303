"""Starts, finds, watches and stops the vLLM servers of this user.

A server outlives the process that started it: what is known of it lies in a small state
file, and a lock makes starters take turns. Knows processes and ports; must never know
what the server is asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from agentpar.cache import home, lock_nowait, write_whole
from agentpar.errors import ModelServerError, UsageError
from agentpar.ports import Progress, silent
from agentpar.runtime import launch, models

PORT = 8377  # the first port tried where the user names none
LOOK_EVERY = 0.25  # seconds between two looks at a server that is starting
START_TIMEOUT = 600.0  # seconds; a large model from a slow disk, with room to spare
STOP_TIMEOUT = 10.0  # seconds from asking a server to end to ending it
FIRST_GUESS = 40.0  # seconds a start is believed to take before one was seen

# What vLLM writes when it gets somewhere, and what it does from there on.
_STAGES = (
    (r"Resolved architecture", "starting the engine"),
    (r"Starting to load model", "loading weights"),
    (r"Loading weights took", "setting up the cache"),
    (r"init engine", "opening the port"),
)


@dataclass(frozen=True, slots=True)
class ServerHandle:
    """A server: where it answers, its process group, its log, and the model it serves.

    ``sharing``: its requests may share one KV cache. ``since`` is when it was started, in Unix
    seconds; ``started`` says whether the call that returned this handle did it.
    """

    base_url: str
    pid: int
    port: int
    log: Path
    model: str
    extra_args: tuple[str, ...] = ()
    sharing: bool = False
    since: float = 0.0
    started: bool = False


async def ensure(
    model: str,
    *,
    port: int | None = None,
    progress: Progress | None = None,
    extra_args: Sequence[str] = (),
    sharing: bool | None = False,
) -> ServerHandle:
    """A healthy server for ``model``: one that runs already, or a new one.

    ``model`` as for `models.resolve`, which may download it first. A running server is
    taken if model, ``extra_args`` (added to vLLM's command line) and, where given, ``port``
    are the same, and if its requests may share one KV cache where ``sharing`` asks for that
    (None: where model and machine allow it; where there is no memory for one beside a server that
    runs and does not share, that one is taken). ``progress(step, done, total)`` is told seconds
    while the server starts, with ``total`` learned from the last start.

    Raises `ModelServerError` with the end of the log where the server does not come up,
    `UsageError` where ``port`` is taken, `MissingPackage` without vLLM. Whatever ends the
    start early, cancelling included, no process and no state file is left.
    """
    report = progress or silent
    engine = launch.engine()
    folder = await _resolve(model, report)
    model = _served_name(model, folder)
    insists = sharing is not None
    if sharing is None:
        sharing = launch.can_share(engine.device, folder)
    async with _turn(report):
        handle = _same(running(), model, port, tuple(extra_args), sharing)
        if handle is None and not (insists or _has_memory(folder, engine.device)):
            handle = _same(running(), model, port, tuple(extra_args), False)
        if handle is None:
            _require_memory(model, folder, engine.device)
            new = (_free_port(port), tuple(extra_args), sharing)
            handle = _spawn(model, folder, engine.device, *new)
        try:
            await _wait_healthy(handle, report)
        except BaseException:
            if handle.started:  # one that others use is theirs to end
                _kill(handle)
            raise
    return handle


def running() -> list[ServerHandle]:
    """The servers that live, oldest first; what is left of dead ones is removed."""
    handles = []
    for file in _folder().glob("*.json"):
        handle = _read(file)
        if handle is not None and _lives(handle.pid):
            handles.append(handle)
        else:
            file.unlink(missing_ok=True)
    return sorted(handles, key=lambda handle: handle.since)


def stop(model: str | None = None, *, port: int | None = None) -> list[ServerHandle]:
    """Stop the servers of ``model`` and at ``port``, by default all; the ones stopped.

    ``model`` is written as for `ensure`. Blocks until they have ended, up to `STOP_TIMEOUT`
    for each.
    """
    stopped = []
    for handle in running():
        wanted = model is None or handle.model == model or handle.model == _path(model)
        if wanted and port in {None, handle.port}:
            _kill(handle)
            stopped.append(handle)
    return stopped


def healthy(handle: ServerHandle) -> bool:
    """Whether the server answers, within two seconds."""
    url = f"http://127.0.0.1:{handle.port}/health"
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def _served_name(model: str, folder: Path) -> str:
    """``model``, or where it is a path, the same one from wherever it is named."""
    is_path = model not in models.KNOWN and Path(model).expanduser() == folder
    return _path(model) if is_path else model


def _path(model: str) -> str:
    return os.path.abspath(Path(model).expanduser())


class _Cancelled(Exception):
    """Raised by progress inside the thread that fetches weights, to end it."""


async def _resolve(model: str, progress: Progress) -> Path:
    """`models.resolve` in a thread that ends with us: a cancelled download stops too."""
    cancelled = threading.Event()

    def report(step: str, done: float, total: float) -> None:
        if cancelled.is_set():
            raise _Cancelled
        loop.call_soon_threadsafe(progress, step, done, total)

    loop = asyncio.get_running_loop()
    try:
        return await asyncio.to_thread(models.resolve, model, progress=report)
    finally:
        cancelled.set()


@contextlib.asynccontextmanager
async def _turn(progress: Progress) -> AsyncIterator[None]:
    """Hold the lock on starting: two starters of one model end up with one server."""
    while True:
        with lock_nowait(_folder() / "lock") as mine:
            if mine:
                yield
                return
        progress("waiting for another process that starts a server", 0, 0)
        await asyncio.sleep(LOOK_EVERY)  # the kernel cannot wake an event loop for a file lock


def _same(
    handles: Sequence[ServerHandle],
    model: str,
    port: int | None,
    extra_args: tuple[str, ...],
    sharing: bool,
) -> ServerHandle | None:
    for handle in handles:
        alike = (handle.model, handle.extra_args) == (model, extra_args)
        if alike and port in {None, handle.port} and (handle.sharing or not sharing):
            return handle
    return None


def _memory(folder: Path, device: str) -> tuple[int, int]:
    """Bytes that a new server needs, and those that are free; 0 where nobody can tell."""
    free = launch.available_memory()
    if device != "cpu" or free is None:
        return 0, 0
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return weights + (launch.kv_cache_gib() + 1) * launch.GIB, free  # vLLM itself: about 1 GiB


def _has_memory(folder: Path, device: str) -> bool:
    need, free = _memory(folder, device)
    return need <= free


def _require_memory(model: str, folder: Path, device: str) -> None:
    need, free = _memory(folder, device)
    if free < need:
        others = ", ".join(f"{handle.model} (port {handle.port})" for handle in running())
        raise ModelServerError(
            f"serving {model!r} needs about {need / launch.GIB:.1f} GiB of memory, free are "
            f"{free / launch.GIB:.1f} GiB"
            + (f"; 'agentpar serve --stop' ends the running server {others}" if others else "")
        )


def _free_port(port: int | None) -> int:
    for wanted in (PORT, 0) if port is None else (port,):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as vLLM does
            try:
                probe.bind(("127.0.0.1", wanted))
            except OSError as error:
                reason = error.strerror
            else:
                return int(probe.getsockname()[1])
    raise UsageError(
        f"port {port} cannot be used ({reason}): name another, or none to have one chosen"
    )


def _spawn(
    model: str,
    folder: Path,
    device: str,
    port: int,
    extra_args: tuple[str, ...],
    sharing: bool = False,
) -> ServerHandle:
    argv = launch.command(
        folder, name=model, port=port, device=device, sharing=sharing, extra_args=extra_args
    )
    env = {**os.environ, **launch.environment(device, sharing=sharing)}
    log = _folder() / f"{port}.log"
    with log.open("wb") as out:
        null, file = os.open(os.devnull, os.O_RDONLY), out.fileno()
        try:
            # Not subprocess: the server is to outlive this process and its Popen objects.
            pid = os.posix_spawn(
                argv[0],
                argv,
                env,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, null, 0),
                    (os.POSIX_SPAWN_DUP2, file, 1),
                    (os.POSIX_SPAWN_DUP2, file, 2),
                ],
                setsid=True,
            )
        finally:
            os.close(null)
    url = f"http://127.0.0.1:{port}/v1"
    now = time.time()
    handle = ServerHandle(url, pid, port, log, model, extra_args, sharing, now, started=True)
    state = {**asdict(handle), "log": str(log), "started": False}
    try:
        write_whole(_state(port), json.dumps(state, indent=2))
    except BaseException:
        _kill(handle)  # without its state file nobody would ever find it
        raise
    return handle


async def _wait_healthy(handle: ServerHandle, progress: Progress) -> None:
    begun = time.monotonic()
    guess = _learned().get(handle.model, FIRST_GUESS)
    while not await asyncio.to_thread(healthy, handle):
        waited = time.monotonic() - begun
        text = handle.log.read_text(encoding="utf-8", errors="replace")
        if not _lives(handle.pid, new=handle.started):
            raise ModelServerError(
                f"vLLM ended while it was starting {handle.model!r}: {_why(text)} "
                f"(the whole log: {handle.log})"
            )
        if waited > START_TIMEOUT:
            raise ModelServerError(
                f"vLLM was still {_stage(text)} {handle.model!r} after {waited:.0f} s "
                f"(log: {handle.log})"
            )
        progress(f"{handle.model}: {_stage(text)}", min(waited, guess), guess)
        await asyncio.sleep(LOOK_EVERY)
    if handle.started:
        _learn(handle.model, time.monotonic() - begun)


def _stage(log: str) -> str:
    """What the server is doing, by the last line of ``log`` that tells."""
    now = "importing vLLM"
    for pattern, after in _STAGES:
        if re.search(pattern, log):
            now = after
    return now


def _why(log: str) -> str:
    """The lines of ``log`` that say why the server ended."""
    lines = [_PREFIX.sub("", line).strip() for line in log.splitlines()]
    errors = [line for line in lines if _ERROR.match(line) and not _ECHO.match(line)]
    return " | ".join(dict.fromkeys(errors[:3] or [line for line in lines if line][-3:]))


_PREFIX = re.compile(r"^(\(\w+ pid=\d+\) )?((ERROR|CRITICAL) \S+ \S+ \[[^\]]*\] ?)?")
_ERROR = re.compile(r"([\w.]+(Error|Exception|Interrupt|CannotShare)\b|.*: error:)")
_ECHO = re.compile(r"RuntimeError: Engine core initialization failed")  # says: see above


def _times() -> Path:
    return _folder() / "seconds"


def _learned() -> dict[str, float]:
    """Seconds that the last start of each model took."""
    try:
        return dict(json.loads(_times().read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _learn(model: str, seconds: float) -> None:
    write_whole(_times(), json.dumps({**_learned(), model: round(seconds, 1)}))


def _folder() -> Path:
    folder = home() / "servers"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _state(port: int) -> Path:
    return _folder() / f"{port}.json"


def _read(file: Path) -> ServerHandle | None:
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
        # Another version may say more: without its file nobody would find the server again.
        known = {field.name for field in fields(ServerHandle)} & state.keys()
        handle = ServerHandle(**{name: state[name] for name in known})
        return replace(handle, log=Path(handle.log), extra_args=tuple(handle.extra_args))
    except (OSError, ValueError, TypeError, AttributeError):
        return None  # damaged: as good as none


def _lives(pid: int, *, new: bool = False) -> bool:
    """Whether ``pid`` is a server of ours: numbers come round again, so its session counts.

    A ``new`` one, which we have just spawned, may have no command yet; a zombie has none any more.
    """
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # one that we started and that has ended would stay a zombie
    process = Path(f"/proc/{pid}")
    try:
        command = (process / "cmdline").read_bytes()
        begins = new and not command and b") Z " not in (process / "stat").read_bytes()
        return os.getsid(pid) == pid and (begins or b"vllm" in command)
    except FileNotFoundError:
        return not Path("/proc").is_dir()  # without /proc the session has to do
    except OSError:
        return False


def _kill(handle: ServerHandle) -> None:
    """End the server's whole process group, kindly first, and forget the server."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + STOP_TIMEOUT
        lives = _signal(handle.pid, sign)
        while lives and time.monotonic() < deadline:
            time.sleep(0.05)
            lives = _signal(handle.pid, _JUST_LOOK)
    _state(handle.port).unlink(missing_ok=True)


_JUST_LOOK = 0


def _signal(group: int, sign: int) -> bool:
    """Send ``sign`` to the process group; False where it is no more."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(group, os.WNOHANG)
    try:
        os.killpg(group, sign)
    except ProcessLookupError:
        return False
    return True
