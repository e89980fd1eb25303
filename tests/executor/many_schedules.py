"""What a block of schedules comes to, for a process that does nothing else."""

from __future__ import annotations

import dataclasses

from agentpar.events import Answered, HostThrottled, PlanStarted, RunResumed
from agentpar.executor.commands import Join
from agentpar.executor.draws import drawn
from agentpar.executor.invariants import broken
from agentpar.executor.one_by_one import tries_patience
from agentpar.executor.perform import Performed, perform
from agentpar.executor.schedules import Schedule
from agentpar.plan import Failed, Outcome, picks


def complaints(first: int, behind: int) -> str:
    """What is wrong with the first schedule from ``first`` on that does not end as it must.

    Every eighth runs again, which gives the same record; so does every one that crashed, without
    the crash, where that may make no difference.
    """
    for seed in range(first, behind):
        performed = perform(drawn(seed))
        if broken(performed):
            return told(performed)
        if seed % 8 == 0 and perform(drawn(seed)).record != performed.record:
            return f"schedule {seed} is not steady"
        if performed.cuts and nothing_depends_on_time(performed):
            uncut = perform(dataclasses.replace(performed.schedule, crashes=()))
            if result(uncut) != result(performed):
                return f"{result(performed)}, without the crash {result(uncut)}\n{told(performed)}"
    return ""


def told(performed: Performed) -> str:
    return "\n".join([*broken(performed), str(performed.schedule)])


def result(performed: Performed) -> tuple[list[tuple[int, Outcome]], list[str]]:
    """How every task ended, and the answer."""
    answers = [event.text for event in performed.events if isinstance(event, Answered)]
    return sorted(performed.machine.outcomes.items()), answers


def nothing_depends_on_time(performed: Performed) -> bool:
    """Whether the run comes to the same however long anything in it takes: nobody and no limit
    stops anything, nothing takes what comes first, and no write was left open by a crash."""
    schedule, machine = performed.schedule, performed.machine
    return not (
        schedule.cancels
        or schedule.drops
        or schedule.refusals
        or schedule.batches
        or any(isinstance(entry, HostThrottled | RunResumed) for entry in performed.log)
        or any(isinstance(entry, PlanStarted) and entry.anew for entry in performed.log)
        or schedule.rules  # a plan that goes on after a crash was written with more in mind
        or schedule.limits.replan_early
        or machine.stopped_by
        or _lacks_tokens(performed)
        or tries_patience(schedule)
        or len(machine.tasks) > schedule.limits.max_tasks
        or _is_hasty(schedule)
        or any(
            isinstance(outcome, Failed) and outcome.kind in ("interrupted", "cancelled")
            for outcome in machine.outcomes.values()
        )
    )


def _lacks_tokens(performed: Performed) -> bool:
    """Whether a joiner was not to ask for another plan because nothing was left for one: what a
    model wrote for a process that died counts as spent."""
    most = performed.schedule.limits.max_replans
    return any(
        isinstance(entry, Join) and entry.final and entry.round <= most for entry in performed.log
    )


def _is_hasty(schedule: Schedule) -> bool:
    return (
        any(policy.hedge or policy.on_error == "fail" for policy in schedule.policies.values())
        or any(line.change for one in schedule.rounds for line in one.lines)
        or any(any(picks(task.args)) for task in schedule.tasks)
    )
