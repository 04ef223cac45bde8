"""Compile a model into an artifact: kernels for one or several kinds of CPU, tables, manifest.

MODEL is an exported torch program (.pt2), an IR module (.ir, from `lutcc fit`), an artifact, which
is compiled again for other targets, a folder in Hugging Face's layout (config.json and
model.safetensors; needs transformers), or package.module:factory. Exported programs and the last
two are converted first if there is a recipe, as by `lutcc convert`. TARGET is host, avx2
(x86-64-v3), avx512 (x86-64-v4), a CPU that LLVM knows (znver5, sapphirerapids, ...) or several
joined by commas; the loader picks the best variant for the CPU it runs on. Kernels get what tuning
logs found best: the logs of --tuning-logs, then those that ship with lutcc. Kernels that were built
before come from a cache (`lutcc doctor` says where it is): after a change only what changed is
built again, and an interrupted compilation goes on.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lutcc.cli.arrays import output_file
from lutcc.cli.compile_source import DEFAULT_LENGTH, read_source
from lutcc.cli.console import Console
from lutcc.cli.models import describe_specs
from lutcc.cli.source_options import add_source_options, length_of

if TYPE_CHECKING:
    from lutcc.codegen.compile_cache import CompileCache
    from lutcc.runtime import Artifact

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
    from lutcc.cli.compiled_before import artifact_key, recall, remember
    from lutcc.codegen.compile_cache import default_cache

    output = output_file(args.output)
    logs = args.tuning_logs
    if logs is None and Path(DEFAULT_LOGS).is_dir():
        logs = Path(DEFAULT_LOGS)
    cache = None if args.no_cache else default_cache()
    start = time.perf_counter()
    key = None if cache is None else artifact_key(cache, args, output, logs)
    before = None if cache is None or key is None else recall(cache, key, output)
    if before is not None:
        artifact, told = before
        console.progress("compiled before, from the same files: taken from the cache as it is")
    else:
        artifact, report = _compiled(args, console, logs, cache)
        told = {
            "conversion": None if report is None else report.to_dict(),
            "report": None if report is None else str(report),
        }
        saved = artifact.save(output, packed=args.packed)
        if cache is not None and key is not None:
            remember(cache, key, saved, told)
    seconds = time.perf_counter() - start
    size = sum(f.stat().st_size for f in ([output] if output.is_file() else output.iterdir()))
    isas = [variant.isa for variant in artifact.manifest.variants]
    data = {
        "output": str(output),
        "variants": isas,
        "runs_here": artifact.isa,
        "inputs": [str(spec) for spec in artifact.inputs],
        "outputs": [str(spec) for spec in artifact.outputs],
        "bytes": size,
        "seconds": seconds,
        "cache": None if cache is None else {"hits": cache.hits, "misses": cache.misses},
        "tuning_logs": None if logs is None else str(logs),
        "conversion": told["conversion"],
        "notes": [*artifact.extra["notes"], *artifact.extra["tuning_notes"]],
    }
    console.result(
        data,
        *([] if told["report"] is None else [told["report"]]),
        f"{output}: {describe_specs(artifact.inputs)} -> {describe_specs(artifact.outputs)}",
        f"variants: {', '.join(isas)}; {size:,} bytes; {seconds:.1f} s",
        f"runs here: {artifact.isa or 'no variant fits this CPU'}",
    )
    return 0


def _compiled(
    args: argparse.Namespace, console: Console, logs: Path | None, cache: CompileCache | None
) -> tuple[Artifact, Any]:
    """Read and compile the model; return the artifact and the report of the conversion, if any."""
    source = read_source(args, console)
    import lutcc

    console.progress(f"tuning logs: {f'{logs}, then ' if logs else ''}those that ship with lutcc")
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
    return artifact, source.report
