"""Sampled products against dense ones: what a step costs when part of the pairs is taken.

Everything runs on one core, in turns, in a process of torch's. A sampled product is measured whole
(scores, selection of the largest, product) and alone (given the selection), once by lutcc's kernel,
which selects as it packs, and once by ``index_select`` and torch's product of what was selected.
Dense products are those a user has: float32 by MKL and by oneDNN, bfloat16, int8. Training is a
forward pass and both gradients, which take the same pairs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lutcc.bench.baselines import ONEDNN, PRECISIONS, runs_here, write_chain
from lutcc.bench.compare import Comparison, Subject
from lutcc.bench.ffn import FAMILIES, family_of
from lutcc.bench.options import BenchOptions
from lutcc.bench.rows import OnRow, collected
from lutcc.bench.timing import Timing
from lutcc.runtime import cpu

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Shape:
    """A product of (N, K) and (K, M); b is the transpose of a layer's weight."""

    rows: int
    inner: int
    outputs: int

    @property
    def work(self) -> int:
        """Multiply-adds of the dense product."""
        return self.rows * self.inner * self.outputs

    def __str__(self) -> str:
        return f"{self.rows}, {self.inner}, {self.outputs}"


SHAPES = (Shape(4096, 1024, 1024), Shape(1024, 768, 3072), Shape(256, 1024, 1024))
QUICK_SHAPES = (Shape(1024, 512, 512),)
RATIOS = (0.5, 0.25)
DTYPES = ("float32", "bfloat16")
#: How a sampled product is computed: lutcc's names of its backends, and those printed.
WAYS = {"fused": "lutcc", "index_select": "index_select"}
#: What the fused product should take at most of the fastest dense float32, at half of the pairs.
WANTED = 0.6
#: Multiply-adds up to which dense bfloat16 is timed on a CPU that has no such products.
EMULATED_WORK = SHAPES[0].work
_INPUT = "x"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to compute one sampled product, or a dense training step.

    Attributes
    ----------
    way
        A key of :data:`WAYS`, or "dense".
    dtype
        Of both factors and the result.
    ratio
        Part of the pairs that is taken.
    part
        "whole", "product" (scores and selection left out) or "training".
    """

    way: str
    dtype: str
    ratio: float
    part: str

    @property
    def label(self) -> str:
        """What the results call it."""
        if self.way == "dense":
            return f"dense {self.dtype}"
        name = f"{WAYS[self.way]} {self.dtype} {self.ratio:g}"
        return f"{name}, product alone" if self.part == "product" else name


def prepare(candidate: Candidate, shape: Shape, seed: int) -> Callable[[], Any]:
    """Return a call that computes a candidate on random factors.

    Examples
    --------
    >>> call = prepare(Candidate("index_select", "float32", 0.5, "whole"), Shape(2, 8, 4), 0)
    >>> tuple(call().shape)
    (2, 4)
    """
    import torch

    import lutcc.ops
    from lutcc.sampling_options import SamplingOptions

    draw = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, candidate.dtype)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=draw).to(dtype)

    x, weight = normal(shape.rows, shape.inner), normal(shape.outputs, shape.inner)
    options = SamplingOptions(mode="topk", sample_ratio=candidate.ratio)

    def forward(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if candidate.way == "dense":
            return torch.nn.functional.linear(x, weight)
        lutcc.ops.set_sampled_backend(candidate.way)
        return lutcc.ops.sampled_linear(x, weight, options=options)

    if candidate.part == "training":
        x.requires_grad_()
        weight.requires_grad_()
        grad = normal(shape.rows, shape.outputs)
        return lambda: torch.autograd.grad(forward(x, weight), (x, weight), grad)
    if candidate.part == "whole":
        return torch.no_grad()(lambda: forward(x, weight))
    scores = lutcc.ops.column_row_scores(x, weight.t())
    sample = lutcc.ops.column_row_sample(scores, round(candidate.ratio * shape.inner))

    def product() -> torch.Tensor:
        lutcc.ops.set_sampled_backend(candidate.way)
        return torch.ops.lutcc.sampled_matmul(x, weight.t(), None, *sample)

    return torch.no_grad()(product)


def candidates(training: bool) -> list[Candidate]:
    """Return the sampled products that are measured; of training also the dense step."""
    if training:
        sampled = [Candidate(w, t, r, "training") for t in DTYPES for r in RATIOS for w in WAYS]
        half = [Candidate("dense", "bfloat16", 1, "training")] if _multiplies_bfloat16() else []
        return [Candidate("dense", "float32", 1, "training"), *half, *sampled]
    return [
        Candidate(way, dtype, ratio, part)
        for dtype in DTYPES
        for ratio in RATIOS
        for way in WAYS
        for part in ("whole", "product")
    ]


def _multiplies_bfloat16() -> bool:
    return bool({"avx512_bf16", "amx_bf16"} & cpu.flags())


def bench_sampled(
    options: BenchOptions,
    on_row: OnRow = None,
    shapes: Sequence[Shape] | None = None,
) -> list[dict[str, Any]]:
    """Measure every shape of :data:`SHAPES`, or the given ones.

    Returns
    -------
    list
        A row for each shape: ``forward`` and ``training``, the times (seconds) of all candidates;
        ``verdicts``, for each type and ratio (see :func:`verdict`); whether the CPU multiplies
        bfloat16 (``bf16_native``) and whether torch's dense bfloat16 was timed (``bf16_timed``).
    """
    return collected(_rows(options, shapes or (QUICK_SHAPES if options.quick else SHAPES)), on_row)


def _rows(options: BenchOptions, shapes: Sequence[Shape]) -> Iterator[dict[str, Any]]:
    native = _multiplies_bfloat16()
    random = np.random.default_rng(options.seed)
    for shape in shapes:
        half = native or shape.work <= EMULATED_WORK
        with tempfile.TemporaryDirectory(prefix="lutcc-bench-") as folder, Comparison() as compare:
            x = random.normal(size=(shape.rows, shape.inner)).astype(np.float32)
            compare.add_input(_INPUT, x)
            dense = _dense(compare, Path(folder), shape, options.seed, half)
            times = {
                what: compare.measure(
                    subjects, _INPUT, seconds=options.seconds, rounds=options.rounds
                )
                for what, subjects in (
                    ("forward", [*_sampled(compare, shape, options.seed, False), *dense]),
                    ("training", _sampled(compare, shape, options.seed, True)),
                )
            }
        yield {
            "N": shape.rows, "K": shape.inner, "M": shape.outputs, "isa": cpu.best_isa() or "",
            "bf16_native": native, "bf16_timed": half,
            **{what: {k: asdict(t) for k, t in found.items()} for what, found in times.items()},
            "verdicts": [
                verdict(times["forward"], times["training"], dtype, ratio)
                for dtype in DTYPES
                for ratio in RATIOS
            ],
        }  # fmt: skip


def _dense(compare: Comparison, folder: Path, shape: Shape, seed: int, half: bool) -> list[Subject]:
    """Load a layer in every precision; bfloat16 only if ``half``."""
    import torch

    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape.outputs, shape.inner, generator=draw)
    path = folder / "dense.safetensors"
    write_chain(str(path), [(weight, None)])
    # float32 in and out would cast on top of bfloat16's product
    chosen = [p for p in (*PRECISIONS, *ONEDNN) if p != "bf16_cast" and runs_here(p)]
    return compare.add_dense("dense", path, [p for p in chosen if half or not p.startswith("bf16")])


def _sampled(compare: Comparison, shape: Shape, seed: int, training: bool) -> list[Subject]:
    return [
        compare.add_product(c.label, _INPUT, asdict(c), asdict(shape), seed)
        for c in candidates(training)
    ]


def verdict(
    forward: dict[str, Timing], training: dict[str, Timing], dtype: str, ratio: float
) -> dict[str, Any]:
    """Compare lutcc's sampled product of one type and ratio with the others.

    Returns
    -------
    dict
        ``speedup``: family -> (time of its fastest dense candidate) / (time of the whole forward
        pass): below 1 is a loss; None where it was not timed. ``index_select``: the same of that
        way; ``share``: the whole over the fastest dense float32; ``training``: the dense float32
        step over the sampled one; ``training_index_select`` the other way over lutcc's.
    """
    mine = forward[f"lutcc {dtype} {ratio:g}"].best
    other = f"index_select {dtype} {ratio:g}"
    dense = {k: t.best for k, t in forward.items() if not k.startswith(tuple(WAYS.values()))}
    best: dict[str, float | None] = {
        family: min((b for k, b in dense.items() if family_of(k) == family), default=None)
        for family in FAMILIES
    }
    step = training[f"lutcc {dtype} {ratio:g}"].best
    exact = min(b for k, b in dense.items() if "float32" in family_of(k))
    return {
        "dtype": dtype,
        "ratio": ratio,
        "speedup": {f: None if b is None else round(b / mine, 6) for f, b in best.items()},
        "index_select": round(forward[other].best / mine, 6),
        "share": round(mine / exact, 6),
        "training": round(training["dense float32"].best / step, 6),
        "training_index_select": round(training[other].best / step, 6),
    }
