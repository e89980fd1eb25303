"""Commands about a project's files and this machine: validate, schema, init, doctor."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from agentpar.errors import ConfigError, UsageError


def validate(
    files: Annotated[list[Path], typer.Argument(metavar="AGENT.yaml…")],
    allow_module: Annotated[
        list[str] | None,
        typer.Option(metavar="MODULE", help="Let the YAML name functions of this module."),
    ] = None,
) -> None:
    """Check agent files.

    Tells every mistake with file:line:column; exits with 2 if there is one.
    """
    from agentpar.config import load

    wrong = 0
    for file in files:
        try:
            config = load(file, allow_modules=tuple(allow_module or ()))
        except ConfigError as error:
            wrong += 1
            typer.echo(str(error), err=True)
        else:
            for note in config.notes:
                typer.echo(f"note: {note}")
            typer.echo(f"{file}: fine")
    if wrong:
        raise typer.Exit(2)


def schema() -> None:
    """Print the schema of agent files."""
    from agentpar.config import json_schema

    typer.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR")] = Path("."),
) -> None:
    """Begin a project.

    Writes agent.yaml, tools.py and a test that needs no model; overwrites nothing.
    """
    from agentpar.cli.templates import FILES, FIRST_QUESTION

    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{str(folder)!r} is a file: name the folder of a project")
    taken = [name for name in FILES if (folder / name).exists()]
    if taken:
        raise UsageError(
            f"{str(folder)!r} has {' and '.join(taken)} already, and nothing is overwritten: "
            "name another folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in FILES.items():
        with (folder / name).open("x", encoding="utf-8") as file:
            file.write(text)
        typer.echo(f"wrote {folder / name}")
    into = "" if folder == Path(".") else f"cd {shlex.quote(str(folder))} && "
    # By this very Python: the one that a shell finds first may not have agentpar.
    python = shlex.quote(sys.executable)
    typer.echo(f"try: {into}{python} -m pytest -q test_agent.py")
    typer.echo(
        f"ask: {into}{python} -m agentpar.cli run agent.yaml --allow-module tools "
        f'"{FIRST_QUESTION}"'
    )


def doctor() -> None:
    """Say what is here and what is missing.

    Each missing thing with the command that mends it; exits with 1 if the demo cannot run.
    """
    from agentpar.doctor import examine

    marks = {"ok": "ok", "optional": "absent", "unsure": "unsure", "missing": "MISSING"}
    missing = 0
    for finding in examine():
        missing += finding.state == "missing"
        typer.echo(f"{marks[finding.state]:7} {finding.what}: {finding.detail}")
        if finding.mend:
            typer.echo(f"          mend: {finding.mend}")
    if missing:
        typer.echo(f"{missing} missing: 'agentpar demo' cannot run here yet")
        raise typer.Exit(1)
    typer.echo("all that 'agentpar demo' needs is here")
