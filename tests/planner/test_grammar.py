"""The grammar: what it lets a model write parses and binds, and the known mistakes it refuses."""

from __future__ import annotations

import contextlib
import json
import random
import re
from typing import Any

import httpx
import pytest

from agentpar.errors import PlanError, UsageError
from agentpar.plan import Task
from agentpar.planner.binding import bind, check_cancel, rebind
from agentpar.planner.grammar import plan_grammar
from agentpar.planner.parser import Call, Cancel, Join, PlanParser, Replace
from agentpar.tools.base import Tool

xgr = pytest.importorskip("xgrammar")

TEXT = {"type": "string"}
POINT = {
    "type": "object",
    "properties": {"lat": {"type": "number"}, "label": TEXT, "next": {"$ref": "#/$defs/Point"}},
    "required": ["lat"],
}
SCHEMAS: dict[str, dict[str, Any]] = {
    "search": {
        "properties": {"query": TEXT, "limit": {"type": "integer", "minimum": 1, "maximum": 20}},
        "required": ["query"],
    },
    "fetch": {
        "properties": {"url": {"type": "string", "minLength": 1, "maxLength": 12}},
        "required": ["url"],
    },
    "compare": {
        "properties": {
            "before": {"type": "boolean"},
            "items": {"type": "array", "items": TEXT, "minItems": 1, "maxItems": 3},
            "by": {"enum": ["size", 'a "quoted" \\ name', "# no // comment", 7, None]},
            "pair": {"type": "array", "prefixItems": [TEXT, {"type": "integer"}], "items": False},
        },
        "required": ["items"],
    },
    "locate": {
        "$defs": {"Point": POINT},
        "properties": {
            "point": {"$ref": "#/$defs/Point"},
            "zoom": {"anyOf": [{"type": "integer", "minimum": -12, "maximum": 105}, TEXT]},
            "share": {"type": "number", "minimum": 0},
            "kind": {"type": ["null", "boolean"]},
        },
    },
    "now": {"properties": {}},
}


async def nothing(**kwargs: Any) -> None:
    """A tool that is planned and never called."""


def tools_of(schemas: dict[str, dict[str, Any]]) -> dict[str, Tool]:
    return {
        name: Tool(
            name,
            "",
            {"type": "object", "additionalProperties": False, **schema},
            nothing,
            lambda args: dict(args),
        )
        for name, schema in schemas.items()
    }


TOOLS = tools_of(SCHEMAS)
CHARS = [chr(code) for code in range(32, 127)] + ["\n", "é", "北", "😀"]
STOP = len(CHARS)


@pytest.fixture(scope="module")
def compiler() -> Any:
    """xgrammar over a vocabulary of single characters."""
    info = xgr.TokenizerInfo([*CHARS, "</s>"], stop_token_ids=[STOP])
    return xgr.GrammarCompiler(info, max_threads=2)


def accepts(compiler: Any, grammar: str, text: str) -> bool:
    """Whether a model may write ``text`` and stop there."""
    matcher = xgr.GrammarMatcher(compiler.compile_grammar(grammar))
    return matcher.accept_string(text) and matcher.accept_token(STOP)


def derive(compiled: Any, rng: random.Random) -> str:
    """A random text that the grammar allows; quotes are favoured, so that strings end."""
    matcher = xgr.GrammarMatcher(compiled)
    bitmask = xgr.allocate_token_bitmask(1, len(CHARS) + 1)
    text = ""
    while True:
        matcher.fill_next_token_bitmask(bitmask)
        bits = [int(word) & 0xFFFFFFFF for word in bitmask[0]]
        allowed = [i for i in range(len(CHARS) + 1) if bits[i // 32] >> (i % 32) & 1]
        assert allowed, f"a dead end after {text!r}"
        quote = CHARS.index('"')
        token = quote if quote in allowed and rng.random() < 0.3 else rng.choice(allowed)
        assert matcher.accept_token(token)
        if token == STOP:
            return text
        text += CHARS[token]


def read(text: str, tools: dict[str, Tool], known: set[int]) -> list[Task]:
    """The tasks of a plan that must be without fault."""
    parser = PlanParser()
    items = parser.feed(text) + parser.close()
    assert items[-1] == Join(), text
    planned, tasks = set(known), []
    for call in items[:-1]:
        assert isinstance(call, Call), (call, text)
        tasks.append(bind(call, tools, planned))
        planned.add(call.id)
    return tasks


@pytest.mark.parametrize("thoughts", [False, True])
@pytest.mark.parametrize(("first_id", "known"), [(1, set()), (12, {2, 9, 10, 11})])
def test_whatever_the_grammar_allows_parses_and_binds(
    compiler: Any, first_id: int, known: set[int], thoughts: bool
) -> None:
    """Grammar ⊆ parser and binder, by random derivations; numbers run on without a gap."""
    grammar = plan_grammar(TOOLS, first_id=first_id, known=known, max_lines=5, thoughts=thoughts)
    compiled = compiler.compile_grammar(grammar)
    seen = set()
    for seed in range(60):
        tasks = read(derive(compiled, random.Random(seed)), TOOLS, known)
        assert [task.id for task in tasks] == list(range(first_id, first_id + len(tasks)))
        seen |= {task.tool for task in tasks}
        seen |= {"reference" for task in tasks if task.needs}
    assert seen == {*TOOLS, "reference"}


def test_the_extended_grammar_writes_what_parses_and_binds(compiler: Any) -> None:
    """Stars and picks come out of it, in places where they are taken; one list a call is left
    to binding."""
    grammar = plan_grammar(TOOLS, max_lines=4, extended=True)
    compiled = compiler.compile_grammar(grammar)
    seen: set[str] = set()
    for seed in range(240):
        text = derive(compiled, random.Random(seed))
        try:
            read(text, TOOLS, set())
        except PlanError as error:
            assert "two lists" in str(error)  # noqa: PT017
        seen |= {sign for sign in ("[*]", "any(", "some(") if sign in text}
    assert seen == {"[*]", "any(", "some("}


def test_stars_and_picks_are_written_only_where_asked_for(compiler: Any) -> None:
    """The grammar that was measured does not change; the extended one takes all it takes."""
    plain, extended = (plan_grammar(TOOLS, max_lines=4, extended=e) for e in (False, True))
    for value in ("$1[*].url", "any($1, $2.x)", "any($1[0], $2, $1)"):
        text = f"1. now()\n2. now()\n3. fetch(url={value})\njoin()"
        assert not accepts(compiler, plain, text)
        assert accepts(compiler, extended, text)
    assert accepts(compiler, extended, GOOD)
    some = "1. now()\n2. now()\n3. {}=some(2, $1, $2))\njoin()"
    assert accepts(compiler, extended, some.format("compare(items"))
    assert not accepts(compiler, extended, some.format("fetch(url"))
    assert not accepts(compiler, extended, "1. now()\n2. fetch(url=any($1, $2))\njoin()")


GOOD = '1. search(query="Chile", limit=3)\n2. fetch(url=$1[0].url)\njoin()'


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        GOOD.replace("\njoin", "\n3. join"),
        "1. now()\njoin()",
        '1. search(query="$5.00, \\"quoted\\", costing $1\\n北")\njoin()',
        '1. now()\n2. compare(items=[$1, "b", $1.x], by="size")\njoin()',
        "1. now()\n2. compare(before=true, items=$1, by=7, pair=[$1, 4])\njoin()",
        '1. locate(point={"lat": -1.5, "next": {"lat": 2}}, zoom=-12)\njoin()',
        "1. now()\n2. locate(kind=null)\n3. locate(share=$2, kind=$1)\njoin()",
    ],
)
def test_a_sound_plan_can_be_written(compiler: Any, text: str) -> None:
    """The grammar is not so narrow that it refuses what tools can take."""
    assert accepts(compiler, plan_grammar(TOOLS, max_lines=4), text)
    read(text, TOOLS, set())


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ('1. serach(query="x")\njoin()', "an unknown tool"),
        ('1. search(querry="x")\njoin()', "an unknown argument"),
        ("1. search(limit=3)\njoin()", "a required argument left out"),
        ("1. search(query=3)\njoin()", "a number for a text"),
        ('1. search(query="x", limit="3")\njoin()', "a text for a number"),
        ('1. search(query="x", limit=21)\njoin()', "a number over the maximum"),
        ('1. search(query="x", limit=0)\njoin()', "a number under the minimum"),
        ('1. fetch(url="")\njoin()', "a text shorter than the minimum"),
        ('1. fetch(url="thirteen char")\njoin()', "a text longer than the maximum"),
        ("1. fetch(url=$1)\njoin()", "a reference to itself"),
        ("1. fetch(url=$2)\n2. now()\njoin()", "a reference to a later task"),
        ("1. now()\n2. fetch(url=$11)\njoin()", "a reference that begins like an earlier task"),
        ("1. now()\n3. now()\njoin()", "a gap in the numbers"),
        ("1. now()\n1. now()\njoin()", "a number twice"),
        ('1. compare(items=["a"], by="colour")\njoin()', "a value outside the enum"),
        ("1. compare(items=[])\njoin()", "too few items"),
        ('1. compare(items=["a", "b", "c", "d"])\njoin()', "too many items"),
        ('1. locate(point={"label": "x"})\njoin()', "a required field left out"),
        ("1. locate(zoom=106)\njoin()", "a number over the maximum of a choice"),
        ("1. locate(share=-1.0)\njoin()", "a negative share"),
        ("1. now()", "a plan without an end"),
        ("1. now()\njoin()\n2. now()", "a task after the end"),
        ("1. now()\njoin() ", "text after the end"),
        ("join()", "no task, with nothing known"),
        ("1. now()\n2. now()\n3. now()\n4. now()\n5. now()\njoin()", "a task too many"),
        ("Here is the plan:\n1. now()\njoin()", "prose"),
    ],
)
def test_a_mistake_cannot_be_written(compiler: Any, text: str, mistake: str) -> None:
    """xgrammar's matcher refuses each kind of mistake that the grammar is there to prevent."""
    assert not accepts(compiler, plan_grammar(TOOLS, max_lines=4), text), mistake


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "string", "maxLength": 10**12}, '"x"'),
        ({"type": "array", "items": {"type": "integer"}, "maxItems": 10**12}, "[1, 2]"),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 3, "maxItems": 1}, "[1]"),
    ],
)
def test_bounds_that_nobody_can_count_to_do_not_lose_the_grammar(
    compiler: Any, schema: dict[str, Any], text: str
) -> None:
    """One such argument, and every plan of the agent would be written without one."""
    grammar = plan_grammar(tools_of({"f": {"properties": {"a": schema}}}), max_lines=1)
    assert accepts(compiler, grammar, f"1. f(a={text})\njoin()")


def test_a_later_round_goes_on_and_may_refer_to_what_has_a_value(compiler: Any) -> None:
    """After a replan ids continue, earlier values are in reach, failed tasks are not."""
    grammar = plan_grammar(TOOLS, first_id=4, known=[1, 3], max_lines=2)
    assert accepts(compiler, grammar, "4. fetch(url=$3.url)\n5. fetch(url=$4)\njoin()")
    assert accepts(compiler, grammar, "join()")
    assert not accepts(compiler, grammar, "4. fetch(url=$2.url)\njoin()")


CHANGES = [
    "cancel($3)\njoin()",
    'replace($12, search(query="x"))\njoin()',
    "13. now()\nreplace($3, fetch(url=$13))\n14. now()\ncancel($12)\njoin()",
    "cancel($3)\ncancel($12)\n13. fetch(url=$1)\njoin()",
]


@pytest.mark.parametrize("text", CHANGES)
def test_what_is_alive_may_be_changed(compiler: Any, text: str) -> None:
    """Before and behind any call, and only where something is alive."""
    options: dict[str, Any] = {"first_id": 13, "known": [1, 3, 12], "max_lines": 3}
    assert accepts(compiler, plan_grammar(TOOLS, alive=[3, 12], **options), text)
    assert not accepts(compiler, plan_grammar(TOOLS, **options), text)


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("cancel($1)\njoin()", "a task that has ended"),
        ("cancel($2)\njoin()", "a task that was never planned"),
        ("cancel($13)\n13. now()\njoin()", "a task that comes later"),
        ("13. now()\ncancel($13)\njoin()", "a task of this very plan"),
        ("cancel($3.x)\njoin()", "a part of a result"),
        ("replace($1, now())\njoin()", "a call in the place of one that has ended"),
        ("replace($3, 13. now())\njoin()", "a number inside"),
        ("replace($3, fetch(url=$2))\njoin()", "a reference to nothing"),
        ("replace($3)\njoin()", "no call"),
        ("cancel($3)\ncancel($3)\ncancel($12)\njoin()", "more changes in a row than are alive"),
        ("cancel($3)", "a plan without an end"),
        ("join()\ncancel($3)", "a change after the end"),
    ],
)
def test_a_wrong_change_cannot_be_written(compiler: Any, text: str, mistake: str) -> None:
    """Whatever the model would like to change."""
    grammar = plan_grammar(TOOLS, first_id=13, known=[1, 3, 12], alive=[3, 12], max_lines=3)
    assert not accepts(compiler, grammar, text), mistake


def test_whatever_change_the_grammar_allows_can_be_read_and_meant(compiler: Any) -> None:
    """Grammar ⊆ parser and binder, but for a circle and a call that is ended twice."""
    compiled = compiler.compile_grammar(
        plan_grammar(TOOLS, first_id=5, known=[1, 3, 4], alive=[3, 4], max_lines=3)
    )
    seen = set()
    for seed in range(120):
        tasks = {id: Task(id, "now") for id in (1, 3, 4)}
        parser = PlanParser()
        text = derive(compiled, random.Random(seed))
        for item in parser.feed(text) + parser.close():
            match item:
                case Cancel(id):
                    check_cancel(id, tasks, {1})
                case Replace(call):
                    with contextlib.suppress(Circle):
                        tasks[call.id] = rebound(call, tasks)
                case Call():
                    tasks[item.id] = bind(item, TOOLS, tasks)
                case _:
                    assert item == Join(), text
            seen.add(type(item))
    assert seen == {Cancel, Replace, Call, Join}


class Circle(Exception):
    """A replacement that would need itself."""


def rebound(call: Call, tasks: dict[int, Task]) -> Task:
    try:
        return rebind(call, TOOLS, tasks, {1})
    except PlanError as error:
        if "refers to itself" in str(error) or " needs $" in str(error):
            raise Circle from None
        raise


def test_a_plan_may_end_at_once_while_calls_still_run(compiler: Any) -> None:
    """Nothing may be done yet, and nothing to add."""
    assert accepts(compiler, plan_grammar(TOOLS, first_id=2, known=[1], alive=[1]), "join()")


def test_a_thought_may_stand_before_a_task(compiler: Any) -> None:
    """With thoughts=True, and only then."""
    text = "Thought: both (at once).\n1. now()\njoin()"
    assert accepts(compiler, plan_grammar(TOOLS, thoughts=True), text)
    assert not accepts(compiler, plan_grammar(TOOLS), text)


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"minItems": 2}, ["[1, 1]", "[1, 1, 1]"], ["[]", "[1]"]),
        ({"maxItems": 0}, ["[]"], ["[1]"]),
        ({"maxItems": 2}, ["[]", "[1, 1]"], ["[1, 1, 1]", "[1,]", '["1"]']),
        (
            {"prefixItems": [{"type": "null"}], "maxItems": 2},
            ["[null]", "[null, 1]"],
            ["[]", "[1]"],
        ),
        ({"prefixItems": [{"type": "null"}], "minItems": 2}, ["[null, 1]"], ["[null]"]),
    ],
)
def test_lists_have_their_lengths(
    compiler: Any, schema: dict[str, Any], good: list[str], bad: list[str]
) -> None:
    """minItems, maxItems and prefixItems, together and alone."""
    items = {"type": "array", "items": {"type": "integer"}, **schema}
    tools = tools_of({"f": {"properties": {"x": items}}})
    grammar = plan_grammar(tools, max_lines=1)
    for value in good:
        assert accepts(compiler, grammar, f"1. f(x={value})\njoin()"), value
        read(f"1. f(x={value})\njoin()", tools, set())
    for value in bad:
        assert not accepts(compiler, grammar, f"1. f(x={value})\njoin()"), value


@pytest.mark.parametrize(
    ("low", "high"),
    [(0, 0), (0, 9), (1, 100), (7, 1203), (98, 102), (-3, 4), (-250, -17), (60, 60)],
)
def test_integer_bounds_are_exact(compiler: Any, low: int, high: int) -> None:
    """Each number in the bounds can be written, none outside."""
    schema = {"properties": {"n": {"type": "integer", "minimum": low, "maximum": high}}}
    grammar = plan_grammar(tools_of({"f": {**schema, "required": ["n"]}}), max_lines=1)
    matcher = xgr.GrammarMatcher(compiler.compile_grammar(grammar))
    for n in {*range(low - 3, low + 60), *range(high - 60, high + 12), 10 * high, low * 10 - 1}:
        matcher.reset()
        assert matcher.accept_string(f"1. f(n={n})\njoin()") == (low <= n <= high), n


def test_any_choice_of_optional_arguments_can_be_written(compiler: Any) -> None:
    """In the schema's order, with commas only between, whichever are left out."""
    number = {"type": "integer"}
    schema = {"properties": dict.fromkeys("abcd", number)}
    for required in ([], ["c"], ["a"], ["a", "d"]):
        grammar = plan_grammar(tools_of({"f": {**schema, "required": required}}), max_lines=1)
        for bits in range(16):
            chosen = [name for i, name in enumerate("abcd") if bits >> i & 1]
            text = f"1. f({', '.join(f'{name}=1' for name in chosen)})\njoin()"
            assert accepts(compiler, grammar, text) == (set(required) <= set(chosen)), text


def test_an_unknown_schema_falls_back_to_any_json(compiler: Any) -> None:
    """A keyword the grammar does not know does not stop a plan."""
    schema = {"properties": {"x": {"not": {"type": "null"}}, "o": {"type": "object"}}}
    grammar = plan_grammar(tools_of({"f": schema}), max_lines=1)
    for value in ('"text"', "-2.5", "[1, [2, true]]", '{"a b": {"c": null}}'):
        assert accepts(compiler, grammar, f"1. f(x={value})\njoin()"), value
    assert accepts(compiler, grammar, '1. f(o={"k": [1]})\njoin()')
    assert not accepts(compiler, grammar, "1. f(o=[1])\njoin()")


def test_a_string_that_runs_on_is_stopped(compiler: Any) -> None:
    """No string is endless: the matcher ends it at the schema's length or at our own cap."""
    grammar = plan_grammar(TOOLS)
    assert accepts(compiler, grammar, f'1. search(query="{"x" * 400}")\njoin()')
    assert not accepts(compiler, grammar, f'1. search(query="{"x" * 401}")\njoin()')


def test_names_that_no_plan_can_write_are_the_callers_mistake() -> None:
    """Better an error when the agent is made than a plan that can never be bound."""
    with pytest.raises(UsageError, match="'my tool'"):
        plan_grammar(tools_of({"my tool": {"properties": {}}}))
    with pytest.raises(UsageError, match="'join'"):
        plan_grammar(tools_of({"join": {"properties": {}}}))
    with pytest.raises(UsageError, match=r"'\$filter'"):
        plan_grammar(tools_of({"f": {"properties": {"$filter": TEXT}, "required": ["$filter"]}}))
    plan_grammar(tools_of({"f": {"properties": {"$filter": TEXT}}}))


def test_without_tools_only_the_end_can_be_written(compiler: Any) -> None:
    """An agent without tools still gets a grammar that is one."""
    assert accepts(compiler, plan_grammar({}), "join()")


def test_the_grammar_stays_small() -> None:
    """Lines share their rules: a hundred lines cost kilobytes, not megabytes."""
    sizes = [len(plan_grammar(TOOLS, max_lines=n)) for n in (8, 32, 128)]
    assert sizes[1] < 5 * sizes[0]
    assert sizes[2] < 300_000, json.dumps(sizes)


@pytest.mark.vllm
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_real_vllm_writes_sound_plans_under_the_grammar(vllm_url: str, seed: int) -> None:
    """Hot sampling from the smallest weights: nonsense, but every call parses and binds."""
    tools = {name: TOOLS[name] for name in ("search", "fetch", "compare")}
    response = httpx.post(
        f"{vllm_url}/chat/completions",
        json={
            "model": model_of(vllm_url),
            "messages": [{"role": "user", "content": "Plan: who is taller? Call the tools."}],
            "structured_outputs": {"grammar": plan_grammar(tools, max_lines=3)},
            "temperature": 1.5,
            "seed": seed,
            "max_tokens": 700,
        },
        timeout=200,
    )
    response.raise_for_status()
    choice = response.json()["choices"][0]
    text = choice["message"]["content"]
    if choice["finish_reason"] == "length":  # cut: the calls that are complete must still be sound
        text = re.sub(r"(\A|\n)[^\n]*\Z", "\njoin()", text)
    read(text, tools, set())


def model_of(url: str) -> str:
    """The name under which the server serves its one model."""
    models = httpx.get(f"{url}/models", timeout=10).raise_for_status().json()["data"]
    return str(models[0]["id"])
