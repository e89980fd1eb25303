"""One file per executor that the bench holds against the others."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from shapes import Shape

Run = Callable[[], Awaitable[int]]
"""Performs every task of a shape once; the sum of what they returned, their depths."""


@dataclass(frozen=True, slots=True)
class Executor:
    """``prepare`` builds what must be built before a run (a compiled graph, say); it is timed
    by itself."""

    name: str
    prepare: Callable[[Shape], Run]
