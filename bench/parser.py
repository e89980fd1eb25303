"""Lines a second of the plan parser, whole and in pieces, beside each other.

    python bench/parser.py [LINES]

Prints the machine, and for each piece size the CPU seconds (best of five) for a plan of
LINES (10,000) lines; the parser waits for nothing, so that is its wall time where it has a
core to itself. The gate is 0.3 s for any piece size. The baseline beside it is one
``ast.parse`` a line: not incremental, blind to references, and written in C. We expect to
lose to it.
"""

from __future__ import annotations

import ast
import platform
import sys
import time
from collections.abc import Callable

from agentpar.planner.parser import PlanParser


def plan(lines: int) -> str:
    """A plan of ``lines`` calls that looks like those that models write."""
    calls = (f'{i}. search(query="population of city {i}", limit=3)' for i in range(1, lines + 1))
    return "\n".join(calls) + "\njoin()\n"


def parse(pieces: list[str]) -> int:
    """How many items the parser finds in ``pieces``."""
    parser = PlanParser()
    found = 0
    for piece in pieces:
        found += len(parser.feed(piece))
    return found + len(parser.close())


def baseline(pieces: list[str]) -> int:
    """The whole text through Python's own reader, line by line: how many lines there are."""
    [text] = pieces
    lines = text.splitlines()
    for line in lines:
        ast.parse(line.partition(". ")[2] or line, mode="eval")
    return len(lines)


def best(run: Callable[[list[str]], int], pieces: list[str], expected: int) -> float:
    """CPU seconds of the fastest of five runs."""
    times = []
    for _ in range(5):
        begin = time.process_time()
        found = run(pieces)
        times.append(time.process_time() - begin)
        assert found == expected, (found, expected)
    return min(times)


def main() -> None:
    lines = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    text = plan(lines)
    print(f"{platform.machine()}, Python {platform.python_version()}")
    print(f"{lines} lines, {len(text)} characters")
    print(f"{'pieces of':>16} {'seconds':>9} {'lines/s':>10}")
    for label, size in (("whole text", len(text)), ("64", 64), ("3", 3), ("1", 1)):
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        seconds = best(parse, pieces, lines + 1)
        print(f"{label:>16} {seconds:9.3f} {lines / seconds:10,.0f}")
    seconds = best(baseline, [text], lines + 1)
    print(f"{'ast, whole text':>16} {seconds:9.3f} {lines / seconds:10,.0f}")


if __name__ == "__main__":
    main()
