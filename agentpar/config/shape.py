"""Holds a file against the fields it may have: unknown, misspelled, renamed, not built yet.

Pure. It looks at keys, not at values; what it returns has the keys that the models read.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any

from agentpar.config.fields import OPTIONLESS, AgentFile, Section, ToolEntry, holds_list, section_in
from agentpar.config.source import Loc, Mark, Node


@dataclass(frozen=True, slots=True, order=True)
class Remark:
    """Something to say about a place in a file."""

    mark: Mark
    text: str

    def __str__(self) -> str:
        return f"{self.mark}: {self.text}"


def dotted(loc: Loc) -> str:
    """``tools[1].web_search.url``."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in loc)
    return text.removeprefix(".")


@dataclass(slots=True)
class Shape:
    """One file being held against its sections; collects ``problems`` and ``notes``."""

    problems: list[Remark] = field(default_factory=list)
    notes: list[Remark] = field(default_factory=list)

    def fitted(self, node: Node, section: type[Section] = AgentFile, loc: Loc = ()) -> Node:
        """``node`` with the keys of ``section``: renamed where known by another word, and
        without those that are a problem."""
        if section is ToolEntry:
            node = _entry(node)
        if not isinstance(node.value, dict):
            return node
        entries: dict[str, Node] = {}
        for key, child in node.value.items():
            name = self._name(key, child, section, loc)
            if name is None:
                continue
            if name in entries:
                self._problem(child, (*loc, key), f"{name} is given already, by another word")
                continue
            entries[name] = self._inner(child, section, (*loc, name))
        if section is ToolEntry and len(node.value) != 1:
            text = "a tool is a mapping with one key, such as web_search; put '- ' before each"
            self.problems.append(Remark(node.mark, f"{dotted(loc)}: {text}"))
        return replace(node, value=entries)

    def _name(self, key: str, child: Node, section: type[Section], loc: Loc) -> str | None:
        """The field that ``key`` means; None, with a problem told, where it means none."""
        here = (*loc, key)
        if key in section.model_fields:
            return key
        if key in section.also:
            name = section.also[key]
            told = f"{dotted(here)}: read as {name}; write {name}"
            self.notes.append(Remark(child.place, told))
            return name
        if key in section.later:
            self._problem(child, here, f"not available in agentpar {_release()} yet")
        elif key in section.refused:
            self._problem(child, here, section.refused[key])
        else:
            self._problem(child, here, f"unknown field, {_instead(key, section)}")
        return None

    def _inner(self, child: Node, section: type[Section], loc: Loc) -> Node:
        annotation = section.model_fields[str(loc[-1])].annotation
        inner = section_in(annotation)
        if inner is None:
            return child
        if (
            child.value is None
            and not holds_list(annotation)
            and not any(f.is_required() for f in inner.model_fields.values())
        ):
            return replace(child, value={})  # "defaults:" with nothing below it
        if not holds_list(annotation):
            return self.fitted(child, inner, loc)
        if not isinstance(child.value, list):
            return child
        items = [self.fitted(item, inner, (*loc, i)) for i, item in enumerate(child.value)]
        return replace(child, value=items)

    def _problem(self, child: Node, loc: Loc, text: str) -> None:
        self.problems.append(Remark(child.place, f"{dotted(loc)}: {text}"))


def _release() -> str:
    """``0.1`` of ``0.1.3``."""
    return ".".join(version("agentpar").split(".")[:2])


def _entry(node: Node) -> Node:
    """``- calc`` as ``- calc: {}``, and any other name alone as a package's tool."""
    if not isinstance(node.value, str):
        return node
    if node.value in OPTIONLESS:
        return Node({node.value: Node({}, node.mark, node.mark)}, node.mark)
    return Node({"package": replace(node, key=node.mark)}, node.mark)


def _instead(key: str, section: type[Section]) -> str:
    """What to write instead: the nearest field here, then the nearest anywhere, then all."""
    here = {**{name: name for name in section.model_fields}, **section.also}
    near = difflib.get_close_matches(key, here, n=1, cutoff=0.7)
    sections = list(_sections(AgentFile))
    anywhere = {word: path + name for path, s in sections for word, name in s.also.items()}
    anywhere |= {name: path + name for path, s in reversed(sections) for name in s.model_fields}
    if key in anywhere:
        return f"did you mean {anywhere[key]}?"
    if near:
        return f"did you mean {here[near[0]]}?"
    if near := difflib.get_close_matches(key, anywhere, n=1, cutoff=0.75):
        return f"did you mean {anywhere[near[0]]}?"
    fields = ", ".join(section.model_fields)
    return f"known here: {fields}" if fields else "there is nothing to set here"


def _sections(section: type[Section], path: str = "") -> Iterator[tuple[str, type[Section]]]:
    yield path, section
    for name, info in section.model_fields.items():
        annotation: Any = info.annotation
        if (inner := section_in(annotation)) is not None:
            listed = "[]" if holds_list(annotation) else ""
            yield from _sections(inner, f"{path}{name}{listed}.")
