"""Codebook products of few rows: every level and kind of table against the interpreter."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from lutcc import ir
from lutcc.errors import CompileError
from lutcc.ir.codebooks import pack_indices
from lutcc.schedules.x86 import pack_codebooks
from lutcc.schedules.x86.pack_codebooks import CodebookLayout
from tests.schedules.harness import ALL_ISA_PARAMS, ISA_PARAMS, built

pytestmark = pytest.mark.one_in(2)

F32 = np.float32


@dataclass(frozen=True)
class Weights:
    """M rows; segments of codebooks where ``segment`` is not 0, else groups of rows."""

    bits: int
    rows: int
    groups: int = 1
    segment: int = 0
    scales: int = 1
    reorder: bool = False
    dtype: str = "float16"

    def operands(self, columns: int) -> list[np.ndarray]:
        """Return indices, codebooks, scales, order and bias."""
        rng = np.random.default_rng(self.rows + self.bits)
        count = -(-columns // self.segment) * self.rows if self.segment else self.groups
        order = rng.permutation(self.rows) if self.reorder else np.arange(self.rows)
        return [
            pack_indices(rng.integers(0, 2**self.bits, (self.rows, columns)), self.bits),
            rng.normal(size=(count, 2**self.bits)).astype(self.dtype),
            rng.uniform(0.5, 2, self.scales).astype(self.dtype),
            order.astype(np.int32),
            rng.normal(size=self.rows).astype(F32),
        ]


#: Primes, tails, one row; whole, cut and joined segments; scales by row; permuted outputs.
CASES = (
    Weights(4, 37, groups=5, scales=37, reorder=True),
    Weights(3, 9, segment=96, dtype="float32"),
    Weights(2, 32, groups=3),
    Weights(4, 1, segment=64),
)


def module(rows: int, columns: int, compute: str, cases: tuple[Weights, ...] = CASES) -> ir.Module:
    """Return products of the same rows with different weights."""
    b = ir.Builder("main")
    x = b.param("x", ir.TensorType((rows, columns), "float32"))
    results = []
    for k, case in enumerate(cases):
        constants = [b.constant(f"c{k}_{i}", a) for i, a in enumerate(case.operands(columns))]
        attrs = {"bits": case.bits, "segment_size": case.segment, "compute": compute}
        results.append(b.op("codebook_matmul", x, *constants, **attrs))
    b.returns(*results)
    return b.module()


def rows_of(count: int, columns: int) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, columns)).astype(F32)


def assert_close(got: np.ndarray, want: np.ndarray, columns: int) -> None:
    """Compare floats, whose terms have magnitudes of 4 at most on average."""
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * 4 * columns**0.5)


@pytest.mark.parametrize("isa", ISA_PARAMS)
def test_integers(isa: str) -> None:
    """Tables by row, parts of steps, and steps of several tables; one row where it is natural."""
    rows, columns = (1, 200) if isa == "avx2" else (3, 150)
    given = module(rows, columns, "int8", CASES if isa == "avx2" else CASES[1:3])
    _, call = built(given, isa)
    x = rows_of(rows, columns)
    for got, want in zip(call(x), ir.interpret(given, [x]), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("isa", ALL_ISA_PARAMS)
@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_floats(isa: str, compute: str) -> None:
    if isa == "avx512_bf16" and compute == "float32":
        pytest.skip("float32 kernels are those of the level below")
    cases = CASES[:2] if isa == "avx2" else CASES[1:2]
    given = module(2, 150, compute, cases)
    _, call = built(given, isa)
    x = rows_of(2, 150)
    for got, want in zip(call(x), ir.interpret(given, [x]), strict=True):
        assert_close(got, want, 150)


@pytest.mark.isa("avx2")
def test_eight_rows_on_threads_of_any_strides() -> None:
    """1024 columns have rows apart that are not a multiple of the L1 cache's ways."""
    cases = (Weights(4, 53, groups=2),)
    given = module(8, 1024, "int8", cases)
    _, call = built(given, "avx2", threads=3)
    x = rows_of(8, 1024)
    (want,) = ir.interpret(given, [x])
    spaced = np.repeat(np.repeat(x, 2, axis=1), 2, axis=0)[::2, ::2]
    for given_x in (x, np.asfortranarray(x), spaced):
        np.testing.assert_array_equal(call(given_x)[0], want)


@pytest.mark.isa("avx2")
@pytest.mark.parametrize("compute", ["int8", "float32"])
def test_special_values(compute: str) -> None:
    """Columns of padding never turn what is infinite, or not there, into something else."""
    b = ir.Builder("main")
    x = b.param("x", ir.TensorType((4, 5), "float32"))
    codebooks = np.array([[np.inf, 1, 2, 3], [1, -1, 0.5, 0]], np.float16)
    indices = pack_indices(np.array([[1, 2, 3, 1, 2], [0, 1, 2, 3, 1], [0, 1, 2, 3, 1]]), 2)
    arrays = [indices, codebooks, np.ones(1, np.float16), np.arange(3, dtype=np.int32)]
    constants = [b.constant(f"c{i}", a) for i, a in enumerate([*arrays, np.zeros(3, F32)])]
    b.returns(b.op("codebook_matmul", x, *constants, bits=2, compute=compute))
    given = b.module()
    _, call = built(given, "avx2")
    rows = np.ones((4, 5), F32)
    rows[1, 2], rows[2, 0], rows[3] = np.nan, -np.inf, 0
    (got,), (want,) = call(rows), ir.interpret(given, [rows])
    np.testing.assert_array_equal(got, want)


def test_weights_must_be_constants() -> None:
    b = ir.Builder("main")
    operands = [b.param("x", ir.TensorType((1, 8), "float32"))]
    for i, array in enumerate(Weights(4, 3).operands(8)):
        operands.append(b.param(f"p{i}", ir.TensorType(array.shape, array.dtype.name)))
    b.returns(b.op("codebook_matmul", *operands, bits=4))
    with pytest.raises(CompileError, match="weights must be constants: %p0 of codebook_matmul"):
        built(b.module(), "avx2")


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_packed_indices_by_definition(bits: int) -> None:
    """Each index is where the layout says, whatever the tile."""
    case, columns = Weights(bits, 5, groups=2), 300
    indices, codebooks, scales, *_ = case.operands(columns)
    layout = CodebookLayout(bits, 5, columns, 0, lanes=2, tile=2)
    packed = pack_codebooks.pack_codebook_indices(indices, codebooks, scales, **layout.to_json())
    assert packed.nbytes == layout.index_nbytes
    stored = int.from_bytes(indices[3].tobytes(), "little")
    for column in range(columns):
        step, rest = divmod(column, layout.step_columns)
        f, byte = divmod(rest, 16)
        vectors = packed[0, step, 1, :, 1, byte]  # row 3: vector 1, lane 1
        if bits == 3 and f >= 6:
            found = sum(
                int(v) >> (3 if f == 6 else 7) & 1 and 1 << i for i, v in enumerate(vectors)
            )
        else:
            vector, place = divmod(f, 2) if bits != 2 else (0, f)
            found = int(vectors[vector]) >> (place * (2 if bits == 2 else 4)) & (2**bits - 1)
        assert found == stored >> (column * bits) & (2**bits - 1)
