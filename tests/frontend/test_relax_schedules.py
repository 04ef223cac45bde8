"""Default schedules of the exact layers: right for every shape, and present for every function."""

from __future__ import annotations

import os

os.environ.setdefault("TVM_BIND_THREADS", "0")

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lutcc.codegen.tvm_setup import import_tvm

tvm = import_tvm()
from tvm import relax, tirx  # noqa: E402

from lutcc.frontend.relax.fast_math import legalizers  # noqa: E402
from lutcc.frontend.relax.nests import loop_nest  # noqa: E402
from lutcc.frontend.relax.pipeline import (  # noqa: E402
    build_loops,
    fuse_module,
    loop_pipeline,
    schedule_module,
)
from lutcc.frontend.relax.product import find_product  # noqa: E402
from lutcc.schedules.x86.isa import isa_by_name  # noqa: E402

N = tirx.Var("n", "int64")


def _module(shapes, build):
    """Return a Relax module that applies ``build`` to inputs of these shapes."""
    builder = relax.BlockBuilder()
    inputs = [
        relax.Var(f"x{i}", relax.TensorType(shape, "float32")) for i, shape in enumerate(shapes)
    ]
    with builder.function("main", inputs):
        with builder.dataflow():
            output = builder.emit_output(builder.emit(build(*inputs)))
        builder.emit_func_output(output)
    return builder.get()


def _function(shapes, build):
    """Return the one fused, unscheduled loop nest of a Relax expression."""
    passes = [
        relax.transform.LegalizeOps(legalizers()),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
    ]
    module = tvm.transform.Sequential(passes)(_module(shapes, build))
    (function,) = [f for f in module.functions.values() if isinstance(f, tirx.PrimFunc)]
    return function


def _knobs(function, isa="avx2"):
    """Return what the knobs of a loop nest begin with: which rule schedules it."""
    nest = loop_nest(function, isa)
    assert nest is not None
    return {name.split(".")[0] for name in nest.default}


def _run(module, arrays, isa="avx2"):
    executable = tvm.compile(
        schedule_module(fuse_module(module), isa).module,
        target=tvm.target.Target(isa_by_name(isa).llvm_target()),
        tir_pipeline=loop_pipeline(),
    )
    machine = relax.VirtualMachine(executable, tvm.cpu())
    return machine["main"](*(tvm.runtime.tensor(a.numpy()) for a in arrays)).numpy()


def _compare(shapes, build, arrays, expected, isa="avx2", atol=1e-5):
    result = _run(_module(shapes, build), arrays, isa)
    np.testing.assert_allclose(result, expected.numpy(), rtol=1e-5, atol=atol)


@pytest.mark.parametrize(
    ("shapes", "sizes"),
    [
        (((N, 70), (70, 33)), ((5, 70), (70, 33))),
        (((N, 9, 16), (16, 40)), ((3, 9, 16), (16, 40))),
        (((N, 64, 24), (24, N)), ((7, 64, 24), (24, 7))),
        (((3, 17, 6), (3, 6, 1)), ((3, 17, 6), (3, 6, 1))),
        (((N, 2, 32, 16), (N, 2, 16, 32)), ((1, 2, 32, 16), (1, 2, 16, 32))),
    ],
)
@pytest.mark.parametrize(
    "isa", [pytest.param(name, marks=pytest.mark.isa(name)) for name in ("avx2", "avx512")]
)
def test_matmul(shapes, sizes, isa):
    a, b = (torch.randn(*s) for s in sizes)
    _compare(shapes, relax.op.matmul, (a, b), a @ b, isa)


def test_matmul_of_heads_folded_into_the_batch():
    def heads(a, b):
        return relax.op.matmul(
            relax.op.reshape(a, (N * 4, 13, 7)), relax.op.reshape(b, (N * 4, 7, 5))
        )

    a, b = torch.randn(2, 4, 13, 7), torch.randn(2, 4, 7, 5)
    _compare(((N, 4, 13, 7), (N, 4, 7, 5)), heads, (a, b), (a @ b).reshape(8, 13, 5))


def test_matmul_rule_applies_with_fused_consumers_and_symbolic_sizes():
    def biased(a, b, c):
        return relax.op.nn.relu(relax.op.add(relax.op.matmul(a, b), c))

    function = _function(((N, 50, 20), (N, 20, 30), (30,)), biased)
    assert _knobs(function, "avx512") == {"many"}
    a, b, c = torch.randn(3, 50, 20), torch.randn(3, 20, 30), torch.randn(30)
    _compare(((N, 50, 20), (N, 20, 30), (30,)), biased, (a, b, c), torch.relu(a @ b + c))


def test_matmul_rule_leaves_other_functions():
    assert _knobs(_function(((N, 8),), relax.op.exp)) == {"loops"}
    assert _knobs(_function(((N, 8),), lambda x: relax.op.sum(x, 1))) == {"rows"}


@pytest.mark.parametrize(("width", "axis"), [(128, -1), (197, -1), (7, -1), (33, 1), (1, -1)])
@pytest.mark.parametrize("logarithm", [False, True])
def test_softmax(width, axis, logarithm):
    shape = (3, width, 6) if axis == 1 else (3, 6, width)
    x = torch.randn(*shape) * 20
    ours, reference = (
        (relax.op.nn.log_softmax, torch.log_softmax)
        if logarithm
        else (relax.op.nn.softmax, torch.softmax)
    )
    _compare(
        ((N, *shape[1:]),),
        lambda v: ours(v, axis),
        (x,),
        reference(x, axis),
        atol=2e-5 if logarithm else 1e-6,
    )


def test_softmax_of_a_masked_row():
    x = torch.randn(2, 40)
    x[:, 30:] = -torch.inf
    result = _run(_module(((N, 40),), lambda v: relax.op.nn.softmax(v, -1)), (x,))
    np.testing.assert_allclose(result, torch.softmax(x, -1).numpy(), atol=1e-6)


@pytest.mark.parametrize("width", [768, 30, 1])
def test_layer_norm(width):
    x, w, b = torch.randn(2, 5, width) * 3 + 1, torch.randn(width), torch.randn(width)
    shapes = ((N, 5, width), (width,), (width,))
    _compare(
        shapes,
        lambda *v: relax.op.nn.layer_norm(*v, axes=[-1]),
        (x, w, b),
        F.layer_norm(x, (width,), w, b),
        atol=5e-5,
    )


def test_row_rule_applies_to_softmax_and_layer_norm():
    def norm(x, w, b):
        return relax.op.nn.layer_norm(x, w, b, axes=[-1])

    assert _knobs(_function(((N, 64),), lambda x: relax.op.nn.softmax(x, -1))) == {"rows"}
    assert _knobs(_function(((N, 64), (64,), (64,)), norm)) == {"rows"}
    assert _knobs(_function(((N, 16, 32),), lambda x: relax.op.sum(x, 1))) == {"loops"}


@pytest.mark.parametrize(
    ("ours", "reference", "low", "high"),
    [
        ("exp", torch.exp, -104.0, 88.8),
        ("erf", torch.erf, -5.0, 5.0),
        ("tanh", torch.tanh, -12.0, 12.0),
        ("sigmoid", torch.sigmoid, -90.0, 90.0),
        ("nn.silu", F.silu, -85.0, 85.0),
        ("nn.gelu", F.gelu, -9.0, 9.0),
        ("nn.gelu_tanh", lambda x: F.gelu(x, approximate="tanh"), -9.0, 9.0),
    ],
)
def test_fast_functions(ours, reference, low, high):
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-30, 3e38, -3e38])
    x = torch.cat([torch.linspace(low, high, 20_000), torch.randn(2000), special])
    expected = reference(x.double())
    operator = relax.op
    for part in ours.split("."):
        operator = getattr(operator, part)
    result = torch.from_numpy(_run(_module(((N,),), operator), (x,)))
    assert torch.equal(torch.isnan(result), torch.isnan(expected))
    finite = torch.isfinite(expected) & (expected.abs() < 3.4e38)
    error = (result.double() - expected)[finite].abs()
    # eight units in the last place; GELU cancels for negative arguments, where 1 + erf(x) has the
    # resolution of 1
    bound = expected[finite].abs() * 2.0**-20
    bound += 1e-37 + (2.0**-22 * x[finite].abs().clamp(max=6) if "gelu" in ours else 0)
    assert float((error / bound).max()) <= 1
    infinite = torch.isinf(expected)
    assert torch.equal(result[infinite].double(), expected[infinite])


@pytest.mark.parametrize(
    ("shapes", "build", "reference"),
    [
        (((N, 7, 5),), lambda x: relax.op.sum(x, 1), lambda x: x.sum(1)),
        (((N, 48),), lambda x: relax.op.max(x, 1), lambda x: x.amax(1)),
        (((N, 6, 7, 7),), lambda x: relax.op.mean(x, [2, 3]), lambda x: x.mean((2, 3))),
        (
            ((N, 3, 9, 8),),
            lambda x: relax.op.nn.max_pool2d(x, [2, 2], [2, 2]),
            lambda x: F.max_pool2d(x, 2),
        ),
        (((N, 5, 64),), lambda x: relax.op.permute_dims(x, [0, 2, 1]), lambda x: x.transpose(1, 2)),
        (
            ((N, 6, 9, 16), (6, 1, 3, 3)),
            lambda x, w: relax.op.nn.conv2d(x, w, padding=1, groups=6),
            lambda x, w: F.conv2d(x, w, padding=1, groups=6),
        ),
        (((N, 3, 5), (N, 3, 5)), relax.op.multiply, lambda x, y: x * y),
    ],
)
def test_other_functions(shapes, build, reference):
    arrays = [torch.randn(*(3 if d is N else d for d in shape)) for shape in shapes]
    _compare(shapes, build, arrays, reference(*arrays))


