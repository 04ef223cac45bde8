"""Costs per op and in total, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lutcc import ir
from lutcc.errors import InputError
from lutcc.ir.passes import run_pipeline
from tests.ir.models import CASES, Case


def layer(d: int = 512, c: int = 64, k: int = 16, m: int = 128) -> ir.Module:
    b = ir.Builder("main")
    x = b.param("x", ir.TensorType((ir.Sym("n"), d), "float32"))
    depth = k.bit_length() - 1
    dims = b.constant("dims", np.zeros((c, depth), np.int32))
    codes = b.op("tree_encode", x, dims, b.constant("vals", np.zeros((c, k), np.float32)))
    acc = b.op("lut_accumulate", codes, b.constant("lut", np.zeros((c, k, m), np.uint8)))
    ones = np.ones(m, np.float32)
    b.returns(b.op("lut_dequantize", acc, b.constant("s", ones), b.constant("t", ones)))
    return b.module()


def row(cost: ir.Cost, opcode: str) -> ir.OpCost:
    found = [r.cost for r in cost.rows if r.opcode == opcode]
    assert len(found) == 1
    return found[0]


def test_lookup_layer() -> None:
    cost = ir.cost(layer(), n=1024)
    encode, scan = row(cost, "tree_encode"), row(cost, "lut_accumulate")
    assert encode.comparisons == 1024 * 64 * 4
    assert encode.flops == encode.lookups == 0
    assert encode.bytes_read == 1024 * 512 * 4 + 64 * 4 * 4 + 64 * 16 * 4
    assert scan.lookups == 1024 * 64 * 128
    assert scan.flops == 0
    assert scan.table_bytes == 64 * 16 * 128
    assert scan.bytes_read == 1024 * 64 + 64 * 16 * 128
    assert scan.bytes_written == 1024 * 128 * 4
    assert row(cost, "lut_dequantize").flops == 2 * 1024 * 128
    assert cost.total.lookups == 1024 * 64 * 128
    assert cost.total.bytes_read == sum(r.cost.bytes_read for r in cost.rows)
    assert cost.constant_bytes == 64 * (4 * 4 + 16 * 4 + 16 * 128) + 2 * 128 * 4
    assert cost.io_bytes == 1024 * (512 + 128) * 4
    assert cost.symbols == {"n": 1024}


@pytest.mark.parametrize(("n", "rows_read"), [(1, 1), (3, 3), (16, 16), (17, 16), (1000, 16)])
def test_few_rows_gather_few_table_rows(n: int, rows_read: int) -> None:
    """One row reads C * M bytes of the table: a sixteenth of it."""
    assert row(ir.cost(layer(), n=n), "lut_accumulate").table_bytes == rows_read * 64 * 128


def test_dense_layer_for_comparison() -> None:
    b = ir.Builder("main")
    x = b.param("x", ir.TensorType((ir.Sym("n"), 512), "float32"))
    w, bias = np.zeros((128, 512), np.float32), np.zeros(128, np.float32)
    b.returns(b.op("linear", x, b.constant("w", w), b.constant("b", bias)))
    cost = ir.cost(b.module(), n=10)
    assert cost.total.flops == 2 * 10 * 512 * 128
    assert cost.total.lookups == 0
    assert cost.total.bytes_read == 10 * 512 * 4 + 512 * 128 * 4 + 128 * 4


def test_float_tables_count_additions() -> None:
    b = ir.Builder("main")
    codes = b.param("codes", ir.TensorType((5, 3), "uint8"))
    b.returns(b.op("lut_accumulate", codes, b.constant("lut", np.zeros((3, 4, 2), np.float32))))
    total = ir.cost(b.module()).total
    assert total.lookups == total.flops == 5 * 3 * 2
    assert total.table_bytes == 3 * 4 * 2 * 4


def test_calls_count_what_they_call_each_time() -> None:
    module = ir.parse("""lutcc.ir 1
    func @main(%x: float32[6*m, 2]) {
      %a = call(%x) {callee = "f"} : float32[6*m, 2]
      %b = call(%a) {callee = "f"} : float32[6*m, 2]
      return %b
    }
    func @f(%x: float32[3*n, 2]) { %y = relu(%x) : float32[3*n, 2] return %y }""")
    cost = ir.cost(module, n=5)
    assert [(r.function, r.opcode) for r in cost.rows] == [
        ("main", "call"),
        ("f", "relu"),
        ("main", "call"),
        ("f", "relu"),
    ]
    assert cost.total.flops == 2 * 6 * 5 * 2
    assert cost.rows[1].result == "float32[30, 2]"


def test_sizes_by_symbol() -> None:
    b = ir.Builder("main")
    x = b.param("x", ir.TensorType((ir.Sym("n"), 2), "float32"))
    y = b.param("y", ir.TensorType((ir.Sym("m"), 2), "float32"))
    b.returns(b.op("relu", x), b.op("relu", y))
    assert ir.cost(b.module(), sizes={"n": 3, "m": 5}).total.flops == 16
    assert ir.cost(b.module(), n=7, sizes={"m": 5}).total.flops == 24
    for bad in (0, -1):
        with pytest.raises(InputError, match="below 1"):
            ir.cost(b.module(), n=bad)


def test_passes_do_not_change_the_lookups() -> None:
    before, after = ir.cost(layer(), n=33), ir.cost(run_pipeline(layer()), n=33)
    assert before.total.lookups == after.total.lookups
    assert before.total.comparisons == after.total.comparisons
    assert before.constant_bytes == after.constant_bytes


@settings(deadline=None, max_examples=100)
@given(st.one_of(*CASES.values()))
def test_every_op_can_be_counted(case: Case) -> None:
    total = ir.cost(case.module()).total
    looks_up = case.opcode in ("lut_accumulate", "weighted_gather")
    encodes = case.opcode.endswith("_encode") or case.opcode == "sign_hash"
    assert (total.lookups > 0) == (total.table_bytes > 0) == looks_up
    assert encodes or total.comparisons == 0
    assert total.bytes_read >= total.table_bytes
    assert (total.bytes_written > 0) == (case.opcode != "reshape")
