"""Show what a compressed model takes, layer by layer: `lutcc report footprint`."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from lutcc.cli.console import Console
from lutcc.cli.report_files import writable
from lutcc.errors import UsageError
from lutcc.runtime.files import write_text

if TYPE_CHECKING:
    from rich.table import Table

    from lutcc.report.footprint_data import FootprintReport


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the report reads and writes."""
    parser.add_argument("path", metavar="PATH", help="what `lutcc compress` wrote")
    parser.add_argument("--before", metavar="PATH", help="the checkpoint that was compressed")
    parser.add_argument(
        "--model", metavar="MODEL", help="package.module:factory, to measure activations"
    )
    parser.add_argument("--inputs", metavar="X.npy", help="what the model is run on for that")
    parser.add_argument("-o", "--output", metavar="HTML", help="the page (footprint-report.html)")
    parser.add_argument("--png", metavar="PNG", help="a summary as one picture as well")


def run(args: argparse.Namespace, console: Console) -> int:
    """Write the page, and print its table; under ``--json`` all numbers, no page by itself."""
    from lutcc.report.footprint_data import summarise
    from lutcc.report.footprint_page import page, to_json

    output = args.output or (None if args.json else "footprint-report.html")
    page_path = writable(output, "--output", (".html", ".htm"))
    png_path = writable(args.png, "--png", (".png",))
    if (args.model is None) != (args.inputs is None):
        raise UsageError(
            "activations are measured by running a model on inputs",
            where="--model" if args.model is None else "--inputs",
            fix="give both --model and --inputs, or none",
        )
    activations = None if args.model is None else _activations(args.model, args.inputs)
    report = summarise(args.path, args.before, activations=activations)
    data: dict[str, Any] = {**to_json(report), "files": []}
    if page_path is not None:
        made = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
        sources = [args.path, *([args.before] if args.before else [])]
        write_text(page_path, page(report, sources=sources, made=made))
        data["files"].append(str(page_path))
    if png_path is not None:
        from lutcc.report.footprint_figures import summary_png

        summary_png(report, png_path)
        data["files"].append(str(png_path))
    written = [f"Written: {', '.join(data['files'])}"] if data["files"] else []
    console.result(data, table(report), *written)
    return 0


def _activations(model: str, inputs: str) -> int:
    import numpy as np
    import torch

    from lutcc.cli.arrays import read_array
    from lutcc.cli.models import torch_model
    from lutcc.nn.activation_memory import activation_bits

    given = read_array(inputs, "--inputs", finite=True)
    whole = np.issubdtype(given.dtype, np.integer)
    rows = torch.from_numpy(np.ascontiguousarray(given[:1], None if whole else np.float32))
    return activation_bits(torch_model(model, None), rows)


def table(report: FootprintReport) -> Table:
    """Return the totals as a table for the terminal, in the way of table 1 of JLCM."""
    from rich.markup import escape
    from rich.table import Table

    made = Table(
        title=f"{escape(report.name)}: {report.alpha:.2f} times smaller than at 16 bits",
        title_justify="left", box=None, pad_edge=False,
    )  # fmt: skip
    made.add_column("")
    for column in ("weights, MB", "activations, MB", "weights, %", "activations, %"):
        made.add_column(column, justify="right", no_wrap=True)
    held = report.activations
    for name, bits in (("before", report.weights_before), ("after", report.weights_after)):
        whole = bits + (held or 0)
        shares = ["–", "–"] if held is None else [f"{100 * b / whole:.2f}" for b in (bits, held)]
        size = "–" if held is None else f"{held / 8e6:,.3f}"
        made.add_row(name, f"{bits / 8e6:,.3f}", size, *shares)
    return made
