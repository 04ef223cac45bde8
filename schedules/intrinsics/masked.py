"""Loads of some lanes of a vector, in LLVM's own language: masked-out bytes are never touched.

Source: LLVM Language Reference, ``llvm.masked.load``; on AVX2 ``vmaskmovps``.
"""

from __future__ import annotations

from typing import Any

LLVM_IR = """
define <16 x float> @lutcc_load_masked(ptr %p, <16 x i32> %mask) alwaysinline {
  %on = icmp slt <16 x i32> %mask, zeroinitializer
  %v = call <16 x float> @llvm.masked.load.v16f32.p0(ptr %p, i32 4, <16 x i1> %on,
                                                     <16 x float> zeroinitializer)
  ret <16 x float> %v
}
declare <16 x float> @llvm.masked.load.v16f32.p0(ptr, i32, <16 x i1>, <16 x float>)
"""


def load(address: Any, mask: Any) -> Any:
    """Return the call that loads the float32 lanes whose int32 mask is negative; others are 0."""
    import tvm.tirx as tir

    return tir.call_extern("float32x16", "lutcc_load_masked", address, mask)
