"""What a bank holds: the finding of one call, where it comes from, and what it was good for.

Pure values. A key is made of a tool and its arguments and never of what a page says, so nothing
that was read can pass itself off as the answer to another call.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from agentpar.fingerprint import fingerprint
from agentpar.plaintext import cut, one_line
from agentpar.tools.base import Tool
from agentpar.tools.call import call_key
from agentpar.tools.page import pages_of

Scope = Literal["run", "project"]
"""``run``: what the teams of one question share. ``project``: what every run keeps for the next."""

QUESTION_CHARS = 300
"""Characters of the text that stands for a call where texts are compared."""


@dataclass(frozen=True, slots=True)
class Producer:
    """Who brought a finding: task ``task_id`` of a run, which was ``team``'s (0: of no team)."""

    run_id: str
    task_id: int
    team: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """A finding. ``id`` names it: equal calls that found equal things from equal sources are one
    entry, whoever brought it.

    ``key`` is the call's (`call_key`), ``like`` that of all calls that ask for the same in other
    words (`likeness`). ``question`` is the call as a text. ``sources`` are the addresses of the
    pages that were read, or else the call. ``parents`` are the entries that went into its
    arguments. ``literal``: its arguments were written by a planner that had read nothing yet, so
    they may stand in a prompt. ``seconds``, ``tokens`` and ``cost_usd`` are what it cost to find.
    ``created`` and ``expires`` (None: never) are seconds since the epoch by the store's clock.
    """

    id: str
    namespace: str
    key: str
    like: str
    tool: str
    args: Mapping[str, Any]
    question: str
    value: Any
    sources: tuple[str, ...]
    producer: Producer
    parents: tuple[str, ...] = ()
    literal: bool = False
    seconds: float = 0.0
    tokens: int = 0
    cost_usd: float = 0.0
    created: float = 0.0
    expires: float | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """One use of an entry, as its ledger has it: a task of another run or team was settled by it.

    ``spared`` is what the reader did not have to spend, ``context`` the tokens that reading it
    took. ``at`` is the store's.
    """

    entry_id: str
    run_id: str
    task_id: int
    team: int = 0
    spared_seconds: float = 0.0
    spared_tokens: int = 0
    context_tokens: int = 0
    at: float = 0.0


def entry_of(
    tool: Tool,
    args: Mapping[str, Any],
    value: Any,
    producer: Producer,
    *,
    namespace: str,
    parents: tuple[str, ...] = (),
    literal: bool = False,
    seconds: float = 0.0,
    tokens: int = 0,
) -> Entry:
    """The entry for a call that brought ``value``. Raises `UsageError` where arguments are no
    JSON data."""
    key = call_key(tool, args)
    question = question_of(tool.name, args)
    sources = sources_of(value) or (question,)
    evidence = fingerprint([value, sorted(sources)])
    id = hashlib.sha256(f"{namespace}\n{key}\n{evidence}".encode()).hexdigest()
    return Entry(
        id,
        namespace,
        key,
        likeness(tool, args),
        tool.name,
        dict(args),
        question,
        value,
        sources,
        producer,
        parents,
        literal,
        seconds,
        tokens,
        tool.policy.cost,
    )


def question_of(tool: str, args: Mapping[str, Any]) -> str:
    """A call as one line of text: its tool, and its arguments' values."""
    values = (one_line(str(value), QUESTION_CHARS) for value in args.values() if value is not None)
    return cut(f"{tool}: {', '.join(values)}", QUESTION_CHARS)


def sources_of(value: Any) -> tuple[str, ...]:
    """The addresses of the pages in a result, each once, in its order."""
    pages = (page for page in pages_of(value) if isinstance(page, Mapping))
    return tuple(dict.fromkeys(str(page["url"]) for page in pages if page.get("url")))


def likeness(tool: Tool, args: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of a call as far as it matters what is asked for.

    Of the arguments that are search words (``Tool.words``) only the words themselves count, not
    their order or case, nor articles; everything else must be equal. So "population of Lima" is
    like "Lima population", and nothing is like what names another thing or another number. Where a
    word says which way something goes ("from Lima to Quito"), the order counts.
    """
    loose = {
        name: _loose(value) if name in tool.words and isinstance(value, str) else value
        for name, value in args.items()
    }
    return call_key(tool, loose)


_WAYS = frozenset(
    "from to into by than before after between over under above below against without not no minus "
    "plus times divided per versus vs".split()
)
"""Words after which it matters what stands where."""
_ARTICLES = frozenset(("a", "an", "the", "of"))
"""What says nothing. Other small words may: WHO is not IT."""


def _loose(text: str) -> list[str]:
    """The words of ``text`` in an order that does not depend on theirs, if it does not matter."""
    plain = [word.strip(".,;:?!\"'()") for word in text.casefold().split()]
    told = [word for word in plain if word and word not in _ARTICLES] or plain
    return ["", *told] if not _WAYS.isdisjoint(told) else sorted(told)


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to make a call that others want as well.

    ``fence`` grows with each holder of ``like``: what an earlier one brings after its time does
    not count. ``until`` is seconds since the epoch by the store's clock.
    """

    namespace: str
    like: str
    holder: Producer
    fence: int
    until: float


@dataclass(frozen=True, slots=True)
class Revocation:
    """What was withdrawn: ``entries`` by id, those that others were made of first; ``runs`` that
    had used or brought any of it, teams' among them (R.1); and whose ``answers`` that touches, by
    the id that a user knows (R). Both in the order in which they first did."""

    entries: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    why: str = ""
