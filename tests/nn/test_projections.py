"""Hadamard, BH{m} and figure 4's other projections against their definitions, and their FLOPs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lutcc.errors import InputError
from lutcc.nn import (
    BHProjection,
    DenseProjection,
    DiagonalProjection,
    Hadamard,
    ShuffleProjection,
    make_projection,
)

NAMES = ["dense", "bh1", "bh2", "bh4", "bh8", "shuffle", "shuffle2", "acdc3", "hadamard3"]


def sylvester(n: int) -> torch.Tensor:
    """H[i, j] = (-1)**popcount(i & j), float64."""
    return torch.tensor(
        [[(-1.0) ** (i & j).bit_count() for j in range(n)] for i in range(n)]
    ).double()


def cosines(n: int) -> torch.Tensor:
    """The orthonormal DCT-II for row vectors, entry by entry."""
    rows = [
        [
            math.sqrt((1 if k == 0 else 2) / n) * math.cos(math.pi * (i + 0.5) * k / n)
            for k in range(n)
        ]
        for i in range(n)
    ]
    return torch.tensor(rows, dtype=torch.float64)


def padded(x: torch.Tensor, n: int) -> torch.Tensor:
    return torch.cat([x, x.new_zeros(*x.shape[:-1], n - x.shape[-1])], -1)


@pytest.mark.parametrize("columns", [1, 2, 3, 13, 64])
def test_hadamard_is_the_padded_sylvester_matrix(columns: int) -> None:
    x = torch.randn(2, 3, columns)
    n = 1 << (columns - 1).bit_length()
    exact = padded(x.double(), n) @ sylvester(n)
    torch.testing.assert_close(Hadamard()(x), (exact * n**-0.5).float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(Hadamard(2.5)(x), (exact * 2.5).float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(Hadamard()(Hadamard()(x)), padded(x, n), rtol=1e-5, atol=1e-5)


def test_hadamard_refuses_other_scales_and_scalars() -> None:
    for scale in ("unitary", math.nan, True, None):
        with pytest.raises(InputError, match="neither 'orthonormal' nor a number"):
            Hadamard(scale)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="shape"):
        Hadamard()(torch.tensor(1.0))
    assert "scale='orthonormal'" in repr(Hadamard())


def block_diagonal(blocks: torch.Tensor) -> torch.Tensor:
    return torch.block_diag(*blocks.detach().double())


@pytest.mark.parametrize(
    ("d_in", "d_out", "m", "block_size"),
    [(8, 8, 4, 4), (16, 64, 2, 8), (13, 7, 3, 4), (5, 40, 1, 16), (1, 3, 2, 4), (64, 16, 4, 64)],
)
def test_bh_is_its_product_of_matrices(d_in: int, d_out: int, m: int, block_size: int) -> None:
    torch.manual_seed(0)
    layer = BHProjection(d_in, d_out, m, block_size)
    p = 1 << (d_in - 1).bit_length()
    n = max(p, 1 << (d_out - 1).bit_length())
    size = min(block_size, p)
    assert [tuple(b.shape) for b in layer.blocks] == [
        (p // size, size, size * n // p),
        *[(n // size, size, size)] * (m - 1),
    ]
    x = torch.randn(3, 2, d_in)
    exact = padded(x.double(), p)
    for blocks in layer.blocks:
        width = exact.shape[-1]
        exact = exact @ (sylvester(width) * width**-0.5) @ block_diagonal(blocks)
    torch.testing.assert_close(layer(x), exact[..., :d_out].float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(x @ layer.matrix(), layer(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("transform", ["cosine", "hadamard"])
def test_diagonal_projections_are_their_product_of_matrices(transform: str) -> None:
    layer = DiagonalProjection(13, 10, 3, transform)
    c = cosines(16) if transform == "cosine" else sylvester(16) / 4
    x = torch.randn(5, 13)
    exact = padded(x.double(), 16)
    for a, d in layer.diagonals.detach().double():
        exact = exact * a @ c * d @ c.t()
    torch.testing.assert_close(layer(x), exact[:, :10].float(), rtol=1e-4, atol=1e-4)


def test_shuffle_sends_each_block_to_every_stretch() -> None:
    layer = ShuffleProjection(8, 8, 1, 2)
    x = torch.randn(3, 8)
    y = x @ block_diagonal(layer.blocks[0]).float()
    for g in range(4):
        for i in range(2):
            torch.testing.assert_close(layer(x)[:, i * 4 + g], y[:, g * 2 + i])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("d_in", "d_out"), [(64, 64), (48, 200), (96, 31)])
def test_variance_is_kept_and_every_parameter_learns(name: str, d_in: int, d_out: int) -> None:
    torch.manual_seed(0)
    layer = make_projection(name, d_in, d_out, block_size=16)
    x = torch.randn(4000, d_in, requires_grad=True)
    y = layer(x)
    assert y.shape == (4000, d_out)
    assert 0.8 < float(y.detach().var()) < 1.25
    y.square().sum().backward()
    assert x.grad is not None
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in layer.parameters())
    assert layer.parameter_count == sum(p.numel() for p in layer.parameters())
    for shape in [(d_in,), (1, d_in), (2, 1, 3, d_in), (0, d_in)]:
        assert layer(torch.randn(shape)).shape == (*shape[:-1], d_out)


@pytest.mark.parametrize(
    ("projection", "d_in", "d_out", "block_size", "mflop"),
    [
        ("bh4", 512, 1024, 64, 0.56),
        ("bh4", 512, 1024, 32, 0.30),
        ("bh4", 512, 1024, 16, 0.17),
        ("dense", 512, 1024, 64, 1.05),
        ("bh4", 512, 256, 64, 0.28),
        ("bh4", 512, 260, 64, 0.28),
    ],
)
def test_flops_are_those_of_table_3(
    projection: str, d_in: int, d_out: int, block_size: int, mflop: float
) -> None:
    layer = make_projection(projection, d_in, d_out, block_size, device="meta")
    assert round(layer.flops / 1e6, 2) == mflop


def test_flops_of_the_comparison_projections() -> None:
    assert make_projection("hadamard8", 512, 512).flops == 8 * 2 * (512 * 9 + 512)
    assert make_projection("acdc8", 512, 512).flops == 8 * 2 * (2 * 512 * 9 - 512 + 2 + 512)
    assert make_projection("acdc1", 1, 1).flops == 2
    assert make_projection("shuffle", 512, 512, 32).flops == 2 * 512 * 32
    # The two differ by the transform's additions only.
    assert make_projection("bh1", 512, 512, 32).flops == 2 * 512 * 32 + 512 * 9


@pytest.mark.parametrize("name", ["dense", "bh4"])
def test_bfloat16_parameters_in_eval_mode(name: str) -> None:
    torch.manual_seed(0)
    layer = make_projection(name, 20, 33, 8, dtype="bfloat16")
    x = torch.randn(7, 20)
    floats = layer(x)
    layer.eval()
    rounded = layer(x)
    assert not torch.equal(rounded, floats)
    torch.testing.assert_close(rounded, floats, rtol=0, atol=0.1)
    if name == "dense":
        exact = (
            x.bfloat16().double() @ layer.get_parameter("weight").detach().bfloat16().double().t()
        )
        torch.testing.assert_close(rounded, exact.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.train()(x), floats, rtol=0, atol=0)


def test_blocks_start_orthonormal() -> None:
    for blocks in BHProjection(64, 128, 2, 16).blocks:
        gain = blocks.shape[2] / blocks.shape[1]
        gram = blocks.detach() @ blocks.detach().transpose(1, 2)
        torch.testing.assert_close(gram, gain * torch.eye(16).expand_as(gram), rtol=0, atol=1e-5)
    matrix = BHProjection(32, 32).matrix()
    torch.testing.assert_close(matrix @ matrix.t(), torch.eye(32), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: BHProjection(0, 4), "d_in=0"),
        (lambda: BHProjection(4, -1), "d_out=-1"),
        (lambda: BHProjection(4, 4, m=9), "use 'bh8'"),
        (lambda: BHProjection(4, 4, m=0), "bh0"),
        (lambda: BHProjection(4, 4, block_size=3), "use 2"),
        (lambda: DenseProjection(4, 4, "int8"), "'float32', 'bfloat16'"),
        (lambda: DiagonalProjection(4, 4, 2, "fourier"), "'cosine' nor 'hadamard'"),
        (lambda: DiagonalProjection(4, 4, 65), "1 to 64"),
        (lambda: make_projection("bh", 4, 4), "did you mean 'bh"),
        (lambda: make_projection("acdc2", 4, 4, dtype="bfloat16"), "no bfloat16 form"),
        (lambda: BHProjection(4, 4)(torch.zeros(3, 5)), r"\(3, 5\).*must be 4"),
        (lambda: BHProjection(4, 4)(torch.tensor(0.0)), "must be 4"),
        (lambda: DenseProjection(4, 4)(torch.zeros(3, 4, dtype=torch.int32)), "not a float"),
    ],
)
def test_bad_input_is_explained(build: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build()
    assert caught.value.fix
