"""Rules for functions of single elements other than relu."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch.fx import Node

from lutcc import ir
from lutcc.frontend.graph import NotExpressible
from lutcc.frontend.lower_ops import Result, argument, rule
from lutcc.frontend.lowered import Lowered, RegionBuilder, as_rows
from lutcc.ir.types import Attr, Sym

_NARROW = 16
"""Rows of fewer columns than a vector has are made of more than the last dimension."""


def _activation(name: str, kind: str) -> None:
    @rule(name)
    def lower(region: RegionBuilder, node: Node) -> Result:
        chosen = kind
        if name == "aten.gelu.default" and argument(node, 1, "approximate", "none") == "tanh":
            chosen = "gelu_tanh"
        return _map(region, node, "activation", kind=chosen)


for _name in ("gelu", "silu", "sigmoid", "tanh", "hardswish", "hardsigmoid", "mish"):
    _activation(f"aten.{_name}.default", _name)


@rule("aten.hardtanh.default")
def _hardtanh(region: RegionBuilder, node: Node) -> Result:
    low, high = argument(node, 1, "min_val", -1), argument(node, 2, "max_val", 1)
    return _cut_off(region, node, low, high)


@rule("aten.clamp.default")
def _clamp(region: RegionBuilder, node: Node) -> Result:
    return _cut_off(region, node, argument(node, 1, "min"), argument(node, 2, "max"))


def _cut_off(region: RegionBuilder, node: Node, low: Any, high: Any) -> Lowered:
    """Return a node's operand between two ends, of which one or both may be None or far out."""
    ends = {
        name: _number(end)
        for name, end, idle in (("low", low, -math.inf), ("high", high, math.inf))
        if end is not None and end != idle
    }
    if not all(map(math.isfinite, ends.values())):
        raise NotExpressible("a clamp to infinity or NaN")
    return _map(region, node, "clamp", **ends)


@rule("aten.leaky_relu.default")
def _leaky_relu(region: RegionBuilder, node: Node) -> Result:
    return _map(region, node, "leaky_relu", slope=_number(argument(node, 1, "slope", 0.01)))


@rule("aten.abs.default")
def _abs(region: RegionBuilder, node: Node) -> Result:
    return _map(region, node, "leaky_relu", slope=-1.0)


@rule("aten.neg.default")
def _neg(region: RegionBuilder, node: Node) -> Result:
    return _scaled(region, _map(region, node), -1.0)


@rule("aten.elu.default")
def _elu(region: RegionBuilder, node: Node) -> Result:
    alpha = _number(argument(node, 1, "alpha", 1))
    made = _map(region, node, "activation", kind="elu")
    if alpha == 1:
        return made
    # what is negative is alpha (e^x - 1): the rest of it is what leaky_relu does
    return Lowered(region.emit("leaky_relu", made.value, slope=alpha), made.shape, made.form)


@rule("aten.softplus.default")
def _softplus(region: RegionBuilder, node: Node) -> Result:
    # torch takes x itself where beta x exceeds a threshold: within rounding of it from 20 on
    beta = _number(argument(node, 1, "beta", 1))
    if _number(argument(node, 2, "threshold", 20)) < 20:
        raise NotExpressible("softplus with a threshold below 20")
    x = _map(region, node)
    made = _scaled(region, x, beta)
    value = region.emit("activation", made.value, kind="softplus")
    return _scaled(region, Lowered(value, x.shape, x.form), 1 / beta)


@rule("aten.round.default")
def _round(region: RegionBuilder, node: Node) -> Result:
    return _map(region, node, "round")


@rule("aten.fake_quantize_per_tensor_affine_cachemask.default")
def _fake_quantize(region: RegionBuilder, node: Node) -> Result:
    step, zero, least, most = (_number(argument(node, i, "")) for i in range(1, 5))
    x = _scaled(region, _map(region, node), float(np.float32(1) / np.float32(step)))
    value = region.emit("round", x.value)
    value = region.emit("clamp", value, low=least - zero, high=most - zero)
    return _scaled(region, Lowered(value, x.shape, x.form), step), None


def _number(value: Any) -> float:
    if not isinstance(value, (int, float)):
        raise NotExpressible(f"operand {value!r} is not a number")
    return float(value)


def _map(region: RegionBuilder, node: Node, opcode: str = "", **attrs: Attr) -> Lowered:
    """Return a function of each element of a node's operand; the operand for no opcode."""
    x = region.float_tensor(node.args[0])
    value = _matrix(region, x)
    return Lowered(region.emit(opcode, value, **attrs) if opcode else value, x.shape, x.form)


def _scaled(region: RegionBuilder, x: Lowered, factor: float) -> Lowered:
    """Return x times a number."""
    if factor == 1:
        return x
    columns = x.value.type.size(1)
    vectors = (np.full(columns, factor, np.float32), np.zeros(columns, np.float32))
    scale, shift = (region.constant(vector, "factor") for vector in vectors)
    return Lowered(region.emit("affine", x.value, scale, shift), x.shape, x.form)


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
