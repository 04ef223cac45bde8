"""Matrices that are written with codebooks, in terms of torch's own operators, on any device.

They are looked up some rows at a time, so that the whole matrix never stands in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from lutcc.ir.codebooks import BITS, SEGMENT_MULTIPLE, packed_columns, segments
from lutcc.ops.arithmetic import FLOATS
from lutcc.ops.checks import dtype as check_dtype
from lutcc.ops.checks import matrix, require

_ELEMENTS = 1 << 19
"""Weights of a piece: their places in the tables take 4 MiB."""

Rows = slice | torch.Tensor
"""Which rows of a matrix: a slice with both ends, or (n,) int64."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A matrix (M, ``columns``) as indices into codebooks; see :mod:`lutcc.ir.codebooks`.

    Attributes
    ----------
    indices, codebooks, scales, bits, columns, segment_size
        As the operators take them.
    dtype
        Of the weights: float32 or float64.
    """

    indices: torch.Tensor
    codebooks: torch.Tensor
    scales: torch.Tensor
    bits: int
    columns: int
    segment_size: int
    dtype: torch.dtype

    @property
    def segments(self) -> int:
        """How many tables a row has."""
        regions = max(len(self.codebooks), len(self.scales))
        return segments(regions, len(self.indices), self.columns, self.segment_size)

    def pieces(self, rows: int | None = None) -> Iterator[slice]:
        """Yield slices of so many rows (of all) that are looked up together."""
        rows, step = len(self.indices) if rows is None else rows, max(1, _ELEMENTS // self.columns)
        for start in range(0, rows, step):
            yield slice(start, min(start + step, rows))

    def places(self, rows: Rows) -> torch.Tensor:
        """Return (n, K) int64: where in its row's tables each weight is."""
        index = unpack_indices(self.indices[rows], self.bits, self.columns).to(torch.int64)
        if self.segments > 1:
            segment = torch.arange(self.columns, device=index.device) // self.segment_size
            index += segment << self.bits
        return index

    def tables(self, rows: Rows) -> torch.Tensor:
        """Return (n, S * 2**bits): what the indices of each row mean, segment after segment."""
        book, scale = self._book(rows), self._scale(rows)
        return (book * scale[..., None]).flatten(1)

    def weights(self, rows: Rows) -> torch.Tensor:
        """Return (n, K): rows of the matrix."""
        return self.tables(rows).gather(1, self.places(rows))

    def add_gradients(
        self, rows: Rows, grad: torch.Tensor, codebooks: torch.Tensor, scales: torch.Tensor
    ) -> None:
        """Add to the gradients of the codebooks and scales, given that of ``weights(rows)``."""
        book, scale = self._book(rows), self._scale(rows)
        shape = (len(grad), self.segments, 1 << self.bits)
        sums = grad.new_zeros(shape).flatten(1).scatter_add_(1, self.places(rows), grad).view(shape)
        for target, parts, regions in (
            (codebooks, sums * scale[..., None], self._regions(len(self.codebooks), rows)),
            (scales, (sums * book).sum(2), self._regions(len(self.scales), rows)),
        ):
            if regions.shape[1] < parts.shape[1]:
                parts = parts.sum(1, keepdim=True)
            target.index_add_(0, regions.flatten(), parts.flatten(0, 1))

    def _book(self, rows: Rows) -> torch.Tensor:
        return self.codebooks.to(self.dtype)[self._regions(len(self.codebooks), rows)]

    def _scale(self, rows: Rows) -> torch.Tensor:
        return self.scales.to(self.dtype)[self._regions(len(self.scales), rows)]

    def _regions(self, regions: int, rows: Rows) -> torch.Tensor:
        """Return (n, S or 1): the region of each segment of each row."""
        device = self.indices.device
        if isinstance(rows, slice):
            rows = torch.arange(rows.start, rows.stop, device=device)
        if regions <= len(self.indices):
            return (rows * regions // len(self.indices))[:, None]
        return rows[:, None] * self.segments + torch.arange(self.segments, device=device)


def unpack_indices(packed: torch.Tensor, bits: int, columns: int) -> torch.Tensor:
    """Return (n, ``columns``): what :func:`lutcc.ir.codebooks.unpack_indices` does.

    Examples
    --------
    >>> unpack_indices(torch.tensor([[57, 3]], dtype=torch.uint8), 2, 5).tolist()
    [[1, 2, 3, 0, 3]]
    """
    span = 8
    if bits == 3:  # 8 indices are in 3 bytes
        span = 24
        groups = torch.nn.functional.pad(packed, (0, -packed.shape[1] % 3))
        first, second, third = groups.to(torch.int32).unflatten(1, (-1, 3)).unbind(2)
        packed = first | second << 8 | third << 16
    shifts = torch.arange(0, span, bits, dtype=packed.dtype, device=packed.device)
    return (packed[..., None] >> shifts & (1 << bits) - 1).flatten(1)[:, :columns]


def check_stored(
    op: str,
    stored: Stored,
    *,
    beside: torch.Tensor,
) -> None:
    """Raise InputError unless the parts of a matrix fit one another.

    ``beside`` is on the device where they must be.
    """
    indices, bits, size = stored.indices, stored.bits, stored.segment_size
    require(bits in BITS, op, f"bits={bits} is not 2, 3 or 4", "pass the bits of an index")
    matrix(op, "indices", indices, (torch.uint8,))
    rows, columns = indices.shape[0], stored.columns
    require(
        rows >= 1 and columns >= 1,
        op,
        f"a matrix of {rows} rows and {columns} columns is empty",
        "leave the layer out",
    )
    wanted = packed_columns(columns, bits)
    require(
        indices.shape[1] == wanted,
        op,
        f"indices {tuple(indices.shape)} have {indices.shape[1]} bytes a row, but {columns} "
        f"indices of {bits} bits take {wanted}",
        "pack the indices of as many columns: lutcc.ir.codebooks.pack_indices",
    )
    require(
        size >= 0 and size % SEGMENT_MULTIPLE == 0,
        op,
        f"segment_size={size} is not a multiple of {SEGMENT_MULTIPLE}",
        "pass the segment_size that the weights were fitted with",
    )
    for name, tensor, shape in (
        ("codebooks", stored.codebooks, f"(G, {1 << bits})"),
        ("scales", stored.scales, "(T,)"),
    ):
        check_dtype(op, name, tensor, FLOATS)
        require(
            tensor.dtype is not torch.float64 or stored.dtype is torch.float64,
            op,
            f"{name} are float64, beside {beside.dtype}",
            f"{name}.to(torch.float32)",
        )
        width = (1 << bits,) if name == "codebooks" else ()
        require(
            tensor.ndim == 1 + len(width) and tuple(tensor.shape[1:]) == width and len(tensor) >= 1,
            op,
            f"{name} must be {shape}, got {tuple(tensor.shape)}",
            "pass those that the indices were fitted with",
        )
        _check_regions(op, name, len(tensor), stored)
    check_devices(op, beside, indices=indices, codebooks=stored.codebooks, scales=stored.scales)


def _check_regions(op: str, name: str, regions: int, stored: Stored) -> None:
    rows, size = len(stored.indices), stored.segment_size
    if regions <= rows:
        return
    require(
        size > 0,
        op,
        f"{regions} {name} for {rows} rows need segment_size",
        "pass the segment_size that the weights were fitted with",
    )
    wanted = rows * segments(regions, rows, stored.columns, size)
    require(
        regions == wanted,
        op,
        f"{name} has {regions} regions, but {rows} rows of {stored.columns} columns have {wanted} "
        f"segments of segment_size={size}",
        "pass one per segment, or at most one per row",
    )


def check_devices(op: str, beside: torch.Tensor, **tensors: torch.Tensor | None) -> None:
    """Raise InputError unless the tensors are on the device of ``beside``."""
    for name, tensor in tensors.items():
        require(
            tensor is None or tensor.device == beside.device,
            op,
            f"{name} is on {None if tensor is None else tensor.device}, not on {beside.device}",
            f"{name}.to({str(beside.device)!r})",
        )
