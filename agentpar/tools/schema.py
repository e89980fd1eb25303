"""Holds a plan's literals against a JSON Schema, before anything runs.

A subset, enough for the schemas that tools have: type, enum, const, anyOf, oneOf, allOf,
``$ref`` into the root's ``$defs``, items, prefixItems, properties, required,
additionalProperties, and the bounds on numbers, lengths and counts, and pattern. Any other
keyword says nothing here; the tool's own ``validate`` has the last word when it is called.

A reference passes everywhere: its value is not known yet. Who knows something of it puts an
`Unknown` in its place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from agentpar.plan import Pick, Ref

Schema = Mapping[str, Any]


class Unknown:
    """A value that is not there yet, and of which something may be known."""

    def problem(self, schema: Schema | bool, root: Schema) -> str | None:
        """Why the value cannot fit ``schema``, whatever it turns out to be; None if it can."""
        return None


_NOT_YET = (Ref, Pick, Unknown)


def problem(schema: Schema | bool, value: Any, root: Schema) -> str | None:
    """What is wrong with ``value``, or None. ``root`` is where ``$ref`` looks things up.

    >>> problem({"type": "array", "items": {"type": "integer"}}, [1, "2"], {})
    "[1] must be an integer, not '2'"
    """
    if isinstance(value, _NOT_YET):
        return value.problem(schema, root) if isinstance(value, Unknown) else None
    if schema is True:
        return None
    if schema is False:
        return "is not allowed"
    for keyword, rule in schema.items():
        check = _CHECKS.get(keyword)
        if check is not None and (found := check(rule, value, schema, root)):
            return found
    return None


def resolve(schema: Schema, root: Schema) -> Schema:
    """``schema``, or what its ``$ref`` (``#/$defs/Name``) stands for.

    ``{}`` where there is nothing; a schema that still holds a ``$ref`` where they go in a circle.
    """
    seen = 0
    while isinstance(target := schema.get("$ref"), str) and seen < 32:
        found: Any = root
        for step in target.removeprefix("#").strip("/").split("/"):
            found = found.get(step, {}) if isinstance(found, Mapping) else {}
        schema = found
        seen += 1
    return schema


def is_type(value: Any, name: str) -> bool:
    """Whether ``value`` has the JSON Schema type ``name``: an int is a number, 3.0 no integer."""
    types = _TYPES.get(name)
    if types is None:
        return True
    return isinstance(value, types) and (name == "boolean" or not isinstance(value, bool))


_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
    "array": (list, tuple),
    "object": (Mapping,),
}
WITH_ARTICLE = {
    "string": "a string",
    "integer": "an integer",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
    "array": "a list",
    "object": "an object",
}


def _type(rule: Any, value: Any, schema: Schema, root: Schema) -> str | None:
    names = [rule] if isinstance(rule, str) else rule
    for name in names:
        if is_type(value, name):
            return None
    return f"must be {' or '.join(WITH_ARTICLE.get(name, name) for name in names)}, not {value!r}"


def _enum(rule: Any, value: Any, schema: Schema, root: Schema) -> str | None:
    # JSON tells 1 from true, Python does not. A list that holds a reference may yet be equal.
    if any(option == value and type(option) is type(value) for option in rule):
        return None
    if _is_open(value):
        return None
    return f"must be one of {', '.join(map(repr, rule))}, not {value!r}"


def _is_open(value: Any) -> bool:
    """Whether something inside ``value`` is not known yet."""
    if isinstance(value, Mapping):
        return any(map(_is_open, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_is_open, value))
    return isinstance(value, _NOT_YET)


def _const(rule: Any, value: Any, schema: Schema, root: Schema) -> str | None:
    return _enum([rule], value, schema, root)


def _any_of(rule: Any, value: Any, schema: Schema, root: Schema) -> str | None:
    found = [problem(option, value, root) for option in rule]
    if None in found:
        return None
    return " or ".join(dict.fromkeys(text for text in found if text))


def _all_of(rule: Any, value: Any, schema: Schema, root: Schema) -> str | None:
    return next((found for option in rule if (found := problem(option, value, root))), None)


def _ref(rule: Any, value: Any, schema: Schema, root: Schema) -> str | None:
    target = resolve({"$ref": rule}, root)
    return None if "$ref" in target else problem(target, value, root)


def _prefix_items(rule: Any, value: Any, schema: Schema, root: Schema) -> str | None:
    if not isinstance(value, list | tuple):
        return None
    pairs = enumerate(zip(rule, value, strict=False))
    return next((_at(f"[{i}]", f) for i, (s, v) in pairs if (f := problem(s, v, root))), None)


def _items(rule: Any, value: Any, schema: Schema, root: Schema) -> str | None:
    if not isinstance(value, list | tuple):
        return None
    first = len(schema.get("prefixItems", ()))
    if rule is False and len(value) > first:
        return f"may have {first} items, not {len(value)}"
    rest = enumerate(value[first:], first)
    return next((_at(f"[{i}]", f) for i, v in rest if (f := problem(rule, v, root))), None)


def _properties(rule: Any, value: Any, schema: Schema, root: Schema) -> str | None:
    if not isinstance(value, Mapping):
        return None
    pairs = ((name, rule[name], item) for name, item in value.items() if name in rule)
    return next((_at(f".{n}", f) for n, s, v in pairs if (f := problem(s, v, root))), None)


def _required(rule: Any, value: Any, schema: Schema, root: Schema) -> str | None:
    if not isinstance(value, Mapping):
        return None
    missing = [name for name in rule if name not in value]
    return f"lacks {', '.join(map(repr, missing))}" if missing else None


def _additional(rule: Any, value: Any, schema: Schema, root: Schema) -> str | None:
    if not isinstance(value, Mapping):
        return None
    known = schema.get("properties", {})
    for name, item in value.items():
        if name not in known and (found := problem(rule, item, root)):
            return f"has the unknown field {name!r}" if rule is False else _at(f".{name}", found)
    return None


def _pattern(rule: Any, value: Any, schema: Schema, root: Schema) -> str | None:
    if not isinstance(value, str):
        return None
    try:
        matches = re.search(rule, value) is not None
    except re.error:  # JSON Schema's dialect is not quite Python's
        return None
    return None if matches else f"must match {rule!r}, not {value!r}"


def _bound(types: tuple[type, ...], holds: Callable[[Any, Any], bool], words: str) -> _Check:
    """A check of ``value`` (of ``types`` only) against a limit; ``words`` say what must hold."""

    def check(rule: Any, value: Any, schema: Schema, root: Schema) -> str | None:
        if not isinstance(value, types) or isinstance(value, bool) or holds(value, rule):
            return None
        return f"must {words.format(rule)}, not {value!r}"

    return check


def _at(step: str, found: str) -> str:
    """Put ``step`` before the place that ``found`` begins with, or make it the place."""
    return f"{step}{found}" if found[:1] in ".[" else f"{step} {found}"


_Check = Callable[[Any, Any, Schema, Schema], str | None]
_CHECKS: dict[str, _Check] = {
    "type": _type,
    "enum": _enum,
    "const": _const,
    "anyOf": _any_of,
    "oneOf": _any_of,
    "allOf": _all_of,
    "$ref": _ref,
    "prefixItems": _prefix_items,
    "items": _items,
    "properties": _properties,
    "required": _required,
    "additionalProperties": _additional,
    "pattern": _pattern,
    "minimum": _bound((int, float), lambda v, n: v >= n, "be at least {}"),
    "maximum": _bound((int, float), lambda v, n: v <= n, "be at most {}"),
    "exclusiveMinimum": _bound((int, float), lambda v, n: v > n, "be more than {}"),
    "exclusiveMaximum": _bound((int, float), lambda v, n: v < n, "be less than {}"),
    "minLength": _bound((str,), lambda v, n: len(v) >= n, "have {} characters or more"),
    "maxLength": _bound((str,), lambda v, n: len(v) <= n, "have {} characters or fewer"),
    "minItems": _bound((list, tuple), lambda v, n: len(v) >= n, "have {} items or more"),
    "maxItems": _bound((list, tuple), lambda v, n: len(v) <= n, "have {} items or fewer"),
}
