"""The bank by itself: whose turn it is, over one process and over several."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from agentpar import Memory, tool
from agentpar.errors import BankError, UsageError
from agentpar.executor.simulate import run as in_virtual_time
from agentpar.memory import bank as banks
from agentpar.memory.admission import Always
from agentpar.memory.bank import Bank, Flight, Found
from agentpar.memory.entry import Entry, Producer, entry_of, likeness
from agentpar.memory.seat import Seat
from agentpar.memory.store.sqlite import SqliteStore
from agentpar.plan import Ok
from agentpar.tools.call import call_key


@tool(version="1", words=("query",))
async def look(query: str) -> str:
    """Look. query: what."""
    return query


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"bank": 3}, "memory: bank is 3; an address such as 'sqlite:///bank.db', or None"),
        ({"ttl": "7d"}, "memory: ttl is '7d'; a number of seconds, or None"),
        ({"lease": "30s"}, "memory: lease is '30s'; a number of seconds, or None"),
    ],
)
def test_what_is_said_of_a_bank_in_the_wrong_type_is_told(said: Any, message: str) -> None:
    """With what would be right: a duration as YAML has it is no number of seconds."""
    with pytest.raises(UsageError) as caught:
        Memory(**said)
    assert str(caught.value) == message


def by(number: int) -> Producer:
    return Producer(f"R.{number}", 1, number)


def entry(query: str = "Lima") -> Entry:
    return entry_of(look, {"query": query}, "found", by(1), namespace="n")


FOUND = Found(Ok("found"), "e", by(1), 2.0)


def a_bank(path: Path | None = None, **fields: Any) -> Bank:
    url = None if path is None else f"sqlite:///{path}"
    memory = Memory(url, **fields)
    store = SqliteStore(path or ":memory:")
    return Bank(store, Always(True), namespace="n", settings=memory)


@pytest.fixture
def quick_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(banks, "TERM", 0.6)


def test_turns_go_first_come_first_served() -> None:
    """Of three who wait, the first gets the turn, then the second."""

    async def main() -> list[int]:
        bank, order = a_bank(), []
        first = bank.take_off("x", by(0))

        async def one(number: int) -> None:
            flight = bank.flight("x")
            assert flight is not None
            assert await bank.wait(flight) is None
            mine = bank.take_off("x", by(number))
            order.append(number)
            await asyncio.sleep(1)
            bank.give_up(mine)

        tasks = [asyncio.create_task(one(number)) for number in (1, 2, 3)]
        await asyncio.sleep(1)
        bank.give_up(first)
        await asyncio.gather(*tasks)
        assert bank.flight("x") is None
        return order

    assert in_virtual_time(main()) == [1, 2, 3]


def test_what_is_found_reaches_all_who_wait_at_once() -> None:
    """And those who come before it is in the bank."""

    async def main() -> None:
        bank = a_bank()
        flight = bank.take_off("x", by(0))
        waits = [asyncio.create_task(bank.wait(flight)) for _ in range(3)]
        await asyncio.sleep(1)
        bank.land(flight, FOUND)
        assert await asyncio.gather(*waits) == [FOUND] * 3
        late = bank.flight("x")
        assert late is not None
        assert late.found is FOUND
        bank.clear(flight)
        assert bank.flight("x") is None

    in_virtual_time(main())


def test_two_attempts_of_one_call_are_one_crew() -> None:
    """The turn is passed on when the last of them has given up."""

    async def main() -> None:
        bank = a_bank()
        flight = bank.take_off("x", by(0))
        flight.crew += 1
        wait = asyncio.create_task(bank.wait(flight))
        await asyncio.sleep(1)
        bank.give_up(flight)
        await asyncio.sleep(1)
        assert not wait.done()
        bank.give_up(flight)
        assert await wait is None

    in_virtual_time(main())


async def claim(bank: Bank, number: int, told: list[Producer]) -> tuple[Flight, Entry | None]:
    like = likeness(look, {"query": "Lima"})
    flight = bank.take_off(like, by(number))
    return flight, await bank.acquire(flight, call_key(look, {"query": "Lima"}), told.append)


async def test_a_lease_is_renewed_while_the_call_runs(tmp_path: Path, quick_terms: None) -> None:
    """Another process waits for longer than a term, and has what was found."""
    one, two = a_bank(tmp_path / "b.db"), a_bank(tmp_path / "b.db")
    await one.start()
    await two.start()
    told: list[Producer] = []
    flight, found = await claim(one, 1, told)
    assert found is None
    other = asyncio.create_task(claim(two, 2, told))
    await asyncio.sleep(1.5)
    assert not other.done()
    assert told == [by(1)]
    assert await one.put(entry(), None, flight.lease) is not None
    one.clear(flight)
    _, found = await other
    assert found is not None
    assert found.value == "found"
    await one.stop()
    await two.stop()


async def test_a_lease_that_nobody_renews_is_taken_over(tmp_path: Path, quick_terms: None) -> None:
    """Its holder's process hangs; what it brings later does not count."""
    one, two = a_bank(tmp_path / "b.db"), a_bank(tmp_path / "b.db")
    await one.start()
    await two.start()
    flight, _ = await claim(one, 1, [])
    assert flight.renewing is not None
    flight.renewing.cancel()
    began = time.monotonic()
    second, found = await claim(two, 2, [])
    assert found is None
    assert 0.3 < time.monotonic() - began < 5.0
    assert flight.lease is not None
    assert second.lease is not None
    assert second.lease.fence > flight.lease.fence
    assert await one.put(entry(), None, flight.lease) is None
    assert await two.put(entry(), None, second.lease) is not None
    await one.stop()
    await two.stop()


async def test_one_who_gives_up_waiting_for_another_process_holds_nothing(tmp_path: Path) -> None:
    """Cancelled while it waits: the next of its own process has the turn."""
    one, two = a_bank(tmp_path / "b.db"), a_bank(tmp_path / "b.db")
    await one.start()
    await two.start()
    flight, _ = await claim(one, 1, [])
    wait = asyncio.create_task(claim(two, 2, []))
    await asyncio.sleep(0.2)
    wait.cancel()
    await asyncio.wait([wait])
    one.give_up(flight)
    third, found = await claim(two, 3, [])
    assert found is None
    assert third.lease is not None
    await one.stop()
    await two.stop()


async def test_an_attempt_that_was_broken_off_gives_up_no_later_ones_lease(tmp_path: Path) -> None:
    """Its lease comes after it has gone; the next attempt of the same task has one by then, and
    what that one finds is kept."""
    bank = a_bank(tmp_path / "b.db")
    await bank.start()
    gate = threading.Event()
    busy = asyncio.create_task(bank.ask(lambda store: gate.wait(10)))  # both ask behind it
    like = likeness(look, {"query": "Lima"})
    first = asyncio.create_task(claim(bank, 1, []))
    await asyncio.sleep(0.05)
    first.cancel()
    await asyncio.wait([first])
    gone = bank.flight(like)
    assert gone is not None
    bank.give_up(gone)
    second = asyncio.create_task(claim(bank, 1, []))
    await asyncio.sleep(0.05)
    gate.set()
    flight, found = await second
    await busy
    await asyncio.sleep(0.1)  # whatever the first one gives up has reached the store
    assert found is None
    assert await bank.put(entry(), None, flight.lease) is not None
    bank.clear(flight)
    await bank.stop()


async def test_who_was_overtaken_while_it_asked_holds_no_lease(tmp_path: Path) -> None:
    """Another of its process makes the call by then, and need not wait for it."""
    bank = a_bank(tmp_path / "b.db")
    await bank.start()
    gate = threading.Event()
    busy = asyncio.create_task(bank.ask(lambda store: gate.wait(10)))
    slow = asyncio.create_task(claim(bank, 1, []))
    await asyncio.sleep(0.05)
    told: list[Producer] = []
    quick = asyncio.create_task(claim(bank, 2, told))
    await asyncio.sleep(0.05)
    gate.set()
    (late, _), (flight, _) = await asyncio.wait_for(asyncio.gather(slow, quick), 5)
    await busy
    assert (late.lease, flight.lease is not None) == (None, True)
    await bank.stop()


async def test_a_store_that_does_not_answer_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that hangs is trouble of the bank, and holds up nobody for ever."""
    bank = a_bank(tmp_path / "b.db")
    await bank.start()
    monkeypatch.setattr(banks, "PATIENCE", 0.2)
    with pytest.raises(BankError, match=r"no answer within 0\.2 s"):
        await bank.ask(lambda store: time.sleep(1.0))
    monkeypatch.setattr(banks, "PATIENCE", 20.0)
    await bank.stop()


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "agentpar-bank"]


async def ended(others: list[threading.Thread]) -> None:
    """A thread of a bank that is not one of ``others`` ends within a second."""
    for thread in threads():
        if thread not in others:
            await asyncio.to_thread(thread.join, 1.0)
            assert not thread.is_alive()


async def test_a_stop_that_is_cancelled_leaves_nothing_open(tmp_path: Path) -> None:
    """Neither its thread nor its connection, and what comes later finds the bank closed."""
    before, store = threads(), SqliteStore(tmp_path / "b.db")
    settings = Memory(f"sqlite:///{tmp_path}/b.db")
    bank = Bank(store, Always(True), namespace="n", settings=settings)
    await bank.start()
    work = bank.begin(asyncio.sleep(0.5))
    stop = asyncio.create_task(bank.stop())
    await asyncio.sleep(0.05)
    stop.cancel()
    await asyncio.wait([stop])
    assert stop.cancelled()
    with pytest.raises(BankError, match="closed"):
        await bank.find("key", "like")
    await work
    await ended(before)
    with pytest.raises(BankError, match="closed"):
        store.find("n", "key", "like")


async def test_one_who_is_cancelled_while_the_bank_opens_has_not_sat_down(tmp_path: Path) -> None:
    """Nobody sees its wishes any more, and the bank closes behind it."""

    class Slow(SqliteStore):
        def open(self) -> None:
            time.sleep(0.2)
            super().open()

    before, store = threads(), Slow(tmp_path / "b.db")
    settings = Memory(f"sqlite:///{tmp_path}/b.db")
    bank = Bank(store, Always(True), namespace="n", settings=settings)

    async def run() -> None:
        async with Seat(bank, "R"):
            pytest.fail("it is cancelled before")

    work = asyncio.create_task(run())
    await asyncio.sleep(0.05)
    work.cancel()
    await asyncio.wait([work])
    assert work.cancelled()
    assert bank.seats == []
    await ended(before)
    with pytest.raises(BankError, match="closed"):
        store.find("n", "key", "like")


async def test_a_bank_opens_again(tmp_path: Path) -> None:
    """Closed behind the last run and opened for the next; what it held is there."""
    bank = a_bank(tmp_path / "b.db")
    await bank.start()
    await bank.put(entry(), None, None)
    await bank.stop()
    await bank.start()
    assert await bank.find(entry().key, entry().like) is not None
    await bank.stop()
