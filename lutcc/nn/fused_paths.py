"""Torch's transformer layers have fused paths that read the weights of Linear layers directly."""

from __future__ import annotations

import torch


def leave_fused_paths(model: torch.nn.Module) -> None:
    """Switch them off in layers whose ``linear1`` or ``linear2`` is no Linear any more.

    Examples
    --------
    >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 16)
    >>> layer.linear2 = torch.nn.Identity()
    >>> leave_fused_paths(layer)
    >>> layer.activation_relu_or_gelu
    0
    """
    for layer in model.modules():
        if isinstance(layer, torch.nn.TransformerEncoderLayer) and _replaced(layer):
            layer.activation_relu_or_gelu = 0
    for encoder in model.modules():
        if isinstance(encoder, torch.nn.TransformerEncoder) and any(map(_replaced, encoder.layers)):
            # that path reads the weights of the first layer, and only fused layers take its tensors
            encoder.use_nested_tensor = False


def _replaced(layer: torch.nn.Module) -> bool:
    if not isinstance(layer, torch.nn.TransformerEncoderLayer):
        return False
    return not all(isinstance(part, torch.nn.Linear) for part in (layer.linear1, layer.linear2))
