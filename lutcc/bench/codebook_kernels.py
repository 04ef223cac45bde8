"""Benchmarks of the ops with codebook weights, each beside what bounds it."""

from __future__ import annotations

from typing import Any

import numpy as np

from lutcc import ir
from lutcc.bench.kernel_rows import compiled, in_place, levels, measured, product_bound
from lutcc.bench.limits import memcpy, read_loop
from lutcc.bench.options import BenchOptions
from lutcc.bench.rows import Row
from lutcc.ir.codebooks import pack_indices

N = ir.Sym("n")


def random_codebooks(
    rng: np.random.Generator, rows: int, columns: int, bits: int
) -> dict[str, np.ndarray]:
    """Return packed indices, a codebook for each 16 rows, and a scale for each row.

    Examples
    --------
    >>> found = random_codebooks(np.random.default_rng(0), 32, 8, 4)
    >>> {name: array.shape for name, array in found.items()}
    {'indices': (32, 4), 'codebooks': (2, 16), 'scales': (32,)}
    """
    return {
        "indices": pack_indices(rng.integers(0, 2**bits, (rows, columns), np.uint8), bits),
        "codebooks": rng.normal(size=(max(rows // 16, 1), 2**bits)).astype(np.float16),
        "scales": rng.uniform(0.5, 2, rows).astype(np.float16),
    }


def matmul_module(
    weights: dict[str, np.ndarray], columns: int, bits: int, compute: str
) -> ir.Module:
    """Return a module of one ``codebook_matmul``."""
    rows = len(weights["indices"])
    b = ir.Builder("main")
    x = b.param("x", ir.TensorType((N, columns), "float32"))
    operands = [b.constant(name, array) for name, array in weights.items()]
    operands.append(b.constant("order", np.arange(rows, dtype=np.int32)))
    operands.append(b.constant("bias", np.zeros(rows, np.float32)))
    b.returns(b.op("codebook_matmul", x, *operands, bits=bits, compute=compute))
    return b.module()


def bench_codebook_matmul(options: BenchOptions) -> list[Row]:
    """Multiply: one row against reading the indices, many against multiply-adds in registers."""
    rows: list[Row] = []
    rng, size = np.random.default_rng(options.seed), 1024 if options.quick else 2048
    for isa in levels(options):
        for bits in (4,) if options.quick else (4, 3, 2):
            weights = random_codebooks(rng, size, size, bits)
            for compute in ("int8", "float32"):
                artifact = compiled(matmul_module(weights, size, bits, compute), isa)
                for n in (1, 128):
                    x = rng.normal(size=(n, size)).astype(np.float32)
                    nbytes = weights["indices"].nbytes
                    bound = product_bound(isa, n, (size, size), nbytes, "indices")
                    workload = f"N={n} {size}x{size} {bits} bits {compute}"
                    call = in_place(artifact, x)
                    rows.append(measured(options, "codebook_matmul", workload, isa, call, **bound))
    return rows


def bench_codebook_dequantize(options: BenchOptions) -> list[Row]:
    """Look rows up, against a memcpy of the result."""
    rows: list[Row] = []
    rng, n, columns = np.random.default_rng(options.seed), 1024, 1024
    for isa in levels(options):
        for bits in (4,) if options.quick else (4, 3, 2):
            b = ir.Builder("main")
            numbers = b.param("rows", ir.TensorType((N,), "int32"))
            weights = random_codebooks(rng, 4 * n, columns, bits)
            operands = [b.constant(name, array) for name, array in weights.items()]
            attrs: dict[str, Any] = {"bits": bits, "columns": columns}
            b.returns(b.op("codebook_dequantize", numbers, *operands, **attrs))
            given = rng.integers(0, 4 * n, n).astype(np.int32)
            nbytes = 4.0 * n * columns
            rows.append(
                measured(
                    options,
                    "codebook_dequantize",
                    f"N={n} of {4 * n}x{columns} {bits} bits",
                    isa,
                    in_place(compiled(b.module(), isa), given),
                    nbytes,
                    "GB/s of output",
                    memcpy(int(nbytes)),
                    nbytes,
                    "memcpy of the output",
                )
            )
    return rows


def bench_sparse_add(options: BenchOptions) -> list[Row]:
    """Add products with 1 in 200 weights, against reading what each needs from the L2 cache."""
    rows: list[Row] = []
    rng, size = np.random.default_rng(options.seed), 1024
    there = rng.random((size, size)) < 1 / 200
    m, columns = np.nonzero(there)
    starts = np.concatenate([[0], np.cumsum(np.bincount(m, minlength=size))])
    for isa in levels(options):
        read, nbytes = read_loop(isa, 1 << 18)
        b = ir.Builder("main")
        operands = [b.param(name, ir.TensorType((N, size), "float32")) for name in ("base", "x")]
        operands.append(b.constant("starts", starts.astype(np.int32)))
        operands.append(b.constant("columns", columns.astype(np.int32)))
        operands.append(b.constant("values", rng.normal(size=len(m)).astype(np.float32)))
        b.returns(b.op("sparse_add", *operands))
        artifact = compiled(b.module(), isa)
        for n in (1, 128):
            base, x = (rng.normal(size=(n, size)).astype(np.float32) for _ in range(2))
            rows.append(
                measured(
                    options,
                    "sparse_add",
                    f"N={n} {size}x{size}, {len(m)} values",
                    isa,
                    in_place(artifact, base, x),
                    len(m) * (4.0 * n + 8),
                    "GB/s of x and values",
                    read,
                    nbytes,
                    "L2 reads, 256 KiB",
                )
            )
    return rows
