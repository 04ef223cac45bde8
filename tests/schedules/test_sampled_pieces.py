"""Sampled products that are done in pieces, and what belongs to training alone."""

from __future__ import annotations

import numpy as np
import pytest
import tvm_ffi

from lutcc import ir
from lutcc.codegen import build_module, lower
from lutcc.errors import CompileError
from lutcc.schedules.x86 import sampled_matmul
from lutcc.schedules.x86.pack import aligned_empty
from tests.schedules.harness import N, built
from tests.schedules.test_sampled_kernels import Matmul, assert_matmul, matrices


@pytest.mark.isa("avx2")
@pytest.mark.parametrize("threads", [1, 3])
def test_a_wide_factor_is_packed_piece_by_piece(
    monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    monkeypatch.setattr(sampled_matmul, "SHARED_BYTES", 40 * 16 * 4 * 3)  # three panels
    case = Matmul(40, 7 * 16 + 5)
    module, rng = case.module(), np.random.default_rng(0)
    lowered, call = built(module, "avx2", threads=threads)
    assert lowered.program.workspace["fixed"] < 40 * 16 * 4 * 4
    for rows in (1, 4, 50):  # fewer panels of rows than threads, and more
        for taken in (0, 17, 40):
            assert_matmul(case, call, module, matrices(rng, case, rows, taken))


@pytest.mark.isa("avx2")
def test_blocks_can_be_chosen_and_are_recorded() -> None:
    case = Matmul(50, 33)
    module, rng = case.module(), np.random.default_rng(1)
    name = f"sampled_matmul.{module.main.returns[0].name}"
    chosen = {"tile_rows": 4, "tile_chunks": 1, "row_panels": 2, "depth": 9}
    lowered, call = built(module, "avx2", {name: {"product": chosen, "source": "a test"}})
    (record,) = lowered.program.kernels
    assert (record["stage"], record["source"]) == (name, "a test")
    assert record["config"] == {"product": chosen}
    assert_matmul(case, call, module, matrices(rng, case, 23, 31))
    with pytest.raises(CompileError, match="unknown field 'tile'"):
        lower(module, "avx2", {name: {"product": {"tile": 4}}})


@pytest.mark.isa("avx2")
def test_a_product_can_allocate_its_own_workspace() -> None:
    case = Matmul(21, 18)
    module, rng = case.module(), np.random.default_rng(2)
    lowered = lower(module, "avx2", parallel=False, own_workspace=True)
    entry = build_module(lowered)[lowered.program.entry]

    def call(*inputs: np.ndarray) -> list[np.ndarray]:
        y = np.empty((len(inputs[0]), 18), np.float32)
        entry(*map(tvm_ffi.from_dlpack, (*inputs, aligned_empty(64), y)))
        return [y]

    assert_matmul(case, call, module, matrices(rng, case, 9, 10))


@pytest.mark.isa("avx2")
def test_a_product_stands_between_stages() -> None:
    case = Matmul(24, 16)
    b = ir.Builder("main")
    a, w = (
        b.param("a", ir.TensorType((N, 24), "float32")),
        b.param("b", ir.TensorType((24, 16), "float32")),
    )
    rest = [
        b.param(name, ir.TensorType(shape, dtype))
        for name, shape, dtype in (
            ("indices", (24,), "int32"),
            ("scales", (24,), "float32"),
            ("bias", (16,), "float32"),
        )
    ]
    y = b.op("sampled_matmul", b.op("relu", a), w, *rest)
    b.returns(b.op("relu", b.op("add", y, y)))
    module, rng = b.module(), np.random.default_rng(3)
    _, call = built(module, "avx2")
    given = matrices(rng, case, 13, 24)
    (got,), (want,) = call(*given), ir.interpret(module, given)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_choosing_pairs_belongs_to_training() -> None:
    b = ir.Builder("main")
    a, w = (
        b.param("a", ir.TensorType((N, 8), "float32")),
        b.param("b", ir.TensorType((8, 4), "float32")),
    )
    b.returns(b.op("column_row_scores", a, w))
    with pytest.raises(CompileError, match="column_row_scores belongs to training") as caught:
        lower(b.module(), "avx2")
    assert "torch.ops.lutcc.column_row_scores" in str(caught.value.fix)
