"""Compile all-MiniLM-L6-v2 in three precisions and time it beside torch and onnxruntime.

One artifact per precision serves any batch and any length: exact float32, bfloat16 and int8
(``lutcc.recipes.Exact``; no calibration). Says how far each is from torch's float32, and how long
batches take on one core, in turns. A loss is printed as a loss.

Writes the artifacts and results.json.

Run: python examples/compile_minilm.py                    (some minutes: torch.compile compiles too)
     python examples/compile_minilm.py --docs README.md
     python examples/compile_minilm.py --tiny --quick     (a small random BERT: see that it runs)
"""

from __future__ import annotations

import argparse
import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import nn

import lutcc
from lutcc.bench.machine import describe, one_line
from lutcc.bench.readme import markdown_table, replace_block
from lutcc.bench.timing import Timing, pin_to_core
from lutcc.data import minilm
from lutcc.report.minilm import (
    PRECISIONS,
    SHAPES,
    Encoder,
    compile_to,
    distance,
    random_tokens,
    time_all,
)


def load(args: argparse.Namespace) -> tuple[Encoder, int]:
    """Return the model and the size of its vocabulary."""
    if not args.tiny:
        model = minilm.load(args.weights).model
        encoder = Encoder(model)
        encoder.eval()
        return encoder, 30522
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=200, intermediate_size=64, **sizes)
    encoder = Encoder(BertModel(config, add_pooling_layer=False))
    encoder.eval()
    return encoder, 200


def compile_all(
    model: nn.Module, vocabulary: int, args: argparse.Namespace, console: Console
) -> tuple[dict[str, lutcc.Artifact], list[dict[str, Any]]]:
    """Compile each precision; return the artifacts, and what is told of each."""
    check = random_tokens(3, 21, vocabulary)
    with torch.inference_mode():
        exact = model(*check)
    artifacts, told = {}, []
    for name in args.precisions:
        path = args.output / f"{name}.lutcc"
        artifacts[name], seconds = compile_to(path, model, name, vocabulary)
        gap, cosine = distance(artifacts[name](*check), exact, check[1])
        row = {"precision": name, "compile_s": round(seconds, 1), "bytes": path.stat().st_size}
        told.append(row | {"difference": gap, "cosine": cosine})
        console.print(f"{name}: compiled in {seconds:.1f} s, differs by {gap:.2g}")
    return artifacts, told


def peers(model: nn.Module, args: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Return what a user has otherwise, by name: callables of tokens."""
    found: dict[str, Any] = {"torch, float32": model}
    if not args.quick:
        half = copy.deepcopy(model).to(torch.bfloat16)
        found["torch, bfloat16"] = half
        found["torch.compile, float32"] = torch.compile(model, dynamic=True)
        found["torch.compile, bfloat16"] = torch.compile(half, dynamic=True)
    try:
        found |= onnx_sessions(model, args)
    except Exception as error:  # whatever the exporter lacks here
        console.print(f"onnxruntime is left out: {str(error).splitlines()[0]}")
    return found


def onnx_sessions(model: nn.Module, args: argparse.Namespace) -> dict[str, Callable[..., Any]]:
    """Return onnxruntime's float32 and int8 (dynamic quantisation), on one thread."""
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    plain, small = args.output / "model.onnx", args.output / "model-int8.onnx"
    sizes = {0: "n", 1: "length"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, random_tokens(2, 16, 100), str(plain), input_names=["ids", "mask"],
            output_names=["states"], dynamic_axes={"ids": sizes, "mask": sizes, "states": sizes},
            dynamo=False,
        )  # fmt: skip
    quantize_dynamic(plain, small, weight_type=QuantType.QInt8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3

    def caller(path: Path) -> Callable[..., Any]:
        session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
        return lambda ids, mask: session.run(None, {"ids": ids.numpy(), "mask": mask.numpy()})

    return {"onnxruntime, float32": caller(plain), "onnxruntime, int8": caller(small)}


def measure(
    artifacts: dict[str, lutcc.Artifact],
    others: dict[str, Any],
    vocabulary: int,
    args: argparse.Namespace,
) -> dict[tuple[int, int], dict[str, Timing]]:
    """Time all on each shape, in turns."""
    named = {f"lutcc, {name}": artifact for name, artifact in artifacts.items()} | others
    shapes = SHAPES[:1] if args.quick else SHAPES
    return time_all(named, shapes, vocabulary, seconds=0.05, rounds=2 if args.quick else 8)


def speed_table(times: dict[tuple[int, int], dict[str, Timing]]) -> str:
    """Return the times, and lutcc's against the fastest other of the same precision."""
    shapes = list(times)
    rows = []
    for name in next(iter(times.values())):
        cells = [name]
        for shape in shapes:
            timing = times[shape][name]
            text = f"{timing.best * 1e3:.2f} ({timing.median * 1e3:.2f})"
            if name.startswith("lutcc"):
                text += f", {verdict(times[shape], name)}"
            cells.append(text)
        rows.append(cells)
    return markdown_table(["ms, best (median)", *(f"{n} x {length}" for n, length in shapes)], rows)


def verdict(times: dict[str, Timing], name: str) -> str:
    """Return how lutcc does against the fastest other of its precision."""
    precision = name.rpartition(", ")[2]
    rivals = {
        other: timing
        for other, timing in times.items()
        if other.endswith(precision) and not other.startswith("lutcc")
    }
    if not rivals:
        return "alone"
    ratio = min(t.best for t in rivals.values()) / times[name].best
    return f"{ratio:.2f}x" if ratio >= 1 else f"a loss, {1 / ratio:.2f}x slower"


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Compile, compare, time."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("out/compile_minilm"))
    parser.add_argument("--weights", type=Path, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--docs", type=Path, metavar="PAGE", help="write the tables into it")
    parser.add_argument("--tiny", action="store_true", help="a small random BERT instead")
    parser.add_argument("--quick", action="store_true", help="one shape, fewer rivals")
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    model, vocabulary = load(args)
    artifacts, told = compile_all(model, vocabulary, args, console)
    if not args.quick:
        pin_to_core()
        torch.set_num_threads(1)
    times = measure(artifacts, peers(model, args, console), vocabulary, args)
    about = [
        [
            str(row["precision"]),
            f"{row['compile_s']} s",
            f"{row['bytes'] / 1e6:.1f} MB",
            f"{row['difference']:.2g}",
            f"{row['cosine']:.5f}",
        ]
        for row in told
    ]
    header = ["precision", "compiled in", "artifact", "largest difference", "least cosine"]
    text = f"{markdown_table(header, about)}\n\n{speed_table(times)}\n\n{one_line(describe())}."
    print(text)
    if args.docs is not None:
        page = replace_block(args.docs.read_text(encoding="utf-8"), "minilm", text)
        args.docs.write_text(page, encoding="utf-8")
    found = {
        "precisions": told,
        "times": {
            f"{n}x{length}": {name: [t.best, t.median] for name, t in by_name.items()}
            for (n, length), by_name in times.items()
        },
    }
    (args.output / "results.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    return {**found, "text": text}


if __name__ == "__main__":
    np.set_printoptions(precision=4)
    main()
