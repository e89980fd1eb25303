"""The vectors of a bank in this process's memory, where the nearest are found by looking at all.

It knows numbers of rows and vectors. It must never know an entry, or whether one still stands: it
names candidates, and the store looks each one up before it is served.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from agentpar.errors import MissingPackage
from agentpar.memory.store.rows import packed


class Mirror:
    """Vectors of one length, each under its row's ``seq`` and its namespace. ``upto`` tells the
    last change that it has seen: its number, and the row's."""

    def __init__(self) -> None:
        self.upto = (0, 0)
        self._spaces: dict[str, _Space] = {}

    def take(self, namespace: str, rows: Sequence[tuple[int, bytes, float | None]]) -> None:
        """Rows, each once: its ``seq``, its vector, and when it expires."""
        space = self._spaces.get(namespace)
        if space is None:
            space = self._spaces[namespace] = _Space(len(rows[0][1]) // 4)
        space.take(rows)

    def drop(self, namespace: str, seq: int) -> None:
        if (space := self._spaces.get(namespace)) is not None:
            space.drop(seq)

    def nearest(
        self, namespace: str, vector: Sequence[float], k: int, now: float
    ) -> Iterator[list[tuple[int, float]]]:
        """Candidates with their cosines, largest first: ``k`` at a time, until there are none."""
        space = self._spaces.get(namespace)
        return iter(()) if space is None else space.nearest(vector, k, now)


class _Space:
    """Rows of unit vectors; one that was dropped keeps its place until they are packed."""

    def __init__(self, dimension: int) -> None:
        self._np = numpy()
        self._places: dict[int, int] = {}
        self._n = 0
        self._vectors: Any
        self._seqs: Any
        self._until: Any
        self._grow(64, dimension)

    def _grow(self, size: int, dimension: int) -> None:
        np, n = self._np, self._n
        vectors, seqs = np.zeros((size, dimension), np.float32), np.zeros(size, np.int64)
        until = np.full(size, -np.inf)
        if n:
            vectors[:n], seqs[:n] = self._vectors[:n], self._seqs[:n]
            until[:n] = self._until[:n]
        self._vectors, self._seqs, self._until = vectors, seqs, until

    def take(self, rows: Sequence[tuple[int, bytes, float | None]]) -> None:
        np, places = self._np, []
        for seq, _, _ in rows:
            place = self._places.get(seq)
            if place is None:
                if self._n == len(self._seqs):
                    self._grow(2 * self._n, self._vectors.shape[1])
                place = self._places[seq] = self._n
                self._n += 1
            places.append(place)
        vectors = np.frombuffer(b"".join(vector for _, vector, _ in rows), "<f4")
        self._vectors[places] = unit(vectors.reshape(len(rows), -1))
        self._seqs[places] = [seq for seq, _, _ in rows]
        self._until[places] = [np.inf if until is None else until for _, _, until in rows]

    def drop(self, seq: int) -> None:
        place = self._places.pop(seq, None)
        if place is not None:
            self._until[place] = -self._np.inf

    def pack(self, now: float) -> None:
        """Give up the places of what was dropped or has expired, where that is most of them."""
        standing = self._until[: self._n] > now
        if self._n < 128 or 2 * int(standing.sum()) > self._n:
            return
        kept = self._np.flatnonzero(standing)
        vectors, seqs, until = self._vectors[kept], self._seqs[kept], self._until[kept]
        self._n = 0
        self._grow(max(64, 2 * len(kept)), vectors.shape[1])
        self._n = len(kept)
        self._vectors[: self._n], self._seqs[: self._n] = vectors, seqs
        self._until[: self._n] = until
        self._places = {int(seq): place for place, seq in enumerate(seqs)}

    def nearest(
        self, vector: Sequence[float], k: int, now: float
    ) -> Iterator[list[tuple[int, float]]]:
        self.pack(now)
        np, n = self._np, self._n
        scores = self._vectors[:n] @ unit(np.asarray(vector, np.float32))
        scores[self._until[:n] <= now] = -np.inf
        while True:
            few = min(k, n)
            # Those that come first, and of equal ones those that are oldest.
            best = np.argpartition(-scores, few - 1)[:few] if few < n else np.arange(n)
            best = best[np.lexsort((self._seqs[best], -scores[best]))]
            found = [
                (int(self._seqs[place]), float(scores[place]))
                for place in best
                if scores[place] != -np.inf
            ]
            if not found:
                return
            yield found
            scores[best] = -np.inf


def unit(vectors: Any) -> Any:
    """``vectors``, in the last axis, with length 1, or zeros where one has none."""
    np = numpy()
    lengths = np.sqrt(np.square(vectors, dtype=np.float64).sum(-1, keepdims=True))
    return (vectors / np.where(lengths, lengths, 1.0)).astype(np.float32)


def numpy() -> Any:
    try:
        import numpy
    except ImportError:
        raise MissingPackage(
            "numpy", extra="embeddings", purpose="looking for the nearest entries of a bank"
        ) from None
    return numpy


def checked(vector: Sequence[float]) -> bytes:
    """``vector`` as it lies in a row; raises `UsageError` where it is none."""
    data = packed(vector)
    assert data is not None
    return data
