"""Groups of look-ups and of reductions stay apart, and still run in some order."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from lutcc import ir
from lutcc.ir.passes import FoldBatchNormAndAffine, FuseRows, run_pipeline

N = ir.Sym("n")
WIDTH = 8
LOOK_UPS = {"tree_encode", "lut_accumulate"}
REDUCTIONS = {"layer_norm", "softmax"}


class Maker:
    """Builds a module of (N, 8) values."""

    def __init__(self) -> None:
        self.b = ir.Builder("main")
        self.rng = np.random.default_rng(0)
        self.x = self.b.param("x", ir.TensorType((N, WIDTH), "float32"))

    def constant(self, array: np.ndarray) -> Any:
        return self.b.constant(f"c{self.rng.integers(10**12)}", array)

    def floats(self, *shape: int) -> Any:
        return self.constant(self.rng.normal(size=shape).astype(np.float32))

    def look_up(self, v: Any) -> Any:
        dims = self.constant(self.rng.integers(0, WIDTH, (2, 4)).astype(np.int32))
        codes = self.b.op("tree_encode", v, dims, self.floats(2, 16))
        return self.b.op("lut_accumulate", codes, self.floats(2, 16, WIDTH))

    def norm(self, v: Any) -> Any:
        return self.b.op("layer_norm", v, self.floats(WIDTH), self.floats(WIDTH))

    def linear(self, v: Any) -> Any:
        return self.b.op("linear", v, self.floats(WIDTH, WIDTH), self.floats(WIDTH))

    def module(self, *results: Any) -> ir.Module:
        self.b.returns(*results)
        return self.b.module()


def groups(module: ir.Module) -> list[list[str]]:
    """Return the opcodes of each group, in the order in which they run."""
    fused = FuseRows()(module)
    by_name = {f.name: f for f in fused.functions}
    called = [str(op.attr("callee")) for op in fused.main.body if op.opcode == "call"]
    return [[op.opcode for op in by_name[name].body if op.opcode != "constant"] for name in called]


def test_a_chain_is_cut_where_the_family_changes() -> None:
    m = Maker()
    v = m.linear(m.norm(m.b.op("relu", m.look_up(m.x))))
    v = m.look_up(m.b.op("relu", v))
    assert groups(m.module(v)) == [
        ["tree_encode", "lut_accumulate", "relu"],
        ["layer_norm", "linear", "relu"],
        ["tree_encode", "lut_accumulate"],
    ]


def test_what_both_read_joins_the_look_ups() -> None:
    m = Maker()
    v = m.b.op("relu", m.x)
    found = groups(m.module(m.norm(v), m.look_up(v)))
    assert sorted(found) == [["layer_norm"], ["relu", "tree_encode", "lut_accumulate"]]


def test_what_reads_both_comes_after() -> None:
    m = Maker()
    v = m.b.op("add", m.norm(m.x), m.look_up(m.x))
    assert groups(m.module(v))[-1] == ["add"]


def test_a_feed_forward_part_is_one_group() -> None:
    m = Maker()
    h = m.norm(m.b.op("add", m.linear(m.x), m.x))
    wide = m.b.op("activation", m.linear(h), kind="gelu")
    m.b.returns(m.norm(m.b.op("add", m.linear(wide), h)))
    assert len(groups(m.b.module())) == 1


def test_activations_fold_into_products_that_take_them() -> None:
    m = Maker()
    once = m.b.op("activation", m.linear(m.x), kind="silu")
    shared = m.linear(once)
    results = once, m.b.op("activation", shared, kind="tanh"), shared
    folded = FoldBatchNormAndAffine()(m.module(*results))
    products = [op for op in folded.main.body if op.opcode == "linear"]
    assert [op.attr("activation") for op in products] == ["silu", "none"]
    assert [op.attr("kind") for op in folded.main.body if op.opcode == "activation"] == ["tanh"]


@pytest.mark.parametrize("seed", range(40))
def test_any_graph_has_an_order_and_keeps_its_meaning(seed: int) -> None:
    choose = random.Random(seed)
    m = Maker()
    values = [m.x]
    for _ in range(choose.randint(3, 12)):
        v, w = choose.choice(values[-4:]), choose.choice(values)
        made = choose.choice(
            [
                lambda v=v: m.look_up(v),
                lambda v=v: m.norm(v),
                lambda v=v: m.linear(v),
                lambda v=v: m.b.op("relu", v),
                lambda v=v, w=w: m.b.op("add", v, w),
                lambda v=v: m.b.op("softmax", v),
            ]
        )
        values.append(made())
    module = m.module(*values[-3:])
    for ops in groups(module):
        assert not (LOOK_UPS & set(ops) and REDUCTIONS & set(ops))
    x = np.random.default_rng(seed).normal(size=(5, WIDTH)).astype(np.float32)
    fused = ir.interpret(FuseRows()(module), [x])
    for got, want in zip(fused, ir.interpret(module, [x]), strict=True):
        np.testing.assert_array_equal(got, want)
    run_pipeline(module)
