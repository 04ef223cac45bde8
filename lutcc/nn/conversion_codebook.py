"""Layers of a model become layers written with codebooks, and the report of each."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, TypeAlias, cast

import numpy as np
import torch

from lutcc import recipes
from lutcc.codebook_weights import CodebookWeights
from lutcc.errors import InputError
from lutcc.nn.codebook import CodebookLayer
from lutcc.nn.codebook_conv import CodebookConv2d, conv_options
from lutcc.nn.codebook_embedding import CodebookEmbedding, embedding_options
from lutcc.nn.codebook_fitting import fit_matrix
from lutcc.nn.codebook_linear import CodebookLinear
from lutcc.nn.conversion import LayerReport, exact_report, weight_bytes
from lutcc.nn.conversion_folding import NOT, fold_neurons
from lutcc.nn.conversion_plan import Step
from lutcc.nn.fitted_layers import FittedLayer, FittedLayers, digest
from lutcc.nn.fused_paths import leave_fused_paths
from lutcc.nn.paired_rows import Rows, Run, record_inputs, record_outputs

Matrix: TypeAlias = torch.nn.Linear | torch.nn.Conv2d | torch.nn.Embedding

_ROWS_AT_ONCE = 4096


class CodebookConversion:
    """The steps of one conversion that write weights with codebooks.

    Until :meth:`install`, the layers stay dense, and hold the weights that the codebooks stand
    for: what comes later is fitted on that, and runs at the speed of the dense model.

    Parameters
    ----------
    model
        The copy that is converted.
    exact
        The same model, untouched, whose layers say what the outputs should be.
    plan
        All steps of the conversion.
    kept
        Where fitted layers are kept, and taken from if they are there.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        exact: torch.nn.Module,
        plan: list[Step],
        kept: FittedLayers | None = None,
    ) -> None:
        self.model, self.exact, self.plan, self.kept = model, exact, plan, kept
        self._ties = _tied_steps(model, plan)
        self._made: list[tuple[torch.nn.Module, CodebookLayer]] = []
        self._names: dict[int, str] = {}
        self._folded: dict[str, str] = {}

    def fold(self, example: Any) -> None:
        """Bring rows into the order that compression wants, where that costs nothing.

        Parameters
        ----------
        example
            Inputs to trace the model with, or None.
        """
        self._folded = fold_neurons(self.model, self.plan, example)
        if not all(note.startswith(NOT) for note in self._folded.values()):
            self.exact = copy.deepcopy(self.model)

    def convert(self, step: Step, run: Run | None, run_exact: Run | None) -> LayerReport:
        """Fit one layer.

        Parameters
        ----------
        step
            The layer and its config.
        run, run_exact
            Run the model, and the exact one, on the calibration data, by batches; None: there is
            none, or the layer is not called.

        Raises
        ------
        LutccError
            If the weights are not finite; or if the layer is named without wildcards, but cannot
            be compressed.
        """
        started = time.perf_counter()
        layer, config = cast(Matrix, step.module), cast(recipes.Codebook, step.config)
        shared = self._ties.get(id(layer.weight))
        if isinstance(shared, str):
            return _left(step, f"left exact: its weights are those of {shared}, too")
        first = next((made for old, made in self._made if _weight(old) is layer.weight), None)
        if first is not None:
            return self._share(step, first)
        try:
            make = _maker(layer, config)
            fitted = self._fitted(step, layer, config, run, run_exact)
        except TooFar as problem:
            if not step.by_wildcard:
                raise
            return _left(step, f"left exact: {problem.what}")
        replacement = make(fitted.weights)
        self._keep(step, layer, replacement)
        with torch.no_grad():
            dense = torch.from_numpy(fitted.weights.dequantize()).reshape(layer.weight.shape)
            layer.weight.copy_(dense)
        footprint = replacement.footprint()
        notes = [] if fitted.rows else ["without data: the error is the weights'"]
        if shared:
            notes.append(f"shared by {len(shared)} layers")
        if self._folded.get(step.name):
            notes.append(self._folded[step.name])
        if fitted.note:
            notes.append(fitted.note)
        return LayerReport(
            name=step.name,
            method=config.method,
            in_features=replacement.columns,
            out_features=replacement.rows,
            ncodebooks=max(replacement.codebooks.shape[0], replacement.scales.shape[0]),
            nprototypes=2**replacement.bits,
            relative_error=fitted.error,
            rows=fitted.rows,
            table_bytes=-(-footprint.bits // 8),
            weight_bytes=weight_bytes(layer),
            seconds=time.perf_counter() - started,
            note="; ".join(notes),
            footprint=footprint,
        )

    def uncovered(self, configs: Mapping[str, recipes.Config]) -> list[LayerReport]:
        """Return a report per module that holds weights, and that patterns name in vain."""
        patterns = [key for key, config in configs.items() if isinstance(config, recipes.Codebook)]
        covered = {id(m) for step in self.plan for m in step.module.modules()}
        reports = []
        for name, module in self.model.named_modules():
            matrices = [p for p in module.parameters(recurse=False) if p.dim() > 1]
            named = any(fnmatchcase(name, pattern) for pattern in patterns)
            if matrices and named and id(module) not in covered:
                note = f"left exact: a {type(module).__name__} is of no kind that is compressed"
                reports.append(exact_report(name, module).with_note(note))
        return reports

    def install(self, model: torch.nn.Module) -> torch.nn.Module:
        """Put the layers in their places in ``model``; return what is now the model."""
        places: dict[int, list[tuple[torch.nn.Module, str]]] = {}
        for parent in model.modules():
            for name, child in parent._modules.items():
                places.setdefault(id(child), []).append((parent, name))
        for layer, replacement in self._made:
            if layer is model:
                return replacement
            for parent, name in places[id(layer)]:
                setattr(parent, name, replacement)
        leave_fused_paths(model)
        return model

    def exact_weights(self, model: torch.nn.Module) -> int:
        """Return how many parameters of the converted model are not written with codebooks."""
        if not self._made:
            return 0
        stored = {
            id(parameter)
            for _, made in self._made
            for parameter in (made.holder.codebooks, made.holder.scales)
        }
        return sum(p.numel() for p in model.parameters() if id(p) not in stored)

    def _keep(self, step: Step, layer: Matrix, replacement: CodebookLayer) -> None:
        if not isinstance(layer, torch.nn.Embedding):
            replacement.bias = cast("torch.nn.Parameter | None", layer.bias)  # it may be shared
        self._made.append((layer, replacement.eval()))
        self._names[id(replacement)] = step.name

    def _share(self, step: Step, first: CodebookLayer) -> LayerReport:
        """Return the report of a layer that uses a matrix compressed before."""
        layer, config = cast(Matrix, step.module), cast(recipes.Codebook, step.config)
        blank = CodebookWeights.of(
            np.zeros((first.rows, first.columns), np.uint8), np.zeros((1, 4)), bits=2
        )
        replacement = _maker(layer, config)(blank)
        replacement.tie(first)
        self._keep(step, layer, replacement)
        report = exact_report(step.name, layer)
        return LayerReport(
            name=step.name,
            method=config.method,
            in_features=report.in_features,
            out_features=report.out_features,
            ncodebooks=max(first.codebooks.shape[0], first.scales.shape[0]),
            nprototypes=2**first.bits,
            relative_error=None,
            rows=0,
            table_bytes=0,
            weight_bytes=report.weight_bytes,
            seconds=0.0,
            note=f"uses the matrix of {self._names[id(first)]!r}",
        )

    def _fitted(
        self,
        step: Step,
        layer: Matrix,
        config: recipes.Codebook,
        run: Run | None,
        run_exact: Run | None,
    ) -> FittedLayer:
        """Return the compressed matrix: the one that was kept, or a new one."""
        if self.kept is None:
            return self._fit(step, layer, config, run, run_exact)
        source = digest(layer.weight)
        found = self.kept.load(step.name, source)
        if found is None:
            found = self._fit(step, layer, config, run, run_exact)
            self.kept.save(step.name, source, found)
        return found

    def _fit(
        self,
        step: Step,
        layer: Matrix,
        config: recipes.Codebook,
        run: Run | None,
        run_exact: Run | None,
    ) -> FittedLayer:
        """Compress the matrix."""
        options = config.estimator_options("scales" if _is_conv(layer) else "codebooks")
        if isinstance(layer, torch.nn.Embedding):
            options["outliers"] = 0.0
        if self._folded.get(step.name) == "":
            options["reorder"] = "never"
        _check_reach(layer, options)
        pair = None
        if run is not None and run_exact is not None and _has_rows(layer):
            pair = self._rows(step, cast(torch.nn.Linear | torch.nn.Conv2d, layer), run, run_exact)
        if pair is None:
            fitted = fit_matrix(layer, None, None, **{**options, "weighting": "none"})
            exact = layer.weight.detach().flatten(1).float().cpu().numpy()
            error = _ratio([(fitted.weights_.dequantize(), exact)])
            return FittedLayer(fitted.weights_, 0, error, fitted.note_ or "")
        rows, targets = pair
        fitted = fit_matrix(layer, rows, targets, **options)
        matrix = fitted.weights_.dequantize()
        bias = None if isinstance(layer, torch.nn.Embedding) else layer.bias
        offset = np.float32(0) if bias is None else bias.detach().float().cpu().numpy()
        slices = [
            slice(start, start + _ROWS_AT_ONCE) for start in range(0, len(rows), _ROWS_AT_ONCE)
        ]
        error = _ratio((rows[part] @ matrix.T + offset, targets[part]) for part in slices)
        return FittedLayer(fitted.weights_, len(rows), error, fitted.note_ or "")

    def _rows(
        self,
        step: Step,
        layer: torch.nn.Linear | torch.nn.Conv2d,
        run: Run,
        run_exact: Run,
    ) -> tuple[Rows, Rows]:
        """Return (N, K) rows that reach the layer, and (N, M) what the exact model makes of them.

        Raises
        ------
        ConvertError
            If none do.
        """
        config = cast(recipes.Codebook, step.config)
        sample = record_inputs(layer, run, config.max_rows, config.random_state)
        twin = cast(
            torch.nn.Linear | torch.nn.Conv2d,
            self.exact.get_submodule(step.name),
        )
        wanted = record_outputs(twin, run_exact, config.max_rows, config.random_state)
        if wanted.counts == sample.counts:
            return sample.rows, wanted.rows
        # the models took different ways (experts, say): ask for the layer's own outputs
        weight = twin.weight.detach().flatten(1).float().cpu().numpy()
        offset = np.float32(0) if twin.bias is None else twin.bias.detach().float().cpu().numpy()
        return sample.rows, sample.rows @ weight.T + offset


class TooFar(InputError):
    """A layer that cannot be compressed, or not so far."""


def _tied_steps(model: torch.nn.Module, plan: list[Step]) -> dict[int, str | list[str]]:
    """Return, for weights that several modules hold, the steps that do; or who else does."""
    named = {id(step.module) for step in plan if isinstance(step.config, recipes.Codebook)}
    holders: dict[int, dict[int, tuple[str, bool]]] = {}
    for name, module in model.named_modules():
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                whole = id(module) in named and attribute == "weight"
                holders.setdefault(id(parameter), {})[id(module)] = (name, whole)
    ties: dict[int, str | list[str]] = {}
    for key, found in holders.items():
        if len(found) > 1 and any(whole for _, whole in found.values()):
            others = [repr(name) for name, whole in found.values() if not whole]
            ties[key] = ", ".join(others) if others else [name for name, _ in found.values()]
    return ties


def _maker(layer: Matrix, config: recipes.Codebook) -> Callable[[CodebookWeights], CodebookLayer]:
    """Return what builds the replacement of ``layer``."""
    if isinstance(layer, torch.nn.Embedding):
        try:
            options = embedding_options(layer)
        except InputError as error:
            raise TooFar(error.what, where=error.where, fix=error.fix) from error
        return lambda weights: CodebookEmbedding.from_weights(
            weights, compute=config.compute, **options
        )
    device, dtype, bias = layer.weight.device, layer.weight.dtype, layer.bias
    if isinstance(layer, torch.nn.Conv2d):
        geometry = conv_options(layer)
        return lambda weights: CodebookConv2d.from_weights(
            weights, bias, compute=config.compute, **geometry
        )
    return lambda weights: CodebookLinear.from_weights(
        weights, bias, compute=config.compute, device=device, dtype=dtype
    )


def _check_reach(layer: Matrix, options: dict[str, object]) -> None:
    """Raise :class:`TooFar` if the layer cannot be compressed to its goal."""
    from lutcc.fit.codebook_plan import plan_codebooks

    weight = layer.weight
    rows, columns = weight.shape[0], weight[0].numel()
    outliers = round(cast(float, options["outliers"]) * rows * columns)
    try:
        plan_codebooks(
            cast(float, options["alpha"]),
            rows,
            columns,
            cast(str, options["mode"]),
            outlier_bits=32 * (rows + 1) + 48 * outliers if outliers else 0,
        )
    except InputError as error:
        raise TooFar(error.what, where=error.where, fix=error.fix) from error


def _left(step: Step, note: str) -> LayerReport:
    return exact_report(step.name, step.module).with_note(note)


def _weight(layer: torch.nn.Module) -> torch.Tensor:
    return cast(Matrix, layer).weight


def _is_conv(layer: torch.nn.Module) -> bool:
    return isinstance(layer, torch.nn.Conv2d)


def _has_rows(layer: Matrix) -> bool:
    """Tell whether rows of inputs can be learnt from: groups see different columns."""
    if isinstance(layer, torch.nn.Conv2d):
        return layer.groups == 1
    return isinstance(layer, torch.nn.Linear)


def _ratio(pairs: Iterable[tuple[Rows, Rows]]) -> float:
    """Return the norm of the differences over that of what should be."""
    error, norm = 0.0, 0.0
    for found, wanted in pairs:
        error += float(np.square(found - wanted).sum(dtype=np.float64))
        norm += float(np.square(wanted).sum(dtype=np.float64))
    return float(np.sqrt(error / norm)) if norm else float(error > 0)
