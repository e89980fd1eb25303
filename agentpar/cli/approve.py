"""Asks at the terminal before a call that needs approval runs.

One key answers, so the live view that redraws around the question is not disturbed by an
echoed line. Nothing here blocks the event loop, and Ctrl-C works while it asks.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from agentpar.labels import Label
from agentpar.plaintext import one_line
from agentpar.plan import Task
from agentpar.planner.parser import format_value

if TYPE_CHECKING:
    from rich.console import Console


SHOWN = 1_000
"""Characters of one argument."""


async def allow_all(task: Task, args: Mapping[str, Any]) -> bool | str:
    """``--yes``: the user has approved every call in advance."""
    return True


class AskAtTerminal:
    """Approves the calls for which the user presses ``y``; one question at a time.

    ``console`` is the one that the live view draws on. Where stdin is no terminal there is
    nobody to ask, and every call is denied with that reason.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._turn = asyncio.Lock()  # two calls at once must not share one key press

    async def __call__(self, task: Task, args: Mapping[str, Any], label: Label) -> bool | str:
        if not sys.stdin.isatty():
            return (
                f"{task.tool} needs approval and nobody could be asked: standard input is no "
                "terminal (--yes approves such calls in advance)"
            )
        from rich.text import Text

        async with self._turn:
            call = shown_call(task.tool, args)
            where = f"\n  {one_line(str(label), 500)}" if label.untrusted else ""
            question = Text.assemble(
                ("Allow ", "bold yellow"),
                call,
                "?",
                (where, "yellow"),
                "\ny allows, any other key denies",
            )
            # What was typed before the question was no answer to it: it is thrown away here.
            with _single_keys(sys.stdin.fileno()):
                self._console.print(question)
                allowed = await _key(sys.stdin.fileno()) in ("y", "Y")
        return True if allowed else "denied at the terminal"


def shown_call(tool: str, args: Mapping[str, Any]) -> str:
    """The call on one line. Each argument has `SHOWN` characters of its own, so that none can
    push another out of sight; what is cut ends with ``…``."""
    given = (f"{one_line(name)}={one_line(format_value(args[name]), SHOWN)}" for name in args)
    return f"{one_line(tool)}({', '.join(given)})"


async def _key(terminal: int) -> str:
    """The next key pressed."""
    loop = asyncio.get_running_loop()
    pressed = asyncio.Event()
    loop.add_reader(terminal, pressed.set)
    try:
        await pressed.wait()
    finally:
        loop.remove_reader(terminal)
    return os.read(terminal, 64).decode(errors="replace")[:1]


@contextlib.contextmanager
def _single_keys(terminal: int) -> Iterator[None]:
    """The terminal gives keys as they are pressed and does not show them."""
    import termios
    import tty

    before = termios.tcgetattr(terminal)
    tty.setcbreak(terminal)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
