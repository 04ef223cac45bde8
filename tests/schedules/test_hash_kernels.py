"""Hadamard, block-diagonal products, hashes and gathers: every level against the interpreter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from lutcc import ir
from tests.schedules.harness import ALL_ISA_PARAMS, ISA_PARAMS, N, built

pytestmark = pytest.mark.one_in(3)

ROWS = (1, 2, 3, 7, 16, 33, 100)
F32 = np.float32


def per_level(cases: list[Any], few: list[int], levels: Any = ISA_PARAMS) -> list[Any]:
    """Return (level, case) parameters: every case for AVX2, ``few`` of them for wider levels."""
    chosen = []
    for level in levels:
        (isa,) = level.values
        for i, case in enumerate(cases):
            if isa == "avx2" or i in few:
                chosen.append(pytest.param(isa, case, marks=level.marks, id=f"{isa}-{case}"))
    return chosen


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(F32)


def one_op(opcode: str, size: int, *constants: np.ndarray, **attrs: Any) -> ir.Module:
    b = ir.Builder("main")
    x = b.param("x", ir.TensorType((N, size), "float32"))
    given = [b.constant(f"c{i}", c) for i, c in enumerate(constants)]
    b.returns(*b.ops(opcode, x, *given, **attrs))
    return b.module()


def close(
    module: ir.Module,
    isa: str,
    columns: int,
    magnitude: Any,
    tolerance: float,
    *,
    rows: tuple[int, ...] = ROWS,
    configs: Mapping[str, Any] | None = None,
    threads: int = 1,
) -> None:
    """Assert that results are off by at most the tolerance times the magnitudes that enter them."""
    _, call = built(module, isa, configs, threads=threads)
    for n in rows:
        x = normal(n, columns, seed=n)
        (got,), (want,) = call(x), ir.interpret(module, [x])
        bound = tolerance * np.asarray(magnitude(x)) + 1e-30
        assert (np.abs(got.astype(np.float64) - want) <= bound).all(), f"n={n}"


@pytest.mark.parametrize(
    ("isa", "columns"), per_level([1, 3, 8, 16, 17, 31, 64, 100, 512, 768], [2, 3, 5, 8, 9])
)
def test_hadamard(isa: str, columns: int) -> None:
    module = one_op("hadamard", columns, scale=0.25)
    close(module, isa, columns, lambda x: np.abs(x).sum(1, keepdims=True), 1e-6)


@pytest.mark.isa("avx2")
def test_hadamard_of_large_and_strided_rows() -> None:
    module = one_op("hadamard", 4096)
    _, call = built(module, "avx2")
    x = normal(5, 4096)
    (want,) = ir.interpret(module, [x])
    for given in (x, np.asfortranarray(x), np.repeat(x, 2, axis=1)[:, ::2]):
        np.testing.assert_allclose(call(given)[0], want, atol=2e-3)


@pytest.mark.isa("avx2")
def test_hadamard_is_its_own_inverse_and_large_outputs_bypass_the_caches() -> None:
    _, call = built(one_op("hadamard", 512, scale=512**-0.5), "avx2")
    x = normal(1031, 512)  # 2 MiB: stored past the caches where it is aligned
    np.testing.assert_allclose(call(call(x)[0])[0], x, atol=1e-5)


#: G, P, Q, columns kept.
BLOCKS = [
    (1, 1, 1, None),
    (3, 5, 7, None),
    (2, 16, 16, 20),
    (4, 8, 8, 29),
    (5, 16, 40, 190),
    (3, 33, 17, 35),
    (2, 64, 128, None),
]


@pytest.mark.parametrize(("isa", "case"), per_level(BLOCKS, [1, 3, 4, 6], ALL_ISA_PARAMS))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_block_diagonal_matmul(
    isa: str, case: tuple[int, int, int, int | None], dtype: str
) -> None:
    if dtype == "float32" and isa == "avx512_bf16":
        pytest.skip("the kernel of the level below")
    groups, height, width, columns = case
    blocks = normal(groups, height, width)
    if dtype == "bfloat16":
        blocks = blocks.astype(ml_dtypes.bfloat16)
    kept = {} if columns is None else {"columns": columns}
    module = one_op("block_diagonal_matmul", groups * height, blocks, **kept)

    def magnitude(x: np.ndarray) -> np.ndarray:
        parts = np.abs(x).reshape(len(x), groups, height)
        sums = np.einsum("ngp,gpq->ngq", parts, np.abs(blocks.astype(F32)))
        return sums.reshape(len(x), -1)[:, :columns]

    close(module, isa, groups * height, magnitude, 3e-6, rows=(1, 2, 3, 13, 50))


@pytest.mark.parametrize("isa", ISA_PARAMS)
@pytest.mark.parametrize(
    ("columns", "groups", "height"), [(64, 4, 16), (50, 4, 16), (128, 2, 64), (24, 8, 4)]
)
def test_a_transform_folded_into_the_product(
    isa: str, columns: int, groups: int, height: int
) -> None:
    b = ir.Builder("main")
    x = b.param("x", ir.TensorType((N, columns), "float32"))
    blocks = normal(groups, height, 40)
    y = b.op("hadamard", x, scale=0.125)
    b.returns(b.op("block_diagonal_matmul", y, b.constant("blocks", blocks), columns=70))
    largest = 0.125 * np.abs(blocks).sum(1).max()
    close(b.module(), isa, columns, lambda x: largest * np.abs(x).sum(1, keepdims=True), 1e-6)


HASHES = [
    (1, 1, "gelu", 1),
    (3, 8, "gelu", 1),
    (17, 4, "softmax", 1),
    (16, 9, "gelu", 2),
    (5, 16, "gelu", 1),
    (7, 3, "softmax", 4),
    (20, 5, "gelu", 6),
    (33, 2, "constant", 1),
]


@pytest.mark.parametrize(("isa", "case"), per_level(HASHES, [1, 3, 5]))
def test_sign_hash(isa: str, case: tuple[int, int, str, int]) -> None:
    tables, length, variant, neighbors = case
    attrs = {"code_length": length, "variant": variant, "neighbors": neighbors}
    module = one_op("sign_hash", tables * length, **attrs)
    _, call = built(module, isa)
    for n in (1, 5, 18):
        z = normal(n, tables * length, seed=n) * 2
        z[0, :: 2 + n % 3] = 0
        z[-1, 0] = -50
        codes, scores = call(z)
        want_codes, want_scores = ir.interpret(module, [z])
        np.testing.assert_array_equal(codes, want_codes)
        total = np.abs(z).reshape(n, tables, length).sum(2).repeat(neighbors, axis=1)
        slack = 1e-5 * np.abs(want_scores) + 1e-6 * total * np.exp(-total) + 1e-36
        assert (np.abs(scores - want_scores) <= slack + 2e-6 * np.abs(want_scores)).all()


@pytest.mark.isa("avx2")
@pytest.mark.parametrize("variant", ["gelu", "softmax"])
def test_sign_hash_keeps_nan(variant: str) -> None:
    _, call = built(one_op("sign_hash", 12, code_length=4, variant=variant), "avx2")
    z = normal(2, 12)
    z[0, 5] = np.nan
    codes, scores = call(z)
    assert np.isnan(scores).tolist() == [[False, True, False], [False] * 3]
    assert codes.min() >= 0
    assert codes.max() < 16


def gather(
    tables: np.ndarray, neighbors: int = 1, *, external: bool = False, **attrs: Any
) -> ir.Module:
    """Return a gather whose codes a hash makes, or that takes codes and scores as they come."""
    b = ir.Builder("main")
    count, entries, _ = tables.shape
    if external:
        codes = b.param("codes", ir.TensorType((N, count * neighbors), "int32"))
        scores = b.param("scores", ir.TensorType((N, count * neighbors), "float32"))
    else:
        length = entries.bit_length() - 1
        z = b.param("z", ir.TensorType((N, count * length), "float32"))
        codes, scores = b.ops("sign_hash", z, code_length=length, neighbors=neighbors)
    b.returns(b.op("weighted_gather", codes, scores, b.constant("tables", tables), **attrs))
    return b.module()


def make_tables(count: int, entries: int, outputs: int, dtype: str) -> np.ndarray:
    rng = np.random.default_rng(count * outputs)
    if dtype == "int8":
        made = rng.integers(-128, 128, (count, entries, outputs)).astype(np.int8)
        made[:, 0] = -128
        return made
    made = rng.normal(size=(count, entries, outputs)).astype(F32)
    return made.astype(ml_dtypes.bfloat16) if dtype == "bfloat16" else made


GATHERS = [
    (1, 2, 1, 1),
    (3, 4, 5, 2),
    (8, 16, 16, 1),
    (13, 8, 33, 1),
    (9, 4, 70, 3),
    (40, 16, 100, 1),
    (6, 256, 130, 1),
]


@pytest.mark.parametrize(("isa", "case"), per_level(GATHERS, [1, 4, 5]))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_weighted_gather(isa: str, case: tuple[int, int, int, int], dtype: str) -> None:
    count, entries, outputs, neighbors = case
    tables = make_tables(count, entries, outputs, dtype)
    module = gather(tables, neighbors, external=True)
    _, call = built(module, isa)
    rng = np.random.default_rng(outputs)
    for n in (1, 2, 7, 50):
        codes = rng.integers(0, entries, (n, count * neighbors)).astype(np.int32)
        scores = rng.normal(size=codes.shape).astype(F32)
        scores[0] = 0
        (got,), (want,) = call(codes, scores), ir.interpret(module, [codes, scores])
        if dtype == "int8":
            np.testing.assert_array_equal(got, want)
            continue
        bound = np.abs(scores).sum(1, keepdims=True) * np.abs(tables.astype(F32)).max()
        assert (np.abs(got - want) <= 2e-6 * bound).all()


@pytest.mark.parametrize(
    ("isa", "case"), per_level([(16, 64), (19, 50), (3, 129)], [1, 2], ALL_ISA_PARAMS)
)
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_gather_of_a_hash(isa: str, case: tuple[int, int], dtype: str) -> None:
    """Weights of a hash are not negative, which the integer kernels make use of."""
    count, outputs = case
    tables = make_tables(count, 16, outputs, dtype)
    attrs: dict[str, Any] = {"score_dtype": "bfloat16"} if dtype == "bfloat16" else {}
    module = gather(tables, **attrs)
    _, call = built(module, isa)
    for n in (1, 3, 40):
        z = normal(n, count * 4, seed=n)
        (got,), (want,) = call(z), ir.interpret(module, [z])
        # Scores are approximate, so a quantised weight may differ by one (of bfloat16: one bit).
        step = np.abs(tables.astype(F32)).max() * (2 if dtype == "int8" else 0.02)
        assert np.abs(got - want).max() <= step * 0.1 * count
        assert np.abs(got - want).mean() <= 2e-3 * np.abs(want).mean()


@pytest.mark.isa("avx2")
def test_scores_that_are_not_finite_give_nan_or_zero() -> None:
    tables = make_tables(4, 4, 20, "int8")
    module = gather(tables, external=True)
    _, call = built(module, "avx2")
    codes = np.zeros((5, 4), np.int32)
    scores = np.ones((5, 4), F32)
    scores[0, 1], scores[1, 2], scores[2], scores[3] = np.nan, np.inf, 0, 1e-39
    (got,), (want,) = call(codes, scores), ir.interpret(module, [codes, scores])
    np.testing.assert_array_equal(got, want)


@pytest.mark.isa("avx2")
def test_codes_past_a_table_never_read_past_it() -> None:
    tables = make_tables(3, 4, 18, "float32")
    _, call = built(gather(tables, external=True), "avx2")
    codes = np.array([[-1, 4, 2**31 - 1], [-(2**31), 0, 3]], np.int32)
    scores = np.ones((2, 3), F32)
    clamped = np.clip(codes, 0, 3)
    want = tables[np.arange(3), clamped].sum(1)
    np.testing.assert_allclose(call(codes, scores)[0], want, rtol=1e-5)


def layer(
    d: int,
    tables: int,
    length: int,
    *,
    block: int = 16,
    stages: int = 4,
    dtype: str = "float32",
    residual: bool = False,
    relu: bool = False,
) -> tuple[ir.Module, ir.Module]:
    """Return a whole LookupFFN layer, and its projection alone."""
    rng = np.random.default_rng(d)
    width = 1 << (d - 1).bit_length()
    full = max(width, 1 << (tables * length - 1).bit_length())
    modules = []
    for hashed in (True, False):
        b = ir.Builder("main")
        x = b.param("x", ir.TensorType((N, d), "float32"))
        value, size = x, width
        for i in range(stages):
            value = b.op("hadamard", value, scale=float(size**-0.5))
            out = block * full // width if i == 0 else block
            blocks = np.random.default_rng(i).normal(size=(size // block, block, out)) / block**0.5
            attrs: dict[str, Any] = {"columns": tables * length} if i == stages - 1 else {}
            constant = b.constant(f"b{i}", blocks.astype(F32))
            value = b.op("block_diagonal_matmul", value, constant, **attrs)
            size = full
        if hashed:
            codes, scores = b.ops("sign_hash", value, code_length=length)
            table = make_tables(tables, 2**length, d, dtype)
            value = b.op("weighted_gather", codes, scores, b.constant("tables", table))
            scale, bias = (rng.normal(size=d).astype(F32) for _ in range(2))
            value = b.op("affine", value, b.constant("s", scale), b.constant("o", bias))
            if residual:
                value = b.op("add", x, value)
            if relu:
                value = b.op("relu", value)
        b.returns(value)
        modules.append(b.module())
    return modules[0], modules[1]


@pytest.mark.parametrize("isa", ISA_PARAMS)
@pytest.mark.parametrize(
    ("d", "tables", "length", "options"),
    [
        (64, 16, 8, {"residual": True}),
        (48, 10, 5, {"dtype": "bfloat16", "relu": True}),
        (33, 7, 9, {"residual": True, "relu": True, "stages": 1}),
        (128, 20, 4, {"dtype": "int8", "residual": True}),
    ],
)
def test_whole_layer(isa: str, d: int, tables: int, length: int, options: dict[str, Any]) -> None:
    module, projection = layer(d, tables, length, **options)
    lowered, call = built(module, isa)
    assert len(lowered.program.kernels) == 1, "the layer is one fused kernel"
    for n in (1, 2, 31, 70):
        x = normal(n, d, seed=n)
        (got,), (want,) = call(x), ir.interpret(module, [x])
        (z,) = ir.interpret(projection, [x])
        sure = np.abs(z).min(1) > 1e-5  # elsewhere a code may differ
        assert sure.mean() > 0.8
        slack = 2e-3 if options.get("dtype") == "int8" else 2e-5
        assert np.abs(got - want)[sure].max() <= slack * np.abs(want).max()


@pytest.mark.isa("avx2")
def test_strided_rows_and_threads_give_the_same_bits() -> None:
    module, _ = layer(64, 16, 8, residual=True)
    _, call = built(module, "avx2")
    _, parallel = built(module, "avx2", threads=2)
    x = normal(777, 64)
    (want,) = call(x)
    np.testing.assert_array_equal(call(np.asfortranarray(x))[0], want)
    np.testing.assert_array_equal(parallel(x)[0], want)
    for n in (1, 5, 48, 49):
        np.testing.assert_array_equal(call(x[:n])[0], want[:n])


CONFIGS = [
    {"gather": {"rows": 40, "columns": 16, "group": 4}},
    {"gather": {"rows": 1024, "columns": 128, "group": 32}, "rows": {"linear_rows": 16}},
    {"gather": {"rows": 64, "columns": 64, "group": 8}, "rows": {"linear_batch": 3}},
]


@pytest.mark.isa("avx2")
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_configs_do_not_change_what_is_computed(config: dict[str, Any], dtype: str) -> None:
    module, _ = layer(64, 12, 5, dtype=dtype, stages=2)
    lowered, call = built(module, "avx2")
    (stage,) = [k["stage"] for k in lowered.program.kernels]
    _, other = built(module, "avx2", {stage: config})
    x = normal(300, 64)
    np.testing.assert_allclose(other(x)[0], call(x)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.isa("avx2")
def test_a_gather_ends_its_group() -> None:
    b = ir.Builder("main")
    value = x = b.param("x", ir.TensorType((N, 32), "float32"))
    for i in range(2):
        blocks = b.constant(f"b{i}", normal(2, 16, 16, seed=i) / 4)
        z = b.op("block_diagonal_matmul", b.op("hadamard", value), blocks)
        codes, scores = b.ops("sign_hash", z, code_length=4)
        tables = b.constant(f"t{i}", normal(8, 16, 32, seed=i) / 8)
        value = b.op("add", value, b.op("weighted_gather", codes, scores, tables))
    b.returns(value, x)
    module = b.module()
    lowered, call = built(module, "avx2")
    assert len(lowered.program.kernels) == 2
    rows = normal(50, 32)
    for got, want in zip(call(rows), ir.interpret(module, [rows]), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-3)
