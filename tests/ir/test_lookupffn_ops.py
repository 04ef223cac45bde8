"""hadamard, block_diagonal_matmul, sign_hash, weighted_gather: the paper's identities and rules."""

# ruff: noqa: E501 (tables read better in one line per case)

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lutcc import ir
from lutcc.errors import InputError, VerifyError
from lutcc.ir.arithmetic import quantize_rows
from tests.ir import plain
from tests.ir.lookupffn import yoso
from tests.ir.models import Case, N, floats

F, I32, BF16, I8 = "float32", "int32", "bfloat16", "int8"
T = ir.TensorType


def run(opcode: str, *arrays: np.ndarray, **attrs: object) -> list[np.ndarray]:
    return ir.interpret(Case(opcode, arrays, dict(attrs)).module(), list(arrays))


def sylvester(n: int) -> np.ndarray:
    return np.array([[(-1) ** (i & j).bit_count() for j in range(n)] for i in range(n)], np.float64)


@pytest.mark.parametrize("n", [1, 2, 8, 64, 512])
def test_hadamard_is_symmetric_and_its_own_inverse_up_to_n(n: int) -> None:
    h = run("hadamard", np.eye(n, dtype=np.float32))[0]
    np.testing.assert_array_equal(h, sylvester(n))
    np.testing.assert_array_equal(run("hadamard", h)[0], n * np.eye(n))
    x = np.arange(3 * n, dtype=np.float32).reshape(3, n) - n
    np.testing.assert_array_equal(run("hadamard", run("hadamard", x)[0], scale=1 / n)[0], x)


@pytest.mark.parametrize("d", [3, 5, 100, 511])
def test_hadamard_pads_with_zeros(d: int) -> None:
    x = floats(np.random.default_rng(d), 4, d)
    n = 2 ** int(np.ceil(np.log2(d)))
    padded = np.zeros((4, n), np.float32)
    padded[:, :d] = x
    got = run("hadamard", x, scale=n**-0.5)[0]
    assert got.shape == (4, n)
    np.testing.assert_array_equal(got, run("hadamard", padded, scale=n**-0.5)[0])
    np.testing.assert_allclose(
        (got.astype(float) ** 2).sum(1), (x.astype(float) ** 2).sum(1), rtol=1e-6
    )


def test_no_rows() -> None:
    """A batch may be empty."""
    x = np.zeros((0, 6), np.float32)
    assert run_symbolic("hadamard", x)[0].shape == (0, 8)
    assert run_symbolic("block_diagonal_matmul", x, np.ones((2, 3, 4), np.float32))[0].shape == (
        0,
        8,
    )
    codes, scores = run_symbolic("sign_hash", x, code_length=3, neighbors=2)
    assert codes.shape == scores.shape == (0, 4)
    for kind in (np.float32, ml_dtypes.bfloat16, np.int8):
        assert run_symbolic("weighted_gather", codes, scores, np.ones((2, 8, 5), kind))[
            0
        ].shape == (0, 5)


def run_symbolic(opcode: str, *arrays: np.ndarray, **attrs: object) -> list[np.ndarray]:
    like = tuple(a if a.shape[0] else np.zeros((1, *a.shape[1:]), a.dtype) for a in arrays)
    module = Case(opcode, like, dict(attrs)).module(symbolic=True)
    return ir.interpret(module, list(arrays))


def test_bfloat16_blocks_round_x_first() -> None:
    """1 + 2**-8 lies halfway between two bfloat16 and goes to the even one; sums are not rounded."""
    blocks = np.ones((1, 2, 1), ml_dtypes.bfloat16)
    x = np.array(
        [[1 + 2**-8, 2**-7], [1 + 3 * 2**-8, 2**-20], [3.4e38, 0], [np.nan, 0]], np.float32
    )
    got = run("block_diagonal_matmul", x, blocks)[0][:, 0]
    np.testing.assert_array_equal(
        got, np.array([1 + 2**-7, 1 + 2**-6 + 2**-20, np.inf, np.nan], np.float32)
    )
    exact = run("block_diagonal_matmul", x[:2], blocks.astype(np.float32))[0][:, 0]
    np.testing.assert_array_equal(exact, x[:2].sum(1))


def softmax_over_all_codes(v: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Equation 5 as it stands, for one table: a sum over all 2**tau rows."""
    length = len(v)
    signs = np.array(list(itertools.product([-1, 1], repeat=length)), float)[:, ::-1]  # bit t: 2**t
    numerators = np.exp(signs @ v.astype(float))
    return (numerators / numerators.sum()) @ table.astype(float)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 7))
def test_all_codes_of_one_bit_are_the_full_softmax(seed: int, tables: int, outputs: int) -> None:
    """With tau = 1 and two neighbours, equation 7 is equation 5."""
    rng = np.random.default_rng(seed)
    z = floats(rng, 3, tables) * 2
    table = floats(rng, tables, 2, outputs)
    codes, scores = run("sign_hash", z, code_length=1, neighbors=2, variant="softmax")
    got = run("weighted_gather", codes, scores, table)[0]
    for n in range(3):
        want = sum(softmax_over_all_codes(z[n, k : k + 1], table[k]) for k in range(tables))
        np.testing.assert_allclose(got[n], want, rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 7))
def test_weights_of_all_codes_sum_to_one(seed: int, length: int) -> None:
    """A code's weight is the product of its bits' weights, as one-bit tables give them."""
    z = floats(np.random.default_rng(seed), 1, length)
    codes, scores = run("sign_hash", z, code_length=1, neighbors=2, variant="softmax")
    of_bit = np.zeros((length, 2))
    of_bit[np.arange(length).repeat(2), codes[0]] = scores[0]
    bits = np.arange(2**length)[:, None] >> np.arange(length) & 1
    weights = of_bit[np.arange(length), bits].prod(1)
    assert abs(weights.sum() - 1) < 1e-5
    codes, scores = run("sign_hash", z, code_length=length, neighbors=length + 1, variant="softmax")
    np.testing.assert_allclose(scores[0], weights[codes[0]], rtol=1e-5)


def test_neighbours_are_the_largest_terms_of_the_softmax() -> None:
    """Neighbour 1 is the second largest weight; all J are the largest among codes one flip away."""
    rng = np.random.default_rng(3)
    for length in (2, 5, 8):
        z = floats(rng, 1, length)
        codes, scores = run(
            "sign_hash", z, code_length=length, neighbors=length + 1, variant="softmax"
        )
        signs = np.array(list(itertools.product([-1, 1], repeat=length)), float)[:, ::-1]
        weights = np.exp(signs @ z[0].astype(float))
        weights /= weights.sum()
        np.testing.assert_allclose(scores[0], weights[codes[0]], rtol=1e-5)
        assert list(codes[0][:2]) == list(np.argsort(-weights)[:2])
        assert (np.diff(scores[0]) <= 0).all()
        assert len(set(codes[0])) == length + 1
        assert all(int(c ^ codes[0, 0]).bit_count() == 1 for c in codes[0][1:])


def test_one_bit_gelu_is_remark_3_1() -> None:
    """With tau = 1, z = 0.851 <x, W>, the table (0, V) and all neighbours, this is a GELU layer.

    1.175 z exp(z) / (exp(z) + exp(-z)) V: the constant 1.175 is part of the table. Code 0 stands
    for z <= 0, whose term of equation 7 has <z, S_0> = -z; with its row 0 it vanishes.
    """
    u = np.linspace(-6, 6, 97, dtype=np.float32)[:, None]  # <x, W>
    z = np.float32(0.851) * u
    codes, scores = run("sign_hash", z, code_length=1, neighbors=2, variant="gelu")
    table = np.array([[[0.0], [1.175]]], np.float32)
    y = run("weighted_gather", codes, scores, table)[0][:, 0].astype(float)
    v = z[:, 0].astype(float)
    formula = 1.175 * v * np.exp(v) / (np.exp(v) + np.exp(-v))
    np.testing.assert_allclose(y, formula, rtol=2e-6, atol=1e-7)
    gelu = [a * 0.5 * (1 + math.erf(a / math.sqrt(2))) for a in u[:, 0].tolist()]
    assert np.abs(y - gelu).max() < 0.021, "the 'fast approximation' of the remark"


def test_one_bit_softmax_is_the_sigmoid_of_remark_3_1() -> None:
    u = np.linspace(-8, 8, 65, dtype=np.float32)[:, None]
    codes, scores = run("sign_hash", 0.5 * u, code_length=1, neighbors=2, variant="softmax")
    y = run("weighted_gather", codes, scores, np.array([[[0], [1]]], np.float32))[0]
    np.testing.assert_allclose(y, 1 / (1 + np.exp(-u.astype(float))), rtol=2e-6)


def test_signs_and_special_values() -> None:
    """Zeros of either sign and NaN set no bit; NaN is flipped last; ties go to the lowest bit."""
    nan, inf = np.nan, np.inf
    z = np.array(
        [[0.0, -0.0, 1, -1], [nan, -2, nan, 2], [1, -1, 1, -1], [inf, -inf, 3, -1e-45]], np.float32
    )
    codes, scores = run("sign_hash", z, code_length=4, neighbors=5, variant="softmax")
    assert codes.tolist() == [
        [4, 5, 6, 0, 12],
        [8, 10, 0, 9, 12],
        [5, 4, 7, 1, 13],
        [5, 13, 1, 4, 7],
    ]
    assert np.isnan(scores[1]).all()
    np.testing.assert_array_equal(scores[3, 3:], [0, 0])
    assert scores[3, 0] == scores[3, 1] > 0.4
    gelu = run("sign_hash", z, code_length=4)[1]
    assert np.isinf(gelu[3, 0])
    assert np.isnan(gelu[1, 0])
    constant = run("sign_hash", z, code_length=4, variant="constant")[1]
    np.testing.assert_array_equal(constant, np.ones((4, 1)))


def test_sixteen_bits() -> None:
    z = np.full((1, 32), 100, np.float32)
    z[0, 16:] = -100
    codes, scores = run("sign_hash", z, code_length=16, neighbors=17)
    assert codes[0, 0] == 2**16 - 1
    assert codes[0, 17] == 0
    assert codes[0, 18:].tolist() == [2**t for t in range(16)]
    assert scores[0, 0] == 1600
    assert (scores[0, 1:17] == 0).all()


def test_quantized_scores_are_within_half_a_unit() -> None:
    rng = np.random.default_rng(0)
    scores = floats(rng, 50, 33)
    q, unit = quantize_rows(scores)
    assert q.dtype == np.int32
    assert (np.abs(q).max(1) == 127).all()
    assert (np.abs(q * unit[:, None] - scores) <= unit[:, None] * 0.5001).all()


@pytest.mark.parametrize(
    ("row", "want"),
    [
        ([0, -0.0, 0], 0),  # no weight at all
        ([1e-45, 0, 0], 0),  # 127 / m overflows
        ([3.7e-37, 0, 0], 0),
        ([np.inf, 1, 1], np.nan),
        ([1, np.nan, 1], np.nan),
        ([1, -np.inf, np.nan], np.nan),
        ([2, 0, 0], 2 * 100),
        ([-3.4e38, 0, 0], -np.inf),  # -127 * 100 units overflow only when scaled back
    ],
)
def test_special_scores_of_int8_tables(row: list[float], want: float) -> None:
    scores = np.array([row], np.float32)
    codes, tables = np.zeros((1, 3), np.int32), np.full((3, 1, 2), 100, np.int8)
    got = run("weighted_gather", codes, scores, tables)[0][0]
    np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_array_equal(got, plain.weighted_gather([codes, scores, tables])[0][0])


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
def test_table_types_against_float_tables(kind: str) -> None:
    """The same layer with narrower tables stays within what their rounding explains."""
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 16, (20, 64)).astype(np.int32)
    scores = np.abs(floats(rng, 20, 64))
    tables = floats(rng, 64, 16, 9)
    exact = run("weighted_gather", codes, scores, tables)[0].astype(float)
    if kind == "int8":
        unit = np.abs(tables).max((0, 1)) / 127
        narrow: np.ndarray = np.rint(tables / unit).astype(np.int8)
        got = run("weighted_gather", codes, scores, narrow)[0] * unit
    else:
        narrow = tables.astype(ml_dtypes.bfloat16 if kind == "bfloat16" else kind)
        got = run("weighted_gather", codes, scores, narrow)[0]
    error = np.sqrt(((got - exact) ** 2).mean() / (exact**2).mean())
    assert error < {"float32": 1e-7, "bfloat16": 3e-3, "int8": 1.5e-2}[kind]
    assert (error > 0) == (kind != "float32")


def test_rounded_scores() -> None:
    codes, tables = np.zeros((1, 1), np.int32), np.ones((1, 1, 1), np.float32)
    scores = np.array([[1 + 2**-8 + 2**-20]], np.float32)
    assert run("weighted_gather", codes, scores, tables)[0] == scores
    assert run("weighted_gather", codes, scores, tables, score_dtype="bfloat16")[0] == 1 + 2**-7


def apply(opcode: str, *types: ir.TensorType, **attrs: object) -> Callable[[], None]:
    def build() -> None:
        b = ir.Builder("main")
        b.ops(opcode, *(b.param(f"p{i}", t) for i, t in enumerate(types)), **attrs)  # type: ignore[arg-type]

    return build


X, Z, CODES, SCORES = T((N, 12), F), T((N, 12), F), T((N, 6), I32), T((N, 6), F)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (apply("hadamard", T((N, N), F)), "dimension D is n, but it must be a number: only rows may be symbolic"),
        (apply("hadamard", T((N, 4), BF16)), "operand 0 'x' of type bfloat16[n, 4] must be float32, not bfloat16"),
        (apply("hadamard", T((N, 2, 4), F)), "operand 0 'x' of type float32[n, 2, 4] has rank 3, but 'x' is (N, D), rank 2"),
        (apply("hadamard", X, scale=float("inf")), "attribute 'scale' is inf, but it must be a finite number"),
        (apply("block_diagonal_matmul", X, T((3, 5, 2), F)),
         "operand 'x' has D = 12 columns, but operand 'blocks' has G * P = 3 * 5 = 15 rows"),
        (apply("block_diagonal_matmul", X, T((3, 4, 2), F), columns=7),
         "attribute 'columns' is 7, but operand 'blocks' has G * Q = 3 * 2 = 6 columns"),
        (apply("block_diagonal_matmul", X, T((3, 4, 2), F), columns=0), "attribute 'columns' is 0, but it must be in 1..9223372036854775807"),
        (apply("block_diagonal_matmul", X, T((3, 4, 2), I8)),
         "operand 1 'blocks' of type int8[3, 4, 2] must be float32 or bfloat16, not int8"),
        (apply("sign_hash", Z, code_length=5),
         "operand 'z' has Z = 12 columns, which is not a multiple of the attribute 'code_length' = 5"),
        (apply("sign_hash", Z), "sign_hash needs the attribute 'code_length' (bits T of a code)"),
        (apply("sign_hash", Z, code_length=0), "attribute 'code_length' is 0, but it must be in 1..16"),
        (apply("sign_hash", T((N, 17), F), code_length=17), "attribute 'code_length' is 17, but it must be in 1..16"),
        (apply("sign_hash", Z, code_length=4, neighbors=0), "attribute 'neighbors' is 0, but it must be in 1..17"),
        (apply("sign_hash", Z, code_length=4, neighbors=6),
         "attribute 'neighbors' is 6, but a code of 'code_length' = 4 bits has at most 5: itself, and one for each bit that may be flipped"),
        (apply("sign_hash", Z, code_length=4, variant="relu"),
         "attribute 'variant' is 'relu', but it must be one of 'gelu', 'softmax', 'constant'"),
        (apply("sign_hash", Z, code_length=4, variant="constant", neighbors=2),
         "attribute 'variant' is 'constant', which weighs one code per table, but attribute 'neighbors' is 2"),
        (apply("weighted_gather", CODES, SCORES, T((4, 8, 3), F)),
         "operand 'codes' has E = 6 columns, which is not a multiple of the H = 4 tables of operand 'tables'"),
        (apply("weighted_gather", CODES, T((N, 5), F), T((3, 8, 3), F)),
         "operand 1 'scores' of type float32[n, 5] has dimension 1 (E) = 5, but dimension 1 of operand 'codes' says E = 6"),
        (apply("weighted_gather", T((N, 6), "uint8"), SCORES, T((3, 8, 3), F)),
         "operand 0 'codes' of type uint8[n, 6] must be int32, not uint8"),
        (apply("weighted_gather", CODES, SCORES, T((3, 8, 3), "float16")),
         "operand 2 'tables' of type float16[3, 8, 3] must be float32 or bfloat16 or int8, not float16"),
        (apply("weighted_gather", CODES, SCORES, T((3, 2**16 + 1, 3), F)),
         "operand 'tables' has K = 65537 entries, which is not in 1..2**16"),
        (apply("weighted_gather", CODES, SCORES, T((3, 8, 3), I8), score_dtype="bfloat16"),
         "attribute 'score_dtype' is 'bfloat16', but operand 'tables' is int8, for which scores are quantised from float32"),
        (apply("weighted_gather", CODES, SCORES, T((3, 8, 3), F), score_dtype="float16"),
         "attribute 'score_dtype' is 'float16', but it must be one of 'float32', 'bfloat16'"),
        (apply("weighted_gather", T((N, 132105), I32), T((N, 132105), F), T((1, 8, 3), I8)),
         "E = 132105 codes of int8 tables may overflow the int32 sum"),
    ],
)  # fmt: skip
def test_rules(build: Callable[[], None], message: str) -> None:
    with pytest.raises(VerifyError) as caught:
        build()
    assert caught.value.what == message
    assert "function @main, op 0 (" in (caught.value.where or "")


def test_the_largest_integer_sum_is_allowed() -> None:
    apply("weighted_gather", T((N, 132104), I32), T((N, 132104), F), T((1, 8, 3), I8))()


def test_codes_past_the_table() -> None:
    """Proven at verification from code_length, or from constant codes; else found when it runs."""
    b = ir.Builder("main")
    codes, scores = b.ops("sign_hash", b.param("z", T((N, 6), F)), code_length=3)
    b.returns(
        b.op("weighted_gather", codes, scores, b.constant("t", np.zeros((2, 7, 1), np.float32)))
    )
    with pytest.raises(VerifyError) as caught:
        b.module()
    assert (
        caught.value.what
        == "operand 'codes' holds codes up to 7, but operand 'tables' has K = 7 entries"
    )
    for bad in (8, -1):
        array = np.array([[0, bad]], np.int32)
        b = ir.Builder("main")
        scores = b.param("scores", T((1, 2), F))
        table = b.param("tables", T((2, 8, 1), F))
        b.returns(b.op("weighted_gather", b.constant("codes", array), scores, table))
        with pytest.raises(VerifyError) as caught:
            b.module()
        assert (
            caught.value.what
            == f"operand 'codes' holds code {bad}, but operand 'tables' has entries 0..7"
        )
        with pytest.raises(InputError) as refused:
            run(
                "weighted_gather",
                array,
                np.ones((1, 2), np.float32),
                np.ones((2, 8, 1), np.float32),
            )
        assert refused.value.what == f"codes holds {bad}, but tables has K = 8 entries"
        assert "op 0 (weighted_gather)" in (refused.value.where or "")


def test_integer_tables_are_bit_exact_and_others_are_not() -> None:
    gather = ir.OPS["weighted_gather"]
    assert gather.tolerance_of([CODES, SCORES, T((3, 8, 3), I8)]) == 0
    assert gather.tolerance_of([CODES, SCORES, T((3, 8, 3), F)]) == gather.tolerance > 0
    assert ir.OPS["relu"].tolerance_of([X]) == 0


@pytest.mark.parametrize("fast", [False, True])
def test_yoso_is_a_configuration(fast: bool) -> None:
    """Equation 3 averages buckets; its expectation weighs neurons by their collision probability.

    A table of h hashes gives sum over i of (1 - angle / pi)**tau V_i, up to noise of 1 / sqrt(h).
    """
    rng = np.random.default_rng(5)
    keys, values = floats(rng, 40, 16), np.abs(floats(rng, 40, 3))
    x = floats(rng, 9, 16)
    module = yoso(keys, values, tables=2048 if fast else 1000, length=3, seed=1, fast=fast)
    got = ir.interpret(module, [x])[0]
    cosine = (x @ keys.T) / np.linalg.norm(x, axis=1)[:, None] / np.linalg.norm(keys, axis=1)
    kernel = (1 - np.arccos(np.clip(cosine, -1, 1)) / np.pi) ** 3
    want = kernel @ values
    error = np.sqrt(((got - want) ** 2).mean() / (want**2).mean())
    assert error < (0.08 if fast else 0.05)
    ops = [op.opcode for op in module.main.body if op.opcode != "constant"]
    assert ops[-2:] == ["sign_hash", "weighted_gather"]
    # Equation 3 as it stands, for the codes that the module computes.
    codes = {"x": codes_of(module, x), "keys": codes_of(module, keys)}
    equal = (codes["x"][:, None] == codes["keys"][None]).mean(2)  # share of the tables that collide
    np.testing.assert_allclose(got, equal @ values.astype(float), rtol=1e-5)


def codes_of(module: ir.Module, x: np.ndarray) -> np.ndarray:
    body = module.main.body
    hash_ = next(op for op in body if op.opcode == "sign_hash")
    kept = body[: body.index(hash_) + 1]
    main = ir.Function("main", module.main.params, kept, (hash_.results[0],))
    return ir.interpret(ir.Module((main,), module.constants), [x])[0]
