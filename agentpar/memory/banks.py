"""The banks of one agent: one for all its runs, or one for each question and its teams.

Says who shares with whom and how long a bank lives, and nothing else.
"""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import partial
from weakref import WeakValueDictionary

from agentpar.ids import question_run
from agentpar.memory.admission import Admission, Ask, admission_of
from agentpar.memory.bank import Bank, Embed
from agentpar.memory.controller import load
from agentpar.memory.embed import HashedNgrams
from agentpar.memory.seat import Seat
from agentpar.memory.settings import Memory
from agentpar.memory.store import open_store
from agentpar.memory.store.base import Store


class Banks:
    """Banks as ``settings`` want them, under the name of the agent unless they name another.

    ``open_store`` and ``admission`` make what a bank needs, ``embed`` is shared by all.
    """

    def __init__(
        self,
        settings: Memory,
        *,
        agent: str,
        open_store: Callable[[], Store],
        admission: Callable[[], Admission],
        embed: Embed | None = None,
    ) -> None:
        self._settings = settings
        self._name = settings.namespace or agent
        self._open_store = open_store
        self._admission = admission
        self._embed = embed
        self._kept: Bank | None = None
        self._of_runs: WeakValueDictionary[str, Bank] = WeakValueDictionary()

    def seat(self, run_id: str, team: int = 0) -> Seat:
        """A place for the run ``run_id``, beside the other teams' where it is one team's."""
        return Seat(self._bank(question_run(run_id, team)), run_id, team=team)

    @asynccontextmanager
    async def holding(self, run_id: str) -> AsyncIterator[None]:
        """While the teams of ``run_id`` come and go, what one has found stays for the next."""
        bank = self._bank(run_id)
        bank.held += 1
        try:
            yield
        finally:
            bank.held -= 1
            await bank.leave()

    async def aclose(self) -> None:
        """Close what outlives its runs; it opens again for the next."""
        if self._kept is not None:
            await self._kept.stop()

    def _bank(self, run_id: str) -> Bank:
        if self._settings.scope == "project":
            if self._kept is None:
                self._kept = self._new(self._name)
                self._kept.held += 1
            return self._kept
        bank = self._of_runs.get(run_id)
        if bank is None:
            bank = self._of_runs[run_id] = self._new(f"{self._name}/{run_id}")
        return bank

    def _new(self, namespace: str) -> Bank:
        return Bank(
            self._open_store(),
            self._admission(),
            namespace=namespace,
            settings=self._settings,
            embed=self._embed,
        )


class Sharing:
    """With whom an agent shares, by its ``memory``: with every run to come, or among the teams of
    one question, which is so if nothing is said (None). `Memory` with admission "none" and
    without lease shares nothing. ``judge`` asks a model what it says to a prompt.

    Raises `UsageError` for a wrong address, and for a controller that cannot be read.
    """

    def __init__(
        self,
        memory: Memory | None,
        *,
        agent: str,
        seed: int = 0,
        judge: Ask | None = None,
    ) -> None:
        self._said = memory is not None
        memory = memory or Memory()
        self._banks: Banks | None = None
        if memory.admission == "none" and memory.lease is None:
            return
        store = partial(open_store, memory.bank, max_entry_bytes=memory.max_entry_bytes)
        store()  # a wrong address is the caller's mistake
        own = None if memory.controller is None else load(memory.controller)
        self._banks = Banks(
            memory,
            agent=agent,
            open_store=store,
            admission=partial(admission_of, memory.decides, seed=seed, ask=judge, controller=own),
            embed=default_embedding(),
        )

    def seat(self, run_id: str, team: int = 0) -> Seat | None:
        """Where a run sits; the teams of one question, R.1, R.2, …, sit together. None for a run
        that shares with nobody."""
        if self._banks is None or not (self._said or team):
            return None
        return self._banks.seat(run_id, team)

    def holding(self, run_id: str) -> AbstractAsyncContextManager[None]:
        """While teams work on the question of ``run_id``: what one finds is there for the next."""
        return nullcontext() if self._banks is None else self._banks.holding(run_id)

    async def aclose(self) -> None:
        """Close what outlives its runs; it opens again for the next."""
        if self._banks is not None:
            await self._banks.aclose()


def default_embedding() -> Embed | None:
    """Vectors without a package or weights; None where what looks for the nearest is missing."""
    return HashedNgrams().embed if importlib.util.find_spec("numpy") else None
