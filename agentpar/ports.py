"""The doors between the rooms: what each room may expect of the others."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from agentpar.events import Usage
from agentpar.plan import Ok


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """What a runtime is asked to write.

    At most one of ``grammar`` (EBNF as xgrammar reads it) and ``json_schema`` is set, and
    only for a runtime whose ``capabilities()`` include it. ``stop`` strings end the text
    and are not part of it.
    """

    messages: tuple[Message, ...]
    max_tokens: int = 512
    temperature: float = 0.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    grammar: str | None = None
    json_schema: Mapping[str, Any] | None = field(default=None)


Capability = Literal["grammar", "json_schema"]


@runtime_checkable
class Runtime(Protocol):
    """Turns a request into text, piece by piece."""

    def stream(self, request: ModelRequest) -> AsyncGenerator[str | Usage, None]:
        """Yield text pieces as they are written, then one `Usage` as the last item.

        Closing the generator early (``aclose``, cancellation) aborts the request on the
        server. Raises `ModelServerError` once retries are spent; a request is never
        retried after its first piece of text.
        """
        ...

    async def capabilities(self) -> frozenset[Capability]:
        """Which constraints on the output this runtime can enforce."""
        ...

    async def aclose(self) -> None:
        """Release connections and processes that this runtime owns."""
        ...


class Results(Protocol):
    """Results of earlier calls that may serve again; ``key`` is their `call_key`."""

    async def get(self, key: str) -> Ok | None:
        """The result of an equal call, unless it is too old or there was none."""
        ...

    async def put(self, key: str, outcome: Ok, seconds: float) -> None:
        """Keep a result for ``seconds``."""
        ...


class Clock(Protocol):
    """Monotonic seconds."""

    def now(self) -> float: ...


Progress = Callable[[str, float, float], None]
"""``progress(step, done, total)`` is told of a long wait: the step in words, and how much of it
is done. Total 0: not known. It may be called from any thread."""


def silent(step: str, done: float, total: float) -> None:
    """The `Progress` of someone who is not told."""
