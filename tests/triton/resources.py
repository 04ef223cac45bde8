"""What each kernel takes at production shapes, and how to record it anew.

    python -m tests.triton.resources --update

compiles every case for every target and rewrites ``resources.json``; without ``--update`` it prints
them beside what is recorded. Do it when a kernel or its config was changed on purpose, or with a
new Triton, and look at the difference.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

import torch
import triton

from lutcc.schedules.triton import bh_stage as stage
from lutcc.schedules.triton import block_diagonal_matmul as product
from lutcc.schedules.triton import sampled_matmul_backward as sampled
from lutcc.schedules.triton.codebook_dequantize import codebook_dequantize
from lutcc.schedules.triton.codebook_matmul import codebook_matmul
from lutcc.schedules.triton.codebook_matmul_backward import codebook_matmul_backward
from lutcc.schedules.triton.codebook_table_grad import codebook_dequantize_backward
from lutcc.schedules.triton.column_row_sample import column_row_sample
from lutcc.schedules.triton.column_row_scores import column_row_scores
from lutcc.schedules.triton.hadamard import hadamard
from lutcc.schedules.triton.lut_accumulate import lut_accumulate, lut_dequantize
from lutcc.schedules.triton.nearest_encode import nearest_encode
from lutcc.schedules.triton.sampled_matmul import sampled_matmul
from lutcc.schedules.triton.sign_hash import sign_hash, sign_hash_backward
from lutcc.schedules.triton.soft_tree_backward import soft_tree_backward
from lutcc.schedules.triton.sparse_add import sparse_add, sparse_add_backward
from lutcc.schedules.triton.tree_encode import tree_encode
from lutcc.schedules.triton.weighted_gather import weighted_gather
from lutcc.schedules.triton.weighted_gather_backward import weighted_gather_backward
from tests.triton.compile_only import TARGETS, Resources, compiling_for

BASELINE = Path(__file__).with_name("resources.json")

ROWS = 32768
BF16, F32 = torch.bfloat16, torch.float32


def empty(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def transform(columns: int, dtype: torch.dtype = BF16) -> Callable[[], object]:
    return lambda: hadamard(empty(ROWS, columns, dtype=dtype), 0.5)


def blocks(count: int, p: int, q: int, dtype: torch.dtype, columns: int | None = None):
    def run() -> None:
        x, weights = empty(ROWS, count * p, dtype=dtype), empty(count, p, q, dtype=dtype)
        y = product.block_diagonal_matmul(x, weights, columns)
        product.block_diagonal_matmul_weight_grad(x, y, count, q)

    return run


def fused(d: int, count: int, p: int, q: int, columns: int | None = None) -> Callable[[], object]:
    def run() -> None:
        x, weights = empty(ROWS, d), empty(count, p, q)
        y, mixed = stage.bh_stage(x, weights, 0.1, columns)
        dx, dweights = stage.bh_stage_backward(y, mixed, weights, 0.1, d)
        assert (dx.shape, dweights.shape) == (x.shape, weights.shape)

    return run


def hashing(tables: int, length: int, variant: str, neighbors: int, dtype: torch.dtype = F32):
    def run() -> None:
        z = empty(ROWS, tables * length, dtype=dtype)
        _, scores = sign_hash(z, length, variant, neighbors)
        dz = sign_hash_backward(z, scores, length, variant, neighbors)
        assert dz.shape == z.shape

    return run


def lookup(tables: int, length: int, d: int, dtype: torch.dtype, *, deterministic: bool = True):
    def run() -> None:
        codes = empty(ROWS, tables, dtype=torch.int32)
        scores, weights = empty(ROWS, tables, dtype=dtype), empty(tables, 2**length, d, dtype=dtype)
        y = weighted_gather(codes, scores, weights)
        ds, dt = weighted_gather_backward(y, codes, scores, weights, deterministic)
        assert (ds.shape, dt.shape, dt.dtype) == (scores.shape, weights.shape, dtype)

    return run


def lookup_int8() -> None:
    codes, scores = empty(ROWS, 128, dtype=torch.int32), empty(ROWS, 128, dtype=F32)
    weighted_gather(codes, scores, empty(128, 256, 512, dtype=torch.int8))


def sampling(mode: str, group_size: int, dtype: torch.dtype = BF16) -> Callable[[], object]:
    """Score, select, multiply and differentiate a layer of 4096 features, a weight transposed."""

    def run() -> None:
        a, weight = empty(4096, 4096, dtype=dtype), empty(4096, 4096, dtype=dtype)
        scores = column_row_scores(a, weight.t(), group_size)
        seed = empty(dtype=torch.int64)
        sample = column_row_sample(scores, seed, scores.shape[0] // 2, mode)
        y = sampled_matmul(a, weight.t(), empty(4096), *sample, group_size)
        da = sampled.sampled_matmul_input_grad(y, weight.t(), *sample, group_size)
        db = sampled.sampled_matmul_weight_grad(a, y, *sample, group_size)
        assert (da.shape, db.shape) == (a.shape, weight.shape)

    return run


def sampling_of_many_rows() -> None:
    """A gradient of few tiles, whose sums are split."""
    indices, scales = empty(16, dtype=torch.int32), empty(16, dtype=F32)
    a, grad = empty(ROWS, 512), empty(ROWS, 512)
    sampled.sampled_matmul_weight_grad(a, grad, indices, scales, 16)


def codebooks(
    rows: int,
    bits: int,
    books: int,
    factors: int,
    segment_size: int = 0,
    compute: str = "float32",
    dtype: torch.dtype = BF16,
) -> Callable[[], object]:
    """Apply and, but for integers, differentiate a layer of 4096 features."""

    def run() -> None:
        x, order = empty(rows, 4096, dtype=dtype), empty(4096, dtype=torch.int32)
        tables = empty(books, 2**bits, dtype=F32), empty(factors, dtype=F32)
        indices = empty(4096, 512 * bits, dtype=torch.uint8)
        matrix = (indices, *tables, order)
        y = codebook_matmul(x, *matrix, empty(4096, dtype=F32), bits, segment_size, compute)
        if compute == "float32":
            grads = codebook_matmul_backward(y, x, *matrix, bits, segment_size, True, True)
            assert [g.shape for g in grads] == [x.shape, *(t.shape for t in tables)]

    return run


def codebook_rows() -> None:
    """An embedding of 32768 words, 3 bits."""
    tables = empty(ROWS, 8, dtype=F32), empty(1, dtype=F32)
    matrix = (empty(8192, dtype=torch.int32), empty(ROWS, 384, dtype=torch.uint8), *tables)
    y = codebook_dequantize(*matrix, 3, 1024)
    codebook_dequantize_backward(y, *matrix, 3, 1024, 0)


def outliers() -> None:
    """1 % of the weights of 4096 features."""
    y, x = empty(4096, 4096), empty(4096, 4096)
    matrix = (empty(4097, dtype=torch.int32), empty(167772, dtype=torch.int32), empty(167772))
    sparse_add(y, x, *matrix)
    sparse_add_backward(y, x, *matrix, True, True)


def trees(
    levels: int,
    outputs: int = 512,
    lut: torch.dtype = torch.uint8,
    *,
    accumulate: str = "exact",
    bfloat16: bool = False,
) -> Callable[[], object]:
    """Look up and differentiate a layer of 512 features and 64 codebooks."""

    def run() -> None:
        x, dims = empty(ROWS, 512, dtype=F32), empty(64, levels, dtype=torch.int32)
        vals, tables = empty(64, 2**levels, dtype=F32), empty(64, 2**levels, outputs, dtype=lut)
        unit = empty(outputs, dtype=F32)
        codes = tree_encode(x, dims, vals)
        y = lut_accumulate(codes, tables, accumulate)
        if lut is torch.uint8:
            y = lut_dequantize(y, unit, unit, "relu")
        given = (dims, vals, empty(64, dtype=F32), tables, unit, bfloat16)
        found = soft_tree_backward(y, x, codes, *given)
        assert [g.shape for g in found] == [x.shape, vals.shape, (64,), tables.shape]

    return run


def centroids() -> None:
    """16 in each of 64 codebooks of 8 columns."""
    x, middles, half = (empty(*shape, dtype=F32) for shape in ((ROWS, 512), (16, 512), (64, 16)))
    nearest_encode(x, middles, half, empty(512, dtype=torch.int32), range(0, 513, 8))


#: The paper's layers: d = 512, h = 128, tau = 8; d = 768, h = 170, tau = 9; d = 1024, h = 256, 64.
CASES: dict[str, Callable[[], object]] = {
    "hadamard 768": transform(768),
    "hadamard 1024 float32": transform(1024, F32),
    "hadamard 32768": transform(32768),
    "blocks (16, 64, 128)": blocks(16, 64, 128, BF16, 1530),
    "blocks (16, 64, 64) float32": blocks(16, 64, 64, F32),
    "blocks (128, 8, 8)": blocks(128, 8, 8, BF16),
    "stage (8, 64, 64)": fused(512, 8, 64, 64),
    "stage (16, 64, 64)": fused(768, 16, 64, 64, 1000),
    "hash 128 of 8": hashing(128, 8, "gelu", 1),
    "hash 170 of 9, 4 neighbours": hashing(170, 9, "softmax", 4, BF16),
    "lookup d=512, h=128, tau=8": lookup(128, 8, 512, BF16),
    "lookup d=768, h=170, tau=9 float32": lookup(170, 9, 768, F32),
    "lookup d=1024, h=64, tau=13": lookup(64, 13, 1024, BF16),
    "lookup d=1024, h=256, tau=8 atomic": lookup(256, 8, 1024, BF16, deterministic=False),
    "lookup int8": lookup_int8,
    "sampled columns": sampling("topk", 1),
    "sampled groups of 16": sampling("bernoulli", 16),
    "sampled columns float32": sampling("wta_crs", 1, F32),
    "sampled groups of 16, many rows": sampling_of_many_rows,
    "codebooks of 4 bits, 16 rows": codebooks(16, 4, 4096, 1),
    "codebooks of 3 bits, 256 rows": codebooks(256, 3, 1, 4096 * 128, 32),
    "codebooks of 4 bits, 64 rows float32": codebooks(64, 4, 4096, 1, dtype=F32),
    "codebooks of 2 bits, 4096 rows": codebooks(4096, 2, 4096 * 32, 1, 128),
    "codebooks of 3 bits, 16 rows int8": codebooks(16, 3, 4096, 1, compute="int8"),
    "codebooks of 4 bits, 4096 rows int8": codebooks(4096, 4, 4096, 1, compute="int8"),
    "codebooks of 4 bits, 4096 rows as bfloat16": codebooks(
        4096, 4, 4096, 1, compute="bfloat16", dtype=F32
    ),
    "codebook rows": codebook_rows,
    "outliers": outliers,
    "trees of 4 levels": trees(4),
    "nearest centroids": centroids,
    "trees of 4 levels, averaged, gradients in bfloat16": trees(
        4, accumulate="mean", bfloat16=True
    ),
    "trees of 7 levels": trees(7),
    "trees of 1 level, few outputs, float32": trees(1, 10, F32),
}


#: What the tests compile for sm_80 and gfx942, and for sm_90, to stay quick; --update takes all.
QUICK = (
    "hadamard 1024 float32",
    "hadamard 32768",
    "blocks (16, 64, 128)",
    "stage (8, 64, 64)",
    "hash 170 of 9, 4 neighbours",
    "lookup d=512, h=128, tau=8",
    "lookup d=1024, h=256, tau=8 atomic",
    "sampled groups of 16",
    "sampled groups of 16, many rows",
    "codebooks of 4 bits, 16 rows",
    "codebooks of 3 bits, 16 rows int8",
    "outliers",
    "trees of 4 levels",
)
THOROUGH = tuple(name for name in CASES if name != "stage (8, 64, 64)")


def measure(target: str, cases: Iterable[str] = CASES) -> dict[str, Resources]:
    """Compile cases for a target; return what each kernel takes, by case and kernel."""
    found: dict[str, Resources] = {}
    for name in cases:
        with compiling_for(target) as launches:
            CASES[name]()
        for i, (kernel, resources) in enumerate(launches):
            key = f"{name}: {kernel}"
            found[f"{key} ({i})" if key in found else key] = resources
    return found


def recorded(target: str) -> dict[str, Resources]:
    """Return what resources.json says about a target."""
    record = json.loads(BASELINE.read_text(encoding="utf-8"))
    return {name: Resources(**values) for name, values in record["targets"][target].items()}


def main() -> int:
    """Print what kernels take beside what is recorded, or record it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--update", action="store_true", help="rewrite resources.json")
    arguments = parser.parse_args()
    everything = {target: measure(target) for target in TARGETS}
    if arguments.update:
        targets = {
            target: {name: asdict(value) for name, value in found.items()}
            for target, found in everything.items()
        }
        record = {"triton": triton.__version__, "targets": targets}
        BASELINE.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for target, found in everything.items():
        before = recorded(target)
        for name, value in found.items():
            known = before.get(name)
            print(target, name, value, "" if value == known else f"(recorded: {known})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
