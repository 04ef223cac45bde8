"""A thin layer over TVM's IR builder: typed views of byte buffers, 16-lane vectors, loops.

Every vector is 16 lanes of 32 bits, whatever the CPU: LLVM splits it into two registers where
only 256 bits are there. Index arithmetic is 64-bit throughout.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import tvm.tirx as tir
from tvm.script.ir_builder import tirx as builder

Expr = Any
LANES = 16
ITEMSIZE = {"uint8": 1, "int8": 1, "float32": 4, "int32": 4, "uint16": 2}


def i64(value: int | Expr) -> Expr:
    """Return ``value`` as a 64-bit index expression."""
    return tir.const(value, "int64") if isinstance(value, int) else value


def const(value: float | int, dtype: str) -> Expr:
    """Return a scalar constant."""
    return tir.const(value, dtype)


def splat(value: float | int | Expr, dtype: str = "float32", lanes: int = LANES) -> Expr:
    """Return a vector whose lanes are all ``value``."""
    scalar = tir.const(value, dtype) if isinstance(value, int | float) else value
    return tir.Broadcast(scalar, lanes)


def reinterpret(dtype: str, value: Expr) -> Expr:
    """Return the same bits as ``dtype``."""
    return tir.reinterpret(dtype, value)


def cast(dtype: str, value: Expr) -> Expr:
    """Convert lane by lane."""
    return tir.Cast(dtype, value)


def select(condition: Expr, yes: Expr, no: Expr) -> Expr:
    """Choose lane by lane."""
    return tir.Select(condition, yes, no)


def shuffle(vectors: Sequence[Expr], indices: Sequence[int]) -> Expr:
    """Pick lanes of the concatenated ``vectors``."""
    return tir.Shuffle(list(vectors), [int(i) for i in indices])


def equal(a: Expr, b: Expr) -> Expr:
    """Compare for equality (``==`` on expressions compares the expressions themselves)."""
    return tir.EQ(a, b)


def both(a: Expr, b: Expr) -> Expr:
    """Return whether both conditions hold."""
    return tir.And(a, b)


def differs(a: Expr, b: Expr) -> Expr:
    """Compare for inequality."""
    return tir.NE(a, b)


def fma(a: Expr, b: Expr, c: Expr, lanes: int = LANES) -> Expr:
    """Return ``a*b + c`` rounded once."""
    suffix = f".v{lanes}f32" if lanes > 1 else ".f32"
    dtype = f"float32x{lanes}" if lanes > 1 else "float32"
    return tir.call_llvm_pure_intrin(dtype, "llvm.fma" + suffix, a, b, c)


def rint(value: Expr, lanes: int = LANES) -> Expr:
    """Round to the nearest integer, halves to even."""
    suffix = f".v{lanes}f32" if lanes > 1 else ".f32"
    dtype = f"float32x{lanes}" if lanes > 1 else "float32"
    return tir.call_llvm_pure_intrin(dtype, "llvm.nearbyint" + suffix, value)


def bind(value: Expr) -> Expr:
    """Give ``value`` a name, so that it is computed once.

    Vectors go through a register: TVM's analyzer expands named integer values wherever they are
    used, which takes exponential time in chains like ``node = 2*node + bit``.
    """
    dtype = str(value.ty.dtype)
    return hold(value) if "x" in dtype and "bool" not in dtype else builder.bind(value)


def hold(value: Expr) -> Expr:
    """Keep ``value`` in a register that no analysis looks through."""
    dtype, _, lanes = str(value.ty.dtype).partition("x")
    slot = local(int(lanes or 1), dtype)
    slot.store(0, value, int(lanes or 1))
    return slot.load(0, int(lanes or 1))


def minimum(a: Expr, b: Expr) -> Expr:
    """Return the smaller of two integers."""
    return tir.Min(i64(a), i64(b))


@contextmanager
def loop(extent: int | Expr) -> Iterator[Expr]:
    """Open a serial loop over ``range(extent)``."""
    with builder.serial(i64(0), i64(extent)) as index:
        yield index


@contextmanager
def parallel(extent: Expr) -> Iterator[Expr]:
    """Open a loop whose iterations run on TVM's thread pool."""
    with builder.parallel(i64(0), i64(extent)) as index:
        yield index


@contextmanager
def when(condition: Expr) -> Iterator[None]:
    """Open the body of an ``if`` without ``else``."""
    with builder.If(condition), builder.Then():
        yield


@contextmanager
def branch(condition: Expr) -> Iterator[tuple[Any, Any]]:
    """Open an ``if``; enter the two frames it yields, one after the other."""
    with builder.If(condition):
        yield builder.Then(), builder.Else()


@dataclass(frozen=True)
class View:
    """A flat array of ``dtype`` inside a byte buffer or a typed external buffer.

    Attributes
    ----------
    buffer
        The TVM buffer; its elements are bytes if ``is_bytes``.
    base
        Byte offset (``is_bytes``) or element offset of element 0.
    dtype
        Element type.
    """

    buffer: Any
    base: Expr
    dtype: str
    is_bytes: bool = True

    def at(self, offset: int | Expr) -> View:
        """Return the view that starts ``offset`` elements further."""
        scale = ITEMSIZE[self.dtype] if self.is_bytes else 1
        return View(self.buffer, self.base + i64(offset) * scale, self.dtype, self.is_bytes)

    def as_dtype(self, dtype: str) -> View:
        """Return the same bytes seen as ``dtype``."""
        if not self.is_bytes:
            raise TypeError("only byte buffers can be seen as another type")
        return View(self.buffer, self.base, dtype)

    def load(self, index: int | Expr, lanes: int = 1) -> Expr:
        """Load ``lanes`` elements from ``index`` on."""
        if not self.is_bytes:
            where = self.base + i64(index)
            if lanes == 1:
                return tir.BufferLoad(self.buffer, [where])
            return tir.BufferLoad(self.buffer, [tir.Ramp(where, i64(1), lanes)])
        size = ITEMSIZE[self.dtype]
        where = self.base + i64(index) * size
        if size * lanes == 1:
            raw = tir.BufferLoad(self.buffer, [where])
        else:
            raw = tir.BufferLoad(self.buffer, [tir.Ramp(where, i64(1), size * lanes)])
        if self.dtype == "uint8":
            return raw
        return reinterpret(self.dtype + (f"x{lanes}" if lanes > 1 else ""), raw)

    def prefetch(self, index: int | Expr, *, write: bool) -> None:
        """Ask for the cache line of an element: for writing into L1, for reading into L2."""
        scale = ITEMSIZE[self.dtype] if self.is_bytes else 1
        element = tir.BufferLoad(self.buffer, [self.base + i64(index) * scale])
        flags = (1, 3) if write else (0, 2)  # (for writing, locality)
        arguments = [tir.const(flag, "int32") for flag in (*flags, 1)]
        builder.evaluate(
            tir.call_llvm_intrin("void", "llvm.prefetch.p0", tir.address_of(element), *arguments)
        )

    def store(self, index: int | Expr, value: Expr, lanes: int = 1) -> None:
        """Store ``lanes`` elements from ``index`` on."""
        if not self.is_bytes:
            where = self.base + i64(index)
            target = where if lanes == 1 else tir.Ramp(where, i64(1), lanes)
            builder.buffer_store(self.buffer, value, [target])
            return
        size = ITEMSIZE[self.dtype]
        where = self.base + i64(index) * size
        count = size * lanes
        target = where if count == 1 else tir.Ramp(where, i64(1), count)
        if self.dtype != "uint8":
            value = reinterpret("uint8" + (f"x{count}" if count > 1 else ""), value)
        builder.buffer_store(self.buffer, value, [target])


def local(count: int, dtype: str) -> View:
    """Return ``count`` elements of stack, which LLVM keeps in registers where it can."""
    stack = {"disable_lower_builtin": True}  # an alloca, never a call to the runtime's allocator
    buffer = builder.alloc_buffer((count,), dtype, scope="local", align=64, annotations=stack)
    return View(buffer, i64(0), dtype, is_bytes=False)


@dataclass(frozen=True)
class Registers:
    """A file of named vector registers, one local buffer, indexed by constants only."""

    view: View
    lanes: int

    def get(self, slot: int) -> Expr:
        """Read register ``slot``."""
        return self.view.load(slot * self.lanes, self.lanes)

    def set(self, slot: int, value: Expr) -> None:
        """Write register ``slot``."""
        self.view.store(slot * self.lanes, value, self.lanes)


def registers(count: int, dtype: str, lanes: int) -> Registers:
    """Return ``count`` vector registers of ``lanes`` elements."""
    return Registers(local(count * lanes, dtype), lanes)


def transpose16(rows: Sequence[Expr]) -> list[Expr]:
    """Transpose 16 vectors of 16 lanes with 64 two-input shuffles.

    The butterfly works on blocks of 1, 2, 4 and 8 lanes; LLVM maps each stage to the cheapest
    instruction of the CPU (unpack, shufps, 128-bit moves).
    """
    vectors = list(rows)
    for size in (1, 2, 4, 8):
        low = [k if not k & size else 16 + (k ^ size) for k in range(16)]
        high = [(k | size) if not k & size else 16 + k for k in range(16)]
        result = list(vectors)
        for i in range(16):
            if not i & size:
                result[i] = bind(shuffle([vectors[i], vectors[i + size]], low))
                result[i + size] = bind(shuffle([vectors[i], vectors[i + size]], high))
        vectors = result
    return vectors
