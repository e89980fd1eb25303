"""Permissions: which call may run, which has to be approved first, which never runs.

Pure. A verdict depends on the tool, the rules and the call's label, and on nothing else; who
gives an approval, and what a tool does, is the business of others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from itertools import product
from typing import Any, Literal, Self, get_args

from agentpar.errors import UsageError
from agentpar.fingerprint import fingerprint
from agentpar.labels import Label, Origin
from agentpar.plan import Task
from agentpar.tools.base import Effect, Tool, is_sink

Action = Literal["allow", "ask", "deny"]
Data = Literal["any", "trusted", "untrusted"]


@dataclass(frozen=True, slots=True)
class Rule:
    """What happens to calls of the tools whose names match ``tools``.

    ``tools`` is a pattern (``"send_*"``) or several; ``*``, ``?`` and ``[…]`` are those of
    file names. ``action``: "allow", "ask" for an approval, or "deny". ``data``: for which
    calls, by what has a part in them: "trusted", "untrusted" (a tool's result in the
    arguments, or a plan written after reading one), or "any". Left out it means "any", but for
    one case: an "allow" covers a *sink* (a tool that writes or sends) for trusted data only.

    Raises `UsageError` where a field cannot be meant.

    >>> Rule("send_*", "ask"), Rule(["log", "note"], "allow", data="any")
    """

    tools: str | Sequence[str]
    action: Action
    data: Data | None = None

    def __post_init__(self) -> None:
        given: Any = self.tools
        patterns = (given,) if isinstance(given, str) else given
        if (
            not isinstance(patterns, list | tuple)
            or not patterns
            or not all(isinstance(pattern, str) and pattern for pattern in patterns)
        ):
            raise UsageError(
                f"Rule: tools must be a pattern such as 'send_*', or a list of them, got {given!r}"
            )
        if self.action not in get_args(Action):
            raise UsageError(f"Rule: action must be allow, ask or deny, got {self.action!r}")
        if self.data is not None and self.data not in get_args(Data):
            raise UsageError(f"Rule: data must be any, trusted or untrusted, got {self.data!r}")
        object.__setattr__(self, "tools", tuple(patterns))  # equal rules compare equal

    def names(self, tool: str) -> bool:
        """Whether the rule speaks of this tool."""
        return any(fnmatchcase(tool, pattern) for pattern in self.tools)

    def __str__(self) -> str:
        data = f", data: {self.data}" if self.data else ""
        return f"{{tools: {', '.join(self.tools)}{data}, action: {self.action}}}"


@dataclass(frozen=True, slots=True)
class Flow:
    """What a tool does with information; see the fields of `Tool`."""

    effect: Effect = "read"
    sends: bool = False
    pure: bool = False

    @property
    def sink(self) -> bool:
        """See `agentpar.tools.base.is_sink`."""
        return is_sink(self.effect, self.sends)

    def __str__(self) -> str:
        does = ["changes things"] * (self.effect == "write") + ["sends data out"] * self.sends
        return " and ".join(does) or "only reads"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What happens to a call, and why in words."""

    action: Action
    because: str
    rule: int | None = field(default=None, compare=False)
    """The place, from 0, of the rule that decided; None where none did."""


# A verdict looks at a label only in these respects, so these stand for all labels.
_SOME = (Origin(0, ""),)
_EVERY_SORT = tuple(Label(data, plan) for data, plan in product(((), _SOME), repeat=2))


@dataclass(frozen=True, slots=True)
class Permissions:
    """The rules of an agent, and what its tools do with information.

    The first rule that covers a call decides. Where none does, a sink asks and everything else
    is allowed. No rule allows a sink that a plan added after its planner had read text from
    outside: such a call asks, or is denied. ``flows`` may leave out tools that only read.
    ``besides`` are the rules of another agent on the same run: the stricter verdict holds.
    """

    rules: tuple[Rule, ...] = ()
    flows: Mapping[str, Flow] = field(default_factory=dict)
    besides: tuple[Rule, ...] | None = None
    _open: dict[str, bool] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, tools: Mapping[str, Tool], rules: Sequence[Rule] = ()) -> Self:
        """What ``rules`` mean for an agent with ``tools``."""
        flows = {name: Flow(tool.effect, tool.sends, tool.pure) for name, tool in tools.items()}
        return cls(tuple(rules), {name: flow for name, flow in flows.items() if flow != Flow()})

    @property
    def pure(self) -> frozenset[str]:
        """The tools that bring nothing in from outside."""
        return frozenset(name for name, flow in self.flows.items() if flow.pure)

    def flow(self, tool: str) -> Flow:
        """What ``tool`` does with information; one that is not known only reads."""
        return self.flows.get(tool, Flow())

    def verdict(self, tool: str, label: Label) -> Verdict:
        """What happens to a call of ``tool`` with this label."""
        verdict = self._by(self.rules, tool, label)
        if self.besides is None:
            return verdict
        return max(verdict, self._by(self.besides, tool, label), key=_strictness)

    def _by(self, rules: Sequence[Rule], tool: str, label: Label) -> Verdict:
        sink = self.flow(tool).sink
        remarks = [f"{tool} {self.flow(tool)}"] if sink else []
        for number, rule in enumerate(rules, 1):
            if not rule.names(tool) or rule.data == ("trusted" if label.untrusted else "untrusted"):
                continue
            if rule.action == "allow" and sink and label.plan:
                remarks.append(
                    f"rule {number} ({rule}) cannot allow what was planned after reading text "
                    "from outside"
                )
            elif rule.action == "allow" and sink and label.data and rule.data is None:
                remarks.append(f"rule {number} ({rule}) allows it for trusted data only")
            else:
                return Verdict(rule.action, f"rule {number}: {rule}", number - 1)
        return Verdict("ask" if sink else "allow", "; ".join(remarks) or "it only reads")

    def deciding(self, tool: str, *, like: Rule) -> set[int]:
        """The places of the rules that decide the calls of ``tool`` that ``like`` speaks of."""
        labels = (
            label
            for label in _EVERY_SORT
            if like.data != ("trusted" if label.untrusted else "untrusted")
        )
        found = {self.verdict(tool, label).rule for label in labels}
        return {place for place in found if place is not None}

    def always_allows(self, tool: str) -> bool:
        """Whether every call of ``tool`` is allowed, so that nobody need know its label."""
        known = self._open.get(tool)
        if known is None:
            verdicts = (self.verdict(tool, label) for label in _EVERY_SORT)
            known = self._open[tool] = all(verdict.action == "allow" for verdict in verdicts)
        return known

    def as_data(self) -> dict[str, Any]:
        """As JSON-like data; `from_data` gives back equal permissions."""
        data = {
            "rules": _rules_as_data(self.rules),
            "tools": {name: asdict(flow) for name, flow in sorted(self.flows.items())},
        }
        return data if self.besides is None else {**data, "besides": _rules_as_data(self.besides)}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        """What `as_data` gave; raises `KeyError`, `TypeError` or `UsageError` where it did not."""
        flows = {name: Flow(**flow) for name, flow in data["tools"].items()}
        besides = _rules_of(data["besides"]) if "besides" in data else None
        return cls(_rules_of(data["rules"]), flows, besides)


def _strictness(verdict: Verdict) -> int:
    return ("allow", "ask", "deny").index(verdict.action)


def _rules_as_data(rules: Sequence[Rule]) -> list[dict[str, Any]]:
    return [{**asdict(rule), "tools": list(rule.tools)} for rule in rules]


def _rules_of(data: Sequence[Mapping[str, Any]]) -> tuple[Rule, ...]:
    return tuple(Rule(**rule) for rule in data)


def bound_to(run_id: str, task: Task, args: Mapping[str, Any], label: Label) -> str:
    """What an approval of this very call is bound to: a SHA-256 over run, task, tool, arguments
    and label. A call that differs in any of them needs an approval of its own."""
    return fingerprint([run_id, task.id, task.tool, args, label.as_data()])
