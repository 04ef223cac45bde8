"""Whole layers: a MADDNESS layer, float32 row-major in and out, against torch's of its shape."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lutcc.bench.baselines import PRECISIONS, write_chain
from lutcc.bench.compare import Comparison
from lutcc.bench.options import BenchOptions
from lutcc.bench.rows import OnRow, collected
from lutcc.bench.timing import Timing

if TYPE_CHECKING:
    from lutcc import ir

# (D, M, C) and the batch sizes at which each is measured.
SHAPES = (
    ((512, 512, 64), (1, 64, 1024)),
    ((1024, 1024, 64), (1, 64, 4096)),
    ((768, 3072, 64), (1, 1024)),
)
QUICK_SHAPES = (((512, 512, 64), (1, 1024)),)


def random_lookup_layer(D: int, M: int, C: int, *, K: int = 16, seed: int = 0) -> ir.Module:
    """Return a MADDNESS layer (n, D) -> (n, M) with random trees and tables.

    Its speed does not depend on their values.
    """
    from lutcc import ir

    random = np.random.default_rng(seed)
    depth = K.bit_length() - 1
    edges = np.linspace(0, D, C + 1).astype(int)
    dims = [random.integers(edges[c], edges[c + 1], depth) for c in range(C)]
    b = ir.Builder("main")
    x = b.param("x", ir.TensorType((ir.Sym("n"), D), "float32"))
    splitdims = b.constant("splitdims", np.array(dims, np.int32))
    splitvals = b.constant("splitvals", random.normal(size=(C, K)).astype(np.float32))
    lut = b.constant("lut", random.integers(0, 256, (C, K, M)).astype(np.uint8))
    scale = b.constant("scale", np.full(M, 1 / 256, np.float32))
    offset = b.constant("offset", random.normal(size=M).astype(np.float32))
    sums = b.op("lut_accumulate", b.op("tree_encode", x, splitdims, splitvals), lut)
    b.returns(b.op("lut_dequantize", sums, scale, offset))
    return b.module()


def bench_layers(options: BenchOptions, on_row: OnRow = None) -> list[dict[str, Any]]:
    """Measure every shape of :data:`SHAPES`; a row per batch size: all times and the ratios."""
    return collected(_rows(options), on_row)


def _rows(options: BenchOptions) -> Iterator[dict[str, Any]]:
    import torch

    import lutcc

    random = np.random.default_rng(options.seed)
    for (D, M, C), batches in QUICK_SHAPES if options.quick else SHAPES:
        with tempfile.TemporaryDirectory(prefix="lutcc-bench-") as folder, Comparison() as compare:
            artifact, dense = Path(folder) / "layer.lutcc", Path(folder) / "dense.safetensors"
            module = random_lookup_layer(D, M, C, seed=options.seed)
            lutcc.compile(module, target=options.isa or "host").save(artifact)
            weight = torch.from_numpy(random.normal(size=(M, D)).astype(np.float32))
            write_chain(str(dense), [(weight, torch.zeros(M))])
            subject, loaded = compare.add_artifact("lutcc", artifact, isa=options.isa)
            subjects = [subject, *compare.add_dense("layer", dense, PRECISIONS)]
            for N in batches:
                compare.add_input(str(N), random.normal(size=(N, D)).astype(np.float32))
                times = compare.measure(
                    subjects, str(N), seconds=options.seconds, rounds=options.rounds
                )
                yield {
                    "N": N, "D": D, "M": M, "C": C, "isa": loaded["isa"],
                    "times": {label: asdict(timing) for label, timing in times.items()},
                } | verdicts(times)  # fmt: skip


def verdicts(times: dict[str, Timing], own: str = "lutcc") -> dict[str, Any]:
    """Compare the look-ups with the fastest dense candidate, with AMX (if any) and without.

    Returns
    -------
    dict
        ``fastest``, ``fastest_without_amx``: label of the fastest dense candidate; ``speedup`` and
        ``speedup_without_amx``: its best time over the look-ups' best time (below 1: the look-up
        does not pay).

    Examples
    --------
    >>> fast, slow = Timing(1e-6, 1e-6, 1e-6, 1e-6, 9), Timing(3e-6, 3e-6, 3e-6, 3e-6, 9)
    >>> verdicts({"lutcc": fast, "fp32": slow})["speedup"]
    3.0
    """
    dense = {label: timing.best for label, timing in times.items() if label != own}
    plain = {label: best for label, best in dense.items() if not label.endswith("/amx")}
    mine = times[own].best
    fastest, fastest_plain = min(dense, key=dense.__getitem__), min(plain, key=plain.__getitem__)
    return {
        "fastest": fastest,
        "speedup": round(dense[fastest] / mine, 3),
        "fastest_without_amx": fastest_plain,
        "speedup_without_amx": round(plain[fastest_plain] / mine, 3),
    }
