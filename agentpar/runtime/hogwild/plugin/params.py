"""What a request says about the group it belongs to: flat keys in its ``vllm_xargs``.

Read at the front (where a mistake becomes HTTP 400) and in the engine. Pure: must never know
vLLM or a tensor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from agentpar.errors import UsageError
from agentpar.workers import Layout

FORMAT = 1
"""Of these keys, told at the door: a client that knows another sends none."""
PREFIX = "hogwild_"
"""What the name of each of our keys begins with."""

LAYOUTS: tuple[Layout, ...] = get_args(Layout)
MAX_NAME = 128  # characters of a group's or worker's name
MAX_ROWS = 1024
MAX_HOLD = 60  # seconds
MAX_STEPS = 256  # token ids that end a step


@dataclass(frozen=True, slots=True)
class Member:
    """One request as a row of a group.

    ``group`` and ``worker`` name the group and the row in it. ``prefix`` is the number of prompt
    tokens that all rows have in common. The group begins once ``size`` rows are there; a ``late``
    row joins one that has begun, and begins none. ``steps`` are the token ids that end a step of
    this row. If it is the last of its group to finish, what the group wrote is kept for ``hold``
    seconds, for rows that come late.
    """

    group: str
    worker: str
    prefix: int
    size: int = 1
    layout: Layout = "contiguous"
    steps: frozenset[int] = frozenset()
    late: bool = False
    hold: float = 0.0


def is_member(arguments: Mapping[str, Any] | None) -> bool:
    """Whether a request with these extra arguments says anything about a group."""
    return bool(arguments) and any(key.startswith(PREFIX) for key in arguments or ())


def parse(arguments: Mapping[str, Any] | None) -> Member | None:
    """The row that a request wants to be, None for an ordinary request.

    Raises `UsageError` for anything else, naming key and value.
    """
    if not is_member(arguments):
        return None
    found = {
        key.removeprefix(PREFIX): value
        for key, value in (arguments or {}).items()
        if key.startswith(PREFIX)
    }
    known = ("group", "worker", "prefix", "size", "layout", "steps", "late", "hold")
    for key in found:
        if key not in known:
            raise UsageError(
                f"{PREFIX}{key} is not known; the keys are "
                f"{', '.join(PREFIX + name for name in known)}"
            )
    layout = found.get("layout", "contiguous")
    if layout not in LAYOUTS:
        raise UsageError(f"{PREFIX}layout is {layout!r}; there are {', '.join(LAYOUTS)}")
    return Member(
        group=_name(found, "group"),
        worker=_name(found, "worker"),
        prefix=_count(found, "prefix", least=1),
        size=_count(found, "size", least=1, most=MAX_ROWS, default=1),
        layout=layout,
        steps=_tokens(found.get("steps", [])),
        late=bool(_count(found, "late", least=0, most=1, default=0)),
        hold=_seconds(found.get("hold", 0)),
    )


def check(
    member: Member,
    *,
    prompt: int | None,
    samples: int = 1,
    prompt_logprobs: bool = False,
    cached: bool = True,
    resumable: bool = False,
) -> None:
    """Refuse what a row of a group cannot be; raises `UsageError`.

    ``prompt``: the number of its prompt tokens, None for a prompt of embeddings. ``cached``:
    whether it may take the beginning of its prompt from the prefix cache.
    """
    row = f"worker {member.worker!r} of group {member.group!r}"
    if prompt is None:
        raise UsageError(f"{row} has a prompt of embeddings; a row of a group is made of tokens")
    if member.prefix > prompt:
        raise UsageError(
            f"{row} has {PREFIX}prefix = {member.prefix}, but its prompt has {prompt} tokens only"
        )
    if samples != 1:
        raise UsageError(
            f"{row} asks for n = {samples} samples; each row writes one text, so start "
            f"{samples} workers instead"
        )
    if prompt_logprobs:
        raise UsageError(
            f"{row} asks for prompt_logprobs, which would be those of the row alone; leave them out"
        )
    if not cached:
        raise UsageError(
            f"{row} sets skip_reading_prefix_cache, but rows of a group hold their prefix in common"
        )
    if resumable:
        raise UsageError(f"{row} streams its input, which a row of a group cannot")


def _name(found: Mapping[str, Any], key: str) -> str:
    name = found.get(key)
    if not isinstance(name, str) or not re.fullmatch(rf"[^\x00-\x1f]{{1,{MAX_NAME}}}", name):
        raise UsageError(
            f"{PREFIX}{key} is {name!r}; it must be a name of 1 to {MAX_NAME} characters"
        )
    return name


def _count(
    found: Mapping[str, Any],
    key: str,
    *,
    least: int,
    most: int | None = None,
    default: int | None = None,
) -> int:
    value = found.get(key, default)
    if not _is_whole(value) or value < least or (most is not None and value > most):
        bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise UsageError(f"{PREFIX}{key} is {value!r}; it must be a whole number {bounds}")
    return int(value)


def _seconds(value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= MAX_HOLD:
        raise UsageError(
            f"{PREFIX}hold is {value!r}; it must be a number of seconds from 0 to {MAX_HOLD}"
        )
    return float(value)


def _tokens(value: Any) -> frozenset[int]:
    if (
        not isinstance(value, list | tuple)
        or len(value) > MAX_STEPS
        or not all(_is_whole(token) and token >= 0 for token in value)
    ):
        raise UsageError(
            f"{PREFIX}steps is {value!r}; it must be a list of at most {MAX_STEPS} token ids"
        )
    return frozenset(map(int, value))


def _is_whole(value: Any) -> bool:
    # Over HTTP, lists may arrive as floats: a field takes strings, ints and floats.
    return not isinstance(value, bool) and (
        isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    )
