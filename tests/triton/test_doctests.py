"""Examples in docstrings; those that need a GPU are skipped in them."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = [
    "lutcc.bench.gpu_codebook",
    "lutcc.bench.gpu_models",
    "lutcc.bench.gpu_sampled",
    "lutcc.bench.gpu_timing",
    "lutcc.bench.gpu_trees",
    "lutcc.ops.bh",
    *(
        f"lutcc.schedules.triton.{name}"
        for name in (
            "bh_stage",
            "block_diagonal_matmul",
            "codebook_matmul",
            "codebook_sums",
            "codebook_tables",
            "hadamard",
            "rows",
            "sampled_columns",
            "sign_hash",
            "soft_tree_backward",
            "target",
            "tree_encode",
            "weighted_gather",
            "weighted_gather_backward",
        )
    ),
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted
    assert not result.failed
