"""Look-ups in an encoder of sentences: what is left of its embeddings, and what they gain in time.

The feed-forward layers of all-MiniLM-L6-v2 become look-ups (``lutcc.recipes.Maddness``), for
several numbers of codebooks, and once its attention projections too; LookupFFN stands beside them.
Each is converted, then distilled as a whole by ``lutcc.finetune`` on sentences of the standard
library's documentation: hidden states and embeddings are to be those of the exact model. Held-out
sentences tell the cosine of embeddings, and how often the nearest other sentence stays the same.
All are compiled, and timed in turns, on one core, beside the exact model in three precisions.

Writes results.json (an interrupted run goes on from it, and from checkpoints), artifacts, and with
``--docs`` the page's table, its picture and the results beside it.

Run: python examples/finetune_minilm.py --docs docs/look-up-networks.md     (hours of one core)
     python examples/finetune_minilm.py --settings 48-192 --lessons 2000 --epochs 1
     python examples/finetune_minilm.py --redraw --docs docs/look-up-networks.md
     python examples/finetune_minilm.py --tiny       (a small random BERT: see that it runs)
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import nn

import lutcc
from lutcc.bench.machine import describe, one_line
from lutcc.bench.readme import markdown_table, replace_block
from lutcc.bench.timing import pin_to_core
from lutcc.data import minilm
from lutcc.data.sentences import Sentences, load_sentences
from lutcc.recipes import LookupFFN, Maddness
from lutcc.report.accuracy_log import AccuracyRun, append_run
from lutcc.report.embeddings import agreement
from lutcc.report.figure_style import COLOURS, open_figure
from lutcc.report.minilm import Encoder, compile_to, time_all

SHAPES = ((1, 16), (1, 128))
PRECISIONS = ("float32", "bfloat16", "int8")
#: Codebooks of a block's first and second layer, and of attention's projections if they too are
#: replaced; tables and bits of a code for LookupFFN.
SETTINGS: dict[str, tuple[int, ...]] = {
    "24-96": (24, 96),
    "48-192": (48, 192),
    "96-192": (96, 192),
    "96-192-96": (96, 192, 96),
}
FFN = "LookupFFN"
TABLES, CODE_LENGTH = 64, 8
#: Sentences that layers are fitted on before the distillation.
FITS = 384
ATTENTION = ("attention.self.query", "attention.self.key", "attention.self.value",
             "attention.output.dense")  # fmt: skip


class States(nn.Module):
    """An encoder that returns the hidden states behind each layer."""

    def __init__(self, model: nn.Module, rounded: bool = False) -> None:
        super().__init__()
        self.model, self.rounded = model, rounded

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        """Return a tuple of (N, L, D)."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.rounded):
            found = self.model(input_ids, attention_mask, output_hidden_states=True)
        return tuple(state.float() for state in found.hidden_states[1:])


def compared(states: Any, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Return the embeddings, and the states of each layer where there are words."""
    mask = inputs["attention_mask"]
    return [minilm.pooled(states[-1], mask), *(state[mask.bool()] for state in states)]


def load(tiny: bool, weights: Path | None) -> minilm.SentenceEncoder:
    """Return the model and its tokenizer."""
    encoder = minilm.load(weights)
    if not tiny:
        return encoder
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 64, "initializer_range": 0.2}
    config = BertConfig(vocab_size=30522, **sizes)
    model = BertModel(config, add_pooling_layer=False).eval()
    return minilm.SentenceEncoder(model, encoder.tokenizer)


def tokens(encoder: minilm.SentenceEncoder, text: Sequence[str], size: int) -> list[dict[str, Any]]:
    """Return batches of what models take."""
    names = ("input_ids", "attention_mask")
    return [
        {name: batch[name] for name in names}
        for batch in encoder.batches(text, batch_size=size, max_tokens=48)
    ]


def recipe(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return what becomes of which layers."""
    layers = "model.encoder.layer.*"
    if name == FFN:
        steps = 5 if args.tiny else args.ffn_steps
        blocks = LookupFFN(
            num_tables=TABLES, code_length=4 if args.tiny else CODE_LENGTH, projection="bh4",
            block_size=16 if args.tiny else 64, table_dtype="bfloat16", steps=steps,
        )  # fmt: skip
        return {f"{layers}[0-9]": blocks}
    first, second, *attention = SETTINGS[name]

    def config(codebooks: int) -> Maddness:
        return Maddness(ncodebooks=codebooks // (8 if args.tiny else 1), max_rows=4096)

    found = {
        f"{layers}.intermediate.dense": config(first),
        f"{layers}[0-9].output.dense": config(second),
    }
    if attention:
        found |= {f"{layers}.{layer}": config(attention[0]) for layer in ATTENTION}
    return found


def distil(
    name: str,
    encoder: minilm.SentenceEncoder,
    text: Sentences,
    exact: np.ndarray,
    args: argparse.Namespace,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Convert, distil, and judge on held-out sentences; write the artifact."""

    def judge(model: nn.Module) -> dict[str, Any]:
        return agreement(exact, encoder.embed(text.held_out, model, max_tokens=48)).to_dict()

    started = time.thread_time()
    lessons = tokens(encoder, text.calibration, args.batch_size)
    fits = tokens(encoder, text.calibration[:FITS], 32)
    small = lutcc.convert(States(encoder.model), recipe(name, args), fits)
    converted, seconds = judge(small.model), time.thread_time() - started  # type: ignore[arg-type]
    tell(f"{name}: converted in {seconds:.0f} s, cosine {converted['cosine']}")
    started = time.thread_time()
    tuned = lutcc.finetune(
        small,
        lessons,
        epochs=args.epochs,
        teacher=States(encoder.model, rounded=True),
        output=compared,
        learning_rate=args.learning_rate,
        frozen=["model.embeddings.*"],
        gradients="bfloat16",
        checkpoint=args.output / f"{name}.safetensors",
        progress=lambda epoch, epochs, loss: tell(f"{name}: {epoch}/{epochs}, loss {loss:.4f}"),
    )
    trained = time.thread_time() - started
    model: Any = tuned.model
    found = judge(model)
    tell(f"{name}: distilled in {trained:.0f} s, cosine {found['cosine']}, top1 {found['top1']}")
    compile_to(args.output / f"{name}.lutcc", Encoder(model).eval(), "float32", 30522)
    return {
        "name": name, "converted": converted, "distilled": found, "convert_s": seconds,
        "distil_s": trained, "steps": args.epochs * len(lessons), "lessons": args.lessons,
        "batch_size": args.batch_size, "ffn_steps": args.ffn_steps if name == FFN else None,
        "bytes": (args.output / f"{name}.lutcc").stat().st_size,
    }  # fmt: skip


def measure(names: Sequence[str], encoder: minilm.SentenceEncoder, args: Any) -> dict[str, Any]:
    """Time all artifacts and the exact model's in turns; return best and median milliseconds."""
    pin_to_core()
    named: dict[str, Any] = {}
    for precision in PRECISIONS:
        path = args.output / f"exact-{precision}.lutcc"
        if not path.exists():
            compile_to(path, Encoder(encoder.model).eval(), precision, 30522)
        named[f"exact, {precision}"] = path
    named |= {name: args.output / f"{name}.lutcc" for name in names}
    artifacts = {name: lutcc.load(path) for name, path in named.items()}
    for artifact in artifacts.values():
        artifact.num_threads = 1
    times = time_all(artifacts, SHAPES, 30522, seconds=0.05, rounds=4 if args.tiny else 20)
    return {
        f"{n} x {length}": {name: [t.best * 1e3, t.median * 1e3] for name, t in by_name.items()}
        for (n, length), by_name in times.items()
    }


def table(results: dict[str, Any]) -> str:
    """Return quality and times as Markdown; each time against the fastest exact one."""
    times = results["times"]
    header = ["", "cosine, converted", "cosine", "least 5 %", "same nearest", "same ten nearest",
              *(f"{shape}, ms" for shape in times)]  # fmt: skip
    rows = []
    for precision in PRECISIONS:
        cells = [f"{by_name[f'exact, {precision}'][0]:.2f}" for by_name in times.values()]
        rows.append([f"exact, {precision}", "", "", "", "", "", *cells])
    for run in results["runs"]:
        found = run["distilled"]
        cells = [f"{run['converted']['cosine']:.3f}", f"{found['cosine']:.3f}"]
        cells += [f"{found[key]:.3f}" for key in ("cosine_p5", "top1", "top10")]
        for by_name in times.values():
            fastest = min(by_name[f"exact, {precision}"][0] for precision in PRECISIONS)
            ratio = fastest / by_name[run["name"]][0]
            said = f"{ratio:.2f}x" if ratio >= 1 else f"a loss, {1 / ratio:.2f}x slower"
            cells.append(f"{by_name[run['name']][0]:.2f}, {said}")
        rows.append([run["name"], *cells])
    seconds = ", ".join(
        f"{r['name']} {r['steps']} steps, {r['distil_s']:.0f} s" for r in results["runs"]
    )
    first = results["runs"][0]
    note = (
        f"Distilled on {first['lessons']} sentences, {first['batch_size']} a step, CPU seconds of "
        f"one thread on a shared machine: {seconds}; judged on {first['distilled']['sentences']} "
        f"held-out sentences. {results['machine']}."
    )
    return f"{markdown_table(header, rows)}\n\n{note}"


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw cosine against time, a panel for each shape."""
    times = results["times"]
    colour = {name: pair[0] for name, pair in COLOURS.items()}
    with open_figure(9.0, 3.4) as figure:
        for axes, (shape, by_name) in zip(
            figure.subplots(1, len(times), sharey=True, squeeze=False)[0],
            times.items(),
            strict=True,
        ):
            for place, precision in enumerate(PRECISIONS):
                best = by_name[f"exact, {precision}"][0]
                axes.axvline(best, color=colour[f"safe{place}"], label=f"exact, {precision}")
            dots = [(r["name"], by_name[r["name"]][0], r) for r in results["runs"]]
            for kind in ("look-ups", FFN):
                chosen = [dot for dot in dots if (dot[0] == FFN) == (kind == FFN)]
                look = {"marker": "s" if kind == FFN else "o", "linestyle": "none"}
                for state, fill in (("converted", "none"), ("distilled", colour["ink"])):
                    axes.plot(
                        [time for _, time, _ in chosen],
                        [run[state]["cosine"] for *_, run in chosen],
                        markeredgecolor=colour["ink"], markerfacecolor=fill,
                        label=f"{kind}, {state}", **look,
                    )  # fmt: skip
            for name, ms, run in dots:
                axes.annotate(name, (ms, run["distilled"]["cosine"]), xytext=(4, 4),
                              textcoords="offset points", fontsize=7)  # fmt: skip
            axes.set(title=f"{shape} tokens, one core", xlabel="milliseconds", ylim=(None, 1.0))
        figure.axes[0].set_ylabel("cosine of embeddings")
        figure.axes[-1].legend(fontsize=6.5, loc="lower right")
        figure.savefig(path, dpi=130)


def record(results: dict[str, Any], log: Path, task: str) -> None:
    """Append a line per network and shape to a log of accuracies."""
    for run in results["runs"]:
        for shape, by_name in results["times"].items():
            append_run(log, AccuracyRun(
                task=task, model="all-MiniLM-L6-v2", metric="cosine", seed=0, exact=1.0,
                method="lookup-ffn" if run["name"] == FFN else "finetuned",
                setting={"codebooks": run["name"], "shape": shape}, steps=run["steps"],
                value=run["distilled"]["cosine"], rows=int(shape.split(" x ")[1]),
                time_us=by_name[run["name"]][0] * 1e3,
            ))  # fmt: skip


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Distil what is not there yet, time, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("out/finetune_minilm"))
    parser.add_argument("--weights", type=Path, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--settings", nargs="+", choices=[*SETTINGS, FFN], default=[*SETTINGS, FFN])
    parser.add_argument("--lessons", type=int, default=7000, help="sentences to learn from")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=0.04)
    parser.add_argument("--ffn-steps", type=int, default=1000, help="of LookupFFN's own start")
    parser.add_argument("--held-out", type=int, default=1024)
    parser.add_argument("--no-times", action="store_true", help="distil only")
    parser.add_argument("--redraw", action="store_true", help="of the results beside the page")
    parser.add_argument("--docs", type=Path, metavar="PAGE")
    parser.add_argument("--log", type=Path, help="a log of accuracies to append to")
    parser.add_argument("--tiny", action="store_true", help="a small random BERT instead")
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    console, file = Console(stderr=True), args.output / "results.json"
    kept = args.docs.with_suffix(".json") if args.docs and args.redraw else file
    results = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {"runs": []}
    if not args.redraw:
        torch.set_num_threads(1)
        encoder = load(args.tiny, args.weights)
        text = load_sentences(args.lessons, args.held_out, max_words=24)
        exact = encoder.embed(text.held_out, max_tokens=48)
        for name in args.settings:
            if any(run["name"] == name for run in results["runs"]):
                continue
            results["runs"].append(distil(name, encoder, text, exact, args, console.print))
            file.write_text(json.dumps(results, indent=1), encoding="utf-8")
        if not args.no_times:
            names = [run["name"] for run in results["runs"]]
            results |= {"times": measure(names, encoder, args), "machine": one_line(describe())}
            file.write_text(json.dumps(results, indent=1), encoding="utf-8")
    if "times" not in results:
        return results
    text_table = table(results)
    console.print(text_table, markup=False)
    if args.docs is not None:
        page = replace_block(args.docs.read_text(encoding="utf-8"), "sentences", text_table)
        args.docs.write_text(page, encoding="utf-8")
        args.docs.with_suffix(".json").write_text(json.dumps(results, indent=1), encoding="utf-8")
        draw(results, args.docs.with_suffix(".png"))
    if args.log is not None:
        record(results, args.log, "sentences")
    return results


if __name__ == "__main__":
    main()
