"""A seat: what others may ask of a run, and what is known of a finding when it is offered."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from agentpar import Memory, Tool, tool
from agentpar.events import (
    EntryOffered,
    Event,
    RunFinished,
    RunStarted,
    TaskCancelled,
    TaskDone,
    TaskPlanned,
    TaskReplaced,
    TaskStarted,
)
from agentpar.executor.simulate import run as in_virtual_time
from agentpar.memory.admission import Decision, Proposal
from agentpar.memory.bank import Bank
from agentpar.memory.embed import HashedNgrams
from agentpar.memory.entry import likeness
from agentpar.memory.seat import Seat, quality
from agentpar.memory.store.sqlite import SqliteStore
from agentpar.plan import Failed, Ok, Ref, Task


@tool(words=("query",))
async def look(query: str, near: str = "") -> str:
    """Look. query: what. near: where."""
    return query


@tool(effect="write")
async def post(query: str) -> str:
    """Post. query: what."""
    return query


@tool(pure=True)
def shout(text: str) -> str:
    """Shout. text: what."""
    return text


TOOLS: Mapping[str, Tool] = {"look": look, "post": post, "shout": shout}


class Watching:
    """Admits everything, and keeps what it was shown."""

    name = "watching"

    def __init__(self) -> None:
        self.seen: list[Proposal] = []

    async def decide(self, proposal: Proposal) -> Decision:
        self.seen.append(proposal)
        return Decision(True, self.name, 1.0)


class Table:
    """A bank and the seats of teams 1, 2, …; what each was told is in ``told``."""

    def __init__(self, seats: int = 2, *, embed: bool = False, **fields: Any) -> None:
        self.policy = Watching()
        vectors = HashedNgrams().embed if embed else None
        self.bank = Bank(
            SqliteStore(), self.policy, namespace="n", settings=Memory(**fields), embed=vectors
        )
        self.told: list[Event] = []
        self.seats = [
            Seat(self.bank, f"R.{team}", team=team, tools=TOOLS, tell=self.told.append)
            for team in range(1, seats + 1)
        ]
        for seat in self.seats:
            seat.observe(RunStarted(seat.run_id, "How many people live in Lima?"))

    async def __aenter__(self) -> list[Seat]:
        for seat in self.seats:
            await seat.__aenter__()
        return self.seats

    async def __aexit__(self, *error: Any) -> None:
        for seat in self.seats:
            await seat.__aexit__(None, None, None)


def plan(seat: Seat, *tasks: Task) -> None:
    for task in tasks:
        seat.observe(TaskPlanned(1, task))


def task(id: int, query: Any, *needs: int, tool: str = "look") -> Task:
    return Task(id, tool, {"query": query}, needs, special=False)


async def find(seat: Seat, id: int, query: str, value: Any = "found", seconds: float = 2.0) -> None:
    """The task's call is made and brings ``value``."""
    seat.observe(TaskStarted(id, {"query": query}))
    async with seat.claim(look, {"query": query}, id, 1) as claim:
        assert claim.found is None
        await claim.settle(Ok(value), seconds)
    seat.observe(TaskDone(id, Ok(value)))


LIKE = likeness(look, {"query": "people of Lima"})


def test_demand_is_what_is_planned_and_has_not_begun() -> None:
    """Literal calls that may be shared, in any order of words, until they begin or are dropped."""
    seat = Table(1).seats[0]
    plan(seat, task(1, "people of Lima"), task(2, "Lima people"), task(3, Ref(1), 1))
    plan(seat, task(4, "people of Lima", tool="post"), task(5, "people of Lima"))
    assert seat.demand(LIKE) == 3
    seat.observe(TaskStarted(1))
    assert seat.demand(LIKE) == 2
    seat.observe(TaskCancelled(2))
    assert seat.demand(LIKE) == 1
    seat.observe(TaskReplaced(1, task(5, "people of Quito")))
    assert seat.demand(LIKE) == 0
    assert seat.demand(likeness(look, {"query": "Quito people"})) == 1
    seat.observe(RunFinished("answered"))
    assert seat.demand(likeness(look, {"query": "Quito people"})) == 0


def test_a_policy_sees_who_else_wants_it() -> None:
    """Demand and progress are the others', not the finder's own."""

    async def main() -> Proposal:
        table = Table(3)
        async with table as (one, two, three):
            plan(one, task(1, "people of Lima"), task(2, "people of Lima"))
            plan(two, task(1, "Lima people"), task(2, "x"))
            plan(three, task(1, "Lima people"), task(2, "x"))
            two.observe(TaskDone(2, Ok(1)))
            await find(one, 1, "people of Lima", seconds=3.0)
        return table.policy.seen[0]

    proposal = in_virtual_time(main())
    seen = proposal.features
    assert (seen.demand, seen.others, seen.progress, seen.seconds) == (2, 2, 0.25, 3.0)
    assert (seen.project, seen.depth, seen.quality, seen.length) == (False, 0, 1.0, 7)
    assert proposal.question == "How many people live in Lima?"


def test_novelty_and_closeness_are_of_the_texts() -> None:
    """What the bank has already is not new; what the question asks for is close."""

    async def main() -> list[Proposal]:
        table = Table(1, embed=True, lease=None)
        async with table as (seat,):
            plan(seat, *(task(id, "x") for id in (1, 2, 3)))
            await find(seat, 1, "people in Lima")
            await find(seat, 2, "people in Lima today")
            await find(seat, 3, "zebra crossing")
        return table.policy.seen

    first, second, third = in_virtual_time(main())
    assert first.features.novelty == 1.0
    assert second.features.novelty < 0.5 < third.features.novelty
    assert first.features.closeness > third.features.closeness


def test_depth_and_parents_follow_the_plan() -> None:
    """Over tasks of which the bank has nothing, over parts of a list, and over what a planner
    had read."""

    async def main() -> list[Proposal]:
        table = Table(1)
        async with table as (seat,):
            plan(seat, task(1, "a"), Task(2, "shout", {"text": Ref(1)}, (1,)), task(3, Ref(2), 2))
            await find(seat, 1, "a")
            await find(seat, 3, "loud")
            over = Task(4, "look", {"query": Ref(1)}, (1,))
            plan(seat, over, Task(4_000_001, "look", {"query": "p"}, (1,), part=(4, 0)))
            await find(seat, 4_000_001, "p")
            plan(seat, task(5, Ref(4), 4))
            await find(seat, 5, "of parts")
            seat.read = lambda id: (3,) if id == 6 else ()
            plan(seat, task(6, "in a later round"))
            await find(seat, 6, "in a later round")
        return table.policy.seen

    one, three, part, five, six = in_virtual_time(main())
    assert one.entry.parents == ()
    assert three.entry.parents == (one.entry.id,)
    assert (one.features.depth, three.features.depth, six.features.depth) == (0, 2, 0)
    assert part.entry.parents == (one.entry.id,)
    assert set(five.entry.parents) == {one.entry.id, part.entry.id}
    assert set(six.entry.parents) == {one.entry.id, three.entry.id}
    literal = [proposal.entry.literal for proposal in (one, three, part, five, six)]
    assert literal == [True, False, False, False, False]


def test_what_came_from_the_bank_is_a_parent_too() -> None:
    """A call that another's finding fed is withdrawn with it."""

    async def main() -> list[Proposal]:
        table = Table(2)
        async with table as (one, two):
            plan(one, task(1, "a"))
            await find(one, 1, "a")
            plan(two, task(1, "a"), task(2, Ref(1), 1))
            two.observe(TaskStarted(1))
            async with two.claim(look, {"query": "a"}, 1, 1) as claim:
                assert claim.found == Ok("found")
            await find(two, 2, "found")
        return table.policy.seen

    first, second = in_virtual_time(main())
    assert second.entry.parents == (first.entry.id,)


def test_an_equal_call_of_the_same_run_has_the_same_entry() -> None:
    """A task that took the result of another of its plan leads to the same source."""

    async def main() -> list[Proposal]:
        table = Table(1)
        async with table as (seat,):
            plan(seat, task(1, "a"), task(2, "a"), task(3, Ref(2), 2))
            await find(seat, 1, "a")
            seat.observe(TaskDone(2, Ok("found"), via="same call as 1"))
            await find(seat, 3, "found")
        return table.policy.seen

    first, second = in_virtual_time(main())
    assert second.entry.parents == (first.entry.id,)


def test_events_behind_the_end_are_not_told() -> None:
    """A policy that is slower than the run: nothing comes behind `RunFinished`."""

    class Slow(Watching):
        async def decide(self, proposal: Proposal) -> Decision:
            await asyncio.sleep(3)
            return await super().decide(proposal)

    async def main() -> tuple[Table, int]:
        table = Table(1)
        table.policy = table.bank.admission = Slow()
        async with table as (seat,):
            plan(seat, task(1, "a"))
            await find(seat, 1, "a")
            seat.observe(RunFinished("answered"))
        return table, len(table.policy.seen)

    table, seen = in_virtual_time(main())
    assert seen == 1
    assert not [event for event in table.told if isinstance(event, EntryOffered)]


PAGE = {"url": "http://a.example/", "title": "Lima", "text": "Lima has 10 m people", "value": 10}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, 0.0),
        ("", 0.0),
        ("  ", 0.0),
        ([], 0.0),
        ({}, 0.0),
        (0, 1.0),
        (False, 1.0),
        ("x", 1.0),
        (PAGE, 1.0),
        ({**PAGE, "value": None}, 0.5),
        ({**PAGE, "value": None, "text": " "}, 0.0),
        ({**PAGE, "unread": [{"url": "http://b.example/", "error": "gone"}]}, 0.5),
        ({"text": "words"}, 1.0),
    ],
)
def test_quality_is_what_a_program_can_see(value: Any, expected: float) -> None:
    """Empty is worth nothing, a page without what was looked for half, missing pages count."""
    assert quality(value) == expected


def test_a_failure_is_never_offered() -> None:
    """Only what a call brought enters the bank."""

    async def main() -> Table:
        table = Table(1)
        async with table as (seat,):
            plan(seat, task(1, "a"))
            async with seat.claim(look, {"query": "a"}, 1, 1) as claim:
                await claim.settle(Failed("no"), 1.0)
        return table

    table = in_virtual_time(main())
    assert table.policy.seen == []
    assert table.told == []
