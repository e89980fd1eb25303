"""How a tool is called, and what a run may spend: the terms that the machine decides by.

Values only. Nothing here calls, waits or counts; what a limit means while a run goes on is
the business of `agentpar.executor`.
"""

from __future__ import annotations

import fnmatch
import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, TypedDict, get_args

from agentpar.errors import UsageError

OnError = Literal["skip", "keep", "fail"]


def _check_number(name: str, value: object) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise UsageError(f"{name} must be a number (times in seconds), got {value!r}")


@dataclass(frozen=True, slots=True)
class Policy:
    """How one tool is called. Times are in seconds.

    ``timeout`` bounds one attempt; None leaves it to the agent's. A failed attempt is followed
    by up to ``retries`` more, each after a pause that doubles from ``backoff`` up to
    ``max_backoff``, half of it drawn from the run's seed; a far side that names a time
    (``Retry-After``) is heard. Only the world's failures are tried again: an exception of the
    tool, a timeout, a refusal for too many requests.

    ``idempotent`` says that calling twice does no more than calling once. By default tools that
    read are, tools that write are not. One that is not is never hedged, never retried after it
    may have begun, and identical calls of it all run.

    Calls that share a ``lock`` run one at a time. At most ``concurrency`` calls of the tool run
    at once, and ``rate`` start in a second. ``host`` names the argument that holds a URL: its
    host then counts against the run's limits per host.

    When the last attempt has failed, ``on_error`` says what that means: ``skip`` what needs the
    value, ``keep`` going with ``{"error": "…"}`` as the value (``$1.error``), or ``fail`` the run.

    ``cache`` is how long a result may serve later runs; a tool that writes, sends or is not
    idempotent keeps none. ``hedge``: a call that takes longer than
    nearly all before it (their 95th percentile) is made a second time, and the first result
    counts; at most one call in twenty is. One that streams its list is not, once it has told an
    element. ``cost`` is the price of one attempt in USD. ``tokens`` is the most that the model
    writes in an attempt: so many are set aside before it begins (see `CurrentCall.tell`).
    """

    timeout: float | None = None
    retries: int = 0
    backoff: float = 0.5
    max_backoff: float = 30.0
    idempotent: bool | None = None
    lock: str = ""
    on_error: OnError = "skip"
    cache: float | None = None
    concurrency: int | None = None
    rate: float | None = None
    hedge: bool = False
    cost: float = 0.0
    host: str = ""
    tokens: int = 0

    def __post_init__(self) -> None:
        for name in (
            "timeout", "cache", "rate", "backoff", "max_backoff", "cost", "retries", "tokens"
        ):  # fmt: skip
            _check_number(name, getattr(self, name))
        for name in ("timeout", "cache", "rate"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise UsageError(f"{name} must be more than 0, or None, got {value!r}")
        for name in ("retries", "backoff", "max_backoff", "cost", "tokens"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"{name} must be at least 0, got {getattr(self, name)!r}")
        if self.concurrency is not None and self.concurrency < 1:
            raise UsageError(f"concurrency must be at least 1, or None, got {self.concurrency!r}")
        if self.on_error not in get_args(OnError):
            raise UsageError(f"on_error must be skip, keep or fail, got {self.on_error!r}")

    def pause(self, attempt: int, seed: str) -> float:
        """Seconds to wait after failed attempt number ``attempt``; equal seeds, equal pauses."""
        longest = min(self.max_backoff, self.backoff * 2.0 ** min(attempt - 1, 60))
        digest = hashlib.blake2b(f"{seed}/{attempt}".encode(), digest_size=8).digest()
        return longest * (0.5 + int.from_bytes(digest) / 2**65)


PLAIN = Policy()


class PolicyFields(TypedDict, total=False):
    """The fields of `Policy`, as keywords of ``@tool``."""

    timeout: float | None
    retries: int
    backoff: float
    max_backoff: float
    idempotent: bool | None
    lock: str
    on_error: OnError
    cache: float | None
    concurrency: int | None
    rate: float | None
    hedge: bool
    cost: float
    host: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Price:
    """What a model server takes, in USD for a million tokens."""

    prompt: float = 0.0
    completion: float = 0.0

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """USD for so many tokens."""
        return (self.prompt * prompt_tokens + self.completion * completion_tokens) / 1e6


@dataclass(frozen=True, slots=True)
class Limits:
    """What a run may spend; None means without end.

    ``concurrency`` counts tool calls in flight, ``max_steps`` attempts of tool calls,
    ``max_tokens`` tokens read and written by the model, ``max_cost_usd`` both in money.
    ``deadline`` is seconds from the run's start to its answer. ``per_host`` and ``host_rate``
    bound what is in flight, and begins in a second, at one host: the requests of our web tools, and
    calls of tools that name their host (see `Policy`).

    ``replan_early``: a call that fails while others run asks for the next plan at once, which may
    add, replace and cancel calls while they go on; otherwise a plan is over before the next.

    ``plan_tokens`` and ``answer_tokens`` are what a plan and an answer may take at most: so
    much is set aside before either is asked for.
    """

    max_tasks: int = 1000
    max_replans: int = 2
    concurrency: int = 64
    max_steps: int | None = None
    max_tokens: int | None = None
    max_cost_usd: float | None = None
    deadline: float | None = None
    per_host: int | None = None
    host_rate: float | None = None
    replan_early: bool = False
    plan_tokens: int = 0
    answer_tokens: int = 0
    price: Price = field(default_factory=Price)

    def __post_init__(self) -> None:
        for name in ("max_steps", "max_tokens", "max_cost_usd", "deadline", "host_rate"):
            _check_number(name, getattr(self, name))
        least = {"max_tasks": 1, "max_replans": 0, "concurrency": 1, "max_steps": 0, "per_host": 1}
        for name, lowest in least.items():
            if (value := getattr(self, name)) is not None and value < lowest:
                raise UsageError(f"{name} must be at least {lowest}, got {value!r}")
        for name in ("max_tokens", "max_cost_usd", "deadline", "host_rate"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise UsageError(f"{name} must be more than 0, or None, got {value!r}")


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """Fields of `Policy` for the tools whose name matches one of ``tools`` (``web_*``)."""

    tools: tuple[str, ...]
    changes: Mapping[str, Any]

    def __post_init__(self) -> None:
        if unknown := set(self.changes) - {known.name for known in fields(Policy)}:
            raise UsageError(f"a policy has no {', '.join(map(repr, sorted(unknown)))}")
        try:
            replace(PLAIN, **self.changes)
        except UsageError as error:
            raise UsageError(f"policy for {', '.join(map(repr, self.tools))}: {error}") from None

    def matches(self, tool: str) -> bool:
        return any(fnmatch.fnmatchcase(tool, pattern) for pattern in self.tools)


def with_rules(name: str, policy: Policy, rules: Iterable[PolicyRule]) -> Policy:
    """``policy`` with what ``rules`` say of the tool ``name``; a later rule wins."""
    for rule in rules:
        if rule.matches(name):
            policy = replace(policy, **rule.changes)
    return policy
