"""Settings of a vLLM under which its requests cannot share a cache, each with the option to change.

Known before anything is loaded, so such a server does not start. Reads vLLM's config; must never
import vLLM.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from agentpar.errors import CannotShare

WHOLE = ("auto", "float32", "float16", "bfloat16")
"""What vLLM calls a cache that holds the very numbers that a model computes."""


def faults(config: Any) -> list[str]:
    """What is in the way on every device; ``config`` is a ``VllmConfig``."""
    parallel = config.parallel_config
    several = {
        "--pipeline-parallel-size": parallel.pipeline_parallel_size,
        "--data-parallel-size": parallel.data_parallel_size,
        "--decode-context-parallel-size": parallel.decode_context_parallel_size,
        "--prefill-context-parallel-size": parallel.prefill_context_parallel_size,
    }
    found = [
        f"{option} is {size}, and has to be 1 (the rows of a group lie in one cache)"
        for option, size in several.items()
        if size > 1
    ]
    if parallel.enable_dbo:
        found.append("--enable-dbo is set (a step runs in two halves)")
    if config.speculative_config is not None:
        found.append("--speculative-config is set (others would read tokens that are taken back)")
    if config.kv_transfer_config is not None:
        found.append("--kv-transfer-config is set (what a group wrote means nothing elsewhere)")
    if (kind := config.cache_config.cache_dtype) not in WHOLE:
        found.append(f"--kv-cache-dtype is {kind} (keys have to be read as they were computed)")
    return found


def refuse(faults: Iterable[str]) -> None:
    """Raise `CannotShare` with all ``faults``, if there are any."""
    if said := "; ".join(faults):
        raise CannotShare(
            f"workers cannot share a cache on this server: {said}. "
            "Change that, or start it without --hogwild"
        )
