"""torch's type promotion as casts in the graph: TVM's importer takes the first operand's dtype."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from lutcc.frontend.checks import op_name

_BINARY = frozenset(
    "add sub rsub mul div pow remainder fmod floor_divide maximum minimum atan2 where clamp "  # noqa: SIM905
    "clamp_min clamp_max logaddexp".split()
)
_UNARY = frozenset(
    "acos acosh asin asinh atan atanh cos cosh erf exp expm1 log log10 log1p log2 reciprocal rsqrt "  # noqa: SIM905
    "sigmoid sin sinh sqrt tan tanh softmax _softmax log_softmax _log_softmax cumsum cumprod "
    "prod".split()
)
_COMPARISONS = frozenset(("eq", "ne", "lt", "le", "gt", "ge"))


def promote(node: Node) -> None:
    """Cast the operands of ``node`` to the dtype in which torch computes, numbers included.

    Examples
    --------
    >>> promote(node)       # int64 tensor * 0.5: the tensor becomes float32 first
    """
    name = op_name(node).removeprefix("aten.").split(".")[0]
    result = node.meta.get("val")
    if not isinstance(result, torch.Tensor) or name not in _BINARY | _UNARY | _COMPARISONS:
        return
    dtype = result.dtype
    if name in _COMPARISONS:
        left, right = (_value(argument) for argument in node.args[:2])
        dtype = torch.result_type(left, right)
    condition = node.args[0] if name == "where" else None
    node.args = tuple(
        argument
        if argument is condition or (name in _UNARY and not isinstance(argument, Node))
        else _cast(node, argument, dtype)
        for argument in node.args
    )


def _value(argument: Any) -> Any:
    """Return an argument as ``torch.result_type`` takes it: a tensor without data, or a number."""
    if not isinstance(argument, Node):
        return argument
    value = argument.meta["val"]
    if not isinstance(value, torch.Tensor):
        return 1
    return torch.empty((1,) * value.dim(), dtype=value.dtype, device="meta")


def _cast(node: Node, argument: Any, dtype: torch.dtype) -> Any:
    if isinstance(argument, Node):
        value = argument.meta["val"]
        if not isinstance(value, torch.Tensor) or value.dtype == dtype:
            return argument
        with node.graph.inserting_before(node):
            cast = node.graph.call_function(
                torch.ops.aten._to_copy.default, (argument,), {"dtype": dtype}
            )
        cast.meta = {**node.meta, "val": value.to(dtype)}
        return cast
    if isinstance(argument, int) and not isinstance(argument, bool) and dtype.is_floating_point:
        return float(argument)
    return argument
