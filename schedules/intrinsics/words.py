"""Steps of trees, in LLVM's own language: loads at an offset, an answer shifted into a node.

An address is a pointer and an offset, two steps that LLVM does not join: it would add the pointer's
index to many offsets in vectors, and take the sums apart again one by one.

Source: LLVM Language Reference, ``llvm.ssub.sat`` and ``llvm.fshl`` (``vpsubsw``, ``vpshldw``).
"""

from __future__ import annotations

from typing import Any

LLVM_IR = """
define <32 x i16> @lutcc_load_words(ptr %p, i64 %offset) alwaysinline {
  %at = getelementptr i16, ptr %p, i64 %offset
  %v = load <32 x i16>, ptr %at, align 2
  ret <32 x i16> %v
}
define <32 x i16> @lutcc_load_two_lines(ptr %p, ptr %q, i64 %offset) alwaysinline {
  %first = getelementptr i16, ptr %p, i64 %offset
  %second = getelementptr i16, ptr %q, i64 %offset
  %low = load <16 x i16>, ptr %first, align 2
  %high = load <16 x i16>, ptr %second, align 2
  %v = shufflevector <16 x i16> %low, <16 x i16> %high, <32 x i32> <
      i32 0, i32 1, i32 2, i32 3, i32 4, i32 5, i32 6, i32 7,
      i32 8, i32 9, i32 10, i32 11, i32 12, i32 13, i32 14, i32 15,
      i32 16, i32 17, i32 18, i32 19, i32 20, i32 21, i32 22, i32 23,
      i32 24, i32 25, i32 26, i32 27, i32 28, i32 29, i32 30, i32 31>
  ret <32 x i16> %v
}
define <16 x i32> @lutcc_load_longs(ptr %p, i64 %offset) alwaysinline {
  %at = getelementptr i32, ptr %p, i64 %offset
  %v = load <16 x i32>, ptr %at, align 4
  ret <16 x i32> %v
}
define <16 x i16> @lutcc_load_half(ptr %p, i64 %offset) alwaysinline {
  %at = getelementptr i16, ptr %p, i64 %offset
  %v = load <16 x i16>, ptr %at, align 2
  ret <16 x i16> %v
}
define <16 x i16> @lutcc_with_answer(<16 x i16> %word, <16 x i16> %value, <16 x i16> %threshold,
                                     <16 x i16> %bits) alwaysinline {
  %above = icmp sgt <16 x i16> %value, %threshold
  %ones = sext <16 x i1> %above to <16 x i16>
  %some = and <16 x i16> %ones, %bits
  %next = or <16 x i16> %word, %some
  ret <16 x i16> %next
}
define <32 x i16> @lutcc_next_word(<32 x i16> %node, <32 x i16> %value, <32 x i16> %threshold)
    alwaysinline {
  %below = call <32 x i16> @llvm.ssub.sat.v32i16(<32 x i16> %threshold, <32 x i16> %value)
  %next = call <32 x i16> @llvm.fshl.v32i16(<32 x i16> %node, <32 x i16> %below,
                                            <32 x i16> splat (i16 1))
  ret <32 x i16> %next
}
define <16 x i32> @lutcc_next_float(<16 x i32> %node, <16 x float> %value, <16 x float> %threshold)
    alwaysinline {
  %above = fcmp ogt <16 x float> %value, %threshold
  %ones = sext <16 x i1> %above to <16 x i32>
  %next = call <16 x i32> @llvm.fshl.v16i32(<16 x i32> %node, <16 x i32> %ones,
                                            <16 x i32> splat (i32 1))
  ret <16 x i32> %next
}
define <16 x i32> @lutcc_next_long(<16 x i32> %node, <16 x i32> %value, <16 x i32> %threshold)
    alwaysinline {
  %above = icmp sgt <16 x i32> %value, %threshold
  %ones = sext <16 x i1> %above to <16 x i32>
  %next = call <16 x i32> @llvm.fshl.v16i32(<16 x i32> %node, <16 x i32> %ones,
                                            <16 x i32> splat (i32 1))
  ret <16 x i32> %next
}
define <16 x i32> @lutcc_sign_float(<16 x i32> %node, <16 x float> %value, <16 x float> %threshold)
    alwaysinline {
  %below = fsub <16 x float> %threshold, %value
  %bits = bitcast <16 x float> %below to <16 x i32>
  %next = call <16 x i32> @llvm.fshl.v16i32(<16 x i32> %node, <16 x i32> %bits,
                                            <16 x i32> splat (i32 1))
  ret <16 x i32> %next
}
define <16 x i32> @lutcc_sign_long(<16 x i32> %node, <16 x i32> %value, <16 x i32> %threshold)
    alwaysinline {
  %below = sub <16 x i32> %threshold, %value
  %next = call <16 x i32> @llvm.fshl.v16i32(<16 x i32> %node, <16 x i32> %below,
                                            <16 x i32> splat (i32 1))
  ret <16 x i32> %next
}
define <16 x i16> @lutcc_narrow(<16 x i32> %v) alwaysinline {
  %low = call <16 x i32> @llvm.smin.v16i32(<16 x i32> %v, <16 x i32> splat (i32 32767))
  %held = call <16 x i32> @llvm.smax.v16i32(<16 x i32> %low, <16 x i32> splat (i32 -32768))
  %words = trunc <16 x i32> %held to <16 x i16>
  ret <16 x i16> %words
}
declare <16 x i32> @llvm.smin.v16i32(<16 x i32>, <16 x i32>)
declare <16 x i32> @llvm.smax.v16i32(<16 x i32>, <16 x i32>)
declare <32 x i16> @llvm.ssub.sat.v32i16(<32 x i16>, <32 x i16>)
declare <32 x i16> @llvm.fshl.v32i16(<32 x i16>, <32 x i16>, <32 x i16>)
declare <16 x i32> @llvm.fshl.v16i32(<16 x i32>, <16 x i32>, <16 x i32>)
"""

#: By the type of what is compared, the last part of a function's name and the type of its nodes.
_FOLLOWING = {
    "int16x32": ("word", "int16x32"),
    "int32x16": ("long", "int32x16"),
    "float32x16": ("float", "int32x16"),
}


def load_two_lines(first: Any, second: Any, offset: Any) -> Any:
    """Return the call that loads 16 words from each of two addresses, some elements further."""
    import tvm.tirx as tir

    return tir.call_extern("int16x32", "lutcc_load_two_lines", first, second, offset)


def load_half(address: Any, offset: Any) -> Any:
    """Return the call that loads 16 words some elements further."""
    import tvm.tirx as tir

    return tir.call_extern("int16x16", "lutcc_load_half", address, offset)


def with_answer(word: Any, value: Any, threshold: Any, bits: Any) -> Any:
    """Return ``word | (bits if value > threshold else 0)`` of 16 int16."""
    import tvm.tirx as tir

    return tir.call_extern("int16x16", "lutcc_with_answer", word, value, threshold, bits)


def load(address: Any, offset: Any, lanes: int) -> Any:
    """Return the call that loads 32 words or 16 numbers of 32 bits, some elements further."""
    import tvm.tirx as tir

    name, kind = {32: ("words", "int16x32"), 16: ("longs", "int32x16")}[lanes]
    return tir.call_extern(kind, f"lutcc_load_{name}", address, offset)


def following(node: Any, value: Any, threshold: Any, *, signs: bool = False) -> Any:
    """Return ``2 * node + (value > threshold)`` of 32 int16, or 16 int32 or float32.

    ``signs``: the sign of ``threshold - value`` tells, one instruction less where a word is shifted
    in at once. For that differences of int32 must not overflow, no value be NaN, and no threshold
    -0 or infinite; differences of floats never round to 0, nor to the other sign.
    """
    import tvm.tirx as tir

    name, kind = _FOLLOWING[str(value.ty.dtype)]
    how = "sign" if signs and name != "word" else "next"
    return tir.call_extern(kind, f"lutcc_{how}_{name}", node, value, threshold)


def narrow(value: Any) -> Any:
    """Return 16 int32 as int16, saturated (``vpmovsdw``)."""
    import tvm.tirx as tir

    return tir.call_extern("int16x16", "lutcc_narrow", value)
