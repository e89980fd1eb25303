"""``agentpar fuzz``: a recorded run again, in other orders and with faults, in virtual time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agentpar.cli.asking import Wish, ask
from agentpar.cli.records import RECORD, find_run
from agentpar.cli.run import AllowModule, ModelName, ModelUrl, Yes
from agentpar.errors import UsageError


def fuzz(
    what: Annotated[
        str,
        typer.Argument(
            metavar="AGENT.yaml|RUN",
            help="An agent's file, whose limits then hold, or a run (as for trace).",
        ),
    ] = "last",
    question: Annotated[
        str | None,
        typer.Argument(
            help="With an agent: its newest run of this question, asked now if there is none. "
            "Without: the newest run."
        ),
    ] = None,
    schedules: Annotated[int, typer.Option(min=1, help="How many.")] = 1000,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Only the schedule with this number.")
    ] = None,
    runs: Annotated[Path, typer.Option(metavar="DIR", help="Folder that holds the runs.")] = Path(
        "runs"
    ),
    model_url: ModelUrl = None,
    model: ModelName = None,
    allow_module: AllowModule = None,
    yes: Yes = False,
) -> None:
    """Find out whether an answer depends on the order of events.

    A recorded run runs again in virtual time: what tools gave is given again, in other orders,
    some calls fail, and now and then the process dies and another carries on from the journal.
    Exits with 1 where the answer, or what it is written from, differs, and says whether the
    order, a limit or the crash has made the difference.
    """
    modules = tuple(allow_module or ())
    # The order alone is compared with the first of the same faults, so that one comes along.
    seeds = range(schedules) if seed is None else _with_its_first(seed)
    if what.endswith((".yaml", ".yml")):
        file = Path(what)
        if question is not None and _recorded(question, runs) is None:
            _ask_quietly(Wish(file, question, model_url, model, "quiet", runs, modules, yes))
        record = find_run("last", runs) if question is None else _recorded(question, runs)
        if record is None:
            raise UsageError(f"the run of {question!r} left no record in {str(runs)!r}")
        from agentpar.agent import Agent
        from agentpar.runtime.scripted import ScriptedRuntime

        # No model is asked, so that it need not be there.
        agent = Agent.from_yaml(file, allow_modules=modules, runtime=ScriptedRuntime([]))
        record = _played(record)
        report = agent.fuzz(record, seeds=seeds)
    else:
        if question is not None:
            raise UsageError(
                f"{what!r} is a run, which has its question; give an agent's .yaml for another"
            )
        from agentpar.fuzzing import fuzz_run

        record = _played(find_run(what, runs))
        report = fuzz_run(record, seeds)
    typer.echo(str(record))
    for line in report.lines():
        typer.echo(line)
    raise typer.Exit(1 if report.differs else 0)


def _played(record: Path) -> Path:
    """The record with the calls: of a run of teams that of the one whose answer was taken."""
    from agentpar.cli.teams import chosen_record
    from agentpar.executor.record import read_record

    return chosen_record(record, read_record(record).events) or record


def _with_its_first(seed: int) -> list[int]:
    """The schedule and the one it is compared with."""
    from agentpar.executor.fuzz import first_of

    return sorted({first_of(seed), seed})


def _recorded(question: str, runs: Path) -> Path | None:
    """The newest record under ``runs`` whose run was asked ``question``."""
    from agentpar.events import RunStarted
    from agentpar.executor.record import read_record

    for record in sorted(runs.glob(f"*/{RECORD}"), reverse=True):
        try:
            first = next(read_record(record).events, None)
        except UsageError:
            continue  # of another version, or damaged: not what is looked for
        if isinstance(first, RunStarted) and first.question == question:
            return record
    return None


def _ask_quietly(wish: Wish) -> None:
    """Ask now; what it printed stands above the report. A run without an answer ends here."""
    try:
        ask(wish)
    except typer.Exit as end:
        if end.exit_code:
            raise
