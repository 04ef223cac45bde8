"""What a user would run instead of look-ups: dense layers in torch, float32, bfloat16 and int8.

Every precision is given its best chance: weights converted beforehand, cast buffers allocated
beforehand, one thread, both int8 engines of torch. On CPUs with AMX, oneDNN's bf16 and int8 are
several times faster than elsewhere; :data:`WITHOUT_AMX` in the environment of a process shows the
difference.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lutcc.errors import UsageError, suggest

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


def dense_chain(
    weights: Sequence[tuple[torch.Tensor, torch.Tensor | None]], *, relu_last: bool = False
) -> nn.Sequential:
    """Build Linear layers with ReLU between them from (weight (M, D), bias (M,) or None) pairs."""
    from torch import nn

    layers: list[nn.Module] = []
    for index, (weight, bias) in enumerate(weights):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        linear.weight.data.copy_(weight)
        if bias is not None:
            linear.bias.data.copy_(bias)
        layers.append(linear)
        if index < len(weights) - 1 or relu_last:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers).eval()


def prepare(model: nn.Module, precision: str, x: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Return a call that runs ``model`` on ``x`` (N, D) float32 in one of :data:`PRECISIONS`.

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
    import torch

    if precision == "fp32":
        return lambda: model(x)
    if precision in ("bf16", "bf16_cast"):
        half = _copy(model).to(torch.bfloat16)
        given = x.to(torch.bfloat16)
        if precision == "bf16":
            return lambda: half(given)
        out = torch.empty(half(given).shape, dtype=torch.float32)
        return lambda: out.copy_(half(given.copy_(x)))
    if precision in ("int8_onednn", "int8_x86"):
        quantised = quantize(model, precision.removeprefix("int8_"))
        return lambda: quantised(x)
    raise UsageError(f"unknown precision {precision!r}", fix=suggest(precision, PRECISIONS))


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
        relu_last = (file.metadata() or {}).get("relu_last") == "true"
    return dense_chain(pairs, relu_last=relu_last)


def write_chain(
    path: str,
    weights: Sequence[tuple[torch.Tensor, torch.Tensor | None]],
    *,
    relu_last: bool = False,
) -> None:
    """Store (weight, bias) pairs of a dense chain as safetensors for a process that measures it."""
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    for index, (weight, bias) in enumerate(weights):
        tensors[f"{index}.weight"] = weight.detach().contiguous()
        if bias is not None:
            tensors[f"{index}.bias"] = bias.detach().contiguous()
    save_file(tensors, path, metadata={"relu_last": "true" if relu_last else "false"})
