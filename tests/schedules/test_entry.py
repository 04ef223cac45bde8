"""Entry functions of modules that are more than one look-up layer, against the interpreter.

Values are chosen so that every sum is exact in float32 (integers, and scales that are powers of
two): then the order in which ``linear`` adds does not matter and all bits must agree. One test
has values that round and compares with the tolerance that ``linear`` declares.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

from lutcc import ir
from lutcc.errors import CompileError
from tests.schedules.harness import (
    WIDEST_ISA_PARAMS,
    N,
    built,
    check,
    random_lut,
    tree_constants,
)

ROWS = (1, 5, 17, 65, 300)
IMAGES = (1, 3, 17)


class Net(ir.Builder):
    """A builder that makes up the constants of whole layers."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__("main")
        self.rng = np.random.default_rng(seed)
        self.made = 0

    def fixed(self, array: np.ndarray) -> ir.Value:
        """Add a constant under a new name."""
        self.made += 1
        return self.constant(f"c{self.made}", array)

    def whole(self, *shape: int, low: int = -8, high: int = 9) -> ir.Value:
        """Add a float32 constant of whole numbers."""
        return self.fixed(self.rng.integers(low, high, shape).astype(np.float32))

    def input(self, *shape: Any, dtype: str = "float32", name: str = "x") -> ir.Value:
        """Add a parameter."""
        return self.param(name, ir.TensorType(shape, dtype))

    def codes(self, x: ir.Value, codebooks: int, entries: int = 16) -> ir.Value:
        """Encode with trees whose thresholds lie among the values that occur."""
        columns, dtype = x.type.size(1), x.type.dtype
        dims, vals = tree_constants(self.rng, columns, codebooks, entries, dtype)
        if dtype == "float32":
            vals = np.round(vals * 16) / 2
        return self.op("tree_encode", x, self.fixed(dims), self.fixed(vals.astype(dtype)))

    def sums(self, x: ir.Value, codebooks: int, outputs: int, **attrs: Any) -> ir.Value:
        """Encode and accumulate."""
        entries, dtype = attrs.pop("entries", 16), attrs.pop("lut_dtype", "uint8")
        lut = random_lut(self.rng, codebooks, entries, outputs, dtype)
        codes = self.codes(x, codebooks, entries)
        return self.op("lut_accumulate", codes, self.fixed(lut), **attrs)

    def scaled(self, acc: ir.Value, activation: str = "none") -> ir.Value:
        """Dequantise to multiples of a sixteenth around zero."""
        outputs, codebooks = acc.type.size(1), 8
        signs = self.rng.choice([-0.0625, 0.0625, 0.03125], outputs).astype(np.float32)
        offset = np.round(-128 * codebooks * signs).astype(np.float32)
        return self.op(
            "lut_dequantize", acc, self.fixed(signs), self.fixed(offset), activation=activation
        )

    def look_up(
        self, x: ir.Value, codebooks: int, outputs: int, activation: str = "none", **attrs: Any
    ) -> ir.Value:
        """Encode, accumulate and dequantise."""
        return self.scaled(self.sums(x, codebooks, outputs, **attrs), activation)

    def dense(self, x: ir.Value, outputs: int, activation: str = "none") -> ir.Value:
        """Multiply by whole numbers."""
        weight = self.whole(outputs, x.type.size(1), low=-3, high=4)
        return self.op("linear", x, weight, self.whole(outputs), activation=activation)

    def bytes_of(self, x: ir.Value) -> ir.Value:
        """Quantise; many values are halves, which round to even, and some are clamped."""
        columns = x.type.size(1)
        scale = self.rng.choice([0.5, 2.0, 8.0], columns).astype(np.float32)
        zero = self.rng.integers(0, 256, columns).astype(np.float32)
        return self.op("quantize", x, self.fixed(scale), self.fixed(zero))


def values(module: ir.Module, n: int) -> list[np.ndarray]:
    """Return inputs: whole numbers, every byte."""
    rng = np.random.default_rng(n)
    arrays = []
    for value in module.main.params:
        shape = [d.factor * n if isinstance(d, ir.Sym) else d for d in value.type.shape]
        dtype = value.type.dtype
        low, high = {"float32": (-12, 13), "uint8": (0, 256), "int32": (-3000, 3000)}[dtype]
        arrays.append(rng.integers(low, high, shape).astype(dtype))
    return arrays


def threads_for(isa: str, case: int) -> int:
    """Return 2 for some cases at each level: each case runs on a pool somewhere."""
    levels = [param.values[0] for param in WIDEST_ISA_PARAMS]
    return 2 if levels.index(isa) == case % len(levels) else 1


def agree(
    module: ir.Module,
    isa: str,
    threads: int = 1,
    rows: tuple[int, ...] = ROWS,
) -> None:
    """Assert that the entry function and the interpreter give the same bits and dtypes."""
    _, call = built(module, isa, threads=threads)
    for n in rows:
        arrays = values(module, n)
        expected = ir.interpret(module, arrays)
        if n == rows[-1]:
            assert all(len(np.unique(y)) > 1 for y in expected), "an output is constant"
        got = call(*arrays)
        for i, (have, want) in enumerate(zip(got, expected, strict=True)):
            np.testing.assert_array_equal(have, want, err_msg=f"output {i}, n={n}", strict=True)


def chain() -> ir.Module:
    b = Net(1)
    x = b.input(N, 40)
    h = b.look_up(x, 8, 37, "relu")
    h = b.look_up(h, 5, 64, entries=64)
    b.returns(b.look_up(h, 16, 10, accumulate="mean", upcast_every=4))
    return b.module()


def byte_chain() -> ir.Module:
    b = Net(2)
    h = b.look_up(b.input(N, 20), 6, 33, "relu")
    h = b.look_up(b.bytes_of(h), 9, 18)
    b.returns(h)
    return b.module()


def mixed_widths_and_signs() -> ir.Module:
    b = Net(3)
    h = b.look_up(b.input(N, 50, dtype="uint8"), 7, 20, lut_dtype="int8")
    h = b.dense(h, 30, "relu")
    b.returns(b.look_up(h, 4, 5, entries=32))
    return b.module()


def linear_look_up_linear() -> ir.Module:
    b = Net(4)
    h = b.dense(b.input(N, 19), 24, "relu")
    h = b.look_up(h, 6, 35)
    b.returns(b.dense(h, 3))
    return b.module()


def residual() -> ir.Module:
    b = Net(5)
    x = b.input(N, 21)
    h = b.look_up(x, 6, 21, "relu")
    h = b.op("add", h, x)
    g = b.op("add", b.look_up(h, 3, 21), b.dense(h, 21))
    b.returns(b.op("relu", g))
    return b.module()


def added_inputs() -> ir.Module:
    b = Net(6)
    x, y = b.input(N, 18), b.input(N, 18, name="y")
    s = b.op("add", x, y)
    b.returns(b.op("add", s, x), b.look_up(s, 4, 7))
    return b.module()


def narrow_sums() -> ir.Module:
    b = Net(7)
    x, y = b.input(N, 3), b.input(N, 3, name="y")
    s = b.op("relu", b.op("add", x, y))
    b.returns(b.op("add", y, b.op("add", s, s)))
    return b.module()


def constant_operand() -> ir.Module:
    b = Net(8)
    x = b.input(33, 12)
    s = b.op("add", x, b.whole(33, 12))
    b.returns(b.look_up(s, 4, 9), b.op("add", b.whole(33, 12), x))
    return b.module()


def returned_and_used() -> ir.Module:
    b = Net(9)
    h = b.look_up(b.input(N, 30), 5, 40, "relu")
    g = b.look_up(h, 5, 16)
    b.returns(g, h, b.dense(g, 2))
    return b.module()


def returned_twice() -> ir.Module:
    b = Net(10)
    x = b.input(N, 14)
    h = b.look_up(x, 5, 11)
    b.returns(h, x, h, b.op("reshape", h, shape=(ir.Sym("n", 11),)), x)
    return b.module()


def codes_and_sums() -> ir.Module:
    b = Net(11)
    codes = b.codes(b.input(N, 22), 12)
    acc = b.op("lut_accumulate", codes, b.fixed(random_lut(b.rng, 12, 16, 19, "uint8")))
    signed = b.fixed(random_lut(b.rng, 12, 16, 33, "int8"))
    b.returns(acc, codes, b.op("lut_accumulate", codes, signed), b.scaled(acc))
    return b.module()


def sums_given() -> ir.Module:
    b = Net(12)
    acc = b.input(N, 17, dtype="int32")
    b.returns(b.scaled(acc, "relu"), acc)
    return b.module()


def one_static_batch() -> ir.Module:
    b = Net(13)
    h = b.look_up(b.input(70, 9), 3, 20)
    b.returns(b.dense(h, 4), h)
    return b.module()


def two_batches() -> ir.Module:
    b = Net(14)
    x, y = b.input(ir.Sym("n", 3), 8), b.input(N, 10, name="y")
    h = b.op("reshape", b.look_up(x, 3, 6), shape=(N, 18))
    b.returns(b.op("add", h, b.look_up(y, 4, 18)))
    return b.module()


def reshaped_rows() -> ir.Module:
    b = Net(15)
    x = b.input(N, 24)
    h = b.look_up(b.op("reshape", x, shape=(ir.Sym("n", 4), 6)), 3, 5)
    q = b.op("reshape", b.bytes_of(h), shape=(N, 20))
    h = b.look_up(q, 4, 9)
    b.returns(h, q, b.op("relu", b.op("reshape", x, shape=(N, 2, 12))))
    return b.module()


MODULES = {
    f.__name__: f
    for f in (
        chain,
        byte_chain,
        mixed_widths_and_signs,
        linear_look_up_linear,
        residual,
        added_inputs,
        narrow_sums,
        constant_operand,
        returned_and_used,
        returned_twice,
        codes_and_sums,
        sums_given,
        one_static_batch,
        two_batches,
        reshaped_rows,
    )
}


@pytest.mark.one_in(3)
@pytest.mark.parametrize("isa", WIDEST_ISA_PARAMS)
@pytest.mark.parametrize("name", MODULES)
def test_modules(isa: str, name: str) -> None:
    agree(MODULES[name](), isa, threads_for(isa, list(MODULES).index(name)))


@pytest.mark.parametrize("isa", WIDEST_ISA_PARAMS)
@pytest.mark.parametrize("outputs", [(1, 10), (16, 37)])
def test_bytes_as_output(isa: str, outputs: tuple[int, int]) -> None:
    b = Net(outputs[0])
    x, y = (b.input(N, m, name=name) for m, name in zip(outputs, "xy", strict=True))
    b.returns(b.bytes_of(x), b.bytes_of(b.look_up(x, 4, outputs[1])), b.bytes_of(y))
    agree(b.module(), isa)


@pytest.mark.parametrize("isa", WIDEST_ISA_PARAMS)
def test_bytes_of_what_is_no_number(isa: str) -> None:
    b = Net()
    b.returns(b.bytes_of(b.input(N, 6)))
    module = b.module()
    _, call = built(module, isa)
    for n in (1, 20):
        x = np.full((n, 6), 7.25, np.float32)
        x[0] = [np.nan, np.inf, -np.inf, 3e38, -3e38, -0.0]
        np.testing.assert_array_equal(call(x)[0], ir.interpret(module, [x])[0])


@pytest.mark.parametrize("isa", WIDEST_ISA_PARAMS)
def test_strided_inputs(isa: str) -> None:
    views = {
        "column-major": np.asfortranarray,
        "sliced": lambda x: np.repeat(np.repeat(x, 2, axis=0), 3, axis=1)[::2, ::3],
        "one row repeated": lambda x: as_strided(x.copy(), x.shape, (0, x.itemsize)),
        "backwards": lambda x: x[::-1, ::-1],
    }
    b = Net(20)
    x, y = b.input(N, 12), b.input(N, 12, name="y")
    z = b.op("add", x, y)
    reshaped = b.op("reshape", x, shape=(ir.Sym("n", 3), 4))
    b.returns(
        z,
        b.dense(x, 5),
        b.bytes_of(y),
        x,
        b.look_up(reshaped, 2, 3),
        b.op("relu", b.op("reshape", y, shape=(N, 2, 6))),
    )
    module = b.module()
    _, call = built(module, isa, threads=threads_for(isa, 0))
    for n in (1, 5, 65):
        for name, view in views.items():
            arrays = [view(a) for a in values(module, n)]
            pairs = zip(call(*arrays), ir.interpret(module, arrays), strict=True)
            for i, (have, want) in enumerate(pairs):
                text = f"output {i}, n={n}, {name}"
                np.testing.assert_array_equal(have, want, err_msg=text, strict=True)


def convolution(
    b: Net, x: ir.Value, outputs: int, kernel: int, activation: str = "none", **geometry: Any
) -> ir.Value:
    """Look up a convolution: patches, tables, and back to images."""
    pair: dict[str, Any] = {
        key: (value, value) if isinstance(value, int) else value for key, value in geometry.items()
    }
    rows = b.op("im2col", x, kernel=(kernel, kernel), **pair)
    height, width = x.type.sizes(2)
    stride, padding = pair.get("stride", (1, 1)), pair.get("padding", (0, 0))
    dilation = pair.get("dilation", (1, 1))
    oh, ow = (
        (size + 2 * p - d * (kernel - 1) - 1) // s + 1
        for size, s, p, d in zip((height, width), stride, padding, dilation, strict=True)
    )
    return b.op("rows_to_nchw", b.look_up(rows, 4, outputs, activation), oh=oh, ow=ow)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("isa", WIDEST_ISA_PARAMS)
@pytest.mark.parametrize("batch", [N, 3], ids=["symbolic", "static"])
def test_convolutions(isa: str, batch: Any) -> None:
    b = Net(30)
    x = b.input(batch, 2, 7, 9)
    h = b.op("relu", convolution(b, x, 5, 3, padding=1))
    g = convolution(b, h, 5, 3, padding=(2, 2), dilation=2)
    h = b.op("relu", b.op("add", g, h))
    h = convolution(b, h, 18, 3, "relu", stride=(2, 3), padding=(1, 0))
    channels, height, width = h.type.sizes(1)
    flat = b.op("reshape", h, shape=(batch, channels * height * width))
    b.returns(b.look_up(flat, 6, 10), b.dense(flat, 3), h)
    symbolic = batch is N
    agree(b.module(), isa, threads_for(isa, symbolic), rows=IMAGES if symbolic else (1,))


@pytest.mark.parametrize("isa", WIDEST_ISA_PARAMS)
def test_patches(isa: str) -> None:
    b = Net(40)
    x = b.input(N, 3, 6, 5)
    geometries: tuple[dict[str, Any], ...] = (
        {"kernel": (1, 1)},
        {"kernel": (2, 3), "stride": (3, 1), "padding": (1, 2)},
        {"kernel": (3, 2), "dilation": (2, 3), "padding": (0, 4)},
        {"kernel": (6, 5)},
        {"kernel": (1, 4), "stride": (5, 5), "padding": (3, 3)},
    )
    rows = [b.op("im2col", x, **geometry) for geometry in geometries]
    b.returns(*rows, b.op("relu", rows[1]), b.op("relu", x))
    agree(b.module(), isa, rows=IMAGES)


@pytest.mark.parametrize("isa", WIDEST_ISA_PARAMS)
def test_linear_within_its_tolerance(isa: str) -> None:
    b = Net(50)
    x = b.input(N, 67)
    layers = []
    for outputs, activation in ((1, "none"), (16, "relu"), (45, "none")):
        weight = b.rng.normal(size=(outputs, 67)).astype(np.float32)
        bias = b.rng.normal(size=outputs).astype(np.float32)
        y = b.op("linear", x, b.fixed(weight), b.fixed(bias), activation=activation)
        layers.append((y, weight, bias))
    b.returns(*[y for y, _, _ in layers])
    module = b.module()
    _, call = built(module, isa)
    for n in ROWS:
        x = np.random.default_rng(n).normal(size=(n, 67)).astype(np.float32)
        results = zip(call(x), ir.interpret(module, [x]), layers, strict=True)
        for have, want, (_, weight, bias) in results:
            bound = np.abs(x) @ np.abs(weight).T + np.abs(bias)
            bound *= ir.OPS["linear"].tolerance
            assert (np.abs(have - want) <= bound).all(), f"{len(bias)} outputs, n={n}"


def normalised() -> ir.Module:
    """Return look-up and linear layers with batch norm, affine and relu for the passes to fold."""
    b = Net(60)

    def norm(x: ir.Value) -> ir.Value:
        f = x.type.size(1)
        made = [b.rng.normal(size=f) for _ in range(3)] + [b.rng.random(f) + 0.5]
        return b.op("batch_norm", x, *[b.fixed(a.astype(np.float32)) for a in made])

    def affine(x: ir.Value) -> ir.Value:
        f = x.type.size(1)
        made = [b.fixed(b.rng.normal(size=f).astype(np.float32)) for _ in range(2)]
        return b.op("affine", x, *made)

    x = b.input(N, 26)
    h = b.look_up(x, 5, 21)
    b.returns(
        b.op("relu", norm(h)),
        affine(b.dense(x, 17)),
        norm(x),
        b.op("relu", affine(b.op("add", x, x))),
        h,
    )
    return b.module()


@pytest.mark.parametrize("isa", WIDEST_ISA_PARAMS)
def test_folded_normalisation(isa: str) -> None:
    module = normalised()
    lowered, call = built(module, isa, threads=threads_for(isa, 2))
    assert not any(op.opcode == "batch_norm" for f in lowered.module.functions for op in f.body)
    for n in ROWS:
        arrays = values(module, n)
        got = call(*arrays)
        folded, original = ir.interpret(lowered.module, arrays), ir.interpret(module, arrays)
        for i, (have, want) in enumerate(zip(got, folded, strict=True)):
            if i != 1:  # a linear layer, whose weights now round
                np.testing.assert_array_equal(have, want, err_msg=f"output {i}, n={n}")
        for i, (have, want) in enumerate(zip(got, original, strict=True)):
            np.testing.assert_allclose(have, want, 1e-4, 1e-3, err_msg=f"output {i}, n={n}")


@pytest.mark.parametrize("isa", WIDEST_ISA_PARAMS)
def test_constants_as_outputs(isa: str) -> None:
    b = Net(70)
    table = b.whole(4, 6)
    h = b.look_up(b.input(N, 6), 3, 8)
    b.returns(table, h, b.op("reshape", table, shape=(24,)), table)
    agree(b.module(), isa, rows=(1, 17))


@pytest.mark.parametrize("isa", WIDEST_ISA_PARAMS)
def test_tables_must_be_constants(isa: str) -> None:
    b = Net(80)
    x, weight = b.input(N, 6), b.input(5, 6, name="weight")
    b.returns(b.op("linear", x, weight, b.input(5, name="bias"), activation="none"))
    with pytest.raises(CompileError, match=r"%weight must be a constant"):
        built(b.module(), isa)


@pytest.mark.parametrize("isa", WIDEST_ISA_PARAMS)
def test_codes_are_encoded_again(isa: str) -> None:
    """Codes feed a scan, another encoder, and the caller, all in one stage."""
    rng = np.random.default_rng(60)
    b = ir.Builder("main")
    x = b.param("x", ir.TensorType((N, 20), "float32"))
    first = [b.constant(f"t{i}", a) for i, a in enumerate(tree_constants(rng, 20, 9, 16))]
    codes = b.op("tree_encode", x, *first)
    second = [b.constant(f"u{i}", a) for i, a in enumerate(tree_constants(rng, 9, 5, 16, "uint8"))]
    again = b.op("tree_encode", codes, *second)
    lut = b.constant("lut", random_lut(rng, 5, 16, 21, "uint8"))
    other = b.constant("other", random_lut(rng, 9, 16, 18, "uint8"))
    b.returns(b.op("lut_accumulate", again, lut), b.op("lut_accumulate", codes, other), codes)

    def inputs(n: int) -> list[np.ndarray]:
        return [np.random.default_rng(n).normal(size=(n, 20)).astype(np.float32)]

    check(b.module(), isa, inputs, rows=(1, 5, 17, 65, 300))


@pytest.mark.parametrize("isa", WIDEST_ISA_PARAMS)
@pytest.mark.parametrize("entries", [16, 64])
def test_quantised_values_as_codes(isa: str, entries: int) -> None:
    rng = np.random.default_rng(61)
    b = ir.Builder("main")
    x = b.param("x", ir.TensorType((N, 7), "float32"))
    scale = b.constant("scale", np.full(7, (entries - 1) / 8, np.float32))
    zero = b.constant("zero", np.zeros(7, np.float32))
    codes = b.op("quantize", x, scale, zero)
    lut = b.constant("lut", random_lut(rng, 7, entries, 19, "uint8"))
    b.returns(b.op("lut_accumulate", codes, lut))

    def inputs(n: int) -> list[np.ndarray]:
        return [np.random.default_rng(n).uniform(0, 8, (n, 7)).astype(np.float32)]

    check(b.module(), isa, inputs, rows=(1, 5, 17, 65, 300))


@pytest.mark.parametrize("isa", WIDEST_ISA_PARAMS)
@pytest.mark.parametrize("entries", [16, 20, 64])
def test_codes_past_the_table_read_its_last_entry(isa: str, entries: int) -> None:
    """The interpreter refuses such codes; a kernel must not read past its tables."""
    rng = np.random.default_rng(62)
    b = ir.Builder("main")
    codes = b.param("codes", ir.TensorType((N, 7), "uint8"))
    b.returns(
        b.op("lut_accumulate", codes, b.constant("lut", random_lut(rng, 7, entries, 19, "uint8")))
    )
    module = b.module()
    _, call = built(module, isa)
    for n in (1, 17, 65):
        wild = rng.integers(0, 256, (n, 7)).astype(np.uint8)
        (expected,) = ir.interpret(module, [np.minimum(wild, entries - 1)])
        np.testing.assert_array_equal(call(wild)[0], expected)
