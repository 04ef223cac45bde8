"""The ops that torch.export's graph is brought to before it is imported.

A rule replaces an op by others of torch with the very same result: those that neither the IR nor
TVM's importer has, or that the importer gets wrong. It returns NotImplemented where the op may
stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._decomp import get_decompositions
from torch.export import ExportedProgram

import lutcc.ops  # noqa: F401  registers torch.ops.lutcc
from lutcc.frontend.attention import attention, products
from lutcc.frontend.simplify import simplify
from lutcc.frontend.tracing import quiet_torch

aten = torch.ops.aten
Tensor = torch.Tensor

_KEEP_WHOLE = (
    *(aten.linear.default, aten.conv1d.default, aten.conv2d.default),
    *(aten.silu.default, aten.hardswish.default, aten.hardsigmoid.default),
    *(aten.softplus.default, aten.mish.default),
)
_RULES: dict[Any, Callable[..., Any]] = {
    aten.scaled_dot_product_attention.default: attention,
}


def decompose(program: ExportedProgram, *, for_kernels: bool = True) -> ExportedProgram:
    """Return the program in core ATen ops, whole linears and convolutions, functional.

    For kernels, attention is an op of its own and the graph is simplified; else each step stands
    there as torch has it.
    """
    table: dict[Any, Callable[..., Any]] = dict(torch.export.default_decompositions())
    for op in _KEEP_WHOLE:
        table.pop(op, None)
    table.update(_RULES)
    if not for_kernels:
        table[aten.scaled_dot_product_attention.default] = products
    with quiet_torch():
        functional = program.run_decompositions(table)
    return simplify(functional) if for_kernels else functional


def _rule(*ops: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(rule: Callable[..., Any]) -> Callable[..., Any]:
        _RULES.update(dict.fromkeys(ops, rule))
        return rule

    return register


@_rule(torch.ops.lutcc.codebook_dequantize.default)
def _narrow_rows(rows: Tensor, *args: Any) -> Any:
    """Cast row numbers to int32, which the IR takes: it has no casts itself."""
    if rows.dtype is torch.int32:
        return NotImplemented  # stays as it is
    return torch.ops.lutcc.codebook_dequantize(rows.to(torch.int32), *args)


# elementwise


@_rule(aten.add.Tensor, aten.add.Scalar)
def _add(x: Tensor, y: Any, *rest: Any, alpha: float = 1) -> Any:
    alpha = rest[0] if rest else alpha
    return NotImplemented if alpha == 1 else x + y * alpha


@_rule(aten.sub.Tensor, aten.sub.Scalar)
def _sub(x: Tensor, y: Any, *rest: Any, alpha: float = 1) -> Any:
    alpha = rest[0] if rest else alpha
    return NotImplemented if alpha == 1 else x - y * alpha


@_rule(aten.rsub.Tensor, aten.rsub.Scalar)
def _rsub(x: Tensor, y: Any, *rest: Any, alpha: float = 1) -> Any:
    alpha = rest[0] if rest else alpha
    return NotImplemented if alpha == 1 else y - x * alpha


@_rule(aten.elu.default)
def _elu(x: Tensor, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Any:
    if scale == input_scale == 1:
        return NotImplemented
    return scale * torch.where(x > 0, x, alpha * torch.expm1(x * input_scale))


@_rule(aten.celu.default)
def _celu(x: Tensor, alpha: float = 1) -> Tensor:
    return aten.elu(x / alpha) * alpha


@_rule(aten.selu.default)
def _selu(x: Tensor) -> Tensor:
    return aten.elu(x, 1.6732632423543772) * 1.0507009873554805


@_rule(aten.rrelu.default)
def _rrelu(
    x: Tensor,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    generator: Any = None,
) -> Any:
    return NotImplemented if training else aten.leaky_relu(x, (lower + upper) / 2)


@_rule(aten.hypot.default)
def _hypot(x: Tensor, y: Tensor) -> Tensor:
    return torch.sqrt(x * x + y * y)


# reductions


@_rule(aten.max.dim)
def _max_dim(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    return torch.amax(x, dim, keepdim), torch.argmax(x, dim, keepdim)


@_rule(aten.min.dim)
def _min_dim(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    return torch.amin(x, dim, keepdim), torch.argmin(x, dim, keepdim)


@_rule(aten.var.correction)
def _var(
    x: Tensor,
    dim: Sequence[int] | None = None,
    *,
    correction: float | None = None,
    keepdim: bool = False,
) -> Tensor:
    axes = list(dim) if dim else list(range(x.dim()))
    centred = x - x.mean(axes, keepdim=True)
    count = 1
    for axis in axes:
        count = count * x.shape[axis]
    return (centred * centred).sum(axes, keepdim=keepdim) / _less(
        count, 1 if correction is None else correction
    )


def _less(count: Any, correction: float) -> Any:
    """Return the divisor of a variance: at least 0, where torch gives infinity or NaN."""
    if isinstance(count, int):
        return max(count - correction, 0)
    return count - int(correction)


@_rule(aten.var_mean.correction)
def _var_mean(x: Tensor, dim: Sequence[int] | None = None, **options: Any) -> tuple[Tensor, Tensor]:
    mean = x.mean(list(dim) if dim else None, keepdim=options.get("keepdim", False))
    return _var(x, dim, **options), mean


@_rule(aten.std.correction)
def _std(x: Tensor, dim: Sequence[int] | None = None, **options: Any) -> Tensor:
    return torch.sqrt(_var(x, dim, **options))


@_rule(aten._cdist_forward.default)
def _cdist(x: Tensor, y: Tensor, p: float, compute_mode: int | None) -> Tensor:
    return torch.linalg.vector_norm(x[..., :, None, :] - y[..., None, :, :], p, -1)


# norms


@_rule(aten.native_group_norm.default)
def _group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, n: Any, c: int, *rest: Any
) -> Any:
    if weight is not None and bias is not None:
        return NotImplemented
    weight = x.new_ones([c]) if weight is None else weight
    bias = x.new_zeros([c]) if bias is None else bias
    return aten.native_group_norm.default(x, weight, bias, n, c, *rest)


@_rule(aten.instance_norm.default)
def _instance_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    if use_input_stats:
        return torch.group_norm(x, x.shape[1], weight, bias, eps)
    return torch.batch_norm(x, weight, bias, mean, var, False, momentum, eps, False)


# images and sequences


@_rule(aten.conv3d.default)
def _conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> Any:
    """Sum convolutions of images, one for each depth of the kernel."""
    if x.dim() != 5:
        return NotImplemented
    (step, *steps), (pad, *pads), (spread, *spreads) = (
        list(v) * (3 // len(v)) for v in (stride, padding, dilation)
    )
    x = torch.nn.functional.pad(x, (0, 0, 0, 0, pad, pad)) if pad else x
    depth = (x.shape[2] - spread * (weight.shape[2] - 1) - 1) // step + 1
    total: Any = None
    for k in range(weight.shape[2]):
        start = k * spread
        part = x[:, :, start : start + (depth - 1) * step + 1 : step].movedim(2, 1)
        images = part.reshape(x.shape[0] * depth, *part.shape[2:])
        own = bias if total is None else None
        one = torch.conv2d(images, weight[:, :, k], own, steps, pads, spreads, groups)
        total = one if total is None else total + one
    return total.reshape(x.shape[0], depth, *total.shape[1:]).movedim(1, 2)


@_rule(aten.avg_pool2d.default)
def _avg_pool2d(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    if divisor_override is None:
        return NotImplemented
    height, width = kernel if len(kernel) == 2 else (kernel[0], kernel[0])
    ones = x.new_ones([x.shape[1], 1, height, width]) / divisor_override
    if ceil_mode:
        raise NotImplementedError("avg_pool2d with divisor_override and ceil_mode")
    stride = stride or (height, width)
    return torch.conv2d(x, ones, None, stride, padding, 1, x.shape[1])


@_rule(
    aten.adaptive_max_pool1d.default,
    aten.adaptive_max_pool2d.default,
    aten.adaptive_max_pool3d.default,
)
def _adaptive_max_pool(x: Tensor, output_size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Take the largest of each window; windows of unequal size, as torch cuts them."""
    indices = x.new_zeros([1], dtype=torch.int64)  # nobody asks for them in a forward pass
    for axis, count in zip(range(-len(output_size), 0), output_size, strict=True):
        size = x.shape[axis]
        parts = [
            x.narrow(axis, i * size // count, -(-(i + 1) * size // count) - i * size // count).amax(
                axis, keepdim=True
            )
            for i in range(count)
        ]
        x = parts[0] if count == 1 else torch.cat(parts, axis)
    return x, indices


@_rule(aten.upsample_nearest1d.vec, aten.upsample_nearest2d.vec, aten.upsample_nearest3d.vec)
def _upsample_nearest(
    x: Tensor, output_size: Sequence[int] | None, scale_factors: Sequence[float] | None
) -> Tensor:
    """Read the rows, then the columns, that torch reads."""
    spatial = x.dim() - 2
    for number in range(spatial):
        axis, size = 2 + number, x.shape[2 + number]
        scale = None if scale_factors is None else scale_factors[number]
        count = int(size * scale) if scale is not None else list(output_size or ())[number]
        step = 1 / scale if scale is not None else size / count
        if count == size and step == 1:
            continue
        places = torch.arange(count, dtype=torch.float32, device=x.device)
        source = torch.floor(places * step).to(torch.int64).clamp(max=size - 1)
        x = torch.index_select(x, axis, source)
    return x


@_rule(aten.upsample_bilinear2d.vec)
def _upsample_bilinear2d(
    x: Tensor,
    output_size: Sequence[int] | None,
    align_corners: bool,
    scale_factors: Sequence[float] | None,
) -> Any:
    """Give the size where TVM's importer would take the scale for the ratio of sizes."""
    if scale_factors is None or align_corners:
        return NotImplemented
    sizes = x.shape[2:]
    if all(float(int(s * f)) == s * f for s, f in zip(sizes, scale_factors, strict=True)):
        return NotImplemented
    return _OF_TORCH[aten.upsample_bilinear2d.vec](x, output_size, align_corners, scale_factors)


_OF_TORCH: dict[Any, Callable[..., Any]] = get_decompositions(
    [aten.upsample_bilinear2d.vec, aten.upsample_trilinear3d.vec, aten.im2col.default]
)
"""Of torch itself, which does not use them by default."""

_RULES.update({op: rule for op, rule in _OF_TORCH.items() if op not in _RULES})


@_rule(aten._pad_circular.default)
def _pad_circular(x: Tensor, pad: Sequence[int]) -> Tensor:
    for number in range(len(pad) // 2):
        axis, before, after = -1 - number, pad[2 * number], pad[2 * number + 1]
        size = x.shape[axis]
        if before < 0 or after < 0:
            x = x.narrow(axis, max(-before, 0), size + min(before, 0) + min(after, 0))
        ends = [x.narrow(axis, x.shape[axis] - before, before)] if before > 0 else []
        starts = [x.narrow(axis, 0, after)] if after > 0 else []
        x = torch.cat([*ends, x, *starts], axis) if ends or starts else x
    return x


@_rule(aten.unfold.default)
def _unfold(x: Tensor, dimension: int, size: int, step: int) -> Tensor:
    """Gather the windows: they overlap, and a compiled tensor has no strides."""
    axis = dimension % x.dim()
    count = (x.shape[axis] - size) // step + 1
    starts = torch.arange(count, device=x.device)[:, None] * step
    places = starts + torch.arange(size, device=x.device)
    return x[(*(slice(None),) * axis, places)].movedim(axis + 1, -1)
