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
        # By purpose or slot, the tokens of a prompt and of what is written to it: of calls that go
        # on, and of those that broke off and may yet tell what they took.
        self._reserved: dict[str, tuple[int, int]] = {}
        self._forfeited: dict[str, tuple[int, int]] = {}
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
        self._set_aside(purpose, completion, slot)

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
        self._set_aside(purpose, completion, slot)
        return ""

    def forbids(self, purpose: str, completion: int, *, beside: int = 0) -> str:
        """The limit that `reserve` would name now."""
        limits = self._limits
        prompt = self._prompt.get(purpose, 0)
        held = sum(sum(tokens) for tokens in self._reserved.values())
        if limits.max_tokens is not None and (
            self.tokens + held + prompt + completion + beside > limits.max_tokens
        ):
            return f"max_tokens={limits.max_tokens}"
        if limits.max_cost_usd is not None and (
            self._cost_with(limits.price.of(prompt, completion + beside)) > limits.max_cost_usd
        ):
            return f"max_cost_usd={limits.max_cost_usd:g}"
        return ""

    def settle(self, purpose: str, usage: Usage, *, slot: str = "") -> None:
        """A model call has ended and took ``usage``; what was reserved for it is free again, and
        so is what it had forfeited. Of an estimate the whole text that was set aside counts: more
        may have been written than has come."""
        held = self._reserved.pop(slot or purpose, None)
        if held is None and (held := self._forfeited.pop(slot or purpose, None)) is not None:
            self._spend(-held[0], -held[1])
        written = usage.completion_tokens
        if usage.estimated and held is not None:
            written = max(written, held[1])
        self._prompt[purpose] = usage.prompt_tokens
        self._spend(usage.prompt_tokens, written)

    def add_cost(self, usage: Usage) -> None:
        """A model call for which nothing was reserved took ``usage``: its price counts."""
        self.cost += self._limits.price.of(usage.prompt_tokens, usage.completion_tokens)

    def release(self, slot: str) -> None:
        """What was set aside under ``slot``, a purpose or a slot, is not needed after all."""
        self._reserved.pop(slot, None)

    def forfeit(self, slot: str) -> None:
        """A model call broke off: all that was set aside counts as spent, until `settle` is told
        what it took."""
        if (held := self._reserved.pop(slot, None)) is not None:
            self._forfeited[slot] = held
            self._spend(*held)

    def _set_aside(self, purpose: str, completion: int, slot: str) -> None:
        self._forfeited.pop(slot or purpose, None)  # whoever forfeited it tells nothing any more
        self._reserved[slot or purpose] = self._prompt.get(purpose, 0), completion

    def _spend(self, prompt: int, completion: int) -> None:
        self.tokens += prompt + completion
        self.cost += self._limits.price.of(prompt, completion)

    def _cost_with(self, more: float) -> float:
        return (
            self.cost + sum(self._limits.price.of(*held) for held in self._reserved.values()) + more
        )
