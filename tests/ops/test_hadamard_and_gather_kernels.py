"""The compiled kernels of the same operators against torch: tolerance, and exact where due."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from lutcc import ops
from lutcc.ops import kernels

_op = torch.ops.lutcc

pytestmark = pytest.mark.skipif(kernels.cpu.best_isa() is None, reason="the CPU lacks AVX2")


@pytest.fixture(autouse=True)
def _mode() -> Iterator[None]:
    before = ops.get_compilation()
    yield
    ops.set_compilation(before)


def both(function: Callable[[], Any]) -> tuple[Any, Any]:
    """Return the results of torch's way and of the kernel, which must have run."""
    ops.set_compilation("never")
    want = function()
    ops.set_compilation("always")
    before = ops.kernel_statistics()["kernel_calls"]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        got = function()
    assert ops.kernel_statistics()["kernel_calls"] == before + 1
    return want, got


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


X = randn(3, 7, 48)
BLOCKS = randn(6, 8, 8, seed=1)
CODES = torch.randint(0, 16, (3, 7, 10), generator=torch.Generator().manual_seed(2)).int()
SCORES = randn(3, 7, 10, seed=3)
TABLES = randn(5, 16, 40, seed=4)
INT8 = torch.randint(-128, 128, (5, 16, 40), generator=torch.Generator().manual_seed(5)).char()


@pytest.mark.parametrize("x", [X, X[..., :33], X[:0], X[0, :1]], ids=lambda x: str(tuple(x.shape)))
def test_hadamard(x: torch.Tensor) -> None:
    want, got = both(lambda: ops.hadamard(x, 0.125))
    assert got.shape == want.shape
    assert torch.allclose(got, want, atol=1e-5)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("columns", [None, 21])
def test_block_diagonal_matmul(dtype: torch.dtype, columns: int | None) -> None:
    want, got = both(lambda: ops.block_diagonal_matmul(X, BLOCKS.to(dtype), columns))
    assert torch.allclose(got, want, atol=1e-4)


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("variant", "neighbors"), [("gelu", 1), ("gelu", 3), ("softmax", 2), ("constant", 1)]
)
def test_sign_hash(variant: str, neighbors: int) -> None:
    want, got = both(lambda: ops.sign_hash(X, 4, variant, neighbors))
    assert torch.equal(got[0], want[0])
    assert torch.allclose(got[1], want[1], rtol=1e-4, atol=1e-5)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("score_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_weighted_gather(dtype: torch.dtype, score_dtype: str) -> None:
    tables = TABLES.to(dtype)
    want, got = both(lambda: ops.weighted_gather(CODES, SCORES, tables, score_dtype))
    assert torch.allclose(got, want, atol=1e-4)


def test_integer_gather_has_the_same_bits() -> None:
    scores = SCORES.clone()
    scores[0, 0], scores[0, 1, 0], scores[0, 2, 0] = 0.0, float("nan"), float("inf")
    want, got = both(lambda: ops.weighted_gather(CODES, scores, INT8))
    assert torch.equal(got.view(torch.int32)[1:], want.view(torch.int32)[1:])
    assert torch.allclose(got[0], want[0], rtol=0, atol=0, equal_nan=True)


def test_gather_of_columns_that_are_not_contiguous() -> None:
    codes, scores = CODES.mT.contiguous().mT, SCORES.mT.contiguous().mT
    want, got = both(lambda: ops.weighted_gather(codes, scores, TABLES))
    assert torch.allclose(got, want, atol=1e-4)
