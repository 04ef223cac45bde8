"""Modules of the look-up feed-forward family: LookupFFN with its projections, and YOSO."""

from __future__ import annotations

from typing import Any

import numpy as np

from lutcc import ir
from lutcc.ir.ops.hadamard import padded_size

F = "float32"
N = ir.Sym("n")


def bh_blocks(
    d: int, outputs: int, m: int = 4, block_size: int = 64
) -> list[tuple[int, tuple[int, int, int]]]:
    """Return, for each of the m factors of equation 11, the transform's width and the blocks."""
    p = padded_size(d)
    n = max(p, padded_size(outputs))
    bs = min(block_size, p)
    rest = [(n, (n // bs, bs, bs))] * (m - 1)
    return [(p, (p // bs, bs, bs * n // p)), *rest]


def bh_projection(
    b: ir.Builder,
    x: ir.Value,
    outputs: int,
    block_size: int = 64,
    cut: bool = True,
    rng: np.random.Generator | None = None,
) -> ir.Value:
    """Append BH4. Blocks are constants if ``rng`` is given, else parameters.

    ``cut``: the last product computes the first ``outputs`` columns only; the paper counts all n.
    """
    shapes = bh_blocks(x.type.size(1), outputs, 4, block_size)
    for i, (width, shape) in enumerate(shapes):
        x = b.op("hadamard", x, scale=width**-0.5)
        if rng is None:
            blocks = b.param(f"blocks{i}", ir.TensorType(shape, F))
        else:
            values = rng.normal(size=shape) * shape[1] ** -0.5
            blocks = b.constant(f"blocks{i}", values.astype(np.float32))
        last: dict[str, Any] = {"columns": outputs} if cut and i == len(shapes) - 1 else {}
        x = b.op("block_diagonal_matmul", x, blocks, **last)
    return x


def hash_of_paper(d: int, outputs: int, block_size: int = 64) -> ir.Module:
    """Return the projection alone, counted as the paper counts it: with all n columns."""
    b = ir.Builder("main")
    x = b.param("x", ir.TensorType((N, d), F))
    b.returns(bh_projection(b, x, outputs, block_size, cut=False))
    return b.module()


def gather_of_paper(d: int, tables: int, length: int) -> ir.Module:
    """Return the hash codes and the gather alone; tables are a parameter, for they are large."""
    b = ir.Builder("main")
    z = b.param("z", ir.TensorType((N, tables * length), F))
    codes, scores = b.ops("sign_hash", z, code_length=length)
    table = b.param("tables", ir.TensorType((tables, 2**length, d), F))
    b.returns(b.op("weighted_gather", codes, scores, table))
    return b.module()


def dense(d: int, *widths: int) -> ir.Module:
    """Return a chain of linear layers."""
    b = ir.Builder("main")
    x = b.param("x", ir.TensorType((N, d), F))
    for i, width in enumerate(widths):
        weight = b.param(f"weight{i}", ir.TensorType((width, x.type.size(1)), F))
        x = b.op("linear", x, weight, b.param(f"bias{i}", ir.TensorType((width,), F)))
    b.returns(x)
    return b.module()


def lookup_ffn(
    rng: np.random.Generator,
    d: int = 24,
    tables: int = 6,
    length: int = 4,
    block_size: int = 8,
    neighbors: int = 1,
    variant: str = "gelu",
    table_dtype: Any = np.float32,
) -> ir.Module:
    """Return x + affine(gather(hash(BH4(x)))): a block of a transformer, with constants."""
    b = ir.Builder("main")
    x = b.param("x", ir.TensorType((N, d), F))
    z = bh_projection(b, x, tables * length, block_size, rng=rng)
    codes, scores = b.ops("sign_hash", z, code_length=length, variant=variant, neighbors=neighbors)
    values = rng.normal(size=(tables, 2**length, d)) * (30 if table_dtype == np.int8 else 1)
    table = b.constant("tables", values.astype(table_dtype))
    y = b.op("weighted_gather", codes, scores, table)
    scale = b.constant("scale", rng.uniform(0.5, 2, d).astype(np.float32))
    y = b.op("affine", y, scale, b.constant("shift", rng.normal(size=d).astype(np.float32)))
    b.returns(b.op("add", y, x))
    return b.module()


def yoso(
    keys: np.ndarray, values: np.ndarray, tables: int, length: int, seed: int, fast: bool = False
) -> ir.Module:
    """Return equation 3: sum over k of T_k[f_k(x)], T_k[j] = 1/h sum of V_i where f_k(W_i) = j.

    ``f_k`` are fixed random hashes: signs of a Gaussian projection, or (``fast``) of D1 H D2 H D3 H
    (equation 9), each D as a block-diagonal product with blocks of one element. This is LookupFFN
    with a random projection, tables made from the neurons, and scores of 1: nothing is trained.

    Parameters
    ----------
    keys, values
        The neurons: (t, d) rows W_i and (t, m) rows V_i.
    tables, length
        h and tau.
    """
    rng = np.random.default_rng(seed)
    b = ir.Builder("main")
    x = b.param("x", ir.TensorType((N, keys.shape[1]), F))
    z, width = x, tables * length
    if fast:
        size = max(padded_size(keys.shape[1]), padded_size(width))
        for i in range(3):
            shape = padded_size(z.type.size(1)), size  # the first one repeats its rows
            signs = rng.choice([-1.0, 1.0], (shape[0], 1, shape[1] // shape[0]))
            z = b.op("hadamard", z, scale=shape[0] ** -0.5)
            columns = width if i == 2 else size
            blocks = b.constant(f"signs{i}", signs.astype(np.float32))
            z = b.op("block_diagonal_matmul", z, blocks, columns=columns)
    else:
        weight = b.constant("weight", rng.normal(size=(width, keys.shape[1])).astype(np.float32))
        z = b.op("linear", z, weight, b.constant("bias", np.zeros(width, np.float32)))
    codes, scores = b.ops("sign_hash", z, code_length=length, variant="constant")
    b.returns(codes)
    buckets = ir.interpret(b.module(), [keys.astype(np.float32)])[0]
    table = np.zeros((tables, 2**length, values.shape[1]))
    for i, row in enumerate(buckets):
        for k, j in enumerate(row):
            table[k, j] += values[i] / tables
    y = b.op("weighted_gather", codes, scores, b.constant("tables", table.astype(np.float32)))
    b.returns(y)
    return b.module()
