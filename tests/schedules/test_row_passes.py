"""Layer norm, softmax and activations: every level against the interpreter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lutcc import ir
from lutcc.ir.activations import KINDS
from lutcc.ir.arithmetic import quantize_rows
from lutcc.ir.passes import fuse_rows
from tests.schedules.harness import ISA_PARAMS, N, built, tree_constants

F32 = np.float32
#: One column, less than a vector, a power of two, whole vectors, tails, more vectors than sums.
COLUMNS = (1, 3, 8, 13, 16, 23, 64, 107)
Body = Callable[[ir.Builder, Any, Any, Callable[..., Any]], tuple[Any, ...]]


def module_of(columns: int, body: Body) -> ir.Module:
    """Return a module of two inputs; ``body`` gets builder, inputs and a maker of constants."""
    rng = np.random.default_rng(columns)
    b = ir.Builder("main")
    x, y = (b.param(name, ir.TensorType((N, columns), "float32")) for name in "xy")

    def constant(*shape: int) -> Any:
        return b.constant(f"c{rng.integers(10**9)}", rng.normal(size=shape).astype(F32))

    b.returns(*body(b, x, y, constant))
    return b.module()


def agree(
    module: ir.Module, isa: str, rows: tuple[int, ...], *, tolerance: float = 2e-5
) -> set[str]:
    """Compare, for rows as they lie and for any strides; return the opcodes that main is left."""
    lowered, call = built(module, isa)
    for n in rows:
        rng = np.random.default_rng(n)
        wide = [
            (rng.normal(size=(2 * n, 2 * p.type.size(1))) * 3).astype(F32)
            for p in module.main.params
        ]
        for inputs in (
            [w[:n, : w.shape[1] // 2].copy() for w in wide],
            [w[::2, ::2] for w in wide],
        ):
            wanted = ir.interpret(module, inputs)
            for got, want in zip(call(*inputs), wanted, strict=True):
                bound = tolerance * (1 + np.abs(want).max())
                np.testing.assert_allclose(got, want, rtol=1e-5, atol=bound, err_msg=f"n={n}")
    return {op.opcode for op in lowered.module.main.body}


def norm(b: ir.Builder, x: Any, constant: Any, eps: float = 1e-5) -> Any:
    columns = x.type.size(1)
    return b.op("layer_norm", x, constant(columns), constant(columns), eps=eps)


def residual_norms(b: ir.Builder, x: Any, y: Any, constant: Any) -> tuple[Any, ...]:
    """Reductions of reductions, values that wait for one, and results of several passes."""
    total = b.op("add", x, y)
    first = norm(b, total, constant, 1e-12)
    again = b.op("add", b.op("activation", first, kind="silu"), total)
    return b.op("softmax", norm(b, again, constant)), first, total


@pytest.mark.one_in(3)
@pytest.mark.parametrize("isa", ISA_PARAMS)
def test_any_width(isa: str) -> None:
    for columns in COLUMNS:
        module = module_of(columns, residual_norms)
        assert agree(module, isa, (1, 5)) == {"call"}


@pytest.mark.one_in(3)
@pytest.mark.parametrize("isa", ISA_PARAMS)
def test_between_products(isa: str) -> None:
    """A transformer's feed-forward part is one stage; rows in batches and what is left of them."""

    def body(b: ir.Builder, x: Any, y: Any, constant: Any) -> tuple[Any, ...]:
        width, wide = x.type.size(1), 37
        hidden = norm(
            b, b.op("add", b.op("linear", x, constant(width, width), constant(width)), y), constant
        )
        inner = b.op("linear", hidden, constant(wide, width), constant(wide))
        inner = b.op("activation", inner, kind="gelu")
        out = b.op("linear", inner, constant(width, wide), constant(width))
        return norm(b, b.op("add", out, hidden), constant), b.op("softmax", out)

    module = module_of(21, body)
    assert agree(module, isa, (1, 2, 7, 70), tolerance=1e-4) == {"call"}


@pytest.mark.parametrize("isa", ISA_PARAMS)
def test_activations(isa: str) -> None:
    """By themselves, wherever the functions bend, and far out."""
    x = np.concatenate([np.linspace(-12, 12, 1001), [-1e30, 1e30, -90, 89, -0.0, 1e-40]])
    x = x.astype(F32)[:, None] * np.ones((1, 3), F32)

    def all_of_them(b: ir.Builder, x: Any, y: Any, _: Any) -> tuple[Any, ...]:
        return tuple(b.op("activation", x, kind=kind) for kind in KINDS)

    module = module_of(3, all_of_them)
    wanted = ir.interpret(module, [x, x])
    for kind, got, want in zip(KINDS, built(module, isa)[1](x, x), wanted, strict=True):
        error = np.abs(got - want) / (np.abs(x) + 1)
        assert error.max() <= 1e-6, kind


@pytest.mark.parametrize("isa", ISA_PARAMS)
def test_functions_that_are_exact(isa: str) -> None:
    """NaN, infinities, both zeros, halves; rows of a prime size."""
    x = np.concatenate([np.arange(-40, 41) / F32(8), [np.nan, np.inf, -np.inf, -0.0, 1e30, -1e30]])
    x = np.resize(x.astype(F32), (29, 37))

    def all_of_them(b: ir.Builder, x: Any, y: Any, _: Any) -> tuple[Any, ...]:
        crossed = {"low": 1.0, "high": -1.0}
        ends: list[dict[str, Any]] = [{"low": -0.3}, {"high": 0.1}, {"low": 0, "high": 6}, crossed]
        leaky = [b.op("leaky_relu", x, slope=slope) for slope in (0.1, -1.0, 3.0)]
        return (b.op("round", x), *leaky, *(b.op("clamp", x, **end) for end in ends))

    module = module_of(37, all_of_them)
    for got, want in zip(built(module, isa)[1](x, x), ir.interpret(module, [x, x]), strict=True):
        np.testing.assert_array_equal(got, want)


def dense(b: ir.Builder, x: Any, kind: str, compute: str) -> Any:
    rng = np.random.default_rng(5)
    weight, units = rng.normal(size=(19, x.type.size(1))).astype(F32), np.ones(19, F32)
    if compute == "int8":
        integers, units = quantize_rows(weight)
        weight = integers.astype(np.int8)
    arrays = (("w", weight), ("units", units), ("bias", rng.normal(size=19).astype(F32)))
    constants = [b.constant(f"{name}{kind}{compute}", array) for name, array in arrays]
    return b.op("activation", b.op("dense", x, *constants, compute=compute), kind=kind)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("isa", ISA_PARAMS)
@pytest.mark.parametrize("compute", ["float32", "int8"])
def test_epilogues_of_dense(isa: str, compute: str) -> None:
    """The pass folds them into the product, which applies them to few rows and to many."""

    def body(b: ir.Builder, x: Any, y: Any, _: Any) -> tuple[Any, ...]:
        return tuple(dense(b, x, kind, compute) for kind in ("gelu", "tanh"))

    module = module_of(24, body)
    assert agree(module, isa, (1, 3, 9), tolerance=3e-5) == {"constant", "dense"}


@pytest.mark.isa("avx2")
def test_special_values() -> None:
    """NaN stays in its row; infinities as in torch; equal numbers have no spread."""

    def body(b: ir.Builder, x: Any, y: Any, _: Any) -> tuple[Any, ...]:
        one, none = b.constant("one", np.ones(20, F32)), b.constant("none", np.zeros(20, F32))
        return b.op("layer_norm", x, one, none, eps=1e-12), b.op("softmax", x)

    module = module_of(20, body)
    x = np.random.default_rng(0).normal(size=(7, 20)).astype(F32)
    x[1, 19], x[2, 3], x[3, 18], x[4] = np.nan, np.inf, -np.inf, -np.inf
    x[5] = 1000.1
    got = built(module, "avx2")[1](x, x)
    for kernel, want in zip(got, ir.interpret(module, [x, x]), strict=True):
        np.testing.assert_array_equal(np.isnan(kernel), np.isnan(want))
        np.testing.assert_allclose(kernel, want, rtol=1e-5, atol=1e-5)
    assert (got[0][5] == 0).all()
    assert got[1][3, 18] == 0


@pytest.mark.isa("avx2")
def test_a_far_mean_costs_no_digits() -> None:
    """The sums are of distances from a number of the row's own magnitude."""
    module = module_of(96, lambda b, x, y, constant: (norm(b, x, constant),))
    x = (np.random.default_rng(0).normal(size=(5, 96)) + 1e4).astype(F32)
    x[3, 0] = -1e5  # an outlier in the vector that gives the origin
    (got,) = built(module, "avx2")[1](x, x)
    (want,) = ir.interpret(module, [x, x])
    np.testing.assert_allclose(got, want, atol=3e-3)  # what rounding x itself costs: 1e4 * 2**-24


@pytest.mark.isa("avx2")
def test_a_stage_that_mixes_look_ups_and_reductions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The passes make none, but a module may come with one: then all rows go as they lie."""
    monkeypatch.setattr(fuse_rows, "_FAMILIES", {})
    rng = np.random.default_rng(3)
    dims, values = tree_constants(rng, 24, 4, 16)

    def body(b: ir.Builder, x: Any, y: Any, constant: Any) -> tuple[Any, ...]:
        h = norm(b, b.op("add", x, y), constant)
        codes = b.op("tree_encode", x, b.constant("dims", dims), b.constant("vals", values))
        found = b.op("lut_accumulate", codes, constant(4, 16, 24))
        return b.op("softmax", b.op("add", found, h)), h

    assert agree(module_of(24, body), "avx2", (1, 40, 300)) == {"call"}


@pytest.mark.isa("avx2")
def test_threads() -> None:
    module = module_of(40, residual_norms)
    x, y = np.random.default_rng(1).normal(size=(2, 53, 40)).astype(F32)
    one, three = (built(module, "avx2", threads=t)[1](x, y) for t in (1, 3))
    for a, b in zip(one, three, strict=True):
        np.testing.assert_array_equal(a, b)
