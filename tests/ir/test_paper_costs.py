"""The MFLOP columns of tables 1 to 4 of the LookupFFN paper, from modules made of the ops."""

from __future__ import annotations

import numpy as np
import pytest

from lutcc import ir
from lutcc.ir.passes import run_pipeline
from tests.ir.lookupffn import dense, gather_of_paper, hash_of_paper, lookup_ffn


def mflop(module: ir.Module) -> float:
    """MFLOP per token."""
    return ir.cost(module, n=1).total.flops / 1e6


@pytest.mark.parametrize(
    ("d", "tables", "length", "block_size", "printed"),
    [
        (512, 256, 8, 64, "1.38"),  # table 1
        (512, 128, 8, 64, "0.69"),
        (768, 170, 9, 64, "1.39"),  # table 2
        (512, 32, 8, 64, "0.31"),  # table 3, middle
        (512, 64, 8, 64, "0.35"),
        (512, 256, 4, 64, "0.82"),  # table 4
    ],
)
def test_total(d: int, tables: int, length: int, block_size: int, printed: str) -> None:
    total = mflop(hash_of_paper(d, tables * length, block_size))
    total += mflop(gather_of_paper(d, tables, length))
    assert f"{total:.2f}" == printed


@pytest.mark.parametrize(
    ("projection", "printed"), [("64", "0.56"), ("32", "0.30"), ("16", "0.17"), ("dense", "1.05")]
)
def test_hash_of_table_3(projection: str, printed: str) -> None:
    if projection == "dense":
        total = mflop(dense(512, 1024))
    else:
        total = mflop(hash_of_paper(512, 1024, int(projection)))
    assert f"{total:.2f}" == printed
    assert f"{mflop(gather_of_paper(512, 128, 8)):.2f}" == "0.13"


@pytest.mark.parametrize(
    ("tables", "length", "gather"), [(64, 4, "0.07"), (32, 8, "0.03"), (20, 13, "0.02")]
)
def test_length_of_codes_of_table_3(tables: int, length: int, gather: str) -> None:
    assert f"{mflop(hash_of_paper(512, tables * length)):.2f}" == "0.28"
    assert f"{mflop(gather_of_paper(512, tables, length)):.2f}" == gather


def test_vanilla() -> None:
    assert f"{mflop(dense(512, 2048, 512)):.2f}" == "4.19"
    assert f"{mflop(dense(768, 3072, 768)):.2f}" == "9.44"


def test_columns_that_are_not_computed_do_not_count() -> None:
    """The op's own cost is lower than the paper's where the last product is cut: h tau = 260."""
    rng = np.random.default_rng(0)
    module = lookup_ffn(rng, d=512, tables=20, length=4, block_size=64)
    rows = ir.cost(module, n=1).rows
    products = [r.cost.flops for r in rows if r.opcode == "block_diagonal_matmul"]
    assert products == [2 * 64 * 512] * 3 + [2 * 64 * 80]
    assert [r.cost.flops for r in rows if r.opcode == "hadamard"] == [512 * 9] * 4


def test_by_hand() -> None:
    n, d, h, length, m, j = 7, 100, 6, 5, 24, 3
    b = ir.Builder("main")
    x = b.param("x", ir.TensorType((ir.Sym("n"), d), "float32"))
    y = b.op("hadamard", x)
    z = b.op(
        "block_diagonal_matmul", y, b.constant("w", np.zeros((4, 32, 10), np.float32)), columns=30
    )
    codes, scores = b.ops("sign_hash", z, code_length=length, neighbors=j)
    b.returns(
        b.op("weighted_gather", codes, scores, b.constant("t", np.zeros((h, 32, m), np.int8)))
    )
    hadamard, product, codes_, gather = (
        r.cost for r in ir.cost(b.module(), n=n).rows if r.opcode != "constant"
    )
    assert hadamard == ir.OpCost(flops=n * 128 * 7, bytes_read=n * d * 4, bytes_written=n * 128 * 4)
    assert product.flops == 2 * n * 32 * 30
    assert product.bytes_read == n * 128 * 4 + 4 * 32 * 10 * 4
    assert codes_ == ir.OpCost(
        comparisons=n * 30, bytes_read=n * 30 * 4, bytes_written=2 * n * h * j * 4
    )
    assert gather.lookups == n * h * j * m
    assert gather.flops == 2 * gather.lookups
    assert gather.table_bytes == n * j * h * m  # 21 of 32 rows of each table, a byte an entry
    assert gather.bytes_read == gather.table_bytes + 2 * n * h * j * 4
    assert ir.cost(b.module(), n=1000).total.table_bytes == 32 * h * m


def test_passes_keep_the_counts() -> None:
    module = lookup_ffn(np.random.default_rng(0), neighbors=2, table_dtype=np.int8)
    before, after = ir.cost(module, n=33), ir.cost(run_pipeline(module), n=33)
    for count in ("lookups", "flops", "comparisons", "table_bytes"):
        assert getattr(before.total, count) == getattr(after.total, count)
    assert before.constant_bytes == after.constant_bytes
