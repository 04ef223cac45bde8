"""Columns between look-ups lie as trees compare them."""

from __future__ import annotations

from typing import Any

import numpy as np

from lutcc import ir
from lutcc.ir.passes import DeadColumns
from tests.ir.test_integer_chains import Net, same


def behind(*readers: Any) -> ir.Module:
    """Return a layer of 40 columns, column j of whose table is j, and trees that read it."""
    net = Net(4, 6)
    table = np.broadcast_to(np.arange(40, dtype=np.uint8), (3, 16, 40))
    sums = net.b.op("lut_accumulate", net.encode(net.value, 3, 4), net.constant(table.copy()))
    y = net.dequantize(sums, "relu")
    outputs = []
    for dims in readers:
        array = np.asarray(dims, np.int32)
        values = net.rng.normal(scale=9, size=(len(array), 2 ** array.shape[1]))
        codes = net.b.op(
            "tree_encode", y, net.constant(array), net.constant(values.astype(np.float32))
        )
        lut = net.rng.integers(0, 256, (len(array), 2 ** array.shape[1], 5)).astype(np.uint8)
        outputs.append(net.dequantize(net.b.op("lut_accumulate", codes, net.constant(lut))))
    return net.module(*outputs)


def order(*readers: Any) -> tuple[list[int], list[Any]]:
    """Return which columns are computed, in order, and where each reader finds its own."""
    module = behind(*readers)
    changed = DeadColumns()(module)
    same(module, changed)
    assert DeadColumns()(changed) == changed
    refs = {op.results[0].name: str(op.attr("ref")) for op in changed.main.body if not op.operands}
    trees = [op for op in changed.main.body if op.opcode == "tree_encode"][1:]
    places = [changed.constants[refs[tree.operands[1].name]].tolist() for tree in trees]
    scan = next(op for op in changed.main.body if op.opcode == "lut_accumulate")
    return changed.constants[refs[scan.operands[1].name]][0, 0].tolist(), places


def test_roots_come_first_then_their_next_levels() -> None:
    assert order([[7, 30], [5, 2], [9, 1]]) == ([7, 5, 9, 30, 2, 1], [[[0, 3], [1, 4], [2, 5]]])


def test_a_column_is_there_twice_where_that_costs_no_vector() -> None:
    assert order([[7, 30], [5, 7]]) == ([7, 5, 30, 7], [[[0, 2], [1, 3]]])
    columns, places = order(np.arange(18)[:, None] % 9)
    assert columns == [*range(9)]
    assert places == [[[c % 9] for c in range(18)]]


def test_several_readers() -> None:
    columns, places = order([[4], [3]], [[3, 8]])
    assert columns == [4, 3, 3, 8]
    assert places == [[[0], [1]], [[2, 3]]]


def test_all_columns_can_be_read() -> None:
    """None is dead: they are only sorted."""
    dims = np.random.default_rng(0).permutation(40)[:, None]
    assert order(dims) == (dims.ravel().tolist(), [[[c] for c in range(40)]])
    assert order(np.arange(40)[:, None])[0] == [*range(40)]
