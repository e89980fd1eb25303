"""Carrying a run on: which commands of an earlier part of it no fact has met yet. Pure.

It must never know where the events were kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from agentpar.events import (
    Answered,
    ApprovalGiven,
    AttemptEnded,
    AttemptFailed,
    Event,
    JoinFailed,
    PlanEnded,
    PlanFailed,
    ReplanAsked,
    TaskDone,
    TaskPlanned,
)
from agentpar.executor.commands import (
    Ask,
    Cancel,
    Command,
    Conclude,
    Execute,
    Expand,
    Join,
    Plan,
    Settle,
    Wake,
)
from agentpar.executor.machine import Machine
from agentpar.plan import Task
from agentpar.resource import NEVER


def catch_up(machine: Machine, history: Iterable[Event]) -> list[Command]:
    """Tell ``machine`` what has happened already; the commands that no fact has met yet.

    Performing those, and nothing else, carries an interrupted run on. A plan that broke
    off is asked for from the first number it has not used; what it planned stands.
    """
    due: dict[tuple[str, int, int], Command] = {}
    attempts: dict[int, list[int]] = {}  # what is due for each task: 0 for all but calls
    for event in history:
        match event:
            case TaskPlanned(_, Task(part=(parent, _))):
                _planned_part(due, parent, event.task.id)
            case TaskDone():
                for attempt in attempts.pop(event.task_id, ()):
                    due.pop(("task", event.task_id, attempt), None)
            case ApprovalGiven():
                due.pop(("task", event.task_id, 0), None)
            case AttemptFailed():
                due.pop(("task", event.task_id, event.attempt), None)
            case AttemptEnded():
                due.pop(("call", event.task_id, event.attempt), None)
            case PlanEnded() | PlanFailed():
                due.pop(("plan", event.round, 0), None)
            case Answered() | ReplanAsked() | JoinFailed():
                due.pop(("join", event.round, 0), None)
        for command in machine.handle(event):
            match command:
                case Execute(task, _, attempt):
                    due["task", task.id, attempt] = command
                    attempts.setdefault(task.id, []).append(attempt)
                case Expand(id, parts):
                    due["parts", id, parts[0].id] = command
                case Ask(Task(id)) | Settle(id):
                    due["task", id, 0] = command
                    attempts.setdefault(id, []).append(0)
                case Cancel("call", id, attempt):
                    due.pop(("task", id, attempt), None)
                    due["call", id, attempt] = command  # until it is told that it has ended
                case Cancel("ask", id):
                    due.pop(("task", id, 0), None)
                case Cancel(what, id):
                    due.pop((what, id, 0), None)
                case Plan(round):
                    due["plan", round, 0] = command
                case Join(round) | Conclude(round):
                    due["join", round, 0] = command
    if machine.finished is None and machine.wakes_at < NEVER:
        due["wake", 0, 0] = Wake(machine.wakes_at)
    return [
        replace(command, first_id=machine.next_id) if isinstance(command, Plan) else command
        for command in due.values()
    ]


def _planned_part(due: dict[tuple[str, int, int], Command], parent: int, part: int) -> None:
    """One of the parts of an `Expand` that is due has been planned."""
    for key, command in due.items():
        if isinstance(command, Expand) and command.task_id == parent:
            left = tuple(task for task in command.parts if task.id != part)
            if left:
                due[key] = replace(command, parts=left)
            else:
                del due[key]
            return
