"""What a tool may be called, so that a plan can write the name."""

from __future__ import annotations

import re

from agentpar.errors import UsageError


def plan_name(name: str) -> str:
    """A foreign tool's name as a plan can write it: ``tavily-search`` is ``tavily_search``."""
    return re.sub(r"\W|^(?=\d)", "_", name)


def checked_name(name: str) -> str:
    """``name``; `UsageError` where no plan could write it."""
    if not name.isidentifier():
        raise UsageError(
            f"tool name {name!r} is not an identifier (letters, digits and '_', no digit "
            f"first), so no plan can call it: rename it with tool(name=…)"
        )
    if name == "join":
        raise UsageError("a tool cannot be named 'join': that word ends every plan")
    return name
