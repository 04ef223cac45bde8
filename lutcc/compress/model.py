"""Compress a torch model layer by layer, so that an interrupted run goes on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lutcc import recipes
from lutcc.compress.compress import Progress, as_stored, target_of
from lutcc.compress.stored import Compressed, TensorRecord, join
from lutcc.compress.work import WorkFolder
from lutcc.convert_model import convert
from lutcc.errors import ConvertError
from lutcc.nn.activation_memory import activation_bits
from lutcc.nn.codebook import CodebookLayer
from lutcc.nn.conversion import ConversionReport, LayerReport
from lutcc.nn.fitted_layers import FittedLayer, digest


class _Kept:
    """Fitted layers in a work folder."""

    def __init__(self, work: WorkFolder) -> None:
        self.work = work

    def load(self, name: str, source: str) -> FittedLayer | None:
        weight = f"{name}.weight".lstrip(".")
        record = self.work.record(weight, source)
        if record is None:
            return None
        return FittedLayer(self.work.weights(record), record.rows, record.error, record.note)

    def save(self, name: str, source: str, fitted: FittedLayer) -> None:
        record = TensorRecord.of(
            f"{name}.weight".lstrip("."), fitted.weights.shape, fitted.weights,
            rows=fitted.rows, error=fitted.error, note=fitted.note,
        )  # fmt: skip
        self.work.keep(record, fitted.weights, source)


def compress_model(
    model: torch.nn.Module,
    output: str | Path,
    config: recipes.Codebook | None = None,
    calibration: Any = None,
    *,
    layers: Sequence[str] = ("*",),
    exact: Sequence[str] = (),
    fresh: bool = False,
    progress: Progress | None = None,
) -> tuple[Compressed, torch.nn.Module]:
    """Compress a model with :func:`lutcc.convert`, and write it.

    Parameters
    ----------
    model
        Any module; it is not changed.
    output
        The ``.safetensors`` file to write, or a folder for it.
    config
        What is asked for; alpha 5.33 if not given.
    calibration
        A tensor of typical inputs to learn from; None: from the weights alone.
    layers, exact
        Patterns of layers' names: what is compressed, and what is not after all.
    fresh
        Whether what an interrupted run left is thrown away.
    progress
        Called as ``progress(done, total, layer)``.

    Returns
    -------
    What was written, and the converted model.

    Raises
    ------
    LutccError
        As :func:`lutcc.convert`; and if an interrupted run had other options or another model.

    Examples
    --------
    >>> compress_model(model, "small.safetensors", calibration=x)  # doctest: +SKIP
    """
    config = config or recipes.Codebook()
    target = target_of(output)
    recipe: dict[str, Any] = dict.fromkeys(layers, config)
    recipe |= dict.fromkeys(exact, recipes.Exact())
    options = {**dataclasses.asdict(config), "layers": list(layers), "exact": list(exact)}
    state = {name: digest(t) for name, t in model.state_dict().items()}
    seen = None if calibration is None else digest(torch.as_tensor(np.asarray(calibration)))
    made_of = {"model": _digest_of(state), "calibration": seen}
    work = WorkFolder(target.with_name(target.name + ".partial"), options | made_of, fresh=fresh)
    with work.locked():
        converted = convert(model, recipe, calibration, progress=progress, kept=_Kept(work))
        converted.eval()
        records = _records(model, converted)
        tensors = {}
        for name, tensor in converted.state_dict().items():
            record = records.get(name)
            if record is not None and record.method == "exact":
                records[name], tensor = as_stored(name, tensor, record.note)
            tensors[name] = tensor
        activations = {}
        if calibration is not None:
            first = torch.as_tensor(np.asarray(calibration)[:1])
            activations = {"bits": activation_bits(model, first), "rows": 1}
        made = Compressed(records, options, activations)
        whole = work.path / "whole.safetensors"
        _save(tensors, whole)
        join([whole], target, made.to_metadata())
        work.remove()
    return made, converted


def _records(model: torch.nn.Module, converted: torch.nn.Module) -> dict[str, TensorRecord]:
    """Return what became of each tensor, in the order of the model."""
    report = converted.conversion_report
    assert isinstance(report, ConversionReport)
    by_layer = {f"{layer.name}.weight".lstrip("."): layer for layer in report.layers}
    holders: dict[int, str] = {}
    records: dict[str, TensorRecord] = {}
    stored = set(converted.state_dict())
    for name, tensor in model.state_dict().items():
        owner, _, part = name.rpartition(".")
        layer = converted.get_submodule(owner)
        if isinstance(layer, CodebookLayer) and part == "weight":
            records[name] = _record(name, tensor, layer, by_layer.get(name), holders)
        elif name in stored:
            left = by_layer.get(name)
            note = left.note if left else ""
            records[name] = TensorRecord.exact(name, tuple(tensor.shape), note=note)
    if len(records) < 1:
        raise ConvertError("the model has no tensors", where="compress", fix="name another")
    return records


def _record(
    name: str,
    tensor: torch.Tensor,
    layer: CodebookLayer,
    report: LayerReport | None,
    holders: dict[int, str],
) -> TensorRecord:
    owner = holders.setdefault(id(layer.holder), name)
    return TensorRecord.of(
        name,
        tuple(tensor.shape),
        layer.to_weights(),
        error=(report.relative_error if report else None) or 0.0,
        rows=report.rows if report else 0,
        note=report.note if report else "",
        seconds=report.seconds if report else 0.0,
        same_as="" if owner == name else owner,
    )


def _digest_of(state: dict[str, str]) -> str:
    import hashlib

    return hashlib.sha256(repr(sorted(state.items())).encode()).hexdigest()


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}, path)
