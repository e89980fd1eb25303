"""What the scheduler tells the workers beside each step: who joined a group, which group ended.

Travels as one attribute of vLLM's own step message. Plain values: must never know vLLM or a
tensor.
"""

from __future__ import annotations

from dataclasses import dataclass

from agentpar.runtime.hogwild.plugin.params import Member

ATTRIBUTE = "hogwild"
"""The attribute of a step message (and of attention metadata) that carries what is ours."""


@dataclass(frozen=True, slots=True)
class Joined:
    """A request is a row from now on.

    ``number`` tells one group from later ones of the same name. ``prompt``: tokens it was told.
    ``limit``: the most tokens it will ever have in the cache. ``stops``: tokens that end it, and
    are never seen by others.
    """

    request: str
    number: int
    member: Member
    prefix: tuple[int, ...]
    prompt: int
    limit: int
    stops: frozenset[int]


@dataclass(frozen=True, slots=True)
class Notice:
    """Heard by a worker before it runs the step it came with."""

    joined: tuple[Joined, ...] = ()
    ended: tuple[int, ...] = ()
