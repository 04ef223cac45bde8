"""The Walsh-Hadamard transform as a layer."""

from __future__ import annotations

import math

import torch

import lutcc.ops  # noqa: F401  registers torch.ops.lutcc
from lutcc.errors import InputError


def next_power_of_two(n: int) -> int:
    """Return the smallest power of two that is at least ``n``.

    Examples
    --------
    >>> [next_power_of_two(n) for n in (1, 2, 3, 512, 513)]
    [1, 2, 4, 512, 1024]
    """
    return 1 << (n - 1).bit_length()


class Hadamard(torch.nn.Module):
    """``y = scale * x H`` for ``x`` (..., D), zero-padded to n = the next power of two.

    H is the Sylvester matrix in natural order, H[i, j] = (-1)**popcount(i & j), so that H H = n I.
    It costs n log2(n) additions per row and has no parameters.

    Parameters
    ----------
    scale
        "orthonormal" (n**-0.5: lengths are kept, and the layer is its own inverse), or a number.

    Raises
    ------
    InputError
        If the scale is neither, or the input is a scalar.

    Notes
    -----
    Source: LookupFFN, section 3.2.

    Examples
    --------
    >>> Hadamard()(torch.tensor([3.0, 4.0, 0.0])).tolist()
    [3.5, -0.5, 3.5, -0.5]
    """

    def __init__(self, scale: str | float = "orthonormal") -> None:
        super().__init__()
        number = isinstance(scale, int | float) and not isinstance(scale, bool)
        if scale != "orthonormal" and not (number and math.isfinite(float(scale))):
            raise InputError(
                f"scale={scale!r} is neither 'orthonormal' nor a number",
                where="Hadamard",
                fix="use 'orthonormal', or 1.0 for the unnormalised transform",
            )
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (..., n)."""
        if x.dim() == 0 or x.shape[-1] == 0:
            raise InputError(
                f"the input has shape {tuple(x.shape)}", where="Hadamard", fix="pass (..., D)"
            )
        if isinstance(self.scale, str):
            return orthonormal_hadamard(x)
        return torch.ops.lutcc.hadamard(x, float(self.scale))

    def extra_repr(self) -> str:
        """Return the options shown by ``print``."""
        return f"scale={self.scale!r}"


def orthonormal_hadamard(x: torch.Tensor) -> torch.Tensor:
    """Return the transform of ``x`` (..., D), zero-padded to n columns, divided by sqrt(n)."""
    return torch.ops.lutcc.hadamard(x, next_power_of_two(x.shape[-1]) ** -0.5)


def hadamard_flops(n: int) -> int:
    """Return the additions of one transform of length ``n``, a power of two: n log2(n)."""
    return n * (n.bit_length() - 1)
