"""Codebooks and scales that are learnt: what a matrix's regions are, in torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from lutcc.codebook_weights import CodebookWeights
from lutcc.ir.codebooks import region_starts


@dataclass(frozen=True, slots=True, eq=False)
class Regions:
    """Which codebook and which scale each segment of each stored row has.

    Attributes
    ----------
    books, factors
        (M, S) int64: the region of codebooks, and of scales.
    segment
        (K,) int64: the segment of a column.
    scaled
        Whether there are scales; else the only one is 1 and stays so.
    """

    books: Tensor
    factors: Tensor
    segment: Tensor
    scaled: bool

    @classmethod
    def of(cls, weights: CodebookWeights) -> Self:
        """Return the regions of ``weights``."""
        rows, columns = weights.shape
        shape = rows, columns, weights.segment_size
        maps = [region_starts(len(r), *shape) for r in (weights.codebooks, weights.scales)]
        books, factors = (torch.from_numpy(np.ascontiguousarray(m)).long() for m in maps)
        count = max(books.shape[1], factors.shape[1])
        size = weights.segment_size if count > 1 else columns
        return cls(
            books.expand(rows, count),
            factors.expand(rows, count),
            torch.arange(columns) // size,
            not (weights.scales.size == 1 and weights.scales[0] == 1),
        )

    @property
    def segments(self) -> int:
        """Segments of a row."""
        return self.books.shape[1]

    @property
    def size(self) -> int:
        """Columns of a segment; the last one may have fewer."""
        return int((self.segment == 0).sum())

    def rows(self, start: int, stop: int) -> Regions:
        """Return those of the rows ``start`` .. ``stop``."""
        return Regions(self.books[start:stop], self.factors[start:stop], self.segment, self.scaled)

    def to(self, device: torch.device) -> Regions:
        """Return the same on another device."""
        return Regions(
            self.books.to(device), self.factors.to(device), self.segment.to(device), self.scaled
        )

    def tables(self, codebooks: Tensor, scales: Tensor) -> Tensor:
        """Return (M, S, L): what each index means in each segment of each row."""
        return codebooks[self.books] * scales[self.factors][..., None]

    def dequantize(self, indices: Tensor, codebooks: Tensor, scales: Tensor) -> Tensor:
        """Return (M, K) weights of (M, K) int64 ``indices``."""
        return self.look_up(self.tables(codebooks, scales), indices)

    def look_up(self, tables: Tensor, indices: Tensor) -> Tensor:
        """Return (M, K): the entry of ``tables`` (M, S, L) that each index means."""
        entries = tables.shape[2]
        flat = tables.reshape(len(tables), -1)
        return flat.gather(1, indices + self.segment * entries)
