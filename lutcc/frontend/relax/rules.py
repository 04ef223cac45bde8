"""Torch ops that TVM's importer gets wrong, slow or not at all, in terms of Relax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.fx import Node
from tvm import relax

from lutcc.errors import FrontendError
from lutcc.frontend.checks import place_of

RULES: dict[str, Callable[[Node, Any], Any]] = {}
"""Op name, as in torch's graph, to (node, importer) -> the value."""


def rule(*names: str) -> Callable[[Callable[[Node, Any], Any]], Callable[[Node, Any], Any]]:
    """Register a function as the rule of these ops."""

    def register(emit: Callable[[Node, Any], Any]) -> Callable[[Node, Any], Any]:
        RULES.update(dict.fromkeys(names, emit))
        return emit

    return register


@rule("select.int")
def _select(node: Node, importer: Any) -> Any:
    """One slice of a tensor. TVM's own rule gathers by an index, element by element."""
    source, axis, index = node.args[:3]
    x = importer.env[source]
    axis = int(axis) % len(x.ty.shape)  # type: ignore[arg-type]
    if not isinstance(index, int):
        raise FrontendError(
            "selects by a computed index",
            where=place_of(node),
            fix="use torch.index_select or torch.gather",
        )
    begin = index if index >= 0 else x.ty.shape[axis] + index
    emit = importer.block_builder.emit
    part = emit(
        relax.op.strided_slice(x, axes=[axis], begin=[begin], end=[begin + 1], assume_inbound=True)
    )
    return emit(relax.op.squeeze(part, axis=[axis]))


@rule("slice.Tensor")
def _slice(node: Node, importer: Any) -> Any:
    """Take a range: its size is what torch traced, where TVM clips by min and max."""
    source, axis, start, _, step = (*node.args, *(None,) * 5)[:5]
    x = importer.env[source]
    axis, step = int(axis or 0) % len(x.ty.shape), int(step or 1)  # type: ignore[call-overload]
    size = x.ty.shape[axis]
    begin = importer.env[start] if isinstance(start, Node) else int(start or 0)  # type: ignore[call-overload]
    if isinstance(begin, int):
        static = getattr(size, "value", None)
        begin = size + begin if begin < 0 else begin
        begin = begin if static is None else min(max(int(begin), 0), int(static))
    count = importer.size(node.meta["val"].shape[axis])
    if count is None:
        raise FrontendError(
            f"takes {node.meta['val'].shape[axis]} of {size} elements, which is no polynomial",
            where=place_of(node),
            fix="slice by sizes that are fixed or proportional to one open size",
        )
    if step == 1 and isinstance(begin, int) and begin == 0 and importer.equal(size, count):
        return x
    end = begin + (count - 1) * step + 1 if step > 1 else begin + count
    return importer.block_builder.emit(
        relax.op.strided_slice(
            x, axes=[axis], begin=[begin], end=[end], strides=[step], assume_inbound=True
        )
    )


@rule("embedding.default")
def _embedding(node: Node, importer: Any) -> Any:
    """Rows of a table. An index outside it is clipped: an artifact must not read elsewhere."""
    table, indices = (importer.env[n] for n in node.args[:2])
    emit = importer.block_builder.emit
    shape = list(indices.ty.shape)
    flat = emit(relax.op.reshape(indices, [-1])) if len(shape) != 1 else indices
    rows = emit(relax.op.take(table, flat, axis=0, mode="clip"))
    return emit(relax.op.reshape(rows, [*shape, table.ty.shape[1]]))
