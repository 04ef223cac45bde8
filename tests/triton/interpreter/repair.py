"""Makes Triton's interpreter compute as a GPU does.

It stores bfloat16 as integers: sums and products of them are wrong, silently, and casts truncate.
Here they become ml_dtypes' bfloat16, which NumPy computes with. And products in tf32 are computed
in float32: here their operands are rounded to tf32 as a GPU would do it. Fused multiply-adds of
float32 round twice in it: here once.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import triton.language as tl
from triton.runtime import interpreter

from lutcc.ir.arithmetic import fma32

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def install() -> None:
    """Patch the interpreter; once is enough."""
    builder: Any = interpreter.InterpreterBuilder
    if getattr(builder, "repaired_by_lutcc", False):
        return
    builder.repaired_by_lutcc = True
    stored = interpreter._get_np_dtype
    cast, convert, dot = builder.cast_impl, builder.create_fp_to_fp, builder.create_dot
    fma = builder.create_fma

    def get_np_dtype(dtype: Any) -> np.dtype:
        # block_type.scalar is the element type; a pointer is its own scalar
        return BFLOAT16 if dtype.scalar == tl.bfloat16 else stored(dtype)

    def involves(source: Any, target: Any) -> bool:
        return tl.bfloat16 in (source.dtype.scalar, target.scalar)

    def cast_impl(self: Any, source: Any, target: Any) -> Any:
        if not involves(source, target):
            return cast(self, source, target)
        return interpreter.TensorHandle(source.data.astype(get_np_dtype(target)), target.scalar)

    def create_fp_to_fp(self: Any, source: Any, target: Any, rounding: Any) -> Any:
        if not involves(source, target):
            return convert(self, source, target, rounding)
        return cast_impl(self, source, target)

    def create_dot(self: Any, a: Any, b: Any, total: Any, precision: Any, imprecise: Any) -> Any:
        names = interpreter._ir.INPUT_PRECISION
        if a.dtype.scalar != tl.float32 or precision not in (names.TF32, names.TF32x3):
            return dot(self, a, b, total, precision, imprecise)
        high_a, high_b = to_tf32(a.data), to_tf32(b.data)
        result = total.data
        if precision == names.TF32x3:
            result = result + to_tf32(a.data - high_a) @ high_b + high_a @ to_tf32(b.data - high_b)
        return interpreter.TensorHandle(result + high_a @ high_b, total.dtype.scalar)

    def create_fma(self: Any, x: Any, y: Any, z: Any) -> Any:
        if z.dtype.scalar != tl.float32:
            return fma(self, x, y, z)
        return interpreter.TensorHandle(fma32(x.data, y.data, z.data), z.dtype.scalar)

    patch_tensor = interpreter._patch_lang_tensor

    def patch_lang_tensor(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        # Triton 3.6 converts an array of one element, which NumPy 2.4 refuses.
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_lang_tensor
    interpreter._get_np_dtype = get_np_dtype
    builder.cast_impl, builder.create_fp_to_fp = cast_impl, create_fp_to_fp
    builder.create_dot, builder.create_fma = create_dot, create_fma


def to_tf32(x: np.ndarray) -> np.ndarray:
    """Round float32 to 10 bits of mantissa, to the nearest, ties away from zero."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + np.uint32(1 << 12)) & np.uint32(0xFFFFE000)).view(np.float32)
