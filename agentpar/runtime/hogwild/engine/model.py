"""The forward pass of a decoder, written plainly over the weights of a transformers model.

Llama, Qwen2 and Qwen3: biases, norms of query and key, tied embeddings and shared key heads are
where the loaded model has them. Knows a batch of tokens and where their keys go, and nothing of
groups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from agentpar.errors import CannotShare
from agentpar.runtime.hogwild.engine.attention import Attend, Piece, attend, wide
from agentpar.runtime.hogwild.engine.cache import Cache
from agentpar.runtime.hogwild.engine.rotary import Rotary
from agentpar.runtime.hogwild.rope import rope_of

FAMILIES = ("llama", "qwen2", "qwen3")


@dataclass(frozen=True, slots=True)
class Batch:
    """Tokens that are computed in one pass, of any rows.

    ``tokens``, ``positions`` (index in their own row) and ``slots`` (where their keys and values
    go) are [n] int64; ``pieces`` are what they see, those keys and values included.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    pieces: Sequence[Piece]


class Decoder:
    """The layers of ``model`` (a ``LlamaForCausalLM`` or of its kind), its attention replaced.

    Raises `CannotShare` for a model of which no such pass is written here, or whose keys cannot
    be read elsewhere.
    """

    def __init__(self, model: Any, attention: Attend = attend) -> None:
        config = model.config.to_dict()
        rope = rope_of(config)
        if config["model_type"] not in FAMILIES:
            raise CannotShare(
                f"the reference engine computes {', '.join(FAMILIES)}, and no model of the type "
                f"{config['model_type']!r}"
            )
        self._attend = attention
        self._head = model.lm_head
        self._embed = model.model.embed_tokens
        self._norm = model.model.norm
        self.layers = list(model.model.layers)
        self.dtype: torch.dtype = self._embed.weight.dtype
        self.device: torch.device = self._embed.weight.device
        self.rotary = Rotary(rope, self.device)
        first = self.layers[0].self_attn
        self.head_dim: int = first.head_dim
        self.heads: int = config["num_attention_heads"]
        self.kv_heads: int = config["num_key_value_heads"]
        self.vocabulary: int = self._head.weight.shape[0]
        self.context: int = config["max_position_embeddings"]

    def cache(self, blocks: int, block_size: int) -> Cache:
        """An empty cache for this model, on its device and in its dtype."""
        return Cache(
            blocks,
            block_size,
            layers=len(self.layers),
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            dtype=self.dtype,
            device=self.device,
        )

    def hidden(self, batch: Batch, cache: Cache) -> torch.Tensor:
        """Compute ``batch``, its keys and values going to ``cache``; the last layer's output,
        [n, hidden size], for `logits`."""

        def mix(layer: int, attention: Any, x: torch.Tensor) -> torch.Tensor:
            q, k, v = self.project(attention, x)
            keys, values = cache.keys[layer], cache.values[layer]
            k = self.rotary.rotate(k, own)
            keys.flatten(0, 1)[batch.slots] = k.to(self.dtype)
            values.flatten(0, 1)[batch.slots] = v
            q = self.rotary.rotate(q, own)
            return self._attend(
                q, keys, values, batch.pieces, self.rotary, float(attention.scaling)
            )

        own = self.rotary.first_turn(batch.positions, wide(self.dtype))
        return self.through(batch.tokens, mix)

    def through(
        self, tokens: torch.Tensor, mix: Callable[[int, Any, torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """``tokens`` [n] through all layers, [n, hidden size].

        ``mix(layer, attention, x)`` is what attention makes of the normed ``x`` [n, hidden size],
        as [n, heads, head_dim] before the output projection.
        """
        x = self._embed(tokens)
        for number, layer in enumerate(self.layers):
            mixed = mix(number, layer.self_attn, _normed(x, layer.input_layernorm))
            x = x + layer.self_attn.o_proj(mixed.flatten(1))
            x = x + layer.mlp(_normed(x, layer.post_attention_layernorm))
        return _normed(x, self._norm)

    def project(
        self, attention: Any, x: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Query, key and value of ``x`` [n, hidden size], not rotated: [n, heads, head_dim]."""
        q, k, v = (
            projection(x).unflatten(-1, (-1, self.head_dim))
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        if hasattr(attention, "q_norm"):  # Qwen3
            q, k = _normed(q, attention.q_norm), _normed(k, attention.k_norm)
        return q, k, v

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Scores of the token behind each of ``hidden`` [n, hidden size]: [n, vocabulary] wide."""
        scores: torch.Tensor = self._head(hidden)
        return scores.to(wide(self.dtype))


def _normed(x: torch.Tensor, norm: Any) -> torch.Tensor:
    """RMS norm by the weight of ``norm``; transformers' own computes in float32 at most."""
    y = x.to(wide(x.dtype))
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + norm.variance_epsilon)
    scaled: torch.Tensor = norm.weight * y.to(x.dtype)
    return scaled
