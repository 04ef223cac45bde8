"""Replace layers of a torch model by look-ups, following a recipe.

MODEL is an exported program (.pt2, of torch.export.save), package.module:factory (a function
without arguments that returns a torch.nn.Module), or the built-in digits-mlp. The recipe is a TOML
file of layer-name patterns; the calibration rows are typical inputs of the model. The converted
model is written as an exported program (.pt2): with the open sizes that a program had, else with a
free batch size. `lutcc compile` takes it on.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from lutcc.cli.arrays import existing_file, output_file, read_array
from lutcc.cli.console import Console
from lutcc.cli.models import KINDS, is_factory, kind_of
from lutcc.errors import ConvertError, UsageError
from lutcc.runtime.files import write_whole

if TYPE_CHECKING:
    import torch
    from torch import nn


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the model, the recipe, the calibration rows and the output."""
    parser.add_argument(
        "model", metavar="MODEL", help="MODEL.pt2, package.module:factory, or digits-mlp"
    )
    parser.add_argument("-r", "--recipe", required=True, metavar="RECIPE.toml")
    parser.add_argument(
        "-c", "--calibration", required=True, metavar="X",
        help="typical inputs: .npy; of a program of several inputs .npz by name",
    )  # fmt: skip
    parser.add_argument("-w", "--weights", metavar="W.safetensors", help="state of the model")
    parser.add_argument("-o", "--output", required=True, metavar="OUT.pt2")


def run(args: argparse.Namespace, console: Console) -> int:
    """Convert, report what became of each layer, export."""
    recipe = existing_file(args.recipe, "--recipe")
    output = output_file(args.output, folder=False)
    refuse_sampled(recipe)
    model, typical, examples = _read(args, console)
    import torch

    import lutcc
    from lutcc.convert_model import ConversionReport
    from lutcc.frontend.export import export_program

    start = time.perf_counter()
    try:
        before = _outputs(model, typical)
    except Exception as error:  # whatever the user's model raises
        first = typical[0].values() if isinstance(typical, list) else [typical]
        shapes = ", ".join(str(tuple(value.shape)) for value in first)
        raise ConvertError(
            f"the model fails on calibration rows of shape {shapes}: {error}",
            where=args.calibration,
            fix="pass inputs that the model itself accepts",
        ) from error

    def fitting(done: int, total: int, layer: str) -> None:
        if layer:
            console.progress(f"[{done + 1}/{total}] fitting {layer}")

    converted = lutcc.convert(model, recipe, typical, progress=fitting).eval()
    after = _outputs(converted, typical)
    with console.working("exporting"):
        exported = export_program(converted, examples)
        write_whole({output: lambda stream: torch.export.save(exported.program, stream)})
    seconds = time.perf_counter() - start
    report = cast(ConversionReport, converted.conversion_report)
    deviation = sum(float((b - b.mean(0)).square().sum()) for b in before)
    error = sum(float((a - b).square().sum()) for a, b in zip(after, before, strict=True))
    error = error / deviation if deviation > 0 else 0.0
    data = {
        "output": str(output),
        **report.to_dict(),
        "seconds": seconds,
        "normalized_squared_error": error,
        "notes": list(exported.notes),
    }
    console.result(
        data,
        str(report),
        *exported.notes,
        f"output error on the calibration rows: {error:.4f} of the variance",
        f"written: {args.output} ({seconds:.1f} s)",
    )
    return 0


def _read(
    args: argparse.Namespace, console: Console
) -> tuple[nn.Module, torch.Tensor | list[dict[str, torch.Tensor]], Any]:
    """Return the model, typical inputs, and examples to trace it with, if it needs them."""
    named = Path(args.model)
    if not is_factory(args.model) and (named.exists() or named.suffix == ".pt2"):
        path = existing_file(args.model, "MODEL")
        kind = kind_of(path)
        if kind != "pt2":
            raise UsageError(
                f"{args.model!r} is {KINDS[kind]}, which is not converted",
                where="MODEL",
                fix="pass the recipe to `lutcc compile`"
                if kind == "hf"
                else "name what it was made from: an exported program, or package.module:factory",
            )
        if args.weights is not None:
            raise UsageError("a program has its own weights", where="--weights", fix="leave it out")
        from lutcc.cli.exported import program_typical, read_layers

        program = read_layers(path, console)
        typical = program_typical(program, args.calibration)
        return program, typical if isinstance(typical, list) else [typical], None
    given = read_array(args.calibration, "--calibration", finite=True)
    import torch

    from lutcc.cli.models import torch_model

    torch.manual_seed(args.seed)
    model = torch_model(args.model, args.weights)
    rows = torch.from_numpy(np.ascontiguousarray(given, dtype=np.float32))
    return model, rows, (rows[:2],)


def _outputs(model: nn.Module, typical: Any) -> list[torch.Tensor]:
    """Return the floating-point tensors that a model gives, of all batches together."""
    import torch
    from torch.utils import _pytree

    with torch.inference_mode():
        if isinstance(typical, torch.Tensor):
            given = [model(typical)]
        else:
            given = [model(**batch) for batch in typical]
    leaves = [[t for t in _pytree.tree_leaves(out) if torch.is_tensor(t)] for out in given]
    joined = [torch.cat([torch.atleast_1d(t) for t in of]) for of in zip(*leaves, strict=True)]
    return [t for t in joined if t.is_floating_point()]


def refuse_sampled(recipe: Path) -> None:
    """Refuse method "sampled": what is written is for inference, where it changes nothing."""
    from lutcc.recipes import Sampled, read_recipe

    for pattern, config in read_recipe(recipe).items():
        if isinstance(config, Sampled):
            raise ConvertError(
                "method 'sampled' changes how a model is trained; the exported program would be "
                "the exact model",
                where=f"{recipe}[{pattern}]",
                fix="call lutcc.convert(model, recipe) in the training script, or say 'exact' here",
            )
