"""Exact layers whose gradients are computed from samples of their own (section 5 of the paper)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lutcc.errors import suggest
from lutcc.ir import sampling
from lutcc.ops.checks import check_bias, require
from lutcc.ops.library import cast_to, define
from lutcc.ops.sampled_pairs import product
from lutcc.ops.sampled_products import bias_grad, weight_grad_like
from lutcc.ops.sampled_scores import check_product, pairs_of

SCALINGS = ("both", "none")


def check_rule(
    op: str,
    x: torch.Tensor,
    seed: torch.Tensor,
    mode: str,
    counts: Sequence[tuple[str, int, int | None]],
    probabilities: str,
    scaling: str,
) -> None:
    """Check how gradients are sampled; ``counts`` has the name of each k, its value, and the most.

    What the most is may be None, where it depends on how many rows there are.
    """
    require(
        seed.dtype is torch.int64 and seed.ndim == 0 and seed.device == x.device,
        op,
        f"seed must be a 0-dimensional int64 tensor on {x.device}, got {seed.dtype} of shape "
        f"{tuple(seed.shape)} on {seed.device}",
        "torch.tensor(seed, device=x.device)",
    )
    modes = tuple(mode for mode in sampling.MODES if mode != "topk_weights")
    for name, value, known in (
        ("mode", mode, modes),
        ("probabilities", probabilities, sampling.PROBABILITIES),
        ("scaling", scaling, SCALINGS),
    ):
        if value not in known:
            require(False, op, f"{name}={value!r} is unknown", suggest(value, known))
    for name, k, most in counts:
        require(
            k >= 0 and (most is None or k <= most),
            op,
            f"{name}={k} is not in 0..{most}" if most is not None else f"{name}={k} is negative",
            "0 computes the gradient exactly",
        )


def sample(
    scores: torch.Tensor,
    seed: torch.Tensor,
    k: int,
    mode: str,
    probabilities: str,
    scaling: str,
    groups: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return indices and scales; scales of 1 for ``scaling`` "none"."""
    indices, scales = torch.ops.lutcc.column_row_sample(
        scores, seed, k, mode, probabilities, groups
    )
    return indices, unscaled(scales) if scaling == "none" else scales


def unscaled(scales: torch.Tensor) -> torch.Tensor:
    """Return 1 for every pair that is taken, 0 for padding."""
    return (scales != 0).to(scales.dtype)


def sampled_product(
    a: torch.Tensor,
    b: torch.Tensor,
    seed: torch.Tensor,
    k: int,
    rule: tuple[str, str, str],
    group_size: int,
) -> torch.Tensor:
    """Return ``a @ b`` from a sample of k of its own pairs; exactly for k = 0."""
    if k == 0:
        return torch.ops.lutcc.sampled_dense_product(a, b)
    mode, probabilities, scaling = rule
    if probabilities == "uniform":
        scores = a.new_ones((pairs_of(a.shape[1], group_size),), dtype=torch.float32)
    else:
        scores = torch.ops.lutcc.column_row_scores(a, b, group_size)
    taken = sample(scores, seed, k, mode, probabilities, scaling)
    return torch.ops.lutcc.sampled_matmul(a, b, None, *taken, group_size)


_OP = "sampled_backward_linear"


def _check(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    seed: torch.Tensor,
    mode: str,
    k_input: int,
    k_weight: int,
    probabilities: str,
    scaling: str,
    group_size: int,
) -> None:
    check_product(_OP, x, weight.t() if weight.ndim == 2 else weight, group_size)
    check_bias(_OP, bias, weight.shape[0], x.dtype)
    counts = (
        ("k_input", k_input, pairs_of(weight.shape[0], group_size)),
        ("k_weight", k_weight, pairs_of(x.shape[0], group_size)),
    )
    check_rule(_OP, x, seed, mode, counts, probabilities, scaling)


def _fake(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    seed: torch.Tensor,
    mode: str,
    k_input: int,
    k_weight: int,
    probabilities: str,
    scaling: str,
    group_size: int,
) -> torch.Tensor:
    return x.new_empty((x.shape[0], weight.shape[0]))


def _run(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    seed: torch.Tensor,
    mode: str,
    k_input: int,
    k_weight: int,
    probabilities: str,
    scaling: str,
    group_size: int,
) -> torch.Tensor:
    return product(x, weight.t(), bias)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, weight, bias, seed, mode, *ks, probabilities, scaling, ctx.group_size = inputs
    ctx.k_input, ctx.k_weight = ks
    ctx.rule = (mode, probabilities, scaling)
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(x, weight, seed)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    x, weight, seed = ctx.saved_tensors
    dx = dweight = dbias = None
    if ctx.needs_input_grad[0]:
        dx = sampled_product(grad, weight, seed, ctx.k_input, ctx.rule, ctx.group_size)
    if ctx.needs_input_grad[1] and ctx.k_weight == 0:
        dweight = weight_grad_like(weight, grad, x)
    elif ctx.needs_input_grad[1]:
        dweight = sampled_product(grad.t(), x, seed + 1, ctx.k_weight, ctx.rule, ctx.group_size)
    if ctx.needs_input_grad[2]:
        dbias = bias_grad(grad, ctx.bias_dtype)
    return (dx, dweight, dbias, *[None] * 7)


def _autocast(dtype: torch.dtype, args: Any) -> Any:
    x, weight, bias, *rest = args
    return cast_to(dtype, x), cast_to(dtype, weight), cast_to(dtype, bias), *rest


define(
    "sampled_backward_linear(Tensor x, Tensor weight, Tensor? bias, Tensor seed, str mode, "
    "SymInt k_input, SymInt k_weight, str probabilities, str scaling, int group_size) -> Tensor",
    check=_check,
    cpu=_run,
    fake=_fake,
    backward=_backward,
    setup=_setup,
    cuda=_run,
    autocast=_autocast,
)
