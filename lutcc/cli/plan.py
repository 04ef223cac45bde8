"""Choose what each layer of a torch model should become, within a budget of error.

MODEL is an exported program (.pt2, of torch.export.save), a folder in Hugging Face's layout
(config.json and model.safetensors; needs transformers), package.module:factory (a function without
arguments that returns a torch.nn.Module), or the built-in digits-mlp. Every linear layer and
convolution is tried as look-ups, with compressed weights and in other arithmetic: compiled and
timed on this processor; where that is cheaper, its effect on the model's output is measured on the
calibration rows. The fastest (or smallest) recipe whose drop stays within --max-drop is written:
`lutcc compile` and `lutcc convert` take it on. What has been measured is kept beside it, in
RECIPE.toml.plan.json: an interrupted plan goes on there, and another budget needs few new
measurements.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lutcc.cli.arrays import existing_file, output_file, read_array
from lutcc.cli.compile_source import DEFAULT_LENGTH
from lutcc.cli.console import Console
from lutcc.cli.models import KINDS, is_factory, kind_of, torch_model
from lutcc.cli.typical import as_tensor, read_typical, text_batches
from lutcc.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from rich.table import Table
    from torch import nn

    from lutcc.planning import ChainPlan, Plan

_GOAL = 0.15  # of the predicted time against the measured one


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the model, the data, the budget and the output."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="MODEL.pt2, a Hugging Face folder, package.module:factory, or digits-mlp",
    )
    parser.add_argument(
        "-c",
        "--calibration",
        required=True,
        metavar="X",
        help="typical inputs: .npy, .npz by name; for a folder also .txt, a sentence a line",
    )
    parser.add_argument("-w", "--weights", metavar="W.safetensors", help="state of the model")
    parser.add_argument(
        "--max-drop", required=True, metavar="P%", help="how much the output may change: 1%%"
    )
    parser.add_argument("--objective", default="time", choices=("time", "size"))
    parser.add_argument(
        "-t", "--target", default="host", metavar="TARGET", help="one that runs here"
    )
    parser.add_argument(
        "--rows", type=int, metavar="N", help="the batch that is timed (64; of a folder's model 1)"
    )
    parser.add_argument(
        "--length", type=int, metavar="N", help=f"tokens of a row of a .txt ({DEFAULT_LENGTH})"
    )
    parser.add_argument("--threads", type=int, metavar="T", help="threads of a call (all cores)")
    parser.add_argument("--labels", metavar="Y.npy", help="classes: the drop is the accuracy's")
    parser.add_argument(
        "--measure", default="auto", choices=("auto", "agreement", "accuracy", "error"),
        help="what may drop (auto: accuracy with labels, agreement of classifiers, else error)",
    )  # fmt: skip
    parser.add_argument("-o", "--output", required=True, metavar="RECIPE.toml")
    parser.add_argument("--png", metavar="OUT.png", help="time against error (RECIPE.png)")
    parser.add_argument("--fresh", action="store_true", help="forget what was measured before")


def run(args: argparse.Namespace, console: Console) -> int:
    """Measure, choose, write the recipe and its picture, and tell why."""
    from lutcc.planning.api import read_max_drop

    budget = read_max_drop(args.max_drop)
    output = output_file(args.output, folder=False)
    if output.suffix == ".json":
        raise UsageError("recipes are written as TOML", where="--output", fix="name a .toml file")
    picture = output_file(args.png or str(output.with_suffix(".png")), "--png", folder=False)
    labels = None if args.labels is None else read_array(args.labels, "--labels", ndim=1)
    import lutcc
    from lutcc.planning.figure import draw

    model, typical, batch = _read(args, console)
    if labels is not None and isinstance(typical, list) and not args.calibration.endswith(".txt"):
        labels = labels_of(typical, labels, args.calibration)
    kept = output.with_name(output.name + ".plan.json")
    start = time.perf_counter()
    try:
        with _progress(console) as progress:
            made = lutcc.plan(
                model,
                typical,
                max_drop=budget,
                objective=args.objective,
                target=args.target,
                progress=progress,
                rows=batch,
                threads=args.threads,
                labels=labels,
                measure=args.measure,
                cache=kept,
                fresh=args.fresh,
            )
    except KeyboardInterrupt:
        console.progress(f"what was measured is kept in {kept}: the same command goes on with it")
        raise
    made.write(output)
    draw(made, picture)
    seconds = time.perf_counter() - start
    console.result(
        {"output": str(output), "picture": str(picture), "took": seconds, **made.to_dict()},
        table(made),
        *summary(made),
        f"written: {output}, {picture} ({seconds:.1f} s)",
    )
    return 0


def _read(args: argparse.Namespace, console: Console) -> tuple[nn.Module, Any, int | None]:
    """Return the model, typical inputs, and the batch that is timed (None: by the inputs)."""
    factory = is_factory(args.model)
    path = Path(args.model) if factory else existing_file(args.model, "MODEL")
    kind = None if factory else kind_of(path)
    if kind in ("artifact", "ir"):
        raise UsageError(
            f"{args.model!r} is {KINDS[kind]}: its layers are no longer there to be swapped",
            where="MODEL",
            fix="name the model that it was made from: an exported program, a Hugging Face folder, "
            "or package.module:factory",
        )
    if kind == "hf":
        if args.weights is not None:
            raise UsageError("a folder has its own weights", where="--weights", fix="leave it out")
        from lutcc.cli.hugging_face import check_length, load_text_model

        with console.working(f"loading {path}"):
            model = load_text_model(path)
            length = DEFAULT_LENGTH if args.length is None else args.length
            check_length(model, length)
            batches = text_batches(model, path, args.calibration, length)
        return model, batches, 1 if args.rows is None else args.rows
    if args.length is not None:
        raise UsageError(
            "a number of tokens is for Hugging Face folders only",
            where="--length",
            fix="leave it out: the inputs' shapes say it",
        )
    if kind == "pt2":
        if args.weights is not None:
            raise UsageError("a program has its own weights", where="--weights", fix="leave it out")
        from lutcc.cli.exported import program_typical, read_layers

        program = read_layers(path, console)
        return program, program_typical(program, args.calibration, args.rows), args.rows
    read = read_typical(args.calibration)
    import torch

    torch.manual_seed(args.seed)
    model = torch_model(args.model, args.weights)
    if isinstance(read, dict):
        return model, {name: as_tensor(array) for name, array in read.items()}, args.rows
    return model, as_tensor(read), args.rows


def labels_of(batches: list[dict[str, torch.Tensor]], labels: np.ndarray, text: str) -> np.ndarray:
    """Return the labels of the rows in batches: the last rows of a file may not fill one.

    Parameters
    ----------
    batches
        Of the file's rows, in their order.
    labels
        (rows of the file,); returned as they are if they are not as many.
    text
        The file.
    """
    read = read_typical(text)
    first = next(iter(batches[0]))
    rows = read if not isinstance(read, dict) else read.get(first, next(iter(read.values())))
    used = sum(len(batch[first]) for batch in batches)
    return labels[:used] if len(labels) == len(rows) else labels


@contextmanager
def _progress(console: Console) -> Iterator[Any]:
    """Show what is measured: a spinner on a terminal, a line for each layer elsewhere."""
    if console.quiet or not console.on_terminal:
        seen: set[str] = set()

        def tell(done: int, total: int, what: str) -> None:
            layer = what.partition(":")[0]
            if layer not in seen:
                seen.add(layer)
                console.progress(f"[{min(done + 1, total)}/{total}] {layer}")

        yield tell
        return
    from rich.markup import escape

    with console.progress_console.status("", spinner="dots") as status:
        yield lambda done, total, what: status.update(
            escape(f"[{min(done + 1, total)}/{total}] {what}")
        )


def table(plan: Plan) -> Table:
    """Return a line for each layer."""
    from rich.markup import escape
    from rich.table import Table

    from lutcc.planning.result import microseconds

    shown = Table(box=None, pad_edge=False)
    shown.add_column("layer", overflow="fold")
    shown.add_column("shape", no_wrap=True)
    shown.add_column("choice", no_wrap=True)
    for name in ("us", "exact", "kB", "exact", "error"):
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_column("reason", overflow="fold")
    for layer in plan.layers:
        chosen, exact = layer.chosen, layer.exact
        sizes = [f"{option.nbytes / 1e3:,.1f}" for option in (chosen, exact)]
        times = [microseconds(option.seconds) for option in (chosen, exact)]
        shown.add_row(
            escape(layer.name or "the model"), layer.shape, chosen.label, *times, *sizes,
            f"{chosen.error:.4f}", escape(layer.reason),
        )  # fmt: skip
    for chain in _shown(plan):
        times = [microseconds(chain.seconds), microseconds(chain.exact_seconds)]
        shown.add_row(
            escape(f"{chain.names[0]} to {chain.names[-1]}"), "chain", chain.choice, *times,
            "", "", f"{chain.error:.4f}", escape("taken" if chain.taken else chain.reason),
        )  # fmt: skip
    if plan.rest_seconds:
        rest = microseconds(plan.rest_seconds)
        shown.add_row("all else", "", "", rest, rest, "", "", "", "not planned for")
    for name, kind in plan.kept.items():
        reason = "looks up already: left as it is"
        shown.add_row(escape(name), "", kind, "", "", "", "", "", reason)
    return shown


def _shown(plan: Plan) -> list[ChainPlan]:
    """Return the chains that are taken, and of others that nothing taken is part of the fastest."""
    taken = [chain for chain in plan.chains if chain.taken]
    named = {name for chain in taken for name in chain.names}
    best: dict[tuple[str, ...], ChainPlan] = {}
    for chain in sorted(plan.chains, key=lambda chain: (chain.drop is None, chain.seconds)):
        within = any(set(chain.names) < set(other.names) for other in plan.chains)
        if not within and not named & set(chain.names):
            best.setdefault(chain.names, chain)
    return [*taken, *best.values()]


def summary(plan: Plan) -> list[str]:
    """Return what the plan amounts to."""
    from lutcc.planning.result import microseconds

    what = {
        "agreement": "rows whose arg max changes",
        "accuracy": "accuracy lost",
        "error": "relative error of the output",
    }[plan.measure]
    how = ""
    if plan.timed_whole:
        how = f" (timed whole; layers promised {microseconds(plan.scaled_seconds)} us)"
    lines = [
        f"{what}: {plan.drop:.2%} on {plan.checked_rows} held-out rows, {plan.max_drop:.2%} "
        f"allowed (relative error {plan.change:.4f}, cosine {plan.cosine:.5f})",
        f"predicted: {microseconds(plan.predicted_seconds)} us a call at batch {plan.rows}"
        f"{how}, exact {microseconds(plan.exact_seconds)} us; "
        f"{plan.predicted_bytes / 1e3:,.1f} kB, exact {plan.exact_bytes / 1e3:,.1f} kB",
    ]
    if plan.measured_seconds is not None and plan.measured_bytes is not None:
        miss = plan.miss or 0.0
        verdict = "met" if abs(miss) <= _GOAL else "MISSED"
        lines.append(
            f"measured:  {microseconds(plan.measured_seconds)} us, "
            f"{plan.measured_bytes / 1e3:,.1f} kB; the prediction is {miss:+.0%} off "
            f"(goal within {_GOAL:.0%}: {verdict})"
        )
    return [*lines, *(f"note: {note}" for note in plan.notes)]
