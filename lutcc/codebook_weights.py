"""A weight matrix written with codebooks, and what it takes: the form that all parts share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from lutcc.errors import InputError
from lutcc.ir.codebooks import columns_of, entry_tables, pack_indices, unpack_indices

#: Bits of a weight that the compression is counted from (JLCM, section 3).
REFERENCE_BITS = 16


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bits of a compressed matrix, part by part, as stored.

    Attributes
    ----------
    weights
        How many weights it stands for.
    indices, codebooks, scales, order, outliers
        Bits of each part.
    """

    weights: int
    indices: int
    codebooks: int
    scales: int
    order: int = 0
    outliers: int = 0

    @property
    def bits(self) -> int:
        """All bits."""
        return self.indices + self.codebooks + self.scales + self.order + self.outliers

    @property
    def bits_per_weight(self) -> float:
        """Bits of a weight, everything included."""
        return self.bits / self.weights

    @property
    def alpha(self) -> float:
        """Compression against 16 bits a weight (JLCM, section 3)."""
        return REFERENCE_BITS * self.weights / self.bits

    def __add__(self, other: Footprint) -> Footprint:
        return Footprint(
            self.weights + other.weights,
            self.indices + other.indices,
            self.codebooks + other.codebooks,
            self.scales + other.scales,
            self.order + other.order,
            self.outliers + other.outliers,
        )


@dataclass(frozen=True, slots=True)
class Outliers:
    """A sparse matrix (M, K), compressed by rows, that is added to the weights.

    Attributes
    ----------
    starts
        (M + 1,) int32: where the values of each row begin. Rows are outputs, not stored rows.
    columns
        (Z,) int32, ascending in a row.
    values
        (Z,) float16.
    """

    starts: npt.NDArray[np.int32]
    columns: npt.NDArray[np.int32]
    values: npt.NDArray[np.float16]

    def dense(self, columns: int) -> npt.NDArray[np.float32]:
        """Return (M, ``columns``) float32."""
        rows = np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))
        matrix = np.zeros((len(self.starts) - 1, columns), np.float32)
        matrix[rows, self.columns] = self.values
        return matrix


@dataclass(frozen=True, slots=True)
class CodebookWeights:
    """A matrix (M, K) as packed indices into codebooks; see :mod:`lutcc.ir.codebooks`.

    Attributes
    ----------
    indices
        (M, ceil(K * bits / 8)) uint8, rows in stored order.
    codebooks
        (G, 2**bits) float16.
    scales
        (T,) float16; a single 1 where there are none.
    bits, columns
        Bits of an index, and K.
    segment_size
        Columns of a region where there are more regions than rows, else 0.
    order
        (M,) int32: the output of each stored row; None if rows are stored as they are.
    outliers
        What is added, or None.

    Examples
    --------
    >>> w = CodebookWeights.of(np.array([[0, 3, 1]]), [[-1, 0, 1, 2]], bits=2)
    >>> w.dequantize().tolist(), w.footprint().bits
    ([[-1.0, 2.0, 0.0]], 72)
    """

    indices: npt.NDArray[np.uint8]
    codebooks: npt.NDArray[np.float16]
    scales: npt.NDArray[np.float16]
    bits: int
    columns: int
    segment_size: int = 0
    order: npt.NDArray[np.int32] | None = None
    outliers: Outliers | None = None

    @classmethod
    def of(
        cls,
        indices: npt.ArrayLike,
        codebooks: npt.ArrayLike,
        *,
        bits: int,
        scales: npt.ArrayLike = (1.0,),
        segment_size: int = 0,
        order: npt.ArrayLike | None = None,
        outliers: Outliers | None = None,
    ) -> Self:
        """Pack (M, K) ``indices`` and round ``codebooks`` and ``scales`` to float16.

        Raises
        ------
        InputError
            If a value does not fit float16, or is not finite.
        """
        unpacked = np.asarray(indices)
        rounded = []
        for name, values in (("codebooks", codebooks), ("scales", scales)):
            with np.errstate(over="ignore"):
                half = np.asarray(values, np.float32).astype(np.float16)
            if not np.isfinite(half).all():
                raise InputError(
                    f"{name} hold values that float16 does not",
                    fix="weights must be finite and below 65504",
                )
            rounded.append(half)
        return cls(
            indices=pack_indices(unpacked, bits),
            codebooks=rounded[0],
            scales=rounded[1],
            bits=bits,
            columns=unpacked.shape[1],
            segment_size=segment_size,
            order=None if order is None else np.asarray(order, np.int32),
            outliers=outliers,
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(M, K)."""
        return self.indices.shape[0], self.columns

    def unpacked(self) -> npt.NDArray[np.uint8]:
        """Return (M, K) uint8 indices, rows in stored order."""
        return unpack_indices(self.indices, self.bits, self.columns)

    def dequantize(self) -> npt.NDArray[np.float32]:
        """Return (M, K) float32, row m for output m, outliers included."""
        rows, columns = self.shape
        tables = entry_tables(self.codebooks, self.scales, rows, columns, self.segment_size)
        stored = columns_of(tables, self.unpacked(), self.segment_size)
        if self.order is not None:
            weights = np.empty_like(stored)
            weights[self.order] = stored
        else:
            weights = stored
        return weights if self.outliers is None else weights + self.outliers.dense(columns)

    def footprint(self) -> Footprint:
        """Return the bits of each part, as stored."""
        single = self.scales.size == 1 and self.scales[0] == 1
        return Footprint(
            weights=self.shape[0] * self.columns,
            indices=8 * self.indices.nbytes,
            codebooks=8 * self.codebooks.nbytes,
            scales=0 if single else 8 * self.scales.nbytes,
            order=0 if self.order is None else 8 * self.order.nbytes,
            outliers=0
            if self.outliers is None
            else 8
            * (
                self.outliers.starts.nbytes
                + self.outliers.columns.nbytes
                + self.outliers.values.nbytes
            ),
        )

    def to_arrays(self) -> dict[str, Any]:
        """Return the arrays that a safetensors file holds, by name."""
        arrays: dict[str, Any] = {
            "indices": self.indices,
            "codebooks": self.codebooks,
            "scales": self.scales,
        }
        if self.order is not None:
            arrays["order"] = self.order
        if self.outliers is not None:
            arrays["outlier_starts"] = self.outliers.starts
            arrays["outlier_columns"] = self.outliers.columns
            arrays["outlier_values"] = self.outliers.values
        return arrays

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, Any], *, bits: int, columns: int, segment_size: int
    ) -> Self:
        """Return what :meth:`to_arrays` gave."""
        outliers = None
        if "outlier_values" in arrays:
            outliers = Outliers(
                arrays["outlier_starts"], arrays["outlier_columns"], arrays["outlier_values"]
            )
        return cls(
            arrays["indices"],
            arrays["codebooks"],
            arrays["scales"],
            bits,
            columns,
            segment_size,
            arrays.get("order"),
            outliers,
        )
