"""Somebody else's JSON Schema in the one dialect that is read here, that of draft 2020-12.

Servers describe their arguments in older drafts (``exclusiveMinimum: true``, tuples in ``items``)
and in short forms (``true`` for anything), and now and then wrongly. A keyword whose rule cannot
be meant says nothing, as one that nobody knows says nothing. Pure; it never decides whether a
value fits.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any


def modern(schema: Mapping[str, Any]) -> dict[str, Any]:
    """One schema in today's words. The schemas inside it stay as they are, but for ``true`` and
    ``false`` among properties and choices, which are written out."""
    read = {key: rule for key, rule in schema.items() if _can_be_meant(key, rule)}
    for beyond, limit in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if schema.get(beyond) is True and limit in read:  # draft 4, and OpenAPI 3.0
            read[beyond] = read.pop(limit)
    if _is_list(tuple_ := schema.get("items")):  # until draft 2019-09
        read["prefixItems"] = tuple_
        if _is_schema(rest := schema.get("additionalItems", True)):
            read["items"] = rest
    for key in _BY_NAME & read.keys():
        read[key] = {name: as_mapping(item) for name, item in read[key].items()}
    for key in _LISTED & read.keys():
        read[key] = [as_mapping(item) for item in read[key]]
    for key in _COUNTS & read.keys():
        read[key] = int(read[key])
    return read


def as_mapping(schema: Any) -> Mapping[str, Any]:
    """A schema as a mapping: ``true`` and ``false`` are schemas, too. Other things say nothing."""
    if isinstance(schema, Mapping):
        return schema
    return {"not": {}} if schema is False else {}


def _can_be_meant(key: str, rule: Any) -> bool:
    check = _RULES.get(key)
    return check is None or check(rule)


def _is_schema(rule: Any) -> bool:
    return isinstance(rule, Mapping | bool)


def _is_list(rule: Any) -> bool:
    return isinstance(rule, list) and bool(rule)


def _is_number(rule: Any) -> bool:
    whole = isinstance(rule, int) and not isinstance(rule, bool)
    return whole or (isinstance(rule, float) and math.isfinite(rule))


def _is_count(rule: Any) -> bool:
    return _is_number(rule) and rule >= 0 and rule == int(rule)


def _is_json(rule: Any) -> bool:
    try:
        json.dumps(rule, allow_nan=False)
    except ValueError:  # an infinity, or a number too long to be written
        return False
    return True


def _are_words(rule: Any) -> bool:
    return isinstance(rule, list) and all(isinstance(word, str) for word in rule)


def _is_type(rule: Any) -> bool:
    return isinstance(rule, str) or (_is_list(rule) and _are_words(rule))


_BY_NAME = frozenset({"$defs", "properties"})
_LISTED = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_COUNTS = frozenset({"maxItems", "maxLength", "minItems", "minLength"})
_RULES: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(_BY_NAME, lambda rule: isinstance(rule, Mapping)),
    **dict.fromkeys(_LISTED, _is_list),
    **dict.fromkeys(_COUNTS, _is_count),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), _is_number),
    **dict.fromkeys(("items", "additionalProperties"), _is_schema),
    **dict.fromkeys(
        ("$ref", "description", "format", "pattern"), lambda rule: isinstance(rule, str)
    ),
    "const": _is_json,
    "enum": lambda rule: _is_list(rule) and _is_json(rule),
    "required": _are_words,
    "type": _is_type,
}
