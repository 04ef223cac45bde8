"""Rules for poolings: images with their channels last, a row for each pixel out."""

from __future__ import annotations

from torch.fx import Node

from lutcc.frontend.graph import NotExpressible
from lutcc.frontend.lower_ops import Result, argument, rule
from lutcc.frontend.lowered import Lowered, RegionBuilder
from lutcc.frontend.rules_layers import pair
from lutcc.ir.types import Dim


@rule("aten.max_pool2d_with_indices.default")
def _max_pool_with_indices(region: RegionBuilder, node: Node) -> Result:
    if any(user.args[1:] == (1,) and user.users for user in node.users):
        raise NotExpressible("the indices of a max pooling")
    return _max_pool(region, node, region.graph.shapes(node)[0]), None


@rule("aten.max_pool2d.default")
def _max_pool_alone(region: RegionBuilder, node: Node) -> Result:
    return _max_pool(region, node, region.graph.shape(node))


def _max_pool(region: RegionBuilder, node: Node, shape: tuple[Dim, ...]) -> Lowered:
    x = region.float_tensor(node.args[0])
    if len(x.shape) != 4:
        raise NotExpressible("a max pooling that is not over batched images")
    if argument(node, 5, "ceil_mode", False):
        raise NotExpressible("a max pooling whose last windows lie outside the image (ceil_mode)")
    kernel = pair(node.args[1])
    batch, channels, height, width = x.shape
    images = region.under_shape(region.channel_rows(x).value, (batch, height, width, channels))
    value = region.emit(
        "max_pool2d",
        images,
        kernel=kernel,
        stride=pair(argument(node, 2, "stride") or kernel),
        padding=pair(argument(node, 3, "padding", 0)),
        dilation=pair(argument(node, 4, "dilation", 1)),
    )
    return Lowered(value, shape, "channel_rows")
