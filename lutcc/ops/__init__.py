"""The ops as torch operators: ``lutcc.ops.tree_encode`` is ``torch.ops.lutcc.tree_encode``.

Importing this module registers them. They take CPU tensors of any strides, work under
``torch.compile`` and ``torch.export`` (fake kernels are registered), and compute what
:mod:`lutcc.ir` defines: on compiled kernels where that pays, else on the IR's NumPy reference or
on torch's own operators. All agree bit by bit, or within the op's tolerance where it is one of
floating-point sums. See :func:`lutcc.ops.set_compilation`. Those that are trained also take
tensors on a GPU, and never compile tables for the CPU while these change.
"""

from __future__ import annotations

from lutcc.ops import optimizer_versions as _optimizer_versions  # noqa: F401  sets its hook
from lutcc.ops.attention import attention
from lutcc.ops.bh import bh_stage
from lutcc.ops.block_diagonal import block_diagonal_matmul
from lutcc.ops.codebook_dequantize import codebook_dequantize
from lutcc.ops.codebook_matmul import codebook_matmul
from lutcc.ops.conv2d import conv2d
from lutcc.ops.dense import dense
from lutcc.ops.encoders import nearest_encode, tree_encode
from lutcc.ops.gather import set_deterministic_gradients, weighted_gather
from lutcc.ops.hashing import sign_hash
from lutcc.ops.images import im2col, rows_to_nchw
from lutcc.ops.kernels import clear_kernels, get_compilation, kernel_statistics, set_compilation
from lutcc.ops.sampled import sampled_conv2d, sampled_linear, sampled_matmul
from lutcc.ops.sampled_channels import channel_scores
from lutcc.ops.sampled_choice import get_sampled_backend, set_sampled_backend
from lutcc.ops.sampled_scores import column_row_scores
from lutcc.ops.sampled_selection import column_row_sample
from lutcc.ops.sparse_add import sparse_add
from lutcc.ops.tables import lut_accumulate, lut_dequantize
from lutcc.ops.transforms import hadamard

__all__ = [
    "attention",
    "bh_stage",
    "block_diagonal_matmul",
    "channel_scores",
    "clear_kernels",
    "codebook_dequantize",
    "codebook_matmul",
    "column_row_sample",
    "column_row_scores",
    "conv2d",
    "dense",
    "get_compilation",
    "get_sampled_backend",
    "hadamard",
    "im2col",
    "kernel_statistics",
    "lut_accumulate",
    "lut_dequantize",
    "nearest_encode",
    "rows_to_nchw",
    "sampled_conv2d",
    "sampled_linear",
    "sampled_matmul",
    "set_compilation",
    "set_deterministic_gradients",
    "set_sampled_backend",
    "sign_hash",
    "sparse_add",
    "tree_encode",
    "weighted_gather",
]
