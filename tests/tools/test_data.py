"""What a tool returns becomes plain data, or is refused with its place."""

from __future__ import annotations

import datetime
import types
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from agentpar.errors import UsageError
from agentpar.tools import to_data


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class City(BaseModel):
    name: str
    population: int = 0


@dataclass
class Tree:
    title: str
    children: list[Tree]


class Point(NamedTuple):
    x: float
    y: float


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@settings(max_examples=50)
@given(JSON)
def test_data_is_unchanged_by_to_data(value: Any) -> None:
    """What is JSON-like already comes out equal, twice as once."""
    assert to_data(value) == value == to_data(to_data(value))


def test_results_are_copies() -> None:
    """A tool that keeps its list cannot change a result afterwards."""
    kept = {"items": [1]}
    data = to_data(kept)
    kept["items"].append(2)
    assert data == {"items": [1]}


@pytest.mark.parametrize(
    ("value", "data"),
    [
        (City(name="Lima"), {"name": "Lima", "population": 0}),
        (
            Tree("oak", [Tree("twig", [])]),
            {"title": "oak", "children": [{"title": "twig", "children": []}]},
        ),
        (Point(1, 2.5), {"x": 1, "y": 2.5}),
        ([Color.RED, (1, 2)], ["red", [1, 2]]),
        ({3, 1, 2}, [1, 2, 3]),
        ({"b", 1, None}, [None, 1, "b"]),
        (datetime.datetime(2024, 5, 6, 7, 8), "2024-05-06T07:08:00"),
        (datetime.timedelta(minutes=1.5), 90.0),
        (Decimal("1.10"), "1.10"),
        (Path("a/b"), "a/b"),
        ({1: "a", Color.RED: "b", None: "c"}, {"1": "a", "red": "b", "null": "c"}),
        (types.MappingProxyType({"a": (1,)}), {"a": [1]}),
        (range(3), [0, 1, 2]),
    ],
    ids=repr,
)
def test_richer_values_become_data(value: Any, data: Any) -> None:
    """Each kind of value has one plain form."""
    assert to_data(value) == data


def test_arrays_become_lists() -> None:
    """numpy's arrays and numbers are numbers."""
    np = pytest.importorskip("numpy")
    assert to_data({"a": np.arange(3), "b": np.float32(0.5)}) == {"a": [0, 1, 2], "b": 0.5}


LOOP: list[Any] = []
LOOP.append(LOOP)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"page": [b"abc"]}, r"value.page\[0\] is 3 bytes, .* decode it"),
        ({"a": {"mean": float("nan")}}, r"value.a.mean is nan"),
        ([float("inf")], r"value\[0\] is inf"),
        ([object()], r"value\[0\] is <object object at .*> \(object\), which is not data"),
        ((n for n in [1]), r"generator"),
        (City, r"which is not data"),
        (LOOP, r"contains itself"),
        ({1: "a", "1": "b"}, r"two keys that read the same"),
        ({(1, 2): "a"}, r"the key \(1, 2\), which is not text"),
    ],
)
def test_what_is_not_data_is_refused_with_its_place(value: Any, message: str) -> None:
    """Nothing is silently dropped or turned into something else."""
    with pytest.raises(UsageError, match=message):
        to_data(value)


def test_an_integer_too_long_to_write_is_refused() -> None:
    """Python refuses to turn it into text, which would break the record and the prompt."""
    assert to_data(10**999) == 10**999
    with pytest.raises(UsageError, match=r"value\.a is an integer of more than 1,000 digits"):
        to_data({"a": 10**2000})
