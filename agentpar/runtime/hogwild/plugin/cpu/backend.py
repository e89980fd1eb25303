"""vLLM's CPU attention backend, with the queries of groups answered by ours.

What is done for groups stands in `plugin.backend`.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm import _custom_ops as ops
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadataBuilder,
)

from agentpar.runtime.hogwild.plugin.attention import Cache
from agentpar.runtime.hogwild.plugin.backend import AnswersGroups, AttendsToGroups
from agentpar.runtime.hogwild.plugin.layout import layout_of


class HogwildCPUBackend(CPUAttentionBackend):  # type: ignore[misc]
    """Stands in for ``CPU_ATTN``, the one backend that vLLM uses on a CPU."""

    @staticmethod
    def get_impl_cls() -> type[Impl]:
        return Impl

    @staticmethod
    def get_builder_cls() -> type[Builder]:
        return Builder


class Builder(AnswersGroups, CPUAttentionMetadataBuilder):  # type: ignore[misc]
    """Makes a step's plans beside vLLM's own metadata, if a group runs in it."""


class Impl(AttendsToGroups, CPUAttentionBackendImpl):  # type: ignore[misc]
    """vLLM's attention, then that of groups over it."""


def measured(layer: Any, kv_cache: torch.Tensor) -> Cache:
    """How ``layer`` reads and writes its cache, found by writing a block through vLLM's kernel.

    Raises `CannotShare` where what is stored are not the numbers themselves.
    """
    _, heads, size, double = kv_cache.shape
    numbers = double // 2
    scratch = torch.zeros((1, heads, size, double), dtype=kv_cache.dtype)
    keys, values = scratch.view(1, heads, 2 * size, numbers).chunk(2, dim=2)
    index = torch.arange(size * numbers)
    slots = torch.arange(size, dtype=torch.int64)
    stored = torch.zeros((2, size * numbers), dtype=torch.int64)
    # A bfloat16 counts to 256 exactly, so each number's index is written in two halves.
    for unit in (1, 128):
        digits = (index // unit % 128).view(size, 1, numbers).expand(size, heads, numbers)
        written = digits.to(kv_cache.dtype).contiguous()
        ops.cpu_attn_reshape_and_cache(
            written,
            written,
            keys,
            values,
            slots,
            layer.isa,
            k_scale=1.0,
            v_scale=1.0,
            kv_cache_dtype=layer.impl.kv_cache_dtype,
        )
        found = scratch[0, heads - 1].view(2, size * numbers).to(torch.float32)
        stored += unit * found.round().to(torch.int64)
    # stored[place] = index; turned round: places[index].
    places = [row.argsort().tolist() if _is_order(row) else row.tolist() for row in stored]
    of_keys, of_values = (layout_of(found, size, numbers) for found in places)
    return Cache(size, of_keys, of_values, behind=size * numbers)


def _is_order(found: torch.Tensor) -> bool:
    return bool((found.sort().values == torch.arange(len(found))).all())
