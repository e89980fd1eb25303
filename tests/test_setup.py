"""``make setup`` where its output is no terminal, or one that cannot rewrite a line."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"
STEP = (
    "import sys, setup; setup.SAY_EVERY = 0.0; "
    "setup._step('1/1', 'a step', [sys.executable, '-c', 'import time; time.sleep(1)'])"
)


@pytest.mark.parametrize("terminal", [False, True])
def test_a_step_is_told_in_whole_lines(terminal: bool, tmp_path: Path) -> None:
    """No line is rewritten: a log or a dumb terminal shows each as it is written."""
    environment = {
        **os.environ, "PYTHONPATH": str(SCRIPTS), "VENV": str(tmp_path), "TERM": "dumb",
    }  # fmt: skip
    ours, theirs = pty.openpty() if terminal else os.pipe()
    done = subprocess.run(
        [sys.executable, "-c", STEP], env=environment, stdout=theirs, timeout=60, check=False
    )
    text = os.read(ours, 100_000).decode().replace("\r\n", "\n")
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 0
    assert "\r" not in text
    assert "\x1b" not in text
    lines = text.splitlines()
    assert lines[0] == "[1/1] a step"
    assert lines[-1].startswith("[1/1] a step: done in ")
