"""What exact layers on kernels of lutcc's own share: weights as they are computed with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch

import lutcc.ops  # noqa: F401  registers torch.ops.lutcc
from lutcc.errors import InputError
from lutcc.lookup_options import check_name
from lutcc.nn.codebook import COMPUTE
from lutcc.nn.constants import without_casts
from lutcc.ops.arithmetic import quantize_rows
from lutcc.ops.dense import LIMIT


class DenseLayer(torch.nn.Module):
    """Weights (outputs, ...) in float32, bfloat16 or int8, and a bias (outputs,) or None.

    ``weight`` is a float32 or bfloat16 parameter; for int8 a buffer of integers in -127 .. 127,
    with a parameter ``scales`` (outputs,) float32, what 1 stands for in each output's weights.
    These are what the ``state_dict`` holds, and what an artifact stores. Training moves float
    weights, or, of int8, scales and bias; a cast of the model leaves integers and scales as they
    are.
    """

    weight: torch.Tensor
    scales: torch.nn.Parameter | None
    bias: torch.nn.Parameter | None
    compute: str

    def _begin(self, fresh: Any, compute: str) -> None:
        """Take over the weights and the bias of a fresh Linear or Conv2d."""
        check_name(type(self).__name__, "compute", compute, COMPUTE)
        self.compute = compute
        self.register_parameter("bias", fresh.bias)
        self.scales = None
        if compute == "int8":
            integers, units = _integers(fresh.weight)
            self.register_buffer("weight", integers)
            self.scales = torch.nn.Parameter(units)
        else:
            kind = torch.bfloat16 if compute == "bfloat16" else torch.float32
            self.weight = torch.nn.Parameter(fresh.weight.detach().to(kind))

    def _copy(self, layer: torch.nn.Linear | torch.nn.Conv2d) -> Self:
        """Copy the weights, the bias and the mode of ``layer``."""
        weight = layer.weight.detach()
        with torch.no_grad():
            if self.scales is None:
                self.weight.copy_(weight)
            else:
                integers, units = _integers(weight)
                self.weight.copy_(integers)
                self.scales.copy_(units)
            if self.bias is not None:
                assert layer.bias is not None
                self.bias.copy_(layer.bias)
        return self.train(layer.training)

    def dequantize(self) -> torch.Tensor:
        """Return the weights (outputs, ...) in float32."""
        weight = self.weight.float()
        if self.scales is None:
            return weight
        return weight * self.scales.reshape(-1, *[1] * (weight.ndim - 1))

    def _bias_for(self, x: torch.Tensor) -> torch.Tensor | None:
        """Return the bias in a dtype that goes with that of ``x``."""
        bias = self.bias
        if bias is None or bias.dtype is x.dtype:
            return bias
        return bias.double() if x.dtype is torch.float64 else bias.float()

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        # a cast would lose bits of what goes with the integers
        return super()._apply(without_casts(fn, [self.scales]), recurse)


def finite(weight: torch.Tensor, where: str) -> torch.Tensor:
    """Return the weights.

    Raises
    ------
    InputError
        If they are NaN or infinite.
    """
    if not bool(weight.isfinite().all()):
        raise InputError(
            "the weights are not all finite",
            where=where,
            fix="mend the layer, or leave it as it is",
        )
    return weight


def _integers(weight: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """Return weights as int8, and the unit of each output in float32."""
    integers, units = quantize_rows(weight.detach().float().flatten(1), LIMIT)
    return integers.to(torch.int8).reshape(weight.shape), units[:, 0]
