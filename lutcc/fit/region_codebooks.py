"""The codebooks, scales and indices that a matrix starts with: no data, or only its variances."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lutcc.fit.codebook_plan import CodebookPlan
from lutcc.fit.scalar_clustering import cluster_scalars, nearest
from lutcc.ir.codebooks import columns_of, entry_tables

F32Array = npt.NDArray[np.float32]

#: Rounds in which indices, scales and the codebook are fitted in turn.
_SCALE_ROUNDS = 8
#: Values of a block of rows.
_BLOCK = 1 << 22


@dataclass(frozen=True, slots=True)
class RegionCodebooks:
    """A matrix (M, K) in codebooks, not packed.

    Attributes
    ----------
    indices
        (M, K) uint8.
    codebooks
        (G, 2**bits) float16, ascending.
    scales
        (T,) float16.
    approximation
        (M, K) float32: what these mean.
    """

    indices: npt.NDArray[np.uint8]
    codebooks: npt.NDArray[np.float16]
    scales: npt.NDArray[np.float16]
    approximation: F32Array


def fit_regions(
    matrix: F32Array,
    plan: CodebookPlan,
    clustering: str = "hierarchical",
    *,
    unit: float = 1.0,
    column_weights: npt.NDArray[np.float64] | None = None,
    random: np.random.RandomState | None = None,
) -> RegionCodebooks:
    """Write (M, K) ``matrix``, rows in stored order, with the regions of ``plan``.

    Parameters
    ----------
    matrix
        Finite numbers.
    plan
        Number and kind of regions.
    clustering
        See :func:`lutcc.fit.scalar_clustering.cluster_scalars`.
    unit
        A power of two near the largest magnitude, where float16 could not hold the numbers: what a
        lone scale is, or what scales and their codebook share.
    column_weights
        (K,) factors of the squared error; None: all 1.
    random
        Of random clusterings.

    Notes
    -----
    Source: JLCM, equations 1 and 2. Scales: indices, each region's scale and the codebook are
    solved for in turn, each by least squares while the others stay.

    Examples
    --------
    >>> from lutcc.fit.codebook_plan import plan_codebooks
    >>> w = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    >>> fit_regions(w, plan_codebooks(7, 64, 64)).codebooks.shape
    (18, 4)
    """
    random = random or np.random.RandomState(0)
    rows, columns = matrix.shape
    if plan.scales > 1:
        codebook, factors = _fit_scales(matrix, plan, clustering, column_weights, random)
        share = 2.0 ** np.rint(np.log2(unit) / 2)  # half of it for the codebook, half for scales
        codebooks = (codebook[None] * share).astype(np.float16)
        scales = (factors / share).astype(np.float16)
    else:
        values = np.empty((plan.codebooks, 2**plan.bits))
        for part in region_parts(rows, columns, plan.codebooks, plan.segment_size):
            values[part.regions] = cluster_scalars(
                part.of(matrix) / np.float32(unit),
                2**plan.bits,
                clustering,
                weights=part.weights(column_weights),
                random=random,
            )
        codebooks, scales = values.astype(np.float16), np.asarray([unit], np.float16)
    tables = entry_tables(codebooks, scales, rows, columns, plan.segment_size)
    indices = np.empty(matrix.shape, np.uint8)
    size = plan.segment_size if tables.shape[1] > 1 else columns
    for s in range(tables.shape[1]):
        segment = slice(s * size, (s + 1) * size)
        indices[:, segment] = nearest(matrix[:, segment], tables[:, s])
    approximation = np.empty_like(matrix)
    step = max(1, _BLOCK // columns)
    for m in range(0, rows, step):
        part = slice(m, m + step)
        approximation[part] = columns_of(tables[part], indices[part], plan.segment_size)
    return RegionCodebooks(indices, codebooks, scales, approximation)


@dataclass(frozen=True, slots=True)
class RegionPart:
    """Regions of one size: whole rows, ``each`` per region, or one segment of every row.

    Attributes
    ----------
    regions
        (R,) their numbers.
    rows
        (R * each,) their rows.
    columns
        Of the segment.
    """

    regions: npt.NDArray[np.intp]
    rows: npt.NDArray[np.intp] | slice
    columns: slice

    def of(self, matrix: npt.NDArray) -> npt.NDArray:
        """Return (R, n): the elements of each region of (M, K) ``matrix``."""
        return matrix[self.rows, self.columns].reshape(len(self.regions), -1)

    def put(self, matrix: npt.NDArray, values: npt.NDArray) -> None:
        """Write (R, n) ``values`` where :meth:`of` reads."""
        width = matrix[:1, self.columns].shape[1]
        matrix[self.rows, self.columns] = values.reshape(-1, width)

    def weights(self, of_columns: npt.NDArray[np.float64] | None) -> npt.NDArray | None:
        """Return (n,): the factors of the elements, from those of the columns (K,)."""
        if of_columns is None:
            return None
        part = of_columns[self.columns]
        rows = self.rows.stop if isinstance(self.rows, slice) else len(self.rows)
        return np.tile(part, rows // len(self.regions))


def region_parts(rows: int, columns: int, regions: int, segment_size: int) -> Iterator[RegionPart]:
    """Yield all regions of (``rows``, ``columns``), those of one size together.

    Examples
    --------
    >>> [part.regions.tolist() for part in region_parts(5, 64, 2, 0)]
    [[1], [0]]
    >>> [part.regions.tolist() for part in region_parts(2, 64, 4, 32)]
    [[0, 2], [1, 3]]
    """
    if regions > rows:
        each = regions // rows
        for s in range(each):
            numbers = np.arange(rows) * each + s
            columns_of_segment = slice(s * segment_size, min((s + 1) * segment_size, columns))
            yield RegionPart(numbers, slice(0, rows), columns_of_segment)
        return
    of_row = np.arange(rows) * regions // rows
    counts = np.bincount(of_row, minlength=regions)
    for count in np.unique(counts):
        numbers = np.flatnonzero(counts == count)
        everything = len(numbers) == regions
        members = slice(0, rows) if everything else np.flatnonzero(counts[of_row] == count)
        yield RegionPart(numbers, members, slice(0, columns))


def _fit_scales(
    matrix: F32Array,
    plan: CodebookPlan,
    clustering: str,
    column_weights: npt.NDArray[np.float64] | None,
    random: np.random.RandomState,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return one codebook (L,) and the scales (T,)."""
    rows, columns = matrix.shape
    parts = list(region_parts(rows, columns, plan.scales, plan.segment_size))
    scales = np.zeros(plan.scales)
    for part in parts:
        scales[part.regions] = np.sqrt(np.square(part.of(matrix), dtype=np.float64).mean(axis=1))
    scales = _usable(scales)
    normal, factors = np.empty_like(matrix), np.empty_like(matrix)
    for part in parts:
        own = scales[part.regions][:, None]
        weights = part.weights(column_weights)
        part.put(normal, part.of(matrix) / own)
        shape = part.of(matrix).shape
        part.put(factors, np.broadcast_to(own**2 * (1 if weights is None else weights), shape))
    codebook = cluster_scalars(
        normal.reshape(1, -1),
        2**plan.bits,
        clustering,
        weights=factors.reshape(-1),
        random=random,
    )[0]
    del normal, factors
    if clustering != "random":
        for _ in range(_SCALE_ROUNDS):
            scales, codebook = _refine(matrix, parts, scales, codebook, column_weights)
    return codebook, scales


def _refine(
    matrix: F32Array,
    parts: list[RegionPart],
    scales: npt.NDArray[np.float64],
    codebook: npt.NDArray[np.float64],
    column_weights: npt.NDArray[np.float64] | None,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return scales and codebook, each solved for after the indices."""
    result = scales.copy()
    count = len(codebook)
    mass, moment = np.zeros(count), np.zeros(count)
    for part in parts:
        values, weights = part.of(matrix), part.weights(column_weights)
        own = scales[part.regions]
        step = max(1, _BLOCK // values.shape[1])
        for r in range(0, len(values), step):
            block, rows = values[r : r + step], slice(r, r + step)
            indices = nearest(block, own[rows, None] * codebook)
            bins = indices + count * np.arange(len(block))[:, None]
            factors = None if weights is None else np.broadcast_to(weights, block.shape).ravel()
            size = count * len(block)
            held = np.bincount(bins.ravel(), factors, size).reshape(-1, count)
            product = block.ravel() if factors is None else factors * block.ravel()
            sums = np.bincount(bins.ravel(), product, size).reshape(-1, count)
            energy = held @ codebook**2
            fitted = np.divide(sums @ codebook, energy, out=own[rows].copy(), where=energy > 0)
            fitted = np.where(fitted > 0, fitted, own[rows])
            result[part.regions[rows]] = fitted
            mass += fitted**2 @ held
            moment += fitted @ sums
    return result, np.sort(np.divide(moment, mass, out=codebook.copy(), where=mass > 0))


def _usable(scales: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Replace the scales of regions of zeros, by 1."""
    return np.where(scales > 0, scales, 1.0)
