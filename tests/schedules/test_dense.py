"""Dense products: every level against the interpreter, few rows and many."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from lutcc import ir
from lutcc.errors import CompileError
from lutcc.ir.arithmetic import quantize_rows
from lutcc.ir.types import numpy_dtype
from lutcc.schedules.x86 import dense
from lutcc.schedules.x86.isa import isa_by_name
from lutcc.schedules.x86.pack_dense import DenseLayout, pack_dense
from tests.schedules.harness import ALL_ISA_PARAMS, ISA_PARAMS, N, built, product_configs

pytestmark = pytest.mark.one_in(3)

F32 = np.float32


def dense_module(
    compute: str,
    outputs: int,
    columns: int,
    *,
    rows: int | ir.Sym = N,
    dtype: str = "float32",
    activation: str = "none",
    scaled: bool = False,
    x_dtype: str = "float32",
    out_dtype: str = "float32",
) -> ir.Module:
    """Return x -> dense with random weights, the extremes of integers included."""
    rng = np.random.default_rng(outputs)
    weight = rng.normal(size=(outputs, columns)).astype(F32)
    units = np.ones(outputs, F32)
    if compute == "int8":
        integers, units = quantize_rows(weight)
        weight = integers.astype(np.int8)
        weight[0] = 127
    elif dtype == "bfloat16":
        weight = weight.astype(ml_dtypes.bfloat16)
    if scaled:
        units = rng.uniform(0.5, 2, outputs).astype(F32)
    b = ir.Builder("main")
    x = b.param("x", ir.TensorType((rows, columns), x_dtype))
    bias = rng.normal(size=outputs).astype(F32)
    constants = [b.constant(n, a) for n, a in (("w", weight), ("units", units), ("bias", bias))]
    attrs = {"compute": compute, "activation": activation, "out_dtype": out_dtype}
    b.returns(b.op("dense", x, *constants, **attrs))
    return b.module()


def rows_of_x(rows: int, columns: int) -> np.ndarray:
    rng = np.random.default_rng(rows)
    x = rng.normal(size=(rows, columns)).astype(F32)
    x[rows // 2] = 3.0 * (-1) ** (rows % 2)  # the largest sums
    return x


def check(module: ir.Module, x: np.ndarray, got: np.ndarray) -> None:
    """Integers to the bit; floats within 1e-5 of the terms' magnitudes (weights are below 10).

    Rounded to bfloat16 they may be neighbours.
    """
    (want,) = ir.interpret(module, [np.ascontiguousarray(x)])
    assert got.dtype == want.dtype
    (op,) = (op for op in module.main.body if op.opcode == "dense")
    got, want, x = (a.astype(F32) for a in (got, want, x))
    if op.attr("compute") == "int8":
        np.testing.assert_array_equal(got, want)
        return
    bound = 1e-5 * 10 * (np.abs(x).sum(axis=1, keepdims=True) + 1)
    if op.attr("out_dtype") == "bfloat16":
        bound = bound + 2.0**-7 * np.abs(want)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    assert (np.abs(got - want) <= bound)[~np.isnan(want)].all()


@pytest.mark.parametrize("isa", ALL_ISA_PARAMS)
@pytest.mark.parametrize("compute", ["int8", "bfloat16", "float32"])
def test_any_shape(isa: str, compute: str) -> None:
    """Outputs and columns that fill nothing; a row, primes, whole tiles; several blocks."""
    if isa == "avx512_bf16" and compute != "bfloat16":
        pytest.skip("kernels are those of the level below")
    outputs, columns = {"int8": (37, 150), "bfloat16": (21, 70), "float32": (9, 45)}[compute]
    module = dense_module(compute, outputs, columns, activation="relu", scaled=compute != "int8")
    _, call = built(module, isa, product_configs(module, panel_bytes=4096, block_rows=12))
    for rows in (1, 2, 3, 4, 5, 13, 29):
        x = rows_of_x(rows, columns)
        check(module, x, call(x)[0])


@pytest.mark.isa("avx2")
@pytest.mark.parametrize("compute", ["int8", "bfloat16"])
def test_threads_and_strides(compute: str) -> None:
    """Panels or rows are shared out; x may have any strides; rows of 1024 numbers lie apart."""
    module = dense_module(compute, 8 * 9 + 3, 1024, dtype="bfloat16")
    _, call = built(module, "avx2", threads=3)
    wide = rows_of_x(2 * 11, 2 * 1024)
    for x in (wide[::2, ::2], wide[:1, 1::2], np.asfortranarray(wide[:2, :1024])):
        check(module, x, call(x)[0])


@pytest.mark.parametrize("isa", ALL_ISA_PARAMS)
def test_one_row_reads_two_places(isa: str) -> None:
    """Blocks of outputs in pairs, one that is left and one that is not whole; as threads share."""
    compute = {"avx512_vbmi_vnni": "int8", "avx512_bf16": "bfloat16"}.get(isa, "float32")
    module = dense_module(compute, 16 * 5 + 3, 300, rows=1)
    x = rows_of_x(2, 300)[:1]
    (alone,) = built(module, isa)[1](x)
    check(module, x, alone)
    (together,) = built(module, isa, threads=2)[1](x)
    np.testing.assert_array_equal(alone, together)


@pytest.mark.isa("avx2")
@pytest.mark.parametrize("rows", [1, 8])
def test_known_rows_of_one_output(rows: int) -> None:
    module = dense_module("int8", 1, 1, rows=rows)
    x = np.linspace(-2, 2, rows, dtype=F32)[:, None]
    check(module, x, built(module, "avx2")[1](x)[0])


@pytest.mark.isa("avx2")
def test_special_values() -> None:
    """What is not finite stays in its row, and relu keeps NaN."""
    module = dense_module("float32", 5, 40, activation="relu")
    x = rows_of_x(5, 40)
    x[1, 2], x[4] = np.nan, 0
    (got,) = built(module, "avx2")[1](x)
    assert np.isnan(got[1]).all()
    np.testing.assert_array_equal(got[4], np.maximum(module.constants["bias"], 0))
    assert np.isfinite(got[[0, 2, 3]]).all()


def test_weights_must_be_constants() -> None:
    b = ir.Builder("main")
    shapes = ((1, 8), (3, 8), (3,), (3,))
    values = [b.param(f"p{i}", ir.TensorType(s, "float32")) for i, s in enumerate(shapes)]
    b.returns(b.op("dense", *values))
    with pytest.raises(CompileError, match="weights must be constants: %p1 of dense"):
        built(b.module(), "avx2")


@pytest.mark.parametrize(("itemsize", "offset"), [(1, 128), (2, 0), (4, 0)])
def test_packed_by_definition(itemsize: int, offset: int) -> None:
    """Each weight is where the layout says; the rest is padding."""
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, (19, 70))
    layout = DenseLayout(itemsize, 19, 70, lanes=2, tile=4, offset=offset)
    given = weight.astype(np.int8) if itemsize == 1 else weight.astype(F32)
    packed = pack_dense(given, **layout.to_json())
    assert packed.nbytes == layout.index_nbytes
    each = 16 // itemsize
    for row in range(19):
        for column in range(70):
            step, rest = divmod(column, 32)
            tile, inside = divmod(row, 8)
            place = (tile, step, inside // 2, rest // each, inside % 2, rest % each)
            found = packed[place]
            if itemsize == 2:
                found = np.array(int(found) << 16, np.uint32).view(F32)
            assert int(found) - offset == weight[row, column]
    if itemsize > 1:
        assert np.count_nonzero(packed) == np.count_nonzero(weight)


def test_large_weights_are_streamed_past_more_rows() -> None:
    """From memory, panels wait for what streaming has asked for."""
    few = {}
    for outputs in (2048, 2049):
        b = ir.Builder("main")
        x = b.param("x", ir.TensorType((N, 1024), "float32"))
        arrays = {"w": np.zeros((outputs, 1024), F32), "u": np.ones(outputs, F32)}
        operands = [b.constant(name, array) for name, array in arrays.items()]
        b.returns(b.op("dense", x, *operands, b.constant("b", np.zeros(outputs, F32))))
        (op,) = (op for op in b.module().main.body if op.opcode == "dense")
        few[outputs] = [
            dense.default_config(op, isa_by_name(isa)).few for isa in ("avx2", "avx512")
        ]
    assert few == {2048: [2, 4], 2049: [2, 8]}


@pytest.mark.parametrize("isa", ISA_PARAMS)
@pytest.mark.parametrize(("outputs", "columns"), [(1, 32), (10, 64), (23, 1024), (32, 96)])
def test_rows_as_they_lie(outputs: int, columns: int, isa: str) -> None:
    """Few outputs of float32: rows are read where they are, if their numbers are neighbours."""
    module = dense_module("float32", outputs, columns, activation="relu")
    _, call = built(module, isa)
    for rows in (9, 16, 131, 250):
        wide = rows_of_x(2 * rows, columns + 3)
        for x in (wide[::2, 1 : columns + 1], np.asfortranarray(wide[:rows, :columns])):
            check(module, x, call(x)[0])


@pytest.mark.isa("avx2")
def test_threads_share_rows_as_they_lie() -> None:
    module = dense_module("float32", 10, 64)
    x = rows_of_x(333, 64)
    (alone,) = built(module, "avx2")[1](x)
    (together,) = built(module, "avx2", threads=3)[1](x)
    np.testing.assert_array_equal(alone, together)


@pytest.mark.parametrize("isa", ALL_ISA_PARAMS)
@pytest.mark.parametrize("compute", ["int8", "bfloat16", "float32"])
def test_bfloat16_in_and_out(isa: str, compute: str) -> None:
    """Rows that are whole steps, which may be read as they lie, and others; NaN in its row."""
    if isa == "avx512_bf16" and compute != "bfloat16":
        pytest.skip("kernels differ in how they round results only")
    for outputs, columns in ((37, 70), (10, 64))[: 2 if compute == "bfloat16" else 1]:
        module = dense_module(compute, outputs, columns, x_dtype="bfloat16", out_dtype="bfloat16")
        _, call = built(module, isa, product_configs(module, block_rows=12))
        for rows in (1, 2, 5, 29):
            wide = rows_of_x(2 * rows, columns + 5).astype(ml_dtypes.bfloat16)
            wide[0, 3] = np.nan
            for x in (wide[::2, 3 : columns + 3], np.asfortranarray(wide[:rows, :columns])):
                check(module, x, call(x)[0])


@pytest.mark.isa("avx2")
@pytest.mark.parametrize(
    ("x_dtype", "out_dtype"), [("bfloat16", "float32"), ("float32", "bfloat16")]
)
def test_bfloat16_on_one_side(x_dtype: str, out_dtype: str) -> None:
    module = dense_module("bfloat16", 11, 64, x_dtype=x_dtype, out_dtype=out_dtype)
    _, call = built(module, "avx2")
    for rows in (1, 17):
        x = rows_of_x(rows, 64).astype(numpy_dtype(x_dtype))
        check(module, x, call(x)[0])


@pytest.mark.isa("avx512_bf16")
def test_threads_share_bfloat16_rows_as_they_lie() -> None:
    module = dense_module("bfloat16", 140, 256, x_dtype="bfloat16", out_dtype="bfloat16")
    x = rows_of_x(333, 256).astype(ml_dtypes.bfloat16)
    (alone,) = built(module, "avx512_bf16")[1](x)
    (together,) = built(module, "avx512_bf16", threads=3)[1](x)
    np.testing.assert_array_equal(alone, together)
    check(module, x, alone)
