"""``agentpar prune``: old runs out of a journal, so that it does not grow for ever.

It removes what has ended and nothing else; the folders of ``--runs`` are left alone.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from agentpar.cli.journals import AgentWithJournal, place_of
from agentpar.cli.run import JournalUrl, seconds_of
from agentpar.cli.runs import RunsFolder
from agentpar.errors import UsageError


def prune(
    agent: AgentWithJournal = None,
    older_than: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Since their end, such as 30d; by default the file's 'keep'."
        ),
    ] = None,
    journal: JournalUrl = None,
    runs: RunsFolder = Path("runs"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell what would go, and remove nothing.")
    ] = False,
) -> None:
    """Remove old runs from a journal.

    They go with their large results, and so do cached results past their time. A run that has
    not ended is never removed: carry it on first. What is removed is told by id.
    """
    place = place_of(agent, journal, runs)
    age = seconds_of("--older-than", older_than) or place.keep
    if age is None:
        raise UsageError("say how old: --older-than 30d, or 'keep' under journal: in AGENT.yaml")
    asyncio.run(_pruned(place.url, age, dry_run))


async def _pruned(url: str, age: float, dry_run: bool) -> None:
    from agentpar.executor.journal import open_journal

    async with open_journal(url) as journal:
        gone = await journal.prune(age, dry_run=dry_run)
    for run in gone.runs:
        typer.echo(run)
    what = f"{len(gone.runs)} runs, {gone.cached} cached results"
    if dry_run:
        typer.echo(f"{what} would be removed", err=True)
    else:
        typer.echo(f"{what}, {gone.files} files removed", err=True)
