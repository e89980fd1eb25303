"""Holds a call against the tools and the plan so far, and makes it a task.

The parser says what was written; this file says whether it can be meant: the tool exists,
every argument has a name and a fitting type, every reference leads to an earlier task, and to
a part of its value that can exist and fit (`dataflow`). The grammar rules most of the same
mistakes out while the model writes, so both must agree.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from agentpar.errors import PlanError
from agentpar.plan import Task, circle_of, each, is_special, needs
from agentpar.planner.dataflow import promises
from agentpar.planner.parser import Call
from agentpar.tools.base import Tool
from agentpar.tools.schema import problem


def bind(
    call: Call,
    tools: Mapping[str, Tool],
    known: Collection[int],
    tasks: Mapping[int, Task] | None = None,
) -> Task:
    """The task that ``call`` means. ``known`` holds the ids planned before it.

    ``tasks`` are those of them that became tasks; references to these are held against
    what their tools return. Positional arguments take the names of the schema, in its
    order. Raises `PlanError` that says what is wrong and, for a misspelled name, which
    one is near.
    """
    tool = tools.get(call.tool)
    if tool is None:
        raise PlanError(f"unknown tool {call.tool!r}{_instead(call.tool, tools)}")
    if call.id in known:
        raise PlanError(f"there is a task {call.id} already; number this one anew")
    args = _named(call, tool) if call.args else call.kwargs
    needed = needs(args)
    _check(_promised(args, tool, tools, tasks or {}) if needed else args, tool)
    for id in needed:
        if id not in known:
            where = "itself" if id == call.id else f"task {id}, which is not planned before it"
            raise PlanError(f"{call.tool}: ${id} refers to {where}")
    return Task(call.id, call.tool, args, needed, call.thought, bool(needed) and is_special(args))


def rebind(
    call: Call, tools: Mapping[str, Tool], tasks: Mapping[int, Task], ended: Collection[int]
) -> Task:
    """The task that takes the place of the unfinished task ``call.id``.

    It may refer to any of ``tasks``, later ones included, as long as none of them needs it.
    Raises `PlanError` as `bind` does, and where that task has ``ended`` or was never
    planned, where the new one would need itself (with the way round), or where an
    unfinished task could not use what it returns.
    """
    _check_unfinished("replace", call.id, tasks, ended)
    known = tasks.keys() | set(ended)
    task = bind(call, tools, known - {call.id}, tasks)
    if circle := circle_of(task, tasks):
        raise PlanError(f"replace: {' needs '.join(f'${id}' for id in circle)}")
    changed = {**tasks, task.id: task}
    for user in tasks.values():
        if task.id in user.needs and user.id not in ended and user.id != task.id:
            try:
                _check(_promised(user.args, tools[user.tool], tools, changed), tools[user.tool])
            except PlanError as error:
                raise PlanError(f"replace: ${user.id} could not use it: {error}") from None
    return task


def check_cancel(id: int, tasks: Mapping[int, Task], ended: Collection[int]) -> None:
    """Raises `PlanError` where there is no unfinished task ``id`` to cancel."""
    _check_unfinished("cancel", id, tasks, ended)


def _check_unfinished(
    what: str, id: int, tasks: Mapping[int, Task], ended: Collection[int]
) -> None:
    if id in ended:
        raise PlanError(f"{what}: ${id} has ended already; its result stands")
    if id not in tasks:
        raise PlanError(f"{what}: there is no call {id}")


def _promised(
    args: Mapping[str, Any], tool: Tool, tools: Mapping[str, Tool], tasks: Mapping[int, Task]
) -> Mapping[str, Any]:
    try:
        each(args)
        return promises(args, tasks, tools)
    except PlanError as error:
        raise PlanError(f"{tool.name}: {error}") from None


def _named(call: Call, tool: Tool) -> dict[str, Any]:
    """The arguments by name, in the order of writing."""
    names = list(tool.parameters.get("properties", ()))
    if len(call.args) > len(names):
        raise PlanError(
            f"{tool.name} takes {len(names)} arguments ({', '.join(names)}), not {len(call.args)}"
        )
    args = dict(zip(names, call.args, strict=False))
    for name, value in call.kwargs.items():
        if name in args:
            raise PlanError(f"{tool.name}: argument {name!r} is given by place and by name")
        args[name] = value
    return args


def _check(args: Mapping[str, Any], tool: Tool) -> None:
    schema = tool.parameters
    properties = schema.get("properties", {})
    others = schema.get("additionalProperties", False)
    for name, value in args.items():
        if name in properties:
            found = problem(properties[name], value, schema)
        elif others is False:
            raise PlanError(f"{tool.name} has no argument {name!r}{_instead(name, properties)}")
        else:
            found = problem(others, value, schema)
        if found is not None:
            at = "" if found[0] in ".[" else " "
            raise PlanError(f"{tool.name}: argument {name!r}{at}{found}")
    missing = [name for name in schema.get("required", ()) if name not in args]
    if missing:
        raise PlanError(f"{tool.name} needs {' and '.join(map(repr, missing))}")


def _instead(name: str, known: Iterable[str]) -> str:
    """What to write instead: the nearest name, and all there are if they are few."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    if near:
        return f": did you mean {near[0]!r}?"
    listed = ", ".join(map(repr, names[:12])) + (", …" if len(names) > 12 else "")
    return f"; there is {listed}" if names else "; there is none"
