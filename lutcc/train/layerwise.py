"""Layer by layer: each becomes look-ups, and the exact layers behind it learn to live with them."""

from __future__ import annotations

import copy
import dataclasses
import glob
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from lutcc import recipes
from lutcc.convert_model import _batches, _execution_order, _plain_transformers, convert
from lutcc.errors import ArtifactError, ConvertError
from lutcc.nn.conversion import ConversionReport, LayerReport, exact_report
from lutcc.nn.conversion_plan import Step, plan_conversion
from lutcc.train import checkpoint as checkpoints
from lutcc.train.finetune import Objective, _Run, _Settings
from lutcc.train.finetune_data import one_tensor

LayerProgress: TypeAlias = Callable[[str, int, int, float], None]
"""Takes the layer replaced last, the epoch that is done, how many there are, and its mean loss."""

#: Rows that make a layer with the right buffers, to be filled from a checkpoint.
_FEW = 32


@dataclasses.dataclass(frozen=True)
class _LayerSettings(_Settings):
    """What the training behind one layer depends on."""

    layer: str
    recipe: dict[str, Any]


def convert_layerwise(
    model: nn.Module,
    recipe: Mapping[str, Any] | str | Path,
    data: Any,
    *,
    epochs: int = 20,
    teacher: nn.Module | None = None,
    objective: Objective | None = None,
    batch_size: int = 128,
    learning_rate: float = 0.02,
    noise: float = 0.0,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: LayerProgress | None = None,
) -> nn.Module:
    """Return a copy of ``model`` whose layers become look-ups, from the first to the last.

    Each layer is fitted on what reaches it through the look-ups before it. Then it is frozen, as is
    all that runs before it, and the layers that run after it, still exact, are trained. Nothing is
    trained behind the last one. Hash functions and tables stay as they were fitted:
    :func:`lutcc.finetune` trains these too, and may follow.

    Parameters
    ----------
    model
        Any module that takes one tensor; it is not changed.
    recipe
        As for ``lutcc.convert``, of :class:`lutcc.recipes.Maddness` and ``Exact`` only.
    data
        ``(inputs, targets)`` as in :func:`lutcc.finetune`; the inputs are the calibration too.
    epochs
        Passes over the rows behind each layer; 0 trains nothing, which is ``lutcc.convert``.
    teacher, objective, batch_size, noise
        As in :func:`lutcc.finetune`.
    learning_rate
        As in :func:`lutcc.finetune`, where exact layers get a fifth of it, relative to the size of
        their parameters.
    seed
        Of the order of rows and of the noise, for each layer anew.
    checkpoint
        A folder with a file per layer, written after each epoch. A run goes on from what is there;
        finished layers are not fitted again.
    progress
        Called as ``progress(layer, epoch, epochs, loss)`` after each epoch.

    Returns
    -------
    The converted model, in eval mode, with a ``conversion_report`` as of ``lutcc.convert``. The
    errors there are those to the layers as they were after training.

    Raises
    ------
    ConvertError
        If the recipe replaces layers by something else, as in ``lutcc.convert``, or if the loss is
        not finite.
    InputError
        If there is nothing to learn from, a setting makes no sense, or a checkpoint has others.

    Notes
    -----
    Source: ITLUMM, section 2.3. Layers are ordered by their first call; where a path leads around
    a look-up, what runs before it does not learn through that path either.

    Examples
    --------
    >>> import lutcc
    >>> net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    >>> x, recipe = torch.randn(64, 8), {"*": lutcc.recipes.Maddness(ncodebooks=4)}
    >>> small = lutcc.convert_layerwise(net, recipe, (x, None), epochs=1, teacher=net)
    >>> [type(layer).__name__ for layer in small]
    ['MaddnessLinear', 'ReLU', 'MaddnessLinear']
    """
    configs = recipes.read_recipe(recipe)
    rows = one_tensor(data, max(batch_size, 1), teacher)
    inputs = rows.inputs
    given = (batch_size, learning_rate, noise, seed, len(inputs), teacher is not None)
    _Settings(1 if epochs == 0 else epochs, *given).check()
    whole = {pattern: recipes.config_to_dict(config) for pattern, config in configs.items()}
    made, reports = copy.deepcopy(model).eval(), list[LayerReport]()
    files = _Files(checkpoint)
    for number, step in enumerate(_order(made, configs, inputs)):
        if isinstance(step.config, recipes.Exact):
            reports.append(exact_report(step.name, step.module))
            continue
        pattern = glob.escape(step.name)
        if number <= files.last:
            made = convert(made, {pattern: _quick(step.config)}, inputs[:_FEW])
            reports.append(files.report(number))
        else:
            made = convert(made, {pattern: step.config}, inputs)
            reports += made.conversion_report.layers  # pyright: ignore
            files.keep(number, reports[-1])
        later = _later(made, step.name, inputs[:1])
        if not later or not epochs:
            continue
        settings = _LayerSettings(epochs, *given, step.name, whole)
        path = files.path(number)
        if path is not None and number < files.last:
            checkpoints.load(path, nn.ModuleDict({"model": made}), settings=vars(settings))
            continue
        with _frozen_but(made, later):
            told = None if progress is None else partial(progress, step.name)
            run = _Run(made, {}, settings, objective, later)
            run.train(rows, teacher, path, told)
    vars(made)["conversion_report"] = ConversionReport(tuple(reports))
    return made


def _order(
    model: nn.Module, configs: dict[str, recipes.Config], inputs: torch.Tensor
) -> list[Step]:
    """Return what is replaced, or named and kept, in the order in which the model runs it."""
    for pattern, config in configs.items():
        exact = isinstance(config, recipes.Exact) and config.compute is None
        if not exact and not isinstance(config, recipes.Maddness):
            raise ConvertError(
                f"layers become look-ups one by one, not {type(config).__name__}",
                where=f"recipe[{pattern}]",
                fix="use recipes.Maddness(...) or recipes.Exact() here, and lutcc.convert before",
            )
    plan = plan_conversion(model, configs)
    with torch.no_grad(), _plain_transformers():
        order, idle = _execution_order(model, plan, _batches(model, inputs[:1]))
    return [*order, *idle]


def _quick(config: recipes.Config) -> recipes.Config:
    """Return a config whose layers have the same buffers: what is in them comes from a file."""
    return dataclasses.replace(
        config,
        partition="contiguous",
        prototypes="kmeans",
        lut_objective="ridge",
        lut_activation=None,
    )


def _later(model: nn.Module, name: str, inputs: torch.Tensor) -> list[nn.Parameter]:
    """Return the parameters of modules that are first called after the module called ``name``."""
    calls: list[nn.Module] = []
    handles = [
        module.register_forward_pre_hook(lambda module, _: calls.append(module))
        for module in model.modules()
    ]
    try:
        with torch.no_grad(), _plain_transformers():
            for args, kwargs in _batches(model, inputs):
                model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    place = calls.index(model.get_submodule(name))
    before = {id(p) for module in calls[:place] for p in module.parameters(recurse=False)}
    behind = [p for module in calls[place:] for p in module.parameters(recurse=False)]
    found = {id(p): p for p in behind if id(p) not in before and p.is_floating_point()}
    return list(found.values())


@contextmanager
def _frozen_but(model: nn.Module, trained: list[nn.Parameter]) -> Iterator[None]:
    """Let no gradients reach the other parameters for a while."""
    kept = {id(p) for p in trained}
    frozen = [p for p in model.parameters() if p.requires_grad and id(p) not in kept]
    for p in frozen:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in frozen:
            p.requires_grad_(True)


class _Files:
    """The checkpoints of a run: after each layer, the network and the layer's report."""

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = None if folder is None else Path(folder)
        self.last = -1
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            numbers = [int(path.stem) for path in self.folder.glob("[0-9]*.safetensors")]
            self.last = max(numbers, default=-1)

    def path(self, number: int) -> Path | None:
        """Return the file of the network after a layer."""
        return None if self.folder is None else self.folder / f"{number:03d}.safetensors"

    def keep(self, number: int, report: LayerReport) -> None:
        """Write a layer's report."""
        if self.folder is not None:
            text = json.dumps(report.to_dict())
            (self.folder / f"{number:03d}.json").write_text(text, encoding="utf-8")

    def report(self, number: int) -> LayerReport:
        """Read a layer's report."""
        path = Path(self.folder or "") / f"{number:03d}.json"
        try:
            return LayerReport(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"is no report of a layer: {error}",
                where=str(path),
                fix="delete the checkpoint's folder to begin anew",
            ) from error
