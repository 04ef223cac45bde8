"""Look-ups in an encoder of sentences: what is left of its embeddings, and what they gain in time.

The feed-forward layers of all-MiniLM-L6-v2 become look-ups (``lutcc.recipes.Maddness``), for
several numbers of codebooks, and once its attention projections too; LookupFFN stands beside them.
Each is converted, then distilled as a whole by ``lutcc.finetune`` on sentences of the standard
library's documentation: hidden states and embeddings are to be those of the exact model. What is
not replaced is then computed in int8, and all is compiled. Held-out sentences tell what the
compiled networks are worth: the cosine of embeddings, and how often the nearest other sentence
stays the same. They are timed in turns, on one core, beside the exact model in three precisions.

Writes results.json (an interrupted run goes on from it, and from checkpoints; one with other
``--epochs`` adds to it), artifacts, and with ``--docs`` the page's tables (those of other machines
stay), its picture and the results beside it.

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

import torch
from rich.console import Console
from torch import nn

import lutcc
from lutcc.bench.machine import describe, has_bfloat16, one_line
from lutcc.bench.readme import replace_block
from lutcc.bench.timing import pin_to_core
from lutcc.data import minilm
from lutcc.data.sentences import Sentences, load_sentences
from lutcc.recipes import Exact, LookupFFN, Maddness
from lutcc.report.embeddings import agreement
from lutcc.report.minilm import Encoder, compile_to, time_all
from lutcc.report.minilm_lookups import (
    FFN,
    PRECISIONS,
    block,
    draw,
    kept_beside,
    record,
    with_others,
)

SHAPES = ((1, 16), (1, 128))
#: What computes all that is not replaced.
REST = "int8"
VOCABULARY = 30522
#: Codebooks of a block's first and second layer, and of attention's projections if they too are
#: replaced; tables and bits of a code for LookupFFN.
SETTINGS: dict[str, tuple[int, ...]] = {
    "24-96": (24, 96),
    "48-192": (48, 192),
    "96-192": (96, 192),
    "96-192-96": (96, 192, 96),
}
TABLES, CODE_LENGTH = 64, 8
#: Sentences that layers are fitted on before the distillation: some 4500 tokens.
FITS = 224
#: Of the tables' regression: about what its search finds here, which takes most of a fit's time.
RIDGE = 128.0
ATTENTION = ("attention.self.query", "attention.self.key", "attention.self.value",
             "attention.output.dense")  # fmt: skip


Judge = Callable[[Any], dict[str, Any]]
"""Returns what the embeddings of a model, or of an artifact, are worth."""


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


class Remembered(nn.Module):
    """A teacher that computes a batch once for all epochs and pupils: 9 KB for each token."""

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self.teacher, self.known = teacher.eval(), {}

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        """Return what the teacher does."""
        key = b"".join(part.cpu().numpy().tobytes() for part in (input_ids, attention_mask))
        if key not in self.known:
            self.known[key] = self.teacher(input_ids, attention_mask)
        return self.known[key]


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
        count = codebooks // (8 if args.tiny else 1)
        return Maddness(ncodebooks=count, max_rows=4096, ridge_lambda=RIDGE)

    found = {
        f"{layers}.intermediate.dense": config(first),
        f"{layers}[0-9].output.dense": config(second),
    }
    if attention:
        found |= {f"{layers}.{layer}": config(attention[0]) for layer in ATTENTION}
    return found


def with_rest(model: nn.Module) -> nn.Module:
    """Return the model with what was not replaced computed in :data:`REST`."""
    left = any(isinstance(module, nn.Linear) for module in model.modules())
    return lutcc.convert(model, {"*": Exact(compute=REST)}) if left else model


def distil(
    name: str,
    encoder: minilm.SentenceEncoder,
    lessons: Sequence[str],
    teacher: nn.Module,
    judge: Judge,
    args: argparse.Namespace,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Convert, distil, compile, and judge what is compiled on held-out sentences."""
    started = time.thread_time()
    fits = tokens(encoder, lessons[:FITS], 32)
    small: Any = lutcc.convert(States(encoder.model), recipe(name, args), fits)
    seconds = time.thread_time() - started
    converted = judge(with_rest(small.model))
    tell(f"{name}: converted in {seconds:.0f} s, cosine {converted['cosine']}")
    started, batches = time.thread_time(), tokens(encoder, lessons, args.batch_size)
    steps = args.epochs * len(batches)
    tuned: Any = lutcc.finetune(
        small,
        batches,
        epochs=args.epochs,
        teacher=teacher,
        output=compared,
        learning_rate=args.learning_rate,
        frozen=["model.embeddings.*"],
        gradients="bfloat16" if has_bfloat16() else "float32",
        checkpoint=args.output / f"{name}-{steps}.safetensors",
        progress=lambda epoch, epochs, loss: tell(f"{name}: {epoch}/{epochs}, loss {loss:.4f}"),
    )
    trained, path = time.thread_time() - started, args.output / f"{name}.lutcc"
    model = Encoder(with_rest(tuned.model)).eval()
    artifact, _ = compile_to(path, model, "float32", VOCABULARY)  # the rest stays as it is
    found = judge(artifact)
    tell(f"{name}: distilled in {trained:.0f} s, cosine {found['cosine']}, top1 {found['top1']}")
    return {
        "name": name, "converted": converted, "distilled": found,
        "distilled_float32": judge(tuned.model), "convert_s": seconds, "distil_s": trained,
        "steps": steps, "lessons": args.lessons, "batch_size": args.batch_size,
        "ffn_steps": args.ffn_steps if name == FFN else None, "bytes": path.stat().st_size,
    }  # fmt: skip


def untrained(
    name: str, encoder: minilm.SentenceEncoder, lessons: Sequence[str], args: argparse.Namespace
) -> None:
    """Compile a network that is converted on a few sentences, or afresh: its time is the same."""
    fits = None if name == FFN else tokens(encoder, lessons[:32], 32)
    small: Any = lutcc.convert(States(encoder.model), recipe(name, args), fits)
    path, model = args.output / f"{name}.lutcc", Encoder(with_rest(small.model)).eval()
    compile_to(path, model, "float32", VOCABULARY)


def exact_networks(
    encoder: minilm.SentenceEncoder, judge: Judge, args: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Compile the exact model in each precision; return what its embeddings are worth."""
    model, found = Encoder(encoder.model).eval(), {}
    for precision in PRECISIONS:
        path = args.output / f"exact-{precision}.lutcc"
        found[precision] = judge(compile_to(path, model, precision, VOCABULARY)[0])
    return found


def measure(names: Sequence[str], args: argparse.Namespace) -> dict[str, Any]:
    """Time all artifacts in turns; return best and median milliseconds of the one thread."""
    pin_to_core()
    named = {f"exact, {precision}": f"exact-{precision}" for precision in PRECISIONS}
    named |= {name: name for name in names}
    artifacts = {k: lutcc.load(args.output / f"{file}.lutcc") for k, file in named.items()}
    for artifact in artifacts.values():
        artifact.num_threads = 1
    how: dict[str, Any] = {"seconds": 0.05, "rounds": 4 if args.tiny else 20}
    times = time_all(artifacts, SHAPES, VOCABULARY, clock=time.thread_time_ns, **how)
    return {
        f"{n} x {length}": {name: [t.best * 1e3, t.median * 1e3] for name, t in by_name.items()}
        for (n, length), by_name in times.items()
    }


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Distil what is not there yet, time, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("out/finetune_minilm"))
    parser.add_argument("--weights", type=Path, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--settings", nargs="+", choices=[*SETTINGS, FFN], default=[*SETTINGS, FFN])
    parser.add_argument(
        "--untrained", nargs="+", choices=[*SETTINGS, FFN], default=[],
        help="time these without distilling them, beside the quality that the page has of them",
    )  # fmt: skip
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
    every = kept_beside(args.docs) if args.docs is not None else []
    if args.redraw and not every:
        parser.error("--redraw needs --docs, a page with results beside it")
    if args.redraw:
        results = every[0]
    else:
        results = learn(args, file, console.print)
        if args.no_times:
            return results
        names = [run["name"] for run in results["runs"]] + results.get("untrained", [])
        results |= {"times": measure(names, args), "machine": one_line(describe())}
        results["clock"] = "CPU time of its thread"
        save(results, file)
        every = with_others(results, every)
    text = block(every)
    console.print(text, markup=False, soft_wrap=True)
    if args.docs is not None:
        page = replace_block(args.docs.read_text(encoding="utf-8"), "sentences", text)
        args.docs.write_text(page, encoding="utf-8")
        save(every, args.docs.with_suffix(".json"))
        draw(every, args.docs.with_suffix(".png"))
    if args.log is not None:
        record(results, args.log)
    return results


def learn(args: argparse.Namespace, file: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    """Compile and judge the exact networks, distil what is not there yet; return all results."""
    torch.set_num_threads(1)
    results = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    encoder = load(args.tiny, args.weights)
    text: Sentences = load_sentences(args.lessons, args.held_out, max_words=24)
    exact = encoder.embed(text.held_out, max_tokens=48)

    def judge(model: Any) -> dict[str, Any]:
        return agreement(exact, encoder.embed(text.held_out, model, max_tokens=48)).to_dict()

    if not results:
        results = {"rest": REST, "exact": exact_networks(encoder, judge, args), "runs": []}
        save(results, file)
    teacher = Remembered(States(encoder.model, rounded=has_bfloat16()))
    steps = args.epochs * -(-len(text.calibration) // args.batch_size)
    done = [run["name"] for run in results["runs"] if run["steps"] == steps]
    for name in [each for each in args.settings if each not in done]:
        given = encoder, text.calibration, teacher, judge, args, tell
        results["runs"].append(distil(name, *given))
        results["runs"].sort(key=lambda run: ([*SETTINGS, FFN].index(run["name"]), run["steps"]))
        save(results, file)
    done = [run["name"] for run in results["runs"]] + results.get("untrained", [])
    for name in [each for each in args.untrained if each not in done]:
        untrained(name, encoder, text.calibration, args)
        results["untrained"] = [*results.get("untrained", []), name]
        save(results, file)
    return results


def save(results: Any, path: Path) -> None:
    """Write plain data."""
    path.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
