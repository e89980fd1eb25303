"""`calc`: arithmetic, comparisons and choices on values, evaluated by our own few rules.

Nothing is handed to Python's ``eval``: the expression is parsed into a tree and each kind
of node is either known here or refused. Caps on length, depth, exponents and magnitude are
checked before the work they bound, so ``9**9**9`` is refused at once.
"""

from __future__ import annotations

import ast
import math
import operator
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from agentpar.errors import UsageError
from agentpar.tools.function import tool

Value = int | float | str | bool | None

MAX_CHARS = 500
MAX_DEPTH = 30
MAX_DIGITS = 300

_GROUPED = re.compile(r"[-+−]?\d{1,3}([,_\u00a0\u202f ]\d{3})+(\.\d+)?")
_SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "≤": "<=", "≥": ">="})
_HINTS: dict[type[ast.AST], str] = {
    ast.BitXor: "'^' is not known: write ** for a power",
    ast.Tuple: "a comma is not known here: write numbers without thousands separators",
    ast.Attribute: "'.' is not known here: give the value by name, a=$3.value",
    ast.Subscript: "'[…]' is not known here: give the value by name, a=$3.items[0]",
}


def evaluate(expression: str, values: Mapping[str, Value]) -> int | float | str | bool:
    """The value of ``expression``, in which the names of ``values`` may stand.

    It knows numbers, texts, ``+ - * / // % **``, comparisons (chained too), ``and``, ``or``,
    ``not``, ``x if … else y``, ``min max abs round sum sqrt``, and ``argmax argmin`` over
    names: ``argmax({'Chile': a, 'Peru': b})`` is the name with the largest value. A text
    that spells a number, thousands separators included, counts as that number.

    Raises `UsageError` that says what is wrong and what is known.
    """
    if "$" in expression:
        raise UsageError(
            "calc: a reference inside the expression is not read: "
            "write calc(expression='a - b', a=$1.value, b=$2.value)"
        )
    if len(expression) > MAX_CHARS:
        raise UsageError(f"calc: the expression is longer than {MAX_CHARS} characters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "1if a else 2" is odd, not our reader's concern
            tree = ast.parse(_outside_quotes(expression.strip()), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = getattr(error, "msg", "") or type(error).__name__
        raise UsageError(f"calc: {expression!r} is no expression: {reason}") from None
    try:
        result: Value | list[Any] | dict[Any, Any] = _Evaluation(values).of(tree.body)
    except ZeroDivisionError:
        raise UsageError(f"calc: division by zero in {expression!r}") from None
    except OverflowError:
        raise UsageError(f"calc: a number in {expression!r} is too large") from None
    if isinstance(result, list | dict | None):
        raise UsageError(f"calc: {expression!r} gives no single value")
    return result


def _outside_quotes(expression: str) -> str:
    """Typographic signs as ASCII ones, but not inside the quotes of a text."""
    parts = re.split(r"('[^']*'|\"[^\"]*\")", expression)
    return "".join(p if at % 2 else p.translate(_SIGNS) for at, p in enumerate(parts))


class _Evaluation:
    """One walk over a tree, with the values it may use."""

    def __init__(self, values: Mapping[str, Value]) -> None:
        self._values = values

    def of(self, node: ast.AST, depth: int = 0) -> Any:
        if depth > MAX_DEPTH:
            raise UsageError(f"calc: the expression is nested deeper than {MAX_DEPTH}")
        deeper = depth + 1
        match node:
            case ast.Constant(value=bool() | int() | float() | str() as value):
                return _bounded(value)
            case ast.Name(id=name):
                return self._named(name)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return not self.of(operand, deeper)
            case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
                number = _number(self.of(operand, deeper), operand)
                return -number if isinstance(sign, ast.USub) else number
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
                a = _number(self.of(left, deeper), left)
                b = _number(self.of(right, deeper), right)
                return _bounded(_BINARY[type(op)](a, b))
            case ast.BoolOp(op=op, values=parts):
                stop = isinstance(op, ast.Or)
                for part in parts[:-1]:
                    value = self.of(part, deeper)
                    if bool(value) == stop:
                        return value
                return self.of(parts[-1], deeper)
            case ast.Compare(left=left, ops=ops, comparators=others):
                return self._compared(left, ops, others, deeper)
            case ast.IfExp(test=test, body=body, orelse=orelse):
                return self.of(body if self.of(test, deeper) else orelse, deeper)
            case ast.List(elts=items):
                return [self.of(item, deeper) for item in items]
            case ast.Dict(keys=keys, values=items) if None not in keys:
                names = [self.of(key, deeper) for key in keys if key is not None]
                if any(isinstance(name, list | dict) for name in names):
                    raise UsageError("calc: a list cannot be a name: argmax({'A': a, 'B': b})")
                return dict(zip(names, (self.of(item, deeper) for item in items), strict=True))
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
                return self._called(name, [self.of(arg, deeper) for arg in args], args)
            case ast.Call(func=ast.Name(id=name)):
                raise UsageError(
                    f"calc: unknown function {name!r} (known: {', '.join(_FUNCTIONS)})"
                )
            case ast.BinOp(op=refused) | ast.UnaryOp(op=refused):
                raise UsageError(f"calc: {_hint(refused)}")
        raise UsageError(f"calc: {_hint(node)}")

    def _named(self, name: str) -> Any:
        if name not in self._values:
            known = ", ".join(self._values) or "none were given"
            raise UsageError(f"calc: unknown name {name!r} (known: {known})")
        value = self._values[name]
        if value is None:
            raise UsageError(f"calc: value {name} is missing (null, or not given)")
        return _bounded(_as_number(value))

    def _compared(
        self, left: ast.expr, ops: list[ast.cmpop], others: list[ast.expr], depth: int
    ) -> bool:
        before = self.of(left, depth)
        for op, other in zip(ops, others, strict=True):
            after = self.of(other, depth)
            if type(op) not in _COMPARISONS:
                raise UsageError(f"calc: {_hint(op)}")
            ordered = not isinstance(op, ast.Eq | ast.NotEq)
            if ordered and isinstance(before, str) != isinstance(after, str):
                raise UsageError(f"calc: {before!r} and {after!r} cannot be put in order")
            if ordered and not {list, dict}.isdisjoint((type(before), type(after))):
                raise UsageError("calc: lists and dicts cannot be put in order")
            if not _COMPARISONS[type(op)](before, after):
                return False
            before = after
        return True

    def _called(self, name: str, args: list[Any], nodes: list[ast.expr]) -> Any:
        if name in ("argmax", "argmin"):
            return _best(name, args)
        if len(args) == 1 and isinstance(args[0], list) and name in ("min", "max", "sum"):
            args = args[0]
        if name == "sum":
            return _bounded(sum(_number(arg) for arg in args))
        if not args:
            raise UsageError(f"calc: {name}() needs a value")
        if name in ("min", "max"):
            return (min if name == "min" else max)(_number(arg) for arg in args)
        number = _number(args[0], nodes[0])
        if name == "round":
            return _rounded(number, args[1:])
        if len(args) > 1:
            raise UsageError(f"calc: {name}() takes one value, got {len(args)}")
        if name == "abs":
            return abs(number)
        if number < 0:
            raise UsageError(f"calc: sqrt of {number!r}, which is negative")
        return math.sqrt(number)


def _best(name: str, args: list[Any]) -> Any:
    """The key whose value is largest (``argmax``) or smallest; several at a tie, by "and"."""
    match args:
        case [dict() as ranked] if ranked:
            numbers = {key: _number(value) for key, value in ranked.items()}
        case _:
            raise UsageError(f"calc: {name} takes names with values: {name}({{'A': a, 'B': b}})")
    best = (max if name == "argmax" else min)(numbers.values())
    tied = [key for key, number in numbers.items() if number == best]
    return tied[0] if len(tied) == 1 else " and ".join(map(str, tied))


def _as_number(value: Value) -> Value:
    """A text that spells a number as that number, anything else as it is."""
    if not isinstance(value, str):
        return value
    text = value.strip().translate(_SIGNS)
    if _GROUPED.fullmatch(text):
        text = re.sub(r"[,_\u00a0\u202f ]", "", text)
    if re.fullmatch(r"[-+]?\d{1,300}", text):
        return int(text)
    if re.fullmatch(r"[-+]?(\d{1,300}\.\d*|\.\d+|\d{1,300}\.?)([eE][-+]?\d{1,3})?", text):
        return float(text)
    return value


def _number(value: Any, node: ast.AST | None = None) -> int | float:
    value = _as_number(value) if isinstance(value, str) else value
    if isinstance(value, int | float):
        return _bounded(value)  # type: ignore[no-any-return]
    subject = f"{node.id} is" if isinstance(node, ast.Name) else "there is"
    shown = (
        f"a {type(value).__name__}"
        if isinstance(value, list | dict)
        else f"the text {value[:60]!r}"
    )
    raise UsageError(f"calc: {subject} {shown}, where a number is needed")


def _bounded(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**MAX_DIGITS:
        raise UsageError(f"calc: a number has more than {MAX_DIGITS} digits")
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError("calc: a number is too large or not a number")
    return value


def _power(base: int | float, exponent: int | float) -> int | float:
    # Judged by logarithm, before the power itself is worked out.
    if base and abs(exponent) * abs(math.log10(abs(base))) > MAX_DIGITS:
        raise UsageError(f"calc: {base!r} ** {exponent!r} has more than {MAX_DIGITS} digits")
    result: int | float | complex = base**exponent
    if isinstance(result, complex):
        raise UsageError(f"calc: {base!r} ** {exponent!r} is not a real number")
    return result


def _rounded(number: int | float, digits: list[Any]) -> int | float:
    match digits:
        case []:
            return round(number)
        case [int(places)] if -MAX_DIGITS <= places <= MAX_DIGITS:
            return round(number, places)
    raise UsageError("calc: round(x, n) takes a whole number of digits")


def _hint(node: ast.AST) -> str:
    name = type(node).__name__
    return _HINTS.get(
        type(node), f"{name} is not known: use numbers, names, + - * / // % **, comparisons"
    )


_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
}
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_FUNCTIONS = ("min", "max", "argmin", "argmax", "abs", "round", "sum", "sqrt")


@tool(pure=True, returns="the result: a number, true or false, or a text")
async def calc(
    expression: str,
    a: int | float | str | None = None,
    b: int | float | str | None = None,
    c: int | float | str | None = None,
    d: int | float | str | None = None,
    e: int | float | str | None = None,
    f: int | float | str | None = None,
) -> int | float | str | bool:
    """Arithmetic and comparison on earlier values, given by name.

    Args:
        expression: such as "a - b", "a + b + c" or "argmax({'Chile': a, 'Peru': b})"
        a: a value used in the expression, such as $1.value
        b: a second value
        c: a third value
        d: a fourth value
        e: a fifth value
        f: a sixth value
    """
    return evaluate(expression, {"a": a, "b": b, "c": c, "d": d, "e": e, "f": f})
