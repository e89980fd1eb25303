"""``agentpar run`` and ``demo``: a question in; the plan, the tools and the answer on screen.

Stdout carries the view (or the one JSON object, or the answer alone); everything that is
said while waiting goes to stderr.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from agentpar.errors import RunFailed, UsageError

if TYPE_CHECKING:  # the agent and rich load when a command runs
    from rich.console import Console

    from agentpar.agent import Agent
    from agentpar.answer import Answer

QUESTION = "Which has more people, Chile or Peru?"

ModelUrl = Annotated[
    str | None,
    typer.Option(metavar="URL", help="An OpenAI-compatible server: http://localhost:8000/v1."),
]
ModelName = Annotated[
    str | None,
    typer.Option(help="The server's model, or without --model-url the weights to serve."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the answer and its sources.")]
Runs = Annotated[Path, typer.Option(metavar="DIR", help="Folder that gets one folder per run.")]
AllowModule = Annotated[
    list[str] | None,
    typer.Option(metavar="MODULE", help="Let the YAML name functions of this module; repeatable."),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Approve calls that change things.")]


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user asked for on the command line."""

    file: Path
    question: str
    model_url: str | None
    model: str | None
    output: Literal["view", "quiet", "json"]
    runs: Path
    allow_modules: tuple[str, ...] = ()
    yes: bool = False


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
) -> None:
    """Ask an agent: watch its plan and its tools, get an answer with checked citations."""
    output = _output(json, quiet)
    modules = tuple(allow_module or ())
    _perform(Wish(agent, question, model_url, model, output, runs, modules, yes))


def demo(
    question: Annotated[str, typer.Argument(help="What to ask.")] = QUESTION,
    model_url: ModelUrl = None,
    model: ModelName = None,
    json: AsJson = False,
    quiet: Quiet = False,
    runs: Runs = Path("runs"),
) -> None:
    """Ask the web-research agent that ships, on the simulated web that ships."""
    from importlib.resources import as_file, files

    with as_file(files("agentpar") / "demo.yaml") as file:
        _perform(Wish(file, question, model_url, model, _output(json, quiet), runs))


def _output(json: bool, quiet: bool) -> Literal["view", "quiet", "json"]:
    if json and quiet:
        raise UsageError("--json and --quiet exclude each other")
    return "json" if json else "quiet" if quiet else "view"


def _perform(wish: Wish) -> None:
    from agentpar.cli.leaving import run_async

    raise typer.Exit(run_async(_ask(wish)))


async def _ask(wish: Wish) -> int:
    """The whole command; its exit code."""
    from rich.console import Console

    from agentpar.agent import Agent
    from agentpar.cli.approve import AskAtTerminal, allow_all
    from agentpar.config import load
    from agentpar.ids import new_run_id

    arguments = load(wish.file, allow_modules=wish.allow_modules).arguments()
    console = Console(highlight=False, stderr=wish.output != "view")
    arguments |= await _model(wish, arguments)
    arguments |= {
        "runs": wish.runs,
        "approve": allow_all if wish.yes else AskAtTerminal(console),
    }
    async with Agent(**arguments) as agent:
        run_id = new_run_id()
        answer = await _watch(agent, wish, run_id, console)
    return _show(answer, wish, wish.runs / run_id)


async def _model(wish: Wish, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The agent's arguments for its model; known weights mean a vLLM, started if need be."""
    if wish.model_url is not None:
        return {"model": wish.model_url, "model_id": wish.model}
    name = wish.model or arguments["model"]
    if name.startswith(("http://", "https://", "vllm:")):
        return {"model": name}
    from agentpar.display import progress_bar
    from agentpar.runtime.server import ensure

    # A bar in a log file of someone who wants only the answer would be noise.
    if wish.output != "view" and not sys.stderr.isatty():
        handle = await ensure(name)
    else:
        with progress_bar("model") as progress:
            handle = await ensure(name, progress=progress)
        state = "started; 'agentpar serve --stop' ends it" if handle.started else "already up"
        typer.echo(f"model: {handle.model} at {handle.base_url} ({state})", err=True)
    return {"model": handle.base_url, "model_id": handle.model}


async def _watch(agent: Agent, wish: Wish, run_id: str, console: Console) -> Answer:
    """Drive the run and show it; the run folder is complete however this ends."""
    from agentpar.cli.views import write_views
    from agentpar.display import TerminalDisplay

    folder = wish.runs / run_id
    display = TerminalDisplay(console) if wish.output == "view" else None
    if display is not None:
        display.folder = folder
    try:
        async with agent.run(wish.question, run_id=run_id) as run:
            with display or nullcontext():
                async for event in run:
                    if display is not None:
                        display.handle(event)
    finally:
        write_views(folder)
    try:
        return run.answer
    except RunFailed as error:
        return cast("Answer", error.answer)


def _show(answer: Answer, wish: Wish, folder: Path) -> int:
    """Print what the view has not shown; the exit code."""
    if wish.output == "json":
        data = {**answer.as_dict(), "folder": str(folder)}
        typer.echo(json.dumps(data, ensure_ascii=False, indent=2))
    if answer.status != "answered":
        seen = wish.output == "view" and sys.stdout.isatty()  # the view ends with the reason
        message = f"the run failed: {answer.error}" if not seen else "the run failed"
        typer.echo(f"agentpar: {message}", err=True)
        return 1
    if wish.output == "quiet":
        _print_quietly(folder)
    return 0


def _print_quietly(folder: Path) -> None:
    from agentpar.cli.records import RECORD
    from agentpar.display import TerminalDisplay
    from agentpar.executor.record import read_record

    with TerminalDisplay(quiet=True) as display:
        for event in read_record(folder / RECORD).events:
            display.handle(event)
