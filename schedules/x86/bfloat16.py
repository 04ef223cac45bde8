"""bfloat16 operands: rounding of float32 values, and products of pairs by ``vdpbf16ps``."""

from __future__ import annotations

import tvm.tirx as tir

from lutcc.schedules.intrinsics import x86
from lutcc.schedules.x86.context import Row
from lutcc.schedules.x86.emit import (
    LANES,
    Expr,
    bind,
    cast,
    const,
    loop,
    reinterpret,
    select,
    splat,
)
from lutcc.schedules.x86.isa import Isa
from lutcc.schedules.x86.pack import round_up
from lutcc.schedules.x86.vector_math import lanes_of


def rounded(value: Expr) -> Expr:
    """Return float32 values rounded to bfloat16, nearest even; NaN stays NaN."""
    lanes = lanes_of(value)
    bits = bind(reinterpret(f"int32x{lanes}", value))
    odd = (bits >> splat(16, "int32", lanes)) & splat(1, "int32", lanes)
    high = (bits + splat(0x7FFF, "int32", lanes) + odd) & splat(-0x10000, "int32", lanes)
    return select(tir.NE(value, value), value, reinterpret(f"float32x{lanes}", high))


def widened(value: Expr, half: bool) -> Expr:
    """Return bfloat16 values (as uint16) in float32; others as they are, unless ``half``."""
    if not half:
        return value
    lanes = str(value.ty.dtype).partition("x")[2]
    suffix = f"x{lanes}" if lanes else ""
    shift = splat(16, "uint32", int(lanes)) if lanes else const(16, "uint32")
    return reinterpret("float32" + suffix, cast("uint32" + suffix, value) << shift)


def narrowed(value: Expr) -> Expr:
    """Return float32 values as bfloat16, in uint16, nearest even; NaN stays NaN."""
    lanes = lanes_of(value)
    bits = reinterpret(f"uint32x{lanes}", rounded(value)) >> splat(16, "uint32", lanes)
    return cast(f"uint16x{lanes}", bits)


def finished(value: Expr, dtype: str, isa: Isa) -> Expr:
    """Return float32 results as memory of ``dtype`` holds them: as they are, or narrowed."""
    if dtype != "bfloat16":
        return value
    value = bind(value)
    return bind(halves(value) if isa.has_bf16 and lanes_of(value) == LANES else narrowed(value))


def halves(value: Expr) -> Expr:
    """Return 16 float32 values as bfloat16, in uint16; denormals become zero."""
    return x86.VCVTNEPS2BF16_512(value)


def round_row(source: Row, target: Row) -> None:
    """Round a contiguous row into ``target``: float32 rows stay so, uint16 rows take halves."""
    with loop(round_up(source.columns, LANES) // LANES) as k:
        value = bind(source.view.load(k * LANES, LANES))
        result = halves(value) if target.dtype == "uint16" else rounded(value)
        target.view.store(k * LANES, result, LANES)


def dot_pairs(acc: Expr, pairs: Expr, weights: Expr) -> Expr:
    """Return ``acc`` plus, in each lane, two products of bfloat16 values that lie in 32 bits."""
    a, b = (reinterpret("int32x16", v) for v in (pairs, weights))
    return bind(x86.VDPBF16PS_512(acc, a, b))
