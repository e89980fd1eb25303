"""What an agent was when a run began, and what has become of it since. Pure.

A journal keeps a `Setup` with each run, which goes on by it in any later process. It must never
know how a tool is called, or where a run is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from agentpar.events import Event, RunResumed
from agentpar.executor.record import Terms
from agentpar.fingerprint import fingerprint
from agentpar.permissions import Flow, Permissions
from agentpar.policy import PLAIN, Limits, Policy
from agentpar.tools.base import Tool


@dataclass(frozen=True, slots=True)
class Signature:
    """A tool as a plan knows it; ``schema`` is a SHA-256 of what it takes and what it returns."""

    version: str
    schema: str


@dataclass(frozen=True, slots=True)
class Setup:
    """An agent at the time at which a run begins.

    ``terms`` are all that the machine decides by. ``model`` names the model, empty where nobody
    knows it; ``instructions`` is a SHA-256 of them. ``team`` is the number of one of several that
    work on a question (0: it is none); a run that is about all of them has how many they are and
    how one of their answers is taken: ``teams``.
    """

    terms: Terms
    tools: Mapping[str, Signature]
    model: str = ""
    instructions: str = ""
    team: int = 0
    teams: tuple[int, str] | None = None

    @classmethod
    def of(
        cls,
        terms: Terms,
        tools: Mapping[str, Tool],
        *,
        model: str = "",
        instructions: str = "",
        team: int = 0,
        teams: tuple[int, str] | None = None,
    ) -> Setup:
        """That of an agent with ``tools`` which works by ``terms``."""
        signatures = {
            name: Signature(tool.version, fingerprint([tool.parameters, tool.output]))
            for name, tool in tools.items()
        }
        return cls(terms, signatures, model, fingerprint(instructions), team, teams)

    def as_dict(self) -> dict[str, Any]:
        """JSON-like data; `from_dict` gives back an equal setup."""
        return {
            "terms": self.terms.as_dict(),
            "tools": {name: [one.version, one.schema] for name, one in self.tools.items()},
            "model": self.model,
            "instructions": self.instructions,
            **({"team": self.team} if self.team else {}),
            **({"teams": list(self.teams)} if self.teams else {}),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Setup:
        """What `as_dict` gave; raises `KeyError`, `TypeError` or `UsageError` where it did not."""
        tools = {name: Signature(*one) for name, one in data["tools"].items()}
        terms, words = Terms.from_dict(data["terms"]), (data["model"], data["instructions"])
        teams = tuple(data["teams"]) if "teams" in data else None
        return cls(terms, tools, *words, data.get("team", 0), teams)

    def terms_with(self, now: Setup, *, deadline: float | None = None) -> Terms:
        """By what a run that began with this setup goes on with the agent of ``now``.

        Its own limits and policies hold, but for a ``deadline`` that is given anew; for tools that
        are new the agent's. A tool that may not be called twice any more is not called twice.
        """
        own = self.terms
        limits = own.limits if deadline is None else replace(own.limits, deadline=deadline)
        policies = {**now.terms.policies, **own.policies}
        for name in self.tools.keys() & now.tools.keys():
            if _may_repeat(own, name) and not _may_repeat(now.terms, name):
                policies[name] = replace(policies[name], idempotent=False)
        return replace(own, limits=limits, policies=policies)

    def tool(self, tool: Tool) -> Tool:
        """``tool`` as it counts in a run that began with this setup: its calls keep the names that
        they had, and one that wrote or sent then, or does so now, is as little repeated."""
        begun = self.tools.get(tool.name)
        if begun is None:
            return tool
        flow = self.terms.permissions.flow(tool.name)
        effect = "write" if "write" in (flow.effect, tool.effect) else "read"
        return replace(tool, version=begun.version, effect=effect, sends=flow.sends or tool.sends)  # type: ignore[arg-type]


def resumption(then: Setup | None, now: Setup, history: Iterable[Event]) -> RunResumed | None:
    """The event by which a run that began ``then`` goes on ``now``; None where ``history`` says so
    already, or there is nothing to say."""
    last = RunResumed((), (then or now).terms.permissions)
    for event in history:
        if isinstance(event, RunResumed):
            last = replace(event, at=0.0)
    this = RunResumed(tuple(changes(then, now)), _stricter(then or now, now))
    return None if this == last else this


def changes(then: Setup | None, now: Setup) -> Iterator[str]:
    """What differs ``now``, in words, and what that means for a run that began ``then``; None
    where nobody knows how.

    A deadline is left out: it is often a question's own.
    """
    if then is None:
        yield "the journal has nothing of the agent that the run began with: today's holds"
        return
    for name in {**then.tools, **now.tools}:
        if name not in now.tools:
            yield f"tool {name!r} is gone: a call of it that has not ended fails"
        elif name not in then.tools:
            yield f"tool {name!r} is new"
        else:
            yield from _changes_of_tool(name, then, now)
    if then.model and now.model and then.model != now.model:
        yield f"the model is {now.model!r}, it was {then.model!r}"
    if then.instructions != now.instructions:
        yield "the instructions are others"
    if then.terms.permissions.rules != now.terms.permissions.rules:
        yield "the permissions are others: the stricter of both hold for what has not ended"
    for differs in _differing(then.terms.limits, now.terms.limits):
        if not differs.startswith("deadline "):
            yield f"{differs}, and the run keeps that"


def _changes_of_tool(name: str, then: Setup, now: Setup) -> Iterator[str]:
    old, new = then.tools[name], now.tools[name]
    if old.version != new.version:
        yield (
            f"tool {name!r} is of version {new.version!r}, it was of {old.version!r}: results "
            "that are there stand, calls that have not ended are made with today's"
        )
    if old.schema != new.schema:
        yield f"tool {name!r} takes or returns something else"
    flows = [setup.terms.permissions.flow(name) for setup in (then, now)]
    if flows[0] != flows[1]:
        yield f"tool {name!r} {_told(flows[1])}, it was one that {_told(flows[0])}: both count"
    policies = [setup.terms.policies.get(name, PLAIN) for setup in (then, now)]
    for differs in _differing(*policies):
        yield f"tool {name!r}: {differs}, and the run keeps that"


def _told(flow: Flow) -> str:
    return f"{flow} and is pure" if flow.pure else str(flow)


def _differing(old: Limits | Policy, new: Limits | Policy) -> Iterator[str]:
    for field in fields(old):
        was, value = getattr(old, field.name), getattr(new, field.name)
        if was != value:
            yield f"{field.name} is {value!r}, it was {was!r}"


def _may_repeat(terms: Terms, tool: str) -> bool:
    said = terms.policies.get(tool, PLAIN).idempotent
    return not terms.permissions.flow(tool).sink if said is None else said


def _stricter(then: Setup, now: Setup) -> Permissions:
    """Under which a call needs an approval, or is denied, where it would be under either."""
    old, new = then.terms.permissions, now.terms.permissions
    flows = {}
    for name in {**then.tools, **now.tools}:
        one, other = old.flow(name), new.flow(name)
        if name not in now.tools:
            other = one
        elif name not in then.tools:
            one = other
        write = "write" in (one.effect, other.effect)
        flow = Flow("write" if write else "read", one.sends or other.sends, one.pure and other.pure)
        if flow != Flow():
            flows[name] = flow
    return Permissions(old.rules, flows, None if old.rules == new.rules else new.rules)
