"""What a tool returns, as plain data: the one shape that references, records and prompts know.

It must never know the tool that made the value or the task that waits for it.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import math
import pathlib
import types
import uuid
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from enum import Enum
from typing import Any

from agentpar.errors import UsageError

_PLAIN = frozenset({str, bool, types.NoneType})
_LARGEST = 10**1000
"""Python itself refuses to write integers of more than 4,300 digits as text."""


def to_data(value: Any) -> Any:
    """``value`` as JSON-like data: str, int, float, bool, None, lists and dicts of these.

    Models, dataclasses and named tuples become dicts; enums their value; dates ISO text;
    durations seconds; decimals, UUIDs and paths text; sets sorted lists; arrays lists.
    Containers are copied, so a tool that keeps its list cannot change a result later.

    Raises `UsageError`, with the place in the value, for what JSON has no word for: bytes
    (text or a reference is wanted), NaN and infinities, generators, open files, loops.
    """
    if type(value) in _PLAIN:
        return value
    if type(value) is int and -_LARGEST < value < _LARGEST:
        return value
    try:
        return _data(value, "value")
    except RecursionError:
        raise UsageError(f"a {type(value).__name__} that contains itself is not data") from None


def _data(value: Any, where: str) -> Any:
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is dict:
        return _mapping(value, where)
    if kind is list:
        return _items(value, where)
    if kind is int:
        if -_LARGEST < value < _LARGEST:
            return value
        raise UsageError(f"{where} is an integer of more than 1,000 digits: return text")
    if kind is float:
        if math.isfinite(value):
            return value
        raise UsageError(f"{where} is {value}, which JSON has no word for: return None or text")
    return _unusual(value, where)


def _unusual(value: Any, where: str) -> Any:
    match value:
        case Enum():
            return _data(value.value, where)
        case str() | int() | float():
            base = next(kind for kind in (str, int, float) if isinstance(value, kind))
            return _data(base(value), where)
        case datetime.date() | datetime.time():
            return value.isoformat()
        case datetime.timedelta():
            return value.total_seconds()
        case decimal.Decimal() | uuid.UUID() | pathlib.PurePath():
            return str(value)
        case bytes() | bytearray() | memoryview():
            raise UsageError(
                f"{where} is {len(value)} bytes, which is not data: decode it to text, "
                f"or save it and return its path"
            )
        case Mapping():
            return _mapping(value, where)
        case tuple() if hasattr(value, "_asdict"):
            return _mapping(value._asdict(), where)
        case AbstractSet():
            return _items(_in_order(value), where)
        case Sequence():
            return _items(value, where)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = (field.name for field in dataclasses.fields(value))
        return _mapping({name: getattr(value, name) for name in names}, where)
    if not isinstance(value, type):
        if callable(dump := getattr(value, "model_dump", None)):  # a pydantic model
            return _data(dump(), where)
        if callable(to_list := getattr(value, "tolist", None)):  # a numpy or torch array
            return _data(to_list(), where)
    raise UsageError(
        f"{where} is {shown(value)} ({type(value).__name__}), which is not data: "
        f"return text, numbers, lists, dicts or models"
    )


def _items(value: Iterable[Any], where: str) -> list[Any]:
    return [
        item if type(item) in _PLAIN else _data(item, f"{where}[{at}]")
        for at, item in enumerate(value)
    ]


def _mapping(value: Mapping[Any, Any], where: str) -> dict[str, Any]:
    data = {
        (name := key if type(key) is str else _key(key, where)): item
        if type(item) in _PLAIN
        else _data(item, f"{where}.{name}")
        for key, item in value.items()
    }
    if len(data) != len(value):
        raise UsageError(f"{where} has two keys that read the same as text")
    return data


def _key(key: Any, where: str) -> str:
    match _data(key, f"a key of {where}"):
        case str(text):
            return text
        case bool() | None as word:
            return {True: "true", False: "false", None: "null"}[word]
        case int() | float() as number:
            return str(number)
    raise UsageError(f"{where} has the key {shown(key)}, which is not text")


def _in_order(value: AbstractSet[Any]) -> list[Any]:
    """A set as a list, the same list in every process."""
    try:
        return sorted(value)
    except TypeError:
        return sorted(value, key=lambda item: (type(item).__name__, repr(item)))


def shown(value: object, limit: int = 80) -> str:
    """Any value in a few words, for a message about it."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"
