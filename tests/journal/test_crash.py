"""``kill -9`` at every write of a journal: the same answer, and nothing done twice."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


def crashes(url: str, folder: Path, plans: str, idempotent: str) -> list[dict[str, Any]]:
    """What `crash.py` found, a line for each moment of death."""
    done = subprocess.run(
        [sys.executable, str(HERE / "crash.py"), url, str(folder), plans, idempotent],
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert sum(line["killed"] for line in lines) >= 10, "hardly anything was ever killed"
    assert [line["killed"] for line in lines].count(False) == 2, "the last ones get through"
    return lines


PAYMENTS = ["<<a> got 1> 3", "<a> 1", "<b> 2"]


@pytest.mark.slow
def test_an_idempotent_write_has_one_effect_whenever_the_process_dies(
    url: str, tmp_path: Path
) -> None:
    """Two rounds, killed twice at each commit, before and after it: the far side, which knows
    the key, has every payment once; the answer is the same to the letter."""
    lines = crashes(url, tmp_path, "TWO_ROUNDS", "idempotent")
    for line in lines:
        assert line["once"] == PAYMENTS, line
        assert set(line["raw"]) == set(PAYMENTS), line
    assert len({line["text"] for line in lines}) == 1
    assert set(lines[0]["kinds"].values()) == {"ok"}


@pytest.mark.slow
def test_another_write_is_never_repeated(url: str, tmp_path: Path) -> None:
    """It ends as ``interrupted`` where nobody can know, has happened once where it is ok, and
    where nothing was in doubt the answer is the same."""
    whole = ""
    lines = crashes(url, tmp_path, "TWO_ROUNDS", "once")
    for line in sorted(lines, key=lambda line: line["killed"]):
        whole = whole or line["text"]
        assert max(Counter(line["raw"]).values(), default=0) <= 1, line
        assert set(line["kinds"].values()) <= {"ok", "interrupted"} | {"skipped"}, line
        if set(line["kinds"].values()) == {"ok"}:
            assert (line["raw"], line["text"]) == (PAYMENTS, whole), line
        else:
            assert "interrupted" in line["kinds"].values(), line
            assert "may or may not" in line["text"], line


@pytest.mark.slow
def test_twelve_chains_come_back_each_with_its_own_result(url: str, tmp_path: Path) -> None:
    """They end in another order in each process; what was found goes by task and inputs."""
    own = sorted(f"<chain {n}> {n}" for n in range(12))
    lines = crashes(url, tmp_path, "CHAINS", "idempotent")
    for line in lines:
        assert line["once"] == own, line
        for n in range(12):
            assert f"<chain {n}> got {n}" in line["text"], line
    assert len({line["text"] for line in lines}) == 1
