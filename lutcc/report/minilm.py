"""all-MiniLM-L6-v2 compiled in several precisions, beside torch: part of the demonstration.

One artifact per precision serves any batch and any length. Exact layers need no calibration.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import lutcc
from lutcc.bench.timing import Timing, burst, interleave
from lutcc.data.minilm import SentenceEncoder, pooled
from lutcc.recipes import Exact

SHAPES = ((1, 16), (1, 128), (32, 128))
"""Batch and tokens of a row."""
PRECISIONS: dict[str, str | None] = {"float32": None, "bfloat16": "bfloat16", "int8": "int8"}
"""Name, and what linear layers compute in."""
SENTENCES = (
    "The cat sits outside and looks at the birds.",
    "A man is playing a guitar on the stage.",
    "The new film is a great success.",
    "Tables are looked up instead of multiplied.",
    "Someone performs music for an audience.",
    "A kitten watches sparrows in the garden.",
    "Precomputed values take the place of products.",
    "Everybody went to see the movie.",
)

Tokens = tuple[torch.Tensor, torch.Tensor]


class Encoder(nn.Module):
    """The hidden states alone, of positional arguments, as all frameworks take them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return (N, L, D)."""
        return self.model(input_ids, attention_mask).last_hidden_state


def random_tokens(rows: int, length: int, vocabulary: int) -> Tokens:
    """Return random tokens; the second half of the rows is padded at the end."""
    draw = torch.Generator().manual_seed(rows * length)
    ids = torch.randint(vocabulary // 10, vocabulary, (rows, length), generator=draw)
    mask = torch.ones_like(ids)
    mask[(rows + 1) // 2 :, length - length // 4 :] = 0
    return ids, mask


def distance(found: torch.Tensor, exact: torch.Tensor, mask: torch.Tensor) -> tuple[float, float]:
    """Return the largest difference where there are tokens, and the least cosine of a row."""
    gap = ((found - exact).abs() * mask[..., None]).max()
    cosine = (pooled(found, mask) * pooled(exact, mask)).sum(-1).min()
    return float(gap), float(cosine)


def compile_to(
    path: Path, model: nn.Module, precision: str, vocabulary: int, target: str = "host"
) -> tuple[lutcc.Artifact, float]:
    """Compile an encoder for any batch and length, save it, and load it, for one thread.

    Returns
    -------
    The artifact, and seconds of the conversion and compilation.
    """
    compute = PRECISIONS[precision]
    started = time.perf_counter()
    chosen = lutcc.convert(model, {"*": Exact(compute=compute)}) if compute else model
    example = random_tokens(2, 16, vocabulary)
    sizes = {0: "n", 1: "length"}
    artifact = lutcc.compile(chosen, example, target=target, dynamic=sizes, cache=False)
    seconds = time.perf_counter() - started
    artifact.save(path)
    loaded = lutcc.load(path)
    loaded.num_threads = 1
    return loaded, seconds


def time_all(
    named: Mapping[str, Callable[..., Any]],
    shapes: Sequence[tuple[int, int]],
    vocabulary: int,
    *,
    seconds: float,
    rounds: int,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> dict[tuple[int, int], dict[str, Timing]]:
    """Time callables of tokens on each shape, in turns; ``clock`` as of ``burst``."""
    times = {}
    for shape in shapes:
        given = random_tokens(*shape, vocabulary)
        calls = {
            name: partial(burst, partial(call, *given), least=1, clock=clock)
            for name, call in named.items()
        }
        with torch.inference_mode():
            times[shape] = interleave(calls, seconds=seconds, rounds=rounds)
    return times


def run_minilm(
    encoder: SentenceEncoder,
    output: Path,
    progress: Callable[[str], None],
    *,
    target: str = "host",
    precisions: Sequence[str] = ("float32", "int8"),
    vocabulary: int = 30522,
    sentences: Sequence[str] = SENTENCES,
) -> dict[str, Any]:
    """Compile, compare embeddings of sentences with torch's, and time one row, on one thread.

    Returns
    -------
    Plain data: ``models`` (rows with times by shape), ``pairs`` (each sentence, and the nearest
    other one by torch's embeddings and by each artifact's).
    """
    model = Encoder(encoder.model).eval()
    tokens = encoder.tokens(sentences)
    given = tokens["input_ids"], tokens["attention_mask"]
    named: dict[str, Callable[..., Any]] = {}
    rows: list[dict[str, Any]] = []
    with _one_thread():
        with torch.inference_mode():
            exact = model(*given)
        nearest = {"torch float32": _nearest(pooled(exact, given[1]))}
        for precision in precisions:
            progress(f"all-MiniLM-L6-v2: compiling in {precision} for {target}")
            path = output / f"minilm-{precision}.lutcc"
            artifact, seconds = compile_to(path, model, precision, vocabulary, target)
            found = artifact(*given)
            gap, cosine = distance(found, exact, given[1])
            label = f"lutcc {precision}"
            named[label] = artifact
            nearest[label] = _nearest(pooled(found, given[1]))
            rows.append(
                {"label": label, "compile_s": seconds, "bytes": path.stat().st_size,
                 "difference": gap, "cosine": cosine, "isa": artifact.isa}
            )  # fmt: skip
        named["torch float32"] = model
        size = sum(value.numel() * value.element_size() for value in model.parameters())
        rows.append({"label": "torch float32", "bytes": size, "difference": 0.0, "cosine": 1.0})
        progress("all-MiniLM-L6-v2: timing, in turns, on one core")
        times = time_all(named, SHAPES[:2], vocabulary, seconds=0.05, rounds=6)
    for row in rows:
        row["times"] = {f"{n} x {m}": asdict(t[row["label"]]) for (n, m), t in times.items()}
    pairs = [
        {"sentence": text, **{name: sentences[places[i]] for name, places in nearest.items()}}
        for i, text in enumerate(sentences)
    ]
    return {"models": rows, "pairs": pairs}


def _nearest(unit: torch.Tensor) -> list[int]:
    """Return for each row the place of the other one with the largest cosine."""
    scores = unit @ unit.T
    scores.fill_diagonal_(-np.inf)
    return scores.argmax(1).tolist()


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
