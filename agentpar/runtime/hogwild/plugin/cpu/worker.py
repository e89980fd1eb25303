"""vLLM's CPU worker, which keeps account of groups and runs their steps."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from vllm.config import get_layers_from_vllm_config
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbeddingBase
from vllm.v1.attention.backend import AttentionType
from vllm.v1.worker.cpu_worker import CPUWorker

from agentpar.errors import CannotShare
from agentpar.runtime.hogwild.plugin import RECORD, contract
from agentpar.runtime.hogwild.plugin.cpu.attention import Cache
from agentpar.runtime.hogwild.plugin.cpu.backend import Impl, measured
from agentpar.runtime.hogwild.plugin.cpu.step import RunningStep
from agentpar.runtime.hogwild.plugin.groups import Groups
from agentpar.runtime.hogwild.plugin.notice import ATTRIBUTE
from agentpar.runtime.hogwild.rope import Rope, rope_of


class HogwildCPUWorker(CPUWorker):  # type: ignore[misc]
    """Refuses a model whose workers cannot share when it has loaded it, and says why."""

    def init_device(self) -> None:
        super().init_device()
        contract.require(self.model_runner, "worker")
        folder = os.environ.get(RECORD)
        self._groups = Groups(Path(folder) if folder else None)

    def load_model(self, *arguments: Any, **named: Any) -> None:
        super().load_model(*arguments, **named)
        self._rope = rope_of(self.model_config.hf_text_config.to_dict())
        _require_same_rotation(self._rope, self.model_runner.get_model())

    def initialize_from_config(self, kv_cache_config: Any) -> None:
        super().initialize_from_config(kv_cache_config)
        layers = get_layers_from_vllm_config(self.vllm_config, Attention)
        self._cache = _cache_of(layers)
        self._caches = [layer.kv_cache for layer in layers.values()]

    def execute_model(self, scheduler_output: Any) -> Any:
        notice = getattr(scheduler_output, ATTRIBUTE, None)
        if notice is None and not self._groups:
            return super().execute_model(scheduler_output)
        self._groups.hear(notice, scheduler_output.finished_req_ids)
        if not self._groups:
            return super().execute_model(scheduler_output)
        step = RunningStep(self.model_runner, self._groups, self._rope, self._cache, self._caches)
        with step.running():
            return super().execute_model(scheduler_output)


def _cache_of(layers: dict[str, Any]) -> Cache:
    """How all ``layers`` lay out their cache; refuses those that do not see whole views."""
    found: dict[tuple[Any, ...], Cache] = {}
    for name, layer in layers.items():
        impl = layer.impl
        if not isinstance(impl, Impl):
            raise CannotShare(
                f"layer {name} attends through {type(impl).__module__}.{type(impl).__name__}, "
                "which is not vLLM's CPU attention: workers cannot share its cache"
            )
        odd = {
            "only looks back a little (sliding window)": impl.sliding_window != -1,
            "biases scores by distance (ALiBi)": impl.alibi_slopes is not None,
            "has attention sinks": impl.sinks is not None,
            "caps its scores": bool(impl.logits_soft_cap),
            "is no decoder layer": impl.attn_type != AttentionType.DECODER,
            "uses another layer's cache": impl.kv_sharing_target_layer_name is not None,
            "stores its cache in 8 bits": impl.is_fp8_kv_cache,
        }
        for reason, holds in odd.items():
            if holds:
                raise CannotShare(f"layer {name} {reason}: workers of it cannot share one cache")
        cache = layer.kv_cache
        key = (layer.isa, cache.dtype, tuple(cache.shape[1:]))
        if key not in found:
            found[key] = measured(layer, cache)
    if len(found) != 1:
        raise CannotShare(
            f"the layers of this model store keys and values in {len(found)} ways; workers can "
            "share the cache of a model that has one"
        )
    return next(iter(found.values()))


def _require_same_rotation(rope: Rope, model: torch.nn.Module) -> None:
    """Hold what the config says of the rotation against the tables that the model turns with."""
    tables = [m for m in model.modules() if isinstance(m, RotaryEmbeddingBase)]
    if not tables:
        raise CannotShare("this model has no rotary embedding: workers of it cannot share a cache")
    for table in tables:
        cos, sin = table.cos_sin_cache[:64].double().chunk(2, dim=-1)
        angles = torch.arange(len(cos), dtype=torch.float64)[:, None] * torch.tensor(
            rope.frequencies, dtype=torch.float64
        )
        close = 2e-2 if table.cos_sin_cache.dtype != torch.float32 else 1e-4
        if (
            cos.shape != angles.shape
            or table.is_neox_style != (rope.style == "halves")
            or (cos - rope.scale * angles.cos()).abs().max() > close
            or (sin - rope.scale * angles.sin()).abs().max() > close
        ):
            raise CannotShare(
                f"vLLM turns this model's queries and keys ({type(table).__name__}) in another way "
                "than its config says: workers of it cannot share one cache"
            )
