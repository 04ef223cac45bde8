"""The benchmark of ``dense``, beside what bounds it."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from lutcc import ir
from lutcc.bench.kernel_rows import compiled, in_place, levels, measured, product_bound
from lutcc.bench.options import BenchOptions
from lutcc.bench.rows import Row
from lutcc.ir.arithmetic import quantize_rows

COMPUTE = ("float32", "bfloat16", "int8")


def dense_module(
    rng: np.random.Generator, outputs: int, columns: int, compute: str, dtype: str = "float32"
) -> ir.Module:
    """Return a module of one ``dense`` with random weights, of the type that is computed with.

    ``dtype`` is that of x and the result.

    Examples
    --------
    >>> module = dense_module(np.random.default_rng(0), 3, 8, "int8")
    >>> module.constants["weight"].dtype.name
    'int8'
    """
    weight = rng.normal(size=(outputs, columns)).astype(np.float32)
    units = np.ones(outputs, np.float32)
    if compute == "int8":
        integers, units = quantize_rows(weight)
        weight = integers.astype(np.int8)
    elif compute == "bfloat16":
        weight = weight.astype(ml_dtypes.bfloat16)
    b = ir.Builder("main")
    x = b.param("x", ir.TensorType((ir.Sym("n"), columns), dtype))
    constants = [b.constant("weight", weight), b.constant("units", units)]
    constants.append(b.constant("bias", np.zeros(outputs, np.float32)))
    b.returns(b.op("dense", x, *constants, compute=compute, out_dtype=dtype))
    return b.module()


def bench_dense(options: BenchOptions) -> list[Row]:
    """Multiply: one row against reading the weights, many against multiply-adds in registers."""
    rows: list[Row] = []
    rng, size = np.random.default_rng(options.seed), 512 if options.quick else 1024
    for isa in levels(options):
        for compute in COMPUTE:
            module = dense_module(rng, size, size, compute)
            nbytes = module.constants["weight"].nbytes
            artifact = compiled(module, isa)
            for n in (1, 128):
                x = rng.normal(size=(n, size)).astype(np.float32)
                bound = product_bound(isa, n, (size, size), nbytes, "weights")
                call = in_place(artifact, x)
                workload = f"N={n} {size}x{size} {compute}"
                rows.append(measured(options, "dense", workload, isa, call, **bound))
    return rows
