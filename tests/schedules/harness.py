"""Builds kernels and calls them the way an artifact does, without one.

Kernels of a level that this CPU lacks are built in its emulation, so that they are checked on any
CPU with AVX2; ``tests/conftest.py`` counts those tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
import tvm_ffi

from lutcc import ir
from lutcc.codegen import Lowered, build_module, lower
from lutcc.ir.types import numpy_dtype
from lutcc.runtime import cpu
from lutcc.schedules.x86.isa import AVX512_BF16, ISAS, isa_by_name
from lutcc.schedules.x86.pack import aligned_empty, pack_blob

N = ir.Sym("n")
#: Levels for tests that call machine code of theirs: skipped where the CPU lacks one.
NATIVE_ISA_PARAMS = [pytest.param(name, marks=pytest.mark.isa(name)) for name in ISAS]
#: Levels for tests that run kernels through :func:`built`: emulated where the CPU lacks one.
ALL_ISA_PARAMS = [pytest.param(name, marks=pytest.mark.isa(name, emulated=True)) for name in ISAS]
#: The same for kernels without bfloat16, which the last level shares with the one below
#: (test_entry.py proves it).
ISA_PARAMS = [param for param in ALL_ISA_PARAMS if param.values != (AVX512_BF16.name,)]
#: One row, primes, one below and above every group, tails of every kind, more than a block.
ROWS = (1, 2, 3, 7, 13, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 257, 300)
#: For the costly tests: of the levels that are emulated, the widest one only.
WIDEST_ISA_PARAMS = [
    param
    for param in ISA_PARAMS
    if param.values[0] in cpu.supported_isas() or param is ISA_PARAMS[-1]
]


def runnable(isa: str) -> str:
    """Return the level, or its emulation where this CPU lacks it."""
    return isa if isa in cpu.supported_isas() else isa_by_name(isa).emulation().name


def built(
    module: ir.Module, isa: str, configs: Mapping[str, Any] | None = None, *, threads: int = 1
) -> tuple[Lowered, Callable[..., list[np.ndarray]]]:
    """Return the lowered module and a function of its inputs."""
    lowered = lower(module, runnable(isa), configs, parallel=threads > 1)
    program = lowered.program
    symbol = program.entry + ("_mt" if threads > 1 else "")
    alone = replace(lowered, functions={symbol: lowered.functions[symbol]})
    entry = build_module(alone)[symbol]
    constants = dict(lowered.module.constants)
    blob = tvm_ffi.from_dlpack(pack_blob(program.to_json(), constants))

    def call(*inputs: np.ndarray) -> list[np.ndarray]:
        sizes = _sizes(program, inputs)
        space = program.workspace
        rows = sizes.get(program.batch or "", 1)
        nbytes = space["fixed"] + space["per_row"] * rows + space["per_thread"] * threads + 64
        workspace = aligned_empty(nbytes)
        workspace[:] = 0xA5  # stale bytes must not matter
        outputs = [
            np.empty(_shape(spec, sizes), numpy_dtype(spec.dtype)) for spec in program.outputs
        ]
        entry(
            *[_tensor(x) for x in inputs],
            blob,
            tvm_ffi.from_dlpack(workspace),
            *[_tensor(y) for y in outputs],
            threads,
        )
        return outputs

    return lowered, call


def product_configs(module: ir.Module, **fields: int) -> dict[str, dict[str, Any]]:
    """Return configs for ``built`` in which the module's products have other fields."""
    from lutcc.codegen.products import part_name, product_name, products_of

    products = products_of(module.main)
    return {product_name(op): {part_name(op): fields} for op in products}


def _tensor(x: np.ndarray) -> Any:
    """Return the same memory as a tensor; DLPack knows bfloat16, but not NumPy's."""
    if x.dtype != ml_dtypes.bfloat16:
        return tvm_ffi.from_dlpack(x)
    return tvm_ffi.from_dlpack(torch.from_numpy(x.view(np.int16)).view(torch.bfloat16))


def _sizes(program: Any, inputs: tuple[np.ndarray, ...]) -> dict[str, int]:
    return {
        dim[0]: size // dim[1]
        for spec, x in zip(program.inputs, inputs, strict=True)
        for dim, size in zip(spec.shape, x.shape, strict=True)
        if isinstance(dim, tuple)
    }


def _shape(spec: Any, sizes: dict[str, int]) -> tuple[int, ...]:
    return tuple(d[1] * sizes[d[0]] if isinstance(d, tuple) else d for d in spec.shape)


def tree_constants(
    rng: np.random.Generator, columns: int, codebooks: int, entries: int, dtype: str = "float32"
) -> tuple[np.ndarray, np.ndarray]:
    """Return random split dimensions and thresholds."""
    depth = entries.bit_length() - 1
    dims = rng.integers(0, columns, (codebooks, depth)).astype(np.int32)
    if dtype == "uint8":
        return dims, rng.integers(0, 256, (codebooks, entries)).astype(np.uint8)
    return dims, rng.normal(size=(codebooks, entries)).astype(np.float32)


def maddness(
    columns: int,
    codebooks: int,
    outputs: int,
    *,
    entries: int = 16,
    accumulate: str = "exact",
    upcast_every: int = 16,
    lut_dtype: str = "uint8",
    x_dtype: str = "float32",
    activation: str = "relu",
    seed: int = 0,
) -> ir.Module:
    """Return x -> tree_encode -> lut_accumulate (-> lut_dequantize) with random tables."""
    rng = np.random.default_rng(seed)
    dims, vals = tree_constants(rng, columns, codebooks, entries, x_dtype)
    b = ir.Builder("main")
    x = b.param("x", ir.TensorType((N, columns), x_dtype))
    codes = b.op("tree_encode", x, b.constant("dims", dims), b.constant("vals", vals))
    lut = random_lut(rng, codebooks, entries, outputs, lut_dtype)
    acc = b.op(
        "lut_accumulate",
        codes,
        b.constant("lut", lut),
        accumulate=accumulate,
        upcast_every=upcast_every,
    )
    if lut_dtype == "float32":
        b.returns(acc)
        return b.module()
    scale = b.constant("scale", rng.normal(size=outputs).astype(np.float32))
    offset = b.constant("offset", rng.normal(size=outputs).astype(np.float32))
    b.returns(b.op("lut_dequantize", acc, scale, offset, activation=activation))
    return b.module()


def random_lut(
    rng: np.random.Generator, codebooks: int, entries: int, outputs: int, dtype: str
) -> np.ndarray:
    """Return random tables, extremes included."""
    if dtype == "float32":
        return rng.normal(size=(codebooks, entries, outputs)).astype(np.float32)
    info = np.iinfo(dtype)
    lut = rng.integers(info.min, int(info.max) + 1, (codebooks, entries, outputs)).astype(dtype)
    lut[:, 0] = info.max
    return lut


def check(
    module: ir.Module,
    isa: str,
    inputs: Callable[[int], list[np.ndarray]],
    *,
    rows: tuple[int, ...] = ROWS,
    configs: Mapping[str, Any] | None = None,
    threads: int = 1,
) -> None:
    """Assert that the kernels agree bit by bit with the interpreter."""
    _, call = built(module, isa, configs, threads=threads)
    for n in rows:
        arrays = inputs(n)
        expected = ir.interpret(module, arrays)
        for got, want in zip(call(*arrays), expected, strict=True):
            np.testing.assert_array_equal(got, want, err_msg=f"n={n}")
