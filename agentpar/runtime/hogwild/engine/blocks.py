"""Which blocks of a cache belong to whom: counted, shared, given back.

Pure integers: must never know a tensor, a row's name or a model.
"""

from __future__ import annotations

from collections.abc import Iterable


class Pool:
    """``count`` blocks of a cache, each held by as many as have retained it."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(range(count - 1, -1, -1))
        self._holders = [0] * count

    @property
    def free(self) -> int:
        """How many blocks nobody holds."""
        return len(self._free)

    def holders(self, block: int) -> int:
        """How many hold ``block``."""
        return self._holders[block]

    def take(self, count: int) -> list[int] | None:
        """``count`` free blocks, each with one holder now; None, and none taken, if there are
        too few."""
        if count > len(self._free):
            return None
        taken = [self._free.pop() for _ in range(count)]
        for block in taken:
            self._holders[block] = 1
        return taken

    def retain(self, blocks: Iterable[int]) -> None:
        """One more holder for each of ``blocks``."""
        for block in blocks:
            if not self._holders[block]:
                raise ValueError(f"block {block} is free: there is nothing to share")
            self._holders[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """One holder less for each of ``blocks``; those without any are free again."""
        for block in blocks:
            if not self._holders[block]:
                raise ValueError(f"block {block} is free already")
            self._holders[block] -= 1
            if not self._holders[block]:
                self._free.append(block)
