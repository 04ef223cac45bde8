"""The operations as plain formulas in torch, differentiable, in whatever dtype they are given.

They share no code with the kernels or with lutcc's own references.
"""

from __future__ import annotations

import itertools

import torch


def sylvester(n: int) -> torch.Tensor:
    """Return H (n, n) float64."""
    h = torch.ones(1, 1, dtype=torch.float64)
    while h.shape[0] < n:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)], 0)
    return h


def hadamard(x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    columns = x.shape[-1]
    n = next(1 << k for k in itertools.count() if 1 << k >= columns)
    return x @ (sylvester(n)[:columns] * scale).to(x)


def block_diagonal_matmul(
    x: torch.Tensor, blocks: torch.Tensor, columns: int | None = None
) -> torch.Tensor:
    return (x @ torch.block_diag(*blocks))[..., :columns]


def sign_hash(
    z: torch.Tensor, length: int, variant: str = "gelu", neighbors: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Score every code of every table by its definition, then pick the ones asked for."""
    parts = z.unflatten(-1, (-1, length))
    signs = torch.where(parts > 0, 1.0, -1.0).to(z)
    order = parts.detach().abs().argsort(dim=-1, stable=True)[..., : neighbors - 1]
    flips = torch.cat([torch.full_like(order[..., :1], -1), order], -1) if neighbors > 1 else None
    chosen = signs[..., None, :]
    if flips is not None:
        flip = flips[..., None] == torch.arange(length)
        chosen = torch.where(flip, -chosen, chosen)
    codes = ((chosen > 0) * 2 ** torch.arange(length)).sum(-1)
    # <v, signs of the code>, and its softmax over all codes, a product over bits
    agreement = (parts[..., None, :] * chosen).sum(-1)
    weight = torch.sigmoid(2 * parts[..., None, :] * chosen).prod(-1)
    scores = {
        "softmax": weight,
        "gelu": agreement * weight,
        "constant": torch.ones_like(weight),
    }[variant]
    return codes.flatten(-2).to(torch.int32), scores.flatten(-2)


def weighted_gather(
    codes: torch.Tensor, scores: torch.Tensor, tables: torch.Tensor
) -> torch.Tensor:
    neighbors = codes.shape[-1] // tables.shape[0]
    table = torch.arange(codes.shape[-1]) // neighbors
    return (scores[..., None] * tables[table, codes.long()]).sum(-2)


def lookup_ffn(
    x: torch.Tensor, blocks: list[torch.Tensor], tables: torch.Tensor, length: int
) -> torch.Tensor:
    """Return BH projection, hash and gather: a layer's forward pass."""
    z = x
    for i, block in enumerate(blocks):
        width = block.shape[0] * block.shape[1]
        last = tables.shape[0] * length if i == len(blocks) - 1 else None
        z = block_diagonal_matmul(hadamard(z, width**-0.5), block, last)
    codes, scores = sign_hash(z, length)
    return weighted_gather(codes, scores, tables)


def relative_error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return |got - wanted| / |wanted| in the Euclidean norm."""
    wanted = wanted.double()
    scale = wanted.norm().clamp(min=1e-30)
    return float((got.double() - wanted).norm() / scale)
