"""A convolutional network by look-ups, fine-tuned: what is left of its accuracy, and what it gains.

Three 3 x 3 convolutions and a classifier on scikit-learn's handwritten digits, 8 x 8; all but the
first convolution become look-ups (``lutcc.nn.MaddnessConv2d``, ``MaddnessLinear``), with a codebook
for each input channel, or for two; the first one is then computed in int8. As converted, and after
``lutcc.finetune`` with the exact network as the teacher, several seeds. The networks of the first
seed are timed in turns, on one core, beside the exact one: lutcc's float32, bfloat16 and int8,
torch's float32, bfloat16 and int8 (static, batch norms folded), and ``torch.compile`` of the first
two.

Writes results.json.

Run: python examples/finetune_cnn.py --docs docs/look-up-networks.md       (20 minutes of a core)
     python examples/finetune_cnn.py --quick                               (see that it runs)
"""

from __future__ import annotations

import argparse
import copy
import json
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import nn

import lutcc
from lutcc.bench.machine import describe, one_line
from lutcc.bench.readme import markdown_table, replace_block
from lutcc.bench.timing import burst, interleave, pin_to_core
from lutcc.data import digits
from lutcc.recipes import Exact, Maddness
from lutcc.report.accuracy_log import AccuracyRun, append_run

MODEL = "3 convolutions, 32-64-64"
#: What is not replaced, when the look-ups have been fine-tuned.
REST = {"*": Exact(compute="int8")}
#: Input channels that share a codebook.
SHARES = (1, 2)
PRECISIONS = ("float32", "bfloat16", "int8")
BATCHES = (1, 256)


def network() -> nn.Sequential:
    """Return the network, untrained."""

    def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]

    layers = [*block(1, 32, 1), *block(32, 64, 2), *block(64, 64, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def recipe(share: int) -> dict[str, Maddness]:
    """Return what becomes of all layers but the first: nine columns a codebook, or 18."""
    return {
        "3": Maddness(ncodebooks=32 // share, max_rows=8192),
        "6": Maddness(ncodebooks=64 // share, max_rows=8192),
        "11": Maddness(ncodebooks=16 // share),
    }


def exact_network(
    images: torch.Tensor, labels: torch.Tensor, seed: int, epochs: int
) -> nn.Sequential:
    """Train the network that is replaced."""
    torch.manual_seed(seed)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
    steps = epochs * -(-len(images) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for _ in range(epochs):
        for picked in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[picked]), labels[picked]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def accuracy(model: Any, images: torch.Tensor, labels: np.ndarray) -> float:
    """Return the share of images that are told right."""
    with torch.inference_mode():
        return float((np.asarray(model(images)).argmax(1) == labels).mean())


def one_run(share: int, seed: int, args: argparse.Namespace) -> tuple[dict[str, Any], Any, Any]:
    """Return the accuracies of one seed, and the exact and the fine-tuned network."""
    data = digits.load(seed=seed)
    train, test = (torch.from_numpy(x).view(-1, 1, 8, 8) for x in (data.train_x, data.test_x))
    labels = torch.from_numpy(data.train_y).long()
    exact = exact_network(train, labels, seed, 3 if args.quick else 30)
    converted = lutcc.convert(exact, recipe(share), train)
    tuned = lutcc.finetune(
        converted,
        (train, labels),
        epochs=args.epochs,
        batch_size=64,
        teacher=exact,
        noise=0.08,
        gradients="bfloat16",
        seed=seed,
    )
    tuned = lutcc.convert(tuned, REST)
    named = {"exact": exact, "converted": lutcc.convert(converted, REST), "fine-tuned": tuned}
    found: dict[str, Any] = {"share": share, "seed": seed, "epochs": args.epochs}
    found |= {name: accuracy(model, test, data.test_y) for name, model in named.items()}
    return found, exact, tuned


def static_int8(model: nn.Sequential, images: torch.Tensor) -> Any:
    """Return torch's static int8 of the network, batch norms folded into the convolutions."""
    from torch.ao.quantization import get_default_qconfig_mapping, quantize_fx

    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "x86"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            mapping = get_default_qconfig_mapping("x86")
            prepared = quantize_fx.prepare_fx(copy.deepcopy(model), mapping, (images[:1],))
            prepared(images[:256])
            return quantize_fx.convert_fx(prepared)
        finally:
            torch.backends.quantized.engine = before


def rivals(model: nn.Sequential, images: torch.Tensor, quick: bool) -> dict[str, Any]:
    """Return the exact network as others run it: callables of images."""
    half = copy.deepcopy(model).to(torch.bfloat16)
    found: dict[str, Any] = {
        "torch float32": model,
        "torch bfloat16": lambda x: half(x.bfloat16()),
        "torch int8": static_int8(model, images),
    }
    if not quick:
        found["torch.compile float32"] = torch.compile(model)
        compiled = torch.compile(half)
        found["torch.compile bfloat16"] = lambda x: compiled(x.bfloat16())
    return found


def measure(
    exact: nn.Sequential, tuned: dict[str, nn.Module], images: torch.Tensor, args: Any
) -> dict[str, dict[str, float]]:
    """Return the best milliseconds of everything, by rows of a call."""
    modules: dict[str, nn.Module] = dict(tuned)
    for precision in PRECISIONS:
        modules[f"lutcc {precision}"] = lutcc.convert(exact, {"*": Exact(compute=precision)})
    named: dict[str, Callable[..., Any]] = rivals(exact, images, args.quick)
    times: dict[str, dict[str, float]] = {}
    for batch in BATCHES[:1] if args.quick else BATCHES:
        given = images[:batch].contiguous()
        calls = {}
        for name, module in modules.items():
            artifact = lutcc.compile(module, given)
            artifact.num_threads = 1
            calls[name] = artifact
        bursts = {
            name: partial(burst, partial(call, given), least=1)
            for name, call in (calls | named).items()
        }
        with torch.inference_mode():
            found = interleave(bursts, seconds=0.03, rounds=2 if args.quick else 15)
        times[str(batch)] = {name: timing.best * 1e3 for name, timing in found.items()}
    return times


def accuracies(runs: Sequence[dict[str, Any]]) -> str:
    """Return the means over seeds, relative to the exact network, as a table in Markdown."""
    rows = []
    for share in SHARES:
        own = [run for run in runs if run["share"] == share]
        if not own:
            continue
        codebooks = " and ".join(str(count // share) for count in (32, 64))
        cells = [codebooks, f"{np.mean([run['exact'] for run in own]):.4f}"]
        for name in ("converted", "fine-tuned"):
            relative = [run[name] / run["exact"] for run in own]
            cells.append(f"{np.mean(relative):.4f} ({min(relative):.4f} to {max(relative):.4f})")
        rows.append([*cells, str(len(own))])
    header = ["codebooks", "exact", "converted, relative", "fine-tuned, relative", "seeds"]
    return markdown_table(header, rows)


def speeds(times: dict[str, dict[str, float]], machine: str) -> str:
    """Return the times as Markdown, look-ups against the fastest of each precision."""
    own = [name for name in next(iter(times.values())) if name.endswith("codebooks")]
    rows = []
    for name in next(iter(times.values())):
        cells = []
        for by_name in times.values():
            text = f"{by_name[name]:.3f}"
            for precision in PRECISIONS if name in own else ():
                best = min(t for other, t in by_name.items() if other.endswith(precision))
                ratio = best / by_name[name]
                said = f"{ratio:.2f}x" if ratio >= 1 else f"a loss, {1 / ratio:.2f}x slower"
                text += f"; {precision}: {said}"
            cells.append(text)
        rows.append([name, *cells])
    header = ["ms, best", *(f"{batch} image{'s' * (batch != '1')}" for batch in times)]
    return f"{markdown_table(header, rows)}\n\n{machine}."


def record(results: dict[str, Any], log: Path) -> None:
    """Append each seed's networks to a log of accuracies, with the time of the largest batch."""
    for run in results["runs"]:
        batch, by_name = list(results["times"].items())[-1]
        for method in ("converted", "fine-tuned"):
            ms = by_name.get(name_of(run["share"]))
            append_run(log, AccuracyRun(
                task="digits", model=MODEL, seed=run["seed"], value=run[method],
                method="maddness" if method == "converted" else "finetuned",
                setting={"columns": 9 * run["share"]}, exact=run["exact"], epochs=run["epochs"],
                time_us=None if ms is None else ms * 1e3, rows=int(batch),
            ))  # fmt: skip


def name_of(share: int) -> str:
    """Return what a network is called in tables of times."""
    return f"look-ups, {32 // share} and {64 // share} codebooks"


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run everything; return the accuracies and times."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("out/finetune_cnn"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--shares", type=int, nargs="+", choices=SHARES, default=list(SHARES))
    parser.add_argument("--quick", action="store_true", help="1 seed, few epochs, one setting")
    parser.add_argument("--docs", type=Path, help="page whose tables are rewritten")
    parser.add_argument("--log", type=Path, help="a log of accuracies to append to")
    args = parser.parse_args(argv)
    if args.quick:
        args.seeds, args.epochs, args.shares = 1, 2, [2]
    args.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    console, file = Console(), args.output / "results.json"
    results: dict[str, Any] = {"runs": []}
    if file.exists() and not args.quick:
        results = json.loads(file.read_text(encoding="utf-8"))
    kept: dict[str, nn.Module] = {}
    first: nn.Sequential | None = None
    images = torch.from_numpy(digits.load(seed=0).test_x).view(-1, 1, 8, 8)
    for share in args.shares:
        for seed in range(args.seeds):
            known = [run for run in results["runs"] if (run["share"], run["seed"]) == (share, seed)]
            if known and seed:
                continue
            found, exact, tuned = one_run(share, seed, args)
            if seed == 0:
                kept[name_of(share)], first = tuned, first or exact
            if not known:
                results["runs"].append(found)
            file.write_text(json.dumps(results, indent=1), encoding="utf-8")
            told = ", ".join(f"{name} {found[name]:.4f}" for name in list(found)[3:])
            console.print(f"{share} channels a codebook, seed {seed}: {told}")
    assert first is not None
    pin_to_core()
    results |= {"times": measure(first, kept, images, args), "machine": one_line(describe())}
    file.write_text(json.dumps(results, indent=1), encoding="utf-8")
    blocks = {"cnn": accuracies(results["runs"]),
              "cnn-speed": speeds(results["times"], results["machine"])}  # fmt: skip
    for name, text in blocks.items():
        console.print(text, markup=False)
        if args.docs:
            page = replace_block(args.docs.read_text(encoding="utf-8"), name, text)
            args.docs.write_text(page, encoding="utf-8")
    if args.log is not None:
        record(results, args.log)
    return results


if __name__ == "__main__":
    main()
