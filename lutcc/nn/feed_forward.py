"""Feed-forward blocks: their weights, and where they are in a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias, TypeGuard

import torch

from lutcc.errors import InputError
from lutcc.nn.sampled import SampledLinear

Weights: TypeAlias = tuple[
    torch.Tensor, torch.Tensor | None, Any, torch.Tensor, torch.Tensor | None
]
Function: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
ACTIVATIONS: dict[str, Function] = {
    "gelu": torch.nn.functional.gelu,
    "relu": torch.nn.functional.relu,
    "silu": torch.nn.functional.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


@dataclasses.dataclass(frozen=True, slots=True)
class FeedForward:
    """A feed-forward block of a model: a function of each row, made of Linear layers only.

    Parameters
    ----------
    owner
        The module that the block belongs to, or is.
    entry
        The module that is called with the block's input.
    linears
        Its Linear layers.
    function
        Computes the block (eval mode).
    install
        Puts a replacement where the block is; None if ``owner`` itself is to be replaced.
    """

    owner: torch.nn.Module
    entry: torch.nn.Module
    linears: tuple[torch.nn.Linear, ...]
    function: Function
    install: Callable[[torch.nn.Module], None] | None = None

    @property
    def d_in(self) -> int:
        """Columns of the input."""
        return self.linears[0].in_features

    @property
    def d_out(self) -> int:
        """Columns of the output."""
        return self.linears[-1].out_features

    @property
    def weight_bytes(self) -> int:
        """Size of the Linear layers' parameters."""
        return sum(
            p.numel() * p.element_size() for linear in self.linears for p in linear.parameters()
        )


def find_feed_forward(module: torch.nn.Module) -> FeedForward | None:
    """Return the feed-forward block that ``module`` is, or holds; None if there is none.

    These are recognised: torch's encoder and decoder layers of transformers (``linear1``,
    ``linear2``); modules with ``intermediate.dense`` and ``output.dense``, as the BERT family has;
    and any module whose only parameters are those of two Linear layers, or three gated ones, that
    treats every row alike, passes its input to the first of them and returns what the last returns.

    Examples
    --------
    >>> nn = torch.nn
    >>> block = find_feed_forward(nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)))
    >>> block.d_in, block.d_out
    (8, 8)
    >>> find_feed_forward(nn.Sequential(nn.Linear(8, 32), nn.GELU())) is None
    True
    """
    return _transformer_layer(module) or _bert_layer(module) or _whole_module(module)


def _is_linear(module: object) -> TypeGuard[torch.nn.Linear]:
    """Tell whether a module is a linear layer and nothing else; sampled ones are in eval mode."""
    return type(module) in (torch.nn.Linear, SampledLinear)


def _transformer_layer(module: torch.nn.Module) -> FeedForward | None:
    """Find the pair in torch's TransformerEncoderLayer and TransformerDecoderLayer."""
    kinds = (torch.nn.TransformerEncoderLayer, torch.nn.TransformerDecoderLayer)
    if not isinstance(module, kinds):
        return None
    first, last = module.linear1, module.linear2
    if not _is_linear(first) or not _is_linear(last):
        return None
    layer: Any = module

    def install(replacement: torch.nn.Module) -> None:
        layer.linear1, layer.linear2 = replacement, torch.nn.Identity()
        layer.dropout, layer.activation = torch.nn.Identity(), torch.nn.Identity()
        # 0 keeps forward() from its fused path, which reads the weights of linear1 and linear2.
        layer.activation_relu_or_gelu = 0

    return FeedForward(
        module, first, (first, last), lambda x: last(layer.activation(first(x))), install
    )


def _bert_layer(module: torch.nn.Module) -> FeedForward | None:
    """Find ``intermediate.dense`` and ``output.dense``; drop-out and norm stay where they are."""
    layer: Any = module
    intermediate, output = (getattr(module, name, None) for name in ("intermediate", "output"))
    first, last = (getattr(part, "dense", None) for part in (intermediate, output))
    if not _is_linear(first) or not _is_linear(last):
        return None
    if not hasattr(intermediate, "intermediate_act_fn"):
        return None

    def install(replacement: torch.nn.Module) -> None:
        layer.intermediate.dense = replacement
        layer.intermediate.intermediate_act_fn = torch.nn.Identity()
        layer.output.dense = torch.nn.Identity()

    return FeedForward(module, first, (first, last), lambda x: last(layer.intermediate(x)), install)


def _whole_module(module: torch.nn.Module) -> FeedForward | None:
    """Recognise a module that is a feed-forward block and nothing else, by running it."""
    linears = [m for m in module.modules() if _is_linear(m)]
    owned = {id(p) for linear in linears for p in linear.parameters()}
    if module in linears or any(id(p) not in owned for p in module.parameters()):
        return None
    if len(linears) not in (2, 3) or any(p.is_meta for p in module.parameters()):
        return None
    if len(linears) == 3 and isinstance(module, torch.nn.Sequential):
        return None
    calls: list[tuple[torch.nn.Linear, torch.Tensor, torch.Tensor]] = []

    def note(linear: Any, args: Any, result: torch.Tensor) -> None:
        calls.append((linear, args[0], result))

    weight, training = linears[0].weight, module.training
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, linears[0].in_features, generator=generator).to(weight)
    handles = [linear.register_forward_hook(note) for linear in linears]
    module.eval()
    try:
        with torch.no_grad():
            y, one = module(x), module(x[:1, :1])
            separate = torch.allclose(y[:1, :1], one, rtol=1e-3, atol=1e-4)
    except Exception:  # whatever a module that is no such block raises
        return None
    finally:
        module.train(training)
        for handle in handles:
            handle.remove()
    calls = calls[: len(calls) // 2]
    used = [linear for linear, _, _ in calls]
    if not separate or sorted(map(id, used)) != sorted(map(id, linears)):
        return None
    fed = sum(_same(given, x) for _, given, _ in calls)  # the first, and a gate beside it
    if fed != len(linears) - 1 or not _same(calls[-1][2], y):
        return None
    return FeedForward(module, module, tuple(used), module)


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape[-1] == b.shape[-1] and torch.equal(a.flatten(), b.flatten())


def feed_forward_weights(ffn: Any, where: str) -> Weights:
    """Return (W1 (t, d), b1, activation, W2 (d_out, t), b2) of a block; biases may be None.

    ``ffn`` is that tuple itself or a module with two Linear layers, such as
    ``Sequential(Linear, GELU, Linear)``; then the activation is None.

    Raises
    ------
    InputError
        If it is neither.
    """
    if isinstance(ffn, tuple) and len(ffn) == 5:
        w1, b1, activation, w2, b2 = ffn
        if w1.dim() == w2.dim() == 2 and w1.shape[0] == w2.shape[1]:
            return w1, b1, activation, w2, b2
        raise InputError(
            f"W1 has shape {tuple(w1.shape)} and W2 {tuple(w2.shape)}",
            where=where,
            fix="pass W1 (t, d_in) and W2 (d_out, t), as torch.nn.Linear holds them",
        )
    block = find_feed_forward(ffn) if isinstance(ffn, torch.nn.Module) else None
    if block is None or len(block.linears) != 2:
        raise InputError(
            f"a {type(ffn).__name__} is no feed-forward block of two Linear layers",
            where=where,
            fix="pass Sequential(Linear, GELU, Linear), or (W1, b1, activation, W2, b2)",
        )
    first, last = block.linears
    return first.weight, first.bias, None, last.weight, last.bias


def feed_forward_function(ffn: Any, where: str) -> tuple[Function, torch.device | None]:
    """Return the function of rows that ``ffn`` computes, and the device of its weights, if known.

    ``ffn`` is a module, run in eval mode; (W1, b1, activation, W2, b2) with an activation that is
    callable or one of "gelu", "relu", "silu", "tanh", "sigmoid"; or a function.

    Raises
    ------
    InputError
        If it is something else.
    """
    if isinstance(ffn, torch.nn.Module):
        parameter = next(ffn.parameters(), None)

        def run(rows: torch.Tensor) -> torch.Tensor:
            training = ffn.training
            ffn.eval()
            try:
                return ffn(rows.to(parameter)) if parameter is not None else ffn(rows)
            finally:
                ffn.train(training)

        return run, None if parameter is None else parameter.device
    if not isinstance(ffn, tuple) and callable(ffn):
        function: Any = ffn
        return function, None
    w1, b1, activation, w2, b2 = feed_forward_weights(ffn, where)
    act = ACTIVATIONS.get(activation) if isinstance(activation, str) else activation
    if act is None or not callable(act):
        raise InputError(
            f"the activation {activation!r} is no function",
            where=where,
            fix=f"pass one of {', '.join(map(repr, ACTIVATIONS))}, or a function",
        )
    inner: Any = act
    linear = torch.nn.functional.linear
    return (lambda rows: linear(inner(linear(rows.to(w1), w1, b1)), w2, b2)), w1.device
