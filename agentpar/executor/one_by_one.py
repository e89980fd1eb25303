"""How each task of a schedule must end, by the plainest interpreter there is.

Pure. It knows neither limits on calls nor time: it takes the tasks in the order in which they
have ended, and asks of each what calling it then, alone, would have brought. What somebody or a
limit has stopped is taken as it is. It must never ask the machine why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from agentpar.errors import PlanError
from agentpar.events import (
    ApprovalAsked,
    PlanFault,
    TaskDone,
    TaskPlanned,
    TaskReplaced,
    TaskStarted,
)
from agentpar.executor.machine import PATIENCE
from agentpar.executor.perform import Performed
from agentpar.executor.schedules import (
    FLOWS,
    LIST,
    MAX_RESULT_BYTES,
    SINKS,
    Behaviour,
    Schedule,
    host_visited,
    name_of,
    policy_of,
    value_of,
)
from agentpar.permissions import Flow
from agentpar.plan import (
    Failed,
    Ok,
    Outcome,
    Skipped,
    Task,
    blocker,
    collect,
    each,
    element_args,
    elements,
    fill,
    ready,
)


@dataclass(slots=True)
class Told:
    """What a log says of when tasks were planned, asked for and begun, without saying how they
    ended."""

    known: dict[int, frozenset[int]] = field(default_factory=dict)
    """For each task, the numbers that there were when its line, or its last one, was written."""
    place: dict[int, int] = field(default_factory=dict)
    """The how-manieth task of the run it is."""
    parts: dict[int, dict[int, int]] = field(default_factory=dict)
    """For each task over a list and each element, the task that was planned last for it."""
    asked: set[int] = field(default_factory=set)
    begun: dict[int, int] = field(default_factory=dict)
    """The attempts of each task that began."""
    replaced: set[int] = field(default_factory=set)
    kept: dict[int, str] = field(default_factory=dict)
    """Tasks whose results are those of other calls, and which."""

    @classmethod
    def of(cls, performed: Performed) -> Told:
        told = cls()
        numbers: frozenset[int] = frozenset()
        for event in performed.events:
            match event:
                case TaskPlanned(task=task):
                    told.known[task.id] = numbers
                    told.place[task.id] = len(told.place) + 1
                    if task.part is None:
                        numbers |= {task.id}
                    else:
                        of, index = task.part
                        told.parts.setdefault(of, {})[index] = task.id
                case TaskReplaced(task=task):
                    told.known[task.id] = numbers
                    told.replaced.add(task.id)
                    told.asked.discard(task.id)
                case PlanFault(task_id=int(id)):
                    numbers |= {id}
                case ApprovalAsked(task_id=id):
                    told.asked.add(id)
                case TaskStarted(task_id=id, attempt=attempt):
                    told.begun[id] = max(attempt, told.begun.get(id, 0))
                case TaskDone(task_id=id, via=via) if via:
                    told.kept.setdefault(id, via)
        return told

    def is_banked(self, id: int) -> bool:
        """Whether another team's call brought its result, or that of the call it shares."""
        via = self.kept.get(id, "")
        while via.startswith("same call as "):
            via = self.kept.get(int(via.rpartition(" ")[2]), "")
        return via == "bank"


def one_by_one(performed: Performed) -> Iterator[str]:
    """What ended otherwise than it does by itself, in words."""
    told, machine = Told.of(performed), performed.machine
    known: dict[int, Outcome] = {}
    for id, have in machine.outcomes.items():
        may = _Alone(performed, told, known).outcomes(id, have)
        if have not in may:
            yield f"task {id} ended as {have}, one by one as {' or '.join(map(str, may))}"
        known[id] = have


@dataclass(frozen=True, slots=True)
class _Alone:
    """One task by itself, when others have ended with ``known``."""

    performed: Performed
    told: Told
    known: Mapping[int, Outcome]

    def outcomes(self, id: int, have: Outcome) -> list[Outcome]:
        """How task ``id`` may end; one way, but where speed or a crash has a say."""
        performed, told = self.performed, self.told
        task = performed.machine.tasks.get(id)
        if task is None:
            return [Failed("not usable", "plan")]
        match have:
            case Failed(kind="limit") if performed.machine.stopped_by:
                return [have]
            case Failed(kind="cancelled"):
                return [have]  # `cancelled_for_a_reason` looks at these
            case Failed(kind="interrupted") if _may_be_interrupted(performed, task):
                return [have]
            case Failed(error, "timeout") if error.endswith(_NO_PLACE):
                return [have] if tries_patience(performed.schedule) else []
        most = performed.schedule.limits.max_tasks
        too_many = Failed(f"the plan has more than max_tasks={most} tasks", "plan")
        if told.place[id] > most and id not in told.replaced:
            return [too_many]
        if task.part is not None:
            return self._part(task, *task.part, have)
        for need in task.needs:
            if need not in told.known[id] or need == id:
                error = f"refers to ${need}, which is not planned before task {id}"
                return [Failed(error, "plan")]
        if not ready(task.args, self.known):
            return []
        if (because := blocker(task.args, self.known)) is not None:
            return [Skipped(because)]
        try:
            over = each(task.args)
            if over is None:
                return self._called(task, fill(task.args, self.known))
            count = len(elements(over, self.known))
        except PlanError as error:
            return [Failed(str(error), "reference")]
        if have == too_many and len(performed.machine.tasks) + count > most:
            return [too_many]
        parts = told.parts.get(id, {})
        ended = [self.known.get(parts.get(index, 0)) for index in range(count)]
        return [collect([outcome for outcome in ended if outcome is not None])]

    def _part(self, task: Task, of: int, index: int, have: Outcome) -> list[Outcome]:
        """A call for one element of a list, which may be still coming."""
        if not self.told.replaced.isdisjoint((of, *task.needs)):
            # The list that it was an element of may be gone.
            return self._called(task, task.args) if task.args else [have]
        whole = self.performed.machine.tasks[of]
        over = each(whole.args)
        assert over is not None
        source = self.performed.machine.tasks[over.task]
        known = dict(self.known)
        try:
            if over.task not in known or not isinstance(known[over.task], Ok):
                # It came bit by bit, and broke off perhaps; what came are its first elements.
                known[over.task] = Ok(value_of(source.tool, fill(source.args, known)))
            element = elements(over, known)[index]
        except (PlanError, IndexError):
            return []
        try:
            args = element_args(whole.args, index, element, known)
        except PlanError as error:
            return [Failed(str(error), "reference")]
        if args != task.args:
            return []
        return self._called(task, args)

    def _called(self, task: Task, args: Mapping[str, Any]) -> list[Outcome]:
        schedule, told = self.performed.schedule, self.told
        refusal = self._refused(task)
        if refusal is not None:
            return [refusal]
        policy, name = policy_of(schedule, task), name_of(args)
        if told.is_banked(task.id):  # another team has made the call, and it went well
            return [Ok(value_of(task.tool, args))]
        if args["me"] in schedule.kept and policy.cache is not None:
            return [Ok(value_of(task.tool, args))]
        hedged = policy.hedge and told.begun.get(task.id, 0) > 1
        # The attempts of a call in the place of another are counted on from that one's.
        unsteady = hedged or task.id in told.replaced or task.tool in schedule.batches
        if host := host_visited(schedule, args):
            unsteady |= bool(schedule.refusals) or _throttles(schedule)
        if unsteady:
            possible = [
                _attempt(schedule, task, args, behaviour) for behaviour in schedule.calls[name]
            ]
            possible += self._by_company(task, host)
        else:
            possible = list(_attempts(schedule, task, args))
            if not (self.performed.machine.stopped_by or tries_patience(schedule)):
                possible = possible[-1:]  # else it may be that it was not tried to the last
        if policy.on_error == "keep":
            return [
                replace(outcome, kept=True) if isinstance(outcome, Failed) else outcome
                for outcome in possible
            ]
        return possible

    def _by_company(self, task: Task, host: str) -> Iterator[Outcome]:
        """How a call may end because of others: it goes as one with them, or to a ``host`` that
        they have asked too much of."""
        schedule, have = self.performed.schedule, self.performed.machine.outcomes[task.id]
        if not isinstance(have, Failed):
            return
        slow = f"{task.tool} gave no result within "
        batched = have.error.startswith(slow) or have.error == _CANCELLED_ITSELF
        closed = have.error.startswith(f"not asked: {host!r} wants to be left alone")
        if (task.tool in schedule.batches and batched) or (host and closed):
            yield replace(have, kept=False)

    def _refused(self, task: Task) -> Outcome | None:
        """What is said of a call that a rule or a person does not let run."""
        schedule = self.performed.schedule
        have = self.performed.machine.outcomes[task.id]
        match have:
            case Failed(error, "denied") if error.startswith("denied by rule"):
                number = int(error.removeprefix("denied by rule ").partition(":")[0])
                told = [schedule.rules, *(crash.rules or () for crash in schedule.crashes)]
                rules = [rules[number - 1] for rules in told if len(rules) >= number]
                denies = any(rule.action == "deny" and rule.names(task.tool) for rule in rules)
                return have if denies else None
        if task.id not in self.told.asked:
            return None
        seconds, verdict = schedule.verdicts[task.id if task.part is None else task.part[0]]
        match verdict:
            case "not judged: the approver breaks":
                why = "the approver failed: ValueError: the approver broke"
            case "refused":
                why = "not today" if seconds else "refused"
            case _:
                return None
        return Failed(f"not approved: {why}", "denied")


def tries_patience(schedule: Schedule) -> bool:
    """Whether some call may go on for so long, though cancelled, that those which wait for its
    place are given up."""
    calls = schedule.calls.values()
    return any(b.fault == "deaf" and b.lag > PATIENCE for behaviours in calls for b in behaviours)


def _throttles(schedule: Schedule) -> bool:
    """Whether some host may hear too many requests."""
    calls = schedule.calls.values()
    return any(b.fault == "throttled" for behaviours in calls for b in behaviours)


def _may_be_interrupted(performed: Performed, task: Task) -> bool:
    """Whether a crash may leave it open if the call was made: of a sink that says no more."""
    return (
        bool(performed.cuts)
        and FLOWS.get(task.tool, Flow()).sink
        and not policy_of(performed.schedule, task).idempotent
    )


def _attempts(schedule: Schedule, task: Task, args: Mapping[str, Any]) -> Iterator[Outcome]:
    """Call until it goes well, or nothing is left to try."""
    policy, behaviours = policy_of(schedule, task), schedule.calls[name_of(args)]
    idempotent = task.tool not in SINKS if policy.idempotent is None else policy.idempotent
    if task.tool == LIST and value_of(task.tool, args):
        idempotent = False  # others have begun on what came of it before it failed
    for attempt in range(policy.retries + 1):
        behaviour = behaviours[min(attempt, len(behaviours) - 1)]
        outcome = _attempt(schedule, task, args, behaviour)
        yield outcome
        if not isinstance(outcome, Failed):
            return
        if outcome.kind != "throttled" and not (idempotent and outcome.kind in ("tool", "timeout")):
            return


_DEAF = ", and does not stop when cancelled"
"""What is said of a call that goes on."""

_CANCELLED_ITSELF = "the call cancelled itself"

_NO_PLACE = " does not stop when cancelled, and leaves no place for it"
"""What is said of a call that waited for the place of such a one, and was not made."""


def _attempt(
    schedule: Schedule, task: Task, args: Mapping[str, Any], behaviour: Behaviour
) -> Outcome:
    own = policy_of(schedule, task).timeout
    timeout = schedule.timeout if own is None else own
    if timeout is not None and (behaviour.fault == "hangs" or behaviour.latency > timeout):
        error = f"{task.tool} gave no result within {timeout:g} s"
        if behaviour.fault in ("stubborn", "deaf") and behaviour.lag > 1:
            error += _DEAF
        return Failed(error, "timeout")
    me = args["me"]
    match behaviour.fault:
        case "raises":
            return Failed(f"ValueError: call {me} broke")
        case "exits":
            return Failed(f"SystemExit: {me}")
        case "throttled":
            return Failed(f"call {me} came too soon", "throttled")
        case "cancels itself" | "cancels its task":
            return Failed(_CANCELLED_ITSELF)
        case "large":
            limit = f"max_result_bytes={MAX_RESULT_BYTES:,}"
            return Failed(f"{task.tool} returned more than {limit}", "size")
        case "not data":
            return Failed(
                "value is 2 bytes, which is not data: decode it to text, or save it and "
                "return its path"
            )
    return Ok(value_of(task.tool, args))
