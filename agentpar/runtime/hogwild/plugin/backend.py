"""What our attention backends have in common, over whichever backend of vLLM they stand.

Ordinary requests keep the stock kernel and the stock cache. Only where a batch has rows of groups
are their outputs overwritten, and their share of the stock kernel's work cut to a token each; where
it has no others, the stock kernel is not called.
"""

from __future__ import annotations

from typing import Any

import torch

from agentpar.runtime.hogwild.plugin.notice import ATTRIBUTE
from agentpar.runtime.hogwild.plugin.step import NONE, Answers, answered


class AnswersGroups:
    """Before a metadata builder of vLLM: makes a step's answers beside its metadata, if a group
    runs in it."""

    def build(
        self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False
    ) -> Any:
        common_attn_metadata, answers = answered(common_attn_metadata)
        metadata = super().build(  # type: ignore[misc]
            common_prefix_len, common_attn_metadata, fast_build
        )
        setattr(metadata, ATTRIBUTE, answers)
        return metadata


class AttendsToGroups:
    """Before an attention of vLLM: its own, then that of groups over it."""

    scale: float

    def forward(
        self,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: Any,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        answers: Answers = getattr(attn_metadata, ATTRIBUTE, NONE)
        if not answers.alone:
            super().forward(  # type: ignore[misc]
                layer,
                query,
                key,
                value,
                kv_cache,
                attn_metadata,
                output,
                output_scale,
                output_block_scale,
            )
        answers.attend(query, kv_cache, output, self.scale)
        return output
