"""Cases that other implementations test themselves with, replayed in the interpreter.

faiss ``tests/test_fast_scan.py``: exact sums in 16 bits. bolt ``vquantizers.py``: the averaging
tree for every upcast_every, on its matrix shapes (rows scaled down).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lutcc import ir
from lutcc.ir.passes import ChooseAccumulate

RNG_SEED = 20


def scan(codes: np.ndarray, lut: np.ndarray, **attrs: Any) -> np.ndarray:
    """Run codes (N, C) through a table (C, K, M) in the interpreter."""
    b = ir.Builder("main")
    x = b.param("codes", ir.TensorType((ir.Sym("n"), codes.shape[1]), "uint8"))
    b.returns(b.op("lut_accumulate", x, b.constant("lut", lut), **attrs))
    return ir.interpret(b.module(), [codes])[0]


def faiss_sum16(codes: np.ndarray, lut: np.ndarray) -> np.ndarray:
    """Sum two bytes per 16-bit lane as faiss does: a0 += v, a1 += v >> 8, a0 -= a1 << 8.

    Neighbouring rows share a lane; all arithmetic wraps at 16 bits.
    """
    n, ncodebooks = codes.shape
    rows = n + n % 2
    padded = np.zeros((rows, ncodebooks), np.uint8)
    padded[:n] = codes
    a0 = np.zeros((rows // 2, lut.shape[2]), np.uint16)
    a1 = np.zeros_like(a0)
    for c in range(ncodebooks):
        entries = lut[c, padded[:, c]]
        lanes = entries[0::2].astype(np.uint16) | (entries[1::2].astype(np.uint16) << 8)
        a0 += lanes
        a1 += lanes >> 8
    a0 -= a1 << 8
    out = np.zeros((rows, lut.shape[2]), np.uint16)
    out[0::2], out[1::2] = a0, a1
    return out[:n]


@pytest.mark.parametrize("ncodebooks", [1, 2, 3, 7, 16, 17, 31, 32, 37, 64, 128, 255, 257])
@pytest.mark.parametrize("nprototypes", [16, 32])
def test_faiss_exact_sums(ncodebooks: int, nprototypes: int) -> None:
    rng = np.random.default_rng(RNG_SEED + ncodebooks)
    codes = rng.integers(0, nprototypes, (33, ncodebooks)).astype(np.uint8)
    lut = rng.integers(0, 256, (ncodebooks, nprototypes, 5)).astype(np.uint8)
    lut[:, 0] = 255  # the largest sums occur
    codes[0] = 0
    got = scan(codes, lut)
    plain = np.zeros(got.shape, np.int64)
    for n in range(len(codes)):
        for c in range(ncodebooks):
            plain[n] += lut[c, codes[n, c]]
    np.testing.assert_array_equal(got, plain)
    assert got.max() == 255 * ncodebooks
    wrapped = faiss_sum16(codes, lut)
    np.testing.assert_array_equal(wrapped, (plain % 2**16).astype(np.uint16))


@pytest.mark.parametrize(("ncodebooks", "fits"), [(256, True), (257, True), (258, False)])
def test_the_proven_bound_tells_whether_16_bits_suffice(ncodebooks: int, fits: bool) -> None:
    """255 * 257 = 65535 still fits; faiss sums wrap from there on, and the bound says so."""
    lut = np.full((ncodebooks, 16, 1), 255, np.uint8)
    codes = np.zeros((2, ncodebooks), np.uint8)
    b = ir.Builder("main")
    x = b.param("codes", ir.TensorType((2, ncodebooks), "uint8"))
    b.returns(b.op("lut_accumulate", x, b.constant("lut", lut)))
    module = ChooseAccumulate()(b.module())
    bound = module.main.body[-1].attr("bound")
    exact = ir.interpret(module, [codes])[0]
    assert bound == 255 * ncodebooks == exact.max()
    assert isinstance(bound, int)
    assert (bound <= 65535) == fits
    assert bool((faiss_sum16(codes, lut) == exact).all()) == fits


def bolt_average(codes: np.ndarray, lut: np.ndarray, upcast_every: int) -> np.ndarray:
    """The averaging reference of bolt's vquantizers.py, one row after the other."""
    ncodebooks = lut.shape[0]
    padding = -ncodebooks % upcast_every
    out = np.zeros((len(codes), lut.shape[2]), np.int64)
    for n, row in enumerate(codes):
        dists = lut[np.arange(ncodebooks), row].astype(np.int64)  # (C, M)
        dists = np.concatenate([dists, np.zeros((padding, lut.shape[2]), np.int64)])
        groups = dists.reshape(-1, upcast_every, lut.shape[2])
        while groups.shape[1] > 1:
            groups = (groups[:, ::2] + groups[:, 1::2] + 1) // 2
        out[n] = groups.sum(axis=(0, 1))
    return out


@pytest.mark.parametrize("upcast_every", [2, 4, 8, 16, 32, 64, 128])
@pytest.mark.parametrize("ncodebooks", [2, 3, 4, 5, 8, 13, 16, 31, 32, 64])
def test_bolt_averaging(ncodebooks: int, upcast_every: int) -> None:
    rng = np.random.default_rng(RNG_SEED * ncodebooks + upcast_every)
    codes = rng.integers(0, 16, (11, ncodebooks)).astype(np.uint8)
    lut = rng.integers(0, 256, (ncodebooks, 16, 3)).astype(np.uint8)
    got = scan(codes, lut, accumulate="mean", upcast_every=upcast_every)
    np.testing.assert_array_equal(got, bolt_average(codes, lut, upcast_every))


#: (N, D, M) of bolt's benchmarks, N divided by about a thousand, with the C that it sweeps.
BOLT_SHAPES = [
    (49, 27, 2, (2, 4, 8, 16)),
    (48, 75, 2, (2, 4, 8, 16, 32, 64)),
    (10, 512, 10, (2, 16, 64)),
    (10, 512, 100, (4, 16, 64)),
    (10, 320, 64, (2, 32, 64)),
    (10, 320, 256, (8, 64)),
]


@pytest.mark.parametrize(("n", "d", "m", "sweep"), BOLT_SHAPES)
def test_bolt_shapes_end_to_end(n: int, d: int, m: int, sweep: tuple[int, ...]) -> None:
    """Encode, average, undo the scale and bias: the result follows the exact sums of the tables."""
    rng = np.random.default_rng(n * d + m)
    x = rng.normal(size=(n, d)).astype(np.float32)
    for ncodebooks in sweep:
        dims = rng.integers(0, d, (ncodebooks, 4)).astype(np.int32)
        vals = rng.normal(size=(ncodebooks, 16)).astype(np.float32)
        lut = rng.integers(0, 256, (ncodebooks, 16, m)).astype(np.uint8)
        b = ir.Builder("main")
        p = b.param("x", ir.TensorType((ir.Sym("n"), d), "float32"))
        codes = b.op("tree_encode", p, b.constant("dims", dims), b.constant("vals", vals))
        table = b.constant("lut", lut)
        exact = b.op("lut_accumulate", codes, table)
        mean = b.op("lut_accumulate", codes, table, accumulate="mean", upcast_every=16)
        b.returns(codes, exact, mean)
        got_codes, sums, means = ir.interpret(b.module(), [x])
        assert got_codes.shape == (n, ncodebooks)
        assert got_codes.max() <= 15
        np.testing.assert_array_equal(means, bolt_average(got_codes, lut, 16))
        groups = -(-ncodebooks // 16)
        error = 16 * means - sums
        assert (error >= 0).all()
        assert (error <= 16 * groups * 2).all()  # each of four levels rounds up by at most a half
        if ncodebooks % 16 == 0:  # bolt corrects by C * log2(upcast_every) / 4
            assert abs(error.mean() - ncodebooks) < 0.3 * ncodebooks
