"""Logged decisions out of events and a ledger."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from agentpar import Agent, ScriptedRuntime, tool
from agentpar.config import load_memory
from agentpar.errors import UsageError
from agentpar.events import EntryOffered, EntryUsed, Event, RunFinished, RunStarted
from agentpar.executor.record import decode, encode
from agentpar.memory.controller import Controller, shipped
from agentpar.memory.credit import Prices
from agentpar.memory.entry import Entry, Producer, Reading, entry_of
from agentpar.memory.features import NAMES, Features
from agentpar.memory.learning.runs import decisions
from agentpar.memory.settings import Memory
from agentpar.memory.store import Store, open_store

SEEN = Features(demand=1, seconds=2.0, others=2).vector()
FREE = Prices(token=0.0)


@tool
async def find(what: str) -> str:
    """Find."""
    return ""


@pytest.fixture
def store() -> Store:
    store = open_store(None)
    store.open()
    return store


def brought(store: Store, what: str, run: str) -> Entry:
    entry = entry_of(find, {"what": what}, f"{what} is here", Producer(run, 1), namespace="n")
    return store.put(entry).entry


def offered(entry: str, admitted: bool = True) -> EntryOffered:
    return EntryOffered(1, entry, admitted, "rule", float(admitted), features=SEEN)


def run(id: str, *events: Event, answered: bool = True) -> list[Event]:
    return [RunStarted(id, "?"), *events, RunFinished("answered" if answered else "failed")]


def test_the_features_of_an_offer_survive_the_record() -> None:
    """As the tuple that they were; an offer of an older record has none."""
    event = offered("x")
    assert decode(encode(event)) == event
    old = {key: value for key, value in encode(event).items() if key != "features"}
    assert decode(old) == EntryOffered(1, "x", True, "rule", 1.0)


def test_an_admitted_entry_is_worth_what_others_were_spared(store: Store) -> None:
    """The reading of whoever brought it does not count; what was not admitted has no credit."""
    entry = brought(store, "a", "r.1")
    store.used(Reading(entry.id, "r.1", 2, 1, spared_seconds=9.0))
    store.used(Reading(entry.id, "r.2", 2, 2, spared_seconds=4.0))
    told = [
        run("r.1", offered(entry.id), offered("refused", admitted=False)),
        run("r.2", EntryUsed(2, entry.id, ("r.1", 1))),
    ]
    one, two = decisions(told, store, FREE)
    assert (one.credit, one.admitted, one.run_id, one.features) == (4.0, True, "r.1", SEEN)
    assert (two.credit, two.admitted, two.probability) == (None, False, 0.0)


def test_a_reader_that_failed_costs(store: Store) -> None:
    """It shares the blame among all that it read."""
    entry = brought(store, "a", "r.1")
    store.used(Reading(entry.id, "r.2", 2, 2, spared_seconds=4.0))
    used = EntryUsed(2, entry.id, ("r.1", 1))
    told = [run("r.1", offered(entry.id)), run("r.2", used, used, answered=False)]
    [one] = decisions(told, store, Prices(token=0.0, failed=60.0))
    assert one.credit == 4.0 - 30.0


def test_what_was_revoked_has_misled_its_readers(store: Store) -> None:
    """However well they ended."""
    entry = brought(store, "a", "r.1")
    store.used(Reading(entry.id, "r.2", 2, 2, spared_seconds=4.0))
    store.revoke(entry.id)
    [one] = decisions([run("r.1", offered(entry.id))], store, FREE)
    assert one.credit == -60.0


async def test_a_controller_of_ones_own_decides(tmp_path: Path) -> None:
    """It is read when the agent is made; the record tells what its decision looked at."""
    with pytest.raises(UsageError, match="only 'learned' has one"):
        Memory(controller="mine.json")
    own = Memory(admission="learned", controller=str(tmp_path / "mine.json"))
    with pytest.raises(UsageError, match=r"mine\.json: the controller cannot be read"):
        Agent([find], runtime=ScriptedRuntime([]), memory=own)
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(UsageError, match=r"bad\.json"):
        Agent(
            [find],
            runtime=ScriptedRuntime([]),
            memory=replace(own, controller=str(tmp_path / "bad.json")),
        )
    for weight in (1.0, -1.0):
        weights = (weight, *[0.0] * (len(NAMES) - 1))
        Controller(weights, promoted=True, ranges=((-9e9, 9e9),) * len(NAMES)).save(
            tmp_path / "mine.json"
        )
        runtime = ScriptedRuntime(['1. find(what="a")\njoin()', "It is a [1]."])
        async with Agent([find], runtime=runtime, memory=own) as agent:
            async with agent.run("?") as running:
                events = [event async for event in running]
            [offer] = [event for event in events if isinstance(event, EntryOffered)]
        assert (offer.policy, offer.admitted) == ("learned", weight > 0)
        assert len(offer.features) == len(NAMES)


def test_an_entry_is_credited_once(store: Store) -> None:
    """To the first that brought it; an offer without features teaches nothing."""
    entry = brought(store, "a", "r.1")
    brought(store, "a", "r.2")
    store.used(Reading(entry.id, "r.3", 2, 3, spared_seconds=4.0))
    bare = EntryOffered(1, "b", True, "rule")
    told = [run("r.1", offered(entry.id), bare), run("r.2", offered(entry.id))]
    assert [(one.run_id, one.credit) for one in decisions(told, store, FREE)] == [("r.1", 4.0)]


def test_a_controller_lies_beside_the_agents_file(tmp_path: Path) -> None:
    """Wherever the command is run."""
    shipped().save(tmp_path / "mine.json")
    file = tmp_path / "agent.yaml"
    file.write_text("tools: [calc]\nmemory: {admission: learned, controller: mine.json}\n")
    memory = load_memory(file).memory
    assert memory is not None
    assert memory.controller == str(tmp_path.resolve() / "mine.json")
