"""Replace layers of a torch model by look-ups, following a recipe.

MODEL is package.module:factory (a function without arguments that returns a torch.nn.Module), or
the built-in digits-mlp. The recipe is a TOML file of layer-name patterns; the calibration rows are
typical inputs of the model. The converted model is written as an exported program (.pt2) with a
free batch size: `lutcc compile` takes it on.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import cast

import numpy as np

from lutcc.cli.arrays import existing_file, output_file, read_array
from lutcc.cli.console import Console
from lutcc.errors import ConvertError
from lutcc.runtime.files import write_whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the model, the recipe, the calibration rows and the output."""
    parser.add_argument("model", metavar="MODEL", help="package.module:factory, or digits-mlp")
    parser.add_argument("-r", "--recipe", required=True, metavar="RECIPE.toml")
    parser.add_argument(
        "-c", "--calibration", required=True, metavar="X.npy", help="typical inputs"
    )
    parser.add_argument("-w", "--weights", metavar="W.safetensors", help="state of the model")
    parser.add_argument("-o", "--output", required=True, metavar="OUT.pt2")


def run(args: argparse.Namespace, console: Console) -> int:
    """Convert, report what became of each layer, export."""
    recipe = existing_file(args.recipe, "--recipe")
    output = output_file(args.output, folder=False)
    given = read_array(args.calibration, "--calibration", finite=True)
    rows = np.ascontiguousarray(given, dtype=np.float32)
    refuse_sampled(recipe)
    import torch

    import lutcc
    from lutcc.cli.models import torch_model
    from lutcc.convert_model import ConversionReport
    from lutcc.frontend.export import export_program

    torch.manual_seed(args.seed)
    model = torch_model(args.model, args.weights)
    calibration = torch.from_numpy(rows)
    start = time.perf_counter()
    try:
        with torch.inference_mode():
            before = model(calibration)
    except Exception as error:  # whatever the user's model raises
        raise ConvertError(
            f"the model fails on calibration rows of shape {rows.shape}: {error}",
            where=args.calibration,
            fix="pass inputs that the model itself accepts",
        ) from error

    def fitting(done: int, total: int, layer: str) -> None:
        if layer:
            console.progress(f"[{done + 1}/{total}] fitting {layer}")

    converted = lutcc.convert(model, recipe, calibration, progress=fitting).eval()
    with torch.inference_mode():
        after = converted(calibration)
    with console.working("exporting"):
        exported = export_program(converted, (calibration[:2],))
        write_whole({output: lambda stream: torch.export.save(exported.program, stream)})
    seconds = time.perf_counter() - start
    report = cast(ConversionReport, converted.conversion_report)
    deviation = float((before - before.mean(0)).square().sum())
    error = float((after - before).square().sum()) / deviation if deviation > 0 else 0.0
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
