"""Which calls are equal: the first task of a run with this tool and these arguments.

Pure. It must never know what becomes of a call, or of its twin.

Writing arguments out to compare them costs more than most calls are worth, and most differ in
one plain argument already. So of each tool one argument is looked at first, and only calls that
have the same there are compared as a whole.
"""

from __future__ import annotations

import marshal
from collections.abc import Iterable, Mapping
from typing import Any

Args = Mapping[str, Any]
_PLAIN = (str, int)  # of these types exactly: True is not 1


class Twins:
    """The first task with each call of ``tools``; calls of other tools have no twins."""

    def __init__(self, tools: Iterable[str]) -> None:
        self._tools = {name: _Seen() for name in tools}

    def first(self, task: int, tool: str, args: Args) -> int:
        """The first task with this call, which is ``task`` if there was none."""
        seen = self._tools.get(tool)
        if seen is None:
            return task
        value = args.get(seen.name)
        if type(value) not in _PLAIN:
            value = seen.choose(args) if not seen.single else None
        if value in seen.single:
            return seen.again(value, task, args)
        seen.single[value] = task
        seen.args[task] = args
        return task

    def begin_anew(self, task: int, tool: str, args: Args) -> None:
        """The first task with this call brought nothing: from now on it is ``task``."""
        self._tools[tool].by_value[_by_value(args)] = task

    def forget(self, task: int, tool: str) -> None:
        """``task`` is another call now."""
        if tool in self._tools:
            self._tools[tool].forget(task)


class _Seen:
    """The calls of one tool. A call is in ``by_value`` once a second is the same at ``name``, and
    until then in ``args``."""

    __slots__ = ("args", "by_value", "name", "single")

    def __init__(self) -> None:
        self.name = ""
        self.single: dict[str | int | None, int] = {}  # by what is at `name`: the first task
        self.args: dict[int, Args] = {}
        self.by_value: dict[bytes, int] = {}

    def again(self, value: str | int | None, task: int, args: Args) -> int:
        """The first task with this call: one with ``value`` has been seen before."""
        before = self.single[value]
        if (its_args := self.args.pop(before, None)) is not None:
            self.by_value.setdefault(_by_value(its_args), before)
        return self.by_value.setdefault(_by_value(args), task)

    def choose(self, args: Args) -> str | int | None:
        """Choose the argument to look at first: the first plain one; returns its value."""
        for name, value in args.items():
            if type(value) in _PLAIN:
                self.name = name
                return value  # type: ignore[no-any-return]
        return None

    def forget(self, task: int) -> None:
        if self.args.pop(task, None) is not None:
            self.single = {value: first for value, first in self.single.items() if first != task}
        self.by_value = {key: first for key, first in self.by_value.items() if first != task}


def _by_value(args: Args) -> bytes:
    """Equal for equal arguments, in whatever order they are named; 1, 1.0 and True differ.

    Arguments are plain data, and nothing writes that faster. Format 2 knows no references:
    it does not matter whether two equal parts are one object.
    """
    return marshal.dumps(sorted(args.items()), 2)
