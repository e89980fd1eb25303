"""Calls against tools: what can be meant becomes a task, what cannot is named with a way out."""

from __future__ import annotations

import time
from typing import Any

import pytest

from agentpar.errors import PlanError
from agentpar.plan import Ref, Task
from agentpar.planner.binding import bind, check_cancel, rebind
from agentpar.planner.parser import Call, PlanParser, Replace
from agentpar.tools.base import Tool
from agentpar.tools.schema import problem, resolve


async def nothing(**kwargs: Any) -> None:
    """A tool that is planned and never called."""


def tool(name: str, properties: dict[str, Any], *required: str, **more: Any) -> Tool:
    parameters = {"type": "object", "properties": properties, "required": list(required)}
    parameters |= {"additionalProperties": False, **more}
    return Tool(name, "", parameters, nothing, lambda args: dict(args))


TEXT, INT = {"type": "string"}, {"type": "integer"}
POINT = {"type": "object", "properties": {"lat": {"type": "number"}}, "required": ["lat"]}
TOOLS = {
    "search": tool("search", {"query": TEXT, "limit": {**INT, "minimum": 1}}, "query"),
    "add": tool("add", {"a": {"type": "number"}, "b": {"type": "number"}}, "a", "b"),
    "locate": tool(
        "locate",
        {"points": {"type": "array", "items": {"$ref": "#/$defs/Point"}}},
        **{"$defs": {"Point": POINT}},
    ),
    "open": tool("open", {}, additionalProperties=INT),
}


def bound(line: str, known: tuple[int, ...] = (1, 2)) -> Task:
    """The task that ``line`` means after the tasks ``known``."""
    [call] = PlanParser().feed(line)
    assert isinstance(call, Call), call
    return bind(call, TOOLS, known)


def test_positional_arguments_take_the_names_of_the_schema() -> None:
    """In its order, beside arguments by name."""
    assert bound('3. search("x", limit=2)') == Task(3, "search", {"query": "x", "limit": 2})
    assert bound("3. add($2, $1)") == Task(3, "add", {"a": Ref(2), "b": Ref(1)}, (2, 1))


def test_needs_are_found_wherever_they_stand() -> None:
    """Nested references count, each task once; the thought goes along."""
    call = Call(3, "locate", ([{"lat": Ref(2, ("x",))}, Ref(1), Ref(2)],), thought="why")
    task = bind(call, TOOLS, {1, 2})
    assert task.needs == (2, 1)
    assert task.thought == "why"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('3. serach("x")', "unknown tool 'serach': did you mean 'search'?"),
        ("3. zzz()", "unknown tool 'zzz'; there is 'search', 'add', 'locate', 'open'"),
        ('3. search(querry="x")', "search has no argument 'querry': did you mean 'query'?"),
        ("3. search()", "search needs 'query'"),
        ("3. add()", "add needs 'a' and 'b'"),
        ("3. add(1, 2, 3)", "add takes 2 arguments (a, b), not 3"),
        ("3. add(1, a=2)", "add: argument 'a' is given by place and by name"),
        ('3. add(1, "2")', "add: argument 'b' must be a number, not '2'"),
        ("3. add(1, true)", "add: argument 'b' must be a number, not True"),
        ('3. search("x", 2.0)', "search: argument 'limit' must be an integer, not 2.0"),
        ('3. search("x", 0)', "search: argument 'limit' must be at least 1, not 0"),
        ('3. locate([{"lat": 1}, {}])', "locate: argument 'points'[1] lacks 'lat'"),
        (
            '3. locate([{"lat": "1"}])',
            "locate: argument 'points'[0].lat must be a number, not '1'",
        ),
        ('3. open(x="1")', "open: argument 'x' must be an integer, not '1'"),
        ("3. search($7)", "search: $7 refers to task 7, which is not planned before it"),
        ("3. search($3)", "search: $3 refers to itself"),
        ('2. search("x")', "there is a task 2 already; number this one anew"),
    ],
)
def test_a_mistake_is_named_with_a_way_out(line: str, message: str) -> None:
    """The joiner and the planner's next round read these messages."""
    with pytest.raises(PlanError) as caught:
        bound(line)
    assert str(caught.value) == message


def test_an_open_schema_takes_other_names() -> None:
    """A tool may allow arguments that its schema does not list."""
    assert bound("3. open(x=1, y=$2)").args == {"x": 1, "y": Ref(2)}


def test_two_references_bind_to_two_arguments() -> None:
    """Reference fault: `add($1, $2)` becomes one string."""
    assert bound("3. add($1, $2)").args == {"a": Ref(1), "b": Ref(2)}


def test_a_keyword_argument_binds_to_its_value() -> None:
    """Reference fault: `search(query="x")` passes the literal text `query="x"`."""
    assert bound('3. search(query="x")').args == {"query": "x"}


def test_binding_costs_microseconds() -> None:
    """About 5 µs a call when measured alone; the claim leaves room for a busy machine."""
    [call] = PlanParser().feed('3. search(query="x", limit=3)')
    assert isinstance(call, Call)
    best = float("inf")
    for _ in range(5):
        begin = time.process_time()
        for _ in range(500):
            bind(call, TOOLS, {1, 2})
        best = min(best, time.process_time() - begin)
    assert best / 500 < 30e-6


# -- changing a plan -----------------------------------------------------------------------

CITY = {"type": "object", "properties": {"name": TEXT}, "additionalProperties": False}
MAKERS = {
    **TOOLS,
    "city": Tool("city", "", {"properties": {}}, nothing, dict, output=CITY),
    "size": Tool("size", "", {"properties": {"of": {}}}, nothing, dict, output=INT),
}
PLANNED = {
    1: Task.of(1, "city"),
    2: Task.of(2, "size", of=Ref(1)),
    3: Task.of(3, "search", query=Ref(1, ("name",))),
    4: Task.of(4, "size", of=Ref(3)),
    5: Task.of(5, "size", of=Ref(4)),
}


def replaced(line: str, ended: tuple[int, ...] = ()) -> Task:
    """The task that takes a place in PLANNED."""
    [change] = PlanParser().feed(line)
    assert isinstance(change, Replace), change
    return rebind(change.call, MAKERS, PLANNED, ended)


def test_a_task_takes_the_place_of_an_unfinished_one() -> None:
    """It may need any task that does not need it, those planned after it too."""
    assert replaced("replace($3, search($1.name, limit=$2))").needs == (1, 2)
    assert replaced("replace($2, size($5))") == Task.of(2, "size", of=Ref(5))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("replace($3, size($5))", "replace: $3 needs $5 needs $4 needs $3"),
        ("replace($3, size($3))", "size: $3 refers to itself"),
        ("replace($9, city())", "replace: there is no call 9"),
        ("replace($4, sise(1))", "unknown tool 'sise': did you mean 'size'?"),
        (
            "replace($1, size(1))",
            "replace: $3 could not use it: search: $1.name: $1 (size) is an integer; "
            "did you mean $1?",
        ),
    ],
)
def test_a_replacement_that_cannot_be_is_refused(line: str, message: str) -> None:
    """A circle with the way round it; a result that those who wait for it could not use."""
    with pytest.raises(PlanError) as caught:
        replaced(line)
    assert str(caught.value) == message


def test_what_has_ended_stands() -> None:
    """It can be neither replaced nor cancelled; and what has used it asks for nothing more."""
    with pytest.raises(PlanError, match=r"replace: \$3 has ended already"):
        replaced("replace($3, city())", ended=(1, 3))
    with pytest.raises(PlanError, match=r"cancel: \$1 has ended already"):
        check_cancel(1, PLANNED, {1})
    with pytest.raises(PlanError, match="cancel: there is no call 9"):
        check_cancel(9, PLANNED, {1})
    check_cancel(3, PLANNED, {1})
    assert replaced("replace($1, city())", ended=(3,)) == Task(1, "city")


# -- agentpar.tools.schema -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "fits", "does_not"),
    [
        ({"type": "integer"}, [3, -1], [3.0, True, "3", None]),
        ({"type": "number"}, [3, 3.5], [True, "3"]),
        ({"type": "boolean"}, [True, False], [1, 0, "true"]),
        ({"type": ["string", "null"]}, ["", None], [0, False]),
        ({"enum": ["a", 1, None]}, ["a", 1, None], ["b", True, 1.0]),
        ({"enum": [["a"]]}, [["a"], [Ref(1)]], [["b"]]),
        ({"const": True}, [True], [1]),
        ({"anyOf": [{"type": "integer"}, {"enum": ["all"]}]}, [1, "all"], ["any", 1.5]),
        ({"oneOf": [{"type": "null"}, {"type": "array"}]}, [None, []], [{}]),
        ({"allOf": [{"minimum": 1}, {"maximum": 2}]}, [1, 2], [0, 3]),
        ({"exclusiveMinimum": 0, "exclusiveMaximum": 1}, [0.5, "text"], [0, 1]),
        ({"minLength": 2, "maxLength": 3}, ["ab", "abc", 7], ["a", "abcd"]),
        ({"pattern": "^a+$"}, ["aa", 3], ["b"]),
        ({"pattern": "(?<bad"}, ["anything"], []),
        ({"minItems": 1, "maxItems": 2}, [[1], [1, 2]], [[], [1, 2, 3]]),
        ({"items": {"type": "string"}}, [["a", Ref(1)], "no list"], [["a", 1]]),
        ({"prefixItems": [{"type": "string"}], "items": False}, [["a"], []], [[1], ["a", "b"]]),
        ({"prefixItems": [{}], "items": {"type": "null"}}, [[1, None]], [[None, 1]]),
        (POINT, [{"lat": 1, "more": 2}, {"lat": Ref(1)}], [{}, {"lat": "1"}, []]),
        ({"properties": {"a": {}}, "additionalProperties": False}, [{"a": 1}], [{"b": 1}]),
        ({"additionalProperties": {"type": "string"}}, [{"b": "x"}], [{"b": 1}]),
        ({"$ref": "#/$defs/Tree"}, [{"kids": [{"kids": []}]}], [{"kids": [1]}, {"kids": 1}]),
        ({"format": "uri", "x-unknown": 1}, ["whatever", 3], []),
    ],
)
def test_a_literal_fits_or_the_problem_is_said(
    schema: dict[str, Any], fits: list[Any], does_not: list[Any]
) -> None:
    """The keywords of the subset; a reference passes wherever it stands."""
    tree = {"type": "object", "properties": {"kids": {"type": "array", "items": {}}}}
    tree["properties"]["kids"]["items"] = {"$ref": "#/$defs/Tree"}  # type: ignore[index]
    root = {"$defs": {"Tree": tree}}
    for value in [*fits, Ref(1), Ref(2, ("x", 0))]:
        assert problem(schema, value, root) is None, value
    for value in does_not:
        assert problem(schema, value, root), value


def test_a_circle_of_references_ends() -> None:
    """A broken schema says nothing; it does not hang the planner."""
    root = {"$defs": {"A": {"$ref": "#/$defs/B"}, "B": {"$ref": "#/$defs/A"}}}
    assert problem({"$ref": "#/$defs/A"}, 1, root) is None
    assert resolve({"$ref": "#/nowhere"}, root) == {}


def test_the_place_of_a_nested_problem_is_a_path() -> None:
    """The model can find it."""
    schema = {"properties": {"a": {"items": {"properties": {"b": {"type": "string"}}}}}}
    assert problem(schema, {"a": [{}, {"b": 1}]}, {}) == ".a[1].b must be a string, not 1"
