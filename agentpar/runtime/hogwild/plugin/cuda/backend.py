"""vLLM's FlashAttention backend, with the queries of groups answered by ours.

What is done for groups stands in `plugin.backend`.

Never run on a GPU so far. What has run: these classes over vLLM's own, on a CPU, in whole engines,
with torch in the place of FlashAttention's two CUDA functions and Triton's interpreter below.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from vllm.v1.attention.backend import AttentionCGSupport
from vllm.v1.attention.backends.flash_attn import (
    FlashAttentionBackend,
    FlashAttentionImpl,
    FlashAttentionMetadataBuilder,
)

from agentpar.errors import CannotShare
from agentpar.runtime.hogwild.plugin import graphs
from agentpar.runtime.hogwild.plugin.attention import Cache
from agentpar.runtime.hogwild.plugin.backend import AnswersGroups, AttendsToGroups
from agentpar.runtime.hogwild.plugin.cuda.decode import Standing
from agentpar.runtime.hogwild.plugin.layout import Layout
from agentpar.runtime.hogwild.plugin.notice import ATTRIBUTE
from agentpar.runtime.hogwild.plugin.step import Answers


class HogwildCUDABackend(FlashAttentionBackend):  # type: ignore[misc]
    """Registered as ``CUSTOM``; for vLLM it is FlashAttention, whose name it keeps."""

    @staticmethod
    def get_impl_cls() -> type[Impl]:
        return Impl

    @staticmethod
    def get_builder_cls() -> type[Builder]:
        return Builder


class SteadyLengths:
    """Before FlashAttention's builder: where graphs are captured, the lengths of rows, some of them
    cut, lie at one place in all steps."""

    def __init__(
        self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)  # type: ignore[call-arg]
        captures = vllm_config.compilation_config.cudagraph_mode.has_full_cudagraphs()
        rows = vllm_config.scheduler_config.max_num_seqs if captures else 0
        self._lengths = torch.zeros(rows, dtype=torch.int32, device=device)

    def build(
        self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False
    ) -> Any:
        lengths = common_attn_metadata.seq_lens
        if 0 < len(lengths) <= len(self._lengths):
            steady = self._lengths[: len(lengths)].copy_(lengths)
            common_attn_metadata = replace(common_attn_metadata, seq_lens=steady)
        return super().build(common_prefix_len, common_attn_metadata, fast_build)  # type: ignore[misc]


class Builder(AnswersGroups, SteadyLengths, FlashAttentionMetadataBuilder):  # type: ignore[misc]
    """Makes a step's answers beside vLLM's own metadata, if a group runs in it.

    ``standing``: what a graph captures as the answer to groups, where any is captured.
    """

    standing: Standing | None = None

    @classmethod
    def get_cudagraph_support(cls, vllm_config: Any, kv_cache_spec: Any) -> AttentionCGSupport:
        """Of steps with one token a request, if that is asked for; else of none."""
        if graphs() == "decode":
            return AttentionCGSupport.UNIFORM_SINGLE_TOKEN_DECODE
        return AttentionCGSupport.NEVER

    def build_for_cudagraph_capture(self, common_attn_metadata: Any) -> Any:
        metadata = super().build_for_cudagraph_capture(common_attn_metadata)
        if self.standing is not None:
            setattr(metadata, ATTRIBUTE, Answers((self.standing,)))
        return metadata


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
