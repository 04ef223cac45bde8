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

from lutcc.frontend.relax.canonical import kernel_text  # noqa: E402
from lutcc.frontend.relax.fast_math import legalizers  # noqa: E402
from lutcc.frontend.relax.nests import loop_nest  # noqa: E402
from lutcc.frontend.relax.pipeline import (  # noqa: E402
    build_loops,
    fuse_module,
    loop_pipeline,
    schedule_module,
    unscheduled,
)
from lutcc.schedules.space import config_id  # noqa: E402
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


@pytest.mark.one_in(2)
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


@pytest.mark.one_in(2)
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


def _spread(space, count):
    """Return the default and configs from all over a space, each way of reading B among them."""
    configs = list(space.configs())
    first_of_kind = {c.get("few.pack", c.get("many.pack")): c for c in reversed(configs)}
    step = max(1, len(configs) // count)
    chosen = [*first_of_kind.values(), *configs[::step]]
    return list({config_id(c): c for c in chosen}.values())


def _call(function, isa, arrays, shape):
    tensors = [tvm.runtime.tensor(a) for a in (*arrays, np.full(shape, np.nan, np.float32))]
    build_loops(function, isa)["kernel"](*tensors)
    return tensors[-1].numpy()


def _transposed(a, b):
    axes = [*range(len(b.ty.shape))]
    return relax.op.matmul(a, relax.op.permute_dims(b, [*axes[:-2], axes[-1], axes[-2]]))


def _fused(shapes, build):
    """Return the one loop nest that the whole pipeline leaves of an expression."""
    (function,) = unscheduled(fuse_module(_module(shapes, build))).values()
    return function


ISAS = [pytest.param(name, marks=pytest.mark.isa(name)) for name in ("avx2", "avx512")]


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    ("rows", "b_shape", "build", "sizes"),
    [
        (N, (64, 48), relax.op.matmul, (1, 3, 8, 9, 17)),
        (N, (31, 13), relax.op.matmul, (1, 7, 11)),
        (N, (96, 32), _transposed, (1, 2, 8, 13)),
        (1, (40, 56), relax.op.matmul, (1,)),
        (5, (30, 64), relax.op.matmul, (5,)),
        (1, (7, 32), _transposed, (1,)),
        (3, (6, 32), _transposed, (3,)),
        (37, (24, 100), relax.op.matmul, (37,)),
    ],
)
def test_every_way_to_multiply(rows, b_shape, build, sizes):
    transposed = build is _transposed
    depth, width = b_shape[::-1] if transposed else b_shape
    function = _fused(((rows, depth), b_shape), build)
    nest = loop_nest(function, "avx2")
    assert nest is not None
    assert set(nest.spaces) == ({"few", "many"} if rows is N else {nest.part("n", 1)})
    rng = np.random.default_rng(0)
    for part, space in nest.spaces.items():
        for config in _spread(space, 3):
            scheduled = nest.schedule(config)
            assert scheduled is not None, config
            for size in (s for s in sizes if nest.part("n", s) == part):
                a = rng.normal(size=(size, depth)).astype(np.float32)
                b = rng.normal(size=b_shape).astype(np.float32)
                want = a.astype(np.float64) @ (b.T if transposed else b)
                got = _call(scheduled, "avx2", (a, b), (size, width))
                np.testing.assert_allclose(got, want, atol=1e-4, err_msg=str(config))


@pytest.mark.parametrize("isa", ISAS)
def test_every_way_to_multiply_with_bias_in_batches(isa):
    def biased(a, b, c):
        return relax.op.nn.relu(relax.op.add(_transposed(a, b), c))

    function = _fused(((N, 19, 32), (N, 24, 32), (24,)), biased)
    nest = loop_nest(function, isa)
    assert nest is not None
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=s).astype(np.float32) for s in ((3, 19, 32), (3, 24, 32), (24,))]
    want = np.maximum(arrays[0] @ arrays[1].transpose(0, 2, 1) + arrays[2], 0)
    for config in _spread(nest.spaces["many"], 4):
        got = _call(nest.schedule(config), isa, arrays, want.shape)
        np.testing.assert_allclose(got, want, atol=1e-4, err_msg=str(config))


def test_few_rows_read_b_in_place_by_default():
    def knobs(function):
        nest = loop_nest(function, "avx512")
        assert nest is not None
        return {k: v for k, v in nest.default.items() if k.endswith("pack")}

    weight = (64, 128)
    assert knobs(_fused(((1, 64), weight), relax.op.matmul)) == {"few.pack": "stream"}
    assert knobs(_fused(((2, 128), weight), _transposed)) == {"few.pack": "dot"}
    assert knobs(_fused(((9, 64), weight), relax.op.matmul)) == {"many.pack": "panels"}
    both = {"few.pack": "stream", "many.pack": "panels"}
    assert knobs(_fused(((N, 64), weight), relax.op.matmul)) == both
    attention = _fused(((N * 4, 9, 16), (N * 4, 16, 8)), relax.op.matmul)
    assert knobs(attention) == {"many.pack": "panels"}


def test_product_space_refuses_what_cannot_be_built():
    nest = loop_nest(_fused(((9, 64), (64, 48)), relax.op.matmul), "avx2")
    assert nest is not None
    space = nest.spaces["many"]
    for wrong in (
        {"many.rows": 14, "many.vectors": 8},  # more than the registers hold
        {"many.pack": "none", "many.vectors": 4},  # 48 columns are no multiple of 32
        {"many.pack": "dot"},  # the terms of a sum are far apart
        {"many.rows": 12},  # more rows than there are
        {"many.order": "tiles"},  # panels are packed before the tiles
    ):
        assert {**space.default, **wrong} not in space, wrong
    assert 20 <= sum(1 for _ in space.configs()) <= 200


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("shapes", "build", "reference"),
    [
        (
            ((N, 5, 197),),
            lambda x: relax.op.nn.softmax(x, -1),
            lambda x: torch.softmax(x, -1),
        ),
        (
            ((N, 72), (72,), (72,)),
            lambda *v: relax.op.nn.layer_norm(*v, axes=[-1]),
            lambda x, w, b: F.layer_norm(x, (72,), w, b),
        ),
        (((N, 3, 72),), relax.op.nn.gelu, F.gelu),
        (((N, 13, 64),), lambda x: relax.op.mean(x, 1), lambda x: x.mean(1)),
    ],
)
def test_every_lane_count(shapes, build, reference, isa):
    nest = loop_nest(_fused(shapes, build), isa)
    assert nest is not None
    ((part, space),) = nest.spaces.items()
    arrays = [torch.randn(*(7 if d is N else d for d in shape)) for shape in shapes]
    want = reference(*arrays).numpy()
    for config in _spread(space, 3):
        assert nest.part("n", 7) == part
        got = _call(nest.schedule(config), isa, [a.numpy() for a in arrays], want.shape)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-5, err_msg=str(config))


def test_transposes_are_absorbed():
    def attention(q, k):
        keys = relax.op.permute_dims(k, [0, 1, 3, 2])
        return relax.op.matmul(q, relax.op.reshape(keys, (N * 2, 8, 9)))

    module = _module(((N * 2, 9, 8), (N, 2, 9, 8)), attention)
    assert [*unscheduled(fuse_module(module))] == ["matmul_nt"]
    q, k = torch.randn(6, 9, 8), torch.randn(3, 2, 9, 8)
    _compare(
        ((N * 2, 9, 8), (N, 2, 9, 8)), attention, (q, k), q @ k.reshape(6, 9, 8).transpose(1, 2)
    )


def test_only_transposes_of_the_last_axes_are_absorbed():
    def swapped(a, b):
        return relax.op.matmul(a, relax.op.permute_dims(b, [1, 0, 2]))

    shapes = ((5, 3, 4), (4, 5, 6))
    module = _module(shapes, swapped)
    assert "matmul_nt" not in unscheduled(fuse_module(module))
    a, b = torch.randn(5, 3, 4), torch.randn(4, 5, 6)
    _compare(shapes, swapped, (a, b), a @ b.transpose(0, 1))


def test_scheduled_functions_are_left_alone():
    fused = fuse_module(_module(((N, 8),), relax.op.exp))
    fused["exp"] = fused["exp"].with_attr("tirx.is_scheduled", True)
    assert schedule_module(fused, "avx2").kernels == ()
    assert "parallel" not in fused["exp"].script()


class _Chosen:
    """Answers every loop nest alike, and remembers who asked."""

    def __init__(self, config):
        self.config, self.asked = config, []

    def stage_configs(self, module, isa):
        return {}

    def relax_config(self, kernel_id, isa):
        self.asked.append((kernel_id, isa))
        return None if self.config is None else (self.config, "tuned on a test")


def test_a_chosen_config_changes_the_code_and_is_recorded():
    def scheduled(choice):
        module = fuse_module(_module(((N, 3, 72),), relax.op.nn.gelu))
        done = schedule_module(module, "avx2", choice)
        (record,) = done.kernels
        return kernel_text(done.module["gelu"]), record

    default, record = scheduled(None)
    assert record == {
        "stage": "gelu",
        "ops": ["gelu(nx3x72) -> nx3x72"],
        "config": {"loops.lanes": 8},
        "source": "default, untuned",
    }
    tuned, record = scheduled(_Chosen({"loops.lanes": 4}))
    assert tuned != default
    assert (record["config"], record["source"]) == ({"loops.lanes": 4}, "tuned on a test")
    # of another version, or of another kind of loop nest
    for stale in ({"loops.lanes": 5}, {"loops.old": 4}, {"rows.map": 8, "rows.reduce": 8}):
        assert scheduled(_Chosen(stale))[1]["source"] == "default, untuned"
        assert scheduled(_Chosen(stale))[0] == default


def test_both_parts_of_a_product_are_chosen_apart():
    class ByRows(_Chosen):
        def relax_config(self, kernel_id, isa):
            super().relax_config(kernel_id, isa)
            return self.config.get(kernel_id)

    shapes = ((N, 64), (64, 48))
    nest = loop_nest(_fused(shapes, relax.op.matmul), "avx2")
    assert nest is not None
    many = {**nest.spaces["many"].default, "many.rows": 4}
    choice = ByRows({nest.kernel_id("many"): (many, "tuned")})
    done = schedule_module(fuse_module(_module(shapes, relax.op.matmul)), "avx2", choice)
    assert {k for k, _ in choice.asked} == {nest.kernel_id("few"), nest.kernel_id("many")}
    (record,) = done.kernels
    assert record["config"] == {**nest.spaces["few"].default, **many}
    assert record["source"] == "few: default, untuned; many: tuned"
    for rows in (3, 20):
        a, b = (
            np.random.default_rng(0).normal(size=s).astype(np.float32)
            for s in ((rows, 64), (64, 48))
        )
        got = _call(done.module["matmul"], "avx2", (a, b), (rows, 48))
        np.testing.assert_allclose(got, a @ b, atol=1e-4)


def test_kernel_text_is_free_of_names():
    def norm(name):
        function = _fused(
            ((tirx.Var(name, "int64"), 16), (16,), (16,)),
            lambda *v: relax.op.nn.layer_norm(*v, axes=[-1]),
        )
        return kernel_text(function)

    assert norm("n") == norm("batch_of_7")
    first, second = (kernel_text(_fused(((N, 16),), relax.op.nn.gelu)) for _ in range(2))
    assert first == second  # whatever variables fast_math made meanwhile
    assert kernel_text(_fused(((N, 17),), relax.op.nn.gelu)) != first
    assert kernel_text(_fused(((N, 16),), relax.op.tanh)) != first
    assert "gelu" not in first
