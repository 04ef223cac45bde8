"""Rules for the look-ups of LookupFFN: Hadamard, block-diagonal products, sign hash, gather."""

from __future__ import annotations

from torch.fx import Node

from lutcc.frontend.graph import NotExpressible
from lutcc.frontend.lower_ops import Result, argument, rule
from lutcc.frontend.lowered import Lowered, RegionBuilder


@rule("lutcc.hadamard.default")
def _hadamard(region: RegionBuilder, node: Node) -> Result:
    rows = region.rows(region.float_tensor(node.args[0]))
    scale = float(argument(node, 1, "scale", 1.0))
    return Lowered(region.emit("hadamard", rows, scale=scale), region.graph.shape(node))


@rule("lutcc.block_diagonal_matmul.default")
def _block_diagonal_matmul(region: RegionBuilder, node: Node) -> Result:
    blocks = region.stored(node.args[1], f"{node.name}_blocks")
    columns = argument(node, 2, "columns")
    value = region.emit(
        "block_diagonal_matmul",
        region.rows(region.float_tensor(node.args[0])),
        blocks,
        **({} if columns is None else {"columns": int(columns)}),
    )
    return Lowered(value, region.graph.shape(node))


@rule("lutcc.sign_hash.default")
def _sign_hash(region: RegionBuilder, node: Node) -> Result:
    results = region.emit_all(
        "sign_hash",
        region.rows(region.float_tensor(node.args[0])),
        code_length=int(argument(node, 1, "code_length")),
        variant=str(argument(node, 2, "variant", "gelu")),
        neighbors=int(argument(node, 3, "neighbors", 1)),
    )
    shapes = region.graph.shapes(node)
    return tuple(Lowered(v, shape) for v, shape in zip(results, shapes, strict=True))


@rule("lutcc.weighted_gather.default")
def _weighted_gather(region: RegionBuilder, node: Node) -> Result:
    codes, scores = region.tensor(node.args[0]), region.float_tensor(node.args[1])
    if codes.value.type.dtype != "int32":
        raise NotExpressible(f"codes of dtype {codes.value.type.dtype}")
    value = region.emit(
        "weighted_gather",
        region.rows(codes),
        region.rows(scores),
        region.stored(node.args[2], f"{node.name}_tables"),
        score_dtype=str(argument(node, 3, "score_dtype", "float32")),
    )
    return Lowered(value, region.graph.shape(node))
