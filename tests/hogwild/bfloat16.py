"""Repairs Triton's interpreter where it computes with bfloat16, so that a kernel in it is proved.

The interpreter keeps a bfloat16 as its 16 bits. `tl.dot` multiplies these as whole numbers, and a
float32 that becomes one is cut off. Here products are taken of the numbers themselves, in float32
(in which a product of two is exact, as in a tensor core), and a float32 goes to the nearest, ties
to even, as on a GPU. Which values are rounded, and where, stays the kernel's own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def repair() -> None:
    """From now on, in this process. Raises where the interpreter needs no such repair any more."""
    stock_dot, stock_cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl
    one = TensorHandle(bits(np.ones((1, 1), np.float32)), tl.bfloat16)
    none = TensorHandle(np.zeros((1, 1), np.float32), tl.float32)
    if stock_dot(InterpreterBuilder(), one, one, none, None, None).data.item() == 1.0:
        raise AssertionError("the interpreter multiplies bfloat16 rightly: leave it as it is")

    def dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        return stock_dot(self, _wide(a), _wide(b), d, *rest)

    def cast(self: Any, src: Any, kind: Any) -> Any:
        if src.dtype.scalar == tl.float32 and kind.scalar == tl.bfloat16:
            return TensorHandle(bits(src.data), tl.bfloat16)
        return stock_cast(self, src, kind)

    InterpreterBuilder.create_dot = dot
    InterpreterBuilder.cast_impl = cast


def bits(numbers: Any) -> Any:
    """The nearest bfloat16 of each float32, as the interpreter keeps it."""
    near = torch.from_numpy(np.ascontiguousarray(numbers)).to(torch.bfloat16)
    return near.view(torch.int16).numpy().view(np.uint16)


def _wide(handle: Any) -> Any:
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    numbers = (handle.data.astype(np.uint32) << 16).view(np.float32)
    return TensorHandle(numbers, tl.float32)
