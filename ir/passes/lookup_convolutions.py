"""Look-ups of patches become convolutions by look-ups, which write no patches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np

from lutcc.ir.module import Module, Operation, Value
from lutcc.ir.ops.im2col import output_size
from lutcc.ir.passes.base import Editor, rewrite
from lutcc.ir.passes.chains import MAPS
from lutcc.ir.passes.dead_code import DeadCode
from lutcc.ir.types import Dim, TensorType, divide_dim, scale_dim

#: Attributes that say where windows lie, and those of a kernel of one pixel.
WINDOW = ("kernel", "stride", "padding", "dilation")
PIXEL: Mapping[str, tuple[int, int]] = {
    "kernel": (1, 1),
    "stride": (1, 1),
    "padding": (0, 0),
    "dilation": (1, 1),
}


class LookupConvolutions:
    """Make ``lut_conv2d`` of ``im2col``, ``tree_encode`` and ``lut_accumulate``.

    So are look-ups of the pixels of another one's result (kernel 1x1), or of its whole images (a
    linear layer behind a flattening: the kernel is the image), so that sums can stay integers.
    Averaged sums and float tables keep their patches.

    Examples
    --------
    >>> from lutcc.ir import Builder, TensorType
    >>> b = Builder("main")
    >>> x = b.param("x", TensorType((2, 3, 5, 5), "float32"))
    >>> dims, values = b.constant("d", np.int32([[4]])), b.constant("v", np.float32([[0, 1]]))
    >>> codes = b.op("tree_encode", b.op("im2col", x, kernel=(3, 3)), dims, values)
    >>> b.returns(b.op("lut_accumulate", codes, b.constant("lut", np.ones((1, 2, 4), np.uint8))))
    >>> [op.opcode for op in LookupConvolutions()(b.module()).main.body if op.operands]
    ['im2col', 'reshape', 'lut_conv2d']
    """

    def __call__(self, module: Module) -> Module:
        """Return the module without patches that only trees read; all functions are looked at."""
        return rewrite(module, (_convolve,), DeadCode())


Found: TypeAlias = tuple[Value, Mapping[str, tuple[int, int]]]


def _convolve(editor: Editor, op: Operation) -> bool:
    if op.opcode != "lut_accumulate" or op.attr("accumulate") != "exact":
        return False
    tree = editor.sole_producer(op.operands[0], "tree_encode")
    lut = editor.array(op.operands[1])
    if tree is None or lut is None or lut.dtype == np.float32:
        return False
    if editor.arrays(*tree.operands[1:]) is None or tree.operands[0].type.dtype != "float32":
        return False
    if lut.shape[1] != tree.operands[2].type.shape[1]:
        return False
    found = _of_patches(editor, tree.operands[0]) or _of_sums(editor, tree.operands[0])
    if found is None:
        return False
    images, window = found
    zeros = np.zeros(images.type.size(3), np.float32)
    outside = editor.emit_constant(f"{op.results[0].name}.outside", zeros)
    operands = (images, *tree.operands[1:], op.operands[1], outside)
    editor.emit_op("lut_conv2d", operands, op.results, **window)
    return True


def _of_patches(editor: Editor, rows: Value) -> Found | None:
    """Return the images, channels last, and the windows that rows are patches of."""
    patches = editor.producer(rows, "im2col")
    if patches is None:
        return None
    window = window_of(patches)
    if window == PIXEL:
        return None
    x = patches.operands[0]
    batch, channels, height, width = x.type.shape
    back = editor.producer(x, "rows_to_nchw")
    if back is not None:
        return shaped(editor, back.operands[0], (batch, height, width, channels)), window
    pixels = TensorType((scale_dim(batch, x.type.size(2) * x.type.size(3)), channels), "float32")
    rows_of = editor.fresh(f"{x.name}.pixels", pixels)
    editor.emit_op("im2col", (x,), (rows_of,), kernel=(1, 1))
    return shaped(editor, rows_of, (batch, height, width, channels)), window


def _of_sums(editor: Editor, rows: Value) -> Found | None:
    """Return the images that come from look-ups whose pixels, or which as a whole, are the rows."""
    pixels = editor.producer(rows, "im2col")
    moved = editor.producer(pixels.operands[0], "rows_to_nchw") if pixels is not None else None
    if moved is not None:
        rows = moved.operands[0]
    flat = editor.producer(rows, "reshape")
    back = editor.producer(flat.operands[0], "rows_to_nchw") if flat is not None else None
    source = rows if back is None else back.operands[0]
    size = _size_of_sums(editor, source)
    batch = None if size is None else divide_dim(source.type.shape[0], size[0] * size[1])
    if size is None or batch is None:
        return None
    window = PIXEL
    if back is not None:
        if back.results[0].type.shape[2:] != size or rows.type.shape[0] != batch:
            return None
        window = {**PIXEL, "kernel": size}
    return shaped(editor, source, (batch, *size, source.type.shape[1])), window


def _size_of_sums(editor: Editor, rows: Value) -> tuple[int, int] | None:
    """Return height and width of what rows are the pixels of, if that comes from look-ups."""
    size = None
    op = editor.producer(rows, "lut_conv2d", "max_pool2d", "reshape", *MAPS)
    while op is not None:
        if op.opcode in ("lut_conv2d", "max_pool2d"):
            size = size or result_size(op)
        if op.opcode == "lut_conv2d":
            return size
        op = editor.producer(op.operands[0], "lut_conv2d", "max_pool2d", "reshape", *MAPS)
        if op is not None and op.opcode == "reshape" and size is None:
            return None  # rows under another shape: their pixels are not known
    return None


def result_size(op: Operation) -> tuple[int, int]:
    """Return height and width of the images that a convolution or a pooling gives."""
    sizes, window = op.operands[0].type.sizes(1), window_of(op)
    height, width = (
        output_size(sizes[axis], *(window[name][axis] for name in WINDOW)) for axis in (0, 1)
    )
    return height, width


def window_of(op: Operation) -> dict[str, tuple[int, int]]:
    """Return kernel, stride, padding and dilation of an operation that has windows."""
    pairs: dict[str, tuple[int, int]] = {}
    for name in WINDOW:
        exact = name == "kernel" and op.opcode == "conv2d"
        value = op.operands[1].type.shape[2:] if exact else op.attr(name)
        assert isinstance(value, tuple)
        first, second = (int(v) for v in value if isinstance(v, int))
        pairs[name] = (first, second)
    return pairs


def shaped(editor: Editor, value: Value, shape: tuple[Dim, ...]) -> Value:
    """Return a value under another shape."""
    result = editor.fresh(f"{value.name}.images", TensorType(shape, value.type.dtype))
    editor.emit_op("reshape", (value,), (result,), shape=shape)
    return result
