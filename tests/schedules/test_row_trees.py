"""Trees over single rows: codebooks side by side, whatever lies where, on every level."""

from __future__ import annotations

import numpy as np
import pytest

from lutcc import ir
from lutcc.ir.passes import run_pipeline
from tests.ir.test_integer_chains import Net
from tests.schedules.harness import ISA_PARAMS, built, maddness

pytestmark = pytest.mark.one_in(2)

SINGLE = (1, 2, 3, 5)


def chained(dims: np.ndarray, depth: int, *, activation: str = "relu") -> ir.Module:
    """Return two layers; the second one's trees compare columns ``dims`` of the first one's 40."""
    net = Net(2, 20)
    relu = activation == "relu"
    y = net.dequantize(net.scan(net.encode(net.value, 5, 4), 40), activation if relu else "none")
    if not relu:
        y = net.b.op("activation", y, kind=activation)
    values = net.rng.normal(size=(len(dims), 2**depth)).astype(np.float32)
    codes = net.b.op("tree_encode", y, net.constant(dims), net.constant(values))
    lut = net.rng.integers(0, 256, (len(dims), 2**depth, 18)).astype(np.uint8)
    return net.module(net.dequantize(net.b.op("lut_accumulate", codes, net.constant(lut))))


def exact(module: ir.Module, isa: str, columns: int, rows: tuple[int, ...] = SINGLE) -> list[str]:
    """Compare with the interpreter; returns what is packed."""
    lowered, call = built(run_pipeline(module), isa)
    rng = np.random.default_rng(3)
    for count in rows:
        x = rng.normal(size=(2 * count, 2 * columns)).astype(np.float32)
        x[0, :3] = np.nan, np.inf, -np.inf
        for view in (x[:count, :columns], x[::2, ::2], np.asfortranarray(x[:count, :columns])):
            expected = ir.interpret(module, [np.ascontiguousarray(view)])
            for got, want in zip(call(view), expected, strict=True):
                np.testing.assert_array_equal(got, want)
    return [entry["pack"] for entry in lowered.program.to_json()["blob"]]


@pytest.mark.parametrize("isa", ISA_PARAMS)
@pytest.mark.parametrize(
    ("codebooks", "entries"), [(1, 16), (15, 2), (16, 16), (17, 16), (33, 8), (18, 64), (5, 128)]
)
def test_any_number_of_codebooks(codebooks: int, entries: int, isa: str) -> None:
    module = maddness(50, codebooks, 7, entries=entries)
    assert "tree_levels" in exact(module, isa, 50)


@pytest.mark.parametrize("isa", ISA_PARAMS)
def test_bytes_are_compared(isa: str) -> None:
    module = maddness(50, 18, 7, x_dtype="uint8")
    _, call = built(run_pipeline(module), isa)
    x = np.random.default_rng(0).integers(0, 256, (3, 50)).astype(np.uint8)
    np.testing.assert_array_equal(call(x)[0], ir.interpret(module, [x])[0])


def columns_of(kind: str, codebooks: int, depth: int) -> np.ndarray:
    """Return which columns trees compare."""
    rng = np.random.default_rng(codebooks)
    if kind == "different":
        return rng.permutation(40)[: codebooks * depth].reshape(codebooks, depth).astype(np.int32)
    dims = rng.integers(0, 40, (codebooks, depth)).astype(np.int32)
    if kind == "one twice":
        dims = columns_of("different", codebooks, depth)
        dims[3, -1] = dims[2, 0]
    return dims


@pytest.mark.parametrize("isa", ISA_PARAMS)
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("kind", ["different", "one twice", "any"])
def test_behind_look_ups(kind: str, activation: str, isa: str) -> None:
    """Columns that follow each other, that are there twice, and that do not: sums, intervals."""
    for codebooks, depth in ((19, 2), (8, 4)):
        module = chained(columns_of(kind, codebooks, depth), depth, activation=activation)
        exact(module, isa, 20, rows=(1, 3))


def test_the_rows_are_read_where_sums_lie() -> None:
    """Columns are copied together where they do not follow each other, and nowhere else."""
    for dims, copied in (np.arange(32).reshape(2, 16).T, False), (np.zeros((16, 2)), True):
        lowered, _ = built(run_pipeline(chained(dims.astype(np.int32), 2)), "avx2")
        entries = lowered.program.to_json()["blob"]
        numbers = [entry["params"]["values"] for entry in entries if entry["pack"] == "ints"]
        assert (dims.T.ravel().tolist() in numbers) == copied


@pytest.mark.parametrize("isa", ISA_PARAMS)
@pytest.mark.parametrize("threads", [1, 2])
def test_rows_that_are_left_of_groups(threads: int, isa: str) -> None:
    """Blocks take whole groups, rows alone the rest; or blocks take all."""
    module = run_pipeline(chained(columns_of("different", 8, 4), 4))
    _, call = built(module, isa, threads=threads)
    for count in (15, *range(30, 38), 65, 79, 128, 130, 255, 257, 515):
        x = np.random.default_rng(count).normal(size=(count, 20)).astype(np.float32)
        np.testing.assert_array_equal(call(x)[0], ir.interpret(module, [x])[0], err_msg=str(count))
