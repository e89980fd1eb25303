"""A group's transcript computed again in one dense forward pass.

All tokens of all rows go through the model at once. Token i sees token j if it saw it when it was
computed, at the distance it saw it then: a mask with time stamps, and a relative position for each
pair instead of a position for each token. No cache, no spans at different rotations, no steps: a
second opinion on what the engine computed, a group's recovery, or its training pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from agentpar.runtime.hogwild.engine.attention import wide
from agentpar.runtime.hogwild.engine.model import Decoder
from agentpar.runtime.hogwild.transcript import Transcript

_AT_ONCE = 64  # queries whose angles to all keys are held at a time


@dataclass(frozen=True, slots=True)
class Replayed:
    """The scores of the token that follows each one.

    ``prefix`` [P, vocabulary]: behind each token of the prefix. ``rows``: behind each of a row's
    own tokens, [tokens, vocabulary].
    """

    prefix: torch.Tensor
    rows: dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Sight:
    """Who saw whom, over the prefix and then all rows' own tokens, one row after the other.

    ``tokens`` [n]; ``first``: where each row's tokens begin; ``seen`` [n, n] bool: query i saw key
    j; ``distance`` [n, n] int64: by how many positions j stood before i then.
    """

    tokens: torch.Tensor
    first: dict[str, int]
    seen: torch.Tensor
    distance: torch.Tensor


def sight(transcript: Transcript) -> Sight:
    """What each token of ``transcript`` saw when it was computed."""
    prefix = len(transcript.prefix)
    tokens, first = list(transcript.prefix), dict[str, int]()
    for row, ids in transcript.tokens.items():
        first[row] = len(tokens)
        tokens += ids
    index = torch.arange(prefix)
    seen = torch.zeros(len(tokens), len(tokens), dtype=torch.bool)
    distance = torch.zeros(len(tokens), len(tokens), dtype=torch.int64)
    seen[:prefix, :prefix] = index[:, None] >= index
    distance[:prefix, :prefix] = index[:, None] - index

    def columns(row: str, start: int, stop: int) -> slice:
        shift = 0 if start < prefix else first[row] - prefix
        return slice(start + shift, stop + shift)

    for step, board in transcript.boards():
        for row, count in step.wrote.items():
            view = board.view(row)
            own, stop = view[-1], board.length(row)
            queries = columns(row, stop - count, stop)
            places = torch.arange(stop - count, stop) + own.shift
            for span in view:
                keys = columns(span.row, span.start, span.stop)
                between = places[:, None] - (torch.arange(span.start, span.stop) + span.shift)
                distance[queries, keys] = between
                seen[queries, keys] = between >= 0 if span is own else True
    return Sight(torch.tensor(tokens, dtype=torch.int64), first, seen, distance)


def replay(decoder: Decoder, transcript: Transcript) -> Replayed:
    """Compute ``transcript`` with the model of ``decoder``, in one pass.

    What came out of steps of any size comes out of this, too, but for rounding. Takes memory for
    all pairs of tokens in a layer. Gradients are kept as torch is told to.
    """
    saw = sight(transcript)
    device, dtype = decoder.device, wide(decoder.dtype)
    seen, distance = saw.seen.to(device), saw.distance.to(device)

    def mix(_: int, attention: Any, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.to(dtype) for part in decoder.project(attention, x))
        sharing = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(sharing, 1), v.repeat_interleave(sharing, 1)
        parts = [
            _attend(decoder, q[some], k, v, distance[some], seen[some], attention.scaling)
            for some in torch.arange(len(q), device=device).split(_AT_ONCE)
        ]
        return torch.cat(parts).to(decoder.dtype)

    scores = decoder.logits(decoder.through(saw.tokens.to(device), mix))
    rows = {
        row: scores[start : start + len(transcript.tokens[row])] for row, start in saw.first.items()
    }
    return Replayed(scores[: len(transcript.prefix)], rows)


def _attend(
    decoder: Decoder,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    distance: torch.Tensor,
    seen: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """Attention of unrotated ``q`` [m, heads, head_dim] to unrotated ``k`` [n, ...] at the
    ``distance`` [m, n] of each pair."""
    rope = decoder.rotary.rope
    frequencies = torch.tensor(rope.frequencies, dtype=torch.float64, device=q.device)
    angles = distance.to(torch.float64)[..., None] * frequencies
    cos, sin = angles.cos().to(q.dtype), angles.sin().to(q.dtype)  # [m, n, pairs]
    (a, b), (c, d) = _pairs(decoder, q), _pairs(decoder, k)
    # Turned by t, (a, b) meets (c, d) as (ac + bd) cos t + (ad - bc) sin t.
    scores = torch.einsum("mhp,nhp,mnp->hmn", a, c, cos)
    scores += torch.einsum("mhp,nhp,mnp->hmn", b, d, cos)
    scores += torch.einsum("mhp,nhp,mnp->hmn", a, d, sin)
    scores -= torch.einsum("mhp,nhp,mnp->hmn", b, c, sin)
    scores *= rope.scale**2
    if rope.dim < q.shape[-1]:
        scores += torch.einsum("mhp,nhp->hmn", q[..., rope.dim :], k[..., rope.dim :])
    weights = (scores * scaling).masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.einsum("hmn,nhp->mhp", weights, v)


def _pairs(decoder: Decoder, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both numbers of each pair that turns together, [n, heads, pairs] each."""
    rope = decoder.rotary.rope
    if rope.style == "halves":
        half = rope.dim // 2
        return x[..., :half], x[..., half : rope.dim]
    return x[..., 0 : rope.dim : 2], x[..., 1 : rope.dim : 2]
