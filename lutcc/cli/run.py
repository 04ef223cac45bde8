"""Run an artifact on arrays.

Inputs are .npy (or file.safetensors:tensor) files in the order of the artifact's inputs; -o names
the outputs in their order. With --repeat the call is timed: best and median of that many calls.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from lutcc.cli.arrays import existing_file, output_file, read_array, write_array
from lutcc.cli.console import Console
from lutcc.cli.models import describe_specs, kind_of
from lutcc.errors import TargetError, UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the artifact, its inputs and outputs, and how to run it."""
    parser.add_argument("artifact", metavar="ARTIFACT")
    parser.add_argument("inputs", nargs="+", metavar="INPUT.npy")
    parser.add_argument("-o", "--output", action="append", default=[], metavar="OUT.npy")
    parser.add_argument("--isa", help="take this variant instead of the best one for this CPU")
    parser.add_argument("--threads", type=int, help="(all usable cores)")
    parser.add_argument("--repeat", type=int, metavar="TIMES", help="time that many calls")


def run(args: argparse.Namespace, console: Console) -> int:
    """Load, run, write the outputs, time."""
    _artifact_file(args.artifact)
    if args.repeat is not None and args.repeat < 1:
        raise UsageError(
            f"{args.repeat} calls cannot be timed",
            where="--repeat",
            fix="1 or more; without --repeat nothing is timed",
        )
    outputs_to = [output_file(text) for text in args.output]
    arrays = [read_array(text, f"input {index}") for index, text in enumerate(args.inputs)]
    from lutcc.bench.timing import Timing
    from lutcc.runtime import load

    if args.isa is not None:
        _check_variant(args.artifact, args.isa)
    start = time.perf_counter()
    artifact = load(args.artifact, isa=args.isa)
    loaded = time.perf_counter() - start
    if args.threads is not None:
        artifact.num_threads = args.threads
    if len(arrays) != len(artifact.inputs):
        raise UsageError(
            f"{len(arrays)} inputs given, the artifact takes {len(artifact.inputs)}",
            where=args.artifact,
            fix=describe_specs(artifact.inputs),
        )
    if len(args.output) > len(artifact.outputs):
        raise UsageError(
            f"{len(args.output)} outputs named, the artifact gives {len(artifact.outputs)}",
            where="--output",
            fix=describe_specs(artifact.outputs),
        )
    results = artifact(*arrays)
    outputs = results if isinstance(results, tuple) else (results,)
    for path, array in zip(outputs_to, outputs, strict=False):
        write_array(path, np.asarray(array))
    data = {
        "isa": artifact.isa,
        "threads": artifact.num_threads,
        "load_s": loaded,
        "outputs": [
            {"name": spec.name, "shape": list(array.shape), "dtype": str(array.dtype), "file": path}
            for spec, array, path in zip(
                artifact.outputs,
                outputs,
                [*args.output, *[None] * (len(outputs) - len(args.output))],
                strict=True,
            )
        ],
    }
    lines = [f"variant {artifact.isa}, {artifact.num_threads} threads, loaded in {loaded:.2f} s"]
    for entry in data["outputs"]:
        written = f" -> {entry['file']}" if entry["file"] else ""
        lines.append(f"{entry['name']}: {entry['dtype']} {tuple(entry['shape'])}{written}")
    if args.repeat:
        times = []
        for _ in range(args.repeat):
            before = time.perf_counter_ns()
            artifact(*arrays)
            times.append(time.perf_counter_ns() - before)
        timing = Timing.of(times)
        data["seconds"] = {"best": timing.best, "median": timing.median, "calls": timing.calls}
        lines.append(
            f"{timing.calls} calls: best {timing.best * 1e6:.1f} us, "
            f"median {timing.median * 1e6:.1f} us"
        )
    console.result(data, *lines)
    return 0


def _artifact_file(text: str) -> None:
    path = existing_file(text, "ARTIFACT")
    kind = kind_of(path)
    if kind != "artifact":
        what = "an IR module" if kind == "ir" else "an exported torch model"
        raise UsageError(
            f"{text!r} is {what}, not an artifact",
            where="ARTIFACT",
            fix=f"compile it first: lutcc compile {text} -o {path.with_suffix('.lutcc')}",
        )


def _check_variant(path: str, isa: str) -> None:
    from lutcc.runtime import Artifact
    from lutcc.runtime.cpu import ISA_LEVELS

    has = [variant.isa for variant in Artifact.read(path).manifest.variants]
    if isa in has:
        return
    fix = f"--isa {' or '.join(has)}"
    if isa in ISA_LEVELS:
        levels = [level for level in ISA_LEVELS if level == isa or level in has]
        fix += f"; or compile with --target {','.join(levels)}"
    raise TargetError(
        f"the artifact has no variant {isa!r}; it has {', '.join(has)}", where=path, fix=fix
    )
