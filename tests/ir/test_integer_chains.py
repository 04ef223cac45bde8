"""Chains of look-ups in integers, columns that no tree compares: the same codes, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lutcc import ir
from lutcc.ir.passes import DeadColumns, IntegerChains, LookupNote, run_pipeline
from lutcc.ir.passes.chains import find_chains

F32 = np.float32
N = ir.Sym("n")


class Net:
    """Look-up layers behind one another, with random constants."""

    def __init__(self, seed: int, columns: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.b = ir.Builder("main")
        self.value = self.b.param("x", ir.TensorType((N, columns), "float32"))
        self.count = 0

    def constant(self, array: np.ndarray) -> ir.Value:
        self.count += 1
        return self.b.constant(f"c{self.count}", array)

    def encode(self, value: ir.Value, codebooks: int, depth: int, spread: float = 1.0) -> ir.Value:
        columns = value.type.size(1)
        dims = self.rng.integers(0, columns, (codebooks, depth)).astype(np.int32)
        values = self.rng.normal(scale=spread, size=(codebooks, 2**depth)).astype(F32)
        return self.b.op("tree_encode", value, self.constant(dims), self.constant(values))

    def scan(self, codes: ir.Value, outputs: int, dtype: str = "uint8", **attrs: Any) -> ir.Value:
        entries = {"uint8": (0, 256), "int8": (-128, 128)}[dtype]
        shape = (codes.type.size(1), 16, outputs)
        lut = self.rng.integers(*entries, shape).astype(dtype)
        return self.b.op("lut_accumulate", codes, self.constant(lut), **attrs)

    def dequantize(
        self, acc: ir.Value, activation: str = "none", scales: np.ndarray | None = None
    ) -> ir.Value:
        outputs = acc.type.size(1)
        if scales is None:
            scales = self.rng.uniform(0.5, 2, outputs)
        scale = (scales / 40).astype(F32)
        offset = (-scale * self.rng.uniform(0, 500, outputs)).astype(F32)
        constants = self.constant(scale), self.constant(offset)
        return self.b.op("lut_dequantize", acc, *constants, activation=activation)

    def module(self, *values: ir.Value) -> ir.Module:
        self.b.returns(*values)
        return self.b.module()


def opcodes(module: ir.Module) -> list[str]:
    return [op.opcode for op in module.main.body if op.opcode != "constant"]


def same(module: ir.Module, changed: ir.Module, rows: int = 50, columns: int = 6) -> None:
    ir.verify(changed)
    x = np.random.default_rng(1).normal(size=(rows, columns)).astype(F32)
    for want, got in zip(ir.interpret(module, [x]), ir.interpret(changed, [x]), strict=True):
        np.testing.assert_array_equal(got, want)


def two_layers(
    seed: int = 0, activation: str = "relu", scales: np.ndarray | None = None, **attrs: Any
) -> ir.Module:
    net = Net(seed, 6)
    acc = net.scan(net.encode(net.value, 3, 4), 8, **attrs)
    y = net.dequantize(acc, activation, scales)
    return net.module(net.dequantize(net.scan(net.encode(y, 4, 4, 5.0), 5)))


def test_trees_read_sums_and_dead_columns_go() -> None:
    module = two_layers()
    changed = DeadColumns()(IntegerChains()(module))
    assert opcodes(changed) == ["tree_encode", "lut_accumulate"] * 2 + ["lut_dequantize"]
    trees = [op for op in changed.main.body if op.opcode == "tree_encode"]
    assert [tree.operands[0].type.dtype for tree in trees] == ["float32", "int32"]
    dims = changed.constants[
        str(next(o for o in changed.main.body if trees[1].operands[1] in o.results).attr("ref"))
    ]
    assert set(dims.ravel()) == set(range(trees[1].operands[0].type.size(1)))
    same(module, changed)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.integers(0, 2**20),
    st.sampled_from(["none", "relu"]),
    st.sampled_from(["uint8", "int8"]),
    st.lists(
        st.sampled_from([-3.0, -1e-3, 0.0, 1e-3, 1.0, 1e30, np.inf, np.nan]), min_size=8, max_size=8
    ),
)
def test_any_scale_gives_the_same_codes(
    seed: int, activation: str, dtype: str, scales: list[float]
) -> None:
    """Falling columns, constant ones, infinities and NaN among the scales."""
    with np.errstate(all="ignore"):
        module = two_layers(seed, activation, np.array(scales), dtype=dtype)
        changed = DeadColumns()(IntegerChains()(module))
    if not any(cut.followed for cut in find_chains(module).cuts):
        assert "int32" in [t.operands[0].type.dtype for t in changed.main.body if t.operands][1:]
    same(module, changed)


def narrowed_after_mapping() -> ir.Module:
    """A table whose largest sum stands in a column that no tree compares."""
    b = ir.Builder("main")
    codes = b.param("codes", ir.TensorType((N, 1), "uint8"))
    lut = b.constant("lut", np.array([[[44, 208], [166, 233]]], np.uint8))
    sums = b.op("lut_accumulate", codes, lut, upcast_every=4)
    scale = b.constant("scale", np.array([0.020375, 0.01479814], F32))
    offset = b.constant("offset", np.array([-0.70373523, -1.2654215], F32))
    y = b.op("lut_dequantize", sums, scale, offset)
    dims = b.constant("dims", np.zeros((1, 1), np.int32))
    values = b.constant("values", np.array([[-0.21879166, -1.245911]], F32))
    next_codes = b.op("tree_encode", y, dims, values)
    floats = b.constant("floats", np.ones((1, 2, 3), F32))
    b.returns(b.op("lut_accumulate", next_codes, floats))
    return b.module()


@pytest.mark.parametrize("attrs", [{}, {"accumulate": "mean", "upcast_every": 4}])
@pytest.mark.parametrize("falling", [False, True])
def test_a_second_run_changes_nothing(falling: bool, attrs: dict[str, Any]) -> None:
    scales = -np.ones(8) if falling else None
    for module in (narrowed_after_mapping(), two_layers(1, "relu", scales, **attrs)):
        once = run_pipeline(module)
        assert run_pipeline(once).canonical() == once.canonical()


RISING, TURNING = ("sigmoid", "tanh", "hardsigmoid"), ("gelu", "gelu_tanh", "silu", "hardswish")


@pytest.mark.parametrize("kind", [*RISING, *TURNING])
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_other_activations(kind: str, dtype: str) -> None:
    """Rising ones take single thresholds; thresholds where one turns become intervals."""
    net = Net(0, 6)
    y = net.dequantize(net.scan(net.encode(net.value, 3, 4), 8, dtype))
    y = net.b.op("activation", y, kind=kind)
    module = net.module(net.dequantize(net.scan(net.encode(y, 4, 4, 0.2), 5)))
    changed = DeadColumns()(IntegerChains()(module))
    assert opcodes(changed).count("interval_encode") == (kind in TURNING)
    assert "activation" not in opcodes(changed)
    same(module, changed)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.integers(0, 2**20),
    st.sampled_from(TURNING),
    st.lists(st.sampled_from([-2.0, -0.1, 0.0, 0.3, 1.0, 4.0]), min_size=8, max_size=8),
    st.sampled_from([{}, {"dtype": "int8"}, {"accumulate": "mean", "upcast_every": 4}]),
    st.booleans(),
)
def test_turning_functions_of_any_scale(
    seed: int, kind: str, scales: list[float], attrs: dict[str, Any], flip: bool
) -> None:
    """Random thresholds, biases, scales of both signs; what turns up or down, and batch norm."""
    net = Net(seed, 6)
    y = net.dequantize(net.scan(net.encode(net.value, 3, 4), 8, **attrs), scales=np.array(scales))
    y = net.b.op("activation", y, kind=kind)
    if flip:
        factors, shifts = net.rng.normal(size=(2, 8)).astype(F32)
        y = net.b.op("affine", y, net.constant(factors), net.constant(shifts))
    spread = net.rng.choice([1e-3, 0.1, 1.0])
    module = net.module(net.dequantize(net.scan(net.encode(y, 4, 4, spread), 5)))
    found = find_chains(module)
    assert [cut.reason for cut in found.cuts if cut.followed] == []
    assert len(found.chains) == 1
    same(module, DeadColumns()(IntegerChains()(module)), rows=200)


def test_a_turn_without_a_threshold_in_it_is_no_matter() -> None:
    net = Net(0, 6)
    y = net.dequantize(net.scan(net.encode(net.value, 3, 4), 8))
    y = net.b.op("activation", y, kind="gelu")
    dims = net.constant(np.arange(8, dtype=np.int32).reshape(2, 4))
    above = net.constant(np.full((2, 16), 0.5, F32))
    codes = net.b.op("tree_encode", y, dims, above)
    module = net.module(net.dequantize(net.scan(codes, 5)))
    changed = IntegerChains()(module)
    assert opcodes(changed) == ["tree_encode", "lut_accumulate"] * 2 + ["lut_dequantize"]
    same(module, changed)


def test_what_turns_more_than_once_is_refused() -> None:
    """GELU of GELU turns where GELU does, and where it takes the value at which GELU does."""
    net = Net(0, 6)
    y = net.dequantize(net.scan(net.encode(net.value, 3, 4), 8), scales=np.full(8, 0.5))
    for factor, shift in ((8.0, -0.6), (1.0, 0.0)):
        y = net.b.op("activation", y, kind="gelu")
        y = net.b.op("affine", y, *(net.constant(np.full(8, v, F32)) for v in (factor, shift)))
    module = net.module(net.dequantize(net.scan(net.encode(y, 4, 4, 0.1), 5)))
    first, last = find_chains(module).cuts
    assert "turns more than once behind gelu, gelu" in first.reason
    assert first.followed
    assert last.reason == "it is returned"
    assert not last.followed
    same(module, IntegerChains()(module))


def test_averages_that_fall_are_asked_about_intervals() -> None:
    """They round up, so that mirrored they would differ."""
    rising = two_layers(0, accumulate="mean", upcast_every=2)
    changed = IntegerChains()(rising)
    assert opcodes(changed).count("lut_dequantize") == 1
    assert "interval_encode" not in opcodes(changed)
    same(rising, changed)
    falling = two_layers(0, scales=-np.ones(8), accumulate="mean", upcast_every=2)
    changed = IntegerChains()(falling)
    assert opcodes(changed).count("interval_encode") == 1
    same(falling, changed)


def test_quantised_values_are_compared_as_sums() -> None:
    net = Net(2, 6)
    y = net.dequantize(net.scan(net.encode(net.value, 3, 4), 8))
    y = net.b.op("quantize", y, net.constant(np.full(8, 7, F32)), net.constant(np.full(8, 90, F32)))
    dims = net.constant(net.rng.integers(0, 8, (4, 4)).astype(np.int32))
    values = net.constant(net.rng.integers(0, 256, (4, 16)).astype(np.uint8))
    codes = net.b.op("tree_encode", y, dims, values)
    module = net.module(net.dequantize(net.scan(codes, 5)))
    changed = IntegerChains()(module)
    assert "quantize" not in opcodes(changed)
    same(module, changed)


def told(module: ir.Module) -> list[LookupNote]:
    notes: list[LookupNote] = []
    run_pipeline(module, notes=notes)
    return notes


def test_where_and_why_a_chain_is_cut() -> None:
    net = Net(0, 6)
    y = net.dequantize(net.scan(net.encode(net.value, 3, 4), 8), "relu")
    z = net.dequantize(net.scan(net.encode(y, 4, 4), 5))
    module = net.module(z, y)
    first, last = told(module)
    assert (first.integers, first.cut, first.behind) == (False, True, ("relu",))
    assert first.reason == "it is returned, and tree_encode reads it"
    assert (last.integers, last.cut, last.reason) == (False, False, "it is returned")
    assert opcodes(IntegerChains()(module)) == opcodes(module)
    net = Net(0, 6)
    y = net.dequantize(net.scan(net.encode(net.value, 3, 4), 8), "relu")
    z = net.b.op("relu", net.dequantize(net.scan(net.encode(y, 4, 4), 8)))
    module = net.module(net.b.op("add", z, y))
    assert told(module)[0].reason == "add joins it with another value, besides trees"
    same(module, run_pipeline(module))


def test_what_is_told_of_a_chain() -> None:
    signs = np.where(np.arange(8) < 4, -1.0, 1.0)
    first, _ = told(two_layers(scales=signs))
    assert (first.integers, first.columns, first.value) == (True, 8, "acc")
    assert first.computed < 8
    assert first.reason == "the next tree compares them, 3 columns mirrored"


def test_several_trees_share_what_they_read() -> None:
    net = Net(3, 6)
    y = net.dequantize(net.scan(net.encode(net.value, 3, 4), 40), "relu")
    ends = [net.dequantize(net.scan(net.encode(y, 3, depth), 4)) for depth in (4, 2)]
    module = net.module(*ends)
    changed = DeadColumns()(IntegerChains()(module))
    assert opcodes(changed).count("lut_dequantize") == 2
    kept = next(op for op in changed.main.body if op.opcode == "lut_accumulate").results[0]
    assert kept.type.size(1) <= 3 * 6
    first, *_ = told(module)
    assert first.reason.startswith("2 trees compare them")
    assert (first.columns, first.computed) == (40, kept.type.size(1))
    same(module, changed)


def test_dead_columns_of_exact_layers() -> None:
    """Outputs of a linear layer that no tree compares are not computed, whatever follows it."""
    net = Net(5, 6)
    weight, bias = (net.constant(net.rng.normal(size=s).astype(F32)) for s in ((30, 6), (30,)))
    y = net.b.op("relu", net.b.op("linear", net.value, weight, bias))
    module = net.module(net.dequantize(net.scan(net.encode(y, 2, 3), 5)))
    changed = DeadColumns()(module)
    (note, _) = sorted(told(module), key=lambda note: -note.columns)
    assert (note.columns, note.integers) == (30, False)
    assert note.computed <= 6
    linear = next(op for op in changed.main.body if op.opcode == "linear")
    assert linear.results[0].type.size(1) <= 6
    same(module, changed)
