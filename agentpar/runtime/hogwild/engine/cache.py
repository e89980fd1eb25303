"""Keys and values of a model in blocks of equal size, and which of the blocks are free.

Knows nothing of rows: a table, a row's list of blocks, is kept by whoever owns the row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from agentpar.runtime.hogwild.engine.blocks import Pool


class Cache:
    """``blocks`` blocks of ``block_size`` tokens for each of ``layers`` layers.

    ``keys[layer]`` and ``values[layer]`` are [blocks, block size, kv heads, head_dim]; ``pool``
    says which blocks are held.
    """

    def __init__(
        self,
        blocks: int,
        block_size: int,
        *,
        layers: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (blocks, block_size, kv_heads, head_dim)
        self.pool = Pool(blocks)
        self.block_size = block_size
        self.device = device
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]

    def blocks_for(self, tokens: int) -> int:
        """How many blocks hold ``tokens`` tokens."""
        return -(-tokens // self.block_size)

    def slots(self, table: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Where a row's tokens ``start <= i < stop`` lie, [stop - start] int64, counted over all
        blocks; ``table`` [blocks] int64 is the row's."""
        index = torch.arange(start, stop, device=self.device)
        return table[index // self.block_size] * self.block_size + index % self.block_size

    def table(self, blocks: Sequence[int]) -> torch.Tensor:
        """A row's list of blocks as a tensor, [blocks] int64."""
        return torch.tensor(blocks, dtype=torch.int64, device=self.device)
