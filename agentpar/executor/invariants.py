"""What must hold after every run, whatever happened in it.

Pure: each invariant reads what came of a schedule and says in words what is wrong. A new one
is a function in `INVARIANTS`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from agentpar.events import (
    Answered,
    ApprovalGiven,
    AttemptEnded,
    AttemptFailed,
    Event,
    HostThrottled,
    JoinStarted,
    ModelUsed,
    PlanStarted,
    RunFinished,
    TaskCancelled,
    TaskDone,
    TaskItem,
    TaskPlanned,
    TaskReplaced,
    TaskStarted,
)
from agentpar.executor.commands import Cancel, Execute
from agentpar.executor.driver import GRACE
from agentpar.executor.machine import HEDGE_SHARE
from agentpar.executor.one_by_one import one_by_one
from agentpar.executor.perform import Performed
from agentpar.executor.record import parse_record, replay
from agentpar.executor.schedules import PURE, SINKS, policy_of
from agentpar.permissions import Rule
from agentpar.plan import Failed, Ok, Outcome, Task, blocker, each, has_value, ready
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
    schedule = performed.schedule
    running: Counter[str] = Counter()
    bounds = {"calls": schedule.limits.concurrency}
    for name, policy in schedule.policies.items():
        if policy.concurrency is not None:
            bounds[f"calls of {name}"] = policy.concurrency
        if policy.lock:
            bounds[f"holders of {policy.lock!r}"] = 1
    if schedule.limits.per_host is not None:
        bounds |= {f"calls at {host}.example": schedule.limits.per_host for host in "ab"}
    for task, change in _places(performed):
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


def _places(performed: Performed) -> Iterator[tuple[Task, int]]:
    """Attempts that begin (+1) and have really ended (-1)."""
    running: dict[tuple[int, int], Task] = {}
    let_go: set[tuple[int, int]] = set()
    for entry in performed.log:
        match entry:
            case Execute(task, _, attempt):
                running[task.id, attempt] = task
                yield task, 1
            case Cancel("call", id, attempt):
                let_go.add((id, attempt))
            case (
                TaskDone(task_id=id, attempt=attempt)
                | AttemptFailed(task_id=id, attempt=attempt, abandoned=False)
            ) if (id, attempt) in running.keys() - let_go:
                yield running.pop((id, attempt)), -1
            case AttemptEnded(id, attempt) if (id, attempt) in running:
                yield running.pop((id, attempt)), -1


def _flights(performed: Performed) -> Iterator[tuple[Task, int]]:
    """Attempts that begin (+1) and that nobody waits for any more (-1)."""
    flying: dict[tuple[int, int], Task] = {}
    for entry in performed.log:
        match entry:
            case Execute(task, _, attempt):
                flying[task.id, attempt] = task
                yield task, 1
            case (
                TaskDone(task_id=id, attempt=attempt)
                | AttemptFailed(task_id=id, attempt=attempt)
                | Cancel("call", id, attempt)
            ) if (id, attempt) in flying:
                yield flying.pop((id, attempt)), -1


def locks_hold(performed: Performed) -> Iterator[str]:
    """No two calls really hold one lock, not even beside one that does not stop."""
    for lock, name, others in performed.overlaps:
        yield f"lock {lock!r}: call {name} ran beside {others}"


def _starts(performed: Performed) -> Iterator[tuple[TaskStarted, Task, bool]]:
    """Every attempt that begins, of which task as it then was, and whether it begins again."""
    tasks: dict[int, Task] = {}
    begun: set[tuple[int, int]] = set()
    for event in performed.log:
        match event:
            case TaskPlanned(task=task) | TaskReplaced(task=task):
                tasks[task.id] = task
            case TaskStarted(task_id=id, attempt=attempt) if id in tasks:
                yield event, tasks[id], (id, attempt) in begun
                begun.add((id, attempt))


def within_rates(performed: Performed) -> Iterator[str]:
    """In no span of time more calls begin than a burst of one second's worth and the rate; calls
    that broke off with their process begin again when the next one comes."""
    schedule = performed.schedule
    begun: dict[str, list[float]] = defaultdict(list)
    rates: dict[str, float] = {}
    for event, task, again in _starts(performed):
        if again:
            continue
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
    """Steps and money are never overspent, but by calls that were in flight when a process died;
    tokens only by prompts, whose length nobody knows before the first of its kind, and by what a
    model wrote for a process that died. That is counted, as is all that was set aside for it."""
    schedule, limits = performed.schedule, performed.schedule.limits
    tasks = performed.machine.tasks
    steps, cost, tokens, prompts, broken_off = 0, 0.0, 0, 0, 0
    set_aside = {"plan": limits.plan_tokens, "join": limits.answer_tokens}
    asked: dict[str, int] = {}  # "plan", "join" -> the round whose model call has told no usage
    begun: set[tuple[int, int]] = set()
    for entry in performed.log:
        match entry:
            case Execute(task):
                steps += 1
                cost += policy_of(schedule, task).cost
            case TaskStarted(task_id=id, attempt=attempt):
                begun.add((id, attempt))
            case Cancel("call", id, attempt, why="the rules have changed"):
                if (id, attempt) not in begun:  # the process died before
                    steps -= 1
                    cost -= policy_of(schedule, tasks[id]).cost
            case TaskDone(task_id=id, attempt=attempt, via="cache" | "bank" | "journal"):
                if entry.via != "journal" or (id, attempt) not in begun:
                    steps -= 1
                    cost -= policy_of(schedule, tasks[id]).cost
            case PlanStarted(number) | JoinStarted(number):
                purpose = "plan" if isinstance(entry, PlanStarted) else "join"
                if asked.get(purpose) == number:
                    broken_off += set_aside[purpose]
                asked[purpose] = number
            case ModelUsed(purpose, usage=usage):
                asked.pop(purpose, None)
                tokens += usage.prompt_tokens + usage.completion_tokens
                prompts += usage.prompt_tokens
        if limits.max_steps is not None and steps > limits.max_steps:
            yield f"{steps} steps, max_steps is {limits.max_steps}"
            return
        if limits.max_cost_usd is not None and cost > limits.max_cost_usd + 1e-9:
            yield f"{cost:g} USD, max_cost_usd is {limits.max_cost_usd}"
            return
        over = prompts + sum(set_aside.values()) * len(performed.cuts)
        if limits.max_tokens is not None and tokens > limits.max_tokens + over:
            yield f"{tokens} tokens, max_tokens is {limits.max_tokens}"
            return
    again = [task for _, task, again in _starts(performed) if again]
    steps += len(again)
    cost += sum(policy_of(schedule, task).cost for task in again)
    spent = performed.machine.budget
    if spent.tokens < tokens + broken_off:
        yield f"of {tokens} + {broken_off} tokens {spent.tokens} were counted"
    if (spent.steps, round(spent.cost, 9)) != (steps, round(cost, 9)):
        yield f"{steps} steps for {cost:g} USD were counted as {spent.steps} for {spent.cost:g} USD"


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
    schedule = performed.schedule
    made: Counter[int] = Counter()
    refused: Counter[int] = Counter()
    for entry in performed.log:
        match entry:
            case Execute(task):
                made[task.id] += 1
                policy = policy_of(schedule, task)
                twice = policy.idempotent is None and task.tool not in SINKS
                may = 1 + policy.retries + policy.hedge
                if not (policy.idempotent or twice):
                    may = min(1 + policy.retries, 1 + refused[task.id])
                if made[task.id] > may:
                    yield f"call {task.id} was made {made[task.id]} times, {may} is the most"
            case AttemptFailed(task_id=id, outcome=Failed(kind="throttled")):
                refused[id] += 1
            case Cancel("call", id, why="the rules have changed"):
                made[id] -= 1  # it broke off with its process, and is made again, or not at all
            case TaskReplaced(task=task):
                made[task.id] = refused[task.id] = 0


def few_hedges(performed: Performed) -> Iterator[str]:
    """Of the calls of a tool no more than one in twenty is made a second time beside itself."""
    flying: Counter[int] = Counter()
    begun: Counter[str] = Counter()
    hedges: Counter[str] = Counter()
    for task, change in _flights(performed):
        flying[task.id] += change
        if change > 0:
            tool = task.tool
            (hedges if flying[task.id] > 1 else begun)[tool] += 1
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
                if task.tool in SINKS or policy_of(schedule, task).idempotent is False:
                    continue
                call = f"{task.tool}{sorted(args.items())}"
                other = well.get(call, open_now.get(call, task.id))
                if other != task.id:
                    yield f"call {task.id} was made, although it equals call {other}"
                open_now[call] = task.id
            case TaskReplaced(task=task):
                for call in [call for call, owner in open_now.items() if owner == task.id]:
                    del open_now[call]
            case TaskDone(task_id=id, outcome=outcome):
                mine = [call for call, owner in open_now.items() if owner == id]
                for call in mine:
                    del open_now[call]
                    if isinstance(outcome, Ok):
                        well[call] = id


def in_order(performed: Performed) -> Iterator[str]:
    """Time never goes back; an attempt starts once, planned, after all that it needs, and again
    only where it was in flight when its process died."""
    planned: dict[int, Task] = {}
    ended: dict[int, Outcome] = {}
    told: set[tuple[int, int]] = set()
    flying: set[tuple[int, int]] = set()
    begun: set[tuple[int, int]] = set()
    at = 0.0
    for place, event in enumerate(performed.log):
        if place in performed.cuts:
            begun -= flying
            flying.clear()
        if not isinstance(event, Event):
            continue
        if event.at < at - 1e-8:  # a timer may fire a little early
            yield f"{type(event).__name__} at {event.at:g} s comes behind {at:g} s"
        at = event.at
        match event:
            case TaskPlanned(task=task) | TaskReplaced(task=task):
                planned[task.id] = task
            case TaskItem(task_id=id, index=index):
                told.add((id, index))
            case AttemptFailed(task_id=id, attempt=attempt):
                flying.discard((id, attempt))
            case TaskDone(task_id=id, attempt=attempt):
                flying.discard((id, attempt))
                if id not in ended and id in performed.machine.outcomes:
                    ended[id] = performed.machine.outcomes[id]
            case TaskStarted(task_id=id, attempt=attempt):
                if id not in planned or (id, attempt) in begun:
                    yield f"call {id} started {'unplanned' if id not in planned else 'again'}"
                elif missing := _missing(planned[id], planned, ended, told):
                    yield f"call {id} started before {missing}"
                begun.add((id, attempt))
                flying.add((id, attempt))


def _missing(
    task: Task,
    planned: Mapping[int, Task],
    ended: Mapping[int, Outcome],
    told: Collection[tuple[int, int]],
) -> set[int]:
    """What ``task`` needs and has not got; of a pick it needs no more than it takes, and for one
    element of a list not the others."""
    if task.part is not None:
        of, index = task.part
        task = planned[of]
        over = each(task.args)
        if over is not None and (over.task, index) in told:
            ended = {**ended, over.task: Ok(None)}
    if ready(task.args, ended) and blocker(task.args, ended) is None:
        return set()
    return {need for need in task.needs if not has_value(ended.get(need))}


def not_again(performed: Performed) -> Iterator[str]:
    """A task that has ended does not run again, whatever process or plan comes."""
    ended: set[int] = set()
    for event in performed.log:
        match event:
            case TaskDone(task_id=id):
                ended.add(id)
            case TaskStarted(task_id=id) if id in ended:
                yield f"call {id} started when it had ended"


def effects_once(performed: Performed) -> Iterator[str]:
    """What may have had an effect is not called again, unless its tool says that twice does no
    more than once; and then under the same key."""
    keys: dict[tuple[int, str], str] = {}
    made: Counter[tuple[int, str]] = Counter()
    for effect in performed.effects:
        call = effect.task_id, effect.args
        if keys.setdefault(call, effect.key) != effect.key:
            yield f"call {effect.task_id} was made under two keys"
        policy = performed.schedule.policies.get(effect.tool, PLAIN)
        if made[call] and not policy.idempotent:
            yield f"call {effect.task_id} of {effect.tool} had its effect twice"
        made[call] += not effect.refused


def leaves_hosts_alone(performed: Performed) -> Iterator[str]:
    """No request goes to a host while it wants to be left alone, whatever process it told that."""
    closed: list[tuple[str, float, float, int]] = []  # host, from when, until when, told to whom
    for place, entry in enumerate(performed.log):
        if isinstance(entry, HostThrottled) and entry.retry_after is not None:
            teller = _process(performed, place)
            closed.append((entry.host, entry.at, entry.at + entry.retry_after, teller))
    for one in performed.requests:
        for host, since, until, teller in closed:
            told = one.process > teller or (one.process == teller and one.at > since)
            if one.host == host and told and one.at < until - 1e-6:
                yield f"{host} was asked at {one.at:g} s, closed from {since:g} to {until:g} s"
                return


def _process(performed: Performed, place: int) -> int:
    """The how-manieth process, from 0, has told what stands at this place in the log."""
    return sum(cut <= place for cut in performed.cuts)


def cancelled_for_a_reason(performed: Performed) -> Iterator[str]:
    """A task that nobody has cancelled is cancelled only where whatever needs it has ended, or
    has enough without it."""
    final = performed.machine.outcomes
    if not any(map(_is_lost, final.values())):
        return
    tasks: dict[int, Task] = {}
    ended: dict[int, Outcome] = {}
    wanted: set[int] = set()  # by some version of some task
    told: set[int] = set()
    for event in performed.log:
        match event:
            case TaskPlanned(task=task) | TaskReplaced(task=task):
                if isinstance(event, TaskReplaced):
                    told.add(task.id)
                tasks[task.id] = task
                wanted.update(task.needs)
            case TaskCancelled(task_id=id):
                told.add(id)
            case TaskDone(task_id=id) if id in final and id not in ended:
                ended[id] = final[id]
                if final[id] != event.outcome or not _is_lost(final[id]) or id in told:
                    continue
                if (part := tasks[id].part) is not None:
                    whole = tasks[part[0]]
                    if _is_lost(final.get(whole.id)) or not told.isdisjoint(
                        (whole.id, *whole.needs)
                    ):
                        continue
                before = {other: ended[other] for other in ended if other != id}
                users = (task for task in tasks.values() if id in task.needs)
                unmet = [
                    user.id
                    for user in users
                    if user.id not in ended
                    and not _is_lost(final.get(user.id))
                    and not ready(user.args, before)
                ]
                if unmet or id not in wanted:
                    yield f"task {id} was cancelled, which {unmet or 'nobody'} needs"


def _is_lost(outcome: Outcome | None) -> bool:
    return isinstance(outcome, Failed) and outcome.kind == "cancelled"


def permitted(performed: Performed) -> Iterator[str]:
    """No call runs that the rules do not let run, or those with which the agent came back, or
    somebody has not approved as it is: above all none that has consequences and to which a way
    leads from outside."""
    schedule = performed.schedule
    rules = [schedule.rules]
    tasks: dict[int, Task] = {}
    swayed: dict[int, bool] = {}  # whether its planner had read something from outside
    brought: set[int] = set()
    approved: set[int] = set()
    reading = False
    for place, event in enumerate(performed.log):
        if place in performed.cuts:
            crashes = schedule.crashes[: _process(performed, place)]
            given = crashes[-1].rules if crashes else None
            rules = [schedule.rules, *([] if given is None else [given])]
        match event:
            case PlanStarted():
                reading = bool(brought)
            case TaskPlanned(task=task):
                tasks[task.id] = task
                swayed[task.id] = reading if task.part is None else swayed[task.part[0]]
            case TaskReplaced(task=task):
                tasks[task.id] = task
                swayed[task.id] |= reading
                approved.discard(task.id)
            case TaskDone(task_id=id, outcome=Ok() | Failed() as outcome) if _was_made(outcome):
                if tasks[id].tool != PURE:
                    brought.add(id if (part := tasks[id].part) is None else part[0])
            case ApprovalGiven(task_id=id, allowed=True):
                approved.add(id)
            case TaskStarted(task_id=id) if id not in approved:
                if not any(rules) and tasks[id].tool not in SINKS:
                    continue
                behind = _behind(id, tasks)
                filled = any(tasks[other].tool != PURE for other in behind)
                told_to = swayed[id] or any(swayed[other] for other in behind)
                for each in rules:
                    if (action := _said(each, tasks[id].tool, filled, told_to)) != "allow":
                        yield f"call {id} of {tasks[id].tool} ran, although the rules {action}"


def _was_made(outcome: Outcome) -> bool:
    """Whether a call came to this, by whose words a planner may be swayed."""
    made = ("tool", "timeout", "size", "throttled")
    return not isinstance(outcome, Failed) or outcome.kind in made


def _behind(id: int, tasks: Mapping[int, Task]) -> set[int]:
    """The tasks from which an arrow, or several in a row, lead to this one."""
    behind: set[int] = set()
    left = [id]
    while left:
        new = {need for need in tasks[left.pop()].needs if need in tasks} - behind
        behind |= new
        left += new
    return behind


def _said(rules: Sequence[Rule], tool: str, filled: bool, told_to: bool) -> str:
    """What the first rule says that speaks of such a call; ``filled``: with data from outside,
    ``told_to``: perhaps because of them."""
    for rule in rules:
        of = {"trusted": not (filled or told_to), "untrusted": filled or told_to}
        if not rule.names(tool) or not of.get(rule.data or "any", True):
            continue
        too_much = tool in SINKS and (told_to or (filled and rule.data is None))
        if rule.action != "allow" or not too_much:
            return rule.action
    return "ask" if tool in SINKS else "allow"


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
    """Every outcome is what calling one by one gives, whatever ended first, unless somebody or a
    limit has stopped it; and every line of the plans was heard."""
    if performed.error is None:
        yield from one_by_one(performed)
        if not performed.machine.stopped_by and not _failed_at_once(performed):
            rounds = performed.schedule.rounds[: performed.machine.round]
            lines = {line.id for one in rounds for line in one.lines if not line.change}
            for event in performed.events:
                if isinstance(event, PlanStarted) and event.anew:
                    lines -= rounds[event.round - 1].anew or frozenset()
            if missing := lines - performed.machine.outcomes.keys():
                yield f"of the lines {sorted(missing)} nothing came"


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
    not_again,
    effects_once,
    leaves_hosts_alone,
    cancelled_for_a_reason,
    permitted,
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
