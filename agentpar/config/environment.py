"""``${V}`` in values: filled in after the YAML is read, so that a value can add no structure.

Pure: the environment comes in as a mapping. A message never shows what a variable holds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from agentpar.config.source import Loc, Node

_REFERENCE = re.compile(
    r"\$\$\{|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?:(?P<how>:[-?])(?P<text>[^{}]*))?\}|\$\{"
)
_SHELL = re.compile(r"\$[A-Z_][A-Z0-9_]*")
"""A reference as a shell has it, which hardly anyone means as a text."""

Problem = tuple[Loc, str]


def fill(node: Node, env: Mapping[str, str], loc: Loc = ()) -> tuple[Node, list[Problem]]:
    """``node`` with every reference filled in, and what could not be.

    ``${V}`` must be set; ``${V:-default}`` and ``${V:?message}`` act where ``V`` is unset or
    empty. ``$${`` stands for a literal ``${``.
    """
    problems: list[Problem] = []
    match node.value:
        case dict():
            entries = {}
            for key, child in node.value.items():
                entries[key], found = fill(child, env, (*loc, key))
                problems += found
            return replace(node, value=entries), problems
        case list():
            items = []
            for index, child in enumerate(node.value):
                item, found = fill(child, env, (*loc, index))
                items.append(item)
                problems += found
            return replace(node, value=items), problems
        case str() if "${" in node.value:
            text, messages = _filled(node.value, env)
            return replace(node, value=text), [(loc, message) for message in messages]
        case str() if _SHELL.fullmatch(node.value):
            name = node.value.removeprefix("$")
            problems.append((loc, f"'{node.value}' stands for itself: write ${{{name}}}"))
    return node, problems


def _filled(text: str, env: Mapping[str, str]) -> tuple[str, list[str]]:
    messages: list[str] = []

    def value(found: re.Match[str]) -> str:
        if found[0] == "$${":
            return "${"
        name, how = found["name"], found["how"]
        if name is None:
            messages.append(
                "'${' begins no reference: write ${NAME}, ${NAME:-default} or ${NAME:?message}, "
                "and $${ for the characters themselves"
            )
            return ""
        given = env.get(name)
        if given or (given is not None and how is None):
            return given
        match how:
            case ":-":
                return str(found["text"])
            case ":?":
                messages.append(f"{name} is not set: {found['text'] or 'set it'}")
            case _:
                messages.append(
                    f"{name} is not set: set it in the environment, or write ${{{name}:-default}}"
                )
        return ""

    return _REFERENCE.sub(value, text), messages
