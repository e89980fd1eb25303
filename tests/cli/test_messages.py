"""What the command line says when something went wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import typer

from agentpar.answer import Answer
from agentpar.cli.app import guarded
from agentpar.cli.asking import Wish, show
from agentpar.errors import ModelServerError

STEERING = "no \x1b[2Jsuch \x9b31mmodel\u202e"


def test_a_message_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """It may quote what a server said: that is shown and not obeyed."""

    def command() -> None:
        raise ModelServerError(STEERING)

    with pytest.raises(typer.Exit) as end:
        guarded(command)()
    assert end.value.exit_code == 1
    assert capsys.readouterr().err == "agentpar: no ␛[2Jsuch \ufffd31mmodel\ufffd\n"


@pytest.mark.parametrize("output", ["view", "quiet", "json"])
def test_a_reason_cannot_steer_the_terminal(
    output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Why a run failed may be a tool's word, or a page's."""
    wish = Wish(Path("agent.yaml"), "?", None, None, output, Path("runs"))  # type: ignore[arg-type]
    answer = Answer("r", "?", status="failed", error=STEERING)
    assert show(answer, wish, Path("runs/r")) == 1
    told = capsys.readouterr()
    assert "the run failed: no ␛[2Jsuch" in told.err
    assert not {"\x1b", "\x9b", "\u202e"} & set(told.out + told.err)


@pytest.mark.parametrize("one_screen", [True, False])
def test_the_view_has_told_the_reason(
    one_screen: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not told a second time on the same screen; who reads stderr alone is told."""
    out, err = tmp_path / "out", tmp_path / ("out" if one_screen else "err")
    with out.open("a") as stdout, err.open("a") as stderr:
        monkeypatch.setattr(sys, "stdout", stdout)
        monkeypatch.setattr(sys, "stderr", stderr)
        wish = Wish(Path("agent.yaml"), "?", None, None, "view", Path("runs"))
        assert show(Answer("r", "?", status="failed", error="gone"), wish, Path("runs/r")) == 1
    reason = "" if one_screen else ": gone"
    assert err.read_text() == f"agentpar: the run failed{reason} (record: runs/r)\n"
