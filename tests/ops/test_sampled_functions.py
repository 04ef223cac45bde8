"""sampled_matmul, sampled_linear and sampled_conv2d as users call them, under torch's tools."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
from collections.abc import Iterator

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from lutcc import ir, ops
from lutcc.errors import InputError
from lutcc.ir import sampling
from lutcc.sampling_options import SamplingOptions

ALL = [
    (mode, where)
    for mode in sampling.MODES
    for where in ("forward_backward", "forward", "backward", "weight_gradient")
    if not (mode == "topk_weights" and where in ("backward", "weight_gradient"))
]


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def linear_case() -> list[torch.Tensor]:
    shapes = [(4, 6, 12), (10, 12), (10,)]
    return [randn(*s, seed=i).requires_grad_() for i, s in enumerate(shapes)]


def conv_case() -> list[torch.Tensor]:
    shapes = [(4, 8, 6, 5), (6, 4, 3, 3), (6,)]
    return [randn(*s, seed=i).requires_grad_() for i, s in enumerate(shapes)]


def linear(options: SamplingOptions, seed: int | None = 5):
    return lambda x, weight, bias: ops.sampled_linear(x, weight, bias, options, seed)


def convolution(options: SamplingOptions, seed: int | None = 5):
    return lambda x, weight, bias: ops.sampled_conv2d(
        x, weight, bias, (1, 2), 1, 1, 2, options, seed
    )


CALLS = [(linear, linear_case), (convolution, conv_case)]


def results(call, leaves: list[torch.Tensor]) -> list[torch.Tensor]:
    y = call(*leaves)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), leaves)]


def interpret(opcode: str, operands: list[torch.Tensor], **attrs) -> list[torch.Tensor]:
    """Run one op of the IR in its interpreter."""
    builder = ir.Builder("main")
    values = []
    for operand, tensor in zip(ir.OPS[opcode].operands, operands, strict=True):
        name = str(tensor.dtype).removeprefix("torch.")
        values.append(builder.param(operand.name, ir.TensorType(tuple(tensor.shape), name)))
    builder.returns(*builder.ops(opcode, *values, **attrs))
    arrays = [tensor.detach().numpy() for tensor in operands]
    return [torch.from_numpy(r) for r in ir.interpret(builder.module(), arrays)]


@pytest.mark.parametrize("mode", sampling.MODES)
@pytest.mark.parametrize("group", [1, 5])
def test_linear_layers_are_their_ir_ops(mode: str, group: int) -> None:
    x, weight, bias = linear_case()
    rows, b = x.detach().reshape(-1, 12), weight.detach().t().contiguous()
    options = SamplingOptions(mode=mode, group_size=group)
    y = ops.sampled_linear(x, weight, bias, options, seed=9).reshape(-1, 10)
    only = mode == "topk_weights"
    (scores,) = interpret("column_row_scores", [rows, b], group_size=group, weights_only=only)
    torch.testing.assert_close(ops.column_row_scores(rows, b, group, only), scores)
    k = options.count(len(scores))
    taken = interpret("column_row_sample", [scores], k=k, mode=mode, seed=9)
    (want,) = interpret("sampled_matmul", [rows, b, *taken, bias], group_size=group)
    torch.testing.assert_close(y, want)


@pytest.mark.parametrize("mode", sampling.MODES)
def test_convolutions_are_their_ir_ops(mode: str) -> None:
    x, weight, bias = conv_case()
    options = SamplingOptions(mode=mode)
    y = ops.sampled_conv2d(x, weight, bias, (1, 2), (1, 0), (2, 1), 2, options, seed=9)
    geometry = {"stride": (1, 2), "padding": (1, 0), "dilation": (2, 1), "groups": 2}
    only = mode == "topk_weights"
    (scores,) = interpret("channel_scores", [x, weight], **geometry, weights_only=only)
    taken = interpret("column_row_sample", [scores], k=2, mode=mode, seed=9, groups=2)
    (want,) = interpret("sampled_conv2d", [x, weight, *taken, bias], **geometry)
    torch.testing.assert_close(y, want)


def test_top_half_of_a_convolution_is_one_of_the_channels_kept() -> None:
    x, weight, bias = (t.detach() for t in conv_case())
    scores = ops.channel_scores(x, weight, (1, 2), 1, 1, 2).view(2, 4)
    kept = torch.zeros(2, 4).scatter(1, scores.topk(2).indices, 1.0).view(1, 8, 1, 1)
    want = torch.nn.functional.conv2d(x * kept, weight, bias, (1, 2), 1, 1, 2)
    got = ops.sampled_conv2d(x, weight, bias, (1, 2), 1, 1, 2)
    torch.testing.assert_close(got, want)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("padding", ["same", "valid", 1, (2, 1)])
@pytest.mark.parametrize("kernel", [(3, 3), (2, 4), (1, 2)])
def test_padding(padding, kernel) -> None:
    x, weight = randn(2, 4, 6, 7), randn(3, 4, *kernel, seed=1)
    want = torch.nn.functional.conv2d(x, weight, padding=padding)
    for where in ("forward_backward", "backward"):
        y = ops.sampled_conv2d(x, weight, padding=padding, options=SamplingOptions(where=where))
        assert y.shape == want.shape
        exact = ops.sampled_conv2d(
            x, weight, padding=padding, options=SamplingOptions(sample_ratio=1, where=where)
        )
        assert torch.equal(exact, want)
    one = ops.sampled_conv2d(x[0], weight, padding=padding)
    torch.testing.assert_close(one, ops.sampled_conv2d(x[:1], weight, padding=padding)[0])


@pytest.mark.parametrize(("mode", "where"), ALL)
@pytest.mark.parametrize(("function", "case"), CALLS)
def test_all_pairs_are_exact(mode, where, function, case) -> None:
    """Also its gradients: torch's own operator computes them."""
    options = SamplingOptions(mode=mode, where=where, sample_ratio=1.0)
    leaves = case()
    plain = (
        torch.nn.functional.linear
        if function is linear
        else lambda x, w, b: torch.nn.functional.conv2d(x, w, b, (1, 2), 1, 1, 2)
    )
    for one, other in zip(results(function(options), leaves), results(plain, leaves), strict=True):
        assert torch.equal(one, other)


@pytest.fixture
def one_way() -> Iterator[None]:
    """Compute in one way only: a kernel that time decides for differs in the last bits."""
    before = ops.get_compilation()
    ops.set_compilation("never")
    yield
    ops.set_compilation(before)


@pytest.mark.parametrize(("mode", "where"), ALL)
@pytest.mark.parametrize(("function", "case"), CALLS)
def test_seeds(mode, where, function, case, one_way) -> None:
    options, leaves = SamplingOptions(mode=mode, where=where), case()
    fixed = [results(function(options, 7), leaves) for _ in range(2)]
    assert all(map(torch.equal, *fixed))
    torch.manual_seed(1)
    first, *others = (results(function(options, None), leaves) for _ in range(8))
    torch.manual_seed(1)
    again = results(function(options, None), leaves)
    assert all(map(torch.equal, first, again))
    same = all(all(map(torch.equal, first, other)) for other in others)
    assert same is (mode not in sampling.RANDOM_MODES)


@pytest.mark.parametrize("mode", ["topk", "crs"])
@pytest.mark.parametrize("where", ["forward_backward", "backward"])
@pytest.mark.parametrize(("function", "case"), CALLS)
def test_checkpointing_takes_the_same_sample_again(mode, where, function, case) -> None:
    call = function(SamplingOptions(mode=mode, where=where), None)
    leaves = case()
    torch.manual_seed(4)
    want = results(call, leaves)
    torch.manual_seed(4)
    got = results(lambda *t: checkpoint(call, *t, use_reentrant=False), leaves)
    assert all(map(torch.equal, got, want))


@pytest.mark.parametrize("where", ["forward_backward", "backward"])
def test_a_layer_may_be_used_twice(where: str) -> None:
    x, weight, _ = linear_case()
    square = weight[:, :10]
    call = linear(SamplingOptions(mode="crs", where=where), None)
    torch.manual_seed(2)
    once = ops.sampled_linear(x[..., :10], square, None, SamplingOptions(where=where))
    twice = call(once, square, None)
    (grad,) = torch.autograd.grad(twice.sum(), weight)
    assert grad.shape == weight.shape
    assert grad[:, :10].any()


@pytest.mark.parametrize(("function", "case"), CALLS)
@pytest.mark.parametrize(
    ("mode", "where", "scaling"),
    [
        ("topk", "forward_backward", "both"),
        ("bernoulli", "forward", "both"),
        ("crs", "forward_backward", "forward"),
        ("wta_crs", "backward", "none"),
    ],
)
def test_compiled_equals_eager(mode, where, scaling, function, case) -> None:
    """Without graph breaks, forward and backward."""
    torch._dynamo.reset()
    call = function(SamplingOptions(mode=mode, where=where, scaling=scaling))
    leaves = case()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for one, other in zip(results(compiled, leaves), results(call, leaves), strict=True):
        torch.testing.assert_close(one, other)


def test_compiled_draws_from_torch_too() -> None:
    torch._dynamo.reset()
    call = linear(SamplingOptions(mode="crs"), None)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    leaves = linear_case()
    torch.manual_seed(6)
    first, second = compiled(*leaves), compiled(*leaves)
    torch.manual_seed(6)
    assert torch.equal(first, compiled(*leaves))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("function", "case"), CALLS)
@pytest.mark.parametrize("where", ["forward_backward", "backward"])
def test_autocast(where, function, case) -> None:
    call = function(SamplingOptions(where=where))
    leaves = case()
    want = results(call, leaves)
    with torch.autocast("cpu", torch.bfloat16):
        y = call(*leaves)
    assert y.dtype is torch.bfloat16
    narrow = call(*[t.detach().bfloat16() for t in leaves])
    assert torch.equal(y, narrow)
    grads = torch.autograd.grad(y.float().square().sum(), leaves)
    for one, other in zip((y.float(), *grads), want, strict=True):
        assert one.dtype is torch.float32
        assert (one - other).norm() <= 0.05 * other.norm()


@pytest.mark.parametrize(("function", "case"), CALLS)
@pytest.mark.parametrize(("mode", "where"), ALL)
def test_inference_and_empty_batches(mode, where, function, case) -> None:
    call = function(SamplingOptions(mode=mode, where=where))
    x, weight, bias = case()
    with torch.inference_mode():
        assert torch.equal(call(x, weight, bias), call(x.detach(), weight.detach(), bias.detach()))
    found = results(call, [x.detach()[:0].requires_grad_(), weight, bias])
    assert found[0].shape[0] == 0
    assert not any(t.any() for t in found)


@pytest.mark.parametrize(("function", "case"), CALLS)
@pytest.mark.parametrize("where", ["forward_backward", "backward"])
def test_other_strides(where, function, case) -> None:
    call = function(SamplingOptions(where=where))
    leaves = case()
    want = results(call, leaves)
    views = [t.detach().transpose(0, 1).contiguous().transpose(0, 1) for t in leaves[:2]]
    got = results(call, [*(v.requires_grad_() for v in views), leaves[2]])
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other)


def test_matmul() -> None:
    a, b, bias = randn(2, 3, 8), randn(8, 5, seed=1), randn(5)
    scores = ops.column_row_scores(a.flatten(0, 1), b)
    kept = torch.zeros(8).index_fill(0, scores.topk(4).indices, 1.0)
    torch.testing.assert_close(ops.sampled_matmul(a, b, bias=bias), (a * kept) @ b + bias)
    few = ops.sampled_matmul(a, b, sample_ratio=0.01, minimal_k=4)
    torch.testing.assert_close(few, (a * kept) @ b)
    torch.testing.assert_close(ops.sampled_matmul(a, b, sample_ratio=1.0), a @ b)


def test_forward_only_scaling() -> None:
    """The gradients of what is taken count 1, the output is scaled."""
    x, weight, bias = linear_case()
    both, forward, none = (
        results(linear(SamplingOptions(mode="crs", scaling=s)), [x, weight, bias])
        for s in ("both", "forward", "none")
    )
    assert torch.equal(both[0], forward[0])
    assert not torch.allclose(both[1], forward[1])
    exact = results(linear(SamplingOptions(mode="crs", where="forward")), [x, weight, bias])
    assert torch.equal(exact[0], both[0])
    y = exact[0].reshape(-1, 10)
    torch.testing.assert_close(exact[1].reshape(-1, 12), 2 * y @ weight)
    kept = forward[2].abs().sum(0) > 0
    torch.testing.assert_close(forward[1].reshape(-1, 12), (2 * y @ weight) * kept)
    assert not torch.allclose(none[0], both[0])


ERRORS = [
    (lambda: ops.sampled_matmul(randn(2, 3), randn(2, 3, 4)), "b must have 2 dimensions"),
    (lambda: ops.sampled_matmul(randn(2, 3), randn(4, 2)), r"x \(2, 3\) and weight \(2, 4\)"),
    (lambda: ops.sampled_matmul(randn(2, 3), randn(3, 2), "best"), "mode='best'"),
    (lambda: ops.sampled_matmul(randn(2, 3), randn(3, 2), sample_ratio=0), "sample_ratio=0"),
    (
        lambda: ops.sampled_conv2d(
            randn(1, 2, 3, 3), randn(1, 2, 1, 1), options=SamplingOptions(group_size=2)
        ),
        "group_size=2 is for linear layers",
    ),
    (lambda: ops.sampled_conv2d(randn(2, 2), randn(1, 2, 1, 1)), r"x \(2, 2\) must be"),
    (
        lambda: ops.sampled_conv2d(randn(1, 2, 3, 3), randn(1, 2, 1, 1), None, 2, "same"),
        "padding='same' with stride",
    ),
    (lambda: ops.sampled_conv2d(randn(1, 3, 3, 3), randn(1, 2, 1, 1)), "do not fit groups=1"),
]


@pytest.mark.parametrize(("call", "message"), ERRORS)
def test_what_does_not_fit_says_so(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_options_are_what_the_functions_take() -> None:
    names = {f.name for f in dataclasses.fields(SamplingOptions)}
    arguments = (ops.sampled_matmul.__kwdefaults__ or {}).keys() | {"mode", "sample_ratio"}
    assert names == arguments - {"bias"}


@pytest.mark.parametrize(
    "name", ["sampled", "sampled_channels", "sampled_choice", "sampled_scores", "sampled_selection"]
)
def test_examples(name: str) -> None:
    module = importlib.import_module(f"lutcc.ops.{name}")
    result = doctest.testmod(module, extraglobs={"torch": torch})
    assert result.attempted
    assert not result.failed
