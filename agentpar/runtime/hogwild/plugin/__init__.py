"""True token-level sharing inside an unmodified vLLM, as a plugin of it.

Loaded by every vLLM in this environment (entry point ``vllm.general_plugins``) and inert in all
but those that ``agentpar serve --hogwild`` starts. Light: must never load vLLM or torch itself.
"""

from __future__ import annotations

import os
from typing import Literal

from agentpar.errors import CannotShare, UsageError

SWITCH = "AGENTPAR_HOGWILD"
"""Environment variable: ``1`` in a server that was started for groups."""
RECORD = "AGENTPAR_HOGWILD_RECORD"
"""Environment variable: a folder in which each group leaves its transcript when it ends."""
WAIT = "AGENTPAR_HOGWILD_WAIT"
"""Environment variable: seconds that a group waits for the rows it expects (2 if not set)."""

CUDA = "AGENTPAR_HOGWILD_CUDA"
"""Environment variable: ``1`` lets the plugin start on CUDA, where it has never run so far."""

GRAPHS = "AGENTPAR_HOGWILD_GRAPHS"
"""Environment variable: what a server on CUDA captures in CUDA graphs. Unset: nothing. ``pieces``:
what lies between attention. ``decode``: steps with one token a request whole, too."""

_HOME = "agentpar.runtime.hogwild.plugin"


def graphs() -> Literal["", "pieces", "decode"]:
    """What `GRAPHS` says, "" for nothing; raises `UsageError` for a word that it does not know."""
    match os.environ.get(GRAPHS, ""):
        case "" | "pieces" | "decode" as what:
            return what
        case other:
            raise UsageError(
                f"{GRAPHS} is {other!r}: it can be 'pieces' or 'decode', or not be set (no graphs)"
            )


def runs_on(device: str) -> bool:
    """Whether the plugin runs in a vLLM on ``device``."""
    return device == "cpu" or (device == "cuda" and os.environ.get(CUDA) == "1")


def _reason(device: str) -> str:
    """Why the plugin does not run on ``device``, and what can be done."""
    if device == "cuda":
        return (
            "workers that share a cache in vLLM have not run on a GPU yet, only their parts on a "
            f"CPU: set {CUDA}=1 to try it all the same"
        )
    return f"workers share a cache in vLLM on 'cpu', not on {device!r}"


def serve_args(device: str = "cpu") -> list[str]:
    """What the command line of a vLLM server for groups has in addition.

    Raises `UsageError` for a ``device`` that the plugin does not run on.
    """
    args = ["--middleware", f"{_HOME}.door.Door"]
    for name, value in engine_args(device).items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            args.append(f"--{option}" if value else f"--no-{option}")
        else:
            args += [f"--{option}", value]
    return args


def engine_args(device: str = "cpu") -> dict[str, str | bool]:
    """The same for an engine without a server; raises likewise."""
    if not runs_on(device):
        raise UsageError(f"{_reason(device)}; or leave out --hogwild, and they share a log")
    scheduler = {"scheduler_cls": f"{_HOME}.scheduler.HogwildScheduler"}
    if device == "cpu":
        return {"worker_cls": f"{_HOME}.cpu.worker.HogwildCPUWorker", **scheduler}
    return {
        "worker_cls": f"{_HOME}.cuda.worker.HogwildCUDAWorker",
        **scheduler,
        "attention_backend": "CUSTOM",
        "enforce_eager": not graphs(),
        "async_scheduling": False,
    }


def environment() -> dict[str, str]:
    """What the environment of such a server has in addition."""
    # The plugin's hooks are those of the first model runner.
    return {SWITCH: "1", "VLLM_USE_V2_MODEL_RUNNER": "0"}


def register() -> None:
    """What vLLM calls in each of its processes: nothing happens unless `SWITCH` is set.

    Raises `CannotShare` where a hook into vLLM has moved, or on a device that the plugin does not
    run on, upon which the server does not start.
    """
    if os.environ.get(SWITCH) != "1":
        return
    from vllm.platforms import current_platform

    from agentpar.runtime.hogwild.plugin import contract, frontend

    device = current_platform.device_type
    if not runs_on(device):
        raise CannotShare(f"{_reason(device)}; or start the server without --hogwild")
    contract.check(contract.hooks(device))
    frontend.install()

    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    if device == "cpu":  # where vLLM uses no other
        register_backend(AttentionBackendEnum.CPU_ATTN, f"{_HOME}.cpu.backend.HogwildCPUBackend")
    else:
        register_backend(AttentionBackendEnum.CUSTOM, f"{_HOME}.cuda.backend.HogwildCUDABackend")
