"""x86 instructions as LLVM intrinsics, each with its meaning in NumPy.

``tests/schedules/test_intrinsics.py`` runs every one of them against its meaning.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


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
    """

    llvm: str
    dtype: str
    operands: tuple[str, ...]
    isa: str
    meaning: Callable[..., np.ndarray]

    def __call__(self, *args: Any) -> Any:
        """Return the call as a TVM expression."""
        import tvm.tirx as tir

        return tir.call_llvm_pure_intrin(self.dtype, self.llvm, *args)


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


def _permi2(table_a: np.ndarray, index: np.ndarray, table_b: np.ndarray) -> np.ndarray:
    both = np.concatenate([table_a, table_b])
    return both[index.astype(np.int64) & (both.size - 1)]


def _permute(table: np.ndarray, index: np.ndarray) -> np.ndarray:
    return table[index.astype(np.int64) & (table.size - 1)]


PSHUFB_256 = Intrinsic(
    "llvm.x86.avx2.pshuf.b", "uint8x32", ("uint8x32", "uint8x32"), "avx2", _pshufb
)
PSHUFB_512 = Intrinsic(
    "llvm.x86.avx512.pshuf.b.512", "uint8x64", ("uint8x64", "uint8x64"), "avx512", _pshufb
)
PAVGB_256 = Intrinsic("llvm.x86.avx2.pavg.b", "uint8x32", ("uint8x32", "uint8x32"), "avx2", _pavgb)
PAVGB_512 = Intrinsic(
    "llvm.x86.avx512.pavg.b.512", "uint8x64", ("uint8x64", "uint8x64"), "avx512", _pavgb
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
)
VPERMI2B_512 = Intrinsic(
    "llvm.x86.avx512.vpermi2var.qi.512",
    "uint8x64",
    ("uint8x64", "uint8x64", "uint8x64"),
    "avx512_vbmi_vnni",
    _permi2,
)
VPDPBUSD_512 = Intrinsic(
    "llvm.x86.avx512.vpdpbusd.512",
    "int32x16",
    ("int32x16", "uint8x64", "int8x64"),
    "avx512_vbmi_vnni",
    _dpbusd,
)
PMADDUBSW_256 = Intrinsic(
    "llvm.x86.avx2.pmadd.ub.sw", "int16x16", ("uint8x32", "int8x32"), "avx2", _pmaddubsw
)
PMADDUBSW_512 = Intrinsic(
    "llvm.x86.avx512.pmaddubs.w.512", "int16x32", ("uint8x64", "int8x64"), "avx512", _pmaddubsw
)
PMADDWD_256 = Intrinsic(
    "llvm.x86.avx2.pmadd.wd", "int32x8", ("int16x16", "int16x16"), "avx2", _pmaddwd
)
PMADDWD_512 = Intrinsic(
    "llvm.x86.avx512.pmaddw.d.512", "int32x16", ("int16x32", "int16x32"), "avx512", _pmaddwd
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
)
VPERMI2PS_512 = Intrinsic(
    "llvm.x86.avx512.vpermi2var.ps.512",
    "float32x16",
    ("float32x16", "int32x16", "float32x16"),
    "avx512",
    _permi2,
)

#: Every instruction above, by name.
INTRINSICS: dict[str, Intrinsic] = {
    name: value for name, value in list(globals().items()) if isinstance(value, Intrinsic)
}
