"""The proof of a plan: which sinks untrusted data can reach, by which path, and what stops it.

Pure, and said before anything has run: a verdict depends on the plan's edges, the tools and the
rules, all of which are there by then. The machine decides by the same two functions
(`agentpar.labels.label_of`, `agentpar.permissions.Permissions.verdict`), call by call.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from agentpar.labels import Label, Origin, Read, label_of
from agentpar.permissions import Permissions, Verdict
from agentpar.plaintext import one_line
from agentpar.plan import Task, references, to_graph

SHOWN = 12
"""Most paths that are shown of one sink."""


@dataclass(frozen=True, slots=True)
class Sink:
    """A call with consequences outside the run.

    ``paths`` are the shortest ones along the plan's edges, as task ids, one from each call that
    brings something in; a path that is the end of another one is left out.
    """

    task: Task
    does: str
    label: Label
    paths: tuple[tuple[int, ...], ...]
    verdict: Verdict

    @property
    def unapproved(self) -> bool:
        """Whether untrusted data get into it and nobody is asked."""
        return self.label.untrusted and self.verdict.action == "allow"


@dataclass(frozen=True, slots=True)
class Proof:
    """What holds of a plan under an agent's permissions.

    ``later`` has every sink that the agent knows, with the verdict on a call of it that a later
    plan would add after its planner had read text from outside.
    """

    tasks: tuple[Task, ...]
    sinks: tuple[Sink, ...]
    later: tuple[tuple[str, Verdict], ...]

    @property
    def unapproved(self) -> tuple[Sink, ...]:
        """The sinks that untrusted data reach without anybody being asked; best none."""
        return tuple(sink for sink in self.sinks if sink.unapproved)


def prove(tasks: Iterable[Task], permissions: Permissions, read: Read | None = None) -> Proof:
    """The proof of a plan. ``read``: which results had been read when a task was planned; None
    for a first plan, which is written from the question alone."""
    by_id = {task.id: task for task in tasks}
    reached = list(_sinks(by_id, permissions, read or {}))
    replanned = Label(plan=(Origin(0, ""),))
    later = tuple(
        (tool, permissions.verdict(tool, replanned))
        for tool, flow in sorted(permissions.flows.items())
        if flow.sink
    )
    return Proof(tuple(by_id.values()), tuple(reached), later)


def _sinks(tasks: Mapping[int, Task], permissions: Permissions, read: Read) -> Iterator[Sink]:
    import networkx as nx

    graph = to_graph(tasks.values())
    pure = permissions.pure
    for task in tasks.values():
        flow = permissions.flow(task.tool)
        if not flow.sink:
            continue
        label = label_of(task, tasks, pure=pure, read=read, outcomes={})
        found = [tuple(nx.shortest_path(graph, origin.task_id, task.id)) for origin in label.data]
        verdict = permissions.verdict(task.tool, label)
        yield Sink(task, str(flow), label, _longest(found), verdict)


def _longest(paths: Iterable[tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
    """``paths`` without those that are the end of another one."""
    ends: set[tuple[int, ...]] = set()
    kept = []
    for path in sorted(paths, key=len, reverse=True):
        if path not in ends:
            kept.append(path)
        ends.update(path[start:] for start in range(1, len(path)))
    return tuple(sorted(kept))


def describe(proof: Proof) -> str:
    """The proof for people: a block for each sink, then what holds of the whole."""
    tasks = {task.id: task for task in proof.tasks}
    lines: list[str] = []
    for sink in proof.sinks:
        lines += _block(sink, tasks)
    calls = f"{len(proof.tasks)} calls, {len(proof.sinks)} of them sinks"
    if proof.unapproved:
        where = ", ".join(str(sink.task.id) for sink in proof.unapproved)
        lines.append(f"NOT PROVED: {calls}; untrusted data reach call {where} and nobody is asked")
    elif not proof.sinks:
        lines.append(f"nothing to prove: none of {len(proof.tasks)} calls writes or sends")
    else:
        lines.append(f"proved: {calls}; untrusted data reach none unless somebody is asked")
    for tool, verdict in proof.later:
        means = {"ask": "asks", "deny": "is denied", "allow": "is allowed"}[verdict.action]
        lines.append(f"a call of {tool} that a later plan adds after reading results {means}")
    return "\n".join(lines) + "\n"


def _block(sink: Sink, tasks: Mapping[int, Task]) -> Iterator[str]:
    yield f"{_named(sink.task)}: {sink.does}"
    if not sink.label.untrusted:
        yield "  no untrusted data reach it"
    for path in sink.paths[:SHOWN]:
        yield f"  untrusted: {' → '.join(_short(tasks[id]) for id in path)}"
    if len(sink.paths) > SHOWN:
        yield f"  untrusted: {len(sink.paths) - SHOWN} more paths"
    if sink.label.plan:
        origins = ", ".join(_short(tasks[origin.task_id]) for origin in sink.label.plan)
        yield f"  untrusted: planned after reading {one_line(origins, 300)}"
    yield f"  {sink.verdict.action}: {sink.verdict.because}"


def _short(task: Task) -> str:
    return f"{task.id} {task.tool}"


def _named(task: Task) -> str:
    """The call and what goes in, as ``4 send_mail($3.text)``."""
    fed = dict.fromkeys(f"{ref}" for ref in references(task.args))
    return f"{_short(task)}({one_line(', '.join(fed), 120)})"
