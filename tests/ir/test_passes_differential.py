"""Every pass and the whole pipeline keep what random modules compute."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lutcc import ir
from lutcc.ir.passes import (
    PIPELINE,
    AssignLayouts,
    ChooseAccumulate,
    DeadCode,
    EraseLayouts,
    FoldBatchNormAndAffine,
    FoldConstants,
    FuseRows,
    InlineCalls,
    Pass,
    run_pipeline,
)
from tests.ir.models import inputs_for, modules

RELAXED = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    max_examples=60,
)

#: These change no arithmetic, so results must agree in every bit.
EXACT: list[Pass] = [
    InlineCalls(),
    EraseLayouts(),
    FoldConstants(),
    ChooseAccumulate(),
    FuseRows(),
    DeadCode(),
    AssignLayouts(row_block=16, inner=2),
]


@pytest.mark.one_in(2)
@pytest.mark.parametrize("step", EXACT, ids=lambda p: type(p).__name__)
def test_exact_passes(step: Pass) -> None:
    @RELAXED
    @given(modules(), st.integers(0, 5))
    def check(module: ir.Module, n: int) -> None:
        result = step(module)
        ir.verify(result)
        assert [v.type for v in result.main.returns] == [v.type for v in module.main.returns]
        assert result.main.params == module.main.params
        inputs = inputs_for(module, n)
        for got, want in zip(
            ir.interpret(result, inputs), ir.interpret(module, inputs), strict=True
        ):
            np.testing.assert_array_equal(got, want)
        assert step(result) == result
        assert ir.parse(ir.to_text(result)) == result

    check()


@RELAXED
@given(modules(), st.integers(1, 5))
def test_outlining_and_layouts_are_undone_by_inlining_and_erasing(
    module: ir.Module, n: int
) -> None:
    fused = AssignLayouts()(FuseRows()(module))
    ir.verify(fused)
    inputs = inputs_for(module, n)
    for got, want in zip(ir.interpret(fused, inputs), ir.interpret(module, inputs), strict=True):
        np.testing.assert_array_equal(got, want)
    flat = EraseLayouts()(InlineCalls()(fused))
    ir.verify(flat)
    opcodes = sorted(op.opcode for op in flat.main.body if op.opcode != "constant")
    plain = sorted(op.opcode for op in DeadCode()(module).main.body if op.opcode != "constant")
    assert opcodes == plain


def _smooth(module: ir.Module) -> bool:
    """Tell whether no encoder reads a computed float: a last-place error may flip a code."""
    return all(
        not (
            (op.opcode.endswith("encode") or op.opcode == "sign_hash")
            and op.operands[0] not in module.main.params
        )
        for op in module.main.body
    )


@RELAXED
@given(modules().filter(_smooth), st.integers(1, 5))
def test_folding_changes_only_the_last_places(module: ir.Module, n: int) -> None:
    result = FoldBatchNormAndAffine()(module)
    ir.verify(result)
    inputs = inputs_for(module, n)
    for got, want in zip(ir.interpret(result, inputs), ir.interpret(module, inputs), strict=True):
        largest = max(1.0, float(np.abs(want).max(initial=0)))
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=3e-4 * largest)
    assert FoldBatchNormAndAffine()(result) == result


@RELAXED
@given(modules(), st.integers(0, 5))
def test_pipeline(module: ir.Module, n: int) -> None:
    result = run_pipeline(module)
    movement = {"call", "constant", "reshape", "im2col", "rows_to_nchw", "repack"}
    for op in result.main.body:
        assert op.opcode in movement or (op.opcode in {"relu", "add"} and op.result.type.rank != 2)
    for function in result.functions[1:]:
        assert function.params[0].type.rank == 2
        for op in function.body:
            assert op.opcode in {"constant", "repack"} or ir.OPS[op.opcode].rowwise
            assert op.opcode != "batch_norm"
    assert run_pipeline(result).canonical() == result.canonical()
    inputs = inputs_for(module, n)
    reference = ir.interpret(run_pipeline(module, PIPELINE[:5]), inputs)  # folded, not yet outlined
    for got, want in zip(ir.interpret(result, inputs), reference, strict=True):
        np.testing.assert_array_equal(got, want)


@RELAXED
@given(modules(), st.integers(1, 5))
def test_averaging_stays_within_its_budget(module: ir.Module, n: int) -> None:
    """Look at results that are look-ups of the inputs: there the bound is that of the error."""
    step = ChooseAccumulate(error_budget=0.2, upcast_every=4)
    result = step(module)
    ir.verify(result)
    inputs = inputs_for(module, n)
    before, after = module.main.definitions, result.main.definitions
    for i, value in enumerate(module.main.returns):
        op = before.get(value.name)
        if op is None or op.opcode != "lut_dequantize":
            continue
        sums = before[op.operands[0].name]
        codes = before[sums.operands[0].name]
        if codes.operands[0] not in module.main.params or sums.attr("accumulate") == "mean":
            continue
        new = after[after[result.main.returns[i].name].operands[0].name]
        exact = ir.interpret(module, inputs)[i]
        got = ir.interpret(result, inputs)[i]
        if new.attr("accumulate") == "exact":
            np.testing.assert_array_equal(got, exact)
            continue
        lut = module.constant(str(before[sums.operands[1].name].attr("ref"))).astype(int)
        spread = (lut.max(1) - lut.min(1)).sum(0).max()
        scale = module.constant(str(before[op.operands[1].name].attr("ref")))
        allowed = 0.2 * spread * np.abs(scale.astype(np.float64)) * (1 + 1e-5) + 1e-4
        assert (np.abs(got.astype(np.float64) - exact) <= allowed).all()
