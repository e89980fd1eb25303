"""The commands by name, and what becomes of an error.

Exit codes: 0 done, 1 the run or the world failed, 2 the caller's mistake, 130 cancelled.
An error is one message on stderr; the traceback is for ``--debug``.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from agentpar.cli import fuzz, memory, project, prune, resume, run, runs, servers, training
from agentpar.errors import AgentparError, UsageError
from agentpar.plaintext import visible

app = typer.Typer(
    name="agentpar",
    help="Agents that work in parallel on your own machine: a streamed plan, real tools side by "
    "side, and answers whose citations a program has checked.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help: rich would double its time
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"agentpar {version('agentpar')}")
        raise typer.Exit


@app.callback()
def common(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    if debug:
        os.environ["AGENTPAR_DEBUG"] = "1"


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """``command``, with what it raises turned into a message and an exit code."""

    @functools.wraps(command)
    def run_command(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
            return
        except typer.Exit:
            raise
        except KeyboardInterrupt:
            message, code = "cancelled", 130
        except BrokenPipeError:
            # The reader went away (`| head`); Python must not complain at its own exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except Exception as error:
            if os.environ.get("AGENTPAR_DEBUG"):
                raise
            message, code = _told(error)
        typer.echo(f"agentpar: {visible(message)}", err=True)  # it may quote a server
        raise typer.Exit(code)

    return run_command


def _told(error: Exception) -> tuple[str, int]:
    match error:
        case UsageError():
            return str(error), 2
        case AgentparError():
            return str(error), 1
        case OSError():
            return f"{error.strerror or error}{f': {error.filename}' * bool(error.filename)}", 1
        case _:
            hint = "an error of agentpar itself: 'agentpar --debug …' shows where"
            return f"{type(error).__name__}: {error} ({hint})", 1


for _command in (
    run.run,
    run.demo,
    resume.resume,
    prune.prune,
    project.validate,
    project.schema,
    project.init,
    runs.graph,
    runs.trace,
    runs.replay,
    fuzz.fuzz,
    servers.serve,
    servers.weights,
    servers.miniweb,
    project.doctor,
):
    app.command()(guarded(_command))

_memory = typer.Typer(
    help="Look into a bank of findings, withdraw from it, learn from it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
for _part in (memory.show, memory.stats, memory.revoke, memory.export, training.train):
    _memory.command()(guarded(_part))
_memory.command("eval")(guarded(training.evaluate))
app.add_typer(_memory, name="memory")
