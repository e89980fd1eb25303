"""References against return types: what can never fit is refused, and nothing else is."""

from __future__ import annotations

import datetime
import decimal
import enum
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, NamedTuple, NewType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, RootModel, computed_field
from typing_extensions import TypedDict

from agentpar import Agent, ScriptedRuntime
from agentpar.errors import UsageError
from agentpar.plan import Ok, Ref, Step, Task, resolve
from agentpar.planner.binding import bind
from agentpar.planner.parser import Call, PlanParser
from agentpar.planner.planner import plan_problems
from agentpar.policy import Policy
from agentpar.tools import tool
from agentpar.tools.base import Tool
from agentpar.tools.calc import calc
from agentpar.tools.data import to_data
from agentpar.tools.lookup import web_lookup
from agentpar.tools.outputs import output_schema
from agentpar.tools.schema import problem
from agentpar.tools.search import web_search
from agentpar.tools.web import web_fetch

# -- what a mistake is told ----------------------------------------------------------------

SEARCH, FETCH = web_search(url="http://localhost:9"), web_fetch()


@tool
async def free(x: Any = None) -> Any:
    """Takes and gives anything."""


@tool
async def total(numbers: list[float]) -> float:
    """Sum."""
    return sum(numbers)


TOOLS = {t.name: t for t in (SEARCH, FETCH, web_lookup(search=SEARCH, fetch=FETCH), calc, free)}
TOOLS["total"] = total
PLAN = """\
1. web_search(query="Nile")
2. web_lookup(query="Nile", find="length")
3. calc(expression="1")
4. web_fetch(url=$1[*].url)
5. free()
"""


def told(call: str) -> list[str]:
    """What is wrong with ``call`` after PLAN."""
    return plan_problems(f"{PLAN}6. {call}\njoin()", TOOLS)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            "web_fetch(url=$1.titel)",
            "web_fetch: $1.titel: $1 (web_search) is a list of {title, url, snippet}; "
            "did you mean $1[0].title?",
        ),
        (
            "web_fetch(url=$1[0].ulr)",
            "web_fetch: $1[0].ulr: $1[0] (web_search) is {title, url, snippet}; "
            "did you mean $1[0].url?",
        ),
        (
            "web_fetch(url=$1)",
            "web_fetch: argument 'url' must be a string, but $1 (web_search) is "
            "a list of {title, url, snippet}; did you mean $1[0].url?",
        ),
        (
            'calc(expression="a", a=$2)',
            "calc: argument 'a' must be an integer or a number or a string or null, but "
            "$2 (web_lookup) is {url, title, text, value, others, unread}; did you mean $2.value?",
        ),
        (
            "web_fetch(url=$2[0].url)",
            "web_fetch: $2[0].url: $2 (web_lookup) is {url, title, text, value, others, unread}; "
            "did you mean $2.url?",
        ),
        (
            "free(x=$3.value)",
            "free: $3.value: $3 (calc) is an integer or a number or a string or true or false; "
            "did you mean $3?",
        ),
        (
            "web_fetch(url=$2[*].url)",
            "web_fetch: $2[*].url: $2 (web_lookup) is {url, title, text, value, others, unread}; "
            "did you mean $2.url?",
        ),
        (
            "web_fetch(url=$4.url)",
            "web_fetch: $4.url: $4 (web_fetch) is a list of "
            "{url, title, text, value, others, unread}; did you mean $4[0].url?",
        ),
        ("free(x=$2.others[0].zzz)", "free: $2.others[0].zzz: $2.others[0] (web_lookup) is"),
        (
            "total(numbers=[1, $2.url, $1])",
            "total: argument 'numbers'[2] must be a number, but $1 (web_search) is a list",
        ),
        (
            "total(numbers=$1)",
            "total: argument 'numbers' must be a list of numbers, but $1 (web_search) is a list of",
        ),
        ("web_fetch(url=any($1[0].url, $2.urls))", "web_fetch: $2.urls: $2 (web_lookup) is"),
        (
            "web_fetch(url=any($2.url, $1))",
            "web_fetch: argument 'url' must be a string, but $1 (web_search) is a list of",
        ),
        (
            "web_fetch(url=some(1, $5, $2.url))",
            "web_fetch: argument 'url' must be a string, but some(1, $5, $2.url) is a list",
        ),
        (
            "total(numbers=some(1, $3, $2))",
            "total: argument 'numbers' must be a list of numbers, but in some(1, $3, $2), "
            "$2 (web_lookup) is {",
        ),
        ("free(x=[$1[*].url, $4[*].url])", "free: $1[*].url and $4[*].url go over two lists"),
        ("free(x=$1[*].a[*])", "free: $1[*].a[*]: a reference has one [*] at most"),
        ("free(x=any($1[*], $2))", "free: any($1[*], $2): [*] cannot stand inside any() or some()"),
    ],
)
def test_a_reference_that_cannot_fit_is_named_with_a_way_out(call: str, message: str) -> None:
    """Before anything has run, in words that the planner's next round can use."""
    [found] = told(call)
    assert found.startswith(message)


@pytest.mark.parametrize(
    "call",
    [
        "web_fetch(url=$1[0].url, find=$2.value)",
        "web_fetch(url=$1[-1].url, find=$3)",
        'calc(expression="a", a=$2.title, b=$3)',
        "web_fetch(url=$2.others[1].others[0].url)",
        "web_fetch(url=$5.what.ever[3])",
        "web_fetch(url=$5)",
        "free(x={'a': [$1, $2, $3]})",
        "total(numbers=[$2.value, $3, $5])",
        "total(numbers=some(2, $2.value, $3, $5))",
        "web_fetch(url=any($1[0].url, $2.url, $5))",
        "web_fetch(url=$4[*].url, find=$4[*].title)",
        "free(x=$5[*].anything)",
    ],
)
def test_what_may_fit_is_let_through(call: str) -> None:
    """Unknown values, unions of which a part fits, and text that may spell a number."""
    assert told(call) == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("free(x=$1.error)", ""),
        ("total(numbers=[$3])", ""),
        ('calc(expression="a", a=$2.error)', ""),
        ("web_fetch(url=$4[0].error)", ""),
        ("web_fetch(url=$4[*].error)", ""),
        (
            "web_fetch(url=$1.titel)",
            "web_fetch: $1.titel: $1 (web_search) is a list of {title, url, snippet} or {error}; "
            "did you mean $1[0].title?",
        ),
        ("free(x=$2.message)", "free: $2.message: $2 (web_lookup) is"),
        ("web_fetch(url=$1.error.kind)", "web_fetch: $1.error.kind: $1.error (web_search) is a"),
        ("total(numbers=$2)", "total: argument 'numbers' must be a list of numbers, but $2"),
    ],
)
def test_a_kept_error_may_be_referred_to(call: str, message: str) -> None:
    """Where on_error keeps failures, ``$1.error`` is a text; all else is held to the type."""
    kept = {name: replace(one, policy=Policy(on_error="keep")) for name, one in TOOLS.items()}
    found = plan_problems(f"{PLAN}6. {call}\njoin()", kept)
    assert [problem[: len(message)] for problem in found] == [message] * bool(message)


async def test_a_kept_error_is_what_the_reference_binds_to() -> None:
    """From the plan's text to the value: the type said so, and so it is."""

    @tool(on_error="keep")
    async def broken() -> list[int]:
        """Never works."""
        raise ValueError("no")

    @tool
    async def say(text: str) -> str:
        """Say it."""
        return text

    runtime = ScriptedRuntime(["1. broken()\n2. say(text=$1.error)\njoin()", "It broke [2]."])
    answer = await Agent([broken, say], runtime=runtime).ask("?")
    assert not answer.faults
    assert answer.outcomes[2] == Ok("ValueError: no")


def test_a_line_that_became_no_task_promises_nothing() -> None:
    """Its number is known, its tool is not."""
    [call] = PlanParser().feed("2. total($1.x)")
    assert isinstance(call, Call)
    assert bind(call, TOOLS, {1}, {}).needs == (1,)


def test_binding_a_reference_costs_microseconds() -> None:
    """About 20 µs when measured alone, the path and the type of two arguments included."""
    import time

    tasks: dict[int, Task] = {}
    for item in PlanParser().feed(PLAN + "6. web_fetch(url=$1[0].url, find=$2.title)\n"):
        assert isinstance(item, Call)
        if item.id < 6:
            tasks[item.id] = bind(item, TOOLS, tasks, tasks)
    best = float("inf")
    for _ in range(5):
        begin = time.process_time()
        for _ in range(200):
            bind(item, TOOLS, tasks, tasks)
        best = min(best, time.process_time() - begin)
    assert best / 200 < 150e-6


def test_a_hostile_schema_is_read_in_little_time() -> None:
    """Unions of lists of unions of lists: the work must not multiply."""
    import time

    schema: dict[str, Any] = {"type": "string"}
    for _ in range(12):
        schema = {"anyOf": [{"type": "array", "items": schema} for _ in range(2)]}
    source = Tool("source", "", {}, free.call, dict, output=schema)
    sink = Tool("sink", "", {"properties": {"x": {"anyOf": [schema, {}]}}}, free.call, dict)
    strict = Tool("strict", "", {"properties": {"x": schema}}, free.call, dict)
    tools = {"source": source, "sink": sink, "strict": strict}
    begin = time.process_time()
    assert plan_problems("1. source()\n2. sink(x=$1)\n3. strict(x=$1)\njoin()", tools) == []
    assert time.process_time() - begin < 2


# -- nothing that works is refused -----------------------------------------------------------


class Color(enum.Enum):
    RED = "red"
    TWO = 2


class Point(NamedTuple):
    x: int
    label: str = ""


class Hit(TypedDict):
    url: str
    rank: int


@dataclass
class Node:
    name: str
    hidden: int = field(init=False, default=3)
    late: str = field(init=False)
    kids: list[Node] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.late = "late"


class City(BaseModel):
    name: str = Field(alias="Name")
    size: decimal.Decimal = decimal.Decimal(1)
    at: Point = Point(1)
    model_config = ConfigDict(populate_by_name=True)

    @computed_field
    def big(self) -> bool:
        return self.size > 5


class Aliased(BaseModel):
    name: str = Field(serialization_alias="Name")
    model_config = ConfigDict(serialize_by_alias=True)


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")


class Names(RootModel[list[str]]):
    pass


Metres = NewType("Metres", float)
Cents = Annotated[int, PlainSerializer(lambda cents: f"{cents / 100}", return_type=str)]


class Priced(BaseModel):
    price: Cents


words = st.sampled_from(["", "word", "3", "-1.5", "true", "2024-05-06", "red"])
ints, floats = st.integers(-3, 3), st.sampled_from([0.0, 1.0, 2.5])
hits: st.SearchStrategy[Any] = st.fixed_dictionaries({"url": words, "rank": ints})


def lists(items: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(items, min_size=1, max_size=2)


TYPES: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (str, words),
    (int, ints),
    (float, floats | ints),
    (bool, st.booleans()),
    (None, st.none()),
    (int | None, ints | st.none()),
    (str | list[str], words | lists(words)),
    (list[int], lists(ints)),
    (list[list[str]], lists(lists(words))),
    (tuple[int, str], st.tuples(ints, words)),
    (tuple[float, ...], lists(floats).map(tuple)),
    (set[str], st.sets(words, min_size=1)),
    (dict[str, int], st.dictionaries(words, ints)),
    (dict[str, Any], st.dictionaries(words, words | ints)),
    (dict[int, str], st.dictionaries(ints, words)),
    (Literal["a", 1], st.sampled_from(["a", 1])),
    (Color, st.sampled_from(Color)),
    (Hit, hits),
    (list[Hit], lists(hits)),
    (dict[str, Hit], st.dictionaries(words, hits)),
    (Point, st.builds(Point, ints, words)),
    (list[Point], lists(st.builds(Point, ints, words))),
    (Node, st.builds(Node, words, lists(st.builds(Node, words)))),
    (City, st.builds(City, name=words, size=st.just(decimal.Decimal("1.5")))),
    (Aliased, st.builds(Aliased, name=words)),
    (Open, st.builds(Open, url=words)),
    (Names, st.builds(Names, lists(words))),
    (Priced, st.builds(Priced, price=ints)),
    (Cents, ints),
    (Metres, floats),
    (decimal.Decimal, st.just(decimal.Decimal("1.5"))),
    (datetime.date, st.just(datetime.date(2024, 5, 6))),
    (datetime.datetime, st.just(datetime.datetime(2024, 5, 6))),
    (datetime.timedelta, st.just(datetime.timedelta(minutes=1))),
    (uuid.UUID, st.just(uuid.UUID(int=1))),
    (Any, words | ints),
]


def walk(data: st.DataObject, value: Any) -> tuple[Step, ...]:
    """A path that is there in ``value``."""
    path: list[Step] = []
    while value and isinstance(value, dict | list) and data.draw(st.booleans()):
        steps = list(value) if isinstance(value, dict) else range(-len(value), len(value))
        path.append(data.draw(st.sampled_from(steps)))
        value = value[path[-1]]
    return tuple(path)


def takes(annotation: Any) -> Tool:
    """A tool with one argument ``x`` of this type."""

    def sink(x: Any) -> None:
        """Take."""

    sink.__annotations__["x"] = annotation
    return tool(sink)


SINKS = [takes(annotation) for annotation, _ in TYPES]


@pytest.mark.parametrize("at", range(len(TYPES)), ids=lambda at: str(TYPES[at][0])[:40])
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_the_output_schema_describes_the_data(at: int, data: st.DataObject) -> None:
    """What a plan sees of a value fits the schema of its type."""
    annotation, values = TYPES[at]
    schema = output_schema("t", annotation)
    assert schema is None or problem(schema, to_data(data.draw(values)), schema) is None


@pytest.mark.parametrize("at", range(len(TYPES)), ids=lambda at: str(TYPES[at][0])[:40])
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_a_call_that_works_is_never_refused(at: int, data: st.DataObject) -> None:
    """Whatever the types: if the value is there and the tool takes it, binding does, too."""
    annotation, values = TYPES[at]
    value = to_data(data.draw(values))
    ref = Ref(1, walk(data, value))
    part = resolve(ref, {1: Ok(value)})
    if part == []:
        return  # a list is taken to have items
    producer = Tool("source", "", {}, free.call, dict, output=output_schema("t", annotation))
    for sink in SINKS:
        try:
            sink.validate({"x": part})
        except UsageError:
            continue
        tools = {"source": producer, "sink": sink}
        bind(Call(2, "sink", kwargs={"x": ref}), tools, {1}, {1: Task(1, "source")})


@pytest.mark.parametrize(
    ("returns", "line"),
    [
        (int, "sink(x=$1.part)"),
        (Hit, "sink(x=$1.rang)"),
        (Hit, "sink(x=$1[0])"),
        (list[int], "sink(x=$1.first)"),
        (tuple[int, str], "sink(x=$1[2])"),
        (Node, "sink(x=$1.kids.name)"),
        (City, "sink(x=$1.population)"),
        (None, "sink(x=$1.anything)"),
    ],
)
def test_a_part_that_no_value_has_is_refused(returns: Any, line: str) -> None:
    """So the property above is not kept by letting everything through."""
    producer = Tool("source", "", {}, free.call, dict, output=output_schema("t", returns))
    sink: Callable[..., Any] = takes(Any)
    [found] = plan_problems(f"1. source()\n2. {line}\njoin()", {"source": producer, "sink": sink})
    assert "(source) is" in found


@pytest.mark.parametrize(
    ("returns", "takes_"),
    [
        (list[str], str),
        (Hit, str),
        (None, int),
        (int, str),
        (str, list[str]),
        (list[Hit], list[str]),
        (dict[str, str], list[str]),
    ],
)
def test_a_type_that_never_fits_is_refused(returns: Any, takes_: Any) -> None:
    """A list or an object for a text, null for a number, a text for a list."""
    producer = Tool("source", "", {}, free.call, dict, output=output_schema("t", returns))
    tools = {"source": producer, "sink": takes(takes_)}
    [found] = plan_problems("1. source()\n2. sink(x=$1)\njoin()", tools)
    assert found.startswith("sink: argument 'x' must be ")
