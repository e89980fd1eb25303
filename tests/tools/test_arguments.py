"""Schemas that strangers bring (LangChain, MCP) are tidied, and bounded."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from agentpar.errors import UsageError
from agentpar.tools.arguments import check_schema, tidy


def taking(argument: Any, **definitions: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"x": argument}, "$defs": definitions}


def ref(name: str, **rest: Any) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{name}", **rest}


def chain(length: int, width: int) -> dict[str, Any]:
    """Definitions of which each names the next one ``width`` times."""
    steps = {f"D{n}": {"anyOf": [ref(f"D{n + 1}")] * width} for n in range(length)}
    return taking(ref("D0"), **steps, **{f"D{length}": {}})


def nested(depth: int) -> dict[str, Any]:
    item: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        item = {"type": ["array", "array"], "items": item}
    return taking(item)


@pytest.fixture(autouse=True)
def soon() -> Iterator[None]:
    """No schema, however hostile, takes long."""
    before = time.process_time()
    yield
    assert time.process_time() - before < 5


def test_a_definition_is_written_where_it_is_used() -> None:
    """What stands beside the reference wins; true and false are schemas too."""
    schema = taking(
        {"anyOf": [ref("City", description="Home."), ref("All"), ref("None")]},
        City={"title": "City", "type": "string", "description": "A city."},
        All=True,
        **{"None": False},
    )
    assert tidy("t", schema) == {
        "type": "object",
        "properties": {
            "x": {"anyOf": [{"type": "string", "description": "Home."}, {}, {"not": {}}]}
        },
        "additionalProperties": False,
    }


def test_one_definition_of_a_circle_stays() -> None:
    """The first that is met; unused definitions go."""
    schema = taking(
        ref("Tree"),
        Branch={"type": "array", "items": ref("Tree")},
        Tree={"type": "object", "properties": {"branches": ref("Branch")}},
        Unused=ref("Unused"),
    )
    written = tidy("t", schema)
    assert written["properties"]["x"] == ref("Tree")
    assert written["$defs"] == {
        "Tree": {
            "type": "object",
            "properties": {"branches": {"type": "array", "items": ref("Tree")}},
        }
    }


@pytest.mark.parametrize(
    "schema",
    [
        chain(40, 2),
        chain(3, 1000),
        taking(ref("D"), D={"anyOf": [{"enum": ["x" * 1000]}] * 200}),
        taking({"anyOf": [ref("D")] * 200}, D={"description": "x" * 1000}),
    ],
    ids=["deep doubling", "wide", "long", "one long text often"],
)
def test_a_schema_that_grows_too_long_is_refused(schema: dict[str, Any]) -> None:
    """Before it is made, and with the tool's name."""
    with pytest.raises(UsageError, match=r"tool 'evil': .* longer than 100,000 characters"):
        tidy("evil", schema)


@pytest.mark.parametrize(
    "schema", [chain(20_000, 1), nested(20_000)], ids=["chain of definitions", "nested lists"]
)
def test_a_schema_too_deep_to_walk_is_refused(schema: dict[str, Any]) -> None:
    """Not a RecursionError."""
    with pytest.raises(UsageError, match="tool 'evil': its schema is nested too deep"):
        tidy("evil", schema)


def test_a_large_honest_schema_passes() -> None:
    """Hundreds of arguments that share a definition."""
    schema = {
        "type": "object",
        "properties": {f"field_{n}": ref("Amount") for n in range(300)},
        "$defs": {"Amount": {"type": "number", "minimum": 0, "description": "In euros." * 10}},
    }
    assert len(tidy("t", schema)["properties"]) == 300


def test_lists_in_lists_do_not_double_the_check() -> None:
    """A type said twice is one type."""
    validate = check_schema("t", tidy("t", nested(30)))
    value: Any = "deep"
    for _ in range(30):
        value = [value]
    assert validate({"x": value}) == {"x": value}


def test_an_empty_choice_says_nothing() -> None:
    """Odd schemas of strangers are left for their owner to judge."""
    schema = tidy("t", taking({"anyOf": []}))
    assert check_schema("t", schema)({"x": 1}) == {"x": 1}
