"""The planner: streams a plan out of the model, and each task leaves at its closing bracket.

It must never run a task or wait for one: what it reads becomes events, at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from agentpar.errors import GrammarRefused, PlanError, UsageError
from agentpar.events import (
    Event,
    PlanEnded,
    PlanFault,
    PlanStarted,
    PlanText,
    TaskCancelled,
    TaskPlanned,
    TaskReplaced,
)
from agentpar.plan import Ok, Outcome, Task
from agentpar.planner.binding import bind, check_cancel, rebind
from agentpar.planner.grammar import plan_grammar
from agentpar.planner.parser import BadLine, Call, Cancel, Item, Join, PlanParser, Replace
from agentpar.planner.prompts import EXAMPLES, EXTENDED_EXAMPLES, Example, plan_messages
from agentpar.planner.reply import asking
from agentpar.ports import Clock, ModelRequest, Runtime
from agentpar.tools.base import Tool

STOP = ("\njoin()",)
"""Where a plan ends: models like to write on behind it."""


LAST_WORD = 1.0
"""Seconds that a server has, behind join(), to end by itself and say what the call took."""
AFTERWORD = 16
"""Characters that may come in them: a fence, a full stop. One that writes more goes on writing."""


Line = TaskPlanned | TaskReplaced | TaskCancelled | PlanFault
"""What one line of a plan comes to."""


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What to plan: the question, where to start counting, and what is known already.

    ``standing`` is what this very plan brought before it broke off: it is written again from
    its beginning, and what stands is not told again. ``anew``: it was written differently then,
    and goes on behind what stands, as another plan would. ``ended`` are the tasks that have ended
    by the time one asks, where calls go on while the plan is written. ``offers`` are calls of which
    the result is there already: tool and arguments.
    """

    question: str
    round: int = 1
    first_id: int = 1
    why: str = ""
    tasks: Mapping[int, Task] = field(default_factory=dict)
    outcomes: Mapping[int, Outcome] = field(default_factory=dict)
    standing: tuple[Line, ...] = ()
    anew: bool = False
    ended: Collection[int] | None = None
    offers: tuple[tuple[str, Mapping[str, Any]], ...] = ()


class Planner:
    """Asks ``runtime`` for a plan over ``tools``.

    ``grammar`` None uses constrained decoding where the runtime has it and takes our
    grammar, True insists, False never does. ``max_lines`` bounds the calls of a constrained
    plan, ``max_tokens`` the text of any; one that is cut off there is told as a fault.
    ``examples`` None takes the built-in ones that these tools can run. ``extended`` tells the
    model of ``$1[*]``, ``any(…)`` and ``some(…)``, which a plan may hold in any case; ``surgery``,
    where calls still run, of ``cancel(…)`` and ``replace(…)``.
    """

    def __init__(
        self,
        runtime: Runtime,
        tools: Mapping[str, Tool],
        *,
        examples: Sequence[Example] | None = None,
        instructions: str = "",
        extended: bool = False,
        surgery: bool = False,
        grammar: bool | None = None,
        max_lines: int = 24,
        max_tokens: int = 768,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> None:
        self._runtime = runtime
        self._tools = tools
        self._examples = usable_examples(tools, extended) if examples is None else tuple(examples)
        self._instructions = instructions
        self._extended = extended
        self._surgery = surgery
        self._grammar = grammar
        self._max_lines = max_lines
        self._max_tokens = max_tokens
        self._temperature = temperature
        self._seed = seed

    async def plan(self, request: PlanRequest, emit: Callable[[Event], None], clock: Clock) -> bool:
        """Stream one plan and emit `PlanStarted`, `TaskPlanned`, `PlanFault`, …, `PlanEnded`.

        False, and no `PlanEnded`, where the plan is another than the one that stands: the line
        at which they part and all behind it are not told, since a call that was made could come
        again under another number. Raises what the runtime raises; tasks emitted before that
        stand.
        """
        emit(PlanStarted(request.round, clock.now(), request.anew))
        asked = await self._request(request)
        try:
            same = await self._read(asked, request, emit, clock)
        except GrammarRefused as error:
            if self._grammar:
                raise
            self._grammar = False  # the parser checks all that the grammar would have
            message = f"the plan was written without a grammar: {error}"
            emit(PlanFault(request.round, message, at=clock.now()))
            without = replace(asked, grammar=None, stop=STOP)
            same = await self._read(without, request, emit, clock)
        if same:
            emit(PlanEnded(request.round, clock.now()))
        return same

    async def _read(
        self, asked: ModelRequest, request: PlanRequest, emit: Callable[[Event], None], clock: Clock
    ) -> bool:
        """One model call: its text, its tasks as they come, and what it took. False where it is
        not the plan that stands."""
        reading = _Reading(request, self._tools, emit, clock)
        async with asking(self._runtime, asked, clock, emit, "plan", request.round) as reply:
            async for piece in reply:
                emit(PlanText(request.round, piece, clock.now()))
                reading.feed(piece)
                if reading.differs:
                    break  # and closing the stream stops the model
                if reading.ended and asked.grammar is None:
                    # join() is written, and not every model ends there. Under a grammar it does.
                    await reply.let_end(seconds=LAST_WORD, characters=AFTERWORD)
                    break
            reading.close()
            if reply.usage.cut and not reading.ended:
                message = f"the plan was cut off after {asked.max_tokens} tokens (max_plan_tokens)"
                emit(PlanFault(request.round, message, at=clock.now()))
        return not reading.differs

    async def _request(self, request: PlanRequest) -> ModelRequest:
        grammar = None
        if self._grammar is not False:
            able = "grammar" in await self._runtime.capabilities()
            if self._grammar and not able:
                raise UsageError(
                    "grammar=True, but this model server cannot decode under a grammar, or has "
                    "refused ours: use vLLM, or leave grammar out"
                )
            if able:
                known = [id for id, outcome in request.outcomes.items() if isinstance(outcome, Ok)]
                alive = request.tasks.keys() - request.outcomes.keys()
                grammar = plan_grammar(
                    self._tools,
                    first_id=request.first_id,
                    known=[*known, *alive],
                    alive=alive if self._surgery else (),
                    max_lines=self._max_lines,
                    extended=self._extended,
                )
        messages = plan_messages(
            request.question,
            self._tools.values(),
            first_id=request.first_id,
            examples=self._examples,
            instructions=self._instructions,
            why=request.why,
            extended=self._extended,
            surgery=self._surgery,
            tasks=request.tasks,
            outcomes=request.outcomes,
            offers=request.offers,
        )
        return ModelRequest(
            messages,
            max_tokens=self._max_tokens,
            temperature=self._temperature,
            seed=self._seed,
            grammar=grammar,
            # A server keeps back as much text as a stop string is long, so that every call
            # would start that much later; a grammar ends at join() by itself.
            stop=() if grammar else STOP,
        )


class _Reading:
    """One plan being read: text in, tasks and faults out; ``ended`` once join() is written, or
    once it ``differs`` from the one that stands."""

    def __init__(
        self,
        request: PlanRequest,
        tools: Mapping[str, Tool],
        emit: Callable[[Event], None],
        clock: Clock,
    ) -> None:
        self._round = request.round
        self._tools = tools
        self._known = set(request.tasks) | set(request.outcomes)
        self._tasks = dict(request.tasks)
        self._ended = request.outcomes if request.ended is None else request.ended
        self._emit = emit
        self._clock = clock
        self._parser = PlanParser()
        self._standing = deque(request.standing)
        self._before = tuple(request.tasks.values()) if request.anew else ()
        self.ended = False
        self.differs = False

    def feed(self, text: str) -> None:
        """Read a piece of the text."""
        self._take(self._parser.feed(text))

    def close(self) -> None:
        """The text has ended, with join() or without."""
        self._take(self._parser.close())
        if self._standing:
            self._differs()

    def _take(self, items: Sequence[Item]) -> None:
        for item in items:
            if self.ended:
                return
            match item:
                case Call():
                    try:
                        task = bind(item, self._tools, self._known, self._tasks)
                        self._check_new(task)
                    except PlanError as error:
                        self._fault(str(error), item.line, item.id)
                    else:
                        self._known.add(task.id)
                        self._tasks[task.id] = task
                        self._tell(TaskPlanned(self._round, task, self._clock.now()))
                case Cancel() | Replace():
                    self._change(item)
                case BadLine():
                    self._fault(item.message, item.text, item.id)
                case Join():
                    self.ended = True

    def _check_new(self, task: Task) -> None:
        """A plan that goes on behind one that broke off has nothing done a second time."""
        for other in self._before:
            if (other.tool, other.args) == (task.tool, task.args) and self._tools[task.tool].sink:
                raise PlanError(f"{task.tool}: this very call stands already, as task {other.id}")

    def _change(self, item: Cancel | Replace) -> None:
        """A line that changes what an earlier line has asked for."""
        line = item.line if isinstance(item, Cancel) else item.call.line
        now = self._clock.now()
        if self._standing:
            self._change_again(item, line)
            return
        try:
            if isinstance(item, Cancel):
                check_cancel(item.id, self._tasks, self._ended)
                why = f"the plan of round {self._round} does without it"
                self._emit(TaskCancelled(item.id, why, now))
            else:
                task = rebind(item.call, self._tools, self._tasks, self._ended)
                self._tasks[task.id] = task
                self._emit(TaskReplaced(self._round, task, now))
        except PlanError as error:
            self._fault(str(error), line, None)

    def _change_again(self, item: Cancel | Replace, line: str) -> None:
        """A line of a plan that stands. It cannot be bound anew: what it changed has gone on."""
        match self._standing.popleft(), item:
            case TaskCancelled(id), Cancel() if id == item.id:
                return
            case TaskReplaced(_, task), Replace(call) if task.id == call.id:
                with suppress(PlanError):
                    if bind(call, self._tools, self._known - {call.id}, self._tasks) == task:
                        self._tasks[task.id] = task
                        return
            case PlanFault(line=stood), _ if stood == line:
                return
        self._differs()

    def _fault(self, message: str, line: str, id: int | None) -> None:
        # A duplicate number must not settle the task that had it first.
        own = None if id in self._known else id
        if own is not None:
            self._known.add(own)
        self._tell(PlanFault(self._round, message, line, own, self._clock.now()))

    def _tell(self, event: TaskPlanned | PlanFault) -> None:
        """Emit what is new."""
        if not self._standing:
            self._emit(event)
        elif replace(event, at=0.0) != replace(self._standing.popleft(), at=0.0):
            self._differs()

    def _differs(self) -> None:
        self.ended = self.differs = True


def usable_examples(tools: Mapping[str, Tool], extended: bool = False) -> tuple[Example, ...]:
    """The built-in examples whose every line these tools can run; the ``extended`` ones first,
    as the last weighs most."""
    examples = (*(EXTENDED_EXAMPLES if extended else ()), *EXAMPLES)
    return tuple(example for example in examples if not plan_problems(example.plan, tools))


def plan_problems(plan: str, tools: Mapping[str, Tool]) -> list[str]:
    """What keeps ``plan`` from running with ``tools``: one message per unusable line."""
    problems: list[str] = []
    tasks: dict[int, Task] = {}
    parser = PlanParser()
    for item in [*parser.feed(plan), *parser.close()]:
        match item:
            case Call():
                try:
                    tasks[item.id] = bind(item, tools, tasks, tasks)
                except PlanError as error:
                    problems.append(str(error))
            case Cancel(line=line) | Replace(Call(line=line)):
                problems.append(f"a first plan has nothing to change yet: {line!r}")
            case BadLine():
                problems.append(f"{item.message}: {item.text!r}")
            case Join():
                break
    return problems
