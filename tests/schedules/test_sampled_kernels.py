"""Sampled products: every level against the interpreter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import pytest

from lutcc import ir
from tests.schedules.harness import ALL_ISA_PARAMS, ISA_PARAMS, N, built
from tests.schedules.test_hash_kernels import per_level

pytestmark = pytest.mark.one_in(3)

F32 = np.float32
#: One row, primes, one below and above register tiles, more than a block of rows.
ROWS = (1, 2, 5, 6, 7, 13, 29, 151)


@dataclass(frozen=True)
class Matmul:
    """Sizes of a product: K columns in groups, M outputs."""

    inner: int
    outputs: int
    group: int = 1
    dtype: str = "float32"

    @property
    def pairs(self) -> int:
        """Number of pairs."""
        return -(-self.inner // self.group)

    def module(self, places: int | None = None) -> ir.Module:
        """Return a module of one op, whose operands all are inputs."""
        b = ir.Builder("main")
        places = self.pairs if places is None else places
        operands = (
            b.param("a", ir.TensorType((N, self.inner), self.dtype)),
            b.param("b", ir.TensorType((self.inner, self.outputs), self.dtype)),
            b.param("indices", ir.TensorType((places,), "int32")),
            b.param("scales", ir.TensorType((places,), "float32")),
            b.param("bias", ir.TensorType((self.outputs,), "float32")),
        )
        b.returns(b.op("sampled_matmul", *operands, group_size=self.group))
        return b.module()

    def __str__(self) -> str:
        return f"{self.inner}x{self.outputs}g{self.group}{self.dtype[0]}"


def sample(
    rng: np.random.Generator, pairs: int, taken: int, places: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return indices and scales: ``taken`` pairs, ascending, then padding."""
    indices, scales = np.zeros(places, np.int32), np.zeros(places, F32)
    indices[:taken] = np.sort(rng.permutation(pairs)[:taken])
    scales[:taken] = rng.uniform(0.5, 3.0, taken)
    return indices, scales


def matrices(
    rng: np.random.Generator, case: Matmul, rows: int, taken: int, places: int | None = None
) -> list[np.ndarray]:
    """Return random operands; what no taken pair reads is NaN."""
    places = case.pairs if places is None else places
    indices, scales = sample(rng, case.pairs, taken, places)
    a = rng.normal(size=(rows, case.inner)).astype(F32)
    b = rng.normal(size=(case.inner, case.outputs)).astype(F32)
    skipped = np.repeat(~np.isin(np.arange(case.pairs), indices[:taken]), case.group)[: case.inner]
    a[:, skipped] = np.nan
    b[skipped] = np.nan
    bias = rng.normal(size=case.outputs).astype(F32)
    kind = ml_dtypes.bfloat16 if case.dtype == "bfloat16" else F32
    return [a.astype(kind), b.astype(kind), indices, scales, bias]


def matmul_bound(case: Matmul, operands: list[np.ndarray], want: np.ndarray) -> np.ndarray:
    """Return how far a kernel may be off: what the op's definition says."""
    a, b, indices, scales, bias = operands
    columns = np.concatenate(
        [np.arange(i * case.group, (i + 1) * case.group) for i in indices[scales != 0]] or [[]]
    ).astype(int)
    factors = np.repeat(scales[scales != 0], case.group)[columns < case.inner]
    columns = columns[columns < case.inner]
    magnitude = np.abs(a[:, columns].astype(np.float64)) @ np.abs(
        b[columns].astype(np.float64) * factors[:, None]
    )
    bound = ir.OPS["sampled_matmul"].tolerance * (magnitude + np.abs(bias)) + 1e-30
    if case.dtype == "bfloat16":
        bound += 2.0**-7 * np.abs(want.astype(np.float64))
    return bound


def assert_matmul(
    case: Matmul, call: Callable[..., list[np.ndarray]], module: ir.Module, given: list[np.ndarray]
) -> np.ndarray:
    """Compare a call with the interpreter."""
    (got,), (want,) = call(*given), ir.interpret(module, given)
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    off = np.abs(got.astype(np.float64) - want.astype(np.float64))
    assert (off <= matmul_bound(case, given, want)).all(), f"{case} rows={len(given[0])}"
    return got


#: Single pairs and outputs, primes, tails of every kind, groups that divide and that do not.
MATMULS = [
    Matmul(1, 1),
    Matmul(3, 7),
    Matmul(37, 45),
    Matmul(64, 32),
    Matmul(40, 16),
    Matmul(29, 101, group=4),
    Matmul(32, 31, group=8),
    Matmul(5, 17, group=9),
]
HALVES = [Matmul(c.inner, c.outputs, c.group, "bfloat16") for c in MATMULS]


@pytest.mark.parametrize(("isa", "case"), per_level(MATMULS, [2, 5], ISA_PARAMS))
def test_matmul(isa: str, case: Matmul) -> None:
    module, rng = case.module(), np.random.default_rng(case.inner)
    _, call = built(module, isa)
    for rows in ROWS:
        for taken in sorted({0, 1, case.pairs // 2, case.pairs}):
            assert_matmul(case, call, module, matrices(rng, case, rows, taken))


@pytest.mark.parametrize(("isa", "case"), per_level(HALVES, [2, 5], ALL_ISA_PARAMS))
def test_matmul_of_bfloat16(isa: str, case: Matmul) -> None:
    module, rng = case.module(), np.random.default_rng(case.inner)
    _, call = built(module, isa)
    for rows in (1, 7, 29):
        for taken in sorted({0, 1, case.pairs // 2, case.pairs}):
            assert_matmul(case, call, module, matrices(rng, case, rows, taken))


@pytest.mark.isa("avx2")
def test_bfloat16_is_rounded_exactly_where_sums_are_exact() -> None:
    case = Matmul(40, 48, dtype="bfloat16")
    module, rng = case.module(), np.random.default_rng(0)
    _, call = built(module, "avx2")
    given = matrices(rng, case, 50, 30)
    kind = ml_dtypes.bfloat16
    given[0] = rng.integers(-8, 9, given[0].shape).astype(kind)
    given[1] = (rng.integers(-128, 129, given[1].shape) / 16).astype(kind)
    given[3][:30] = rng.choice(np.array([1, 1.5, 1.00390625, 3.01], F32), 30)
    given[4][:] = rng.integers(-50, 50, 48)
    (got,), (want,) = call(*given), ir.interpret(module, given)
    np.testing.assert_array_equal(got.view(np.uint16), want.view(np.uint16))


def transposed(x: np.ndarray) -> np.ndarray:
    return np.asfortranarray(x)


def spaced(x: np.ndarray) -> np.ndarray:
    return np.repeat(np.repeat(x, 2, axis=1), 3, axis=0)[::3, ::2]


def part_of_rows(x: np.ndarray) -> np.ndarray:
    return np.concatenate([x, x[:, :1], x[:, :1]], axis=1)[:, : x.shape[1]]


STRIDES = [transposed, spaced, part_of_rows]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.isa("avx2")
def test_matmul_of_any_strides(dtype: str) -> None:
    case = Matmul(37, 53, group=2, dtype=dtype)
    module, rng = case.module(), np.random.default_rng(1)
    _, call = built(module, "avx2")
    a, b, *rest = matrices(rng, case, 23, 11)
    (plain,) = call(a, b, *rest)
    for change_a in STRIDES:
        for change_b in STRIDES:
            got = assert_matmul(case, call, module, [change_a(a), change_b(b), *rest])
            np.testing.assert_array_equal(got.view(np.uint16), plain.view(np.uint16))


@pytest.mark.isa("avx2")
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_matmul_on_threads_and_in_many_blocks(threads: int, dtype: str) -> None:
    case = Matmul(601, 77, dtype=dtype)  # more terms than a pass over the depth has
    module, rng = case.module(), np.random.default_rng(2)
    _, call = built(module, "avx2", threads=threads)
    for rows in (1, 5, 13, 700):
        for taken in (0, 257, 601):
            assert_matmul(case, call, module, matrices(rng, case, rows, taken))


@pytest.mark.isa("avx2")
def test_matmul_takes_fewer_places_than_pairs_and_skips_scale_0() -> None:
    case = Matmul(19, 20)
    module, rng = case.module(places=6), np.random.default_rng(3)
    _, call = built(module, "avx2")
    for taken in (0, 3, 6):
        assert_matmul(case, call, module, matrices(rng, case, 9, taken, places=6))


@pytest.mark.isa("avx2")
def test_products_of_special_values() -> None:
    case = Matmul(8, 40)
    module, rng = case.module(), np.random.default_rng(4)
    _, call = built(module, "avx2")
    given = matrices(rng, case, 7, 8)
    given[0][1, 2], given[0][3, 4], given[1][5, 6] = np.nan, np.inf, -np.inf
    (got,), (want,) = call(*given), ir.interpret(module, given)
    for kind in (np.isnan, np.isposinf, np.isneginf):
        np.testing.assert_array_equal(kind(got), kind(want))
