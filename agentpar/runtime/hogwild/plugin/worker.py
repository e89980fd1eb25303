"""What the workers of all devices have in common: an account of groups, kept step by step.

Reads vLLM's first model runner. Must never know how a device stores its cache.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from vllm.config import get_layers_from_vllm_config
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbeddingBase
from vllm.utils.torch_utils import is_quantized_kv_cache
from vllm.v1.attention.backend import AttentionType
from vllm.v1.worker.gpu_worker import Worker

from agentpar.errors import CannotShare
from agentpar.runtime.hogwild.plugin import RECORD, contract, settings
from agentpar.runtime.hogwild.plugin.attention import Cache
from agentpar.runtime.hogwild.plugin.groups import Groups
from agentpar.runtime.hogwild.plugin.notice import ATTRIBUTE
from agentpar.runtime.hogwild.plugin.step import Planner, RunningStep
from agentpar.runtime.hogwild.rope import Rope, rope_of


class GroupWorker(Worker):  # type: ignore[misc]
    """Refuses a model whose workers cannot share when it has loaded it, and says why."""

    @abstractmethod
    def cache_of(self, layers: Mapping[str, Any]) -> Cache:
        """How all ``layers`` lay out their cache, by name; raises `CannotShare` for others."""

    @abstractmethod
    def planner(self, rope: Rope, cache: Cache) -> Planner:
        """What answers the queries of groups on this device."""

    def init_device(self) -> None:
        settings.refuse(settings.faults(self.vllm_config))
        super().init_device()
        contract.require(self.model_runner, "worker")
        # Workers of several ranks keep the same account, each of its heads: one writes it down.
        folder = os.environ.get(RECORD) if self.rank == 0 else None
        self._groups = Groups(Path(folder) if folder else None)

    def load_model(self, *arguments: Any, **named: Any) -> None:
        super().load_model(*arguments, **named)
        self._rope = rope_of(self.model_config.hf_text_config.to_dict())
        _require_same_rotation(self._rope, self.model_runner.get_model())

    def initialize_from_config(self, kv_cache_config: Any) -> None:
        super().initialize_from_config(kv_cache_config)
        layers = get_layers_from_vllm_config(self.vllm_config, Attention)
        cache = self.cache_of(layers)
        if cache.block_size != self.cache_config.block_size:
            raise CannotShare(
                f"vLLM counts blocks of {self.cache_config.block_size} tokens and its kernel has "
                f"blocks of {cache.block_size}: workers cannot share such a cache"
            )
        self._size = cache.block_size
        self._caches = [layer.kv_cache for layer in layers.values()]
        self._planner = self.planner(self._rope, cache)

    def execute_model(self, scheduler_output: Any) -> Any:
        notice = getattr(scheduler_output, ATTRIBUTE, None)
        if notice is None and not self._groups:
            return super().execute_model(scheduler_output)
        self._groups.hear(notice, scheduler_output.finished_req_ids)
        if not self._groups:
            return super().execute_model(scheduler_output)
        step = RunningStep(self.model_runner, self._groups, self._caches, self._size, self._planner)
        with step.running():
            return super().execute_model(scheduler_output)


def require_whole_views(name: str, layer: Any, impl: type[Any], device: str) -> None:
    """Refuse the layer ``name`` unless it attends through ``impl`` and sees whole views.

    Raises `CannotShare` with the reason; ``device``: how vLLM's attention there is called.
    """
    own: Any = layer.impl
    if not isinstance(own, impl):
        raise CannotShare(
            f"layer {name} attends through {type(own).__module__}.{type(own).__name__}, "
            f"which is not vLLM's {device} attention: workers cannot share its cache"
        )
    odd = {
        "only looks back a little (sliding window)": own.sliding_window not in (-1, (-1, -1)),
        "biases scores by distance (ALiBi)": own.alibi_slopes is not None,
        "has attention sinks": own.sinks is not None,
        "caps its scores": bool(own.logits_soft_cap),
        "is no decoder layer": own.attn_type != AttentionType.DECODER,
        "uses another layer's cache": own.kv_sharing_target_layer_name is not None,
        "stores its cache in 8 bits": is_quantized_kv_cache(own.kv_cache_dtype),
    }
    for reason, holds in odd.items():
        if holds:
            raise CannotShare(f"layer {name} {reason}: workers of it cannot share one cache")


def only(found: Mapping[Any, Cache]) -> Cache:
    """The one way in which all layers store keys and values; raises `CannotShare` for several."""
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
        cos, sin = table.cos_sin_cache[:64].cpu().double().chunk(2, dim=-1)
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
