"""Constants in the byte order that kernels read. NumPy alone: this runs when an artifact is loaded.

A kernel reads all its constants from one *blob*. A :class:`lutcc.codegen.Program` lists the
entries of the blob: which packer makes each from which constants, with which parameters, at which
offset. Columns are handled in chunks of 16; where there are 16 or more, the last chunk starts at
``M - 16`` and overlaps the one before, so that every store is full.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lutcc.schedules.x86.pack_codebooks import (
    CodebookLayout,
    pack_codebook_indices,
    pack_codebook_tables,
    pack_codebook_units,
)
from lutcc.schedules.x86.pack_conv2d import (
    pack_conv2d,
    pack_conv2d_shifts,
    pack_conv2d_words,
    pack_depthwise,
)
from lutcc.schedules.x86.pack_dense import DenseLayout, pack_dense
from lutcc.schedules.x86.pack_images import (
    SMALL_SUMS,
    pack_image_offsets,
    pack_image_outside,
    pack_image_values,
    pack_narrow_channels,
    pack_narrow_nodes,
)
from lutcc.schedules.x86.pack_words import pack_tree_words

CHUNK = 16
ALIGNMENT = 64
HUGE_PAGE = 2 << 20
Array = NDArray[Any]


def round_up(value: int, multiple: int) -> int:
    """Return the least multiple of ``multiple`` that is at least ``value``."""
    return -(-value // multiple) * multiple


def chunk_starts(columns: int) -> list[int]:
    """Return the first column of each chunk of 16 that together cover ``columns``.

    Examples
    --------
    >>> chunk_starts(40)
    [0, 16, 24]
    """
    if columns <= CHUNK:
        return [0]
    return [min(k * CHUNK, columns - CHUNK) for k in range(-(-columns // CHUNK))]


def _padded(array: Array, length: int, axis: int, fill: float = 0) -> Array:
    missing = length - array.shape[axis]
    if missing <= 0:
        return array
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, missing)
    return np.pad(array, widths, constant_values=fill)


def _in_chunks(array: Array) -> Array:
    """Return ``array`` (..., M) as (chunks, ..., 16)."""
    columns = array.shape[-1]
    if columns < CHUNK:
        return _padded(array, CHUNK, -1)[None]
    return np.stack([array[..., s : s + CHUNK] for s in chunk_starts(columns)])


def pack_vector(array: Array, *, multiple: int = 64, dtype: str = "float32") -> Array:
    """(M,) -> padded with zeros to a multiple of 64."""
    return _padded(np.asarray(array, dtype), round_up(array.shape[0], multiple), 0)


def pack_raw(array: Array) -> Array:
    """Any array as it is, row-major."""
    return np.ascontiguousarray(array)


def pack_ints(*, values: Sequence[int]) -> Array:
    """Numbers known when the kernel was made."""
    return np.asarray(values, np.int32)


def pack_tree_slots(splitdims: Array, *, slots: Sequence[int], codebooks: int) -> Array:
    """(C, L) -> (codebooks, L) int32: which transposed column each level compares."""
    table = np.asarray(slots, np.int32)
    return _padded(table[splitdims], codebooks, 0)


def pack_columns(columns: Array, *, slots: Sequence[int]) -> Array:
    """(D,) -> (D,) int32: the transposed column of each centroid coordinate."""
    return np.asarray(slots, np.int32)[columns]


def pack_tree_values(splitvals: Array, *, codebooks: int, sums: bool = False) -> Array:
    """(C, K) in heap order -> (codebooks, max(K, 16)), int32 or float32; missing trees give 0.

    ``sums``: what is beyond :data:`SMALL_SUMS` is taken for it.
    """
    integers = splitvals.dtype == np.int32
    values = np.asarray(splitvals, np.int32 if integers else np.float32)
    never = np.iinfo(np.int32).max if integers else np.inf
    if sums:
        values, never = np.clip(values, -SMALL_SUMS, SMALL_SUMS), SMALL_SUMS
    values = _padded(values, max(values.shape[1], 16), 1, never)
    return _padded(values, codebooks, 0, never)


def pack_tree_starts(starts: Array, *, codebooks: int) -> Array:
    """(C, K) int32 in heap order -> (codebooks, max(K, 16)), padded with zeros."""
    return _padded(_padded(starts, max(starts.shape[1], 16), 1), codebooks, 0)


def pack_tree_levels(splitvals: Array) -> Array:
    """(C, K) in heap order -> (groups, K, 16), by node: 16 codebooks beside each other.

    The last group begins at codebook ``C - 16``; numbers of missing codebooks are 0.
    """
    array = splitvals if splitvals.dtype == np.int32 else np.asarray(splitvals, np.float32)
    return np.ascontiguousarray(_in_chunks(array.T))


def _as_unsigned(lut: Array) -> Array:
    """int8 tables become uint8 by flipping the sign bit; the kernel subtracts 128 C."""
    if lut.dtype == np.int8:
        return (lut.view(np.uint8) ^ np.uint8(0x80)).astype(np.uint8)
    return lut


def pack_lut_dot(lut: Array, *, entries: int) -> Array:
    """(C, K, M) -> (chunks, ceil(C/4), 16, 4, entries): four codebooks beside each other."""
    lut = _padded(_as_unsigned(lut), entries, 1)
    lut = _padded(lut, round_up(lut.shape[0], 4), 0)
    groups = lut.reshape(-1, 4, entries, lut.shape[2])
    return np.ascontiguousarray(_in_chunks(groups).transpose(0, 1, 4, 2, 3))


def pack_lut_widen(lut: Array, *, entries: int, codebooks: int) -> Array:
    """(C, K, M) -> (chunks, codebooks, 16, entries): one codebook at a time."""
    lut = _padded(_as_unsigned(lut), entries, 1)
    lut = _padded(lut, codebooks, 0)
    return np.ascontiguousarray(_in_chunks(lut).transpose(0, 1, 3, 2))


def pack_lut_rows(lut: Array, *, codebooks: int) -> Array:
    """(C, K, M) -> (codebooks, K, M padded to 64): a row of outputs per table entry.

    In each block of 64 columns, column ``j < 32`` lies at byte ``2j`` and column ``32 + j`` at
    byte ``2j + 1``: the even and the odd bytes of a 16-bit sum are then contiguous columns.
    """
    lut = _padded(_padded(_as_unsigned(lut), round_up(lut.shape[2], 64), 2), codebooks, 0)
    blocks = lut.reshape(lut.shape[0], lut.shape[1], -1, 2, 32)
    return np.ascontiguousarray(blocks.swapaxes(-1, -2))


def pack_lut_rows_float(lut: Array) -> Array:
    """(C, K, M) float32 -> M padded to 16."""
    return np.ascontiguousarray(_padded(lut, round_up(lut.shape[2], CHUNK), 2))


def pack_linear(weight: Array) -> Array:
    """(M, D) -> (chunks, D, 16)."""
    return np.ascontiguousarray(_in_chunks(np.asarray(weight, np.float32).T))


def pack_block_diagonal(
    blocks: Array, *, blocks_kept: int, fold: bool, scale: float, pairs: bool
) -> Array:
    """(G, P, Q) -> (blocks_kept, chunks of 16 columns, P, 16) float32.

    ``fold`` multiplies each block by ``scale`` H_P from the left, in float64. ``pairs`` leaves
    bfloat16 as it is, two rows beside each other: (blocks_kept, chunks, P / 2, 16, 2).
    """
    if pairs:
        chunks = _in_chunks(blocks[:blocks_kept].view(np.uint16)).transpose(1, 0, 2, 3)
        return np.ascontiguousarray(
            chunks.reshape(*chunks.shape[:2], -1, 2, CHUNK).swapaxes(-1, -2)
        )
    kept = np.asarray(blocks[:blocks_kept], np.float64)
    if fold:
        kept = sylvester(kept.shape[1]) @ kept * scale
    return np.ascontiguousarray(_in_chunks(kept.astype(np.float32)).transpose(1, 0, 2, 3))


def sylvester(size: int) -> Array:
    """Return the Hadamard matrix of a power of two, in Sylvester's order."""
    matrix = np.ones((1, 1))
    while matrix.shape[0] < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def gather_starts(outputs: int, columns: int) -> list[int]:
    """Return the first output of each chunk of 16 of whole slices; the last one may repeat.

    Examples
    --------
    >>> gather_starts(40, 32)
    [0, 16, 24, 24]
    """
    starts = chunk_starts(outputs)
    return starts + [starts[-1]] * (-len(starts) % (columns // CHUNK))


def pack_gather_tables(tables: Array, *, columns: int, form: str, lanes: int) -> Array:
    """(H, K, M) -> (slices of ``columns`` columns, H, K, columns), M padded with zeros.

    A slice of some tables is one piece of memory that fits the L2 cache. Columns come in chunks
    of 16, of which the last one overlaps the one before, and repeats to fill the last slice.
    ``form`` is how the entries lie in a slice: ``plain``; ``halves`` (bfloat16): of each 32
    columns, column ``j < 16`` is the low half of the 32-bit word ``j`` and column ``16 + j`` its
    high half; ``pairs`` (bfloat16) and ``quads`` (int8): so that entries of two (four) rows,
    interleaved inside each 16 bytes of a vector of ``lanes`` bytes, give contiguous columns.
    """
    starts = gather_starts(tables.shape[2], columns)
    padded = _padded(tables, CHUNK, 2)
    picks = np.concatenate([np.arange(s, s + CHUNK) for s in starts])
    order = np.arange(columns)
    if form == "halves":
        order = order.reshape(-1, 2, 16).swapaxes(1, 2).ravel()
    elif form in ("pairs", "quads"):
        vectors = {"pairs": 2, "quads": 4}[form]
        order = order.reshape(-1, vectors, lanes // 16, 4).swapaxes(1, 2).ravel()
    picks = picks.reshape(-1, columns)[:, order]
    slices = np.empty((len(picks), *padded.shape[:2], columns), padded.dtype)
    for target, columns_of_slice in zip(slices, picks, strict=True):
        np.take(padded, columns_of_slice, axis=2, out=target)
    return slices.view(np.uint8)


def pack_centroids(centroids: Array, *, starts: Sequence[int]) -> Array:
    """(K, D) -> for each codebook, for each 16 prototypes: (coordinates, 16), end to end."""
    padded = _padded(np.asarray(centroids, np.float32), round_up(centroids.shape[0], 16), 0)
    parts = []
    for first, last in itertools.pairwise(starts):
        tiles = padded[:, first:last].reshape(padded.shape[0] // 16, 16, last - first)
        parts.append(tiles.transpose(0, 2, 1).ravel())
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def pack_half_norms(half_norms: Array) -> Array:
    """(C, K) -> K padded to 16 with infinity, so that the padding never wins."""
    array = np.asarray(half_norms, np.float32)
    return _padded(array, round_up(array.shape[1], 16), 1, np.inf)


def pack_codebook_rows(indices: Array) -> Array:
    """(M, B) packed indices as they are, and 16 bytes behind them, which loads may touch."""
    return np.concatenate([indices.ravel(), np.zeros(16, np.uint8)])


def pack_codebook_entries(codebooks: Array) -> Array:
    """(G, 2**bits) -> (G, 16) float32, repeated."""
    return np.tile(codebooks.astype(np.float32), (1, 16 // codebooks.shape[1]))


def pack_longest_first(starts: Array) -> Array:
    """(M + 1,) -> (M,) int32: the rows of a sparse matrix, those with most values first."""
    return np.argsort(-np.diff(starts), kind="stable").astype(np.int32)


#: Packers by the name that programs use; nothing else can be called from a manifest.
PACKERS: dict[str, Callable[..., Array]] = {
    "raw": pack_raw,
    "vector": pack_vector,
    "ints": pack_ints,
    "tree_slots": pack_tree_slots,
    "columns": pack_columns,
    "tree_values": pack_tree_values,
    "tree_starts": pack_tree_starts,
    "tree_words": pack_tree_words,
    "tree_levels": pack_tree_levels,
    "image_offsets": pack_image_offsets,
    "image_outside": pack_image_outside,
    "image_values": pack_image_values,
    "narrow_nodes": pack_narrow_nodes,
    "narrow_channels": pack_narrow_channels,
    "lut_dot": pack_lut_dot,
    "lut_widen": pack_lut_widen,
    "lut_rows": pack_lut_rows,
    "lut_rows_float": pack_lut_rows_float,
    "linear": pack_linear,
    "block_diagonal": pack_block_diagonal,
    "gather_tables": pack_gather_tables,
    "centroids": pack_centroids,
    "half_norms": pack_half_norms,
    "codebook_indices": pack_codebook_indices,
    "codebook_tables": pack_codebook_tables,
    "codebook_units": pack_codebook_units,
    "codebook_rows": pack_codebook_rows,
    "codebook_entries": pack_codebook_entries,
    "longest_first": pack_longest_first,
    "dense": pack_dense,
    "conv2d": pack_conv2d,
    "conv2d_shifts": pack_conv2d_shifts,
    "conv2d_words": pack_conv2d_words,
    "depthwise": pack_depthwise,
}


def pack_entry(entry: Mapping[str, Any], constants: Mapping[str, Array]) -> Array:
    """Return one entry of a blob as a flat uint8 array."""
    sources = [np.asarray(constants[name]) for name in entry["sources"]]
    packed = PACKERS[entry["pack"]](*sources, **entry["params"])
    return np.ascontiguousarray(packed).reshape(-1).view(np.uint8)


def packed_nbytes(entry: Mapping[str, Any], constants: Mapping[str, Array]) -> int:
    """Return the bytes of one entry; some may be too large to pack for that."""
    if entry["pack"] == "codebook_indices":
        codebooks, scales = (len(constants[name]) for name in entry["sources"][1:])
        return CodebookLayout.of(codebooks, scales, **entry["params"]).index_nbytes
    if entry["pack"] == "dense":
        return DenseLayout(**entry["params"]).index_nbytes
    if entry["pack"] != "gather_tables":
        return pack_entry(entry, constants).size
    tables = constants[entry["sources"][0]]
    columns = entry["params"]["columns"]
    outputs = len(gather_starts(tables.shape[2], columns)) * CHUNK
    return tables.shape[0] * tables.shape[1] * outputs * tables.dtype.itemsize


def aligned_empty(nbytes: int) -> NDArray[np.uint8]:
    """Return ``nbytes`` zero bytes that start at a multiple of 64; many, at that of a huge page.

    NumPy asks for huge pages from 4 MB on, but its memory starts anywhere: up to 2 MB would be in
    small ones, whose addresses take time to look up when tables are read from memory.
    """
    alignment = HUGE_PAGE if nbytes >= 2 * HUGE_PAGE else ALIGNMENT
    raw = np.zeros(nbytes + alignment, np.uint8)
    skip = -raw.ctypes.data % alignment
    return raw[skip : skip + nbytes]


def pack_blob(program: Mapping[str, Any], constants: Mapping[str, Array]) -> NDArray[np.uint8]:
    """Return the blob of a program.

    Parameters
    ----------
    program
        ``Program.to_json()``; only ``blob`` and ``blob_nbytes`` are read.
    constants
        The module's constants by name.

    Raises
    ------
    ValueError
        If an entry does not have the size that the program says (the caller turns this into
        an ``ArtifactError``).
    """
    blob = aligned_empty(max(int(program["blob_nbytes"]), ALIGNMENT))
    for entry in program["blob"]:
        packed = pack_entry(entry, constants)
        if packed.size != entry["nbytes"] or entry["offset"] + packed.size > blob.size:
            raise ValueError(
                f"constant {entry['sources']} packs to {packed.size} bytes, "
                f"but the program expects {entry['nbytes']}"
            )
        blob[entry["offset"] : entry["offset"] + packed.size] = packed
    return blob
