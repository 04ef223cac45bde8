"""Hypothesis strategies: convolutions by look-ups and poolings with inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from lutcc.ir.ops.im2col import output_size
from tests.ir.models import Case, floats, seeds


def _images(draw: st.DrawFn, *, pooling: bool) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Return a shape (N, H, W, C) and windows that fit it."""
    names = ("kernel", "stride", "padding", "dilation")
    size, window = [], {name: [0, 0] for name in names}
    for axis in (0, 1):
        kernel = draw(st.integers(1, 3))
        stride, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 2))
        padding = draw(st.integers(0, kernel // 2 if pooling else 2))
        least = max(1, dilation * (kernel - 1) + 1 - 2 * padding)
        if pooling:
            least = max(least, dilation * (kernel - 1) + 1)  # some tap of each window is inside
        size.append(draw(st.integers(least, least + 4)))
        assert output_size(size[-1], kernel, stride, padding, dilation) >= 1
        for name, value in zip(names, (kernel, stride, padding, dilation), strict=True):
            window[name][axis] = value
    shape = (draw(st.integers(1, 2)), *size, draw(st.integers(1, 3)))
    return shape, {name: tuple(pair) for name, pair in window.items()}


@st.composite
def lut_conv2d(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(seeds()))
    shape, window = _images(draw, pooling=False)
    codebooks, depth, outputs = draw(st.integers(1, 3)), draw(st.integers(1, 3)), 2
    taps = window["kernel"][0] * window["kernel"][1]
    dims = rng.integers(0, shape[3] * taps, (codebooks, depth)).astype(np.int32)
    table = rng.integers(-128, 256, (codebooks, 2**depth, outputs))
    signed = draw(st.booleans())
    lut = np.clip(table, -128, 127).astype(np.int8) if signed else np.abs(table).astype(np.uint8)
    if draw(st.booleans()):
        x, values, outside = (floats(rng, *s) for s in (shape, (codebooks, 2**depth), (shape[3],)))
    else:
        x, values, outside = (
            rng.integers(-9, 9, s).astype(np.int32)
            for s in (shape, (codebooks, 2**depth), (shape[3],))
        )
    return Case("lut_conv2d", (x, dims, values, lut, outside), window)


@st.composite
def max_pool2d(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(seeds()))
    shape, window = _images(draw, pooling=True)
    x = floats(rng, *shape)
    if draw(st.booleans()):
        x = (x * 9).astype(np.int32)
    elif draw(st.booleans()):
        x[rng.random(shape) < 0.1] = np.nan
    return Case("max_pool2d", (x,), window)


CASES = {"lut_conv2d": lut_conv2d(), "max_pool2d": max_pool2d()}
