"""Rules for elementwise arithmetic and changes of shape."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch.fx import Node

from lutcc.frontend.checks import op_name
from lutcc.frontend.graph import NotExpressible, trailing_constant
from lutcc.frontend.lower_ops import Result, argument, rule
from lutcc.frontend.lowered import Lowered, RegionBuilder, divided, static_product
from lutcc.ir.types import Array, Sym

# elementwise


@rule("aten.relu.default", "aten.relu_.default")
def _relu(region: RegionBuilder, node: Node) -> Result:
    x = region.float_tensor(node.args[0])
    return Lowered(region.emit("relu", x.value), x.shape, x.form)


@rule("aten.add.Tensor", "aten.add.Scalar")
def _add(region: RegionBuilder, node: Node) -> Result:
    x, y = node.args[:2]
    if argument(node, 2, "alpha", 1) != 1:
        raise NotExpressible("add with alpha")
    if region.is_constant(x):
        x, y = y, x
    if not isinstance(y, Node) or region.is_constant(y):
        return _affine(region, node, x, None, _number_or_array(region, y))
    a, b = region.float_tensor(x), region.float_tensor(y)
    if a.shape != b.shape:
        raise NotExpressible("an addition that broadcasts")
    if a.form != b.form:  # what is done to images goes on in rows
        a, b = region.channel_rows(a), region.channel_rows(b)
    if len(b.value.type.shape) == 2:
        a, b = b, a  # keep the matrix form, which row-wise kernels take
    return Lowered(
        region.emit("add", a.value, region.under_shape(b.value, a.value.type.shape)),
        a.shape,
        a.form,
    )


@rule("aten.sub.Tensor", "aten.sub.Scalar")
def _sub(region: RegionBuilder, node: Node) -> Result:
    x, y = node.args[:2]
    if argument(node, 2, "alpha", 1) != 1:
        raise NotExpressible("sub with alpha")
    return _affine(region, node, x, None, -_number_or_array(region, y))


@rule("aten.mul.Tensor", "aten.mul.Scalar")
def _mul(region: RegionBuilder, node: Node) -> Result:
    x, y = node.args[:2]
    if region.is_constant(x):
        x, y = y, x
    return _affine(region, node, x, _number_or_array(region, y), None)


@rule("aten.div.Tensor", "aten.div.Scalar")
def _div(region: RegionBuilder, node: Node) -> Result:
    # a product with the float32 reciprocal: within one unit in the last place of the quotient
    x, y = node.args[:2]
    divisor = _number_or_array(region, y)
    if not np.all(divisor):
        raise NotExpressible("a division by zero")
    return _affine(region, node, x, np.float32(1) / divisor, None)


def _number_or_array(region: RegionBuilder, value: Any) -> Array:
    if isinstance(value, Node):
        array = region.constant_of(value)
        if array.dtype.kind not in "fiu":
            raise NotExpressible(f"constant {value.name} is {array.dtype}")
        return array.astype(np.float32)
    if not isinstance(value, (int, float)):
        raise NotExpressible(f"operand {value!r} is not a number")
    return np.asarray(value, np.float32)


def _affine(
    region: RegionBuilder, node: Node, x: Any, scale: Array | None, shift: Array | None
) -> Result:
    constant = scale if scale is not None else shift
    assert constant is not None
    lowered = region.float_tensor(x)
    if lowered.shape != region.graph.shape(node):
        raise NotExpressible("an operation with a constant that enlarges the tensor")
    if lowered.form == "channel_rows" and _per_channel(constant, lowered):
        channels = lowered.shape[1]
        assert not isinstance(channels, Sym)
        vector = np.ascontiguousarray(np.broadcast_to(constant.reshape(-1), (channels,)))
        rows, form = lowered.value, lowered.form
    else:
        vector, _ = trailing_constant(constant, lowered.shape)
        rows, form = region.rows(lowered, vector.size), "row_major"
    factors = vector if scale is not None else np.ones_like(vector)
    shifts = vector if shift is not None else np.zeros_like(vector)
    value = region.emit(
        "affine",
        rows,
        region.constant(factors, f"{node.name}_scale"),
        region.constant(shifts, f"{node.name}_shift"),
    )
    return Lowered(value, lowered.shape, form)  # type: ignore[arg-type]


def _per_channel(constant: Array, lowered: Lowered) -> bool:
    if constant.size == 1:
        return True
    rank = len(lowered.shape)
    shape = (1,) * (rank - constant.ndim) + constant.shape
    return len(shape) == rank and all(size == 1 for axis, size in enumerate(shape) if axis != 1)


# shapes


@rule(
    "aten.alias.default",
    "aten.clone.default",
    "aten.contiguous.default",
    "aten.detach.default",
    "aten.detach_.default",
    "aten.dropout.default",
    "aten.feature_dropout.default",
    "aten.lift_fresh_copy.default",
    "aten.expand.default",
    "aten._to_copy.default",
    "aten.to.dtype",
)
def _same(region: RegionBuilder, node: Node) -> Result:
    x = region.tensor(node.args[0])
    if region.graph.dtype(node) != region.graph.dtype(node.args[0]):  # type: ignore[arg-type]
        raise NotExpressible("a change of dtype")
    if region.graph.shape(node) != x.shape:
        raise NotExpressible("an expansion")
    return x


@rule(
    "aten.view.default",
    "aten._unsafe_view.default",
    "aten.reshape.default",
    "aten.flatten.using_ints",
    "aten.unflatten.int",
    "aten.squeeze.default",
    "aten.squeeze.dim",
    "aten.squeeze.dims",
    "aten.unsqueeze.default",
)
def _view(region: RegionBuilder, node: Node) -> Result:
    x = region.row_major(region.tensor(node.args[0]))
    return Lowered(x.value, region.graph.shape(node))


@rule("aten.permute.default", "aten.transpose.int")
def _permute(region: RegionBuilder, node: Node) -> Result:
    x = region.tensor(node.args[0])
    rank = len(x.shape)
    if op_name(node) == "aten.transpose.int":
        order = list(range(rank))
        first, second = (int(a) % rank for a in node.args[1:3])  # type: ignore[call-overload]
        order[first], order[second] = order[second], order[first]
    else:
        order = [int(a) % rank for a in node.args[1]]  # type: ignore[union-attr, call-overload]
    shape = region.graph.shape(node)
    moved = [axis for axis in order if x.shape[axis] != 1]
    if moved == sorted(moved):
        return Lowered(region.row_major(x).value, shape)
    x = region.float_tensor(node.args[0])
    if rank in (3, 4) and order == [0, *range(2, rank), 1]:  # channels to the back
        return Lowered(region.channel_rows(x).value, shape)
    if rank in (3, 4) and order == [0, rank - 1, *range(1, rank - 1)]:  # channels to the front
        static_product(shape[1:])
        divided(shape, static_product(shape[1:]))
        return Lowered(region.rows(x), shape, "channel_rows")
    raise NotExpressible(f"a permutation {tuple(order)}")
