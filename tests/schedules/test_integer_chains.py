"""Trees over integers, and whole chains of look-ups in integers, on every level."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lutcc import ir
from lutcc.ir.passes import run_pipeline
from lutcc.runtime.bundle import work_per_row
from tests.ir.test_integer_chains import Net
from tests.schedules.harness import ISA_PARAMS, N, built

pytestmark = pytest.mark.one_in(2)

LEAST, MOST = -(2**31), 2**31 - 1


def trees(columns: int, codebooks: int, depth: int) -> ir.Module:
    """Return one tree_encode of int32 with thresholds over the whole range."""
    rng = np.random.default_rng(columns)
    dims = rng.integers(0, columns, (codebooks, depth)).astype(np.int32)
    values = rng.integers(LEAST, MOST, (codebooks, 2**depth)).astype(np.int32)
    values[:, -1], values[0, 1] = MOST, LEAST
    b = ir.Builder("main")
    x = b.param("x", ir.TensorType((N, columns), "int32"))
    b.returns(b.op("tree_encode", x, b.constant("dims", dims), b.constant("values", values)))
    return b.module()


@pytest.mark.parametrize("isa", ISA_PARAMS)
@pytest.mark.parametrize(("columns", "codebooks", "depth"), [(1, 3, 2), (40, 8, 4), (100, 5, 7)])
def test_integers_are_compared_exactly(columns: int, codebooks: int, depth: int, isa: str) -> None:
    """Numbers that float32 cannot tell apart, rows of any strides, few rows and blocks."""
    module = trees(columns, codebooks, depth)
    _, call = built(module, isa)
    rng = np.random.default_rng(0)
    for rows in (1, 17, 300):
        x = rng.integers(LEAST, MOST, (2 * rows, 2 * columns)).astype(np.int32)
        thresholds = module.constants["values"].ravel()
        near = rng.choice(thresholds, x.shape).astype(np.int64) + rng.integers(-1, 2, x.shape)
        x = np.where(rng.random(x.shape) < 0.5, np.clip(near, LEAST, MOST), x).astype(np.int32)
        for view in (x[:rows, :columns], x[::2, ::2], np.asfortranarray(x[:rows, :columns])):
            (want,) = ir.interpret(module, [np.ascontiguousarray(view)])
            np.testing.assert_array_equal(call(view)[0], want)


@pytest.mark.parametrize("isa", ISA_PARAMS)
@pytest.mark.parametrize(("columns", "codebooks", "depth"), [(1, 3, 2), (40, 8, 4), (33, 5, 7)])
def test_intervals_are_exact(columns: int, codebooks: int, depth: int, isa: str) -> None:
    """Values at both ends of intervals and beside them, intervals that go round, any strides."""
    rng = np.random.default_rng(columns)
    most = 2**30
    dims = rng.integers(0, columns, (codebooks, depth)).astype(np.int32)
    starts, ends = rng.integers(-most, most, (2, codebooks, 2**depth), endpoint=True)
    widths = ((ends - starts) % 2**32).astype(np.uint32).view(np.int32)
    widths[0, 1], starts[0, 1] = -1, -most
    constants = {"dims": dims, "starts": starts.astype(np.int32), "widths": widths}
    b = ir.Builder("main")
    x = b.param("x", ir.TensorType((N, columns), "int32"))
    operands = [b.constant(name, array) for name, array in constants.items()]
    b.returns(b.op("interval_encode", x, *operands))
    module = b.module()
    _, call = built(module, isa)
    for rows in (1, 17, 300):
        near = rng.choice(np.concatenate([starts.ravel(), ends.ravel()]), (2 * rows, 2 * columns))
        x = np.clip(near + rng.integers(-1, 2, near.shape), -most, most).astype(np.int32)
        for view in (x[:rows, :columns], x[::2, ::2], np.asfortranarray(x[:rows, :columns])):
            (want,) = ir.interpret(module, [np.ascontiguousarray(view)])
            np.testing.assert_array_equal(call(view)[0], want)


def chain(codebooks: int, outputs: int, **attrs: Any) -> ir.Module:
    """Return three look-up layers; a third of the columns in between fall."""
    net = Net(1, 20)
    value = net.value
    for layer in range(3):
        acc = net.scan(net.encode(value, codebooks, 4, 1.0 if not layer else 4.0), outputs, **attrs)
        signs = np.where(net.rng.random(outputs) < (0 if attrs else 0.3), -1.0, 1.0)
        last = layer == 2
        value = net.dequantize(acc, "none" if last else "relu", None if last else signs)
    return net.module(value)


@pytest.mark.parametrize("isa", ISA_PARAMS)
@pytest.mark.parametrize("attrs", [{}, {"accumulate": "mean", "upcast_every": 4}], ids=str)
def test_whole_chains(attrs: dict[str, Any], isa: str) -> None:
    module = chain(7, 37, **attrs)
    prepared = run_pipeline(module)
    inside = [op for f in prepared.functions for op in f.body if op.opcode == "tree_encode"]
    assert [op.operands[0].type.dtype for op in inside] == ["float32", "int32", "int32"]
    _, call = built(prepared, isa)
    for rows in (1, 2, 33, 300):
        x = np.random.default_rng(rows).normal(size=(rows, 20)).astype(np.float32)
        np.testing.assert_array_equal(call(x)[0], ir.interpret(module, [x])[0])


@pytest.mark.parametrize("isa", ISA_PARAMS)
@pytest.mark.parametrize("attrs", [{}, {"accumulate": "mean", "upcast_every": 4}], ids=str)
def test_chains_of_functions_that_turn(attrs: dict[str, Any], isa: str) -> None:
    """GELU between look-ups, and averages that fall: trees ask about intervals."""
    net = Net(4, 20)
    y = net.dequantize(net.scan(net.encode(net.value, 7, 4), 37, **attrs))
    y = net.b.op("activation", y, kind="gelu")
    signs = np.where(np.arange(19) % 2, -1.0, 1.0)
    y = net.dequantize(net.scan(net.encode(y, 6, 4, 0.2), 19, **attrs), "relu", signs)
    module = net.module(net.dequantize(net.scan(net.encode(y, 5, 4, 4.0), 33)))
    prepared = run_pipeline(module)
    inside = [op.opcode for f in prepared.functions for op in f.body if "encode" in op.opcode]
    last = "interval_encode" if attrs else "tree_encode"
    assert inside == ["tree_encode", "interval_encode", last]
    _, call = built(prepared, isa)
    for rows in (1, 2, 33, 300):
        x = np.random.default_rng(rows).normal(size=(rows, 20)).astype(np.float32)
        np.testing.assert_array_equal(call(x)[0], ir.interpret(module, [x])[0])


@pytest.mark.isa("avx2")
def test_threads_change_nothing() -> None:
    module = chain(5, 33)
    _, call = built(module, "avx2", threads=3)
    x = np.random.default_rng(0).normal(size=(500, 20)).astype(np.float32)
    np.testing.assert_array_equal(call(x)[0], ir.interpret(module, [x])[0])


def test_what_passes_between_fused_layers_is_no_traffic() -> None:
    """By which the number of threads is chosen: only what goes in and out of the stage counts."""
    work = work_per_row(run_pipeline(chain(5, 33)))
    assert work["bytes"] == 4 * (20 + 33)
    assert work["comparisons"] == 3 * 5 * 4
