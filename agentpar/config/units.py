"""Numbers as people write them in a file: ``2MB``, ``20s``, ``200k``.

Pure: from a text or a number to a number. A `ValueError` holds the demand, "must be …",
without the value, which may have come out of the environment.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_SIZES = {
    "": 1,
    "B": 1,
    **{f"{k}B": 1000**n for n, k in enumerate(("k", "M", "G"), 1)},
    **{f"{k}iB": 1024**n for n, k in enumerate(("K", "M", "G"), 1)},
}
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0, "": 1.0}
_COUNTS = {"": 1, "k": 1000, "M": 1_000_000}

_TOO_LARGE = 10**300  # a float holds little more
_AMOUNT = re.compile(r"(\d{1,15}(?:\.\d{1,6})?) ?([A-Za-z]*)")


def size(value: object) -> int:
    """Bytes: a whole number, or a text such as ``"2MB"`` (10⁶) or ``"2MiB"`` (2²⁰)."""
    return _whole(value, {**_SIZES, "KB": 1000}, "must be a size such as 500kB, 2MB or 1MiB")


def count(value: object) -> int:
    """A whole number, or a text such as ``"40"``, ``"200k"`` or ``"1.5M"``."""
    return _whole(value, _COUNTS, "must be a whole number such as 40 or 200k")


def switch(value: object) -> bool:
    """``true`` or ``false``, as a text too: that is what the environment fills in."""
    match value:
        case bool():
            return value
        case "true" | "false":
            return value == "true"
    raise ValueError("must be true or false")


def duration(value: object) -> float:
    """Seconds: a number, or a text such as ``"500ms"``, ``"20s"``, ``"1m"`` or ``"30d"``."""
    demand = "must be a duration such as 500ms, 20s or 1m"
    return float(_amount(value, _SECONDS, demand))


def rate(value: object) -> float:
    """Calls a second: a number, or a text such as ``"10/s"``, ``"60/min"`` or ``"1000/h"``."""
    demand = "must be a rate such as 10/s, 60/min or 1000/h"
    if isinstance(value, str) and "/" in value:
        amount, _, unit = value.partition("/")
        if unit.strip() not in ("s", "m", "min", "h"):
            raise ValueError(f"{demand}; the units are s, min, h")
        return _amount(amount, {"": 1}, demand) / _SECONDS[unit.strip()]
    return float(_amount(value, {"": 1}, demand))


def number(value: object) -> float:
    """A finite number, or a text that spells one: what ``${V}`` stands for is always text."""
    demand = "must be a number such as 0.2"
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise ValueError(demand) from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(demand)
    return float(_of_this_world(value, demand))


def _whole(value: object, units: Mapping[str, int], demand: str) -> int:
    amount = _amount(value, units, demand)
    rounded = round(amount)
    if abs(rounded - amount) > 1e-6:
        raise ValueError(demand)
    return rounded


def _of_this_world(value: float, demand: str) -> float:
    """``value``, where it is no infinity and not so long that only an integer can hold it."""
    if not abs(value) < _TOO_LARGE:
        raise ValueError(demand)
    return value


def _amount(value: object, units: Mapping[str, float], demand: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _of_this_world(value, demand)
    found = _AMOUNT.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None:
        raise ValueError(demand)
    if found[2] not in units:
        known = ", ".join(unit for unit in units if unit)
        raise ValueError(f"{demand}; the units are {known}")
    amount = float(found[1]) if "." in found[1] else int(found[1])
    return amount * units[found[2]]
