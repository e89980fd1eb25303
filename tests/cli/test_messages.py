"""What the command line says when something went wrong."""

from __future__ import annotations

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
