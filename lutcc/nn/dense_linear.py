"""An exact linear layer in float32, bfloat16 or int8, on kernels of lutcc's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch

import lutcc.ops  # noqa: F401  registers torch.ops.lutcc
from lutcc.errors import InputError
from lutcc.lookup_options import check_count, check_name
from lutcc.nn.codebook import COMPUTE, check_floats
from lutcc.ops.arithmetic import quantize_rows
from lutcc.ops.dense import LIMIT


class DenseLinear(torch.nn.Module):
    """``y = x W^T + b`` for ``x`` (..., in_features) of any float dtype, W as it is computed with.

    ``weight`` (out_features, in_features) is a float32 or bfloat16 parameter; for int8 a buffer of
    integers in -127 .. 127, with a parameter ``scales`` (out_features,) float32, what 1 stands for
    in each row. These are what the ``state_dict`` holds, and what an artifact stores. Training
    moves float weights, or, of int8, scales and bias; a cast of the model leaves integers and
    scales as they are.

    Parameters
    ----------
    in_features, out_features, bias, device
        As of :class:`torch.nn.Linear`.
    compute
        "float32"; "bfloat16": x is rounded to it, sums are float32; "int8": each row of x is
        rounded to integers, whose sums are exact.
    dtype
        Of the bias.

    Raises
    ------
    InputError
        If an option, or the dtype or shape of the input does not fit.

    Examples
    --------
    >>> layer = DenseLinear(64, 10, compute="int8")
    >>> layer(torch.randn(3, 64)).shape, sorted(layer.state_dict())
    (torch.Size([3, 10]), ['bias', 'scales', 'weight'])
    """

    weight: torch.Tensor
    scales: torch.nn.Parameter | None
    bias: torch.nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        compute: str = "int8",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_count("DenseLinear", "in_features", in_features, 1)
        check_count("DenseLinear", "out_features", out_features, 1)
        check_name("DenseLinear", "compute", compute, COMPUTE)
        self.in_features, self.out_features, self.compute = in_features, out_features, compute
        fresh = torch.nn.Linear(in_features, out_features, bias, device=device, dtype=dtype)
        self.register_parameter("bias", fresh.bias)
        self.scales = None
        if compute == "int8":
            integers, units = _integers(fresh.weight)
            self.register_buffer("weight", integers)
            self.scales = torch.nn.Parameter(units)
        else:
            kind = torch.bfloat16 if compute == "bfloat16" else torch.float32
            self.weight = torch.nn.Parameter(fresh.weight.detach().to(kind))

    @classmethod
    def from_linear(cls, linear: torch.nn.Linear, *, compute: str = "int8") -> Self:
        """Return a layer with the weights of ``linear``, which is not changed.

        Raises
        ------
        InputError
            For an unknown ``compute``, or weights that are NaN or infinite.

        Examples
        --------
        >>> linear, x = torch.nn.Linear(8, 3), torch.randn(5, 8)
        >>> exact = DenseLinear.from_linear(linear, compute="float32")
        >>> torch.allclose(exact(x), linear(x), atol=1e-6)
        True
        """
        weight = linear.weight.detach()
        if not bool(weight.isfinite().all()):
            raise InputError(
                "the weights are not all finite",
                where=cls.__name__,
                fix="mend the layer, or leave it as it is",
            )
        layer = cls(
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            compute=compute,
            device=weight.device,
            dtype=weight.dtype,
        )
        with torch.no_grad():
            if layer.scales is None:
                layer.weight.copy_(weight)
            else:
                integers, units = _integers(weight)
                layer.weight.copy_(integers)
                layer.scales.copy_(units)
            if layer.bias is not None:
                layer.bias.copy_(linear.bias)
        return layer.train(linear.training)

    def dequantize(self) -> torch.Tensor:
        """Return the weights (out_features, in_features) in float32."""
        weight = self.weight.float()
        return weight if self.scales is None else weight * self.scales[:, None]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (..., out_features) in the dtype of ``x`` (..., in_features)."""
        check_floats(x, self.in_features, -1, "DenseLinear")
        bias = self.bias
        if bias is not None and bias.dtype is not x.dtype:
            bias = bias.double() if x.dtype is torch.float64 else bias.float()
        return torch.ops.lutcc.dense(x, self.weight, self.scales, bias, self.compute)

    def extra_repr(self) -> str:
        """Return the sizes and arithmetic shown by ``print``."""
        text = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{text}, bias={self.bias is not None}, compute={self.compute!r}"

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        # a cast would lose bits of what goes with the integers; moves are made
        kept = [t for t in (self.scales,) if t is not None]
        kept += [t.grad for t in kept if t.grad is not None]

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            result = fn(tensor)
            if result.dtype is tensor.dtype or not any(tensor is other for other in kept):
                return result
            return tensor.to(result.device)

        return super()._apply(moved, recurse)


def _integers(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights as int8, and the unit of each row in float32."""
    integers, units = quantize_rows(weight.detach().float(), LIMIT)
    return integers.to(torch.int8), units[:, 0]
