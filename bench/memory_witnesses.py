"""What it would cost to share a finding only once two teams have it independently of each other.

Counts over the recorded teams (`recordings/`), which shared nothing: of the calls that 1 of k teams
made and another made as well, how many would still be spared if each had to be made by two teams
before a third is served; and how often two teams had different results of one call at all, without
which no two sources can be disjoint. No model, no clock: the same numbers everywhere.

    python bench/memory_witnesses.py
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from memory_recorded import RECORDING

from agentpar.memory.learning.recorded import RecordedTeam


def by_question(teams: Sequence[RecordedTeam], k: int) -> Iterator[list[RecordedTeam]]:
    """The first ``k`` teams of each question."""
    found: dict[str, list[RecordedTeam]] = defaultdict(list)
    for team in teams:
        found[team.question].append(team)
    yield from (some[:k] for some in found.values())


def findings(teams: Sequence[RecordedTeam]) -> dict[str, list[str]]:
    """For each call that may be shared, what each team that made it had of it, by a hash."""
    had: dict[str, list[str]] = defaultdict(list)
    for team in teams:
        own = {
            call.like: call.value for call in team.calls if call.shared and call.ok and call.value
        }
        for like, value in own.items():
            had[like].append(value)
    return had


def main() -> None:
    teams = [RecordedTeam.from_line(line) for line in RECORDING.read_text().splitlines()]
    print("| teams | calls | made once | made by two first | calls of two teams: results differ |")
    print("|---|---|---|---|---|")
    for k in (3, 8):
        every = [values for some in by_question(teams, k) for values in findings(some).values()]
        calls = sum(map(len, every))
        several = [values for values in every if len(values) > 1]
        differ = sum(len(set(values)) > 1 for values in several)
        spared = calls - len(every)
        left = sum(max(0, len(values) - 2) for values in every)
        print(
            f"| {k} | {calls} | {len(every)} (-{spared / calls:.0%}) "
            f"| {calls - left} (-{left / calls:.0%}) | {differ} of {len(several)} |"
        )


if __name__ == "__main__":
    main()
