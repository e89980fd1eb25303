"""The files beside a run's record that people open: timeline.html and plan.mmd.

Made from the record, so they can be made again at any time.
"""

from __future__ import annotations

import os
from pathlib import Path

from agentpar.cli.records import RECORD, run_plan


def write_views(folder: Path) -> None:
    """Write ``timeline.html`` and ``plan.mmd`` from the record in ``folder``, if there is one."""
    if not (folder / RECORD).is_file():
        return  # the run ended before it began
    from agentpar.drawing import mermaid

    write_timeline(folder)
    tasks, outcomes = run_plan(str(folder), folder.parent)
    write_whole(folder / "plan.mmd", mermaid(tasks, outcomes).encode())


def write_timeline(folder: Path) -> Path:
    """Write ``timeline.html`` from the record in ``folder``; its path."""
    from agentpar.executor.record import read_record
    from agentpar.timeline import render_timeline

    page = render_timeline(read_record(folder / RECORD).events)
    path = folder / "timeline.html"
    write_whole(path, page.encode("utf-8", "replace"))
    return path


def write_whole(path: Path, data: bytes) -> None:
    """Write ``data`` so that a reader sees the old file or the new one, never a part."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
