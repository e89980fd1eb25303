"""Logged decisions out of runs that have been: their events say what was decided, and the bank's
ledger what came of it.

It reads both and changes neither. A run that nobody can read any more counts as one that ended
well.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from agentpar.events import EntryOffered, EntryUsed, Event, RunFinished, RunStarted
from agentpar.memory.credit import Ledger, Prices, Use, worth
from agentpar.memory.entry import Reading
from agentpar.memory.learning.logs import Logged
from agentpar.memory.store import Store


def decisions(
    runs: Iterable[Sequence[Event]], store: Store, prices: Prices | None = None
) -> Iterator[Logged]:
    """One for each finding that was offered, in the order of ``runs``, if the event has features.

    An entry that was revoked has misled all its readers. Of several runs that brought the same
    one, only the first is credited with what it was worth.
    """
    told = [list(events) for events in runs]
    ends = dict(filter(None, map(_end, told)))
    withdrawn = {entry.id for entry in store.entries(revoked=True)}
    readings: dict[str, list[Reading]] = defaultdict(list)
    for reading in store.readings():
        readings[reading.entry_id].append(reading)
    credited: set[str] = set()
    for events in told:
        run_id = next((event.run_id for event in events if isinstance(event, RunStarted)), "")
        for event in events:
            if not isinstance(event, EntryOffered) or not event.features:
                continue
            credit = None
            if event.admitted:
                if event.entry in credited:
                    continue
                credited.add(event.entry)
                read = tuple(readings[event.entry])
                misled = {one.run_id: Use("contradicted") for one in read}
                uses = misled if event.entry in withdrawn else ends
                brought = frozenset(run for run, *_ in store.producers(event.entry))
                credit = worth(Ledger(read, brought, uses), prices).net
            yield Logged(
                event.features, event.probability, event.admitted, credit, event.policy, run_id
            )


def _end(events: Sequence[Event]) -> tuple[str, Use] | None:
    """A run, and how it ended."""
    run_id, read, verdict = "", 0, "failed"
    for event in events:
        match event:
            case RunStarted(run_id=run_id):
                pass
            case EntryUsed():
                read += 1
            case RunFinished(status="answered"):
                verdict = "sound"
    return (run_id, Use("sound" if verdict == "sound" else "failed", read)) if run_id else None
