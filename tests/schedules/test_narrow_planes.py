"""Sums of an exact convolution in 16 bits: when they are taken, and the same bits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from lutcc import ir
from lutcc.ir.passes import run_pipeline
from lutcc.schedules.x86.narrow_planes import NarrowPlanes
from lutcc.schedules.x86.plane_conv2d import PlaneConvolution
from tests.ir.image_networks import Conv, images, network
from tests.schedules.harness import built

ISAS = [
    pytest.param("avx2", marks=pytest.mark.isa("avx2")),
    pytest.param("avx512_vbmi_vnni", marks=pytest.mark.isa("avx512_vbmi_vnni", emulated=True)),
]
pytestmark = [pytest.mark.parametrize("isa", ISAS), pytest.mark.one_in(2)]


@dataclass(frozen=True)
class Case:
    """A network whose first trees compare a convolution's outputs.

    ``levels``: of thresholds, beside outputs of the images themselves; ``narrow``: whether all
    images fit 16 bits.
    """

    narrow: bool
    activation: str = "relu"
    shape: tuple[int, ...] = (3, 9, 18)
    conv: Conv = Conv(20, 0)  # noqa: RUF009 (frozen)
    trees: Conv = Conv(12, 20)  # noqa: RUF009
    levels: tuple[float, ...] = ()
    bias: float = 0.0
    units: float = 1.0


CASES = {
    "relu": Case(True),
    "no activation": Case(True, "none"),
    "some are above all": Case(True, levels=(-1.0, -1e30)),
    "some are above none": Case(True, levels=(1e9, 3e38)),
    "two levels": Case(True, trees=Conv(5, 20, depth=1)),
    "five levels": Case(True, shape=(3, 17, 18), trees=Conv(5, 20, depth=5)),
    "strides, no padding": Case(
        True,
        shape=(3, 19, 40),
        conv=Conv(7, 0, (3, 2), (2, 3)),
        trees=Conv(5, 7, (2, 2), padding=(0, 0)),
    ),
    "few pixels": Case(False, shape=(3, 5, 6)),
    "far apart": Case(False, shape=(9, 9, 18), conv=Conv(20, 0, (7, 7), padding=(3, 3))),
    "hidden by the bias": Case(False, bias=1e6),
}


def network_of(case: Case, x: np.ndarray) -> ir.Module:
    """Return the network; thresholds lie at what the convolution gives for these images."""
    rng = np.random.default_rng(3)
    exact = replace(case.conv, activation=case.activation)
    module = network(rng, case.shape, [case.trees], exact=exact)
    constants = dict(module.constants)
    constants["b"] = constants["b"] + np.float32(case.bias)
    constants["u"] = constants["u"] * np.float32(case.units)
    module = replace(module, constants=constants)
    conv = next(op for op in module.main.body if op.opcode == "conv2d")
    body = module.main.body[: module.main.body.index(conv) + 1]
    alone = replace(module.main, body=body, returns=conv.results)
    outputs = ir.interpret(replace(module, functions=(alone,)), [x])[0]
    dims, values = constants["d0"], constants["v0"].copy()
    for (book, node), _ in np.ndenumerate(values):  # what the channel gives, but for its extremes
        level = max(node, 1).bit_length() - 1
        channel = np.sort(outputs[:, dims[book, level] // np.prod(case.trees.kernel)])
        values[book, node] = rng.choice(channel[len(channel) // 8 : -len(channel) // 8])
    if case.levels:
        some = rng.random(values.shape) < 0.2
        some[:, :8] = False  # few nodes of a channel: its center is their median
        values = np.where(some, rng.choice(case.levels, values.shape), values)
    constants["v0"] = values.astype(np.float32)
    return replace(module, constants=constants)


def compare(module: ir.Module, x: np.ndarray, isa: str) -> bool:
    """Tell whether a kernel of the network gives the interpreter's bits."""
    _, call = built(run_pipeline(module), isa)
    return bool((call(x)[0] == ir.interpret(module, [x])[0]).all())


@pytest.mark.parametrize("name", CASES)
def test_the_way_that_an_image_takes(name: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    narrow = case.narrow and (isa != "avx2" or case.trees.depth <= 4)
    x = images(np.random.default_rng(1), 3, case.shape)
    module = network_of(case, x)
    assert compare(module, x, isa)
    with monkeypatch.context() as patch:  # without the way that is not taken all is the same
        patch.setattr(PlaneConvolution if narrow else NarrowPlanes, "emit", lambda *_: None)
        assert compare(module, x, isa)
    with monkeypatch.context() as patch:
        patch.setattr(NarrowPlanes if narrow else PlaneConvolution, "emit", lambda *_: None)
        assert not compare(module, x, isa)


@pytest.mark.parametrize("units", [1.0, 1e-44])
@pytest.mark.parametrize("activation", ["relu", "none"])
def test_images_of_any_numbers(activation: str, units: float, isa: str) -> None:
    """Each image has a unit of its own, and takes the way that it can."""
    case = Case(True, activation, units=units)
    x = images(np.random.default_rng(2), 9, case.shape)
    module = network_of(case, x[:2])
    x[2] = 0
    x[3] *= 1e-38
    x[4] *= 1e-44
    x[5] *= np.float32(3e37)
    x[6, 0, 0, 0], x[7, 0, 1, 1] = np.nan, -np.inf
    x[8] = np.abs(x[8])
    assert compare(module, x, isa)


@pytest.mark.parametrize("outside", [0.0, 0.37, -0.2])
def test_what_lies_outside_the_image(outside: float, isa: str) -> None:
    """Another number than 0 around the image, thresholds at it and next to it."""
    case = Case(True, "none")
    x = images(np.random.default_rng(4), 4, case.shape)
    module = run_pipeline(network_of(case, x))
    around: dict[str, Any] = dict(module.constants)
    (stage,) = [f for f in module.functions if f.name.startswith("images")]
    trees = next(op for op in stage.body if op.opcode == "lut_conv2d")
    refs = {op.results[0].name: str(op.attr("ref")) for op in stage.body if op.has_attr("ref")}
    values, beyond = refs[trees.operands[2].name], refs[trees.operands[4].name]
    around[beyond] = np.full_like(around[beyond], outside)
    steps = [np.nextafter(np.float32(outside), np.float32(way)) for way in (-9, 9)]
    near = np.random.default_rng(0).choice([outside, *steps], around[values].shape)
    mixed = np.random.default_rng(1).random(near.shape) < 0.1
    around[values] = np.where(mixed, near, around[values]).astype(np.float32)
    module = replace(module, constants=around)
    _, call = built(module, isa)
    np.testing.assert_array_equal(call(x)[0], ir.interpret(module, [x])[0])
