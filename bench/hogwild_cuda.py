"""The first hour with a GPU: is the group kernel right there, and how fast.

    python bench/hogwild_cuda.py [--save]          on a machine with an NVIDIA GPU
    python bench/hogwild_cuda.py --built [--save]  what the compiler makes of the kernel; no GPU
    python bench/hogwild_cuda.py --rehearse        all of it at toy size on a CPU, without a time

In this order, and it stops at the first thing that is wrong:

1. The kernel in each type of numbers, beside plain attention in float64 over the same cache.
2. A CUDA graph that captured the kernel with room to spare, replayed for other steps.
3. The bandwidth of a copy on the device, the yardstick of all that follows.
4. Attention alone, in the shape of an 8B model (32 layers, 32 heads over 8 of size 128, bfloat16),
   for 1 to 8 workers who share a prefix and have written 64 tokens each:
   - shared: one group, each tile of the cache read once
   - apart: the same kernel with each worker as a group of one
   - SDPA: torch's own, for each worker; its cache lies in one piece, and is the same for all
5. Whole steps, with the products of an 8B model's weights around attention: step(n) over step(1),
   and how near a step comes to the time in which weights and cache can be read once (roofline).
6. Attention by the tokens of an item: what `CHUNK` should be.

Times are the median of N runs, by the GPU's own clock. Nothing is a gate but being right.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

if "--rehearse" in sys.argv:  # it has to be chosen before Triton is imported
    os.environ["TRITON_INTERPRET"] = "1"

import machine_facts
import torch

from agentpar.runtime.hogwild import built
from agentpar.runtime.hogwild.kernel import Part, Room, Shape, Work, attend
from agentpar.runtime.hogwild.spans import Board, Span, rotation
from agentpar.runtime.hogwild.worklist import items

OWN = 64
"""Tokens that each worker has written."""
MOST = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
"""The largest error that is right. Values are drawn from a normal distribution."""


@dataclass(frozen=True, slots=True)
class Size:
    """What is run: a model's shape, how long the prefix is, and how many workers."""

    shape: Shape
    layers: int
    hidden: int
    inner: int
    vocabulary: int
    contexts: tuple[int, ...]
    workers: tuple[int, ...]
    chunks: tuple[int, ...]
    runs: int


REAL = Size(
    Shape(heads=32, kv_heads=8, width=128, block=16, chunk=256),
    layers=32,
    hidden=4096,
    inner=14336,
    vocabulary=128256,
    contexts=(1024, 4096, 16384, 32768),
    workers=(1, 2, 4, 8),
    chunks=(64, 128, 256, 512, 1024),
    runs=20,
)
TOY = Size(
    Shape(heads=4, kv_heads=2, width=32, block=16, chunk=32),
    layers=2,
    hidden=64,
    inner=128,
    vocabulary=100,
    contexts=(40,),
    workers=(1, 2),
    chunks=(32, 64),
    runs=1,
)


class Here:
    """The device. Only a GPU has times: a rehearsal runs what is to be timed, and has none."""

    def __init__(self, *, rehearsed: bool) -> None:
        self.rehearsed = rehearsed
        self.device = torch.device("cpu" if rehearsed else "cuda")

    def time(self, run: Callable[[], Any], runs: int) -> float | None:
        """Median seconds of ``run``."""
        run()
        if self.rehearsed:
            return None
        times = []
        for _ in range(runs):
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            began.record()
            run()
            ended.record()
            ended.synchronize()
            times.append(began.elapsed_time(ended) / 1e3)
        return statistics.median(times)


class Group:
    """Workers in a step, and caches of their rows, one for each layer, all drawn at random."""

    def __init__(
        self, here: Here, shape: Shape, context: int, workers: int, layers: int, dtype: torch.dtype
    ) -> None:
        torch.manual_seed(0)
        self.shape, self.dtype = shape, dtype
        board = Board(context)
        for number in range(workers):
            board.join(str(number))
            board.write(str(number), OWN)
        self.prefix = context
        self.views = {row: board.view(row) for row in board.rows}
        # The prefix lies once, in the first blocks; then come each row's own.
        common, own = context // shape.block, -(-(context + OWN) // shape.block)
        own -= common
        self.blocks = {
            row: [*range(common), *range(common + n * own, common + (n + 1) * own)]
            for n, row in enumerate(self.views)
        }
        size = common + workers * own, shape.kv_heads, shape.block, shape.width
        self.caches = [torch.randn(2, *size, device=here.device).to(dtype) for _ in range(layers)]
        self.queries = torch.randn(workers, shape.heads, shape.width, device=here.device).to(dtype)
        pairs = torch.arange(0, shape.width, 2, dtype=torch.float64, device=here.device)
        self.frequencies = 1.0 / 10_000.0 ** (pairs / shape.width)

    def together(self) -> list[Part]:
        """As one group."""
        return [Part(items(self.views, self.prefix, self.shape.chunk), self.blocks, self.places)]

    def apart(self) -> list[Part]:
        """Each as a group of one, who sees what it sees in the group."""
        return [
            Part(items({row: view}, self.prefix, self.shape.chunk), self.blocks, [place])
            for place, (row, view) in zip(self.places, self.views.items(), strict=True)
        ]

    @property
    def places(self) -> list[int]:
        return list(range(len(self.views)))

    def work(self, parts: Sequence[Part], room: Room | None = None) -> Work:
        work = Work(self.shape, room or Room.of(parts), self.frequencies)
        work.load(parts)
        return work

    def attend(self, work: Work, layer: int = 0, out: torch.Tensor | None = None) -> torch.Tensor:
        out = torch.empty_like(self.queries) if out is None else out
        keys, values = self.caches[layer]
        attend(self.queries, keys, values, work, self.shape.width**-0.5, out)
        return out

    def bytes(self, parts: Sequence[Part]) -> int:
        """Of keys and values that one layer reads."""
        tokens = sum(item.stop - item.start for part in parts for item in part.items)
        return 2 * tokens * self.shape.kv_heads * self.shape.width * self.dtype.itemsize

    def plain(self) -> torch.Tensor:
        """Plain attention in float64, over what lies in the first layer's cache."""
        found = []
        for place, view in enumerate(self.views.values()):
            scores, values = [], []
            for span in view:
                key, value = (self._seen(half, span) for half in self.caches[0])
                asked = self._turned(self.queries[place], rotation(span, view[-1]))
                scores.append(torch.einsum("hd,hkd->hk", asked, key) * self.shape.width**-0.5)
                values.append(value)
            weights = torch.cat(scores, 1).softmax(1)
            found.append(torch.einsum("hk,hkd->hd", weights, torch.cat(values, 1)))
        return torch.stack(found)

    def _seen(self, half: torch.Tensor, span: Span) -> torch.Tensor:
        """Keys or values of ``span`` [heads, tokens, width]; of the prefix, the first row's."""
        own = next(iter(self.views)) if span.stop <= self.prefix else span.row
        at = torch.arange(span.start, span.stop, device=half.device)
        blocks = torch.tensor(self.blocks[own], device=half.device)[at // self.shape.block]
        found = half[blocks, :, at % self.shape.block].double().transpose(0, 1)
        return found.repeat_interleave(self.shape.sharing, 0)

    def _turned(self, query: torch.Tensor, positions: int) -> torch.Tensor:
        angles = positions * self.frequencies
        low, high = query.double().chunk(2, -1)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([low * cos - high * sin, high * cos + low * sin], -1)


class Weights:
    """An 8B model's, without what costs nothing: norms, rotations, the lookup of a token."""

    def __init__(self, here: Here, size: Size, dtype: torch.dtype) -> None:
        shape = size.shape
        wide = shape.heads * shape.width
        both = wide + 2 * shape.kv_heads * shape.width

        def drawn(rows: int, columns: int) -> torch.Tensor:
            return torch.randn(rows, columns, device=here.device, dtype=dtype) * columns**-0.5

        self.layers = [
            (
                drawn(both, size.hidden),
                drawn(size.hidden, wide),
                drawn(2 * size.inner, size.hidden),
                drawn(size.hidden, size.inner),
            )
            for _ in range(size.layers)
        ]
        self.head = drawn(size.vocabulary, size.hidden)
        self.hidden = size.hidden
        self.wide = wide

    @property
    def bytes(self) -> int:
        every = [self.head, *(matrix for layer in self.layers for matrix in layer)]
        return sum(matrix.nbytes for matrix in every)

    def step(self, group: Group, work: Work) -> None:
        """A token of each worker, through all layers. What attention says of the group's queries
        goes on; queries, keys and values that would come of it are made and left."""
        linear = torch.nn.functional.linear
        hidden = group.queries.new_ones(len(group.views), self.hidden)
        for number, (qkv, out, up, down) in enumerate(self.layers):
            linear(hidden, qkv)
            found = group.attend(work, number)
            hidden = hidden + linear(found.view(-1, self.wide), out)
            gate, value = linear(hidden, up).chunk(2, -1)
            hidden = hidden + linear(torch.nn.functional.silu(gate) * value, down)
            hidden = hidden / hidden.norm(dim=-1, keepdim=True)
        linear(hidden, self.head).argmax(-1)


def right(here: Here, size: Size) -> Iterator[str]:
    """Raises `SystemExit` where the kernel is wrong."""
    yield "| numbers | workers | largest error | may be |"
    yield "|---|---|---|---|"
    for dtype, most in MOST.items():
        name = str(dtype).removeprefix("torch.")
        if here.rehearsed and dtype == torch.bfloat16:
            yield f"| {name} | - | (the interpreter cannot) | {most:g} |"
            continue
        for workers in size.workers:
            group = Group(here, size.shape, size.contexts[0] + 5, workers, 1, dtype)
            got = group.attend(group.work(group.together()))
            error = (got.double() - group.plain()).abs().max().item()
            yield f"| {name} | {workers} | {error:.1e} | {most:g} |"
            if not error <= most:
                raise SystemExit(f"the kernel is wrong in {name} with {workers} workers: {error}")


def graph(here: Here, size: Size) -> Iterator[str]:
    """Capture the kernel once, replay it for three steps; raises `SystemExit` for a difference."""
    workers = size.workers[-1]
    group = Group(here, size.shape, size.contexts[0], workers, 1, torch.float16)
    room = Room(items=256, queries=2 * workers, turns=256 * workers, workers=workers)
    work = group.work((), room)
    out = torch.empty_like(group.queries)
    replay = _captured(here, lambda: group.attend(work, out=out))
    for name, parts in (
        ("one group", group.together()),
        ("groups of one", group.apart()),
        ("one group again", group.together()),
    ):
        work.load(parts)
        replay()
        anew = group.work(parts, replace(Room.of(parts), workers=workers))  # as many lanes
        if not torch.equal(out, group.attend(anew)):
            raise SystemExit(f"a replayed kernel says otherwise than one that is started: {name}")
    how = "started anew, as there are no graphs here" if here.rehearsed else "replayed"
    yield f"- the same bits for three steps of other shape, {how}"


def _captured(here: Here, run: Callable[[], Any]) -> Callable[[], Any]:
    """``run`` as a graph; without a GPU as it is."""
    if here.rehearsed:
        return run
    run()  # what is built or set up at first cannot be captured
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def copied(here: Here, runs: int) -> float | None:
    """Bytes a second of a copy on the device, read and written ones."""
    count = 1 << (10 if here.rehearsed else 30)
    source = torch.empty(count, dtype=torch.uint8, device=here.device)
    target = torch.empty_like(source)
    seconds = here.time(lambda: target.copy_(source), runs)
    return None if seconds is None else 2 * count / seconds


def attention(here: Here, size: Size, bandwidth: float | None) -> Iterator[str]:
    dtype = torch.float16 if here.rehearsed else torch.bfloat16
    yield "| prefix | workers | shared, us | GB/s | of the copy | apart, us | × | SDPA, us | × |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for context in size.contexts:
        for workers in size.workers:
            group = Group(here, size.shape, context, workers, size.layers, dtype)
            parts = group.together()
            shared = _layers(here, size, group, group.work(parts))
            apart = _layers(here, size, group, group.work(group.apart()))
            stock = here.time(_captured(here, _stock(group)), size.runs)
            stock = None if stock is None else stock / size.layers
            rate = None if shared is None else group.bytes(parts) / shared
            yield (
                f"| {context} | {workers} | {_number(shared, 1e6)} | {_number(rate, 1e-9)} "
                f"| {_ratio(rate, bandwidth)} | {_number(apart, 1e6)} | {_ratio(apart, shared)} "
                f"| {_number(stock, 1e6)} | {_ratio(stock, shared)} |"
            )


def _layers(here: Here, size: Size, group: Group, work: Work) -> float | None:
    """Seconds of a layer; all layers run one after the other, so no cache is still at hand."""

    def run() -> None:
        for layer in range(size.layers):
            group.attend(work, layer)

    found = here.time(_captured(here, run), size.runs)
    return None if found is None else found / size.layers


def _stock(group: Group) -> Callable[[], None]:
    """torch's attention in each layer, over as many tokens as each worker sees."""
    workers, shape = len(group.views), group.shape
    tokens = next(sum(span.stop - span.start for span in view) for view in group.views.values())
    caches = []
    for cache in group.caches:
        flat = cache.transpose(2, 3).flatten(1, 2)[:, :tokens].transpose(1, 2).contiguous()
        caches.append(flat[:, None].expand(2, workers, shape.kv_heads, -1, shape.width))
    asked = group.queries[:, :, None]

    def run() -> None:
        for keys, values in caches:
            torch.nn.functional.scaled_dot_product_attention(asked, keys, values, enable_gqa=True)

    return run


def steps(here: Here, size: Size, bandwidth: float | None) -> Iterator[str]:
    dtype = torch.float16 if here.rehearsed else torch.bfloat16
    weights = Weights(here, size, dtype)
    yield "| prefix | workers | shared, ms | × one | of the roofline | apart, ms | × shared |"
    yield "|---|---|---|---|---|---|---|"
    for context in size.contexts:
        alone: float | None = None
        for workers in size.workers:
            group = Group(here, size.shape, context, workers, size.layers, dtype)
            parts = group.together()
            shared = _step(here, size, weights, group, parts)
            apart = _step(here, size, weights, group, group.apart())
            alone = alone or shared
            least = None
            if bandwidth is not None:
                least = (weights.bytes + size.layers * group.bytes(parts)) / bandwidth
            yield (
                f"| {context} | {workers} | {_number(shared, 1e3)} | {_ratio(shared, alone)} "
                f"| {_ratio(least, shared)} | {_number(apart, 1e3)} | {_ratio(apart, shared)} |"
            )


def _step(
    here: Here, size: Size, weights: Weights, group: Group, parts: Sequence[Part]
) -> float | None:
    """Seconds of a whole step."""
    work = group.work(parts)
    return here.time(_captured(here, lambda: weights.step(group, work)), size.runs)


def chunks(here: Here, size: Size) -> Iterator[str]:
    dtype = torch.float16 if here.rehearsed else torch.bfloat16
    yield "| prefix | " + " | ".join(f"{chunk} tokens, us" for chunk in size.chunks) + " |"
    yield "|---" * (1 + len(size.chunks)) + "|"
    for context in size.contexts:
        found = []
        for chunk in size.chunks:
            shape = replace(size.shape, chunk=chunk)
            group = Group(here, shape, context, size.workers[-1], size.layers, dtype)
            found.append(_layers(here, size, group, group.work(group.together())))
        yield f"| {context} | " + " | ".join(_number(seconds, 1e6) for seconds in found) + " |"


def compiled() -> Iterator[str]:
    """What the compiler makes of the kernel, in the shapes that vLLM would start."""
    yield (
        "Copies: how many bits one brings; 32 are the numbers of blocks, the others keys and "
        "values."
    )
    yield ""
    heads = "sm", "numbers", "head", "lanes", "warps", "registers", "spilled, B", "shared, B"
    yield f"| {' | '.join((*heads, 'mma', 'copies'))} |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for architecture in (80, 90, 100, 89, 120):
        kinds = ("bf16", "fp16", "fp32") if architecture in (80, 90, 100) else ("bf16",)
        for dtype in kinds:
            for width in (32, 64, 128):
                shape = replace(REAL.shape, width=width)
                for lanes in (16, 32, 64, 128):
                    one = built.pieces(shape, lanes // shape.sharing, dtype, architecture)
                    over = "" if one.fits(architecture) else " (too much)"
                    yield (
                        f"| {architecture} | {dtype} | {width} | {lanes} | {one.warps} "
                        f"| {one.registers} | {one.spilled} | {one.shared}{over} "
                        f"| {one.matrices or '-'} | {' '.join(map(str, sorted(one.copies)))} |"
                    )


def _number(value: float | None, scale: float) -> str:
    return "-" if value is None else f"{value * scale:.1f}"


def _ratio(one: float | None, other: float | None) -> str:
    return "-" if one is None or other is None else f"{one / other:.2f}"


def report(here: Here, size: Size) -> Iterator[str]:
    """The page, line by line as it comes."""
    yield from machine_facts.lines(("torch", "triton"))
    if here.rehearsed:
        yield "- a rehearsal on a CPU, in Triton's interpreter, at toy size: no times"
    else:
        major, minor = torch.cuda.get_device_capability()
        yield f"- {torch.cuda.get_device_name()}, compute capability {major}.{minor}"
        yield f"- median of {size.runs} runs; kernels are replayed from a CUDA graph"
    yield "\n## Right\n"
    yield from right(here, size)
    yield "\n## From a graph\n"
    yield from graph(here, size)
    yield "\n## Attention of a layer\n"
    bandwidth = copied(here, size.runs)
    yield f"A copy on the device: {_number(bandwidth, 1e-9)} GB/s, read and written.\n"
    yield from attention(here, size, bandwidth)
    yield "\n## Whole steps\n"
    yield from steps(here, size, bandwidth)
    yield "\n## Attention of a layer, by the tokens of an item\n"
    yield from chunks(here, size)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--built", action="store_true", help="what the compiler makes; no GPU")
    arguments.add_argument("--rehearse", action="store_true", help="on a CPU, at toy size")
    arguments.add_argument("--save", action="store_true")
    given = arguments.parse_args()
    if given.built:
        if reason := built.missing():
            raise SystemExit(f"the kernel cannot be built here: {reason}")
        lines = _printed((*machine_facts.lines(("triton",)), ""), compiled())
        name, title = "hogwild_cuda-built", "The group kernel, as it is built for GPUs"
    elif given.rehearse:
        if given.save:
            raise SystemExit("a rehearsal has no results: leave out --save or --rehearse")
        lines = _printed(report(Here(rehearsed=True), TOY))
        return
    elif not torch.cuda.is_available():
        raise SystemExit("there is no GPU here that torch can use: see --rehearse and --built")
    else:
        lines = _printed(report(Here(rehearsed=False), REAL))
        name, title = "hogwild_cuda", "The group kernel on a GPU"
    if given.save:
        options = " --built" if given.built else ""
        machine_facts.save(name, title, lines, by=f"bench/hogwild_cuda.py{options}")


@torch.inference_mode()
def _printed(*parts: Any) -> list[str]:
    lines = []
    for part in parts:
        for line in part:
            print(line, flush=True)
            lines.append(line)
    return lines


if __name__ == "__main__":
    main()
