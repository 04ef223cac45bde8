"""A layer becomes an exact one in float32, bfloat16 or int8, and the report of it."""

from __future__ import annotations

import dataclasses
import time

import torch

from lutcc import recipes
from lutcc.errors import ConvertError
from lutcc.nn.conversion import LayerReport, exact_report
from lutcc.nn.conversion_plan import Step
from lutcc.nn.dense_conv import DenseConv2d
from lutcc.nn.dense_linear import DenseLinear


def dense_layer(step: Step) -> tuple[DenseLinear | DenseConv2d | None, LayerReport]:
    """Return what takes the place of a layer, and its report; None if it stays.

    Raises
    ------
    ConvertError
        If the layer is no Linear or Conv2d, although the recipe gives its full name.
    InputError
        If its weights are not finite.
    """
    config, layer, started = step.config, step.module, time.perf_counter()
    assert isinstance(config, recipes.Exact)
    assert config.compute is not None
    report = exact_report(step.name, layer)
    made: DenseLinear | DenseConv2d
    if isinstance(layer, torch.nn.Linear):
        made = DenseLinear.from_linear(layer, compute=config.compute)
    elif isinstance(layer, torch.nn.Conv2d):
        made = DenseConv2d.from_conv(layer, compute=config.compute)
    else:
        kind = type(layer).__name__
        if step.by_wildcard:
            note = f"stays as it is: {kind} has no {config.compute} form"
            return None, report.with_note(note)
        raise ConvertError(
            f"{kind} has no exact form in {config.compute}",
            where=f"recipe[{step.name}]",
            fix="use Exact() without compute, or a wildcard, which leaves it as it is",
        )
    exact = layer.weight.detach().double()
    norm = float(exact.norm())
    error = float((made.dequantize().detach().double() - exact).norm())
    return made, dataclasses.replace(
        report,
        relative_error=error / norm if norm else 0.0,
        seconds=time.perf_counter() - started,
        note=f"{config.compute}: the error is the weights'",
    )
