"""What `lutcc compile` is given: read, or (factories, Hugging Face folders) made and converted."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lutcc.cli.archives import ARCHIVES, read_npz, read_safetensors
from lutcc.cli.arrays import existing_file, read_array
from lutcc.cli.console import Console
from lutcc.cli.convert import refuse_sampled
from lutcc.cli.models import BUILT_IN, Kind, kind_of, read_model, torch_model
from lutcc.errors import InputError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn

DEFAULT_LENGTH = 128
TRACED_LENGTH = 8
"""Tokens of the example where the length is left open."""
_ELSE = (
    "name package.module:factory or a Hugging Face folder as MODEL; or call lutcc.convert(model, "
    "recipe, calibration) in Python before {made}"
)


@dataclass(frozen=True, slots=True)
class Source:
    """A model, inputs to trace it with, and how :func:`lutcc.compile` is to do that.

    Attributes
    ----------
    model
        A torch module in eval mode, converted if there was a recipe; an exported program or an IR
        module.
    examples
        A tuple of tensors, or a mapping of keyword arguments; None unless it is a torch module.
    options
        More keyword arguments of :func:`lutcc.compile`.
    report
        What the conversion says of each layer; None without a recipe.
    """

    model: Any
    examples: Any = None
    options: dict[str, Any] = field(default_factory=dict)
    report: Any = None


def check_options(args: argparse.Namespace, kind: Kind | None) -> None:
    """Refuse options that the kind of model (None: a factory) has no use for.

    Raises
    ------
    UsageError
        With what to do instead.
    """
    made = {
        "pt2": ("an exported program has no layers left to convert", "torch.export.export"),
        "ir": ("an IR module has no layers to convert", "to_ir"),
        "artifact": ("an artifact has no layers to convert", "lutcc.compile"),
    }
    if kind in made:
        what, before = made[kind]
        for option in ("recipe", "calibration"):
            if getattr(args, option) is not None:
                raise UsageError(what, where=f"--{option}", fix=_ELSE.format(made=before))
    if args.weights is not None and kind is not None:
        raise UsageError(
            "weights are loaded into package.module:factory only", where="--weights",
            fix="leave it out: other models have theirs",
        )  # fmt: skip
    if args.length is not None and kind != "hf":
        raise UsageError(
            "a number of tokens is for Hugging Face folders only",
            where="--length",
            fix="leave it out: the inputs' shapes say it",
        )


def read_source(args: argparse.Namespace, console: Console) -> Source:
    """Read or make the model of ``lutcc compile``'s arguments.

    Raises
    ------
    LutccError
        When it cannot be read, made or converted, or an option does not go with its kind.
    """
    factory = (":" in args.model or args.model in BUILT_IN) and not Path(args.model).exists()
    path = Path(args.model) if factory else existing_file(args.model, "MODEL")
    kind = None if factory else kind_of(path)
    check_options(args, kind)
    if kind is None:
        return from_factory(args, console)
    if kind == "hf":
        return from_folder(path, args, console)
    with console.working(f"reading {path}"):
        return Source(read_model(path, kind))


def from_factory(args: argparse.Namespace, console: Console) -> Source:
    """Build ``package.module:factory``, and convert it if there is a recipe.

    Raises
    ------
    UsageError
        Without --calibration: of what shape are the inputs?
    """
    if args.calibration is None:
        raise UsageError(
            "example inputs are needed to trace a model",
            where="--calibration",
            fix="-c X.npy with typical inputs, or .npz with them by name; two rows are enough "
            "without a recipe",
        )
    given = _read(args.calibration)
    import torch

    torch.manual_seed(args.seed)
    model = torch_model(args.model, args.weights)
    if isinstance(given, dict):
        calibration: Any = {name: _tensor(array) for name, array in given.items()}
        examples: Any = {name: value[:2] for name, value in calibration.items()}
    else:
        calibration = _tensor(given)
        examples = (calibration[:2],)
    converted, report = _converted(model, args, calibration, console)
    return Source(converted, examples, report=report)


def from_folder(path: Path, args: argparse.Namespace, console: Console) -> Source:
    """Load a Hugging Face folder, and convert it if there is a recipe."""
    from lutcc.cli.hugging_face import (
        TextModel,
        calibration_batches,
        example_tokens,
        load_text_model,
    )
    from lutcc.frontend.symbols import BATCH

    typical: str | None = args.calibration
    given = None if typical is None else _read(typical)
    with console.working(f"loading {path}"):
        model = load_text_model(path)
    length: int | str = DEFAULT_LENGTH if args.length is None else args.length
    opened = isinstance(length, str)
    examples = example_tokens(model, TRACED_LENGTH if opened else length, args.seed)
    options = {"dynamic": {0: BATCH, 1: length}} if opened else {}
    batches = None
    if given is not None and typical is not None:
        arrays = given if isinstance(given, dict) else {"input_ids": given}
        tensors = {name: _tensor(array) for name, array in arrays.items()}
        batches = calibration_batches(model, tensors, typical)
    converted, report = _converted(model, args, batches, console)
    return Source(TextModel(converted).eval(), examples, options, report)


def _converted(
    model: nn.Module, args: argparse.Namespace, calibration: Any, console: Console
) -> tuple[nn.Module, Any]:
    if args.recipe is None:
        return model, None
    recipe = existing_file(args.recipe, "--recipe")
    refuse_sampled(recipe)
    import lutcc

    def fitting(done: int, total: int, layer: str) -> None:
        if layer:
            console.progress(f"[{done + 1}/{total}] fitting {layer}")

    converted = lutcc.convert(model, recipe, calibration, progress=fitting).eval()
    return converted, converted.conversion_report


def _read(text: str) -> np.ndarray | dict[str, np.ndarray]:
    """Read typical inputs: one array, or several by name; every value is finite."""
    path = Path(text)
    if path.suffix in ARCHIVES and path.is_file():
        read = read_npz if path.suffix == ".npz" else read_safetensors
        arrays = read(path, "--calibration")
        for name, array in arrays.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise InputError(
                    f"{path}: {name!r} holds NaN or infinity",
                    where="--calibration",
                    fix="drop or replace those values first",
                )
        return arrays
    return read_array(text, "--calibration", finite=True)


def _tensor(array: np.ndarray) -> torch.Tensor:
    """Return floats as float32, and numbers and flags as they are."""
    import torch

    kept = array.dtype.kind in "biu"
    return torch.from_numpy(np.array(array, None if kept else np.float32, order="C"))
