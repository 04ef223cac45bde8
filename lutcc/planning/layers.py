"""The layers that a plan is about: what they are given, how often, and what may be swapped."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from lutcc import recipes
from lutcc.convert_model import _evaluated, _plain_transformers
from lutcc.errors import ConvertError, InputError
from lutcc.nn import CodebookLayer, LookupFFN, MaddnessConv2d, MaddnessLinear
from lutcc.nn.conversion_plan import plan_conversion
from lutcc.planning.calibration import Batch

_LOOK_UPS = (LookupFFN, MaddnessLinear, MaddnessConv2d, CodebookLayer)


@dataclasses.dataclass(frozen=True, slots=True)
class Layer:
    """A linear layer or convolution.

    Parameters
    ----------
    name, module
        In the exact model.
    calls
        How often the model calls it for one batch.
    inputs
        What the first call is given with the timed batch, float32; None if it is never called.
    """

    name: str
    module: torch.nn.Module
    calls: int
    inputs: torch.Tensor | None

    @property
    def columns(self) -> int:
        """D: of its input, or of a patch."""
        weight = next(self.module.parameters())
        return weight[0].numel()

    @property
    def shape(self) -> str:
        """N x D x M of the product; of a convolution, its input, kernel and output channels."""
        outputs = next(self.module.parameters()).shape[0]
        if isinstance(self.module, torch.nn.Conv2d):
            given = "?" if self.inputs is None else "x".join(map(str, self.inputs.shape))
            return f"{given}, {'x'.join(map(str, self.module.kernel_size))} to {outputs}"
        rows = "?" if self.inputs is None else self.inputs.numel() // max(1, self.columns)
        return f"{rows} x {self.columns} x {outputs}"

    @property
    def key(self) -> str:
        """What its speed depends on, beside the candidate."""
        given = None if self.inputs is None else tuple(self.inputs.shape)
        return f"{self.module!r} of {given}"  # torch's own text names all of its sizes


def find_layers(model: torch.nn.Module, example: Batch) -> list[Layer]:
    """Return the layers that can be swapped, in the model's order.

    Raises
    ------
    InputError
        If there are none, or the model fails on the example.
    """
    try:
        steps = plan_conversion(model, {"*": recipes.Maddness()})
    except ConvertError as error:
        kinds = sorted({type(m).__name__ for m in model.modules()})
        raise InputError(
            f"the model has no layer to plan for: it consists of {', '.join(kinds[:8])}",
            where="plan",
            fix="pass a model with torch.nn.Linear or Conv2d layers",
        ) from error
    inputs: dict[str, torch.Tensor] = {}
    calls = dict.fromkeys((step.name for step in steps), 0)
    handles = []
    for step in steps:

        def note(module: torch.nn.Module, args: Any, kwargs: Any, name: str = step.name) -> None:
            calls[name] += 1
            value = args[0] if args else next(iter(kwargs.values()))
            inputs.setdefault(name, value.detach().float().cpu())

        handles.append(step.module.register_forward_pre_hook(note, with_kwargs=True))
    try:
        run_exact(model, example)
    finally:
        for handle in handles:
            handle.remove()
    inner = tuple(f"{name}." for name in look_ups_of(model))
    return [
        Layer(step.name, step.module, calls[step.name], inputs.get(step.name))
        for step in steps
        if not step.name.startswith(inner)
    ]


def run_exact(model: torch.nn.Module, batch: Batch) -> Any:
    """Run the exact model on one batch.

    Raises
    ------
    InputError
        If it fails.
    """
    args, kwargs = batch
    try:
        with torch.no_grad(), _plain_transformers(), _evaluated(model):
            return model(*args, **kwargs)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        shapes = [tuple(v.shape) for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)]
        raise InputError(
            f"the model fails on calibration inputs of shapes {shapes}: {error}",
            where="plan(calibration)",
            fix="pass inputs that the model itself accepts",
        ) from error


def look_ups_of(model: torch.nn.Module) -> dict[str, str]:
    """Return the layers that look up already, which stay as they are, and their types."""
    found = {n: type(m).__name__ for n, m in model.named_modules() if isinstance(m, _LOOK_UPS)}
    inner = tuple(f"{name}." for name in found)
    return {name: kind for name, kind in found.items() if not name.startswith(inner)}
