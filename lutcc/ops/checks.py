"""Checks that the operators share, on real and on fake tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lutcc.errors import InputError


def require(condition: Any, op: str, what: str, fix: str) -> None:
    """Raise InputError unless ``condition`` holds; on symbolic sizes this becomes a guard."""
    if not condition:
        raise InputError(what, where=f"torch.ops.lutcc.{op}", fix=fix)


def matrix(op: str, name: str, tensor: torch.Tensor, dtypes: Sequence[torch.dtype]) -> None:
    """Raise InputError unless ``tensor`` has two dimensions and one of ``dtypes``."""
    require(
        tensor.ndim == 2,
        op,
        f"{name} must have 2 dimensions, got shape {tuple(tensor.shape)}",
        f"reshape {name} to (rows, columns)",
    )
    dtype(op, name, tensor, dtypes)


def dtype(op: str, name: str, tensor: torch.Tensor, dtypes: Sequence[torch.dtype]) -> None:
    """Raise InputError unless ``tensor`` has one of ``dtypes``."""
    listed = " or ".join(map(str, dtypes))
    require(
        tensor.dtype in dtypes,
        op,
        f"{name} must be {listed}, got {tensor.dtype}",
        f"{name}.to({listed})",
    )


def check_bias(op: str, bias: torch.Tensor | None, outputs: int, of: torch.dtype) -> None:
    """Raise InputError unless bias is None or (outputs,) of this dtype or float32."""
    if bias is None:
        return
    wider = (torch.float32,) if of in (torch.float16, torch.bfloat16) else ()
    dtype(op, "bias", bias, (of, *wider))
    require(
        bias.ndim == 1 and bias.shape[0] == outputs,
        op,
        f"bias must be ({outputs},), got {tuple(bias.shape)}",
        "pass one number per output",
    )
