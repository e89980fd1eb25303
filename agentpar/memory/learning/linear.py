"""As much linear algebra as a dozen weights need, in plain Python."""

from __future__ import annotations

import random
from collections.abc import Sequence

Row = list[float]


class Ridge:
    """Least squares with a penalty, one example after the other: ``A = λI + Σ w·xxᵀ``,
    ``b = Σ w·xy``."""

    def __init__(self, size: int, penalty: float = 5.0) -> None:
        self.size = size
        self.a = [[penalty * (i == j) for j in range(size)] for i in range(size)]
        self.b = [0.0] * size

    def add(self, x: Sequence[float], y: float, weight: float = 1.0) -> None:
        for i, xi in enumerate(x):
            if xi:
                row, wx = self.a[i], weight * xi
                for j in range(i + 1):
                    row[j] += wx * x[j]
                self.b[i] += wx * y

    def solve(self) -> Row:
        """The weights."""
        lower = cholesky(self.a)
        return back(lower, forward(lower, self.b))

    def draw(self, chance: random.Random, width: float) -> Row:
        """Weights drawn around the solution, the wider the less is known (Thompson sampling)."""
        lower = cholesky(self.a)
        middle = back(lower, forward(lower, self.b))
        noise = back(lower, [chance.gauss(0, width) for _ in middle])
        return [m + n for m, n in zip(middle, noise, strict=True)]


def dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(map(float.__mul__, a, b))


def cholesky(a: Sequence[Sequence[float]]) -> list[Row]:
    """The lower triangle L with LLᵀ = a, of which only the lower half is read."""
    lower: list[Row] = []
    for i, row in enumerate(a):
        new: Row = []
        for j in range(i):
            new.append((row[j] - dot(new, lower[j][:j])) / lower[j][j])
        new.append((row[i] - dot(new, new)) ** 0.5)
        lower.append(new)
    return lower


def forward(lower: Sequence[Row], b: Sequence[float]) -> Row:
    """x with Lx = b."""
    x: Row = []
    for i, row in enumerate(lower):
        x.append((b[i] - dot(row[:i], x)) / row[i])
    return x


def back(lower: Sequence[Row], b: Sequence[float]) -> Row:
    """x with Lᵀx = b."""
    size = len(lower)
    x = list(b)
    for i in reversed(range(size)):
        x[i] = (x[i] - sum(lower[j][i] * x[j] for j in range(i + 1, size))) / lower[i][i]
    return x
