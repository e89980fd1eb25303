"""What pydantic found wrong with a value, said in the words of the file.

A value is shown as it is written there, never as the environment filled it in, and a
credential never at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from agentpar.config.fields import AgentFile, is_secret
from agentpar.config.shape import Remark, dotted
from agentpar.config.source import Node
from agentpar.plaintext import cut

_DEMANDS = {
    "missing": "is needed",
    "string_type": "must be a text",
    "list_type": "must be a list",
    "dict_type": "must hold names and values",
    "model_type": "must hold fields",
    "model_attributes_type": "must hold fields",
    "greater_than_equal": "must be at least {ge:g}",
    "greater_than": "must be more than {gt:g}",
    "less_than_equal": "must be at most {le:g}",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "too_short": "must not be empty",
    "literal_error": "must be {expected}",
    "value_error": "{error}",
}


def complaints(errors: Iterable[Mapping[str, Any]], root: Node) -> list[Remark]:
    """One remark per error of a pydantic ``ValidationError``, at the value it is about."""
    remarks = []
    for error in errors:
        loc = tuple(error["loc"])
        node = root.find(loc)
        text = _DEMANDS.get(error["type"], error["msg"]).format(**error.get("ctx", {}))
        if error["type"] == "missing":
            remarks.append(Remark(node.place, f"{dotted(loc)}: {text}"))
            continue
        hint = _as_list(node, loc) if error["type"] == "list_type" else ""
        remarks.append(Remark(node.mark, f"{dotted(loc)}: {text}{_shown(node, loc)}{hint}"))
    return remarks


def _as_list(node: Node, loc: tuple[str | int, ...]) -> str:
    """How to write as a list what stands there; nothing where that is not clear."""
    if loc == ("policies",) and isinstance(node.value, dict):
        return ": each entry is such as - {tools: web_*, retries: 3}"
    if isinstance(node.value, dict):
        return ": put '- ' before each entry"
    if not isinstance(node.value, str) or is_secret(AgentFile, loc):
        return ""
    if node.written.startswith("-"):
        return ": put a space after each '-'"
    words = ", ".join(node.written.replace(",", " ").split())
    return f": write [{words}]" if words and re.fullmatch(r"[\w ,.@/-]{1,80}", words) else ""


def _shown(node: Node, loc: tuple[str | int, ...]) -> str:
    if is_secret(AgentFile, loc):
        return ""
    match node.value:
        case dict():
            return ", not a mapping"
        case list():
            return ", not a list"
        case None:
            return "; nothing is given"
    text = repr(node.written) if isinstance(node.value, str) else str(node.written)
    return f", not {cut(text, 80)}"
