"""The ops of the IR, one file each: spec, shape rule, NumPy reference, cost."""

from __future__ import annotations

from lutcc.ir.ops import (
    add,
    affine,
    batch_norm,
    block_diagonal_matmul,
    call,
    channel_scores,
    column_row_sample,
    column_row_scores,
    constant,
    hadamard,
    im2col,
    linear,
    lut_accumulate,
    lut_dequantize,
    nearest_encode,
    quantize,
    relu,
    repack,
    reshape,
    rows_to_nchw,
    sampled_conv2d,
    sampled_matmul,
    sign_hash,
    tree_encode,
    weighted_gather,
)
from lutcc.ir.registry import Registry

#: Every op, in the order of the reference: structure, look-up, Hadamard and gather, sampled, exact,
#: data movement.
OPS = Registry(
    constant.OP,
    call.OP,
    tree_encode.OP,
    nearest_encode.OP,
    lut_accumulate.OP,
    lut_dequantize.OP,
    quantize.OP,
    hadamard.OP,
    block_diagonal_matmul.OP,
    sign_hash.OP,
    weighted_gather.OP,
    column_row_scores.OP,
    channel_scores.OP,
    column_row_sample.OP,
    sampled_matmul.OP,
    sampled_conv2d.OP,
    linear.OP,
    relu.OP,
    add.OP,
    affine.OP,
    batch_norm.OP,
    reshape.OP,
    im2col.OP,
    rows_to_nchw.OP,
    repack.OP,
)

__all__ = ["OPS"]
