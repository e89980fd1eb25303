"""The doors between the rooms: what each room may expect of the others."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from agentpar.events import Event, Usage
from agentpar.plan import Ok, Outcome
from agentpar.tools.base import Tool


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
    and are not part of it. Nobody waits for a ``background`` request: where the server can
    tell requests apart, all others go first.
    """

    messages: tuple[Message, ...]
    max_tokens: int = 512
    temperature: float = 0.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    grammar: str | None = None
    json_schema: Mapping[str, Any] | None = field(default=None)
    background: bool = False


Capability = Literal["grammar", "json_schema", "prefill"]
"""``grammar``, ``json_schema``: constraints on the output that are enforced. ``prefill``: the
beginning of a prompt that was read once need not be read again."""


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
        """What this runtime is known to be able to do beyond writing text."""
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


class Claim(Protocol):
    """One call's place among equal calls of other teams and runs."""

    @property
    def found(self) -> Outcome | None:
        """What came of another's call, in place of this one; None: make the call, then `settle`.
        A failure is that of an attempt which this one has waited for."""
        ...

    @property
    def retry_after(self) -> float | None:
        """With a failure: how many seconds the far side asked to be left alone."""
        ...

    async def settle(
        self, outcome: Outcome, seconds: float, retry_after: float | None = None
    ) -> None:
        """The call was made, and this came of it in ``seconds``."""
        ...


class Shared(Protocol):
    """What several teams and runs share of their calls."""

    def claim(
        self, tool: Tool, args: Mapping[str, Any], task_id: int, attempt: int
    ) -> AbstractAsyncContextManager[Claim]:
        """Enter before the call is made: waits while another makes an equal one. Whoever leaves
        without having settled lets the next one make it. Never raises what the bank has for
        trouble: then nothing is found, and the call is made."""
        ...

    async def stands(self, tool: Tool, args: Mapping[str, Any], outcome: Ok, task_id: int) -> bool:
        """Whether the result of an equal call, which the agent has kept itself, may serve this one:
        not where it comes from a source that was withdrawn, and not where the bank cannot say.
        Never raises."""
        ...


@runtime_checkable
class Named(Protocol):
    """A `Runtime` that says who serves it (``"vllm"``, ``"openai"``) and which model that is,
    empty where it does not know yet."""

    @property
    def provider(self) -> str: ...

    @property
    def model_name(self) -> str: ...


class Clock(Protocol):
    """Monotonic seconds."""

    def now(self) -> float: ...


Progress = Callable[[str, float, float], None]
"""``progress(step, done, total)`` is told of a long wait: the step in words, and how much of it
is done. Total 0: not known. It may be called from any thread."""


def silent(step: str, done: float, total: float) -> None:
    """The `Progress` of someone who is not told."""


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What a watcher is told of a run, or of one more part of it, before the first event.

    ``history`` is what happened in earlier parts of the same run, which others have watched.
    ``team`` is its number among several teams on one question, 0 where it is alone; ``teams`` is
    how many it has, where it is the run of all of them, which has no calls of its own.
    """

    run_id: str
    agent: str = "agent"
    runtime: Named | None = None
    history: tuple[Event, ...] = ()
    team: int = 0
    teams: int = 0


Watch = Callable[[RunInfo], AbstractContextManager[Callable[[Event], None]]]
"""Opens a watcher for one run: what the context gives is called with each event, in order,
inside the event loop, and must be quick. The context is left when the run, or this part of
it, is over. A watcher that raises is told of and left out; the run goes on."""
