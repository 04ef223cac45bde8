"""The op table holds for the families to come: their types need no change of the core.

Toy definitions of the gather, Hadamard, sampled and codebook families are put beside the real ops
in a registry of the test's own; a module of them is built, verified, printed, parsed, run, counted.
"""

from __future__ import annotations

import numpy as np
import pytest

from lutcc import ir
from lutcc.errors import ParseError, VerifyError
from lutcc.ir.spec import Bindings, Known, Run
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


def sign_hash_infer(b: Bindings) -> tuple[ir.TensorType, ...]:
    length = b.attrs.int("code_length")
    if b.size("F") != b.attrs.int("num_tables") * length:
        b.fail(
            f"operand 'x' has F = {b.size('F')}, but num_tables * code_length = "
            f"{b.attrs.int('num_tables') * length}"
        )
    shape = (b["N"], b.attrs.int("num_tables"))
    return ir.TensorType(shape, "int32"), ir.TensorType(shape, F)


def sign_hash(run: Run, x: Array) -> tuple[Array, ...]:
    bits = x.reshape(len(x), run.attrs.int("num_tables"), -1)
    weights = 1 << np.arange(bits.shape[2])
    return ((bits > 0) @ weights).astype(np.int32), np.abs(bits).min(2).astype(np.float32)


SIGN_HASH = define(
    "sign_hash",
    [ir.Operand("x", ("N", "F"), F, "projections", rows=True)],
    [
        ir.AttrSpec("num_tables", "int", "h", minimum=1),
        ir.AttrSpec("code_length", "int", "tau", minimum=1, maximum=16),
    ],
    ("codes", "scores"),
    sign_hash_infer,
    sign_hash,
    rowwise=True,
    limit=lambda b: 2 ** b.attrs.int("code_length"),
)


def gather_check(b: Bindings, known: Known) -> None:
    limit = known.limit("codes")
    if limit is not None and limit > b.size("S"):
        b.fail(
            f"operand 'codes' reaches {limit - 1}, but operand 'tables' has S = {b.size('S')} rows"
        )


WEIGHTED_GATHER = define(
    "weighted_gather",
    [
        ir.Operand("codes", ("N", "H"), "int32", "row of each table", rows=True),
        ir.Operand("scores", ("N", "H"), F, "weight of each row", rows=True),
        ir.Operand("tables", ("H", "S", "M"), "float32|int8", "one table per hash"),
    ],
    [ir.AttrSpec("neighbours", "int", "rows taken per table", default=1, minimum=1)],
    ("y",),
    lambda b: (ir.TensorType((b["N"], b.size("M")), F),),
    lambda run, c, s, t: (
        np.einsum("nh,nhm->nm", s, t[np.arange(t.shape[0]), c]).astype(np.float32),
    ),
    rowwise=True,
    check=gather_check,
    cost=lambda b, r: ir.OpCost(lookups=b.size("N") * b.size("H") * b.size("M")),
)


def hadamard_infer(b: Bindings) -> tuple[ir.TensorType, ...]:
    if b.size("F") & (b.size("F") - 1):
        b.fail(f"operand 'x' has F = {b.size('F')} columns, which is not a power of two")
    return (ir.TensorType((b["N"], b["F"]), F),)


def hadamard(run: Run, x: Array) -> tuple[Array, ...]:
    h = np.ones((1, 1))
    while len(h) < x.shape[1]:
        h = np.block([[h, h], [h, -h]])
    return ((x @ h).astype(np.float32),)


HADAMARD = define(
    "hadamard",
    [ir.Operand("x", ("N", "F"), F, "rows", rows=True)],
    [],
    ("y",),
    hadamard_infer,
    hadamard,
    rowwise=True,
)
BLOCK_DIAGONAL = define(
    "block_diagonal_matmul",
    [
        ir.Operand("x", ("N", "F"), F, "rows", rows=True),
        ir.Operand("blocks", ("G", "B", "B"), F, "square blocks"),
    ],
    [],
    ("y",),
    lambda b: (
        (ir.TensorType((b["N"], b["F"]), F),)
        if b.size("G") * b.size("B") == b.size("F")
        else b.fail(f"G * B = {b.size('G') * b.size('B')} of 'blocks', but F = {b['F']} of 'x'")
    ),
    lambda run, x, w: (
        np.einsum("ngb,gbc->ngc", x.reshape(len(x), *w.shape[:2]), w)
        .reshape(x.shape)
        .astype(np.float32),
    ),
    rowwise=True,
)


def sample(run: Run, a: Array, b: Array) -> tuple[Array, ...]:
    keep = run.attrs.int("k")
    if run.attrs.str("mode") == "topk":
        order = np.argsort(-np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=1), kind="stable")
    else:
        order = np.random.default_rng(run.attrs.int("seed")).permutation(a.shape[1])
    return order[:keep].astype(np.int32), np.full(keep, a.shape[1] / keep, np.float32)


COLUMN_ROW_SAMPLE = define(
    "column_row_sample",
    [ir.Operand("a", ("N", "K"), F, "left"), ir.Operand("b", ("K", "M"), F, "right")],
    [
        ir.AttrSpec("k", "int", "pairs kept", minimum=1),
        ir.AttrSpec("mode", "str", "how", default="topk", choices=("crs", "bernoulli", "topk")),
        ir.AttrSpec("seed", "int", "seed of the random modes", optional=True),
        ir.AttrSpec("scale", "bool", "whether to scale", default=True),
    ],
    ("columns", "factors"),
    lambda b: (
        (ir.TensorType((b.attrs.int("k"),), "int32"), ir.TensorType((b.attrs.int("k"),), F))
        if b.attrs.str("mode") == "topk" or "seed" in b.attrs
        else b.fail(f"mode {b.attrs.str('mode')!r} needs the attribute 'seed'")
    ),
    sample,
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


def codebook_matmul(run: Run, x: Array, packed: Array, codebooks: Array) -> tuple[Array, ...]:
    index = np.stack([packed & 15, packed >> 4], -1).reshape(len(packed), -1)
    weight = codebooks[np.arange(index.shape[1]) // run.attrs.int("group_size"), index]
    return ((x @ weight.T).astype(np.float32),)


CODEBOOK_MATMUL = define(
    "codebook_matmul",
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
    codebook_matmul,
    rowwise=True,
)

FAMILIES = ir.OPS.extended(
    SIGN_HASH, WEIGHTED_GATHER, HADAMARD, BLOCK_DIAGONAL, COLUMN_ROW_SAMPLE, CODEBOOK_MATMUL
)


def build() -> tuple[ir.Module, np.ndarray]:
    rng = np.random.default_rng(0)

    def f(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    b = ir.Builder("main", FAMILIES)
    x = b.param("x", ir.TensorType((ir.Sym("n"), 8), F))
    h = b.op("block_diagonal_matmul", x, b.constant("blocks", f(2, 4, 4)))
    h = b.op("hadamard", h)
    codes, scores = b.ops("sign_hash", h, num_tables=4, code_length=2)
    y = b.op("weighted_gather", codes, scores, b.constant("tables", f(4, 4, 6)))
    packed = b.constant("packed", rng.integers(0, 256, (6, 4)).astype(np.uint8))
    z = b.op("codebook_matmul", x, packed, b.constant("books", f(2, 16)), bits=4, group_size=4)
    columns, factors = b.ops(
        "column_row_sample", x, b.constant("w", f(8, 3)), k=3, mode="crs", seed=7
    )
    b.returns(b.op("relu", b.op("add", y, z)), columns, factors)
    return b.module(), f(5, 8)


def test_built_verified_printed_parsed_and_run() -> None:
    module, x = build()
    text = ir.to_text(module)
    assert '{k = 3, mode = "crs", scale = true, seed = 7}' in text
    assert "%codes, %scores = sign_hash(%y_1)" in text
    again = ir.parse(text, registry=FAMILIES)
    assert again == module
    ir.verify(again, FAMILIES)
    y, columns, factors = ir.interpret(again, [x], registry=FAMILIES)
    assert y.shape == (5, 6)
    assert sorted(set(columns.tolist())) == sorted(columns.tolist())
    assert columns.shape == factors.shape == (3,)
    for got, want in zip(
        ir.interpret(module, [x], registry=FAMILIES), (y, columns, factors), strict=True
    ):
        np.testing.assert_array_equal(got, want)
    assert ir.cost(module, n=5, registry=FAMILIES).total.lookups == 5 * 4 * 6


def test_hadamard_is_its_own_inverse_up_to_n() -> None:
    b = ir.Builder("main", FAMILIES)
    b.returns(b.op("hadamard", b.op("hadamard", b.param("x", ir.TensorType((3, 8), F)))))
    x = np.arange(24, dtype=np.float32).reshape(3, 8)
    np.testing.assert_array_equal(ir.interpret(b.module(), [x], registry=FAMILIES)[0], 8 * x)


def test_the_core_does_not_know_them() -> None:
    module, _ = build()
    with pytest.raises(VerifyError, match="unknown op 'block_diagonal_matmul'"):
        ir.verify(module)
    with pytest.raises(ParseError, match="unknown op 'block_diagonal_matmul'"):
        ir.parse(ir.to_text(module))


def test_their_rules_name_both_sides() -> None:
    b = ir.Builder("main", FAMILIES)
    x = b.param("x", ir.TensorType((ir.Sym("n"), 6), F))
    with pytest.raises(VerifyError, match="F = 6 columns, which is not a power of two"):
        b.op("hadamard", x)
    with pytest.raises(VerifyError, match=r"F = 6, but num_tables \* code_length = 8"):
        b.ops("sign_hash", x, num_tables=4, code_length=2)
    w = b.constant("w", np.zeros((6, 2), np.float32))
    with pytest.raises(VerifyError, match="mode 'crs' needs the attribute 'seed'"):
        b.ops("column_row_sample", x, w, k=2, mode="crs")
    packed = b.constant("packed", np.zeros((5, 4), np.uint8))
    books = b.constant("books", np.zeros((1, 16), np.float32))
    with pytest.raises(
        VerifyError, match="P = 4 bytes per row, but D = 6 indices of 4 bits need 3"
    ):
        b.op("codebook_matmul", x, packed, books, bits=4, group_size=6)
    codes, scores = b.ops("sign_hash", x, num_tables=2, code_length=3)
    small = b.constant("tables", np.zeros((2, 4, 1), np.float32))
    b.returns(b.op("weighted_gather", codes, scores, small))
    with pytest.raises(VerifyError, match="'codes' reaches 7, but operand 'tables' has S = 4 rows"):
        b.module()


def test_a_declaration_that_contradicts_itself() -> None:
    late = ir.Operand("y", "=x", F, "before x")
    with pytest.raises(VerifyError, match="refers to 'x', which is not an operand before it"):
        define("bad", [late], [], ("z",), no_cost, no_cost)
    with pytest.raises(VerifyError, match="marks no operand with rows=True"):
        define("bad", [], [], ("z",), no_cost, no_cost, rowwise=True)
