"""The text form: exact round trip, elided constants, and a parser that no text can crash."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lutcc import ir
from lutcc.errors import LutccError, ParseError, VerifyError
from tests.ir.models import CASES, N, floats, modules

RELAXED = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)

MODULE = """lutcc.ir 1

constant @splitdims : int32[2, 1] = dense [0, 2]
constant @splitvals : float32[2, 2] = dense [0.0, 0.5, 0.0, -1e-40]
constant @lut.0 : uint8[2, 2, 1] = dense [0, 7, 3, 255]

func @main(%x: float32[49*n, 3] column_major) {
  %a, %b = call(%x) {callee = "rows0"} : int32[49*n, 1], uint8[49*n, 2]
  return %a, %b
}

func @rows0(%x: float32[49*n, 3] column_major) {
  %p = repack(%x) {layout = layout row_blocked<64, 1>} : float32[49*n, 3] row_blocked<64, 1>
  %d = constant() {ref = "splitdims"} : int32[2, 1]
  %v = constant() {ref = "splitvals"} : float32[2, 2]
  %codes = tree_encode(%p, %d, %v) : uint8[49*n, 2] row_blocked<64, 4>
  %l = constant() {ref = "lut.0"} : uint8[2, 2, 1]
  %acc = lut_accumulate(%codes, %l) {accumulate = "mean", upcast_every = 2} : int32[49*n, 1]
  %plain = repack(%codes) {layout = layout row_major} : uint8[49*n, 2]
  return %acc, %plain
}
"""


def test_text_is_canonical() -> None:
    assert ir.to_text(ir.parse(MODULE)) == MODULE


def test_comments_and_white_space() -> None:
    module = ir.parse(MODULE)
    squeezed = MODULE.replace("\n", " ").replace(", ", ",")
    assert ir.parse(squeezed) == module
    assert ir.parse("// a comment\n" + MODULE.replace("\n", " // } note\r\n\t")) == module


@settings(RELAXED, max_examples=60)
@given(modules())
def test_round_trip_of_random_modules(module: ir.Module) -> None:
    text = ir.to_text(module)
    assert ir.parse(text) == module
    assert ir.to_text(ir.parse(text)) == text
    elided = ir.to_text(module, elide_constants=True)
    assert ir.parse(elided, constants=module.constants) == module


@pytest.mark.parametrize("opcode", sorted(CASES))
def test_round_trip_of_every_op(opcode: str) -> None:
    @settings(RELAXED, max_examples=20)
    @given(CASES[opcode])
    def check(case: object) -> None:
        module = case.module()  # type: ignore[attr-defined]
        assert ir.parse(ir.to_text(module)) == module

    check()


@settings(RELAXED, max_examples=120)
@given(
    st.sampled_from(
        ["float32", "float16", "bfloat16", "float64", "int8", "uint8", "int64", "uint32", "bool"]
    ),
    st.integers(1, 80),
    st.integers(0, 2**32 - 1),
)
def test_constants_keep_every_bit(dtype: str, size: int, seed: int) -> None:
    """Arbitrary bytes: NaN payloads, signed zeros and subnormals survive, short and long."""
    rng = np.random.default_rng(seed)
    if dtype == "bool":
        array = rng.integers(0, 2, size).astype(bool)
    else:
        array = np.frombuffer(rng.bytes(size * np.dtype(dtype).itemsize), dtype).copy()
        if array.dtype.kind == "f" and rng.random() < 0.5:
            array = np.where(np.isfinite(array), array, -0.0).astype(dtype)
    b = ir.Builder("main")
    b.returns(b.constant("c", array))
    module = b.module()
    again = ir.parse(ir.to_text(module))
    assert again == module
    assert again.constant("c").tobytes() == array.tobytes()
    assert again.constant("c").dtype == array.dtype


def test_large_constants_are_base64_of_little_endian_bytes() -> None:
    array = np.arange(100, dtype=np.int32)
    b = ir.Builder("main")
    b.returns(b.constant("c", array))
    text = ir.to_text(b.module())
    encoded = text.split('base64 "')[1].split('"')[0]
    assert base64.b64decode(encoded) == array.astype("<i4").tobytes()
    swapped = ir.Builder("main")
    swapped.returns(swapped.constant("c", array.astype(">i4")))
    assert ir.to_text(swapped.module()) == text


def test_elided_constants_are_checked() -> None:
    b = ir.Builder("main")
    array = floats(np.random.default_rng(0), 10, 10)
    b.returns(b.constant("weights", array))
    text = ir.to_text(b.module(), elide_constants=True)
    assert len(text) < 300
    assert ir.constant_digest(array) in text
    with pytest.raises(ParseError, match="elided and not among the given constants"):
        ir.parse(text)
    with pytest.raises(ParseError, match="did you mean 'weight'"):
        ir.parse(text, constants={"weight": array})
    with pytest.raises(
        ParseError, match=r"float32\[10, 10\] in the text, but .* float64\[10, 10\]"
    ):
        ir.parse(text, constants={"weights": array.astype(np.float64)})
    wrong = array.copy()
    wrong[3, 3] += 1
    with pytest.raises(ParseError, match="sha256"):
        ir.parse(text, constants={"weights": wrong})


@pytest.mark.parametrize("name", ["a b", "", "1x", "é", "x" * 201, "x-y", 'x"', "%x", None])
def test_names_that_cannot_be_printed_are_refused(name: str) -> None:
    with pytest.raises(VerifyError, match="not a valid name"):
        ir.Builder("main").param(name, ir.TensorType((1,), "float32"))
    with pytest.raises(VerifyError, match="not a valid name"):
        ir.Builder("main").constant(name, np.zeros(1, np.float32))
    with pytest.raises(VerifyError, match="not a valid name"):
        ir.Builder(name)
    with pytest.raises(VerifyError, match="not a valid name"):
        ir.Sym(name)


LUT = "uint8[2, 2, 1] = dense [0, 7, 3, 255]"


def broken(old: str, new: str) -> str:
    assert old in MODULE
    return MODULE.replace(old, new, 1)


@pytest.mark.parametrize(
    ("text", "at", "message"),
    [
        ("", "", "expected the header 'lutcc.ir 1', found the end of the text"),
        ("lutcc.ir 2\n", "lutcc", "version 2 of the text form; this lutcc reads version 1"),
        ("lutcc.ir 1\nfun @main", "fun", "expected 'constant' or 'func', found 'fun'"),
        (broken("uint8[2, 2, 1]", "uint9[2, 2, 1]"), "uint9", "unknown element type 'uint9'"),
        (broken("[0, 7, 3, 255]", "[0, 7, 3, 256]"), "256]", "256 is not in 0..255"),
        (broken("[0, 7, 3, 255]", "[0, 7, 3]"), "[0, 7", "has 3 elements"),
        (broken("-1e-40", "1e39"), "1e39", "not a finite float32"),
        (
            broken("float32[2, 2] = dense [0.0, 0.5", "bfloat16[2, 2] = dense [0.0, 3.4e38"),
            "3.4e38",
            "not a finite bfloat16",
        ),
        (broken("%p, %d, %v", "%q, %d, %v"), "%q", "%q is used before it is defined"),
        (broken("tree_encode", "treeencode"), "treeencode", "did you mean 'tree_encode'"),
        (broken("%v = constant", "%d = constant"), '%d = constant() {ref = "splitv', "twice"),
        (broken("row_blocked<64, 1>}", "row_blocked<0, 1>}"), "row_blocked<0", "rows = 0"),
        (broken("49*n", "0*n"), "n, 3] column", "factor 0"),
        (broken("3] column", "0] column"), "float32[49*n, 0]", "dimension 1 is 0"),
        (broken('"mean",', '"mean", accumulate = "exact",'), 'accumulate = "exact"', "twice"),
        (broken("return %a, %b", "return"), "}\n\nfunc @rows0", "expected a value"),
        (broken('ref = "lut.0"', 'ref = "\\q"'), '"\\q"', "malformed string"),
        (broken("@lut.0 : uint8[2, 2, 1]", "@lut.0 : uint8[n, 2, 1]"), "@lut.0", "must be static"),
        (broken("int32[49*n, 1], uint8", "int32[49*n, 1] uint8"), "call", "2 results are named"),
        (MODULE + "}", "}", "expected 'constant' or 'func', found '}'"),
        (MODULE + "\x00", "\x00", "unexpected character"),
        (broken("[2, 1] = dense", "[" + "9" * 5000 + "] = dense"), "999", "more than 40 digits"),
        (broken(LUT, 'uint8[2] = base64 "A"'), '"A"', "not valid base64"),
        (broken(LUT, 'uint8[2] = base64 "AA=="'), '"AA=="', "needs 2 bytes, but got 1"),
    ],
)
def test_parse_errors_say_where(text: str, at: str, message: str) -> None:
    with pytest.raises(ParseError) as caught:
        ir.parse(text)
    assert message in caught.value.what
    line, column = map(int, str(caught.value.where).split(":"))
    here = sum(len(row) + 1 for row in text.split("\n")[: line - 1]) + column - 1
    assert text[here:].startswith(at), f"{caught.value.where} is {text[here : here + 20]!r}"
    assert at or here == len(text)


def survives(text: str) -> None:
    try:
        module = ir.parse(text)
    except (ParseError, VerifyError) as error:
        seen = error
    else:
        assert ir.parse(ir.to_text(module)) == module
        return
    assert isinstance(seen, LutccError)
    assert seen.what


@settings(RELAXED, max_examples=300)
@given(st.text(max_size=200))
@example("lutcc.ir 1" + "(" * 100_000)
@example("lutcc.ir " + "1" * 10_000)
@example('lutcc.ir 1 constant @c : uint8[281474976710656, 4096] = base64 ""')
@example("lutcc.ir 1 constant @c : float32[1] = dense [1e999999999]")
@example('lutcc.ir 1 constant @c : bool[1] = base64 "/w=="')
@example("lutcc.ir 1 func @main() { return %x }")
@example('lutcc.ir 1 "' + "\\" * 999)
def test_random_text_never_crashes_the_parser(text: str) -> None:
    survives(text)
    survives("lutcc.ir 1 " + text)


WORDS = [
    "(",
    ")",
    "{",
    "}",
    "[",
    "]",
    "<",
    ">",
    ",",
    ":",
    "=",
    "*",
    "%x",
    "%codes",
    "@main",
    "@rows0",
    "func",
    "constant",
    "return",
    "dense",
    "base64",
    "sha256",
    "float32",
    "uint8",
    "int64",
    "row_blocked",
    "layout",
    "n",
    "49",
    "-1",
    "1e400",
    "1.5",
    '"x"',
    '"\\ud800"',
    "true",
    "call",
    "tree_encode",
    "reshape",
    "im2col",
    "callee",
    "shape",
    "99999999999999",
]


@settings(RELAXED, max_examples=400)
@given(st.data())
def test_mutated_text_never_crashes_the_parser(data: st.DataObject) -> None:
    """Delete, duplicate, swap and replace words of a valid module."""
    words = MODULE.replace("(", " ( ").replace(")", " ) ").replace(",", " , ").replace("[", " [ ")
    tokens = list[str](words.replace("]", " ] ").replace("%", " %").split(" "))
    for _ in range(data.draw(st.integers(1, 4))):
        i = data.draw(st.integers(0, len(tokens) - 1))
        j = data.draw(st.integers(0, len(tokens) - 1))
        how = data.draw(st.integers(0, 4))
        if how == 0:
            del tokens[i]
        elif how == 1:
            tokens.insert(i, data.draw(st.sampled_from(WORDS)))
        elif how == 2:
            tokens[i] = data.draw(st.sampled_from(WORDS))
        elif how == 3:
            tokens[i], tokens[j] = tokens[j], tokens[i]
        else:
            tokens[i:i] = tokens[j : j + data.draw(st.integers(1, 40))]
    survives(" ".join(tokens))


@settings(RELAXED, max_examples=300)
@given(st.integers(0, len(MODULE)), st.integers(0, 30), st.text(max_size=8))
def test_spliced_text_never_crashes_the_parser(at: int, cut: int, put: str) -> None:
    survives(MODULE[:at] + put + MODULE[at + cut :])
    survives(MODULE[:at])


@pytest.mark.parametrize("text", [None, 3, b"lutcc.ir 1"])
def test_not_a_string(text: object) -> None:
    with pytest.raises(ParseError, match="is a str, not"):
        ir.parse(text)  # type: ignore[arg-type]


def test_names_with_dots_round_trip() -> None:
    b = ir.Builder("main")
    x = b.param("layer.0.x", ir.TensorType((N, 2), "float32"))
    b.returns(b.op("add", x, x, name="block.1.sum"))
    assert ir.parse(ir.to_text(b.module())) == b.module()
