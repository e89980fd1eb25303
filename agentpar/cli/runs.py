"""Commands that look at a run that was recorded: graph, trace, replay.

They read a record and never change it.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from agentpar.cache import write_whole
from agentpar.cli.optimizing import optimized
from agentpar.cli.records import find_run, read_plan, run_plan, run_sinks
from agentpar.cli.run import AllowModule
from agentpar.cli.teams import all_events, chosen_again, team_records
from agentpar.errors import UsageError

RunsFolder = Annotated[Path, typer.Option("--runs", help="Folder that holds the runs.")]
RunName = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="A run's folder, its events.jsonl, the beginning of its id, or 'last'.",
    ),
]


class Format(StrEnum):
    """How a plan is drawn."""

    mermaid = "mermaid"
    svg = "svg"
    png = "png"


def graph(
    plan: Annotated[
        str, typer.Argument(metavar="RUN|PLAN.txt", help="A run (as for trace), or a plan.")
    ],
    proof: Annotated[
        bool, typer.Option("--proof", help="Tell which sinks untrusted data can reach, and how.")
    ] = False,
    agent: Annotated[
        Path | None,
        typer.Option(metavar="AGENT.yaml", help="Whose tools and permissions the proof is about."),
    ] = None,
    allow_module: AllowModule = None,
    format: Annotated[
        Format | None, typer.Option("--format", "-f", help="By default what FILE ends in.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write there.")
    ] = None,
    optimize: Annotated[
        bool, typer.Option("--optimize", help="Without the calls that equal an earlier one.")
    ] = False,
    goal: Annotated[
        list[int] | None,
        typer.Option(metavar="N", help="With --optimize: only what call N needs. Repeatable."),
    ] = None,
    write: Annotated[
        list[str] | None,
        typer.Option(metavar="TOOL", help="With --optimize: a tool whose calls all stay."),
    ] = None,
    batch: Annotated[
        list[str] | None,
        typer.Option(metavar="TOOL=N", help="With --optimize: N calls of it may go together."),
    ] = None,
    runs: RunsFolder = Path("runs"),
) -> None:
    """Draw a plan as Mermaid, SVG or PNG, or prove what data can do in it.

    What --optimize takes away is told on stderr.

    With --proof: exits with 1 where untrusted data reach a sink and nobody would be asked.
    """
    if proof:
        if format is not None or output is not None:
            raise UsageError("--proof prints text: leave out --format and -o")
        from agentpar.cli.proving import tell

        raise typer.Exit(tell(plan, runs, agent, tuple(allow_module or ())))
    if agent is not None:
        raise UsageError("--agent goes with --proof")
    from agentpar import drawing

    wanted = format or _format_of(output)
    if wanted is Format.png and output is None:
        raise UsageError("a PNG goes into a file: add '-o plan.png'")
    tasks, outcomes = read_plan(Path(plan)) if plan.endswith(".txt") else run_plan(plan, runs)
    if optimize:
        risky = frozenset() if plan.endswith(".txt") else run_sinks(plan, runs)
        tasks = optimized(tasks, goal, risky.union(write or ()), batch or [])
    elif goal or write or batch:
        raise UsageError("--goal, --write and --batch go with --optimize")
    match wanted:
        case Format.mermaid:
            picture = drawing.mermaid(tasks, outcomes).encode()
        case Format.svg:
            picture = drawing.svg(tasks, outcomes).encode()
        case Format.png:
            picture = drawing.png(tasks, outcomes)
    if output is None:
        typer.echo(picture.decode(), nl=False)
    else:
        write_whole(output, picture)
        typer.echo(str(output))


def trace(
    run: RunName = "last",
    html: Annotated[bool, typer.Option("--html", help="Write timeline.html again.")] = False,
    runs: RunsFolder = Path("runs"),
) -> None:
    """Show the timeline of a run again."""
    record = find_run(run, runs)
    if html:
        from agentpar.cli.views import write_timeline

        typer.echo(str(write_timeline(record.parent)))
        return
    from agentpar.display import TerminalDisplay

    events = all_events(record)
    with TerminalDisplay() as display:
        display.folder = record.parent
        for event in events:
            display.handle(event)


def replay(run: RunName = "last", runs: RunsFolder = Path("runs")) -> None:
    """Prove a run: same facts, same decisions.

    Exits with 1 and tells the first difference where there is one. Of a run of several teams each
    team is proved, and that of what they came to the same answer is taken.
    """
    from agentpar.executor.record import read_record

    record = find_run(run, runs)
    teams = team_records(record, read_record(record).events)
    for one in teams.values():
        _prove(one)
    if teams:
        if difference := chosen_again(record):
            typer.echo(f"{record}: {difference}", err=True)
            raise typer.Exit(1)
        typer.echo(f"{record}: of {len(teams)} teams the same is chosen again")
    else:
        _prove(record)


def _prove(record: Path) -> None:
    from agentpar.executor.record import read_record
    from agentpar.executor.record import replay as prove

    found = prove(read_record(record))
    if found.difference:
        place = f"after {found.events} events and {found.commands} commands"
        typer.echo(f"{record}: differs {place}: {found.difference}", err=True)
        raise typer.Exit(1)
    typer.echo(f"{record}: {found.events} events gave the same {found.commands} commands again")


def _format_of(output: Path | None) -> Format:
    ending = output.suffix[1:].lower() if output else ""
    if ending in {"svg", "png"}:
        return Format(ending)
    if ending in {"", "mmd", "mermaid", "md"}:
        return Format.mermaid
    raise UsageError(f"{str(output)!r} ends in none of .mmd, .svg, .png: say which with --format")
