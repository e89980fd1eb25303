"""Rotating queries and keys by a number of positions, as tensors: the rotary embedding of a model.

Knows nothing of rows, caches or views.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from agentpar.runtime.hogwild.rope import Rope


@dataclass(frozen=True, slots=True)
class Turn:
    """How far each of n vectors turns: ``cos`` and ``sin`` of each pair's angle, [n, 1, dim/2]."""

    cos: torch.Tensor
    sin: torch.Tensor


class Rotary:
    """A `Rope` on a device. Angles are computed in float64, and rounded once."""

    def __init__(self, rope: Rope, device: torch.device) -> None:
        self.rope = rope
        self._frequencies = torch.tensor(rope.frequencies, dtype=torch.float64, device=device)

    def turn(self, positions: torch.Tensor, dtype: torch.dtype) -> Turn:
        """The turn by ``positions`` [n], which may be negative."""
        angles = positions.to(torch.float64)[:, None, None] * self._frequencies
        return Turn(angles.cos().to(dtype), angles.sin().to(dtype))

    def first_turn(self, positions: torch.Tensor, dtype: torch.dtype) -> Turn:
        """The turn by which a model puts its vectors at ``positions``: with its attention scale."""
        turn = self.turn(positions, dtype)
        return Turn(turn.cos * self.rope.scale, turn.sin * self.rope.scale)

    def rotate(self, x: torch.Tensor, turn: Turn) -> torch.Tensor:
        """``x`` [n, heads, head_dim] turned; numbers beyond the rotary dim pass through.

        The result has the dtype of ``turn``.
        """
        x = x.to(turn.cos.dtype)
        moving, rest = x[..., : self.rope.dim], x[..., self.rope.dim :]
        if self.rope.style == "halves":
            a, b = moving.chunk(2, dim=-1)
        else:
            a, b = moving[..., 0::2], moving[..., 1::2]
        a, b = a * turn.cos - b * turn.sin, b * turn.cos + a * turn.sin
        if self.rope.style == "halves":
            return torch.cat((a, b, rest), dim=-1)
        return torch.cat((torch.stack((a, b), dim=-1).flatten(-2), rest), dim=-1)
