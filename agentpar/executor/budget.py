"""What a run has spent and has promised to spend, held against its limits.

Pure. Whatever costs something is reserved here before it begins, in one step, so that no two
calls can both take the last of a budget; what it really took is settled when it has ended.
"""

from __future__ import annotations

from agentpar.events import Usage
from agentpar.policy import Limits


class Budget:
    """Steps, tokens and money of one run. Changed by its methods only."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._bounded = limits.max_steps is not None or limits.max_cost_usd is not None
        self.steps = 0
        self.tokens = 0
        self.cost = 0.0
        self._reserved: dict[str, tuple[int, float]] = {}  # by purpose or slot: tokens, USD
        self._prompt: dict[str, int] = {}  # tokens that the last prompt of a purpose had

    def take_step(self, cost: float) -> str:
        """Spend one attempt of a tool call; the limit that forbids it, or ``""``."""
        if self._bounded:
            limits = self._limits
            if limits.max_steps is not None and self.steps >= limits.max_steps:
                return f"max_steps={limits.max_steps}"
            if limits.max_cost_usd is not None and self._cost_with(cost) > limits.max_cost_usd:
                return f"max_cost_usd={limits.max_cost_usd:g}"
        self.steps += 1
        self.cost += cost
        return ""

    def reserve_again(self, purpose: str, completion: int, *, slot: str = "") -> None:
        """A model call was begun anew after a crash, whatever the limits: what was set aside for
        the one that broke off counts as spent."""
        self.forfeit(slot or purpose)
        self._reserved[slot or purpose] = self._wanted(purpose, completion)

    def take_again(self, cost: float) -> None:
        """An attempt was begun anew after a crash, whatever the limits: it is spent twice."""
        self.steps += 1
        self.cost += cost

    def give_back_step(self, cost: float) -> None:
        """A step that was spent needed no call after all."""
        self.steps -= 1
        self.cost -= cost

    def reserve(self, purpose: str, completion: int, *, beside: int = 0, slot: str = "") -> str:
        """Set aside what a model call may take: ``completion`` tokens and a prompt as long as
        the last of its ``purpose``. ``beside`` tokens have to be left over for what must follow.
        Calls of one purpose that go on at once have a ``slot`` each.

        Returns the limit that forbids it, or ``""``.
        """
        if limit := self.forbids(purpose, completion, beside=beside):
            return limit
        self._reserved[slot or purpose] = self._wanted(purpose, completion)
        return ""

    def forbids(self, purpose: str, completion: int, *, beside: int = 0) -> str:
        """The limit that `reserve` would name now."""
        limits = self._limits
        tokens, cost = self._wanted(purpose, completion)
        held = sum(tokens for tokens, _ in self._reserved.values())
        if limits.max_tokens is not None and (
            self.tokens + held + tokens + beside > limits.max_tokens
        ):
            return f"max_tokens={limits.max_tokens}"
        left_over = limits.price.of(0, beside)
        if limits.max_cost_usd is not None and (
            self._cost_with(cost + left_over) > limits.max_cost_usd
        ):
            return f"max_cost_usd={limits.max_cost_usd:g}"
        return ""

    def settle(self, purpose: str, usage: Usage, *, slot: str = "") -> None:
        """A model call has ended and took ``usage``; what was reserved for it is free again."""
        self.release(slot or purpose)
        self._prompt[purpose] = usage.prompt_tokens
        self.tokens += usage.prompt_tokens + usage.completion_tokens
        self.cost += self._limits.price.of(usage.prompt_tokens, usage.completion_tokens)

    def add_cost(self, usage: Usage) -> None:
        """A model call for which nothing was reserved took ``usage``: its price counts."""
        self.cost += self._limits.price.of(usage.prompt_tokens, usage.completion_tokens)

    def release(self, slot: str) -> None:
        """What was set aside under ``slot``, a purpose or a slot, is not needed after all."""
        self._reserved.pop(slot, None)

    def forfeit(self, slot: str) -> None:
        """A model call broke off and told no usage: all that was set aside counts as spent."""
        tokens, cost = self._reserved.pop(slot, (0, 0.0))
        self.tokens += tokens
        self.cost += cost

    def _wanted(self, purpose: str, completion: int) -> tuple[int, float]:
        prompt = self._prompt.get(purpose, 0)
        return prompt + completion, self._limits.price.of(prompt, completion)

    def _cost_with(self, more: float) -> float:
        return self.cost + sum(cost for _, cost in self._reserved.values()) + more
