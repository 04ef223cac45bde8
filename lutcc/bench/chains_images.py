"""A small convolutional network of look-ups, in integers between its layers, and the exact one.

As :mod:`lutcc.bench.chains` does for layers of rows: the weights are random, the look-ups are
fitted to what reaches them, and how exact they are is not told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lutcc import ir
from lutcc.bench.chains_report import FLOATS, OWN

if TYPE_CHECKING:
    from lutcc.bench.compare import Comparison, Subject
    from lutcc.bench.options import BenchOptions


@dataclass(frozen=True, slots=True)
class ImageNetwork:
    """Convolutions 3x3 with a relu each, poolings 2x2 behind some, one linear layer at the end.

    Attributes
    ----------
    size
        Height and width of the images.
    channels
        Of the images, of each convolution.
    pooled
        The convolutions that a pooling follows, from 0.
    classes
        Outputs.
    """

    size: int
    channels: tuple[int, ...]
    pooled: tuple[int, ...]
    classes: int = 10

    def __str__(self) -> str:
        return f"{self.size}x{self.size}, channels {'-'.join(map(str, self.channels))}"

    @property
    def features(self) -> int:
        """Inputs of the linear layer."""
        return self.channels[-1] * (self.size >> len(self.pooled)) ** 2

    def weights(self, rng: np.random.Generator) -> list[np.ndarray]:
        """Return weights of every layer: (O, C, 3, 3) of convolutions, (classes, features)."""
        shapes = [(o, c, 3, 3) for c, o in zip(self.channels, self.channels[1:], strict=False)]
        return [
            (rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)
            for shape in (*shapes, (self.classes, self.features))
        ]


#: Look-ups in place of the first convolution as well.
ALL_LAYERS = "lutcc look-ups, first layer too"
NETWORK = ImageNetwork(32, (3, 32, 32, 64, 64), (1, 3))
QUICK_NETWORK = ImageNetwork(8, (3, 16, 16), (1,))
#: Images that look-ups are fitted on, and rows of patches of them, at most.
_FITTED_IMAGES, _FITTED_ROWS = 64, 8192


def lookup_module(
    network: ImageNetwork, weights: Sequence[np.ndarray], images: np.ndarray, *, first: bool
) -> ir.Module:
    """Return the network with its convolutions by look-ups, a codebook for each channel.

    Parameters
    ----------
    network, weights
        What is replaced.
    images
        (N, C, H, W) float32, which layers are fitted to.
    first
        Whether the first convolution is replaced too; else it is exact, in int8. The linear layer
        is exact, in int8.

    Examples
    --------
    >>> rng, small = np.random.default_rng(0), ImageNetwork(4, (3, 4, 4), (1,))
    >>> images = rng.normal(size=(64, 3, 4, 4)).astype(np.float32)
    >>> module = lookup_module(small, small.weights(rng), images, first=False)
    >>> [op.opcode for op in module.main.body if op.opcode in ("conv2d", "lut_accumulate")]
    ['conv2d', 'lut_accumulate']
    """
    from lutcc.fit import Maddness

    b = ir.Builder("main")
    value = _param(b, network)
    reaching, size = images[:_FITTED_IMAGES], network.size
    for number, weight in enumerate(weights[:-1]):
        patches = _patches(reaching)
        if number or first:
            some = patches[:: max(1, len(patches) // _FITTED_ROWS)]
            layer = Maddness(weight.shape[1], random_state=0).fit(
                some, weight.reshape(len(weight), -1).T
            )
            names = ("splitdims_", "splitvals_", "lut_", "scale_", "offset_")
            dims, values, lut, scale, offset = (
                b.constant(f"{name}{number}", getattr(layer, name)) for name in names
            )
            rows = b.op("im2col", value, kernel=(3, 3), padding=(1, 1))
            sums = b.op("lut_accumulate", b.op("tree_encode", rows, dims, values), lut)
            rows = b.op("lut_dequantize", sums, scale, offset, activation="relu")
            results = layer.predict(patches)
        else:
            rows = _exact(b, _last(b, value), weight, "int8", number)
            results = patches @ weight.reshape(len(weight), -1).T
        results = np.maximum(results, 0).reshape(-1, size, size, len(weight))
        if number in network.pooled:
            rows = _pooled(b, rows, size, len(weight))
            size //= 2
            halves = results.reshape(len(results), size, 2, size, 2, len(weight))
            results = halves.max(axis=(2, 4))
        reaching = np.ascontiguousarray(results.transpose(0, 3, 1, 2))
        value = b.op("rows_to_nchw", rows, oh=size, ow=size)
    flat = b.op("reshape", value, shape=(ir.Sym("n"), network.features))
    b.returns(b.op("dense", flat, *_stored(b, weights[-1], "int8", "head"), compute="int8"))
    return b.module()


def exact_module(network: ImageNetwork, weights: Sequence[np.ndarray], compute: str) -> ir.Module:
    """Return the network with lutcc's own exact layers, in int8 or bfloat16."""
    b = ir.Builder("main")
    value, size = _last(b, _param(b, network)), network.size
    n = ir.Sym("n")
    for number, weight in enumerate(weights[:-1]):
        rows = _exact(b, value, weight, compute, number)
        if number in network.pooled:
            rows = _pooled(b, rows, size, len(weight))
            size //= 2
        value = b.op("reshape", rows, shape=(n, size, size, len(weight)))
    order = weights[-1].reshape(network.classes, network.channels[-1], size, size)
    head = np.ascontiguousarray(order.transpose(0, 2, 3, 1)).reshape(network.classes, -1)
    flat = b.op("reshape", value, shape=(n, network.features))
    b.returns(b.op("dense", flat, *_stored(b, head, compute, "head"), compute=compute))
    return b.module()


def _param(b: ir.Builder, network: ImageNetwork) -> ir.Value:
    shape = (ir.Sym("n"), network.channels[0], network.size, network.size)
    return b.param("x", ir.TensorType(shape, "float32"))


def _last(b: ir.Builder, images: ir.Value) -> ir.Value:
    """Return images with their channels last."""
    n, channels, height, width = images.type.shape
    return b.op(
        "reshape", b.op("im2col", images, kernel=(1, 1)), shape=(n, height, width, channels)
    )


def _exact(
    b: ir.Builder, images: ir.Value, weight: np.ndarray, compute: str, number: int
) -> ir.Value:
    constants = _stored(b, weight, compute, str(number))
    return b.op("conv2d", images, *constants, compute=compute, padding=(1, 1), activation="relu")


def _stored(b: ir.Builder, weight: np.ndarray, compute: str, name: str) -> list[ir.Value]:
    """Return weights, units and a bias of zeros as they are multiplied."""
    import ml_dtypes

    from lutcc.ir.arithmetic import quantize_rows

    stored, units = weight.astype(ml_dtypes.bfloat16), np.ones(len(weight), np.float32)
    if compute == "int8":
        integers, units = quantize_rows(weight.reshape(len(weight), -1))
        stored = integers.astype(np.int8).reshape(weight.shape)
    arrays = {"weight": stored, "units": units, "bias": np.zeros(len(weight), np.float32)}
    return [b.constant(f"{key}{name}", array) for key, array in arrays.items()]


def _pooled(b: ir.Builder, rows: ir.Value, size: int, channels: int) -> ir.Value:
    images = b.op("reshape", rows, shape=(ir.Sym("n"), size, size, channels))
    return b.op("max_pool2d", images, kernel=(2, 2), stride=(2, 2))


def _patches(images: np.ndarray) -> np.ndarray:
    """Return the 3x3 patches of images with their padding: (N*H*W, C*9)."""
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    found = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    return found.transpose(0, 2, 3, 1, 4, 5).reshape(-1, images.shape[1] * 9)


def subjects_of(
    compare: Comparison, folder: Path, options: BenchOptions, rng: np.random.Generator
) -> tuple[ImageNetwork, list[Subject], int]:
    """Load the network in every way; returns it, the candidates, and how many channels are dead."""
    from lutcc.bench.images_baselines import precisions_here, write_network
    from lutcc.codegen.targets import parse_targets
    from lutcc.compiler import compile_module
    from lutcc.ir.passes import PIPELINE, ImageChains, LookupNote, run_pipeline

    network = QUICK_NETWORK if options.quick else NETWORK
    weights = network.weights(rng)
    shape = (_FITTED_IMAGES, network.channels[0], network.size, network.size)
    images = rng.normal(size=shape).astype(np.float32)
    module = lookup_module(network, weights, images, first=False)
    plain = [step for step in PIPELINE if not isinstance(step, ImageChains)]
    modules = {
        OWN: module,
        FLOATS: run_pipeline(module, plain),
        ALL_LAYERS: lookup_module(network, weights, images, first=True),
        **{f"lutcc {c}": exact_module(network, weights, c) for c in ("int8", "bfloat16")},
    }
    notes: list[LookupNote] = []
    run_pipeline(module, notes=notes)
    dead = sum(note.columns - note.computed for note in notes)
    subjects = []
    for number, (label, module) in enumerate(modules.items()):
        path = folder / f"images{number}.lutcc"
        compile_module(module, parse_targets(options.isa or "host")).save(path)
        subjects.append(compare.add_artifact(label, path)[0])
    stored = folder / "images.safetensors"
    write_network(stored, weights, network.pooled)
    subjects += [compare.add_network(p, stored, p) for p in precisions_here()]
    return network, subjects, dead
