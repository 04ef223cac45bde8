"""Sampled products and convolutions, against a loop of multiply-adds between registers."""

from __future__ import annotations

import numpy as np

from lutcc import ir
from lutcc.bench.kernel_rows import compiled, in_place, levels, measured
from lutcc.bench.limits import limit_loop, product_limit
from lutcc.bench.options import BenchOptions
from lutcc.bench.rows import Row

N = ir.Sym("n")


def _half(rng: np.random.Generator, pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """Return indices and scales that take half of the pairs."""
    indices, scales = np.zeros(pairs, np.int32), np.zeros(pairs, np.float32)
    taken = max(pairs // 2, 1)
    indices[:taken], scales[:taken] = np.sort(rng.permutation(pairs)[:taken]), 1.5
    return indices, scales


def bench_sampled_matmul(options: BenchOptions) -> list[Row]:
    """Multiply half of the pairs; the second factor is the transpose of a weight."""
    rows = []
    rng = np.random.default_rng(options.seed)
    shapes = ((512, 512, 512),) if options.quick else ((512, 512, 512), (4096, 1024, 1024))
    for isa in levels(options):
        loop, flops = limit_loop(product_limit(isa).name)
        for n, inner, outputs in shapes:
            builder = ir.Builder("main")
            a = builder.param("a", ir.TensorType((N, inner), "float32"))
            b = builder.param("b", ir.TensorType((inner, outputs), "float32"))
            rest = _selection(builder, inner, outputs)
            builder.returns(builder.op("sampled_matmul", a, b, *rest))
            weight = rng.normal(size=(outputs, inner)).astype(np.float32)
            given = (
                rng.normal(size=(n, inner)).astype(np.float32),
                weight.T,
                *_half(rng, inner),
                np.zeros(outputs, np.float32),
            )
            rows.append(
                measured(
                    options,
                    "sampled_matmul",
                    f"N={n} K={inner // 2} of {inner} M={outputs}",
                    isa,
                    in_place(compiled(builder.module(), isa), *given),
                    2.0 * n * (inner // 2) * outputs,
                    "GFLOP/s",
                    loop,
                    flops,
                    product_limit(isa).name,
                )
            )
    return rows


def bench_sampled_conv2d(options: BenchOptions) -> list[Row]:
    """Convolve half of the channels with 3 x 3 kernels."""
    rows = []
    rng, n = np.random.default_rng(options.seed), 8
    shapes = ((64, 14),) if options.quick else ((64, 28), (256, 14))
    for isa in levels(options):
        loop, flops = limit_loop(product_limit(isa).name)
        for channels, size in shapes:
            builder = ir.Builder("main")
            x = builder.param("x", ir.TensorType((N, channels, size, size), "float32"))
            w = builder.param("weight", ir.TensorType((channels, channels, 3, 3), "float32"))
            rest = _selection(builder, channels, channels)
            builder.returns(builder.op("sampled_conv2d", x, w, *rest, padding=(1, 1)))
            given = (
                rng.normal(size=(n, channels, size, size)).astype(np.float32),
                rng.normal(size=(channels, channels, 3, 3)).astype(np.float32),
                *_half(rng, channels),
                np.zeros(channels, np.float32),
            )
            rows.append(
                measured(
                    options,
                    "sampled_conv2d",
                    f"N={n} C={channels // 2} of {channels} {size}x{size} O={channels} 3x3",
                    isa,
                    in_place(compiled(builder.module(), isa), *given),
                    2.0 * n * size * size * (channels // 2) * 9 * channels,
                    "GFLOP/s",
                    loop,
                    flops,
                    product_limit(isa).name,
                )
            )
    return rows


def _selection(builder: ir.Builder, pairs: int, outputs: int) -> list[ir.Value]:
    """Declare indices, scales and bias."""
    types = (
        ("indices", pairs, "int32"),
        ("scales", pairs, "float32"),
        ("bias", outputs, "float32"),
    )
    return [builder.param(name, ir.TensorType((size,), dtype)) for name, size, dtype in types]
