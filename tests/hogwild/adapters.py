"""LoRA adapters in PEFT's format, random, and large enough to change what a model writes."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

RANK = 8
SCALE = 2  # lora_alpha / rank
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "down_proj")


def adapted(model: Any, folder: Path, *, seed: int, size: float = 0.2) -> Any:
    """Write an adapter of ``model`` to ``folder``; a copy of the model with it in its weights."""
    draw = torch.Generator().manual_seed(seed)
    merged, weights = copy.deepcopy(model), {}
    for name, layer in model.named_modules():
        if name.rpartition(".")[2] not in LAYERS:
            continue
        down = size * torch.randn(RANK, layer.in_features, generator=draw)
        up = size * torch.randn(layer.out_features, RANK, generator=draw)
        weights[f"base_model.model.{name}.lora_A.weight"] = down
        weights[f"base_model.model.{name}.lora_B.weight"] = up
        with torch.no_grad():
            merged.get_submodule(name).weight.add_(SCALE * up @ down)
    folder.mkdir(parents=True)
    save_file(weights, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": SCALE * RANK,
        "target_modules": LAYERS,
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return merged
