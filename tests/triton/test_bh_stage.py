"""The fused stage as a torch operator, on the CPU: the same as the two operators it joins."""

from __future__ import annotations

import pytest
import torch

import lutcc.ops
from lutcc.errors import InputError
from lutcc.ops.bh import bh_stage


def two_operators(x, blocks, scale, columns):
    return lutcc.ops.block_diagonal_matmul(lutcc.ops.hadamard(x, scale), blocks, columns)


@pytest.mark.parametrize("columns", [None, 5])
def test_equals_the_two_operators(columns):
    results = []
    for function in (bh_stage, two_operators):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2, 3, 6, dtype=torch.float64, generator=generator, requires_grad=True)
        blocks = torch.randn(2, 4, 3, dtype=torch.float64, generator=generator, requires_grad=True)
        y = function(x, blocks, 0.5, columns)
        results.append([y.detach(), *torch.autograd.grad(y.square().sum(), (x, blocks))])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_opcheck():
    x, blocks = torch.randn(3, 7, requires_grad=True), torch.randn(2, 4, 6, requires_grad=True)
    for args in ((x, blocks, 0.5), (x, blocks, 0.5, 11), (x.detach(), blocks, 1.0, 3)):
        torch.library.opcheck(torch.ops.lutcc.bh_stage.default, args)
    grad, mixed = torch.randn(3, 11), torch.randn(3, 8)
    torch.library.opcheck(
        torch.ops.lutcc.bh_stage_backward.default, (grad, mixed, blocks.detach(), 0.5, 7)
    )


def test_autocast():
    x, blocks = torch.randn(3, 8), torch.randn(2, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert bh_stage(x, blocks, 1.0).dtype is torch.bfloat16


def test_wrong_shapes():
    with pytest.raises(InputError, match=r"G \* P = 2 \* 4 = 8 must be"):
        bh_stage(torch.ones(3, 9), torch.ones(2, 4, 4), 1.0)
    with pytest.raises(InputError, match=r"columns=9 is not in 1\.\.G"):
        bh_stage(torch.ones(3, 8), torch.ones(2, 4, 4), 1.0, 9)
