"""torch.ops.lutcc.conv2d: values, gradients, dtypes, torch's tools."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import lutcc
from lutcc import ir
from lutcc.errors import InputError
from lutcc.ops import kernel_statistics, set_compilation
from lutcc.ops.arithmetic import quantize_rows

COMPUTE = ["float32", "bfloat16", "int8"]
GEOMETRY: dict[str, Any] = {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2), "groups": 2}
SHAPES = ((3, 4, 6, 7), (6, 2, 3, 2))


def tensors(compute: str = "float32") -> list[torch.Tensor]:
    """Return x, weight, units and bias."""
    draw = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*s, generator=draw) for s in (*SHAPES, (6,)))
    if compute != "int8":
        return [x, weight, torch.rand(6, generator=draw), bias]
    integers, units = quantize_rows(weight.flatten(1), 127)
    return [x, integers.to(torch.int8).reshape(weight.shape), units[:, 0].clone(), bias]


def call(*given: Any, compute: str) -> torch.Tensor:
    return lutcc.ops.conv2d(*given, **GEOMETRY, compute=compute)


def definition(x: torch.Tensor, *tables: torch.Tensor, compute: str) -> torch.Tensor:
    """Return what the IR says."""
    b = ir.Builder("main")
    images = x.permute(0, 2, 3, 1).contiguous().numpy()
    arrays = [
        t.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        if t.dtype is torch.bfloat16
        else t.numpy()
        for t in tables
    ]
    given = b.param("x", ir.TensorType(images.shape, "float32"))
    constants = [b.constant(f"c{i}", a) for i, a in enumerate(arrays)]
    b.returns(b.op("conv2d", given, *constants, compute=compute, **GEOMETRY))
    rows = torch.from_numpy(ir.interpret(b.module(), [images])[0])
    return rows.reshape(3, 3, 5, 6).permute(0, 3, 1, 2)


@pytest.mark.parametrize("compute", COMPUTE)
def test_values_are_those_of_the_ir(compute: str) -> None:
    given = tensors(compute)
    given[0][1, 0, 0, 0] = 0 if compute == "float32" else torch.nan
    want = definition(*given, compute=compute)
    try:
        set_compilation("never")
        got = call(*given, compute=compute)
    finally:
        set_compilation("auto")
    bound = 0 if compute == "int8" else 1e-5
    torch.testing.assert_close(got, want, rtol=0, atol=bound, equal_nan=True)


@pytest.mark.parametrize("compute", COMPUTE)
def test_a_kernel_gives_the_same(compute: str) -> None:
    x, *tables = tensors(compute)
    want = definition(x, *tables, compute=compute)
    before = kernel_statistics()["kernel_calls"]
    try:
        set_compilation("always")
        got = call(x, *tables, compute=compute)
        last = call(x.to(memory_format=torch.channels_last)[:1], *tables, compute=compute)
    finally:
        set_compilation("auto")
    assert kernel_statistics()["kernel_calls"] == before + 2
    bound = 0 if compute == "int8" else 1e-5
    torch.testing.assert_close(got, want, rtol=0, atol=bound)
    assert torch.equal(last, got[:1])


def test_float_weights_are_rounded_to_the_same_integers() -> None:
    x, weight, _, bias = tensors()
    _, integers, units, _ = tensors("int8")
    want = call(x, integers, units, bias, compute="int8")
    assert torch.equal(call(x, weight, None, bias, compute="int8"), want)


def test_more_terms_than_float32_adds_exactly() -> None:
    x, weight = torch.full((1, 3000, 1, 1), 127.0), torch.full((1, 3000, 1, 1), 127)
    y = lutcc.ops.conv2d(x, weight.to(torch.int8), torch.ones(1), compute="int8")
    assert y.item() == np.float32(127 * 127 * 3000)


def exact(x: torch.Tensor, weight: torch.Tensor, units: Any, bias: Any) -> torch.Tensor:
    y = torch.nn.functional.conv2d(x, weight, None, *GEOMETRY.values())
    return y * units[:, None, None] + bias[:, None, None]


@pytest.mark.parametrize("compute", COMPUTE)
def test_gradients_are_those_of_the_float_convolution(compute: str) -> None:
    wide = [t.double().requires_grad_() for t in tensors()]
    want = exact(*wide)
    want.square().sum().backward()
    given = [t.detach().float().requires_grad_() for t in wide]
    y = call(*given, compute=compute)
    (y + (want - y).detach().float()).square().sum().backward()  # the same gradient of y
    for tensor, other in zip(given, wide, strict=True):
        assert other.grad is not None
        torch.testing.assert_close(tensor.grad, other.grad.float(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_of_the_input_is_kept(dtype: torch.dtype) -> None:
    x, weight, units, bias = tensors("int8")
    given = bias.to(dtype) if dtype is torch.float64 else bias
    y = call(x.to(dtype), weight, units, given, compute="int8")
    assert y.dtype is dtype
    want = call(x.to(dtype).float(), weight, units, bias, compute="int8")
    torch.testing.assert_close(y.float(), want, rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("compute", COMPUTE)
def test_torch_checks_the_registration(compute: str) -> None:
    x, weight, units, bias = tensors(compute)
    if weight.is_floating_point():
        weight.requires_grad_()
    tables = (weight, units.requires_grad_(), bias.requires_grad_())
    pairs = [list(GEOMETRY[name]) for name in ("stride", "padding", "dilation")]
    given = (x.requires_grad_(), *tables, *pairs, 2, compute)
    torch.library.opcheck(torch.ops.lutcc.conv2d.default, given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compute": "int4"}, "compute='int4' is unknown"),
        ({"compute": "float32"}, "int8 weights cannot be used with compute='float32'"),
        ({"units": None}, "int8 weights cannot be used with compute='int8' without units"),
        ({"groups": 1}, "do not fit groups=1"),
        ({"x": torch.zeros(4, 6, 7)}, "must have 4 dimensions"),
        ({"x": torch.zeros(1, 4, 1, 1), "padding": (0, 0)}, "does not fit images"),
        ({"stride": (1, 0)}, "stride must be two numbers of at least 1"),
        ({"units": torch.ones(5)}, r"units must be \(6,\), got \(5,\)"),
        ({"bias": torch.ones(6, device="meta")}, "bias is on meta, not on cpu"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    names = ("x", "weight", "units", "bias")
    given: dict[str, Any] = dict(zip(names, tensors("int8"), strict=True))
    given |= GEOMETRY | {"compute": "int8"}
    with pytest.raises(InputError, match=message):
        lutcc.ops.conv2d(**given | changes)
