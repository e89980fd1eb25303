"""The plugin's CUDA side in a whole vLLM on a CPU: everything of it that needs no GPU, as it is.

vLLM's FlashAttention backend, its metadata builder and its first model runner are the real ones,
as are ours over them. Stand-ins are what only CUDA has: FlashAttention's two functions, written
here in torch, and the device of the worker. Triton has to run in its interpreter.

CUDA graphs are rehearsed as far as they are a matter of tensors: see `CapturingWorker`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from served import Served, served
from vllm.config import CUDAGraphMode
from vllm.v1.attention.backends import flash_attn
from vllm.v1.worker.cpu_worker import CPUWorker

from agentpar.runtime.hogwild.plugin.cuda import decode
from agentpar.runtime.hogwild.plugin.cuda.worker import HogwildCUDAWorker

BACKEND = "agentpar.runtime.hogwild.plugin.cuda.backend.HogwildCUDABackend"


class RehearsalWorker(HogwildCUDAWorker, CPUWorker):  # type: ignore[misc]
    """Ours for CUDA, where vLLM's own is that for a CPU."""


class CapturingWorker(RehearsalWorker):
    """vLLM decides as with CUDA graphs, and attention computes what a replayed graph would.

    vLLM's own code resolves the mode, chooses the graph for each step, pads the batch and makes the
    metadata that is captured, once for each size. In a step for which it chooses a graph, the
    metadata of that step is made, thrown away, and attention runs on that of the capture: like the
    kernels of a graph, which only know the tensors that they were captured with. What is not
    rehearsed: that CUDA captures our kernels, and all of the model but attention.
    """

    sizes = (1, 2, 4, 8)

    def initialize_from_config(self, kv_cache_config: Any) -> None:
        compilation = self.vllm_config.compilation_config
        compilation.cudagraph_mode = CUDAGraphMode.FULL_DECODE_ONLY
        compilation.cudagraph_capture_sizes = list(self.sizes)
        compilation.max_cudagraph_capture_size = max(self.sizes)
        super().initialize_from_config(kv_cache_config)
        self.modes: list[str] = []
        """Of each step: FULL for a graph, NONE for none."""
        self.addresses: set[tuple[int, ...]] = set()
        """Where the captured tensors lay, in all steps."""
        runner = self.model_runner
        (group,) = runner._attn_group_iterator()
        (builder,) = group.metadata_builders
        self._rehearse(builder)
        choose = runner._determine_batch_execution_and_padding

        def noted(**batch: Any) -> Any:
            chosen = choose(**batch)
            self.modes.append(chosen[0].name)
            return chosen

        for size in self.sizes:
            runner._dummy_run(size, cudagraph_runtime_mode=CUDAGraphMode.FULL, uniform_decode=True)
        runner._determine_batch_execution_and_padding = noted

    def _rehearse(self, builder: Any) -> None:
        captured: dict[int, Any] = {}
        build, capture = builder.build, builder.build_for_cudagraph_capture

        def captured_for(batch: Any) -> Any:
            captured[batch.num_reqs] = capture(batch)
            return captured[batch.num_reqs]

        def replayed(common_prefix_len: int, common_attn_metadata: Any, **rest: Any) -> Any:
            metadata = build(common_prefix_len, common_attn_metadata, **rest)
            if not self.modes or self.modes[-1] != "FULL":
                return metadata
            fresh, metadata = metadata, captured[common_attn_metadata.num_reqs]
            assert torch.equal(metadata.seq_lens, fresh.seq_lens), "lengths are not where they were"
            work = builder.standing.work
            tensors = (metadata.seq_lens, *(t for t in vars(work).values() if torch.is_tensor(t)))
            self.addresses.add(tuple(t.data_ptr() for t in tensors))
            return metadata

        builder.build_for_cudagraph_capture = captured_for
        builder.build = replayed


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
def rehearsed(
    model: Any, folder: Path, worker: type[RehearsalWorker] = RehearsalWorker, **arguments: Any
) -> Iterator[tuple[Served, list[int]]]:
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
        name = f"{__name__}.{worker.__name__}"
        with served(model, folder, backend=BACKEND, worker_cls=name, **arguments) as engine:
            yield engine, kernel
