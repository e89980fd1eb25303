"""What happened in a group, step by step: enough to compute it again in one forward pass.

Written by whatever ran the group, read by `replay`. Tokens, counts and names only: must never
know a tensor, a model or an engine.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from agentpar.errors import UsageError
from agentpar.runtime.hogwild.spans import Board
from agentpar.workers import Layout

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Step:
    """One engine step of a group.

    ``joined``: rows that were added before it, in order. ``wrote``: how many tokens of which
    rows it computed. ``ended``: rows whose last token ended a step of theirs. ``closed``: rows
    that write no more after it.
    """

    wrote: Mapping[str, int]
    joined: tuple[str, ...] = ()
    ended: tuple[str, ...] = ()
    closed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Transcript:
    """The tokens of each row behind the prefix, and the steps in which they were written.

    The last token that a worker sampled is in ``tokens`` only if it was computed on, that is if
    a later step had it as its input.
    """

    prefix: tuple[int, ...]
    tokens: Mapping[str, tuple[int, ...]]
    steps: tuple[Step, ...]
    layout: Layout = "contiguous"

    def boards(self) -> Iterator[tuple[Step, Board]]:
        """Each step with the board as its queries saw it: after its writing, before its ends.

        It is one board that changes; look at it before going on.
        """
        board = Board(len(self.prefix), self.layout)
        for step in self.steps:
            for row in step.joined:
                board.join(row)
            for row, count in step.wrote.items():
                board.write(row, count)
            yield step, board
            for row in step.ended:
                board.end_step(row)
            for row in step.closed:
                board.close(row)

    def to_json(self) -> str:
        """One line of JSON; `from_json` reads it."""
        steps = [
            {
                "wrote": dict(step.wrote),
                **({"joined": step.joined} if step.joined else {}),
                **({"ended": step.ended} if step.ended else {}),
                **({"closed": step.closed} if step.closed else {}),
            }
            for step in self.steps
        ]
        tokens = {row: list(ids) for row, ids in self.tokens.items()}
        return json.dumps(
            {
                "format": FORMAT,
                "layout": self.layout,
                "prefix": list(self.prefix),
                "tokens": tokens,
                "steps": steps,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Transcript:
        """Read what `to_json` wrote; raises `UsageError` for anything else."""
        try:
            found: dict[str, Any] = json.loads(text)
            if found["format"] != FORMAT:
                raise UsageError(
                    f"a transcript of format {found['format']!r}; this version reads {FORMAT}"
                )
            steps = tuple(
                Step(
                    wrote={str(row): int(n) for row, n in step["wrote"].items()},
                    joined=tuple(step.get("joined", ())),
                    ended=tuple(step.get("ended", ())),
                    closed=tuple(step.get("closed", ())),
                )
                for step in found["steps"]
            )
            tokens = {row: tuple(ids) for row, ids in found["tokens"].items()}
            return cls(tuple(found["prefix"]), tokens, steps, found["layout"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"not the transcript of a group: {error}") from error
