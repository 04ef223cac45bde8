"""The rule for exact linear layers in float32, bfloat16 or int8."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from torch.fx import Node

from lutcc import ir
from lutcc.frontend.lower_ops import Result, argument, rule
from lutcc.frontend.lowered import Lowered, RegionBuilder
from lutcc.ir.arithmetic import quantize_rows


@rule("lutcc.dense.default")
def _dense(region: RegionBuilder, node: Node) -> Result:
    compute = str(argument(node, 4, "compute", "float32"))
    weight, units = stored_weights(region, node, compute)
    outputs = weight.type.static_shape[0]
    value = region.emit(
        "dense",
        region.rows(region.float_tensor(node.args[0])),
        weight,
        units,
        stored_bias(region, node, argument(node, 3, "bias"), outputs),
        compute=compute,
    )
    return Lowered(value, region.graph.shape(node))


def stored_weights(region: RegionBuilder, node: Node, compute: str) -> tuple[ir.Value, ir.Value]:
    """Return weights (M, ...), in the type that is computed with, and their units."""
    given, units = node.args[1], argument(node, 2, "units")
    array = region.constant_of(given)
    name = f"{node.name}_weight"
    scale = None if units is None else region.constant_of(units).astype(np.float32)
    if compute == "int8" and array.dtype != np.int8:
        integers, own = quantize_rows(array.astype(np.float32).reshape(len(array), -1))
        weight = region.constant(integers.astype(np.int8).reshape(array.shape), name)
        scale = own if scale is None else own * scale
    elif compute == "bfloat16" and array.dtype != ml_dtypes.bfloat16:
        weight = region.constant(array.astype(np.float32).astype(ml_dtypes.bfloat16), name)
    elif array.dtype.name in ("float32", "bfloat16", "int8"):
        weight = region.stored(given, name)
    else:
        weight = region.constant(array.astype(np.float32), name)
    if scale is None:
        scale = np.ones(array.shape[0], np.float32)
    return weight, region.constant(scale, f"{node.name}_units")


def stored_bias(region: RegionBuilder, node: Node, bias: object, outputs: int) -> ir.Value:
    """Return a bias of any dtype in float32, zeros for None."""
    name = f"{node.name}_bias"
    if bias is None:
        return region.constant(np.zeros(outputs, np.float32), name)
    array = region.constant_of(bias)
    if array.dtype == np.float32:
        return region.stored(bias, name)
    return region.constant(array.astype(np.float32), name)
