"""The plan language: each form it reads, each fault it names, in any pieces, in linear time."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentpar.plan import EACH, Pick, Ref
from agentpar.planner.parser import (
    MAX_DEPTH,
    MAX_LENGTH,
    BadLine,
    Call,
    Cancel,
    Item,
    Join,
    PlanParser,
    Replace,
    format_call,
)


def parse(text: str, size: int | None = None) -> list[Item]:
    """The items of ``text``, fed whole or in pieces of ``size``."""
    parser = PlanParser()
    pieces = [text[i : i + size] for i in range(0, len(text), size)] if size else [text]
    items = [item for piece in pieces for item in parser.feed(piece)]
    return items + parser.close()


def call(text: str) -> Call:
    """The one call in ``text``."""
    [item] = parse(text)
    assert isinstance(item, Call), item
    return item


def bad(text: str) -> BadLine:
    """The one bad line in ``text``."""
    [item] = parse(text)
    assert isinstance(item, BadLine), item
    return item


def value(written: str) -> Any:
    """What the parser makes of one argument."""
    return call(f"1. f({written})").args[0]


PLAN = """\
Thought: I need (both) populations.
1. search(query="population of \\"Chile\\" for $5.00")
2) fetch($1.results[0].url, limit=3,)   # the first hit
  - 4: compare(items=[$1, ${2}, -1.5e3], how={"by": "si
ze", 'of': {"x": [null, True]}},)
7. suche(städte=['北京', 'Zürich\\u00e9'], wo="a\\\\")
join()
8. never(1)
"""
ITEMS = [
    Call(
        1,
        "search",
        kwargs={"query": 'population of "Chile" for $5.00'},
        thought="I need (both) populations.",
        line='1. search(query="population of \\"Chile\\" for $5.00")',
    ),
    Call(
        2,
        "fetch",
        (Ref(1, ("results", 0, "url")),),
        {"limit": 3},
        line="2) fetch($1.results[0].url, limit=3,)",
    ),
    Call(
        4,
        "compare",
        kwargs={
            "items": [Ref(1), Ref(2), -1500.0],
            "how": {"by": "si\nze", "of": {"x": [None, True]}},
        },
        line=PLAN[PLAN.index("- 4") : PLAN.index("\n7. ")],
    ),
    Call(
        7,
        "suche",
        kwargs={"städte": ["北京", "Zürich\u00e9"], "wo": "a\\"},
        line=PLAN[PLAN.index("7. ") : PLAN.index("\njoin")],
    ),
    Join(),
]
FAULTY = """\
Here is the plan:
```
1. search(query="never closed
2. search(query='it\\'s fine', n=[1, 2)
3. search(hello world) and more
4. f(x=1, y=(2)
   , "late")
5. ok(1) 6. ok(2) trailing words
1. nested([[1], "a\\
7. ok("x"
8. ok("y\\\\")
```
join(1, 2)"""


def test_a_whole_plan_is_read() -> None:
    """Thoughts, prefixes, gaps, comments, references, nesting, newlines, unicode."""
    assert parse(PLAN) == ITEMS


def test_a_faulty_plan_loses_no_line() -> None:
    """Each bad line is named with its number, and each good line beside it is read."""
    found = [
        (type(item).__name__, getattr(item, "id", None), getattr(item, "text", ""))
        for item in parse(FAULTY)
    ]
    assert found == [
        ("BadLine", None, "Here is the plan:"),
        ("BadLine", 1, '1. search(query="never closed'),
        ("BadLine", 2, "2. search(query='it\\'s fine', n=[1, 2)"),
        ("BadLine", 3, "3. search(hello world) and more"),
        ("BadLine", 4, '4. f(x=1, y=(2)\n   , "late")'),
        ("Call", 5, ""),
        ("Call", 6, ""),
        ("BadLine", None, "trailing words"),
        ("BadLine", 1, '1. nested([[1], "a\\'),
        ("BadLine", 7, '7. ok("x"'),
        ("Call", 8, ""),
        ("Join", None, ""),
    ]


@pytest.mark.parametrize(
    "text", [PLAN, FAULTY, PLAN.replace("\n", "\r\n")], ids=["ok", "bad", "crlf"]
)
def test_every_cut_gives_the_same_items(text: str) -> None:
    """Cut once anywhere, or into pieces of any one size: nothing changes."""
    whole = parse(text)
    for cut in range(len(text) + 1):
        parser = PlanParser()
        assert parser.feed(text[:cut]) + parser.feed(text[cut:]) + parser.close() == whole, cut
    for size in range(1, 40):
        assert parse(text, size) == whole, size


WORDS = '1|2. f(|x=|join(|join|Thought: a|```|é北|"a"|null|$2.a[0]|<END_OF_PLAN>|3. g($1)\n'
PIECES = st.lists(st.sampled_from([*"()[]{}\"'\\\n\r ,=:#$.-", *WORDS.split("|")]), max_size=40)


@given(PIECES, st.integers(1, 7))
@settings(max_examples=120, deadline=None)
def test_no_text_breaks_the_parser_and_no_chunking_shows(pieces: list[str], size: int) -> None:
    """Whatever is written, in whatever pieces: no exception, the same items."""
    text = "".join(pieces)
    whole = parse(text)
    assert parse(text, size) == whole
    parser = PlanParser()
    assert [i for piece in pieces for i in parser.feed(piece)] + parser.close() == whole


@given(PIECES)
@settings(max_examples=100, deadline=None)
def test_a_plan_after_any_garbage_is_still_read(pieces: list[str]) -> None:
    """No bad line swallows the next: what begins a line like a call is read as one."""
    garbage = "".join(pieces)
    if any(isinstance(item, Join) for item in parse(garbage + "\n")):
        return
    items = parse(garbage + '\n41. tool(a="b")\njoin()')
    assert items[-1] == Join()
    assert [(i.id, i.kwargs) for i in items if isinstance(i, Call)][-1] == (41, {"a": "b"})


def test_a_call_is_out_at_its_closing_bracket() -> None:
    """A task can start while the planner still writes; the newline need not have come."""
    parser = PlanParser()
    text = '1. f(x="a)", y=[1])'
    for char in text[:-1]:
        assert parser.feed(char) == []
    assert parser.feed(text[-1]) == [Call(1, "f", (), {"x": "a)", "y": [1]}, line=text)]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("3", 3),
        ("-0", 0),
        ("+7", 7),
        ("2.50", 2.5),
        (".5", 0.5),
        ("1e3", 1000.0),
        ("-1.5E-2", -0.015),
        ("true", True),
        ("False", False),
        ("null", None),
        ("None", None),
        ("''", ""),
        ('"$1 costs $5.00, ${2}"', "$1 costs $5.00, ${2}"),
        ("'say \"hi\"'", 'say "hi"'),
        (r'"a\"b\\c\/d\ne\tf"', 'a"b\\c/d\ne\tf'),
        (r"'it\'s \x41\u00e9\U0001F600 \ud83d\ude00'", "it's Aé😀 😀"),
        (r'"half \ud83d"', "half \ufffd"),
        (r'"\d+ C:\apps"', r"\d+ C:\apps"),
        ('"a\\\nb"', "ab"),
        ('"two\nlines"', "two\nlines"),
        ("[]", []),
        ("[1, [2,], ]", [1, [2]]),
        ("{}", {}),
        ('{"a": {"b": [$1]}, }', {"a": {"b": [Ref(1)]}}),
        ("$12", Ref(12)),
        ("${12}", Ref(12)),
        ("${1.a}[2]", Ref(1, ("a", 2))),
        ("$1.items[0].id", Ref(1, ("items", 0, "id"))),
        ("$1[-1].0", Ref(1, (-1, 0))),
        ("$1[\"a b\"]['c)d'].größe", Ref(1, ("a b", "c)d", "größe"))),
        (" \n  1 \n ", 1),
    ],
)
def test_a_literal_has_its_type(written: str, meant: Any) -> None:
    """Numbers stay numbers, text stays text, references are references."""
    found = value(written)
    assert found == meant
    assert type(found) is type(meant)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("hello", "text needs quotes"),
        ("1, 2 3", r"expected ',' or '\)', not '3\)'"),
        ("$1 + 2", "expected ',' or"),
        ("$1x", "expected a value"),
        ("$", "expected a value"),
        ("007", "expected a value"),
        ("1e999", "too large"),
        ("1" * 5000, "too long"),
        ("NaN", "expected a value"),
        ("a=1, 2", "without a name stands after argument 'a'"),
        ("a=1, a=2", "'a' is given twice"),
        ('{"a": 1, "a": 2}', "'a' is given twice"),
        ("{a: 1}", "expected a value"),
        ("{1: 2}", "a dict key must be a string"),
        ('{"a" 1}', "expected ':' after key 'a'"),
        ("(1, 2)", "expected a value"),
        ("[1, 2", r"expected ',' or '\]'"),
        (",", "expected a value"),
        ("1,,2", "expected a value"),
        ("trueish", "text needs quotes"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), f"deeper than {MAX_DEPTH}"),
    ],
)
def test_what_is_no_value_is_named(written: str, message: str) -> None:
    """A bad argument makes a bad line that says what was wrong and keeps the number."""
    line = bad(f"5. f({written})")
    assert line.id == 5
    assert line.text == f"5. f({written})"
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(line.message)


def test_nesting_up_to_the_limit_is_read() -> None:
    """The limit itself is allowed."""
    assert call("1. f(" + "[" * MAX_DEPTH + "]" * MAX_DEPTH + ")").args


@pytest.mark.parametrize("prefix", ["1. ", "1) ", "1: ", "1.", "  1. ", "- 1. ", "* 1) ", "\t1 . "])
def test_a_number_may_be_written_as_people_do(prefix: str) -> None:
    """Bullets, blanks, brackets and colons around the number change nothing."""
    assert (found := call(f"{prefix}f(2)")).id == 1
    assert found.args == (2,)


@pytest.mark.parametrize(
    "end", ["join()", "3. join()", "join", "3) join", " join( )", "join($1)", "<END_OF_PLAN>"]
)
def test_the_plan_ends_once(end: str) -> None:
    """However the end is written, and whatever follows it."""
    assert parse(f"1. f()\n{end}\n<END_OF_PLAN>\n4. g()\njoin()\n")[1:] == [Join()]


def test_a_plan_may_stop_without_an_end() -> None:
    """A stream that breaks off gives its complete calls, and the broken one as a bad line."""
    items = parse('1. f(1)\n2. f("x')
    assert items[0] == Call(1, "f", (1,), line="1. f(1)")
    assert items[1] == BadLine('2. f("x', 'a string in " is never closed', 2)
    assert parse("1. f(1)\n2. f(1,")[1].message == "the call is never closed"  # type: ignore[union-attr]


@pytest.mark.parametrize("text", ["", "\n\n", "```python\n```", "# a comment", " \r\n\t"])
def test_what_means_nothing_is_no_item(text: str) -> None:
    """Blank lines, fences and comments are no faults."""
    assert parse(text) == []


@pytest.mark.parametrize("after", ["", " # why", ".", ";", ",", "  ", ". # x)"])
def test_a_comment_may_follow_a_call(after: str) -> None:
    """So may the full stop that some models write."""
    assert parse(f"1. f(){after}\n2. f(){after}") == [
        Call(1, "f", line="1. f()"),
        Call(2, "f", line="2. f()"),
    ]


def test_thoughts_belong_to_the_next_call() -> None:
    """Several are kept together; those of a bad line go with it."""
    items = parse("Thought: a\nThought: b\n1. f()\n2. f()\nThought: c\n3. f(x y)\n4. f()")
    assert [i.thought if isinstance(i, Call) else i.id for i in items] == ["a\nb", "", 3, ""]


def test_a_line_in_a_string_that_looks_like_a_call_ends_the_string() -> None:
    """The rule that keeps a forgotten quote from swallowing the plan; escaped, the text is safe."""
    items = parse('1. f("a\n2. g(1)\n3. f("b\\n4. g(1)")\n')
    assert [(type(i).__name__, i.id) for i in items if not isinstance(i, Join)] == [
        ("BadLine", 1),
        ("Call", 2),
        ("Call", 3),
    ]


def test_a_list_in_a_string_stays_text() -> None:
    """Only a number, a name and a bracket at once look like a call: a numbered list does not."""
    text = "1. Paris (France)\n2. see f(x)\n- 3 join us"
    assert call(f'7. f("{text}")').args == (text,)


def test_a_line_without_end_is_cut_and_the_next_is_read() -> None:
    """Memory is bounded, whatever the pieces; the line is named, not lost."""
    for line in (
        '1. f("' + "x" * MAX_LENGTH + '")',
        "word " * MAX_LENGTH,
        "1. f(" + "(" * MAX_LENGTH,
    ):
        text = f"{line}\n2. f()"
        items = parse(text)
        assert [type(item) for item in items] == [BadLine, Call]
        assert "longer than" in items[0].message  # type: ignore[union-attr]
        assert items[0].id == (1 if line.startswith("1.") else None)  # type: ignore[union-attr]
        assert len(items[0].text) < 300  # type: ignore[union-attr]
        assert parse(text, 997) == items


def test_a_call_of_the_greatest_length_is_read() -> None:
    """The limit itself is allowed, and one character more is not."""
    text = '1. f("' + "x" * (MAX_LENGTH - len('1. f("")')) + '")'
    assert len(text) == MAX_LENGTH
    assert isinstance(parse(text)[0], Call)
    assert isinstance(parse(text.replace("x", "xx", 1))[0], BadLine)


# -- writing -----------------------------------------------------------------------------

NAMES = st.from_regex(r"[^\W\d][\w.\-]{0,8}", fullmatch=True).filter(lambda name: name != "join")
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
STEPS = st.integers(-99, 99) | TEXTS
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS
    | st.builds(Ref, st.integers(0, 999), st.lists(STEPS, max_size=4).map(tuple)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@given(st.integers(0, 10**9 - 1), NAMES, st.dictionaries(NAMES, VALUES, max_size=4))
@settings(max_examples=120, deadline=None)
def test_a_written_call_is_read_as_it_was(id: int, tool: str, args: dict[str, Any]) -> None:
    """format_call and the parser are each other's inverse, on one line."""
    line = f"{id}. {format_call(tool, args)}"
    assert "\n" not in line
    assert parse(line) == [Call(id, tool, (), args, line=line)]


def test_what_no_plan_can_hold_is_refused() -> None:
    """An object or a NaN has no written form."""
    for unfit in (object(), float("nan"), {1, 2}, b"x"):
        with pytest.raises(ValueError, match=r"no value of a plan|not JSON compliant"):
            format_call("f", {"x": unfit})


# -- time --------------------------------------------------------------------------------


def plan_of(lines: int) -> str:
    """A plan of ``lines`` ordinary lines."""
    return "\n".join(f'{i}. search(query="population of city {i}")' for i in range(1, lines + 1))


@pytest.mark.parametrize("size", [1, 3, 64, None])
def test_time_is_linear(size: int | None) -> None:
    """Ten times the lines, at most some twenty times the CPU time, in any pieces."""

    def seconds(lines: int) -> float:
        text = plan_of(lines)
        best = float("inf")
        for _ in range(3):
            begin = time.process_time()
            assert len(parse(text, size)) == lines
            best = min(best, time.process_time() - begin)
        return best

    assert seconds(3000) < 20 * seconds(300)


@pytest.mark.parametrize(
    "hostile",
    [
        "(" * 60_000,
        "1. f(" + "(" * 60_000,
        '1. f("' + "\n1. (" * 15_000,
        '1. f("' + "\\" * 60_000,
        " " * 60_000 + "x",
        "1. f(1)" + " " * 60_000 + "x",
        "1. f(" + " " * 60_000 + "x)",
        "1. f(a" + " " * 60_000 + ")",
        "thought" + " " * 60_000,
        "1. f(" + "[1," * 20_000 + ")",
        "1. f($1" + ".a" * 30_000 + ")",
        "-" + " " * 60_000 + "(",
    ],
)
def test_hostile_text_costs_no_more(hostile: str) -> None:
    """No pattern backtracks its way to quadratic time."""
    begin = time.process_time()
    parse(f"{hostile}\n2. f()")
    assert time.process_time() - begin < 0.5


# -- faults of the reference implementation (LLMCompiler), each reproduced there ----------


def test_gaps_in_the_numbers_are_fine() -> None:
    """Reference fault: a gap in the ids raises KeyError."""
    assert [i.id for i in parse("2. f()\n40. f($2)\n7. f()") if isinstance(i, Call)] == [2, 40, 7]


def test_a_keyword_argument_is_its_value() -> None:
    """Reference fault: `search(query="x")` passes the literal text `query="x"`."""
    assert call('1. search(query="x")').kwargs == {"query": "x"}


def test_two_references_are_two_arguments() -> None:
    """Reference fault: `add($1, $2)` becomes one string."""
    assert call("3. add($1, $2)").args == (Ref(1), Ref(2))


def test_numbers_stay_numbers() -> None:
    """Reference fault: numbers become text."""
    assert call("1. f(2, x=1.5)") == Call(1, "f", (2,), {"x": 1.5}, line="1. f(2, x=1.5)")


def test_references_inside_dicts_are_references() -> None:
    """Reference fault: dict arguments are not substituted."""
    assert call('2. f(x={"a": [$1.b]})').kwargs == {"x": {"a": [Ref(1, ("b",))]}}


def test_money_is_text() -> None:
    """Reference fault: "costing $1" is read as a reference."""
    assert call('1. f("flats costing $1")').args == ("flats costing $1",)


def test_a_newline_in_an_argument_drops_nothing() -> None:
    """Reference fault: a newline in an argument drops the task."""
    assert call('1. f("a\nb", \n 2)').args == ("a\nb", 2)


def test_one_large_piece_loses_nothing() -> None:
    """Reference fault: a large stream chunk loses tasks and the join."""
    parser = PlanParser()
    assert [type(item) for item in parser.feed("1. f()\n2. f()\njoin()\n")] == [Call, Call, Join]


def test_brackets_in_a_text_end_nothing() -> None:
    """Reference fault: `Finish(Mission: Impossible (film))` is cut at the first bracket."""
    assert call('1. f("Mission: Impossible (film)")').args == ("Mission: Impossible (film)",)
    assert "Impossible (film))" in bad("1. f(Mission: Impossible (film))").text


def test_ten_thousand_lines_take_a_fraction_of_a_second() -> None:
    """Reference fault: parsing is quadratic. (The gate of 0.3 s is measured in bench/parser.py.)"""
    begin = time.process_time()
    assert len(parse(plan_of(10_000), 1)) == 10_000
    assert time.process_time() - begin < 1.0


# -- over lists, and the first good ones --------------------------------------------------


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("$1[*]", Ref(1, (EACH,))),
        ("$1.items[*].a[0]", Ref(1, ("items", EACH, "a", 0))),
        ("${1[*].url}", Ref(1, (EACH, "url"))),
        ("$1['*']", Ref(1, ("*",))),
        ("any($1, $2.x)", Pick((Ref(1), Ref(2, ("x",))))),
        ("any( ${1} , \n $2[0], )", Pick((Ref(1), Ref(2, (0,))))),
        ("any($1)", Pick((Ref(1),))),
        ("some(2, $1, $2, $3)", Pick((Ref(1), Ref(2), Ref(3)), 2)),
        ("[any($1, $2), {'a': some(1, $3)}]", [Pick((Ref(1), Ref(2))), {"a": Pick((Ref(3),), 1)}]),
    ],
)
def test_each_any_and_some_are_values(written: str, meant: Any) -> None:
    """They stand wherever a value may; what is written again reads the same."""
    assert value(written) == meant
    assert value(format_call("f", {"x": meant})[2:-1].partition("=")[2]) == meant


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("any()", "any() takes references, as in any($1, $2), not '))'"),
        ("any(1, 2)", "any() takes references"),
        ("any(any($1, $2), $3)", "any() takes references"),
        ("any($1 $2)", "expected ',' or ')', not '$2))'"),
        ("some($1, $2)", "some() begins with how many to take, as in some(2, $1, $2, $3)"),
        ("some(2.0, $1, $2)", "some() begins with how many to take"),
        ("some(0, $1)", "some(0, …) cannot take 0 of 1 references"),
        ("some(3, $1, $2)", "some(3, …) cannot take 3 of 2 references"),
        ("some(2)", "some(2, …) cannot take 2 of 0 references"),
        ("any", "expected a value, not 'any)'"),
        ("all($1)", "expected a value, not 'all($1))'"),
        ("$1[**]", "expected ',' or ')'"),
    ],
)
def test_what_is_wrong_with_a_pick_is_said(written: str, message: str) -> None:
    """And the next line is read as ever."""
    found, after = parse(f"1. f({written})\n2. g()")
    assert isinstance(found, BadLine)
    assert message in found.message
    assert after == Call(2, "g", line="2. g()")


def test_arguments_may_be_named_any_and_some() -> None:
    """A name is followed by its equals sign."""
    assert call("1. f(any=1, some=any($1))").kwargs == {"any": 1, "some": Pick((Ref(1),))}
    assert call("1. any($1)").tool == "any"


def test_a_pick_deep_in_brackets_costs_no_stack() -> None:
    """Thousands of opened picks are a bad line, not a crash."""
    assert "takes references" in bad(f"1. f({'any(' * 9000}$1{')' * 9000})").message


def test_a_pick_over_lines_is_one_value() -> None:
    """A line that begins with any( is no call: it has no number."""
    assert call("1. f(\nany(\n$1,\n$2))").args == (Pick((Ref(1), Ref(2))),)


# -- lines that change a plan --------------------------------------------------------------


@pytest.mark.parametrize("size", [None, 1, 2, 5])
def test_a_later_plan_may_cancel_and_replace(size: int | None) -> None:
    """In lines without a number, and in any pieces; thoughts belong to the new call."""
    text = (
        "cancel($3)\nThought: the other page\n - replace( ${4} , fetch($1[1].url, n=any($1, $2)))"
        "  # better\n5. f()\nreplace($2, now())\njoin()"
    )
    assert parse(text, size) == [
        Cancel(3, "cancel($3)"),
        Replace(
            Call(
                4,
                "fetch",
                (Ref(1, (1, "url")),),
                {"n": Pick((Ref(1), Ref(2)))},
                "the other page",
                "- replace( ${4} , fetch($1[1].url, n=any($1, $2)))",
            )
        ),
        Call(5, "f", line="5. f()"),
        Replace(Call(2, "now", line="replace($2, now())")),
        Join(),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("cancel()", "cancel() names a whole call, as in cancel($3)"),
        ("cancel(3)", "cancel() names a whole call"),
        ("cancel($3.x)", "cancel() names a whole call"),
        ("cancel($3, $4)", "cancel() names a whole call"),
        ("replace($3)", "replace() names a whole call, as in replace($3, search("),
        ("replace($3, 4)", "replace() takes a call, as in replace($3, search("),
        ("replace($3, f(1), g())", "replace() takes one call"),
        ("replace($3, f(x))", "expected a value, not 'x))'; text needs quotes"),
    ],
)
def test_a_change_that_cannot_be_read_is_a_bad_line(line: str, message: str) -> None:
    """It takes no line with it."""
    found, after = parse(f"{line}\n7. f()")
    assert isinstance(found, BadLine)
    assert found.message.startswith(message)
    assert after == Call(7, "f", line="7. f()")


def test_tools_may_be_named_cancel_and_replace() -> None:
    """A call has a number. In an open call such a line changes nothing either."""
    assert call("1. cancel($3)") == Call(1, "cancel", (Ref(3),), line="1. cancel($3)")
    assert call('1. f("a\nreplace($3, x)")').args == ("a\nreplace($3, x)",)


def test_a_path_of_thousands_of_digits_is_a_name() -> None:
    """Python reads no integer of so many digits; a field may be called that."""
    assert value(f"$1.{'9' * 5_000}") == Ref(1, ("9" * 5_000,))
    assert value("$1.12") == Ref(1, (12,))
