"""Every value of every knob gives the interpreter's bits, for every kind of stage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lutcc import ir
from lutcc.codegen.products import SCHEDULES, default_config, product_name, products_of
from lutcc.ir.passes import run_pipeline
from lutcc.schedules.space import Space, nested
from lutcc.schedules.x86.config import MOST_FEW
from lutcc.schedules.x86.isa import isa_by_name
from lutcc.schedules.x86.plan import ALWAYS, default_stage_configs, stage_space
from lutcc.tuning.products import at_rows
from tests.schedules.codebook_modules import Weights
from tests.schedules.harness import (
    ISA_PARAMS,
    WIDEST_ISA_PARAMS,
    N,
    built,
    check,
    maddness,
    random_lut,
)
from tests.schedules.test_dense import dense_module

pytestmark = pytest.mark.one_in(6)


def _start(columns: int, dtype: str = "float32") -> tuple[ir.Builder, ir.Value]:
    b = ir.Builder("main")
    return b, b.param("x", ir.TensorType((N, columns), dtype))


def _dense(b: ir.Builder, x: ir.Value, outputs: int, name: str) -> ir.Value:
    """A matrix product whose sums are whole numbers, so that their order does not matter."""
    rng = np.random.default_rng(outputs)
    weight = rng.integers(-3, 4, (outputs, x.type.size(1))).astype(np.float32)
    bias = b.constant(f"{name}_bias", rng.integers(-8, 9, outputs).astype(np.float32))
    return b.op("linear", x, b.constant(name, weight), bias, activation="relu")


def linear(depth: int = 21, outputs: int = 70) -> ir.Module:
    b, x = _start(depth)
    b.returns(_dense(b, x, outputs, "w"))
    return b.module()


def two_linear() -> ir.Module:
    """The first product is read twice and returned; the second is quantised."""
    b, x = _start(9)
    hidden = _dense(b, x, 20, "w0")
    total = b.op("add", _dense(b, hidden, 20, "w1"), hidden)
    rng = np.random.default_rng(0)
    scale = b.constant("scale", np.full(20, 0.25, np.float32))
    zero = b.constant("zero", rng.integers(0, 99, 20).astype(np.float32))
    b.returns(hidden, b.op("quantize", total, scale, zero))
    return b.module()


def look_up_linear() -> ir.Module:
    """A stage that holds a scan and a matrix product."""
    b, x = _start(20)
    rng = np.random.default_rng(0)
    dims = b.constant("d", rng.integers(0, 20, (5, 4)).astype(np.int32))
    vals = b.constant("v", rng.integers(-4, 5, (5, 16)).astype(np.float32))
    lut = b.constant("lut", random_lut(rng, 5, 16, 33, "uint8"))
    acc = b.op("lut_accumulate", b.op("tree_encode", x, dims, vals), lut)
    scale = b.constant("s", np.full(33, 0.125, np.float32))
    offset = b.constant("o", np.full(33, -64.0, np.float32))
    b.returns(_dense(b, b.op("lut_dequantize", acc, scale, offset), 18, "w"))
    return b.module()


def nearest() -> ir.Module:
    b, x = _start(30)
    rng = np.random.default_rng(0)
    arrays = {
        "centroids": rng.integers(-3, 4, (16, 24)).astype(np.float32),
        "half_norms": rng.integers(0, 9, (4, 16)).astype(np.float32),
        "columns": rng.permutation(30)[:24].astype(np.int32),
    }
    operands = [b.constant(name, array) for name, array in arrays.items()]
    codes = b.op("nearest_encode", x, *operands, starts=(0, 3, 3, 10, 24))
    lut = b.constant("lut", random_lut(rng, 4, 16, 20, "int8"))
    b.returns(codes, b.op("lut_accumulate", codes, lut))
    return b.module()


def quantised_trees() -> ir.Module:
    """``quantize`` feeds trees with uint8 thresholds."""
    b, x = _start(20)
    rng = np.random.default_rng(0)
    scale = b.constant("s", np.full(20, 16.0, np.float32))
    q = b.op("quantize", x, scale, b.constant("z", np.full(20, 128.0, np.float32)))
    dims = b.constant("d", rng.integers(0, 20, (5, 4)).astype(np.int32))
    vals = b.constant("v", rng.integers(0, 256, (5, 16)).astype(np.uint8))
    lut = b.constant("lut", random_lut(rng, 5, 16, 33, "uint8"))
    b.returns(b.op("lut_accumulate", b.op("tree_encode", q, dims, vals), lut))
    return b.module()


def sparse_trees() -> ir.Module:
    """Chunks of 16 columns of which 1, 2, 3, ... are compared, beside some that none reads."""
    b, x = _start(150)
    dims = np.array([[0, 17, 18, 33], [35, 36, 50, 51], [52, 53, 54, 82], [149, 148, 80, 81]])
    vals = np.random.default_rng(0).integers(-4, 5, (4, 16)).astype(np.float32)
    trees = b.constant("d", dims.astype(np.int32)), b.constant("v", vals)
    lut = random_lut(np.random.default_rng(0), 4, 16, 20, "uint8")
    b.returns(b.op("lut_accumulate", b.op("tree_encode", x, *trees), b.constant("lut", lut)))
    return b.module()


STAGES: dict[str, Callable[[], ir.Module]] = {
    "exact": lambda: maddness(20, 6, 37),
    "mean": lambda: maddness(20, 6, 330, accumulate="mean", upcast_every=4),
    "many entries": lambda: maddness(20, 6, 150, entries=64),
    "signed tables, wide": lambda: maddness(20, 6, 600, lut_dtype="int8"),
    "float tables": lambda: maddness(20, 6, 37, lut_dtype="float32"),
    "uint8 input": lambda: maddness(40, 6, 21, x_dtype="uint8"),
    "linear": linear,
    "narrow linear": lambda: linear(5, 3),
    "two linear": two_linear,
    "look-up and linear": look_up_linear,
    "nearest": nearest,
    "quantised trees": quantised_trees,
    "sparse trees": sparse_trees,
}


def inputs_of(module: ir.Module) -> Callable[[int], list[np.ndarray]]:
    """Return what makes whole-number inputs: every float sum is exact, ties are many."""

    def inputs(n: int) -> list[np.ndarray]:
        rng = np.random.default_rng(n)
        return [
            rng.integers(0 if p.type.dtype == "uint8" else -8, 9, (n, p.type.size(1))).astype(
                p.type.dtype
            )
            for p in module.main.params
        ]

    return inputs


def covering(space: Space) -> list[dict[str, Any]]:
    """Return few configs that together hold every value that some config holds."""
    configs = [dict(c) for c in space.configs()]
    unseen = {item for config in configs for item in config.items()}
    chosen = []
    while unseen:
        best = max(configs, key=lambda c: len(unseen & set(c.items())))
        unseen -= set(best.items())
        chosen.append(best)
    return chosen


@pytest.mark.parametrize("isa", WIDEST_ISA_PARAMS)
@pytest.mark.parametrize("stage", STAGES)
def test_every_value_of_every_knob(isa: str, stage: str) -> None:
    module = run_pipeline(STAGES[stage]())
    (function,) = (f for f in module.functions if f.name != "main")
    space = stage_space(isa_by_name(isa), function, 100)
    for config in covering(space):
        configs = {function.name: nested(config)}
        check(module, isa, inputs_of(module), rows=(1, 5, 70, 131), configs=configs)


def sampled(columns: int, outputs: int) -> ir.Module:
    """A product over every other column."""
    b, x = _start(columns)
    rng = np.random.default_rng(0)
    arrays = {
        "b": rng.integers(-3, 4, (columns, outputs)).astype(np.float32),
        "indices": np.arange(0, columns, 2, dtype=np.int32),
        "scales": np.full(columns // 2, 2.0, np.float32),
        "bias": rng.integers(-8, 9, outputs).astype(np.float32),
    }
    b.returns(b.op("sampled_matmul", x, *(b.constant(n, a) for n, a in arrays.items())))
    return b.module()


PRODUCTS: dict[str, Callable[[], ir.Module]] = {
    "float32": lambda: dense_module("float32", 37, 150),
    "bfloat16": lambda: dense_module("bfloat16", 37, 150),
    "int8": lambda: dense_module("int8", 37, 150),
    "codebooks": lambda: Weights(37, 150, bits=4, codebooks=37, scales=1).matmul("int8"),
    "sampled": lambda: sampled(40, 37),
}


@pytest.mark.parametrize("isa", WIDEST_ISA_PARAMS)
@pytest.mark.parametrize(
    ("product", "rows"), [*((p, 61) for p in PRODUCTS), ("float32", 5), ("codebooks", 5)]
)
def test_every_value_of_every_knob_of_a_product(isa: str, product: str, rows: int) -> None:
    """Whole numbers, so that the order of sums does not matter; x is scaled to 127 where it is."""
    module = PRODUCTS[product]()
    op = at_rows(products_of(module.main)[0], rows)
    space = SCHEDULES[op.opcode].space(op, isa_by_name(isa))
    rng = np.random.default_rng(rows)
    x = rng.integers(-8, 9, (rows, op.operands[0].type.size(1))).astype(np.float32)
    (want,) = ir.interpret(module, [x])
    scale = np.abs(want).max()
    for config in covering(space):
        _, call = built(module, isa, {product_name(op): nested(config)})
        error = np.abs(call(x)[0] - want).max()
        assert error <= (0 if product in ("int8", "codebooks", "sampled") else 1e-5 * scale), config


@pytest.mark.parametrize("isa", ISA_PARAMS)
@pytest.mark.parametrize("rows", [1, 2, 8, 64, 4096])
@pytest.mark.parametrize("product", PRODUCTS)
def test_spaces_of_products_are_small_and_hold_the_default(
    isa: str, rows: int, product: str
) -> None:
    level = isa_by_name(isa)
    op = at_rows(products_of(PRODUCTS[product]().main)[0], rows)
    space = SCHEDULES[op.opcode].space(op, level)
    wanted = default_config(op, level).to_json()
    for name, value in space.default.items():
        field = name.partition(".")[2]
        if field == "few":
            assert value == (MOST_FEW if rows <= wanted["few"] else 0)
        else:
            assert wanted[field] == value
    assert 1 <= sum(1 for _ in space.configs()) <= 400


ELEMENTWISE = ("relu", "add", "affine", "quantize")


@pytest.mark.parametrize("isa", ISA_PARAMS)
@pytest.mark.parametrize("columns", [1, 2, 7, 16, 41, 64])
def test_elementwise_stages(isa: str, columns: int) -> None:
    """A chain whose values are read twice and returned, any strides, past the caches or not."""
    b, x = _start(columns)
    y = b.param("y", ir.TensorType((N, columns), "float32"))
    rng = np.random.default_rng(columns)
    vectors = [b.constant(f"v{i}", rng.normal(size=columns).astype(np.float32)) for i in range(4)]
    total = b.op("add", b.op("relu", x), y)
    scaled = b.op("affine", total, *vectors[:2])
    b.returns(b.op("quantize", scaled, *vectors[2:]), b.op("add", scaled, total))
    module = b.module()
    _, call = built(module, isa)
    for n in (1, 3, 16, 33, 5000 if columns == 64 else 70):
        made = np.random.default_rng(n)
        first, second = made.normal(size=(2, n, columns)).astype(np.float32)
        first[0, 0], second[-1, -1] = np.nan, np.inf
        expected = ir.interpret(module, [first, second])
        views = {
            "row-major": (first, second),
            "column-major": (np.asfortranarray(first), second),
            "rows of a wider matrix": (np.pad(first, ((0, 0), (0, 3)))[:, :columns], second),
        }
        for name, arrays in views.items():
            for got, want in zip(call(*arrays), expected, strict=True):
                np.testing.assert_array_equal(got, want, err_msg=f"{name}, n={n}")


@pytest.mark.parametrize("isa", ISA_PARAMS)
def test_sums_of_integers_as_the_only_input(isa: str) -> None:
    b, acc = _start(35, "int32")
    rng = np.random.default_rng(0)
    vectors = [b.constant(name, rng.normal(size=35).astype(np.float32)) for name in "so"]
    b.returns(b.op("lut_dequantize", acc, *vectors, activation="relu"))

    def inputs(n: int) -> list[np.ndarray]:
        return [np.random.default_rng(n).integers(-(2**20), 2**20, (n, 35)).astype(np.int32)]

    check(b.module(), isa, inputs, rows=(1, 5, 70))


@pytest.mark.parametrize("isa", ISA_PARAMS)
def test_threads_share_batches_of_rows(isa: str) -> None:
    module = two_linear()
    check(module, isa, inputs_of(module), rows=(1, 31, 64, 130, 500), threads=2)


@pytest.mark.parametrize("isa", ISA_PARAMS)
@pytest.mark.parametrize("rows", [1, 2, 8, 64, 4096])
@pytest.mark.parametrize("stage", STAGES)
def test_spaces_are_small_and_hold_the_default(isa: str, stage: str, rows: int) -> None:
    module = run_pipeline(STAGES[stage]())
    (function,) = (f for f in module.functions if f.name != "main")
    level = isa_by_name(isa)
    space = stage_space(level, function, rows)
    default = default_stage_configs(level, function)
    wanted = default.to_json()
    alone = space.default["stage.row_threshold"] == ALWAYS
    assert alone or rows > default.stage.row_threshold
    for name, value in space.default.items():
        part, _, field = name.partition(".")
        assert name == "stage.row_threshold" or wanted[part][field] == value
    assert 1 <= sum(1 for _ in space.configs()) <= 400
