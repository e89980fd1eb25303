"""Makes ``.venv`` fit for agentpar: the engine for this machine, every extra, tools of the house.

Runs before anything is installed, so it needs Python alone. Run again, it does nothing
until pyproject.toml or Python changes. What each step waits for is always on screen; the
whole output of pip lies in ``.venv/setup.log``.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TextIO

if sys.version_info < (3, 11):  # noqa: UP036 - pip, which would refuse, has not run yet
    sys.exit(f"agentpar needs Python 3.11 or newer, this is {sys.version.split()[0]}")

import tomllib

ROOT = Path(__file__).resolve().parent.parent
VENV = Path(os.environ.get("VENV") or ROOT / ".venv").absolute()
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "agentpar-setup"
LOG = VENV / "setup.log"
EXTRAS = "weights,web,miniweb,langgraph,mcp,otel,metrics,postgres,dev"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CPU_INDEX_TIMEOUT = 5.0  # seconds; where it cannot be reached, nobody waits longer
LIVE = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"  # a line can be rewritten
SAY_EVERY = 15.0  # seconds between two lines where it cannot
# They come along with vLLM, built for another torch: then importing them breaks its import.
STRANGERS = ("torchvision", "torchaudio", "torchcodec")


def main() -> int:
    # As agentpar.runtime.launch looks for it.
    has_gpu = bool(shutil.which("nvidia-smi")) or Path("/proc/driver/nvidia/version").exists()
    fingerprint = _fingerprint(has_gpu)
    if STAMP.is_file() and STAMP.read_text(encoding="utf-8") == fingerprint:
        return 0
    STAMP.unlink(missing_ok=True)
    if not _is_of_this_python():
        argv = [sys.executable, "-m", "venv", "--clear", str(VENV)]
        _step("1/4", "a virtual environment", argv)
    if not has_gpu:
        _install_torch(_torch_version())
    engine = "vllm" if has_gpu else "cpu"
    _step(
        "3/4",
        f"agentpar with vLLM for {'NVIDIA GPUs' if has_gpu else 'CPU'} (about 200 packages)",
        [*_pip("install"), "--editable", f"{ROOT}[{engine},{EXTRAS}]"],
    )
    if not has_gpu:
        _step("4/4", "out with what does not fit", [*_pip("uninstall"), "--yes", *STRANGERS])
    STAMP.write_text(fingerprint, encoding="utf-8")
    print(f"set up; '{_short(VENV)}/bin/agentpar doctor' says what this machine has", flush=True)
    return 0


def _fingerprint(has_gpu: bool) -> str:
    """Changes when the environment has to be made anew."""
    project = hashlib.sha256((ROOT / "pyproject.toml").read_bytes())
    project.update(Path(__file__).read_bytes())
    return f"{project.hexdigest()} {sys.version.split()[0]} gpu={has_gpu}\n"


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _is_of_this_python() -> bool:
    settings = VENV / "pyvenv.cfg"
    version = f"version = {sys.version.split()[0]}\n"
    return PYTHON.exists() and settings.is_file() and version in settings.read_text()


def _torch_version() -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (version,) = (
        line.removeprefix("torch==")
        for line in project["project"]["optional-dependencies"]["cpu"]
        if line.startswith("torch==")
    )
    return version


def _install_torch(version: str) -> None:
    """The CPU build, from wherever pip finds it first.

    On Linux, PyPI's own build brings gigabytes of CUDA along, so it comes last.
    """
    what = f"torch {version}, the CPU build (about 200 MB)"
    plain = [*_pip("install"), f"torch=={version}"]
    if sys.platform == "linux":
        cpu = [*_pip("install"), f"torch=={version}+cpu"]
        if _step("2/4", what, cpu, must=False):
            return
        if _answers(f"{CPU_INDEX}/torch/") and _step(
            "2/4", f"{what}, from {CPU_INDEX}", [*cpu, "--index-url", CPU_INDEX], must=False
        ):
            return
        what = f"torch {version} as PyPI has it (large)"
    _step("2/4", what, plain)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=CPU_INDEX_TIMEOUT) as response:
            return response.status == 200
    except (OSError, urllib.error.URLError):
        return False


def _pip(command: str) -> list[str]:
    return [str(PYTHON), "-m", "pip", command, "--disable-pip-version-check", "--no-input"]


def _step(number: str, what: str, argv: list[str], *, must: bool = True) -> bool:
    """Run one step and show where it is; whether it went well. A step that must ends us."""
    began = time.monotonic()
    VENV.mkdir(parents=True, exist_ok=True)
    with LOG.open("a", encoding="utf-8") as log:
        log.write(f"\n== {number} {what}: {' '.join(argv)}\n")
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        lines: list[str] = []
        reader = threading.Thread(target=_read, args=(process, lines, log))
        reader.start()
        try:
            _watch(f"[{number}] {what}", process, lines, began)
        except BaseException:
            process.kill()
            raise
        finally:
            process.wait()
            reader.join()
    took = f"{time.monotonic() - began:.0f} s"
    if process.returncode == 0:
        _say(f"[{number}] {what}: done in {took}", last=True)
        return True
    if not must:
        _say(f"[{number}] {what}: not to be had here", last=True)
        return False
    _say(f"[{number}] {what}: failed after {took}", last=True)
    print("".join(f"    {line}\n" for line in lines[-15:]), end="", file=sys.stderr)
    if "ensurepip" in "".join(lines):
        print("Python's venv module is not whole: apt-get install python3-venv", file=sys.stderr)
    print(f"the whole output: {LOG}", file=sys.stderr)
    sys.exit(1)


def _read(process: subprocess.Popen[str], lines: list[str], log: TextIO) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        log.write(line)
        lines.append(line.rstrip())


def _watch(title: str, process: subprocess.Popen[str], lines: list[str], began: float) -> None:
    """Until the process ends, say how long it has taken and what it does now."""
    _say(title)
    said = began
    while True:
        try:
            process.wait(0.25)
        except subprocess.TimeoutExpired:
            pass
        else:
            return
        now = time.monotonic()
        if LIVE or now - said > SAY_EVERY:
            said = now
            minutes, seconds = divmod(int(now - began), 60)
            _say(f"{title}  {minutes}:{seconds:02}  {_shortened(lines)}")


def _shortened(lines: list[str]) -> str:
    """What pip does now, without paths and addresses."""
    telling = (line.strip() for line in reversed(lines) if not line.startswith("WARNING"))
    line = re.sub(r"\s*\(from .*", "", next(telling, ""))
    return re.sub(r"\S*/(\S+)", r"\1", line)[:60]


def _say(text: str, *, last: bool = False) -> None:
    if not LIVE:
        print(text, flush=True)
        return
    width = shutil.get_terminal_size().columns - 1
    print(f"\r\033[K{text[:width]}", end="\n" if last else "", flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\ncancelled; run it again to go on", file=sys.stderr)
        sys.exit(130)
