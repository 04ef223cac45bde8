"""Chains of look-ups in integers, columns that no tree compares: the same codes, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lutcc import ir
from lutcc.ir.passes import DeadColumns, IntegerChains, dead_columns, integer_chains, run_pipeline

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
    if not integer_chains.find_chains(module).cuts:
        assert "int32" in [t.operands[0].type.dtype for t in changed.main.body if t.operands][1:]
    same(module, changed)


@pytest.mark.parametrize("kind", ["sigmoid", "tanh", "gelu", "silu"])
@pytest.mark.parametrize("seed", range(3))
def test_other_activations(kind: str, seed: int) -> None:
    """Rising ones always; those that turn where no threshold lies in the turn, else they say so."""
    net = Net(seed, 6)
    y = net.dequantize(net.scan(net.encode(net.value, 3, 4), 8))
    y = net.b.op("activation", y, kind=kind)
    out = net.dequantize(net.scan(net.encode(y, 4, 4), 5))
    module = net.module(out)
    found = integer_chains.find_chains(module)
    if kind in ("sigmoid", "tanh"):
        assert len(found.chains) == 1
    elif found.cuts:
        assert "neither rises nor falls" in found.cuts[0].reason
        assert kind in found.cuts[0].reason
    same(module, DeadColumns()(IntegerChains()(module)))


def test_a_turn_without_a_threshold_in_it_is_no_matter() -> None:
    net = Net(0, 6)
    y = net.dequantize(net.scan(net.encode(net.value, 3, 4), 8))
    y = net.b.op("activation", y, kind="gelu")
    dims = net.constant(np.arange(8, dtype=np.int32).reshape(2, 4))
    above = net.constant(np.full((2, 16), 0.5, F32))
    codes = net.b.op("tree_encode", y, dims, above)
    module = net.module(net.dequantize(net.scan(codes, 5)))
    (chain,) = integer_chains.find_chains(module).chains
    (line,) = integer_chains.describe(module)
    name = chain.sums.results[0].name
    assert line == f"kept in integers up to the trees that read them: %{name}"
    same(module, IntegerChains()(module))


def test_averages_keep_rising_columns_and_refuse_falling_ones() -> None:
    rising = two_layers(0, accumulate="mean", upcast_every=2)
    changed = IntegerChains()(rising)
    assert opcodes(changed).count("lut_dequantize") == 1
    same(rising, changed)
    falling = two_layers(0, scales=-np.ones(8), accumulate="mean", upcast_every=2)
    (cut,) = integer_chains.find_chains(falling).cuts
    assert "averages round up" in cut.reason
    same(falling, IntegerChains()(falling))


def test_where_and_why_a_chain_is_cut() -> None:
    net = Net(0, 6)
    y = net.dequantize(net.scan(net.encode(net.value, 3, 4), 8), "relu")
    z = net.dequantize(net.scan(net.encode(y, 4, 4), 5))
    module = net.module(z, y)
    (line,) = integer_chains.describe(module)
    assert line == f"%{y.name} is computed in float32: %{y.name} is returned too"
    assert opcodes(IntegerChains()(module)) == opcodes(module)
    net = Net(0, 6)
    y = net.dequantize(net.scan(net.encode(net.value, 3, 4), 8), "relu")
    z = net.b.op("relu", net.dequantize(net.scan(net.encode(y, 4, 4), 8)))
    module = net.module(net.b.op("add", z, y))
    assert "reads the floats too" in integer_chains.describe(module)[0]
    same(module, run_pipeline(module))


def test_several_trees_share_what_they_read() -> None:
    net = Net(3, 6)
    y = net.dequantize(net.scan(net.encode(net.value, 3, 4), 40), "relu")
    ends = [net.dequantize(net.scan(net.encode(y, 3, depth), 4)) for depth in (4, 2)]
    module = net.module(*ends)
    changed = DeadColumns()(IntegerChains()(module))
    assert opcodes(changed).count("lut_dequantize") == 2
    kept = next(op for op in changed.main.body if op.opcode == "lut_accumulate").results[0]
    assert kept.type.size(1) <= 3 * 6
    assert "columns of" in dead_columns.describe(IntegerChains()(module))[0]
    same(module, changed)


def test_dead_columns_of_exact_layers() -> None:
    """Outputs of a linear layer that no tree compares are not computed, whatever follows it."""
    net = Net(5, 6)
    weight, bias = (net.constant(net.rng.normal(size=s).astype(F32)) for s in ((30, 6), (30,)))
    y = net.b.op("relu", net.b.op("linear", net.value, weight, bias))
    module = net.module(net.dequantize(net.scan(net.encode(y, 2, 3), 5)))
    changed = DeadColumns()(module)
    linear = next(op for op in changed.main.body if op.opcode == "linear")
    assert linear.results[0].type.size(1) <= 6
    same(module, changed)
