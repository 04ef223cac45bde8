"""The rule for attention: tensors of several open sizes, which no other op of the IR takes."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch.fx import Node

from lutcc import ir
from lutcc.frontend.checks import op_name
from lutcc.frontend.graph import Graph, NotExpressible
from lutcc.frontend.lower_ops import Result, argument, rule
from lutcc.frontend.lowered import Lowered, RegionBuilder
from lutcc.ir.types import Sym

_NAME = "lutcc.attention.default"


@rule(_NAME)
def _attention(region: RegionBuilder, node: Node) -> Result:
    rows = [region.materialised(region.float_tensor(n)) for n in node.args[:3]]
    heads = int(argument(node, 4, "heads", 1))
    scale = argument(node, 6, "scale")
    kind, mask = _mask(region, node, argument(node, 3, "mask"))
    value = region.emit(
        "attention",
        *rows,
        mask,
        heads=heads,
        kv_heads=int(argument(node, 5, "kv_heads", 1)),
        scale=(rows[0].type.size(2) // heads) ** -0.5 if scale is None else float(scale),
        mask=kind,
        causal=bool(argument(node, 7, "causal", False)),
        compute="bfloat16" if _between_rounded_layers(node) else "float32",
    )
    return Lowered(value, region.graph.shape(node))


def _between_rounded_layers(node: Node) -> bool:
    """Tell whether queries, keys and values come from layers in bfloat16 or int8.

    What such layers give is rounded more than bfloat16 rounds it.
    """
    sources = node.args[:3]
    return all(
        isinstance(source, Node)
        and op_name(source) == "lutcc.dense.default"
        and argument(source, 4, "compute", "float32") != "float32"
        for source in sources
    )


def _mask(region: RegionBuilder, node: Node, mask: Any) -> tuple[str, ir.Value]:
    if mask is None:
        return "none", region.constant(np.zeros((1, 1, 1, 1), np.float32), f"{node.name}_mask")
    if region.is_constant(mask):
        value = region.stored(mask, f"{node.name}_mask")
    else:
        value = region.materialised(region.tensor(mask))
    if value.type.dtype not in ("float32", "uint8"):
        raise NotExpressible(f"a mask of {value.type.dtype}")
    return ("keep" if value.type.dtype == "uint8" else "add"), value


def stands_alone(graph: Graph, node: Node) -> bool:
    """Tell whether a node's kernel takes several open sizes, and so makes a region by itself."""
    if op_name(node) != _NAME:
        return False
    names = {
        dim.name
        for operand in (node, *node.all_input_nodes)
        for dim in graph.shape(operand)
        if isinstance(dim, Sym)
    }
    return len(names) > 1
