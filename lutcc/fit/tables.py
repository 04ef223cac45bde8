"""Tables in 8 bits: scale, offsets, overflow bound, and the bias of averaged accumulation."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

EXACT_IN_FLOAT32 = 2**24 - 1


class QuantizedTables(NamedTuple):
    """Tables in uint8 and what turns their integer sums back into products.

    Parameters
    ----------
    lut
        (C, K, M) uint8.
    scale, offset
        (M,) float32: the product is ``scale * sum + offset``.
    acc_bound
        No sum over codebooks can exceed this: the largest over the columns of the sum over
        codebooks of the largest entry.
    """

    lut: np.ndarray
    scale: np.ndarray
    offset: np.ndarray
    acc_bound: int


def quantize_tables(
    tables: np.ndarray, codes_frequency: np.ndarray | None = None
) -> QuantizedTables:
    """Quantise ``tables`` (C, K, M) float64 to uint8.

    There is an offset per codebook and column, and a scale per column.

    Every table column is shifted to start at zero, so its whole range of levels is used; the shifts
    of all codebooks add up to one number per output column and cost nothing at run time, as does
    the scale, which all codebooks of a column share: the widest of them spans the levels.

    Overflow: an exact sum is at most ``levels * C``. Levels are 255 as long as that stays below
    2**24 (C <= 65,793), and fewer beyond, so that int32 cannot overflow and ``float32(sum)`` is
    exact.

    ``codes_frequency`` (C, K), the share of the training rows that carry each code, makes the
    offset absorb the mean rounding error of the entries, so that products are unbiased over the
    training rows.
    """
    ncodebooks = len(tables)
    levels = min(255, EXACT_IN_FLOAT32 // ncodebooks)
    lowest = tables.min(axis=1)
    widest = (tables.max(axis=1) - lowest).max(axis=0)
    # A range too small for a float32 scale is a constant: all its entries are zero, and the offset
    # carries it.
    scale = np.where(widest / levels > np.finfo(np.float32).tiny, widest / levels, 0.0).astype(
        np.float32
    )
    divisor = np.where(scale > 0, scale, 1.0).astype(np.float64)
    shifted = tables - lowest[:, None, :]
    lut = np.where(scale > 0, np.clip(np.rint(shifted / divisor), 0, levels), 0).astype(np.uint8)
    offset = lowest.sum(axis=0)
    if codes_frequency is not None:
        offset = offset + np.einsum(
            "ck,ckm->m", codes_frequency, shifted - lut * scale.astype(np.float64)
        )
    return QuantizedTables(lut, scale, offset.astype(np.float32), accumulator_bound(lut))


def stored_tables(
    tables: np.ndarray, shift: np.ndarray, frequencies: np.ndarray, dtype: str, group: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Return how tables (C, K, M) are stored whose sums are raised by ``shift`` (M,).

    Parameters
    ----------
    tables, shift
        float64; of float tables the first codebook carries the shift.
    frequencies
        (C, K): how often each code comes.
    dtype
        "uint8" or "float32".
    group
        Codebooks that are averaged together; 1 for exact sums.

    Returns
    -------
    tuple
        Tables, scale and offset (M,) float32, and the bound of integer sums (0 of floats).
    """
    if dtype == "float32":
        tables[0] += shift
        columns = tables.shape[2]
        ones, zeros = np.ones(columns, np.float32), np.zeros(columns, np.float32)
        return tables.astype(np.float32), ones, zeros, 0
    lut, scale, offset, bound = quantize_tables(tables, frequencies)
    raised = offset + shift
    if group > 1:
        raised = raised - scale.astype(np.float64) * averaging_bias(lut, group)
        scale = scale * np.float32(group)
    return lut, scale, raised.astype(np.float32), bound


def accumulator_bound(lut: np.ndarray) -> int:
    """Return the largest sum any codes can reach: max over m of sum over c of max over k."""
    return int(lut.max(axis=1).sum(axis=0, dtype=np.int64).max(initial=0))


def averaging_bias(lut: np.ndarray, upcast_every: int) -> np.ndarray:
    """Return the expected excess (M,) of averaged over exact sums, in units of the sums.

    Averaged accumulation replaces the sum of a group of U tables by U times a pairwise tree of
    ``avg(a, b) = (a + b + 1) >> 1``. One node rounds up by 1/2 if a + b is odd and by 0 otherwise:
    by 1/4 on average when odd and even are equally likely. Every later level halves that error and
    the final factor U scales it back, so a node at height h (h = 1 for the first pairs) adds 2**h /
    4 to the sum. A full group has U / 2**h nodes at height h: its bias is U log2(U) / 4, in total C
    log2(U) / 4, the correction of MADDNESS.

    A node whose inputs are all structurally zero never rounds. That happens in the zero tables that
    pad C to a multiple of U and wherever a table column is constant (zero after its offset is taken
    out); such nodes are not counted.

    Source: MADDNESS, section 4.4 and appendix (bias of the averaging instruction).

    Examples
    --------
    >>> averaging_bias(np.full((16, 4, 1), 7, np.uint8), upcast_every=16).tolist()
    [16.0]
    """
    ncodebooks, _, ncolumns = lut.shape
    groups = -(-ncodebooks // upcast_every)
    live = np.zeros((groups * upcast_every, ncolumns), dtype=bool)
    live[:ncodebooks] = lut.any(axis=1)
    bias = np.zeros(ncolumns)
    height = 0
    while 2**height < upcast_every:
        height += 1
        live = live[0::2] | live[1::2]
        bias += live.sum(axis=0) * (2.0**height / 4.0)
    return bias
