"""The plugin's CUDA side in a whole vLLM on a CPU: everything of it that needs no GPU, as it is.

vLLM's FlashAttention backend, its metadata builder and its first model runner are the real ones,
as are ours over them. Stand-ins are what only CUDA has: FlashAttention's two functions, written
here in torch, and the device of the worker. Triton has to run in its interpreter.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from served import Served, served
from vllm.v1.attention.backends import flash_attn
from vllm.v1.worker.cpu_worker import CPUWorker

from agentpar.runtime.hogwild.plugin.cuda import decode
from agentpar.runtime.hogwild.plugin.cuda.worker import HogwildCUDAWorker

BACKEND = "agentpar.runtime.hogwild.plugin.cuda.backend.HogwildCUDABackend"


class RehearsalWorker(HogwildCUDAWorker, CPUWorker):  # type: ignore[misc]
    """Ours for CUDA, where vLLM's own is that for a CPU."""


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    out: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    seqused_k: torch.Tensor,
    block_table: torch.Tensor,
    softmax_scale: float,
    causal: bool,
    **_: Any,
) -> torch.Tensor:
    """What FlashAttention computes: q [tokens, heads, numbers], k and v [blocks, block size, kv
    heads, numbers], the last queries of each sequence over all of it."""
    assert causal
    bounds = cu_seqlens_q.tolist()
    for row, (start, stop, length) in enumerate(
        zip(bounds, bounds[1:], seqused_k.tolist(), strict=False)
    ):
        blocks = block_table[row, : -(-length // k.shape[1])].long()
        keys, values = (x[blocks].flatten(0, 1)[:length].transpose(0, 1) for x in (k, v))
        behind = torch.arange(length) > torch.arange(length - (stop - start), length)[:, None]
        mask = torch.zeros(behind.shape).masked_fill(behind, -torch.inf)
        out[start:stop] = torch.nn.functional.scaled_dot_product_attention(
            q[start:stop].transpose(0, 1)[None],
            keys[None],
            values[None],
            attn_mask=mask.to(q.dtype),
            scale=softmax_scale,
            enable_gqa=True,
        )[0].transpose(0, 1)
    return out


def store(
    key: torch.Tensor,
    value: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    slots: torch.Tensor,
    *_: Any,
) -> None:
    """What ``reshape_and_cache_flash`` does: each token into its slot, none into a negative one."""
    real = slots >= 0
    where = slots[real] // keys.shape[1], slots[real] % keys.shape[1]
    keys[where] = key[: len(slots)][real]
    values[where] = value[: len(slots)][real]


@contextmanager
def rehearsed(model: Any, folder: Path, **arguments: Any) -> Iterator[tuple[Served, list[int]]]:
    """An engine that runs our CUDA side, and how many rows each group had that was the kernel's."""
    kernel: list[int] = []
    part_of = decode.part_of

    def counted(group: Any, queries: Any) -> Any:
        kernel.append(len(queries))
        return part_of(group, queries)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flash_attn, "flash_attn_varlen_func", attention, raising=False)
        patch.setattr(flash_attn, "reshape_and_cache_flash", store, raising=False)
        patch.setattr(flash_attn, "get_flash_attn_version", lambda **_: 2)
        patch.setattr(decode, "part_of", counted)
        worker = f"{__name__}.{RehearsalWorker.__name__}"
        with served(model, folder, backend=BACKEND, worker_cls=worker, **arguments) as engine:
            yield engine, kernel
