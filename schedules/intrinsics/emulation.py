"""AVX-512 instructions in terms of AVX2 ones, so that any CPU can run the kernels of every level.

Kernels are emitted in vectors of 16 lanes, which LLVM splits where registers are narrower; only the
named instructions of :mod:`lutcc.schedules.intrinsics.x86` tie them to a level. While a kernel of
an emulated level is emitted (:meth:`lutcc.schedules.x86.isa.Isa.emulation`), those calls go to
functions in LLVM's language that stand here. It is for tests: the code is right, and slow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeAlias

#: (dtypes of the operands ``%a0`` ..., dtype of the result) -> lines that compute ``%result``.
Body: TypeAlias = Callable[[Sequence[str], str], list[str]]

_active: ContextVar[bool] = ContextVar("lutcc_emulation", default=False)
_LLVM_TYPES = {
    "uint8": "i8",
    "int8": "i8",
    "int16": "i16",
    "uint16": "i16",
    "int32": "i32",
    "float32": "float",
}


@contextmanager
def emulating(on: bool = True) -> Iterator[None]:
    """Make calls of instructions beyond AVX2, inside, calls of their definitions."""
    token = _active.set(on)
    try:
        yield
    finally:
        _active.reset(token)


def active() -> bool:
    """Return whether kernels are being emitted for a CPU that lacks their instructions."""
    return _active.get()


def llvm_type(dtype: str) -> str:
    """Return LLVM's name of one of TVM's vector types.

    Examples
    --------
    >>> llvm_type("uint8x64")
    '<64 x i8>'
    """
    name, lanes = _parts(dtype)
    return f"<{lanes} x {_LLVM_TYPES[name]}>"


def definition(symbol: str, operands: Sequence[str], result: str, body: Body) -> str:
    """Return the function ``symbol`` in LLVM's language."""
    parameters = ", ".join(f"{llvm_type(dtype)} %a{i}" for i, dtype in enumerate(operands))
    lines = "\n".join(f"  {line}" for line in body(operands, result))
    kind = llvm_type(result)
    return (
        f"define {kind} @{symbol}({parameters}) alwaysinline {{\n{lines}\n"
        f"  ret {kind} %result\n}}\n"
    )


def declarations(texts: Iterable[str]) -> str:
    """Return the declarations of what definitions call."""
    whole = "\n".join(texts)
    return "".join(f"declare {text}\n" for name, text in _DECLARED.items() if f"@{name}(" in whole)


_DECLARED = {
    "llvm.x86.avx2.pshuf.b": "<32 x i8> @llvm.x86.avx2.pshuf.b(<32 x i8>, <32 x i8>)",
    "llvm.x86.avx2.pavg.b": "<32 x i8> @llvm.x86.avx2.pavg.b(<32 x i8>, <32 x i8>)",
    "llvm.x86.avx2.pmadd.wd": "<8 x i32> @llvm.x86.avx2.pmadd.wd(<16 x i16>, <16 x i16>)",
    "llvm.x86.avx2.packssdw": "<16 x i16> @llvm.x86.avx2.packssdw(<8 x i32>, <8 x i32>)",
    "llvm.x86.avx2.pmadd.ub.sw": "<16 x i16> @llvm.x86.avx2.pmadd.ub.sw(<32 x i8>, <32 x i8>)",
    "llvm.x86.avx2.permps": "<8 x float> @llvm.x86.avx2.permps(<8 x float>, <8 x i32>)",
    "llvm.uadd.sat.v32i8": "<32 x i8> @llvm.uadd.sat.v32i8(<32 x i8>, <32 x i8>)",
    "llvm.fma.v16f32": "<16 x float> @llvm.fma.v16f32(<16 x float>, <16 x float>, <16 x float>)",
    "llvm.x86.avx512bf16.dpbf16ps.512": (
        "<16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)"
    ),
    "llvm.x86.avx512bf16.cvtneps2bf16.512": (
        "<16 x bfloat> @llvm.x86.avx512bf16.cvtneps2bf16.512(<16 x float>)"
    ),
}


def by_halves(llvm: str) -> Body:
    """Apply an instruction on 256 bits to the low and the high halves."""

    def body(operands: Sequence[str], result: str) -> list[str]:
        lines = []
        for half in range(2):
            given = []
            for i, dtype in enumerate(operands):
                lines.append(_take(f"%a{i}h{half}", f"%a{i}", dtype, half))
                given.append(f"{llvm_type(_halved(dtype))} %a{i}h{half}")
            kind = llvm_type(_halved(result))
            lines.append(f"%r{half} = call {kind} @{llvm}({', '.join(given)})")
        return [*lines, _join("%result", "%r0", "%r1", result)]

    return body


def bytes_of_table(operands: Sequence[str], result: str) -> list[str]:
    """Look bytes up in a table of 64 (``vpermb``) or in two (``vpermi2b``), 16 entries at a time.

    ``pshufb`` gives 0 where bit 7 of an index is set. Adding 112 with saturation to an index
    relative to a piece of the table sets it unless the entry lies in that piece.
    """
    tables = ["%a0"] if len(operands) == 2 else ["%a0", "%a2"]
    lines = []
    for piece in range(4 * len(tables)):
        first = piece % 4 * 16
        lines.append(
            f"%t{piece} = shufflevector <64 x i8> {tables[piece // 4]}, <64 x i8> poison, "
            f"<32 x i32> {_picks([*range(first, first + 16)] * 2)}"
        )
    for half in range(2):
        lines += [
            _take(f"%i{half}", "%a1", operands[1], half),
            f"%m{half} = and <32 x i8> %i{half}, splat (i8 {64 * len(tables) - 1})",
        ]
        for piece in range(4 * len(tables)):
            name = f"{half}p{piece}"
            other = f"%o{half}p{piece - 1}" if piece else "zeroinitializer"
            lines += [
                f"%d{name} = sub <32 x i8> %m{half}, splat (i8 {16 * piece})",
                f"%s{name} = call <32 x i8> @llvm.uadd.sat.v32i8(<32 x i8> %d{name}, "
                "<32 x i8> splat (i8 112))",
                f"%p{name} = call <32 x i8> @llvm.x86.avx2.pshuf.b(<32 x i8> %t{piece}, "
                f"<32 x i8> %s{name})",
                f"%o{name} = or <32 x i8> {other}, %p{name}",
            ]
    last = 4 * len(tables) - 1
    return [*lines, _join("%result", f"%o0p{last}", f"%o1p{last}", result)]


def words_of_table(operands: Sequence[str], result: str) -> list[str]:
    """Look 16-bit words up in a table of 32 (``vpermw``), one by one in memory."""
    kind, lanes = llvm_type(result), _parts(result)[1]
    lines = [f"%memory = alloca {kind}", f"store {kind} %a0, ptr %memory"]
    for lane in range(lanes):
        other = f"%r{lane - 1}" if lane else "poison"
        lines += [
            f"%i{lane} = extractelement {llvm_type(operands[1])} %a1, i32 {lane}",
            f"%m{lane} = and i16 %i{lane}, {lanes - 1}",
            f"%w{lane} = zext i16 %m{lane} to i64",
            f"%p{lane} = getelementptr i16, ptr %memory, i64 %w{lane}",
            f"%v{lane} = load i16, ptr %p{lane}",
            f"%r{lane} = insertelement {kind} {other}, i16 %v{lane}, i32 {lane}",
        ]
    return [*lines, f"%result = bitcast {kind} %r{lanes - 1} to {kind}"]


def floats_of_table(operands: Sequence[str], result: str) -> list[str]:
    """Look floats up in a table of 16 (``vpermps``) or in two (``vpermi2ps``), 8 at a time."""
    tables = ["%a0"] if len(operands) == 2 else ["%a0", "%a2"]
    lines = [
        _take(f"%t{2 * k + half}", table, operands[0], half)
        for k, table in enumerate(tables)
        for half in range(2)
    ]
    pieces = 2 * len(tables)
    for half in range(2):
        lines += [
            _take(f"%i{half}", "%a1", operands[1], half),
            f"%w{half} = lshr <8 x i32> %i{half}, splat (i32 3)",
            f"%m{half} = and <8 x i32> %w{half}, splat (i32 {pieces - 1})",
        ]
        for piece in range(pieces):
            name = f"{half}p{piece}"
            other = f"%o{half}p{piece - 1}" if piece else "zeroinitializer"
            lines += [
                f"%p{name} = call <8 x float> @llvm.x86.avx2.permps(<8 x float> %t{piece}, "
                f"<8 x i32> %i{half})",
                f"%c{name} = icmp eq <8 x i32> %m{half}, splat (i32 {piece})",
                f"%o{name} = select <8 x i1> %c{name}, <8 x float> %p{name}, <8 x float> {other}",
            ]
    last = pieces - 1
    return [*lines, _join("%result", f"%o0p{last}", f"%o1p{last}", result)]


def dot_of_bytes(operands: Sequence[str], result: str) -> list[str]:
    """Add four products of bytes to each int32 (``vpdpbusd``): even bytes, then odd ones."""
    del operands
    lines = [
        "%a = bitcast <64 x i8> %a1 to <32 x i16>",
        "%b = bitcast <64 x i8> %a2 to <32 x i16>",
        "%ae = and <32 x i16> %a, splat (i16 255)",
        "%ao = lshr <32 x i16> %a, splat (i16 8)",
        "%bs = shl <32 x i16> %b, splat (i16 8)",
        "%be = ashr <32 x i16> %bs, splat (i16 8)",
        "%bo = ashr <32 x i16> %b, splat (i16 8)",
    ]
    for half in range(2):
        for part in "eo":
            lines += [_take(f"%{x}{part}{half}", f"%{x}{part}", "int16x32", half) for x in "ab"]
            lines.append(
                f"%p{part}{half} = call <8 x i32> @llvm.x86.avx2.pmadd.wd("
                f"<16 x i16> %a{part}{half}, <16 x i16> %b{part}{half})"
            )
        lines.append(f"%p{half} = add <8 x i32> %pe{half}, %po{half}")
    kind = llvm_type(result)
    return [*lines, _join("%p", "%p0", "%p1", result), f"%result = add {kind} %a0, %p"]


def dot_of_bfloats(operands: Sequence[str], result: str) -> list[str]:
    """Add two products of bfloat16 to each float32 (``vdpbf16ps``): the odd ones, then the even."""
    del operands, result
    lines = []
    for i in (1, 2):
        lines += [
            f"%h{i} = and <16 x i32> %a{i}, splat (i32 -65536)",
            f"%l{i} = shl <16 x i32> %a{i}, splat (i32 16)",
            f"%o{i} = bitcast <16 x i32> %h{i} to <16 x float>",
            f"%e{i} = bitcast <16 x i32> %l{i} to <16 x float>",
        ]
    call = "call <16 x float> @llvm.fma.v16f32(<16 x float> {}, <16 x float> {}, <16 x float> {})"
    return [
        *lines,
        f"%first = {call.format('%o1', '%o2', '%a0')}",
        f"%result = {call.format('%e1', '%e2', '%first')}",
    ]


def round_to_bfloat(operands: Sequence[str], result: str) -> list[str]:
    """Round float32 to bfloat16 (``vcvtneps2bf16``), halves to even; NaN stays NaN."""
    del operands, result
    return [
        "%w = bitcast <16 x float> %a0 to <16 x i32>",
        "%s = lshr <16 x i32> %w, splat (i32 16)",
        "%odd = and <16 x i32> %s, splat (i32 1)",
        "%up = add <16 x i32> %w, splat (i32 32767)",
        "%sum = add <16 x i32> %up, %odd",
        "%rounded = lshr <16 x i32> %sum, splat (i32 16)",
        "%quiet = or <16 x i32> %s, splat (i32 64)",
        "%nan = fcmp uno <16 x float> %a0, zeroinitializer",
        "%word = select <16 x i1> %nan, <16 x i32> %quiet, <16 x i32> %rounded",
        "%result = trunc <16 x i32> %word to <16 x i16>",
    ]


def _parts(dtype: str) -> tuple[str, int]:
    name, lanes = dtype.rsplit("x", 1)
    return name, int(lanes)


def _halved(dtype: str) -> str:
    name, lanes = _parts(dtype)
    return f"{name}x{lanes // 2}"


def _picks(lanes: Iterable[int]) -> str:
    return "<" + ", ".join(f"i32 {lane}" for lane in lanes) + ">"


def _take(target: str, source: str, dtype: str, half: int) -> str:
    """Return the line that takes the low (0) or the high half (1) of a vector."""
    count = _parts(dtype)[1] // 2
    kind = llvm_type(dtype)
    picks = _picks(range(half * count, (half + 1) * count))
    return f"{target} = shufflevector {kind} {source}, {kind} poison, <{count} x i32> {picks}"


def _join(target: str, low: str, high: str, dtype: str) -> str:
    """Return the line that puts two halves together."""
    kind, count = llvm_type(_halved(dtype)), _parts(dtype)[1]
    return (
        f"{target} = shufflevector {kind} {low}, {kind} {high}, "
        f"<{count} x i32> {_picks(range(count))}"
    )
