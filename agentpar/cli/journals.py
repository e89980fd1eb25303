"""Which journal a command means: the one that is named, the agent file's own, or the folder's.

It finds a journal's address and never opens it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from agentpar.cli.asking import journal_in
from agentpar.errors import UsageError

AgentWithJournal = Annotated[
    Path | None,
    typer.Argument(metavar="[AGENT.yaml]", help="The agent's file, which may name its journal."),
]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a journal is. ``named`` on the command line; ``folder`` of runs that it belongs to."""

    url: str
    named: bool = False
    folder: Path | None = None
    keep: float | None = None


def place_of(agent: Path | None, journal: str | None, runs: Path) -> Place:
    """The journal that is named, or that of the agent's file, or that of the folder ``runs``.

    Raises `UsageError` where there is none.
    """
    if journal is not None:
        return Place(journal, named=True)
    if agent is not None:
        from agentpar.config import load_journal

        spec = load_journal(agent)
        if spec.journal is not None:
            return Place(spec.journal, keep=spec.keep)
    if not (runs / "journal.db").is_file():
        raise UsageError(
            f"there is no journal in {str(runs)!r}: --runs names another folder, --journal another "
            "journal, and an agent's file with a journal: of its own stands behind the run"
        )
    return Place(journal_in(runs), named=True, folder=runs)
