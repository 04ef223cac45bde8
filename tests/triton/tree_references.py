"""Look-ups by trees as plain formulas in torch, differentiable: soft codes behind hard ones.

They share no code with the kernels or with lutcc's own references.
"""

from __future__ import annotations

from typing import Any

import torch

Case = tuple[int, int, int, int, int]

#: N, D, C, L, M: one of everything, primes, a column compared twice, the deepest trees.
CASES: list[Case] = [
    (1, 1, 1, 1, 1),
    (37, 11, 5, 4, 20),
    (19, 30, 3, 7, 17),
    (33, 20, 7, 2, 33),
    (20, 8, 6, 3, 5),
]


def operands(case: Case, dtype: torch.dtype, *, lut: torch.dtype = torch.uint8) -> Any:
    """Return x, splitdims, splitvals, log_temperature, lut, unit, a gradient: always the same."""
    rows, width, books, depth, outputs = case
    generator = torch.Generator().manual_seed(rows)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    x, vals = random(rows, width), random(books, 2**depth)
    dims = torch.randint(0, width, (books, depth), generator=generator, dtype=torch.int32)
    warmth, grad = random(books) / 2 - 1, random(rows, outputs)
    shape = books, 2**depth, outputs
    if lut is torch.uint8:
        tables = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        return x, dims, vals, warmth, tables, random(outputs).abs() / 100, grad
    return x, dims, vals, warmth, random(*shape), torch.ones(outputs, dtype=dtype), grad


def soft_gradients(*operands: torch.Tensor) -> Any:
    """Return the gradients of x, vals, warmth and tables by autograd, in float64; and the codes."""
    x, dims, vals, warmth, lut, unit, grad = operands
    x, vals, warmth, tables = (
        t.double().clone().requires_grad_() for t in (x, vals, warmth, lut.double() * unit.double())
    )
    values = x[:, dims.long()]
    hard = soft = x.new_ones(len(x), len(dims), 1)
    for level in range(dims.shape[1]):
        nodes = slice(2**level, 2 ** (level + 1))
        above = values[:, :, level : level + 1] - vals[:, nodes]
        right = torch.sigmoid(above / warmth.exp()[:, None])
        taken = (above > 0).to(x.dtype)
        soft = torch.stack([soft * (1 - right), soft * right], -1).flatten(2)
        hard = torch.stack([hard * (1 - taken), hard * taken], -1).flatten(2)
    codes = hard + soft - soft.detach()
    # what all entries of a codebook have in common does not matter
    common = torch.randn(len(dims), 1, tables.shape[2], dtype=torch.float64)
    y = codes.flatten(1) @ (tables + common).flatten(0, 1)
    found = torch.autograd.grad(y, [x, vals, warmth, tables], grad.double())
    return found, hard.argmax(2).to(torch.uint8)
