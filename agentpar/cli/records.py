"""Finds what the user means by RUN, and reads plans out of records and text files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from agentpar.cli.teams import chosen_record, teams_among
from agentpar.errors import UsageError

if TYPE_CHECKING:  # loads when a record is read, not when the command line is
    from agentpar.plan import Outcome, Task

RECORD = "events.jsonl"


def find_run(name: str, runs: Path) -> Path:
    """The record that ``name`` means; `UsageError` with the nearest ones where there is none."""
    given = Path(name)
    if given.is_file():
        return given
    if (given / RECORD).is_file():
        return given / RECORD
    if (runs / name / RECORD).is_file():
        return runs / name / RECORD
    everything = sorted(runs.glob(f"*/{RECORD}"))  # ids sort by time
    parts = teams_among([record.parent.name for record in everything])
    records = [record for record in everything if record.parent.name not in parts]
    if name == "last" and records:
        return records[-1]
    among = everything if "." in name else records
    found = [record for record in among if record.parent.name.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(record.parent.name for record in found[:6])
        raise UsageError(f"{name!r} begins {len(found)} runs in {str(runs)!r}: {ids}")
    newest = ", ".join(record.parent.name for record in records[-3:])
    raise UsageError(
        f"there is no run {name!r} in {str(runs)!r}"
        + (f"; the newest are {newest}" if newest else ", which holds none; --runs names another")
    )


def run_plan(name: str, runs: Path) -> tuple[list[Task], Mapping[int, Outcome]]:
    """What a recorded run planned, and how it came out; of several teams, the chosen one."""
    from agentpar.events import TaskDone, TaskPlanned, TaskReplaced
    from agentpar.executor.record import read_record
    from agentpar.plan import whole

    record = find_run(name, runs)
    events = list(read_record(record).events)
    if (chosen := chosen_record(record, events)) is not None:
        events = list(read_record(chosen).events)
    tasks = {e.task.id: e.task for e in events if isinstance(e, TaskPlanned | TaskReplaced)}
    ends = {e.task_id: e.outcome for e in events if isinstance(e, TaskDone)}
    planned, outcomes = whole(tasks, ends)
    return list(planned.values()), outcomes


def read_text(path: Path) -> str:
    """The text of a plan's file."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"there is no plan at {str(path)!r}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no text: byte {error.start} is not UTF-8") from None


def run_sinks(name: str, runs: Path) -> frozenset[str]:
    """The tools of a recorded run that write or send."""
    from agentpar.executor.record import read_record

    flows = read_record(find_run(name, runs)).terms.permissions.flows
    return frozenset(tool for tool, flow in flows.items() if flow.sink)


def read_plan(path: Path) -> tuple[list[Task], Mapping[int, Outcome]]:
    """The tasks of a plan in a text file. What cannot be read is told on stderr.

    No tool is known here, so positional arguments are shown by their place.
    """
    from agentpar.plan import Task, is_special, needs
    from agentpar.planner.parser import BadLine, Call, Cancel, PlanParser, Replace

    text = read_text(path)
    parser = PlanParser()
    tasks: list[Task] = []
    for item in [*parser.feed(text), *parser.close()]:
        match item:
            case Call(id, tool, args, kwargs, thought):
                named = {f"_{place}": value for place, value in enumerate(args, 1)} | kwargs
                tasks.append(Task(id, tool, named, needs(named), thought, is_special(named)))
            case Cancel(line=line) | Replace(Call(line=line)):
                typer.echo(f"{path}: changes another plan, which is not here: {line!r}", err=True)
            case BadLine(line, message):
                typer.echo(f"{path}: {message}: {line!r}", err=True)
    if not tasks:
        raise UsageError(f"{path} holds no call; a plan has lines such as '1. tool(name=\"x\")'")
    return tasks, {}
