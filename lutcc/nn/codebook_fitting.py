"""Weights of exact layers, compressed: layers and their rows as the estimator takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lutcc.codebook_weights import CodebookWeights
from lutcc.errors import InputError
from lutcc.nn.calibration import as_float_tensor, conv_rows, linear_rows
from lutcc.nn.codebook_conv import conv_options, pad_input, padded_sides
from lutcc.nn.codebook_embedding import embedding_options

if TYPE_CHECKING:
    from lutcc.fit import WeightCodebooks


def fit_linear(
    linear: torch.nn.Linear, inputs: Any, max_rows: int | None, **options: Any
) -> CodebookWeights:
    """Return the compressed weights (out, in) of a linear layer; ``inputs`` may be None."""
    rows = None
    if inputs is not None:
        x = as_float_tensor(inputs, "CodebookLinear")
        rows = linear_rows(x, linear.in_features, max_rows, _seed(options))
    return fit_matrix(linear, rows, None, **options).weights_


def fit_conv(
    conv: torch.nn.Conv2d, inputs: Any, max_rows: int | None, **options: Any
) -> CodebookWeights:
    """Return the compressed weights (out, in // groups * kh * kw) of a convolution."""
    rows = None
    if inputs is not None and conv.groups == 1:
        x = as_float_tensor(inputs, "CodebookConv2d")
        x, geometry = patch_geometry(conv, x if x.dim() == 4 else x.unsqueeze(0))
        rows = conv_rows(x, conv.in_channels, geometry, max_rows, _seed(options))
    return fit_matrix(conv, rows, None, **options).weights_


def fit_embedding(embedding: torch.nn.Embedding, **options: Any) -> CodebookWeights:
    """Return the compressed weights of an embedding, which is fitted without data."""
    embedding_options(embedding)  # refuses what cannot be compressed
    return fit_matrix(embedding, None, None, **options).weights_


def fit_matrix(
    layer: torch.nn.Linear | torch.nn.Conv2d | torch.nn.Embedding,
    rows: np.ndarray | None,
    targets: np.ndarray | None,
    **options: Any,
) -> WeightCodebooks:
    """Fit the estimator to a layer's weights as a matrix (outputs, inputs of a group).

    Parameters
    ----------
    layer
        The exact layer.
    rows, targets
        (N, K) what it receives and (N, M) what it should return; None: no data, or what the layer
        itself returns.
    options
        Of :class:`lutcc.fit.WeightCodebooks`.

    Raises
    ------
    InputError
        If the weights are not finite, or cannot be compressed so far.
    """
    from lutcc.fit import WeightCodebooks

    weight = layer.weight.detach().flatten(1).float().cpu().numpy()
    if not np.isfinite(weight).all():
        raise InputError(
            f"{int((~np.isfinite(weight)).sum())} of the weights are NaN or infinite",
            where="WeightCodebooks",
            fix="train again from a state that is finite, or leave the layer exact",
        )
    bias = None if isinstance(layer, torch.nn.Embedding) else layer.bias
    estimator = WeightCodebooks(**options)
    vector = None if bias is None else bias.detach().float().cpu().numpy()
    with torch.inference_mode(False), torch.enable_grad():  # learning takes gradients
        return estimator.fit(weight, rows, None if rows is None else targets, bias=vector)


def patch_geometry(
    conv: torch.nn.Conv2d, images: torch.Tensor
) -> tuple[torch.Tensor, dict[str, tuple[int, int]]]:
    """Return images (N, C, H, W), padded where zeros would not do, and how patches lie in them."""
    options = conv_options(conv)
    kernel, dilation = options["kernel_size"], options["dilation"]
    sides = padded_sides(options["padding"], kernel, dilation)
    images, padding = pad_input(images, sides, options["padding_mode"])
    geometry = {"kernel_size": kernel, "stride": options["stride"], "padding": padding}
    return images, {**geometry, "dilation": dilation}


def _seed(options: dict[str, Any]) -> int | None:
    seed = options.get("random_state")
    return seed if isinstance(seed, int) else None
