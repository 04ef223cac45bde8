"""Hash codes from signs, and what each code weighs."""

from __future__ import annotations

from typing import Any

import torch

from lutcc.ir.ops.sign_hash import MAX_CODE_LENGTH
from lutcc.ops.arithmetic import floats, row_chunks, wide
from lutcc.ops.checks import require
from lutcc.ops.kernels import run
from lutcc.ops.library import cast_to, define, is_recorded, once, saves_nothing

VARIANTS = ("gelu", "softmax", "constant")


def sign_hash(
    z: torch.Tensor, code_length: int, variant: str = "gelu", neighbors: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hash each group of ``code_length`` columns by its signs, and weigh the codes.

    Parameters
    ----------
    z
        (..., H*T) float32, float64, float16 or bfloat16: T = code_length soft bits per table.
    code_length
        1..16.
    variant
        "gelu": the linearly scaled weight of section 4; "softmax": equation 7; "constant": ones
        (YOSO's equation 3), which carry no gradient.
    neighbors
        Codes J per table, 1..T+1: the code itself, and those with one of the least certain bits
        flipped. 1 for "constant".

    Returns
    -------
    tuple of torch.Tensor
        Codes (..., H*J) int32 and scores (..., H*J) in the dtype of z, computed in float32 at
        least; order [table][neighbour]. Scores are differentiable, with the codes held.

    Raises
    ------
    InputError
        When shapes, dtypes or arguments do not fit.

    Notes
    -----
    Source: Zeng et al., LookupFFN, equations 3, 6 and 7 and section 4. Bit t has the value 2**t and
    is set iff z > 0: where z is within a rounding error of 0, two implementations may differ.

    Examples
    --------
    >>> codes, scores = sign_hash(torch.tensor([[2.0, -1.0]]), code_length=2)
    >>> codes.tolist(), [round(s, 4) for s in scores[0].tolist()]
    ([[1]], [2.5949])
    """
    return torch.ops.lutcc.sign_hash(z, code_length, variant, neighbors)


def _check(z: torch.Tensor, code_length: int, variant: str = "gelu", neighbors: int = 1) -> None:
    _check_call("sign_hash", z, code_length, variant, neighbors)


def _check_call(op: str, z: torch.Tensor, code_length: int, variant: str, neighbors: int) -> None:
    floats(op, "z", z)
    require(
        1 <= code_length <= MAX_CODE_LENGTH,
        op,
        f"code_length={code_length} is not in 1..{MAX_CODE_LENGTH}: a table has 2**code_length "
        "rows",
        "use more tables with shorter codes",
    )
    require(
        z.ndim >= 1 and z.shape[-1] >= 1 and z.shape[-1] % code_length == 0,
        op,
        f"z {tuple(z.shape)} needs a last dimension that is a multiple of code_length="
        f"{code_length}",
        "project to num_tables * code_length columns",
    )
    require(
        variant in VARIANTS,
        op,
        f"variant={variant!r} is unknown",
        "use 'gelu', 'softmax' or 'constant'",
    )
    require(
        1 <= neighbors <= code_length + 1,
        op,
        f"neighbors={neighbors} is not in 1..code_length + 1 = {code_length + 1}",
        "a neighbour is the code itself, or has one of its bits flipped",
    )
    require(
        variant != "constant" or neighbors == 1,
        op,
        f"variant='constant' weighs one code per table, but neighbors={neighbors}",
        "use neighbors=1, or another variant",
    )


def _shape(z: torch.Tensor, code_length: int, neighbors: int) -> tuple[Any, ...]:
    return (*z.shape[:-1], z.shape[-1] // code_length * neighbors)


def _fake(
    z: torch.Tensor, code_length: int, variant: str = "gelu", neighbors: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    shape = _shape(z, code_length, neighbors)
    return z.new_empty(shape, dtype=torch.int32), z.new_empty(shape)


def _cpu(
    z: torch.Tensor, code_length: int, variant: str = "gelu", neighbors: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    rows = z.reshape(-1, z.shape[-1])

    def torch_way() -> tuple[torch.Tensor, torch.Tensor]:
        return _hash(rows, code_length, variant, neighbors)

    if z.dtype is torch.float32 and not is_recorded():
        attrs = {"code_length": code_length, "variant": variant, "neighbors": neighbors}
        codes, scores = run("sign_hash", rows, (), attrs, torch_way=torch_way)
    else:
        codes, scores = torch_way()
    shape = _shape(z, code_length, neighbors)
    return codes.reshape(shape), scores.reshape(shape)


def _hash(
    z: torch.Tensor, length: int, variant: str, neighbors: int
) -> tuple[torch.Tensor, torch.Tensor]:
    rows, tables = z.shape[0], z.shape[1] // length
    codes = z.new_empty((rows, tables, neighbors), dtype=torch.int32)
    scores = z.new_ones((rows, tables, neighbors))
    # Sums of different powers of two below 2**16 are exact in float32, and this is a product.
    powers = torch.tensor([float(1 << t) for t in range(length)])
    for piece in row_chunks(rows, z.shape[1]):
        parts = z[piece].to(wide(z.dtype)).view(-1, tables, length)
        code = ((parts > 0).to(torch.float32) @ powers).to(torch.int32)
        codes[piece, :, 0] = code
        if variant == "constant":
            continue
        magnitude = parts.abs()
        weight = torch.exp(-2 * magnitude).add_(1).prod(2).reciprocal_()
        total = magnitude.sum(2) if variant == "gelu" else None
        scores[piece, :, 0] = weight if total is None else weight * total
        if neighbors > 1:
            near, bits = _least_certain(magnitude, neighbors)
            flips = torch.ones_like(bits, dtype=torch.int32) << bits.to(torch.int32)
            codes[piece, :, 1:] = code[..., None] ^ flips
            others = weight[..., None] * torch.exp(-2 * near)
            if total is not None:
                others *= total[..., None] - 2 * near
            scores[piece, :, 1:] = others
    return codes, scores


def _least_certain(magnitude: torch.Tensor, neighbors: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the smallest magnitudes and their positions; of equal ones the lowest comes first."""
    values, order = magnitude.sort(dim=-1, stable=True)
    return values[..., : neighbors - 1], order[..., : neighbors - 1]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    z, *ctx.options = inputs
    ctx.save_for_backward(z)
    ctx.mark_non_differentiable(output[0])


def _backward(ctx: Any, codes: Any, scores: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    del codes
    (z,) = ctx.saved_tensors
    return torch.ops.lutcc.sign_hash_backward(z, scores, *ctx.options), None, None, None


def _autocast(dtype: torch.dtype, args: Any) -> Any:
    z, *rest = args  # scores are products of many factors: not a job for bfloat16
    return cast_to(torch.float32, z), *rest


define(
    'sign_hash(Tensor z, int code_length, str variant="gelu", int neighbors=1) -> (Tensor, Tensor)',
    check=_check,
    cpu=_cpu,
    fake=_fake,
    backward=_backward,
    setup=_setup,
    cuda=True,
    autocast=_autocast,
)


def _grad_check(
    z: torch.Tensor, grad_scores: torch.Tensor, code_length: int, variant: str, neighbors: int
) -> None:
    op = "sign_hash_backward"
    _check_call(op, z, code_length, variant, neighbors)
    shape = _shape(z, code_length, neighbors)
    require(
        grad_scores.dtype is z.dtype and tuple(grad_scores.shape) == shape,
        op,
        f"grad_scores must be {z.dtype} of shape {shape}, got {grad_scores.dtype} of shape "
        f"{tuple(grad_scores.shape)}",
        "pass the gradient of sign_hash's scores",
    )


def _grad_fake(
    z: torch.Tensor, grad_scores: torch.Tensor, code_length: int, variant: str, neighbors: int
) -> torch.Tensor:
    return z.new_empty(z.shape)


def _grad_cpu(
    z: torch.Tensor, grad_scores: torch.Tensor, code_length: int, variant: str, neighbors: int
) -> torch.Tensor:
    rows = z.reshape(-1, z.shape[-1])
    out = z.new_zeros(rows.shape)
    if variant == "constant":
        return out.view(z.shape)
    tables = rows.shape[1] // code_length
    grads = grad_scores.reshape(-1, tables, neighbors)
    for piece in row_chunks(rows.shape[0], rows.shape[1]):
        parts = rows[piece].to(wide(z.dtype)).view(-1, tables, code_length)
        grad = grads[piece].to(parts.dtype)
        out[piece] = _magnitude_grad(parts.abs(), grad, variant).mul_(parts.sign()).flatten(1)
    return out.view(z.shape)


def _magnitude_grad(magnitude: torch.Tensor, grad: torch.Tensor, variant: str) -> torch.Tensor:
    """Return the gradient with respect to |z|, from that of the scores (rows, tables, J).

    With r_j = w * exp(-2 |z_b|) (the second factor 1 for j = 0) and u_t = 1 - sigmoid(2 |z_t|), a
    score is r_j or (P - 2 |z_b|) r_j, and dr_j / d|z_t| = r_j * (2 u_t - 2 [t == b_j]).
    """
    decay = torch.exp(-2 * magnitude)
    weight = (decay + 1).prod(-1, keepdim=True).reciprocal_()
    ratios, lengths, bits = weight, None, None
    if grad.shape[-1] > 1:
        near, bits = _least_certain(magnitude, grad.shape[-1])
        ratios = torch.cat([weight, weight * torch.exp(-2 * near)], -1)
        lengths = torch.nn.functional.pad(near, (1, 0))
    through = grad * ratios
    direct = None
    if variant == "gelu":
        total = magnitude.sum(-1, keepdim=True)
        direct = through
        through = through * (total if lengths is None else total - 2 * lengths)
    result = decay.div_(decay + 1).mul_(2 * through.sum(-1, keepdim=True))
    if direct is not None:
        result += direct.sum(-1, keepdim=True)
    if bits is not None:
        flipped = through if direct is None else through + direct
        result.scatter_add_(-1, bits, -2 * flipped[..., 1:])
    return result


define(
    "sign_hash_backward(Tensor z, Tensor grad_scores, int code_length, str variant, "
    "int neighbors) -> Tensor",
    check=_grad_check,
    cpu=_grad_cpu,
    fake=_grad_fake,
    backward=once,
    setup=saves_nothing,
    cuda=True,
)
