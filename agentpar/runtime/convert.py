"""Turns one GGUF file into a folder of safetensors that vLLM can serve.

Runs as ``python -m agentpar.runtime.convert FILE FOLDER`` in a process of its own, so that
its memory (about three times the weights) goes back at once and torch never loads in the
process that asked. It reads that one file and must never reach for a network.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def convert(gguf: Path, folder: Path) -> None:
    """Write ``gguf`` into ``folder`` as bfloat16 safetensors, with tokenizer and chat template.

    vLLM's own GGUF reader wants a GPU, so the quantised tensors are widened once, here.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent),
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    if not tokenizer.chat_template:
        raise SystemExit(f"{gguf} holds no chat template, so no chat model can be made of it")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
