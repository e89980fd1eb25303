"""What the compiler makes of the group kernel, for GPUs that need not be there.

Triton and the tools that come with it (ptxas, cuobjdump, nvdisasm) go all the way to machine code
without a driver. What registers, shared memory and instructions a program then has is known; how
long it takes is not. Must never start the kernel.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentpar.runtime.hogwild import kernel
from agentpar.runtime.hogwild.kernel import Shape, sizes

SHARED = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}
"""Bytes of shared memory that a block of threads may have, by architecture (CUDA programming
guide, compute capabilities)."""
REGISTERS = 65_536
"""Of a multiprocessor, on each of these."""

MATRICES = {"HMMA": "mma", "HGMMA": "wgmma", "UTCHMMA": "tcgen05"}
"""Instructions of tensor cores, and what PTX calls them."""


@dataclass(frozen=True, slots=True)
class Built:
    """One program, in numbers of a thread where it says nothing else.

    ``spilled``: bytes of the stack, which is there for registers that did not suffice. ``shared``:
    bytes of a block of ``warps``. ``matrices``: how it multiplies on tensor cores, "" if it does
    not. ``copies``: instructions that bring memory into shared memory without waiting, by bits.
    """

    registers: int
    spilled: int
    shared: int
    warps: int
    matrices: str
    copies: dict[int, int]

    def fits(self, architecture: int) -> bool:
        """Whether a multiprocessor can start a block of it."""
        registers = self.registers * 32 * self.warps
        return self.shared <= SHARED[architecture] and registers <= REGISTERS


def missing() -> str | None:
    """What is not there to build with, None if nothing; needs Triton itself."""
    from triton import knobs

    for tool in ("ptxas", "cuobjdump", "nvdisasm"):
        if not Path(getattr(knobs.nvidia, tool).path).is_file():
            return f"this Triton has no {tool}"
    return None


def pieces(shape: Shape, workers: int, dtype: str, architecture: int) -> Built:
    """The program that reads the cache, as vLLM would start it.

    ``dtype``: ``fp16``, ``bf16`` or ``fp32``, of cache and queries. ``architecture``: 90 for
    compute capability 9.0.
    """
    lanes = shape.lanes(workers)
    size = sizes(lanes, shape.width, 32 if dtype == "fp32" else 16)
    constants = {
        "SHARING": shape.sharing,
        "LANES": lanes,
        "HALF": shape.width // 2,
        "BLOCK": shape.block,
        "SPAN": shape.span,
        "TILE": size.tile,
    }
    pointers = {"queries": dtype, "keys": dtype, "values": dtype}
    pointers |= dict.fromkeys(("count", "bounds", "tables", "seats"), "i32")
    pointers |= dict.fromkeys(("cosines", "sines", "partial", "weights"), "fp32")
    return _built(kernel._pieces, pointers, constants, architecture, size.warps, size.stages)


def merge(shape: Shape, workers: int, dtype: str, architecture: int) -> Built:
    """The program that adds up what the others found; as `pieces`."""
    constants = {
        "KV_HEADS": shape.kv_heads,
        "SHARING": shape.sharing,
        "LANES": shape.lanes(workers),
        "WIDTH": shape.width,
        "MERGED": kernel.MERGED,
    }
    pointers = {"partial": "fp32", "weights": "fp32", "asked": "i32", "out": dtype}
    return _built(kernel._merge, pointers, constants, architecture, 4, 3)


def _built(
    program: Any,
    pointers: dict[str, str],
    constants: dict[str, int],
    architecture: int,
    warps: int,
    stages: int,
) -> Built:
    """All else that ``program`` takes is ``scale``, and strides: multiples of 16, as pointers."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names: Sequence[str] = program.arg_names
    signature = dict.fromkeys(names, "i32") | {n: f"*{kind}" for n, kind in pointers.items()}
    signature |= dict.fromkeys(constants, "constexpr")
    if "scale" in signature:
        signature["scale"] = "fp32"
    aligned = [n for n in names if n != "scale" and n not in constants]
    source = ASTSource(
        program,
        {name: signature[name] for name in names},
        constants,
        {(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    options = {"num_warps": warps, "num_stages": stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    used, instructions = _read(compiled.asm["cubin"])
    registers, stack = (
        int(found.group(1))
        for what in ("REG", "STACK")
        if (found := re.search(rf"\b{what}:(\d+)", used))
    )
    copies = Counter(
        int(bits or 32) for bits in re.findall(r"\bLDGSTS\.E(?:\.\D\w*)*(?:\.(\d+))?", instructions)
    )
    matrices = [name for op, name in MATRICES.items() if re.search(rf"\b{op}\b", instructions)]
    return Built(
        registers, stack, compiled.metadata.shared, warps, " ".join(matrices), dict(copies)
    )


def _read(program: bytes) -> tuple[str, str]:
    """What the tools say a ``program`` uses, and its instructions."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program.cubin"
        path.write_bytes(program)

        def said(tool: str, *options: str) -> str:
            command = [getattr(knobs.nvidia, tool).path, *options, str(path)]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout

        return said("cuobjdump", "--dump-resource-usage"), said("nvdisasm", "-c")
