"""Torch ops that TVM's importer gets wrong, slow or not at all, in terms of Relax."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.fx import Node
from tvm import relax

from lutcc.errors import FrontendError
from lutcc.frontend.checks import place_of
from lutcc.frontend.lower_ops import argument

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


@rule("mish.default")
def _mish(node: Node, importer: Any) -> Any:
    """Emit x tanh(log(1 + e^x)); the logarithm is that of -|x|, with x added where positive."""
    x, emit = importer.env[node.args[0]], importer.block_builder.emit
    small = relax.op.exp(relax.op.negative(relax.op.abs(x)))
    one = relax.const(1.0, x.ty.dtype)
    softplus = emit(relax.op.add(relax.op.nn.relu(x), relax.op.log(relax.op.add(one, small))))
    return emit(relax.op.multiply(x, relax.op.tanh(softplus)))


@rule("embedding.default")
def _embedding(node: Node, importer: Any) -> Any:
    """Rows of a table. An index outside it is clipped: an artifact must not read elsewhere."""
    table, indices = (importer.env[n] for n in node.args[:2])
    emit = importer.block_builder.emit
    shape = list(indices.ty.shape)
    flat = emit(relax.op.reshape(indices, [-1])) if len(shape) != 1 else indices
    rows = emit(relax.op.take(table, flat, axis=0, mode="clip"))
    return emit(relax.op.reshape(rows, [*shape, table.ty.shape[1]]))


@rule("amax.default", "amin.default")
def _extremum(node: Node, importer: Any) -> Any:
    x, axes, keep = (
        argument(node, 0, "self"),
        argument(node, 1, "dim", ()),
        argument(node, 2, "keepdim"),
    )
    op = relax.op.max if node.target.__name__ == "amax.default" else relax.op.min  # type: ignore[union-attr]
    return importer.block_builder.emit(op(importer.env[x], list(axes) or None, keepdims=bool(keep)))


@rule("prod.dim_int")
def _prod(node: Node, importer: Any) -> Any:
    x, axis, keep = node.args[0], node.args[1], argument(node, 2, "keepdim")
    return importer.block_builder.emit(relax.op.prod(importer.env[x], [axis], keepdims=bool(keep)))


@rule("mm.default", "bmm.default", "matmul.default")
def _matmul(node: Node, importer: Any) -> Any:
    """Multiply in the operands' dtype: TVM's own rule makes float32 of whole numbers."""
    a, b = (importer.env[n] for n in node.args[:2])
    return importer.block_builder.emit(relax.op.matmul(a, b))


@rule("__lshift__.Scalar", "__rshift__.Scalar", "bitwise_left_shift.Tensor_Scalar")
def _shift(node: Node, importer: Any) -> Any:
    x = importer.env[node.args[0]]
    bits = relax.const(node.args[1], x.ty.dtype.dtype)
    op = relax.op.right_shift if "rshift" in node.target.__name__ else relax.op.left_shift  # type: ignore[union-attr]
    return importer.block_builder.emit(op(x, bits))


@rule("index.Tensor", "_unsafe_index.Tensor")
def _index(node: Node, importer: Any) -> Any:
    """Read elements by tensors of indices, which broadcast; TVM's own rule takes outer products."""
    x, indices = importer.env[node.args[0]], node.args[1]
    return _read(node, importer, x, {i: n for i, n in enumerate(indices) if n is not None})  # type: ignore[arg-type, union-attr]


@rule("index_select.default")
def _index_select(node: Node, importer: Any) -> Any:
    x = importer.env[node.args[0]]
    return _read(node, importer, x, {int(node.args[1]) % len(x.ty.shape): node.args[2]})  # type: ignore[call-overload]


def _read(node: Node, importer: Any, x: Any, indices: dict[int, Any]) -> Any:
    """Emit ``x[:, i, j, :]``: indices side by side leave their place, others go to the front.

    Negative indices count from the end; one outside is clipped, as an artifact must not read
    elsewhere.
    """
    from tvm import te

    tensors = {axis: importer.env[n] for axis, n in indices.items()}
    if any(str(t.ty.dtype.dtype) == "bool" for t in tensors.values()):
        raise FrontendError(
            "selects by a mask of flags, so that the size of the result depends on values",
            where=place_of(node),
            fix="use torch.where or masked_fill, which keep the shape",
        )
    axes = sorted(tensors)
    rank = max(len(t.ty.shape) for t in tensors.values())
    adjacent = axes == list(range(axes[0], axes[-1] + 1))
    place = axes[0] if adjacent else 0

    def compute(source: Any, *given: Any) -> Any:
        by_axis = dict(zip(axes, given, strict=True))
        whole = [d for axis, d in enumerate(source.shape) if axis not in by_axis]
        shape = [*whole[:place], *_common_shape(given, rank), *whole[place:]]

        def element(*i: Any) -> Any:
            own, others = i[place : place + rank], iter((*i[:place], *i[place + rank :]))
            return source(
                *(
                    _inside(_broadcast(by_axis[axis], own), source.shape[axis])
                    if axis in by_axis
                    else next(others)
                    for axis in range(len(source.shape))
                )
            )

        return te.compute(shape, element, name="index")

    return importer.block_builder.emit_te(
        compute, x, *(tensors[axis] for axis in axes), primfunc_name_hint="index"
    )


@rule("squeeze.default", "squeeze.dim", "squeeze.dims")
def _squeeze(node: Node, importer: Any) -> Any:
    """Drop the axes that torch dropped: an open size is not 1, whatever a call's size is."""
    x = importer.env[node.args[0]]
    shape = node.args[0].meta["val"].shape  # type: ignore[union-attr]
    asked = argument(node, 1, "dim", range(len(shape)))
    asked = [asked] if isinstance(asked, int) else asked
    axes = [axis % len(shape) for axis in asked]
    axes = [a for a in axes if isinstance(shape[a], int) and shape[a] == 1]
    return importer.block_builder.emit(relax.op.squeeze(x, axes)) if axes else x


@rule("scatter.src", "scatter_add.default")
def _scatter(node: Node, importer: Any) -> Any:
    """Write, or add, one element per index along an axis; an index outside is clipped."""
    x, axis, index, source = node.args[:4]
    data, place = importer.env[x], importer.env[index]
    axis = int(axis) % len(data.ty.shape)  # type: ignore[call-overload]
    how = "add" if node.target.__name__ == "scatter_add.default" else "update"  # type: ignore[union-attr]
    shapes = [n.meta["val"].shape for n in (index, source)]  # type: ignore[union-attr]
    if tuple(map(str, shapes[0])) != tuple(map(str, shapes[1])):
        raise FrontendError(
            f"scatters a source of shape {tuple(shapes[1])} by indices of shape {tuple(shapes[0])}",
            where=place_of(node),
            fix="cut the source to the shape of the indices",
        )
    place = _clipped(importer, place, data, axis)
    return importer.block_builder.emit(
        relax.op.scatter_elements(data, place, importer.env[source], axis, how)
    )


def _clipped(importer: Any, index: Any, data: Any, axis: int) -> Any:
    from tvm import te

    def compute(given: Any, source: Any) -> Any:
        return te.compute(
            given.shape, lambda *i: _inside(given(*i), source.shape[axis]), name="inside"
        )

    return importer.block_builder.emit_te(compute, index, data, primfunc_name_hint="inside")


@rule("gather.default")
def _gather(node: Node, importer: Any) -> Any:
    """Read one element per index along an axis; an index outside is clipped."""
    from tvm import te

    x, index = importer.env[node.args[0]], importer.env[node.args[2]]
    axis = int(node.args[1]) % len(x.ty.shape)  # type: ignore[call-overload]

    def compute(source: Any, given: Any) -> Any:
        def element(*i: Any) -> Any:
            return source(*i[:axis], _inside(given(*i), source.shape[axis]), *i[axis + 1 :])

        return te.compute(given.shape, element, name="gather")

    return importer.block_builder.emit_te(compute, x, index, primfunc_name_hint="gather")


def _common_shape(tensors: Sequence[Any], rank: int) -> list[Any]:
    """Return the shape that tensors broadcast to."""
    shape: list[Any] = [1] * rank
    for tensor in tensors:
        for axis, size in enumerate(tensor.shape, rank - len(tensor.shape)):
            shape[axis] = shape[axis] if _is_one(size) else size
    return shape


def _broadcast(tensor: Any, i: tuple[Any, ...]) -> Any:
    """Return the element of a tensor that stands at ``i`` once it is broadcast."""
    tail = i[len(i) - len(tensor.shape) :]
    return tensor(*(0 if _is_one(d) else j for d, j in zip(tensor.shape, tail, strict=True)))


def _is_one(size: Any) -> bool:
    return getattr(size, "value", size) == 1


def _inside(index: Any, size: Any) -> Any:
    from tvm import tirx

    index, size = index.astype("int64"), tirx.Cast("int64", size)
    whole = tirx.Select(index < 0, index + size, index)
    return tirx.max(tirx.min(whole, size - 1), tirx.const(0, "int64"))


@rule("div.Tensor_mode")
def _div(node: Node, importer: Any) -> Any:
    """Divide and round; TVM's own rule takes a number for an int32."""
    x, y, mode = importer.env[node.args[0]], node.args[1], node.kwargs.get("rounding_mode")
    dtype = x.ty.dtype.dtype
    divisor = importer.env[y] if isinstance(y, Node) else relax.const(y, dtype)
    emit = importer.block_builder.emit
    if mode is None or "float" in str(dtype):
        quotient = emit(relax.op.divide(x, divisor))
        rounded = {"floor": relax.op.floor, "trunc": relax.op.trunc}
        return quotient if mode is None else emit(rounded[str(mode)](quotient))
    if mode == "floor":
        return emit(relax.op.floor_divide(x, divisor))
    size = relax.op.floor_divide(relax.op.abs(x), relax.op.abs(divisor))
    sign = relax.op.multiply(relax.op.sign(x), relax.op.sign(divisor))
    return emit(relax.op.multiply(emit(size), emit(sign)))
