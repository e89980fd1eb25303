"""vLLM's CPU worker, which keeps account of groups and runs their steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.v1.worker.cpu_worker import CPUWorker

from agentpar.runtime.hogwild.plugin.attention import Cache, plan_of
from agentpar.runtime.hogwild.plugin.cpu.backend import Impl, measured
from agentpar.runtime.hogwild.plugin.step import Planner
from agentpar.runtime.hogwild.plugin.worker import GroupWorker, only, require_whole_views
from agentpar.runtime.hogwild.rope import Rope


class HogwildCPUWorker(GroupWorker, CPUWorker):  # type: ignore[misc]
    """Answers groups in torch, from blocks that lie as vLLM's CPU kernels want them."""

    def cache_of(self, layers: Mapping[str, Any]) -> Cache:
        found: dict[tuple[Any, ...], Cache] = {}
        for name, layer in layers.items():
            require_whole_views(name, layer, Impl, "CPU")
            key = (layer.isa, layer.kv_cache.dtype, tuple(layer.kv_cache.shape[1:]))
            if key not in found:
                found[key] = measured(layer, layer.kv_cache)
        return only(found)

    def planner(self, rope: Rope, cache: Cache) -> Planner:
        return lambda asked: [plan_of(*one, rope, cache) for one in asked]
