"""Compile a model into an artifact: kernels for one or several kinds of CPU, tables, manifest.

MODEL is an exported torch program (.pt2), an IR module (.ir, from `lutcc fit`) or an artifact,
which is compiled again for other targets. TARGET is host, avx2 (x86-64-v3), avx512 (x86-64-v4), a
CPU that LLVM knows (znver5, sapphirerapids, ...) or several joined by commas; the loader picks the
best variant for the CPU it runs on. Kernels get what tuning logs found best: the logs of
--tuning-logs, then those that ship with lutcc.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from lutcc.cli.arrays import existing_file, output_file
from lutcc.cli.console import Console
from lutcc.cli.models import describe_specs, kind_of, read_exported, read_module

DEFAULT_LOGS = "tuning_logs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the model, the output and the target."""
    parser.add_argument("model", metavar="MODEL", help="MODEL.pt2, KERNEL.ir or an artifact")
    parser.add_argument("-o", "--output", required=True, metavar="OUT.lutcc")
    parser.add_argument("-t", "--target", default="host", help="(host)")
    parser.add_argument(
        "--tuning-logs",
        metavar="DIR",
        type=Path,
        help=f"folder that 'lutcc tune' wrote to (./{DEFAULT_LOGS}, if it is there)",
    )


def run(args: argparse.Namespace, console: Console) -> int:
    """Compile and save."""
    path = existing_file(args.model, "MODEL")
    output = output_file(args.output)
    kind = kind_of(path)
    import lutcc

    model: Any
    with console.working(f"reading {path}"):
        if kind == "artifact":
            model = lutcc.Artifact.read(path).module
        else:
            model = read_module(path) if kind == "ir" else read_exported(path)
    logs = args.tuning_logs
    if logs is None and Path(DEFAULT_LOGS).is_dir():
        logs = Path(DEFAULT_LOGS)
    console.progress(f"tuning logs: {f'{logs}, then ' if logs else ''}those that ship with lutcc")
    start = time.perf_counter()
    with console.working(f"compiling for {args.target}"):
        artifact = lutcc.compile(model, target=args.target, tuning_logs=logs)
    for note in artifact.extra["tuning_notes"]:
        console.progress(note)
    seconds = time.perf_counter() - start
    saved = artifact.save(output)
    isas = [variant.isa for variant in artifact.manifest.variants]
    data = {
        "output": str(saved),
        "variants": isas,
        "runs_here": artifact.isa,
        "inputs": [str(spec) for spec in artifact.inputs],
        "outputs": [str(spec) for spec in artifact.outputs],
        "bytes": artifact.nbytes,
        "seconds": seconds,
        "tuning_logs": None if logs is None else str(logs),
        "notes": [*artifact.extra["notes"], *artifact.extra["tuning_notes"]],
    }
    console.result(
        data,
        f"{saved}: {describe_specs(artifact.inputs)} -> {describe_specs(artifact.outputs)}",
        f"variants: {', '.join(isas)}; {artifact.nbytes:,} bytes; {seconds:.1f} s",
        f"runs here: {artifact.isa or 'no variant fits this CPU'}",
    )
    return 0
