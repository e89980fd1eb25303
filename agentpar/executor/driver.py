"""The driver: does what the machine wants, and tells it what happened.

The only file that starts a run's coroutines. Each is known by what it does (this attempt of
this call, this round's plan) until it has ended, so that it can be stopped alone, and so that
when `Driver.run` returns, or is cancelled, nothing of the run is left. It must never decide:
every choice is the machine's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import ExitStack, aclosing, asynccontextmanager
from functools import partial
from time import monotonic
from typing import Any, Literal, Protocol, TypeVar

from agentpar.errors import BackendError
from agentpar.events import (
    ApprovalAsked,
    ApprovalGiven,
    AttemptEnded,
    AttemptFailed,
    Event,
    JoinFailed,
    ModelUsed,
    PlanFailed,
    RunFinished,
    TaskDone,
    TaskItem,
    TaskPlanned,
    TaskStarted,
    Woke,
)
from agentpar.executor.alarms import Alarms
from agentpar.executor.approval import Approve, consult
from agentpar.executor.batching import Batches
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
from agentpar.executor.failures import described, failure_of
from agentpar.executor.machine import Machine
from agentpar.plan import Failed, Ok, Outcome
from agentpar.ports import Clock, Results, Shared
from agentpar.tools.base import Tool
from agentpar.tools.behind import left_behind
from agentpar.tools.call import call_key
from agentpar.tools.data import to_data

T = TypeVar("T")
Emit = Callable[[Event], None]

Key = tuple[str, int, int]
"""What a coroutine of the run does, as `Cancel` names it: ("call", task, attempt), …"""

GRACE = 5.0
"""Seconds for a coroutine that was cancelled to end; one that goes on is left behind."""


class Calls(Protocol):
    """Is asked about every call before it is made."""

    def known(self, call: Execute, tool: Tool) -> Outcome | None:
        """What stands in place of the call; None where it is to be made."""
        ...

    async def intend(self, call: Execute, tool: Tool) -> None:
        """The call is about to be made, in this coroutine. Raises where it must not be."""
        ...

    def held_back(self, task_id: int, attempt: int) -> float:
        """Seconds that an attempt has waited for others to let it go on."""
        ...


class RunClock:
    """Seconds of the running event loop since this clock was made, more by ``start``: what
    earlier parts of the same run took."""

    def __init__(self, start: float = 0.0) -> None:
        loop = asyncio.get_running_loop()
        # asyncio's own loops ask this very clock.
        own = type(loop).time is asyncio.BaseEventLoop.time
        self._time = monotonic if own else loop.time
        self._zero = self._time() - start

    def now(self) -> float:
        return self._time() - self._zero


class Driver:
    """Performs one run.

    ``plan``, ``join`` and ``conclude`` are coroutines that do what a `Plan`, `Join` or
    `Conclude` command asks and emit what happened. ``observers`` are called with every event,
    in order, inside the event loop: they must be quick. A command for which ``hold`` is true is
    not performed but kept in `held`; when nothing else is left to do, `run` returns with it.
    ``calls`` is asked about each call. ``results`` keeps what tools with a ``cache`` return;
    ``shared`` has what other teams and runs find.
    ``beside`` is asked after every event for work to do beside the run; what it gives must not
    raise, and is cancelled when a joiner starts and when the run ends. ``redact`` takes secrets
    out of each event before anyone, the machine included, sees it. ``timeout`` is seconds for
    each attempt of tools without one of their own, ``grace`` for what was cancelled to end.
    """

    def __init__(
        self,
        machine: Machine,
        *,
        tools: Mapping[str, Tool],
        plan: Callable[[Plan, Emit], Awaitable[None]],
        join: Callable[[Join, Emit], Awaitable[None]],
        conclude: Callable[[Conclude, Emit], Awaitable[None]] | None = None,
        clock: Clock | None = None,
        approve: Approve | None = None,
        hold: Callable[[Command], bool] | None = None,
        results: Results | None = None,
        shared: Shared | None = None,
        calls: Calls | None = None,
        timeout: float | None = None,
        grace: float = GRACE,
        max_result_bytes: int = 2_000_000,
        observers: Sequence[Callable[[Event], None]] = (),
        command_observers: Sequence[Callable[[Command], None]] = (),
        beside: Callable[[Event], Coroutine[Any, Any, None] | None] | None = None,
        redact: Callable[[Event], Event] | None = None,
    ) -> None:
        self.machine = machine
        self.clock = clock or RunClock()
        self.held: list[Command] = []
        self._tools = tools
        self._plan = plan
        self._join = join
        self._conclude = conclude
        self._approve = approve
        self._hold = hold
        self._results = results
        self._shared = shared
        self._calls = calls
        self._timeout = timeout
        self._grace = grace
        self._max_result_bytes = max_result_bytes
        self._observers = tuple(observers)
        self._command_observers = tuple(command_observers)
        self._beside = beside
        self._last_beside = 0
        self._batches = Batches(partial(self._start_beside, what="batch"))
        self._redact = redact
        self._inbox: deque[Event] = deque()
        self._draining = False
        self._work: dict[Key, asyncio.Task[None]] = {}
        self._unwanted: set[Key] = set()  # cancelled by the machine, or given up on
        self._asked: dict[int, int] = {}  # how often the approver was asked about each task
        self._late: set[Key] = set()  # attempts whose time is over
        self._alarms: dict[Key, asyncio.TimerHandle] = {}  # when to give up on those
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop
        self._seconds: Alarms[Key]  # of attempts that have so many and no more
        self._plain_tasks = False  # whether `create_task` only makes an `asyncio.Task`
        self._over: asyncio.Future[None] | None = None  # while the run may start things
        self._told_all = False  # nothing more is told but the run's end

    async def run(self, *events: Event, due: Iterable[Command] = ()) -> None:
        """Perform ``due``, take in ``events`` and do what follows, until all is quiet.

        ``due`` is what an earlier part of the run left to do (`catch_up`). The last event
        told to the observers is `RunFinished`, unless a command was held. Raises what an
        observer raised: a run that cannot be recorded ends.
        """
        loop = self._loop = asyncio.get_running_loop()
        own = type(loop).create_task is asyncio.BaseEventLoop.create_task
        self._seconds = Alarms(self._too_late)
        self._plain_tasks = own and loop.get_task_factory() is None
        over = self._over = self._loop.create_future()
        try:
            try:
                for command in due:
                    self._perform(command)
                self._inbox.extend(events)
                if self._inbox:
                    self.emit(self._inbox.popleft())
                self._see_whether_over()
                await over
            finally:
                self._over = None
                left = await self._stop()
        except asyncio.CancelledError:
            self._end("cancelled", "cancelled by the caller")
            raise
        except (Exception, _Broken) as error:
            # A fault of ours or of an observer ends the run; siblings fell with it.
            cause = error.__cause__ if isinstance(error, _Broken) else None
            self._end("failed", described(cause or error))
            raise (cause or error) from None
        finished = self.machine.finished
        if finished is not None:
            notes = [finished.error, *(f"{key[0]} {key[1]} does not end" for key in left)]
            self._end(finished.status, "; ".join(filter(None, notes)))
        elif not self.held:
            self._end("failed", "the run stopped before it had an answer")

    def emit(self, event: Event) -> None:
        """Take a fact: tell the observers, then do what the machine wants because of it.

        Facts that come while one is being handled wait their turn, so that observers and
        the machine see every fact in one and the same order.
        """
        if self._draining:
            self._inbox.append(event)
            return
        self._draining = True
        try:
            while True:
                if self._redact is not None:
                    event = self._redact(event)
                for observe in self._observers:
                    observe(event)
                for command in self.machine.handle(event):
                    for notice in self._command_observers:
                        notice(command)
                    self._perform(command)
                if self._beside is not None and (work := self._beside(event)) is not None:
                    self._start_beside(work)
                if not self._inbox:
                    return
                event = self._inbox.popleft()
        except Exception as error:
            raise _Broken from error
        finally:
            self._draining = False

    def emit_in_time(self, event: Event) -> None:
        """`emit` for who may outlive the run, behind whose end nothing is told."""
        if not self._told_all:
            self.emit(event)

    def fail(self, error: Exception) -> None:
        """End the run: `run` raises ``error``. To be called inside the event loop; without
        effect before the run begins and after it has ended."""
        self._break(error)

    def _end(self, status: Literal["answered", "failed", "cancelled"], error: str) -> None:
        """Tell every observer the last event, those behind one that raises too."""
        machine, now = self.machine, self.clock.now()
        spent = machine.budget
        event: Event = RunFinished(status, error, now, machine.stopped_by, spent.steps, spent.cost)
        if self._redact is not None:
            event = self._redact(event)
        with ExitStack() as last_first:
            for observe in reversed(self._observers):
                last_first.callback(observe, event)

    # What runs

    def _perform(self, command: Command) -> None:
        if self._beside is not None and isinstance(command, Join | Conclude | Finish):
            self._stop_besides()
        if self._hold is not None and self._hold(command):
            self.held.append(command)
            return
        match command:
            case Execute():
                if self._over is not None:
                    key = ("call", command.task.id, command.attempt)
                    work = self._execute(command, key)
                    if self._plain_tasks:
                        task = asyncio.Task(work, loop=self._loop, name=command.task.tool)
                    else:
                        task = self._loop.create_task(work, name=command.task.tool)
                    self._work[key] = task
            case Expand(_, parts):
                round, now = self.machine.round, self.clock.now()
                self._inbox.extend(TaskPlanned(round, part, now) for part in parts)
            case Settle(task_id, outcome, via):
                self._inbox.append(TaskDone(task_id, outcome, self.clock.now(), via=via))
            case Plan(round):
                self._start(("plan", round, 0), self._run_planner(command))
            case Join(round):
                self._start(("join", round, 0), self._run_joiner(command))
            case Ask(task):
                number = self._asked[task.id] = self._asked.get(task.id, 0) + 1
                key = ("ask", task.id, number)
                self._start(key, self._ask(command, key))
            case Conclude(round):
                self._start(("conclude", round, 0), self._run_conclude(command))
            case Cancel():
                self._cancel(command)
            case Wake(at):
                self._wake_at(at)
            case Finish():
                self._wake_at(None)  # `run` reports it once nothing is left

    def _start(self, key: Key, work: Coroutine[Any, Any, None]) -> None:
        if self._over is None:
            # The run is being cancelled, and a tool that took its time reported meanwhile:
            # its result is told, but nothing new starts.
            work.close()
            return
        self._work[key] = self._loop.create_task(work)
        self._watch(key)

    def _watch(self, key: Key) -> None:
        """Have the event loop tell when what runs under ``key`` has ended, however it ends.

        A call tells itself, which is quicker, unless it goes wrong or is cancelled: what is
        cancelled before it has begun never runs.
        """
        self._work[key].add_done_callback(partial(self._ended, key))

    def _start_beside(
        self, work: Coroutine[Any, Any, None], what: str = "beside"
    ) -> asyncio.Task[None] | None:
        """The run does not wait for it (for a batch its calls do), so it is unwanted from the
        start."""
        self._last_beside += 1
        key = (what, self._last_beside, 0)
        self._start(key, work)
        if key in self._work:
            self._unwanted.add(key)
        return self._work.get(key)

    def _stop_besides(self) -> None:
        for key, task in self._work.items():
            if key[0] == "beside":
                task.cancel()

    def _ended(self, key: Key, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._break(error)
        if self._work.get(key) is task:  # the first that tells of it
            self._leave(key)

    def _leave(self, key: Key) -> None:
        """What ran under ``key`` has ended."""
        task = self._work.pop(key)
        if self._unwanted and key in self._unwanted:
            self._unwanted.remove(key)
            if key[0] == "call":
                self._let_go(key, task)
        if self._alarms and key in self._alarms:
            self._late.discard(key)
            self._alarms.pop(key).cancel()
        if len(self._work) <= len(self._unwanted):
            self._see_whether_over()

    def _let_go(self, key: Key, task: asyncio.Task[None]) -> None:
        """An attempt that nobody waits for has ended: told once what it left behind has, too."""
        if (work := left_behind(task)) is not None:
            work.add_done_callback(lambda _: self._let_go(key, task))
        elif self._over is not None:
            self.tell(AttemptEnded(key[1], key[2], self.clock.now()))

    def _see_whether_over(self) -> None:
        """The run is over when nothing that is wanted runs and nothing waits for its time."""
        over = self._over
        if over is None or over.done() or len(self._work) > len(self._unwanted):
            return
        if not self.machine.waiting:
            over.set_result(None)

    def _break(self, error: BaseException) -> None:
        if self._over is not None and not self._over.done():
            self._over.set_exception(error)

    async def _stop(self) -> list[Key]:
        """End all that still runs; what cannot be ended is left behind and named."""
        self._wake_at(None)
        give_up = self._loop.time() + self._grace
        self._stop_besides()
        told = set(self._unwanted)  # they are ending already
        cancelled = False
        while self._work and (left := give_up - self._loop.time()) > 0:
            for key, task in self._work.items():
                if key not in told:
                    self._watch(key)
                    task.cancel()
            told.clear()  # whoever swallows one cancellation gets another
            try:
                await asyncio.wait(self._work.values(), timeout=min(left, self._grace / 5))
            except asyncio.CancelledError:
                cancelled = True  # by the caller, once more: we are at it
        self._seconds.close()
        self._unwanted.update(self._work)  # what they bring comes too late to be told
        self._told_all = True
        if cancelled:
            raise asyncio.CancelledError
        return list(self._work)

    def _cancel(self, command: Cancel) -> None:
        key = (command.what, command.id, command.attempt)
        self.held = [held for held in self.held if _key_of(held) != key]
        if command.what == "plan":
            self._inbox.append(PlanFailed(command.id, command.why, self.clock.now()))
        elif command.what == "ask":
            key = ("ask", command.id, self._asked.get(command.id, 0))
        if (task := self._work.get(key)) is None:
            if command.what == "call":  # it ended with the process that had begun it
                self._inbox.append(AttemptEnded(command.id, command.attempt, self.clock.now()))
        elif key not in self._unwanted:
            self._unwanted.add(key)
            self._watch(key)
            task.cancel()

    # Time

    def _wake_at(self, at: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if at is not None and self._over is not None:
            delay = max(0.0, at - self.clock.now())
            self._timer = self._loop.call_later(delay, self._wake, at)

    def _wake(self, at: float) -> None:
        self._timer = None
        self.tell(Woke(max(at, self.clock.now())))

    def _too_late(self, key: Key, limit: float, granted: float = 0.0) -> None:
        """The time of an attempt is over: it is cancelled, and given up on if it goes on.

        What it was held back beyond the seconds that it was ``granted`` for that, it gets.
        """
        task = self._work.get(key)
        if task is None or key in self._unwanted:
            return
        held = 0.0 if self._calls is None else self._calls.held_back(key[1], key[2])
        if held > granted:
            later = self._loop.call_later(held - granted, self._too_late, key, limit, held)
            self._alarms[key] = later
            return
        self._late.add(key)
        self._watch(key)
        task.cancel()
        patience = min(1.0, self._grace)
        tool = task.get_name()
        self._alarms[key] = self._loop.call_later(patience, self._give_up_on, key, tool, limit)

    def _give_up_on(self, key: Key, tool: str, limit: float) -> None:
        if key not in self._late or key in self._unwanted:
            return
        self._unwanted.add(key)
        outcome = _too_slow(tool, limit, goes_on=True)
        self.tell(AttemptFailed(key[1], outcome, self.clock.now(), key[2], abandoned=True))

    def tell(self, event: Event) -> None:
        """`emit` for callbacks, which have nobody to raise to."""
        try:
            self.emit(event)
        except _Broken as error:
            self._break(error)
        else:
            self._see_whether_over()

    # What the commands mean

    async def _run_planner(self, command: Plan) -> None:
        key = ("plan", command.round, 0)
        try:
            await self._unless_cancelled(key, self._plan(command, self._unless_unwanted(key)))
        except Exception as error:
            self._unless_unwanted(key)(
                PlanFailed(command.round, described(error), self.clock.now())
            )

    async def _run_joiner(self, command: Join) -> None:
        key = ("join", command.round, 0)
        try:
            await self._unless_cancelled(key, self._join(command, self._unless_unwanted(key)))
        except Exception as error:
            self._unless_unwanted(key)(
                JoinFailed(command.round, described(error), self.clock.now())
            )

    async def _run_conclude(self, command: Conclude) -> None:
        key = ("conclude", command.round, 0)
        try:
            if self._conclude is None:
                raise BackendError(f"the run was stopped by {command.why}")
            await self._unless_cancelled(key, self._conclude(command, self._unless_unwanted(key)))
        except Exception as error:
            self._unless_unwanted(key)(
                JoinFailed(command.round, described(error), self.clock.now())
            )

    def _unless_unwanted(self, key: Key) -> Emit:
        """`emit`, deaf once what runs under ``key`` was cancelled by the machine, but for what a
        model call took: that was spent all the same."""

        def emit(event: Event) -> None:
            if key not in self._unwanted:
                self.emit(event)
            elif isinstance(event, ModelUsed):
                self.emit_in_time(event)

        return emit

    async def _ask(self, command: Ask, key: Key) -> None:
        id, bound, now = command.task.id, command.bound, self.clock.now
        label, because = command.label, command.because
        self.emit(ApprovalAsked(id, command.args, label, because, bound, now()))
        if self._approve is None:
            verdict: bool | str = f"{because}, and the agent has no approver (pass approve=…)"
        else:
            try:
                asked = consult(self._approve, command)
                if isinstance(asked, bool | str):
                    verdict = asked
                else:
                    verdict = await self._unless_cancelled(key, asked)
            except Exception as error:
                verdict = f"the approver failed: {described(error)}"
        if key in self._unwanted:
            return
        reason = "" if verdict is True else str(verdict or "refused")
        self.emit(ApprovalGiven(id, verdict is True, reason, bound, now()))

    async def _execute(self, command: Execute, key: Key) -> None:
        task, attempt, now = command.task, command.attempt, self.clock.now
        tool = self._tools.get(task.tool)
        outcome: Outcome
        wait, via = None, ""
        try:
            if tool is None:  # planned in an earlier part of the run, by an agent that had it
                outcome = Failed(f"the agent has no tool {task.tool!r} any more", "plan")
            elif self._calls is not None and (kept := self._calls.known(command, tool)) is not None:
                outcome, via = kept, "journal"
            else:
                self.emit(TaskStarted(task.id, command.args, now(), attempt))
                if self._calls is not None:
                    await self._calls.intend(command, tool)
                if self._shared is not None and tool.may_be_shared:
                    outcome, wait, via = await self._claimed(tool, command.args, key, self._shared)
                elif self._results is None or not tool.may_be_kept:
                    outcome, wait = await self._call(tool, command.args, key)
                else:
                    outcome, wait, via = await self._cached(tool, command.args, key, self._results)
            if self._unwanted and key in self._unwanted:
                pass
            elif self._late and key in self._late and left_behind(self._work[key]) is not None:
                assert isinstance(outcome, Failed)
                self._unwanted.add(key)
                self.emit(AttemptFailed(task.id, outcome, now(), attempt, abandoned=True))
            elif type(outcome) is Failed and (command.retry or outcome.kind == "throttled"):
                self.emit(AttemptFailed(task.id, outcome, now(), attempt, wait))
            else:
                self.emit(TaskDone(task.id, outcome, now(), attempt, via))
        except BaseException:
            self._watch(key)
            raise
        self._leave(key)

    async def _claimed(
        self, tool: Tool, args: Mapping[str, Any], key: Key, shared: Shared
    ) -> tuple[Outcome, float | None, str]:
        """What this agent has kept, or others have found, or the call's own, which they then have.
        The tool's time begins with the call."""
        results = self._results if tool.may_be_kept else None
        name = "" if results is None else call_key(tool, args)
        kept = None if results is None else await results.get(name)
        if kept is not None and await shared.stands(tool, args, kept, key[1]):
            return kept, None, "cache"
        async with shared.claim(tool, args, key[1], key[2]) as claim:
            if claim.found is not None:
                return claim.found, claim.retry_after, "bank"
            began = self.clock.now()
            outcome, wait = await self._call(tool, args, key)
            await claim.settle(outcome, self.clock.now() - began, wait)
        if results is not None and isinstance(outcome, Ok):
            assert tool.policy.cache is not None
            await results.put(name, outcome, tool.policy.cache)
        return outcome, wait, ""

    async def _cached(
        self, tool: Tool, args: Mapping[str, Any], key: Key, results: Results
    ) -> tuple[Outcome, float | None, str]:
        """The kept result of an equal call, or the call's own, which is then kept."""
        assert tool.policy.cache is not None
        name = call_key(tool, args)
        kept = await results.get(name)
        if kept is not None:
            return kept, None, "cache"
        outcome, wait = await self._call(tool, args, key)
        if isinstance(outcome, Ok):
            await results.put(name, outcome, tool.policy.cache)
        return outcome, wait, ""

    async def _call(
        self, tool: Tool, args: Mapping[str, Any], key: Key
    ) -> tuple[Outcome, float | None]:
        """Call the tool; whatever goes wrong comes back as `Failed`, with the seconds that the
        far side asked to be left alone."""
        try:
            arguments = tool.validate(args)
        except Exception as error:
            return Failed(described(error), "arguments"), None
        limit = self._timeout if tool.policy.timeout is None else tool.policy.timeout
        if limit is not None:
            self._seconds.set(key, limit)
        try:
            if tool.streams:
                returned = await self._streamed(tool.call(**arguments), key)
            elif tool.batch is not None:
                returned = await self._batches.call(tool, arguments)
            else:
                returned = await tool.call(**arguments)
        except asyncio.CancelledError:
            if key not in self._late:
                if self._is_stopped(key):
                    raise
                return Failed(_CANCELLED_ITSELF), None
        except (Exception, SystemExit) as error:  # sys.exit() ends the call, not the program
            if key not in self._late:
                return failure_of(error)
        finally:
            if limit is not None:
                self._seconds.clear(key, limit)
        if self._late and key in self._late:
            assert limit is not None
            goes_on = left_behind(asyncio.current_task()) is not None
            return _too_slow(tool.name, limit, goes_on=goes_on), None
        try:
            value = to_data(returned)
        except Exception as error:
            return Failed(described(error)), None
        if type(value) not in _SMALL and exceeds(value, self._max_result_bytes):
            limit_text = f"max_result_bytes={self._max_result_bytes:,}"
            return Failed(f"{tool.name} returned more than {limit_text}", "size"), None
        return Ok(value), None

    async def _streamed(self, items: Any, key: Key) -> list[Any]:
        """The elements that a tool yields, each told as it comes."""
        values: list[Any] = []
        emit = self._unless_unwanted(key)
        async with aclosing(items):
            async for item in items:
                values.append(to_data(item))
                emit(TaskItem(key[1], len(values) - 1, values[-1], self.clock.now(), key[2]))
        return values

    async def _unless_cancelled(self, key: Key, work: Awaitable[T]) -> T:
        """Await ``work``, which may cancel itself or the task it is in: only where we have
        cancelled it is it to go without a word."""
        try:
            return await work
        except asyncio.CancelledError:
            if self._is_stopped(key):
                raise
            raise BackendError(_CANCELLED_ITSELF) from None

    def _is_stopped(self, key: Key) -> bool:
        """Whether it was we who cancelled what runs under ``key``."""
        return key in self._unwanted or key in self._late or self._over is None


def _key_of(command: Command) -> Key | None:
    """What a held command would do, as `Cancel` names it."""
    match command:
        case Ask(task):
            return "ask", task.id, 0
        case Plan(round):
            return "plan", round, 0
        case _:
            return None


def _too_slow(tool: str, limit: float, *, goes_on: bool) -> Failed:
    text = f"{tool} gave no result within {limit:g} s"
    return Failed(f"{text}, and does not stop when cancelled" if goes_on else text, "timeout")


_CANCELLED_ITSELF = "the call cancelled itself"


class _Broken(BaseException):
    """An observer or the machine raised (its cause). Nothing that a planner or a joiner
    could take for an error of its own."""


@asynccontextmanager
async def running(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run ``work`` beside the block; when the block is left, however, so has the work.

    Not a task group: an error of the block must reach the caller as it is.
    """
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


_SMALL = frozenset((bool, int, float, type(None)))


def exceeds(value: Any, limit: int) -> bool:
    """Whether ``value`` is larger than about ``limit`` bytes as JSON; stops counting there."""
    if type(value) in _SMALL:
        return False
    left = limit
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            left -= len(item)
        elif isinstance(item, Mapping):
            left -= 2 * len(item)
            if left >= 0:
                stack.extend(item.keys())
                stack.extend(item.values())
        elif isinstance(item, list | tuple):
            left -= 2 * len(item)
            if left >= 0:
                stack.extend(item)
        else:
            left -= 4
        if left < 0:
            return True
    return False
