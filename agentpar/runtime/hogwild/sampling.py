"""How a worker picks its next token, as numbers: must never know a tensor or an engine."""

from __future__ import annotations

from dataclasses import dataclass, field

from agentpar.errors import UsageError


@dataclass(frozen=True, slots=True)
class Sampling:
    """``temperature`` 0 takes the likeliest token; else one is drawn, of the likeliest that
    together have the probability ``top_p``, with chance seeded by ``seed`` (None: a new one).

    A worker ends with a token of ``stop``, with the model's end of text (unless ``ignore_eos``),
    or after ``max_tokens``.
    """

    max_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: frozenset[int] = field(default_factory=frozenset)
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UsageError(f"max_tokens is {self.max_tokens!r}; a worker writes at least 1")
        if not self.temperature >= 0:
            raise UsageError(f"temperature is {self.temperature!r}; give 0 or more")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p is {self.top_p!r}; give more than 0 and at most 1")
