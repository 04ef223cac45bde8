"""How each torch op becomes IR ops. A rule that does not apply says why, and the node goes through TVM Relax instead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from torch.fx import Node

from lutcc import ir
from lutcc.errors import VerifyError
from lutcc.frontend.export import op_name
from lutcc.frontend.graph import NotExpressible, trailing_constant
from lutcc.frontend.lowered import Lowered, RegionBuilder, divided, static_product
from lutcc.ir.types import Array, Sym

Result: TypeAlias = "Lowered | tuple[Lowered | None, ...]"
Rule: TypeAlias = Callable[[RegionBuilder, Node], Result]

RULES: dict[str, Rule] = {}
"""Op name, as torch prints it, to its rule."""

ANCHORS = (
    "lutcc.",
    "aten.linear.",
    "aten.addmm.",
    "aten.mm.",
    "aten.matmul.",
    "aten.conv1d.",
    "aten.conv2d.",
    "aten.convolution.",
)
"""Ops worth a lutcc kernel of their own; the others join a region only next to one of these."""


def is_anchor(node: Node) -> bool:
    """Tell whether ``node`` is worth a lutcc kernel by itself."""
    return node.op == "call_function" and op_name(node).startswith(ANCHORS)


def lower_node(region: RegionBuilder, node: Node) -> None:
    """Append ``node`` to the region.

    Raises
    ------
    NotExpressible
        If the op, or this use of it, has no form in the IR.
    """
    name = op_name(node)
    rule = RULES.get(name)
    if rule is None:
        raise NotExpressible(f"the IR has no op for {name}")
    try:
        region.env[node] = rule(region, node)
    except VerifyError as error:
        raise NotExpressible(str(error)) from error


def _rule(*names: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, rule))
        return rule

    return register


def _argument(node: Node, index: int, name: str, default: Any = None) -> Any:
    return node.args[index] if len(node.args) > index else node.kwargs.get(name, default)


# look-ups: one to one


@_rule("lutcc.tree_encode.default")
def _tree_encode(region: RegionBuilder, node: Node) -> Result:
    x, dims, values = node.args
    splits = region.stored(dims, f"{node.name}_splitdims", "int32")
    thresholds = region.stored(values, f"{node.name}_splitvals")
    rows = region.rows(region.tensor(x))
    return Lowered(region.emit("tree_encode", rows, splits, thresholds), region.graph.shape(node))


@_rule("lutcc.nearest_encode.default")
def _nearest_encode(region: RegionBuilder, node: Node) -> Result:
    x, centroids, norms, columns, starts = node.args
    value = region.emit(
        "nearest_encode",
        region.rows(region.float_tensor(x)),
        region.stored(centroids, f"{node.name}_centroids", "float32"),
        region.stored(norms, f"{node.name}_half_norms", "float32"),
        region.stored(columns, f"{node.name}_columns", "int32"),
        starts=tuple(int(s) for s in starts),  # type: ignore[union-attr]
    )
    return Lowered(value, region.graph.shape(node))


@_rule("lutcc.lut_accumulate.default")
def _lut_accumulate(region: RegionBuilder, node: Node) -> Result:
    table = region.stored(node.args[1], f"{node.name}_lut")
    accumulate = str(_argument(node, 2, "accumulate", "exact"))
    every = int(_argument(node, 3, "upcast_every", 16))
    attrs = {"upcast_every": every} if accumulate == "mean" else {}
    value = region.emit(
        "lut_accumulate", region.rows(region.tensor(node.args[0])), table, accumulate=accumulate, **attrs
    )
    return Lowered(value, region.graph.shape(node))


@_rule("lutcc.lut_dequantize.default")
def _lut_dequantize(region: RegionBuilder, node: Node) -> Result:
    acc, scale, offset = node.args[:3]
    value = region.emit(
        "lut_dequantize",
        region.rows(region.tensor(acc)),
        region.stored(scale, f"{node.name}_scale", "float32"),
        region.stored(offset, f"{node.name}_offset", "float32"),
        activation=str(_argument(node, 3, "activation", "none")),
    )
    return Lowered(value, region.graph.shape(node))


@_rule("lutcc.quantize.default")
def _quantize(region: RegionBuilder, node: Node) -> Result:
    x, scale, zero = node.args
    value = region.emit(
        "quantize",
        region.rows(region.float_tensor(x)),
        region.stored(scale, f"{node.name}_scale", "float32"),
        region.stored(zero, f"{node.name}_zero", "float32"),
    )
    return Lowered(value, region.graph.shape(node))


@_rule("lutcc.im2col.default")
def _lutcc_im2col(region: RegionBuilder, node: Node) -> Result:
    x = region.float_tensor(node.args[0])
    pairs = [_pair(_argument(node, i, k, d)) for i, k, d in _WINDOW]
    return Lowered(_im2col(region, x, *pairs), region.graph.shape(node))


@_rule("lutcc.rows_to_nchw.default")
def _lutcc_rows_to_nchw(region: RegionBuilder, node: Node) -> Result:
    x = region.float_tensor(node.args[0])
    return Lowered(region.rows(x), region.graph.shape(node), "channel_rows")


# dense layers


@_rule("aten.linear.default")
def _linear(region: RegionBuilder, node: Node) -> Result:
    weight = region.stored(node.args[1], f"{node.name}_weight", "float32")
    return _dense(region, node, node.args[0], weight, _argument(node, 2, "bias"))


@_rule("aten.mm.default", "aten.matmul.default")
def _mm(region: RegionBuilder, node: Node) -> Result:
    return _dense(region, node, node.args[0], _transposed(region, node.args[1]), None)


@_rule("aten.addmm.default")
def _addmm(region: RegionBuilder, node: Node) -> Result:
    if node.kwargs.get("alpha", 1) != 1 or node.kwargs.get("beta", 1) != 1:
        raise NotExpressible("addmm with alpha or beta")
    return _dense(region, node, node.args[1], _transposed(region, node.args[2]), node.args[0])


def _transposed(region: RegionBuilder, node: Any) -> ir.Value:
    if region.constant_of(node, "float32").ndim != 2:
        raise NotExpressible("a product with a constant that is no matrix")
    return region.constant(region.graph.array(node, transposed=True), f"{node.name}_transposed")


def _dense(region: RegionBuilder, node: Node, x: Any, weight: ir.Value, bias: Any) -> Result:
    rows = region.rows(region.float_tensor(x))
    width = weight.type.static_shape[0]
    value = region.emit("linear", rows, weight, _bias(region, node, bias, width))
    return Lowered(value, region.graph.shape(node))


def _bias(region: RegionBuilder, node: Node, bias: Any, width: int) -> ir.Value:
    name = f"{node.name}_bias"
    if bias is None:
        return region.constant(np.zeros(width, np.float32), name)
    array = region.constant_of(bias, "float32")
    if array.shape == (width,):
        return region.stored(bias, name, "float32")
    spread, rank = trailing_constant(array, (1, width))
    if rank != 1 or spread.size != width:
        raise NotExpressible("a bias that is no vector")
    return region.constant(spread, name)


# convolutions: windows to rows, a dense layer, rows to images

_WINDOW = ((1, "kernel_size", 1), (2, "stride", 1), (3, "padding", 0), (4, "dilation", 1))


@_rule("aten.conv1d.default", "aten.conv2d.default")
def _conv(region: RegionBuilder, node: Node) -> Result:
    window = [_argument(node, i, k, d) for i, k, d in ((3, "stride", 1), (4, "padding", 0), (5, "dilation", 1))]
    return _convolve(region, node, window, _argument(node, 6, "groups", 1))


@_rule("aten.convolution.default")
def _convolution(region: RegionBuilder, node: Node) -> Result:
    *_, stride, padding, dilation, transposed, _, groups = node.args
    if transposed:
        raise NotExpressible("a transposed convolution")
    return _convolve(region, node, [stride, padding, dilation], groups)


def _convolve(region: RegionBuilder, node: Node, window: Sequence[Any], groups: Any) -> Result:
    x = region.float_tensor(node.args[0])
    weight = region.constant_of(node.args[1], "float32")
    if groups != 1:
        raise NotExpressible("a grouped convolution")
    if weight.ndim not in (3, 4) or len(x.shape) != weight.ndim:
        raise NotExpressible("a convolution that is not over batched sequences or images")
    sequence = weight.ndim == 3
    kernel = _pair(weight.shape[2:], sequence=sequence, fill=1)
    stride, padding, dilation = (
        _pair(value, sequence=sequence, fill=fill) for value, fill in zip(window, (1, 0, 1), strict=True)
    )
    if sequence:
        batch, channels, length = x.shape
        x = replace(x, shape=(batch, channels, 1, length))
    rows = _im2col(region, x, kernel, stride, padding, dilation)
    matrix = region.constant(weight.reshape(weight.shape[0], -1), f"{node.name}_weight")
    bias = _bias(region, node, _argument(node, 2, "bias"), weight.shape[0])
    return Lowered(region.emit("linear", rows, matrix, bias), region.graph.shape(node), "channel_rows")


def _im2col(region: RegionBuilder, x: Lowered, *window: tuple[int, int]) -> ir.Value:
    if x.form == "channel_rows" and window[:3] == ((1, 1), (1, 1), (0, 0)):
        return x.value
    names = ("kernel", "stride", "padding", "dilation")
    return region.emit("im2col", region.materialised(x), **dict(zip(names, window, strict=True)))


def _pair(value: Any, *, sequence: bool = False, fill: int = 1) -> tuple[int, int]:
    sizes = [int(v) for v in value] if isinstance(value, (tuple, list)) else [int(value)]
    if sequence:
        return fill, sizes[0]
    return (sizes[0], sizes[0]) if len(sizes) == 1 else (sizes[0], sizes[1])


def _channel_rows(region: RegionBuilder, x: Lowered) -> Lowered:
    """Return a tensor (N, C, *spatial) as one row per position."""
    if x.form == "channel_rows":
        return x
    if len(x.shape) not in (3, 4):
        raise NotExpressible(f"channels of a tensor of rank {len(x.shape)}")
    batch, channels, *spatial = x.shape
    height = 1 if len(spatial) == 1 else spatial[0]
    image = Lowered(x.value, (batch, channels, height, spatial[-1]))
    one = ((1, 1), (1, 1), (0, 0), (1, 1))
    return Lowered(_im2col(region, image, *one), x.shape, "channel_rows")


# batch norm


@_rule("aten._native_batch_norm_legit_no_training.default")
def _batch_norm_no_training(region: RegionBuilder, node: Node) -> Result:
    x, gamma, beta, mean, variance, _, eps = node.args
    return _batch_norm(region, node, x, gamma, beta, mean, variance, eps), None, None


@_rule("aten.batch_norm.default")
def _batch_norm_whole(region: RegionBuilder, node: Node) -> Result:
    x, gamma, beta, mean, variance, _, _, eps, *_ = node.args
    return _batch_norm(region, node, x, gamma, beta, mean, variance, eps)


def _batch_norm(region: RegionBuilder, node: Node, x: Any, *parameters: Any) -> Lowered:
    *arguments, eps = parameters
    lowered = region.float_tensor(x)
    channels = lowered.shape[1]
    if isinstance(channels, Sym):
        raise NotExpressible("batch norm over the batch dimension")
    defaults = (("gamma", np.ones), ("beta", np.zeros), ("mean", np.zeros), ("var", np.ones))
    constants = [
        region.constant(default(channels, np.float32), f"{node.name}_{name}")
        if argument is None
        else region.stored(argument, f"{node.name}_{name}", "float32")
        for argument, (name, default) in zip(arguments, defaults, strict=True)
    ]
    if len(lowered.shape) == 2:
        value = region.emit("batch_norm", region.rows(lowered), *constants, eps=float(eps))
        return Lowered(value, lowered.shape)
    rows = _channel_rows(region, lowered)
    return Lowered(region.emit("batch_norm", rows.value, *constants, eps=float(eps)), rows.shape, "channel_rows")


@_rule("getitem")
def _getitem(region: RegionBuilder, node: Node) -> Result:
    source, index = node.args
    parts = region.env.get(source) if isinstance(source, Node) else None
    part = parts[int(index)] if isinstance(parts, tuple) else None  # type: ignore[arg-type]
    if part is None:
        raise NotExpressible(f"result {index} of {source}", derived=True)
    return part


# elementwise


@_rule("aten.relu.default", "aten.relu_.default")
def _relu(region: RegionBuilder, node: Node) -> Result:
    x = region.float_tensor(node.args[0])
    return Lowered(region.emit("relu", x.value), x.shape, x.form)


@_rule("aten.add.Tensor", "aten.add.Scalar")
def _add(region: RegionBuilder, node: Node) -> Result:
    x, y = node.args[:2]
    if _argument(node, 2, "alpha", 1) != 1:
        raise NotExpressible("add with alpha")
    if region.is_constant(x):
        x, y = y, x
    if not isinstance(y, Node) or region.is_constant(y):
        return _affine(region, node, x, None, _number_or_array(region, y))
    a, b = region.float_tensor(x), region.float_tensor(y)
    if a.shape != b.shape:
        raise NotExpressible("an addition that broadcasts")
    if a.form != b.form:
        a, b = region.row_major(a), region.row_major(b)
    if len(b.value.type.shape) == 2:
        a, b = b, a  # keep the matrix form, which row-wise kernels take
    return Lowered(region.emit("add", a.value, region.under_shape(b.value, a.value.type.shape)), a.shape, a.form)


@_rule("aten.sub.Tensor", "aten.sub.Scalar")
def _sub(region: RegionBuilder, node: Node) -> Result:
    x, y = node.args[:2]
    if _argument(node, 2, "alpha", 1) != 1:
        raise NotExpressible("sub with alpha")
    return _affine(region, node, x, None, -_number_or_array(region, y))


@_rule("aten.mul.Tensor", "aten.mul.Scalar")
def _mul(region: RegionBuilder, node: Node) -> Result:
    x, y = node.args[:2]
    if region.is_constant(x):
        x, y = y, x
    return _affine(region, node, x, _number_or_array(region, y), None)


@_rule("aten.div.Tensor", "aten.div.Scalar")
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


def _affine(region: RegionBuilder, node: Node, x: Any, scale: Array | None, shift: Array | None) -> Result:
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


@_rule(
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


@_rule(
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


@_rule("aten.permute.default", "aten.transpose.int")
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
        return Lowered(_channel_rows(region, x).value, shape)
    if rank in (3, 4) and order == [0, rank - 1, *range(1, rank - 1)]:  # channels to the front
        static_product(shape[1:])
        divided(shape, static_product(shape[1:]))
        return Lowered(region.rows(x), shape, "channel_rows")
    raise NotExpressible(f"a permutation {tuple(order)}")
