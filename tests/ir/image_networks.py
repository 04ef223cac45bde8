"""Networks of convolutions by look-ups as they come from the frontend, with random tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lutcc import ir
from lutcc.ir.ops.im2col import output_size

Pair = tuple[int, int]


@dataclass(frozen=True)
class Conv:
    """One convolution by look-ups, what is done to its outputs, and a pooling."""

    outputs: int
    codebooks: int
    kernel: Pair = (3, 3)
    stride: Pair = (1, 1)
    padding: Pair = (1, 1)
    dilation: Pair = (1, 1)
    depth: int = 4
    activation: str = "relu"
    falling: bool = True
    pool: tuple[Pair, Pair, Pair] | None = None
    dtype: str = "uint8"
    dead: int = 0  #: channels that the trees never look at

    @property
    def window(self) -> dict[str, Any]:
        """The attributes of its windows."""
        return {name: getattr(self, name) for name in ("kernel", "stride", "padding", "dilation")}

    def size(self, images: Pair) -> Pair:
        """Return height and width of its results on images of these."""
        axes = zip(images, *self.window.values(), strict=True)
        height, width = (output_size(*axis) for axis in axes)
        return height, width


def network(
    rng: np.random.Generator,
    shape: Sequence[int],
    layers: Sequence[Conv],
    exact: int | Conv = 0,
) -> ir.Module:
    """Return layers over images (n, *shape), the last one's outputs as images.

    With ``exact``, a convolution in int8 comes first: of these windows, or 3x3 to so many outputs.
    """
    b, n = ir.Builder("main"), ir.Sym("n")
    value = b.param("x", ir.TensorType((n, *shape), "float32"))
    channels, height, width = shape
    if exact:
        pixels = b.op("im2col", value, kernel=(1, 1))
        pixels = b.op("reshape", pixels, shape=(n, height, width, channels))
        first = exact if isinstance(exact, Conv) else Conv(exact, 0, activation="none")
        outputs, window = first.outputs, first.window
        weight = rng.integers(-127, 128, (outputs, channels, *first.kernel)).astype(np.int8)
        units = (rng.random(outputs) / 127 / channels).astype(np.float32)
        constants = [b.constant("w", weight), b.constant("u", units)]
        constants.append(b.constant("b", rng.normal(size=outputs).astype(np.float32)))
        del window["kernel"]
        window["activation"] = first.activation
        rows = b.op("conv2d", pixels, *constants, compute="int8", **window)
        (height, width), channels = first.size((height, width)), outputs
        value = b.op("rows_to_nchw", rows, oh=height, ow=width)
    for i, layer in enumerate(layers):
        window = layer.window
        columns = (channels - (layer.dead if i else 0)) * layer.kernel[0] * layer.kernel[1]
        entries, sizes = 2**layer.depth, (layer.codebooks, layer.depth)
        dims = rng.integers(0, columns, sizes).astype(np.int32)
        values = np.round(rng.normal(size=(layer.codebooks, entries)), 1).astype(np.float32)
        info = np.iinfo(layer.dtype)
        table = (layer.codebooks, entries, layer.outputs)
        lut = rng.integers(info.min, info.max + 1, table).astype(layer.dtype)
        rows = b.op("im2col", value, **window)
        codes = b.op("tree_encode", rows, b.constant(f"d{i}", dims), b.constant(f"v{i}", values))
        acc = b.op("lut_accumulate", codes, b.constant(f"t{i}", lut))
        signs = rng.choice([-1, 1] if layer.falling else [1], layer.outputs)
        scale = (signs / np.sqrt(layer.codebooks * 256**2 / 12)).astype(np.float32)
        middle = layer.codebooks * (127.5 if layer.dtype == "uint8" else -0.5)
        offset = (rng.normal(size=layer.outputs) * 0.2 - middle * scale).astype(np.float32)
        constants = [b.constant(f"s{i}", scale), b.constant(f"o{i}", offset)]
        alone = layer.activation in ("none", "relu")
        folded = layer.activation if alone else "none"
        y = b.op("lut_dequantize", acc, *constants, activation=folded)
        if not alone:
            y = b.op("activation", y, kind=layer.activation)
        channels = layer.outputs
        size = list(layer.size((height, width)))
        if layer.pool is not None:
            kernel, stride, padding = layer.pool
            images = b.op("reshape", y, shape=(n, *size, channels))
            y = b.op("max_pool2d", images, kernel=kernel, stride=stride, padding=padding)
            for axis in (0, 1):
                size[axis] = output_size(size[axis], kernel[axis], stride[axis], padding[axis], 1)
        height, width = size
        value = b.op("rows_to_nchw", y, oh=height, ow=width)
    b.returns(value)
    return b.module()


def images(rng: np.random.Generator, count: int, shape: Sequence[int]) -> np.ndarray:
    """Return images, some pixels at zero and at thresholds."""
    x = rng.normal(size=(count, *shape)).astype(np.float32)
    x[rng.random(x.shape) < 0.1] = 0
    return np.where(rng.random(x.shape) < 0.2, np.round(x, 1), x).astype(np.float32)
