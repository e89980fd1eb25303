"""A typed function becomes a tool: its schema, its checks, its call."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Literal, NamedTuple

import pytest
from pydantic import BaseModel, Field, create_model
from typing_extensions import TypedDict

from agentpar.errors import UsageError
from agentpar.tools import as_tool, tool, toolbox
from agentpar.tools.outputs import output_schema


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


class Options(TypedDict, total=False):
    deep: bool


class Point(NamedTuple):
    x: float
    y: float


@tool
async def population(country: str, year: int = 2020) -> int:
    """Population of a country. country: English name. year: Of the census."""
    return len(country) + year


# ── The schema ───────────────────────────────────────────────────────────────────


def test_schema_comes_from_the_signature() -> None:
    """Properties in calling order, nothing of pydantic's titles, nothing else allowed."""
    assert population.name == "population"
    assert population.description == "Population of a country."
    assert population.returns == "int"
    assert population.parameters == {
        "type": "object",
        "properties": {
            "country": {"type": "string", "description": "English name."},
            "year": {"type": "integer", "default": 2020, "description": "Of the census."},
        },
        "required": ["country"],
        "additionalProperties": False,
    }


GOOGLE = """Find pages.

    Args:
        query: What to look for,
            in plain words.
        limit: At most so many.

    Returns:
        Best first.
    """
NUMPY = """Find pages.

    Parameters
    ----------
    query : str
        What to look for,
        in plain words.
    limit : int
        At most so many.

    Returns
    -------
    list[str]
        Best first.
    """
SPHINX = """Find pages.

    :param query: What to look for, in plain words.
    :param limit: At most so many.
    :returns: Best first.
    """
INLINE = """Find pages.

    query: What to look for,
        in plain words.
    limit: At most so many.
    """


@pytest.mark.parametrize(
    "doc", [GOOGLE, NUMPY, SPHINX, INLINE], ids=["google", "numpy", "sphinx", "inline"]
)
def test_every_docstring_style_describes_the_parameters(doc: str) -> None:
    """The same words, in any of the styles, give the same schema."""

    def find(query: str, limit: int = 3) -> list[str]:
        return [query] * limit

    find.__doc__ = doc
    made = tool(find)
    assert made.description == "Find pages."
    assert {key: item["description"] for key, item in made.parameters["properties"].items()} == {
        "query": "What to look for, in plain words.",
        "limit": "At most so many.",
    }
    assert made.returns == ("list[str]" if doc is INLINE else "list[str]: Best first.")


def test_words_that_only_look_like_a_parameter_stay_in_the_description() -> None:
    """A parameter's name inside a sentence is not the start of its description."""

    def find(query: str) -> str:
        """Answer the query: briefly. Note: slow."""
        return query

    assert tool(find).description == "Answer the query: briefly. Note: slow."


def test_a_parameter_may_have_any_name() -> None:
    """Names that pydantic models reserve are plain names here, and so is ``title``."""

    def odd(title: str, json: int, model_config: bool, _private: float = 1.5) -> None: ...

    made = tool(odd)
    assert list(made.parameters["properties"]) == ["title", "json", "model_config", "_private"]
    args = {"title": "t", "json": 1, "model_config": True}
    assert made.validate(args) == {**args, "_private": 1.5}


def test_recursive_types_keep_their_definition_and_others_are_written_in_place() -> None:
    """A reader of the schema meets a ``$ref`` only where there is no other way."""

    def plant(tree: Tree, city: City) -> None: ...

    parameters = tool(plant).parameters
    assert parameters["properties"]["tree"] == {"$ref": "#/$defs/Tree"}
    assert list(parameters["$defs"]) == ["Tree"]
    assert parameters["$defs"]["Tree"]["properties"]["title"] == {"type": "string"}
    assert parameters["properties"]["city"]["properties"]["name"] == {"type": "string"}


def test_returns_names_the_fields_of_records() -> None:
    """The planner learns which ``$1.field`` it can write."""

    def cities() -> list[City]: ...
    def place() -> Point | None: ...
    def both() -> dict[str, City | Tree]: ...
    def options() -> Options: ...
    def silent(): ...  # type: ignore[no-untyped-def]
    def anything() -> Any: ...

    assert tool(cities).returns == "list[City] with fields name, population"
    assert tool(place).returns == "Point | None with fields x, y"
    assert tool(both).returns == (
        "dict[str, City | Tree]; City has fields name, population; Tree has fields title, children"
    )
    assert tool(options).returns == "Options with fields deep"
    assert tool(silent).returns == tool(anything).returns == ""
    assert tool(cities, returns="towns").returns == "towns"


class Step(BaseModel):
    a: str
    b: str


Stair: Any = Step
for height in range(2, 32):  # each stair holds the one before it twice
    Stair = create_model(f"Stair{height}", a=(Stair, ...), b=(Stair, ...))


def test_a_type_that_doubles_at_every_level_is_refused_soon() -> None:
    """Written out it would have 2**31 texts; nothing of that size is ever made."""

    def climb(stair: Stair) -> None: ...

    before = time.process_time()
    with pytest.raises(UsageError, match=r"tool 'climb': its schema is longer than 100,000"):
        tool(climb)
    assert time.process_time() - before < 5


# ── What cannot be a tool ────────────────────────────────────────────────────────


def untyped(country): ...  # type: ignore[no-untyped-def]
def starred(*words: str) -> None: ...
def keyworded(**words: str) -> None: ...
def positional(country: str, /) -> None: ...
def unknown(country: Country) -> None: ...  # type: ignore[name-defined]  # noqa: F821
def odd_type(thing: threading.Lock) -> None: ...  # type: ignore[valid-type]
def generator(n: int) -> Any:
    yield n


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (untyped, r"parameter 'country' has no type"),
        (starred, r"takes \*words"),
        (keyworded, r"takes \*\*words"),
        (positional, r"'country' is positional-only"),
        (unknown, r"name 'Country' is not defined"),
        (odd_type, r"its types make no schema"),
        (generator, r"is a generator: make it 'async def', or return a list"),
        (lambda: None, r"'<lambda>' is not an identifier"),
    ],
)
def test_a_signature_that_is_no_schema_is_refused_at_once(
    fn: Callable[..., Any], message: str
) -> None:
    """The error comes at decoration, and says which parameter and why."""
    with pytest.raises(UsageError, match=message):
        tool(fn)


def test_an_unknown_effect_is_refused() -> None:
    """A typing mistake must not turn a risky tool into a harmless one."""
    with pytest.raises(UsageError, match="'wriet'"):
        tool(effect="wriet")(positional)  # type: ignore[call-overload]


# ── The arguments ────────────────────────────────────────────────────────────────


def test_arguments_arrive_as_the_real_types() -> None:
    """Models, enums, dataclasses and typed dicts are made from plain data."""

    @tool
    def many(
        color: Color,
        city: City | None,
        tree: Tree,
        mode: Literal["a", "b"],
        options: Options,
        scores: dict[str, list[float]],
        limit: int = None,  # type: ignore[assignment]  # noqa: RUF013 (the claim)
        share: Annotated[float, Field(gt=0, description="Of the whole.")] = 0.5,
    ) -> None: ...

    args = many.validate(
        {
            "color": "red",
            "city": {"name": "Lima", "population": "9"},
            "tree": {"title": "oak", "children": [{"title": "twig", "children": []}]},
            "mode": "a",
            "options": {"deep": True},
            "scores": {"x": [1, "2.5"]},
        }
    )
    assert args == {
        "color": Color.RED,
        "city": City(name="Lima", population=9),
        "tree": Tree("oak", [Tree("twig", [])]),
        "mode": "a",
        "options": {"deep": True},
        "scores": {"x": [1.0, 2.5]},
        "limit": None,
        "share": 0.5,
    }
    assert many.parameters["properties"]["share"]["description"] == "Of the whole."


def test_a_mutable_default_is_fresh_for_every_call() -> None:
    """One call's list is never the next call's."""

    @tool
    def collect(items: list[int] = [1]) -> None: ...  # noqa: B006

    collect.validate({})["items"].append(2)
    assert collect.validate({}) == {"items": [1]}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"country": 3}, "population: argument 'country' must be a string, got 3"),
        ({}, "population: argument 'country' is missing"),
        (
            {"country": "Peru", "yaer": 1},
            "population: argument 'yaer' is not known; did you mean 'year'?",
        ),
        (
            {"country": "Peru", "zzz": 1},
            "population: argument 'zzz' is not known; it takes 'country', 'year'",
        ),
        (
            {"country": None, "year": "soon"},
            "population: argument 'country' must be a string, got None; "
            "argument 'year' must be an integer, got 'soon'",
        ),
    ],
)
def test_a_wrong_argument_is_named_with_its_value(args: dict[str, Any], message: str) -> None:
    """The message is what the model reads when it plans again."""
    with pytest.raises(UsageError) as error:
        population.validate(args)
    assert str(error.value) == message


def test_a_wrong_part_of_an_argument_is_placed() -> None:
    """Paths lead into the argument; the branches of a union are told together."""

    @tool
    def build(tree: Tree, size: int | list[str] = 1) -> None: ...

    with pytest.raises(UsageError) as error:
        build.validate(
            {"tree": {"title": "x", "children": [{"title": 1, "children": []}]}, "size": {}}
        )
    assert str(error.value) == (
        "build: argument 'tree.children[0].title' must be a string, got 1; "
        "argument 'size' must be an integer, got {}, or must be a list, got {}"
    )


def test_a_long_wrong_value_is_shortened() -> None:
    """A whole page in the wrong place does not fill the joiner's prompt."""
    with pytest.raises(UsageError) as error:
        population.validate({"country": "x", "year": "9" * 5000 + "x"})
    assert len(str(error.value)) < 250


# ── The call ─────────────────────────────────────────────────────────────────────

user: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")


async def test_a_sync_function_runs_in_a_thread_with_the_callers_context() -> None:
    """The loop stays free, and context variables are seen."""

    @tool
    def who() -> list[Any]:
        return [user.get(), threading.current_thread() is threading.main_thread()]

    user.set("ada")
    assert await who.call() == ["ada", False]


async def test_a_sync_wrapper_of_an_async_function_is_awaited() -> None:
    """A decorator that forgot ``async`` still gives the value, not a coroutine."""

    async def inner(n: int) -> int:
        await asyncio.sleep(0)
        return n + 1

    @functools.wraps(inner)
    def outer(*args: Any, **kwargs: Any) -> Any:
        return inner(*args, **kwargs)

    assert await tool(outer).call(n=1) == 2


async def test_methods_partials_and_objects_can_be_tools() -> None:
    """Whatever has a signature; ``self`` is no argument."""

    class Shop:
        async def price(self, item: str) -> int:
            return len(item)

        def __call__(self, item: str, n: int = 2) -> str:
            return item * n

    price = tool(Shop().price)
    assert list(price.parameters["properties"]) == ["item"]
    assert await price.call(item="tea") == 3
    assert await tool(Shop(), name="repeat").call(item="a", n=3) == "aaa"
    thrice = tool(functools.partial(Shop(), n=3), name="thrice")
    assert await thrice.call(**thrice.validate({"item": "a"})) == "aaa"


async def test_a_tool_still_is_the_plain_function() -> None:
    """Calling it directly does what the function did."""
    assert await population("Peru", year=1) == 5


# ── Many tools ───────────────────────────────────────────────────────────────────


def test_toolbox_takes_tools_and_plain_functions() -> None:
    """By name, in the order given."""

    def größe(ort: str) -> int:
        return len(ort)

    box = toolbox([größe, population])
    assert list(box) == ["größe", "population"]
    assert box["population"] is population


@pytest.mark.parametrize(
    ("things", "message"),
    [
        ([population, population], "two tools are named 'population'"),
        ([3], "3 is not a tool"),
        ([City], "is not a tool"),
    ],
)
def test_toolbox_refuses_what_a_plan_could_not_call(things: list[Any], message: str) -> None:
    """Before any model is asked."""
    with pytest.raises(UsageError, match=message):
        toolbox(things)


@pytest.mark.parametrize("name", ["join", "web-search", "2d", ""])
def test_a_name_that_a_plan_cannot_write_is_refused(name: str) -> None:
    """`join` ends a plan; the others are no identifiers."""
    if name:
        with pytest.raises(UsageError, match=name):
            tool(population.function, name=name)
    made = tool(positional_free)
    object.__setattr__(made, "name", name)
    with pytest.raises(UsageError):
        toolbox([made])


def positional_free() -> None: ...


def test_as_tool_keeps_a_tool() -> None:
    """Twice wrapped is once wrapped."""
    assert as_tool(population) is population


# ── The cost ─────────────────────────────────────────────────────────────────────


def test_importing_loads_nothing_heavy() -> None:
    """pydantic and griffe wait for the first tool."""
    code = (
        "import sys, agentpar.tools\n"
        "heavy = {'pydantic', 'griffe', 'mcp', 'langchain_core'}\n"
        "print(heavy & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# ── The output schema ────────────────────────────────────────────────────────────


def test_the_return_annotation_is_the_output_schema() -> None:
    """A record has what it declares; no annotation, or Any, says nothing."""
    assert population.output == {"type": "integer"}

    @tool
    async def point() -> list[Options]:
        """A list of records."""
        return []

    assert point.output == {
        "type": "array",
        "items": {
            "type": "object",
            "properties": {"deep": {"type": "boolean"}},
            "additionalProperties": False,
        },
    }

    @tool
    async def tree() -> Tree:
        """A record that contains itself."""
        return Tree("", [])

    assert tree.output is not None
    assert tree.output["$ref"] == "#/$defs/Tree"

    @tool
    async def anything() -> Any:
        """It depends."""

    @tool
    async def unsaid(x: int):  # type: ignore[no-untyped-def]
        """It depends."""

    @tool
    async def odd() -> threading.Thread:
        """No data, so no schema."""
        return threading.Thread()

    assert anything.output is unsaid.output is odd.output is None


def test_items_of_a_stream_are_a_list() -> None:
    """What a plan sees of it, once it is complete."""
    assert output_schema("t", AsyncIterator[int]) == {"type": "array", "items": {"type": "integer"}}
    assert output_schema("t", Iterator[Any]) == {"type": "array", "items": {}}


def test_the_output_schema_can_be_given() -> None:
    """``{}`` lets every reference through."""

    @tool(output={})
    async def open() -> Tree:
        """A subclass of it, perhaps."""
        return Tree("", [])

    assert open.output == {}
    assert tool(open.function, output={"type": "object"}).output == {"type": "object"}  # type: ignore[arg-type]


# ── The version ──────────────────────────────────────────────────────────────────


def logged(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    return wrapper


def changed_constant() -> Any:
    def before(a: int) -> int:
        return a + 1

    def after(a: int) -> int:
        return a + 2

    return before, after


def changed_function_inside() -> Any:
    def before(a: int) -> int:
        return max([a], key=lambda x: x + 1)

    def after(a: int) -> int:
        return max([a], key=lambda x: x + 2)

    return before, after


def changed_tuple() -> Any:
    def before(a: int) -> bool:
        return a in (1, 2)

    def after(a: int) -> bool:
        return a in (1, 3)

    return before, after


def changed_set() -> Any:
    def before(a: int) -> bool:
        return a in {1, 2}

    def after(a: int) -> bool:
        return a in {1, 3}

    return before, after


def changed_default() -> Any:
    def before(a: int = 1) -> int:
        return a

    def after(a: int = 2) -> int:
        return a

    return before, after


def changed_default_by_name() -> Any:
    def before(*, a: int = 1) -> int:
        return a

    def after(*, a: int = 2) -> int:
        return a

    return before, after


def changed_names() -> Any:
    def before(a: int, b: int) -> int:
        return a - b

    def after(b: int, a: int) -> int:
        return b - a

    return before, after


def changed_under_a_decorator() -> Any:
    before, after = changed_constant()
    return logged(before), logged(after)


@pytest.mark.parametrize(
    "changed",
    [
        changed_constant,
        changed_function_inside,
        changed_tuple,
        changed_set,
        changed_default,
        changed_default_by_name,
        changed_names,
        changed_under_a_decorator,
    ],
)
def test_another_code_is_another_version(changed: Callable[[], Any]) -> None:
    """A result that was kept is not given for a function that would return another one."""
    before, after = (tool(fn).version for fn in changed())
    again, _ = (tool(fn).version for fn in changed())
    assert before == again
    assert before != after


def test_a_version_is_the_same_in_every_process() -> None:
    """Also where the order of a set is not."""
    code = (
        "from agentpar.tools import tool\n"
        "def f(a: str) -> bool:\n    return [a in {'x', 'y', 'z', 'u', 'v'} for _ in a] == ()\n"
        "print(tool(f).version)"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(seen) == 1
