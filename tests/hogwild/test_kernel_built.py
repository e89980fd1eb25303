"""The group kernel, built for GPUs that are not there: it fits, and loads as wide as they can."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

from agentpar.runtime.hogwild import built
from agentpar.runtime.hogwild.kernel import Shape, sizes

if reason := built.missing():
    pytest.skip(reason, allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")

EIGHT_BILLION = Shape(heads=32, kv_heads=8, width=128, block=16, chunk=256)


@pytest.mark.parametrize("architecture", [80, 90, 100])
@pytest.mark.parametrize(
    ("shape", "workers", "dtype"),
    [
        (EIGHT_BILLION, 4, "bf16"),
        (EIGHT_BILLION, 16, "fp16"),
        (EIGHT_BILLION, 32, "bf16"),
        (Shape(heads=14, kv_heads=2, width=64, block=16, chunk=256), 18, "bf16"),
        (Shape(heads=8, kv_heads=8, width=32, block=16, chunk=256), 2, "bf16"),
    ],
    ids=["16 lanes", "64 lanes", "128 lanes", "64 numbers", "32 numbers"],
)
def test_the_kernel_is_built_without_spills_and_within_shared_memory(
    shape: Shape, workers: int, dtype: str, architecture: int
) -> None:
    """Its products are those of tensor cores, and all of keys and values comes in copies of 128
    bits that do not wait."""
    found = built.pieces(shape, workers, dtype, architecture)
    assert found.spilled == 0
    assert found.registers <= 255
    assert found.fits(architecture)
    assert found.matrices
    size = sizes(shape.lanes(workers), shape.width, 16)
    copied = found.copies[128] * 32 * found.warps * 16  # bytes
    assert copied >= 2 * size.tile * shape.width * 2
    assert set(found.copies) == {32, 128}, "32 bits is the number of a block"


@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_what_adds_up_is_small(architecture: int) -> None:
    """So many run at once: they wait for memory and do little else."""
    found = built.merge(EIGHT_BILLION, 4, "bf16", architecture)
    assert found.spilled == 0
    assert found.registers <= 64
    assert found.fits(architecture)


def test_a_program_with_too_many_registers_shows() -> None:
    """Float32 at 128 lanes spills, which nobody runs: vLLM stores no float32 on CUDA."""
    found = built.pieces(EIGHT_BILLION, 32, "fp32", 90)
    assert found.spilled > 0
    assert not found.matrices
