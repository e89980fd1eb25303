"""One question from the command line: model and tools made ready, the run shown, its files left.

Stdout carries the view (or the one JSON object, or the answer alone); what is said while
waiting goes to stderr.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import typer

from agentpar.errors import RunFailed, UsageError
from agentpar.plaintext import as_json, visible
from agentpar.ports import Progress, silent

if TYPE_CHECKING:  # the agent and rich load when a question is asked
    from rich.console import Console

    from agentpar.agent import Agent
    from agentpar.answer import Answer

Output = Literal["view", "quiet", "json"]


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user asked for on the command line."""

    file: Path
    question: str
    model_url: str | None
    model: str | None
    output: Output
    runs: Path
    allow_modules: tuple[str, ...] = ()
    yes: bool = False
    deadline: float | None = None
    journal: str | None = None
    journaled: bool = True
    run_id: str | None = None
    strict: bool = False
    teams: int | None = None
    select: str | None = None

    def spec(self) -> dict[str, Any]:
        """What it takes to carry the run on, as data."""
        return {
            "file": str(self.file.absolute()),
            "runs": str(self.runs.absolute()),
            "model_url": self.model_url,
            "model": self.model,
            "allow_modules": list(self.allow_modules),
            "yes": self.yes,
            "deadline": self.deadline,
        }


def journal_in(runs: Path) -> str:
    return f"sqlite:///{runs / 'journal.db'}"


def ask(wish: Wish) -> None:
    """Do what ``wish`` says. Raises `typer.Exit` with 0 for an answer and 1 for none."""
    raise typer.Exit(asyncio.run(answered(wish)))


async def answered(wish: Wish) -> int:
    """Do what ``wish`` says: 0 for an answer, 1 for none."""
    from rich.console import Console

    from agentpar.agent import Agent
    from agentpar.cli.approve import AskAtTerminal, allow_all
    from agentpar.cli.teams import wanted
    from agentpar.config import load
    from agentpar.executor.journal import open_journal
    from agentpar.ids import new_run_id

    spec = load(wish.file, allow_modules=wish.allow_modules)
    arguments = spec.arguments()
    console = Console(highlight=False, stderr=wish.output != "view")
    if wish.model_url or wish.model:  # the file's key goes to no other server
        arguments |= {"model_id": None, "api_key": None}
    arguments["teams"] = wanted(wish.teams, wish.select, arguments.get("teams"))
    arguments |= await _model(wish, arguments.get("model"))
    arguments |= {
        "runs": wish.runs,
        "approve": allow_all if wish.yes else AskAtTerminal(console),
    }
    if wish.journaled:
        url = wish.journal or spec.journal or journal_in(wish.runs)
        keep = None if wish.journal else spec.keep
        arguments["journal"] = open_journal(url, keep=keep, spec=wish.spec())
    else:
        arguments.pop("journal", None)
    async with Agent(**arguments) as agent:
        await _open_tools(agent, wish, arguments["tools"])
        run_id = wish.run_id or new_run_id()
        again = _resume(wish, run_id, in_file=spec.journal is not None)
        answer = await _watch(agent, wish, run_id, console, again)
    return show(answer, wish, wish.runs / run_id)


async def _model(wish: Wish, named: str | None) -> dict[str, Any]:
    """The agent's arguments for its model; known weights mean a vLLM, started if need be."""
    if wish.model_url is not None:
        if not wish.model_url.startswith(("http://", "https://")):
            raise UsageError(
                "--model-url must begin with http:// or https://, such as http://localhost:8000/v1"
            )
        return {"model": wish.model_url, "model_id": wish.model}
    name = wish.model or named
    if name is None:
        raise UsageError(f"{wish.file} names no model: give --model or --model-url")
    if name.startswith(("http://", "https://", "vllm:")):
        return {"model": name}
    from agentpar.cli.servers import state_of
    from agentpar.runtime.server import ensure

    with _waiting(wish, "model") as progress:
        handle = await ensure(name, progress=progress)
    if wish.output == "view":
        typer.echo(f"model: {handle.model} at {handle.base_url} ({state_of(handle)})", err=True)
    return {"model": handle.base_url, "model_id": handle.model}


async def _open_tools(agent: Agent, wish: Wish, sources: Iterable[Any]) -> None:
    """Start what the tools need before the run's clock does, and say what is simulated."""
    from agentpar.miniweb.toolsource import MiniWebTools

    webs = [source for source in sources if isinstance(source, MiniWebTools)]
    with _waiting(wish, "tools") as progress:
        for web in webs:
            web.progress = progress
        await agent.tools()
    if wish.output != "view":  # the view begins with it
        for web in webs:
            typer.echo(web.banner, err=True)


async def _watch(agent: Agent, wish: Wish, run_id: str, console: Console, again: str) -> Answer:
    """Drive the run and show it; its folder is complete, however this ends. ``again`` is the
    command that carries it on."""
    from agentpar.cli.views import write_views
    from agentpar.display import TerminalDisplay

    folder = wish.runs / run_id
    display = TerminalDisplay(console) if wish.output == "view" else None
    if display is not None:
        display.folder = folder
    try:
        async with agent.run(
            wish.question, run_id=run_id, deadline=wish.deadline, strict=wish.strict
        ) as run:
            with display or nullcontext():
                async for event in run:
                    if display is not None:
                        display.handle(event)
    except asyncio.CancelledError:
        if wish.journaled:
            typer.echo(f"carry it on: {again}", err=True)
        raise
    finally:
        write_views(folder)
    try:
        return run.answer
    except RunFailed as error:
        return cast("Answer", error.answer)


def _resume(wish: Wish, run_id: str, *, in_file: bool) -> str:
    """The command that carries the run on; ``in_file``: the agent's file names its journal."""
    words = ["agentpar", "resume", run_id]
    if wish.journal is not None:
        words += ["--journal", wish.journal]
    elif in_file:
        words.append(str(wish.file))
    elif wish.runs != Path("runs"):
        words += ["--runs", str(wish.runs)]
    return shlex.join(words)


def show(answer: Answer, wish: Wish, folder: Path, *, printed: bool = False) -> int:
    """Print what the view has not shown, nor who has ``printed`` the answer; the exit code."""
    if wish.output == "json":
        data = {**answer.as_dict(), "folder": str(folder)}
        typer.echo(as_json(data))
    if answer.status != "answered":
        seen = wish.output == "view" and _is_one_screen()  # the view has told the reason
        reason = "" if seen else f": {visible(answer.error)}"
        typer.echo(f"agentpar: the run failed{reason} (record: {folder})", err=True)
        return 1
    if wish.output == "quiet" and not printed:
        _print_quietly(folder)
    return 0


def _is_one_screen() -> bool:
    """Whether stdout and stderr go to one place, read together."""
    try:
        out, err = os.fstat(sys.stdout.fileno()), os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):  # they are no files: nobody knows who reads them
        return False
    return (out.st_dev, out.st_ino) == (err.st_dev, err.st_ino)


def _print_quietly(folder: Path) -> None:
    from agentpar.cli.records import RECORD
    from agentpar.display import TerminalDisplay
    from agentpar.executor.record import read_record

    with TerminalDisplay(quiet=True) as display:
        for event in read_record(folder / RECORD).events:
            display.handle(event)


@contextmanager
def _waiting(wish: Wish, what: str) -> Iterator[Progress]:
    """A progress bar; for someone who wants only the answer, not in a log file."""
    if wish.output != "view" and not sys.stderr.isatty():
        yield silent
        return
    from agentpar.display import progress_bar

    with progress_bar(what) as progress:
        yield progress
