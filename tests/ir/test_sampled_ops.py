"""column_row_scores, channel_scores, column_row_sample, sampled_matmul, sampled_conv2d: rules."""

# ruff: noqa: E501 (tables read better in one line per case)

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest

from lutcc import ir
from lutcc.errors import InputError, VerifyError
from tests.ir.models import Case, N, floats

F, I32, BF16 = "float32", "int32", "bfloat16"
T = ir.TensorType
RNG = np.random.default_rng(0)


def run(opcode: str, *arrays: np.ndarray, **attrs: object) -> list[np.ndarray]:
    return ir.interpret(Case(opcode, arrays, dict(attrs)).module(), list(arrays))


def test_all_pairs_are_the_product() -> None:
    a, b, bias = floats(RNG, 5, 7), floats(RNG, 7, 3), floats(RNG, 3)
    scores = run("column_row_scores", a, b)[0]
    np.testing.assert_allclose(
        scores, np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=1), rtol=1e-6
    )
    indices, scales = run("column_row_sample", scores, k=7, mode="topk")
    assert indices.tolist() == list(range(7))
    y = run("sampled_matmul", a, b, indices, scales, bias)[0]
    np.testing.assert_allclose(y, a.astype(float) @ b + bias, rtol=1e-5, atol=1e-6)


def test_scores_of_1_x_1_kernels_are_those_of_matrices() -> None:
    x, weight = floats(RNG, 2, 5, 3, 4), floats(RNG, 6, 5, 1, 1)
    rows = x.transpose(0, 2, 3, 1).reshape(-1, 5)
    np.testing.assert_allclose(
        run("channel_scores", x, weight)[0],
        run("column_row_scores", rows, np.ascontiguousarray(weight[:, :, 0, 0].T))[0],
        rtol=1e-6,
    )


def test_channel_scores_bound_what_a_channel_adds() -> None:
    """||A_c W_c|| <= scores[c], with equality for one output and patches in proportion to it."""
    x, weight = floats(RNG, 2, 4, 6, 5), floats(RNG, 3, 4, 3, 2)
    scores = run("channel_scores", x, weight, padding=(1, 1), stride=(2, 1))[0]
    zero = np.zeros(3, np.float32)
    for c in range(4):
        one = np.array([c], np.int32), np.ones(1, np.float32)
        part = run("sampled_conv2d", x, weight, *one, zero, padding=(1, 1), stride=(2, 1))[0]
        assert np.linalg.norm(part) <= scores[c] * (1 + 1e-6)


def test_pixels_that_no_window_sees_do_not_count() -> None:
    x, weight = floats(RNG, 1, 2, 5, 5), floats(RNG, 2, 2, 1, 1)
    wild = x.copy()
    wild[:, :, 1::2] = np.nan
    seen = run("channel_scores", x, weight, stride=(2, 1))[0]
    np.testing.assert_array_equal(run("channel_scores", wild, weight, stride=(2, 1))[0], seen)


def test_what_is_not_taken_may_hold_anything() -> None:
    a, b, bias = floats(RNG, 3, 8), floats(RNG, 8, 2), floats(RNG, 2)
    indices, scales = np.array([1, 0, 0], np.int32), np.array([2.0, 0, 0], np.float32)
    want = run("sampled_matmul", a, b, indices, scales, bias, group_size=3)[0]
    a[:, :3], b[6:] = np.nan, np.inf
    got = run("sampled_matmul", a, b, indices, scales, bias, group_size=3)[0]
    np.testing.assert_array_equal(got, want)
    nothing = run("sampled_matmul", a, b, indices, 0 * scales, bias, group_size=3)[0]
    np.testing.assert_array_equal(nothing, np.tile(bias, (3, 1)))
    x, weight = floats(RNG, 1, 2, 3, 3), floats(RNG, 1, 2, 2, 2)
    x[:, 0], weight[:, 0] = np.nan, np.inf
    one = np.array([1, 0], np.int32), np.array([1.0, 0], np.float32)
    assert np.isfinite(run("sampled_conv2d", x, weight, *one, bias[:1])[0]).all()


def test_scaled_rows_are_rounded_to_bfloat16() -> None:
    a = np.full((1, 1), 256, ml_dtypes.bfloat16)
    b = np.full((1, 1), 1.5703125, ml_dtypes.bfloat16)
    scale = np.array([1.3], np.float32)
    y = run("sampled_matmul", a, b, np.zeros(1, np.int32), scale, np.zeros(1, np.float32))[0]
    want = np.float32(np.float32(1.5703125) * scale[0]).astype(ml_dtypes.bfloat16) * a[0, 0]
    assert y.dtype == ml_dtypes.bfloat16
    assert y[0, 0] == want


def test_a_sampled_convolution_in_half_of_its_channels() -> None:
    """Costs count what is taken: half the multiply-adds, half the bytes of the operands."""
    bias = T((6,), F)

    def cost(places: int) -> ir.OpCost:
        b = ir.Builder("main")
        types = [T((2, 8, 5, 5), F), T((6, 8, 3, 3), F), T((places,), I32), T((places,), F), bias]
        params = [b.param(f"p{i}", t) for i, t in enumerate(types)]
        b.returns(b.op("sampled_conv2d", *params))
        return ir.cost(b.module()).total

    assert cost(8).flops == 2 * cost(4).flops == 2 * 2 * 6 * 9 * 8 * 9
    assert cost(8).bytes_written == cost(4).bytes_written == 4 * 2 * 6 * 9
    more = cost(8).bytes_read - cost(4).bytes_read
    assert more == 4 * (2 * 8 * 25 + 6 * 8 * 9) // 2 + 4 * 8


def test_a_sampled_product_in_a_quarter_of_its_columns() -> None:
    def cost(places: int, group: int, dtype: str) -> ir.OpCost:
        b = ir.Builder("main")
        types = [T((10, 32), dtype), T((32, 6), dtype), T((places,), I32), T((places,), F)]
        params = [b.param(f"p{i}", t) for i, t in enumerate([*types, T((6,), F)])]
        b.returns(b.op("sampled_matmul", *params, group_size=group))
        return ir.cost(b.module()).total

    assert cost(8, 1, F).flops == cost(2, 4, BF16).flops == 2 * 10 * 8 * 6
    assert cost(8, 1, F).bytes_read == 4 * (10 * 8 + 8 * 6 + 8 + 8 + 6)
    assert cost(2, 4, BF16).bytes_read == 2 * (10 * 8 + 8 * 6) + 4 * (2 + 2 + 6)


def apply(opcode: str, *types: ir.TensorType, **attrs: object) -> Callable[[], None]:
    def build() -> None:
        b = ir.Builder("main")
        params = [b.param(f"p{i}", t) for i, t in enumerate(types)]
        b.returns(*b.ops(opcode, *params, **attrs))  # type: ignore[arg-type]
        b.module()

    return build


A, B, BIAS = T((N, 8), F), T((8, 3), F), T((3,), F)
X, W = T((N, 6, 5, 4), F), T((4, 3, 2, 2), F)


def places(n: int) -> tuple[ir.TensorType, ir.TensorType]:
    return T((n,), I32), T((n,), F)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (apply("column_row_scores", A, T((7, 3), F)),
         "operand 1 'b' of type float32[7, 3] has dimension 0 (K) = 7, but dimension 1 of operand 'a' says K = 8"),
        (apply("column_row_scores", A, T((8, 3), BF16)),
         "operand 1 'b' of type bfloat16[8, 3] must have the element type of 'a', which is float32"),
        (apply("column_row_scores", A, B, group_size=0),
         "attribute 'group_size' is 0, but it must be in 1..65536"),
        (apply("channel_scores", X, W),
         "operand 'weight' has CG = 3 channels for each of 'groups' = 1, but operand 'x' has C = 6"),
        (apply("channel_scores", X, T((5, 3, 2, 2), F), groups=2),
         "operand 'weight' has O = 5 outputs, which is not a multiple of the attribute 'groups' = 2"),
        (apply("channel_scores", X, T((4, 3, 2, 7), F), groups=2, padding=(0, 1)),
         "a kernel of 7 with dilation 1 does not fit dimension W = 4 of operand 'x' with padding 1"),
        (apply("column_row_sample", T((8,), F), k=9),
         "attribute 'k' is 9, but operand 'scores' has P = 8 pairs in 1 groups: at most 8 can be taken of each"),
        (apply("column_row_sample", T((8,), F), k=2, groups=3),
         "operand 'scores' has P = 8 pairs, which is not a multiple of the attribute 'groups' = 3"),
        (apply("column_row_sample", T((8,), F), k=2, mode="top"),
         "attribute 'mode' is 'top', but it must be one of 'crs', 'bernoulli', 'topk', 'topk_weights', 'wta_crs'"),
        (apply("column_row_sample", T((8,), F), k=2, mode="wta_crs", probabilities="uniform"),
         "attribute 'probabilities' is 'uniform', but mode 'wta_crs' goes by the scores"),
        (apply("column_row_sample", T((8,), F)),
         "column_row_sample needs the attribute 'k' (pairs to take of each group)"),
        (apply("sampled_matmul", A, B, *places(9), BIAS),
         "operand 'indices' has S = 9 places, but operands 'a' and 'b' have only 8 pairs of 'group_size' = 1 columns"),
        (apply("sampled_matmul", A, B, *places(3), BIAS, group_size=4),
         "operand 'indices' has S = 3 places, but operands 'a' and 'b' have only 2 pairs of 'group_size' = 4 columns"),
        (apply("sampled_matmul", A, B, T((2,), I32), T((3,), F), BIAS),
         "operand 3 'scales' of type float32[3] has dimension 0 (S) = 3, but dimension 0 of operand 'indices' says S = 2"),
        (apply("sampled_matmul", T((N, 8), "float16"), B, *places(2), BIAS),
         "operand 0 'a' of type float16[n, 8] must be float32 or bfloat16, not float16"),
        (apply("sampled_conv2d", X, W, *places(3), T((4,), F), groups=2),
         "operand 'indices' has S = 3 places, but it must have the same number, at most 3, for each of 'groups' = 2"),
        (apply("sampled_conv2d", X, W, *places(8), T((4,), F), groups=2),
         "operand 'indices' has S = 8 places, but it must have the same number, at most 3, for each of 'groups' = 2"),
    ],
)  # fmt: skip
def test_rules(build: Callable[[], None], message: str) -> None:
    with pytest.raises(VerifyError) as caught:
        build()
    assert caught.value.what == message
    assert "function @main, op 0 (" in (caught.value.where or "")


def test_samples_of_more_pairs_than_the_product_has() -> None:
    for opcode, operands, message in (
        (
            "sampled_matmul",
            (A, B, BIAS),
            "operand 'indices' holds indices up to 11, but operands 'a' and 'b' have 8 pairs",
        ),
        (
            "sampled_conv2d",
            (T((N, 4, 5, 4), F), T((3, 4, 1, 1), F), BIAS),
            "operand 'indices' holds channels up to 11, but operand 'x' has C = 4",
        ),
    ):
        b = ir.Builder("main")
        indices, scales = b.ops("column_row_sample", b.param("scores", T((12,), F)), k=2)
        first, second, bias = (b.param(f"p{i}", t) for i, t in enumerate(operands))
        b.returns(b.op(opcode, first, second, indices, scales, bias))
        with pytest.raises(VerifyError) as caught:
            b.module()
        assert caught.value.what == message


@pytest.mark.parametrize("bad", [-1, 8])
def test_indices_outside_are_found_when_it_runs(bad: int) -> None:
    a, b, bias = floats(RNG, 2, 8), floats(RNG, 8, 3), floats(RNG, 3)
    indices, scales = np.array([0, bad], np.int32), np.ones(2, np.float32)
    with pytest.raises(InputError) as caught:
        run("sampled_matmul", a, b, indices, scales, bias)
    assert caught.value.what == f"indices holds {bad}, but there are 8 pairs, 0..7"
    scales[1] = 0  # nothing is taken there
    run("sampled_matmul", a, b, indices, scales, bias)


def test_channels_of_another_group_are_found_when_it_runs() -> None:
    x, weight, bias = floats(RNG, 1, 4, 3, 3), floats(RNG, 2, 2, 1, 1), floats(RNG, 2)
    indices, ones = np.array([2, 3], np.int32), np.ones(2, np.float32)
    with pytest.raises(InputError) as caught:
        run("sampled_conv2d", x, weight, indices, ones, bias, groups=2)
    assert caught.value.what == "indices holds channel 2 at a place of another group"


def test_empty_batches() -> None:
    b, bias, sample = (
        floats(RNG, 8, 3),
        floats(RNG, 3),
        (np.zeros(2, np.int32), np.ones(2, np.float32)),
    )
    module = Case("sampled_matmul", (floats(RNG, 1, 8), b, *sample, bias), {}).module()
    dynamic = ir.parse(
        ir.to_text(module)
        .replace("float32[1, 8]", "float32[n, 8]")
        .replace("float32[1, 3]", "float32[n, 3]")
    )
    assert ir.interpret(dynamic, [np.zeros((0, 8), np.float32), b, *sample, bias])[0].shape == (
        0,
        3,
    )
