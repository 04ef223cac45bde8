"""Rules for layer norm and softmax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch.fx import Node

from lutcc import ir
from lutcc.frontend.graph import NotExpressible
from lutcc.frontend.lower_ops import Result, argument, rule
from lutcc.frontend.lowered import Lowered, RegionBuilder
from lutcc.ir.types import Array, Sym


@rule("aten.native_layer_norm.default")
def _native_layer_norm(region: RegionBuilder, node: Node) -> Result:
    return _layer_norm(region, node), None, None


@rule("aten.layer_norm.default")
def _whole_layer_norm(region: RegionBuilder, node: Node) -> Result:
    return _layer_norm(region, node)


def _layer_norm(region: RegionBuilder, node: Node) -> Lowered:
    x = region.float_tensor(node.args[0])
    sizes = argument(node, 1, "normalized_shape")
    if not all(isinstance(size, int) for size in sizes):
        raise NotExpressible("layer norm over an open size")
    width = int(np.prod(sizes))
    value = region.emit(
        "layer_norm",
        region.rows(x, width),
        _vector(region, node, argument(node, 2, "weight"), width, "gamma", np.ones),
        _vector(region, node, argument(node, 3, "bias"), width, "beta", np.zeros),
        eps=float(argument(node, 4, "eps", 1e-5)),
    )
    return Lowered(value, x.shape)


def _vector(
    region: RegionBuilder,
    node: Node,
    given: Any,
    width: int,
    name: str,
    default: Callable[..., Array],
) -> ir.Value:
    """Return a parameter with an entry for each column."""
    if given is None:
        return region.constant(default(width, np.float32), f"{node.name}_{name}")
    array = region.constant_of(given, "float32")
    if array.shape == (width,):
        return region.stored(given, f"{node.name}_{name}", "float32")
    return region.constant(array.reshape(width), f"{node.name}_{name}")


@rule("aten._softmax.default", "aten.softmax.int")
def _softmax(region: RegionBuilder, node: Node) -> Result:
    x = region.float_tensor(node.args[0])
    axis = int(argument(node, 1, "dim"))
    if axis % len(x.shape) != len(x.shape) - 1:
        raise NotExpressible(f"softmax over dimension {axis}, which is not the last")
    if region.graph.dtype(node) != "float32":
        raise NotExpressible(f"softmax to {region.graph.dtype(node)}")
    if isinstance(x.shape[-1], Sym):
        raise NotExpressible("softmax over an open size")
    return Lowered(region.emit("softmax", region.rows(x)), x.shape)
