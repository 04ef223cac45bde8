"""Convolutions by look-ups, image by image: the interpreter's bits on every level."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lutcc import ir
from lutcc.ir.passes import run_pipeline
from tests.ir.image_networks import Conv, images, network
from tests.schedules.harness import ISA_PARAMS, built

TWO = ((2, 2), (2, 2), (0, 0))
#: Channels, height and width of the images, and the layers.
NETWORKS = {
    "one of few channels": ((3, 9, 21), [Conv(7, 4)]),
    "pooled, then rows": (
        (2, 12, 10),
        [Conv(19, 4, pool=TWO), Conv(33, 19), Conv(16, 33, pool=TWO)],
    ),
    "rising, pooled at the end": ((17, 8, 8), [Conv(18, 17, falling=False, pool=TWO)]),
    "strides and dilation": (
        (5, 23, 38),
        [
            Conv(17, 5, stride=(2, 3)),
            Conv(13, 17, (3, 2), (2, 1), (2, 0), (1, 2), depth=3),
            Conv(5, 7, (1, 1), padding=(0, 0), depth=2),
        ],
    ),
    "other poolings": (
        (1, 33, 27),
        [
            Conv(6, 3, pool=((3, 2), (2, 1), (1, 1))),
            Conv(20, 6, depth=5, pool=((2, 2), (1, 2), (0, 1))),
            Conv(8, 20, dtype="int8", pool=((3, 3), (3, 3), (0, 0))),
            Conv(3, 8, padding=(0, 0)),
        ],
    ),
    "sums beyond 16 bits": ((4, 6, 6), [Conv(9, 200), Conv(4, 150, depth=2), Conv(3, 3)]),
    "deep trees": ((4, 6, 6), [Conv(9, 5, depth=6), Conv(4, 9, depth=7)]),
    "lines of whole vectors": (
        (4, 6, 64),
        [Conv(17, 4, pool=TWO), Conv(20, 17), Conv(16, 20, pool=TWO), Conv(19, 16), Conv(18, 19)],
    ),
    "an odd number of short lines": ((18, 5, 16), [Conv(18, 18), Conv(20, 18), Conv(3, 20)]),
    "lines of three halves": ((3, 4, 48), [Conv(16, 3), Conv(17, 16), Conv(5, 17)]),
    "a single pixel": ((9, 1, 1), [Conv(9, 5), Conv(40, 9, (1, 1), padding=(0, 0))]),
}


@pytest.mark.one_in(3)
@pytest.mark.parametrize("isa", ISA_PARAMS)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str, isa: str) -> None:
    shape, layers = NETWORKS[name]
    rng = np.random.default_rng(len(name))
    module = network(rng, shape, layers)
    prepared = run_pipeline(module)
    assert sum(f.name.startswith("images") for f in prepared.functions) == 1
    _, call = built(prepared, isa)
    for count in (1, 3):
        x = images(rng, count, shape)
        np.testing.assert_array_equal(call(x)[0], ir.interpret(module, [x])[0])


#: Channels, height and width of the images, and an exact convolution in front of others.
EXACT = {
    "rgb": ((3, 9, 18), 20),
    "too many channels for words": ((32, 9, 18), 20),
    "strides": ((3, 17, 41), Conv(33, 0, (7, 7), (2, 2), (3, 3))),
    "grey, dilated": ((1, 12, 23), Conv(5, 0, (3, 2), (1, 3), (0, 2), (2, 3), activation="none")),
    "narrow": ((5, 4, 3), Conv(17, 0, (1, 3))),
    "lines of whole vectors": ((3, 6, 32), 20),
    "lines of half a vector": ((3, 4, 16), 20),
    "a single line": ((3, 1, 20), 20),
    "a single pixel": ((3, 1, 1), 20),
}


@pytest.mark.one_in(2)
@pytest.mark.parametrize("isa", ISA_PARAMS)
@pytest.mark.parametrize("name", EXACT)
def test_an_exact_convolution_in_front(name: str, isa: str) -> None:
    rng, (shape, exact) = np.random.default_rng(len(name)), EXACT[name]
    pool = TWO if shape[1] > 1 else None
    module = network(rng, shape, [Conv(12, 20, pool=pool), Conv(5, 12)], exact=exact)
    prepared = run_pipeline(module)
    assert not any(op.opcode == "conv2d" for op in prepared.main.body)
    _, call = built(prepared, isa)
    for count in (1, 3):
        x = images(rng, count, shape)
        x[-1, :, 0] *= 100  # of another unit than the others
        np.testing.assert_array_equal(call(x)[0], ir.interpret(module, [x])[0])


@pytest.mark.parametrize("isa", ISA_PARAMS)
def test_an_exact_convolution_of_images_with_their_channels_last(isa: str) -> None:
    rng, shape = np.random.default_rng(1), (3, 7, 21)
    module = network(rng, shape, [Conv(12, 20)], exact=20)
    pixels, moved, *rest = module.main.body
    assert (pixels.opcode, moved.opcode) == ("im2col", "reshape")
    main = replace(module.main, params=moved.results, body=tuple(rest))
    module = replace(module, functions=(main,))
    _, call = built(run_pipeline(module), isa)
    x = np.ascontiguousarray(images(rng, 2, shape).transpose(0, 2, 3, 1))
    x[1, 2, 3, 1] = np.nan
    np.testing.assert_array_equal(call(x)[0], ir.interpret(module, [x])[0])


@pytest.mark.parametrize("isa", ISA_PARAMS)
def test_channels_last_in_and_integers_in_and_out(isa: str) -> None:
    rng = np.random.default_rng(0)
    b = ir.Builder("main")
    x = b.param("x", ir.TensorType((ir.Sym("n"), 7, 9, 20), "int32"))
    constants = [
        b.constant("d", rng.integers(0, 20 * 6, (5, 4)).astype(np.int32)),
        b.constant("v", rng.integers(-50, 50, (5, 16)).astype(np.int32)),
        b.constant("t", rng.integers(-128, 128, (5, 16, 21)).astype(np.int8)),
        b.constant("o", rng.integers(-50, 50, 20).astype(np.int32)),
    ]
    b.returns(b.op("lut_conv2d", x, *constants, kernel=(2, 3), padding=(1, 2), stride=(1, 2)))
    module = b.module()
    _, call = built(module, isa)
    for count in (1, 4):
        values = rng.integers(-60, 60, (count, 7, 9, 20)).astype(np.int32)
        np.testing.assert_array_equal(call(values)[0], ir.interpret(module, [values])[0])


@pytest.mark.parametrize("isa", ISA_PARAMS)
@pytest.mark.parametrize("most", [2**31 - 1, 60])
def test_any_integers_in(most: int, isa: str) -> None:
    """Differences of what a layer is given may overflow."""
    rng, least = np.random.default_rng(0), -most - 1
    b = ir.Builder("main")
    x = b.param("x", ir.TensorType((ir.Sym("n"), 6, 6, 2), "int32"))
    constants = [
        b.constant("d", rng.integers(0, 18, (5, 4)).astype(np.int32)),
        b.constant("v", rng.integers(least, most, (5, 16)).astype(np.int32)),
        b.constant("t", rng.integers(0, 256, (5, 16, 3)).astype(np.uint8)),
        b.constant("o", np.array([least, most], np.int32)),
    ]
    b.returns(b.op("lut_conv2d", x, *constants, kernel=(3, 3), padding=(1, 1)))
    module = b.module()
    values = rng.integers(least, most, (3, 6, 6, 2)).astype(np.int32)
    _, call = built(module, isa)
    np.testing.assert_array_equal(call(values)[0], ir.interpret(module, [values])[0])


@pytest.mark.parametrize("isa", ISA_PARAMS)
@pytest.mark.parametrize("infinite", [False, True])
def test_floats_that_are_no_numbers_or_equal_to_thresholds(infinite: bool, isa: str) -> None:
    rng = np.random.default_rng(0)
    special = np.array([np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, 3.4e38], np.float32)
    usual = special if infinite else special[4:]  # of thresholds
    vals = np.where(
        rng.random((5, 16)) < 0.5, rng.choice(usual, (5, 16)), rng.normal(size=(5, 16))
    ).astype(np.float32)
    b = ir.Builder("main")
    x = b.param("x", ir.TensorType((ir.Sym("n"), 2, 9, 9), "float32"))
    pixels = b.op("im2col", x, kernel=(1, 1))
    moved = b.op("reshape", pixels, shape=(ir.Sym("n"), 9, 9, 2))
    constants = [
        b.constant("d", rng.integers(0, 18, (5, 4)).astype(np.int32)),
        b.constant("v", vals),
        b.constant("t", rng.integers(0, 256, (5, 16, 3)).astype(np.uint8)),
        b.constant("o", np.array([0.0, 1.0], np.float32)),
    ]
    b.returns(b.op("lut_conv2d", moved, *constants, kernel=(3, 3), padding=(1, 1)))
    module = b.module()
    shape = (3, 2, 9, 9)
    values = rng.normal(size=shape).astype(np.float32)
    values = np.where(rng.random(shape) < 0.3, rng.choice(special, shape), values)
    values = np.where(rng.random(shape) < 0.3, rng.choice(vals.ravel(), shape), values)
    _, call = built(run_pipeline(module), isa)
    np.testing.assert_array_equal(call(values)[0], ir.interpret(module, [values])[0])


@pytest.mark.parametrize("isa", ISA_PARAMS)
@pytest.mark.parametrize("channels", [1, 16, 21])
def test_max_pool2d_keeps_nan_and_the_first_of_equal_numbers(channels: int, isa: str) -> None:
    rng = np.random.default_rng(channels)
    b = ir.Builder("main")
    x = b.param("x", ir.TensorType((ir.Sym("n"), 9, 8, channels), "float32"))
    window: dict[str, Any] = {
        "kernel": (3, 2),
        "stride": (2, 1),
        "padding": (1, 1),
        "dilation": (1, 2),
    }
    b.returns(b.op("max_pool2d", x, **window))
    module = b.module()
    _, call = built(module, isa)
    values = np.round(rng.normal(size=(3, 9, 8, channels))).astype(np.float32)
    values[rng.random(values.shape) < 0.05] = np.nan
    values[rng.random(values.shape) < 0.3] *= -0.0
    (want,) = ir.interpret(module, [values])
    np.testing.assert_array_equal(call(values)[0].view(np.int32), want.view(np.int32))
