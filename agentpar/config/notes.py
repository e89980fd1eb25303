"""What a file says that is no mistake, and that hardly anyone means: a pattern that matches no
tool, a rule that never decides, a journal somewhere else.

Pure. It must never open what the file names.
"""

from __future__ import annotations

import fnmatch
import os.path
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from agentpar.config.fields import AgentFile, PermissionRule, PolicyFile
from agentpar.config.shape import Remark, dotted
from agentpar.config.source import Loc, Node
from agentpar.permissions import Permissions, Rule
from agentpar.tools.base import Tool


def unmatched(
    fields: AgentFile, root: Node, known: Mapping[str, Tool], *, more: bool
) -> Iterator[Remark]:
    """Patterns of policies and permissions that speak of none of the ``known`` tools: slips of
    the pen, or, where ``more`` come when the agent runs, meant for an MCP server's."""
    sections: dict[str, Sequence[PolicyFile | PermissionRule]] = {
        "policies": fields.policies,
        "permissions": fields.permissions,
    }
    for section, entries in sections.items():
        for index, entry in enumerate(entries):
            loc: Loc = (section, index, "tools")
            node = root.find(loc)
            alone = isinstance(entry.tools, str) or not isinstance(node.value, list)
            patterns = [entry.tools] if isinstance(entry.tools, str) else entry.tools
            for place, pattern in enumerate(patterns):
                if fnmatch.filter(known, pattern):
                    continue
                text = (
                    f"{dotted(loc)}: no tool is named like {pattern!r}; there is {_listed(known)}"
                )
                if more:
                    text += ", and what an MCP server has, which is known when it runs"
                yield Remark(node.mark if alone else node.value[place].mark, text)


def idle_rules(
    rules: Sequence[Rule], root: Node, known: Mapping[str, Tool], *, more: bool
) -> Iterator[Remark]:
    """Rules that decide no call, because rules before them do.

    Where ``more`` tools come when the agent runs, only those of which that is certain whatever
    the tools are.
    """
    permissions = Permissions.of(known, rules)
    for index, rule in enumerate(rules):
        named = [name for name in known if rule.names(name)]
        if not named and not more:
            continue  # it is told that there is no such tool
        before: set[int] = set()
        for name in named:
            before |= permissions.deciding(name, like=rule)
        if more:
            before |= _covering(rule, rules[:index]) or {index}
        if before and index not in before:
            first = [f"permissions[{i}] (line {_line(root, i)})" for i in sorted(before)]
            text = f"permissions[{index}]: decides nothing: for each of its calls " + (
                f"{' or '.join(first)} comes first"
            )
            yield Remark(root.find(("permissions", index)).mark, text)


def _covering(rule: Rule, earlier: Sequence[Rule]) -> set[int]:
    """The first rule for each pattern of ``rule`` that decides all that the pattern may match; none
    where one pattern has no such rule.

    An "allow" may leave a call of a tool that writes to later rules, so it is none.
    """
    found: set[int] = set()
    for pattern in rule.tools:
        covering = (
            number
            for number, before in enumerate(earlier)
            if before.action != "allow"
            and before.data in (None, "any", rule.data)
            and any(_includes(wide, pattern) for wide in before.tools)
        )
        if (number := next(covering, None)) is None:
            return set()
        found.add(number)
    return found


def _includes(wide: str, narrow: str) -> bool:
    """Whether each name that matches ``narrow`` is sure to match ``wide``."""
    wild = next((place for place, char in enumerate(narrow) if char in "*?["), None)
    if wide == narrow:
        return True
    if wild is None:
        return fnmatch.fnmatchcase(narrow, wide)
    start = wide.removesuffix("*")
    return wide.endswith("*") and not set("*?[") & set(start) and narrow[:wild].startswith(start)


def outside(url: str, path: str, root: Node, loc: tuple[str, str]) -> Iterator[Remark]:
    """A journal or a bank, at ``loc``, that is named from the folder of the file and does not lie
    in it.

    One that is named from the root of the file system is where somebody wanted it.
    """
    name = url.removeprefix("sqlite:///")
    leaves = Path(os.path.normpath(name)).parts[:1] == ("..",)
    if name != url and leaves:
        text = f"{loc[0]}: lies outside the folder of {path}, from which its name counts"
        yield Remark(root.find(loc).mark, text)


def _line(root: Node, index: int) -> int:
    return root.find(("permissions", index)).mark.line


def _listed(known: Iterable[str]) -> str:
    return ", ".join(sorted(known)) or "none"
