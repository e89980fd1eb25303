"""What sharing costs a step of the reference engine: further rotations, and the others' tokens.

    python bench/hogwild_engine.py [--prefix TOKENS] [--steps N] [--save]

A random model in the shape of a 135M one (30 layers, 576 wide, 9 heads over 3 of size 64, float32,
49,152 tokens), on one thread. Timed is a step in which each of n workers computes one token, after
16 own tokens each, in three ways that take turns:

- shared: n workers of one group
- unturned: the same, without the further rotations (what comes out is wrong): their cost is the
  difference
- apart: n groups of one worker each, one after the other. It reads weights and prefix n times, as
  it computes one group at a time: no fair rival for a server that computes many at once, but what
  this engine would do without sharing

Times are CPU time of the thread, the median of N steps. No gate: this engine is there to be right.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import machine_facts
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from agentpar.runtime.hogwild.engine import Engine, Group
from agentpar.runtime.hogwild.engine.attention import Piece, attend
from agentpar.runtime.hogwild.sampling import Sampling

SHAPE = LlamaConfig(
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    vocab_size=49152,
    max_position_embeddings=8192,
    tie_word_embeddings=True,
)
WORKERS = (1, 2, 4, 8)
HEAD = 15  # tokens; with the first one a worker writes, 16 own tokens before a timed step


def unturned(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, pieces: Sequence[Piece], *rest: Any
) -> torch.Tensor:
    """Attention as the engine's, but no query is rotated any further."""
    return attend(q, k, v, [replace(piece, turn=None) for piece in pieces], *rest)


def begin(engine: Engine, prefix: int, workers: int, steps: int) -> Group:
    """A group whose workers have all begun to write."""
    group = engine.group([1] * prefix)
    for number in range(workers):
        sampling = Sampling(max_tokens=steps + 8, ignore_eos=True)
        group.join(str(number), [number + 2] * HEAD, sampling)
    while not group.step():
        pass
    group.step()  # the first that computes one token a worker
    return group


def timed(groups: Sequence[Group]) -> float:
    """Seconds of CPU for one step of each of ``groups``."""
    began = time.thread_time()
    for group in groups:
        group.step()
    return time.thread_time() - began


def row(model: Any, prefix: int, workers: int, steps: int) -> tuple[float, float, float]:
    """Median seconds of a step: shared, unturned, apart."""
    engines = {"shared": Engine(model), "unturned": Engine(model, attention=unturned)}
    with ExitStack() as stack:
        ways = {
            way: [stack.enter_context(begin(engine, prefix, workers, steps))]
            for way, engine in engines.items()
        }
        ways["apart"] = [
            stack.enter_context(begin(engines["shared"], prefix, 1, steps)) for _ in range(workers)
        ]
        times: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(steps):
            for way, groups in ways.items():
                times[way].append(timed(groups))
    shared, bare, apart = (statistics.median(times[way]) for way in ("shared", "unturned", "apart"))
    return shared, bare, apart


def report(prefix: int, steps: int) -> Iterator[str]:
    """The table, line by line as it comes."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = LlamaForCausalLM(SHAPE).eval()
    yield from machine_facts.lines(("torch", "transformers"))
    yield f"- prefix of {prefix} tokens, median of {steps} steps, ms of CPU on one thread"
    yield ""
    yield "| workers | shared | × one worker | rotations | apart | apart / shared |"
    yield "|---|---|---|---|---|---|"
    alone = 0.0
    for workers in WORKERS:
        shared, bare, apart = row(model, prefix, workers, steps)
        alone = alone or shared
        yield (
            f"| {workers} | {shared * 1e3:.1f} | {shared / alone:.2f} "
            f"| {(shared - bare) * 1e3:.1f} ({(shared - bare) / shared:.0%}) "
            f"| {apart * 1e3:.1f} | {apart / shared:.2f} |"
        )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--prefix", type=int, default=1024)
    arguments.add_argument("--steps", type=int, default=21)
    arguments.add_argument("--save", action="store_true")
    given = arguments.parse_args()
    lines = []
    for line in report(given.prefix, given.steps):
        print(line, flush=True)
        lines.append(line)
    if given.save:
        machine_facts.save("hogwild_engine", "A step of the reference engine", lines)


if __name__ == "__main__":
    main()
