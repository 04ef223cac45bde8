"""The channels that a sample takes, and torch's convolutions of them, on a CPU or a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lutcc.errors import InputError
from lutcc.ops.sampled_pairs import computes_wide, is_captured


class Channels:
    """Channels that are taken: the same number in every group, with padding where there are fewer.

    Parameters
    ----------
    indices, scales
        (G*S,), of column_row_sample.
    channels
        Of all groups.
    groups
        G.
    """

    def __init__(
        self, indices: torch.Tensor, scales: torch.Tensor, channels: int, groups: int
    ) -> None:
        each = channels // groups
        local, scales = indices.view(groups, -1), scales.view(groups, -1)
        first = torch.arange(groups, dtype=torch.int32, device=indices.device)[:, None] * each
        kept = scales != 0
        local = torch.where(kept, local - first, 0)
        if scales.is_cpu or (local.shape[1] >= each and not is_captured(scales)):
            # on a GPU only for bernoulli, whose slots are all channels: this waits for the GPU
            most = max(int(kept.sum(1).max()), 1)
            order = kept.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]
            local, scales, kept = (t.gather(1, order) for t in (local, scales, kept))
        self.padded = None
        if scales.is_cpu:
            if not kept.all():
                self.padded = ~kept
        else:  # to blank the images costs a pass over them: padding is the first channel times 0
            local = torch.where(kept, local, local[:, :1])
        self.local, self.scales, self.groups, self.each = local, scales, groups, each
        self.columns = (local + first).flatten()

    def of_images(self, x: torch.Tensor) -> torch.Tensor:
        """Return these channels of images (N, C, H, W); zeros where nothing is taken."""
        return self._blank(x.index_select(1, self.columns), 1)

    def of_weight(self, weight: torch.Tensor, dim: int, scaled: bool = True) -> torch.Tensor:
        """Return these channels of (O, C/G, kh, kw), times their scales; ``dim`` 0: these O."""
        if dim == 0:
            chosen = weight.index_select(0, self.columns)
            scales = self.scales.reshape(-1, 1, 1, 1)
        elif self.groups == 1:
            chosen = weight.index_select(1, self.columns)
            scales = self.scales.reshape(1, -1, 1, 1)
        else:
            chosen = torch.cat(
                [
                    part.index_select(1, index)
                    for part, index in zip(weight.chunk(self.groups), self.local, strict=True)
                ]
            )
            outputs = weight.shape[0] // self.groups
            scales = self.scales.repeat_interleave(outputs, 0)[:, :, None, None]
        if self.padded is not None:
            chosen = chosen.masked_fill(scales == 0, 0.0)
        return (chosen * scales).to(weight.dtype) if scaled else chosen

    def spread_images(self, parts: torch.Tensor) -> torch.Tensor:
        """Return images of all channels, zeros where none was taken."""
        shape = (parts.shape[0], self.groups * self.each, *parts.shape[2:])
        return parts.new_zeros(shape).index_add_(1, self.columns, self._blank(parts, 1))

    def spread_weight(self, parts: torch.Tensor, dim: int) -> torch.Tensor:
        """Return weights (O, C/G, kh, kw) from those of these channels, times their scales."""
        if dim == 0:
            scaled = parts * self.scales.reshape(-1, 1, 1, 1)
            scaled = self._blank(scaled.to(parts.dtype), 0)
            out = parts.new_zeros((self.groups * self.each, *parts.shape[1:]))
            return out.index_add_(0, self.columns, scaled)
        outputs = parts.shape[0] // self.groups
        scales = self.scales.repeat_interleave(outputs, 0)[:, :, None, None]
        scaled = (parts * scales).to(parts.dtype)
        if self.padded is not None:
            scaled = scaled.masked_fill(scales == 0, 0.0)
        out = parts.new_zeros((parts.shape[0], self.each, *parts.shape[2:]))
        for group, index in enumerate(self.local):
            rows = slice(group * outputs, (group + 1) * outputs)
            out[rows].index_add_(1, index, scaled[rows])
        return out

    def _blank(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        if self.padded is None:
            return x
        shape = [1] * x.ndim
        shape[dim] = -1
        return x.masked_fill(self.padded.view(shape), 0.0)


def check_channels(
    op: str, indices: torch.Tensor, scales: torch.Tensor, channels: int, groups: int
) -> None:
    """Raise InputError if a channel that is taken is not one of its group's; not on a GPU."""
    if not indices.is_cpu:
        return
    each = channels // groups
    found = indices.numpy().reshape(groups, -1)
    owners = np.arange(groups)[:, None]
    wrong = (found // each != owners) & (scales.numpy().reshape(groups, -1) != 0)
    if wrong.any():
        group = int(np.flatnonzero(wrong.any(1))[0])
        raise InputError(
            f"indices holds {found[wrong][0]} for group {group}, whose channels are "
            f"{group * each}..{(group + 1) * each - 1}",
            where=f"torch.ops.lutcc.{op}",
            fix="pass the sample of channel_scores with the same groups",
        )


def convolve(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> torch.Tensor:
    """Return torch's convolution, without its emulation of half precision on CPUs."""
    dtype = x.dtype
    if x.is_cpu and computes_wide(dtype):
        x, weight = x.to(torch.float32), weight.to(torch.float32)
    bias = None if bias is None else bias.to(x.dtype)
    y = torch.nn.functional.conv2d(x, weight, bias, stride, padding, dilation, groups)
    return y.to(dtype)


def gradients(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    geometry: tuple[Sequence[int], Sequence[int], Sequence[int], int],
    which: tuple[bool, bool],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a convolution's gradients, (0,) for what is not asked for."""
    stride, padding, dilation, groups = geometry
    dtype = grad.dtype
    if not any(which):
        return grad.new_empty((0,)), grad.new_empty((0,))
    if grad.is_cpu and computes_wide(dtype):
        grad, x, weight = (t.to(torch.float32) for t in (grad, x, weight))
    dx, dweight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, dilation, False, [0, 0], groups, [*which, False]
    )
    empty = grad.new_empty((0,), dtype=dtype)
    return (
        dx.to(dtype).contiguous() if which[0] else empty,
        dweight.to(dtype).contiguous() if which[1] else empty,
    )
