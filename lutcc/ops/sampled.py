"""Sampled products, linear layers and convolutions as functions."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lutcc.errors import InputError
from lutcc.ops import sampled_backward_conv as _sampled_backward_conv  # noqa: F401  registers
from lutcc.ops.library import cast_to
from lutcc.ops.sampled_backward import unscaled
from lutcc.ops.sampled_channels import pair
from lutcc.ops.sampled_scores import pairs_of
from lutcc.ops.sampled_selection import seed_tensor
from lutcc.sampling_options import SamplingOptions

_BACKWARD_ONLY = ("backward", "weight_gradient")


def sampled_matmul(
    a: torch.Tensor,
    b: torch.Tensor,
    mode: str = "topk",
    sample_ratio: float = 0.5,
    seed: int | torch.Tensor | None = None,
    *,
    bias: torch.Tensor | None = None,
    minimal_k: int = 1,
    probabilities: str = "optimal",
    scaling: str = "both",
    where: str = "forward_backward",
    group_size: int = 1,
) -> torch.Tensor:
    """Return ``a @ b + bias`` from a part of the columns of a and rows of b.

    Parameters
    ----------
    a
        (..., K) float32, float64, float16 or bfloat16.
    b
        (K, M), dtype of a.
    mode, sample_ratio, minimal_k, probabilities, scaling, where, group_size
        See :class:`lutcc.sampling_options.SamplingOptions`.
    seed
        As for :func:`column_row_sample`.
    bias
        (M,), added exactly.

    Returns
    -------
    torch.Tensor
        (..., M), dtype of a. Differentiable, with the same pairs unless ``where`` says otherwise.

    Raises
    ------
    InputError
        When shapes, dtypes or options do not fit.

    Notes
    -----
    Source: Adelman et al., Faster neural network training with approximate tensor operations.

    Examples
    --------
    >>> a, b = torch.tensor([[1.0, 2.0, 0.1]]), torch.tensor([[1.0], [2.0], [0.1]])
    >>> sampled_matmul(a, b, "topk", 0.67).tolist()
    [[5.0]]
    """
    options = SamplingOptions(
        mode=mode,
        sample_ratio=sample_ratio,
        minimal_k=minimal_k,
        where=where,
        probabilities=probabilities,
        scaling=scaling,
        group_size=group_size,
    )
    if b.ndim != 2:
        raise InputError(
            f"b must have 2 dimensions, got shape {tuple(b.shape)}",
            where="lutcc.ops.sampled_matmul",
            fix="multiply batches of matrices one by one",
        )
    return sampled_linear(a, b.t(), bias, options, seed)


def sampled_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    options: SamplingOptions | None = None,
    seed: int | torch.Tensor | None = None,
) -> torch.Tensor:
    """Return ``x @ weight.t() + bias`` from a part of the input features, or its gradients so.

    Parameters
    ----------
    x
        (..., K) of a floating-point dtype.
    weight
        (M, K), dtype of x.
    bias
        (M,), added exactly.
    options
        What is sampled and how; :class:`~lutcc.sampling_options.SamplingOptions` () if None. Where
        they take all pairs, torch's linear computes the result.
    seed
        As for :func:`column_row_sample`.

    Returns
    -------
    torch.Tensor
        (..., M), dtype of x. Differentiable.

    Raises
    ------
    InputError
        When shapes or dtypes do not fit.

    Notes
    -----
    Source: Adelman et al., sections 3 and 5.

    Examples
    --------
    >>> from lutcc.sampling_options import SamplingOptions
    >>> x, weight = torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, 1.0]])
    >>> sampled_linear(x, weight, options=SamplingOptions(sample_ratio=0.5)).tolist()
    [[3.0]]
    """
    options = options or SamplingOptions()
    _check_linear(x, weight)
    rows = x.reshape(-1, x.shape[-1])
    group_size = options.group_size
    if options.where in _BACKWARD_ONLY:
        pairs = [pairs_of(size, group_size) for size in (weight.shape[0], rows.shape[0])]
        k_input, k_weight = (_partial(options, count) for count in pairs)
        if options.where == "weight_gradient":
            k_input = 0
        if not (k_input or k_weight):
            return torch.nn.functional.linear(x, weight, bias)
        drawn = seed_tensor(seed, options.mode, x)
        rule = (options.probabilities, options.scaling, group_size)
        y = torch.ops.lutcc.sampled_backward_linear(
            rows, weight, bias, drawn, options.mode, k_input, k_weight, *rule
        )
    else:
        k = _partial(options, pairs_of(weight.shape[1], group_size))
        if not k:
            return torch.nn.functional.linear(x, weight, bias)
        rows, weight, bias = _autocast(rows, weight, bias)
        b = weight.t()
        if options.probabilities == "uniform":
            scores = _uniform_scores(rows, pairs_of(weight.shape[1], group_size))
        else:
            with torch.no_grad():
                scores = torch.ops.lutcc.column_row_scores(
                    rows, b, group_size, options.mode == "topk_weights"
                )
        indices, scales, backward = _sample(scores, k, options, seed)
        y = torch.ops.lutcc.sampled_matmul(rows, b, bias, indices, scales, group_size, backward)
    return y.reshape(*x.shape[:-1], weight.shape[0])


def sampled_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    options: SamplingOptions | None = None,
    seed: int | torch.Tensor | None = None,
) -> torch.Tensor:
    """Return a convolution from a part of the input channels, or its gradients from samples.

    Parameters
    ----------
    x
        ([N,] C, H, W) of a floating-point dtype.
    weight
        (O, C / groups, kh, kw), dtype of x.
    bias
        (O,), added exactly.
    stride, padding, dilation, groups
        As for :func:`torch.nn.functional.conv2d`; padding may be "same" or "valid".
    options
        What is sampled and how; every group takes as many of its channels. Where they take all, or
        a group has a single channel, torch's convolution computes the result.
    seed
        As for :func:`column_row_sample`.

    Returns
    -------
    torch.Tensor
        ([N,] O, OH, OW), dtype of x. Differentiable.

    Raises
    ------
    InputError
        When shapes, dtypes or options do not fit.

    Notes
    -----
    Source: Adelman et al., section 7; the probabilities are derived at :func:`channel_scores`.

    Examples
    --------
    >>> x, weight = torch.tensor([[[1.0]], [[3.0]]]), torch.ones(1, 2, 1, 1)
    >>> sampled_conv2d(x, weight).tolist()
    [[[3.0]]]
    """
    options = options or SamplingOptions()
    where = "lutcc.ops.sampled_conv2d"
    if options.group_size != 1:
        raise InputError(
            f"group_size={options.group_size} is for linear layers: a convolution's pair is a "
            "channel or an image",
            where=where,
            fix="use group_size=1",
        )
    if x.ndim == 3:
        return sampled_conv2d(
            x[None], weight, bias, stride, padding, dilation, groups, options, seed
        )[0]
    if x.ndim != 4 or weight.ndim != 4:
        raise InputError(
            f"x {tuple(x.shape)} must be ([N,] C, H, W) and weight {tuple(weight.shape)} "
            "(O, C / groups, kh, kw)",
            where=where,
            fix="pass images and the weight of a 2-D convolution",
        )
    strides, dilations = pair(stride), pair(dilation)
    x, paddings = _padded(x, weight, strides, padding, dilations)
    geometry = (strides, paddings, dilations, groups)
    if options.where in _BACKWARD_ONLY:
        k_input = _partial(options, max(weight.shape[0] // max(groups, 1), 1))
        k_weight = _partial(options, x.shape[0])
        if options.where == "weight_gradient":
            k_input = 0
        if not (k_input or k_weight):
            return torch.nn.functional.conv2d(x, weight, bias, *geometry)
        drawn = seed_tensor(seed, options.mode, x)
        rule = (options.mode, k_input, k_weight, options.probabilities, options.scaling)
        return torch.ops.lutcc.sampled_backward_conv2d(x, weight, bias, drawn, *geometry, *rule)
    k = _partial(options, weight.shape[1])
    if not k:
        return torch.nn.functional.conv2d(x, weight, bias, *geometry)
    x, weight, bias = _autocast(x, weight, bias)
    if options.probabilities == "uniform":
        scores = _uniform_scores(x, x.shape[1])
    else:
        with torch.no_grad():
            scores = torch.ops.lutcc.channel_scores(
                x, weight, *geometry, options.mode == "topk_weights"
            )
    indices, scales, backward = _sample(scores, k, options, seed, groups)
    return torch.ops.lutcc.sampled_conv2d(x, weight, bias, indices, scales, *geometry, backward)


def _check_linear(x: torch.Tensor, weight: torch.Tensor) -> None:
    if x.ndim < 1 or weight.ndim != 2 or x.shape[-1] != weight.shape[1]:
        raise InputError(
            f"x {tuple(x.shape)} and weight {tuple(weight.shape)} must be (..., K) and (M, K)",
            where="lutcc.ops.sampled_linear",
            fix="pass as many features as the weight has columns",
        )


def _partial(options: SamplingOptions, pairs: int) -> int:
    """Return how many of the pairs are taken, 0 for all of them."""
    k = options.count(pairs)
    return 0 if k >= pairs else k


def _autocast(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return what autocast gives to the product, whose scores are then of what is multiplied."""
    if x.is_meta or not torch.is_autocast_enabled(x.device.type):
        return x, weight, bias
    dtype = torch.get_autocast_dtype(x.device.type)
    return cast_to(dtype, x), cast_to(dtype, weight), cast_to(dtype, bias)


def _uniform_scores(like: torch.Tensor, pairs: int) -> torch.Tensor:
    return torch.ones(pairs, dtype=torch.float32, device=like.device)


def _sample(
    scores: torch.Tensor,
    k: int,
    options: SamplingOptions,
    seed: int | torch.Tensor | None,
    groups: int = 1,
) -> tuple[torch.Tensor, torch.Tensor, str]:
    """Return indices, scales, and how the gradient is computed."""
    drawn = seed_tensor(seed, options.mode, scores)
    indices, scales = torch.ops.lutcc.column_row_sample(
        scores, drawn, k, options.mode, options.probabilities, groups
    )
    if options.scaling == "none":
        scales = unscaled(scales)
    backward = "unscaled" if options.scaling == "forward" else "sampled"
    return indices, scales, "exact" if options.where == "forward" else backward


def _padded(
    x: torch.Tensor,
    weight: torch.Tensor,
    stride: list[int],
    padding: int | Sequence[int] | str,
    dilation: list[int],
) -> tuple[torch.Tensor, list[int]]:
    """Return the padding as numbers; what "same" needs on one side alone is put around x."""
    if not isinstance(padding, str):
        return x, pair(padding)
    if padding == "valid":
        return x, [0, 0]
    if padding != "same" or stride != [1, 1]:
        raise InputError(
            f"padding={padding!r} with stride {stride} is unknown",
            where="lutcc.ops.sampled_conv2d",
            fix="use 'valid', numbers, or 'same' with stride 1",
        )
    total = [dilation[i] * (int(weight.shape[2 + i]) - 1) for i in (0, 1)]
    if any(size % 2 for size in total):
        x = torch.nn.functional.pad(x, (0, total[1] % 2, 0, total[0] % 2))
    return x, [size // 2 for size in total]
