"""Rules for look-ups, linear layers, windows and batch norm."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch.fx import Node

from lutcc import ir
from lutcc.frontend.graph import NotExpressible, trailing_constant
from lutcc.frontend.lower_ops import Result, argument, rule
from lutcc.frontend.lowered import Lowered, RegionBuilder
from lutcc.ir.types import Sym

# look-ups: one to one


@rule("lutcc.tree_encode.default")
def _tree_encode(region: RegionBuilder, node: Node) -> Result:
    x, dims, values = node.args
    splits = region.stored(dims, f"{node.name}_splitdims", "int32")
    thresholds = region.stored(values, f"{node.name}_splitvals")
    rows = region.rows(region.tensor(x))
    return Lowered(region.emit("tree_encode", rows, splits, thresholds), region.graph.shape(node))


@rule("lutcc.nearest_encode.default")
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


@rule("lutcc.lut_accumulate.default")
def _lut_accumulate(region: RegionBuilder, node: Node) -> Result:
    table = region.stored(node.args[1], f"{node.name}_lut")
    accumulate = str(argument(node, 2, "accumulate", "exact"))
    every = int(argument(node, 3, "upcast_every", 16))
    attrs = {"upcast_every": every} if accumulate == "mean" else {}
    value = region.emit(
        "lut_accumulate",
        region.rows(region.tensor(node.args[0])),
        table,
        accumulate=accumulate,
        **attrs,
    )
    return Lowered(value, region.graph.shape(node))


@rule("lutcc.lut_dequantize.default")
def _lut_dequantize(region: RegionBuilder, node: Node) -> Result:
    acc, scale, offset = node.args[:3]
    value = region.emit(
        "lut_dequantize",
        region.rows(region.tensor(acc)),
        region.stored(scale, f"{node.name}_scale", "float32"),
        region.stored(offset, f"{node.name}_offset", "float32"),
        activation=str(argument(node, 3, "activation", "none")),
    )
    return Lowered(value, region.graph.shape(node))


@rule("lutcc.quantize.default")
def _quantize(region: RegionBuilder, node: Node) -> Result:
    x, scale, zero = node.args
    value = region.emit(
        "quantize",
        region.rows(region.float_tensor(x)),
        region.stored(scale, f"{node.name}_scale", "float32"),
        region.stored(zero, f"{node.name}_zero", "float32"),
    )
    return Lowered(value, region.graph.shape(node))


@rule("lutcc.im2col.default")
def _lutcc_im2col(region: RegionBuilder, node: Node) -> Result:
    x = region.float_tensor(node.args[0])
    pairs = [pair(argument(node, i, k, d)) for i, k, d in _WINDOW]
    return Lowered(_im2col(region, x, *pairs), region.graph.shape(node))


@rule("lutcc.rows_to_nchw.default")
def _lutcc_rows_to_nchw(region: RegionBuilder, node: Node) -> Result:
    x = region.float_tensor(node.args[0])
    return Lowered(region.rows(x), region.graph.shape(node), "channel_rows")


# dense layers


@rule("aten.linear.default")
def _linear(region: RegionBuilder, node: Node) -> Result:
    weight = region.stored(node.args[1], f"{node.name}_weight", "float32")
    return _dense(region, node, node.args[0], weight, argument(node, 2, "bias"))


@rule("aten.mm.default", "aten.matmul.default")
def _mm(region: RegionBuilder, node: Node) -> Result:
    return _dense(region, node, node.args[0], _transposed(region, node.args[1]), None)


@rule("aten.addmm.default")
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
    value = region.emit("linear", rows, weight, bias_of(region, node, bias, width))
    return Lowered(value, region.graph.shape(node))


def bias_of(region: RegionBuilder, node: Node, bias: Any, width: int) -> ir.Value:
    """Return a bias as a vector, zeros for None."""
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


# windows and positions as rows

_WINDOW = ((1, "kernel_size", 1), (2, "stride", 1), (3, "padding", 0), (4, "dilation", 1))


def _im2col(region: RegionBuilder, x: Lowered, *window: tuple[int, int]) -> ir.Value:
    if x.form == "channel_rows" and window[:3] == ((1, 1), (1, 1), (0, 0)):
        return x.value
    names = ("kernel", "stride", "padding", "dilation")
    return region.emit("im2col", region.materialised(x), **dict(zip(names, window, strict=True)))


def pair(value: Any) -> tuple[int, int]:
    """Return one number, or two, as two."""
    sizes = [int(v) for v in value] if isinstance(value, (tuple, list)) else [int(value)]
    return (sizes[0], sizes[0]) if len(sizes) == 1 else (sizes[0], sizes[1])


# batch norm


@rule("aten._native_batch_norm_legit_no_training.default")
def _batch_norm_no_training(region: RegionBuilder, node: Node) -> Result:
    x, gamma, beta, mean, variance, _, eps = node.args
    return _batch_norm(region, node, x, gamma, beta, mean, variance, eps), None, None


@rule("aten.batch_norm.default")
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
    rows = region.channel_rows(lowered)
    return Lowered(
        region.emit("batch_norm", rows.value, *constants, eps=float(eps)),
        rows.shape,
        "channel_rows",
    )


@rule("getitem")
def _getitem(region: RegionBuilder, node: Node) -> Result:
    source, index = node.args
    parts = region.env.get(source) if isinstance(source, Node) else None
    part = parts[int(index)] if isinstance(parts, tuple) else None  # type: ignore[arg-type]
    if part is None:
        raise NotExpressible(f"result {index} of {source}", derived=True)
    return part
