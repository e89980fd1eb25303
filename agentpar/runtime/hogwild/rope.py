"""How a model's rotary embedding turns with position, read from its config; or why it cannot share.

To read a row's keys at another place, a query is rotated once more (`spans.rotation`). That is
exact where a key's stored rotation depends on its index alone and rotations add up: for RoPE with
frequencies that stay what they are, in layers that attend to everything. All else is refused here,
with the reason. Pure: must never know a tensor or a weight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from agentpar.errors import CannotShare

Style = Literal["halves", "pairs"]
"""Which two numbers of a head turn together: ``halves`` i and i + dim/2 (NeoX), ``pairs`` 2i and
2i + 1 (GPT-J)."""

Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Rope:
    """A rotary embedding with static frequencies.

    ``frequencies``: radians per position, one for each pair that turns. ``scale``: what the model
    multiplies rotated queries and keys with (YaRN's attention scale, else 1). Stored keys and
    rotated queries carry it already, so a further rotation must not.
    """

    frequencies: tuple[float, ...]
    style: Style = "halves"
    scale: float = 1.0

    @property
    def dim(self) -> int:
        """How many of a head's numbers turn; the rest passes through."""
        return 2 * len(self.frequencies)


_STYLES: dict[str, Style] = {
    "llama": "halves",
    "mistral": "halves",
    "mixtral": "halves",
    "qwen2": "halves",
    "qwen2_moe": "halves",
    "qwen3": "halves",
    "qwen3_moe": "halves",
    "phi": "halves",
    "phi3": "halves",
    "stablelm": "halves",
    "starcoder2": "halves",
    "gemma": "halves",
    "granite": "halves",
    "olmo": "halves",
    "olmo2": "halves",
    "seed_oss": "halves",
    "smollm3": "halves",
    "glm": "pairs",
    "glm4": "pairs",
    "cohere": "pairs",
    "ernie4_5": "pairs",
    "helium": "pairs",
}


def rope_of(config: Config) -> Rope:
    """The rotary embedding of the model that ``config`` describes.

    ``config`` is what a model's ``config.json`` holds, in the spelling of transformers 4
    (``rope_theta``, ``rope_scaling``) or 5 (``rope_parameters``). Raises `CannotShare` with the
    reason for a model whose stored keys cannot be read elsewhere, or of which that is not known.
    """
    kind = config.get("model_type")
    _require_whole_views(kind, config)
    if kind not in _STYLES:
        raise _refusal(kind, f"how it rotates is not known here (known: {', '.join(_STYLES)})")
    parameters = _parameters(kind, config)
    head = config.get("head_dim") or _number(kind, config, "hidden_size") // int(
        _number(kind, config, "num_attention_heads")
    )
    part = parameters.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    dim = int(head * (_PARTIAL.get(kind, 1.0) if part is None else part))
    theta = float(_number(kind, parameters, "rope_theta"))
    plain = tuple(theta ** (-2 * i / dim) for i in range(dim // 2))
    style = _STYLES[kind]
    match parameters["rope_type"]:
        case "default":
            return Rope(plain, style)
        case "linear":
            factor = _number(kind, parameters, "factor")
            return Rope(tuple(w / factor for w in plain), style)
        case "llama3":
            return Rope(_llama3(kind, plain, parameters), style)
        case "yarn":
            frequencies, scale = _yarn(kind, plain, theta, parameters, config)
            return Rope(frequencies, style, scale)
        case "dynamic":
            reason = "its rotary frequencies change with the length (dynamic NTK)"
        case "longrope" | "su":
            reason = "its rotary frequencies change with the length (LongRoPE)"
        case other:
            reason = f"its rotary embedding is of a type not known here, {other!r}"
    raise _refusal(kind, reason)


_OTHER_THETA = frozenset({"cohere", "ernie4_5", "helium", "mixtral"})
"""Where a config that leaves theta out does not mean 10,000, or not in each version."""

_PARTIAL = {"phi": 0.5, "glm": 0.5, "glm4": 0.5, "stablelm": 0.25}
"""Share of a head that turns, where a config leaves it out."""


def _refusal(kind: object, reason: str) -> CannotShare:
    return CannotShare(
        f"workers of this model (model_type {kind!r}) cannot share one cache: {reason}; "
        "they can work over a shared log instead (log-sync)"
    )


def _number(kind: object, config: Config, key: str) -> Any:
    value = config.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
        raise _refusal(kind, f"its config has {key} = {value!r}, where a number above 0 is needed")
    return value


def _require_whole_views(kind: object, config: Config) -> None:
    """Refuse what no rotation can mend: keys that are no keys of a place, or not all in sight."""
    if config.get("is_encoder_decoder"):
        raise _refusal(kind, "it has an encoder, whose output is no part of a row")
    if kind in _ENCODERS:
        raise _refusal(kind, "it is an encoder: each token sees those behind it")
    if any(key in config for key in ("vision_config", "audio_config", "text_config")):
        raise _refusal(kind, "it is multimodal: an image has no place on a line")
    if config.get("kv_lora_rank"):
        raise _refusal(kind, "it stores compressed keys (multi-head latent attention)")
    if config.get("alibi") or kind in _ALIBI or config.get("position_embedding_type") == "alibi":
        raise _refusal(kind, "its positions are a bias on scores (ALiBi), not a rotation")
    if kind in _ABSOLUTE:
        raise _refusal(kind, "its positions are added to the tokens, not rotated")
    layers: Sequence[str] = config.get("layer_types") or ()
    for layer in layers:
        if layer != "full_attention":
            raise _refusal(
                kind, f"it has layers of the type {layer!r}, which do not see the whole view"
            )
    window = config.get("sliding_window")
    # Qwen names a window that is switched off; with `layer_types` given, those say it all.
    if window and not layers and config.get("use_sliding_window", True):
        raise _refusal(kind, f"its layers see the last {window!r} tokens only (sliding window)")
    if config.get("no_rope_layers") and 0 in config["no_rope_layers"]:
        raise _refusal(kind, "some of its layers have no positions (NoPE)")


_ENCODERS = frozenset(
    "bert roberta xlm-roberta distilbert deberta deberta-v2 electra albert modernbert".split()
)
_ALIBI = frozenset({"bloom", "mpt"})
_ABSOLUTE = frozenset({"gpt2", "gpt_neo", "gpt_bigcode", "opt", "xglm", "biogpt"})


def _parameters(kind: object, config: Config) -> dict[str, Any]:
    """Theta, type and numbers of the rotary embedding, whichever way the config spells them."""
    new, old = config.get("rope_parameters"), config.get("rope_scaling")
    found = dict(new or old or {})
    if any(isinstance(value, Mapping) for value in found.values()):
        raise _refusal(kind, "its layers rotate in different ways")
    if "mrope_section" in found:
        raise _refusal(kind, "it is multimodal: its positions have several axes (M-RoPE)")
    found["rope_type"] = found.get("rope_type") or found.get("type") or "default"
    if found["rope_type"] == "mrope":
        raise _refusal(kind, "it is multimodal: its positions have several axes (M-RoPE)")
    if found.get("rope_theta") is None:
        found["rope_theta"] = config.get("rope_theta") or (
            None if kind in _OTHER_THETA else 10000.0
        )
    if found.get("original_max_position_embeddings") is None:
        found["original_max_position_embeddings"] = config.get(
            "original_max_position_embeddings"
        ) or config.get("max_position_embeddings")
    return found


def _llama3(
    kind: object, plain: tuple[float, ...], parameters: Mapping[str, Any]
) -> tuple[float, ...]:
    """Long waves slowed by ``factor``, short ones left, those between in between (Llama 3.1)."""
    factor, low, high, length = (
        _number(kind, parameters, key)
        for key in (
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
        )
    )

    def slowed(frequency: float) -> float:
        turns: float = length * frequency / (2 * math.pi)  # within the length it was trained on
        keep: float = min(1.0, max(0.0, (turns - low) / (high - low)))
        return frequency * ((1 - keep) / float(factor) + keep)

    return tuple(map(slowed, plain))


def _yarn(
    kind: object,
    plain: tuple[float, ...],
    theta: float,
    parameters: Mapping[str, Any],
    config: Config,
) -> tuple[tuple[float, ...], float]:
    """Frequencies and attention scale after YaRN (arXiv 2309.00071, sections 3.2 to 3.4)."""
    length = _number(kind, parameters, "original_max_position_embeddings")
    factor = parameters.get("factor")
    if factor is None:
        factor = _number(kind, config, "max_position_embeddings") / length
    pairs = len(plain)

    def pair_that_turns(times: float) -> float:
        return pairs * math.log(length / (times * 2 * math.pi)) / math.log(theta)

    first = pair_that_turns(parameters.get("beta_fast") or 32)
    last = pair_that_turns(parameters.get("beta_slow") or 1)
    if parameters.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * pairs - 1)
    if first == last:
        last += 0.001

    def slowed(i: int, frequency: float) -> float:
        slow: float = min(1.0, max(0.0, (i - first) / (last - first)))
        return frequency * (slow / float(factor) + 1 - slow)

    def scale(weight: float = 1.0) -> float:
        return float(0.1 * weight * math.log(factor) + 1.0) if factor > 1 else 1.0

    given = parameters.get("attention_factor")
    some, all_ = parameters.get("mscale"), parameters.get("mscale_all_dim")
    if given is None:
        given = scale(some) / scale(all_) if some and all_ else scale()
    return tuple(slowed(i, w) for i, w in enumerate(plain)), float(given)
