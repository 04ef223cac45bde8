"""Lists of ops to tune without a model: a TOML file with one ``[[op]]`` table each.

.. code-block:: toml

    [[op]]
    op = "lookup"            # tree_encode + lut_accumulate + lut_dequantize: a MADDNESS layer
    D = 512                  # inputs
    M = 512                  # outputs
    C = 64                   # codebooks
    K = 16                   # entries of each (16)
    accumulate = "exact"     # or "mean"
    rows = [1, 64, 1024]     # batch sizes
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from lutcc import ir
from lutcc.errors import InputError, suggest
from lutcc.ir.arithmetic import quantize_rows

_N = ir.Sym("n")


@dataclass(frozen=True)
class OpSpec:
    """One op of a list.

    Attributes
    ----------
    op
        A key of :data:`OPS`.
    rows
        Batch sizes.
    sizes
        What the op's maker takes.
    """

    op: str
    rows: tuple[int, ...]
    sizes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """E.g. ``lookup D=512 M=512 C=64``."""
        return " ".join([self.op, *(f"{k}={v}" for k, v in self.sizes.items())])

    def module(self) -> ir.Module:
        """Return a module of the op with random constants; speed does not depend on them."""
        return OPS[self.op](**self.sizes)


def _lookup(
    D: int,
    M: int,
    C: int,
    K: int = 16,
    accumulate: str = "exact",
    encoder: str = "tree",
    layers: int = 1,
) -> ir.Module:
    """Make one or several MADDNESS layers in a row, with ReLU between them."""
    rng = np.random.default_rng(0)
    b = ir.Builder("main")
    value = b.param("x", ir.TensorType((_N, D), "float32"))
    for layer in range(layers):
        columns = D if layer == 0 else M
        edges = np.linspace(0, columns, C + 1).astype(int)
        if encoder == "tree":
            depth = K.bit_length() - 1
            dims = [rng.integers(edges[c], edges[c + 1], depth) for c in range(C)]
            constants: dict[str, Any] = {
                "splitdims": np.array(dims, np.int32),
                "splitvals": rng.normal(size=(C, K)).astype(np.float32),
            }
            attrs: dict[str, Any] = {}
        else:
            constants = {
                "centroids": rng.normal(size=(K, columns)).astype(np.float32),
                "half_norms": rng.random((C, K), np.float32),
                "dims": np.arange(columns, dtype=np.int32),
            }
            attrs = {"starts": tuple(int(e) for e in edges)}
        operands = [b.constant(f"{name}{layer}", array) for name, array in constants.items()]
        codes = b.op(f"{encoder}_encode", value, *operands, **attrs)
        lut = b.constant(f"lut{layer}", rng.integers(0, 256, (C, K, M)).astype(np.uint8))
        sums = b.op("lut_accumulate", codes, lut, accumulate=accumulate)
        scale = b.constant(f"scale{layer}", np.full(M, 1 / 256, np.float32))
        offset = b.constant(f"offset{layer}", rng.normal(size=M).astype(np.float32))
        activation = "relu" if layer + 1 < layers else "none"
        value = b.op("lut_dequantize", sums, scale, offset, activation=activation)
    b.returns(value)
    return b.module()


def _linear(D: int, M: int, activation: str = "none") -> ir.Module:
    """Make an exact layer."""
    rng = np.random.default_rng(0)
    b = ir.Builder("main")
    x = b.param("x", ir.TensorType((_N, D), "float32"))
    weight = b.constant("weight", rng.normal(size=(M, D)).astype(np.float32))
    bias = b.constant("bias", rng.normal(size=M).astype(np.float32))
    b.returns(b.op("linear", x, weight, bias, activation=activation))
    return b.module()


def _dense(D: int, M: int, compute: str = "float32", activation: str = "none") -> ir.Module:
    """Make an exact layer in one of three precisions."""
    rng = np.random.default_rng(0)
    weight, units = rng.normal(size=(M, D)).astype(np.float32), np.ones(M, np.float32)
    stored: Any = weight
    if compute == "int8":
        integers, units = quantize_rows(weight)
        stored = integers.astype(np.int8)
    elif compute == "bfloat16":
        stored = weight.astype(ml_dtypes.bfloat16)
    b = ir.Builder("main")
    x = b.param("x", ir.TensorType((_N, D), "float32"))
    arrays = {"weight": stored, "units": units, "bias": rng.normal(size=M).astype(np.float32)}
    operands = [b.constant(name, array) for name, array in arrays.items()]
    b.returns(b.op("dense", x, *operands, compute=compute, activation=activation))
    return b.module()


def _encode(D: int, C: int, K: int = 16) -> ir.Module:
    """Make a tree hash alone."""
    rng = np.random.default_rng(0)
    b = ir.Builder("main")
    x = b.param("x", ir.TensorType((_N, D), "float32"))
    dims = rng.integers(0, D, (C, K.bit_length() - 1)).astype(np.int32)
    vals = rng.normal(size=(C, K)).astype(np.float32)
    b.returns(b.op("tree_encode", x, b.constant("splitdims", dims), b.constant("splitvals", vals)))
    return b.module()


def _scan(C: int, M: int, K: int = 16, accumulate: str = "exact") -> ir.Module:
    """Make a scan of row-major codes."""
    rng = np.random.default_rng(0)
    b = ir.Builder("main")
    codes = b.param("codes", ir.TensorType((_N, C), "uint8"))
    lut = b.constant("lut", rng.integers(0, 256, (C, K, M)).astype(np.uint8))
    b.returns(b.op("lut_accumulate", codes, lut, accumulate=accumulate))
    return b.module()


def _hadamard(D: int) -> ir.Module:
    """Make a Hadamard transform."""
    b = ir.Builder("main")
    b.returns(b.op("hadamard", b.param("x", ir.TensorType((_N, D), "float32"))))
    return b.module()


def _lookup_ffn(
    D: int,
    M: int,
    H: int,
    T: int,
    block_size: int = 64,
    stages: int = 4,
    table_dtype: str = "float32",
) -> ir.Module:
    """Make a LookupFFN layer: BH{stages}, hash, gather, bias."""
    rng = np.random.default_rng(0)
    b = ir.Builder("main")
    value = b.param("x", ir.TensorType((_N, D), "float32"))
    width = 1 << (D - 1).bit_length()
    full = max(width, 1 << (H * T - 1).bit_length())
    block = min(block_size, width)
    for i in range(stages):
        value = b.op("hadamard", value, scale=width**-0.5)
        shape = (width // block, block, block * full // width)
        blocks = (rng.normal(size=shape) * block**-0.5).astype(np.float32)
        kept: dict[str, Any] = {"columns": H * T} if i + 1 == stages else {}
        value = b.op("block_diagonal_matmul", value, b.constant(f"blocks{i}", blocks), **kept)
        width = full
    codes, scores = b.ops("sign_hash", value, code_length=T)
    tables = rng.normal(size=(H, 2**T, M)).astype(np.float32)
    scale = np.ones(M, np.float32)
    if table_dtype == "int8":
        tables, scale = rng.integers(-127, 128, tables.shape).astype(np.int8), scale / 127
    elif table_dtype == "bfloat16":
        tables = tables.astype(ml_dtypes.bfloat16)
    y = b.op("weighted_gather", codes, scores, b.constant("tables", tables))
    bias = rng.normal(size=M).astype(np.float32)
    b.returns(b.op("affine", y, b.constant("scale", scale), b.constant("bias", bias)))
    return b.module()


def _elementwise(op: str) -> Callable[..., ir.Module]:
    def make(D: int) -> ir.Module:
        rng = np.random.default_rng(0)
        b = ir.Builder("main")
        x = b.param("x", ir.TensorType((_N, D), "float32"))
        if op == "add":
            operands = [b.param("y", ir.TensorType((_N, D), "float32"))]
        elif op == "relu":
            operands = []
        else:
            vectors = (np.full(D, 0.1, np.float32), rng.normal(size=D).astype(np.float32))
            operands = [b.constant(f"c{i}", v) for i, v in enumerate(vectors)]
        b.returns(b.op(op, x, *operands))
        return b.module()

    return make


#: Makers of modules by the name that a list uses.
OPS: dict[str, Callable[..., ir.Module]] = {
    "lookup": _lookup,
    "linear": _linear,
    "dense": _dense,
    "tree_encode": _encode,
    "lut_accumulate": _scan,
    "hadamard": _hadamard,
    "lookup_ffn": _lookup_ffn,
    **{name: _elementwise(name) for name in ("relu", "add", "affine", "quantize")},
}


def read_ops(path: str | Path) -> list[OpSpec]:
    """Read a list of ops.

    Raises
    ------
    InputError
        If the file is no TOML, or a table names an unknown op or a size that it does not take; the
        message says which.
    """
    try:
        data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"is no TOML: {error}", where=str(path), fix="see docs/tuning.md for an example"
        ) from error
    tables = data.get("op")
    if not isinstance(tables, list) or not tables or set(data) != {"op"}:
        raise InputError(
            "holds no [[op]] tables, or something else beside them",
            where=str(path),
            fix='write one table per op: [[op]], then op = "lookup", D = 512, M = 512, C = 64',
        )
    return [_spec(table, f"{path}, [[op]] number {i}") for i, table in enumerate(tables, start=1)]


def _spec(table: Mapping[str, Any], where: str) -> OpSpec:
    sizes = dict(table)
    op, rows = sizes.pop("op", None), sizes.pop("rows", [1, 1024])
    if op not in OPS:
        raise InputError(f"there is no op {op!r}", where=where, fix=suggest(str(op), OPS))
    rows = [rows] if isinstance(rows, int) else rows
    if not isinstance(rows, list) or not all(type(n) is int and n > 0 for n in rows):
        raise InputError(f"rows is {rows!r}", where=where, fix="give whole numbers above 0")
    spec = OpSpec(op, tuple(rows), sizes)
    try:
        ir.verify(spec.module())
    except (TypeError, ValueError, IndexError) as error:
        raise InputError(
            f"{op} cannot be made of {sizes}: {error}",
            where=where,
            fix="see docs/tuning.md for the sizes that each op takes",
        ) from error
    return spec
