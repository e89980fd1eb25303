"""The machine: facts in, wishes out.

It decides which task runs when, what is tried again or twice, what is skipped, when to join,
when to plan again, and when enough is spent. It awaits nothing, reads no clock and draws
nothing at random (time comes with the facts), so the same facts always give the same commands:
that is what makes a run replayable. It must never know what a tool does or how a model is
reached.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

from agentpar.errors import PlanError
from agentpar.events import (
    Answered,
    ApprovalGiven,
    AttemptEnded,
    AttemptFailed,
    Event,
    HostThrottled,
    JoinFailed,
    JoinStarted,
    LeaseAwaited,
    ModelUsed,
    PlanEnded,
    PlanFailed,
    PlanFault,
    PlanStarted,
    ReplanAsked,
    RunResumed,
    RunStarted,
    TaskCancelled,
    TaskDone,
    TaskItem,
    TaskPlanned,
    TaskReplaced,
    TaskStarted,
    Woke,
)
from agentpar.executor.admission import Admission, Lane
from agentpar.executor.budget import Budget
from agentpar.executor.commands import (
    Ask,
    Cancel,
    Command,
    Conclude,
    Execute,
    Expand,
    Finish,
    Join,
    Plan,
    Settle,
    Wake,
)
from agentpar.executor.latency import Latency
from agentpar.executor.ranks import upward_ranks
from agentpar.executor.twins import Twins
from agentpar.labels import brought_in, label_of
from agentpar.permissions import Permissions, Verdict, bound_to
from agentpar.plan import (
    EACH,
    Failed,
    Ok,
    Outcome,
    Ref,
    Skipped,
    Task,
    blocker,
    circle_of,
    collect,
    each,
    element_args,
    elements,
    fill,
    has_value,
    picks,
    ready,
    references,
)
from agentpar.policy import PLAIN, Limits, Policy
from agentpar.resource import NEVER

HEDGE_AFTER = 0.95
"""The share of earlier calls that were quicker than one that is hedged."""
HEDGE_SHARE = 0.05
"""Most hedges for each call of a tool."""
RERANK_AT = 1.25
"""How far expected latencies of two tools may drift apart before all are ranked anew."""
MOMENT = 0.001
"""Seconds that make no difference to an order: who is quicker still counts as about as quick."""
JOIN_SHARE = 0.3
"""The share of a deadline kept for the answer while nothing is known of how long one takes."""
JOIN = "join()"
"""Under this name the machine learns how long answers take; no tool can have it."""
PATIENCE = 30.0
"""Seconds for which calls wait where only calls that do not stop keep them from beginning."""
PARTS = 1_000_000
"""The parts of task 3 are numbered from 3,000,001: no plan counts that far."""


@dataclass(slots=True, eq=False)
class _Open:
    """A task that has not ended, and who waits for it."""

    task: Task
    unmet: int = 0  # how many of its needs have not ended
    lacks: bool = False  # one of those that have has no value
    dependants: list[_Open] | None = None

    def is_left_by(self, one: _Open) -> None:
        """``one`` does not wait for it any more, if it did."""
        if self.dependants is not None and one in self.dependants:
            self.dependants.remove(one)


_NONE_RUN: dict[int, float] = {}
"""Of all calls that wait to begin, of which there are many; nothing is ever put into it."""


class _Call:
    """A task whose needs have ended and which has not: waiting, running, or between attempts."""

    # Written out, as one is made for each task: a dataclass takes twice the time for fields that
    # all begin alike.
    __slots__ = (
        "args",
        "attempts",
        "awaited",
        "began",
        "failure",
        "followers",
        "heard",
        "hedging",
        "lane",
        "last",
        "policy",
        "seen",
        "task",
        "tries",
        "waiting",
    )

    def __init__(self, task: Task, args: Mapping[str, Any], policy: Policy, lane: Lane) -> None:
        self.task = task
        self.args = args
        self.policy = policy
        self.lane = lane
        self.began = 0.0
        self.attempts = _NONE_RUN  # those that run: when each began
        self.last = 0  # number of the attempt that began last
        self.seen = 0  # number of the attempt that was told last to have begun
        self.tries = 0  # attempts that were no hedges
        self.waiting = False  # an attempt waits for a place
        self.hedging = False  # ... and it, or the one that began last, is a hedge
        self.failure: Failed | None = None
        self.followers: list[int] | None = None  # tasks with the same call, which wait for this one
        self.heard = 0  # number of the attempt that said which host asks for less
        self.awaited = False  # an equal call of another team was waited for: its time says nothing


class Machine:
    """One run's state. `handle` is its only door; the attributes are for reading.

    ``permissions`` say which calls run, ask or never run, ``policies`` how each tool is called; of
    two identical calls of a tool that they name, and that may be made twice, the second gets the
    result of the first. ``latencies`` are seconds that calls took in earlier runs, by tool.
    ``seed`` makes the pauses between attempts differ from run to run.
    """

    # Without these, CPython looks up every attribute of an object that has more than thirty.
    __slots__ = (
        "_admission",
        "_approved",
        "_armed",
        "_asked",
        "_asked_in",
        "_begun",
        "_calls",
        "_concluding",
        "_expected",
        "_follows",
        "_handlers",
        "_items",
        "_joining",
        "_last_id",
        "_late",
        "_learns_at",
        "_lingering",
        "_now",
        "_numbered",
        "_open",
        "_parts",
        "_paused",
        "_picking",
        "_plan_error",
        "_planner_read",
        "_planning",
        "_ranked",
        "_ranks",
        "_stuck_since",
        "_timers",
        "_tried",
        "_turn",
        "_twins",
        "_unfit",
        "_unmended",
        "_unneeded",
        "budget",
        "faults",
        "finished",
        "first_permissions",
        "known_latencies",
        "latency",
        "limits",
        "outcomes",
        "permissions",
        "policies",
        "question",
        "read",
        "round",
        "run_id",
        "seed",
        "stopped_by",
        "tasks",
    )

    def __init__(
        self,
        limits: Limits | None = None,
        permissions: Permissions | None = None,
        *,
        policies: Mapping[str, Policy] | None = None,
        latencies: Mapping[str, Sequence[float]] | None = None,
        seed: str = "",
    ) -> None:
        self.limits = limits or Limits()
        self.permissions = self.first_permissions = permissions or Permissions()
        self.policies = dict(policies or {})
        self.known_latencies = {name: tuple(found) for name, found in (latencies or {}).items()}
        self.seed = seed
        self.run_id = ""
        self.question = ""
        self.round = 0
        self.tasks: dict[int, Task] = {}
        self.outcomes: dict[int, Outcome] = {}
        self.faults: list[PlanFault] = []
        self.read: dict[int, tuple[int, ...]] = {}  # task -> results its planner had read, if any
        self.finished: Finish | None = None
        self.stopped_by = ""
        self.budget = Budget(self.limits)
        self.latency = Latency(self.known_latencies)
        self._now = 0.0
        self._planning = False
        self._joining = False
        self._concluding = False
        self._plan_error = ""
        self._planner_read: tuple[int, ...] = ()
        self._asked_in: dict[str, int] = {}  # "plan", "join" -> the last round that began one
        self._open: dict[int, _Open] = {}  # all that were planned and have not ended
        self._picking: set[int] = set()  # may start before all they need has ended
        self._unneeded: list[tuple[int, int]] = []  # (task, which did not wait for it)
        self._parts: dict[int, list[int]] = {}  # of tasks over a list, those that were planned
        self._numbered: dict[int, int] = {}  # how many parts such a task has ever had
        self._unfit: dict[int, str] = {}  # parts whose arguments cannot be filled, and why
        self._items: dict[int, list[Any]] = {}  # elements of lists that are still coming
        # Of a call that was replaced or is judged anew: its last attempt, and the tries that count.
        self._tried: dict[int, tuple[int, int]] = {}
        self._asked: dict[int, Ask] = {}
        self._approved: set[str] = set()  # what approvals that were given are bound to
        self._calls: dict[int, _Call] = {}
        self._follows: dict[int, int] = {}  # task -> the call whose result it waits for
        self._admission = Admission(self.limits, self.policies, self.latency)
        # Reading twice does no harm and brings nothing: these run once for equal arguments.
        self._twins = Twins(
            name
            for name, policy in self.policies.items()
            if policy.idempotent is not False and not self.permissions.flow(name).sink
        )
        self._begun: dict[str, list[int]] = {}  # of tools that hedge: calls begun, hedges
        self._timers: list[tuple[float, int, str, int]] = []  # (when, turn, what, task)
        self._paused: set[int] = set()  # tasks between two attempts
        self._lingering: dict[tuple[int, int], Lane] = {}  # attempts that were let go, not ended
        self._stuck_since: float | None = None  # nothing can begin before one of those ends
        self._unmended = ""  # the failure for which the next plan is to be asked for
        self._late = False  # so late that the time left is for the answer
        self._turn = 0
        self._armed = NEVER
        self._ranks: dict[int, float] = {}
        self._expected: dict[str, float] = {}
        self._ranked = 0
        self._learns_at = 4  # as many tasks have to end before ranks are looked at again
        self._last_id = 0
        self._handlers: dict[type, Callable[[Any], list[Command]]] = {
            TaskPlanned: self._task_planned,
            TaskDone: self._task_done,
            TaskStarted: self._task_started,
            AttemptFailed: self._attempt_failed,
            HostThrottled: self._host_throttled,
            AttemptEnded: self._attempt_ended,
            LeaseAwaited: self._lease_awaited,
            TaskItem: self._task_item,
            TaskReplaced: self._task_replaced,
            TaskCancelled: self._task_cancelled,
            Woke: self._woke,
            RunStarted: self._run_started,
            RunResumed: self._run_resumed,
            PlanFault: self._plan_fault,
            PlanStarted: self._plan_started,
            PlanEnded: self._plan_ended,
            PlanFailed: self._plan_failed,
            JoinStarted: self._join_started,
            ModelUsed: self._model_used,
            ApprovalGiven: self._approval_given,
            ReplanAsked: self._replan_asked,
            Answered: self._answered,
            JoinFailed: self._join_failed,
        }

    def handle(self, event: Event) -> list[Command]:
        """Take one fact and return what is wanted because of it, in order.

        Facts that decide nothing (text pieces) return an empty list.
        """
        handler = self._handlers.get(type(event))
        if handler is None:
            return []
        at = event.at
        if at > self._now:  # a clock that was set back changes nothing
            self._now = at
        commands = handler(event)
        admission = self._admission
        if admission.waiting and admission.running < admission.slots and self.finished is None:
            commands += self._admit()
        if self._lingering and self.finished is None:
            commands += self._look_whether_stuck()
        return commands

    @property
    def next_id(self) -> int:
        """The number from which the next plan counts."""
        return self._last_id + 1

    @property
    def waiting(self) -> bool:
        """Whether calls wait for their time (a pause, a rate) and not for an event."""
        return self.finished is None and bool(self._paused or self._admission.waiting)

    @property
    def wakes_at(self) -> float:
        """When the machine next wants to be woken; `NEVER` if it does not."""
        return self._armed

    @property
    def final_round(self) -> bool:
        """Whether a joiner of this round may not ask for another plan."""
        return self.round > self.limits.max_replans or bool(self.stopped_by) or self._forbids_plan()

    # Planning

    def _run_started(self, event: RunStarted) -> list[Command]:
        self.run_id = event.run_id
        self.question = event.question
        commands: list[Command] = []
        if self.limits.deadline is not None:
            kept = self.latency.of(JOIN).quantile(0.9) or JOIN_SHARE * self.limits.deadline
            kept = min(kept, 0.8 * self.limits.deadline)
            commands += self._wake(self.limits.deadline - kept, "wind down")
            commands += self._wake(self.limits.deadline, "end")
        return commands + self._plan(why="")

    def _plan(self, why: str) -> list[Command]:
        limit = self.budget.reserve(
            "plan", self.limits.plan_tokens, beside=self.limits.answer_tokens
        )
        if limit:
            self.stopped_by = self.stopped_by or limit
            if not self.tasks:
                return self._finish(Finish("failed", f"{limit} does not allow a plan"))
            return self._conclude()
        self.round += 1
        self._planning = True
        self._plan_error = ""
        self._planner_reads()
        return [Plan(self.round, self.next_id, why)]

    def _plan_started(self, event: PlanStarted) -> list[Command]:
        """The planner is shown what is known by now: on the way through a run that broke off
        inside a plan, more than when that plan was first asked for."""
        self._planner_reads()
        self._count_again("plan", event.round, self.limits.plan_tokens)
        return []

    def _join_started(self, event: JoinStarted) -> list[Command]:
        self._count_again("join", event.round, self.limits.answer_tokens)
        return []

    def _count_again(self, purpose: str, round: int, completion: int) -> None:
        """A model call that begins a second time in a round broke off with its process."""
        if self._asked_in.get(purpose) == round:
            self.budget.reserve_again(purpose, completion)
        self._asked_in[purpose] = round

    def _planner_reads(self) -> None:
        self._planner_read = brought_in(self.tasks, self.outcomes, self.permissions.pure)

    def _task_planned(self, event: TaskPlanned) -> list[Command]:
        task = event.task
        id = task.id
        if id in self.tasks or id in self.outcomes:
            raise PlanError(f"task {id} is planned twice")
        self.tasks[id] = task
        one = self._open[id] = _Open(task)
        if task.part is not None:
            parent, index = task.part
            if (read := self.read.get(parent)) is not None:
                self.read[id] = read
            if id not in self._parts.get(parent, ())[index : index + 1]:
                return [Settle(id, Failed("cancelled: nobody waits for it", "cancelled"))]
            one.dependants = [self._open[parent]]
        else:
            if self._planner_read:
                self.read[id] = self._planner_read
            if id > self._last_id:
                self._last_id = id
        if len(self.tasks) > self.limits.max_tasks:
            return [Settle(id, self._too_many())]
        if not task.needs or task.part is not None:
            return self._start(one)
        return self._await_needs(one)

    def _await_needs(self, one: _Open) -> list[Command]:
        """The task waits for what it needs, or starts where that has ended."""
        task, waits_for, planned = one.task, [], self._open
        for need in task.needs:
            if (other := planned.get(need)) is not None and other is not one:
                waits_for.append(other)
            elif (outcome := self.outcomes.get(need)) is None:
                error = f"refers to ${need}, which is not planned before task {task.id}"
                return [Settle(task.id, Failed(error, "plan"))]
            elif not has_value(outcome):
                one.lacks = True
        if not waits_for:
            return self._start(one)
        one.unmet = len(waits_for)
        for other in waits_for:
            if other.dependants is None:
                other.dependants = [one]
            else:
                other.dependants.append(one)
        if task.special and any(picks(task.args)):
            self._picking.add(task.id)
            return self._start_early(one)
        return []

    def _start_early(self, one: _Open) -> list[Command]:
        """A task that picks among others needs no more of them than it picks."""
        task = one.task
        if not ready(task.args, self.outcomes):
            return []
        self._picking.discard(task.id)
        one.unmet = 0
        commands = self._start(one)
        for need in task.needs:
            if (other := self._open.get(need)) is not None:
                other.is_left_by(one)
                self._unneeded.append((need, task.id))
        return commands + self._drop_unneeded()

    def _drop_unneeded(self) -> list[Command]:
        """Cancel what a pick did without, once no line of the plan can ask for it any more."""
        if self._planning or not self._unneeded:
            return []
        commands: list[Command] = []
        left, self._unneeded = self._unneeded, []
        left.sort(key=lambda pair: pair[0] in self._calls)  # whoever shares a call before it
        for need, id in left:
            if need in self._open and not self._is_wanted(need):
                commands += self._abandon(need, f"task {id} has what it needs", branch=True)
        return commands

    def _too_many(self) -> Failed:
        return Failed(f"the plan has more than max_tasks={self.limits.max_tasks} tasks", "plan")

    def _plan_fault(self, event: PlanFault) -> list[Command]:
        """A line that cannot be used still ends: later lines may refer to its number."""
        self.faults.append(event)
        id = event.task_id
        if id is None or id in self.tasks:
            return []
        self._last_id = max(self._last_id, id)
        self.outcomes[id] = Failed(event.message, "plan")
        return []

    def _plan_ended(self, event: PlanEnded) -> list[Command]:
        self._planning = False
        self._ranked = 0  # the whole of it is known only now
        return self._drop_unneeded() + self._mend() or self._join_if_quiet()

    def _plan_failed(self, event: PlanFailed) -> list[Command]:
        if not self._planning:
            return []  # the plan was complete, or not wanted any more, before its planner broke
        self._planning = False
        self._plan_error = event.error
        self.budget.forfeit("plan")
        return self._drop_unneeded() or self._join_if_quiet()

    def _model_used(self, event: ModelUsed) -> list[Command]:
        if event.purpose == "prefill":
            # It costs, but what a run may ask of the model does not depend on it.
            self.budget.add_cost(event.usage)
            return []
        slot = "" if event.task_id is None else _slot(event.task_id, event.attempt)
        self.budget.settle(event.purpose, event.usage, slot=slot)
        if event.purpose == "join" and not event.error:
            self.latency.of(JOIN).add(event.seconds)
        return []

    # Starting calls

    def _start(self, one: _Open) -> list[Command]:
        """The task's last need has ended: call it, ask first, queue it, or skip it.

        A skip waits for every need, so that which one it names, the first in writing
        order, does not depend on which ended first. It costs nothing: so does the joiner.
        """
        task = one.task
        args = task.args
        if task.part is not None:
            if task.id in self._unfit:
                return [Settle(task.id, Failed(self._unfit.pop(task.id), "reference"))]
        elif task.needs:
            if task.special:
                if (because := blocker(args, self.outcomes)) is not None:
                    return [Settle(task.id, Skipped(because))]
                if (over := each(args)) is not None:
                    return self._expand(task, over)
            elif one.lacks:
                lacking = (need for need in task.needs if not has_value(self.outcomes[need]))
                return [Settle(task.id, Skipped(next(lacking)))]
            try:
                args = fill(args, self.outcomes)
            except PlanError as error:
                return [Settle(task.id, Failed(str(error), "reference"))]
        if self.stopped_by:
            return [Settle(task.id, self._unspent())]
        if self.permissions.always_allows(task.tool):
            return self._call(task, args)
        return self._permit(task, args)

    def _expand(self, task: Task, over: Ref) -> list[Command]:
        """The list that the task goes over is there: a part for each element, or what they have
        come to."""
        try:
            items = elements(over, self.outcomes)
        except PlanError as error:
            return [Settle(task.id, Failed(str(error), "reference"))]
        if task.id in self._parts:
            ended = [self.outcomes[part] for part in self._parts[task.id]]
            return [Settle(task.id, collect(ended))]
        if len(self.tasks) + len(items) > self.limits.max_tasks:
            return [Settle(task.id, self._too_many())]
        return self._spawn(task, items, 0) or [Settle(task.id, Ok([]))]

    def _spawn(self, task: Task, items: Sequence[Any], start: int) -> list[Command]:
        """Parts for the elements of a list from number ``start`` on."""
        planned = self._parts.setdefault(task.id, [])
        self._picking.discard(task.id)  # it has what it picks, and waits for its parts
        parts = []
        for index in range(start, len(items)):
            count = self._numbered[task.id] = self._numbered.get(task.id, 0) + 1
            id = task.id * PARTS + count
            try:
                args = element_args(task.args, index, items[index], self.outcomes)
            except PlanError as error:
                args, self._unfit[id] = {}, str(error)
            parts.append(Task(id, task.tool, args, task.needs, part=(task.id, index)))
            planned.append(id)
        self._open[task.id].unmet += len(parts)
        return [Expand(task.id, tuple(parts))] if parts else []

    def _task_item(self, event: TaskItem) -> list[Command]:
        """An element of a list that is still coming: what goes over that list may begin. A list
        is read by one attempt: whichever tells an element first goes on alone."""
        id = event.task_id
        one = self._open.get(id)
        if one is None:
            return []
        items = self._items.setdefault(id, [])
        if event.index != len(items):  # an attempt of an earlier part of the run has told it
            return [] if items[event.index : event.index + 1] == [event.value] else self._reread(id)
        items.append(event.value)
        commands: list[Command] = []
        if (call := self._calls.get(id)) is not None and (len(call.attempts) > 1 or call.waiting):
            commands = self._drop(call, "another attempt has begun its list", but=event.attempt)
        for dependant in one.dependants or ():
            task = dependant.task
            if self._goes_over(task, id):
                commands += self._spawn(task, items, len(self._parts.get(task.id, ())))
        return commands

    def _reread(self, id: int) -> list[Command]:
        """A list that was read again, after a crash, is another than what others began on."""
        error = "its list was read again and differs from the elements that calls have begun on"
        commands = self._drop(self._calls[id], error) if id in self._calls else []
        return [*commands, Settle(id, Failed(error))]

    def _spawn_rest(self, task: Task, list_of: int) -> list[Command]:
        """The list has ended: parts for the elements that have not been told one by one."""
        outcome = self.outcomes[list_of]
        if not isinstance(outcome, Ok):
            return []
        return self._spawn(task, outcome.value, len(self._parts[task.id]))

    def _goes_over(self, task: Task, list_of: int) -> bool:
        """Whether ``task`` waits for nothing but the end of the list that it goes over."""
        if not task.special or each(task.args) != Ref(list_of):
            return False
        others = (ref.task for ref in references(task.args) if EACH not in ref.path)
        return all(has_value(self.outcomes.get(need)) for need in others)

    def _spreads(self, task: Task, list_of: int) -> bool:
        """Whether ``task`` has begun on the elements of the list of task ``list_of``; what its
        own parts bring may be lists, too."""
        return task.id in self._parts and each(task.args) == Ref(list_of)

    def _permit(self, task: Task, args: Mapping[str, Any], *, begun: bool = False) -> list[Command]:
        """By what the rules say of this call it runs, is asked for, or has failed; ``begun``: it
        was being made when the run broke off."""
        match self._judged(task, args):
            case Ask() as ask:
                self._asked[task.id] = ask
                return [ask]
            case Verdict("deny", because):
                more = "; it was being called when the run broke off" if begun else ""
                return [Settle(task.id, Failed(f"denied by {because}{more}", "denied"))]
            case _:
                return self._call(task, args)

    def _judged(self, task: Task, args: Mapping[str, Any]) -> Verdict | Ask:
        """What the rules say of this call, or the question that somebody has to answer first."""
        label = label_of(
            task,
            self.tasks,
            pure=self.permissions.pure,
            read=self.read,
            outcomes=self.outcomes,
        )
        verdict = self.permissions.verdict(task.tool, label)
        if verdict.action != "ask":
            return verdict
        bound = bound_to(self.run_id, task, args, label)
        if bound in self._approved:
            return Verdict("allow", "it was approved")
        return Ask(task, args, label, verdict.because, bound)

    def _approval_given(self, event: ApprovalGiven) -> list[Command]:
        ask = self._asked.get(event.task_id)
        if ask is None:
            return []
        if event.bound != ask.bound:
            return [ask]  # an answer to another question
        del self._asked[event.task_id]
        if event.allowed:
            self._approved.add(ask.bound)
            return self._call(ask.task, ask.args)
        return [Settle(event.task_id, Failed(f"not approved: {event.reason}", "denied"))]

    def _run_resumed(self, event: RunResumed) -> list[Command]:
        """Other rules hold from here on, also for calls that have begun and not ended: they would
        be made again. What has ended stands, and an approval stays one."""
        self.permissions = event.permissions
        commands: list[Command] = []
        for id, ask in list(self._asked.items()):
            if not isinstance(self._judged(ask.task, ask.args), Ask):
                del self._asked[id]
                commands += [Cancel("ask", id, why="the rules have changed")]
                commands += self._permit(ask.task, ask.args)
        for id, call in list(self._calls.items()):
            judged = self._judged(call.task, call.args)
            if isinstance(judged, Verdict) and judged.action == "allow":
                continue
            unbegun = sum(attempt > call.seen for attempt in call.attempts)
            for _ in range(unbegun):
                self.budget.give_back_step(call.policy.cost)
            failed = call.tries - len(call.attempts)  # what was in flight broke off, and is no try
            commands += self._drop(call, "the rules have changed")
            for task in (call.task, *self._forget(id, max(0, failed))):
                commands += self._permit(task, call.args, begun=task is call.task and call.seen > 0)
        return commands

    def _forget(self, id: int, tries: int = 0) -> list[Task]:
        """The call of task ``id`` is not made any more, or not before somebody allows it: then so
        many ``tries`` are spent. Those that waited for its result."""
        call = self._calls.pop(id)
        self._tried[id] = call.last, tries
        self._twins.forget(id, call.task.tool)
        followers = call.followers or []
        for follower in followers:
            del self._follows[follower]
        return [self.tasks[follower] for follower in followers]

    def _call(self, task: Task, args: Mapping[str, Any]) -> list[Command]:
        first = self._twins.first(task.id, task.tool, args)
        if first != task.id:
            outcome = self.outcomes.get(first)
            if isinstance(outcome, Ok):
                return [Settle(task.id, outcome, f"same call as {first}")]
            if (running := self._calls.get(first)) is not None:
                running.followers = [*(running.followers or ()), task.id]
                self._follows[task.id] = first
                return []
            # The first one failed: it may be tried anew.
            self._twins.begin_anew(task.id, task.tool, args)
        lane = self._admission.lane(task.tool, args)
        call = self._calls[task.id] = _Call(task, args, lane.policy, lane)
        if task.id in self._tried:
            call.last, call.tries = self._tried[task.id]
            call.began = self._now
        return self._offer(call)

    def _offer(self, call: _Call) -> list[Command]:
        """One more attempt of ``call``: now, or when it is its turn (see `handle`)."""
        admission = self._admission
        if not admission.waiting and admission.enter(call.lane, self._now):
            return self._begin(call)
        call.waiting = True
        admission.queue(call, call.lane, self._rank(call))
        return []

    def _begin(self, call: _Call) -> list[Command]:
        """``call`` has a place: begin an attempt, if it can be paid for."""
        call.waiting = False
        task, policy = call.task, call.policy
        if limit := self.stopped_by or (
            self._set_aside(call) if policy.tokens else self.budget.take_step(policy.cost)
        ):
            self._admission.release(call.lane)
            commands = self._begin_no_more(limit)
            if not call.attempts:
                commands.append(Settle(task.id, call.failure or self._unspent()))
            return commands
        attempt = call.last = call.last + 1
        if not call.tries:
            call.began = self._now
        if call.attempts:
            call.attempts[attempt] = self._now
        else:
            call.attempts = {attempt: self._now}
        if not call.hedging:
            call.tries += 1
        if not (policy.hedge or policy.retries):
            return [Execute(task, call.args, attempt)]
        commands = self._watch(call) if policy.hedge else []
        return [*commands, Execute(task, call.args, call.last, retry=True)]

    def _set_aside(self, call: _Call) -> str:
        """Pay for an attempt in which the model writes; the limit that forbids it, or ``""``."""
        budget, policy = self.budget, call.policy
        if limit := budget.take_step(policy.cost):
            return limit
        beside, slot = self.limits.answer_tokens, _slot(call.task.id, call.last + 1)
        if limit := budget.reserve("think", policy.tokens, beside=beside, slot=slot):
            budget.give_back_step(policy.cost)
        return limit

    def _admit(self) -> list[Command]:
        """Give the places that are free to those who wait, the most urgent first."""
        admission = self._admission
        if len(self.tasks) - self._ranked > self._ranked // 16 or (
            len(self.outcomes) >= self._learns_at and self._has_learned()
        ):
            self._ranked = len(self.tasks)
            self._expected = self.latency.expected()
            self._ranks = upward_ranks(self._open, self.tasks, self._expected)
            admission.reorder(self._rank)
        commands: list[Command] = []
        while admission.running < admission.slots:
            if (call := admission.next(self._now)) is None:
                break
            commands += self._begin(call)
        if admission.running < admission.slots and (at := admission.opens(self._now)) < NEVER:
            commands += self._arm(at)
        return commands

    def _has_learned(self) -> bool:
        """Whether the ranks count some tool as quicker or slower, beside the others, than it has
        turned out. Asked when twice as many tasks have ended as when it was asked last."""
        self._learns_at = 2 * len(self.outcomes)
        drift = [
            (seconds + MOMENT) / (self._expected.get(name, 1.0) + MOMENT)
            for name, seconds in self.latency.expected().items()
        ]
        return max(drift, default=0.0) > RERANK_AT * min(drift, default=0.0)

    def _rank(self, call: _Call) -> float:
        part = call.task.part  # what waits for a part waits for the whole
        rank = self._ranks.get(call.task.id if part is None else part[0])
        return self._expected.get(call.task.tool, 1.0) if rank is None else rank

    # Ending calls

    def _task_started(self, event: TaskStarted) -> list[Command]:
        """An attempt that begins a second time broke off with its process: both count."""
        call = self._calls.get(event.task_id)
        if call is not None:
            if event.attempt > call.seen:
                call.seen = event.attempt
            else:
                self.budget.take_again(call.policy.cost)
                if tokens := call.policy.tokens:
                    slot = _slot(event.task_id, event.attempt)
                    self.budget.reserve_again("think", tokens, slot=slot)
        return []

    def _lease_awaited(self, event: LeaseAwaited) -> list[Command]:
        """An attempt waits for what another team makes of an equal call: how long it takes is not
        how long its tool does."""
        if (call := self._calls.get(event.task_id)) is not None:
            call.awaited = True
        return []

    def _attempt_failed(self, event: AttemptFailed) -> list[Command]:
        call = self._calls.get(event.task_id)
        began = None if call is None else call.attempts.pop(event.attempt, None)
        if call is None or began is None:
            return []
        admission, now = self._admission, self._now
        commands: list[Command] = []
        if call.policy.tokens:
            self.budget.forfeit(_slot(event.task_id, event.attempt))
        if event.abandoned:
            commands = self._let_go(call, event.attempt, event.outcome.error)
        else:
            admission.release(call.lane)
        if event.outcome.kind == "throttled" and call.heard != event.attempt:
            admission.throttled(call.lane, call.task.tool, now, began, event.retry_after)
        call.failure = event.outcome
        if call.attempts or call.waiting:
            return commands  # another attempt may still bring it
        if not self._may_retry(call):
            return [*commands, Settle(call.task.id, event.outcome)]
        pause = call.policy.pause(call.last, f"{self.seed}/{call.task.id}")
        self._paused.add(call.task.id)
        call.hedging = False
        at = now + max(pause, event.retry_after or 0.0)
        return [*commands, *self._wake(at, "retry", call.task.id)]

    def _let_go(self, call: _Call, attempt: int, why: str) -> list[Command]:
        """Nobody waits for this attempt any more. What it took up stays taken until it ends."""
        self._lingering[call.task.id, attempt] = call.lane
        if call.policy.tokens:
            self.budget.forfeit(_slot(call.task.id, attempt))
        return [Cancel("call", call.task.id, attempt, why)]

    def _attempt_ended(self, event: AttemptEnded) -> list[Command]:
        if (lane := self._lingering.pop((event.task_id, event.attempt), None)) is not None:
            self._admission.release(lane)
            if not self._lingering:
                self._stuck_since = None
        return []

    def _look_whether_stuck(self) -> list[Command]:
        """Calls wait, and nothing but the end of calls that do not stop can let them begin: they
        are not waited for without end."""
        if not self._is_stuck():
            self._stuck_since = None
        elif self._stuck_since is None:
            self._stuck_since = self._now
            return self._wake(self._now + PATIENCE, "stuck")
        return []

    def _is_stuck(self) -> bool:
        admission = self._admission
        return (
            self.finished is None
            and admission.waiting > 0
            and admission.running == len(self._lingering)
            and not (self._planning or self._asked or self._paused)
            and admission.opens(self._now) == NEVER
        )

    def _give_up_waiting(self) -> list[Command]:
        """Calls whose places are held by others that do not stop have failed."""
        if self._stuck_since is None or self._now < self._stuck_since + PATIENCE:
            return []
        self._stuck_since = None
        held = ", ".join(f"call {id}" for id in dict.fromkeys(id for id, _ in self._lingering))
        error = f"not called: {held} does not stop when cancelled, and leaves no place for it"
        commands: list[Command] = []
        for id, call in self._calls.items():
            if call.waiting:
                commands += self._drop(call, error)
                commands.append(Settle(id, call.failure or Failed(error, "timeout")))
        return commands

    def _host_throttled(self, event: HostThrottled) -> list[Command]:
        """A host asks for less: what its calls are told holds for all calls to it."""
        call, began = self._calls.get(event.task_id), None
        if call is not None:
            call.heard = event.attempt
            began = call.attempts.get(event.attempt)
        began = self._now if began is None else began
        self._admission.host_throttled(event.host, self._now, began, event.retry_after)
        return []

    def _may_retry(self, call: _Call) -> bool:
        assert call.failure is not None
        if self.stopped_by or call.tries > call.policy.retries:
            return False
        if call.failure.kind == "throttled":
            return True  # it was refused before anything was done
        if call.task.id in self._items:
            return False  # others have begun on what it brought
        return call.failure.kind in ("tool", "timeout") and self._is_idempotent(call.task.tool)

    def _is_idempotent(self, tool: str) -> bool:
        said = self.policies.get(tool, PLAIN).idempotent
        return not self.permissions.flow(tool).sink if said is None else said

    def _task_done(self, event: TaskDone) -> list[Command]:
        id, outcome = event.task_id, event.outcome
        one = self._open.get(id)
        if one is None or one.unmet:
            return []  # ended already
        told_early = id in self._items
        if told_early and isinstance(outcome, Ok):
            told = self._items[id]
            if outcome.value[: len(told)] != told:
                return self._reread(id)
        del self._open[id]
        call = self._calls.pop(id, None)
        commands = [] if call is None else self._close(call, event)
        lacks, self.outcomes[id] = False, outcome
        if type(outcome) is not Ok:
            if isinstance(outcome, Failed) and outcome.kind not in ("limit", "cancelled"):
                # Whoever shares the result of a call shares its end.
                called = call is not None or event.via
                on_error = self.policies.get(one.task.tool, PLAIN).on_error if called else "skip"
                if on_error == "fail":
                    return self._fall(one.task, outcome, commands)
                if on_error == "keep":
                    outcome = self.outcomes[id] = replace(outcome, kept=True)
            lacks = not has_value(outcome)
            if self.limits.replan_early and id not in self._parts and _is_mendable(outcome):
                self._unmended = self._failure(one.task, outcome)
                commands += self._mend()
        picking = self._picking
        for dependant in one.dependants or ():
            if told_early and self._spreads(dependant.task, id):
                commands += self._spawn_rest(dependant.task, id)
            if lacks:
                dependant.lacks = True
            left = dependant.unmet = dependant.unmet - 1
            if not left:
                if picking:
                    picking.discard(dependant.task.id)
                commands += self._start(dependant)
            elif left < 0:
                dependant.unmet = 0  # just now it was abandoned: it ends
            elif picking and dependant.task.id in picking:
                commands += self._start_early(dependant)
        if self._open or self._planning:
            return commands
        return commands + self._join_if_quiet()

    def _fall(self, task: Task, outcome: Failed, commands: list[Command]) -> list[Command]:
        """The run fails with this task; of the ``commands`` that were due, those that stop
        something are left."""
        why = f"task {task.id} ({task.tool}) failed: {outcome.error}"
        stops = [command for command in commands if isinstance(command, Cancel)]
        return [*stops, *self._cancel_all(why), *self._finish(Finish("failed", why))]

    def _close(self, call: _Call, event: TaskDone) -> list[Command]:
        """The task of ``call`` has ended: what else was done for it stops, those who waited for
        the same call get its result."""
        id, outcome, admission = call.task.id, event.outcome, self._admission
        commands: list[Command] = []
        if call.attempts.pop(event.attempt, None) is not None:
            lane = call.lane
            admission.release(lane)
            if call.policy.tokens:
                slot = _slot(id, event.attempt)
                self.budget.release(slot) if event.via else self.budget.forfeit(slot)
            if event.via:
                if event.via != "journal" or event.attempt > call.seen:  # else it was made, once
                    self.budget.give_back_step(call.policy.cost)
            elif type(outcome) is Ok:
                if not call.awaited:
                    lane.samples.add(self._now - call.began)
                if lane.far is not None:
                    lane.far.succeeded()
        if call.attempts or call.waiting or id in self._paused:
            commands = self._drop(call, "another attempt has brought the result")
        if not call.followers:
            return commands
        for follower in call.followers:
            del self._follows[follower]
            if self.stopped_by and not isinstance(outcome, Ok):
                commands.append(Settle(follower, self._unspent()))
            elif isinstance(outcome, Failed) and outcome.kind in ("cancelled", "limit"):
                commands += self._call(self.tasks[follower], call.args)
            else:
                commands.append(Settle(follower, outcome, f"same call as {id}"))
        return commands

    def _drop(self, call: _Call, why: str, *, but: int = 0) -> list[Command]:
        """Nothing of ``call`` runs, ``but`` perhaps one attempt, waits or will be tried again."""
        id = call.task.id
        self._paused.discard(id)
        if call.waiting:
            call.waiting = False
            self._admission.withdraw(call, call.lane)
            if call.hedging:
                self._begun[call.task.tool][1] -= 1
        commands: list[Command] = []
        for attempt in [attempt for attempt in call.attempts if attempt != but]:
            del call.attempts[attempt]
            commands += self._let_go(call, attempt, why)
        return commands

    def _task_cancelled(self, event: TaskCancelled) -> list[Command]:
        """Nobody wants this task: it ends now, in whatever state it is."""
        if event.task_id not in self._open:
            return []
        return self._abandon(event.task_id, event.why)

    def _abandon(self, id: int, why: str, *, branch: bool = False) -> list[Command]:
        """End a task that is not wanted; with its ``branch``, also what only it had need of."""
        if self._is_settled(id):
            return []
        commands = self._take_out(id, why)
        self._open[id].unmet = 0
        error = f"cancelled: {why}" if why else "cancelled"
        commands.append(Settle(id, Failed(error, "cancelled")))
        for need in self.tasks[id].needs if branch else ():
            if need in self._open and not self._is_wanted(need):
                commands += self._abandon(need, f"only task {id} needed it", branch=True)
        return commands

    def _is_settled(self, id: int) -> bool:
        """Whether it is decided how the task ends, and only not told yet."""
        if self._open[id].unmet or id in self._asked or id in self._follows:
            return False
        call = self._calls.get(id)
        return call is None or not (call.attempts or call.waiting or id in self._paused)

    def _is_wanted(self, id: int) -> bool:
        """Whether another task waits for this one, or for the result of its call."""
        call = self._calls.get(id)
        return bool(self._open[id].dependants or (call is not None and call.followers))

    def _take_out(self, id: int, why: str) -> list[Command]:
        """Stop all that is done for a task that has not ended; it waits for nothing any more."""
        commands: list[Command] = []
        if (call := self._calls.get(id)) is not None:
            commands = self._drop(call, why)
        if (first := self._follows.pop(id, None)) is not None:
            followers = self._calls[first].followers
            assert followers is not None
            followers.remove(id)
        if self._asked.pop(id, None) is not None:
            commands.append(Cancel("ask", id, why=why))
        commands += self._drop_parts(id, why)
        self._picking.discard(id)
        one = self._open[id]
        for need in one.task.needs:
            if (other := self._open.get(need)) is not None:
                other.is_left_by(one)
        return commands

    def _drop_parts(self, id: int, why: str) -> list[Command]:
        """Nobody waits for the parts of task ``id`` any more."""
        commands: list[Command] = []
        for part in self._parts.pop(id, ()):
            if (one := self._open.get(part)) is not None:
                one.dependants = None
                commands += self._abandon(part, why)
        return commands

    def _task_replaced(self, event: TaskReplaced) -> list[Command]:
        """Another call in the place of one that has not ended. What has ended stands."""
        task = event.task
        id = task.id
        one = self._open.get(id)
        if one is None:
            return []
        if circle := circle_of(task, {id: other.task for id, other in self._open.items()}):
            raise PlanError(" needs ".join(f"${step}" for step in circle))
        commands = self._take_out(id, "replaced")
        if (call := self._calls.get(id)) is not None:
            for follower in self._forget(id):
                commands += self._call(follower, call.args)
        if self._items.pop(id, None) is not None:  # another list comes: begin with that anew
            for dependant in one.dependants or ():
                if dependant.task.id in self._parts:
                    commands += self._drop_parts(dependant.task.id, f"task {id} was replaced")
                    dependant.unmet = 1
        self.tasks[id] = one.task = task
        if self._planner_read:  # its line was written with more in mind than the old one
            self.read[id] = (*self.read.get(id, ()), *self._planner_read)
        one.unmet, one.lacks = 0, False
        return [*commands, *self._await_needs(one)]

    def _mend(self) -> list[Command]:
        """Ask for the next plan because of a failure, while others go on; a plan that is still
        being written is waited for."""
        why = self._unmended
        if not why or self._planning:
            return []
        self._unmended = ""
        spent = self.stopped_by or self._late or self.round > self.limits.max_replans
        if spent or not self._open or self._forbids_plan():
            return []
        return self._plan(why)

    def _failure(self, task: Task, outcome: Failed) -> str:
        """What went wrong, by the numbers that the planner knows."""
        id, element = task.part or (task.id, None)
        error = outcome.error if element is None else f"element {element}: {outcome.error}"
        return f"call {id} ({task.tool}) failed: {error}"

    # Time

    def _wake(self, at: float, what: str, task: int = 0) -> list[Command]:
        self._turn += 1
        heapq.heappush(self._timers, (at, self._turn, what, task))
        return self._arm(at)

    def _arm(self, at: float) -> list[Command]:
        if at >= self._armed:
            return []
        self._armed = at
        return [Wake(at)]

    def _woke(self, event: Woke) -> list[Command]:
        self._armed = NEVER
        commands: list[Command] = []
        while self._timers and self._timers[0][0] <= self._now and self.finished is None:
            _, _, what, id = heapq.heappop(self._timers)
            match what:
                case "retry":
                    if id in self._paused:
                        self._paused.discard(id)
                        commands += self._offer(self._calls[id])
                case "hedge":
                    commands += self._hedge(id)
                case "stuck":
                    commands += self._give_up_waiting()
                case "wind down":
                    self._late = True
                    if not self._joining:
                        commands += self._stop(self._deadline)
                case "end":
                    commands += self._end()
        return commands + (self._arm(self._timers[0][0]) if self._timers else [])

    def _watch(self, call: _Call) -> list[Command]:
        """Count an attempt of a tool that hedges; come back to one that takes too long."""
        if call.hedging:
            return []
        self._begun.setdefault(call.task.tool, [0, 0])[0] += 1
        if call.tries > 1:
            return []
        after = call.lane.samples.quantile(HEDGE_AFTER)
        return [] if after is None else self._wake(self._now + after, "hedge", call.task.id)

    def _hedge(self, id: int) -> list[Command]:
        """Call a straggler a second time, if it still is one and not too many were."""
        call = self._calls.get(id)
        if call is None or len(call.attempts) != 1 or call.waiting or self.stopped_by:
            return []
        if call.awaited:
            return []  # what is slow is another's call, for which a second would wait as well
        if id in self._items:
            return []  # others have begun on what the first one tells
        if not (call.policy.hedge and self._is_idempotent(call.task.tool)):
            return []  # of a tool that another call has replaced by now, perhaps
        begun = self._begun[call.task.tool]
        if begun[1] + 1 > HEDGE_SHARE * begun[0]:
            return []
        begun[1] += 1
        call.hedging = True
        return self._offer(call)

    @property
    def _deadline(self) -> str:
        return f"deadline={self.limits.deadline:g} s"

    # Limits

    def _unspent(self) -> Failed:
        return Failed(f"not called: the run was stopped by {self.stopped_by}", "limit")

    def _begin_no_more(self, limit: str) -> list[Command]:
        """Nothing new is planned, and nobody is asked about what could not begin anyway."""
        self.stopped_by = self.stopped_by or limit
        why = f"stopped by {limit}"
        commands: list[Command] = []
        if self._planning:
            self._planning = False
            self.budget.forfeit("plan")
            commands.append(Cancel("plan", self.round, why=why))
        for id in self._asked:
            commands += [Cancel("ask", id, why=why), Settle(id, self._unspent())]
        self._asked.clear()
        return commands

    def _stop(self, limit: str) -> list[Command]:
        """Nothing begins any more and what runs is cancelled: the answer is made of the rest."""
        commands = self._begin_no_more(limit)
        ended: list[Command] = []
        for id, call in self._calls.items():
            commands += self._drop(call, f"stopped by {limit}")
            ended.append(Settle(id, Failed(f"stopped by {limit}", "limit")))
        return commands + (ended or self._join_if_quiet())

    def _end(self) -> list[Command]:
        """The time is over, even for the answer."""
        if self._concluding:
            return []
        joining: list[Command] = []
        if self._joining:
            joining = [Cancel("join", self.round, why=f"stopped by {self._deadline}")]
            self.budget.forfeit("join")
        self.stopped_by = self.stopped_by or self._deadline
        self._concluding = True
        return [*joining, *self._stop(self._deadline), *self._conclude()]

    def _cancel_all(self, why: str) -> list[Command]:
        commands: list[Command] = []
        if self._planning:
            self._planning = False
            self.budget.forfeit("plan")
            commands.append(Cancel("plan", self.round, why=why))
        for call in self._calls.values():
            commands += self._drop(call, why)
        return commands + [Cancel("ask", id, why=why) for id in self._asked]

    # Joining

    def _join_if_quiet(self) -> list[Command]:
        if self._planning or self._open or self._joining or self._concluding:
            return []
        if self._plan_error and not self.tasks:
            return self._finish(Finish("failed", self._plan_error))
        limits = self.limits
        if limit := self.budget.reserve("join", limits.answer_tokens):
            self.stopped_by = self.stopped_by or limit
            return self._conclude()
        self._joining = True
        return [Join(self.round, self.final_round, self.stopped_by)]

    def _forbids_plan(self) -> bool:
        limits = self.limits
        return bool(self.budget.forbids("plan", limits.plan_tokens, beside=limits.answer_tokens))

    def _conclude(self) -> list[Command]:
        self._concluding = True
        self._joining = False
        return [Conclude(self.round, self.stopped_by)]

    def _replan_asked(self, event: ReplanAsked) -> list[Command]:
        self._joining = False
        if self.round > self.limits.max_replans:
            spent = f"max_replans={self.limits.max_replans} is spent"
            return self._finish(Finish("failed", f"asked to replan, but {spent}: {event.why}"))
        if self._late:
            self.stopped_by = self.stopped_by or self._deadline
            return self._conclude()
        return self._plan(event.why)

    def _answered(self, event: Answered) -> list[Command]:
        return self._finish(Finish("answered"))

    def _join_failed(self, event: JoinFailed) -> list[Command]:
        self._joining = False
        self.budget.forfeit("join")
        if self.stopped_by and not self._concluding:
            return self._conclude()
        return self._finish(Finish("failed", event.error))

    def _finish(self, command: Finish) -> list[Command]:
        self.finished = command
        # No fact decides anything any more; what was broken off still tells what it took.
        self._handlers = {ModelUsed: self._model_used}
        return [command]


def _slot(task: int, attempt: int) -> str:
    """Under which name the tokens of an attempt are set aside."""
    return f"call {task}.{attempt}"


def _is_mendable(outcome: Outcome) -> TypeGuard[Failed]:
    """Whether another plan may do better where this came out."""
    return isinstance(outcome, Failed) and outcome.kind in (
        "tool",
        "timeout",
        "throttled",
        "size",
        "reference",
    )
