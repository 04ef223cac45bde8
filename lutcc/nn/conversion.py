"""One layer becomes look-ups, and the report of it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from lutcc import recipes
from lutcc.errors import ConvertError
from lutcc.fit import Maddness
from lutcc.nn.calibration import conv_rows, linear_rows
from lutcc.nn.conv import MaddnessConv2d, conv_geometry, conv_weights
from lutcc.nn.linear import MaddnessLinear, linear_weights
from lutcc.nn.lookup import MaddnessLookup


@dataclasses.dataclass(frozen=True, slots=True)
class LayerReport:
    """What became of one layer.

    Parameters
    ----------
    name, method
        The layer, and the recipe's method.
    in_features, out_features, ncodebooks, nprototypes
        D, M, C and K of its product (patches are rows for a convolution); C = K = 0 for an exact
        layer.
    relative_error
        Frobenius norm of (look-up - exact) over that of exact, on the calibration rows it was
        fitted on; both get the output of the converted layers before it. 0 for an exact layer.
    rows
        Calibration rows fitted on.
    table_bytes, weight_bytes
        Size of the tables, and of the exact layer's parameters.
    seconds
        Time to fit.
    note
        What the recipe's author should know, or "".
    """

    name: str
    method: str
    in_features: int
    out_features: int
    ncodebooks: int
    nprototypes: int
    relative_error: float
    rows: int
    table_bytes: int
    weight_bytes: int
    seconds: float
    note: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class ConversionReport:
    """The layers that the recipe names, in the order in which the model runs them."""

    layers: tuple[LayerReport, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists and dictionaries, ready for JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        """Return a table with one line per layer."""
        head = f"{'layer':24} {'method':9} {'D':>5} {'M':>5} {'C':>4} {'K':>4}"
        head += f" {'error':>8} {'table bytes':>12}  note"
        lines = [head]
        for r in self.layers:
            line = f"{r.name:24} {r.method:9} {r.in_features:5} {r.out_features:5}"
            line += f" {r.ncodebooks:4} {r.nprototypes:4} {r.relative_error:8.4f}"
            lines.append(f"{line} {r.table_bytes:12,}  {r.note}".rstrip())
        return "\n".join(lines)


def convert_layer(
    name: str, layer: torch.nn.Module, config: recipes.Maddness, inputs: list[torch.Tensor]
) -> tuple[MaddnessLookup, LayerReport]:
    """Fit and build the replacement of one layer."""
    started = time.perf_counter()
    rows, weights, bias, build = CONVERTERS[type(layer)](layer, inputs, config)
    options, note = config.estimator_options(), ""
    if config.ncodebooks > rows.shape[1]:
        options["ncodebooks"] = rows.shape[1]
        note = f"ncodebooks lowered from {config.ncodebooks} to the layer's {rows.shape[1]} columns"
    estimator = Maddness(**options).fit(rows, weights, bias)
    replacement = build(estimator)
    error, norm = 0.0, 0.0
    for first in range(0, len(rows), 4096):
        block = rows[first : first + 4096]
        exact = block @ weights + (0.0 if bias is None else bias)
        error += float(np.square(estimator.predict(block) - exact).sum())
        norm += float(np.square(exact).sum())
    report = LayerReport(
        name=name,
        method=config.method,
        in_features=replacement.in_features,
        out_features=replacement.out_features,
        ncodebooks=replacement.ncodebooks,
        nprototypes=replacement.nprototypes,
        relative_error=float(np.sqrt(error / norm)) if norm else float(error > 0),
        rows=len(rows),
        table_bytes=replacement.table_bytes(),
        weight_bytes=_weight_bytes(layer),
        seconds=time.perf_counter() - started,
        note=note,
    )
    parameter = next(layer.parameters())
    return replacement.to(parameter.device), report


def _linear_problem(
    layer: torch.nn.Linear, inputs: list[torch.Tensor], config: recipes.Maddness
) -> tuple[Any, ...]:
    """Return rows, B, bias and the builder of the replacement of a linear layer."""
    parts = [linear_rows(x, layer.in_features, None, None) for x in inputs if x.numel()]
    rows = _thin(parts, config)
    return rows, *linear_weights(layer), MaddnessLinear.from_estimator


def _conv_problem(
    layer: torch.nn.Conv2d, inputs: list[torch.Tensor], config: recipes.Maddness
) -> tuple[Any, ...]:
    """Return rows, B, bias and the builder of the replacement of a convolution."""
    geometry = conv_geometry(layer)
    each = -(
        -config.max_rows // max(1, len(inputs))
    )  # thinned per call first: patches outnumber pixels
    parts = [
        conv_rows(x, layer.in_channels, geometry, max(each, 1), config.random_state + call)
        for call, x in enumerate(inputs)
        if x.numel()
    ]
    rows = _thin(parts, config)

    def build(estimator: Maddness) -> MaddnessConv2d:
        return MaddnessConv2d.from_estimator(estimator, layer.in_channels, **geometry)

    return rows, *conv_weights(layer), build


CONVERTERS: dict[type[torch.nn.Module], Callable[..., tuple[Any, ...]]] = {
    torch.nn.Linear: _linear_problem,
    torch.nn.Conv2d: _conv_problem,
}


def _thin(parts: list[np.ndarray], config: recipes.Maddness) -> np.ndarray:
    """Join ``parts`` and keep at most ``max_rows`` rows, drawn without replacement."""
    if not parts:
        raise ConvertError(
            "no rows reach the layer", where="convert", fix="pass calibration inputs that reach it"
        )
    rows = np.concatenate(parts)
    if len(rows) <= config.max_rows:
        return rows
    keep = np.random.default_rng(config.random_state).choice(
        len(rows), config.max_rows, replace=False
    )
    return rows[np.sort(keep)]


def _weight_bytes(layer: torch.nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in layer.parameters())


def exact_report(name: str, layer: torch.nn.Module) -> LayerReport:
    """Return the report of a layer that stays as it is."""
    weight = next(layer.parameters())
    outputs, inputs = weight.shape[0], weight[0].numel()
    return LayerReport(name, "exact", inputs, outputs, 0, 0, 0.0, 0, 0, _weight_bytes(layer), 0.0)
