"""Projections from (..., d_in) to (..., d_out): dense, and BH{m}."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

import lutcc.ops
from lutcc.errors import InputError
from lutcc.lookup_options import check_lookup_options, parse_projection
from lutcc.nn.constants import RoundedParameters
from lutcc.nn.hadamard import hadamard_flops, next_power_of_two, orthonormal_hadamard


class Projection(RoundedParameters):
    """A linear map without bias whose results have variance 1 for inputs of variance 1, at first.

    Parameters
    ----------
    d_in, d_out
        Columns of the input and of the result.
    dtype
        "float32", or "bfloat16": in eval mode the parameters, and what is multiplied by them, are
        rounded to bfloat16; sums stay in float32.
    """

    def __init__(self, d_in: int, d_out: int, dtype: str = "float32") -> None:
        super().__init__()
        check_lookup_options(type(self).__name__, d_in=d_in, d_out=d_out, projection_dtype=dtype)
        self.d_in, self.d_out, self.dtype = d_in, d_out, dtype

    @property
    def flops(self) -> int:
        """Additions and multiplications per row, as the paper counts them."""
        raise NotImplementedError

    @property
    def parameter_count(self) -> int:
        """Numbers learnt."""
        return sum(p.numel() for p in self.parameters())

    @property
    def parameter_bytes(self) -> int:
        """Size of the parameters as inference reads them, in bytes."""
        return self.parameter_count * (2 if self.dtype == "bfloat16" else 4)

    def reset_parameters(self) -> None:
        """Draw the parameters anew."""
        raise NotImplementedError

    @torch.no_grad()
    def scale_(self, factor: float) -> None:
        """Multiply the projection by ``factor`` in place."""
        self.first_factor().mul_(factor)

    def first_factor(self) -> torch.Tensor:
        """Return the parameter, or a view of it, in which the projection is linear."""
        return next(self.parameters())

    @torch.no_grad()
    def matrix(self) -> torch.Tensor:
        """Return R (d_in, d_out) with ``forward(x) = x R``."""
        parameter = next(self.parameters())
        return self(torch.eye(self.d_in, dtype=parameter.dtype, device=parameter.device))

    def check_input(self, x: torch.Tensor) -> None:
        """Raise :class:`InputError` unless ``x`` is (..., d_in) of a float type."""
        check_features(x, self.d_in, type(self).__name__)

    def extra_repr(self) -> str:
        """Return the options shown by ``print``."""
        text = f"d_in={self.d_in}, d_out={self.d_out}"
        return text + (f", dtype={self.dtype!r}" if self.dtype != "float32" else "")


class DenseProjection(Projection):
    """``y = x W^T``, the dense projection: 2 d_in d_out FLOPs per row.

    Parameters
    ----------
    d_in, d_out, dtype
        As in :class:`Projection`.

    Examples
    --------
    >>> DenseProjection(512, 1024).flops
    1048576
    """

    def __init__(self, d_in: int, d_out: int, dtype: str = "float32", device: Any = None) -> None:
        super().__init__(d_in, d_out, dtype)
        self.weight = torch.nn.Parameter(torch.empty(d_out, d_in, device=device))
        if dtype == "bfloat16":
            self.declare_rounded("weight_bfloat16")
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights from a normal distribution of variance 1 / d_in."""
        torch.nn.init.normal_(self.weight, std=self.d_in**-0.5)

    def round_parameters(self) -> tuple[torch.Tensor, ...]:
        """Return the transposed weights in bfloat16 as one block (1, d_in, d_out)."""
        return (self.weight.t().to(torch.bfloat16).unsqueeze(0).contiguous(),)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (..., d_out)."""
        self.check_input(x)
        if self._rounded and not self.training:
            return torch.ops.lutcc.block_diagonal_matmul(x, *self.rounded())
        return torch.nn.functional.linear(x, self.weight)

    @property
    def flops(self) -> int:
        """2 d_in d_out."""
        return 2 * self.d_in * self.d_out


class BlockProjection(Projection):
    """What projections made of m block-diagonal matrices share: the blocks and how they start.

    With p and n the next powers of two from d_in and from max(d_in, d_out), the first matrix has p
    / block_size blocks of (block_size, block_size n / p) and the others n / block_size square ones.

    Attributes
    ----------
    blocks
        m parameters (groups, rows, columns). Each block starts with orthonormal rows, scaled so
        that variance is kept.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        m: int,
        block_size: int = 64,
        dtype: str = "float32",
        device: Any = None,
    ) -> None:
        super().__init__(d_in, d_out, dtype)
        check_lookup_options(type(self).__name__, block_size=block_size, projection=f"bh{m}")
        self.m = m
        self.width_in = next_power_of_two(d_in)
        self.width = max(self.width_in, next_power_of_two(d_out))
        self.block_size = min(block_size, self.width_in)
        size, growth = self.block_size, self.width // self.width_in
        shapes = [(self.width_in // size, size, size * growth)]
        shapes += [(self.width // size, size, size)] * (m - 1)
        self.blocks = torch.nn.ParameterList(
            torch.nn.Parameter(torch.empty(shape, device=device)) for shape in shapes
        )
        if dtype == "bfloat16":
            self.declare_rounded(*(f"block{i}_bfloat16" for i in range(m)))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw orthonormal rows, scaled so that inputs of variance 1 give results of variance 1."""
        for i, blocks in enumerate(self.blocks):
            gain = (blocks.shape[2] / blocks.shape[1]) ** 0.5
            if i == 0:
                gain *= (self.width_in / self.d_in) ** 0.5  # the padding carries no variance
            orthonormal_rows_(blocks).mul_(gain)

    def round_parameters(self) -> tuple[torch.Tensor, ...]:
        """Return the blocks in bfloat16."""
        return tuple(blocks.detach().to(torch.bfloat16) for blocks in self.blocks)

    def blocks_in_use(self) -> Iterable[torch.Tensor]:
        """Return the blocks that the forward pass multiplies by."""
        return self.rounded() if self._rounded and not self.training else self.blocks

    @property
    def flops(self) -> int:
        """Two per entry of a block."""
        return 2 * self.parameter_count

    def extra_repr(self) -> str:
        """Return the options shown by ``print``."""
        return f"{super().extra_repr()}, m={self.m}, block_size={self.block_size}"


class BHProjection(BlockProjection):
    """BH{m}: ``y = x H B_1 H B_2 ... H B_m``, Hadamard transforms and block-diagonal matrices.

    ``x`` is zero-padded to p columns, the next power of two; every H is orthonormal; the blocks B_i
    are those of :class:`BlockProjection`; the first d_out columns are the result. Where p = n, R
    itself starts as a scaled orthogonal matrix.

    Parameters
    ----------
    d_in, d_out
        Columns of the input and of the result; any numbers.
    m
        Pairs of transform and blocks, 1 to 8. The paper finds 4 the best compromise.
    block_size
        A power of two; lowered to p where it exceeds it.
    dtype
        "float32", or "bfloat16" for the blocks in eval mode.

    Raises
    ------
    InputError
        If an option or the shape of the input does not fit.

    Notes
    -----
    Source: LookupFFN, equation 11 and section 3.2, for row vectors. ``flops`` counts, as its tables
    do, n log2(n) per transform and two per entry of a block, columns beyond d_out included.

    Examples
    --------
    >>> BHProjection(512, 1024).flops
    559616
    >>> BHProjection(3, 5, m=2, block_size=2)(torch.ones(7, 3)).shape
    torch.Size([7, 5])
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        m: int = 4,
        block_size: int = 64,
        dtype: str = "float32",
        device: Any = None,
    ) -> None:
        super().__init__(d_in, d_out, m, block_size, dtype, device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (..., d_out)."""
        self.check_input(x)
        for i, blocks in enumerate(self.blocks_in_use()):
            columns = self.d_out if i == self.m - 1 and self.d_out < self.width else None
            if x.is_cuda and not torch.compiler.is_exporting():  # one kernel for both, in training
                x = lutcc.ops.bh_stage(x, blocks, next_power_of_two(x.shape[-1]) ** -0.5, columns)
            else:
                x = torch.ops.lutcc.block_diagonal_matmul(orthonormal_hadamard(x), blocks, columns)
        return x

    @property
    def flops(self) -> int:
        """FLOPs per row: n log2(n) per transform, two per entry of a block."""
        transforms = hadamard_flops(self.width_in) + (self.m - 1) * hadamard_flops(self.width)
        return transforms + super().flops


def orthonormal_rows_(blocks: torch.Tensor) -> torch.Tensor:
    """Fill ``blocks`` (G, P, Q), P <= Q, with random orthonormal rows, uniformly distributed."""
    if blocks.is_meta:
        return blocks
    normal = torch.randn(blocks.shape, dtype=torch.float32, device=blocks.device)
    q, r = torch.linalg.qr(normal.transpose(1, 2))
    # LAPACK's sign convention is not uniform: the signs of R's diagonal make it so.
    q = q * torch.sign(torch.diagonal(r, dim1=1, dim2=2)).unsqueeze(1)
    return blocks.copy_(q.transpose(1, 2))


def check_features(x: torch.Tensor, features: int, where: str) -> None:
    """Raise :class:`InputError` unless ``x`` is (..., features) of a float type."""
    if x.dim() == 0 or x.shape[-1] != features:
        raise InputError(
            f"the input has shape {tuple(x.shape)}, but its last dimension must be {features}",
            where=where,
            fix=f"pass (..., {features})",
        )
    if not x.is_floating_point():
        raise InputError(
            f"the input has dtype {x.dtype}, not a float type", where=where, fix="call x.float()"
        )


def make_projection(
    name: str,
    d_in: int,
    d_out: int,
    block_size: int = 64,
    dtype: str = "float32",
    device: Any = None,
) -> Projection:
    """Return the projection that ``name`` stands for.

    Parameters
    ----------
    name
        "dense"; "bh1" to "bh8"; or, for comparison, "acdc<k>" and "hadamard<k>" (k layers of
        diagonal matrices and cosine or Hadamard transforms) and "shuffle" (blocks, then a channel
        shuffle).
    d_in, d_out, dtype
        As in :class:`Projection`.
    block_size
        Of "bh" and "shuffle".

    Raises
    ------
    InputError
        If the name is unknown or an option does not fit.

    Examples
    --------
    >>> make_projection("bh2", 512, 512, block_size=32)
    BHProjection(
      d_in=512, d_out=512, m=2, block_size=32
      (blocks): ParameterList(
          (0): Parameter containing: [torch.float32 of size 16x32x32]
          (1): Parameter containing: [torch.float32 of size 16x32x32]
      )
    )
    """
    from lutcc.nn.comparison_projections import DiagonalProjection, ShuffleProjection

    check_lookup_options("make_projection", projection=name, projection_dtype=dtype)
    family, count = parse_projection(name)
    if family == "dense":
        return DenseProjection(d_in, d_out, dtype, device)
    if family == "bh":
        return BHProjection(d_in, d_out, count, block_size, dtype, device)
    if family == "shuffle":
        return ShuffleProjection(d_in, d_out, count, block_size, device=device)
    transform = "cosine" if family == "acdc" else "hadamard"
    return DiagonalProjection(d_in, d_out, count, transform, device)
