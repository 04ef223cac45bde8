"""Stores that bypass the caches, and prefetches, in LLVM's own language (TVM names neither).

An output larger than the L2 cache costs twice its size in traffic when stored the usual way:
each line is read before it is overwritten. Non-temporal stores write whole lines and read
nothing. They need 64-byte alignment, and a fence before another thread may look.

A prefetch asks for a cache line early, where no hardware can guess the address: the table entries
that codes select.
"""

from __future__ import annotations

from typing import Any

from lutcc.schedules.intrinsics import emulation

#: Definitions that :func:`lutcc.codegen.entry` attaches to every entry function.
LLVM_IR = """
define void @lutcc_store_stream(ptr %p, <16 x float> %v) alwaysinline {
  store <16 x float> %v, ptr %p, align 64, !nontemporal !0
  ret void
}
define void @lutcc_store_stream_8(ptr %p, <8 x float> %v) alwaysinline {
  store <8 x float> %v, ptr %p, align 32, !nontemporal !0
  ret void
}
define i64 @lutcc_misalignment(ptr %p) alwaysinline {
  %address = ptrtoint ptr %p to i64
  %low = and i64 %address, 63
  ret i64 %low
}
define void @lutcc_fence() alwaysinline {
  call void @llvm.x86.sse.sfence()
  ret void
}
define void @lutcc_prefetch(ptr %p) alwaysinline {
  call void @llvm.prefetch.p0(ptr %p, i32 0, i32 3, i32 1)
  ret void
}
define void @lutcc_prefetch_l2(ptr %p) alwaysinline {
  call void @llvm.prefetch.p0(ptr %p, i32 0, i32 2, i32 1)
  ret void
}
define <8 x i32> @lutcc_keep_256(<8 x i32> %v) alwaysinline {
  %same = call <8 x i32> asm "", "=x,0"(<8 x i32> %v)
  ret <8 x i32> %same
}
define <16 x i32> @lutcc_keep_512(<16 x i32> %v) alwaysinline {
  %same = call <16 x i32> asm "", "=v,0"(<16 x i32> %v)
  ret <16 x i32> %same
}
define <8 x float> @lutcc_rounded_256(<8 x float> %v) alwaysinline {
  %same = call <8 x float> asm "", "=x,0"(<8 x float> %v)
  ret <8 x float> %same
}
define <16 x float> @lutcc_rounded_512(<16 x float> %v) alwaysinline {
  %same = call <16 x float> asm "", "=v,0"(<16 x float> %v)
  ret <16 x float> %same
}
define <8 x i32> @lutcc_pin_int32x8(<8 x i32> %v) alwaysinline {
  %same = call <8 x i32> asm sideeffect "", "=x,0"(<8 x i32> %v)
  ret <8 x i32> %same
}
define <16 x i32> @lutcc_pin_int32x16(<16 x i32> %v) alwaysinline {
  %same = call <16 x i32> asm sideeffect "", "=v,0"(<16 x i32> %v)
  ret <16 x i32> %same
}
define <8 x float> @lutcc_pin_float32x8(<8 x float> %v) alwaysinline {
  %same = call <8 x float> asm sideeffect "", "=x,0"(<8 x float> %v)
  ret <8 x float> %same
}
define <16 x float> @lutcc_pin_float32x16(<16 x float> %v) alwaysinline {
  %same = call <16 x float> asm sideeffect "", "=v,0"(<16 x float> %v)
  ret <16 x float> %same
}
declare void @llvm.x86.sse.sfence()
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
!0 = !{i32 1}
"""


def store(address: Any, vector: Any, lanes: int = 16) -> Any:
    """Return the call that writes 16 (or 8) float32 lanes to an address aligned to their bytes."""
    import tvm.tirx as tir

    name = "lutcc_store_stream" if lanes == 16 else f"lutcc_store_stream_{lanes}"
    return tir.call_extern("void", name, address, vector)


def misalignment(address: Any) -> Any:
    """Return the call that gives the address modulo 64."""
    import tvm.tirx as tir

    return tir.call_extern("int64", "lutcc_misalignment", address)


def fence() -> Any:
    """Return the call that makes streamed bytes visible to other threads."""
    import tvm.tirx as tir

    return tir.call_extern("void", "lutcc_fence")


def prefetch(address: Any) -> Any:
    """Return the call that asks for the cache line at ``address``; it need not be valid."""
    import tvm.tirx as tir

    return tir.call_extern("void", "lutcc_prefetch", address)


def prefetch_l2(address: Any) -> Any:
    """Return the call that asks for the cache line at ``address``, up to the L2 cache."""
    import tvm.tirx as tir

    return tir.call_extern("void", "lutcc_prefetch_l2", address)


def keep(vector: Any, lanes: int) -> Any:
    """Return an int32 vector of 8 or 16 lanes that LLVM takes for unknown.

    LLVM regroups sums of integers at will; the regrouped ones may need more registers than exist.
    """
    import tvm.tirx as tir

    if emulation.active():  # there is no register of 512 bits, and speed does not matter
        return vector
    return tir.call_extern(f"int32x{lanes}", f"lutcc_keep_{lanes * 32}", vector)


def pin(vector: Any, kind: str, lanes: int) -> Any:
    """Return an int32 or float32 vector of 8 or 16 lanes that is there before any later load.

    LLVM loads ahead as far as it likes, and, where a tile takes nearly all registers, more than
    they hold: what it then stores and loads again may cost more than half of the time.
    """
    import tvm.tirx as tir

    if emulation.active():  # there is no register of 512 bits, and speed does not matter
        return vector
    return tir.call_extern(f"{kind}x{lanes}", f"lutcc_pin_{kind}x{lanes}", vector)


def rounded(vector: Any, lanes: int, *, wide: bool = False) -> Any:
    """Return a float32 vector of 4, 8 or 16 lanes that LLVM takes for unknown.

    LLVM fuses a product and the sum that takes it, which then is not rounded in between. ``wide``:
    16 lanes are one register.
    """
    import tvm.tirx as tir

    if lanes == 16 and wide:
        return tir.call_extern("float32x16", "lutcc_rounded_512", vector)
    if lanes == 8:
        return tir.call_extern("float32x8", "lutcc_rounded_256", vector)
    if lanes < 8:
        twice = tir.Shuffle([vector] * (8 // lanes), list(range(8)))
        return tir.Shuffle([rounded(twice, 8)], list(range(lanes)))
    halves = [tir.Shuffle([vector], list(range(first, first + 8))) for first in (0, 8)]
    return tir.Shuffle([rounded(half, 8) for half in halves], list(range(16)))
