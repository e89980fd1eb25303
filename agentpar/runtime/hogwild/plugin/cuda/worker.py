"""vLLM's GPU worker, which keeps account of groups and runs their steps.

Never run on a GPU so far. What has run: all of it but `init_device` below the checks, over vLLM's
CPU worker in its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.config import VllmConfig

from agentpar.runtime.hogwild.plugin import settings
from agentpar.runtime.hogwild.plugin.attention import Cache
from agentpar.runtime.hogwild.plugin.cuda.backend import Impl, packed
from agentpar.runtime.hogwild.plugin.cuda.decode import planner
from agentpar.runtime.hogwild.plugin.step import Planner
from agentpar.runtime.hogwild.plugin.worker import GroupWorker, only, require_whole_views
from agentpar.runtime.hogwild.rope import Rope


class HogwildCUDAWorker(GroupWorker):
    """Answers groups by the group kernel, from FlashAttention's cache."""

    def init_device(self) -> None:
        require_settings(self.vllm_config)
        super().init_device()

    def cache_of(self, layers: Mapping[str, Any]) -> Cache:
        found: dict[tuple[Any, ...], Cache] = {}
        for name, layer in layers.items():
            require_whole_views(name, layer, Impl, "FlashAttention")
            impl = layer.impl
            key = (impl.num_heads, layer.kv_cache.dtype, tuple(layer.kv_cache.shape[1:]))
            if key not in found:
                found[key] = packed(layer)
        return only(found)

    def planner(self, rope: Rope, cache: Cache) -> Planner:
        model, parallel = self.model_config, self.parallel_config
        heads, kv_heads = (
            model.get_num_attention_heads(parallel),
            model.get_num_kv_heads(parallel),
        )
        return planner(rope, cache, numbers=model.get_head_size(), sharing=heads // kv_heads)


def require_settings(config: VllmConfig) -> None:
    """Refuse a server whose steps cannot be followed; raises `CannotShare` naming its options."""
    faults = settings.faults(config)
    if not config.model_config.enforce_eager:
        faults.append("--enforce-eager is missing (what a group reads has another shape each step)")
    if config.scheduler_config.async_scheduling:
        # Else tokens stay on the GPU, where nobody sees that one ends a worker's step.
        faults.append("--no-async-scheduling is missing (a step's tokens are needed on the host)")
    settings.refuse(faults)
