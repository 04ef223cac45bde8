"""Dense products in three arithmetics against torch's: MKL, and oneDNN's float32, bfloat16, int8.

Everything runs on one core, in turns: lutcc in a process without torch, torch in another, with
weights reordered beforehand. x and the result are row-major and float32; of bfloat16 both are
measured, with a caller that has float32 and one that has bfloat16, for lutcc as for oneDNN. *Read*
is the time to read the weights once, which no product of one row can beat.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lutcc.bench.baselines import ONEDNN, ONEDNN_CAST, PRECISIONS, runs_here, write_chain
from lutcc.bench.compare import Comparison, Subject
from lutcc.bench.dense_kernels import COMPUTE, dense_module
from lutcc.bench.options import BenchOptions
from lutcc.bench.rows import OnRow, collected
from lutcc.runtime import cpu


@dataclass(frozen=True, slots=True)
class Shape:
    """A product of (N, K) with M rows of weights."""

    rows: int
    columns: int
    outputs: int

    def __str__(self) -> str:
        return f"{self.rows} x {self.columns} x {self.outputs}"


SHAPES = (
    Shape(1, 4096, 4096),
    Shape(1024, 512, 512),
    Shape(1024, 768, 3072),
    Shape(1024, 3072, 768),
    Shape(4096, 1024, 1024),
    Shape(10000, 512, 10),
    Shape(10000, 512, 100),
)
QUICK_SHAPES = (Shape(1, 1024, 1024), Shape(64, 512, 512))
_INPUT = "x"
#: What is compiled: a label, the arithmetic, and the type of x and the result.
KINDS = (
    *((compute, compute, "float32") for compute in COMPUTE),
    ("bfloat16 in/out", "bfloat16", "bfloat16"),
)


def bench_dense(
    options: BenchOptions,
    on_row: OnRow = None,
    shapes: Sequence[Shape] | None = None,
) -> list[dict[str, Any]]:
    """Measure every shape of :data:`SHAPES`, or the given ones.

    Returns
    -------
    list
        A row for each shape: N, K, M, ``isa``, ``bf16_native``, and ``times`` (seconds) of all
        candidates: ``lutcc int8`` and so on, ``lutcc bfloat16 in/out``, ``read int8`` and so on for
        one row of x, and torch's by precision.
    """
    return collected(_rows(options, shapes or (QUICK_SHAPES if options.quick else SHAPES)), on_row)


def _rows(options: BenchOptions, shapes: Sequence[Shape]) -> Iterator[dict[str, Any]]:
    for shape in shapes:
        with tempfile.TemporaryDirectory(prefix="lutcc-bench-") as name, Comparison() as compare:
            folder, rng = Path(name), np.random.default_rng(options.seed)
            x = rng.normal(size=(shape.rows, shape.columns)).astype(np.float32)
            compare.add_input(_INPUT, x)
            subjects = _own(compare, folder, shape, options, rng)
            subjects += _torch(compare, folder, shape, options.seed)
            times = compare.measure(
                subjects, _INPUT, seconds=options.seconds, rounds=options.rounds
            )
        yield {
            "N": shape.rows, "K": shape.columns, "M": shape.outputs,
            "isa": options.isa or cpu.best_isa() or "",
            "bf16_native": "avx512_bf16" in cpu.flags(),
            "times": {label: asdict(timing) for label, timing in times.items()},
        }  # fmt: skip


def _own(
    compare: Comparison,
    folder: Path,
    shape: Shape,
    options: BenchOptions,
    rng: np.random.Generator,
) -> list[Subject]:
    """Compile lutcc's products."""
    from lutcc.codegen.targets import parse_targets
    from lutcc.compiler import compile_module

    subjects = []
    for number, (label, compute, dtype) in enumerate(KINDS):
        module = dense_module(rng, shape.outputs, shape.columns, compute, dtype)
        path = folder / f"{number}.lutcc"
        compile_module(module, parse_targets(options.isa or "host")).save(path)
        subjects.append(compare.add_artifact(f"lutcc {label}", path)[0])
        if shape.rows == 1:
            nbytes = int(module.constants["weight"].nbytes)
            subjects.append(compare.add_read(f"read {label}", _INPUT, nbytes, of=f"lutcc {label}"))
    return subjects


def _torch(compare: Comparison, folder: Path, shape: Shape, seed: int) -> list[Subject]:
    """Load a layer in every precision."""
    import torch

    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape.outputs, shape.columns, generator=draw)
    path = folder / "dense.safetensors"
    write_chain(str(path), [(weight, torch.zeros(shape.outputs))])
    chosen = [p for p in (*PRECISIONS, *ONEDNN, ONEDNN_CAST) if runs_here(p)]
    return compare.add_dense("dense", path, chosen)
