"""Where and when a benchmark ran, and the file its table goes to."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def lines(packages: Sequence[str] = ()) -> Iterator[str]:
    """The machine, the versions of agentpar and ``packages``, the day and the load."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield f"- {platform.system()} {platform.machine()}, {cores} cores, {_processor()}"
    versions = [f"{name} {_version(name)}" for name in ("agentpar", *packages)]
    yield f"- Python {platform.python_version()}, {', '.join(versions)}"
    busy = f", load {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    yield f"- {datetime.date.today().isoformat()}{busy}"


def save(name: str, title: str, report: Iterable[str], *, by: str = "") -> None:
    """Write ``results/NAME.md``; ``by`` is the script, ``bench/NAME.py`` by default."""
    RESULTS.mkdir(exist_ok=True)
    text = (
        f"# {title}\n\nWritten by `{by or f'bench/{name}.py'} --save`.\n\n"
        + "\n".join(report)
        + "\n"
    )
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or "unknown processor"
    names = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    return names[0] if names else "unknown processor"
