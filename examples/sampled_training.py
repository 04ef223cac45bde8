"""Train small networks on samples of their column-row pairs, and compare with exact training.

Two tasks on scikit-learn's handwritten digits, each method from the same seeds, with the same
batches and the same hyper-parameters:

* a 3-layer perceptron whose forward pass is exact and whose gradients are sampled at 50 % and 10 %
  (figure 4 of the paper), in all modes: top-k, CRS, Bernoulli-CRS, WTA-CRS;
* a convolutional network that multiplies a third of its input channels, forward and backward
  (table 1 of the paper: 66 % less compute).

Writes runs.jsonl, which `lutcc report training` shows too, a page, a picture, and prints tables.
Ctrl-C keeps what is finished; the same command goes on from there.

Run: python examples/sampled_training.py                        (some minutes of one core)
     python examples/sampled_training.py --quick                (two seeds, few epochs)
     python examples/sampled_training.py --dataset mnist --data FOLDER
     python examples/sampled_training.py --dataset cifar10 --data FOLDER --tasks cnn
"""

from __future__ import annotations

import argparse
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

import lutcc
from lutcc.bench.machine import describe, one_line
from lutcc.bench.readme import replace_block
from lutcc.cli.report_training import table
from lutcc.data import ImageSplit, cifar, digits, mnist
from lutcc.recipes import Sampled
from lutcc.report.training_data import Task, summarise
from lutcc.report.training_figures import summary_png
from lutcc.report.training_markdown import against, markdown
from lutcc.report.training_page import page
from lutcc.train.classifier import ClassifierRecipe, Run, train_classifier
from lutcc.train.runlog import RunLog

MODES = ("topk", "crs", "bernoulli", "wta_crs")
HIDDEN, CHANNELS = 256, 64


@dataclass(frozen=True)
class Comparison:
    """A task: the network, how it is trained, and what each method makes of its layers."""

    title: str
    build: Callable[[ImageSplit], nn.Sequential]
    recipe: ClassifierRecipe
    methods: dict[str, dict[str, Any]]
    images: bool


def perceptron(data: ImageSplit) -> nn.Sequential:
    """Return the 3-layer perceptron."""
    pixels = data.train_x[0].size
    layers: list[tuple[str, nn.Module]] = [
        ("layer1", nn.Linear(pixels, HIDDEN)), ("relu1", nn.ReLU()),
        ("layer2", nn.Linear(HIDDEN, HIDDEN)), ("relu2", nn.ReLU()),
        ("head", nn.Linear(HIDDEN, data.classes)),
    ]  # fmt: skip
    return nn.Sequential(OrderedDict(layers))


def convolutional(data: ImageSplit) -> nn.Sequential:
    """Return the network of three convolutions; the first, of 1 or 3 channels, stays exact."""
    channels, height, width = data.train_x.shape[1:]
    features = CHANNELS * (height // 4) * (width // 4)
    layers: list[tuple[str, nn.Module]] = [
        ("first", nn.Conv2d(channels, CHANNELS, 3, padding=1)), ("relu1", nn.ReLU()),
        ("pool1", nn.MaxPool2d(2)),
        ("conv2", nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)), ("relu2", nn.ReLU()),
        ("conv3", nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)), ("relu3", nn.ReLU()),
        ("pool2", nn.MaxPool2d(2)), ("flat", nn.Flatten()), ("dropout", nn.Dropout(0.3)),
        ("head", nn.Linear(features, data.classes)),
    ]  # fmt: skip
    return nn.Sequential(OrderedDict(layers))


def backward_only(mode: str, ratio: float) -> dict[str, Any]:
    """Return the recipe that samples gradients; of the head's few outputs at least 10 are taken."""
    options = Sampled(mode=mode, sample_ratio=ratio, where="backward")
    return {"layer*": options, "head": replace(options, minimal_k=10)}


def channels(mode: str) -> dict[str, Any]:
    """Return the recipe that takes a third of the channels of all convolutions but the first."""
    return {"conv*": Sampled(mode=mode, sample_ratio=1 / 3)}


TASKS = {
    "mlp": Comparison(
        "3-layer MLP, gradients sampled",
        perceptron,
        ClassifierRecipe(epochs=30),
        {"exact": {}} | {f"{m} {r:.0%}": backward_only(m, r) for r in (0.5, 0.1) for m in MODES},
        images=False,
    ),
    "cnn": Comparison(
        "CNN, a third of the channels",
        convolutional,
        ClassifierRecipe(epochs=40),
        {"exact": {}} | {f"{m} 33%": channels(m) for m in ("topk", "topk_weights")},
        images=True,
    ),
}


def load(args: argparse.Namespace) -> ImageSplit:
    """Return the images, (N, channels, height, width)."""
    if args.dataset == "mnist":
        return mnist.load(args.data)
    if args.dataset == "cifar10":
        return cifar.load_cifar10(args.data)
    data = digits.load()
    return replace(
        data, train_x=data.train_x.reshape(-1, 1, 8, 8), test_x=data.test_x.reshape(-1, 1, 8, 8)
    )


def in_rows(data: ImageSplit) -> ImageSplit:
    """Return each image as a row."""
    return replace(
        data,
        train_x=data.train_x.reshape(len(data.train_x), -1),
        test_x=data.test_x.reshape(len(data.test_x), -1),
    )


def train(name: str, task: Comparison, images: ImageSplit, args: argparse.Namespace) -> None:
    """Train what is not finished in the log."""
    log, data = RunLog(args.output / "runs.jsonl"), images if task.images else in_rows(images)
    recipe = task.recipe if args.epochs is None else replace(task.recipe, epochs=args.epochs)
    methods = [m for m in task.methods if not args.methods or m in args.methods]
    for seed in range(args.seeds):
        for method in methods:
            run = Run(task=f"{task.title} ({args.dataset})", method=method, seed=seed)
            layers = task.methods[method]
            settings = {"layers": {key: asdict(value) for key, value in layers.items()}}
            if log.finished(run.name, {**asdict(recipe), **settings}):
                continue
            log.forget(run.name)

            def build(layers: dict[str, Any] = layers) -> nn.Module:
                exact = task.build(data)
                return lutcc.convert(exact, layers) if layers else exact

            done = train_classifier(build, data, recipe, run, log=log, settings=settings)
            found = f"accuracy {done.accuracy:.4f}, {done.seconds:.1f} s"
            print(f"{name}, {method}, seed {seed}: {found}", file=sys.stderr)


def conclusions(task: Task) -> list[str]:
    """Return whether sampling costs accuracy, and whether WTA-CRS is the better estimator."""
    lines = []
    for method in task.others:
        gap = method.difference
        if gap is None:
            continue
        within = "within" if 100 * abs(gap.mean) <= 0.5 else "not within"
        side = f"{100 * gap.mean:+.2f} points"
        lines.append(f"{method.name}: {side} against exact, {within} 0.5 points")
    for ratio in ("50%", "10%"):
        rivals = [f"{mode} {ratio}" for mode in MODES if mode != "wta_crs"]
        lines += against(task, f"wta_crs {ratio}", rivals)
    return lines


def write_docs(tasks: tuple[Task, ...], args: argparse.Namespace) -> None:
    """Write tables and the picture into a page of documentation."""
    parts = []
    for task in tasks:
        parts += [f"### {task.name}", markdown(task)]
        parts.append("\n".join(f"- {line}" for line in conclusions(task)))
    picture = args.docs.with_suffix(".png")
    summary_png(tasks, picture, dpi=90)
    parts.append(f"![Accuracy, savings and curves of each method]({picture.name})")
    parts.append(f"{one_line(describe())}.")
    text = replace_block(args.docs.read_text(encoding="utf-8"), "runs", "\n\n".join(parts))
    args.docs.write_text(text, encoding="utf-8")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="two seeds and three epochs")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="only these (all)")
    parser.add_argument("--seeds", type=int, help="how many (5)")
    parser.add_argument("--epochs", type=int, help="(30 and 40; 3 with --quick)")
    parser.add_argument("--dataset", choices=("digits", "mnist", "cifar10"), default="digits")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="of the data set's files")
    parser.add_argument("--output", type=Path, default=Path("out/sampled-training"))
    parser.add_argument("--docs", type=Path, metavar="PAGE", help="write the tables into it")
    args = parser.parse_args(argv)
    if args.dataset != "digits" and args.data is None:
        parser.error(f"--dataset {args.dataset} needs --data, the folder of its files")
    args.seeds = args.seeds or (2 if args.quick else 5)
    args.epochs = args.epochs or (3 if args.quick else None)
    return args


def main(argv: list[str] | None = None) -> tuple[Task, ...]:
    """Train, report, and return what was found."""
    args = parse(argv)
    torch.set_num_threads(1)  # products this small gain nothing from more, nor from kernels built
    lutcc.ops.set_sampled_backend("index_select")  # for them, whose choice depends on timings
    images = load(args)
    for name in args.tasks:
        train(name, TASKS[name], images, args)
    log = args.output / "runs.jsonl"
    tasks = summarise(RunLog(log).read())
    made = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    text = page(tasks, sources=[str(log)], made=made)
    (args.output / "report.html").write_text(text, encoding="utf-8")
    summary_png(tasks, args.output / "report.png")
    console = Console(highlight=False, width=130)
    for task in tasks:
        console.print(table(task), crop=False)
        console.print("\n".join(conclusions(task)) + "\n", markup=False)
    if args.docs is not None:
        write_docs(tasks, args)
    return tasks


if __name__ == "__main__":
    main()
