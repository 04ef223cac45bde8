"""Sampled ops in modules: text, passes, constants; and the generator's published vectors."""

from __future__ import annotations

import numpy as np
import pytest

from lutcc import ir
from lutcc.ir.passes import run_pipeline
from lutcc.ir.sampling import philox
from tests.ir.models import N, inputs_for

F = "float32"
T = ir.TensorType


def step(constant: bool, mode: str = "wta_crs") -> ir.Module:
    """A product over half the columns and a convolution over half the channels of each group."""
    rng = np.random.default_rng(0)
    b = ir.Builder("main")

    def weight(name: str, *shape: int) -> ir.Value:
        if constant:
            return b.constant(name, rng.normal(size=shape).astype(np.float32))
        return b.param(name, T(shape, F))

    x = b.param("x", T((N, 12), F))
    w, bias = weight("w", 12, 8), weight("bias", 8)
    scores = b.op("column_row_scores", x, w, group_size=5, weights_only=mode == "topk_weights")
    pairs, scales = b.ops("column_row_sample", scores, k=2, mode=mode, seed=2**62 + 3)
    y = b.op("sampled_matmul", b.op("relu", x), w, pairs, scales, bias, group_size=5)
    images = b.op("reshape", y, shape=(N, 4, 2, 1))
    kernel, shift = weight("kernel", 6, 2, 2, 2), weight("shift", 6)
    conv = {"stride": (2, 1), "padding": (0, 1), "groups": 2}
    norms = b.op("channel_scores", images, kernel, **conv)
    channels, factors = b.ops(
        "column_row_sample", norms, k=1, mode="crs", probabilities="uniform", groups=2
    )
    b.returns(pairs, y, b.op("sampled_conv2d", images, kernel, channels, factors, shift, **conv))
    return b.module()


@pytest.mark.parametrize("mode", ["topk", "topk_weights", "wta_crs", "bernoulli"])
@pytest.mark.parametrize("constant", [False, True])
def test_passes_keep_every_bit(constant: bool, mode: str) -> None:
    module = step(constant, mode)
    assert ir.parse(ir.to_text(module)) == module
    lowered = run_pipeline(module)
    assert ir.parse(ir.to_text(lowered)) == lowered
    for rows in (1, 7):
        arrays = inputs_for(module, rows)
        for got, want in zip(
            ir.interpret(lowered, arrays), ir.interpret(module, arrays), strict=True
        ):
            np.testing.assert_array_equal(got, want)
    names = [op.opcode for op in lowered.main.body]
    assert names.count("sampled_matmul") == names.count("sampled_conv2d") == 1
    assert "column_row_sample" in names  # of the images' norms, whatever is constant


def test_what_the_product_takes_is_what_the_sample_says() -> None:
    """From the module's own indices, in float64, with no op of the family."""
    module = step(False, "topk")
    x, w, bias, *others = inputs_for(module, 5)
    pairs, y, _ = ir.interpret(module, [x, w, bias, *others])
    squares = np.square(x.astype(float)).sum(0) * np.square(w.astype(float)).sum(1)
    of_pairs = [squares[:5].sum(), squares[5:10].sum(), squares[10:].sum()]
    assert pairs.tolist() == sorted(np.argsort(of_pairs)[1:].tolist())
    columns = np.concatenate([np.arange(12)[p * 5 : p * 5 + 5] for p in pairs])
    want = np.maximum(x, 0)[:, columns].astype(float) @ w[columns] + bias
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)


PUBLISHED = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def philox_of(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """Philox 4x32-10 of any counter, as its paper writes it."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        left, right = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1 = (right >> 32) ^ c1 ^ k0, right & 0xFFFFFFFF
        c2, c3 = (left >> 32) ^ c3 ^ k1, left & 0xFFFFFFFF
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


@pytest.mark.parametrize(("counter", "key", "words"), PUBLISHED)
def test_published_vectors(
    counter: tuple[int, ...], key: tuple[int, ...], words: tuple[int, ...]
) -> None:
    """Random123's kat_vectors hold for the definition that the next test compares with."""
    assert philox_of(counter, key) == words


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**32, 2**32 + 1, 2**62 - 1, 2**64 - 1])
def test_generator_is_the_published_one(seed: int) -> None:
    positions = np.array([[0, 1, 2], [99, 2**31, 2**32 - 1]])
    key = (seed % 2**32, seed >> 32)
    want = [[philox_of((p, 0, 0, 0), key)[0] for p in row] for row in positions.tolist()]
    got = philox(seed, positions)
    assert got.dtype == np.uint32
    assert got.tolist() == want


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e18])
def test_scores_reach_as_far_as_norms(scale: float) -> None:
    """Squares leave the range of float32, scores do not."""
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(13, 5)), rng.normal(size=(5, 7))
    small, large = (a * scale).astype(np.float32), (b / scale).astype(np.float32)
    builder = ir.Builder("main")
    params = [builder.param(f"p{i}", T(x.shape, F)) for i, x in enumerate((small, large))]
    builder.returns(builder.op("column_row_scores", *params))
    scores = ir.interpret(builder.module(), [small, large])[0]
    np.testing.assert_allclose(
        scores, np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=1), rtol=1e-5
    )
