"""torch.ops.lutcc.dense: values, gradients, dtypes, torch's tools."""

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

_op = torch.ops.lutcc.dense
COMPUTE = ["float32", "bfloat16", "int8"]


def tensors(
    *lead: int, compute: str = "float32", k: int = 23, m: int = 7
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(k)
    x, weight, bias = (torch.randn(*s, generator=draw) for s in ((*lead, k), (m, k), (m,)))
    if compute != "int8":
        return x, weight, torch.rand(m, generator=draw), bias
    integers, units = quantize_rows(weight, 127)
    return x, integers.to(torch.int8), units[:, 0].clone(), bias


def definition(x: torch.Tensor, *tables: torch.Tensor, compute: str) -> torch.Tensor:
    """Return what the IR says."""
    b = ir.Builder("main")
    rows = x.reshape(-1, x.shape[-1]).numpy()
    arrays = [
        t.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        if t.dtype is torch.bfloat16
        else t.numpy()
        for t in tables
    ]
    given = b.param("x", ir.TensorType(rows.shape, "float32"))
    constants = [b.constant(f"c{i}", a) for i, a in enumerate(arrays)]
    b.returns(b.op("dense", given, *constants, compute=compute))
    return torch.from_numpy(ir.interpret(b.module(), [rows])[0]).reshape(*x.shape[:-1], -1)


@pytest.mark.parametrize("compute", COMPUTE)
def test_values_are_those_of_the_ir(compute: str) -> None:
    tables = tensors(2, 3, compute=compute)
    want = definition(*tables, compute=compute)
    try:
        set_compilation("never")
        got = _op(*tables, compute)
    finally:
        set_compilation("auto")
    torch.testing.assert_close(got, want, rtol=0, atol=0 if compute == "int8" else 1e-5)


def test_a_kernel_gives_the_same_bits() -> None:
    x, *tables = tensors(5, compute="int8")
    want = definition(x, *tables, compute="int8")
    before = kernel_statistics()["kernel_calls"]
    try:
        set_compilation("always")
        got = _op(x, *tables, "int8")
        one = _op(x[0], *tables, "int8")
    finally:
        set_compilation("auto")
    assert kernel_statistics()["kernel_calls"] == before + 2
    assert torch.equal(got, want)
    assert torch.equal(one, want[0])


def test_float_weights_are_rounded_to_the_same_integers() -> None:
    x, weight, _, bias = tensors(4)
    integers, units = quantize_rows(weight, 127)
    want = _op(x, integers.to(torch.int8), units[:, 0], bias, "int8")
    assert torch.equal(_op(x, weight, None, bias, "int8"), want)


def test_more_columns_than_float32_adds_exactly() -> None:
    k = 3000
    x, weight = torch.full((2, k), 127.0), torch.full((1, k), 127, dtype=torch.int8)
    y = _op(x, weight, torch.ones(1), None, "int8")
    assert y[0, 0] == np.float32(127 * 127 * k)


@pytest.mark.parametrize("compute", COMPUTE)
def test_gradients_are_those_of_the_float_product(compute: str) -> None:
    x, weight, units, bias = (t.double().requires_grad_() for t in tensors(2, 3))
    (units * (x @ weight.t()) + bias).square().sum().backward()
    want = [t.grad for t in (x, weight, units, bias)]
    given = [t.detach().float().requires_grad_() for t in (x, weight, units, bias)]
    y = _op(*given, compute)
    exact = (units * (x @ weight.t()) + bias).detach().float()
    (y + (exact - y).detach()).square().sum().backward()  # the same gradient of y
    for tensor, grad in zip(given, want, strict=True):
        assert grad is not None
        torch.testing.assert_close(tensor.grad, grad.float(), rtol=1e-4, atol=1e-4)


def test_numerical_gradients() -> None:
    given = [t.double().requires_grad_() for t in tensors(2, k=5, m=3)]
    assert torch.autograd.gradcheck(lambda *a: _op(*a, "float32"), given)
    assert torch.autograd.gradcheck(lambda *a: _op(*a, "float32"), [given[0][0], *given[1:]])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_of_the_input_is_kept(dtype: torch.dtype) -> None:
    x, weight, units, bias = tensors(3, compute="int8")
    given = bias.to(dtype) if dtype is torch.float64 else bias
    y = _op(x.to(dtype), weight, units, given, "int8")
    assert y.dtype is dtype
    want = _op(x.to(dtype).float(), weight, units, bias, "int8")
    torch.testing.assert_close(y.float(), want, rtol=2**-7, atol=2**-7)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("compute", COMPUTE)
def test_a_kernel_reads_and_writes_bfloat16(compute: str) -> None:
    """As float32 of the same values, rounded."""
    x, weight, units, bias = tensors(2, 5, compute=compute)
    half = x.bfloat16()
    want = _op(half.float(), weight, units, bias, compute)
    try:
        set_compilation("always")
        got = _op(half, weight, units, bias.bfloat16().float(), compute)
        strided = _op(half.transpose(0, 1), weight, units, bias.bfloat16(), compute)
    finally:
        set_compilation("auto")
    assert got.dtype is torch.bfloat16
    torch.testing.assert_close(got.float(), want, rtol=2**-7, atol=2**-7)
    torch.testing.assert_close(strided.transpose(0, 1), got, rtol=2**-7, atol=0)
    assert _op(half[:0], weight, units, bias, compute).shape == (0, 5, 7)


def test_autocast_changes_x_alone() -> None:
    x, weight, units, bias = tensors(3, compute="int8")
    with torch.autocast("cpu", torch.bfloat16):
        y = _op(x, weight, units, bias, "int8")
    assert torch.equal(y, _op(x.bfloat16(), weight, units, bias, "int8"))


@pytest.mark.parametrize("compute", COMPUTE)
def test_torch_checks_the_registration(compute: str) -> None:
    x, weight, units, bias = tensors(2, 3, compute=compute)
    if weight.is_floating_point():
        weight.requires_grad_()
    given = (x.requires_grad_(), weight, units.requires_grad_(), bias.requires_grad_(), compute)
    torch.library.opcheck(_op.default, given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compute": "int4"}, "compute='int4' is unknown"),
        ({"compute": "float32"}, "int8 weights cannot be used with compute='float32'"),
        ({"units": None}, "int8 weights cannot be used with compute='int8' without units"),
        ({"x": torch.zeros(2, 4)}, r"x of shape \(2, 4\) does not fit weights of shape \(7, 23\)"),
        ({"x": torch.zeros(2, 23, dtype=torch.int32)}, "x must be torch.float32"),
        ({"units": torch.ones(6)}, r"units must be \(7,\), got \(6,\)"),
        ({"bias": torch.ones(6)}, r"bias must be \(7,\), got \(6,\)"),
        ({"weight": torch.zeros(7, 23, dtype=torch.float64)}, "weight is float64, but x is"),
        ({"bias": torch.ones(7, device="meta")}, "bias is on meta, not on cpu"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    names = ("x", "weight", "units", "bias", "compute")
    given: dict[str, Any] = dict(zip(names, (*tensors(2, compute="int8"), "int8"), strict=True))
    with pytest.raises(InputError, match=message):
        lutcc.ops.dense(**given | changes)
