"""Rules for convolutions: images with their channels last in, a row for each pixel out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch.fx import Node

from lutcc import ir
from lutcc.frontend.graph import NotExpressible
from lutcc.frontend.lower_ops import Result, argument, rule
from lutcc.frontend.lowered import Lowered, RegionBuilder
from lutcc.frontend.rules_dense import stored_bias, stored_weights
from lutcc.frontend.rules_layers import bias_of, pair


@rule("lutcc.conv2d.default")
def _lutcc_conv2d(region: RegionBuilder, node: Node) -> Result:
    compute = str(argument(node, 8, "compute", "float32"))
    weight, units = stored_weights(region, node, compute)
    bias = stored_bias(region, node, argument(node, 3, "bias"), weight.type.static_shape[0])
    x = region.float_tensor(node.args[0])
    window = [pair(argument(node, i, name)) for i, name in _WINDOW]
    groups = int(argument(node, 7, "groups", 1))
    return _convolve(region, node, x, (weight, units, bias), window, groups, compute)


_WINDOW = ((4, "stride"), (5, "padding"), (6, "dilation"))


@rule("aten.conv1d.default", "aten.conv2d.default")
def _conv(region: RegionBuilder, node: Node) -> Result:
    window = [
        argument(node, i, k, d)
        for i, k, d in ((3, "stride", 1), (4, "padding", 0), (5, "dilation", 1))
    ]
    return _exact(region, node, window, int(argument(node, 6, "groups", 1)))


@rule("aten.convolution.default")
def _convolution(region: RegionBuilder, node: Node) -> Result:
    *_, stride, padding, dilation, transposed, _, groups = node.args
    if transposed:
        raise NotExpressible("a transposed convolution")
    return _exact(region, node, [stride, padding, dilation], int(groups))  # type: ignore[arg-type]


def _exact(region: RegionBuilder, node: Node, window: Sequence[Any], groups: int) -> Result:
    """Lower torch's own convolution, over images or sequences."""
    x = region.float_tensor(node.args[0])
    weight = region.constant_of(node.args[1], "float32")
    if weight.ndim not in (3, 4) or len(x.shape) != weight.ndim:
        raise NotExpressible("a convolution that is not over batched sequences or images")
    if any(isinstance(value, str) for value in window):
        raise NotExpressible("a convolution whose padding is a name")
    pairs = [pair(value) for value in window]
    name = f"{node.name}_weight"
    if weight.ndim == 3:  # images of height 1
        batch, channels, length = x.shape
        x = replace(x, shape=(batch, channels, 1, length))
        pairs = [(fill, along) for fill, (_, along) in zip((1, 0, 1), pairs, strict=True)]
        stored = region.constant(np.expand_dims(weight, 2), name)
    else:
        stored = region.stored(node.args[1], name)
    outputs = weight.shape[0]
    units = region.constant(np.ones(outputs, np.float32), f"{node.name}_units")
    bias = bias_of(region, node, argument(node, 2, "bias"), outputs)
    return _convolve(region, node, x, (stored, units, bias), pairs, groups, "float32")


def _convolve(
    region: RegionBuilder,
    node: Node,
    x: Lowered,
    tables: tuple[ir.Value, ir.Value, ir.Value],
    window: Sequence[tuple[int, int]],
    groups: int,
    compute: str,
) -> Lowered:
    batch, channels, height, width = x.shape
    rows = region.channel_rows(x)
    images = region.under_shape(rows.value, (batch, height, width, channels))
    stride, padding, dilation = window
    value = region.emit(
        "conv2d",
        images,
        *tables,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        compute=compute,
    )
    return Lowered(value, region.graph.shape(node), "channel_rows")
