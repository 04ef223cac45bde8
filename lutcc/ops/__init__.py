"""The look-up ops as torch operators: ``lutcc.ops.tree_encode`` is ``torch.ops.lutcc.tree_encode``.

Importing this module registers them. They take CPU tensors of any strides, work under
``torch.compile`` and ``torch.export`` (fake kernels are registered), and compute exactly what
:mod:`lutcc.ir` defines: on compiled kernels where that pays, else on the IR's NumPy reference; the
two agree bit by bit. See :func:`lutcc.ops.set_compilation`.
"""

from __future__ import annotations

from lutcc.ops.encoders import nearest_encode, tree_encode
from lutcc.ops.images import im2col, rows_to_nchw
from lutcc.ops.kernels import clear_kernels, get_compilation, kernel_statistics, set_compilation
from lutcc.ops.tables import lut_accumulate, lut_dequantize

__all__ = [
    "clear_kernels",
    "get_compilation",
    "im2col",
    "kernel_statistics",
    "lut_accumulate",
    "lut_dequantize",
    "nearest_encode",
    "rows_to_nchw",
    "set_compilation",
    "tree_encode",
]
