"""How weights are written with codebooks: packed indices, regions, and tables of integers.

The stored form of a weight matrix W (M, K), which every backend, the fitting code and the layers
share:

* *indices* (M, ceil(K * bits / 8)) uint8: of each row, K indices of 2, 3 or 4 bits end to end, the
  lowest bit first (index k takes bits k * bits .. of the row);
* *codebooks* (G, 2**bits) and *scales* (T,), which belong to *regions* of the matrix: R regions,
  R <= M, are groups of rows, row m in region floor(m * R / M); R > M must be M * ceil(K /
  segment_size), and element (m, k) is in region m * ceil(K / segment_size) + k // segment_size;
* W[m, k] = scales[t] * codebooks[g, index], rounded once to float32.

Source: JLCM, equations 1, 2 and 4. The segments are ours: equation 3 often asks for more codebooks
than there are rows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lutcc.ir.types import Array

#: Bits of an index.
BITS = (2, 3, 4)
#: Entries of integer tables lie in -TABLE_LIMIT .. TABLE_LIMIT, so that two products with an
#: unsigned byte add up in 16 bits (2 * 255 * 64 < 2**15).
TABLE_LIMIT = 64
#: Segments are whole multiples of this many columns.
SEGMENT_MULTIPLE = 32

F32Array = npt.NDArray[np.float32]


def packed_columns(columns: int, bits: int) -> int:
    """Return the bytes of a row of packed indices.

    Examples
    --------
    >>> packed_columns(5, 3)
    2
    """
    return -(-columns * bits // 8)


def pack_indices(indices: Array, bits: int) -> npt.NDArray[np.uint8]:
    """Pack (M, K) indices below ``2**bits`` into (M, ceil(K * bits / 8)) uint8.

    Examples
    --------
    >>> pack_indices(np.array([[1, 2, 3, 0, 3]]), 2).tolist()
    [[57, 3]]
    """
    values = np.asarray(indices, np.uint8)
    planes = values[:, :, None] >> np.arange(bits, dtype=np.uint8) & 1
    return np.packbits(planes.reshape(values.shape[0], -1), axis=1, bitorder="little")


def unpack_indices(packed: Array, bits: int, columns: int) -> npt.NDArray[np.uint8]:
    """Return (M, ``columns``) uint8 indices: the inverse of :func:`pack_indices`.

    Examples
    --------
    >>> unpack_indices(np.array([[57, 3]], np.uint8), 2, 5).tolist()
    [[1, 2, 3, 0, 3]]
    """
    group = 3 if bits == 3 else 1  # bytes that hold whole indices
    padded = np.zeros((packed.shape[0], -(-packed.shape[1] // group), group), np.uint8)
    padded.reshape(packed.shape[0], -1)[:, : packed.shape[1]] = packed
    words = padded[:, :, 0].astype(np.uint32 if group > 1 else np.uint8)
    for byte in range(1, group):
        words |= padded[:, :, byte].astype(np.uint32) << np.uint32(8 * byte)
    values = np.empty((*words.shape, group * 8 // bits), np.uint8)
    for place in range(values.shape[2]):
        values[:, :, place] = words >> words.dtype.type(bits * place) & words.dtype.type(
            2**bits - 1
        )
    return values.reshape(packed.shape[0], -1)[:, :columns]


def segments(regions: int, rows: int, columns: int, segment_size: int) -> int:
    """Return how many segments a row of a matrix has: 1 where regions are groups of rows."""
    return 1 if regions <= rows else -(-columns // segment_size)


def region_starts(regions: int, rows: int, columns: int, segment_size: int) -> npt.NDArray[np.intp]:
    """Return (M, S): the region of each segment of each row.

    Examples
    --------
    >>> region_starts(2, 4, 64, 0).ravel().tolist()
    [0, 0, 1, 1]
    >>> region_starts(4, 2, 64, 32).tolist()
    [[0, 1], [2, 3]]
    """
    if regions <= rows:
        return (np.arange(rows) * regions // rows)[:, None]
    return np.arange(regions).reshape(rows, -1)


def entry_tables(
    codebooks: Array, scales: Array, rows: int, columns: int, segment_size: int
) -> F32Array:
    """Return (M, S, 2**bits) float32: what each index means in each segment of each row.

    S is 1 where both codebooks and scales belong to groups of rows.
    """
    shape = rows, columns, segment_size
    book = codebooks.astype(np.float32)[region_starts(len(codebooks), *shape)]
    scale = scales.astype(np.float32)[region_starts(len(scales), *shape)]
    with np.errstate(all="ignore"):
        return book * scale[..., None]


def integer_tables(tables: Array) -> tuple[npt.NDArray[np.int8], F32Array]:
    """Return the tables as integers, and the unit of each row.

    A row's unit is its largest magnitude / 64 (float32); its entries are multiples of it, rounded
    half to even. A row with an entry that is not finite has a unit that is not, and zeros.

    Parameters
    ----------
    tables
        (M, S, L) float32, as :func:`entry_tables` returns them.

    Returns
    -------
    tuple
        (M, S, L) int8 in -64 .. 64, and (M,) float32.

    Examples
    --------
    >>> integers, unit = integer_tables(np.array([[[-1, 0, 0.25, 0.5]]], np.float32))
    >>> integers.tolist(), unit.tolist()
    ([[[-64, 0, 16, 32]]], [0.015625])
    """
    with np.errstate(all="ignore"):
        largest = np.abs(tables).max(axis=(1, 2))
        inverse = np.float32(TABLE_LIMIT) / largest
        usable = np.isfinite(largest) & np.isfinite(inverse)
        inverse = np.where(usable, inverse, np.float32(0))
        rounded = np.rint(np.where(usable[:, None, None], tables, 0) * inverse[:, None, None])
        return rounded.astype(np.int8), (largest / np.float32(TABLE_LIMIT)).astype(np.float32)


def columns_of(tables: Array, indices: Array, segment_size: int) -> Array:
    """Return (M, K): the entry that each of the unpacked ``indices`` (M, K) means."""
    rows, count = indices.shape
    size = segment_size if tables.shape[1] > 1 else max(count, 1)
    segment = np.array([k // size for k in range(count)], np.intp)
    return tables[np.arange(rows)[:, None], segment, indices]
