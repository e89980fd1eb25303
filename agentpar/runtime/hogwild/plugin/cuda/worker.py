"""vLLM's GPU worker, which keeps account of groups and runs their steps.

Never run on a GPU so far. What has run: all of it but `init_device` below the checks, over vLLM's
CPU worker in its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.config import VllmConfig

from agentpar.errors import CannotShare
from agentpar.runtime.hogwild.plugin import GRAPHS, graphs, settings
from agentpar.runtime.hogwild.plugin.attention import Cache
from agentpar.runtime.hogwild.plugin.cuda.backend import Builder, Impl, packed
from agentpar.runtime.hogwild.plugin.cuda.decode import Decoding, Heads, Standing
from agentpar.runtime.hogwild.plugin.step import Planner, current
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
        heads = Heads(
            model.get_num_attention_heads(parallel),
            model.get_num_kv_heads(parallel),
            model.get_head_size(),
        )
        rows = self.vllm_config.scheduler_config.max_num_seqs if graphs() == "decode" else 0
        decoding = Decoding(rope, cache, heads, captured_queries=rows)
        decoding.warm(self._caches[0], model.dtype)
        if decoding.standing is not None:
            self._stand(decoding.standing)
        return decoding

    def _stand(self, standing: Standing) -> None:
        """Have graphs capture ``standing``, and be replayed only in steps that it answers."""
        runner = self.model_runner
        for group in runner._attn_group_iterator():
            for builder in group.metadata_builders:
                require_builder(builder).standing = standing
        choose = runner._determine_batch_execution_and_padding

        def choose_with_groups(**batch: Any) -> Any:
            step = current()
            if step is None:
                standing.hold(())
            else:
                plans = step.plans(runner.query_start_loc.cpu)
                one_each = batch["max_num_scheduled_tokens"] == 1
                if one_each and any(plan is not standing for plan in plans):
                    batch["force_eager"] = True
            return choose(**batch)

        runner._determine_batch_execution_and_padding = choose_with_groups


def require_builder(builder: Any) -> Builder:
    """``builder`` as ours; raises `CannotShare` for another, whose graphs would know no groups."""
    if not isinstance(builder, Builder):
        raise CannotShare(
            f"{type(builder).__name__} captures CUDA graphs in which workers are not answered: "
            f"leave {GRAPHS} unset"
        )
    return builder


def require_settings(config: VllmConfig) -> None:
    """Refuse a server whose steps cannot be followed; raises `CannotShare` naming its options."""
    faults = settings.faults(config)
    if not (graphs() or config.model_config.enforce_eager):
        faults.append(
            f"--enforce-eager is missing ({GRAPHS} is not set, and so nothing may be captured)"
        )
    if config.scheduler_config.async_scheduling:
        # Else tokens stay on the GPU, where nobody sees that one ends a worker's step.
        faults.append("--no-async-scheduling is missing (a step's tokens are needed on the host)")
    settings.refuse(faults)
