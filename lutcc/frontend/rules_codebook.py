"""Rules for weights that are written with codebooks."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch.fx import Node

from lutcc import ir
from lutcc.frontend.graph import NotExpressible
from lutcc.frontend.lower_ops import Result, argument, rule
from lutcc.frontend.lowered import Lowered, RegionBuilder, divided


@rule("lutcc.codebook_matmul.default")
def _codebook_matmul(region: RegionBuilder, node: Node) -> Result:
    indices, codebooks, scales = _matrix(region, node)
    outputs = indices.type.static_shape[0]
    order, bias = argument(node, 4, "order"), argument(node, 5, "bias")
    if order is None:
        order = region.constant(np.arange(outputs, dtype=np.int32), f"{node.name}_order")
    else:
        order = region.stored(order, f"{node.name}_order", "int32")
    if bias is None:
        bias = region.constant(np.zeros(outputs, np.float32), f"{node.name}_bias")
    else:
        bias = region.stored(bias, f"{node.name}_bias", "float32")
    value = region.emit(
        "codebook_matmul",
        region.rows(region.float_tensor(node.args[0])),
        indices,
        codebooks,
        scales,
        order,
        bias,
        bits=int(argument(node, 6, "bits")),
        segment_size=int(argument(node, 7, "segment_size", 0)),
        compute=str(argument(node, 8, "compute", "float32")),
    )
    return Lowered(value, region.graph.shape(node))


@rule("lutcc.codebook_dequantize.default")
def _codebook_dequantize(region: RegionBuilder, node: Node) -> Result:
    rows = region.tensor(node.args[0])
    if rows.value.type.dtype != "int32":
        raise NotExpressible(f"rows of dtype {rows.value.type.dtype}")
    value = region.emit(
        "codebook_dequantize",
        region.under_shape(region.row_major(rows).value, (divided(rows.shape, 1),)),
        *_matrix(region, node),
        bits=int(argument(node, 4, "bits")),
        columns=int(argument(node, 5, "columns")),
        segment_size=int(argument(node, 6, "segment_size", 0)),
    )
    return Lowered(value, region.graph.shape(node))


@rule("lutcc.sparse_add.default")
def _sparse_add(region: RegionBuilder, node: Node) -> Result:
    base, x, starts, columns, values = node.args
    sums = region.float_tensor(base)
    if not region.constant_of(values).size:
        return sums
    value = region.emit(
        "sparse_add",
        region.rows(sums),
        region.rows(region.float_tensor(x)),
        region.stored(starts, f"{node.name}_starts", "int32"),
        region.stored(columns, f"{node.name}_columns", "int32"),
        _stored_as(region, values, f"{node.name}_values", ("float32",)),
    )
    return Lowered(value, region.graph.shape(node))


def _matrix(region: RegionBuilder, node: Node) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Return indices, codebooks and scales: arguments 1 to 3."""
    _, indices, codebooks, scales = node.args[:4]
    dtypes = ("float32", "float16")
    return (
        region.stored(indices, f"{node.name}_indices", "uint8"),
        _stored_as(region, codebooks, f"{node.name}_codebooks", dtypes),
        _stored_as(region, scales, f"{node.name}_scales", dtypes),
    )


def _stored_as(region: RegionBuilder, node: Any, name: str, dtypes: tuple[str, ...]) -> ir.Value:
    """Return a constant that the IR takes in these dtypes: in float32, where it has another."""
    array = region.constant_of(node)
    if array.dtype.name in dtypes:
        return region.stored(node, name)
    return region.constant(array.astype(np.float32), name)
