"""The benchmarks of convolutions, beside the multiply-adds or look-ups that bound them."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from lutcc import ir
from lutcc.bench.dense_kernels import COMPUTE
from lutcc.bench.kernel_rows import compiled, in_place, levels, measured, one_op
from lutcc.bench.limits import limit_loop, product_limit, scan_limit
from lutcc.bench.options import BenchOptions
from lutcc.bench.rows import Row
from lutcc.ir.arithmetic import quantize_rows


def conv2d_module(
    rng: np.random.Generator, size: int, channels: int, outputs: int, kernel: int, compute: str
) -> ir.Module:
    """Return a module of one ``conv2d`` of square images, padded, with random weights.

    Examples
    --------
    >>> module = conv2d_module(np.random.default_rng(0), 7, 4, 3, 3, "int8")
    >>> module.main.returns[0].type.shape[1]
    3
    """
    weight = rng.normal(size=(outputs, channels, kernel, kernel)).astype(np.float32)
    units = np.ones(outputs, np.float32)
    if compute == "int8":
        integers, units = quantize_rows(weight.reshape(outputs, -1))
        weight = integers.astype(np.int8).reshape(weight.shape)
    elif compute == "bfloat16":
        weight = weight.astype(ml_dtypes.bfloat16)
    b = ir.Builder("main")
    x = b.param("x", ir.TensorType((ir.Sym("n"), size, size, channels), "float32"))
    constants = [b.constant("weight", weight), b.constant("units", units)]
    constants.append(b.constant("bias", np.zeros(outputs, np.float32)))
    padding = (kernel // 2, kernel // 2)
    b.returns(b.op("conv2d", x, *constants, compute=compute, padding=padding))
    return b.module()


def bench_conv2d(options: BenchOptions) -> list[Row]:
    """Convolve one image, against multiply-adds in registers."""
    rows: list[Row] = []
    rng, size, channels = np.random.default_rng(options.seed), 28, 64 if options.quick else 128
    for isa in levels(options):
        mix = product_limit(isa)
        loop, flops = limit_loop(mix.name)
        for compute in COMPUTE:
            module = conv2d_module(rng, size, channels, channels, 3, compute)
            x = rng.normal(size=(1, size, size, channels)).astype(np.float32)
            rows.append(
                measured(
                    options,
                    "conv2d",
                    f"{size}x{size} 3x3 {channels}x{channels} {compute}",
                    isa,
                    in_place(compiled(module, isa), x),
                    2.0 * size * size * channels * channels * 9,
                    unit="GFLOP/s",
                    limit=loop,
                    limit_work=flops,
                    limit_name=mix.name,
                )
            )
    return rows


def bench_lut_conv2d(options: BenchOptions) -> list[Row]:
    """Look up the windows of one float32 image, against look-ups in registers."""
    rows: list[Row] = []
    rng, size, channels = np.random.default_rng(options.seed), 28, 32 if options.quick else 64
    constants = [
        rng.integers(0, 9, (channels, 4)).astype(np.int32) + 9 * np.arange(channels)[:, None],
        rng.normal(size=(channels, 16)).astype(np.float32),
        rng.integers(0, 256, (channels, 16, channels)).astype(np.uint8),
        np.zeros(channels, np.float32),
    ]
    constants[0] = constants[0].astype(np.int32)
    images = ((ir.Sym("n"), size, size, channels), "float32")
    module = one_op("lut_conv2d", images, constants, kernel=(3, 3), padding=(1, 1))
    x = rng.normal(size=(1, size, size, channels)).astype(np.float32)
    for isa in levels(options):
        mix = scan_limit(isa, mean=False)
        loop, lookups = limit_loop(mix.name)
        rows.append(
            measured(
                options,
                "lut_conv2d",
                f"{size}x{size} 3x3 {channels}x{channels} C={channels} K=16",
                isa,
                in_place(compiled(module, isa), x),
                size * size * channels * channels,
                "G look-ups/s",
                loop,
                lookups,
                mix.name,
            )
        )
    return rows
