"""Layer swap: a trained model's layers become look-ups, one after the other, as a recipe says."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from lutcc import recipes
from lutcc.errors import ConvertError, LutccError, suggest
from lutcc.fit import Maddness
from lutcc.nn import MaddnessConv2d, MaddnessLinear
from lutcc.nn.calibration import conv_rows, linear_rows
from lutcc.nn.conv import conv_geometry, conv_weights
from lutcc.nn.linear import linear_weights
from lutcc.nn.lookup import MaddnessLookup

Progress: TypeAlias = Callable[[int, int, str], None]


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
        head = f"{'layer':24} {'method':9} {'D':>5} {'M':>5} {'C':>4} {'K':>4} {'error':>8} {'table bytes':>12}  note"
        lines = [
            f"{r.name:24} {r.method:9} {r.in_features:5} {r.out_features:5} {r.ncodebooks:4} {r.nprototypes:4} "
            f"{r.relative_error:8.4f} {r.table_bytes:12,}  {r.note}".rstrip()
            for r in self.layers
        ]
        return "\n".join([head, *lines])


def convert(
    model: torch.nn.Module,
    recipe: Mapping[str, Any] | str | Path,
    calibration: Any = None,
    *,
    progress: Progress | None = None,
) -> torch.nn.Module:
    """Return a copy of ``model`` in eval mode whose layers are replaced as ``recipe`` says.

    Layers are converted in the order in which the model runs them. Each is fitted on what reaches
    it through the layers already converted, with the product of its exact weights as the target, so
    that later layers see the errors of earlier ones. Linear layers and one-group 2-D convolutions
    can be converted.

    Parameters
    ----------
    model
        Any module; it is not changed.
    recipe
        {module name pattern: config}, or the path of a TOML or JSON file of the same, see
        :mod:`lutcc.recipes`. A number of codebooks beyond a layer's columns is lowered to them,
        with a note in the report.
    calibration
        Typical inputs: a tensor or array, or batches of them (list, DataLoader, generator). Of a
        batch that is a tuple, the model gets as many entries as its ``forward`` requires (so labels
        are dropped); of a dictionary, all as keywords.
    progress
        Called as ``progress(done, total, layer name)`` before each fit and once at the end.

    Returns
    -------
    The converted model; its attribute ``conversion_report`` is a :class:`ConversionReport`.

    Raises
    ------
    ConvertError
        If a pattern matches no layer that can be converted (the nearest names are suggested), a
        layer is never run, the calibration is missing or empty, or a fit fails; the message names
        the layer.
    RecipeError
        If the recipe is malformed.

    Notes
    -----
    Source: ITLUMM, section 2.3 (layer by layer, first to last), without its fine-tuning.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 30), torch.nn.ReLU(), torch.nn.Linear(30, 10))
    >>> converted = convert(model, {"*": recipes.Maddness(ncodebooks=16)}, torch.rand(500, 64))
    >>> [type(layer).__name__ for layer in converted]
    ['MaddnessLinear', 'ReLU', 'MaddnessLinear']
    """
    if not isinstance(model, torch.nn.Module):
        raise ConvertError(
            f"the model is a {type(model).__name__}", where="convert", fix="pass a torch.nn.Module"
        )
    configs = recipes.read_recipe(recipe)
    converted = copy.deepcopy(model).eval()
    plan = _plan(converted, configs)
    inexact = {name for name, config in plan.items() if not isinstance(config, recipes.Exact)}
    reports: list[LayerReport] = []
    with torch.no_grad():
        batches = _batches(converted, calibration) if inexact else []
        order = _execution_order(converted, list(plan), batches, inexact)
        for done, name in enumerate(order):
            if progress:
                progress(done, len(order), name)
            layer, config = converted.get_submodule(name), plan[name]
            if isinstance(config, recipes.Exact):
                reports.append(_exact_report(name, layer))
                continue
            try:
                replacement, report = _convert_layer(
                    name, layer, config, _inputs_of(converted, layer, batches)
                )
            except LutccError as error:
                raise ConvertError(error.what, where=f"layer {name!r}", fix=error.fix) from error
            converted = _replace(converted, layer, replacement)
            reports.append(report)
        if progress:
            progress(len(order), len(order), "")
    converted.conversion_report = ConversionReport(tuple(reports))  # pyright: ignore[reportAttributeAccessIssue]
    return converted


def _plan(model: torch.nn.Module, configs: dict[str, recipes.Config]) -> dict[str, recipes.Config]:
    """Return {layer name: config} for every convertible layer that a pattern matches; the last
    match counts."""
    modules = dict(model.named_modules(remove_duplicate=False))
    layers = {name: module for name, module in modules.items() if type(module) in _CONVERTERS}
    plan: dict[int, tuple[str, recipes.Config]] = {}
    for pattern, config in configs.items():
        matches = [name for name in layers if fnmatchcase(name, pattern)]
        if not matches:
            others = [name for name in modules if fnmatchcase(name, pattern)]
            if others:
                kinds = sorted({type(modules[name]).__name__ for name in others})
                what = f"{pattern!r} matches only {', '.join(kinds)}, which cannot be converted"
                fix = f"name Linear or Conv2d layers; {suggest(pattern, layers)}"
            else:
                what, fix = f"no layer of the model is called {pattern!r}", suggest(pattern, layers)
            raise ConvertError(what, where=f"recipe[{pattern}]", fix=fix)
        for name in matches:  # a module registered under two names is one layer
            first = plan.get(id(layers[name]), (name, config))[0]
            plan[id(layers[name])] = (first, config)
    return dict(plan.values())


def _batches(
    model: torch.nn.Module, calibration: Any
) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Return the calibration as a list of (args, kwargs) on the model's device."""
    if calibration is None:
        raise ConvertError(
            "look-ups are fitted on data, but calibration is None",
            where="convert",
            fix="pass typical inputs",
        )
    first = next(iter(model.parameters()), None)
    device = torch.device("cpu") if first is None else first.device

    def prepare(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(np.ascontiguousarray(value))
        if not isinstance(value, torch.Tensor):
            return value
        return value.to(
            device=device, dtype=torch.float32 if value.dtype == torch.float64 else value.dtype
        )

    single = isinstance(calibration, torch.Tensor | np.ndarray | Mapping)
    if not single and not isinstance(calibration, Iterable):
        raise ConvertError(
            f"calibration of type {type(calibration).__name__}",
            where="convert",
            fix="pass a tensor or batches of tensors",
        )
    batches: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    for batch in [calibration] if single else calibration:
        if isinstance(batch, Mapping):
            batches.append(((), {key: prepare(value) for key, value in batch.items()}))
        elif isinstance(batch, tuple | list):
            batches.append(
                (tuple(prepare(value) for value in batch[: _required_arguments(model)]), {})
            )
        elif isinstance(batch, torch.Tensor | np.ndarray):
            batches.append(((prepare(batch),), {}))
        else:
            raise ConvertError(
                f"a calibration batch is a {type(batch).__name__}",
                where="convert",
                fix="pass tensors, tuples or dictionaries",
            )
    sizes = [
        value.shape[0]
        for args, kwargs in batches
        for value in (*args, *kwargs.values())
        if _has_rows(value)
    ]
    if not sizes or not sum(sizes):
        raise ConvertError(
            "the calibration has no rows", where="convert", fix="pass typical inputs of the model"
        )
    return batches


def _has_rows(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() > 0


def _required_arguments(model: torch.nn.Module) -> int:
    """Return how many positional arguments ``forward`` cannot do without, at least one."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(model.forward).parameters.values()
    return max(1, sum(p.kind in kinds and p.default is inspect.Parameter.empty for p in parameters))


def _execution_order(
    model: torch.nn.Module,
    names: list[str],
    batches: list[tuple[tuple[Any, ...], dict[str, Any]]],
    needed: set[str],
) -> list[str]:
    """Return ``names`` in the order of their first call; layers that never run must be exact and
    come last."""
    order: list[str] = []
    handles = []
    for name in names:

        def note(module: torch.nn.Module, args: Any, name: str = name) -> None:
            if name not in order:
                order.append(name)

        handles.append(model.get_submodule(name).register_forward_pre_hook(note))
    try:
        for args, kwargs in batches:
            _run(model, args, kwargs)
            if len(order) == len(names):
                break
    finally:
        for handle in handles:
            handle.remove()
    idle = [name for name in names if name not in order]
    for name in idle:
        if name in needed:
            raise ConvertError(
                "the model does not call this layer as a module on the calibration data, so there is nothing to fit it on",
                where=f"layer {name!r}",
                fix="take it out of the recipe (method 'exact'), or calibrate with inputs that reach it",
            )
    return order + idle


def _run(model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    try:
        model(*args, **kwargs)
    except (RuntimeError, TypeError, ValueError) as error:
        shapes = [tuple(v.shape) for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)]
        raise ConvertError(
            f"the model fails on a calibration batch of shapes {shapes}: {error}",
            where="convert",
            fix="pass inputs that the model itself accepts",
        ) from error


def _inputs_of(
    model: torch.nn.Module,
    layer: torch.nn.Module,
    batches: list[tuple[tuple[Any, ...], dict[str, Any]]],
) -> list[torch.Tensor]:
    """Return what ``layer`` receives, one float32 CPU tensor per call."""
    received: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        value = args[0] if args else next(iter(kwargs.values()))
        received.append(value.detach().to(device="cpu", dtype=torch.float32, copy=True))

    handle = layer.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        for args, kwargs in batches:
            _run(model, args, kwargs)
    finally:
        handle.remove()
    return received


def _convert_layer(
    name: str, layer: torch.nn.Module, config: recipes.Maddness, inputs: list[torch.Tensor]
) -> tuple[MaddnessLookup, LayerReport]:
    """Fit and build the replacement of one layer."""
    started = time.perf_counter()
    rows, weights, bias, build = _CONVERTERS[type(layer)](layer, inputs, config)
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


_CONVERTERS: dict[type[torch.nn.Module], Callable[..., tuple[Any, ...]]] = {
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


def _exact_report(name: str, layer: torch.nn.Module) -> LayerReport:
    weight = next(layer.parameters())
    outputs, inputs = weight.shape[0], weight[0].numel()
    return LayerReport(name, "exact", inputs, outputs, 0, 0, 0.0, 0, 0, _weight_bytes(layer), 0.0)


def _replace(
    model: torch.nn.Module, layer: torch.nn.Module, replacement: torch.nn.Module
) -> torch.nn.Module:
    """Put ``replacement`` wherever ``model`` holds ``layer``; return the model (the replacement if
    it was the layer)."""
    if model is layer:
        return replacement
    for parent in model.modules():
        for attribute, child in list(_children(parent)):
            if child is layer:
                setattr(parent, attribute, replacement)
    return model


def _children(module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module | None]]:
    yield from module._modules.items()
