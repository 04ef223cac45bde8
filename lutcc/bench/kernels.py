"""One benchmark for each op: time, rate, and the share of the limit that bounds it.

Kernel and limit take turns in one run, so that a slow moment of the machine hits both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from lutcc import ir
from lutcc.bench.limits import MIXES, limit_loop, memcpy, scan_limit
from lutcc.bench.options import BenchOptions
from lutcc.bench.timing import burst, interleave
from lutcc.runtime import cpu

Row = dict[str, Any]
N = ir.Sym("n")


def _isas(options: BenchOptions) -> list[str]:
    return [options.isa] if options.isa else list(cpu.supported_isas())


def _row(
    options: BenchOptions,
    name: str,
    workload: str,
    isa: str,
    call: Callable[[], object],
    work: float,
    unit: str,
    limit: Callable[[], object] | None = None,
    limit_work: float = 0,
    limit_name: str = "",
) -> Row:
    """Time a call, interleaved with its limit, and return one row."""
    candidates: dict[str, Callable[[float], list[int]]] = {"kernel": lambda s: burst(call, s)}
    if limit is not None:
        candidates["limit"] = lambda s: burst(limit, s)
    times = interleave(candidates, seconds=options.seconds, rounds=options.rounds)
    kernel = times["kernel"]
    row: Row = {
        "kernel": name,
        "workload": workload,
        "isa": isa,
        "best": kernel.best,
        "median": kernel.median,
        "p20": kernel.p20,
        "p80": kernel.p80,
        "rate": work / kernel.best / 1e9,
        "unit": unit,
        "limit": None,
        "limit_name": limit_name or None,
        "share": None,
    }
    if limit is not None:
        row["limit"] = limit_work / times["limit"].best / 1e9
        row["share"] = row["rate"] / row["limit"]
    return row


def _compiled(module: ir.Module, isa: str) -> Any:
    from lutcc.codegen.targets import parse_targets
    from lutcc.compiler import compile_module

    return compile_module(module, parse_targets(isa))


def _one_op(opcode: str, x: tuple[tuple[Any, ...], str], constants: list[Any], **attrs: Any) -> Any:
    """Return a module of one op whose first operand is the input."""
    b = ir.Builder("main")
    value = b.param("x", ir.TensorType(*x))
    operands = [b.constant(f"c{i}", array) for i, array in enumerate(constants)]
    b.returns(b.op(opcode, value, *operands, **attrs))
    return b.module()


def _scan_rows(options: BenchOptions) -> Iterator[Row]:
    from lutcc.bench.scan import scan_kernel, scan_module

    shapes = [(1024, 512, 64)] if options.quick else [(1024, 512, 64), (4096, 1024, 64)]
    scans = [("exact", 16, False), ("exact", 16, True), ("mean", 16, False), ("mean", 16, True)]
    if not options.quick:
        scans += [("exact", 32, False), ("exact", 64, False), ("exact", 128, False)]
    for isa in _isas(options):
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
                yield _row(
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
    for isa in _isas(options):
        for entries in (16,) if options.quick else (16, 64):
            depth = entries.bit_length() - 1
            splitdims = rng.integers(0, D, (C, depth)).astype(np.int32)
            splitvals = rng.normal(size=(C, entries)).astype(np.float32)
            module = _one_op("tree_encode", ((N, D), "float32"), [splitdims, splitvals])
            artifact = _compiled(module, isa)
            for n in (1024, 10_000):
                x = rng.normal(size=(n, D)).astype(np.float32)
                rows.append(
                    _row(
                        options,
                        "tree_encode",
                        f"N={n} D={D} C={C} K={entries}",
                        isa,
                        partial(artifact, x),
                        x.nbytes,
                        "GB/s of input",
                        memcpy(x.nbytes),
                        x.nbytes,
                        "memcpy of the input",
                    )
                )
    return rows


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
    for isa in _isas(options):
        module = _one_op("nearest_encode", ((N, D), "float32"), constants, starts=starts)
        artifact = _compiled(module, isa)
        x = rng.normal(size=(n, D)).astype(np.float32)
        call = partial(artifact, x)
        work = 2.0 * n * D * K
        rows.append(
            _row(options, "nearest_encode", f"N={n} D={D} C={C} K={K}", isa, call, work, "GFLOP/s")
        )
    return rows


def bench_linear(options: BenchOptions) -> list[Row]:
    """Time the exact layer."""
    rows = []
    rng = np.random.default_rng(options.seed)
    for isa in _isas(options):
        for n, D, M in ((1024, 512, 512), (1, 512, 512)):
            weight = rng.normal(size=(M, D)).astype(np.float32)
            module = _one_op("linear", ((N, D), "float32"), [weight, np.zeros(M, np.float32)])
            artifact = _compiled(module, isa)
            x = rng.normal(size=(n, D)).astype(np.float32)
            call = partial(artifact, x)
            work = 2.0 * n * D * M
            rows.append(_row(options, "linear", f"N={n} D={D} M={M}", isa, call, work, "GFLOP/s"))
    return rows


def _moving(
    opcode: str, shape: tuple[Any, ...], constants: list[Any], dtype: str = "float32", **attrs: Any
) -> Callable[[BenchOptions], list[Row]]:
    """Return the benchmark of an op that is bound by moving its bytes."""

    def run(options: BenchOptions) -> list[Row]:
        rows = []
        n = 64 if len(shape) == 4 else 4096
        rng = np.random.default_rng(options.seed)
        real = tuple(int(d.factor) * n if isinstance(d, ir.Sym) else d for d in shape)
        x = rng.integers(0, 100, real).astype(dtype)
        for isa in _isas(options):
            if opcode == "add":
                b = ir.Builder("main")
                left = b.param("x", ir.TensorType(shape, dtype))
                b.returns(b.op("add", left, b.param("y", ir.TensorType(shape, dtype))))
                artifact = _compiled(b.module(), isa)
                call = partial(artifact, x, x)
            else:
                artifact = _compiled(_one_op(opcode, (shape, dtype), constants, **attrs), isa)
                call = partial(artifact, x)
            rows.append(
                _row(
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
_CONV = {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}

#: Benchmarks by op.
BENCHMARKS: Mapping[str, Callable[[BenchOptions], list[Row]]] = {
    "lut_accumulate": bench_lut_accumulate,
    "tree_encode": bench_tree_encode,
    "nearest_encode": bench_nearest_encode,
    "linear": bench_linear,
    "lut_dequantize": _moving("lut_dequantize", (N, 256), [_VECTOR, _VECTOR], "int32"),
    "quantize": _moving("quantize", (N, 256), [_VECTOR, _VECTOR]),
    "affine": _moving("affine", (N, 256), [_VECTOR, _VECTOR]),
    "relu": _moving("relu", (N, 256), []),
    "add": _moving("add", (N, 256), []),
    "im2col": _moving("im2col", (N, 16, 28, 28), [], "float32", **_CONV),
    "rows_to_nchw": _moving("rows_to_nchw", (ir.Sym("n", 64), 64), [], oh=8, ow=8),
}

__all__ = ["BENCHMARKS", "MIXES", "bench_lut_accumulate", "bench_tree_encode"]
