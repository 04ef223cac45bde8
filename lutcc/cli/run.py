"""Run an artifact on arrays.

Inputs are .npy files (or file.npz:name, file.safetensors:name) in the order of the artifact's
inputs, or one .npz or .safetensors file that holds them by name. -o names .npy files for the
outputs in their order, or one .npz or .safetensors file for all of them. Outputs appear whole or
not at all. With --repeat the call is timed: best and median of that many calls.
"""

from __future__ import annotations

import argparse
import time
from itertools import zip_longest

from lutcc.cli.archives import output_files, read_inputs, write_outputs
from lutcc.cli.arrays import existing_file
from lutcc.cli.console import Console
from lutcc.cli.models import KINDS, kind_of
from lutcc.errors import TargetError, UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the artifact, its inputs and outputs, and how to run it."""
    parser.add_argument("artifact", metavar="ARTIFACT")
    parser.add_argument("inputs", nargs="+", metavar="INPUT")
    parser.add_argument("-o", "--output", action="append", default=[], metavar="OUT")
    parser.add_argument("--isa", help="take this variant instead of the best one for this CPU")
    parser.add_argument("--threads", type=int, help="(all usable cores)")
    parser.add_argument("--repeat", type=int, metavar="TIMES", help="time that many calls")


def run(args: argparse.Namespace, console: Console) -> int:
    """Load, run, write the outputs, time."""
    artifact_file(args.artifact)
    if args.repeat is not None and args.repeat < 1:
        raise UsageError(
            f"{args.repeat} calls cannot be timed",
            where="--repeat",
            fix="1 or more; without --repeat nothing is timed",
        )
    from lutcc.runtime import load
    from lutcc.runtime.bfloat16 import as_numpy

    if args.isa is not None:
        _check_variant(args.artifact, args.isa)
    start = time.perf_counter()
    artifact = load(args.artifact, isa=args.isa)
    loaded = time.perf_counter() - start
    if args.threads is not None:
        artifact.num_threads = args.threads
    paths = output_files(args.output, artifact.outputs)
    arrays = read_inputs(args.inputs, artifact.inputs)
    results = artifact(*arrays)
    outputs = results if isinstance(results, tuple) else (results,)
    named = {s.name: as_numpy(value) for s, value in zip(artifact.outputs, outputs, strict=True)}
    write_outputs(paths, named)
    files = [str(path) for path in paths]
    if len(files) == 1 and paths[0].suffix != ".npy":
        files *= len(named)
    data = {
        "isa": artifact.isa,
        "threads": artifact.num_threads,
        "load_s": loaded,
        "outputs": [
            {"name": name, "shape": list(array.shape), "dtype": str(array.dtype), "file": file}
            for (name, array), file in zip_longest(named.items(), files)
        ],
    }
    lines = [f"variant {artifact.isa}, {artifact.num_threads} threads, loaded in {loaded:.2f} s"]
    for entry in data["outputs"]:
        written = f" -> {entry['file']}" if entry["file"] else ""
        lines.append(f"{entry['name']}: {entry['dtype']} {tuple(entry['shape'])}{written}")
    if args.repeat:
        from lutcc.bench.timing import Timing

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


def artifact_file(text: str) -> None:
    """Check that a path names an artifact.

    Raises
    ------
    UsageError
        When nothing is there, or something else that can be compiled.
    """
    path = existing_file(text, "ARTIFACT")
    kind = kind_of(path)
    if kind != "artifact":
        raise UsageError(
            f"{text!r} is {KINDS[kind]}, not an artifact",
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
