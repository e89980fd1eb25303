"""Makes the grammar a planner decodes under: plans that parse and bind, and no others.

From the tools' schemas to one EBNF text as xgrammar reads it (vLLM's ``structured_outputs:
{"grammar": …}``). In it an unknown tool, a wrong argument name or type, a reference to a task
that is not planned yet and a number out of turn cannot be written, and nothing follows
``join()``. It writes a narrow form of what `parser` reads: arguments by name, in the
schema's order, strings in double quotes on one line.

What the grammar cannot say (a pattern, bounds on fractions, a minLength over 4, two equal keys
in a dict whose keys no schema names, keywords it does not know, what type a reference's value
has, over which list a call goes, what a replacement may not need) it leaves open, and the parser
or `binding` finds it afterwards.

Lines differ only in the references they may hold, so what holds none is one rule for all
lines: rules are kept by what they say, and equal ones are the same rule.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from agentpar.errors import UsageError
from agentpar.planner.parser import format_value, is_name
from agentpar.tools.base import Tool
from agentpar.tools.schema import Schema, resolve

MAX_STRING = 400
"""Characters of a string whose schema sets no ``maxLength``: a model that runs on is stopped."""

MAX_ITEMS = 16
"""Items of a list whose schema sets no ``maxItems``."""

_MAX_DIGITS = 15  # integers of so many digits are exact as floats, too
_MAX_LEAST = 4  # of a minLength: each character that must come costs time at every step
_MAX_COUNT = 1_000_000  # of characters or items: xgrammar's own numbers end at 2**31
_MAX_KEY = 64  # characters of a key that no schema names
_MAX_CHANGES = 8  # in a row
_MAX_DEPTH = 5  # of nested schemas: what is deeper (a schema may contain itself) is any JSON


def plan_grammar(
    tools: Mapping[str, Tool],
    *,
    first_id: int = 1,
    known: Collection[int] = (),
    alive: Collection[int] = (),
    max_lines: int = 16,
    thoughts: bool = False,
    extended: bool = False,
) -> str:
    """The EBNF of every plan of ``max_lines`` calls or fewer over ``tools``.

    Tasks are numbered from ``first_id``. ``known`` holds the ids of earlier rounds that have
    a value or may yet get one, so that references may go there; where it is empty there is at
    least one task, else a plan may be ``join()`` alone. ``alive`` holds those of them that a line
    may cancel or replace. With ``thoughts`` a ``Thought:`` line may stand
    before each task. With ``extended`` a reference may have one ``[*]``, and ``any(…)`` and
    ``some(…)`` may be written. Raises `UsageError` for a name that no plan can write.

    The size grows with ``max_lines`` × the arguments of all tools.
    """
    _check_names(tools)
    rules = _Rules()
    end = first_id + max_lines if tools else first_id
    line = rules.add("line", f'{_text(f"{end}. ")}? "join()"')
    thought = _thought(rules) if thoughts else ""
    for id in reversed(range(first_id, end)):
        references = _references(rules, [*known, *range(first_id, id)])
        writer = _Writer(rules, references, extended)
        calls = rules.add("call", " | ".join(writer.call(tool) for tool in tools.values()))
        task = f'{_text(f"{id}. ")} {calls} "\\n" {line}'
        may_end = id > first_id or known
        ending = f' | {_text(f"{id}. ")}? "join()"' if may_end else ""
        changes = f"{_changes(rules, alive, calls)} " if alive else ""
        line = rules.add("line", f"{changes}({thought}{task}{ending})")
    return rules.ebnf(line)


def _check_names(tools: Mapping[str, Tool]) -> None:
    for tool in tools.values():
        if not is_name(tool.name) or tool.name == "join":
            raise UsageError(f"a plan cannot call a tool named {tool.name!r}: rename it")
        for name in tool.parameters.get("required", ()):
            if not is_name(name):
                raise UsageError(
                    f"tool {tool.name!r} needs an argument {name!r}, which a plan cannot name: "
                    "rename it (letters, digits, '_', '-', '.')"
                )


# -- writing EBNF ------------------------------------------------------------------------

_CHAR = r'[^"\\\x00-\x1f\x7f] | "\\" ["\\/nt]'
_INTEGER = rf'"-"? ("0" | [1-9] [0-9]{{0,{_MAX_DIGITS - 1}}})'
_NATURAL = rf'"0" | [1-9] [0-9]{{0,{_MAX_DIGITS - 1}}}'
_FRACTION = r'("." [0-9]{1,9})?'
_PATH = r'("." [a-zA-Z_] [a-zA-Z0-9_]{0,40} | "[" [0-9]{1,3} "]"){0,4}'


class _Rules:
    """The rules so far. Rules that say the same are one rule."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, str], str] = {}

    def add(self, hint: str, body: str, options: str = "") -> str:
        """The name of the rule that says ``body``; a new one is named after ``hint``."""
        return self._names.setdefault((body, options), f"{hint}{len(self._names)}")

    def ebnf(self, root: str) -> str:
        named = reversed(self._names.items())
        rules = (f"{name}{options} ::= {body}\n" for (body, options), name in named)
        return f"root ::= {root}\n{''.join(rules)}"


def _budgeted(rules: _Rules, body: str, high: int) -> str:
    """The rule for ``body``, cut off after ``high`` characters (xgrammar 0.2.6 or later).

    Not ``char{0,high}``: counted repetition makes xgrammar try every long token of the
    vocabulary at every step, or unroll it when it compiles.
    """
    return rules.add("text", body, f"[max_chars={high}]")


def _thought(rules: _Rules) -> str:
    text = _budgeted(rules, r"[^\n\r] [^\n\r]*", MAX_STRING)
    return rules.add("thought", rf'("Thought: " {text} "\n")?') + " "


def _changes(rules: _Rules, alive: Collection[int], calls: str) -> str:
    """The rule for lines that cancel, or replace by one of ``calls``, tasks that are ``alive``."""
    one = f'"$" ({_numbers(alive)})'
    cancel, replace = f'"cancel(" {one} ")"', f'"replace(" {one} ", " {calls} ")"'
    change = rules.add("change", f'({cancel} | {replace}) "\\n"')
    return rules.add("changes", f"{change}{{0,{min(len(alive), _MAX_CHANGES)}}}")


def _references(rules: _Rules, ids: Collection[int]) -> str:
    """The rule for a reference to one of ``ids``, or "" where there is none."""
    if not ids:
        return ""
    return rules.add("ref", f'"$" ({_numbers(ids)}) {rules.add("path", _PATH)}')


def _numbers(ids: Collection[int]) -> str:
    """Alternatives for the numbers of ``ids``."""
    tens = groupby(sorted(set(ids)), key=lambda id: id // 10)
    groups = ((str(ten or ""), "".join(str(id % 10) for id in group)) for ten, group in tens)
    return " | ".join(f"{_text(ten)} [{digits}]" for ten, digits in groups)


def _starred(rules: _Rules, references: str) -> str:
    """The rule for one of ``references`` that goes over a list."""
    return rules.add("each", f'{references} "[*]" {rules.add("path", _PATH)}')


def _picks(rules: _Rules, references: str, *, lists: bool) -> str:
    """The rule for ``any(…)``, or for ``some(k, …)`` where ``lists``."""
    if not lists:
        return rules.add("any", f'"any(" {references} (", " {references}){{1,7}} ")"')
    forms = (f'"some({k}, " {references} (", " {references}){{{k - 1},7}} ")"' for k in (2, 3))
    return rules.add("some", " | ".join(forms))


class _Writer:
    """Writes calls and values that may refer to what the rule ``references`` allows."""

    def __init__(self, rules: _Rules, references: str, extended: bool) -> None:
        self._rules = rules
        self._references = references
        self._extended = extended and bool(references)

    def call(self, tool: Tool) -> str:
        """The rule for a call of ``tool``: arguments by name, in the schema's order."""
        fields = self._fields(tool.parameters, tool.parameters, _as_argument, 0)
        return self._rules.add("tool", f'{_text(f"{tool.name}(")} {fields} ")"')

    def _value(self, schema: Schema | bool, root: Schema, depth: int) -> str:
        """A literal that fits ``schema``, or a reference."""
        literal = self._literal(schema, root, depth)
        if not self._references:
            return literal
        if not self._extended:
            return self._rules.add("value", f"{literal} | {self._references}")
        options = [literal, self._references, _starred(self._rules, self._references)]
        options.append(_picks(self._rules, self._references, lists=False))
        if isinstance(schema, bool) or resolve(schema, root).get("type", "array") == "array":
            options.append(_picks(self._rules, self._references, lists=True))
        return self._rules.add("value", " | ".join(options))

    def _literal(self, schema: Schema | bool, root: Schema, depth: int) -> str:
        if isinstance(schema, bool) or depth > _MAX_DEPTH:
            return self._any()
        schema = resolve(schema, root)
        match schema:
            case {"const": value}:
                return self._choice([value])
            case {"enum": [_, *_] as values}:
                return self._choice(values)
            case {"anyOf": [_, *_] as options} | {"oneOf": [_, *_] as options}:
                return self._either(self._literal(option, root, depth) for option in options)
            case {"allOf": [option]}:
                return self._literal(option, root, depth)
            case {"type": [_, *_] as names}:
                types = ({**schema, "type": name} for name in names)
                return self._either(self._literal(each, root, depth) for each in types)
            case {"type": "string"}:
                low = schema.get("minLength", 0)
                most = schema.get("maxLength", max(low, MAX_STRING))
                return self._string(low, min(most, _MAX_COUNT))
            case {"type": "integer"}:
                return self._integer(schema)
            case {"type": "number"}:
                positive = schema.get("minimum", -1) >= 0 or schema.get("exclusiveMinimum", -1) >= 0
                body = f"({_NATURAL}) {_FRACTION}" if positive else f"{_INTEGER} {_FRACTION}"
                return self._rules.add("number", body)
            case {"type": "boolean"}:
                return self._choice([True, False])
            case {"type": "null"}:
                return self._choice([None])
            case {"type": "array"}:
                return self._array(schema, root, depth)
            case {"type": "object"}:
                return self._object(schema, root, depth)
        return self._any()

    def _either(self, options: Iterable[str]) -> str:
        return self._rules.add("either", " | ".join(dict.fromkeys(options)))

    def _choice(self, values: Sequence[Any]) -> str:
        return self._rules.add("choice", " | ".join(_text(format_value(value)) for value in values))

    def _string(self, low: int, high: int) -> str:
        char = self._rules.add("char", _CHAR)
        start = f"{char} " * min(low, _MAX_LEAST)
        text = _budgeted(self._rules, f"{start}{char}*", high)
        return self._rules.add("string", rf'"\"" {text} "\""')

    def _integer(self, schema: Schema) -> str:
        low, high = _bounds(schema)
        if low is None and high is None:
            return self._rules.add("integer", _INTEGER)
        if high is None and low == 0:
            return self._rules.add("integer", _NATURAL)
        most = 10**_MAX_DIGITS - 1
        low, high = -most if low is None else low, most if high is None else high
        parts = []
        if low < 0:
            parts += [f'"-" ({digits})' for digits in _digits(max(1, -high), -low)]
        if high >= 0:
            parts += _digits(max(0, low), high)
        return self._rules.add("integer", " | ".join(parts) or _INTEGER)

    def _array(self, schema: Schema, root: Schema, depth: int) -> str:
        least = schema.get("minItems", 0)
        most = min(schema.get("maxItems", max(MAX_ITEMS, least)), _MAX_COUNT)
        rest = schema.get("items", True)
        first = [self._value(each, root, depth + 1) for each in schema.get("prefixItems", ())]
        first = first[:most]
        most -= len(first)
        least = min(max(least - len(first), 0), most)
        body = _sequence(self._rules, [(each, True) for each in first])
        if rest is not False and most > 0:
            item = self._value(rest, root, depth + 1)
            if first:
                body += f' (", " {item}){{{least},{most}}}'
            else:
                body = f'({item} (", " {item}){{{max(least - 1, 0)},{most - 1}}})'
                body += "" if least else "?"
        return self._rules.add("list", f'"[" {body} "]"')

    def _object(self, schema: Schema, root: Schema, depth: int) -> str:
        if schema.get("properties"):
            fields = self._fields(schema, root, _as_key, depth + 1)
            return self._rules.add("object", f'"{{" {fields} "}}"')
        others = schema.get("additionalProperties", True)
        if others is False:
            return self._rules.add("object", '"{}"')
        pair = f'{self._string(1, _MAX_KEY)} ": " {self._value(others, root, depth + 1)}'
        return self._rules.add("object", f'"{{" ({pair} (", " {pair}){{0,{MAX_ITEMS - 1}}})? "}}"')

    def _fields(
        self, schema: Schema, root: Schema, written: Callable[[str], str], depth: int
    ) -> str:
        """The properties in order, those that are not required with or without."""
        required = schema.get("required", ())
        fields = [
            (f"{_text(start)} {self._value(each, root, depth)}", name in required)
            for name, each in schema.get("properties", {}).items()
            if (start := written(name))
        ]
        return _sequence(self._rules, fields)

    def _any(self) -> str:
        """Any JSON, two levels deep."""
        add = self._rules.add
        text, number = self._string(0, MAX_STRING), add("number", f"{_INTEGER} {_FRACTION}")
        any = add("any", f'{text} | {number} | "true" | "false" | "null"')
        key = self._string(1, _MAX_KEY)
        for _ in range(2):
            items = f'"[" ({any} (", " {any}){{0,{MAX_ITEMS - 1}}})? "]"'
            pair = f'{key} ": " {any}'
            pairs = f'"{{" ({pair} (", " {pair}){{0,{MAX_ITEMS - 1}}})? "}}"'
            any = add("any", f"{any} | {items} | {pairs}")
        return any


def _as_argument(name: str) -> str:
    """How an argument begins; "" for a name that no plan can write."""
    return f"{name}=" if is_name(name) else ""


def _as_key(name: str) -> str:
    return f"{format_value(name)}: "


def _sequence(rules: _Rules, parts: Sequence[tuple[str, bool]]) -> str:
    """``parts`` with commas between; one that comes with False may be left out."""
    first = next((i for i, (_, required) in enumerate(parts) if required), None)
    if first is not None:
        before = "".join(f'({part} ", ")? ' for part, _ in parts[:first])
        after = "".join(
            f' ", " {part}' if required else f' (", " {part})?'
            for part, required in parts[first + 1 :]
        )
        return f"{before}{parts[first][0]}{after}"
    if not parts:
        return '""'
    # All may be left out: the first one written has no comma before it.
    rest, starts = "", []
    for part, _ in reversed(parts):
        starts.append(f"{part} {rest}".strip())
        rest = rules.add("rest", f'(", " {part})? {rest}'.strip())
    return f"({' | '.join(reversed(starts))})?"


def _bounds(schema: Schema) -> tuple[int | None, int | None]:
    """The least and the greatest integer that ``schema`` allows, where it says so."""
    low = [math.ceil(schema["minimum"])] if "minimum" in schema else []
    if "exclusiveMinimum" in schema:
        low.append(math.floor(schema["exclusiveMinimum"]) + 1)
    high = [math.floor(schema["maximum"])] if "maximum" in schema else []
    if "exclusiveMaximum" in schema:
        high.append(math.ceil(schema["exclusiveMaximum"]) - 1)
    return max(low, default=None), min(high, default=None)


def _digits(low: int, high: int) -> list[str]:
    """Alternatives for the numbers from ``low`` (0 or more) to ``high``, without leading zeros."""
    found = []
    for length in range(len(str(low)), len(str(high)) + 1):
        begin = max(low, 10 ** (length - 1) if length > 1 else 0)
        end = min(high, 10**length - 1)
        if begin <= end:
            found += _same_length(str(begin), str(end))
    return found


def _same_length(low: str, high: str) -> list[str]:
    """Alternatives for the digit strings from ``low`` to ``high``, which are equally long."""
    rest = len(low) - 1
    if low[1:] == "0" * rest and high[1:] == "9" * rest:
        tail = f" [0-9]{{{rest}}}" if rest else ""
        return [f"[{low[0]}-{high[0]}]{tail}"]
    if low[0] == high[0]:
        return [f"{_text(low[0])} {tail}" for tail in _same_length(low[1:], high[1:])]
    # Up to the next round number, the round ones between, and on from the last round number.
    after, before = chr(ord(low[0]) + 1), chr(ord(high[0]) - 1)
    found = _same_length(low, low[0] + "9" * rest)
    if after <= before:
        found += _same_length(after + "0" * rest, before + "9" * rest)
    return found + _same_length(high[0] + "0" * rest, high)


def _text(text: str) -> str:
    """``text`` as an EBNF string literal, whose escapes are those of JSON."""
    return json.dumps(text, ensure_ascii=False)
