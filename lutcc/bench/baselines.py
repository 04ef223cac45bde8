"""What a user would run instead of look-ups: dense layers in torch, float32, bfloat16 and int8.

Every precision is given its best chance: weights converted beforehand, cast buffers allocated
beforehand, one thread, both int8 engines of torch; for feed-forward blocks also oneDNN with weights
reordered beforehand and the activation fused, which is what ``torch.compile`` makes of them with
``freezing``. On CPUs with AMX, oneDNN's bf16 and int8 are several times faster than elsewhere;
:data:`WITHOUT_AMX` in the environment of a process shows the difference.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from lutcc.errors import UsageError, suggest
from lutcc.runtime import cpu

if TYPE_CHECKING:
    import torch
    from torch import nn

# oneDNN reads this once per process. AVX512_CORE_BF16 includes VNNI, so it serves int8 and bf16
# alike.
WITHOUT_AMX = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}

PRECISIONS = {
    "fp32": "float32 weights and activations",
    "bf16": "bfloat16 weights, activations in and out",
    "bf16_cast": "bfloat16 weights, float32 in and out",
    "int8_onednn": "dynamic int8 (oneDNN), float32 in and out",
    "int8_x86": "dynamic int8 (FBGEMM/oneDNN 'x86' engine), float32 in and out",
}

#: Through oneDNN whatever torch's own choice is (MKL for float32).
ONEDNN = {
    "fp32_onednn": "float32 through oneDNN, weights reordered, activations fused",
    "bf16_onednn": "bfloat16 through oneDNN, weights reordered, activations fused, bf16 in and out",
}
#: The same in bfloat16 for a caller that has float32 and wants it back, as ``bf16_cast`` is.
ONEDNN_CAST = "bf16_onednn_cast"
_BF16_NEEDS = ("avx512bw", "avx512vl", "avx512dq")


def runs_here(precision: str) -> bool:
    """Return whether this CPU has what a precision needs; only ``bf16_onednn`` needs any."""
    return not precision.startswith("bf16_onednn") or cpu.supports(_BF16_NEEDS)


def dense_chain(
    weights: Sequence[tuple[torch.Tensor, torch.Tensor | None]],
    *,
    relu_last: bool = False,
    activation: str = "relu",
) -> nn.Sequential:
    """Build Linear layers with an activation ("relu" or "gelu") between them.

    From (weight (M, D), bias (M,) or None) pairs.
    """
    from torch import nn

    between = {"relu": nn.ReLU, "gelu": nn.GELU}[activation]
    layers: list[nn.Module] = []
    for index, (weight, bias) in enumerate(weights):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        linear.weight.data.copy_(weight)
        if bias is not None:
            linear.bias.data.copy_(bias)
        layers.append(linear)
        if index < len(weights) - 1 or relu_last:
            layers.append(between())
    return nn.Sequential(*layers).eval()


def prepare(model: nn.Module, precision: str, *inputs: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Return a call that runs ``model`` on an input (N, D) float32, the next one each time.

    ``precision`` is one of :data:`PRECISIONS`, or, for a chain of Linear layers, of :data:`ONEDNN`
    or :data:`ONEDNN_CAST`.

    Raises
    ------
    UsageError
        For an unknown precision.

    Examples
    --------
    >>> import torch
    >>> call = prepare(torch.nn.Linear(4, 2), "bf16", torch.ones(1, 4))
    >>> call().dtype
    torch.bfloat16
    """
    run = _converted(model, precision)
    return in_turn([run(x) for x in inputs])


def in_turn(calls: Sequence[Callable[[], Any]]) -> Callable[[], Any]:
    """Return one call that makes the given ones in turn.

    Examples
    --------
    >>> call = in_turn([lambda: 1, lambda: 2])
    >>> call(), call(), call()
    (1, 2, 1)
    """
    if len(calls) == 1:
        return calls[0]
    following = itertools.cycle(calls).__next__
    return lambda: following()()


def _converted(model: nn.Module, precision: str) -> Callable[[torch.Tensor], Callable[[], Any]]:
    """Convert a model once; returns a function from an input to the call that is timed."""
    import torch

    if precision == "fp32":
        return lambda x: lambda: model(x)
    if precision in ("bf16", "bf16_cast"):
        half = _copy(model).to(torch.bfloat16)
        return _of_halves(half, cast=precision == "bf16_cast")
    if precision in ("int8_onednn", "int8_x86"):
        quantised = quantize(model, precision.removeprefix("int8_"))
        return lambda x: lambda: quantised(x)
    if precision == "fp32_onednn":
        exact = _fused(model, torch.float32)
        return lambda x: lambda: exact(x)
    if precision in (*ONEDNN, ONEDNN_CAST):
        return _of_halves(_fused(model, torch.bfloat16), cast=precision == ONEDNN_CAST)
    known = [*PRECISIONS, *ONEDNN, ONEDNN_CAST]
    raise UsageError(f"unknown precision {precision!r}", fix=suggest(precision, known))


def _of_halves(
    half: Callable[[torch.Tensor], torch.Tensor], *, cast: bool
) -> Callable[[torch.Tensor], Callable[[], Any]]:
    """Return what runs ``half``, of bfloat16; with ``cast`` each call converts there and back."""
    import torch

    def prepared(x: torch.Tensor) -> Callable[[], Any]:
        given = x.to(torch.bfloat16)
        if not cast:
            return lambda: half(given)
        out = torch.empty(half(given).shape, dtype=torch.float32)
        return lambda: out.copy_(half(given.copy_(x)))

    return prepared


def _fused(model: nn.Module, dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a chain of Linear layers as oneDNN calls, each with the activation that follows."""
    import torch
    from torch import nn

    ops = torch.ops.mkldnn
    layers = list(model) if isinstance(model, nn.Sequential) else [model]
    steps: list[tuple[Any, ...]] = []
    for layer, following in itertools.zip_longest(layers, layers[1:]):
        if isinstance(layer, nn.Linear):
            kinds = {nn.ReLU: ("relu", ""), nn.GELU: ("gelu", "none")}
            attr, algorithm = kinds.get(type(following), ("none", ""))
            weight = ops._reorder_linear_weight(layer.weight.detach().to(dtype))
            bias = None if layer.bias is None else layer.bias.detach().to(dtype)
            steps.append((weight, bias, attr, algorithm))

    def run(x: torch.Tensor) -> torch.Tensor:
        for weight, bias, attr, algorithm in steps:
            x = ops._linear_pointwise(x, weight, bias, attr, [], algorithm)
        return x

    return run


def quantize(model: nn.Module, engine: str) -> nn.Module:
    """Quantise the Linear layers to int8 weights with activations quantised at run time."""
    import torch
    from torch import nn

    before = torch.backends.quantized.engine
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # torch.ao.quantization announces its successor on every call
        try:
            torch.backends.quantized.engine = engine
            return torch.ao.quantization.quantize_dynamic(
                _copy(model), {nn.Linear}, dtype=torch.qint8
            )
        finally:
            torch.backends.quantized.engine = before


def _copy(model: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(model).eval()


def read_chain(path: str) -> nn.Sequential:
    """Build the dense chain stored by :func:`write_chain`."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
        pairs = []
        for index in itertools.count():
            if f"{index}.weight" not in names:
                break
            bias = file.get_tensor(f"{index}.bias") if f"{index}.bias" in names else None
            pairs.append((file.get_tensor(f"{index}.weight"), bias))
        metadata = file.metadata() or {}
    return dense_chain(
        pairs,
        relu_last=metadata.get("relu_last") == "true",
        activation=metadata.get("activation", "relu"),
    )


def write_chain(
    path: str,
    weights: Sequence[tuple[torch.Tensor, torch.Tensor | None]],
    *,
    relu_last: bool = False,
    activation: str = "relu",
) -> None:
    """Store (weight, bias) pairs of a dense chain as safetensors for a process that measures it."""
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    for index, (weight, bias) in enumerate(weights):
        tensors[f"{index}.weight"] = weight.detach().contiguous()
        if bias is not None:
            tensors[f"{index}.bias"] = bias.detach().contiguous()
    metadata = {"relu_last": "true" if relu_last else "false", "activation": activation}
    save_file(tensors, path, metadata=metadata)
