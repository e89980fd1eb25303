"""What a plan is made of: tasks, references between them, and how a task ended.

These are values. Nothing here knows a model, a tool, a clock or a network.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Literal, TypeGuard

from agentpar.errors import PlanError

if TYPE_CHECKING:  # networkx loads when a plan is analysed, not when agentpar is imported
    import networkx as nx


class Star(Enum):
    """The type of `EACH`. No text: a field may be named ``"*"``."""

    EACH = "*"


EACH: Final = Star.EACH
"""The step of a path that leads to every element of a list: ``[*]`` in ``$1[*].url``."""

Step = str | int | Star


@dataclass(frozen=True, slots=True)
class Ref:
    """The value of an earlier task, or of a part of it: ``$3``, ``$3.items[0].id``.

    With the step `EACH` it is one element's part at a time: see `each`.
    """

    task: int
    path: tuple[Step, ...] = ()

    def __str__(self) -> str:
        return f"${self.task}{''.join(map(_written, self.path))}"


def _written(step: Step) -> str:
    if step is EACH:
        return "[*]"
    return f"[{step}]" if isinstance(step, int) else f".{step}"


@dataclass(frozen=True, slots=True)
class Pick:
    """The first good ones of several values: what completes first without failing.

    ``k`` None is one value, ``any($1, $2)``. Otherwise it is a list of ``k`` of them,
    ``some(2, $1, $2, $3)``, which stand in writing order: completion decides which ones
    are in it, never how they are arranged.
    """

    refs: tuple[Ref, ...]
    k: int | None = None

    def __str__(self) -> str:
        refs = ", ".join(map(str, self.refs))
        return f"any({refs})" if self.k is None else f"some({self.k}, {refs})"

    @property
    def wanted(self) -> int:
        """How many values it takes."""
        return 1 if self.k is None else self.k


@dataclass(frozen=True, slots=True)
class Task:
    """One tool call of a plan. ``args`` holds typed literals, `Ref` and `Pick`, by name.

    ``special`` is whether they hold a `Pick` or a star (`is_special`). A task over the elements of
    a list is made of others: ``part`` of such a one names it and the element, and its ``args``
    are values.
    """

    id: int
    tool: str
    args: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[int, ...] = ()
    thought: str = ""
    special: bool = field(default=False, compare=False, repr=False)
    part: tuple[int, int] | None = field(default=None, repr=False)

    @classmethod
    def of(cls, id: int, tool: str, thought: str = "", /, **args: Any) -> Task:
        """Build a task and work out ``needs`` from the references in ``args``."""
        return cls(id, tool, args, needs(args), thought, is_special(args))

    @property
    def label(self) -> str:
        """What a reader calls the task: its number, or ``2[0]`` for the first part of task 2."""
        return str(self.id) if self.part is None else f"{self.part[0]}[{self.part[1]}]"


@dataclass(frozen=True, slots=True)
class Ok:
    """The task's tool returned ``value`` (JSON-like data)."""

    value: Any


FailureKind = Literal[
    "plan",
    "reference",
    "arguments",
    "tool",
    "timeout",
    "throttled",
    "size",
    "denied",
    "limit",
    "cancelled",
    "interrupted",
]


@dataclass(frozen=True, slots=True)
class Failed:
    """The task has no value: ``error`` says why, ``kind`` what sort of failure it is.

    A ``kept`` failure stands as the value ``{"error": …}`` for what refers to it.
    """

    error: str
    kind: FailureKind = "tool"
    kept: bool = field(default=False, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Skipped:
    """The task never ran because task ``because``, which it refers to, has no value."""

    because: int


Outcome = Ok | Failed | Skipped


def has_value(outcome: Outcome | None) -> TypeGuard[Ok | Failed]:
    """Whether references to a task with this outcome lead to something."""
    return isinstance(outcome, Ok) or (isinstance(outcome, Failed) and outcome.kept)


def value_of(outcome: Ok | Failed) -> Any:
    """What references to a task with this outcome lead to (see `has_value`)."""
    return outcome.value if isinstance(outcome, Ok) else {"error": outcome.error}


def references(value: Any) -> Iterator[Ref]:
    """Every `Ref` inside ``value``, those of a `Pick` included, in writing order.

    It looks into lists, tuples and dicts.
    """
    for item in _operands(value):
        if isinstance(item, Pick):
            yield from item.refs
        else:
            yield item


def picks(value: Any) -> Iterator[Pick]:
    """Every `Pick` inside ``value``, in writing order."""
    return (item for item in _operands(value) if isinstance(item, Pick))


def _operands(value: Any) -> Iterator[Ref | Pick]:
    """What `references` finds, with every `Pick` as one."""
    if isinstance(value, Ref | Pick):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _operands(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _operands(item)


def is_special(args: Mapping[str, Any]) -> bool:
    """Whether ``args`` hold a `Pick` or a reference with a star."""
    return any(isinstance(item, Pick) or EACH in item.path for item in _operands(args))


def needs(args: Mapping[str, Any]) -> tuple[int, ...]:
    """The ids of the tasks that ``args`` refers to, each once, in writing order."""
    return tuple(dict.fromkeys(ref.task for ref in references(args)))


# -- when arguments can be filled --------------------------------------------------------


def ready(args: Mapping[str, Any], outcomes: Mapping[int, Outcome]) -> bool:
    """Whether it is settled that ``args`` can be filled, or that they never can.

    That is: every plain reference's task has ended, and every `Pick` has its values or
    nothing left to wait for. What `blocker` says then holds for ever.
    """
    for operand in _operands(args):
        if isinstance(operand, Ref):
            if operand.task not in outcomes:
                return False
        elif len(_good(operand, outcomes)) < operand.wanted and not all(
            ref.task in outcomes for ref in operand.refs
        ):
            return False
    return True


def blocker(args: Mapping[str, Any], outcomes: Mapping[int, Outcome]) -> int | None:
    """The task without a value that keeps ``args`` from being filled, or None.

    The first in writing order. A `Pick` is kept back only by having too few values.
    """
    for operand in _operands(args):
        if isinstance(operand, Ref):
            if not has_value(outcomes.get(operand.task)):
                return operand.task
        else:
            missing = [ref.task for ref in operand.refs if not _is_good(outcomes.get(ref.task))]
            if len(missing) > len(operand.refs) - operand.wanted:
                return missing[0]
    return None


def _good(pick: Pick, outcomes: Mapping[int, Outcome]) -> list[Ref]:
    return [ref for ref in pick.refs if _is_good(outcomes.get(ref.task))]


def _is_good(outcome: Outcome | None) -> bool:
    """Whether a pick may take it: an error that is kept as a value is no good one."""
    return isinstance(outcome, Ok)


_LITERALS = frozenset((str, int, float, bool, type(None)))


def fill(args: Mapping[str, Any], outcomes: Mapping[int, Outcome]) -> dict[str, Any]:
    """``args`` with every reference replaced by the value it points to.

    ``outcomes`` stand in the order in which tasks ended; a `Pick` goes by it. Values go in
    as they are: a result is never read again for references, so a page that contains
    ``$1`` changes nothing.

    Raises `PlanError` where a path does not exist in the value.
    """
    filled = dict(args)
    for name, value in args.items():
        if type(value) not in _LITERALS:
            filled[name] = _fill(value, outcomes)
    return filled


def _fill(value: Any, outcomes: Mapping[int, Outcome]) -> Any:
    kind = type(value)
    if kind is Ref:
        if not value.path and type(outcome := outcomes.get(value.task)) is Ok:
            return outcome.value
        return resolve(value, outcomes)
    if kind in _LITERALS:
        return value
    if kind is Pick:
        values = [resolve(ref, outcomes) for ref in chosen(value, outcomes)]
        return values[0] if value.k is None else values
    if kind is list or kind is tuple:
        return [
            # Most are plain references: what follows is `_fill`, written out.
            got.value
            if type(item) is Ref and not item.path and type(got := outcomes.get(item.task)) is Ok
            else _fill(item, outcomes)
            for item in value
        ]
    if isinstance(value, Mapping):
        return {key: _fill(item, outcomes) for key, item in value.items()}
    return value


def chosen(pick: Pick, outcomes: Mapping[int, Outcome]) -> list[Ref]:
    """The references that ``pick`` takes, in writing order: those whose tasks ended first.

    Of one task's, those written first. `PlanError` where too few tasks have a value.
    """
    good = _good(pick, outcomes)
    if len(good) < pick.wanted:
        raise PlanError(f"{pick}: {len(good)} of the {pick.wanted} values that it takes are there")
    if len(good) > pick.wanted:
        tasks = {ref.task for ref in good}
        place = {id: at for at, id in enumerate(outcomes) if id in tasks}
        first = sorted(range(len(good)), key=lambda at: place[good[at].task])[: pick.wanted]
        good = [good[at] for at in sorted(first)]
    return good


def resolve(ref: Ref, outcomes: Mapping[int, Outcome]) -> Any:
    """The value that ``ref`` points to; `PlanError` says which step of the path is missing.

    With the step `EACH` it is the list of what it points to in every element.
    """
    outcome = outcomes.get(ref.task)
    if not has_value(outcome):
        raise PlanError(f"{ref}: task {ref.task} has no value")
    return _follow(ref, value_of(outcome), 0)


def _follow(ref: Ref, value: Any, start: int) -> Any:
    """What the steps of ``ref`` from ``start`` on lead to in ``value``."""
    for depth in range(start, len(ref.path)):
        step = ref.path[depth]
        before = Ref(ref.task, ref.path[:depth])
        if isinstance(step, Star):
            if not isinstance(value, list | tuple):
                raise PlanError(f"{ref}: {before} {_shape(value)}: [*] needs a list")
            path = ref.path[:depth], ref.path[depth + 1 :]
            return [
                _follow(Ref(ref.task, (*path[0], at, *path[1])), item, depth + 1)
                for at, item in enumerate(value)
            ]
        if isinstance(value, str):  # Python would give a letter, which no plan means
            raise PlanError(f"{ref}: {before} {_shape(value)}")
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            raise PlanError(f"{ref}: {before} {_shape(value)}") from None
    return value


def _shape(value: Any) -> str:
    """What a reference found instead of the step it asked for, for the error message."""
    if isinstance(value, Mapping):
        keys = ", ".join(repr(key) for key in list(value)[:8])
        return f"has the fields {keys}" if keys else "has no fields"
    if isinstance(value, list | tuple):
        return f"is a list of {len(value)}" if value else "is an empty list"
    return f"is {type(value).__name__}, which has no parts"


# -- once for each element of a list -----------------------------------------------------
#
# A task with a starred reference runs once for each element: `each` tells over which list,
# `elements` what is in it, `element_args` what one call is given, `collect` how it all ended.


def each(args: Mapping[str, Any]) -> Ref | None:
    """The list over whose elements ``args`` go: ``$1.hits`` for ``f($1.hits[*].url)``.

    None where no reference has a star. Raises `PlanError` where references go over two
    lists, a reference has two stars, or one with a star stands inside a `Pick`.
    """
    starred = [ref for ref in references(args) if EACH in ref.path]
    if not starred:
        return None
    for pick in picks(args):
        if any(EACH in ref.path for ref in pick.refs):
            raise PlanError(f"{pick}: [*] cannot stand inside any() or some()")
    lists = {}
    for ref in starred:
        if ref.path.count(EACH) > 1:
            raise PlanError(f"{ref}: a reference has one [*] at most")
        lists[Ref(ref.task, ref.path[: ref.path.index(EACH)])] = ref
    if len(lists) > 1:
        first, second = list(lists.values())[:2]
        raise PlanError(f"{first} and {second} go over two lists; a call goes over one")
    return next(iter(lists))


def elements(over: Ref, outcomes: Mapping[int, Outcome]) -> Sequence[Any]:
    """The elements of the list ``over`` (from `each`); `PlanError` where it is no list."""
    value = resolve(over, outcomes)
    if not isinstance(value, list | tuple):
        raise PlanError(f"{over}[*]: {over} {_shape(value)}: [*] needs a list")
    return value


def element_args(
    args: Mapping[str, Any], index: int, element: Any, outcomes: Mapping[int, Outcome]
) -> dict[str, Any]:
    """``args`` filled for element ``index`` of the list they go over, whose value is ``element``.

    The element is given, since it may be there before the list is complete. All other
    references are filled from ``outcomes``, as `fill` does. Raises `PlanError` likewise.
    """
    return {name: _fill_element(value, index, element, outcomes) for name, value in args.items()}


def _fill_element(value: Any, index: int, element: Any, outcomes: Mapping[int, Outcome]) -> Any:
    if isinstance(value, Ref) and EACH in value.path:
        at = value.path.index(EACH)
        one = Ref(value.task, (*value.path[:at], index, *value.path[at + 1 :]))
        return _follow(one, element, at + 1)
    if isinstance(value, Mapping):
        return {k: _fill_element(v, index, element, outcomes) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_fill_element(item, index, element, outcomes) for item in value]
    return _fill(value, outcomes)


def collect(outcomes: Sequence[Outcome]) -> Outcome:
    """How a task that ran once for each element has ended, from how its calls have, in order.

    The list of their values; or the failure of the first one, in the list's order, that
    has none, so that it does not depend on which ended first.
    """
    for index, outcome in enumerate(outcomes):
        if isinstance(outcome, Failed) and not outcome.kept:
            return Failed(f"element {index}: {outcome.error}", outcome.kind)
        if isinstance(outcome, Skipped):
            return outcome
    return Ok([value_of(outcome) for outcome in outcomes if has_value(outcome)])


def whole(
    tasks: Mapping[int, Task], outcomes: Mapping[int, Outcome]
) -> tuple[dict[int, Task], dict[int, Outcome]]:
    """``tasks`` and ``outcomes`` as the plan was written: without the parts of tasks over a list,
    whose values stand in those tasks' own."""
    parts = {id for id, task in tasks.items() if task.part is not None}
    return (
        {id: task for id, task in tasks.items() if id not in parts},
        {id: outcome for id, outcome in outcomes.items() if id not in parts},
    )


def circle_of(task: Task, tasks: Mapping[int, Task]) -> list[int]:
    """The way from ``task`` over what it needs, among ``tasks``, back to itself; or nothing."""
    came_from: dict[int, int] = {}
    pending = [task.id]
    while pending:
        id = pending.pop()
        for need in task.needs if id == task.id else tasks[id].needs if id in tasks else ():
            if need == task.id:
                way = [id, need]
                while way[0] != task.id:
                    way.insert(0, came_from[way[0]])
                return way
            if need not in came_from:
                came_from[need] = id
                pending.append(need)
    return []


# -- the plan as a graph -----------------------------------------------------------------


def to_graph(tasks: Iterable[Task]) -> nx.DiGraph[int]:
    """The plan as a networkx graph: a node per task (attribute ``task``), an edge per need."""
    import networkx as nx

    graph: nx.DiGraph[int] = nx.DiGraph()
    for task in tasks:
        graph.add_node(task.id, task=task)
        graph.add_edges_from((need, task.id) for need in task.needs)
    return graph
