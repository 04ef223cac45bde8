"""A thin layer over TVM's IR builder: typed views of byte buffers, 16-lane vectors, loops.

Every vector is 16 lanes of 32 bits, whatever the CPU: LLVM splits it into two registers where
only 256 bits are there. Index arithmetic is 64-bit throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import tvm.tirx as tir
from tvm.script.ir_builder import tirx as builder

from lutcc.schedules.intrinsics import emulation, masked, streaming, words, x86
from lutcc.schedules.x86.isa import Isa

Expr = Any
LANES = 16
ITEMSIZE = {
    "uint8": 1,
    "int8": 1,
    "int16": 2,
    "uint16": 2,
    "bfloat16": 2,
    "float32": 4,
    "int32": 4,
    "uint32": 4,
    "int64": 8,
}


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


def either(a: Expr, b: Expr) -> Expr:
    """Return whether one of two conditions holds."""
    return tir.Or(a, b)


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
    if dtype.startswith("boolx"):
        return value  # a mask: neither TVM's analyzer nor memory likes it
    return hold(value) if "x" in dtype else builder.bind(value)


def hold(value: Expr) -> Expr:
    """Keep ``value`` in a register that no analysis looks through."""
    dtype, _, lanes = str(value.ty.dtype).partition("x")
    slot = local(int(lanes or 1), dtype)
    slot.store(0, value, int(lanes or 1))
    return slot.load(0, int(lanes or 1))


def minimum(a: Expr, b: Expr) -> Expr:
    """Return the smaller of two integers."""
    return tir.Min(i64(a), i64(b))


def maximum(a: Expr, b: int | Expr) -> Expr:
    """Return the larger of two integers."""
    return tir.Max(i64(a), i64(b))


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


def fence() -> None:
    """Make streamed stores visible to other threads."""
    builder.evaluate(streaming.fence())


@contextmanager
def streaming_definitions() -> Iterator[None]:
    """Open a body with streamed stores and prefetches."""
    with builder.attr(i64(0), "pragma_import_llvm", streaming.LLVM_IR):
        yield


@contextmanager
def masked_definitions() -> Iterator[None]:
    """Open a body with loads of some lanes, see :meth:`View.load_masked`."""
    with builder.attr(i64(0), "pragma_import_llvm", masked.LLVM_IR):
        yield


@contextmanager
def word_definitions() -> Iterator[None]:
    """Open a body with trees over words, see :mod:`lutcc.schedules.intrinsics.words`."""
    with builder.attr(i64(0), "pragma_import_llvm", words.LLVM_IR):
        yield


@contextmanager
def instructions_of(isa: Isa) -> Iterator[None]:
    """Open a body that calls a level's instructions, or what stands in for them."""
    text = x86.definitions(isa.levels, emulated=isa.emulated)
    with emulation.emulating(isa.emulated), ExitStack() as stack:
        if text:
            stack.enter_context(builder.attr(i64(0), "pragma_import_llvm", text))
        yield


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

    def _address(self, index: int | Expr) -> Expr:
        scale = ITEMSIZE[self.dtype] if self.is_bytes else 1
        return tir.address_of(tir.BufferLoad(self.buffer, [self.base + i64(index) * scale]))

    def load_masked(self, index: Expr, mask: Expr) -> Expr:
        """Load those of 16 float32 lanes from ``index`` on whose int32 mask is -1; others are 0."""
        return masked.load(self._address(index), mask)

    def load_from(self, index: Expr, offset: Expr, lanes: int) -> Expr:
        """Load 32 int16 or 16 int32 that lie ``offset`` elements after ``index``.

        Where many offsets go with one index, LLVM keeps one pointer for all of them.
        """
        return words.load(self._address(index), offset, lanes)

    def load_half(self, index: Expr, offset: Expr) -> Expr:
        """Load 16 int16 that lie ``offset`` elements after ``index``."""
        return words.load_half(self._address(index), offset)

    def load_two_lines(self, first: Expr, second: Expr, offset: Expr) -> Expr:
        """Load 16 int16 each that lie ``offset`` elements after two indices."""
        return words.load_two_lines(self._address(first), self._address(second), offset)

    def misalignment(self) -> Expr:
        """Return the address of element 0 modulo 64."""
        return streaming.misalignment(self._address(0))

    def prefetch(self, index: int | Expr) -> None:
        """Ask for the cache line of an element."""
        builder.evaluate(streaming.prefetch(self._address(index)))

    def prefetch_bytes(self, offset: Expr) -> None:
        """Ask the L2 cache for the line ``offset`` bytes after element 0 of a byte buffer."""
        address = tir.address_of(tir.BufferLoad(self.buffer, [self.base + offset]))
        builder.evaluate(streaming.prefetch_l2(address))

    def store_stream(self, index: int | Expr, value: Expr, lanes: int = LANES) -> None:
        """Store 16 lanes past the caches (or 8); the address must be a multiple of their bytes."""
        if self.dtype != "float32":
            value = reinterpret(f"float32x{lanes}", value)
        builder.evaluate(streaming.store(self._address(index), value, lanes))

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


def transpose16(quarter: Callable[[int, int], Expr], quarters: int = 4) -> list[Expr]:
    """Transpose 16 rows of ``4 * quarters`` 32-bit values that lie in memory.

    ``quarter(row, q)`` loads columns ``4q .. 4q+3`` of a row. Four such loads, of rows ``i``,
    ``i+4``, ``i+8`` and ``i+12``, are merged into one vector by blends, which run on more ports
    than shuffles; a 4x4 transpose inside each 128-bit lane finishes the work: 48 blends and 32
    shuffles instead of the 64 shuffles of a transpose in registers.

    Returns
    -------
    list
        Vector ``c`` holds column ``c`` of rows 0 to 15, for ``c`` in ``range(4 * quarters)``.
    """
    columns: list[Expr] = []
    for q in range(quarters):
        rows = []
        for i in range(4):
            merged = shuffle([quarter(i, q)] * 4, range(16))
            for lane in range(1, 4):
                other = shuffle([quarter(i + 4 * lane, q)] * 4, range(16))
                pick = [16 + k if k // 4 == lane else k for k in range(16)]
                merged = shuffle([merged, other], pick)
            rows.append(bind(merged))
        pairs = [
            bind(shuffle([rows[i], rows[i + 1]], _unpack(size=1, high=high)))
            for i in (0, 2)
            for high in (False, True)
        ]
        columns += [
            bind(shuffle([pairs[j], pairs[j + 2]], _unpack(size=2, high=high)))
            for j in (0, 1)
            for high in (False, True)
        ]
    return columns


def _unpack(*, size: int, high: bool) -> list[int]:
    """Return the lanes that interleave halves of two vectors, in pieces of ``size``."""
    lanes = []
    for lane in range(4):
        for piece in range(2 // size):
            first = 4 * lane + 2 * high + piece * size
            lanes += [*range(first, first + size), *range(16 + first, 16 + first + size)]
    return lanes
