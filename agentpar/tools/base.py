"""What a tool is: a name, a schema for its arguments, and something to call.

Where a tool comes from (a Python function, LangChain, an MCP server) is the business
of the files beside this one; what runs it, and when, is the executor's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from agentpar.policy import PLAIN, Policy

Effect = Literal["read", "write"]
Batch = Callable[[list[dict[str, Any]]], Awaitable[Sequence[Any]]]
BATCH_SIZE = 16
"""Most calls in one batch, where a tool does not say."""


def is_sink(effect: Effect, sends: bool) -> bool:
    """Whether a call has consequences outside the run: it writes or sends."""
    return effect == "write" or sends


@dataclass(frozen=True, slots=True, eq=False)
class Tool:
    """Something a plan can call.

    ``parameters`` is a JSON Schema object with ``properties`` in calling order and
    ``additionalProperties: false``. ``validate`` takes the arguments by name and returns
    them converted, with defaults filled in; it raises `UsageError` naming the argument.
    ``call`` takes what ``validate`` returned, as keywords; one that ``streams`` gives an async
    generator, and its value is the list of what that yields. ``returns`` tells the planner
    in one line what the value looks like, so that it can write ``$1.url``. ``output`` says it
    as a JSON Schema, against which a plan's references are checked before anything runs; a
    value that may be anything has None.
    A tool whose ``effect`` is "write" never runs without approval, unless a rule allows it.
    ``sends``: it hands its arguments to others (a mail, a post, a webhook) and is guarded like
    a write. ``pure``: its result is a function of its arguments alone and brings nothing in
    from outside, so it is as trustworthy as they are; any other tool's result is untrusted.
    ``policy`` says how it is called. Results of one ``version`` do not stand for those of
    another. ``close`` releases what the tool holds (connections); a closed tool opens again at
    its next call. ``batch`` makes several calls as one: it takes the arguments of each, as
    ``call`` does, and returns a list of results in the same order, in which an exception is the
    failure of that call alone. Up to ``batch_size`` calls that are ready together go that way,
    and a single one goes to ``call``. ``words`` names arguments that are search words: calls that
    differ in their order, case and stop words alone ask for the same. ``secrets`` are values, such
    as the key it calls with, that no event of a run may show.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    call: Callable[..., Awaitable[Any]]
    validate: Callable[[Mapping[str, Any]], dict[str, Any]]
    effect: Effect = "read"
    sends: bool = False
    pure: bool = False
    policy: Policy = PLAIN
    version: str = ""
    streams: bool = False
    returns: str = ""
    function: Callable[..., Any] | None = None
    close: Callable[[], Awaitable[None]] | None = None
    output: Mapping[str, Any] | None = None
    secrets: tuple[str, ...] = field(default=(), repr=False)
    batch: Batch | None = None
    batch_size: int = BATCH_SIZE
    words: tuple[str, ...] = ()

    @property
    def sink(self) -> bool:
        """See `is_sink`."""
        return is_sink(self.effect, self.sends)

    @property
    def may_be_kept(self) -> bool:
        """Whether a result may serve a later call: never where the call itself is the point."""
        repeatable = not self.sink and self.policy.idempotent is not False
        return repeatable and self.policy.cache is not None

    @property
    def may_be_shared(self) -> bool:
        """Whether a result may serve an equal call of another team or run: one that only reads,
        and brings something in, for a call that computes is as quick as asking."""
        return not self.sink and not self.pure and self.policy.idempotent is not False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the decorated function directly, as if it had never been made a tool."""
        if self.function is None:
            raise TypeError(f"tool {self.name!r} was not made from a Python function")
        return self.function(*args, **kwargs)


@runtime_checkable
class ToolSource(Protocol):
    """Where tools come from that exist only while something is open: an MCP server, say.

    One that stands in for the world may have a ``banner``: a sentence on what is simulated.
    It opens the run's record and every view of it. One that holds credentials may have
    ``secrets``, as a `Tool` has.
    """

    async def start(self) -> Sequence[Tool]:
        """Start, and return the tools. Called again after `stop`."""
        ...

    async def stop(self) -> None:
        """Stop; leaves no process, thread or socket behind."""
        ...
