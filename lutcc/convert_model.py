"""Layer swap: a trained model's layers are replaced, one after the other, as a recipe says."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.export import ExportedProgram

from lutcc import recipes
from lutcc.errors import ConvertError, LutccError
from lutcc.frontend.exported_layers import as_module
from lutcc.nn.conversion import ConversionReport, LayerReport, convert_layer, exact_report
from lutcc.nn.conversion_codebook import CodebookConversion
from lutcc.nn.conversion_dense import dense_layer
from lutcc.nn.conversion_plan import Step, plan_conversion
from lutcc.nn.fitted_layers import FittedLayers
from lutcc.nn.fused_paths import leave_fused_paths
from lutcc.nn.paired_rows import Run

Progress: TypeAlias = Callable[[int, int, str], None]
Batch: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
_UNFITTED = (recipes.Exact, recipes.Sampled)


def convert(
    model: torch.nn.Module | ExportedProgram,
    recipe: Mapping[str, Any] | str | Path,
    calibration: Any = None,
    *,
    progress: Progress | None = None,
    kept: FittedLayers | None = None,
) -> torch.nn.Module:
    """Return a copy of ``model`` whose layers are replaced as ``recipe`` says.

    Layers are converted in the order in which the model runs them. Each is fitted on what reaches
    it through the layers already converted, with the outputs of the exact layer as the target, so
    that later layers see the errors of earlier ones. The target of ``Maddness(target="network")``
    is what the layer gives in ``model`` itself, so that later layers mend some of these errors.

    ``Maddness`` converts Linear layers and one-group 2-D convolutions. ``LookupFFN`` converts
    feed-forward blocks: ``Sequential(Linear, activation, Linear)`` and any other module that
    consists of two Linear layers (or three gated ones) and nothing else with parameters; the
    ``linear1`` and ``linear2`` of torch's transformer encoder and decoder layers, and the
    ``intermediate.dense`` and ``output.dense`` of the BERT family, of which the layer is named.
    There the look-ups take the first one's place, and identities those of the activation, the inner
    drop-out and the second; torch's fused path for encoder layers is switched off for that layer.
    ``Codebook`` compresses the weights of Linear layers, 2-D convolutions and Embeddings; with
    calibration they are learnt so that the layer's outputs come near to those of the untouched
    model, else from the weights alone, as those of embeddings and grouped convolutions always are.
    A layer that is named by a wildcard but cannot be compressed stays exact, and the report says
    why. Layers that share their weights share the compressed ones, or stay exact together.
    ``Exact`` leaves layers as they are; with ``compute`` it makes Linear layers
    :class:`lutcc.nn.DenseLinear` and 2-D convolutions :class:`lutcc.nn.DenseConv2d`, without data.
    Of layers that share their weights each then has its own.
    ``Sampled`` makes Linear layers and 2-D convolutions compute from a sample while they are
    trained; it needs no calibration, and changes the options of layers that are sampled already.

    The copy is in eval mode, unless the recipe has ``Sampled`` and ``Exact`` only: then every
    module keeps its mode. Make the optimizer from the copy's parameters.

    Parameters
    ----------
    model
        Any module; it is not changed. Of an exported program the layers are found again first,
        see :func:`lutcc.frontend.layers_of`.
    recipe
        {module name pattern: config}, or the path of a TOML or JSON file of the same, see
        :mod:`lutcc.recipes`. A number of codebooks beyond a layer's columns is lowered to them,
        with a note in the report. The last pattern that matches a layer, or a block around it,
        counts.
    calibration
        Typical inputs: a tensor or array, or batches of them (list, DataLoader, generator). Of a
        batch that is a tuple, the model gets as many entries as its ``forward`` requires (so labels
        are dropped); of a dictionary, all as keywords. None, if the recipe has no ``Maddness``,
        starts LookupFFN blocks afresh (the model must then be trained), and compresses without
        data.
    progress
        Called as ``progress(done, total, layer name)`` before each fit and once at the end.
    kept
        Where layers that ``Codebook`` has fitted are kept, so that the same conversion can go on
        after an interruption; see :mod:`lutcc.nn.fitted_layers`.

    Returns
    -------
    The converted model; its attribute ``conversion_report`` is a :class:`ConversionReport`.

    Raises
    ------
    ConvertError
        If a pattern matches nothing that its config can convert (the nearest names are suggested),
        a layer is never run, the calibration is missing or empty, or a fit fails; the message names
        the layer.
    RecipeError
        If the recipe is malformed.

    Notes
    -----
    Source: ITLUMM, section 2.3 (layer by layer, first to last), without its fine-tuning, which
    ``lutcc.convert_layerwise`` adds; JLCM, section 3.3 (Codebook: inputs from the compressed model,
    outputs of the exact one).

    Examples
    --------
    >>> first, last = torch.nn.Linear(64, 30), torch.nn.Linear(30, 10)
    >>> model = torch.nn.Sequential(first, torch.nn.ReLU(), last)
    >>> converted = convert(model, {"*": recipes.Maddness(ncodebooks=16)}, torch.rand(500, 64))
    >>> [type(layer).__name__ for layer in converted]
    ['MaddnessLinear', 'ReLU', 'MaddnessLinear']
    >>> convert(model, {"0": recipes.Sampled(sample_ratio=0.5)}).training
    True
    """
    model = as_module(model)
    if not isinstance(model, torch.nn.Module):
        raise ConvertError(
            f"the model is a {type(model).__name__}", where="convert", fix="pass a torch.nn.Module"
        )
    configs = recipes.read_recipe(recipe)
    converted = copy.deepcopy(model)
    if any(not isinstance(config, _UNFITTED) for config in configs.values()):
        converted.eval()
    plan = plan_conversion(converted, configs)
    fitted = [step for step in plan if not isinstance(step.config, _UNFITTED)]
    afresh = calibration is None and all(
        isinstance(step.config, recipes.LookupFFN | recipes.Codebook) for step in fitted
    )
    reports: list[LayerReport] = []
    with torch.no_grad(), _plain_transformers(), _evaluated(model):
        batches = _batches(converted, calibration) if fitted and not afresh else []
        order, idle = (plan, []) if afresh else _execution_order(converted, plan, batches)
        codebooks = CodebookConversion(converted, model, plan, kept)
        codebooks.fold(_example(batches))
        for done, step in enumerate([*order, *idle]):
            if progress:
                progress(done, len(plan), step.name)
            if isinstance(step.config, recipes.Exact) and step.config.compute is None:
                reports.append(exact_report(step.name, step.module, step.block))
                continue
            needed = batches and step not in idle
            try:
                if isinstance(step.config, recipes.Exact):
                    made, report = dense_layer(step)
                    converted = converted if made is None else _install(converted, step, made)
                    reports.append(report)
                    continue
                if isinstance(step.config, recipes.Codebook):
                    runs = [_runs(m, batches) for m in (converted, codebooks.exact)]
                    reports.append(codebooks.convert(step, *(runs if needed else (None, None))))
                    continue
                inputs = _inputs_of(converted, step.entry, batches) if needed else None
                config, wanted = step.config, None
                if isinstance(config, recipes.Maddness) and config.target == "network":
                    wanted = _inputs_of(model, model.get_submodule(step.name), batches)
                replacement, report = convert_layer(
                    step.name, step.module, step.config, inputs, step.block, wanted
                )
            except LutccError as error:
                raise ConvertError(
                    error.what, where=f"layer {step.name!r}", fix=error.fix
                ) from error
            converted = _install(converted, step, replacement)
            reports.append(report)
        if progress:
            progress(len(plan), len(plan), "")
        reports += codebooks.uncovered(configs)
        converted = codebooks.install(converted)
    vars(converted)["conversion_report"] = ConversionReport(
        tuple(reports), codebooks.exact_weights(converted)
    )
    return converted


@contextlib.contextmanager
def _evaluated(model: torch.nn.Module) -> Iterator[None]:
    """Let ``model`` run in eval mode for a while, and change nothing else of it."""
    modes = {module: module.training for module in model.modules()}
    try:
        for module in modes:
            module.training = False
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextlib.contextmanager
def _plain_transformers() -> Iterator[None]:
    """Run torch's transformer layers module by module, so that each sees its input."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _batches(model: torch.nn.Module, calibration: Any) -> list[Batch]:
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
    batches: list[Batch] = []
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
    model: torch.nn.Module, plan: list[Step], batches: list[Batch]
) -> tuple[list[Step], list[Step]]:
    """Return ``plan`` in the order of the first calls, and the steps never called.

    Raises
    ------
    ConvertError
        If one of these needs data.
    """
    order: list[Step] = []
    handles = []
    for step in plan:

        def note(module: torch.nn.Module, args: Any, step: Step = step) -> None:
            if step not in order:
                order.append(step)

        handles.append(step.entry.register_forward_pre_hook(note))
    try:
        for args, kwargs in batches:
            _run(model, args, kwargs)
            if len(order) == len(plan):
                break
    finally:
        for handle in handles:
            handle.remove()
    idle = [step for step in plan if step not in order]
    for step in idle:
        if not isinstance(step.config, (*_UNFITTED, recipes.Codebook)):
            raise ConvertError(
                "the model does not call this layer as a module on the calibration data, "
                "so there is nothing to fit it on",
                where=f"layer {step.name!r}",
                fix="make it 'exact' in the recipe, or calibrate with inputs that reach it",
            )
    return order, idle


def _example(batches: list[Batch]) -> Any:
    """Return inputs to trace a model with; None if there are none."""
    if not batches:
        return None
    args, kwargs = batches[0]
    return kwargs or args


def _runs(model: torch.nn.Module, batches: list[Batch]) -> Run:
    return [partial(_run, model, args, kwargs) for args, kwargs in batches]


def _run(model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    try:
        model(*args, **kwargs)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        shapes = [tuple(v.shape) for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)]
        raise ConvertError(
            f"the model fails on a calibration batch of shapes {shapes}: {error}",
            where="convert",
            fix="pass inputs that the model itself accepts",
        ) from error


def _inputs_of(
    model: torch.nn.Module,
    layer: torch.nn.Module,
    batches: list[Batch],
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


def _install(model: torch.nn.Module, step: Step, replacement: torch.nn.Module) -> torch.nn.Module:
    """Put ``replacement`` in the place of a layer or block; return what is now the model."""
    if step.block is None or step.block.install is None:
        model = _replace(model, step.module, replacement)
    else:
        step.block.install(replacement.train(step.module.training))
    leave_fused_paths(model)
    return model


def _replace(
    model: torch.nn.Module, layer: torch.nn.Module, replacement: torch.nn.Module
) -> torch.nn.Module:
    """Put ``replacement`` wherever ``model`` holds ``layer``; return what is now the model."""
    if model is layer:
        return replacement
    for parent in model.modules():
        for attribute, child in list(parent._modules.items()):
            if child is layer:
                setattr(parent, attribute, replacement)
    return model
