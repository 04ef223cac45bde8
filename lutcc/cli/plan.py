"""Choose what each layer of a torch model should become, within a budget of error.

MODEL is package.module:factory (a function without arguments that returns a torch.nn.Module), or
the built-in digits-mlp. Every linear layer and convolution is tried as look-ups, with compressed
weights and in other arithmetic: compiled, timed on this processor, and its effect on the model's
output measured on the calibration rows. The fastest (or smallest) recipe whose drop stays within
--max-drop is written: `lutcc convert` takes it on. What has been measured is kept beside it, in
RECIPE.toml.plan.json: an interrupted plan goes on there, and another budget needs no new
measurements.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from lutcc.cli.arrays import output_file, read_array
from lutcc.cli.console import Console
from lutcc.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from lutcc.planning import Plan

_GOAL = 0.15  # of the predicted time against the measured one


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the model, the data, the budget and the output."""
    parser.add_argument("model", metavar="MODEL", help="package.module:factory, or digits-mlp")
    parser.add_argument(
        "-c", "--calibration", required=True, metavar="X.npy", help="typical inputs"
    )
    parser.add_argument("-w", "--weights", metavar="W.safetensors", help="state of the model")
    parser.add_argument(
        "--max-drop", required=True, metavar="P%", help="how much the output may change: 1%%"
    )
    parser.add_argument("--objective", default="time", choices=("time", "size"))
    parser.add_argument(
        "-t", "--target", default="host", metavar="TARGET", help="one that runs here"
    )
    parser.add_argument("--rows", type=int, metavar="N", help="the batch that is timed (64)")
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
    output = output_file(args.output)
    if output.suffix == ".json":
        raise UsageError("recipes are written as TOML", where="--output", fix="name a .toml file")
    picture = output_file(args.png or str(output.with_suffix(".png")), "--png")
    rows = read_array(args.calibration, "--calibration", finite=True)
    labels = None if args.labels is None else read_array(args.labels, "--labels", ndim=1)
    import torch

    import lutcc
    from lutcc.cli.models import torch_model
    from lutcc.planning.figure import draw

    whole = np.issubdtype(rows.dtype, np.integer)
    torch.manual_seed(args.seed)
    model = torch_model(args.model, args.weights)
    kept = output.with_name(output.name + ".plan.json")
    start = time.perf_counter()
    try:
        with _progress(console) as progress:
            made = lutcc.plan(
                model,
                torch.from_numpy(np.ascontiguousarray(rows, None if whole else np.float32)),
                max_drop=budget,
                objective=args.objective,
                target=args.target,
                progress=progress,
                rows=args.rows,
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
        times = [f"{option.seconds * 1e6:,.4g}" for option in (chosen, exact)]
        shown.add_row(
            escape(layer.name or "the model"), layer.shape, chosen.label, *times, *sizes,
            f"{chosen.error:.4f}", escape(layer.reason),
        )  # fmt: skip
    for name, kind in plan.kept.items():
        reason = "looks up already: left as it is"
        shown.add_row(escape(name), "", kind, "", "", "", "", "", reason)
    return shown


def summary(plan: Plan) -> list[str]:
    """Return what the plan amounts to."""
    what = {
        "agreement": "rows whose arg max changes",
        "accuracy": "accuracy lost",
        "error": "relative error of the output",
    }[plan.measure]
    lines = [
        f"{what}: {plan.drop:.2%} on {plan.checked_rows} held-out rows, {plan.max_drop:.2%} "
        f"allowed (relative error {plan.change:.4f}, cosine {plan.cosine:.5f})",
        f"predicted: {plan.predicted_seconds * 1e6:,.4g} us a call at batch {plan.rows}, exact "
        f"{plan.exact_seconds * 1e6:,.4g} us; {plan.predicted_bytes / 1e3:,.1f} kB, exact "
        f"{plan.exact_bytes / 1e3:,.1f} kB",
    ]
    if plan.measured_seconds is not None and plan.measured_bytes is not None:
        miss = plan.miss or 0.0
        verdict = "met" if abs(miss) <= _GOAL else "MISSED"
        lines.append(
            f"measured:  {plan.measured_seconds * 1e6:,.4g} us, "
            f"{plan.measured_bytes / 1e3:,.1f} kB; the prediction is {miss:+.0%} off "
            f"(goal within {_GOAL:.0%}: {verdict})"
        )
    return [*lines, *(f"note: {note}" for note in plan.notes)]
