"""The benchmark of ``attention``, beside multiply-adds in registers."""

from __future__ import annotations

import numpy as np

from lutcc import ir
from lutcc.bench.kernel_rows import compiled, in_place, levels, measured
from lutcc.bench.limits import limit_loop, product_limit
from lutcc.bench.options import BenchOptions
from lutcc.bench.rows import Row

HEADS, COLUMNS = 12, 32


def attention_module(length: int) -> ir.Module:
    """Return a module of one unmasked ``attention``; the number of images is open."""
    b = ir.Builder("main")
    shape = (ir.Sym("n"), length, HEADS * COLUMNS)
    rows = [b.param(name, ir.TensorType(shape, "float32")) for name in "qkv"]
    none = b.constant("mask", np.zeros((1, 1, 1, 1), np.float32))
    attrs = {"heads": HEADS, "kv_heads": HEADS, "scale": COLUMNS**-0.5}
    b.returns(b.op("attention", *rows, none, **attrs))
    return b.module()


def bench_attention(options: BenchOptions) -> list[Row]:
    """Attend: products and softmax, against the multiply-adds of the products alone."""
    rows: list[Row] = []
    rng = np.random.default_rng(options.seed)
    for isa in levels(options):
        for length in (128,) if options.quick else (16, 128, 512):
            artifact = compiled(attention_module(length), isa)
            shape = (1, length, HEADS * COLUMNS)
            q, k, v = (rng.normal(size=shape).astype(np.float32) for _ in range(3))
            mix = product_limit(isa)
            loop, flops = limit_loop(mix.name)
            work = 4.0 * length * length * HEADS * COLUMNS
            call = in_place(artifact, q, k, v)
            workload = f"N=1 length={length} heads={HEADS} columns={COLUMNS}"
            given = (call, work, "GFLOP/s", loop, flops, mix.name)
            rows.append(measured(options, "attention", workload, isa, *given))
    return rows
