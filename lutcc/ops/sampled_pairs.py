"""The pairs that a sample takes, as torch's own operators select them from matrices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from lutcc.errors import InputError
from lutcc.ops.arithmetic import wide
from lutcc.ops.checks import dtype as check_dtype
from lutcc.ops.checks import require
from lutcc.runtime import cpu


def check_sample(op: str, indices: torch.Tensor, scales: torch.Tensor) -> None:
    """Raise InputError unless both have the shape and dtypes of column_row_sample's results."""
    check_dtype(op, "indices", indices, (torch.int32,))
    check_dtype(op, "scales", scales, (torch.float32,))
    require(
        indices.ndim == 1 and scales.ndim == 1 and indices.shape[0] == scales.shape[0],
        op,
        f"indices {tuple(indices.shape)} and scales {tuple(scales.shape)} must be (S,), both",
        "pass both results of column_row_sample",
    )


def check_range(op: str, indices: torch.Tensor, scales: torch.Tensor, pairs: int) -> None:
    """Raise InputError if a pair that is taken is none; on a GPU this would be to wait for it."""
    if not indices.is_cpu:
        return
    found = indices.numpy()[scales.numpy() != 0]  # NumPy takes less time for so few numbers
    if found.size and not (found.min() >= 0 and found.max() < pairs):
        raise InputError(
            f"indices holds {found.min() if found.min() < 0 else found.max()}, but there are "
            f"{pairs} pairs",
            where=f"torch.ops.lutcc.{op}",
            fix="pass the sample of this product's scores, and its group_size",
        )


def is_captured(tensor: torch.Tensor) -> bool:
    """Tell whether a CUDA graph is captured, in which nothing can be waited for."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


@dataclass(frozen=True, slots=True)
class Taken:
    """Columns that are taken, each with its scale.

    Parameters
    ----------
    columns
        (T,) int32, in range.
    scales
        (T,) float32; 0 where a column stands that is taken elsewhere.
    """

    columns: torch.Tensor
    scales: torch.Tensor

    def select(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        """Return these columns (``dim`` 1) or rows (0) of a matrix."""
        # along the rows of x's memory: many times faster than across
        if x.stride(0) < x.stride(1):
            return x.t().index_select(1 - dim, self.columns).t()
        return x.index_select(dim, self.columns)

    def scaled(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        """Return :meth:`select` times the scales, rounded once to the dtype of x."""
        chosen = self.select(x, dim)
        if self.scales.is_cpu and (self.scales.numpy() == 1).all():
            return chosen
        scales = self.scales if dim else self.scales[:, None]
        # float32 scales and half precision are multiplied in float32
        return (chosen * scales).to(x.dtype)

    def spread(self, parts: torch.Tensor, dim: int, size: int) -> torch.Tensor:
        """Return zeros with the parts where they were selected from."""
        shape = (parts.shape[0], size) if dim else (size, parts.shape[1])
        # Adding is faster than a copy, and right for columns that stand twice, with 0; by 32-bit
        # indices torch would add across the rows of memory ten times slower.
        return parts.new_zeros(shape).index_add_(dim, self.columns.long(), parts)


def taken(indices: torch.Tensor, scales: torch.Tensor, group_size: int, columns: int) -> Taken:
    """Return the columns of the pairs that are taken.

    Padding is left out on the CPU, and on a GPU where there are as many slots as pairs, as in
    bernoulli's samples: their number must come back from the GPU, which is to wait for it. In other
    samples, or while a CUDA graph is captured, nothing is waited for.
    """
    if scales.is_cpu:
        return _taken_on_cpu(indices, scales, group_size, columns)
    if scales.shape[0] >= -(-columns // group_size) and not is_captured(scales):
        kept = scales != 0
        indices, scales = indices[kept], scales[kept]
    return taken_of_all(indices, scales, group_size, columns)


def taken_of_all(
    indices: torch.Tensor, scales: torch.Tensor, group_size: int, columns: int
) -> Taken:
    """Return as many columns as there is room for; padding becomes the first column, with scale 0.

    The first pair is taken, if any is, so nothing that is not taken is multiplied. (Where the first
    column is infinite, NaN may result instead of infinity.)
    """
    if group_size > 1:
        offsets = torch.arange(group_size, dtype=torch.int32, device=indices.device)
        indices = (indices[:, None] * group_size + offsets).flatten()
        scales = scales.repeat_interleave(group_size)
        scales = torch.where(indices < columns, scales, 0.0)  # the last pair may be short
    return Taken(torch.where(scales != 0, indices, indices[:1]), scales)


def _taken_on_cpu(
    indices: torch.Tensor, scales: torch.Tensor, group_size: int, columns: int
) -> Taken:
    found, counts = indices.numpy(), scales.numpy()
    kept = counts != 0
    if not kept.all():
        found, counts = found[kept], counts[kept]
    elif group_size == 1:
        return Taken(indices, scales)
    if group_size > 1:
        offsets = np.arange(group_size, dtype=np.int32)
        found = (found[:, None] * np.int32(group_size) + offsets).reshape(-1)
        counts = np.repeat(counts, group_size)
        if columns % group_size:  # the last pair is short
            exists = found < columns
            found, counts = found[exists], counts[exists]
    return Taken(torch.from_numpy(found), torch.from_numpy(counts))


def product(a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return ``a @ b + bias``, summed in float32 at least and rounded once to the dtype of a."""
    if a.is_cpu and computes_wide(a.dtype):
        a_wide, b_wide = a.to(torch.float32), b.to(torch.float32)
        bias = None if bias is None else bias.to(torch.float32)
        return _product(a_wide, b_wide, bias).to(a.dtype)
    if bias is not None and bias.dtype is not a.dtype:
        bias = bias.to(a.dtype)
    return _product(a, b, bias)


def _product(a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    # the way of torch's linear, and so its bits
    return torch.nn.functional.linear(a, b.t(), bias)


def computes_wide(dtype: torch.dtype) -> bool:
    """Tell whether this CPU multiplies such matrices faster in float32: torch would emulate."""
    if dtype is torch.bfloat16:
        return not ({"avx512_bf16", "amx_bf16"} & cpu.flags())
    return dtype is not wide(dtype)
