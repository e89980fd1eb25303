"""What workers of a group are told: who they are, how they work together, and when to stop.

Pure text. The rules follow the prompts of Hogwild! Inference (arXiv 2504.06261, appendix):
workers are told of each other, agree in the open on who does what, and are asked from time to
time whether they do again what another has done.
"""

from __future__ import annotations

from collections.abc import Sequence

from agentpar.errors import UsageError
from agentpar.ports import Message

STEP_END = "\n\n"
"""A blank line ends a worker's step."""

_RULES = """You are {count} workers, {names}, who solve one task together. You write at the same \
time, each in steps of a few lines with a blank line after each, and everyone sees what the others \
write while they write it.
- Say first which part you take; take one that nobody has taken.
- Use what others have found. Do not do it again. If you see a mistake, say so.
- Write down each result in one line. When nothing is left to do, stop."""

_CHECK = "Is somebody else already doing what I do? (yes or no): "

_TIME_IS_UP = "All workers have stopped. The answer to the task, from what they found:\n"


def shared(messages: Sequence[Message], workers: Sequence[str]) -> tuple[Message, ...]:
    """The prompt that all ``workers`` begin with: ``messages`` and the rules of working together.

    The rules stand last, so that a server that has read the messages ahead need not do it again.
    Raises `UsageError` for names that would be mistaken for each other, for a group of nobody,
    and for one without a task.
    """
    if not messages:
        raise UsageError("there is no message to work on: say what the task is")
    if not workers:
        raise UsageError("workers is empty: a group has at least one worker")
    if len(set(workers)) < len(workers):
        raise UsageError(f"workers {list(workers)!r}: a name stands there twice")
    for name in workers:
        check_name(name)
    if len(workers) == 1:
        return tuple(messages)
    rules = _RULES.format(count=len(workers), names=", ".join(workers))
    *before, last = messages
    return (*before, Message(last.role, f"{last.content}\n\n{rules}"))


def check_name(name: str) -> None:
    """Raise `UsageError` for a name that could not stand in front of a worker's text."""
    if not name.strip() or name != name.strip() or "\n" in name or ":" in name or len(name) > 40:
        raise UsageError(
            f"worker name {name!r}: a name is 1 to 40 characters without a colon or a line break"
        )


def head(worker: str) -> str:
    """How a worker's own text begins."""
    return f"{STEP_END}{worker}: "


def check(worker: str) -> str:
    """How a worker's text goes on when it is asked whether its work is redundant."""
    return f"{STEP_END}{worker}: {_CHECK}"


def told(name: str, text: str) -> str:
    """How something from outside, ``name``'s result, stands among the workers' texts."""
    return f"{STEP_END}{name}:\n{text.strip()}{STEP_END}"


def finish(instruction: str = "") -> str:
    """How the answer begins that is written when the workers have stopped."""
    return f"{STEP_END}{instruction or _TIME_IS_UP}"


def log_messages(messages: Sequence[Message], log: str, ask: str) -> tuple[Message, ...]:
    """``messages``, what the workers wrote so far as the assistant's turn, and what to write next.

    For a server to which nothing can be told but messages. Everything up to ``ask`` is the same for
    all workers, so that a server that caches prefixes reads it once. Under headings in one message,
    which was tried, a small model copies the headings instead of going on.
    """
    if log.strip():
        return (*messages, Message("assistant", log.strip()), Message("user", ask))
    *before, last = messages
    return (*before, Message(last.role, f"{last.content}\n\n{ask}"))


def turn(worker: str, *, checks: bool = False) -> str:
    """What a worker is asked for whose text goes to a log."""
    first = " Say first whether somebody else already does what you do." if checks else ""
    return (
        f"You are {worker}. Write the next lines of {worker}, without the name in front: "
        f"something that nobody has done yet.{first}"
    )
