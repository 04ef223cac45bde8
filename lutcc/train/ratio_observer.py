"""Looks at the scores of a sampled layer's products while the layer is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from lutcc.ir.types import Array
from lutcc.nn import SampledConv2d, SampledLayer
from lutcc.ops.sampled_backward_conv import image_scores, output_channel_scores
from lutcc.ops.sampled_scores import column_row_scores
from lutcc.train.sampling_error import squared_errors

# Scores of the gradients' products by layer: hooks that hold no object, so that models with them
# are copied and pickled as without; the copies are not looked at.
_seen: WeakKeyDictionary[torch.nn.Module, dict[str, torch.Tensor]] = WeakKeyDictionary()


class Observer:
    """What is known of the errors of one layer.

    Parameters
    ----------
    layer
        A sampled layer. Where it samples gradients alone, a hook stays with it.

    Examples
    --------
    >>> from lutcc.nn import SampledLinear
    >>> layer = SampledLinear(4, 2, bias=False)
    >>> observer = Observer(layer)
    >>> observer.watch(True)
    >>> y = layer(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))  # a single pair is all
    >>> observer.squared_errors([0.25, 1.0]).tolist()
    [0.0, 0.0]
    """

    def __init__(self, layer: SampledLayer) -> None:
        self.layer = layer
        self._gradients = layer.options.where in ("backward", "weight_gradient")
        if self._gradients and _follow not in layer._forward_hooks.values():
            layer.register_forward_hook(_follow)

    def watch(self, on: bool) -> None:
        """Look at the next calls, or no longer; what was seen before is forgotten."""
        if not self._gradients:
            self.layer.observe(False)  # forgets
            self.layer.observe(on)
        elif on:
            _seen[self.layer] = {}
        else:
            _seen.pop(self.layer, None)

    def squared_errors(self, ratios: Sequence[float]) -> Array:
        """Return (len(ratios),) squared relative errors; NaN where nothing is known.

        Of two products, the larger.
        """
        options = self.layer.options
        groups = getattr(self.layer, "groups", 1)
        if not self._gradients:
            scores = self.layer.last_scores
            if scores is None:
                return np.full(len(ratios), np.nan)
            by_weights = options.mode == "topk_weights"
            ranking = _numbers(self.layer.weight_scores()) if by_weights else None
            return squared_errors(_numbers(scores), options, ratios, groups=groups, ranking=ranking)
        found = [
            squared_errors(
                _numbers(scores), options, ratios, groups=groups if product == "input" else 1
            )
            for product, scores in _seen.get(self.layer, {}).items()
        ]
        known = [errors for errors in found if not np.isnan(errors).any()]
        return np.max(known, axis=0) if known else np.full(len(ratios), np.nan)


def _numbers(scores: torch.Tensor) -> Array:
    return scores.detach().double().cpu().numpy()


def _follow(layer: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    """Look at the gradient of a call's output once it is there, as a forward hook."""
    if torch.compiler.is_compiling() or layer not in _seen or not output.requires_grad:
        return
    x, needed = inputs[0].detach(), inputs[0].requires_grad

    def look(gradient: torch.Tensor) -> None:
        with torch.no_grad():
            dtype = layer.weight.dtype
            _note(layer, x.to(dtype), gradient.detach().to(dtype), needed)

    output.register_hook(look)


def _note(layer: Any, x: torch.Tensor, gradient: torch.Tensor, needed: bool) -> None:
    seen = _seen.get(layer)
    if seen is None or not x.numel():
        return
    backward = layer.options.where == "backward" and needed
    weight = layer.weight.detach()
    if isinstance(layer, SampledConv2d):
        x, gradient = (t if t.dim() == 4 else t[None] for t in (x, gradient))
        padding: Any = layer.padding
        if layer.padding_mode != "zeros" or isinstance(padding, str):
            mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
            sides = layer._reversed_padding_repeated_twice
            x, padding = torch.nn.functional.pad(x, sides, mode=mode), (0, 0)
        geometry = (layer.stride, padding, layer.dilation, layer.groups)
        seen["weight"] = image_scores(gradient, x, weight.shape[2:], geometry)
        if backward:
            seen["input"] = output_channel_scores(gradient, weight, layer.groups)
        return
    group_size = layer.options.group_size
    x, gradient = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    seen["weight"] = column_row_scores(gradient.t(), x, group_size)
    if backward:
        seen["input"] = column_row_scores(gradient, weight, group_size)
