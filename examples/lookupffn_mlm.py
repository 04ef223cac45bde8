"""Pre-train a small RoBERTa with LookupFFN instead of its feed-forward blocks, then compile it.

Trains the same masked language model with dense blocks, with look-up blocks of two sizes and with
none, on equal batches for equally many steps, and prints the columns of the paper's table 1. The
larger look-up model is then compiled into one artifact and compared with torch.

Run: python examples/lookupffn_mlm.py                               (a few minutes on a CPU)
     python examples/lookupffn_mlm.py --recipe full --budget 25m    (on a GPU)

Ctrl-C keeps everything; the same command goes on where it stopped. ``--text`` takes a text of your
own; ``--docs`` writes the tables into a page, between the markers ``<!-- training:begin -->`` and
``<!-- training:end -->``.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from lutcc.bench.readme import replace_block
from lutcc.data.text import TextSplit, load
from lutcc.data.text_bpe import BytePairTokenizer
from lutcc.data.text_stdlib import load_standard_library
from lutcc.errors import LutccError, UsageError
from lutcc.train import MaskedBatches, MaskedLM, Recipe, Sizes, Trainer, steps_within
from lutcc.train.blocks import Block
from lutcc.train.compiled import Compiled, compile_and_compare
from lutcc.train.losses import LossLog
from lutcc.train.progress import TrainingDisplay
from lutcc.train.report import Row, picture, table


@dataclass(frozen=True)
class Setup:
    """A recipe with its sizes: what is trained, on how much text."""

    sizes: Sizes
    recipe: Recipe
    blocks: tuple[Block, ...]
    text_bytes: int | None
    tokenizer_bytes: int


def blocks(large: int, small: int, block_size: int) -> tuple[Block, ...]:
    """Return the four that are compared: dense, look-up with more and fewer tables, none."""
    return (
        Block("dense", "dense"),
        Block(f"lookup{large}", "lookup", large, 8, block_size),
        Block(f"lookup{small}", "lookup", small, 8, block_size),
        Block("none", "none"),
    )


SETUPS = {
    # The paper's sizes: MFLOP 4.19, 1.38, 0.69. The vocabulary is smaller than RoBERTa's 50,265.
    "full": Setup(Sizes(16384), Recipe(), blocks(256, 128, 64), None, 8_000_000),
    # A quarter of the width, of the tables and of the projection's blocks: nearly the same ratios.
    "small": Setup(
        Sizes(2048, length=64, width=128, layers=2, heads=4, pre_norm=True, local=True),
        Recipe(
            steps=800,
            batch_size=16,
            learning_rate=4e-3,
            warmup=100,
            evaluate_every=80,
            save_every=200,
            validation_sequences=512,
        ),
        blocks(64, 32, 16),
        None,
        2_000_000,
    ),
    # For tests: everything happens, nothing is learnt.
    "tiny": Setup(
        Sizes(300, length=16, width=32, layers=1, heads=2, local=True),
        Recipe(
            steps=6,
            batch_size=8,
            learning_rate=3e-3,
            warmup=2,
            evaluate_every=3,
            save_every=3,
            log_every=1,
            validation_sequences=16,
        ),
        blocks(16, 8, 4),
        60_000,
        60_000,
    ),
}


def duration(text: str) -> float:
    """Return the seconds that ``90``, ``90s``, ``25m`` or ``2h`` mean."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if match is None or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no duration such as 90s, 25m or 2h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", choices=SETUPS, default="small")
    parser.add_argument("--text", type=Path, help="a text file, a folder of them, or WikiText")
    parser.add_argument("--output", type=Path, help="default: out/lookupffn-mlm-RECIPE")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--budget", type=duration, help="training time of all models: 25m, 2h")
    parser.add_argument("--steps", type=int, help="of each model, instead of the recipe's")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--table-rate", type=float, help="factor on the tables' learning rate")
    parser.add_argument("--models", help="names joined by commas, such as dense,lookup64")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-compile", action="store_true", help="train only")
    parser.add_argument("--docs", type=Path, help="Markdown page to write the results into")
    args = parser.parse_args(argv)
    args.output = args.output or Path("out") / f"lookupffn-mlm-{args.recipe}"
    return args


def chosen(args: argparse.Namespace) -> Setup:
    """Return the recipe with the command line's changes."""
    setup = SETUPS[args.recipe]
    given = {
        name: value
        for name in ("steps", "batch_size", "learning_rate", "table_rate")
        if (value := getattr(args, name)) is not None
    }
    kept = setup.blocks
    if args.models:
        names = args.models.split(",")
        known = [block.name for block in setup.blocks]
        unknown = [name for name in names if name not in known]
        if unknown or "dense" not in names:
            raise UsageError(
                f"--models {args.models}",
                fix=f"name dense and any of {', '.join(known[1:])}",
            )
        kept = tuple(block for block in setup.blocks if block.name in names)
    return replace(setup, recipe=replace(setup.recipe, **given), blocks=kept)


class Experiment:
    """Data and models of one run of this example."""

    def __init__(self, args: argparse.Namespace, display: TrainingDisplay) -> None:
        self.args, self.display = args, display
        self.setup = chosen(args)
        self.output: Path = args.output
        self.output.mkdir(parents=True, exist_ok=True)
        self.text = self._text()
        display.say(f"{self.text.source}: {sum(map(len, self.text.train)):,} characters")
        self.tokenizer = self._tokenizer()
        self.sizes = replace(self.setup.sizes, vocabulary=self.tokenizer.vocabulary)
        self.batches = self._batches(self.text.train)
        held_out = self._batches(self.text.validation)
        # In an order of their own, so that the first ones are not all of one file.
        order = np.random.default_rng(args.seed).permutation(len(held_out.sequences))
        held_out.sequences = held_out.sequences[order]
        self.validation = held_out.fixed(self.setup.recipe.validation_sequences)
        self.recipe = self._recipe()

    def _text(self) -> TextSplit:
        limit = self.setup.text_bytes
        if self.args.text is not None:
            return load(self.args.text, max_bytes=limit)
        return load_standard_library(max_bytes=limit)

    def _tokenizer(self) -> BytePairTokenizer:
        path = self.output / "tokenizer.json"
        if path.exists():
            return BytePairTokenizer.load(path)
        self.display.say(f"finding a vocabulary of {self.setup.sizes.vocabulary} byte pairs")
        sample, left = [], self.setup.tokenizer_bytes
        for document in self.text.train:
            sample.append(document[:left])
            left -= len(sample[-1])
        tokenizer = BytePairTokenizer.train(sample, self.setup.sizes.vocabulary)
        tokenizer.save(path)
        return tokenizer

    def _batches(self, documents: tuple[str, ...]) -> MaskedBatches:
        return MaskedBatches(
            self.tokenizer.pack(documents, self.sizes.length),
            batch_size=self.setup.recipe.batch_size,
            vocabulary=self.tokenizer.vocabulary,
            seed=self.args.seed,
        )

    def _recipe(self) -> Recipe:
        """Fit the steps to the budget (kept in a file, so that a resumed run has the same)."""
        recipe, path = self.setup.recipe, self.output / "steps.json"
        if path.exists():
            steps = json.loads(path.read_text(encoding="utf-8"))["steps"]
        elif self.args.budget is None:
            return recipe if self.args.steps is None else _scaled(recipe)
        else:
            times = [self.trainer(b, recipe).seconds_per_step() for b in self.setup.blocks]
            steps = steps_within(self.args.budget, times, recipe)
            path.write_text(json.dumps({"steps": steps}), encoding="utf-8")
        recipe = _scaled(replace(recipe, steps=steps))
        self.display.say(f"{steps} steps of each model fit the budget; warm-up {recipe.warmup}")
        return recipe

    def model(self, block: Block) -> MaskedLM:
        """Return a block's new model; those of all blocks share every other initial value."""
        torch.manual_seed(self.args.seed)
        return MaskedLM(self.sizes, lambda: block.make(self.sizes.width))

    def trainer(self, block: Block, recipe: Recipe) -> Trainer:
        """Return what trains a block's model."""
        settings = {
            "text": self.text.digest(),
            "sizes": asdict(self.sizes),
            "block": asdict(block),
            "seed": self.args.seed,
        }
        return Trainer(
            self.model(block),
            self.batches,
            self.validation,
            recipe,
            self.output,
            name=block.name,
            device=self.args.device,
            settings=settings,
            report=self.display.update,
        )

    def train(self) -> tuple[list[Row], dict[str, MaskedLM]]:
        """Train every model, or go on; return the rows of the table, and the models."""
        rows, models = [], {}
        for block in self.setup.blocks:
            trainer = self.trainer(block, self.recipe)
            trained = trainer.run()
            models[block.name] = trainer.model.cpu().eval()
            rows.append(
                Row(
                    name=block.name,
                    label=block.label,
                    num_tables=block.num_tables,
                    code_length=block.code_length,
                    mflop=block.mflop(self.sizes.width),
                    parameters=sum(p.numel() for p in trainer.model.parameters()),
                    log_perplexity=trained.log_perplexity,
                )
            )
        return rows, models

    def how(self) -> str:
        """Return in words how the models were trained."""
        r, s = self.recipe, self.sizes
        tokens = r.steps * r.batch_size * s.length
        epochs = r.steps / self.batches.per_epoch
        held_out = sum(len(batch.ids) for batch in self.validation)
        return (
            f"{s.layers} layers, d = {s.width}, {s.heads} heads, sequences of {s.length}, "
            f"{s.vocabulary:,} tokens; {self.text.source} (sha256 {self.text.digest()[:12]}). "
            f"Adam, learning rate {r.learning_rate:g} (tables: times {r.table_rate:g}), warm-up of "
            f"{r.warmup} steps, linear decay, beta2 {r.beta2:g}, clipping at {r.clip:g}, "
            f"{r.steps:,} steps of {r.batch_size} sequences ({tokens / 1e6:.2f} million tokens, "
            f"{epochs:.2g} epochs), seed {self.args.seed}, on {self.args.device}. Log perplexity: "
            f"mean over the masked tokens of {held_out} held-out sequences."
        )

    def compile(self, models: dict[str, MaskedLM]) -> Compiled:
        """Compile the larger look-up model; tell what it agrees in and how fast it is."""
        block = next(block for block in self.setup.blocks if block.kind == "lookup")
        self.display.say(f"compiling {block.label} and the dense model")
        return compile_and_compare(
            models[block.name],
            models["dense"],
            self.validation,
            self.output / f"{block.name}.lutcc",
            label=block.label,
            seconds=0.2 if self.args.recipe == "tiny" else 3.0,
        )


def _scaled(recipe: Recipe) -> Recipe:
    """Return a recipe of other length with at most a tenth of the steps for the warm-up."""
    tenth = max(1, recipe.steps // 10)
    return replace(
        recipe,
        warmup=min(recipe.warmup, tenth),
        evaluate_every=min(recipe.evaluate_every, tenth),
    )


def main(argv: list[str] | None = None) -> float:
    """Run the example; return how much worse the larger look-up model is than the dense one."""
    args = parse(argv)
    with TrainingDisplay() as display:
        experiment = Experiment(args, display)
        rows, models = experiment.train()
        image = experiment.output / "comparison.png"
        picture(rows, LossLog(experiment.output / "losses.jsonl").read(), image)
        parts = [table(rows, "dense"), experiment.how()]
        results = {"rows": [asdict(row) for row in rows], "recipe": asdict(experiment.recipe)}
        if not args.no_compile and any(block.kind == "lookup" for block in experiment.setup.blocks):
            compiled = experiment.compile(models)
            parts.append(compiled.markdown())
            results["compiled"] = asdict(compiled)
    report = "\n\n".join(parts)
    (experiment.output / "report.md").write_text(report + "\n", encoding="utf-8")
    (experiment.output / "results.json").write_text(json.dumps(results, indent=2), encoding="utf-8")
    print(f"{report}\n\n{image}")
    if args.docs is not None:
        write_page(args.docs, parts, image)
    lookup = [row.log_perplexity for row in rows if row.num_tables is not None]
    return lookup[0] - rows[0].log_perplexity if lookup else math.nan


def write_page(page: Path, parts: list[str], image: Path) -> None:
    """Put the results and a copy of the picture, of the page's name, into a Markdown page."""
    copy = page.with_suffix(".png")
    shutil.copyfile(image, copy)
    shown = f"![Held-out log perplexity over steps, and over FLOPs]({copy.name})"
    block = "\n\n".join([parts[0], shown, *parts[1:]])
    text = replace_block(page.read_text(encoding="utf-8"), "training", block)
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    except LutccError as error:
        print(f"lookupffn_mlm: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError) else 1)
