"""Look-up kernels against the interpreter, bit by bit, on every level and awkward shape."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lutcc import ir
from lutcc.errors import CompileError
from tests.schedules.harness import (
    ISA_PARAMS,
    ROWS,
    WIDEST_ISA_PARAMS,
    N,
    built,
    check,
    maddness,
    random_lut,
    tree_constants,
)

pytestmark = pytest.mark.one_in(4)


def floats(columns: int, n: int) -> list[np.ndarray]:
    x = np.random.default_rng(n).normal(size=(n, columns)).astype(np.float32)
    x[0, 0] = np.nan
    x[-1, -1] = np.inf
    return [x]


@pytest.mark.parametrize("isa", ISA_PARAMS)
@pytest.mark.parametrize(
    ("columns", "codebooks", "outputs", "entries"),
    [
        (64, 16, 30, 16),
        (37, 5, 7, 16),
        (1, 1, 1, 2),
        (11, 3, 16, 4),
        (16, 2, 17, 8),
        (33, 9, 33, 32),
        (64, 7, 65, 64),
        (48, 5, 20, 128),
        (130, 64, 100, 16),
    ],
)
def test_exact(isa: str, columns: int, codebooks: int, outputs: int, entries: int) -> None:
    module = maddness(columns, codebooks, outputs, entries=entries)
    check(module, isa, lambda n: floats(columns, n))


@pytest.mark.parametrize("isa", ISA_PARAMS)
@pytest.mark.parametrize(
    ("codebooks", "upcast_every"),
    [(1, 2), (16, 2), (37, 2), (1, 16), (16, 16), (37, 16), (37, 256)],  # 256 is a lot of code
)
def test_mean(isa: str, upcast_every: int, codebooks: int) -> None:
    module = maddness(20, codebooks, 19, accumulate="mean", upcast_every=upcast_every)
    check(module, isa, lambda n: floats(20, n), rows=(1, 5, 17, 64, 70, 129))


@pytest.mark.parametrize("isa", WIDEST_ISA_PARAMS)
@pytest.mark.parametrize("codebooks", [258, 600])
def test_more_codebooks_than_a_16_bit_sum_holds(isa: str, codebooks: int) -> None:
    module = maddness(30, codebooks, 18, entries=64)
    check(module, isa, lambda n: floats(30, n), rows=(1, 3, 64, 65))


@pytest.mark.parametrize("isa", ISA_PARAMS)
@pytest.mark.parametrize("entries", [16, 32, 64])
def test_signed_tables(isa: str, entries: int) -> None:
    module = maddness(24, 10, 35, entries=entries, lut_dtype="int8")
    check(module, isa, lambda n: floats(24, n), rows=(1, 4, 16, 50, 130))


@pytest.mark.parametrize("isa", ISA_PARAMS)
def test_float_tables(isa: str) -> None:
    module = maddness(24, 10, 35, lut_dtype="float32")
    check(module, isa, lambda n: floats(24, n), rows=(1, 4, 16, 50))


@pytest.mark.parametrize("isa", WIDEST_ISA_PARAMS)
@pytest.mark.parametrize(("columns", "entries"), [(40, 16), (9, 64)])
def test_quantised_input(isa: str, columns: int, entries: int) -> None:
    module = maddness(columns, 6, 21, entries=entries, x_dtype="uint8")

    def inputs(n: int) -> list[np.ndarray]:
        return [np.random.default_rng(n).integers(0, 256, (n, columns)).astype(np.uint8)]

    check(module, isa, inputs)
    check(module, isa, lambda n: [np.asfortranarray(inputs(n)[0])], rows=(1, 17, 64, 65))


@pytest.mark.parametrize("isa", WIDEST_ISA_PARAMS)
@pytest.mark.parametrize("columns", [5, 64, 75])
def test_strides_and_alignment(isa: str, columns: int) -> None:
    module = maddness(columns, 5, 33)
    _, call = built(module, isa)
    for n in (1, 6, 16, 17, 100):
        x = floats(columns, n)[0]
        (expected,) = ir.interpret(module, [x])
        shifted = np.empty(x.size + 1, np.float32)[1:].reshape(x.shape)
        shifted[:] = x
        wide = np.repeat(np.repeat(x, 2, axis=0), 3, axis=1)
        padded = np.full((n, columns + 3), np.nan, np.float32)
        padded[:, :columns] = x
        views = {
            "column-major": np.asfortranarray(x),
            "every second row, third column": wide[::2, ::3],
            "rows of a wider matrix": padded[:, :columns],
            "transposed slice": np.ascontiguousarray(padded.T)[:columns].T,
            "not aligned": shifted,
        }
        for name, view in views.items():
            np.testing.assert_array_equal(call(view)[0], expected, err_msg=f"{name}, n={n}")


@pytest.mark.parametrize("isa", WIDEST_ISA_PARAMS)
@pytest.mark.parametrize("outputs", [1, 3, 10, 16, 31, 48])
def test_codes_and_sums_alone(isa: str, outputs: int) -> None:
    rng = np.random.default_rng(outputs)
    b = ir.Builder("main")
    dims, vals = tree_constants(rng, 20, outputs, 16)
    x = b.param("x", ir.TensorType((N, 20), "float32"))
    b.returns(b.op("tree_encode", x, b.constant("d", dims), b.constant("v", vals)))
    check(b.module(), isa, lambda n: floats(20, n), rows=(1, 9, 16, 65))

    b = ir.Builder("main")
    codes = b.param("codes", ir.TensorType((N, 7), "uint8"))
    lut = b.constant("lut", random_lut(rng, 7, 16, outputs, "uint8"))
    b.returns(b.op("lut_accumulate", codes, lut))

    def random_codes(n: int) -> list[np.ndarray]:
        return [np.random.default_rng(n).integers(0, 16, (n, 7)).astype(np.uint8)]

    check(b.module(), isa, random_codes, rows=(1, 9, 16, 65))


@pytest.mark.parametrize("isa", WIDEST_ISA_PARAMS)
@pytest.mark.parametrize(
    ("entries", "starts"),
    [
        (2, (0, 24)),
        (5, (0, 1)),
        (16, (0, 3, 3, 10, 24)),
        (17, (0, 24)),
        (64, (0, 3, 3, 10, 24)),
        (256, (0, 3, 3, 10, 24)),
    ],
)
def test_nearest_encode(isa: str, entries: int, starts: tuple[int, ...]) -> None:
    rng = np.random.default_rng(entries)
    width = starts[-1]
    b = ir.Builder("main")
    x = b.param("x", ir.TensorType((N, 30), "float32"))
    constants = {
        "centroids": rng.normal(size=(entries, width)).astype(np.float32),
        "half_norms": rng.random((len(starts) - 1, entries), np.float32),
        "columns": rng.permutation(30)[:width].astype(np.int32),
    }
    operands = [b.constant(name, array) for name, array in constants.items()]
    codes = b.op("nearest_encode", x, *operands, starts=starts)
    if entries in (16, 64):
        lut = random_lut(rng, len(starts) - 1, entries, 20, "uint8")
        b.returns(codes, b.op("lut_accumulate", codes, b.constant("lut", lut)))
    else:
        b.returns(codes)

    def inputs(n: int) -> list[np.ndarray]:
        return [np.random.default_rng(n).normal(size=(n, 30)).astype(np.float32)]

    check(b.module(), isa, inputs, rows=(1, 5, 16, 33, 70))


@pytest.mark.parametrize("isa", WIDEST_ISA_PARAMS)
def test_threads_give_the_same_bits(isa: str) -> None:
    module = maddness(64, 16, 48)
    rows = (1, 15, 33, 255, 256, 257, 1000)
    check(module, isa, lambda n: floats(64, n), rows=rows, threads=2)


@pytest.mark.isa("avx2")
def test_wrong_configs_are_refused() -> None:
    module = maddness(20, 6, 37)
    with pytest.raises(CompileError, match=r"unknown config part 'stag'.*\n.*'stage'"):
        built(module, "avx2", {"rows0": {"stag": {}}})
    with pytest.raises(CompileError, match="unknown field 'tile_n'"):
        built(module, "avx2", {"rows0": {"accumulate": {"tile_n": 3}}})


@pytest.mark.parametrize("isa", WIDEST_ISA_PARAMS)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_random_shapes(isa: str, data: st.DataObject) -> None:
    columns = data.draw(st.integers(1, 90), "columns")
    module = maddness(
        columns,
        data.draw(st.integers(1, 40), "codebooks"),
        data.draw(st.integers(1, 70), "outputs"),
        entries=data.draw(st.sampled_from([2, 4, 8, 16, 32, 64, 128]), "entries"),
        accumulate=data.draw(st.sampled_from(["exact", "mean"]), "accumulate"),
        upcast_every=data.draw(st.sampled_from([2, 8, 16, 32]), "upcast_every"),
        activation=data.draw(st.sampled_from(["none", "relu"]), "activation"),
        seed=data.draw(st.integers(0, 99), "seed"),
    )
    rows = tuple(data.draw(st.lists(st.integers(1, 400), min_size=1, max_size=4), "rows"))
    check(module, isa, lambda n: floats(columns, n), rows=rows)


def test_rows_cover_the_groups() -> None:
    assert {g + d for g in (16, 32, 64) for d in (-1, 0, 1)} <= set(ROWS)
