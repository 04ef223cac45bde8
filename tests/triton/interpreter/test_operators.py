"""torch.ops.lutcc over the Triton launchers: arguments, autograd and results fit each other.

The launchers stand in for the operators' CPU implementations, as if this were a GPU.
"""

from __future__ import annotations

import warnings

import pytest
import torch

import lutcc.ops
from lutcc.errors import InputError
from lutcc.ir.codebooks import pack_indices
from lutcc.ops import cuda
from tests.triton import references
from tests.triton.references import relative_error

NAMES = (
    "bh_stage",
    "bh_stage_backward",
    "block_diagonal_matmul",
    "block_diagonal_matmul_weight_grad",
    "codebook_dequantize",
    "codebook_dequantize_backward",
    "codebook_matmul",
    "codebook_matmul_backward",
    "column_row_sample",
    "column_row_scores",
    "hadamard",
    "sampled_matmul",
    "sampled_matmul_input_grad",
    "sampled_matmul_weight_grad",
    "sign_hash",
    "sign_hash_backward",
    "sparse_add",
    "sparse_add_backward",
    "weighted_gather",
    "weighted_gather_backward",
)


@pytest.fixture(autouse=True)
def _launchers():
    library = torch.library.Library("lutcc", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an implementation is replaced, as it should be
        for name in NAMES:
            launcher = getattr(cuda, name).__wrapped__  # without choosing a GPU
            library.impl(name, launcher, "CPU", allow_override=True)
    yield
    library._destroy()


def check(function, reference, *inputs):
    leaves = [[x.clone().requires_grad_() for x in inputs] for _ in range(2)]
    values = [f(*x) for f, x in zip((function, reference), leaves, strict=True)]
    grad = torch.randn(values[0].shape, dtype=torch.float64)
    found, wanted = (
        [y, *torch.autograd.grad(y, x, grad)] for y, x in zip(values, leaves, strict=True)
    )
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        assert relative_error(one.detach(), other.detach()) <= 1e-12


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


def test_every_operator_for_a_gpu_has_its_launcher():
    for name in NAMES:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"lutcc::{name}", "CUDA")


def test_operators_and_their_gradients():
    torch.manual_seed(0)
    check(lutcc.ops.hadamard, references.hadamard, random(2, 3, 6))
    check(
        lambda x, b: lutcc.ops.block_diagonal_matmul(x, b, 20),
        lambda x, b: references.block_diagonal_matmul(x, b, 20),
        random(5, 12),
        random(3, 4, 8),
    )
    for columns in (None, 30):
        check(
            lambda x, b, c=columns: lutcc.ops.bh_stage(x, b, 0.25, c),
            lambda x, b, c=columns: references.block_diagonal_matmul(
                references.hadamard(x, 0.25), b, c
            ),
            random(5, 30),
            random(2, 16, 16),
        )
    for variant, neighbors in (("gelu", 1), ("softmax", 3)):
        check(
            lambda z, v=variant, j=neighbors: lutcc.ops.sign_hash(z, 4, v, j)[1],
            lambda z, v=variant, j=neighbors: references.sign_hash(z, 4, v, j)[1],
            random(5, 8),
        )
    codes = torch.randint(0, 4, (2, 3, 6), dtype=torch.int32)
    for deterministic in (True, False):
        lutcc.ops.set_deterministic_gradients(deterministic)
        check(
            lambda s, t: lutcc.ops.weighted_gather(codes, s, t),
            lambda s, t: references.weighted_gather(codes, s, t),
            random(2, 3, 6),
            random(3, 4, 10),
        )
    lutcc.ops.set_deterministic_gradients(True)


def test_sampled_products_and_their_gradients():
    a, b = random(6, 20), random(5, 20).t()
    scores = lutcc.ops.column_row_scores(a, b, 4)
    sample = lutcc.ops.column_row_sample(scores, 3, "bernoulli", seed=5)
    counts = torch.zeros(5, dtype=torch.float64)
    taken = sample[1] != 0
    counts[sample[0][taken].long()] = sample[1][taken].double()
    counts = counts.repeat_interleave(4)
    check(
        lambda a, b, bias: torch.ops.lutcc.sampled_matmul(a, b, bias, *sample, 4),
        lambda a, b, bias: (a * counts) @ b + bias,
        a,
        b,
        random(5),
    )


def test_products_with_codebooks_and_their_gradients():
    numbers = torch.randint(0, 4, (6, 5))
    indices = torch.from_numpy(pack_indices(numbers.numpy(), 2))
    order = torch.randperm(6).to(torch.int32)
    group = torch.arange(6) // 3

    def weights(codebooks, scales):
        return codebooks[group[:, None], numbers] * scales[:, None]

    check(
        lambda x, c, s, b: lutcc.ops.codebook_matmul(x, indices, c, s, order, b, 2),
        lambda x, c, s, b: (x @ weights(c, s).t() + b)[..., order.long().argsort()],
        random(2, 3, 5),
        random(2, 4),
        random(6),
        random(6),
    )
    rows = torch.tensor([[3, 0], [3, 5]])
    check(
        lambda c, s: lutcc.ops.codebook_dequantize(rows, indices, c, s, 2, 5),
        lambda c, s: weights(c, s)[rows],
        random(2, 4),
        random(6),
    )
    starts, columns = torch.tensor([0, 2, 2, 3]).int(), torch.tensor([1, 4, 0]).int()
    where = (torch.tensor([0, 0, 2]), columns.long())
    zeros = torch.zeros(3, 5, dtype=torch.float64)
    check(
        lambda base, x, v: lutcc.ops.sparse_add(base, x, starts, columns, v),
        lambda base, x, v: base + x @ zeros.index_put(where, v).t(),
        random(2, 4, 3),
        random(2, 4, 5),
        random(3),
    )


def test_defaults_and_options_reach_the_launchers():
    with pytest.raises(InputError, match="at most 32768"):  # what no other implementation says
        lutcc.ops.hadamard(torch.zeros(1, 40000))
    codes, scores = lutcc.ops.sign_hash(random(3, 8), 4, "constant")
    assert torch.equal(scores, torch.ones_like(scores))
    tables = torch.randint(-9, 9, (2, 16, 5), dtype=torch.int8)
    y = lutcc.ops.weighted_gather(codes, scores.float(), tables)
    assert y.dtype is torch.float32
    tables = random(2, 16, 5).to(torch.bfloat16)
    lutcc.ops.weighted_gather(codes, scores.float(), tables, "bfloat16")
