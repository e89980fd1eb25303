"""The driver: does what the machine wants, and tells it what happened.

The only file that starts a run's coroutines; each one lives in the driver's task group, so when
`Driver.run` returns, or is cancelled, nothing of the run is left. It must never decide:
every choice is the machine's.
"""

from __future__ import annotations

import asyncio
import time
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
from contextlib import ExitStack, asynccontextmanager
from typing import Any, Literal, TypeVar

from agentpar.errors import AgentparError, BackendError
from agentpar.events import (
    ApprovalAsked,
    ApprovalGiven,
    Event,
    JoinFailed,
    PlanFailed,
    RunFinished,
    TaskDone,
    TaskStarted,
)
from agentpar.executor.machine import Ask, Command, Execute, Finish, Join, Machine, Plan, Settle
from agentpar.plan import Failed, Ok, Outcome, Task
from agentpar.ports import Clock
from agentpar.tools.base import Tool
from agentpar.tools.data import to_data

T = TypeVar("T")
Emit = Callable[[Event], None]
Approve = Callable[[Task, Mapping[str, Any]], Awaitable[bool | str] | bool | str]
"""Says whether a risky call may run: True, or False, or the reason why not; sync or async."""


class RunClock:
    """Seconds since this clock was made, less what earlier parts of the same run took."""

    def __init__(self, start: float = 0.0) -> None:
        self._zero = time.perf_counter() - start

    def now(self) -> float:
        return time.perf_counter() - self._zero


class Driver:
    """Performs one run.

    ``plan`` and ``join`` are coroutines that do what a `Plan` or `Join` command asks and
    emit what happened. ``observers`` are called with every event, in order, inside the
    event loop: they must be quick. A command for which ``hold`` is true is not performed
    but kept in `held`; when nothing else is left to do, `run` returns with it. ``redact``
    takes secrets out of each event before anyone, the machine included, sees it.
    """

    def __init__(
        self,
        machine: Machine,
        *,
        tools: Mapping[str, Tool],
        plan: Callable[[Plan, Emit], Awaitable[None]],
        join: Callable[[Join, Emit], Awaitable[None]],
        clock: Clock | None = None,
        approve: Approve | None = None,
        hold: Callable[[Command], bool] | None = None,
        timeout: float | None = None,
        max_result_bytes: int = 2_000_000,
        observers: Sequence[Callable[[Event], None]] = (),
        command_observers: Sequence[Callable[[Command], None]] = (),
        redact: Callable[[Event], Event] | None = None,
    ) -> None:
        self.machine = machine
        self.clock = clock or RunClock()
        self.held: list[Command] = []
        self._tools = tools
        self._plan = plan
        self._join = join
        self._approve = approve
        self._hold = hold
        self._timeout = timeout
        self._max_result_bytes = max_result_bytes
        self._observers = tuple(observers)
        self._command_observers = tuple(command_observers)
        self._redact = redact or _as_it_is
        self._inbox: deque[Event] = deque()
        self._draining = False
        self._group: asyncio.TaskGroup | None = None

    async def run(self, *events: Event, due: Iterable[Command] = ()) -> None:
        """Perform ``due``, take in ``events`` and do what follows, until all is quiet.

        ``due`` is what an earlier part of the run left to do (`catch_up`). The last event
        told to the observers is `RunFinished`, unless a command was held. Raises what an
        observer raised: a run that cannot be recorded ends.
        """
        try:
            async with asyncio.TaskGroup() as self._group:
                for command in due:
                    self._perform(command)
                self._inbox.extend(events)
                self._drain()
        except asyncio.CancelledError:
            self._end("cancelled", "cancelled by the caller")
            raise
        except BaseExceptionGroup as group:
            # One fault of ours or of an observer ends the run; siblings fell with it.
            error = _first_of(group)
            self._end("failed", _describe(error))
            raise error from None
        finished = self.machine.finished
        if finished is not None:
            self._end(finished.status, finished.error)
        elif not self.held:
            self._end("failed", "the run stopped before it had an answer")

    def emit(self, event: Event) -> None:
        """Take a fact: tell the observers, then do what the machine wants because of it.

        Facts that come while one is being handled wait their turn, so that observers and
        the machine see every fact in one and the same order.
        """
        self._inbox.append(event)
        if not self._draining:
            self._drain()

    def _drain(self) -> None:
        self._draining = True
        inbox, handle = self._inbox, self.machine.handle
        try:
            while inbox:
                event = self._redact(inbox.popleft())
                self._tell(event)
                for command in handle(event):
                    for observe in self._command_observers:
                        observe(command)
                    self._perform(command)
        except Exception as error:
            raise _Broken from error
        finally:
            self._draining = False

    def _tell(self, event: Event) -> None:
        for observe in self._observers:
            observe(event)

    def _end(self, status: Literal["answered", "failed", "cancelled"], error: str) -> None:
        """Tell every observer the last event, those behind one that raises too."""
        event = self._redact(RunFinished(status, error, self.clock.now()))
        with ExitStack() as last_first:
            for observe in reversed(self._observers):
                last_first.callback(observe, event)

    def _perform(self, command: Command) -> None:
        if self._hold is not None and self._hold(command):
            self.held.append(command)
            return
        match command:
            case Execute():
                self._start(self._execute(command))
            case Settle(task_id, outcome):
                self._inbox.append(TaskDone(task_id, outcome, self.clock.now()))
            case Plan():
                self._start(self._run_planner(command))
            case Join():
                self._start(self._run_joiner(command))
            case Ask():
                self._start(self._ask(command))
            case Finish():
                pass  # nothing runs any more; `run` reports it once the group is empty

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        assert self._group is not None
        try:
            self._group.create_task(work)
        except RuntimeError:
            # The run is being cancelled, and a tool that took its time reported meanwhile:
            # its result is told, but nothing new starts.
            work.close()

    async def _run_planner(self, command: Plan) -> None:
        try:
            await _unless_cancelled(self._plan(command, self.emit))
        except Exception as error:
            self.emit(PlanFailed(command.round, _describe(error), self.clock.now()))

    async def _run_joiner(self, command: Join) -> None:
        try:
            await _unless_cancelled(self._join(command, self.emit))
        except Exception as error:
            self.emit(JoinFailed(command.round, _describe(error), self.clock.now()))

    async def _ask(self, command: Ask) -> None:
        task, now = command.task, self.clock.now
        self.emit(ApprovalAsked(task.id, command.args, now()))
        if self._approve is None:
            verdict: bool | str = (
                f"tool {task.tool!r} has effect 'write' and the agent has no approver "
                "(pass approve=…)"
            )
        else:
            try:
                asked = self._approve(task, command.args)
                verdict = asked if isinstance(asked, bool | str) else await _unless_cancelled(asked)
            except Exception as error:
                verdict = f"the approver failed: {_describe(error)}"
        if verdict is True:
            self.emit(ApprovalGiven(task.id, allowed=True, at=now()))
        else:
            self.emit(ApprovalGiven(task.id, False, str(verdict or "refused"), now()))

    async def _execute(self, command: Execute) -> None:
        task, now = command.task, self.clock.now
        self.emit(TaskStarted(task.id, command.args, now()))
        tool = self._tools.get(task.tool)
        if tool is None:  # planned in an earlier part of the run, by an agent that had it
            outcome: Outcome = Failed(f"the agent has no tool {task.tool!r} any more", "plan")
        else:
            outcome = await self._call(tool, command.args)
        self.emit(TaskDone(task.id, outcome, now()))

    async def _call(self, tool: Tool, args: Mapping[str, Any]) -> Outcome:
        """Call the tool; whatever goes wrong comes back as `Failed`."""
        timeout = self._timeout if tool.timeout is None else tool.timeout
        try:
            arguments = tool.validate(args)
        except Exception as error:
            return Failed(_describe(error), "arguments")
        try:
            call = _unless_cancelled(tool.call(**arguments))
            value = to_data(await (call if timeout is None else _within(timeout, call)))
        except _Late:
            return Failed(f"{tool.name} gave no result within {timeout:g} s", "timeout")
        except (Exception, SystemExit) as error:  # sys.exit() ends the call, not the program
            return Failed(_describe(error))
        if exceeds(value, self._max_result_bytes):
            limit_text = f"max_result_bytes={self._max_result_bytes:,}"
            return Failed(f"{tool.name} returned more than {limit_text}", "size")
        return Ok(value)


def _as_it_is(event: Event) -> Event:
    return event


class _Broken(BaseException):
    """An observer or the machine raised (its cause). Nothing that a planner or a joiner
    could take for an error of its own."""


class _Late(Exception):
    """The time for a call is over."""


async def _within(seconds: float, work: Awaitable[T]) -> T:
    """Await ``work``; raises `_Late` once ``seconds`` are over."""
    try:
        async with asyncio.timeout(seconds) as limit:
            return await work
    except TimeoutError:
        if limit.expired():  # else it is an error of the call's own
            raise _Late from None
        raise


async def _unless_cancelled(work: Awaitable[T]) -> T:
    """Await ``work``, which may cancel itself: only a cancellation from outside is one here."""
    try:
        return await work
    except asyncio.CancelledError:
        current = asyncio.current_task()
        if current is None or current.cancelling():
            raise
        raise BackendError("the call cancelled itself") from None


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


_SMALL = bool | int | float | None


def exceeds(value: Any, limit: int) -> bool:
    """Whether ``value`` is larger than about ``limit`` bytes as JSON; stops counting there."""
    if isinstance(value, _SMALL):
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


def _describe(error: BaseException) -> str:
    """Our own errors speak for themselves; others are told with their type."""
    if isinstance(error, AgentparError):
        return str(error)
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What went wrong first, out of the groups and out of our own wrapping."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error.__cause__ or error if isinstance(error, _Broken) else error
