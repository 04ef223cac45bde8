"""How 16 bytes of a row of x are multiplied with 16 bytes of a row of W: one *granule*.

A vector holds granules of as many rows of W as it has 16-byte lanes; the granule of x is broadcast
to all lanes. Each lane of a sum has four words, whose sum is the dot product.

========= ======== =============================================================================
kind      columns  instructions
========= ======== =============================================================================
dpbusd    16       ``vpdpbusd``: weights unsigned, by an offset that is taken off at the end
shifted   16       ``vpdpbusd``: x unsigned, by an offset whose sum is the same for all rows of x
pairs     16       of two granules, weights 0 .. 128: two ``vpmaddubsw``, whose sum less 64 times
                   that of its four integers of x fits 16 bits, then one ``vpmaddwd``
words     8        ``vpmaddwd`` of 16-bit integers: of weights in -127 .. 127 ``vpmaddubsw`` would
                   saturate (255 * 127 * 2 is above 2**15), and to halve each weight takes as many
                   instructions as to widen it
bfloats   8        ``vdpbf16ps``
floats    4        a multiply-add
========= ======== =============================================================================

Count, int8 on AVX2, for 32 products with 8 sums: ``words`` takes 2 ``vpmaddwd`` and 2 sums, half of
what multiply-adds of floats take, and 3 instructions to widen 32 weights for all rows of x.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lutcc.ir.codebooks import TABLE_LIMIT
from lutcc.schedules.intrinsics import streaming, x86
from lutcc.schedules.x86.bfloat16 import dot_pairs
from lutcc.schedules.x86.emit import Expr, bind, fma, reinterpret, splat
from lutcc.schedules.x86.isa import Isa


@dataclass(frozen=True)
class Granules:
    """The arithmetic of a product.

    Attributes
    ----------
    isa
        The level.
    form
        ``int8``, ``float32`` or ``bfloat16``: what is computed.
    kind
        By which instructions, see the table above.
    offset
        What is added to integers of weights before they are multiplied.
    """

    isa: Isa
    form: str
    kind: str
    offset: int = 0

    @classmethod
    def of_codebooks(cls, isa: Isa, form: str) -> Granules:
        """Return the arithmetic of weights that are looked up."""
        if form == "int8":
            return cls(isa, form, "dpbusd" if isa.has_vbmi_vnni else "pairs", TABLE_LIMIT)
        return cls(isa, form, _float_kind(isa, form))

    @classmethod
    def of_dense(cls, isa: Isa, form: str) -> Granules:
        """Return the arithmetic of weights that are stored as they are."""
        if form == "int8":
            return cls(isa, form, "dpbusd", 128) if isa.has_vbmi_vnni else cls(isa, form, "words")
        return cls(isa, form, _float_kind(isa, form))

    @classmethod
    def of_conv2d(cls, isa: Isa, form: str) -> Granules:
        """Return the arithmetic of windows of images."""
        if form == "int8":
            return cls(isa, form, "shifted" if isa.has_vbmi_vnni else "words")
        return cls(isa, form, _float_kind(isa, form))

    @property
    def columns(self) -> int:
        """Columns of a granule."""
        return {"dpbusd": 16, "shifted": 16, "pairs": 16, "words": 8, "bfloats": 8, "floats": 4}[
            self.kind
        ]

    @property
    def together(self) -> int:
        """Granules that are multiplied together."""
        return 2 if self.kind == "pairs" else 1

    @property
    def integers(self) -> bool:
        """Whether sums are integers."""
        return self.form == "int8"

    @property
    def sums(self) -> str:
        """Type of the sums."""
        return "int32" if self.integers else "float32"

    @property
    def widened(self) -> bool:
        """Whether 16-bit numbers come of 8, or 32 of 16: the even columns before the odd ones."""
        return self.kind == "words" or (self.form == "bfloat16" and self.kind == "floats")

    @property
    def values(self) -> str:
        """Type of the numbers of x."""
        kinds = {"words": "int16", "bfloats": "uint16", "floats": "float32", "shifted": "uint8"}
        return kinds.get(self.kind, "int8")

    def added(
        self, acc: Expr, weights: Sequence[Expr], parts: Sequence[Expr], *, keep: bool
    ) -> Expr:
        """Return sums with the products of granules added.

        Parameters
        ----------
        acc
            The sums.
        weights
            As many vectors as are multiplied :attr:`together`, of any type.
        parts
            What :meth:`PreparedRows.parts` gives.
        keep
            Whether to hold LLVM from regrouping sums of integers: where most registers are taken.
        """
        lanes = self.isa.vector_bytes // 4
        wide = self.isa.has_avx512
        if self.kind == "floats":
            return bind(fma(parts[0], reinterpret(f"float32x{lanes}", weights[0]), acc, lanes))
        if self.kind == "bfloats":
            return dot_pairs(acc, parts[0], weights[0])
        if self.kind == "dpbusd":
            return bind(x86.VPDPBUSD_512(acc, weights[0], parts[0]))
        if self.kind == "shifted":
            return bind(x86.VPDPBUSD_512(acc, parts[0], reinterpret("int8x64", weights[0])))
        word_pairs = x86.PMADDWD_512 if wide else x86.PMADDWD_256
        if self.kind == "words":
            words = reinterpret(f"int16x{lanes * 2}", weights[0])
            total = acc + word_pairs(words, parts[0])
            return bind(streaming.keep(total, lanes) if keep else total)
        byte_pairs = x86.PMADDUBSW_512 if wide else x86.PMADDUBSW_256
        low, high = (byte_pairs(w, q) for w, q in zip(weights, parts[:2], strict=True))
        total = acc + word_pairs(low + high - parts[2], splat(1, "int16", lanes * 2))
        return bind(streaming.keep(total, lanes) if keep else total)


def _float_kind(isa: Isa, form: str) -> str:
    return "bfloats" if form == "bfloat16" and isa.has_bf16 else "floats"


def widened(narrow: Expr) -> list[Expr]:
    """Return a vector of bfloat16 (uint16) in float32, of int8 in int16: even, then odd columns."""
    kind, _, count = str(narrow.ty.dtype).partition("x")
    lanes = int(count) // 2
    if kind == "uint16":
        words = reinterpret(f"uint32x{lanes}", narrow)
        even = words << splat(16, "uint32", lanes)
        odd = words & splat(0xFFFF0000, "uint32", lanes)
        return [bind(reinterpret(f"float32x{lanes}", bits)) for bits in (even, odd)]
    pairs = bind(reinterpret(f"int16x{lanes}", narrow))
    by = splat(8, "int16", lanes)
    return [bind((pairs << by) >> by), bind(pairs >> by)]
