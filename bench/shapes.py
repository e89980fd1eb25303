"""The plans that executors are held against: who needs whom, and how long each task sleeps.

These are values; no executor is known here.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True, slots=True)
class Node:
    """One task: sleeps ``seconds`` after all of ``needs`` (smaller ids) have ended."""

    id: int
    needs: tuple[int, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class Shape:
    """A plan. Every task returns its depth, so a run that loses an edge is found out."""

    key: str
    title: str
    nodes: tuple[Node, ...]

    @cached_property
    def critical_path(self) -> float:
        """Seconds that no executor can beat."""
        ends: dict[int, float] = {}
        for node in self.nodes:
            ends[node.id] = node.seconds + max((ends[need] for need in node.needs), default=0.0)
        return max(ends.values())

    @cached_property
    def depth_sum(self) -> int:
        """What the returned depths must add up to; a task without needs has depth 1."""
        depths: dict[int, int] = {}
        for node in self.nodes:
            depths[node.id] = 1 + max((depths[need] for need in node.needs), default=0)
        return sum(depths.values())


def independent(count: int) -> tuple[Node, ...]:
    return tuple(Node(id) for id in range(1, count + 1))


def chain(count: int) -> tuple[Node, ...]:
    return tuple(Node(id, (id - 1,) if id > 1 else ()) for id in range(1, count + 1))


def tangle(count: int, needs: int) -> tuple[Node, ...]:
    """Each task needs ``needs`` tasks drawn from all earlier ones."""
    draw = random.Random(7)
    return tuple(
        Node(id, tuple(sorted(draw.sample(range(1, id), min(needs, id - 1)))))
        for id in range(1, count + 1)
    )


def layers(depth: int, width: int, needs: int, seconds: list[float], seed: int) -> tuple[Node, ...]:
    """``depth`` layers; each task needs ``needs`` tasks drawn from the layer before."""
    draw = random.Random(seed)
    nodes: list[Node] = []
    for id in range(1, depth * width + 1):
        first = (id - 1) // width * width + 1  # of this task's layer
        before = range(first - width, first)
        drawn = tuple(sorted(draw.sample(before, needs))) if first > 1 else ()
        nodes.append(Node(id, drawn, seconds[id - 1]))
    return tuple(nodes)


def straggling(count: int, seed: int) -> list[float]:
    """10 to 60 ms each; one in ten takes six times as long."""
    draw = random.Random(seed)
    times = [draw.randint(10, 60) for _ in range(count)]
    return [ms * (6 if draw.random() < 0.1 else 1) / 1000 for ms in times]


# The seed of e is the first whose critical path is 0.964 s, that of earlier measurements.
SHAPES = (
    Shape("a", "1,000 independent no-op tasks", independent(1_000)),
    Shape("b", "chain of 1,000 no-op tasks", chain(1_000)),
    Shape("c", "10,000 no-op tasks with 3 needs each", tangle(10_000, 3)),
    Shape("d", "200 tasks of 50 ms, 5 deep", layers(5, 40, 3, [0.05] * 200, seed=7)),
    Shape(
        "e",
        "200 tasks of 10-60 ms, 10 deep, one in ten 6 times longer",
        layers(10, 20, 2, straggling(200, seed=305), seed=305),
    ),
)
