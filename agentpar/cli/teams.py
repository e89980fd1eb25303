"""Runs of several teams on the command line: what is asked for, and where their records lie.

A team of run R has the run R.1, R.2, …, beside it in the same folder or journal.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from agentpar.errors import UsageError

if TYPE_CHECKING:  # loads when a run is asked for or read, not when the command line is
    from agentpar.events import Event
    from agentpar.teams import Teams


def wanted(n: int | None, select: str | None, in_file: Teams | None) -> Teams | int | None:
    """What --teams and --select make of what the file says."""
    from agentpar.teams import Teams

    if n is None and select is None:
        return in_file
    if n is None and in_file is None:
        raise UsageError("--select chooses among teams: give --teams, too")
    base = in_file or Teams()
    return Teams(base.n if n is None else n, select or base.select)  # type: ignore[arg-type]


def teams_among(ids: Collection[str]) -> set[str]:
    """Those of ``ids`` that are a team of another of them."""
    known = set(ids)
    return {
        id for id in known if id.rpartition(".")[0] in known and id.rpartition(".")[2].isdigit()
    }


def team_records(record: Path, events: Iterable[Event]) -> dict[int, Path]:
    """The records of the teams of the run at ``record``, as far as they are there."""
    from agentpar.events import TeamStarted

    runs = record.parent.parent
    found = {
        event.team: runs / Path(event.run_id).name / record.name
        for event in events
        if isinstance(event, TeamStarted)
    }
    return {team: path for team, path in sorted(found.items()) if path.is_file()}


def all_events(record: Path) -> list[Event]:
    """What happened in the run at ``record``, its teams included."""
    from agentpar.executor.record import read_record
    from agentpar.teams import woven

    own = list(read_record(record).events)
    teams = team_records(record, own)
    return woven(own, {team: read_record(path).events for team, path in teams.items()})


def chosen_record(record: Path, events: Iterable[Event]) -> Path | None:
    """The record of the team whose answer was taken; None where there were no teams."""
    from agentpar.events import TeamChosen

    events = list(events)
    chosen = [event.team for event in events if isinstance(event, TeamChosen)]
    return team_records(record, events).get(chosen[-1]) if chosen else None


def chosen_again(record: Path) -> str:
    """What differs where the answer is chosen once more of what the teams came to; empty where
    nothing does, or where a model chose."""
    from agentpar.answer import recorded_answer
    from agentpar.events import TeamChosen, TeamEnded
    from agentpar.executor.record import read_record
    from agentpar.teams import Ended, chosen_again

    own = list(read_record(record).events)
    answers = {
        team: recorded_answer(path.parent.name, read_record(path).events)
        for team, path in team_records(record, own).items()
    }
    ends = [event.team for event in own if isinstance(event, TeamEnded)]
    ended = [Ended(team, answers[team]) for team in ends if team in answers]
    for event in own:
        if isinstance(event, TeamChosen) and event.select != "judge":
            again = chosen_again(ended, event.select)
            if again is None or again.team != event.team:
                told = "none" if again is None else f"team {again.team}"
                return f"differs: team {event.team} was chosen, now it is {told}"
    return ""
