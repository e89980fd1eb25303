"""The gate: how requests wait for hosts, in virtual time; that those of the web tools do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from loopback import redirect, reply, serving

from agentpar import Agent, Failed, Ok, ScriptedRuntime, tool
from agentpar.errors import FetchError
from agentpar.events import Event, HostThrottled, TaskDone, TaskStarted
from agentpar.executor.record import read_record, replay
from agentpar.executor.simulate import run as simulate
from agentpar.gate import Caller, HostGate
from agentpar.miniweb import MiniWeb
from agentpar.policy import Limits
from agentpar.tools.base import Tool
from agentpar.tools.call import CurrentCall, enter_calls
from agentpar.tools.lookup import web_lookup
from agentpar.tools.search import web_search
from agentpar.tools.web import web_fetch

# ── How one waits ────────────────────────────────────────────────────────────────


class Visits:
    """Visits of one second to a gate in virtual time, and what became of them."""

    def __init__(self, **limits: Any) -> None:
        self.gate = HostGate(Limits(**limits), lambda *told: self.told.append(told))
        self.told: list[tuple[Caller, str, float | None]] = []
        self.began: dict[int, float] = {}
        self.refused: dict[int, FetchError] = {}
        self.there: set[int] = set()
        self.most = 0

    async def visit(
        self,
        n: int,
        host: str = "a.example",
        *,
        patience: float = 20.0,
        seconds: float = 1.0,
        asks: float | None = None,
        too_much: bool = False,
    ) -> None:
        """Visit number ``n``; one that is ``too_much`` is told so when it begins."""
        try:
            async with self.gate.visit(host, patience, (n, 1)) as visit:
                self.began[n] = now()
                self.there.add(n)
                self.most = max(self.most, len(self.there))
                try:
                    if too_much:
                        visit.throttled(asks)
                        return
                    await asyncio.sleep(seconds)
                    visit.succeeded()
                finally:
                    self.there.discard(n)
        except FetchError as error:
            self.refused[n] = error


def now() -> float:
    return asyncio.get_running_loop().time()


async def together(*work: Coroutine[Any, Any, None]) -> None:
    async with asyncio.TaskGroup() as group:
        for each in work:
            group.create_task(each)


def test_a_host_is_visited_by_so_many_at_once_first_come_first_served() -> None:
    """Another host has places of its own."""

    async def main() -> None:
        at = Visits(per_host=2)
        others = [at.visit(n, "b.example") for n in (11, 12)]
        await together(*(at.visit(n) for n in range(1, 6)), *others)
        assert at.began == {1: 0, 2: 0, 11: 0, 12: 0, 3: 1, 4: 1, 5: 2}
        assert at.most == 4

    simulate(main(), seed=1)


def test_so_many_visits_begin_in_a_second() -> None:
    """A second's worth may begin at once."""

    async def main() -> None:
        at = Visits(host_rate=2.0)
        await together(*(at.visit(n, seconds=0.0) for n in range(1, 6)))
        assert at.began == {1: 0, 2: 0, 3: 0.5, 4: 1, 5: 1.5}

    simulate(main(), seed=1)


def test_a_host_that_wants_to_be_left_alone_is_waited_for_by_the_patient() -> None:
    """The others learn how long it will be, whether they stand in line or come then."""

    async def main() -> None:
        at = Visits(per_host=1)
        await together(
            at.visit(1, too_much=True, asks=5.0),
            at.visit(2, patience=6.0),
            at.visit(3, patience=1.0),
        )
        await at.visit(4, patience=0.1)
        assert at.began == {1: 0, 2: 5, 4: 6}, "by then the host was open again"
        assert (at.refused[3].status, at.refused[3].retry_after) == (429, 5)
        assert "'a.example' wants to be left alone for 5.0 s more" in str(at.refused[3])
        assert at.told == [((1, 1), "a.example", 5.0), ((3, 1), "a.example", 5.0)]

    simulate(main(), seed=1)


def test_a_host_that_asks_for_less_gets_half_and_then_one_more_in_each_round() -> None:
    """Of five at once one was too many: two and a half. The four that went well make it three."""

    async def main() -> None:
        at = Visits()
        first = [at.visit(n) for n in range(4)]
        await together(*first, at.visit(4, too_much=True))
        await together(*(at.visit(n) for n in range(5, 20)))
        begun = [sum(1 for began in at.began.values() if began == s) for s in range(5)]
        assert begun == [5, 3, 4, 5, 3]

    simulate(main(), seed=1)


def test_one_who_gives_up_leaves_no_gap() -> None:
    """Neither in the line, nor where it has just been let in."""

    async def main() -> None:
        at = Visits(per_host=1)
        async with at.gate.visit("a.example", 20.0, (0, 1)):
            tasks = [asyncio.create_task(at.visit(n)) for n in (1, 2, 3)]
            await asyncio.sleep(0.5)
            tasks[0].cancel()
        tasks[1].cancel()  # it has its place now, and has not been told yet
        await asyncio.wait(tasks)
        assert at.began == {3: 0.5}

    simulate(main(), seed=1)


def test_a_caller_is_held_back_as_long_as_one_of_its_requests_waits() -> None:
    """Two at a time are counted once."""

    async def main() -> None:
        at = Visits(per_host=1)
        waits = [at.gate.visit("a.example", 20.0, (7, 1)) for _ in range(2)]

        async def wait(visit: Any) -> None:
            async with visit:
                await asyncio.sleep(1.0)

        await together(at.visit(1), *map(wait, waits))
        assert at.gate.held_back((7, 1)) == 2.0
        assert at.gate.held_back((1, 1)) == 0.0

    simulate(main(), seed=1)


# ── Web tools in a run ───────────────────────────────────────────────────────────


def lookup(origin: str, *more: str, pages: int = 2, timeout: float = 20.0) -> Tool:
    search = web_search(url=origin, timeout=timeout)
    fetch = web_fetch(allow_origins=[origin, *more], timeout=timeout)
    return web_lookup(search=search, fetch=fetch, pages=pages)


def plan(*countries: str) -> ScriptedRuntime:
    lines = [
        f'{n}. web_lookup(query="{country}", find="population")'
        for n, country in enumerate(countries, 1)
    ]
    return ScriptedRuntime(["\n".join([*lines, "join()"]), "Answer: done"])


async def test_requests_inside_a_lookup_count_against_their_host() -> None:
    """Searches and pages of all lookups together: one at a time where that is the limit."""
    async with MiniWeb(latency=0.02) as web:
        for per_host, peak in ((1, 1), (2, 2)):
            tools = [lookup(web.origin)]
            async with Agent(tools, runtime=plan("Chile", "Peru"), per_host=per_host) as agent:
                answer = await agent.ask("Which has more people?")
            assert all(isinstance(outcome, Ok) for outcome in answer.outcomes.values())
            assert web.statistics().peak == peak


async def test_requests_inside_a_lookup_keep_to_the_rate_of_their_host() -> None:
    """A lookup is three requests: at ten a second, twelve take 0.2 s more than the first ten."""
    async with MiniWeb(latency=0) as web:
        tools, runtime = [lookup(web.origin)], plan("Chile", "Peru", "Spain", "France")
        async with Agent(tools, runtime=runtime, host_rate=10.0) as agent:
            answer = await agent.ask("Which has most people?")
        statistics = web.statistics()
        assert statistics.searches + statistics.pages == 12
        assert answer.seconds > 0.19


async def test_waiting_for_a_host_is_no_time_of_the_call() -> None:
    """Six lookups of a third of a second each, one after another at the gate: each is in time, by
    the limit of its tool and by those of the requests in it."""
    async with MiniWeb(latency=0.1) as web:
        countries = ("Chile", "Peru", "Spain", "France", "Italy", "Norway")
        policies: Any = {"web_lookup": {"timeout": 1.2, "retries": 0}}
        async with Agent(
            [lookup(web.origin, timeout=0.8)],
            runtime=plan(*countries),
            per_host=1,
            policies=policies,
        ) as agent:
            answer = await agent.ask("Which has most people?")
        found = [outcome.value for outcome in answer.outcomes.values() if isinstance(outcome, Ok)]
        assert len(found) == 6
        assert not [value for value in found if "unread" in value]
        assert answer.seconds > 1.5


async def test_what_a_host_says_inside_a_lookup_holds_for_all_calls_to_it(tmp_path: Path) -> None:
    """The lookup goes on without the page; a fetch from that host begins when its time is over.
    And the record replays."""
    busy = reply(status=429, headers={"retry-after": "1"})
    nile = reply("<title>Nile</title><table><tr><th>Length</th><td>6,650 km</td></tr></table>")
    async with AsyncExitStack() as stack:
        engine, one, two = [
            await stack.enter_async_context(serving(host=f"127.0.0.{n}")) for n in (1, 2, 3)
        ]
        one.routes["/"], two.routes["/"] = [busy, nile], [nile]
        hits = [{"url": f"{s.origin}/", "title": "Nile", "content": "A river."} for s in (one, two)]
        found = reply(json.dumps({"results": hits}), "application/json")
        engine.routes["/search?q=Nile+length&format=json"] = [found]
        origins = [engine.origin, one.origin, two.origin]
        lines = (
            '1. web_lookup(query="Nile", find="length")\n'
            f'2. web_fetch(url="{one.origin}/", find=$1.title)\njoin()'
        )
        tools = [lookup(*origins), web_fetch(allow_origins=origins)]
        runtime = ScriptedRuntime([lines, "Answer: done"])
        events: list[Event] = []
        async with (
            Agent(tools, runtime=runtime, runs=tmp_path) as agent,
            agent.run("How long is it?", run_id="one") as running,
        ):
            events = [event async for event in running]
    (heard,) = [event for event in events if isinstance(event, HostThrottled)]
    assert (heard.task_id, heard.host, heard.retry_after) == (1, "127.0.0.2", 1.0)
    began = {event.task_id: event.at for event in events if isinstance(event, TaskStarted)}
    (value,) = [e.outcome.value for e in events if isinstance(e, TaskDone) and e.task_id == 1]
    assert value["unread"][0]["url"] == f"{one.origin}/"
    assert "HTTP 429" in value["unread"][0]["error"]
    assert began[2] >= heard.at + 1.0
    assert isinstance(running.answer.outcomes[2], Ok)
    assert replay(read_record(tmp_path / "one" / "events.jsonl")).difference == ""


async def test_a_refused_lookup_closes_its_host_and_not_the_tool() -> None:
    """Both pages of the first lookup refuse; the second one, about other hosts, does not wait."""
    busy = reply(status=429, headers={"retry-after": "30"})
    nile = reply("<title>Nile</title><table><tr><th>Length</th><td>6,650 km</td></tr></table>")
    async with AsyncExitStack() as stack:
        engine, closed, free = [
            await stack.enter_async_context(serving(host=f"127.0.0.{n}")) for n in (1, 2, 3)
        ]
        closed.routes["/"], free.routes["/"] = [busy], [nile]
        for name, server in (("Rhine", closed), ("Nile", free)):
            hit = {"url": f"{server.origin}/", "title": name, "content": "A river."}
            answer = reply(json.dumps({"results": [hit]}), "application/json")
            engine.routes[f"/search?q={name}+length&format=json"] = [answer]
        lines = "\n".join(
            [
                '1. web_lookup(query="Rhine", find="length")',
                f'2. web_fetch(url="{free.origin}/", find="length")',
                '3. web_lookup(query="Nile", find=$2.title)',
                "join()",
            ]
        ).replace("find=$2.title", 'find="length"')
        origins = [engine.origin, closed.origin, free.origin]
        tools = [lookup(*origins, pages=1), web_fetch(allow_origins=origins)]
        runtime = ScriptedRuntime([lines, "Answer: done"])
        async with Agent(tools, runtime=runtime, concurrency=1, deadline=5.0) as agent:
            answer = await agent.ask("Which is longer?")
    assert isinstance(answer.outcomes[3], Ok)
    assert len(closed.heads) == 1, "nobody asked again within the time"


async def test_a_host_that_wants_an_hour_of_peace_has_it_from_the_next_process(
    tmp_path: Path,
) -> None:
    """The run breaks off behind such a word: resumed, its lookups do not ask that host."""
    asked = asyncio.Event()
    patient = False

    @tool
    async def pause(after: str) -> str:
        """Wait."""
        asked.set()
        if not patient:
            await asyncio.Event().wait()
        return "Rhine"

    busy = reply(status=429, headers={"retry-after": "3600"})
    async with AsyncExitStack() as stack:
        engine, host = [
            await stack.enter_async_context(serving(host=f"127.0.0.{n}")) for n in (1, 2)
        ]
        host.routes["/"] = [busy]
        hit = {"url": f"{host.origin}/", "title": "Rhine", "content": "A river."}
        answer = reply(json.dumps({"results": [hit]}), "application/json")
        engine.routes["/search?q=Rhine+length&format=json"] = [answer]
        lines = (
            '1. web_lookup(query="Rhine", find="length")\n2. pause(after=$1.error)\n'
            '3. web_lookup(query=$2, find="length")\njoin()'
        )
        tools = [lookup(engine.origin, host.origin, pages=1), pause]
        journal = f"sqlite:///{tmp_path / 'j.db'}"

        def agent() -> Agent:
            return Agent(
                tools,
                runtime=ScriptedRuntime([lines, "Answer: done"]),
                journal=journal,
                policies={"web_lookup": {"retries": 0, "on_error": "keep"}},
            )

        async with agent() as first:
            work = asyncio.create_task(first.ask("How long is it?", run_id="one"))
            await asyncio.wait_for(asked.wait(), 10)
            work.cancel()
            await asyncio.wait([work])
        assert len(host.heads) == 1
        patient = True
        async with agent() as second:
            resumed = await second.resume("one")
    ended = resumed.outcomes[3]
    assert isinstance(ended, Failed)
    assert "wants to be left alone for 3" in ended.error
    assert len(host.heads) == 1, "the next process asked it again"


async def test_redirects_between_two_hosts_do_not_lock_each_other() -> None:
    """Each way at once, with one place at each host: a place is given back before the next."""
    async with serving(host="127.0.0.2") as one, serving(host="127.0.0.3") as two:
        one.routes = {"/go": [redirect(f"{two.origin}/end")], "/end": [reply("one")]}
        two.routes = {"/go": [redirect(f"{one.origin}/end")], "/end": [reply("two")]}
        lines = f'1. web_fetch(url="{one.origin}/go")\n2. web_fetch(url="{two.origin}/go")\njoin()'
        tools = [web_fetch(allow_origins=[one.origin, two.origin])]
        runtime = ScriptedRuntime([lines, "Answer: done"])
        async with Agent(tools, runtime=runtime, per_host=1) as agent:
            answer = await agent.ask("Where do they lead?")
    assert [o.value["text"] for o in answer.outcomes.values() if isinstance(o, Ok)] == [
        "two",
        "one",
    ]
    assert answer.seconds < 15.0


async def test_in_a_loop_of_its_own_a_tool_is_not_stopped() -> None:
    """A sync tool that runs our fetch in another event loop: the gate cannot wait there."""
    gate = HostGate(Limits(per_host=1))
    async with serving({"/": reply("a page")}) as server, gate.visit("127.0.0.1", 1.0, (1, 1)):
        fetch = web_fetch(allow_origins=[server.origin])
        enter_calls(CurrentCall("run", 2, 1, fetch, {}, gate))

        async def alone() -> Any:
            page = await fetch.call(url=f"{server.origin}/")
            assert fetch.close is not None
            await fetch.close()
            return page

        page = await asyncio.to_thread(lambda: asyncio.run(alone()))
    assert page["text"] == "a page"


async def test_outside_a_run_nobody_counts() -> None:
    """A tool called as a function has no limits but its own."""
    async with MiniWeb(latency=0.02) as web:
        tool = lookup(web.origin)
        found = await asyncio.gather(
            *(tool.call(query=name, find="population") for name in ("Chile", "Peru"))
        )
        assert tool.close is not None
        await tool.close()
    assert len(found) == 2
    assert web.statistics().peak > 2


@pytest.mark.parametrize("status", [404, 500])
async def test_an_error_that_asks_for_nothing_is_no_word_about_the_host(status: int) -> None:
    """A page that is gone says nothing of how many may be asked for."""
    async with serving({"/": reply(status=status)}) as server:
        tools = [web_fetch(allow_origins=[server.origin])]
        runtime = ScriptedRuntime([f'1. web_fetch(url="{server.origin}/")\njoin()', "Answer: no"])
        policies: Any = {"*": {"retries": 0}}
        async with (
            Agent(tools, runtime=runtime, policies=policies) as agent,
            agent.run("?") as running,
        ):
            events = [event async for event in running]
    assert not [event for event in events if isinstance(event, HostThrottled)]
