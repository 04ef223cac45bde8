"""How each torch op becomes IR ops.

A rule that does not apply says why, and the node goes through TVM Relax instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from torch.fx import Node

from lutcc.errors import VerifyError
from lutcc.frontend.checks import op_name
from lutcc.frontend.graph import NotExpressible
from lutcc.frontend.lowered import Lowered, RegionBuilder

Result: TypeAlias = "Lowered | tuple[Lowered | None, ...]"
Rule: TypeAlias = Callable[[RegionBuilder, Node], Result]

RULES: dict[str, Rule] = {}
"""Op name, as torch prints it, to its rule."""

ANCHORS = (
    "lutcc.",
    "aten.linear.",
    "aten.addmm.",
    "aten.mm.",
    "aten.matmul.",
    "aten.conv1d.",
    "aten.conv2d.",
    "aten.convolution.",
)
"""Ops worth a lutcc kernel of their own; the others join a region only next to one of these."""


def is_anchor(node: Node) -> bool:
    """Tell whether ``node`` is worth a lutcc kernel by itself."""
    return node.op == "call_function" and op_name(node).startswith(ANCHORS)


def lower_node(region: RegionBuilder, node: Node) -> None:
    """Append ``node`` to the region.

    Raises
    ------
    NotExpressible
        If the op, or this use of it, has no form in the IR.
    """
    # the rules register themselves
    from lutcc.frontend import (  # noqa: F401
        rules_activations,
        rules_attention,
        rules_codebook,
        rules_conv,
        rules_dense,
        rules_elementwise,
        rules_gather,
        rules_layers,
        rules_norms,
        rules_pooling,
    )

    name = op_name(node)
    lower = RULES.get(name)
    if lower is None:
        raise NotExpressible(f"the IR has no op for {name}")
    try:
        region.env[node] = lower(region, node)
    except VerifyError as error:
        raise NotExpressible(str(error)) from error


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of these ops."""

    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, rule))
        return rule

    return register


def argument(node: Node, index: int, name: str, default: Any = None) -> Any:
    """Return an argument of a node, by position or name."""
    return node.args[index] if len(node.args) > index else node.kwargs.get(name, default)
