"""Attention: every level against the interpreter, open sizes, masks, threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lutcc import ir
from lutcc.errors import CompileError
from lutcc.schedules.x86 import attention
from lutcc.schedules.x86.isa import isa_by_name
from lutcc.tuning.products import at_rows
from tests.schedules.harness import ISA_PARAMS, WIDEST_ISA_PARAMS, built

pytestmark = pytest.mark.one_in(4)

F32 = np.float32
SIZES = {"n": ir.Sym("n"), "s": ir.Sym("s"), "t": ir.Sym("t")}

#: N, S, T, heads, kv_heads, columns of a key, of a value: one, primes, tails, several blocks.
SHAPES = [
    (1, 1, 1, 1, 1, 1, 1),
    (2, 5, 7, 2, 1, 3, 5),
    (3, 16, 16, 4, 2, 32, 16),
    (1, 7, 65, 3, 3, 20, 33),
    (2, 197, 129, 1, 1, 17, 70),
    (1, 3, 300, 2, 2, 64, 64),
]


def module(
    heads: int,
    groups: int,
    columns: int,
    values: int,
    mask: str = "none",
    axes: str = "",
    *,
    causal: bool = False,
    compute: str = "float32",
) -> ir.Module:
    """Return one attention; all of N, S and T are open, and the mask has the ``axes`` of nhst."""
    b = ir.Builder("main")
    n, s, t = SIZES.values()
    shapes = ((n, s, heads * columns), (n, t, groups * columns), (n, t, groups * values))
    operands = [
        b.param(name, ir.TensorType(shape, "float32"))
        for name, shape in zip("qkv", shapes, strict=True)
    ]
    if mask == "none":
        operands.append(b.constant("mask", np.zeros((1, 1, 1, 1), F32)))
    else:
        sizes: dict[str, Any] = {"h": heads, **SIZES}
        shape = tuple(sizes[axis] if axis in axes else 1 for axis in "nhst")
        dtype = "uint8" if mask == "keep" else "float32"
        operands.append(b.param("mask", ir.TensorType(shape, dtype)))
    attrs = {"heads": heads, "kv_heads": groups, "scale": float(columns) ** -0.5, "mask": mask}
    b.returns(b.op("attention", *operands, causal=causal, compute=compute, **attrs))
    return b.module()


def inputs(
    shape: tuple[int, ...], mask: str = "none", axes: str = "", seed: int = 0
) -> list[np.ndarray]:
    n, s, t, heads, groups, columns, values = shape
    rng = np.random.default_rng(seed)
    arrays: list[Any] = [
        rng.normal(size=size).astype(F32)
        for size in ((n, s, heads * columns), (n, t, groups * columns), (n, t, groups * values))
    ]
    sizes = {"n": n, "h": heads, "s": s, "t": t}
    wanted = [sizes[axis] if axis in axes else 1 for axis in "nhst"]
    if mask == "add":
        added = rng.normal(size=wanted)
        arrays.append(np.where(rng.random(wanted) < 0.3, -np.inf, added).astype(F32))
    elif mask == "keep":
        arrays.append((rng.random(wanted) < 0.7).astype(np.uint8))
    return arrays


def check(built_module: ir.Module, arrays: list[np.ndarray], got: np.ndarray) -> None:
    (want,) = ir.interpret(built_module, arrays)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("isa", ISA_PARAMS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape(shape: tuple[int, ...], isa: str) -> None:
    heads, groups, columns, values = shape[3:]
    made = module(heads, groups, columns, values)
    _, call = built(made, isa)
    arrays = inputs(shape)
    check(made, arrays, call(*arrays)[0])
    other = inputs((shape[0] + 1, 33, 20, *shape[3:]))
    check(made, other, call(*other)[0])


@pytest.mark.parametrize("isa", WIDEST_ISA_PARAMS)
@pytest.mark.parametrize(
    ("mask", "axes", "causal"),
    [
        ("add", "nhst", False),
        ("add", "t", True),
        ("add", "ns", False),
        ("keep", "nst", False),
        ("keep", "ht", False),
        ("keep", "nh", True),
        ("none", "", True),
    ],
)
def test_masks(mask: str, axes: str, causal: bool, isa: str) -> None:
    made = module(4, 2, 8, 12, mask, axes, causal=causal)
    _, call = built(made, isa)
    for shape in ((2, 5, 7), (1, 200, 150), (3, 17, 16)):
        arrays = inputs((*shape, 4, 2, 8, 12), mask, axes)
        check(made, arrays, call(*arrays)[0])


@pytest.mark.isa("avx512_bf16", emulated=True)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("mask", ["none", "keep"])
def test_pairs_of_bfloat16(shape: tuple[int, ...], mask: str) -> None:
    """As exact as the op says, and rounded at all: the error is more than that of float32."""
    axes = "nst" if mask == "keep" else ""
    heads, groups, columns, values = shape[3:]
    made = module(heads, groups, columns, values, mask, axes, compute="bfloat16")
    _, call = built(made, "avx512_bf16")
    for given in (shape, (2, 19, 33, *shape[3:])):
        arrays = inputs(given, mask, axes)
        (got,), (want,) = call(*arrays), ir.interpret(made, arrays)
        size = np.abs(arrays[2]).max()
        np.testing.assert_allclose(got, want, rtol=0, atol=2.0**-6 * size)
        assert np.abs(got - want).max() > 1e-5


@pytest.mark.isa("avx2")
def test_threads_change_nothing() -> None:
    made = module(3, 3, 16, 16)
    arrays = inputs((2, 200, 140, 3, 3, 16, 16))
    (alone,) = built(made, "avx2")[1](*arrays)
    (together,) = built(made, "avx2", threads=4)[1](*arrays)
    np.testing.assert_array_equal(alone, together)


@pytest.mark.isa("avx2")
def test_what_is_not_seen_and_what_is_not_finite() -> None:
    """No key seen: zeros. NaN stays in its query; an added least float32 hides nothing alone."""
    made = module(1, 1, 4, 4, "add", "nst")
    arrays = inputs((1, 4, 20, 1, 1, 4, 4), "add", "nst")
    arrays[3][0, 0, 0] = -np.inf
    arrays[3][0, 0, 1] = np.finfo(F32).min
    arrays[0][0, 2, 1] = np.nan
    (got,) = built(made, "avx2")[1](*arrays)
    np.testing.assert_array_equal(got[0, 0], 0)
    np.testing.assert_allclose(got[0, 1], arrays[2][0].mean(0), rtol=1e-5, atol=1e-6)
    assert np.isnan(got[0, 2]).all()
    assert np.isfinite(got[0, 3]).all()
    plain = module(1, 1, 1, 1)
    (empty,) = built(plain, "avx2")[1](
        np.full((1, 1, 1), np.inf, F32), np.full((1, 3, 1), -1, F32), np.ones((1, 3, 1), F32)
    )
    assert np.isnan(empty).all()  # as a softmax of -inf alone


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "cut",
    [
        {"queries": 48, "keys": 64, "tile_rows": 12, "tile_vectors": 2},
        {"queries": 96, "keys": 256, "tile_rows": 2, "tile_vectors": 4},
        {"queries": 6, "keys": 16, "tile_rows": 3, "tile_vectors": 1},
    ],
    ids=str,
)
@pytest.mark.isa("avx512_bf16", emulated=True)
def test_however_it_is_cut(cut: dict[str, int], compute: str) -> None:
    made = module(2, 1, 20, 34, "keep", "nst", compute=compute)
    name = f"attention.{made.main.returns[0].name}"
    _, call = built(made, "avx512_bf16", {name: {"attention": cut}})
    arrays = inputs((2, 101, 75, 2, 1, 20, 34), "keep", "nst")
    (got,), (want,) = call(*arrays), ir.interpret(made, arrays)
    tolerance = 1e-5 if compute == "float32" else 0.06
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


def test_its_space_and_configs_that_are_refused() -> None:
    """The default is in the space, smaller configs stand for those that give the same loops."""
    made = module(2, 2, 32, 32)
    op = next(op for op in made.main.body if op.opcode == "attention")
    for name in ("avx2", "avx512"):
        found = attention.space(at_rows(op, 100), isa_by_name(name))
        assert found.default in found
        configs = list(found.configs())
        assert len(configs) > 5
        assert max(int(config["attention.queries"]) for config in configs) <= 192
    with pytest.raises(CompileError, match=r"multiple of tile_rows = 6"):
        attention.default_config(op, isa_by_name("avx2")).updated({"queries": 7, "tile_rows": 6})
