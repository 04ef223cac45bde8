"""conv2d: rules and arithmetic."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lutcc import ir
from lutcc.errors import InputError, VerifyError
from lutcc.ir.arithmetic import quantize_rows
from lutcc.ir.passes.fold_affine import FoldBatchNormAndAffine
from tests.ir.models import Case

F32 = np.float32
GEOMETRY = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 3}


def operands(compute: str = "float32") -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    x, weight, bias = (rng.normal(size=s).astype(F32) for s in ((2, 7, 6, 6), (9, 2, 3, 2), (9,)))
    units = np.ones(9, F32)
    if compute == "int8":
        integers, units = quantize_rows(weight.reshape(9, -1))
        weight = integers.astype(np.int8).reshape(weight.shape)
    return [x, weight, units, bias]


def run(arrays: list[np.ndarray], **attrs: Any) -> np.ndarray:
    return ir.interpret(Case("conv2d", tuple(arrays), dict(attrs)).module(), arrays)[0]


@pytest.mark.parametrize("compute", ["float32", "bfloat16", "int8"])
def test_near_torchs_convolution(compute: str) -> None:
    x, weight, _, bias = operands()
    got = run(operands(compute), compute=compute, **GEOMETRY)
    images = torch.from_numpy(x).permute(0, 3, 1, 2).double()
    y = torch.nn.functional.conv2d(
        images, torch.from_numpy(weight).double(), torch.from_numpy(bias).double(),
        *GEOMETRY.values(),
    )  # fmt: skip
    want = y.permute(0, 2, 3, 1).reshape(-1, 9).numpy()
    bound = {"float32": 1e-6, "bfloat16": 0.01, "int8": 0.02}[compute]
    assert np.linalg.norm(got - want) <= bound * np.linalg.norm(want)


def test_what_is_not_finite_stays_in_its_image_or_window() -> None:
    for compute in ("int8", "float32"):
        arrays = operands(compute)
        want = run(arrays, compute=compute, **GEOMETRY)
        arrays[0][1, 0, 0, 0] = np.nan
        got = run(arrays, compute=compute, **GEOMETRY)
        half = len(got) // 2
        np.testing.assert_array_equal(got[:half], want[:half])
        assert np.isnan(got[half:]).all() == (compute == "int8")
        assert np.isnan(got[half:]).any()


def test_images_are_integers_of_one_scale() -> None:
    x = np.array([4.0, 0.03, -2.0], F32).reshape(1, 1, 3, 1)
    one = np.ones((1, 1, 1, 1), np.int8)
    y = run([x, one, np.ones(1, F32), np.zeros(1, F32)], compute="int8")
    unit = F32(4) / F32(127)
    np.testing.assert_array_equal(y[:, 0], np.array([127, 1, -64], F32) * unit)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compute": "int8"}, "operand 'weight' is float32, but 'compute' is 'int8'"),
        ({"compute": "int4"}, "compute"),
        ({"groups": 2}, "operand 'weight' has CG = 2 channels for each of 'groups' = 2"),
        ({"dilation": (4, 1)}, "a kernel of 3 with dilation 4 does not fit dimension H = 7"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    attrs = {**GEOMETRY, "padding": (0, 0), **changes}
    with pytest.raises(VerifyError, match=message):
        run(operands(), **attrs)


def test_sums_that_may_overflow_are_refused() -> None:
    b = ir.Builder("main")
    shapes = ((1, 1, 1, 2**17 + 1), (1, 2**17 + 1, 1, 1), (1,), (1,))
    types = ("float32", "int8", "float32", "float32")
    pairs = enumerate(zip(shapes, types, strict=True))
    values = [b.param(f"p{i}", ir.TensorType(*pair)) for i, pair in pairs]
    with pytest.raises(VerifyError, match="131073 weights of an output may overflow the int32"):
        b.op("conv2d", *values, compute="int8")


def test_minus_128_is_refused() -> None:
    arrays = operands("int8")
    arrays[1][0, 0] = -128
    with pytest.raises(InputError, match="weight has -128"):
        run(arrays, compute="int8", **GEOMETRY)


@pytest.mark.parametrize("compute", ["float32", "int8"])
def test_batch_norm_and_relu_become_part_of_it(compute: str) -> None:
    x, *tables = operands(compute)
    rng = np.random.default_rng(1)
    b = ir.Builder("main")
    given = b.param("x", ir.TensorType(x.shape, "float32"))
    constants = [b.constant(f"c{i}", a) for i, a in enumerate(tables)]
    norm = [b.constant(f"n{i}", rng.uniform(0.5, 2, 9).astype(F32)) for i in range(4)]
    y = b.op("conv2d", given, *constants, compute=compute, **GEOMETRY)
    b.returns(b.op("relu", b.op("batch_norm", y, *norm, eps=1e-3)))
    module = b.module()
    folded = FoldBatchNormAndAffine()(module)
    (op,) = (op for op in folded.main.body if op.opcode != "constant")
    assert (op.opcode, op.attr("activation")) == ("conv2d", "relu")
    assert folded.constants["c0"] is module.constants["c0"], "the weights are as they were"
    (want,) = ir.interpret(module, [x])
    np.testing.assert_allclose(ir.interpret(folded, [x])[0], want, rtol=1e-5, atol=1e-5)
    assert (want == 0).any()
