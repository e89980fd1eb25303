"""Attention of many queries to pieces of a paged cache, each piece read once for all of them.

A step's queries look at pieces: stretches of rows. For each piece the queries that see it are
rotated to it, attend to it alone, and the partial results are merged by their log-sum-exp. This is
the plain version; whatever takes its place is an `Attend`. Knows nothing of models or groups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from agentpar.runtime.hogwild.engine.rotary import Rotary, Turn


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens ``start <= i < stop`` of a row, and the queries of a step that see them.

    ``table``: the row's blocks, [blocks] int64. ``slots``: where the tokens lie in the cache,
    block times block size plus offset, [stop - start] int64. ``queries``: which of the step's
    queries look, [n] int64. ``turn``: how much further each is rotated to look, None for not at
    all. ``limits``: query j sees the tokens with ``i < limits[j]``, [n] int64; None: all of them.
    """

    table: torch.Tensor
    start: int
    stop: int
    slots: torch.Tensor
    queries: torch.Tensor
    turn: Turn | None = None
    limits: torch.Tensor | None = None


Attend = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, Sequence[Piece], Rotary, float], torch.Tensor
]
"""``attend(queries, keys, values, pieces, rotary, scaling)``: what `attend` below does."""


def wide(dtype: torch.dtype) -> torch.dtype:
    """What sums are kept in: float32, or float64 where that is computed with."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def attend(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    pieces: Sequence[Piece],
    rotary: Rotary,
    scaling: float,
) -> torch.Tensor:
    """Each query's attention to all it sees, [n, heads, head_dim] in the dtype of ``keys``.

    ``queries`` [n, heads, head_dim], rotated by their index in their row, in any dtype. ``keys``
    and ``values`` [blocks, block size, kv heads, head_dim], keys rotated by theirs. Each query
    has to see at least one token.
    """
    dtype = wide(keys.dtype)
    queries = queries.to(dtype)
    out = torch.zeros_like(queries)
    seen = torch.full(queries.shape[:2], -torch.inf, dtype=dtype, device=queries.device)
    for piece in pieces:
        part, weight = _look(queries, keys, values, piece, rotary, scaling)
        before = seen[piece.queries]
        both = torch.logaddexp(before, weight)
        out[piece.queries] = (
            out[piece.queries] * (before - both).exp()[..., None]
            + part * (weight - both).exp()[..., None]
        )
        seen[piece.queries] = both
    return out.to(keys.dtype)


def _look(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    piece: Piece,
    rotary: Rotary,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention to one piece alone, [n, heads, head_dim], and its log-sum-exp, [n, heads].

    A query that sees nothing of the piece gets zeros and -inf.
    """
    q = queries[piece.queries]
    if piece.turn is not None:
        q = rotary.rotate(q, piece.turn)
    n, heads, size = q.shape
    k = keys.flatten(0, 1)[piece.slots].to(q.dtype)  # [tokens, kv heads, head_dim]
    v = values.flatten(0, 1)[piece.slots].to(q.dtype)
    tokens, kv_heads, _ = k.shape
    # Heads that share keys are further queries of them: [kv heads, n * sharing, head_dim].
    q = q.view(n, kv_heads, -1, size).transpose(0, 1).reshape(kv_heads, -1, size)
    scores = (q @ k.permute(1, 2, 0)) * scaling
    if piece.limits is not None:
        index = torch.arange(piece.start, piece.stop, device=q.device)
        hidden = index >= piece.limits[:, None]
        scores = scores.view(kv_heads, n, -1, tokens).masked_fill(
            hidden[None, :, None, :], -torch.inf
        )
        scores = scores.reshape(kv_heads, -1, tokens)
    weight = scores.logsumexp(-1)
    # exp(-inf - -inf) is not a number; where nothing is seen, nothing is taken.
    part = (scores - weight.clamp_min(-1e30)[..., None]).exp() @ v.transpose(0, 1)
    part = part.view(kv_heads, n, -1, size).transpose(0, 1).reshape(n, heads, size)
    return part, weight.view(kv_heads, n, -1).transpose(0, 1).reshape(n, heads)
