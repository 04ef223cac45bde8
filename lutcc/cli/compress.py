"""Compress a model's weights with codebooks, to a goal.

MODEL is a checkpoint (a folder, a .safetensors file or an index of shards), which is compressed
tensor by tensor from its values alone; or an exported program (.pt2) or package.module:factory (a
function without arguments that returns a torch.nn.Module), whose layers are learnt from calibration
rows where there are any. The output is a safetensors file, or a folder for it. Finished layers are
on disk at once: a run that was interrupted goes on if it is repeated.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lutcc.cli.console import Console
from lutcc.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from lutcc.compress.stored import Compressed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the model, the goal and the output."""
    parser.add_argument(
        "model", metavar="MODEL", help="a checkpoint, MODEL.pt2, or package.module:factory"
    )
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="a file or a folder")
    parser.add_argument(
        "--alpha", type=float, default=5.33, metavar="A", help="times smaller than 16 bits (5.33)"
    )
    parser.add_argument(
        "--layers", action="append", metavar="PATTERN", help="what is compressed (all; repeatable)"
    )
    parser.add_argument(
        "--exact", action="append", default=[], metavar="PATTERN", help="what is not, after all"
    )
    parser.add_argument(
        "-c", "--calibration", metavar="X.npy", help="typical inputs of a program or factory"
    )
    parser.add_argument("-w", "--weights", metavar="W.safetensors", help="state of a factory")
    parser.add_argument("--mode", choices=("codebooks", "scales"), help="codebooks; scales: convs")
    parser.add_argument("--clustering", default="hierarchical", metavar="METHOD")
    parser.add_argument("--learn", default="joint", choices=("joint", "codebook", "none"))
    parser.add_argument("--outliers", type=float, default=0.0, metavar="SHARE")
    parser.add_argument("--reorder", default="auto", choices=("auto", "fold", "never"))
    parser.add_argument("--steps", type=int, default=1000, metavar="N", help="of learning (1000)")
    parser.add_argument("--fresh", action="store_true", help="forget what a former run has done")


def run(args: argparse.Namespace, console: Console) -> int:
    """Compress, and tell what became of each tensor."""
    from lutcc.cli.models import is_factory
    from lutcc.recipes import Codebook

    path = Path(args.model)
    config = Codebook(
        alpha=args.alpha,
        mode=args.mode,
        clustering=args.clustering,
        learn=args.learn,
        outliers=args.outliers,
        reorder=args.reorder,
        steps=args.steps,
        random_state=args.seed,
    )
    start = time.perf_counter()
    options: dict[str, Any] = {
        "layers": args.layers or ["*"],
        "exact": args.exact,
        "fresh": args.fresh,
    }
    try:
        with _progress(console) as progress:
            if is_factory(args.model):
                made = _model(args, config, options | {"progress": progress})
            elif path.suffix == ".pt2":
                made = _program(args, config, options | {"progress": progress}, console)
            else:
                made = _checkpoint(args, path, config, options | {"progress": progress})
    except KeyboardInterrupt:
        console.progress("what is finished is kept: the same command goes on with it")
        raise
    seconds = time.perf_counter() - start
    whole = made.footprint
    console.result(
        {
            "output": args.output,
            "alpha": whole.alpha,
            "bits_per_weight": whole.bits_per_weight,
            "bytes": -(-whole.bits // 8),
            "seconds": seconds,
            "tensors": [
                {
                    **r.to_dict(),
                    "alpha": r.footprint.alpha,
                    "bits_per_weight": r.footprint.bits_per_weight,
                }
                for r in made.records.values()
            ],
        },
        table(made),
        *_notes(made),
        f"{whole.weights:,} weights, {whole.bits / 8e6:,.2f} MB: {whole.alpha:.2f} times smaller "
        f"than at 16 bits",
        f"written: {args.output} ({seconds:.1f} s)",
    )
    return 0


def _checkpoint(
    args: argparse.Namespace, path: Path, config: Any, options: dict[str, Any]
) -> Compressed:
    from lutcc.compress import compress_checkpoint

    for given, option in ((args.calibration, "--calibration"), (args.weights, "--weights")):
        if given is not None:
            raise UsageError(
                "a checkpoint is compressed from its values alone",
                where=option,
                fix="name package.module:factory, and the checkpoint in --weights",
            )
    return compress_checkpoint(path, args.output, config, **options)


def _program(
    args: argparse.Namespace, config: Any, options: dict[str, Any], console: Console
) -> Compressed:
    """Compress the layers of an exported program that torch.nn has; all else stays exact."""
    from lutcc.cli.arrays import existing_file
    from lutcc.cli.exported import program_typical, read_layers
    from lutcc.compress import compress_model

    if args.weights is not None:
        raise UsageError("a program has its own weights", where="--weights", fix="leave it out")
    model = read_layers(existing_file(args.model, "MODEL"), console, functional=False)
    rows = None
    if args.calibration is not None:
        typical = program_typical(model, args.calibration)
        if not isinstance(typical, dict) or len(typical) > 1:
            raise UsageError(
                "layers are learnt from rows of a single input, of which any number may come",
                where="--calibration",
                fix="leave it out: weights are compressed from their values alone; or call "
                "lutcc.convert in Python",
            )
        [rows] = typical.values()
    return compress_model(model, args.output, config, rows, **options)[0]


def _model(args: argparse.Namespace, config: Any, options: dict[str, Any]) -> Compressed:
    import numpy as np
    import torch

    from lutcc.cli.arrays import read_array
    from lutcc.cli.models import torch_model
    from lutcc.compress import compress_model

    rows = None
    if args.calibration is not None:
        given = read_array(args.calibration, "--calibration", finite=True)
        whole = np.issubdtype(given.dtype, np.integer)
        rows = torch.from_numpy(np.ascontiguousarray(given, None if whole else np.float32))
    torch.manual_seed(args.seed)
    model = torch_model(args.model, args.weights)
    return compress_model(model, args.output, config, rows, **options)[0]


@contextmanager
def _progress(console: Console) -> Iterator[Any]:
    """Show which tensor is worked on: a bar on a terminal, lines elsewhere."""
    if console.quiet or not console.on_terminal:
        yield (
            lambda done, total, name: (
                console.progress(f"[{done + 1}/{total}] {name}") if name else None
            )
        )
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    with Progress(
        BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
        console=console.progress_console, transient=True,
    ) as bar:  # fmt: skip
        task = bar.add_task("", total=None)
        yield lambda done, total, name: bar.update(
            task, completed=done, total=total, description=name
        )


def _notes(made: Compressed) -> list[str]:
    """Return every note with the tensors that it is about."""
    about: dict[str, list[str]] = {}
    for record in made.records.values():
        if record.note:
            about.setdefault(record.note, []).append(record.name)
    return [
        f"{names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}: {note}"
        for note, names in about.items()
    ]


def table(made: Compressed) -> Table:
    """Return the compressed tensors as a table for the terminal; the rest in one line."""
    from rich.markup import escape
    from rich.table import Table

    shown = Table(box=None, pad_edge=False)
    shown.add_column("weight")
    for name in ("shape", "bits", "alpha", "error", "kB"):
        shown.add_column(name, justify="right", no_wrap=True)
    rest = [r for r in made.records.values() if r.method == "exact"]
    for r in made.records.values():
        if r.method == "exact":
            continue
        size = "shared" if r.same_as else f"{r.footprint.bits / 8e3:,.1f}"
        shape = " x ".join(map(str, r.shape))
        bits, alpha = r.footprint.bits_per_weight, r.footprint.alpha
        facts = (shape, f"{bits:.3f}", f"{alpha:.2f}", f"{r.error:.4f}", size)
        shown.add_row(escape(r.name), *facts)
    if rest:
        size = sum(r.footprint.bits for r in rest) / 8e3
        shown.add_row(f"{len(rest)} exact tensors", "", "", "", "", f"{size:,.1f}")
    return shown
