"""Kernels, forward and backward, against plain formulas in float64, in all dtypes."""

from __future__ import annotations

import itertools

import pytest
import torch

from lutcc.schedules.triton import bh_stage as stage
from lutcc.schedules.triton.block_diagonal_matmul import (
    block_diagonal_matmul,
    block_diagonal_matmul_weight_grad,
)
from lutcc.schedules.triton.hadamard import hadamard
from lutcc.schedules.triton.sign_hash import sign_hash, sign_hash_backward
from lutcc.schedules.triton.weighted_gather import weighted_gather
from lutcc.schedules.triton.weighted_gather_backward import weighted_gather_backward
from tests.triton import references
from tests.triton.references import relative_error

pytestmark = pytest.mark.one_in(2)

# Relative errors in the Euclidean norm: sums are in float32, results rounded to the dtype.
TOLERANCES = {
    torch.float64: 1e-12,
    torch.float32: 2e-6,
    torch.float16: 1e-3,
    torch.bfloat16: 6e-3,
}
DTYPES = list(TOLERANCES)


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def gradients(function, inputs, grad):
    """Return the value and the gradients in float64 of the rounded inputs."""
    wide = [x.double().requires_grad_() for x in inputs]
    y = function(*wide)
    return [y.detach(), *torch.autograd.grad(y, wide, grad.double())]


def check(got, wanted, dtype, slack=1.0):
    assert len(got) == len(wanted)
    for one, other in zip(got, wanted, strict=True):
        assert one.shape == other.shape
        assert one.dtype is dtype
        assert relative_error(one, other) <= slack * TOLERANCES[dtype]


HADAMARD_SHAPES = [(3, 1), (5, 2), (7, 6), (9, 100), (2, 3, 128), (5, 256), (9, 500), (3, 768)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_hadamard(dtype):
    for shape in HADAMARD_SHAPES:
        x = random(*shape, dtype=dtype)
        check([hadamard(x, 0.125)], [references.hadamard(x.double(), 0.125)], dtype)


@pytest.mark.parametrize(
    ("columns", "dtype"),
    [(2048, torch.float32), (4000, torch.float64), (8192, torch.bfloat16), (8200, torch.float64)],
)
def test_hadamard_of_long_rows(columns, dtype):
    x = random(2, columns, dtype=dtype)
    n = 1 << (columns - 1).bit_length()
    y = hadamard(x, n**-0.5)
    # H H = n I, and one row of H after the other by the definition
    again = hadamard(y, n**-0.5)[:, :columns]
    rows = torch.tensor([0, 1, 2, 4096 % n, n // 2 + 3, n - 1])
    signs = torch.tensor(
        [[1.0 - 2.0 * ((a & b).bit_count() % 2) for b in range(columns)] for a in rows.tolist()],
        dtype=torch.float64,
    )
    check([y[:, rows], again], [x.double() @ signs.T * n**-0.5, x.double()], dtype, slack=2)


def test_hadamard_of_the_longest_rows():
    x = torch.zeros(1, 32768, dtype=torch.float64)
    x[0, 20000] = 1.0
    y = hadamard(x)
    assert y[0, 12345] == (-1) ** (20000 & 12345).bit_count()
    assert torch.equal(y.abs(), torch.ones_like(y))


# (rows, G, P, Q, columns)
BLOCK_SHAPES = [
    (19, 4, 8, 8, None),
    (17, 3, 12, 20, 41),
    (3, 1, 100, 130, 129),
    (4, 5, 48, 24, None),
    (1, 7, 1, 3, 2),
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_block_diagonal_matmul_and_its_gradients(dtype):
    for rows, count, p, q, columns in BLOCK_SHAPES:
        x, blocks = random(rows, count * p, dtype=dtype), random(count, p, q, dtype=dtype, seed=1)
        kept = count * q if columns is None else columns
        grad = random(rows, kept, dtype=dtype, seed=2)
        whole = torch.nn.functional.pad(grad, (0, count * q - kept))
        got = [
            block_diagonal_matmul(x, blocks, columns),
            block_diagonal_matmul(whole, blocks.transpose(1, 2)),
            block_diagonal_matmul_weight_grad(x, grad, count, q),
        ]
        wanted = gradients(
            lambda a, b, c=columns: references.block_diagonal_matmul(a, b, c), [x, blocks], grad
        )
        check(got, wanted, dtype)


def test_weight_gradient_of_many_rows_is_split():
    x, grad = random(300, 48, dtype=torch.float64), random(300, 32, dtype=torch.float64, seed=1)
    got = block_diagonal_matmul_weight_grad(x, grad, 2, 16)
    check([got], [torch.einsum("rgp,rgq->gpq", x.view(-1, 2, 24), grad.view(-1, 2, 16))], x.dtype)


def test_float32_rows_are_rounded_to_bfloat16_blocks():
    x, blocks = random(5, 32, dtype=torch.float32), random(2, 16, 16, dtype=torch.bfloat16)
    y = block_diagonal_matmul(x, blocks)
    rounded = x.to(torch.bfloat16).double()
    check([y], [references.block_diagonal_matmul(rounded, blocks.double())], torch.float32)


@pytest.mark.parametrize(
    ("shape", "columns", "dtype"),
    [
        *(((2, 16, 32), 61, dtype) for dtype in DTYPES),
        ((16, 16, 16), None, torch.float64),
        ((8, 8, 24), None, torch.float64),  # not fused
        ((8, 8, 24), 187, torch.bfloat16),
    ],
)
def test_bh_stage_and_its_gradients(shape, columns, dtype):
    """On a GPU, float32 and float64 are not fused."""
    count, p, q = shape
    n = count * p
    x, blocks = random(17, n - 3, dtype=dtype), random(count, p, q, dtype=dtype, seed=1)
    grad = random(17, count * q if columns is None else columns, dtype=dtype, seed=2)
    y, mixed = stage.bh_stage(x, blocks, n**-0.5, columns)
    got = [y, *stage.bh_stage_backward(grad, mixed, blocks, n**-0.5, n - 3)]
    wanted = gradients(
        lambda a, b: references.block_diagonal_matmul(references.hadamard(a, n**-0.5), b, columns),
        [x, blocks],
        grad,
    )
    check(got, wanted, dtype, slack=2)


# (rows, H, T, values of J)
HASH_SHAPES = [
    (5, 3, 1, (1, 2)),
    (3, 2, 5, (2, 6)),
    (70, 1, 8, (1, 4)),
    (2, 3, 9, (1,)),
    (3, 1, 16, (17,)),
]


@pytest.mark.parametrize("variant", ["gelu", "softmax"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sign_hash_and_its_gradient(dtype, variant):
    for rows, tables, length, neighbor_counts in HASH_SHAPES:
        for neighbors in neighbor_counts:
            z = random(rows, tables * length, dtype=dtype)
            codes, scores = sign_hash(z, length, variant, neighbors)
            wanted_codes, _ = references.sign_hash(z, length, variant, neighbors)
            assert torch.equal(codes, wanted_codes)
            grad = random(rows, tables * neighbors, dtype=dtype, seed=1)
            dz = sign_hash_backward(z, grad, length, variant, neighbors)
            wanted = gradients(
                lambda a, t=length, j=neighbors: references.sign_hash(a, t, variant, j)[1],
                [z],
                grad,
            )
            check([scores, dz], wanted, dtype)


def test_sign_hash_of_special_numbers():
    nan, inf = float("nan"), float("inf")
    z = torch.tensor([[0.0, -0.0, 1.0], [nan, 0.5, -0.5], [inf, 2.0, 2.0], [0.25, nan, nan]])
    codes, scores = sign_hash(z, 3, "softmax", 4)
    # 0 and NaN set no bit; of equal magnitudes the lowest position is flipped first; NaN comes last
    assert codes.tolist() == [[4, 5, 6, 0], [2, 0, 6, 3], [7, 5, 3, 6], [1, 0, 3, 5]]
    assert scores[1].isnan().all()
    assert scores[2, 3] == 0
    dz = sign_hash_backward(z, torch.ones(4, 4), 3, "softmax", 4)
    assert dz[0, :2].tolist() == [0.0, 0.0]
    assert dz[1].isnan().all()


def test_constant_hash():
    z = random(4, 12, dtype=torch.bfloat16)
    codes, scores = sign_hash(z, 6, "constant")
    assert torch.equal(codes, references.sign_hash(z, 6)[0])
    assert torch.equal(scores, torch.ones(4, 2, dtype=torch.bfloat16))
    dz = sign_hash_backward(z, scores, 6, "constant", 1)
    assert torch.equal(dz, torch.zeros_like(z))


# (rows, H, K, J, M)
GATHER_SHAPES = [(9, 3, 2, 1, 20), (17, 2, 4, 2, 70), (1, 3, 2, 2, 1)]


def gather_inputs(rows, tables, entries, neighbors, outputs, dtype):
    generator = torch.Generator().manual_seed(rows)
    shape = (rows, tables * neighbors)
    codes = torch.randint(0, entries, shape, generator=generator, dtype=torch.int32)
    return (
        codes,
        random(*shape, dtype=dtype, seed=1),
        random(tables, entries, outputs, dtype=dtype, seed=2),
        random(rows, outputs, dtype=dtype, seed=3),
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_weighted_gather_and_its_gradients(dtype):
    for shape in GATHER_SHAPES:
        codes, scores, tables, grad = gather_inputs(*shape, dtype)
        wanted = gradients(
            lambda s, t, c=codes: references.weighted_gather(c, s, t), [scores, tables], grad
        )
        y = weighted_gather(codes, scores, tables)
        for deterministic in (True, False):
            found = weighted_gather_backward(grad, codes, scores, tables, deterministic)
            check([y, *found], wanted, dtype)


def test_table_gradients_are_the_same_every_time():
    codes, scores, tables, grad = gather_inputs(40, 2, 4, 1, 24, torch.float32)
    first, second = (weighted_gather_backward(grad, codes, scores, tables)[1] for _ in range(2))
    assert torch.equal(first, second)


def test_narrow_tables_beside_float32_scores():
    codes, scores, tables, grad = gather_inputs(9, 3, 8, 2, 40, torch.float32)
    for narrow in (torch.bfloat16, torch.float16):
        rounded = tables.to(narrow)
        wanted = gradients(
            lambda s, t: references.weighted_gather(codes, s, t), [scores, rounded], grad
        )
        check([weighted_gather(codes, scores, rounded)], wanted[:1], torch.float32)
        dscores, dtables = weighted_gather_backward(grad, codes, scores, rounded)
        check([dscores], wanted[1:2], torch.float32)
        check([dtables], wanted[2:], narrow)
    y = weighted_gather(codes, scores, rounded, "bfloat16")
    rounded_scores = scores.to(torch.bfloat16).double()
    check([y], [references.weighted_gather(codes, rounded_scores, rounded.double())], torch.float32)


def test_int8_tables_give_the_bits_of_the_definition():
    from lutcc.ir.arithmetic import quantize_rows

    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (8, 6), generator=generator, dtype=torch.int32)
    tables = torch.randint(-127, 128, (3, 16, 50), generator=generator, dtype=torch.int8)
    scores = random(8, 6, dtype=torch.float32)
    scores[1] = 0
    scores[2] = 1e-38
    scores[3, 2] = float("inf")
    scores[4, 1] = float("nan")
    weights, unit = quantize_rows(scores.numpy())
    rows = tables.int()[torch.arange(6) // 2, codes.long()]
    total = (torch.from_numpy(weights)[..., None] * rows).sum(1, dtype=torch.int32)
    wanted = total.float() * torch.from_numpy(unit)[:, None]
    y = weighted_gather(codes, scores, tables)
    assert torch.equal(y.isnan(), wanted.isnan())
    assert torch.equal(y.nan_to_num(), wanted.nan_to_num())
    dscores, dtables = weighted_gather_backward(y.nan_to_num(), codes, scores, tables)
    assert dscores.shape == scores.shape
    assert dtables.numel() == 0


def test_codes_outside_their_table_are_not_followed():
    codes, scores, tables, grad = gather_inputs(5, 2, 4, 1, 20, torch.float32)
    codes[1, 0], codes[3, 1] = 4, -1
    bad = torch.tensor([False, True, False, True, False])
    assert torch.equal(weighted_gather(codes, scores, tables).isnan().all(1), bad)
    assert torch.equal(weighted_gather(codes, scores, tables.to(torch.int8)).isnan().all(1), bad)
    valid = codes.clamp(0, 3)
    weights = scores.clone()
    weights[1, 0] = weights[3, 1] = 0
    _, _, wanted = gradients(
        lambda s, t: references.weighted_gather(valid, s, t), [weights, tables], grad
    )
    for deterministic in (True, False):
        dscores, dtables = weighted_gather_backward(grad, codes, scores, tables, deterministic)
        assert dscores.isnan().nonzero().tolist() == [[1, 0], [3, 1]]
        check([dtables], [wanted], torch.float32)


def test_strides_of_any_kind():
    x = random(3, 40, 2, 7, dtype=torch.float64)
    for view in (x[..., 0, :], x[0, :, 0].t(), x[:1, :1, 0].expand(4, 5, 7)):
        check([hadamard(view, 0.5)], [references.hadamard(view, 0.5)], torch.float64)
    z = x[:, ::3, 1]
    check([sign_hash(z, 7)[1]], [references.sign_hash(z, 7)[1]], torch.float64)
    blocks = random(8, 3, 6, dtype=torch.float64).permute(1, 2, 0)
    rows = random(5, 36, dtype=torch.float64)[:, ::2]
    wanted = references.block_diagonal_matmul(rows, blocks)
    check([block_diagonal_matmul(rows, blocks)], [wanted], torch.float64)
    grad = torch.ones(1, dtype=torch.float64).expand(5, 24)
    got = block_diagonal_matmul_weight_grad(rows, grad, 3, 8)
    wanted = torch.einsum("rgp,rgq->gpq", rows.reshape(5, 3, 6), grad.reshape(5, 3, 8))
    check([got], [wanted], torch.float64)
    codes, scores, tables, grad = gather_inputs(4, 2, 4, 2, 6, torch.float64)
    c, s, t, g = (v.repeat_interleave(2, -1)[..., ::2] for v in (codes, scores, tables, grad))
    check([weighted_gather(c, s, t)], [weighted_gather(codes, scores, tables)], torch.float64)
    wanted = weighted_gather_backward(grad, codes, scores, tables)
    check(weighted_gather_backward(g, c, s, t), wanted, torch.float64)


def test_no_rows():
    empty = torch.empty(0, 3, 8)
    assert hadamard(empty).shape == (0, 3, 8)
    assert block_diagonal_matmul(empty, torch.ones(2, 4, 5)).shape == (0, 3, 10)
    grad = block_diagonal_matmul_weight_grad(empty, torch.empty(0, 3, 10), 2, 5)
    assert torch.equal(grad, torch.zeros(2, 4, 5))
    codes, scores = sign_hash(empty, 4)
    assert codes.shape == scores.shape == (0, 3, 2)
    assert sign_hash_backward(empty, scores, 4, "gelu", 1).shape == empty.shape
    tables = torch.ones(2, 16, 5)
    y = weighted_gather(codes, scores, tables)
    assert y.shape == (0, 3, 5)
    dscores, dtables = weighted_gather_backward(y, codes, scores, tables)
    assert dscores.shape == scores.shape
    assert torch.equal(dtables, torch.zeros_like(tables))


def test_layer_and_its_gradients():
    """Projection, hash and gather tied together as autograd does it."""
    dtype, length, tables_count = torch.float64, 4, 6
    x = random(11, 30, dtype=dtype)
    blocks = [random(2, 16, 16, dtype=dtype, seed=s) / 4 for s in (1, 2)]
    tables = random(tables_count, 16, 12, dtype=dtype, seed=3)
    grad = random(11, 12, dtype=dtype, seed=4)
    width, scale = tables_count * length, 32**-0.5
    h, mixed1 = stage.bh_stage(x, blocks[0], scale)
    z, mixed2 = stage.bh_stage(h, blocks[1], scale, width)
    codes, scores = sign_hash(z, length)
    y = weighted_gather(codes, scores, tables)
    dscores, dtables = weighted_gather_backward(grad, codes, scores, tables)
    dz = sign_hash_backward(z, dscores, length, "gelu", 1)
    dh, dblocks2 = stage.bh_stage_backward(dz, mixed2, blocks[1], scale, 32)
    dx, dblocks1 = stage.bh_stage_backward(dh, mixed1, blocks[0], scale, 30)
    wanted = gradients(
        lambda a, b1, b2, t: references.lookup_ffn(a, [b1, b2], t, length),
        [x, *blocks, tables],
        grad,
    )
    check([y, dx, dblocks1, dblocks2, dtables], wanted, dtype)


def test_errors_name_the_fix():
    from lutcc.errors import InputError

    with pytest.raises(InputError, match="40000 columns, but at most 32768"):
        hadamard(torch.zeros(1, 40000))
    with pytest.raises(InputError, match=r"not torch\.int32"):
        hadamard(torch.zeros(1, 4, dtype=torch.int32))


def test_every_dtype_and_size_has_a_config_that_covers_it():
    from lutcc.schedules.triton import block_diagonal_matmul as product
    from lutcc.schedules.triton.target import Target

    for target, dtype in itertools.product(
        (Target("sm_80", "cuda"), Target("gfx942", "hip")), DTYPES
    ):
        for p, q, gradient in itertools.product(
            (1, 8, 12, 64, 100, 256), (3, 16, 130, 256), (False, True)
        ):
            config = product.choose_config((9, p, q), dtype, target, gradient=gradient)
            assert config.height * config.height_tiles >= config.groups * p
            assert config.width * config.width_tiles >= config.groups * q
            assert config.groups == 1 or config.height_tiles == config.width_tiles == 1
