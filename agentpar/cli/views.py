"""The files beside a run's record that people open: timeline.html and plan.mmd.

Made from the record, so they can be made again at any time.
"""

from __future__ import annotations

from pathlib import Path

from agentpar.cache import write_whole
from agentpar.cli.records import RECORD, run_plan
from agentpar.cli.teams import all_events, team_records


def write_views(folder: Path) -> None:
    """Write ``timeline.html`` and ``plan.mmd`` from the record in ``folder``, if there is one."""
    if not (folder / RECORD).is_file():
        return  # the run ended before it began
    from agentpar.drawing import mermaid
    from agentpar.executor.record import read_record

    for record in team_records(folder / RECORD, read_record(folder / RECORD).events).values():
        write_views(record.parent)
    write_timeline(folder)
    tasks, outcomes = run_plan(str(folder), folder.parent)
    write_whole(folder / "plan.mmd", mermaid(tasks, outcomes))


def write_timeline(folder: Path) -> Path:
    """Write ``timeline.html`` from the record in ``folder``; its path."""
    from agentpar.timeline import render_timeline

    page = render_timeline(all_events(folder / RECORD))
    path = folder / "timeline.html"
    write_whole(path, page.encode("utf-8", "replace"))
    return path
