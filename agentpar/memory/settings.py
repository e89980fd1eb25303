"""How an agent remembers: what a user says of the bank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from agentpar.errors import UsageError
from agentpar.memory.admission import AdmissionName
from agentpar.memory.entry import Scope


@dataclass(frozen=True, slots=True)
class Memory:
    """The bank that an agent's teams and runs share.

    ``bank`` is ``"sqlite:///bank.db"`` or ``"postgresql://…"``; None: in this process, and gone
    with it. ``scope`` "run": what the teams of one question share; "project": what every run
    keeps for those to come, for ``ttl`` seconds (None: for ever). ``admission`` is the policy that
    decides what enters (None: "all" for the teams of one question, "rule" for a project); for
    "learned" ``controller`` is the file of one that ``agentpar memory
    train`` has made (None: the one that ships). Of equal calls one is made while the others wait
    for it, ``lease`` seconds at most before they take it over (None: each makes its own).
    ``namespace`` keeps apart what lies in one bank; empty: the agent's name. At most
    ``max_entry_bytes`` of one value are kept. At most ``offers`` calls of which the bank has the
    result are shown to a planner; a small model plans worse with them (`bench/memory_live.py`).
    """

    bank: str | None = None
    scope: Scope = "run"
    admission: AdmissionName | None = None
    ttl: float | None = None
    lease: float | None = 30.0
    namespace: str = ""
    max_entry_bytes: int = 200_000
    offers: int = 0
    controller: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.bank, str | None):
            raise UsageError(
                f"memory: bank is {self.bank!r}; an address such as 'sqlite:///bank.db', or None"
            )
        for name, known in (("scope", get_args(Scope)), ("admission", get_args(AdmissionName))):
            if (value := getattr(self, name)) is not None and value not in known:
                raise UsageError(f"memory: {name} is {value!r}; there are {', '.join(known)}")
        for name in ("ttl", "lease"):
            seconds = getattr(self, name)
            if seconds is None:
                continue
            if not isinstance(seconds, int | float):
                raise UsageError(f"memory: {name} is {seconds!r}; a number of seconds, or None")
            if seconds <= 0:
                raise UsageError(f"memory: {name} is {seconds!r}; it must be above 0, or None")
        for name, least in (("max_entry_bytes", 1), ("offers", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"memory: {name} is {getattr(self, name)!r}; at least {least}")
        if self.controller is not None and self.admission != "learned":
            raise UsageError(
                f"memory: controller is {self.controller!r}, and admission is {self.admission!r}: "
                "only 'learned' has one"
            )
        if self.scope == "project" and self.bank is None:
            raise UsageError(
                "memory: with scope 'project' the bank outlives the run: say where it is, "
                "bank='sqlite:///bank.db'"
            )

    @property
    def decides(self) -> AdmissionName:
        """The policy that decides what enters."""
        return self.admission or ("all" if self.scope == "run" else "rule")


def memory_of(said: Memory | str | None) -> Memory | None:
    """What a user says of the bank; an address alone is one that every run keeps for the next.

    Raises `UsageError` for anything else.
    """
    if isinstance(said, str):
        return Memory(bank=said, scope="project")
    if said is None or isinstance(said, Memory):
        return said
    raise UsageError(
        f"memory is an address such as 'sqlite:///bank.db', or Memory(…), got {said!r}"
    )
