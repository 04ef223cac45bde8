"""The op table holds for the families to come: their types need no change of the core.

A toy definition of the codebook family is put beside the real ops in a registry of the test's own;
a module of both is built, verified, printed, parsed, run, counted.
"""

from __future__ import annotations

import numpy as np
import pytest

from lutcc import ir
from lutcc.errors import ParseError, VerifyError
from lutcc.ir.spec import Bindings, Run
from lutcc.ir.types import Array

F = "float32"


def no_cost(b: Bindings, results: tuple[ir.TensorType, ...]) -> ir.OpCost:
    return ir.OpCost(bytes_read=sum(t.nbytes for t in b.types), bytes_written=results[0].nbytes)


def define(
    name: str,
    operands: list[ir.Operand],
    attrs: list[ir.AttrSpec],
    results: tuple[str, ...],
    infer: object,
    reference: object,
    **more: object,
) -> ir.OpDef:
    return ir.OpDef(
        name=name,
        summary="A toy.",
        definition="see the test",
        source="the test",
        operands=tuple(operands),
        attrs=tuple(attrs),
        results=results,
        infer=infer,  # type: ignore[arg-type]
        reference=reference,  # type: ignore[arg-type]
        cost=more.pop("cost", no_cost),  # type: ignore[arg-type]
        **more,  # type: ignore[arg-type]
    )


def codebook_infer(b: Bindings) -> tuple[ir.TensorType, ...]:
    bits = b.attrs.int("bits")
    if b.size("P") * 8 != b.size("D") * bits:
        b.fail(
            f"operand 'packed' has P = {b.size('P')} bytes per row, but D = {b.size('D')} indices "
            f"of {bits} bits need {b.size('D') * bits // 8}"
        )
    if b.size("K") != 2**bits:
        b.fail(
            f"operand 'codebooks' has K = {b.size('K')} entries, but {bits} bits index {2**bits}"
        )
    return (ir.TensorType((b["N"], b.size("M")), F),)


def toy_codebook_matmul(run: Run, x: Array, packed: Array, codebooks: Array) -> tuple[Array, ...]:
    index = np.stack([packed & 15, packed >> 4], -1).reshape(len(packed), -1)
    weight = codebooks[np.arange(index.shape[1]) // run.attrs.int("group_size"), index]
    return ((x @ weight.T).astype(np.float32),)


CODEBOOK_MATMUL = define(
    "toy_codebook_matmul",
    [
        ir.Operand("x", ("N", "D"), F, "rows", rows=True),
        ir.Operand("packed", ("M", "P"), "uint8", "packed indices"),
        ir.Operand("codebooks", ("G", "K"), F, "one codebook per group of inputs"),
    ],
    [
        ir.AttrSpec("bits", "int", "per index", minimum=2, maximum=4),
        ir.AttrSpec("group_size", "int", "inputs per codebook", minimum=1),
    ],
    ("y",),
    codebook_infer,
    toy_codebook_matmul,
    rowwise=True,
)

FAMILIES = ir.OPS.extended(CODEBOOK_MATMUL)


def build() -> tuple[ir.Module, np.ndarray]:
    rng = np.random.default_rng(0)

    def f(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    b = ir.Builder("main", FAMILIES)
    x = b.param("x", ir.TensorType((ir.Sym("n"), 8), F))
    y = b.op("linear", x, b.constant("v", f(6, 8)), b.constant("bias", f(6)))
    packed = b.constant("packed", rng.integers(0, 256, (6, 4)).astype(np.uint8))
    z = b.op("toy_codebook_matmul", x, packed, b.constant("books", f(2, 16)), bits=4, group_size=4)
    scores = b.op("column_row_scores", x, b.constant("w", f(8, 3)))
    columns, factors = b.ops("column_row_sample", scores, k=3, mode="crs", seed=7)
    b.returns(b.op("relu", b.op("add", y, z)), columns, factors)
    return b.module(), f(5, 8)


def test_built_verified_printed_parsed_and_run() -> None:
    module, x = build()
    text = ir.to_text(module)
    assert "toy_codebook_matmul(%x, %packed, %books) {bits = 4, group_size = 4}" in text
    assert "%indices, %scales = column_row_sample(%scores)" in text
    again = ir.parse(text, registry=FAMILIES)
    assert again == module
    ir.verify(again, FAMILIES)
    y, columns, factors = ir.interpret(again, [x], registry=FAMILIES)
    assert y.shape == (5, 6)
    assert columns.shape == factors.shape == (3,)
    assert factors[0] > 0
    for got, want in zip(
        ir.interpret(module, [x], registry=FAMILIES), (y, columns, factors), strict=True
    ):
        np.testing.assert_array_equal(got, want)
    squares = 2 * (5 * 8 + 8 * 3)
    assert ir.cost(module, n=5, registry=FAMILIES).total.flops == 5 * 6 * (2 * 8 + 1 + 1) + squares


def test_the_core_does_not_know_them() -> None:
    module, _ = build()
    with pytest.raises(VerifyError, match="unknown op 'toy_codebook_matmul'"):
        ir.verify(module)
    with pytest.raises(ParseError, match="unknown op 'toy_codebook_matmul'"):
        ir.parse(ir.to_text(module))


def test_their_rules_name_both_sides() -> None:
    b = ir.Builder("main", FAMILIES)
    x = b.param("x", ir.TensorType((ir.Sym("n"), 6), F))
    packed = b.constant("packed", np.zeros((5, 4), np.uint8))
    books = b.constant("books", np.zeros((1, 16), np.float32))
    with pytest.raises(
        VerifyError, match="P = 4 bytes per row, but D = 6 indices of 4 bits need 3"
    ):
        b.op("toy_codebook_matmul", x, packed, books, bits=4, group_size=6)


def test_a_declaration_that_contradicts_itself() -> None:
    late = ir.Operand("y", "=x", F, "before x")
    with pytest.raises(VerifyError, match="refers to 'x', which is not an operand before it"):
        define("bad", [late], [], ("z",), no_cost, no_cost)
    with pytest.raises(VerifyError, match="marks no operand with rows=True"):
        define("bad", [], [], ("z",), no_cost, no_cost, rowwise=True)
