"""The projections that BH{m} is compared with in LookupFFN's figure 4."""

from __future__ import annotations

import math
from typing import Any

import torch

from lutcc.errors import InputError
from lutcc.lookup_options import check_lookup_options
from lutcc.nn.hadamard import hadamard_flops, next_power_of_two, orthonormal_hadamard
from lutcc.nn.projections import BlockProjection, Projection


class DiagonalProjection(Projection):
    """ACDC and its Hadamard variant: ``y = x A_1 C D_1 C^-1 A_2 C D_2 C^-1 ...``, k layers.

    ``x`` is zero-padded to n, the next power of two from max(d_in, d_out); A and D are diagonal; C
    is the orthonormal cosine transform (DCT-II) or Hadamard matrix.

    Parameters
    ----------
    d_in, d_out
        Columns of the input and of the result.
    layers
        k.
    transform
        "cosine" (ACDC) or "hadamard".

    Notes
    -----
    Source: LookupFFN, equation 10; Moczulski et al., ACDC (2016). The diagonals start at random
    signs (times 1 plus normal noise of 0.1), as in equation 9: ACDC's own start near the identity
    leaves the padding's columns empty. FLOPs of a cosine transform: 2 n log2(n) - n + 2, that of
    the split-radix algorithm.

    Examples
    --------
    >>> DiagonalProjection(512, 512, 2, "hadamard").flops
    20480
    """

    def __init__(
        self, d_in: int, d_out: int, layers: int, transform: str = "cosine", device: Any = None
    ) -> None:
        super().__init__(d_in, d_out)
        if transform not in ("cosine", "hadamard"):
            raise InputError(
                f"transform={transform!r} is neither 'cosine' nor 'hadamard'",
                where="DiagonalProjection",
                fix="use 'cosine' for ACDC",
            )
        check_lookup_options("DiagonalProjection", projection=f"acdc{layers}")
        self.layers, self.transform = layers, transform
        self.width = max(next_power_of_two(d_in), next_power_of_two(d_out))
        self.diagonals = torch.nn.Parameter(torch.empty(layers, 2, self.width, device=device))
        if transform == "cosine":
            matrix = cosine_matrix(self.width).to(self.diagonals.device)
            self.register_buffer("cosine", matrix, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw random signs with a little noise; the first diagonal makes up for the padding."""
        with torch.no_grad():
            signs = torch.randint_like(self.diagonals, 2) * 2 - 1
            self.diagonals.copy_(signs * (1 + 0.1 * torch.randn_like(self.diagonals)))
            self.diagonals[0, 0].mul_((self.width / self.d_in) ** 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (..., d_out)."""
        self.check_input(x)
        x = torch.nn.functional.pad(x, (0, self.width - self.d_in))
        for a, d in self.diagonals:
            x = self._backward_transform(self._transform(x * a) * d)
        return x[..., : self.d_out]

    def first_factor(self) -> torch.Tensor:
        """Return the first diagonal."""
        return self.diagonals[0, 0]

    def _transform(self, x: torch.Tensor) -> torch.Tensor:
        return orthonormal_hadamard(x) if self.transform == "hadamard" else x @ self._cosine(x)

    def _backward_transform(self, x: torch.Tensor) -> torch.Tensor:
        return orthonormal_hadamard(x) if self.transform == "hadamard" else x @ self._cosine(x).t()

    def _cosine(self, x: torch.Tensor) -> torch.Tensor:
        return self.get_buffer("cosine").to(x.dtype)

    @property
    def flops(self) -> int:
        """Per layer two transforms and two products per column."""
        n = self.width
        one = hadamard_flops(n) if self.transform == "hadamard" else cosine_flops(n)
        return self.layers * 2 * (one + n)

    def extra_repr(self) -> str:
        """Return the options shown by ``print``."""
        return f"{super().extra_repr()}, layers={self.layers}, transform={self.transform!r}"


class ShuffleProjection(BlockProjection):
    """ShuffleNet's projection: m times a block-diagonal matrix, then a channel shuffle.

    The shuffle takes column i of block g to column i G + g, so that the next product (or the reader
    of a stretch of the result) sees every block.

    Parameters
    ----------
    d_in, d_out
        Columns of the input and of the result.
    m
        Products.
    block_size
        A power of two.

    Notes
    -----
    Source: LookupFFN, remark 3.2; Zhang et al., ShuffleNet (2018).

    Examples
    --------
    >>> ShuffleProjection(512, 512, block_size=64).flops
    65536
    """

    def __init__(
        self, d_in: int, d_out: int, m: int = 1, block_size: int = 64, device: Any = None
    ) -> None:
        super().__init__(d_in, d_out, m, block_size, device=device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (..., d_out)."""
        self.check_input(x)
        x = torch.nn.functional.pad(x, (0, self.width_in - self.d_in))
        for blocks in self.blocks:
            x = torch.ops.lutcc.block_diagonal_matmul(x, blocks)
            x = x.unflatten(-1, (blocks.shape[0], blocks.shape[2])).transpose(-1, -2).flatten(-2)
        return x[..., : self.d_out]


def cosine_matrix(n: int) -> torch.Tensor:
    """Return the orthonormal DCT-II matrix C (n, n) for row vectors: ``x C`` transforms ``x``.

    Examples
    --------
    >>> c = cosine_matrix(8)
    >>> torch.allclose(c @ c.t(), torch.eye(8), atol=1e-6)
    True
    """
    position = torch.arange(n, dtype=torch.float64)
    matrix = torch.cos(math.pi / n * (position[:, None] + 0.5) * position[None, :])
    matrix *= math.sqrt(2 / n)
    matrix[:, 0] *= math.sqrt(0.5)
    return matrix.float()


def cosine_flops(n: int) -> int:
    """Return the FLOPs of a fast cosine transform of length ``n``, a power of two."""
    return 2 * n * (n.bit_length() - 1) - n + 2 if n > 1 else 0
