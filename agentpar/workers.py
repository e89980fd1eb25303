"""Workers that write one text together: what they are told to be, and what a group of them is.

How they come to read each other is the business of the room that runs models.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from agentpar.errors import BackendError, UsageError
from agentpar.events import Usage, WorkersEnded, WorkersStarted, WorkerText
from agentpar.ports import Message

Layout = Literal["contiguous", "interleaved", "combined"]
"""In which order a worker sees what is there. ``contiguous``: prefix, the other rows in the order
they joined, own row. ``interleaved``: prefix, the finished steps of all rows in the order they
ended, own step so far. ``combined``: as interleaved, and the others' steps so far stand before
one's own."""

Backend = Literal["rows", "log"]
"""``rows``: workers read each other's keys and values, token by token. ``log``: they read each
other's text, every ``sync_every`` tokens."""

NAMES = ("Alice", "Bob", "Carol", "Dave", "Erin", "Frank", "Grace", "Heidi")


@dataclass(frozen=True, slots=True)
class Workers:
    """How many write together, and how.

    Each of ``n`` (at most 8) may write ``max_tokens``. After every ``check_every`` tokens it
    is asked whether it does again what another has done (0: never). Worker i samples with
    ``temperature`` and ``seed`` + i. ``layout`` is for rows, ``sync_every`` (tokens) for a log;
    ``backend`` "auto" takes rows where the runtime can share its cache.
    """

    n: int = 2
    max_tokens: int = 256
    layout: Layout = "combined"
    check_every: int = 0
    sync_every: int = 64
    temperature: float = 0.0
    seed: int | None = None
    backend: Backend | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if not 1 <= self.n <= len(NAMES):
            raise UsageError(f"n is {self.n!r}; a group has 1 to {len(NAMES)} workers")
        for name in ("max_tokens", "sync_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)!r}; it must be at least 1")
        if self.check_every < 0:
            raise UsageError(f"check_every is {self.check_every!r}; 0 means never")
        for name, known in (
            ("layout", get_args(Layout)),
            ("backend", ("auto", *get_args(Backend))),
        ):
            if (value := getattr(self, name)) not in known:
                raise UsageError(f"{name} is {value!r}; there are {', '.join(known)}")

    @property
    def names(self) -> tuple[str, ...]:
        """What they are called."""
        return NAMES[: self.n]


def workers_of(said: Workers | int | None) -> Workers | None:
    """What a caller says of workers; None for none."""
    if isinstance(said, int) and not isinstance(said, bool):
        return Workers(said)
    if said is not None and not isinstance(said, Workers):
        raise UsageError(f"workers must be a number or Workers(2, max_tokens=256), got {said!r}")
    return said


@dataclass(frozen=True, slots=True)
class Piece:
    """``worker`` has written ``text``."""

    worker: str
    text: str


class Group(Protocol):
    """Workers at work: iterate for what they write, until all have ended."""

    @property
    def backend(self) -> Backend:
        """How they read each other."""
        ...

    @property
    def why(self) -> str:
        """Why not by rows, where it is not."""
        ...

    @property
    def faults(self) -> tuple[str, ...]:
        """What has gone otherwise than it was meant to, in words: whose request failed, say."""
        ...

    @property
    def workers(self) -> tuple[str, ...]:
        """Those who still write."""
        ...

    @property
    def usage(self) -> Usage:
        """What all of it has taken so far."""
        ...

    def __aiter__(self) -> AsyncIterator[Piece]: ...

    def answer(
        self,
        instruction: str = "",
        *,
        max_tokens: int = 512,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> AsyncGenerator[str, None]:
        """Stop the workers and write one text with all that they wrote in sight."""
        ...


async def think_and_answer(
    group: Group,
    tell: Callable[[WorkersStarted | WorkerText | WorkersEnded], None],
    *,
    max_tokens: int,
    temperature: float = 0.0,
    seed: int | None = None,
) -> AsyncGenerator[str, None]:
    """The answer of ``group``, piece by piece, when its workers have written all they will.

    ``tell`` hears what they do; round and time are for whoever passes it on. Workers whose
    requests fail keep nobody from answering. Raises what the request for the answer raises.
    """
    tell(WorkersStarted(0, group.workers, group.backend, group.why))
    with suppress(BackendError):  # it is among the faults
        async for piece in group:
            tell(WorkerText(0, piece.worker, piece.text))
    answer = group.answer(max_tokens=max_tokens, temperature=temperature, seed=seed)
    async with aclosing(answer) as texts:
        async for text in texts:
            yield text
    tell(WorkersEnded(0, group.faults))


OpenGroup = Callable[[Sequence[Message], Workers], AbstractAsyncContextManager[Group]]
"""Sets workers to work on a prompt; leaving the context stops them."""
