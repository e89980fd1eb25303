"""Holds a call's references against what the tools say they return, before anything runs.

``$1.titel`` where ``$1`` has a ``title``, a list where a text is wanted: what cannot go well is
found while the plan is written and not when its inputs were paid for. Only what can *never* fit
is refused: a tool without an output schema, an open object and a union of which one part fits
let everything through, and so do the conversions that pydantic makes (``"3"`` for a number).
A list is taken to have items. This file knows schemas and no values.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from agentpar.errors import PlanError
from agentpar.plan import Pick, Ref, Star, Step, Task, each
from agentpar.tools.base import Tool
from agentpar.tools.schema import WITH_ARTICLE, Schema, Unknown, resolve

_MAX_DEPTH = 8  # of schemas in schemas: what is deeper is not looked at


def promises(
    args: Mapping[str, Any], tasks: Mapping[int, Task], tools: Mapping[str, Tool]
) -> dict[str, Any]:
    """``args`` with what is known in the place of each reference, for `problem` to judge.

    ``tasks`` are the earlier ones. Raises `PlanError` for a path that leads nowhere.
    """
    return {name: _promised(name, value, tasks, tools) for name, value in args.items()}


def _promised(name: str, value: Any, tasks: Mapping[int, Task], tools: Mapping[str, Tool]) -> Any:
    match value:
        case Ref():
            return _promise(name, value, tasks, tools) or value
        case Pick(refs, k):
            members = [_promise(name, ref, tasks, tools) for ref in refs]
            return _PickPromise(str(value), tuple(filter(None, members)), k is not None)
        case Mapping():
            return {key: _promised(name, item, tasks, tools) for key, item in value.items()}
        case list() | tuple():
            return [_promised(name, item, tasks, tools) for item in value]
    return value


def _promise(
    name: str, ref: Ref, tasks: Mapping[int, Task], tools: Mapping[str, Tool]
) -> _Promise | None:
    """What ``ref`` will bring to the argument ``name``; None where that may be anything."""
    task = tasks.get(ref.task)
    tool = tools.get(task.tool) if task else None
    if task is None or tool is None:
        return None
    output, root = tool.output, tool.output or {}
    if output is not None and tool.policy.on_error == "keep":
        output = {"anyOf": [output, _KEPT]}
    if task.needs and each(task.args):  # its value is the list of what its calls return
        output = {"type": "array", "items": output or {}}
    if output is None:
        return None
    whole = _Promise(name, Ref(ref.task), tool.name, output, root)
    return whole.followed(ref.path)


_KEPT: Schema = {
    "type": "object",
    "properties": {"error": {"type": "string"}},
    "required": ["error"],
    "additionalProperties": False,
}
"""What a failure is to those who refer to it, where ``on_error`` keeps it (`value_of`)."""


@dataclass(frozen=True, slots=True)
class _Promise(Unknown):
    """The value of ``ref``, a result of ``maker``, for ``argument``: it will fit ``schema``."""

    argument: str
    ref: Ref
    maker: str
    schema: Schema | bool
    root: Schema

    def __str__(self) -> str:
        return f"{self.ref} ({self.maker}) is {_described(self.schema, self.root)}"

    def followed(self, path: tuple[Step, ...]) -> _Promise:
        """The promise for the part at ``path``; `PlanError` where there can be none."""
        promise = self
        for at, step in enumerate(path):
            part = promise.part(step)
            if part is None:
                wrong = Ref(self.ref.task, path)
                raise PlanError(f"{wrong}: {promise}{promise._instead(step, path[at + 1 :])}")
            promise = part
        return promise

    def part(self, step: Step) -> _Promise | None:
        """The promise for one step further, or None."""
        schemas = list(_parts(self.schema, step, self.root))
        if not schemas:
            return None
        schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
        ref = Ref(self.ref.task, (*self.ref.path, step))
        return _Promise(self.argument, ref, self.maker, schema, self.root)

    def problem(self, schema: Schema | bool, root: Schema) -> str | None:
        if self._fits(schema, root):
            return None
        wanted = _described(schema, root)
        near = next((part for part in self._near() if part._fits(schema, root)), None)
        return f"must be {wanted}, but {self}{_did_you_mean(near)}"

    def _fits(self, schema: Schema | bool, root: Schema) -> bool:
        return fits(self.schema, self.root, schema, root)

    def _near(self) -> Iterator[_Promise]:
        """The parts that one who wrote only this may have meant, likely ones first."""
        name = self.argument
        paths: list[tuple[Step, ...]] = [(name,), ("value",), (0,), (0, name)]
        for path in paths:
            promise: _Promise | None = self
            for step in path:
                promise = promise and promise.part(step)
            if promise is not None and promise.schema is not True:  # declared, not just possible
                yield promise

    def _instead(self, step: Step, rest: tuple[Step, ...]) -> str:
        """What may have been meant by a ``step`` that does not exist, and ``rest`` behind it."""
        item = self.part(0)
        if isinstance(step, Star) or (isinstance(step, int) and item is None):
            paths: list[tuple[Step, ...]] = [rest]
        elif isinstance(step, int):
            paths = []
        else:
            near = difflib.get_close_matches(step, _fields(self.schema, self.root), n=1)
            paths = [(name, *rest) for name in near]
            if item is not None:
                inside = difflib.get_close_matches(step, _fields(item.schema, self.root), n=1)
                paths = [(0, name, *rest) for name in inside]
            elif not _fields(self.schema, self.root):
                paths = [()]
        for path in paths:
            try:
                return _did_you_mean(self.followed(path))
            except PlanError:
                continue
        return ""


@dataclass(frozen=True, slots=True)
class _PickPromise(Unknown):
    """What `Pick` brings: one of ``members``, or a list of some; each one has to fit."""

    written: str
    members: tuple[_Promise, ...]
    is_list: bool

    def problem(self, schema: Schema | bool, root: Schema) -> str | None:
        if self.is_list and not fits({"type": "array"}, {}, schema, root):
            return f"must be {_described(schema, root)}, but {self.written} is a list"
        for member in self.members:
            if not self.is_list:
                if found := member.problem(schema, root):
                    return f"{found} (in {self.written})"
            elif not fits({"type": "array", "items": member.schema}, member.root, schema, root):
                wanted = _described(schema, root)
                return f"must be {wanted}, but in {self.written}, {member}"
        return None


def _did_you_mean(promise: _Promise | None) -> str:
    return f"; did you mean {promise.ref}?" if promise else ""


# -- schemas against steps and schemas ---------------------------------------------------


_UNIONS = frozenset(("anyOf", "oneOf", "allOf", "$ref"))


def _options(schema: Schema | bool, root: Schema) -> list[Schema]:
    """The schemas of which a value fits one: the branches of unions, one type each."""
    if isinstance(schema, bool):
        return [{}] if schema else []
    if _UNIONS.isdisjoint(schema) and not isinstance(schema.get("type"), list | tuple):
        return [schema]
    found: list[Schema] = []
    pending: list[tuple[Schema | bool, int]] = [(schema, 0)]
    for option, depth in pending:  # grows while it is read
        if isinstance(option, bool) or depth > _MAX_DEPTH:
            found.append({})
            continue
        option = resolve(option, root)
        branches = option.get("anyOf") or option.get("oneOf")
        if "allOf" in option or "$ref" in option:
            found.append({})  # too much to say
        elif branches:
            pending += [(branch, depth + 1) for branch in branches]
        elif isinstance(names := option.get("type"), list | tuple):
            pending += [({**option, "type": name}, depth + 1) for name in names]
        else:
            found.append(option)
    return found


def _parts(schema: Schema | bool, step: Step, root: Schema) -> Iterator[Schema | bool]:
    """The schemas of what ``step`` may lead to; none where no value has such a part."""
    for option in _options(schema, root):
        match option.get("type"), step:
            case None, _:
                yield True
            case "object", str(name):
                yield from _field(option, name)
            case "array", int(index):
                yield from _item(option, index)
            case "array", Star():
                yield option.get("items", True) if "prefixItems" not in option else True


def _field(schema: Schema, name: str) -> Iterator[Schema | bool]:
    properties = schema.get("properties", {})
    if name in properties:
        yield properties[name]
    elif "patternProperties" in schema:
        yield True
    elif (others := schema.get("additionalProperties", True)) is not False:
        yield others


def _item(schema: Schema, index: int) -> Iterator[Schema | bool]:
    first, most = schema.get("prefixItems", ()), schema.get("maxItems")
    if most is not None and not -most <= index < most:
        return
    if 0 <= index < len(first):
        yield first[index]
    elif first:
        yield True
    elif (items := schema.get("items", True)) is not False:
        yield items


def _fields(schema: Schema | bool, root: Schema) -> list[str]:
    return [name for option in _options(schema, root) for name in option.get("properties", ())]


_SCALARS = frozenset(("string", "integer", "number", "boolean"))


def fits(
    given: Schema | bool, given_root: Schema, wanted: Schema | bool, root: Schema, depth: int = 0
) -> bool:
    """Whether some value that ``given`` describes may be taken where ``wanted`` is asked for."""
    have, want = list(_options(given, given_root)), list(_options(wanted, root))
    if any(_fits_one(one, other) for one in have for other in want):
        return True
    # Lists fit where their items do. All branches at once, so that the work does not multiply.
    given_items = [one.get("items", True) for one in have if one.get("type") == "array"]
    wanted_items = [one.get("items", True) for one in want if one.get("type") == "array"]
    if not given_items or not wanted_items:
        return False
    items = {"anyOf": given_items}, given_root, {"anyOf": wanted_items}, root
    return depth > _MAX_DEPTH or fits(*items, depth + 1)


def _fits_one(have: Schema, want: Schema) -> bool:
    """Whether the types fit, those of a list's items aside."""
    for given in _types(have):
        for wanted in _types(want):
            if given is None or wanted is None:
                return True
            if given == wanted == "array":
                if "prefixItems" in have or "prefixItems" in want:
                    return True
            elif given == wanted or _converts(given, wanted, want):
                return True
    return False


def _converts(given: str, wanted: str, schema: Schema) -> bool:
    """Whether a tool's ``validate`` may make ``wanted`` of a value of the type ``given``."""
    if given == "object":
        return wanted == "array" and "prefixItems" in schema  # a named tuple by its names
    if wanted == "string":
        return given in _SCALARS and "format" in schema  # a date from a number of seconds
    return given in _SCALARS and wanted in _SCALARS


def _types(schema: Schema) -> Iterator[str | None]:
    """The JSON types that a value may have; None where it may have any."""
    if isinstance(name := schema.get("type"), str):
        yield name
    elif "const" in schema or "enum" in schema:
        yield from dict.fromkeys(map(_type_of, schema.get("enum", [schema.get("const")])))
    else:
        yield None


def _type_of(value: Any) -> str | None:
    for kind, name in _NAMES.items():
        if isinstance(value, kind):
            return name
    return None


_NAMES: dict[type, str] = {
    bool: "boolean",
    str: "string",
    int: "integer",
    float: "number",
    type(None): "null",
    list: "array",
    dict: "object",
}
_MANY = {"string": "strings", "integer": "integers", "number": "numbers", "array": "lists"}


def _described(schema: Schema | bool, root: Schema) -> str:
    """What a value looks like: ``a list of {title, url, snippet}``."""
    texts = [_described_one(option, root) for option in _options(schema, root)]
    return " or ".join(dict.fromkeys(texts)) or "nothing"


def _described_one(schema: Schema, root: Schema) -> str:
    if values := schema.get("enum") or ([schema["const"]] if "const" in schema else []):
        return f"one of {', '.join(map(repr, values[:8]))}{', …' if len(values) > 8 else ''}"
    if fields := schema.get("properties"):
        names = ", ".join(list(fields)[:12]) + (", …" if len(fields) > 12 else "")
        return f"{{{names}}}"
    kind = schema.get("type")
    if kind == "array":
        items = list(_options(schema.get("items", True), root))
        if len(items) == 1 and (items[0].get("properties") or items[0].get("type") in _MANY):
            one = items[0]
            many = _described_one(one, root) if one.get("properties") else _MANY[one["type"]]
            return f"a list of {many}"
    return WITH_ARTICLE.get(str(kind), "a value")
