"""YAML 1.2 text to values that know where they stand in the file.

Reads the small, safe part of YAML that a configuration needs: mappings with text keys,
lists, plain values, anchors within bounds. Tags, second documents, duplicate keys and
whatever grows without bound are refused. It must never know which keys there are.

Built on ruamel.yaml's events, not on its constructed values: an event carries its position,
and a bound checked per event stops a bomb before it has grown.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentpar.errors import ConfigError

MAX_BYTES = 1_000_000
MAX_DEPTH = 32
MAX_NODES = 20_000
"""Values in one file, those that aliases repeat included."""

Step = str | int
Loc = tuple[Step, ...]


@dataclass(frozen=True, slots=True, order=True)
class Mark:
    """A place in a file; line and column count from 1."""

    file: str
    line: int = 1
    column: int = 1

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True)
class Node:
    """A value and where it stands: ``mark`` its own place, ``key`` that of its key, if any.

    ``value`` is a dict or a list of nodes, or a plain value. ``written`` is a plain value as
    the file has it, before ``${…}`` is filled in, so that a message can show it.
    """

    value: Any
    mark: Mark
    key: Mark | None = None
    written: Any = None

    @property
    def place(self) -> Mark:
        """Where the reader looks for this entry: at its key, or at the value itself."""
        return self.key or self.mark

    def plain(self) -> Any:
        """The value without positions."""
        match self.value:
            case dict():
                return {key: child.plain() for key, child in self.value.items()}
            case list():
                return [child.plain() for child in self.value]
            case _:
                return self.value

    def find(self, loc: Sequence[Step]) -> Node:
        """The node at ``loc``, or the nearest one above it that exists."""
        node = self
        for step in loc:
            match node.value:
                case dict() if step in node.value:
                    node = node.value[step]
                case list() if isinstance(step, int) and step < len(node.value):
                    node = node.value[step]
                case _:
                    return node
        return node


def read_text(path: Path, name: str) -> str:
    """The text of a small UTF-8 file. ``name`` is what messages call it.

    Raises `ConfigError` where there is none, or it is too large or not UTF-8.
    """
    start = Mark(name)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{start}: there is no such file") from None
    except IsADirectoryError:
        raise ConfigError(f"{start}: this is a folder, where a file is needed") from None
    except OSError as error:
        raise ConfigError(f"{start}: cannot be read: {error.strerror or error}") from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{start}: the file is larger than {MAX_BYTES:,} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8", "replace")
        at = _mark_at(name, before, len(before))
        raise ConfigError(f"{at}: byte {data[error.start]:#04x} is not UTF-8") from None


def read_yaml(text: str, name: str) -> Node:
    """The one document in ``text``. ``name`` is what positions call the file.

    Raises `ConfigError` for anything that is not the safe part of YAML 1.2.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError
    from ruamel.yaml.reader import ReaderError

    try:
        return _Builder(name).build(YAML(typ="safe", pure=True).parse(text))
    except ReaderError as error:
        at = _mark_at(name, text, error.position)
        raise ConfigError(f"{at}: a control character cannot stand here") from None
    except MarkedYAMLError as error:
        place, problem = _in_plain_words(error)
        at = Mark(name) if place is None else Mark(name, place.line + 1, place.column + 1)
        raise ConfigError(f"{at}: not YAML: {problem}") from None
    except YAMLError as error:
        raise ConfigError(f"{Mark(name)}: not YAML: {str(error).splitlines()[0]}") from None


def _in_plain_words(error: Any) -> tuple[Any, str]:
    """Where the mistake stands that the parser met, and what it is, without the parser's terms.

    What is opened and not closed is found at the end of the file, and told where it was opened.
    """
    context, problem = str(error.context or ""), str(error.problem or "cannot be read")
    problem = problem.split("\n")[0]
    place, opened = error.problem_mark or error.context_mark, error.context_mark
    if "'\\t'" in problem:
        return place, "a tab: YAML is indented with spaces"
    if "scanning a" in context and problem == "found unexpected end of stream":
        return opened, "this quote is never closed"
    if "parsing a flow" in context and (found := re.match(r"expected ',' or '(.)'", problem)):
        start = "{" if found[1] == "}" else "["
        return place, f"',' or '{found[1]}' is missing ('{start}' stands in line {opened.line + 1})"
    if problem == "could not find expected ':'":
        return opened, "a field without ':'"
    if problem == "mapping values are not allowed here":
        return (
            place,
            "':' cannot stand here: a text with ': ' needs quotes, fields of one level "
            + ("need one indentation"),
        )
    if problem.startswith("expected <block end>"):
        if re.search("'(<block mapping start>|<block sequence start>|-|[?])'$", problem):
            return place, "this line is indented unlike those it belongs to"
        return place, "something follows after the end of a value: does the text need quotes?"
    if found := re.match(r"found character (.+) that cannot start any token", problem):
        return place, f"a text that begins with {found[1]} needs quotes"
    return place, problem


def _mark_at(name: str, text: str, position: int) -> Mark:
    before = text[:position]
    return Mark(name, before.count("\n") + 1, position - (before.rfind("\n") + 1) + 1)


@dataclass(slots=True)
class _Builder:
    """One document being built; ``anchors`` hold finished nodes and how many each contains."""

    name: str
    anchors: dict[str, tuple[Node, int, int]] = field(default_factory=dict)
    nodes: int = 0

    def build(self, events: Iterator[Any]) -> Node:
        from ruamel.yaml.events import DocumentStartEvent, StreamEndEvent

        root: Node | None = None
        for event in events:
            if isinstance(event, DocumentStartEvent):
                if root is not None:
                    raise self._refused(event, "a second document; one file holds one agent")
                if event.version not in (None, (1, 2)):
                    raise self._refused(event, "the file is read as YAML 1.2; drop the directive")
                root, _ = self._node(next(events), events, 1)
            elif isinstance(event, StreamEndEvent):
                break
        if root is None:
            raise ConfigError(f"{Mark(self.name)}: the file is empty")
        return root

    def _node(self, event: Any, events: Iterator[Any], depth: int) -> tuple[Node, int]:
        """The node that begins with ``event``, and how many levels it has."""
        from ruamel.yaml.events import AliasEvent, MappingStartEvent, ScalarEvent

        if isinstance(event, AliasEvent):
            return self._alias(event, depth)
        if event.tag is not None:
            raise self._refused(event, f"tags such as {str(event.tag)!r} are not read")
        if depth > MAX_DEPTH:
            raise self._refused(event, f"nested deeper than {MAX_DEPTH} levels")
        before = self.nodes
        self._count(event, 1)
        if isinstance(event, ScalarEvent):
            text = self._text(event)
            value = text if event.style else self._resolved(event)
            node, levels = Node(value, self._mark(event), written=text), 1
        elif isinstance(event, MappingStartEvent):
            node, levels = self._mapping(event, events, depth)
        else:
            node, levels = self._list(event, events, depth)
        if event.anchor:
            self.anchors[event.anchor] = (node, levels, self.nodes - before)
        return node, levels

    def _mapping(self, start: Any, events: Iterator[Any], depth: int) -> tuple[Node, int]:
        from ruamel.yaml.events import MappingEndEvent, ScalarEvent

        entries: dict[str, Node] = {}
        levels = 0
        while not isinstance(event := next(events), MappingEndEvent):
            if not isinstance(event, ScalarEvent):
                raise self._refused(event, "a key must be a plain name")
            key = self._text(event)
            if key in entries:
                line = entries[key].place.line
                raise self._refused(event, f"{key!r} stands here twice (first in line {line})")
            if key == "<<" and not event.style:
                raise self._refused(event, "YAML 1.2 has no merge key '<<'; write the fields out")
            child, below = self._node(next(events), events, depth + 1)
            at = self._mark(event)
            # A value that is left out has no place of its own; its event stands further down.
            mark = at if child.written == "" and child.value is None else child.mark
            entries[key] = Node(child.value, mark, at, child.written)
            levels = max(levels, below)
        return Node(entries, self._mark(start)), levels + 1

    def _list(self, start: Any, events: Iterator[Any], depth: int) -> tuple[Node, int]:
        from ruamel.yaml.events import SequenceEndEvent

        items: list[Node] = []
        levels = 0
        while not isinstance(event := next(events), SequenceEndEvent):
            item, below = self._node(event, events, depth + 1)
            items.append(item)
            levels = max(levels, below)
        return Node(items, self._mark(start)), levels + 1

    def _alias(self, event: Any, depth: int) -> tuple[Node, int]:
        found = self.anchors.get(event.anchor)
        if found is None:
            raise self._refused(
                event, f"'*{event.anchor}' has no finished anchor '&{event.anchor}' before it"
            )
        node, levels, size = found
        if depth + levels - 1 > MAX_DEPTH:
            raise self._refused(event, f"nested deeper than {MAX_DEPTH} levels")
        self._count(event, size)
        return node, levels

    def _count(self, event: Any, more: int) -> None:
        self.nodes += more
        if self.nodes > MAX_NODES:
            raise self._refused(event, f"more than {MAX_NODES:,} values, aliases included")

    def _text(self, event: Any) -> str:
        """The text of a scalar, with two escapes that make one character together joined."""
        try:
            return str(event.value).encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            raise self._refused(
                event, "half of a pair of \\u escapes, which is no character"
            ) from None

    def _resolved(self, event: Any) -> Any:
        try:
            return resolve_plain(event.value)
        except ValueError:
            raise self._refused(event, "a number with too many digits") from None

    def _mark(self, event: Any) -> Mark:
        return Mark(self.name, event.start_mark.line + 1, event.start_mark.column + 1)

    def _refused(self, event: Any, why: str) -> ConfigError:
        return ConfigError(f"{self._mark(event)}: {why}")


_INTEGER = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), math.inf),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), -math.inf),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan),
}


def resolve_plain(text: str) -> Any:
    """What an unquoted ``text`` stands for: the core schema of YAML 1.2, section 10.3.2.

    So ``yes``, ``1_000`` and ``2001-01-01`` are texts, and ``017`` is seventeen.
    """
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if re.fullmatch(r"0o[0-7]+|0x[0-9a-fA-F]+", text):
        return int(text, 0)
    return text
