"""Small random models of the real families, loud enough that what they see matters."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY = 128


def tiny(
    family: str = "llama",
    *,
    dtype: torch.dtype = torch.float64,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 32,
    layers: int = 4,
    seed: int = 0,
    **config: Any,
) -> Any:
    """A random model with ``layers`` layers; ``config`` goes into its config."""
    settings: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 4096,
        "eos_token_id": None,
        "bos_token_id": None,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
    }
    torch.manual_seed(seed)
    made = AutoConfig.for_model(family, **(settings | config))
    model = AutoModelForCausalLM.from_config(made, attn_implementation="eager", dtype=dtype).eval()
    with torch.no_grad():
        # At 0.02 a random model is nearly linear, and hardly looks at what it sees.
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(6.0)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def ids(count: int, seed: int) -> list[int]:
    """``count`` random tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, VOCABULARY, (count,), generator=generator).tolist()
