"""Hypothesis strategies: single operations of the codebook family with inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from lutcc.ir.codebooks import pack_indices
from tests.ir.models import Case, floats, seeds


def regions(draw: st.DrawFn, rows: int, columns: int, size: int) -> int:
    """Return a number of regions that a matrix can have."""
    if size and draw(st.booleans()):
        return rows * -(-columns // size)
    return draw(st.integers(1, rows))


def stored(
    draw: st.DrawFn, rng: np.random.Generator, rows: int, columns: int
) -> tuple[tuple[np.ndarray, ...], dict[str, Any]]:
    """Return packed indices, codebooks, scales, and the attributes that say how to read them."""
    bits = draw(st.sampled_from([2, 3, 4]))
    size = draw(st.sampled_from([0, 32, 64]))
    kind = draw(st.sampled_from([np.float16, np.float32]))
    packed = pack_indices(rng.integers(0, 2**bits, (rows, columns)), bits)
    books = floats(rng, regions(draw, rows, columns, size), 2**bits).astype(kind)
    scales = rng.uniform(0.5, 2, regions(draw, rows, columns, size)).astype(kind)
    return (packed, books, scales), {"bits": bits, "segment_size": size}


@st.composite
def codebook_matmul(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(seeds()))
    n, m, k = draw(st.integers(1, 4)), draw(st.integers(1, 7)), draw(st.integers(1, 80))
    weights, attrs = stored(draw, rng, m, k)
    order = rng.permutation(m).astype(np.int32)
    compute = draw(st.sampled_from(["float32", "bfloat16", "int8"]))
    arrays = (floats(rng, n, k), *weights, order, floats(rng, m))
    return Case("codebook_matmul", arrays, {**attrs, "compute": compute})


@st.composite
def codebook_dequantize(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(seeds()))
    n, m, k = draw(st.integers(1, 6)), draw(st.integers(1, 7)), draw(st.integers(1, 80))
    weights, attrs = stored(draw, rng, m, k)
    rows = rng.integers(0, m, n).astype(np.int32)
    return Case("codebook_dequantize", (rows, *weights), {**attrs, "columns": k})


@st.composite
def sparse_add(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(seeds()))
    n, m, k = (draw(st.integers(1, 6)) for _ in range(3))
    there = rng.random((m, k)) < draw(st.sampled_from([0.1, 0.5, 1]))
    there[0, 0] = True  # shapes of the IR have no zeros
    starts = np.concatenate([[0], np.cumsum(there.sum(axis=1))]).astype(np.int32)
    columns = np.nonzero(there)[1].astype(np.int32)
    arrays = (floats(rng, n, m), floats(rng, n, k), starts, columns, floats(rng, len(columns)))
    return Case("sparse_add", arrays, {})


CASES: dict[str, st.SearchStrategy[Case]] = {
    "codebook_matmul": codebook_matmul(),
    "codebook_dequantize": codebook_dequantize(),
    "sparse_add": sparse_add(),
}
