"""vLLM's FlashAttention backend, with the queries of groups answered by ours.

What is done for groups stands in `plugin.backend`.

Never run on a GPU so far. What has run: these classes over vLLM's own, on a CPU, in whole engines,
with torch in the place of FlashAttention's two CUDA functions and Triton's interpreter below.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.attention.backend import AttentionCGSupport
from vllm.v1.attention.backends.flash_attn import (
    FlashAttentionBackend,
    FlashAttentionImpl,
    FlashAttentionMetadataBuilder,
)

from agentpar.errors import CannotShare
from agentpar.runtime.hogwild.plugin.attention import Cache
from agentpar.runtime.hogwild.plugin.backend import AnswersGroups, AttendsToGroups
from agentpar.runtime.hogwild.plugin.layout import Layout


class HogwildCUDABackend(FlashAttentionBackend):  # type: ignore[misc]
    """Registered as ``CUSTOM``; for vLLM it is FlashAttention, whose name it keeps."""

    @staticmethod
    def get_impl_cls() -> type[Impl]:
        return Impl

    @staticmethod
    def get_builder_cls() -> type[Builder]:
        return Builder


class Builder(AnswersGroups, FlashAttentionMetadataBuilder):  # type: ignore[misc]
    """Makes a step's answers beside vLLM's own metadata, if a group runs in it."""

    @classmethod
    def get_cudagraph_support(cls, vllm_config: Any, kv_cache_spec: Any) -> AttentionCGSupport:
        """None: what a group reads has another shape in each step."""
        return AttentionCGSupport.NEVER


class Impl(AttendsToGroups, FlashAttentionImpl):  # type: ignore[misc]
    """vLLM's attention, then that of groups over it."""


def packed(layer: Any) -> Cache:
    """How ``layer`` lays out its cache: [blocks, kv heads, block size, key and value].

    A token written through vLLM's own kernel has to be found there. Raises `CannotShare` where it
    is not.
    """
    cache: torch.Tensor = layer.kv_cache
    _, heads, size, double = cache.shape
    numbers = double // 2
    scratch = torch.zeros_like(cache[:1])
    drawn = torch.arange(2 * size * heads * numbers, device=cache.device) % 251
    key, value = drawn.to(cache.dtype).view(2, size, heads, numbers)
    slots = torch.arange(size, device=cache.device)
    layer.impl.do_kv_cache_update(layer, key, value, scratch, slots)
    found = scratch[0].transpose(0, 1).split(numbers, dim=-1)
    if not (torch.equal(found[0], key) and torch.equal(found[1], value)):
        raise CannotShare(
            "vLLM does not store the key and the value of a token side by side (in a cache of "
            f"shape {tuple(cache.shape)} and strides {cache.stride()}): workers cannot share it"
        )
    if cache.stride(-1) != 1:
        raise CannotShare(
            f"the numbers of a key do not lie one after the other (strides {cache.stride()}): "
            "workers cannot share such a cache"
        )
    lie = Layout(tokens=((size, double),), numbers=((numbers, 1),))
    return Cache(size, lie, lie, behind=numbers, device=cache.device)
