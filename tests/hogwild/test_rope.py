"""Frequencies as transformers has them, and a reason for each model that cannot share."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from agentpar.errors import CannotShare
from agentpar.runtime.hogwild.engine.rotary import Rotary
from agentpar.runtime.hogwild.rope import _STYLES, Rope, Style, rope_of

BASE: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 512,
    "num_attention_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 4096,
}
SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 1024,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
    "yarn, no factor": {"rope_type": "yarn", "original_max_position_embeddings": 512},
    "yarn, as DeepSeek": {
        "rope_type": "yarn",
        "factor": 40.0,
        "mscale": 1.0,
        "mscale_all_dim": 0.8,
        "beta_fast": 16,
        "beta_slow": 2,
        "original_max_position_embeddings": 1024,
    },
    "yarn, own scale": {
        "rope_type": "yarn",
        "factor": 2.0,
        "attention_factor": 1.5,
        "truncate": False,
        "original_max_position_embeddings": 2048,
    },
}


@pytest.mark.parametrize("name", SCALINGS)
@pytest.mark.parametrize("spelling", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize("theta", [1e4, 1e6])
def test_frequencies_are_those_of_transformers(name: str, spelling: str, theta: float) -> None:
    """Each kind of scaling, as transformers 4 and 5 spell it."""
    scaling = SCALINGS[name]
    made = AutoConfig.for_model(
        **BASE, rope_parameters={"rope_theta": theta, "factor": None, **scaling}
    )
    expected, scale = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](made, torch.device("cpu"))
    if spelling == "rope_parameters":
        config = BASE | {"rope_parameters": {"rope_theta": theta, **scaling}}
    else:
        old = {("type" if key == "rope_type" else key): v for key, v in scaling.items()}
        config = BASE | {"rope_theta": theta, "rope_scaling": old}
    rope = rope_of(config)
    torch.testing.assert_close(
        torch.tensor(rope.frequencies, dtype=torch.float32), expected, rtol=2e-5, atol=0
    )
    assert rope.scale == pytest.approx(scale)
    assert rope.dim == 64


@pytest.mark.parametrize("kind", _STYLES)
def test_each_known_model_turns_as_in_transformers(kind: str) -> None:
    """Frequencies, rotary dim and style, against the module of that model."""
    config = AutoConfig.for_model(kind)
    as_dict = config.to_dict() | {"sliding_window": None, "no_rope_layers": None}
    rope = rope_of(as_dict)
    module = importlib.import_module(type(config).__module__.replace("configuration", "modeling"))
    (embedding,) = (of for name, of in vars(module).items() if name.endswith("RotaryEmbedding"))
    turning = embedding(config)
    assert rope.frequencies == pytest.approx(turning.inv_freq.tolist(), rel=1e-5)

    x = torch.randn(1, 1, 5, rope.dim)
    cos, sin = turning(x, torch.arange(5)[None])
    expected, _ = module.apply_rotary_pos_emb(x, x, cos, sin)
    rotary = Rotary(rope, torch.device("cpu"))
    found = rotary.rotate(x[0].transpose(0, 1), rotary.turn(torch.arange(5), torch.float32))
    torch.testing.assert_close(found.transpose(0, 1)[None], expected, rtol=0, atol=1e-5)


STYLES: tuple[Style, ...] = ("halves", "pairs")


@settings(deadline=None)  # the machine may be busy
@given(
    style=st.sampled_from(STYLES),
    p=st.integers(0, 30_000),
    further=st.integers(-30_000, 30_000),
    rest=st.sampled_from([0, 6]),
)
def test_turns_add_up(style: Style, p: int, further: int, rest: int) -> None:
    """Turned by p and by Δ is turned by p + Δ, YaRN's scale once; the rest passes through."""
    rope = Rope(tuple(1e4 ** (-i / 8) for i in range(8)), style, scale=1.2)
    rotary = Rotary(rope, torch.device("cpu"))
    x = torch.randn(1, 2, 16 + rest, dtype=torch.float64)

    def first(position: int) -> torch.Tensor:
        turn = rotary.first_turn(torch.tensor([position]), torch.float64)
        return rotary.rotate(x, turn)

    moved = rotary.rotate(first(p), rotary.turn(torch.tensor([further]), torch.float64))
    torch.testing.assert_close(moved, first(p + further), rtol=0, atol=1e-10)
    assert torch.equal(moved[..., 16:], x[..., 16:])


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "dynamic": ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic NTK"),
    "longrope": ({"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}, "LongRoPE"),
    "odd": ({"rope_scaling": {"type": "spiral"}}, "not known here, 'spiral'"),
    "no factor": ({"rope_scaling": {"type": "linear"}}, "factor = None"),
    "bad theta": ({"rope_theta": "big"}, "rope_theta = 'big'"),
    "no heads": ({"head_dim": None, "num_attention_heads": 0}, "num_attention_heads = 0"),
    "window": ({"model_type": "mistral", "sliding_window": 4096}, "the last 4096 tokens"),
    "layers": (
        {"model_type": "qwen3", "layer_types": ["full_attention", "sliding_attention"]},
        "'sliding_attention'",
    ),
    "linear layers": ({"layer_types": ["linear_attention"]}, "'linear_attention'"),
    "MLA": ({"model_type": "deepseek_v3", "kv_lora_rank": 512}, "multi-head latent attention"),
    "ALiBi": ({"model_type": "bloom"}, "ALiBi"),
    "ALiBi, by flag": ({"model_type": "falcon", "alibi": True}, "ALiBi"),
    "absolute": ({"model_type": "gpt2"}, "added to the tokens"),
    "images": ({"model_type": "qwen2_vl", "vision_config": {}}, "multimodal"),
    "M-RoPE": ({"rope_scaling": {"type": "default", "mrope_section": [16, 24, 24]}}, "M-RoPE"),
    "encoder": ({"model_type": "bert"}, "encoder"),
    "both": ({"model_type": "t5", "is_encoder_decoder": True}, "encoder"),
    "per layer": (
        {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}},
        "rotate in different ways",
    ),
    "NoPE": ({"model_type": "smollm3", "no_rope_layers": [1, 1, 1, 0]}, "NoPE"),
    "unknown": ({"model_type": "brandnew"}, "how it rotates is not known"),
    "nothing": ({"model_type": None}, "how it rotates is not known"),
    "theta left out": ({"model_type": "helium"}, "rope_theta = None"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_cannot_share_is_refused_with_the_reason(name: str) -> None:
    """The message names the model, what it is due to, and what can be done."""
    config, reason = REFUSED[name]
    with pytest.raises(CannotShare, match="log-sync") as refused:
        rope_of(BASE | config)
    assert reason in str(refused.value)
    assert repr((BASE | config)["model_type"]) in str(refused.value)


def test_a_window_that_is_switched_off_is_none() -> None:
    """Qwen2's config names a window it does not use."""
    config = BASE | {"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 32768}
    assert rope_of(config).dim == 64
