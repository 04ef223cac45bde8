"""One benchmark for each op: time, rate, and the share of the limit that bounds it.

Kernel and limit take turns in one run, so that a slow moment of the machine hits both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from lutcc import ir
from lutcc.bench.attention_kernels import bench_attention
from lutcc.bench.codebook_kernels import (
    bench_codebook_dequantize,
    bench_codebook_matmul,
    bench_sparse_add,
)
from lutcc.bench.conv_kernels import bench_conv2d, bench_lut_conv2d
from lutcc.bench.dense_kernels import bench_dense
from lutcc.bench.kernel_rows import compiled, in_place, levels, measured, one_op
from lutcc.bench.limits import MIXES, limit_loop, memcpy, product_limit, read_loop, scan_limit
from lutcc.bench.options import BenchOptions
from lutcc.bench.rows import Row
from lutcc.bench.sampled_kernels import bench_sampled_conv2d, bench_sampled_matmul
from lutcc.ir.types import numpy_dtype

N = ir.Sym("n")


def _scan_rows(options: BenchOptions) -> Iterator[Row]:
    from lutcc.bench.scan import scan_kernel, scan_module

    shapes = [(1024, 512, 64)] if options.quick else [(1024, 512, 64), (4096, 1024, 64)]
    scans = [("exact", 16, False), ("exact", 16, True), ("mean", 16, False), ("mean", 16, True)]
    if not options.quick:
        scans += [("exact", 32, False), ("exact", 64, False), ("exact", 128, False)]
    for isa in levels(options):
        for rows, columns, codebooks in shapes:
            for accumulate, entries, dequantize in scans:
                module = scan_module(
                    codebooks,
                    entries,
                    columns,
                    accumulate=accumulate,
                    seed=options.seed,
                    dequantize=dequantize,
                )
                mix = scan_limit(isa, mean=accumulate == "mean", entries=entries)
                loop, lookups = limit_loop(mix.name)
                workload = f"{accumulate} N={rows} M={columns} C={codebooks} K={entries}"
                yield measured(
                    options,
                    "lut_accumulate",
                    workload + (", to float32" if dequantize else ""),
                    isa,
                    scan_kernel(module, isa, rows, seed=options.seed),
                    rows * columns * codebooks,
                    "G look-ups/s",
                    loop,
                    lookups,
                    mix.name,
                )


def bench_lut_accumulate(options: BenchOptions) -> list[Row]:
    """Time scans alone, between the kernel's own layouts, against instruction limits."""
    return list(_scan_rows(options))


def bench_tree_encode(options: BenchOptions) -> list[Row]:
    """Encode row-major float32 into row-major codes, against a memcpy of the input."""
    rows = []
    D, C, rng = 512, 64, np.random.default_rng(options.seed)
    for isa in levels(options):
        for entries in (16,) if options.quick else (16, 64):
            depth = entries.bit_length() - 1
            splitdims = rng.integers(0, D, (C, depth)).astype(np.int32)
            splitvals = rng.normal(size=(C, entries)).astype(np.float32)
            inputs = [rng.normal(size=(n, D)).astype(np.float32) for n in (1024, 10_000)]
            rows += _encoding(options, "tree_encode", isa, [splitdims, splitvals], inputs)
    return rows


def bench_interval_encode(options: BenchOptions) -> list[Row]:
    """Encode row-major int32 by intervals into row-major codes, against a memcpy of the input."""
    rows = []
    D, C, K, rng = 512, 64, 16, np.random.default_rng(options.seed)
    for isa in levels(options):
        starts, ends = np.sort(rng.integers(-4000, 4000, (2, C, K)).astype(np.int32), axis=0)
        constants = [rng.integers(0, D, (C, 4)).astype(np.int32), starts, ends - starts]
        x = rng.integers(-4000, 4000, (1024, D)).astype(np.int32)
        rows += _encoding(options, "interval_encode", isa, constants, [x])
    return rows


def _encoding(
    options: BenchOptions,
    op: str,
    isa: str,
    constants: list[np.ndarray],
    inputs: list[np.ndarray],
) -> list[Row]:
    (C, K), D = constants[-1].shape, inputs[0].shape[1]
    artifact = compiled(one_op(op, ((N, D), str(inputs[0].dtype)), constants), isa)
    return [
        measured(
            options,
            op,
            f"N={len(x)} D={D} C={C} K={K}",
            isa,
            partial(artifact, x),
            x.nbytes,
            "GB/s of input",
            memcpy(x.nbytes),
            x.nbytes,
            "memcpy of the input",
        )
        for x in inputs
    ]


def bench_nearest_encode(options: BenchOptions) -> list[Row]:
    """Nearest-centroid encoding; its work is that of a dense layer with K outputs."""
    rows = []
    n, D, C, K, rng = 1024, 512, 64, 16, np.random.default_rng(options.seed)
    starts = tuple(int(v) for v in np.linspace(0, D, C + 1))
    constants = [
        rng.normal(size=(K, D)).astype(np.float32),
        rng.random((C, K), np.float32),
        np.arange(D, dtype=np.int32),
    ]
    for isa in levels(options):
        module = one_op("nearest_encode", ((N, D), "float32"), constants, starts=starts)
        artifact = compiled(module, isa)
        x = rng.normal(size=(n, D)).astype(np.float32)
        call = partial(artifact, x)
        work = 2.0 * n * D * K
        rows.append(
            measured(
                options, "nearest_encode", f"N={n} D={D} C={C} K={K}", isa, call, work, "GFLOP/s"
            )
        )
    return rows


def bench_linear(options: BenchOptions) -> list[Row]:
    """Time the exact layer."""
    rows = []
    rng = np.random.default_rng(options.seed)
    for isa in levels(options):
        for n, D, M in ((1024, 512, 512), (1, 512, 512)):
            weight = rng.normal(size=(M, D)).astype(np.float32)
            module = one_op("linear", ((N, D), "float32"), [weight, np.zeros(M, np.float32)])
            artifact = compiled(module, isa)
            x = rng.normal(size=(n, D)).astype(np.float32)
            call = partial(artifact, x)
            work = 2.0 * n * D * M
            rows.append(
                measured(options, "linear", f"N={n} D={D} M={M}", isa, call, work, "GFLOP/s")
            )
    return rows


def bench_hadamard(options: BenchOptions) -> list[Row]:
    """Transform rows, against a memcpy of the same bytes: both read and write each once."""
    rows = []
    rng, n = np.random.default_rng(options.seed), 4096
    for isa in levels(options):
        for width in (512,) if options.quick else (512, 1024, 4096):
            module = one_op("hadamard", ((N, width), "float32"), [], scale=width**-0.5)
            x = rng.normal(size=(n, width)).astype(np.float32)
            rows.append(
                measured(
                    options,
                    "hadamard",
                    f"N={n} n={width}",
                    isa,
                    in_place(compiled(module, isa), x),
                    x.nbytes,
                    "GB/s of input",
                    memcpy(x.nbytes),
                    x.nbytes,
                    "memcpy of the input",
                )
            )
    return rows


def bench_block_diagonal_matmul(options: BenchOptions) -> list[Row]:
    """Multiply by blocks, against a loop of multiply-adds between registers."""
    rows = []
    rng, n, width = np.random.default_rng(options.seed), 4096, 1024
    for isa in levels(options):
        for size in (64,) if options.quick else (64, 32, 16):
            for dtype in ("float32", "bfloat16"):
                blocks = rng.normal(size=(width // size, size, size)).astype(numpy_dtype(dtype))
                module = one_op("block_diagonal_matmul", ((N, width), "float32"), [blocks])
                x = rng.normal(size=(n, width)).astype(np.float32)
                mix = product_limit(isa, bfloat16=dtype == "bfloat16")
                loop, flops = limit_loop(mix.name)
                rows.append(
                    measured(
                        options,
                        "block_diagonal_matmul",
                        f"N={n} {width // size} blocks of {size}x{size} {dtype}",
                        isa,
                        in_place(compiled(module, isa), x),
                        2.0 * n * width * size,
                        "GFLOP/s",
                        loop,
                        flops,
                        mix.name,
                    )
                )
    return rows


def bench_sign_hash(options: BenchOptions) -> list[Row]:
    """Hash rows of z, against a memcpy of them."""
    rows = []
    rng, n, width = np.random.default_rng(options.seed), 4096, 1024
    shapes = ((8, "gelu", 1),) if options.quick else ((8, "gelu", 1), (8, "softmax", 3))
    for isa in levels(options):
        for length, variant, neighbors in shapes:
            b = ir.Builder("main")
            z = b.param("z", ir.TensorType((N, width), "float32"))
            attrs = {"code_length": length, "variant": variant, "neighbors": neighbors}
            b.returns(*b.ops("sign_hash", z, **attrs))
            x = rng.normal(size=(n, width)).astype(np.float32)
            rows.append(
                measured(
                    options,
                    "sign_hash",
                    f"N={n} H={width // length} T={length} {variant}, {neighbors} a table",
                    isa,
                    in_place(compiled(b.module(), isa), x),
                    x.nbytes,
                    "GB/s of input",
                    memcpy(x.nbytes),
                    x.nbytes,
                    "memcpy of the input",
                )
            )
    return rows


#: Bytes of a table's piece that a gather keeps at hand: they come from the L2 cache.
_L2_BYTES = 1 << 18


def bench_weighted_gather(options: BenchOptions) -> list[Row]:
    """Sum weighted table rows, against reading as many bytes from the L2 cache."""
    rows = []
    rng, n = np.random.default_rng(options.seed), 4096
    shapes = ((128, 8, 512),) if options.quick else ((128, 8, 512), (170, 9, 768))
    for isa in levels(options):
        read, nbytes = read_loop(isa, _L2_BYTES)
        for tables, length, outputs in shapes:
            codes = rng.integers(0, 1 << length, (n, tables)).astype(np.int32)
            scores = rng.random((n, tables), np.float32)
            for dtype in ("float32", "bfloat16", "int8"):
                table = (rng.normal(size=(tables, 1 << length, outputs)) * 40).astype(
                    numpy_dtype(dtype)
                )
                b = ir.Builder("main")
                c = b.param("codes", ir.TensorType((N, tables), "int32"))
                s = b.param("scores", ir.TensorType((N, tables), "float32"))
                b.returns(b.op("weighted_gather", c, s, b.constant("tables", table)))
                rows.append(
                    measured(
                        options,
                        "weighted_gather",
                        f"N={n} H={tables} T={length} M={outputs} {dtype}",
                        isa,
                        in_place(compiled(b.module(), isa), codes, scores),
                        float(n) * tables * outputs * table.itemsize,
                        "GB/s of table rows",
                        read,
                        nbytes,
                        f"L2 reads, {_L2_BYTES >> 10} KiB",
                    )
                )
    return rows


def _moving(
    opcode: str,
    shape: tuple[Any, ...],
    constants: list[Any],
    dtype: str = "float32",
    *,
    numbers: int = 100,
    **attrs: Any,
) -> Callable[[BenchOptions], list[Row]]:
    """Return the benchmark of an op bound by moving its bytes, integers below ``numbers``."""

    def run(options: BenchOptions) -> list[Row]:
        rows = []
        n = 64 if len(shape) == 4 else 4096
        rng = np.random.default_rng(options.seed)
        real = tuple(int(d.factor) * n if isinstance(d, ir.Sym) else d for d in shape)
        x = rng.integers(0, numbers, real).astype(dtype)
        for isa in levels(options):
            if opcode == "add":
                b = ir.Builder("main")
                left = b.param("x", ir.TensorType(shape, dtype))
                b.returns(b.op("add", left, b.param("y", ir.TensorType(shape, dtype))))
                artifact = compiled(b.module(), isa)
                call = partial(artifact, x, x)
            else:
                artifact = compiled(one_op(opcode, (shape, dtype), constants, **attrs), isa)
                call = partial(artifact, x)
            rows.append(
                measured(
                    options,
                    opcode,
                    f"{'x'.join(map(str, real))} {dtype}",
                    isa,
                    call,
                    x.nbytes,
                    "GB/s of input",
                    memcpy(x.nbytes),
                    x.nbytes,
                    "memcpy of the input",
                )
            )
        return rows

    run.__doc__ = f"``{opcode}`` alone, against a memcpy of its input."
    return run


_VECTOR = np.ones(256, np.float32)
_CONV: dict[str, Any] = {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}

#: Benchmarks by op.
BENCHMARKS: Mapping[str, Callable[[BenchOptions], list[Row]]] = {
    "lut_accumulate": bench_lut_accumulate,
    "tree_encode": bench_tree_encode,
    "interval_encode": bench_interval_encode,
    "nearest_encode": bench_nearest_encode,
    "linear": bench_linear,
    "dense": bench_dense,
    "conv2d": bench_conv2d,
    "lut_conv2d": bench_lut_conv2d,
    "attention": bench_attention,
    "hadamard": bench_hadamard,
    "block_diagonal_matmul": bench_block_diagonal_matmul,
    "sign_hash": bench_sign_hash,
    "weighted_gather": bench_weighted_gather,
    "sampled_matmul": bench_sampled_matmul,
    "sampled_conv2d": bench_sampled_conv2d,
    "codebook_matmul": bench_codebook_matmul,
    "codebook_dequantize": bench_codebook_dequantize,
    "sparse_add": bench_sparse_add,
    "lut_dequantize": _moving("lut_dequantize", (N, 256), [_VECTOR, _VECTOR], "int32"),
    "quantize": _moving("quantize", (N, 256), [_VECTOR, _VECTOR]),
    "affine": _moving("affine", (N, 256), [_VECTOR, _VECTOR]),
    "relu": _moving("relu", (N, 256), []),
    "leaky_relu": _moving("leaky_relu", (N, 256), [], slope=0.1),
    "clamp": _moving("clamp", (N, 256), [], low=0.0, high=6.0),
    "round": _moving("round", (N, 256), []),
    "activation": _moving("activation", (N, 256), [], kind="gelu"),
    "layer_norm": _moving("layer_norm", (N, 256), [_VECTOR, _VECTOR]),
    # numbers further apart give denormal shares, each of which takes the CPU 150 cycles
    "softmax": _moving("softmax", (N, 256), [], numbers=20),
    "add": _moving("add", (N, 256), []),
    "max_pool2d": _moving(
        "max_pool2d", (N, 28, 28, 16), [], "float32", kernel=(2, 2), stride=(2, 2)
    ),
    "im2col": _moving("im2col", (N, 16, 28, 28), [], "float32", **_CONV),
    "rows_to_nchw": _moving("rows_to_nchw", (ir.Sym("n", 64), 64), [], oh=8, ow=8),
}

__all__ = ["BENCHMARKS", "MIXES", "bench_lut_accumulate", "bench_tree_encode"]
