"""``agentpar resume``: a run that broke off, found in its journal and carried on.

The run's row says how its agent is made; nothing else has to be told again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentpar.cli.asking import Output, Wish, answered, show
from agentpar.cli.journals import AgentWithJournal, Place, place_of
from agentpar.cli.run import AsJson, JournalUrl, Quiet, Yes, output_of
from agentpar.cli.runs import RunsFolder
from agentpar.cli.teams import teams_among
from agentpar.errors import UsageError
from agentpar.plaintext import visible

if TYPE_CHECKING:
    from agentpar.answer import Answer
    from agentpar.events import Event
    from agentpar.executor.journal import JournaledRun


def resume(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="The beginning of its id, or 'last'.")
    ] = "",
    agent: AgentWithJournal = None,
    orphans: Annotated[
        bool, typer.Option("--orphans", help="Every run whose process is gone, one by one.")
    ] = False,
    journal: JournalUrl = None,
    runs: RunsFolder = Path("runs"),
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse where the agent has changed since.")
    ] = False,
    json: AsJson = False,
    quiet: Quiet = False,
    yes: Yes = False,
) -> None:
    """Carry on a run that broke off.

    What it has done is not done again. A run that has its answer shows it. The agent's file is
    found where it was, or is the one that is named. With --yes what was asked for and not
    answered yet is approved, too.
    """
    if orphans and agent is None and run.endswith((".yaml", ".yml")):
        run, agent = "", Path(run)
    if bool(run) == orphans:
        raise UsageError("name a run, or 'last', or give --orphans")
    place = place_of(agent, journal, runs)
    output = output_of(json, quiet)
    how = _How(place, agent, output, strict, yes)
    raise typer.Exit(asyncio.run(_orphans(how) if orphans else _one(how, run)))


@dataclass(frozen=True, slots=True)
class _How:
    """How a run is carried on."""

    place: Place
    agent: Path | None
    output: Output
    strict: bool
    yes: bool


async def _one(how: _How, name: str) -> int:
    from agentpar.executor.journal import open_journal
    from agentpar.rivals import ended_run

    async with open_journal(how.place.url) as journal:
        known_runs = await journal.runs()
        if name == "last" and how.place.folder is not None:
            _refuse_older(known_runs, how.place.folder)
        run = _chosen(known_runs, name, journal.place)
        if run.ended:
            return _shown(_wish(run, how), run, *await ended_run(journal, run))
    return await answered(_wish(run, how))


async def _orphans(how: _How) -> int:
    from agentpar.executor.journal import open_journal

    async with open_journal(how.place.url) as journal:
        left = [run for run in await journal.runs() if run.status == "running" and not run.held]
    parts = teams_among([run.id for run in left])
    runs = [run for run in left if run.id not in parts]  # the others are carried on with theirs
    if not runs:
        typer.echo("no run is left behind", err=True)
    failed = 0
    for run in runs:
        typer.echo(f"run {run.id}: {visible(run.question)}", err=True)
        try:
            failed += await answered(_wish(run, how))
        except UsageError as error:  # it may be at work elsewhere by now
            typer.echo(f"agentpar: {visible(str(error))}", err=True)
            failed += 1
    return 1 if failed else 0


def _refuse_older(runs: list[JournaledRun], folder: Path) -> None:
    """``last`` means the newest run of the folder, which the journal may not know."""
    newest = max((path.parent.name for path in folder.glob("*/events.jsonl")), default="")
    ids = [run.id for run in runs]
    if ids and newest > max(ids) and newest not in ids:
        raise UsageError(
            f"the newest run, {newest}, is in no journal here (demo and --no-journal keep none); "
            f"the newest that can be carried on is {_last(runs).id}"
        )


def _chosen(runs: list[JournaledRun], name: str, place: str) -> JournaledRun:
    """The run that ``name`` means; `UsageError` with the nearest ones where there is none."""
    if name == "last" and runs:
        return _last(runs)
    exact = [run for run in runs if run.id == name]
    found = exact or _alone([run for run in runs if run.id.startswith(name)])
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(run.id for run in found[:6])
        raise UsageError(f"{name!r} begins {len(found)} runs in {place}: {ids}")
    newest = ", ".join(run.id for run in runs[-3:])
    raise UsageError(
        f"there is no run {name!r} in {place}"
        + (f"; the newest are {newest}" if newest else ", which holds none")
    )


def _alone(runs: list[JournaledRun]) -> list[JournaledRun]:
    """Without those that are a team of another."""
    parts = teams_among([run.id for run in runs])
    return [run for run in runs if run.id not in parts]


def _last(runs: list[JournaledRun]) -> JournaledRun:
    return _alone(runs)[-1]


def _wish(run: JournaledRun, how: _How) -> Wish:
    """What was asked for when the run began."""
    spec: dict[str, Any] = dict(run.spec)
    if "file" not in spec:
        raise UsageError(
            f"run {run.id!r} was not begun by 'agentpar run': carry it on in its own program, with "
            f"await agent.resume({run.id!r})"
        )
    return Wish(
        file=how.agent or Path(spec["file"]),
        question=run.question,
        model_url=spec["model_url"],
        model=spec["model"],
        output=how.output,
        runs=Path(spec["runs"]),
        allow_modules=tuple(spec["allow_modules"]),
        yes=spec["yes"] or how.yes,
        journal=how.place.url if how.place.named else None,  # else the file names it
        run_id=run.id,
        strict=how.strict,
    )


def _shown(wish: Wish, run: JournaledRun, history: Sequence[Event], answer: Answer) -> int:
    """A run that has ended, out of its journal: no model and no tool is asked."""
    from agentpar.display import TerminalDisplay

    folder = wish.runs / run.id
    if wish.output != "json":
        with TerminalDisplay(quiet=wish.output == "quiet") as display:
            display.folder = folder
            for event in history:
                display.handle(event)
    return show(answer, wish, folder, printed=True)
