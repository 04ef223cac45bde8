"""What `lutcc compile` is given: read or made, and converted if there is a recipe."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lutcc.cli.arrays import existing_file
from lutcc.cli.console import Console
from lutcc.cli.convert import refuse_sampled
from lutcc.cli.models import Kind, is_factory, kind_of, read_model, torch_model
from lutcc.cli.typical import as_tensor, read_typical, text_batches
from lutcc.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

DEFAULT_LENGTH = 128
TRACED_LENGTH = 8
"""Tokens of the example where the length is left open."""
_ELSE = (
    "name an exported program, a Hugging Face folder or package.module:factory as MODEL; or call "
    "lutcc.convert(model, recipe, calibration) in Python before {made}"
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
        A tuple of tensors, or a mapping of keyword arguments; None where they are not needed.
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
    factory = is_factory(args.model)
    path = Path(args.model) if factory else existing_file(args.model, "MODEL")
    kind = None if factory else kind_of(path)
    check_options(args, kind)
    if kind is None:
        return from_factory(args, console)
    if kind == "hf":
        return from_folder(path, args, console)
    if kind == "pt2" and args.recipe is not None:
        return from_program(path, args, console)
    if kind == "ir":  # a moment's work, not worth a word
        return Source(read_model(path, kind))
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
    given = read_typical(args.calibration)
    import torch

    torch.manual_seed(args.seed)
    model = torch_model(args.model, args.weights)
    if isinstance(given, dict):
        calibration: Any = {name: as_tensor(array) for name, array in given.items()}
        examples: Any = {name: value[:2] for name, value in calibration.items()}
    else:
        calibration = as_tensor(given)
        examples = (calibration[:2],)
    converted, report = _converted(model, args, calibration, console)
    return Source(converted, examples, report=report)


def from_folder(path: Path, args: argparse.Namespace, console: Console) -> Source:
    """Load a Hugging Face folder, and convert it if there is a recipe."""
    from lutcc.cli.hugging_face import (
        TextModel,
        example_tokens,
        load_text_model,
    )
    from lutcc.frontend.symbols import BATCH

    with console.working(f"loading {path}"):
        model = load_text_model(path)
    length: int | str = DEFAULT_LENGTH if args.length is None else args.length
    opened = isinstance(length, str)
    examples = example_tokens(model, TRACED_LENGTH if opened else length, args.seed)
    options = {"dynamic": {0: BATCH, 1: length}} if opened else {}
    batches = None
    if args.calibration is not None:
        cut = DEFAULT_LENGTH if isinstance(length, str) else length
        batches = text_batches(model, path, args.calibration, cut)
    converted, report = _converted(model, args, batches, console)
    return Source(TextModel(converted).eval(), examples, options, report)


def from_program(path: Path, args: argparse.Namespace, console: Console) -> Source:
    """Load an exported program, and convert its layers."""
    from lutcc.cli.exported import program_typical, read_layers

    model = read_layers(path, console)
    typical = None if args.calibration is None else program_typical(model, args.calibration)
    converted, report = _converted(model, args, typical, console)
    return Source(converted, report=report)


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

    exact = all(c.method == "exact" for c in lutcc.recipes.read_recipe(recipe).values())
    converted = lutcc.convert(
        model, recipe, calibration, progress=None if exact else fitting
    ).eval()  # exact layers are made at once
    return converted, converted.conversion_report
