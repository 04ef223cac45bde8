"""Modules of one op with codebook weights, for the tests of their kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lutcc import ir
from lutcc.ir.codebooks import pack_indices
from tests.schedules.harness import N


@dataclass(frozen=True)
class Weights:
    """M rows of K columns in G codebooks with T scales."""

    rows: int
    columns: int
    bits: int
    codebooks: int
    scales: int
    segment_size: int = 0

    def operands(self, b: ir.Builder, seed: int = 0) -> tuple[list[Any], dict[str, Any]]:
        """Add random weights to a module; return the operands and the attributes."""
        rng = np.random.default_rng(seed)
        indices = rng.integers(0, 2**self.bits, (self.rows, self.columns))
        arrays = {
            "indices": pack_indices(indices, self.bits),
            "codebooks": rng.normal(size=(self.codebooks, 2**self.bits)).astype(np.float16),
            "scales": rng.uniform(0.5, 2, self.scales).astype(np.float16),
        }
        attrs = {"bits": self.bits, "segment_size": self.segment_size}
        return [b.constant(f"{name}{self.columns}", a) for name, a in arrays.items()], attrs

    def matmul(self, compute: str, *, reordered: bool = False, seed: int = 0) -> ir.Module:
        """Return x -> codebook_matmul."""
        rng = np.random.default_rng(seed + 1)
        b = ir.Builder("main")
        x = b.param("x", ir.TensorType((N, self.columns), "float32"))
        operands, attrs = self.operands(b, seed)
        order = rng.permutation(self.rows) if reordered else np.arange(self.rows)
        operands.append(b.constant("order", order.astype(np.int32)))
        operands.append(b.constant("bias", rng.normal(size=self.rows).astype(np.float32)))
        b.returns(b.op("codebook_matmul", x, *operands, compute=compute, **attrs))
        return b.module()

    def dequantize(self, seed: int = 0) -> ir.Module:
        """Return rows -> codebook_dequantize."""
        b = ir.Builder("main")
        rows = b.param("rows", ir.TensorType((N,), "int32"))
        operands, attrs = self.operands(b, seed)
        b.returns(b.op("codebook_dequantize", rows, *operands, columns=self.columns, **attrs))
        return b.module()
