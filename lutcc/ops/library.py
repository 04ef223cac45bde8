"""The torch library ``lutcc``, and how an operator is put into it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_library = torch.library.Library("lutcc", "DEF")


def define(
    schema: str,
    *,
    cpu: Callable[..., torch.Tensor],
    fake: Callable[..., torch.Tensor],
    backward: Callable[..., Any] | None = None,
    setup: Callable[..., None] | None = None,
) -> None:
    """Register an operator: schema, CPU implementation, fake kernel and gradient, if any.

    Examples
    --------
    >>> import torch, lutcc.ops
    >>> torch.ops.lutcc.tree_encode.default.name()
    'lutcc::tree_encode'
    """
    name = schema.partition("(")[0]
    _library.define(schema)
    _library.impl(name, cpu, "CPU")
    torch.library.register_fake(f"lutcc::{name}", fake, lib=_library)
    if backward is not None:
        torch.library.register_autograd(
            f"lutcc::{name}", backward, setup_context=setup, lib=_library
        )
