"""What the verifier refuses, and that its messages name the place and both sides."""

# ruff: noqa: E501 (tables read better in one line per case)

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lutcc import ir
from lutcc.errors import VerifyError
from tests.ir.models import N

T = ir.TensorType


def v(
    name: str, *shape: ir.Dim, dtype: str = "float32", layout: ir.Layout = ir.ROW_MAJOR
) -> ir.Value:
    return ir.Value(name, T(shape, dtype, layout))


X = v("x", N, 4)


def main(
    *body: ir.Operation, params: tuple[ir.Value, ...] = (X,), returns: ir.Value = X
) -> ir.Module:
    return ir.Module((ir.Function("main", params, body, (returns,)),))


def relu(x: ir.Value, y: ir.Value) -> ir.Operation:
    return ir.Operation("relu", (x,), (y,))


Y = v("y", N, 4)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (ir.Module(()), "no function named 'main'"),
        (ir.Module((main().main, main().main)), "function @main is defined twice"),
        (main(params=(X, X)), r"function @main, parameter 1: %x is defined twice"),
        (main(relu(X, X)), r"op 0 \(relu\), result 0: %x is defined twice"),
        (main(relu(Y, Y), returns=Y), r"operand 0 'x': %y is used before .* it is defined later"),
        (
            main(relu(v("z", 1), Y)),
            r"op 0 \(relu\), operand 0 'x': %z is used before it is defined",
        ),
        (
            main(relu(v("x", 3), Y)),
            r"%x is used as float32\[3\], but it was defined as float32\[n, 4\]",
        ),
        (main(returns=Y), "function @main, returned value 0: %y is used before it is defined"),
        (
            main(relu(X, v("y", N, 5))),
            r"declared as float32\[n, 5\], but relu gives float32\[n, 4\]",
        ),
        (main(relu(X, v("y", N, 4, dtype="float64"))), "declared as float64"),
        (main(ir.Operation("relu", (X, X), (Y,))), r"relu takes 1 operands \(x\), but got 2"),
        (main(ir.Operation("relu", (X,), (Y, v("z", 1)))), "gives 1 results, but 2 are named"),
        (main(ir.Operation("rleu", (X,), (Y,))), "unknown op 'rleu'; did you mean 'relu'"),
        (main(ir.Operation("relu", (X,), (Y,), (("slope", 1),))), "relu has no attribute 'slope'"),
        (main(ir.Operation("reshape", (X,), (Y,))), "reshape needs the attribute 'shape'"),
        (
            main(ir.Operation("reshape", (X,), (Y,), (("shape", (N, 4)), ("shape", (N, 4))))),
            "given twice",
        ),
        (
            main(ir.Operation("reshape", (X,), (Y,), (("shape", (N, 5)),))),
            r"\[n, 4\].*\[n, 5\].*equally",
        ),
        (main(ir.Operation("reshape", (X,), (Y,), (("shape", (ir.Sym("m"), 4)),))), "equally many"),
        (
            main(ir.Operation("reshape", (X,), (Y,), (("shape", "4"),))),
            "a tuple of integers or symbols",
        ),
        (main(ir.Operation("reshape", (X,), (Y,), (("shape", (2**60, 2**60)),))), "not in 1"),
        (main(ir.Operation("reshape", (X,), (Y,), (("shape", (True, 4)),))), "a tuple of integers"),
        (main(ir.Operation("constant", (), (Y,), (("ref", "c"),))), "no constant 'c'"),
        (main(ir.Operation("call", (X,), (Y,), (("callee", "f"),))), "no function 'f'"),
        (ir.Module((ir.Function("main", (X,), (), ()),)), "function @main: nothing is returned"),
        (ir.Module(main().functions, {"c": np.zeros((2, 0))}), "constant @c: dimension 1 is 0"),
        (
            ir.Module(main().functions, {"c": np.zeros(2, complex)}),
            "constant @c: unknown element type",
        ),
        (ir.Module(main().functions, {"c": np.array(["a"])}), "constant @c: unknown element type"),
    ],
)
def test_structure(module: ir.Module, message: str) -> None:
    with pytest.raises(VerifyError, match=message):
        ir.verify(module)


def lookup(
    codes: tuple[ir.Dim, ...] = (N, 3),
    lut: tuple[int, ...] = (3, 4, 5),
    dtype: str = "uint8",
    **attrs: Any,
) -> None:
    b = ir.Builder("main")
    c = b.param("codes", T(codes, "uint8"))
    b.op("lut_accumulate", c, b.param("lut", T(lut, dtype)), **attrs)


def tree(
    x: tuple[ir.Dim, ...] = (N, 4), dims: tuple[int, ...] = (3, 2), vals: tuple[int, ...] = (3, 4),
    dtype: str = "float32", other: str | None = None,
) -> None:  # fmt: skip
    b = ir.Builder("main")
    params = (T(x, dtype), T(dims, "int32"), T(vals, other or dtype))
    b.op("tree_encode", *(b.param(f"p{i}", t) for i, t in enumerate(params)))


def nearest(starts: object, k: int = 4, c: int = 2) -> None:
    b = ir.Builder("main")
    params = (T((N, 6), "float32"), T((k, 5), "float32"), T((c, k), "float32"), T((5,), "int32"))
    values = [b.param(f"p{i}", t) for i, t in enumerate(params)]
    b.op("nearest_encode", *values, starts=starts)  # type: ignore[arg-type]


def apply(opcode: str, *types: ir.TensorType, **attrs: object) -> Callable[[], None]:
    def build() -> None:
        b = ir.Builder("main")
        b.op(opcode, *(b.param(f"p{i}", t) for i, t in enumerate(types)), **attrs)  # type: ignore[arg-type]

    return build


F = "float32"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: lookup(codes=(N, 2)), r"operand 1 'lut'.*dimension 0 \(C\) = 3, but .*'codes' says C = 2"),
        (lambda: lookup(codes=(N,)), r"operand 0 'codes' of type uint8\[n\] has rank 1, but .*\(N, C\), rank 2"),
        (lambda: lookup(codes=(N, N)), "says C = n"),
        (lambda: lookup(dtype="int32"), "operand 1 'lut' .* must be uint8 or int8 or float32, not int32"),
        (lambda: lookup(accumulate="mena"), "'mena', but it must be one of 'exact', 'mean'"),
        (lambda: lookup(accumulate="mean", dtype="int8"), "needs a uint8 table, but operand 'lut' is int8"),
        (lambda: lookup(upcast_every=3), "is 3, but it must be a power of two"),
        (lambda: lookup(upcast_every=512), r"512, but it must be in 2\.\.256"),
        (lambda: lookup(upcast_every=True), "True, but it must be an integer"),
        (lambda: lookup(upcast_every=2.0), "2.0, but it must be an integer"),
        (lambda: lookup(lut=(3, 257, 5)), "K = 257 entries, which is not in 1..256"),
        (lambda: lookup(codes=(N, 9**8), lut=(9**8, 4, 5)), "may overflow the int32 sum"),
        (lambda: lookup(dtype=F, bound=3), "float32 and cannot overflow"),
        (lambda: tree(vals=(3, 8)), r"K = 8 .*'splitdims' has L = 2 levels, which need 2\*\*2 = 4"),
        (lambda: tree(vals=(2, 4)), r"'splitvals'.*dimension 0 \(C\) = 2, but .*'splitdims' says C = 3"),
        (lambda: tree(dims=(3, 8), vals=(3, 256)), r"L = 8 levels, which is not in 1\.\.7"),
        (lambda: tree(dtype="int8"), "must be float32 or uint8 or int32, not int8"),
        (lambda: tree(dtype="uint8", other=F), "must have the element type of 'x', which is uint8"),
        (lambda: tree(x=(4, N)), "dimension D is n, but it must be a number"),
        (lambda: nearest((0, 5)), "'starts' has 2 entries, but operand 'half_norms' has C = 2"),
        (lambda: nearest((0, 3, 6)), "must rise from 0 to D2 = 5"),
        (lambda: nearest((0, 6, 5)), "must rise from 0"),
        (lambda: nearest((0, -1, 5)), r"in 0\.\."),
        (lambda: nearest((0, N, 5)), "a tuple of integers"),
        (lambda: nearest([0, 2, 5]), "a tuple of integers"),
        (lambda: nearest((0, 2, 5), k=257), r"K = 257 .* not in 2\.\.256"),
        (apply("add", T((N, 2), F), T((N, 3), F)), r"must have the shape of 'x', which is \[n, 2\]"),
        (apply("add", T((N, 2), F), T((ir.Sym("m"), 2), F)), "must have the shape of 'x'"),
        (apply("linear", T((N, 4), F), T((5, 3), F), T((5,), F)), r"\(D\) = 3, but .*'x' says D = 4"),
        (apply("linear", T((N, 4), F), T((5, 4), F), T((4,), F)), r"\(M\) = 4, but .*'weight' says M = 5"),
        (apply("linear", T((N, 4), F), T((5, 4), F), T((5,), F), activation="tan"), "'none', 'relu'"),
        (apply("batch_norm", *[T((N, 4), F)] + [T((4,), F)] * 4, eps=float("nan")), "a finite number"),
        (apply("batch_norm", *[T((N, 4), F)] + [T((4,), F)] * 4, eps=-1.0), "must not be negative"),
        (apply("im2col", T((N, 1, 4, 4), F), kernel=(5, 1)), "kernel' 5 .* does not fit dimension H = 4"),
        (apply("im2col", T((N, 1, 4, 4), F), kernel=(1, 1, 1)), "must be 2 integers"),
        (apply("im2col", T((N, 1, 4, 4), F), kernel=(1, 1), stride=(0, 1)), r"in 1\.\."),
        (apply("im2col", T((2**40, 2**12, 2**4, 2**4), F), kernel=(2, 2)), r"more than 2\*\*60 elements"),
        (apply("rows_to_nchw", T((ir.Sym("n", 6), 2), F), oh=4, ow=1), r"has 6\*n rows, .* oh\*ow = 4\*1"),
        (apply("rows_to_nchw", T((6, 2), F, ir.Layout("column_major")), oh=3, ow=1), "must be row_major"),
        (apply("reshape", T((6, 2), F, ir.Layout("row_blocked", 4)), shape=(12,)), "put a repack before"),
        (apply("repack", T((2, 2, 2), F), layout=ir.Layout("column_major")), "needs rank 2"),
        (apply("repack", T((2, 2), F), layout="row_major"), "must be a layout"),
        (apply("quantize", T((N, 2), F), T((2,), F), T((2,), "uint8")), "'zero' .* must be float32"),
    ],
)  # fmt: skip
def test_shape_rules(build: Callable[[], None], message: str) -> None:
    with pytest.raises(VerifyError, match=message) as caught:
        build()
    assert "function @main, op " in (caught.value.where or "")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: T((0,), F), "dimension 0 is 0"),
        (lambda: T((-1,), F), "dimension 0 is -1"),
        (lambda: T((True,), F), "dimension 0 is True"),
        (lambda: T((2.0,), F), "dimension 0 is 2.0"),  # type: ignore[arg-type]
        (lambda: T((2**49,), F), r"not in 1\.\.2\*\*48"),
        (lambda: T((2**40, 2**40), F), r"more than 2\*\*60 elements"),
        (lambda: T((ir.Sym("n", 2**40), 2**40), F), r"more than 2\*\*60 elements"),
        (lambda: T((1,) * 9, F), "rank 9"),
        (lambda: T((1,), "float"), "unknown element type 'float'"),
        (lambda: T((1,), np.float32), "unknown element type"),  # type: ignore[arg-type]
        (lambda: T((1, 2, 3), F, ir.Layout("column_major")), "needs rank 2"),
        (lambda: ir.Sym("n", 0), "factor 0"),
        (lambda: ir.Sym("n", 2**50), "not in 1"),
        (lambda: ir.Layout("row_blocked"), "rows = 0"),
        (lambda: ir.Layout("row_major", 4), "takes no rows"),
        (lambda: ir.Layout("blocked"), "unknown layout 'blocked'"),  # type: ignore[arg-type]
    ],
)
def test_types(make: Callable[[], object], message: str) -> None:
    with pytest.raises(VerifyError, match=message):
        make()


def call(name: str, *callees: str) -> ir.Function:
    x = v("x", 4)
    body, last = list[ir.Operation](), x
    for i, callee in enumerate(callees):
        y = v(f"y{i}", 4)
        body.append(ir.Operation("call", (last,), (y,), (("callee", callee),)))
        last = y
    return ir.Function(name, (x,), tuple(body), (last,))


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        ((call("main", "main"),), "function @main calls itself"),
        ((call("main", "f"), call("f", "g"), call("g", "f")), "calls itself"),
        ((call("main"), call("f", "g"), call("g", "h"), call("h", "f")), "calls itself"),
        ((call("main", "f0"), *(call(f"f{i}", f"f{i + 1}") for i in range(5000)), call("f5000")), "deeper"),
        ((call("main", *["f0"] * 9), *(call(f"f{i}", *[f"f{i + 1}"] * 9) for i in range(20)), call("f20")),
         "more than 1000000 operations"),
    ],
)  # fmt: skip
def test_calls(functions: tuple[ir.Function, ...], message: str) -> None:
    with pytest.raises(VerifyError, match=message):
        ir.verify(ir.Module(functions))


def test_diamond_of_calls_is_fine() -> None:
    ir.verify(ir.Module((call("main", "f", "g"), call("f", "h"), call("g", "h"), call("h"))))


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        (v("x", 5), r"operand 0 is float32\[5\], but parameter 0 of @f is %a: float32\[2\*n\]"),
        (v("x", 4, dtype="uint8"), "operand 0 is uint8"),
        (v("x", 2, 2), "operand 0 is"),
        (v("x", ir.Sym("m", 3)), r"operand 0 is float32\[3\*m\]"),
    ],
)
def test_call_types(given_: ir.Value, message: str) -> None:
    b = ir.Builder("main")
    a = v("a", ir.Sym("n", 2))
    b.add_function(ir.Function("f", (a,), (), (a,)))
    with pytest.raises(VerifyError, match=message):
        b.call("f", b.param("x", given_.type))


def encoder(columns: list[int], k: int = 4, lut_k: int = 4, bound: int | None = None) -> ir.Builder:
    b = ir.Builder("main")
    x = b.param("x", T((N, 4), F))
    dims = b.constant("dims", np.array([columns], np.int32))
    codes = b.op("tree_encode", x, dims, b.constant("vals", np.zeros((1, k), np.float32)))
    lut = b.constant("lut", np.full((1, lut_k, 2), 200, np.uint8))
    attrs: dict[str, Any] = {} if bound is None else {"bound": bound}
    b.returns(b.op("lut_accumulate", codes, lut, **attrs))
    return b


@pytest.mark.parametrize(
    ("builder", "message"),
    [
        (encoder([0, 4]), r"'splitdims' holds column 4, but operand 'x' has columns 0\.\.3"),
        (encoder([-1, 0]), "'splitdims' holds column -1"),
        (encoder([0, 1], lut_k=3), "holds codes up to 3, but operand 'lut' has K = 3 entries"),
        (encoder([0, 1], bound=199), "'bound' is 199, but sums of operand 'lut' can reach 200"),
    ],
)
def test_values_of_constants(builder: ir.Builder, message: str) -> None:
    with pytest.raises(VerifyError, match=message):
        builder.module()


def test_good_constants_pass() -> None:
    encoder([0, 3], lut_k=16, bound=200).module()
    encoder([2, 2], bound=500).module()


def test_columns_of_nearest_encode() -> None:
    b = ir.Builder("main")
    x = b.param("x", T((N, 4), F))
    zeros = np.zeros((2, 3), np.float32)
    columns = b.constant("columns", np.array([0, 1, 4], np.int32))
    c = b.constant("centroids", zeros)
    b.returns(b.op("nearest_encode", x, c, b.constant("h", zeros[:1, :2]), columns, starts=(0, 3)))
    with pytest.raises(
        VerifyError, match=r"'columns' holds column 4, but operand 'x' has columns 0\.\.3"
    ):
        b.module()


def test_symbols_come_from_parameters() -> None:
    odd = ir.Operation("constant", (), (v("c", ir.Sym("q")),), (("ref", "c"),))
    with pytest.raises(VerifyError, match=r"declared as float32\[q\]"):
        ir.verify(ir.Module(main(odd).functions, {"c": np.zeros(3, np.float32)}))


def test_attributes_of_another_python_type_are_refused() -> None:
    """1 == 1.0 == True in Python, but not in the text form."""
    stats = [v(f"s{i}", 4) for i in range(4)]
    norm = ir.Operation("batch_norm", (X, *stats), (Y,), (("eps", 1),))
    with pytest.raises(VerifyError, match=r"attribute 'eps' is 1, but it must be 1\.0"):
        ir.verify(main(norm, params=(X, *stats)))
    bare = ir.Operation("linear", (X, v("w", 4, 4), stats[0]), (Y,))
    with pytest.raises(VerifyError, match="attribute 'activation' is missing"):
        ir.verify(main(bare, params=(X, v("w", 4, 4), stats[0])))
