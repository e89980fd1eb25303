"""Picking a token from scores, the same on every device for the same scores and seed."""

from __future__ import annotations

import random

import torch

from agentpar.runtime.hogwild.sampling import Sampling


class Picker:
    """Picks one worker's tokens, drawing one random number for each."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random = random.Random(sampling.seed)

    def pick(self, logits: torch.Tensor) -> int:
        """The next token, given the scores [vocabulary] of all."""
        if self._sampling.temperature == 0:
            return int(logits.argmax())
        weights = torch.softmax(logits.double().cpu() / self._sampling.temperature, -1)
        weights, tokens = weights.sort(descending=True, stable=True)
        sums = weights.cumsum(-1)
        # The smallest set that reaches top_p: those before which it was not reached.
        kept = int((sums - weights < self._sampling.top_p).sum())
        drawn = self._random.random() * float(sums[kept - 1])
        place = int(torch.searchsorted(sums[:kept], drawn, right=True))
        return int(tokens[min(place, kept - 1)])
