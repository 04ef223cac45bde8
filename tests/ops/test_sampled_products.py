"""sampled_matmul and sampled_conv2d with given samples: values, gradients, what is skipped."""

from __future__ import annotations

import pytest
import torch

from lutcc.errors import InputError
from lutcc.ops.sampled_pairs import taken, taken_of_all

_op = torch.ops.lutcc
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
EPSILON = {
    torch.float64: 1e-12,
    torch.float32: 2e-6,
    torch.float16: 2.0**-10,
    torch.bfloat16: 2.0**-7,
}
NAN = float("nan")


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def sample(pairs: list[int], scales: list[float], slots: int) -> tuple[torch.Tensor, torch.Tensor]:
    padding = [0] * (slots - len(pairs))
    return (
        torch.tensor([*pairs, *padding], dtype=torch.int32),
        torch.tensor([*scales, *padding], dtype=torch.float32),
    )


def dense_scales(indices, scales, group: int, columns: int) -> torch.Tensor:
    """Return one float64 scale per column, 0 for what is not taken."""
    out = torch.zeros(columns, dtype=torch.float64)
    for index, scale in zip(indices.tolist(), scales.tolist(), strict=True):
        if scale:
            out[index * group : (index + 1) * group] = scale
    return out


def layouts(x: torch.Tensor) -> list[torch.Tensor]:
    wide = torch.cat([x, x], 1)
    return [x, x.t().contiguous().t(), wide[:, : x.shape[1]]]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(
    ("group", "pairs", "scales"),
    [(1, [1, 4, 21], [0.5, 3.0, 1.5]), (4, [0, 2, 5], [1.25, 0.3, 2.0]), (1, [], [])],
)
def test_values(dtype, group, pairs, scales) -> None:
    a, b, bias = randn(9, 22, dtype=dtype), randn(22, 5, seed=1, dtype=dtype), randn(5, dtype=dtype)
    indices, factors = sample(pairs, scales, 5)
    weights = dense_scales(indices, factors, group, 22)
    want = a.double() * weights @ b.double() + bias.double()
    size = (a.double() * weights).abs() @ b.double().abs() + bias.double().abs()
    for left in layouts(a):
        for right in layouts(b):
            y = _op.sampled_matmul(left, right, bias, indices, factors, group)
            assert y.dtype is dtype
            assert float(((y.double() - want).abs() / size).max()) <= EPSILON[dtype]
    without = _op.sampled_matmul(a, b, None, indices, factors, group).double()
    assert float(((without + bias.double() - want).abs() / size).max()) <= EPSILON[dtype]


def test_half_precision_rounds_the_scaled_rows_first() -> None:
    a = torch.ones(1, 1, dtype=torch.bfloat16)
    b = torch.tensor([[1.0078125]], dtype=torch.bfloat16)  # the number after 1
    y = _op.sampled_matmul(a, b, None, *sample([0], [1.0040], 1))
    assert float(y) == float((b.float() * 1.0040).to(torch.bfloat16)) == 1.015625


@pytest.mark.parametrize("backward", ["sampled", "unscaled", "exact"])
@pytest.mark.parametrize("group", [1, 4])
def test_gradients(backward: str, group: int) -> None:
    indices, scales = sample([1, 3, 5], [0.5, 3.0, 1.5], 5)
    a, b, bias = (randn(*s, dtype=torch.float64) for s in ((7, 22), (22, 5), (5,)))
    grad = randn(7, 5, seed=3, dtype=torch.float64)
    weights = dense_scales(indices, scales, group, 22)
    if backward == "unscaled":
        weights = (weights != 0).double()
    elif backward == "exact":
        weights = torch.ones_like(weights)
    for left in layouts(a):
        for right in layouts(b):
            leaves = [t.detach().requires_grad_() for t in (left, right, bias)]
            y = _op.sampled_matmul(*leaves, indices, scales, group, backward)
            da, db, dbias = torch.autograd.grad(y, leaves, grad)
            torch.testing.assert_close(da, (grad @ b.t()) * weights)
            torch.testing.assert_close(db, (a.t() @ grad) * weights[:, None])
            torch.testing.assert_close(dbias, grad.sum(0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_gradients_in_half_precision(dtype: torch.dtype) -> None:
    indices, scales = sample([1, 3, 5], [0.5, 3.0, 1.5], 5)
    a, b, bias = (randn(*s, dtype=dtype).requires_grad_() for s in ((7, 22), (22, 5), (5,)))
    y = _op.sampled_matmul(a, b, bias, indices, scales)
    wide = [t.detach().double().requires_grad_() for t in (a, b, bias)]
    want = _op.sampled_matmul(*wide, indices, scales)
    grad = randn(7, 5, seed=3, dtype=dtype)
    found = torch.autograd.grad(y, (a, b, bias), grad)
    wanted = torch.autograd.grad(want, wide, grad.double())
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype is dtype
        torch.testing.assert_close(one.double(), other, rtol=0.02, atol=0.05)


def test_gradcheck() -> None:
    a, b, bias = (randn(*s, dtype=torch.float64).requires_grad_() for s in ((3, 9), (9, 4), (4,)))
    for group, chosen in ((1, sample([1, 8], [0.5, 3.0], 4)), (4, sample([0, 2], [2.0, 0.5], 3))):
        assert torch.autograd.gradcheck(
            lambda *t, c=chosen, g=group: _op.sampled_matmul(*t, *c, g), (a, b, bias)
        )
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.gradgradcheck(
            lambda *t: _op.sampled_matmul(*t, *sample([1], [0.5], 2)), (a, b, bias)
        )


def test_what_is_not_taken_does_not_leak() -> None:
    """Also into gradients, and not through padding, which stands for column 0."""
    indices, scales = sample([1, 3], [2.0, 0.5], 4)
    a, b = randn(6, 5), randn(5, 4, seed=1)
    for column in (0, 2, 4):
        a[:, column], b[column] = NAN, float("inf")
    a.requires_grad_()
    b.requires_grad_()
    y = _op.sampled_matmul(a, b, None, indices, scales)
    da, db = torch.autograd.grad(y.sum(), (a, b))
    for t in (y, da, db):
        assert t.isfinite().all()
    assert not da[:, [0, 2, 4]].any()
    assert not db[[0, 2, 4]].any()


@pytest.mark.parametrize("group", [1, 4])
def test_columns_as_a_gpu_takes_them_without_waiting(group: int) -> None:
    """Padding, and what a short last pair lacks, becomes the first column with scale 0."""
    indices, scales = sample([1, 5], [2.0, 0.5], 4)
    a, b = randn(6, 22), randn(22, 5, seed=1)
    for column in (0, 2) if group == 1 else (0, 8):
        a[:, column], b[column] = NAN, float("inf")
    all_places = taken_of_all(indices, scales, group, 22)
    few = taken(indices, scales, group, 22)
    assert len(all_places.columns) == 4 * group
    assert len(few.columns) == {1: 2, 4: 6}[group]
    grad = randn(6, 5)
    for compute in (
        lambda t: t.select(a, 1) @ t.scaled(b, 0),
        lambda t: t.spread(grad @ t.scaled(b, 0).t(), 1, 22),
        lambda t: t.spread(t.scaled(a, 1).t() @ grad, 0, 22),
    ):
        assert compute(all_places).isfinite().all()
        torch.testing.assert_close(compute(all_places), compute(few))


@pytest.mark.parametrize("shape", [(0, 22, 5), (3, 22, 0), (1, 1, 1)])
def test_empty_and_single(shape: tuple[int, int, int]) -> None:
    n, k, m = shape
    a, b = randn(n, k).requires_grad_(), randn(k, m).requires_grad_()
    y = _op.sampled_matmul(a, b, None, *sample([0], [2.0], 1))
    torch.testing.assert_close(y, 2 * a[:, :1] @ b[:1])
    da, db = torch.autograd.grad(y.sum(), (a, b))
    assert (da.shape, db.shape) == (a.shape, b.shape)


def test_inference_mode() -> None:
    chosen = sample([1, 3], [2.0, 0.5], 4)
    a, b = randn(6, 5), randn(5, 4)
    with torch.inference_mode():
        y = _op.sampled_matmul(a, b, None, *chosen)
    torch.testing.assert_close(y, _op.sampled_matmul(a, b, None, *chosen))


GEOMETRIES = [
    ((1, 1), (1, 1), (0, 0), (1, 1), 1, [0, 2, 5]),
    ((3, 3), (1, 1), (1, 1), (1, 1), 1, [0, 2, 5]),
    ((3, 2), (2, 1), (1, 2), (1, 2), 2, [1, 3, 5]),
    ((2, 3), (1, 2), (2, 0), (3, 2), 6, [0, 1, 2, 3, 4, 5]),
]


def channel_sample(channels: list[int], groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return these channels, with as much padding as the fullest group, and one more, needs."""
    each = 6 // groups
    slots = max(sum(c // each == g for c in channels) for g in range(groups)) + 1
    slots = min(slots, each) if groups == 6 else slots
    indices, scales = [], []
    for group in range(groups):
        mine = [c for c in channels if c // each == group]
        indices += mine + [0] * (slots - len(mine))
        scales += [0.5 + c for c in mine] + [0.0] * (slots - len(mine))
    return torch.tensor(indices, dtype=torch.int32), torch.tensor(scales)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "groups", "channels"), GEOMETRIES
)
@pytest.mark.parametrize("backward", ["sampled", "unscaled", "exact"])
@pytest.mark.parametrize("images", [2, 0])
def test_convolution(kernel, stride, padding, dilation, groups, channels, backward, images) -> None:
    x = randn(images, 6, 9, 8, dtype=torch.float64).requires_grad_()
    weight = randn(12, 6 // groups, *kernel, seed=1, dtype=torch.float64).requires_grad_()
    bias = randn(12, dtype=torch.float64).requires_grad_()
    indices, scales = channel_sample(channels, groups)
    factors = dense_scales(indices, scales, 1, 6)
    geometry = (stride, padding, dilation, groups)
    y = _op.sampled_conv2d(x, weight, bias, indices, scales, *geometry, backward)
    images_scaled = x.detach() * factors[:, None, None]
    plain = torch.nn.functional.conv2d
    want = plain(images_scaled, weight.detach(), bias.detach(), *geometry)
    torch.testing.assert_close(y, want)
    grad = randn(*y.shape, seed=3, dtype=torch.float64)
    found = torch.autograd.grad(y, (x, weight, bias), grad)
    exact = torch.autograd.grad(plain(x, weight, bias, *geometry), (x, weight, bias), grad)
    if backward == "unscaled":
        factors = (factors != 0).double()
    elif backward == "exact":
        factors = torch.ones_like(factors)
    per_weight = factors.view(groups, 1, -1, 1, 1).expand(groups, 12 // groups, -1, 1, 1)
    torch.testing.assert_close(found[0], exact[0] * factors[:, None, None])
    torch.testing.assert_close(found[1], exact[1] * per_weight.reshape(12, -1, 1, 1))
    torch.testing.assert_close(found[2], exact[2])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_convolution_dtypes_and_layouts(dtype: torch.dtype) -> None:
    x, weight, bias = (
        randn(*s, dtype=dtype).requires_grad_() for s in ((2, 6, 5, 4), (4, 6, 3, 3), (4,))
    )
    indices, scales = sample([1, 4], [0.5, 3.0], 3)
    options = ([1, 1], [1, 1], [1, 1])
    want = _op.sampled_conv2d(
        x.double(), weight.double(), bias.double(), indices, scales, *options
    ).detach()
    for format_ in (torch.contiguous_format, torch.channels_last):
        y = _op.sampled_conv2d(x.to(memory_format=format_), weight, bias, indices, scales, *options)
        assert y.dtype is dtype
        tolerance = 20 * EPSILON[dtype]
        torch.testing.assert_close(y.double(), want, rtol=tolerance, atol=tolerance)
        y.sum().backward()
        assert all(t.grad is not None and t.grad.dtype is dtype for t in (x, weight, bias))


def test_channels_that_are_not_taken_do_not_leak() -> None:
    indices, scales = channel_sample([1, 4, 5], 2)
    x, weight = randn(2, 6, 5, 5), randn(4, 3, 3, 3, seed=1)
    x[:, [0, 2, 3]] = NAN
    weight[:2, [0, 2]] = NAN
    weight[2:, 0] = NAN
    x.requires_grad_()
    weight.requires_grad_()
    y = _op.sampled_conv2d(x, weight, None, indices, scales, [1, 1], [0, 0], [1, 1], 2)
    grads = torch.autograd.grad(y.sum(), (x, weight))
    assert all(t.isfinite().all() for t in (y, *grads))


def _matmul(**changes):
    indices, scales = sample([1], [2.0], 2)
    call = {
        "a": randn(4, 5),
        "b": randn(5, 3),
        "bias": None,
        "indices": indices,
        "scales": scales,
        "group_size": 1,
        "backward": "sampled",
    }
    return _op.sampled_matmul(*{**call, **changes}.values())


ERRORS = [
    (lambda: _matmul(a=randn(4, 6)), r"a \(4, 6\) and b \(5, 3\)"),
    (lambda: _matmul(a=randn(4, 5).bfloat16()), "a is torch.bfloat16, but b is torch.float32"),
    (lambda: _matmul(a=randn(4, 5).long(), b=randn(5, 3).long()), "a must be torch.float32"),
    (lambda: _matmul(bias=randn(4)), r"bias must be \(3,\), got \(4,\)"),
    (lambda: _matmul(bias=randn(3).half()), "bias must be torch.float32"),
    (lambda: _matmul(indices=torch.zeros(2).long()), "indices must be torch.int32"),
    (lambda: _matmul(scales=torch.ones(2).double()), "scales must be torch.float32"),
    (lambda: _matmul(scales=torch.ones(3)), r"indices \(2,\) and scales \(3,\)"),
    (lambda: _matmul(indices=torch.tensor([5, 0]).int()), "indices holds 5, but there are 5 pairs"),
    (lambda: _matmul(indices=torch.tensor([-1, 0]).int()), "indices holds -1"),
    (lambda: _matmul(indices=torch.tensor([3, 0]).int(), group_size=2), "holds 3.*are 3 pairs"),
    (lambda: _matmul(group_size=0), "group_size=0"),
    (lambda: _matmul(backward="no"), "backward='no'"),
]


@pytest.mark.parametrize(("call", "message"), ERRORS)
def test_what_does_not_fit_says_so(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_an_index_of_padding_may_be_anything() -> None:
    torch.testing.assert_close(_matmul(indices=torch.tensor([1, 99]).int()), _matmul())


def test_a_channel_of_another_group() -> None:
    indices = torch.tensor([1, 2], dtype=torch.int32)
    with pytest.raises(InputError, match=r"indices holds 2 for group 1, whose channels are 3\.\.5"):
        _op.sampled_conv2d(
            randn(1, 6, 2, 2), randn(2, 3, 1, 1), None, indices, torch.ones(2), [1, 1], [0, 0],
            [1, 1], 2,
        )  # fmt: skip
    with pytest.raises(InputError, match=r"indices \(3,\) are not the same number"):
        _op.sampled_conv2d(
            randn(1, 6, 2, 2), randn(2, 3, 1, 1), None, indices.repeat(2)[:3], torch.ones(3),
            [1, 1], [0, 0], [1, 1], 2,
        )  # fmt: skip


def test_opcheck() -> None:
    quick = ("test_schema", "test_autograd_registration", "test_faketensor")
    chosen = sample([1, 3], [2.0, 0.5], 4)
    a, b, bias = (randn(*s).requires_grad_() for s in ((6, 5), (5, 4), (4,)))
    grad = randn(6, 4)
    weight = randn(4, 5).requires_grad_()
    torch.library.opcheck(_op.sampled_matmul.default, (a, b, bias, *chosen, 1, "sampled"))
    torch.library.opcheck(
        _op.sampled_matmul.default, (a, weight.t(), None, *chosen, 1, "exact"), test_utils=quick
    )
    plain = a.detach(), b.detach()
    torch.library.opcheck(
        _op.sampled_matmul_input_grad.default, (grad, plain[1], *chosen, 1), test_utils=quick
    )
    torch.library.opcheck(
        _op.sampled_matmul_weight_grad.default, (plain[0], grad, *chosen, 1), test_utils=quick
    )
    torch.library.opcheck(
        _op.sampled_dense_product.default, (*plain, bias.detach()), test_utils=quick
    )
    x, kernels = randn(2, 6, 5, 4).requires_grad_(), randn(4, 3, 3, 3).requires_grad_()
    channels = channel_sample([1, 4, 5], 2)
    geometry = ([1, 1], [1, 1], [1, 1], 2)
    torch.library.opcheck(
        _op.sampled_conv2d.default,
        (x, kernels, bias, *channels, *geometry, "sampled"),
        test_utils=quick,
    )
    grad = randn(2, 4, 5, 4)
    plain = grad, x.detach(), kernels.detach()
    torch.library.opcheck(
        _op.sampled_conv2d_backward.default,
        (*plain, *channels, *geometry, True, True),
        test_utils=quick,
    )
    torch.library.opcheck(
        _op.dense_conv2d_backward.default, (*plain, *geometry, True, False), test_utils=quick
    )
