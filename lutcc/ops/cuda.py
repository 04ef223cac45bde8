"""What :mod:`lutcc.ops` calls for tensors on a GPU: the Triton kernels, under the operators' names.

Imported at the first such call, and only then: this module imports Triton, and never TVM.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

import lutcc.schedules.triton.bh_stage as _bh_stage
import lutcc.schedules.triton.block_diagonal_matmul as _block_diagonal_matmul
import lutcc.schedules.triton.codebook_dequantize as _codebook_dequantize
import lutcc.schedules.triton.codebook_matmul as _codebook_matmul
import lutcc.schedules.triton.codebook_matmul_backward as _codebook_matmul_backward
import lutcc.schedules.triton.codebook_table_grad as _codebook_table_grad
import lutcc.schedules.triton.column_row_sample as _column_row_sample
import lutcc.schedules.triton.column_row_scores as _column_row_scores
import lutcc.schedules.triton.hadamard as _hadamard
import lutcc.schedules.triton.lut_accumulate as _lut_accumulate
import lutcc.schedules.triton.nearest_encode as _nearest_encode
import lutcc.schedules.triton.sampled_matmul as _sampled_matmul
import lutcc.schedules.triton.sampled_matmul_backward as _sampled_matmul_backward
import lutcc.schedules.triton.sign_hash as _sign_hash
import lutcc.schedules.triton.soft_tree_backward as _soft_tree_backward
import lutcc.schedules.triton.sparse_add as _sparse_add
import lutcc.schedules.triton.tree_encode as _tree_encode
import lutcc.schedules.triton.weighted_gather as _weighted_gather
import lutcc.schedules.triton.weighted_gather_backward as _weighted_gather_backward

Launcher = TypeVar("Launcher", bound=Callable[..., Any])


def _on_device(launcher: Launcher) -> Launcher:
    """Make the first argument's device current: Triton launches on the current one."""

    @functools.wraps(launcher)
    def run(first: torch.Tensor, *rest: Any) -> Any:
        with torch.cuda.device(first.device):
            return launcher(first, *rest)

    return run  # type: ignore[return-value]


hadamard = _on_device(_hadamard.hadamard)
block_diagonal_matmul = _on_device(_block_diagonal_matmul.block_diagonal_matmul)
block_diagonal_matmul_weight_grad = _on_device(
    _block_diagonal_matmul.block_diagonal_matmul_weight_grad
)
bh_stage = _on_device(_bh_stage.bh_stage)
bh_stage_backward = _on_device(_bh_stage.bh_stage_backward)
sign_hash = _on_device(_sign_hash.sign_hash)
sign_hash_backward = _on_device(_sign_hash.sign_hash_backward)
weighted_gather = _on_device(_weighted_gather.weighted_gather)
weighted_gather_backward = _on_device(_weighted_gather_backward.weighted_gather_backward)
column_row_scores = _on_device(_column_row_scores.column_row_scores)
column_row_sample = _on_device(_column_row_sample.column_row_sample)
sampled_matmul = _on_device(_sampled_matmul.sampled_matmul)
sampled_matmul_input_grad = _on_device(_sampled_matmul_backward.sampled_matmul_input_grad)
sampled_matmul_weight_grad = _on_device(_sampled_matmul_backward.sampled_matmul_weight_grad)
codebook_matmul = _on_device(_codebook_matmul.codebook_matmul)
codebook_matmul_backward = _on_device(_codebook_matmul_backward.codebook_matmul_backward)
codebook_dequantize = _on_device(_codebook_dequantize.codebook_dequantize)
codebook_dequantize_backward = _on_device(_codebook_table_grad.codebook_dequantize_backward)
sparse_add = _on_device(_sparse_add.sparse_add)
sparse_add_backward = _on_device(_sparse_add.sparse_add_backward)
tree_encode = _on_device(_tree_encode.tree_encode)
nearest_encode = _on_device(_nearest_encode.nearest_encode)
lut_accumulate = _on_device(_lut_accumulate.lut_accumulate)
lut_dequantize = _on_device(_lut_accumulate.lut_dequantize)
soft_tree_backward = _on_device(_soft_tree_backward.soft_tree_backward)
