"""True token-level sharing inside an unmodified vLLM, as a plugin of it.

Loaded by every vLLM in this environment (entry point ``vllm.general_plugins``) and inert in all
but those that ``agentpar serve --hogwild`` starts. Light: must never load vLLM or torch itself.
"""

from __future__ import annotations

import os

from agentpar.errors import UsageError

SWITCH = "AGENTPAR_HOGWILD"
"""Environment variable: ``1`` in a server that was started for groups."""
RECORD = "AGENTPAR_HOGWILD_RECORD"
"""Environment variable: a folder in which each group leaves its transcript when it ends."""
WAIT = "AGENTPAR_HOGWILD_WAIT"
"""Environment variable: seconds that a group waits for the rows it expects (2 if not set)."""

DEVICES = ("cpu",)
"""Where the plugin runs."""

_HOME = "agentpar.runtime.hogwild.plugin"


def serve_args(device: str = "cpu") -> list[str]:
    """What the command line of a vLLM server for groups has in addition.

    Raises `UsageError` for a ``device`` that is not in `DEVICES`.
    """
    args = [f"{_HOME}.door.Door"]
    for name, value in engine_args(device).items():
        args += [f"--{name.replace('_', '-')}", value]
    return ["--middleware", *args]


def engine_args(device: str = "cpu") -> dict[str, str]:
    """The same for an engine without a server; raises likewise."""
    if device not in DEVICES:
        raise UsageError(
            f"workers cannot share a cache in vLLM on {device!r} yet: leave out --hogwild, and "
            "they share a log"
        )
    return {
        "worker_cls": f"{_HOME}.cpu.worker.HogwildCPUWorker",
        "scheduler_cls": f"{_HOME}.scheduler.HogwildScheduler",
    }


def environment() -> dict[str, str]:
    """What the environment of such a server has in addition."""
    # The plugin's hooks are those of the first model runner.
    return {SWITCH: "1", "VLLM_USE_V2_MODEL_RUNNER": "0"}


def register() -> None:
    """What vLLM calls in each of its processes: nothing happens unless `SWITCH` is set.

    Raises `CannotShare` where a hook into vLLM has moved, upon which the server does not start.
    """
    if os.environ.get(SWITCH) != "1":
        return
    from agentpar.runtime.hogwild.plugin import contract, frontend

    contract.check()
    frontend.install()

    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    register_backend(AttentionBackendEnum.CPU_ATTN, f"{_HOME}.cpu.backend.HogwildCPUBackend")
