"""What each op does to the axes of its operands, for :mod:`lutcc.nn.channel_flow`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import Node

from lutcc.frontend.checks import op_name
from lutcc.nn.channel_axes import (
    Dimension,
    Dimensions,
    fix,
    fresh,
    regroup,
    size_of,
    unify,
)

if TYPE_CHECKING:
    from lutcc.nn.channel_flow import ChannelFlow

Rule = Callable[["ChannelFlow", Node], Any]
RULES: dict[str, Rule] = {}
MIXED = "a reshape mixes its channels"


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for ops by name, without the overload."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def shape_of(node: Node) -> tuple[int, ...]:
    """Return the shape of a node's value; () if it has none."""
    value = node.meta.get("val")
    return tuple(int(s) for s in value.shape) if isinstance(value, torch.Tensor) else ()


def is_several(node: Node) -> bool:
    """Tell whether a node returns a list of tensors."""
    return isinstance(node.meta.get("val"), list | tuple)


def unknown(node: Node) -> Any:
    """Return fixed axes for whatever a node returns."""
    value, reason = node.meta.get("val"), f"it meets the result of {op_name(node)}"
    if isinstance(value, list | tuple):
        return [fresh(v.shape if isinstance(v, torch.Tensor) else (), reason) for v in value]
    return fresh(shape_of(node), reason)


def argument(node: Node, place: int, name: str, default: Any = None) -> Any:
    """Return an argument given by place or by name."""
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def places(given: Any, rank: int) -> list[int]:
    """Return dimensions counted from 0; None means all."""
    if given is None or given == []:
        return list(range(rank))
    return [d % max(rank, 1) for d in ([given] if isinstance(given, int) else given)]


# -- products ------------------------------------------------------------------------------------


@rule("linear")
def _linear(flow: ChannelFlow, node: Node) -> Dimensions:
    x, weight = flow.axes(node.args[0]), flow.axes(node.args[1])
    unify(x[-1], weight[1], MIXED)
    out = [*x[:-1], weight[0]]
    bias = argument(node, 2, "bias")
    return out if bias is None else flow.broadcast([out, flow.axes(bias)])


@rule("mm", "bmm")
def _product(flow: ChannelFlow, node: Node) -> Dimensions:
    a, b = flow.axes(node.args[0]), flow.axes(node.args[1])
    for one, other in zip(a[:-2], b[:-2], strict=True):
        unify(one, other, MIXED)
    unify(a[-1], b[-2], MIXED)
    return [*a[:-1], b[-1]]


@rule("mv", "dot")
def _vector_product(flow: ChannelFlow, node: Node) -> Dimensions:
    a, b = flow.axes(node.args[0]), flow.axes(node.args[1])
    unify(a[-1], b[0], MIXED)
    return a[:-1]


@rule("addmm", "baddbmm")
def _product_and_sum(flow: ChannelFlow, node: Node) -> Dimensions:
    base, a, b = (flow.axes(value) for value in node.args[:3])
    for one, other in zip(a[:-2], b[:-2], strict=True):
        unify(one, other, MIXED)
    unify(a[-1], b[-2], MIXED)
    return flow.broadcast([[*a[:-1], b[-1]], base], _skip(flow, node, node.args[:2]))


@rule("conv1d", "conv2d")
def _convolution(flow: ChannelFlow, node: Node) -> Dimensions:
    x, weight = flow.axes(node.args[0]), flow.axes(node.args[1])
    groups = argument(node, 6, "groups", 1)
    spatial = len(weight) - 2
    channels, filters = x[-spatial - 1], weight[0]
    fix([*x[-spatial:], *weight[2:]], "a convolution runs along it")
    if groups == 1:
        unify(channels, weight[1], MIXED)
    else:
        parted = regroup([filters], [groups, max(size_of(filters), 1) // groups])
        if parted is None:
            fix([channels, *weight], MIXED)
        else:
            unify(channels, (*parted[0], *weight[1]), MIXED)
    out = [*x[: -spatial - 1], filters, *fresh(shape_of(node)[-spatial:], "a convolution's pixels")]
    bias = argument(node, 2, "bias")
    if bias is not None:
        unify(filters, flow.axes(bias)[0], MIXED)
    return out


@rule("embedding")
def _embedding(flow: ChannelFlow, node: Node) -> Dimensions:
    weight, indices = flow.axes(node.args[0]), flow.axes(node.args[1])
    fix([weight[0], *indices], "an embedding looks it up by number")
    return [*indices, weight[1]]


# -- channel by channel --------------------------------------------------------------------------


@rule(
    "mul", "div", "where", "maximum", "minimum", "fmod", "remainder", "atan2", "eq", "ne", "lt",
    "le", "gt", "ge", "logical_and", "logical_or", "logical_xor", "bitwise_and", "bitwise_or",
    "pow", "relu", "sigmoid", "tanh", "gelu", "silu", "mish", "elu", "selu", "celu", "leaky_relu",
    "hardtanh", "hardswish", "hardsigmoid", "softplus", "exp", "expm1", "log", "log1p", "log2",
    "sqrt", "rsqrt", "reciprocal", "neg", "abs", "sign", "sin", "cos", "erf", "floor", "ceil",
    "round", "trunc", "clamp", "clamp_min", "clamp_max", "relu6", "clone", "_to_copy", "alias",
    "detach", "lift_fresh_copy", "contiguous", "dropout", "logical_not", "bitwise_not", "isnan",
    "isinf", "nan_to_num", "fill", "full_like", "zeros_like", "ones_like", "empty_like",
    "masked_fill", "prelu", "_prelu_kernel",
)  # fmt: skip
def _elementwise(flow: ChannelFlow, node: Node) -> Dimensions:
    return flow.broadcast([flow.axes(n) for n in node.all_input_nodes])


@rule("add", "sub", "rsub", "addcmul", "addcdiv")
def _sum_of_tensors(flow: ChannelFlow, node: Node) -> Dimensions:
    operands = node.all_input_nodes
    return flow.broadcast([flow.axes(n) for n in operands], _skip(flow, node, operands))


def _skip(flow: ChannelFlow, node: Node, operands: Sequence[Any]) -> str:
    if sum(not flow.is_constant(n) for n in operands) < 2:
        return ""
    return f"a skip connection adds it to other channels ({_place(node)})"


def _place(node: Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    path = list(stack.values())[-1][0] if stack else ""
    return f"in {path!r}" if path else "in the model itself"


@rule("_softmax", "_log_softmax", "_safe_softmax")
def _softmax(flow: ChannelFlow, node: Node) -> Dimensions:
    return list(flow.axes(node.args[0]))


@rule("_native_batch_norm_legit_no_training")
def _batch_norm(flow: ChannelFlow, node: Node) -> Any:
    x = flow.axes(node.args[0])
    for value in node.args[1:5]:
        if isinstance(value, Node):
            unify(x[1], flow.axes(value)[0], MIXED)
    return [list(x), *unknown(node)[1:]]


@rule("native_layer_norm")
def _layer_norm(flow: ChannelFlow, node: Node) -> Any:
    x, extent = flow.axes(node.args[0]), len(node.args[1])  # pyright: ignore[reportArgumentType]
    for value in node.args[2:4]:
        if isinstance(value, Node):
            flow.broadcast([x, flow.axes(value)])
    statistics = [*x[: len(x) - extent], *[()] * extent]
    return [list(x), statistics, list(statistics)]


@rule("native_group_norm")
def _group_norm(flow: ChannelFlow, node: Node) -> Any:
    x, groups = flow.axes(node.args[0]), int(node.args[6])  # pyright: ignore[reportArgumentType]
    parted = regroup([x[1]], [groups, max(size_of(x[1]), 1) // groups])
    if parted is None:
        fix([x[1]], MIXED)
        parted = [x[1], ()]
    for value in node.args[1:3]:
        if isinstance(value, Node):
            unify((*parted[0], *parted[1]), flow.axes(value)[0], MIXED)
    # a group has statistics of its own, and its channels stay in it
    fix([parted[0]] if parted[1] else [], "group norm keeps groups apart")
    return [list(x), *unknown(node)[1:]]


# -- reductions ----------------------------------------------------------------------------------


@rule("mean", "sum", "amax", "amin", "var", "prod", "any", "all", "linalg_vector_norm", "logsumexp")
def _reduce(flow: ChannelFlow, node: Node) -> Dimensions:
    x = flow.axes(node.args[0])
    at = 2 if op_name(node).startswith("aten.linalg_vector_norm") else 1
    given = argument(node, at, "dim")
    gone = places(given if isinstance(given, int | list | tuple) else None, len(x))
    kept = len(shape_of(node)) == len(x)
    made = [() if d in gone else axes for d, axes in enumerate(x)]
    return made if kept else [axes for d, axes in enumerate(made) if d not in gone]


# -- pixels --------------------------------------------------------------------------------------


@rule(
    "max_pool2d_with_indices", "avg_pool2d", "avg_pool1d", "_adaptive_avg_pool2d",
    "adaptive_avg_pool1d", "adaptive_max_pool2d", "upsample_nearest2d", "upsample_bilinear2d",
    "upsample_nearest1d", "_upsample_nearest_exact2d", "upsample_bicubic2d", "reflection_pad2d",
    "replication_pad2d", "reflection_pad1d", "replication_pad1d",
)  # fmt: skip
def _spatial(flow: ChannelFlow, node: Node) -> Any:
    x = flow.axes(node.args[0])
    count = 1 if "1d" in op_name(node) else 2
    fix(x[-count:], "pooling or resizing runs along it")
    other = unknown(node)
    if is_several(node):
        return [[*x[:-count], *axes[-count:]] for axes in other]
    return [*x[:-count], *other[-count:]]


@rule("constant_pad_nd")
def _pad(flow: ChannelFlow, node: Node) -> Dimensions:
    x, padding = list(flow.axes(node.args[0])), list(node.args[1])  # pyright: ignore[reportArgumentType]
    for place in range(len(padding) // 2):
        if any(padding[2 * place : 2 * place + 2]):
            fix([x[-1 - place]], "padding is put beside its channels")
            x[-1 - place] = unknown(node)[-1 - place]
    return x


# -- views ---------------------------------------------------------------------------------------


@rule(
    "view", "reshape", "_unsafe_view", "squeeze", "unsqueeze", "flatten", "unflatten", "view_copy"
)
def _view(flow: ChannelFlow, node: Node) -> Dimensions | None:
    made = regroup(flow.axes(node.args[0]), shape_of(node))
    if made is None:
        fix(flow.axes(node.args[0]), MIXED)
    return made


@rule("permute", "t", "transpose", "numpy_T")
def _permute(flow: ChannelFlow, node: Node) -> Dimensions:
    x = flow.axes(node.args[0])
    name = op_name(node)
    if name.startswith("aten.permute"):
        return [x[d % len(x)] for d in node.args[1]]  # pyright: ignore
    made = list(x)
    if name.startswith("aten.transpose"):
        one, other = (int(d) % len(x) for d in node.args[1:3])  # pyright: ignore
        made[one], made[other] = x[other], x[one]
        return made
    return made[::-1]


@rule("expand")
def _expand(flow: ChannelFlow, node: Node) -> Dimensions:
    x, shape = flow.axes(node.args[0]), shape_of(node)
    x = [*[()] * (len(shape) - len(x)), *x]
    # a tensor is constant along an expanded dimension, in whatever order
    return [axes or new for axes, new in zip(x, fresh(shape), strict=True)]


@rule("full", "zeros", "ones", "scalar_tensor")
def _filled(flow: ChannelFlow, node: Node) -> Dimensions:
    flow.mark_constant(node)
    return fresh(shape_of(node))


@rule("arange", "eye")
def _numbers(flow: ChannelFlow, node: Node) -> Dimensions:
    flow.mark_constant(node)
    return unknown(node)


@rule("slice")
def _slice(flow: ChannelFlow, node: Node) -> Dimensions:
    x, place = list(flow.axes(node.args[0])), int(argument(node, 1, "dim", 0))
    if shape_of(node)[place] != size_of(x[place]):
        _take_part(x[place])
        x[place] = unknown(node)[place]
    return x


@rule("select")
def _select(flow: ChannelFlow, node: Node) -> Dimensions:
    x, place = list(flow.axes(node.args[0])), int(argument(node, 1, "dim", 0))
    _take_part(x.pop(place))
    return x


@rule("split_with_sizes", "split", "unbind")
def _split(flow: ChannelFlow, node: Node) -> Any:
    x = flow.axes(node.args[0])
    unbound = op_name(node).startswith("aten.unbind")
    place = int(argument(node, 1 if unbound else 2, "dim", 0)) % max(len(x), 1)
    _take_part(x[place])
    made = []
    for axes in unknown(node):
        part = list(x)
        part[place : place + 1] = [] if unbound else [axes[place]]
        made.append(part)
    return made


def _take_part(dimension: Dimension) -> None:
    fix([dimension], "a slice takes only a part of its channels")


@rule("cat", "stack")
def _concatenate(flow: ChannelFlow, node: Node) -> Dimensions:
    parts: list[Any] = [n for n in node.args[0] if isinstance(n, Node)]  # pyright: ignore
    place = int(argument(node, 1, "dim", 0)) % len(shape_of(node))
    operands = [list(flow.axes(n)) for n in parts]
    if op_name(node).startswith("aten.stack"):
        for axes in operands:
            axes.insert(place, ())
    fix([axes[place] for axes in operands], "it is concatenated with other channels")
    rest = [[() if d == place else a for d, a in enumerate(axes)] for axes in operands]
    made = flow.broadcast(rest)
    made[place] = unknown(node)[place]
    return made


@rule("index")
def _index(flow: ChannelFlow, node: Node) -> Dimensions:
    x, out = flow.axes(node.args[0]), unknown(node)
    chosen: Any = node.args[1]
    numbered = [d for d, index in enumerate(chosen) if index is not None]
    fix([a for index in chosen for a in flow.axes(index)], "it is an index")
    fix([x[d] for d in numbered], "channels are taken by number")
    first, last = numbered[0], numbered[-1]
    if len(numbered) != last - first + 1:
        fix(x, "channels are taken by number")
        return out
    after = len(x) - 1 - last
    return [*x[:first], *out[first : len(out) - after], *x[len(x) - after :]]


@rule("index_select", "flip", "roll", "cumsum", "sort", "topk", "tril", "triu", "argmax", "argmin")
def _ordered(flow: ChannelFlow, node: Node) -> Any:
    """Fix the dimensions whose order an op depends on, and follow the others."""
    x, name = flow.axes(node.args[0]), op_name(node).removeprefix("aten.").split(".")[0]
    if name in ("tril", "triu"):
        gone = [len(x) - 2, len(x) - 1]
    elif name in ("topk", "roll"):
        gone = places(argument(node, 2, "dims" if name == "roll" else "dim", -1), len(x))
    else:
        whole = None if name in ("argmax", "argmin") else -1
        gone = places(argument(node, 1, "dims" if name == "flip" else "dim", whole), len(x))
    fix([x[d] for d in gone], f"{name} depends on the order of its channels")
    out = unknown(node)
    several = out if is_several(node) else [out]
    made = []
    for axes in several:
        kept = len(axes) == len(x)
        left = [(axes[d] if kept else ()) if d in gone else a for d, a in enumerate(x)]
        made.append(left if kept else [a for d, a in enumerate(left) if d not in gone])
    return made if is_several(node) else made[0]
