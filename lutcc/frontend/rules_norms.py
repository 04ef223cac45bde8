"""Rules for layer norm, softmax, and activations other than relu."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch.fx import Node

from lutcc import ir
from lutcc.frontend.graph import NotExpressible
from lutcc.frontend.lower_ops import Result, argument, rule
from lutcc.frontend.lowered import Lowered, RegionBuilder, as_rows
from lutcc.ir.types import Array, Sym

_NARROW = 16
"""Rows of fewer columns than a vector has are made of more than the last dimension."""


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


def _activation(name: str, kind: str) -> None:
    @rule(name)
    def lower(region: RegionBuilder, node: Node) -> Result:
        chosen = kind
        if name == "aten.gelu.default" and argument(node, 1, "approximate", "none") == "tanh":
            chosen = "gelu_tanh"
        x = region.float_tensor(node.args[0])
        value = _matrix(region, x)
        return Lowered(region.emit("activation", value, kind=chosen), x.shape, x.form)


for _name in ("gelu", "silu", "sigmoid", "tanh", "hardswish", "hardsigmoid"):
    _activation(f"aten.{_name}.default", _name)


def _matrix(region: RegionBuilder, x: Lowered) -> ir.Value:
    """Return a tensor's value as a matrix, which row-wise kernels take."""
    if len(x.value.type.shape) == 2:
        return x.value
    plain = region.row_major(x)
    columns, rest = 1, list(plain.shape)
    while rest and columns < _NARROW and not isinstance(rest[-1], Sym):
        columns *= rest[-1]
        rest.pop()
    return region.under_shape(plain.value, as_rows((*(rest or [1]), columns)))
