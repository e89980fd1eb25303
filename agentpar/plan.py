"""What a plan is made of: tasks, references between them, and how a task ended.

These are values. Nothing here knows a model, a tool, a clock or a network.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

from agentpar.errors import PlanError

if TYPE_CHECKING:  # networkx loads when a plan is analysed, not when agentpar is imported
    import networkx as nx


@dataclass(frozen=True, slots=True)
class Ref:
    """The value of an earlier task, or of a part of it: ``$3``, ``$3.items[0].id``."""

    task: int
    path: tuple[str | int, ...] = ()

    def __str__(self) -> str:
        steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.path)
        return f"${self.task}{''.join(steps)}"


@dataclass(frozen=True, slots=True)
class Task:
    """One tool call of a plan. ``args`` holds typed literals and `Ref` values, by name."""

    id: int
    tool: str
    args: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[int, ...] = ()
    thought: str = ""

    @classmethod
    def of(cls, id: int, tool: str, thought: str = "", /, **args: Any) -> Task:
        """Build a task and work out ``needs`` from the references in ``args``."""
        return cls(id, tool, args, needs(args), thought)


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
    kept: bool = field(default=False, repr=False)


@dataclass(frozen=True, slots=True)
class Skipped:
    """The task never ran because task ``because``, which it refers to, has no value."""

    because: int


Outcome = Ok | Failed | Skipped


def has_value(outcome: Outcome | None) -> TypeGuard[Ok | Failed]:
    """Whether references to a task with this outcome lead to something."""
    return isinstance(outcome, Ok) or (isinstance(outcome, Failed) and outcome.kept)


def references(value: Any) -> Iterator[Ref]:
    """Every `Ref` inside ``value``, in writing order, looking into lists, tuples and dicts."""
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from references(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from references(item)


def needs(args: Mapping[str, Any]) -> tuple[int, ...]:
    """The ids of the tasks that ``args`` refers to, each once, in writing order."""
    return tuple(dict.fromkeys(ref.task for ref in references(args)))


_LITERALS = frozenset((str, int, float, bool, type(None)))


def fill(args: Mapping[str, Any], outcomes: Mapping[int, Outcome]) -> dict[str, Any]:
    """``args`` with every reference replaced by the value it points to.

    Values go in as they are: a result is never read again for references, so a page
    that contains ``$1`` changes nothing.

    Raises `PlanError` where a path does not exist in the value.
    """
    return {name: _fill(value, outcomes) for name, value in args.items()}


def _fill(value: Any, outcomes: Mapping[int, Outcome]) -> Any:
    kind = type(value)
    if kind in _LITERALS:
        return value
    if kind is Ref:
        if not value.path and type(outcome := outcomes.get(value.task)) is Ok:
            return outcome.value
        return resolve(value, outcomes)
    if kind is list or kind is tuple:
        return [_fill(item, outcomes) for item in value]
    if isinstance(value, Mapping):
        return {key: _fill(item, outcomes) for key, item in value.items()}
    return value


def resolve(ref: Ref, outcomes: Mapping[int, Outcome]) -> Any:
    """The value that ``ref`` points to; `PlanError` says which step of the path is missing."""
    outcome = outcomes.get(ref.task)
    if not has_value(outcome):
        raise PlanError(f"{ref}: task {ref.task} has no value")
    value = outcome.value if isinstance(outcome, Ok) else {"error": outcome.error}
    for depth, step in enumerate(ref.path):
        before = Ref(ref.task, ref.path[:depth])
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


def to_graph(tasks: Iterable[Task]) -> nx.DiGraph[int]:
    """The plan as a networkx graph: a node per task (attribute ``task``), an edge per need."""
    import networkx as nx

    graph: nx.DiGraph[int] = nx.DiGraph()
    for task in tasks:
        graph.add_node(task.id, task=task)
        graph.add_edges_from((need, task.id) for need in task.needs)
    return graph
