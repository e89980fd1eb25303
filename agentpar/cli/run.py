"""``agentpar run`` and ``demo``: the words of the command line, made one `Wish`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from agentpar.cli.asking import Output, Wish, ask
from agentpar.cli.templates import DEMO, QUESTION
from agentpar.errors import UsageError

ModelUrl = Annotated[
    str | None,
    typer.Option(metavar="URL", help="An OpenAI-compatible server: http://localhost:8000/v1."),
]
ModelName = Annotated[
    str | None,
    typer.Option(help="The server's model; without --model-url, the weights to serve here."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the answer and its sources.")]
Runs = Annotated[Path, typer.Option(metavar="DIR", help="Folder that gets one folder per run.")]
AllowModule = Annotated[
    list[str] | None,
    typer.Option(metavar="MODULE", help="Let the YAML name functions of this module; repeatable."),
]
Deadline = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="Answer within it from what is known then, such as 20s."),
]
JournalUrl = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="sqlite:///FILE or postgresql://…; by default journal.db in --runs."
    ),
]
TeamCount = Annotated[
    int | None,
    typer.Option("--teams", metavar="N", help="So many teams on the question, up to 16."),
]
Selection = Annotated[
    str | None,
    typer.Option(metavar="HOW", help="Whose answer is taken: vote, first, judge or best."),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Approve calls that change things.")]


def run(
    agent: Annotated[Path, typer.Argument(metavar="AGENT.yaml", help="The agent's file.")],
    question: Annotated[str, typer.Argument(help="What to ask it.")],
    model_url: ModelUrl = None,
    model: ModelName = None,
    json: AsJson = False,
    quiet: Quiet = False,
    runs: Runs = Path("runs"),
    allow_module: AllowModule = None,
    yes: Yes = False,
    deadline: Deadline = None,
    teams: TeamCount = None,
    select: Selection = None,
    journal: JournalUrl = None,
    no_journal: Annotated[
        bool, typer.Option("--no-journal", help="Keep no journal: a crash loses the run.")
    ] = False,
) -> None:
    """Ask an agent.

    Shows its plan and its tools at work, then the answer with its checked citations. The
    run's folder gets events.jsonl, timeline.html and plan.mmd; a journal keeps the run, so
    that 'agentpar resume' can carry it on. Each of several --teams has a run and a folder of its
    own, RUN.1, RUN.2, …
    """
    if journal is not None and no_journal:
        raise UsageError("--journal and --no-journal exclude each other")
    modules = tuple(allow_module or ())
    wish = Wish(agent, question, model_url, model, output_of(json, quiet), runs, modules, yes)
    within = seconds_of("--deadline", deadline)
    wish = replace(wish, deadline=within, teams=teams, select=select)
    ask(replace(wish, journal=journal, journaled=not no_journal))


def demo(
    question: Annotated[str, typer.Argument(help="What to ask.")] = QUESTION,
    model_url: ModelUrl = None,
    model: ModelName = None,
    json: AsJson = False,
    quiet: Quiet = False,
    runs: Runs = Path("runs"),
) -> None:
    """Ask the agent that ships.

    It searches and reads a simulated web on this machine, with a model on this machine.
    """
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "demo.yaml"
        file.write_text(DEMO, encoding="utf-8")
        # No journal: the file to carry it on from is gone by then.
        wish = Wish(file, question, model_url, model, output_of(json, quiet), runs)
        ask(replace(wish, journaled=False))


def seconds_of(option: str, text: str | None) -> float | None:
    """What the ``option`` of a time says: ``20s``, ``30d``."""
    from agentpar.config.units import duration

    if text is None:
        return None
    try:
        seconds = duration(text)
    except ValueError as error:
        raise UsageError(f"{option} {error}, not {text!r}") from None
    if seconds <= 0:
        raise UsageError(f"{option} must be more than 0, not {text!r}")
    return seconds


def output_of(json: bool, quiet: bool) -> Output:
    if json and quiet:
        raise UsageError("--json and --quiet exclude each other")
    return "json" if json else "quiet" if quiet else "view"
