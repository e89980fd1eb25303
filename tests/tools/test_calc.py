"""`calc`: Python's arithmetic on what it knows, a clear refusal of all else."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from agentpar.errors import UsageError
from agentpar.tools.calc import calc, evaluate

NAMES = ("a", "b", "c")


def expressions() -> st.SearchStrategy[str]:
    """Random expressions over small numbers and three names."""
    leaves = st.one_of(
        st.integers(0, 50).map(str),
        st.floats(0, 50, allow_nan=False).map(lambda x: repr(round(x, 3))),
        st.sampled_from(NAMES),
    )

    def extend(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        operators = st.sampled_from("+ - * / // % < <= > >= == != and or".split())
        return st.one_of(
            st.tuples(inner, operators, inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
            inner.map(lambda x: f"-{x}"),
            inner.map(lambda x: f"(not {x})"),
            st.tuples(inner, st.sampled_from(["0", "1", "2", "3"])).map(
                lambda t: f"({t[0]} ** {t[1]})"
            ),
            st.tuples(inner, inner, inner).map(lambda t: f"({t[0]} < {t[1]} <= {t[2]})"),
            st.tuples(inner, inner, inner).map(lambda t: f"({t[0]} if {t[1]} else {t[2]})"),
            st.tuples(inner, inner).map(lambda t: f"min({t[0]}, {t[1]})"),
            st.tuples(inner, inner).map(lambda t: f"max([{t[0]}, {t[1]}])"),
            st.tuples(inner, inner).map(lambda t: f"sum([{t[0]}, {t[1]}])"),
            inner.map(lambda x: f"abs({x})"),
            inner.map(lambda x: f"round({x}, 2)"),
            inner.map(lambda x: f"sqrt(abs({x}))"),
        )

    return st.recursive(leaves, extend, max_leaves=8)


@given(expressions(), st.tuples(*[st.integers(-1000, 1000)] * 3))
def test_it_agrees_with_python(expression: str, numbers: tuple[int, int, int]) -> None:
    """Value and type are Python's own, on random expressions."""
    assume(len(expression) <= 500)
    values = dict(zip(NAMES, numbers, strict=True))
    try:
        expected = eval(  # the oracle; its text is made here
            expression,
            {
                "sqrt": math.sqrt,
                "__builtins__": {f.__name__: f for f in (min, max, sum, abs, round)},
            },
            values,
        )
    except (ZeroDivisionError, OverflowError):
        with pytest.raises(UsageError):
            evaluate(expression, values)
        return
    assume(not isinstance(expected, complex) and abs(expected) < 1e290)
    got = evaluate(expression, values)
    assert got == expected
    assert type(got) is type(expected)


@given(st.text(max_size=60))
def test_any_text_gives_a_value_or_a_usage_error(text: str) -> None:
    """Nothing else comes out, whatever the model writes."""
    try:
        result = evaluate(text, {"a": 1, "b": "x"})
    except UsageError:
        return
    assert isinstance(result, int | float | str | bool)


@pytest.mark.parametrize(
    ("expression", "values", "expected"),
    [
        ("a - b", {"a": "19,116,201", "b": 116201}, 19_000_000),
        ("a + 1", {"a": " -1 234.5 "}, -1233.5),
        ("a / b", {"a": "1\u202f000", "b": "8"}, 125.0),
        ("'Chile' if a > b else 'Peru'", {"a": 19, "b": "33,000"}, "Peru"),
        ("a == 'Santiago'", {"a": "Santiago"}, True),
        ("a < b", {"a": "Lima", "b": "Quito"}, True),
        ("max(a, b, c)", {"a": 1, "b": "2.5", "c": 2}, 2.5),
        ("a × 2 ÷ 4 − 1", {"a": 6}, 2.0),
        ("'a × b'", {}, "a × b"),
        ("round(a / b, 1)", {"a": 2, "b": 3}, 0.7),
        ("0 < a < 10 and not b", {"a": 5, "b": 0}, True),
        ("2 ** 10 % 1000 // 5", {}, 4),
    ],
)
def test_values_as_pages_write_them(expression: str, values, expected) -> None:
    """Thousands separators, typographic signs, names as results."""
    assert evaluate(expression, values) == expected


@pytest.mark.parametrize(
    ("expression", "values", "message"),
    [
        ("x + 1", {"a": 1, "b": 2}, r"unknown name 'x' \(known: a, b\)"),
        ("a / b", {"a": 1, "b": 0}, "division by zero"),
        ("a + 1", {"a": None}, "value a is missing"),
        ("a + 1", {"a": "Santiago"}, "a is the text 'Santiago', where a number is needed"),
        ("a > b", {"a": "Lima", "b": 3}, "cannot be put in order"),
        ("19,116 - 4", {}, "without thousands separators"),
        ("a ^ 2", {"a": 1}, r"write \*\* for a power"),
        ("$3.value - 1", {}, r"a=\$1\.value"),
        ("a.value", {"a": 1}, r"a=\$3\.value"),
        ("a[0]", {"a": "x"}, "not known here"),
        ("a = 3", {}, "no expression"),
        ("", {}, "no expression"),
        ("pow(2, 3)", {}, r"unknown function 'pow' \(known: min, max"),
        ("sqrt(-1)", {}, "negative"),
        ("(-8) ** 0.5", {}, "not a real number"),
        ("min()", {}, "needs a value"),
        ("sqrt(1, 2)", {}, "one value"),
        ("[1, 2]", {}, "no single value"),
        ("1e999", {}, "too large"),
        ("abs('1e999')", {}, "too large"),
        ("max(a, 1)", {"a": "1e999"}, "too large"),
        ("argmax({[1]: 2})", {}, "a list cannot be a name"),
        ("{'a': 1} < {'a': 2}", {}, "cannot be put in order"),
        ("10 ** 200 * 10 ** 200", {}, "digits"),
    ],
)
def test_errors_say_what_is_wrong(expression: str, values, message: str) -> None:
    """The joiner reads these, and so may the next plan."""
    with pytest.raises(UsageError, match=message):
        evaluate(expression, values)


@pytest.mark.parametrize(
    "expression",
    [
        "9**9**9",
        "9**9**9**9**9",
        "2**(2**(2**(2**(2**2))))",
        "(10**299)*(10**299)*(10**299)",
        "1.5**1e308",
        "0.5**-1e9",
        "(" * 250 + "1" + ")" * 249,
        "-" * 499 + "1",
        "not " * 120 + "1",
        "1" * 499,
        "+".join("1" * 260),
        "round(1, -10**200)",
        "'" + "x" * 600 + "'",
    ],
)
def test_what_would_take_long_is_refused_at_once(expression: str) -> None:
    """Caps come before the work."""
    started = time.process_time()
    with pytest.raises(UsageError):
        evaluate(expression, {})
    assert time.process_time() - started < 2.0


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('true')",
        "().__class__.__bases__[0].__subclasses__()",
        "open('/etc/passwd')",
        "[x for x in [1]]",
        "(lambda: 1)()",
        "f'{a}'",
        "(a := 3)",
        "{'a': 1}",
        "{1}",
        "b'x'",
        "1j",
        "...",
        "None",
        "max(*[1, 2])",
        "round(number=1)",
        "a in [1]",
        "a is 1",
        "'x' * 100",
        "'%s' % a",
        "~a",
        "a << 900",
        "a @ a",
        "print",
        "await a",
        "(yield)",
    ],
)
def test_nothing_but_the_few_rules(expression: str) -> None:
    """No attribute, no call of anything else, no text arithmetic."""
    with pytest.raises(UsageError, match=r"^calc: "):
        evaluate(expression, {"a": 1})


async def test_the_tool_takes_named_values() -> None:
    """As a plan calls it: validated, filled, called."""
    args = calc.validate({"expression": "'Chile' if a > b else 'Peru'", "a": 19.1, "b": "34"})
    assert await calc.call(**args) == "Peru"
    with pytest.raises(UsageError, match="value b is missing"):
        await calc.call(**calc.validate({"expression": "a + b", "a": 1}))
    with pytest.raises(UsageError, match="expression"):
        calc.validate({"a": 1})
    assert list(calc.parameters["properties"]) == ["expression", *"abcdef"]


def test_the_name_with_the_largest_value_is_named() -> None:
    """``argmax`` and ``argmin`` answer "which", where ``max`` only answers "how much"."""
    values = {"a": 10991, "b": "1,972,550", "c": 48845.0}
    assert evaluate("argmax({'Jamaica': a, 'Mexico': b, 'Slovakia': c})", values) == "Mexico"
    assert evaluate("argmin({'Jamaica': a, 'Mexico': b})", values) == "Jamaica"
    assert evaluate("argmax({'A': 2, 'B': 2})", {}) == "A and B"


@pytest.mark.parametrize("wrong", ["argmax(a, b)", "argmax({})", "argmax({'A': 'x'})", "{'A': 1}"])
def test_argmax_of_no_names_is_refused(wrong: str) -> None:
    """The message shows how it is written."""
    with pytest.raises(UsageError, match="calc:"):
        evaluate(wrong, {"a": 1, "b": 2})
