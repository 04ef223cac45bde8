"""The peers' cases on compiled kernels: faiss' exact sums, bolt's averages and its shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lutcc import ir
from tests.ir.test_peers_replay import BOLT_SHAPES, bolt_average
from tests.schedules.harness import WIDEST_ISA_PARAMS, N, built

pytestmark = pytest.mark.one_in(4)


def scan(isa: str, lut: np.ndarray, **attrs: Any):
    """Return a compiled scan: codes (N, C) -> sums (N, M)."""
    b = ir.Builder("main")
    codes = b.param("codes", ir.TensorType((N, lut.shape[0]), "uint8"))
    b.returns(b.op("lut_accumulate", codes, b.constant("lut", lut), **attrs))
    _, call = built(b.module(), isa)
    return lambda codes: call(codes)[0]


def tables(ncodebooks: int, nprototypes: int, outputs: int) -> np.ndarray:
    rng = np.random.default_rng(ncodebooks * nprototypes)
    lut = rng.integers(0, 256, (ncodebooks, nprototypes, outputs)).astype(np.uint8)
    lut[:, 0] = 255  # the largest sums occur
    return lut


def random_codes(n: int, ncodebooks: int, nprototypes: int) -> np.ndarray:
    codes = np.random.default_rng(n).integers(0, nprototypes, (n, ncodebooks)).astype(np.uint8)
    codes[0] = 0
    return codes


@pytest.mark.parametrize("isa", WIDEST_ISA_PARAMS)
@pytest.mark.parametrize(
    ("ncodebooks", "nprototypes"), [(1, 16), (7, 32), (37, 16), (257, 32), (259, 16)]
)
def test_faiss_exact_sums(isa: str, ncodebooks: int, nprototypes: int) -> None:
    """Odd numbers of codebooks, and sums on both sides of 65535 (257 * 255)."""
    lut = tables(ncodebooks, nprototypes, 5)
    call = scan(isa, lut)
    for n in (1, 33, 130):
        codes = random_codes(n, ncodebooks, nprototypes)
        plain = lut[np.arange(ncodebooks), codes].astype(np.int64).sum(axis=1)
        got = call(codes)
        np.testing.assert_array_equal(got, plain)
        assert got.max() == 255 * ncodebooks


@pytest.mark.parametrize("isa", WIDEST_ISA_PARAMS)
@pytest.mark.parametrize(
    ("upcast_every", "ncodebooks"),
    [(2, 5), (4, 64), (8, 13), (16, 2), (16, 64), (32, 37), (64, 64), (128, 16)],
)
def test_bolt_averages(isa: str, upcast_every: int, ncodebooks: int) -> None:
    lut = tables(ncodebooks, 16, 3)
    call = scan(isa, lut, accumulate="mean", upcast_every=upcast_every)
    for n in (1, 11, 70):
        codes = random_codes(n, ncodebooks, 16)
        np.testing.assert_array_equal(call(codes), bolt_average(codes, lut, upcast_every))


@pytest.mark.parametrize("isa", WIDEST_ISA_PARAMS)
@pytest.mark.parametrize(("n", "d", "m", "sweep"), BOLT_SHAPES)
def test_bolt_shapes(isa: str, n: int, d: int, m: int, sweep: tuple[int, ...]) -> None:
    rng = np.random.default_rng(n * d + m)
    ncodebooks = sweep[-1] if m > 2 else sweep[-1] // 2
    b = ir.Builder("main")
    x = b.param("x", ir.TensorType((N, d), "float32"))
    dims = rng.integers(0, d, (ncodebooks, 4)).astype(np.int32)
    vals = rng.normal(size=(ncodebooks, 16)).astype(np.float32)
    lut = rng.integers(0, 256, (ncodebooks, 16, m)).astype(np.uint8)
    codes = b.op("tree_encode", x, b.constant("dims", dims), b.constant("vals", vals))
    mean = b.op("lut_accumulate", codes, b.constant("lut", lut), accumulate="mean", upcast_every=16)
    b.returns(codes, mean)
    _, call = built(b.module(), isa)
    for rows in (n, 3 * n):
        array = rng.normal(size=(rows, d)).astype(np.float32)
        got_codes, got = call(array)
        heap = np.ones((rows, ncodebooks), np.int64)
        for level in range(4):
            right = array[:, dims[:, level]] > vals[np.arange(ncodebooks), heap]
            heap = 2 * heap + right
        np.testing.assert_array_equal(got_codes, heap - 16)
        np.testing.assert_array_equal(got, bolt_average(got_codes, lut, 16))
