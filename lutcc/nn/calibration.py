"""Rows to fit on: flattened, unfolded, and thinned out to a given number."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from lutcc.errors import InputError

IMAGES_AT_ONCE = 32


def as_float_tensor(inputs: Any, where: str) -> torch.Tensor:
    """Return ``inputs`` (tensor or array) as a detached float32 tensor on the CPU."""
    if not isinstance(inputs, torch.Tensor):
        try:
            inputs = torch.as_tensor(np.asarray(inputs))
        except (TypeError, ValueError) as error:
            raise InputError(
                f"calibration inputs of type {type(inputs).__name__} are not an array",
                where=where,
                fix="pass a tensor",
            ) from error
    return inputs.detach().to(device="cpu", dtype=torch.float32)


def _chosen_rows(nrows: int, max_rows: int | None, seed: int | None) -> np.ndarray | None:
    """Return ``max_rows`` sorted random row numbers, or None when all rows stay."""
    if max_rows is None or nrows <= max_rows:
        return None
    return np.sort(np.random.default_rng(seed).choice(nrows, max_rows, replace=False))


def linear_rows(
    inputs: torch.Tensor, in_features: int, max_rows: int | None, seed: int | None
) -> np.ndarray:
    """Return at most ``max_rows`` rows (N, in_features) of ``inputs`` (..., in_features).

    Raises
    ------
    InputError
        If the last dimension is not ``in_features`` or there are no rows.
    """
    if inputs.dim() < 1 or inputs.shape[-1] != in_features or inputs.numel() == 0:
        raise InputError(
            f"calibration inputs have shape {tuple(inputs.shape)}, but the layer takes "
            f"(..., {in_features}), not empty",
            where="MaddnessLinear",
            fix="pass what the layer itself receives",
        )
    rows = inputs.reshape(-1, in_features).numpy()
    chosen = _chosen_rows(len(rows), max_rows, seed)
    return rows if chosen is None else rows[chosen]


def conv_rows(
    inputs: torch.Tensor,
    in_channels: int,
    geometry: dict[str, tuple[int, int]],
    max_rows: int | None,
    seed: int | None,
) -> np.ndarray:
    """Return patches of images (N, in_channels, H, W) as rows (N*OH*OW, in_channels*kh*kw).

    ``geometry`` holds kernel_size, stride, padding and dilation. Only ``max_rows`` patches are
    kept; the rest is never stored.

    Raises
    ------
    InputError
        If the images do not fit the layer.
    """
    if inputs.dim() == 3:
        inputs = inputs.unsqueeze(0)
    if inputs.dim() != 4 or inputs.shape[1] != in_channels or inputs.numel() == 0:
        raise InputError(
            f"calibration inputs have shape {tuple(inputs.shape)}, but the layer takes "
            f"(N, {in_channels}, H, W), not empty",
            where="MaddnessConv2d",
            fix="pass what the layer itself receives",
        )
    oh, ow = output_size(inputs.shape[2], inputs.shape[3], geometry)
    if oh < 1 or ow < 1:
        raise InputError(
            f"images of {tuple(inputs.shape[2:])} are smaller than the kernel "
            f"{geometry['kernel_size']}",
            where="MaddnessConv2d",
            fix="pass what the layer itself receives",
        )
    return patch_rows(inputs, geometry, _chosen_rows(len(inputs) * oh * ow, max_rows, seed))


def patch_rows(
    inputs: torch.Tensor, geometry: dict[str, tuple[int, int]], chosen: np.ndarray | None
) -> np.ndarray:
    """Return the patches numbered ``chosen``, ascending (None: all), of images (N, C, H, W)."""
    oh, ow = output_size(inputs.shape[2], inputs.shape[3], geometry)
    patches = oh * ow
    columns = inputs.shape[1] * geometry["kernel_size"][0] * geometry["kernel_size"][1]
    kept = [np.empty((0, columns), np.float32)]
    for first in range(0, len(inputs), IMAGES_AT_ONCE):
        images = inputs[first : first + IMAGES_AT_ONCE]
        part: slice | np.ndarray = slice(None)
        if chosen is not None:
            ends = [first * patches, (first + len(images)) * patches]
            low, high = np.searchsorted(chosen, ends)
            if low == high:
                continue
            part = chosen[low:high] - first * patches
        unfolded = torch.nn.functional.unfold(images, **geometry)
        kept.append(unfolded.transpose(1, 2).reshape(-1, columns).numpy()[part])
    return np.concatenate(kept)


def output_size(height: int, width: int, geometry: dict[str, tuple[int, int]]) -> tuple[int, int]:
    """Return (OH, OW) of a convolution over (height, width)."""
    size = [
        (extent + 2 * p - d * (k - 1) - 1) // s + 1
        for extent, k, s, p, d in zip(
            (height, width),
            geometry["kernel_size"],
            geometry["stride"],
            geometry["padding"],
            geometry["dilation"],
            strict=True,
        )
    ]
    return size[0], size[1]
