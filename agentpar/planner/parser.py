"""Reads a plan while it is being written: text in, in any pieces, calls out.

This file knows the plan language and nothing else: not which tools exist, not which tasks
were planned, not whether a reference leads anywhere (that is `binding`). It awaits nothing.

The language, line by line::

    Thought: I need both populations.            belongs to the next call
    1. search(query="population of Chile")       number, tool, arguments
    2) fetch($1.results[0].url, limit=3,)        positional first, then by name
    - 4: compare(items=[$1, ${2}], how={"by": "size"})   # gaps in the numbers are fine
    join()                                       the plan ends; what follows is not read

A later plan may also change an earlier one, in lines without a number::

    cancel($3)                                   call 3 is not wanted any more
    replace($3, fetch(url=$1[1].url))            call 3 is this one instead

Arguments are numbers, ``true false null`` (or ``True False None``), strings in either quote,
lists, dicts with string keys, and references to earlier values, which may stand wherever a
value may. ``$1[*].url`` is the url of each element of ``$1``: the call is made once for each.
``any($1, $2)`` is the first of these values that comes, ``some(2, $1, $2, $3)`` a list of the
first two. Inside quotes ``$`` is always text, a real newline is a newline, and backslash
escapes are those of Python and JSON. Blank lines, ``` fences and ``#`` comments are skipped.

Whatever else is written becomes a `BadLine`. One bad line never takes the next with it:
inside an open call, a string included, a line that begins like a call (``7. name(``) or like
the end (``join(``) ends that call as bad and is read as what it looks like. So a string may
hold newlines, but a string that wants to hold such a line must escape the newline.

How it works: a scanner looks for the few characters that can change what it is doing (a
quote, a bracket, a newline), so it passes over each character once whatever the pieces;
a call that is complete is then read by `_read_arguments`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agentpar.plaintext import cut
from agentpar.plan import EACH, Pick, Ref, Star, Step

MAX_LENGTH = 64 * 1024
"""Characters a line, or a call over several lines, may have."""

MAX_DEPTH = 32
"""How deep lists and dicts may nest."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call as it was written, not yet held against any tool."""

    id: int
    tool: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    thought: str = ""
    line: str = ""


@dataclass(frozen=True, slots=True)
class Cancel:
    """``cancel($3)``: the call of that number is not wanted any more."""

    id: int
    line: str = ""


@dataclass(frozen=True, slots=True)
class Replace:
    """``replace($3, fetch(url="x"))``: ``call``, which has the number 3, takes the place of
    the one that had it."""

    call: Call


@dataclass(frozen=True, slots=True)
class Join:
    """The plan is complete."""


@dataclass(frozen=True, slots=True)
class BadLine:
    """Text that is no part of a plan. ``id`` is the number it began with, if it had one."""

    text: str
    message: str
    id: int | None = None


Item = Call | Cancel | Replace | Join | BadLine

# -- the scanner -------------------------------------------------------------------------

_NAME = r"[^\W\d][\w.\-]*"
_NUMBER = r"[ \t]*(?:[-*•][ \t]+)?(?P<id>[0-9]{1,9})[ \t]*[.):][ \t]*"
_OPENING = re.compile(rf"(?:{_NUMBER}(?P<tool>{_NAME})|[ \t]*(?P<join>join))\(")
_CHANGING = re.compile(r"[ \t]*(?:[-*•][ \t]+)?(?P<tool>cancel|replace)\(")
_NUMBERED = re.compile(_NUMBER)
# These are held against stripped lines.
_THOUGHT = re.compile(
    r"(?:[-*•][ \t]+)?thought[ \t]*(?:[0-9]+[ \t]*)?:(?P<thought>.*)", re.IGNORECASE
)
_IGNORED = re.compile(r"(?:```[^`]*|#.*)?")
_AFTER_CALL = re.compile(r"[.,;]?[ \t]*(?:#.*)?")
_ENDING = re.compile(rf"(?:{_NUMBER})?(?:join|<END_OF_PLAN>)")

_LINE = "line"  # at the start of a line, or after a call: a call may open
_TEXT = "text"  # in a line that is no call
_SKIP = "skip"  # in the rest of a line that was too long
_CALL = "call"  # between the brackets of a call
# Inside a string the state is its quote.
_STOPS = {
    _LINE: re.compile(r"[\n(]"),
    _TEXT: re.compile(r"\n"),
    _SKIP: re.compile(r"\n"),
    _CALL: re.compile(r"""[\n()"']"""),
    '"': re.compile(r'[\n("\\]'),
    "'": re.compile(r"[\n('\\]"),
}
_find_any_stop = re.compile(r"""[\n()"'\\]""").search


class PlanParser:
    """The plan language, incrementally. The pieces of text do not change the items.

    >>> parser = PlanParser()
    >>> parser.feed('1. search(query="par')
    []
    >>> [call.kwargs for call in parser.feed('is") # and so on')]
    [{'query': 'paris'}]
    """

    def __init__(self) -> None:
        self._held: list[str] = []  # pieces in which nothing can begin or end
        self._text = ""  # what is being scanned
        self._pos = 0  # up to where it has been
        self._start = 0  # where the line, or the call, in hand begins
        self._fresh = -1  # inside a call: where a line begins that might open another
        self._state = _LINE
        self._opening: _Opening | None = None  # of the call in hand
        self._depth = 0  # open brackets of the call in hand
        self._fault = ""  # why the line in hand is bad already
        self._after_call = False
        self._thoughts: list[str] = []
        self._items: list[Item] = []  # found, and not yet handed out
        self._ended = False

    def feed(self, text: str) -> list[Item]:
        """Read on; return what ``text`` completed, in order."""
        self._held.append(text)
        if _find_any_stop(text) is None:
            return []
        return self._read_held()

    def close(self) -> list[Item]:
        """The text has ended: return what was still open, in order."""
        items = self._read_held()
        if self._ended:
            return items
        rest = self._text[self._start :]
        if self._opening is not None:
            what = "the call" if self._state == _CALL else f"a string in {self._state}"
            self._end_bad(rest, f"{what} is never closed")
        elif self._state != _SKIP:
            self._end_line(rest)
        self._ended = True
        return items + self._take_items()

    def _read_held(self) -> list[Item]:
        if self._ended:
            self._held.clear()
            return []
        self._text = self._text[self._start :] + "".join(self._held)
        self._held.clear()
        self._pos -= self._start
        self._fresh -= self._start
        self._start = 0
        self._scan()
        return self._take_items()

    def _take_items(self) -> list[Item]:
        items, self._items = self._items, []
        return items

    def _scan(self) -> None:
        """Go from one character that matters to the next, to the end of the text."""
        while not self._ended:
            limit = self._start + MAX_LENGTH
            found = _STOPS[self._state].search(self._text, self._pos, limit)
            if found is None:
                self._pos = min(len(self._text), limit)
                if self._state == _SKIP:
                    self._start = self._pos
                elif self._pos < len(self._text):
                    self._cut()
                if self._pos == len(self._text):
                    return
                continue
            self._pos = found.end()
            match found.group():
                case "\n" if self._opening is not None:
                    self._fresh = self._pos
                case "\n":
                    if self._state != _SKIP:
                        self._end_line(self._text[self._start : found.start()])
                    self._begin_line()
                case "(" if self._opening is None:
                    self._open()
                case "(":
                    self._open_inside()
                case ")":
                    self._depth -= 1
                    if self._depth == 0:
                        self._end_call()
                case "\\" if self._pos == len(self._text):
                    self._pos -= 1  # what it escapes is not here yet
                    return
                case "\\":
                    # An escaped newline still begins a line: step over nothing else.
                    if self._text[self._pos] in "\\\"'":
                        self._pos += 1
                case quote:
                    self._state = quote if self._state == _CALL else _CALL

    def _begin_line(self, *, after_call: bool = False) -> None:
        self._start = self._pos
        self._fresh = -1
        self._state = _LINE
        self._opening = None
        self._after_call = after_call

    def _open(self) -> None:
        """A bracket in a line: the call's, if a number and a name stand before it."""
        length = self._pos - self._start
        if found := _OPENING.fullmatch(self._text, self._start, self._pos):
            id, tool = found["id"], found["tool"] or "join"
            self._opening = _Opening(int(id) if id else None, tool, length)
        elif found := _CHANGING.fullmatch(self._text, self._start, self._pos):
            self._opening = _Opening(None, found["tool"], length)
        else:
            self._state = _TEXT
            return
        self._state = _CALL
        self._depth = 1

    def _open_inside(self) -> None:
        """A bracket inside a call: another call's, if its line begins like one."""
        if self._fresh >= 0 and _OPENING.fullmatch(self._text, self._fresh, self._pos):
            broken, after = self._text[self._start : self._fresh], self._pos
            self._end_bad(broken, "the call is not closed before the next one begins")
            self._pos = self._fresh
            self._begin_line()
            self._pos = after
            self._open()
            return
        self._fresh = -1  # one look a line: only its first bracket can be a call's
        if self._state == _CALL:
            self._depth += 1

    def _end_call(self) -> None:
        """The bracket that ends the call in hand: emit it now, not at the end of its line."""
        assert self._opening is not None
        opening, self._opening = self._opening, None
        line = self._text[self._start : self._pos]
        if opening.tool == "join":
            self._ended = True
            self._items.append(Join())
            return
        try:
            item = self._read_call(line, opening)
        except _Unreadable as error:
            self._fault = str(error)
            self._state = _TEXT
            return
        self._items.append(item)
        self._thoughts.clear()
        self._begin_line(after_call=True)

    def _read_call(self, line: str, opening: _Opening) -> Item:
        """What the whole ``line`` says."""
        thought = "\n".join(self._thoughts)
        if opening.id is not None:
            args, kwargs, _ = _read_arguments(line, opening.length)
            return Call(opening.id, opening.tool, args, kwargs, thought, line.strip())
        if opening.tool == "cancel":
            return Cancel(_read_target(line, opening, ")")[0], line.strip())
        id, pos = _read_target(line, opening, ",")
        inner = _CALLED.match(line, pos)
        if inner is None:
            raise _Unreadable(
                f"replace() takes a call, as in {_REPLACE}, not {_excerpt(line, pos)}"
            )
        args, kwargs, pos = _read_arguments(line, inner.end())
        done, _ = _after_value(line, pos, ")")
        if not done:
            raise _Unreadable(f"replace() takes one call, as in {_REPLACE}")
        return Replace(Call(id, inner["tool"], args, kwargs, thought, line.strip()))

    def _end_line(self, line: str) -> None:
        """A line that is no call, or what follows a call, is complete."""
        line = line.strip()
        if self._fault:
            self._end_bad(line, self._fault)
        elif self._after_call:
            if not _AFTER_CALL.fullmatch(line):
                self._items.append(
                    BadLine(line, "text after a call means nothing; only a # comment may follow")
                )
        elif thought := _THOUGHT.fullmatch(line):
            self._thoughts.append(thought["thought"].strip())
        elif _ENDING.fullmatch(line):
            self._ended = True
            self._items.append(Join())
        elif not _IGNORED.fullmatch(line):
            self._end_bad(
                line,
                "this is no call: expected a number, a tool and its arguments in brackets, "
                'as in 1. search(query="text")',
            )

    def _cut(self) -> None:
        """The line in hand is too long: give up on it, up to where a line ends."""
        begin = self._text[self._start : self._start + 200]
        self._end_bad(f"{begin}…", f"longer than {MAX_LENGTH} characters")
        self._begin_line()
        self._state = _SKIP

    def _end_bad(self, text: str, message: str) -> None:
        text = text.strip()
        number = _NUMBERED.match(text)
        if number is not None:
            self._thoughts.clear()  # they were about the call that is lost
        self._fault = ""
        self._items.append(BadLine(text, message, int(number["id"]) if number else None))


@dataclass(frozen=True, slots=True)
class _Opening:
    """How a call began: ``length`` is up to its bracket. Join, cancel and replace have no ``id``,
    though join may."""

    id: int | None
    tool: str
    length: int


# -- the arguments of one complete call --------------------------------------------------


class _Unreadable(Exception):
    """Arguments that are none, with what is wrong."""


# Every pattern takes the blanks after it along, so that none needs to look for blanks before.
_KEY = re.compile(rf"(?P<name>{_NAME})\s*=(?!=)\s*")
_STRING = r"""(?:"[^"\\]*(?:\\.[^"\\]*)*"|'[^'\\]*(?:\\.[^'\\]*)*')"""
_PATH = rf"(?:\.\w+|\[(?:-?[0-9]{{1,9}}|\*|{_STRING})\])*"
_INDEX = re.compile(r"[0-9]{1,9}")
_STEP = re.compile(rf"\.(\w+)|\[(?:(-?[0-9]+)|(\*)|({_STRING}))\]", re.DOTALL)
_VALUE = re.compile(
    rf"""(?:
      (?P<string>{_STRING})
    | (?P<reference>\$(?: [0-9]{{1,9}}{_PATH} | \{{[0-9]{{1,9}}{_PATH}\}}{_PATH} ))(?!\w)
    | (?P<float>[+-]?(?: (?:0|[1-9][0-9]*)(?: \.[0-9]+(?:[eE][+-]?[0-9]+)? | [eE][+-]?[0-9]+ )
                       | \.[0-9]+(?:[eE][+-]?[0-9]+)? ))(?![\w.])
    | (?P<int>[+-]?(?:0|[1-9][0-9]*))(?![\w.])
    | (?P<word>[Tt]rue|[Ff]alse|null|None)(?!\w)
    | (?P<open>[\[{{])
    | (?P<pick>any|some)\(
    )\s*""",
    re.DOTALL | re.VERBOSE,
)
_BLANKS = re.compile(r"\s*")
_COLON = re.compile(r":\s*")
_SEPARATOR = {close: re.compile(rf"(?:,\s*)?(\{close})\s*|,\s*") for close in ")]}"}
_EXPECTED = {")": "',' or ')'", "]": "',' or ']'", "}": "',' or '}'"}
_WORDS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}
# What JSON and Python agree on. Python's \a and \v are left out: they are found in paths only.
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "\n": "", "\r\n": ""}
_ESCAPES |= {char: char for char in "\\\"'/"}
_ESCAPE = re.compile(
    r"\\(u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    r"|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|x[0-9a-fA-F]{2}|\r\n|.)",
    re.DOTALL,
)


_CALLED = re.compile(rf"(?P<tool>{_NAME})\(")
_CANCEL, _REPLACE = "cancel($3)", 'replace($3, search(query="text"))'


def _read_target(line: str, opening: _Opening, end: str) -> tuple[int, int]:
    """The call that a line changes, followed by ``end``; and where the text after it begins."""
    pos = _skip_blanks(line, opening.length)
    found = _VALUE.match(line, pos)
    example = _CANCEL if opening.tool == "cancel" else _REPLACE
    if found is not None and found.lastgroup == "reference":
        ref = _read_reference(found["reference"])
        if not ref.path and line[found.end()] == end:
            return ref.task, _skip_blanks(line, found.end() + 1)
    raise _Unreadable(f"{opening.tool}() names a whole call, as in {example}")


def _read_arguments(line: str, pos: int) -> tuple[tuple[Any, ...], dict[str, Any], int]:
    """The arguments that begin at ``pos`` in ``line``, and where the text after their closing
    bracket begins."""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    pos = _skip_blanks(line, pos)
    done = line[pos] == ")"
    if done:
        pos = _skip_blanks(line, pos + 1)
    while not done:
        key = _KEY.match(line, pos)
        value, pos = _read_value(line, key.end() if key else pos, 0)
        if key is None:
            if kwargs:
                last = list(kwargs)[-1]
                raise _Unreadable(f"a value without a name stands after argument {last!r}")
            args.append(value)
        elif key["name"] in kwargs:
            raise _Unreadable(f"argument {key['name']!r} is given twice")
        else:
            kwargs[key["name"]] = value
        done, pos = _after_value(line, pos, ")")
    return tuple(args), kwargs, pos


def _read_value(line: str, pos: int, depth: int) -> tuple[Any, int]:
    """The value at ``pos``, and where the text after it begins."""
    found = _VALUE.match(line, pos)
    if found is None:
        hint = "; text needs quotes" if line[pos : pos + 1].isalpha() else ""
        raise _Unreadable(f"expected a value, not {_excerpt(line, pos)}{hint}")
    kind = found.lastgroup
    assert kind is not None
    text = found[kind]
    match kind:
        case "string":
            value: Any = _read_string(text)
        case "reference":
            value = _read_reference(text)
        case "int":
            value = _read_int(text)
        case "float":
            value = float(text)
            if not math.isfinite(value):
                raise _Unreadable(f"the number {text} is too large")
        case "word":
            value = _WORDS[text]
        case _ if depth == MAX_DEPTH:
            raise _Unreadable(f"lists and dicts nest deeper than {MAX_DEPTH}")
        case "pick":
            return _read_pick(line, found.end(), text)
        case _ if text == "[":
            return _read_list(line, found.end(), depth + 1)
        case _:
            return _read_dict(line, found.end(), depth + 1)
    return value, found.end()


def _read_int(text: str) -> int:
    if len(text) > 4000:  # Python's own limit is 4300
        raise _Unreadable(f"a number of {len(text)} digits is too long")
    return int(text)


def _read_list(line: str, pos: int, depth: int) -> tuple[list[Any], int]:
    items: list[Any] = []
    if line[pos] == "]":
        return items, _skip_blanks(line, pos + 1)
    done = False
    while not done:
        value, pos = _read_value(line, pos, depth)
        items.append(value)
        done, pos = _after_value(line, pos, "]")
    return items, pos


def _read_dict(line: str, pos: int, depth: int) -> tuple[dict[str, Any], int]:
    items: dict[str, Any] = {}
    if line[pos] == "}":
        return items, _skip_blanks(line, pos + 1)
    done = False
    while not done:
        key, after = _read_value(line, pos, depth)
        if not isinstance(key, str):
            raise _Unreadable(f"a dict key must be a string, not {_excerpt(line, pos)}")
        if key in items:
            raise _Unreadable(f"key {key!r} is given twice")
        colon = _COLON.match(line, after)
        if colon is None:
            raise _Unreadable(f"expected ':' after key {key!r}, not {_excerpt(line, after)}")
        items[key], pos = _read_value(line, colon.end(), depth)
        done, pos = _after_value(line, pos, "}")
    return items, pos


def _read_pick(line: str, pos: int, name: str) -> tuple[Pick, int]:
    """What stands in the brackets of ``any(…)`` or ``some(k, …)``."""
    example = "any($1, $2)" if name == "any" else "some(2, $1, $2, $3)"
    done = False

    def read(group: str, wanted: str) -> str:
        nonlocal done, pos
        found = _VALUE.match(line, pos)
        if found is None or found.lastgroup != group:
            raise _Unreadable(f"{name}() {wanted}, as in {example}, not {_excerpt(line, pos)}")
        done, pos = _after_value(line, found.end(), ")")
        return found[group]

    k = _read_int(read("int", "begins with how many to take")) if name == "some" else None
    refs: list[Ref] = []
    while not done:
        refs.append(_read_reference(read("reference", "takes references")))
    if k is not None and not 1 <= k <= len(refs):
        raise _Unreadable(f"some({k}, …) cannot take {k} of {len(refs)} references")
    return Pick(tuple(refs), k), pos


def _after_value(line: str, pos: int, close: str) -> tuple[bool, int]:
    """Whether the values end at ``pos``, after a last comma or none; and where to read on."""
    found = _SEPARATOR[close].match(line, pos)
    if found is None:
        raise _Unreadable(f"expected {_EXPECTED[close]}, not {_excerpt(line, pos)}")
    return found[1] is not None, found.end()


def _read_reference(text: str) -> Ref:
    number = re.match(r"\$\{?([0-9]+)", text)
    assert number is not None
    path: list[Step] = []
    for name, index, star, string in _STEP.findall(text, number.end()):
        if string:
            path.append(_read_string(string))
        elif star:
            path.append(EACH)
        elif index or _INDEX.fullmatch(name):
            path.append(int(index or name))
        else:
            path.append(name)
    return Ref(int(number[1]), tuple(path))


def _read_string(quoted: str) -> str:
    text = quoted[1:-1]
    return _ESCAPE.sub(_unescape, text) if "\\" in text else text


def _unescape(found: re.Match[str]) -> str:
    body = found[1]
    if body in _ESCAPES:
        return _ESCAPES[body]
    match len(body):
        case 1:
            return found[0]  # no escape, as in Python: "\d" is a backslash and a d
        case 11:
            return str(json.loads(f'"{found[0]}"'))
    code = int(body[1:], 16)
    # Half a surrogate pair is no text: it could be neither printed nor sent.
    return chr(code) if code < 0xD800 or 0xDFFF < code <= 0x10FFFF else "\N{REPLACEMENT CHARACTER}"


def _skip_blanks(line: str, pos: int) -> int:
    found = _BLANKS.match(line, pos)
    assert found is not None
    return found.end()


def _excerpt(line: str, pos: int) -> str:
    return repr(cut(line[pos:], 30))


# -- writing -----------------------------------------------------------------------------

_WORD = re.compile(r"[^\W\d]\w*")


def is_name(text: str) -> bool:
    """Whether ``text`` can stand as the name of a tool or an argument in a plan."""
    return re.fullmatch(_NAME, text) is not None


def format_call(tool: str, args: Mapping[str, Any]) -> str:
    """The call as a plan writes it, on one line: ``search(query="paris", limit=$1.n)``.

    What `PlanParser` makes of it is ``args`` again (tuples come back as lists). Raises
    `ValueError` for a value that no plan can hold (an object, a NaN).
    """
    return f"{tool}({', '.join(f'{name}={format_value(value)}' for name, value in args.items())})"


def format_value(value: Any) -> str:
    """One argument as a plan writes it; see `format_call`."""
    match value:
        case Ref():
            return f"${value.task}{''.join(map(_format_step, value.path))}"
        case Pick(refs, k):
            inside = ", ".join(map(format_value, refs if k is None else (k, *refs)))
            return f"{'any' if k is None else 'some'}({inside})"
        case list() | tuple():
            return f"[{', '.join(map(format_value, value))}]"
        case Mapping():
            pairs = (f"{format_value(key)}: {format_value(item)}" for key, item in value.items())
            return f"{{{', '.join(pairs)}}}"
        case str() | int() | float() | None:
            return json.dumps(value, ensure_ascii=False, allow_nan=False)
    raise ValueError(
        f"{value!r} is no value of a plan (text, number, true, false, null, list, dict)"
    )


def _format_step(step: Step) -> str:
    if isinstance(step, Star):
        return "[*]"
    if isinstance(step, int):
        return f"[{step}]"
    if _WORD.fullmatch(step):
        return f".{step}"
    return f"[{format_value(step)}]"
