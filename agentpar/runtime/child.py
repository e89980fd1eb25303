"""Runs a helper process to its end, with a look at it four times a second.

The process dies with the caller's patience: whatever ``tick`` raises, it is killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

LOOK_EVERY = 0.25  # seconds; also how soon a cancelled caller gets away


def run_child(
    argv: Sequence[str],
    *,
    log: Path,
    tick: Callable[[str], None],
    env: Mapping[str, str] | None = None,
) -> tuple[int, str]:
    """Run ``argv`` with its output in ``log``; its exit code and all it wrote.

    ``tick`` is called with the output so far while the process runs. ``env`` is added to
    the environment. The process has its own group, so that children of it end with it.
    """
    with log.open("wb") as out:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
    try:
        while True:
            try:
                code = process.wait(LOOK_EVERY)
            except subprocess.TimeoutExpired:
                tick(_read(log))
            else:
                return code, _read(log)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _read(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")
