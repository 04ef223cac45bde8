"""Compile a model into an artifact: kernels for one or several kinds of CPU, tables, manifest.

MODEL is an exported torch program (.pt2), an IR module (.ir, from `lutcc fit`), an artifact, which
is compiled again for other targets, a folder in Hugging Face's layout (config.json and
model.safetensors; needs transformers), or package.module:factory. The last two are converted first
if there is a recipe, as by `lutcc convert`. TARGET is host, avx2 (x86-64-v3), avx512 (x86-64-v4), a
CPU that LLVM knows (znver5, sapphirerapids, ...) or several joined by commas; the loader picks the
best variant for the CPU it runs on. Kernels get what tuning logs found best: the logs of
--tuning-logs, then those that ship with lutcc. Kernels that were built before come from a cache
(`lutcc doctor` says where it is): after a change only what changed is built again, and an
interrupted compilation goes on.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from lutcc.cli.arrays import output_file
from lutcc.cli.compile_source import DEFAULT_LENGTH, read_source
from lutcc.cli.console import Console
from lutcc.cli.models import describe_specs
from lutcc.cli.source_options import add_source_options, length_of

DEFAULT_LOGS = "tuning_logs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the model, the output and the target."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="MODEL.pt2, KERNEL.ir, an artifact, a Hugging Face folder, package.module:factory",
    )
    parser.add_argument("-o", "--output", required=True, metavar="OUT.lutcc")
    parser.add_argument("-t", "--target", default="host", help="(host)")
    parser.add_argument(
        "--tuning-logs",
        metavar="DIR",
        type=Path,
        help=f"folder that 'lutcc tune' wrote to (./{DEFAULT_LOGS}, if it is there)",
    )
    parser.add_argument(
        "--packed",
        action="store_true",
        help="store weights and tables as kernels read them: larger, loads at once, and the C "
        "library needs it",
    )
    parser.add_argument("--no-cache", action="store_true", help="build everything again")
    add_source_options(
        parser,
        length_of,
        f"tokens of a row of a Hugging Face folder's model; a name leaves it open "
        f"({DEFAULT_LENGTH})",
    )


def run(args: argparse.Namespace, console: Console) -> int:
    """Compile and save."""
    output = output_file(args.output)
    source = read_source(args, console)
    import lutcc

    logs = args.tuning_logs
    if logs is None and Path(DEFAULT_LOGS).is_dir():
        logs = Path(DEFAULT_LOGS)
    from lutcc.codegen.compile_cache import default_cache

    cache = None if args.no_cache else default_cache()
    console.progress(f"tuning logs: {f'{logs}, then ' if logs else ''}those that ship with lutcc")
    start = time.perf_counter()
    with console.working(f"compiling for {args.target}"):
        artifact = lutcc.compile(
            source.model,
            source.examples,
            target=args.target,
            tuning_logs=logs,
            cache=False if cache is None else cache,
            **source.options,
        )
    for note in artifact.extra["tuning_notes"]:
        console.progress(note)
    if cache is not None and cache.hits:
        parts = cache.hits + cache.misses
        console.progress(f"{cache.hits} of {parts} parts were built before ({cache.folder})")
    seconds = time.perf_counter() - start
    saved = artifact.save(output, packed=args.packed)
    size = sum(f.stat().st_size for f in ([saved] if saved.is_file() else saved.iterdir()))
    isas = [variant.isa for variant in artifact.manifest.variants]
    data = {
        "output": str(saved),
        "variants": isas,
        "runs_here": artifact.isa,
        "inputs": [str(spec) for spec in artifact.inputs],
        "outputs": [str(spec) for spec in artifact.outputs],
        "bytes": size,
        "seconds": seconds,
        "cache": None if cache is None else {"hits": cache.hits, "misses": cache.misses},
        "tuning_logs": None if logs is None else str(logs),
        "conversion": None if source.report is None else source.report.to_dict(),
        "notes": [*artifact.extra["notes"], *artifact.extra["tuning_notes"]],
    }
    console.result(
        data,
        *([] if source.report is None else [str(source.report)]),
        f"{saved}: {describe_specs(artifact.inputs)} -> {describe_specs(artifact.outputs)}",
        f"variants: {', '.join(isas)}; {size:,} bytes; {seconds:.1f} s",
        f"runs here: {artifact.isa or 'no variant fits this CPU'}",
    )
    return 0
