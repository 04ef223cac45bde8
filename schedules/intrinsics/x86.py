"""x86 instructions as LLVM intrinsics, each with its meaning in NumPy.

Those beyond AVX2 also say how to do without them. ``tests/schedules/test_intrinsics.py`` runs
every one of them, and every substitute, against its meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from lutcc.schedules.intrinsics import emulation


@dataclass(frozen=True, slots=True)
class Intrinsic:
    """One instruction.

    Attributes
    ----------
    llvm
        The name of the LLVM intrinsic.
    dtype
        TVM's dtype of the result.
    operands
        TVM's dtypes of the operands.
    isa
        The lowest instruction-set level that has it.
    meaning
        The same function on NumPy arrays.
    native
        How LLVM's language calls it, where TVM has no name for a type of LLVM's (bfloat).
    emulated
        The same function in AVX2 instructions; None where LLVM splits the vectors by itself.
    tolerance
        How far the instruction may be from its meaning, relative to the meaning of the operands'
        magnitudes; 0: not a bit.
    """

    llvm: str
    dtype: str
    operands: tuple[str, ...]
    isa: str
    meaning: Callable[..., np.ndarray]
    emulated: emulation.Body | None = None
    native: emulation.Body | None = None
    tolerance: float = 0.0

    def __call__(self, *args: Any) -> Any:
        """Return the call as a TVM expression."""
        import tvm.tirx as tir

        if self._body(emulated=emulation.active()) is not None:
            return tir.call_extern(self.dtype, self._symbol, *args)
        return tir.call_llvm_pure_intrin(self.dtype, self.llvm, *args)

    def definition(self, *, emulated: bool) -> str:
        """Return the function in LLVM's language that calls go to; empty where they need none."""
        body = self._body(emulated=emulated)
        if body is None:
            return ""
        return emulation.definition(self._symbol, self.operands, self.dtype, body)

    def _body(self, *, emulated: bool) -> emulation.Body | None:
        return self.emulated if emulated else self.native

    @property
    def _symbol(self) -> str:
        return "lutcc_" + self.llvm.removeprefix("llvm.").replace(".", "_")


def _pshufb(table: np.ndarray, index: np.ndarray) -> np.ndarray:
    lane = np.arange(table.size) // 16 * 16
    return np.where(index & 0x80, 0, table[lane + (index & 15)]).astype(np.uint8)


def _pavgb(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return ((a.astype(np.uint16) + b + 1) >> 1).astype(np.uint8)


def _paddusb(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.minimum(a.astype(np.uint16) + b, 255).astype(np.uint8)


def _dpbusd(acc: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    products = a.astype(np.int32) * b.astype(np.int32)
    return acc + products.reshape(-1, 4).sum(1, dtype=np.int32)


def _pmaddubsw(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    products = a.astype(np.int32) * b.astype(np.int32)
    return np.clip(products.reshape(-1, 2).sum(1), -(2**15), 2**15 - 1).astype(np.int16)


def _pmaddwd(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    products = a.astype(np.int64) * b.astype(np.int64)
    return products.reshape(-1, 2).sum(1).astype(np.int32)


def _packssdw(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    pieces = np.stack([a.reshape(-1, 4), b.reshape(-1, 4)], 1).reshape(-1)
    return np.clip(pieces, -(2**15), 2**15 - 1).astype(np.int16)


def _permi2(table_a: np.ndarray, index: np.ndarray, table_b: np.ndarray) -> np.ndarray:
    both = np.concatenate([table_a, table_b])
    return both[index.astype(np.int64) & (both.size - 1)]


def _permute(table: np.ndarray, index: np.ndarray) -> np.ndarray:
    return table[index.astype(np.int64) & (table.size - 1)]


def _dpbf16(acc: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    pairs_a, pairs_b = (pairs.view(ml_dtypes.bfloat16).astype(np.float32) for pairs in (a, b))
    products = pairs_a * pairs_b  # exact, short of underflow
    return (acc + products[1::2]) + products[0::2]


def _to_bf16(values: np.ndarray) -> np.ndarray:
    return values.astype(ml_dtypes.bfloat16).view(np.uint16)


def _call_dpbf16(operands: Sequence[str], result: str) -> list[str]:
    del operands, result
    return [
        "%a = bitcast <16 x i32> %a1 to <32 x bfloat>",
        "%b = bitcast <16 x i32> %a2 to <32 x bfloat>",
        "%result = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512"
        "(<16 x float> %a0, <32 x bfloat> %a, <32 x bfloat> %b)",
    ]


def _call_to_bf16(operands: Sequence[str], result: str) -> list[str]:
    del operands, result
    return [
        "%r = call <16 x bfloat> @llvm.x86.avx512bf16.cvtneps2bf16.512(<16 x float> %a0)",
        "%result = bitcast <16 x bfloat> %r to <16 x i16>",
    ]


PSHUFB_256 = Intrinsic(
    "llvm.x86.avx2.pshuf.b", "uint8x32", ("uint8x32", "uint8x32"), "avx2", _pshufb
)
PSHUFB_512 = Intrinsic(
    "llvm.x86.avx512.pshuf.b.512",
    "uint8x64",
    ("uint8x64", "uint8x64"),
    "avx512",
    _pshufb,
    emulation.by_halves("llvm.x86.avx2.pshuf.b"),
)
PAVGB_256 = Intrinsic("llvm.x86.avx2.pavg.b", "uint8x32", ("uint8x32", "uint8x32"), "avx2", _pavgb)
PAVGB_512 = Intrinsic(
    "llvm.x86.avx512.pavg.b.512",
    "uint8x64",
    ("uint8x64", "uint8x64"),
    "avx512",
    _pavgb,
    emulation.by_halves("llvm.x86.avx2.pavg.b"),
)
PADDUSB_256 = Intrinsic(
    "llvm.uadd.sat.v32i8", "uint8x32", ("uint8x32", "uint8x32"), "avx2", _paddusb
)
PADDUSB_512 = Intrinsic(
    "llvm.uadd.sat.v64i8", "uint8x64", ("uint8x64", "uint8x64"), "avx512", _paddusb
)
VPERMB_512 = Intrinsic(
    "llvm.x86.avx512.permvar.qi.512",
    "uint8x64",
    ("uint8x64", "uint8x64"),
    "avx512_vbmi_vnni",
    _permute,
    emulation.bytes_of_table,
)
VPERMI2B_512 = Intrinsic(
    "llvm.x86.avx512.vpermi2var.qi.512",
    "uint8x64",
    ("uint8x64", "uint8x64", "uint8x64"),
    "avx512_vbmi_vnni",
    _permi2,
    emulation.bytes_of_table,
)
VPDPBUSD_512 = Intrinsic(
    "llvm.x86.avx512.vpdpbusd.512",
    "int32x16",
    ("int32x16", "uint8x64", "int8x64"),
    "avx512_vbmi_vnni",
    _dpbusd,
    emulation.dot_of_bytes,
)
PMADDUBSW_256 = Intrinsic(
    "llvm.x86.avx2.pmadd.ub.sw", "int16x16", ("uint8x32", "int8x32"), "avx2", _pmaddubsw
)
PMADDUBSW_512 = Intrinsic(
    "llvm.x86.avx512.pmaddubs.w.512",
    "int16x32",
    ("uint8x64", "int8x64"),
    "avx512",
    _pmaddubsw,
    emulation.by_halves("llvm.x86.avx2.pmadd.ub.sw"),
)
PMADDWD_256 = Intrinsic(
    "llvm.x86.avx2.pmadd.wd", "int32x8", ("int16x16", "int16x16"), "avx2", _pmaddwd
)
PMADDWD_512 = Intrinsic(
    "llvm.x86.avx512.pmaddw.d.512",
    "int32x16",
    ("int16x32", "int16x32"),
    "avx512",
    _pmaddwd,
    emulation.by_halves("llvm.x86.avx2.pmadd.wd"),
)
PACKSSDW_512 = Intrinsic(
    "llvm.x86.avx512.packssdw.512",
    "int16x32",
    ("int32x16", "int32x16"),
    "avx512",
    _packssdw,
    emulation.by_halves("llvm.x86.avx2.packssdw"),
)
VPERMW_512 = Intrinsic(
    "llvm.x86.avx512.permvar.hi.512",
    "int16x32",
    ("int16x32", "int16x32"),
    "avx512",
    _permute,
    emulation.words_of_table,
)
VPERMPS_256 = Intrinsic(
    "llvm.x86.avx2.permps", "float32x8", ("float32x8", "int32x8"), "avx2", _permute
)
VPERMPS_512 = Intrinsic(
    "llvm.x86.avx512.permvar.sf.512",
    "float32x16",
    ("float32x16", "int32x16"),
    "avx512",
    _permute,
    emulation.floats_of_table,
)
VPERMI2PS_512 = Intrinsic(
    "llvm.x86.avx512.vpermi2var.ps.512",
    "float32x16",
    ("float32x16", "int32x16", "float32x16"),
    "avx512",
    _permi2,
    emulation.floats_of_table,
)
# Adds two products of bfloat16 to each float32; a 32-bit word of an operand holds two. Denormals
# count as zero, in operands and results, whatever MXCSR says; they do not in the meaning. In which
# order the two products are added, and whether their sum is rounded in between, differs from maker
# to maker.
VDPBF16PS_512 = Intrinsic(
    "llvm.x86.avx512bf16.dpbf16ps.512",
    "float32x16",
    ("float32x16", "int32x16", "int32x16"),
    "avx512_bf16",
    _dpbf16,
    emulation.dot_of_bfloats,
    _call_dpbf16,
    tolerance=2.0**-22,
)
# Gives the bits of bfloat16. Denormal operands become zero; in the meaning they are rounded.
VCVTNEPS2BF16_512 = Intrinsic(
    "llvm.x86.avx512bf16.cvtneps2bf16.512",
    "uint16x16",
    ("float32x16",),
    "avx512_bf16",
    _to_bf16,
    emulation.round_to_bfloat,
    _call_to_bf16,
)

#: Every instruction above, by name.
INTRINSICS: dict[str, Intrinsic] = {
    name: value for name, value in list(globals().items()) if isinstance(value, Intrinsic)
}


def definitions(isas: Iterable[str], *, emulated: bool) -> str:
    """Return what calls of instructions of some levels need beside them, in LLVM's language."""
    levels = set(isas)
    texts = [i.definition(emulated=emulated) for i in INTRINSICS.values() if i.isa in levels]
    return emulation.declarations(texts) + "".join(texts)
