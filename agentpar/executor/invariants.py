"""What must hold after every run, whatever happened in it.

Pure: each invariant reads what came of a schedule and says in words what is wrong. A new one
is a function in `INVARIANTS`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from agentpar.errors import PlanError
from agentpar.events import (
    Answered,
    AttemptEnded,
    AttemptFailed,
    ModelUsed,
    RunFinished,
    TaskDone,
    TaskPlanned,
    TaskStarted,
)
from agentpar.executor.commands import Cancel, Execute
from agentpar.executor.driver import GRACE
from agentpar.executor.machine import HEDGE_SHARE
from agentpar.executor.perform import Performed
from agentpar.executor.record import parse_record, replay
from agentpar.executor.schedules import (
    MAX_RESULT_BYTES,
    WRITE,
    Behaviour,
    Schedule,
    policy_of,
    value_of,
)
from agentpar.plan import Failed, Ok, Outcome, Skipped, Task, fill, has_value
from agentpar.policy import PLAIN

Invariant = Callable[[Performed], Iterator[str]]
"""Looks at what came of a schedule and yields what is wrong with it, in words."""


def ended(performed: Performed) -> Iterator[str]:
    """The run came to an end by itself or by its caller's cancelling, and raised nothing else."""
    if performed.error is not None and not (performed.cancelled and performed.schedule.cancels):
        yield f"the run raised {performed.error!r}"


def one_end(performed: Performed) -> Iterator[str]:
    """There is one `RunFinished`, and nothing comes behind it."""
    ends = [place for place, e in enumerate(performed.events, 1) if isinstance(e, RunFinished)]
    if ends != [len(performed.events)]:
        yield f"RunFinished at {ends} of {len(performed.events)} events"


def nothing_left(performed: Performed) -> Iterator[str]:
    """No task, timer or late event is left in the loop, but for calls that hear nothing."""
    if performed.left:
        yield f"left in the loop: {', '.join(performed.left)}"


def all_ended(performed: Performed) -> Iterator[str]:
    """Every planned task has an outcome, unless the run was cancelled or a tool failed it."""
    lost = performed.machine.tasks.keys() - performed.machine.outcomes.keys()
    if lost and not performed.cancelled and not _failed_at_once(performed):
        yield f"tasks {sorted(lost)} never ended"


def _failed_at_once(performed: Performed) -> bool:
    """Whether a tool whose failure fails the run has failed."""
    policies, outcomes = performed.schedule.policies, performed.machine.outcomes
    return any(
        isinstance(outcomes.get(id), Failed) and policies.get(task.tool, PLAIN).on_error == "fail"
        for id, task in performed.machine.tasks.items()
    )


def within_concurrency(performed: Performed) -> Iterator[str]:
    """No more calls are in flight, in all, of a tool or at a host, than the limits say."""
    schedule, tasks = performed.schedule, performed.machine.tasks
    running: Counter[str] = Counter()
    bounds = {"calls": schedule.limits.concurrency}
    for name, policy in schedule.policies.items():
        if policy.concurrency is not None:
            bounds[f"calls of {name}"] = policy.concurrency
        if policy.lock:
            bounds[f"holders of {policy.lock!r}"] = 1
    if schedule.limits.per_host is not None:
        bounds |= {f"calls at {host}.example": schedule.limits.per_host for host in "ab"}
    for task_id, change in _places(performed):
        task = tasks[task_id]
        policy = policy_of(schedule, task)
        host = str(task.args.get("url", "")).split("/")[2:3]
        names = ["calls", f"calls of {task.tool}", f"holders of {policy.lock!r}"]
        for name in names + [f"calls at {one}" for one in host]:
            running[name] += change
            if running[name] > bounds.get(name, running[name]):
                yield f"{running[name]} {name} at once, {bounds[name]} may"
    wanted = sum(change for _, change in _flights(performed))
    if wanted and not performed.cancelled:
        yield f"{wanted} calls still run at the end"
    if performed.peak > bounds["calls"]:
        yield f"{performed.peak} calls really ran at once, {bounds['calls']} may"


def _places(performed: Performed) -> Iterator[tuple[int, int]]:
    """Attempts that begin (+1) and have really ended (-1), by task."""
    running: set[tuple[int, int]] = set()
    let_go: set[tuple[int, int]] = set()
    for entry in performed.log:
        match entry:
            case Execute(task, _, attempt):
                running.add((task.id, attempt))
                yield task.id, 1
            case Cancel("call", id, attempt):
                let_go.add((id, attempt))
            case (
                TaskDone(task_id=id, attempt=attempt)
                | AttemptFailed(task_id=id, attempt=attempt, abandoned=False)
            ) if (id, attempt) in running - let_go:
                running.remove((id, attempt))
                yield id, -1
            case AttemptEnded(id, attempt) if (id, attempt) in running:
                running.remove((id, attempt))
                yield id, -1


def _flights(performed: Performed) -> Iterator[tuple[int, int]]:
    """Attempts that begin (+1) and that nobody waits for any more (-1), by task."""
    flying: dict[int, set[int]] = defaultdict(set)
    for entry in performed.log:
        match entry:
            case Execute(task, _, attempt):
                flying[task.id].add(attempt)
                yield task.id, 1
            case (
                TaskDone(task_id=id, attempt=attempt)
                | AttemptFailed(task_id=id, attempt=attempt)
                | Cancel("call", id, attempt)
            ) if attempt in flying[id]:
                flying[id].remove(attempt)
                yield id, -1


def locks_hold(performed: Performed) -> Iterator[str]:
    """No two calls really hold one lock, not even beside one that does not stop."""
    for lock, id, others in performed.overlaps:
        yield f"lock {lock!r}: call {id} ran beside {others}"


def within_rates(performed: Performed) -> Iterator[str]:
    """In no span of time more calls begin than a burst of one second's worth and the rate."""
    schedule, tasks = performed.schedule, performed.machine.tasks
    begun: dict[str, list[float]] = defaultdict(list)
    rates: dict[str, float] = {}
    for event in performed.log:
        if isinstance(event, TaskStarted):
            task = tasks[event.task_id]
            begun[task.tool].append(event.at)
            if (rate := policy_of(schedule, task).rate) is not None:
                rates[task.tool] = rate
            if (url := task.args.get("url")) and (rate := schedule.limits.host_rate) is not None:
                host = url.split("/")[2]
                begun[host].append(event.at)
                rates[host] = rate
    for name, rate in rates.items():
        times = begun[name]
        for first, since in enumerate(times):
            for last in range(first, len(times)):
                most = max(1.0, rate) + rate * (times[last] - since)
                if last - first + 1 > most + 1e-6:
                    yield f"{last - first + 1} calls of {name} in {times[last] - since:g} s"
                    return


def within_budget(performed: Performed) -> Iterator[str]:
    """Steps and money are never overspent; tokens only by prompts, whose length nobody knows
    before the first of its kind."""
    schedule, limits = performed.schedule, performed.schedule.limits
    tasks = performed.machine.tasks
    steps, cost, tokens, prompts = 0, 0.0, 0, 0
    for entry in performed.log:
        match entry:
            case Execute(task):
                steps += 1
                cost += policy_of(schedule, task).cost
            case TaskDone(task_id=id, via="cache"):
                steps -= 1
                cost -= schedule.policies.get(tasks[id].tool, PLAIN).cost
            case ModelUsed(usage=usage):
                tokens += usage.prompt_tokens + usage.completion_tokens
                prompts += usage.prompt_tokens
        if limits.max_steps is not None and steps > limits.max_steps:
            yield f"{steps} steps, max_steps is {limits.max_steps}"
            return
        if limits.max_cost_usd is not None and cost > limits.max_cost_usd + 1e-9:
            yield f"{cost:g} USD, max_cost_usd is {limits.max_cost_usd}"
            return
        if limits.max_tokens is not None and tokens > limits.max_tokens + prompts:
            yield f"{tokens} tokens, max_tokens is {limits.max_tokens}"
            return


def by_the_deadline(performed: Performed) -> Iterator[str]:
    """The run has its answer by then; what hears no cancellation keeps it a little longer."""
    deadline, end = performed.schedule.limits.deadline, performed.end
    if deadline is None or end is None or performed.cancelled:
        return
    answered = max((e.at for e in performed.log if isinstance(e, Answered)), default=0.0)
    faults = {b.fault for behaviours in performed.schedule.calls.values() for b in behaviours}
    grace = GRACE if faults & {"stubborn", "deaf"} else 0.0
    if answered > deadline + 1e-6 or end.at > deadline + grace + 1e-6:
        yield f"answered at {answered:g} s, ended at {end.at:g} s, deadline is {deadline:g} s"


def ends_soon(performed: Performed) -> Iterator[str]:
    """A run that is decided ends at once, or when it has given up on calls that go on although
    they were cancelled."""
    events = performed.events
    if len(events) > 1 and performed.machine.finished is not None:
        took = events[-1].at - events[-2].at
        if took > GRACE + 1e-6:
            yield f"the run ended {took:g} s behind its last event"


def within_retries(performed: Performed) -> Iterator[str]:
    """No call is tried more often than its policy allows; what is not idempotent is made again
    only where it was refused."""
    schedule, tasks = performed.schedule, performed.machine.tasks
    made: Counter[int] = Counter()
    refused: Counter[int] = Counter()
    for entry in performed.log:
        match entry:
            case Execute(task):
                made[task.id] += 1
            case AttemptFailed(task_id=id, outcome=Failed(kind="throttled")):
                refused[id] += 1
    for id, count in made.items():
        policy = schedule.policies.get(tasks[id].tool, PLAIN)
        twice = policy.idempotent is None and tasks[id].tool != WRITE
        may = 1 + policy.retries + policy.hedge
        if not (policy.idempotent or twice):
            may = min(1 + policy.retries, 1 + refused[id])
        if count > may:
            yield f"call {id} was made {count} times, {may} is the most"


def few_hedges(performed: Performed) -> Iterator[str]:
    """Of the calls of a tool no more than one in twenty is made a second time beside itself."""
    tasks = performed.machine.tasks
    flying: Counter[int] = Counter()
    begun: Counter[str] = Counter()
    hedges: Counter[str] = Counter()
    for id, change in _flights(performed):
        flying[id] += change
        if change > 0:
            tool = tasks[id].tool
            (hedges if flying[id] > 1 else begun)[tool] += 1
            if hedges[tool] > HEDGE_SHARE * begun[tool]:
                yield f"{hedges[tool]} hedges beside {begun[tool]} calls of {tool}"


def once_for_equals(performed: Performed) -> Iterator[str]:
    """Of equal calls that may be shared, one is made at a time, and none behind a good one."""
    schedule = performed.schedule
    open_now: dict[str, int] = {}
    well: dict[str, int] = {}
    for entry in performed.log:
        match entry:
            case Execute(task, args):
                if task.tool == WRITE or policy_of(schedule, task).idempotent is False:
                    continue
                call = f"{task.tool}{sorted(args.items())}"
                other = well.get(call, open_now.get(call, task.id))
                if other != task.id:
                    yield f"call {task.id} was made, although it equals call {other}"
                open_now[call] = task.id
            case TaskDone(task_id=id, outcome=outcome):
                mine = [call for call, owner in open_now.items() if owner == id]
                for call in mine:
                    del open_now[call]
                    if isinstance(outcome, Ok):
                        well[call] = id


def in_order(performed: Performed) -> Iterator[str]:
    """Time never goes back; an attempt starts once, planned, after all that it needs."""
    planned: dict[int, Task] = {}
    valued: set[int] = set()
    started: set[tuple[int, int]] = set()
    at = 0.0
    for event in performed.events:
        if event.at < at - 1e-8:  # a timer may fire a little early
            yield f"{type(event).__name__} at {event.at:g} s comes behind {at:g} s"
        at = event.at
        match event:
            case TaskPlanned(task=task):
                planned[task.id] = task
            case TaskDone(task_id=id) if has_value(performed.machine.outcomes.get(id)):
                valued.add(id)
            case TaskStarted(task_id=id, attempt=attempt):
                if id not in planned or (id, attempt) in started:
                    yield f"call {id} started {'unplanned' if id not in planned else 'again'}"
                elif not valued.issuperset(planned[id].needs):
                    yield f"call {id} started before {set(planned[id].needs) - valued}"
                started.add((id, attempt))


def replays(performed: Performed) -> Iterator[str]:
    """The record holds every event, and deciding again from it gives the same commands."""
    if performed.error is not None and not performed.cancelled:
        return  # there is no whole record
    record = parse_record(performed.record)
    if list(record.events) != performed.events:
        yield "the record holds other events"
    found = replay(record)
    if found.difference:
        yield f"replay differs after {found.events} events: {found.difference}"


def as_one_by_one(performed: Performed) -> Iterator[str]:
    """Every outcome is what running one call after the other gives, whatever ended first, unless
    somebody or a limit has stopped something."""
    if performed.error is not None or performed.schedule.drops:
        return
    if performed.machine.stopped_by or _failed_at_once(performed):
        return
    if any(
        isinstance(entry, Execute)
        and entry.attempt > 1
        and policy_of(performed.schedule, entry.task).hedge
        for entry in performed.log
    ):
        return  # which of two attempts brings the result depends on their speed
    expected = one_by_one(performed.schedule, performed.machine.round)
    for id in sorted(expected.keys() | performed.machine.outcomes.keys()):
        want, have = expected.get(id), performed.machine.outcomes.get(id)
        if want != have:
            yield f"task {id} ended as {have}, one by one as {want}"


INVARIANTS: tuple[Invariant, ...] = (
    ended,
    one_end,
    nothing_left,
    all_ended,
    within_concurrency,
    locks_hold,
    within_rates,
    within_budget,
    by_the_deadline,
    ends_soon,
    within_retries,
    few_hedges,
    once_for_equals,
    in_order,
    replays,
    as_one_by_one,
)


def broken(performed: Performed) -> list[str]:
    """What does not hold after a schedule, each with the name of its invariant."""
    return [
        f"{invariant.__name__}: {complaint}"
        for invariant in INVARIANTS
        for complaint in invariant(performed)
    ]


# The plain interpreter


def one_by_one(schedule: Schedule, rounds: int) -> dict[int, Outcome]:
    """The outcomes of the first ``rounds`` rounds, by the plainest interpreter there is.

    It knows neither time nor order: the tasks come as they are written, and each call goes as
    the schedule says.
    """
    outcomes: dict[int, Outcome] = {}
    count = 0
    for one in schedule.rounds[:rounds]:
        for line in one.lines:
            if line.task is None:
                outcomes[line.id] = Failed("not usable", "plan")
                continue
            count += 1
            outcomes[line.id] = _alone(schedule, line.task, outcomes, count)
    return outcomes


def _alone(schedule: Schedule, task: Task, outcomes: Mapping[int, Outcome], count: int) -> Outcome:
    most = schedule.limits.max_tasks
    if count > most:
        return Failed(f"the plan has more than max_tasks={most} tasks", "plan")
    for need in task.needs:
        if need not in outcomes:
            error = f"refers to ${need}, which is not planned before task {task.id}"
            return Failed(error, "plan")
    for need in task.needs:
        if not has_value(outcomes[need]):
            return Skipped(need)
    try:
        args = fill(task.args, outcomes)
    except PlanError as error:
        return Failed(str(error), "reference")
    if task.tool == WRITE:
        seconds, verdict = schedule.verdicts[task.id]
        if verdict == "not judged: the approver breaks":
            why = "the approver failed: ValueError: the approver broke"
            return Failed(f"not approved: {why}", "denied")
        if verdict == "refused":
            return Failed(f"not approved: {'not today' if seconds else 'refused'}", "denied")
    outcome = _tried(schedule, task, args)
    if isinstance(outcome, Failed) and policy_of(schedule, task).on_error == "keep":
        return replace(outcome, kept=True)
    return outcome


def _tried(schedule: Schedule, task: Task, args: Mapping[str, Any]) -> Outcome:
    """Call until it goes well, or nothing is left to try."""
    policy, me = policy_of(schedule, task), task.args["me"]
    if policy.cache is not None and me in schedule.kept:
        return Ok(value_of(task.tool, args))
    idempotent = task.tool != WRITE if policy.idempotent is None else policy.idempotent
    behaviours = schedule.calls[me]
    for attempt in range(policy.retries + 1):
        behaviour = behaviours[min(attempt, len(behaviours) - 1)]
        outcome = _called(schedule, task, args, behaviour)
        again = isinstance(outcome, Failed) and (
            outcome.kind == "throttled" or (idempotent and outcome.kind in ("tool", "timeout"))
        )
        if not again:
            break
    return outcome


_DEAF = ", and does not stop when cancelled"
"""What is said of a call that goes on."""


def _called(
    schedule: Schedule, task: Task, args: Mapping[str, Any], behaviour: Behaviour
) -> Outcome:
    own = policy_of(schedule, task).timeout
    timeout = schedule.timeout if own is None else own
    if timeout is not None and (behaviour.fault == "hangs" or behaviour.latency > timeout):
        error = f"{task.tool} gave no result within {timeout:g} s"
        if behaviour.fault in ("stubborn", "deaf") and behaviour.lag > 1:
            error += _DEAF
        return Failed(error, "timeout")
    me = task.args["me"]
    match behaviour.fault:
        case "raises":
            return Failed(f"ValueError: call {me} broke")
        case "exits":
            return Failed(f"SystemExit: {me}")
        case "throttled":
            return Failed(f"call {me} came too soon", "throttled")
        case "cancels itself" | "cancels its task":
            return Failed("the call cancelled itself")
        case "large":
            limit = f"max_result_bytes={MAX_RESULT_BYTES:,}"
            return Failed(f"{task.tool} returned more than {limit}", "size")
        case "not data":
            return Failed(
                "value is 2 bytes, which is not data: decode it to text, or save it and "
                "return its path"
            )
    return Ok(value_of(task.tool, args))
