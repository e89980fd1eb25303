"""Facts about a run, in the order they happened: the one spine of the house.

The machine decides from these, and every reader (terminal, timeline, record, replay,
your own ``async for event in run``) sees the same ones. ``at`` is seconds since the
run began, stamped by the driver's clock; nothing else here tells the time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from agentpar.labels import TRUSTED, Label
from agentpar.permissions import Permissions
from agentpar.plan import Failed, Outcome, Task
from agentpar.quick import quick


@dataclass(frozen=True, slots=True)
class Usage:
    """What was spent. Tokens of ``calls`` model calls; ``cached_tokens`` came from the server's
    prefix cache. ``steps`` counts attempts of tool calls, ``cost_usd`` what they and the model
    cost together.

    ``cut``: a text ended at its request's ``max_tokens``, not where the model would have.
    ``stopped_by`` names the limit that ended the run early, if one did. ``estimated``: a server
    did not say what a call took, or could not, as the call was broken off. Its tokens are then
    counted from the text that came; limits and ``cost_usd`` count the most that it may have taken.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    calls: int = 0
    cut: bool = False
    steps: int = 0
    cost_usd: float = 0.0
    stopped_by: str = ""
    estimated: bool = False

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
            self.calls + other.calls,
            self.cut or other.cut,
            self.steps + other.steps,
            self.cost_usd + other.cost_usd,
            self.stopped_by or other.stopped_by,
            self.estimated or other.estimated,
        )


@dataclass(frozen=True, slots=True)
class Source:
    """Something the run has read, ``[n]`` in an answer: a page, or the result of a call.

    ``origin`` is the page's address, or the call as text. A task that read several pages
    brings several sources. ``about`` are the names of a call's arguments; ``made_of`` numbers
    the results that a call which is no page had in them, one for each task.
    """

    n: int
    task_id: int
    origin: str
    title: str
    text: str
    about: str = ""
    made_of: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Citation:
    """One ``[n]`` of an answer, checked by program against what the run has read.

    ``n`` is the number of the `Source`, ``task_id`` the task that read it (0 where there is
    no such source). ``passage`` is the text in the source that carries the sentence, empty
    where none does; then ``supported`` is False and ``problem`` says why.
    """

    n: int
    sentence: str
    source: str
    task_id: int = 0
    title: str = ""
    passage: str = ""
    supported: bool = True
    problem: str = ""


@dataclass(frozen=True, slots=True)
class RunStarted:
    """The first event of a run. ``note`` is what its reader must know: that pages, delays or
    errors are simulated, say."""

    run_id: str
    question: str
    note: str = ""
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class RunResumed:
    """The run goes on with an agent that is not the one it began with: ``changes`` say, in words,
    what differs. From here on ``permissions`` decide about every call that has not ended."""

    changes: tuple[str, ...]
    permissions: Permissions
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class PlanStarted:
    """The planner is asked. ``anew``: what it had planned in this round before the run broke off
    stands, and it goes on behind that with what is known by now."""

    round: int
    at: float = 0.0
    anew: bool = False


@dataclass(frozen=True, slots=True)
class PlanText:
    """The planner wrote ``text`` (a piece of a stream)."""

    round: int
    text: str
    at: float = 0.0


@quick
@dataclass(frozen=True, slots=True)
class TaskPlanned:
    round: int
    task: Task
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class PlanFault:
    """A line of the plan cannot be used. ``task_id`` is the line's number where it has one."""

    round: int
    message: str
    line: str = ""
    task_id: int | None = None
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class PlanEnded:
    round: int
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class PlanFailed:
    """The planner itself broke (the server went away, say); tasks planned so far stand."""

    round: int
    error: str
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class ApprovalAsked:
    """The call is ready and needs approval: it waits for an `ApprovalGiven` with this ``bound``.

    ``label`` says where its data come from, ``because`` why it is asked for.
    """

    task_id: int
    args: Mapping[str, Any] = field(default_factory=dict)
    label: Label = TRUSTED
    because: str = ""
    bound: str = ""
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class ApprovalGiven:
    """The answer to the question that ``bound`` names; one to any other is no answer."""

    task_id: int
    allowed: bool
    reason: str = ""
    bound: str = ""
    at: float = 0.0


@quick
@dataclass(frozen=True, slots=True)
class TaskStarted:
    """An attempt of the call has begun; a second may run beside the first (see `Policy`)."""

    task_id: int
    args: Mapping[str, Any] = field(default_factory=dict)
    at: float = 0.0
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class AttemptFailed:
    """An attempt has failed, and the call has not ended with it: another runs or may follow.

    ``retry_after`` is how many seconds the far side asked to be left alone, if it did. One that
    is ``abandoned`` was cancelled and goes on: what it took up is taken until `AttemptEnded`.
    """

    task_id: int
    outcome: Failed
    at: float = 0.0
    attempt: int = 1
    retry_after: float | None = None
    abandoned: bool = False


@dataclass(frozen=True, slots=True)
class HostThrottled:
    """An attempt of this call has found a host that asks for less: of a request it sent, or still.

    ``retry_after`` as in `AttemptFailed`. The call may do without that host and go on.
    """

    task_id: int
    host: str
    retry_after: float | None = None
    at: float = 0.0
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class AttemptEnded:
    """An attempt that was cancelled or abandoned runs no more: the places and the lock that it
    took are free. Nobody hears what it brought."""

    task_id: int
    attempt: int = 1
    at: float = 0.0


@quick
@dataclass(frozen=True, slots=True)
class TaskDone:
    """The task has ended. ``via`` says where a result comes from that no call of this task
    brought: "same call as 3", "cache", "bank", "journal"."""

    task_id: int
    outcome: Outcome
    at: float = 0.0
    attempt: int = 1
    via: str = ""


@dataclass(frozen=True, slots=True)
class LeaseAwaited:
    """Another team, or run, makes an equal call: this attempt waits for what that brings.
    ``holder`` is the other's run and task, ``team`` its number (0: of no team)."""

    task_id: int
    holder: tuple[str, int]
    team: int = 0
    at: float = 0.0
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class EntryUsed:
    """This attempt is settled by what another has found: ``entry`` of the bank, which task
    ``producer[1]`` of run ``producer[0]`` brought. ``spared`` is how many seconds that took."""

    task_id: int
    entry: str
    producer: tuple[str, int]
    team: int = 0
    spared: float = 0.0
    at: float = 0.0
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class EntryOffered:
    """What this attempt brought was offered to the bank: ``admitted`` by ``policy``, which would
    have done so with ``probability``, and ``why`` (in words). ``features`` are the numbers that it
    looked at, from which others can learn; empty where it had none."""

    task_id: int
    entry: str
    admitted: bool
    policy: str
    probability: float = 1.0
    why: str = ""
    at: float = 0.0
    attempt: int = 1
    features: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class BankFailed:
    """The bank could not be asked or told: the run goes on without it."""

    error: str
    task_id: int | None = None
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class TaskItem:
    """The task has brought element ``index`` of its list, and goes on."""

    task_id: int
    index: int
    value: Any
    at: float = 0.0
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class TaskReplaced:
    """Another call stands in the place of one that had not ended: it has its number, and what
    waited for that waits for this."""

    round: int
    task: Task
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class TaskCancelled:
    """Somebody wants no result of this task any more, and says why."""

    task_id: int
    why: str = ""
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Woke:
    """The time has come that the machine asked to be told of."""

    at: float = 0.0


@dataclass(frozen=True, slots=True)
class JoinStarted:
    round: int
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class WorkersStarted:
    """Workers write together: on the answer of a round, or on a `think` call's question.

    ``backend``: they read each other's ``rows`` of one cache, or a ``log``; ``why`` says why it is
    a log where it is. ``attempt`` is that of the call, as in `TaskStarted`.
    """

    round: int
    workers: tuple[str, ...]
    backend: str
    why: str = ""
    task_id: int | None = None
    at: float = 0.0
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class WorkerText:
    """One of several workers wrote ``text`` (a piece of a stream)."""

    round: int
    worker: str
    text: str
    task_id: int | None = None
    at: float = 0.0
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class WorkersEnded:
    """The workers have stopped, and the text that they thought about is written.

    ``faults`` say what went otherwise than it was meant to: whose request failed and why, or that
    the cache was gone before that text was written.
    """

    round: int
    faults: tuple[str, ...] = ()
    task_id: int | None = None
    at: float = 0.0
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class JoinText:
    """The joiner wrote ``text`` (a piece of a stream)."""

    round: int
    text: str
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class ReplanAsked:
    round: int
    why: str
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Answered:
    """The joiner's answer. ``unsupported`` holds the sentences that nothing the run has read
    carries, or, where a sentence cites something, that what it cites does not carry."""

    round: int
    text: str
    citations: tuple[Citation, ...] = ()
    unsupported: tuple[str, ...] = ()
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class JoinFailed:
    round: int
    error: str
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class ModelUsed:
    """One model call ended. ``first_token`` and ``seconds`` count from its request.

    Where workers wrote an answer, "join" is all that they and the answer took; "think" is all
    that an ``attempt`` of the task ``task_id`` took.

    "judge" is the choice between the answers of several teams.

    "prefill" is a call whose text nobody reads: the server has read ahead what the joiner
    will be asked. ``error`` says why a call was broken off; then its tokens are an estimate, as
    the server tells them at the end.
    """

    purpose: Literal["plan", "join", "prefill", "think", "judge"]
    round: int
    usage: Usage
    first_token: float = 0.0
    seconds: float = 0.0
    at: float = 0.0
    error: str = ""
    task_id: int | None = None
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class RunFinished:
    """The last event of a run. ``stopped_by`` names the limit that kept it from doing all that
    it had planned, if one did; ``steps`` and ``cost_usd`` are what it has spent."""

    status: Literal["answered", "failed", "cancelled"]
    error: str = ""
    at: float = 0.0
    stopped_by: str = ""
    steps: int = 0
    cost_usd: float = 0.0


@dataclass(frozen=True, slots=True)
class TeamStarted:
    """A team has begun its work on the run's question: ``run_id``, a run with a record of its
    own. ``how`` says in words what sets it apart from the others."""

    team: int
    run_id: str
    how: str = ""
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class TeamEnded:
    """A team has ended, with what it came to or with why it came to nothing."""

    team: int
    status: Literal["answered", "failed", "cancelled"]
    conclusion: str = ""
    error: str = ""
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class TeamChosen:
    """The answer of ``team`` is the run's, by ``select`` and for the reason ``why``. ``votes``
    are the teams behind each conclusion."""

    team: int
    select: str
    why: str = ""
    votes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class FromTeam:
    """What a team of this run did. It stands in the team's own record, and ``told.at`` counts
    from that one's beginning; ``at`` from this run's."""

    team: int
    told: Event
    at: float = 0.0


Event = (
    RunStarted
    | RunResumed
    | PlanStarted
    | PlanText
    | TaskPlanned
    | PlanFault
    | PlanEnded
    | PlanFailed
    | ApprovalAsked
    | ApprovalGiven
    | TaskStarted
    | AttemptFailed
    | HostThrottled
    | AttemptEnded
    | TaskDone
    | LeaseAwaited
    | EntryUsed
    | EntryOffered
    | BankFailed
    | TaskItem
    | TaskReplaced
    | TaskCancelled
    | Woke
    | JoinStarted
    | WorkersStarted
    | WorkerText
    | WorkersEnded
    | JoinText
    | ReplanAsked
    | Answered
    | JoinFailed
    | ModelUsed
    | TeamStarted
    | TeamEnded
    | TeamChosen
    | FromTeam
    | RunFinished
)
