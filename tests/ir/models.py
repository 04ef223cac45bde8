"""Hypothesis strategies: single operations with inputs, and random modules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

from lutcc import ir

N = ir.Sym("n")


@dataclass(frozen=True)
class Case:
    """One operation: static operand arrays and attributes."""

    opcode: str
    arrays: tuple[np.ndarray, ...]
    attrs: dict[str, Any]

    def module(self, symbolic: bool = False) -> ir.Module:
        """Return main(params) that applies the op; dimension 0 of the rows symbolic if asked."""
        opdef = ir.OPS[self.opcode]
        b = ir.Builder("main")
        params = []
        for operand, array in zip(opdef.operands, self.arrays, strict=True):
            shape: tuple[Any, ...] = array.shape
            if symbolic and operand.rows:
                shape = (N, *shape[1:])
            params.append(b.param(operand.name, ir.TensorType(shape, array.dtype.name)))
        b.returns(*b.ops(self.opcode, *params, **self.attrs))
        return b.module()


def floats(rng: np.random.Generator, *shape: int, wild: bool = False) -> np.ndarray:
    """Return float32 values; ``wild`` mixes in infinities, NaN, zeros, huge and tiny ones."""
    x = rng.normal(size=shape).astype(np.float32)
    if wild and x.size:
        special = np.array(
            [np.inf, -np.inf, np.nan, 0.0, -0.0, 3.4e38, -3.4e38, 1e-45, -1e-45, 1e-38], np.float32
        )
        where = rng.random(shape) < 0.25
        x = np.where(where, rng.choice(special, size=shape), x).astype(np.float32)
    return x


def seeds() -> st.SearchStrategy[int]:
    return st.integers(0, 2**32 - 1)


@st.composite
def tree_encode(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(seeds()))
    n, d, c = draw(st.integers(1, 9)), draw(st.integers(1, 20)), draw(st.integers(1, 7))
    depth = draw(st.integers(1, 7))
    if draw(st.booleans()):
        x: np.ndarray = floats(rng, n, d, wild=draw(st.booleans()))
        vals: np.ndarray = floats(rng, c, 2**depth, wild=draw(st.booleans()))
    else:
        x = rng.integers(0, 256, (n, d)).astype(np.uint8)
        vals = rng.integers(0, 256, (c, 2**depth)).astype(np.uint8)
    dims = rng.integers(0, d, (c, depth)).astype(np.int32)
    return Case("tree_encode", (x, dims, vals), {})


@st.composite
def interval_encode(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(seeds()))
    n, d, c = draw(st.integers(1, 9)), draw(st.integers(1, 20)), draw(st.integers(1, 7))
    depth, most = draw(st.integers(1, 7)), draw(st.sampled_from([9, 1000, 2**30]))
    dims = rng.integers(0, d, (c, depth)).astype(np.int32)
    x, starts = (
        rng.integers(-most, most, s, endpoint=True).astype(np.int32)
        for s in ((n, d), (c, 2**depth))
    )
    ends = rng.integers(-most, most, starts.shape, endpoint=True)
    widths = ((ends - starts) % 2**32).astype(np.uint32).view(np.int32)
    return Case("interval_encode", (x, dims, starts, widths), {})


@st.composite
def nearest_encode(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(seeds()))
    n, d, c = draw(st.integers(1, 5)), draw(st.integers(1, 9)), draw(st.integers(1, 4))
    k, d2 = draw(st.integers(2, 9)), draw(st.integers(1, 10))
    cuts = sorted(draw(st.lists(st.integers(0, d2), min_size=c - 1, max_size=c - 1)))
    wild = draw(st.booleans())
    return Case(
        "nearest_encode",
        (
            floats(rng, n, d, wild=wild),
            floats(rng, k, d2, wild=wild),
            floats(rng, c, k, wild=wild),
            rng.integers(0, d, d2).astype(np.int32),
        ),
        {"starts": (0, *cuts, d2)},
    )


@st.composite
def lut_accumulate(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(seeds()))
    n, c = draw(st.integers(1, 5)), draw(st.integers(1, 37))
    k, m = draw(st.sampled_from([1, 2, 16, 128])), draw(st.integers(1, 5))
    kind = draw(st.sampled_from(["uint8", "int8", "float32", "mean"]))
    codes = rng.integers(0, k, (n, c)).astype(np.uint8)
    attrs: dict[str, Any] = {}
    if kind == "float32":
        lut: np.ndarray = floats(rng, c, k, m, wild=draw(st.booleans()))
    elif kind == "int8":
        lut = rng.integers(-128, 128, (c, k, m)).astype(np.int8)
    else:
        lut = rng.integers(0, 256, (c, k, m)).astype(np.uint8)
        if kind == "mean":
            attrs = {"accumulate": "mean", "upcast_every": 2 ** draw(st.integers(1, 8))}
    return Case("lut_accumulate", (codes, lut), attrs)


@st.composite
def lut_dequantize(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(seeds()))
    n, m = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    large = draw(st.sampled_from([2**8, 2**25, 2**31 - 1]))
    acc = rng.integers(-large, large, (n, m)).astype(np.int32)
    wild = draw(st.booleans())
    attrs = {"activation": draw(st.sampled_from(["none", "relu"]))}
    return Case(
        "lut_dequantize", (acc, floats(rng, m, wild=wild), floats(rng, m, wild=wild)), attrs
    )


@st.composite
def columnwise(draw: st.DrawFn, opcode: str) -> Case:
    rng = np.random.default_rng(draw(seeds()))
    n, m, wild = draw(st.integers(1, 6)), draw(st.integers(1, 6)), draw(st.booleans())
    a, b = floats(rng, m, wild=wild), floats(rng, m, wild=wild)
    x = floats(rng, n, m, wild=wild)
    with np.errstate(over="ignore"):
        x = x * np.float32(draw(st.sampled_from([1, 40])))
        if opcode == "quantize":
            b = b * np.float32(100)
    if opcode == "quantize" and draw(st.booleans()):  # halves, which must round to even
        x, a, b = np.round(x), np.full(m, 0.5, np.float32), np.zeros(m, np.float32)
    return Case(opcode, (x, a, b), {})


@st.composite
def linear(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(seeds()))
    n, d, m = (draw(st.integers(1, 7)) for _ in range(3))
    attrs = {"activation": draw(st.sampled_from(["none", "relu", "gelu"]))}
    return Case("linear", (floats(rng, n, d), floats(rng, m, d), floats(rng, m)), attrs)


@st.composite
def hadamard(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(seeds()))
    n, d = draw(st.integers(1, 5)), draw(st.integers(1, 40))
    scale = draw(st.sampled_from([1.0, 0.25, d**-0.5, -3.0]))
    return Case("hadamard", (floats(rng, n, d),), {"scale": scale})


@st.composite
def block_diagonal_matmul(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(seeds()))
    n, g, p, q = (draw(st.integers(1, 5)) for _ in range(4))
    blocks = floats(rng, g, p, q)
    if draw(st.booleans()):
        blocks = blocks.astype(ml_dtypes.bfloat16)
    attrs = {"columns": draw(st.integers(1, g * q))} if draw(st.booleans()) else {}
    return Case("block_diagonal_matmul", (floats(rng, n, g * p), blocks), attrs)


@st.composite
def sign_hash(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(seeds()))
    n, h, length = draw(st.integers(1, 4)), draw(st.integers(1, 5)), draw(st.integers(1, 16))
    variant = draw(st.sampled_from(["gelu", "softmax", "constant"]))
    neighbors = 1 if variant == "constant" else draw(st.integers(1, length + 1))
    z = floats(rng, n, h * length) * np.float32(draw(st.sampled_from([0.5, 3])))
    if draw(st.booleans()):  # zeros and equal magnitudes
        z = np.round(z)
    attrs = {"code_length": length, "variant": variant, "neighbors": neighbors}
    return Case("sign_hash", (z,), attrs)


@st.composite
def weighted_gather(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(seeds()))
    n, h, j = draw(st.integers(1, 4)), draw(st.integers(1, 9)), draw(st.integers(1, 3))
    k, m = draw(st.sampled_from([1, 2, 5, 16])), draw(st.integers(1, 5))
    kind = draw(st.sampled_from(["float32", "bfloat16", "int8"]))
    codes = rng.integers(0, k, (n, h * j)).astype(np.int32)
    scores = floats(rng, n, h * j, wild=kind == "int8" and draw(st.booleans()))
    if kind == "int8":
        tables: np.ndarray = rng.integers(-128, 128, (h, k, m)).astype(np.int8)
        with np.errstate(over="ignore"):  # down to where 127 / the largest score overflows
            scores = scores * np.float32(2.0 ** draw(st.sampled_from([0, -110, -121, -140, 40])))
        return Case("weighted_gather", (codes, scores, tables), {})
    tables = floats(rng, h, k, m)
    attrs = {"score_dtype": draw(st.sampled_from(["float32", "bfloat16"]))}
    if kind == "bfloat16":
        tables = tables.astype(ml_dtypes.bfloat16)
    return Case("weighted_gather", (codes, scores, tables), attrs)


@st.composite
def elementwise(draw: st.DrawFn, opcode: str) -> Case:
    rng = np.random.default_rng(draw(seeds()))
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    count = 2 if opcode == "add" else 1
    return Case(opcode, tuple(floats(rng, *shape, wild=True) for _ in range(count)), {})


@st.composite
def batch_norm(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(seeds()))
    n, f = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    var = np.abs(floats(rng, f))
    arrays = (floats(rng, n, f), floats(rng, f), floats(rng, f), floats(rng, f), var)
    return Case("batch_norm", arrays, {"eps": draw(st.sampled_from([1e-5, 1e-3]))})


@st.composite
def reshape(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(seeds()))
    a, b, c = (draw(st.integers(1, 5)) for _ in range(3))
    shape = draw(st.sampled_from([(a * b, c), (a, b * c), (c, b, a), (a * b * c,), (a, 1, c, b)]))
    return Case("reshape", (floats(rng, a, b, c),), {"shape": shape})


@st.composite
def im2col(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(seeds()))
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    kernel, stride, dilation = draw(pair), draw(pair), draw(pair)
    padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    size = [
        max(1, draw(st.integers(0, 4)) + dilation[i] * (kernel[i] - 1) + 1 - 2 * padding[i])
        for i in (0, 1)
    ]
    x = floats(rng, draw(st.integers(1, 3)), draw(st.integers(1, 3)), *size, wild=True)
    attrs = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    return Case("im2col", (x,), attrs)


@st.composite
def rows_to_nchw(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(seeds()))
    n, m, oh, ow = (draw(st.integers(1, 4)) for _ in range(4))
    return Case("rows_to_nchw", (floats(rng, n * oh * ow, m),), {"oh": oh, "ow": ow})


@st.composite
def repack(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(seeds()))
    layout = draw(
        st.sampled_from([ir.ROW_MAJOR, ir.Layout("column_major"), ir.Layout("row_blocked", 4, 2)])
    )
    x = floats(rng, draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    return Case("repack", (x,), {"layout": layout})


CASES: dict[str, st.SearchStrategy[Case]] = {
    "tree_encode": tree_encode(),
    "interval_encode": interval_encode(),
    "nearest_encode": nearest_encode(),
    "lut_accumulate": lut_accumulate(),
    "lut_dequantize": lut_dequantize(),
    "quantize": columnwise("quantize"),
    "linear": linear(),
    "hadamard": hadamard(),
    "block_diagonal_matmul": block_diagonal_matmul(),
    "sign_hash": sign_hash(),
    "weighted_gather": weighted_gather(),
    "relu": elementwise("relu"),
    "add": elementwise("add"),
    "affine": columnwise("affine"),
    "batch_norm": batch_norm(),
    "reshape": reshape(),
    "im2col": im2col(),
    "rows_to_nchw": rows_to_nchw(),
    "repack": repack(),
}


#: What :func:`modules` puts together.
LAYERS = ["lookup", "linear", "relu", "add", "affine", "norm", "reshape"]
LAYERS += ["hadamard", "blocks", "gather"]


class _Network:
    """Appends random layers to a builder; every value has rows of the same dimension."""

    def __init__(self, draw: st.DrawFn, rows: ir.Dim) -> None:
        self.draw = draw
        self.rng = np.random.default_rng(draw(seeds()))
        self.b = ir.Builder("main")
        self.rows = rows
        self.count = 0

    def constant(self, hint: str, array: np.ndarray) -> ir.Value:
        self.count += 1
        return self.b.constant(f"{hint}{self.count}", array)

    def lookup(self, x: ir.Value) -> ir.Value:
        width = int(x.type.shape[1])  # type: ignore[arg-type]
        c, depth = self.draw(st.integers(1, 5)), self.draw(st.sampled_from([1, 4]))
        m, k = self.draw(st.integers(1, 6)), 2**depth
        rng = self.rng
        if self.draw(st.booleans()):
            dims = self.constant("dims", rng.integers(0, width, (c, depth)).astype(np.int32))
            codes = self.b.op("tree_encode", x, dims, self.constant("vals", floats(rng, c, k)))
        else:
            columns = self.constant("columns", rng.permutation(width).astype(np.int32))
            cuts = sorted(
                self.draw(st.lists(st.integers(0, width), min_size=c - 1, max_size=c - 1))
            )
            codes = self.b.op(
                "nearest_encode",
                x,
                self.constant("centroids", floats(rng, k, width)),
                self.constant("norms", floats(rng, c, k)),
                columns,
                starts=(0, *cuts, width),
            )
        if self.draw(st.integers(0, 3)) == 0:
            return self.b.op("lut_accumulate", codes, self.constant("lut", floats(rng, c, k, m)))
        lut = self.constant("lut", rng.integers(0, 256, (c, k, m)).astype(np.uint8))
        how = self.draw(st.sampled_from(["exact", "mean"]))
        acc = self.b.op("lut_accumulate", codes, lut, accumulate=how, upcast_every=4)
        scale = self.constant("scale", floats(rng, m) / np.float32(64))
        return self.b.op("lut_dequantize", acc, scale, self.constant("offset", floats(rng, m)))

    def gather(self, x: ir.Value) -> ir.Value:
        rng, width = self.rng, int(x.type.shape[1])  # type: ignore[arg-type]
        length = self.draw(st.sampled_from([t for t in (1, 2, 3) if width % t == 0]))
        j, m = self.draw(st.integers(1, length + 1)), self.draw(st.integers(1, 6))
        variant = self.draw(st.sampled_from(["gelu", "softmax"]))
        codes, scores = self.b.ops("sign_hash", x, code_length=length, neighbors=j, variant=variant)
        tables = floats(rng, width // length, 2**length, m)
        kind = self.draw(st.sampled_from([np.float32, ml_dtypes.bfloat16, np.int8]))
        return self.b.op("weighted_gather", codes, scores, self.constant("t", tables.astype(kind)))

    def blocks(self, x: ir.Value) -> ir.Value:
        rng, width = self.rng, int(x.type.shape[1])  # type: ignore[arg-type]
        p = self.draw(st.sampled_from([p for p in range(1, width + 1) if width % p == 0]))
        g, q = width // p, self.draw(st.integers(1, 3))
        kind = self.draw(st.sampled_from([np.float32, ml_dtypes.bfloat16]))
        values = self.constant("blocks", floats(rng, g, p, q).astype(kind))
        columns = self.draw(st.integers(1, min(6, g * q)))
        return self.b.op("block_diagonal_matmul", x, values, columns=columns)

    def layer(self, x: ir.Value, pool: list[ir.Value]) -> ir.Value:
        rng, width = self.rng, int(x.type.shape[1])  # type: ignore[arg-type]
        kind = self.draw(st.sampled_from(LAYERS))
        if kind == "lookup":
            return self.lookup(x)
        if kind == "hadamard":
            return self.b.op("hadamard", x, scale=self.draw(st.sampled_from([1.0, width**-0.5])))
        if kind == "blocks":
            return self.blocks(x)
        if kind == "gather":
            return self.gather(x)
        if kind == "linear":
            m = self.draw(st.integers(1, 6))
            weight = self.constant("weight", floats(rng, m, width))
            return self.b.op("linear", x, weight, self.constant("bias", floats(rng, m)))
        if kind == "add":
            same = [v for v in pool if v.type == x.type]
            return self.b.op("add", x, self.draw(st.sampled_from(same)))
        if kind == "affine":
            scale, shift = floats(rng, width), floats(rng, width)
            return self.b.op(
                "affine", x, self.constant("scale", scale), self.constant("shift", shift)
            )
        if kind == "norm":
            stats = [floats(rng, width) for _ in range(3)] + [np.abs(floats(rng, width))]
            return self.b.op("batch_norm", x, *(self.constant("stat", s) for s in stats))
        if kind == "reshape":
            flat = self.b.op("reshape", x, shape=(self.rows, 1, width))
            if self.draw(st.booleans()):
                flat = self.b.op("relu", flat)
            return self.b.op("reshape", flat, shape=(self.rows, width))
        return self.b.op("relu", x)


@st.composite
def modules(draw: st.DrawFn, max_layers: int = 6) -> ir.Module:
    """Return a random network over one or two inputs, with branches, and one or two results."""
    rows: ir.Dim = draw(st.sampled_from([N, ir.Sym("n", 4), 5]))
    net = _Network(draw, rows)
    pool = [
        net.b.param(f"x{i}", ir.TensorType((rows, draw(st.integers(1, 6))), "float32"))
        for i in range(draw(st.integers(1, 2)))
    ]
    for _ in range(draw(st.integers(1, max_layers))):
        recent = pool[-3:]
        pool.append(net.layer(draw(st.sampled_from(recent)), pool))
    results = [pool[-1]]
    if draw(st.booleans()):
        results.append(draw(st.sampled_from(pool)))
    net.b.returns(*results)
    return net.b.module()


def inputs_for(module: ir.Module, n: int, seed: int = 0) -> list[np.ndarray]:
    """Return random inputs of a module whose symbols all have the size ``n``."""
    rng = np.random.default_rng(seed)
    arrays = []
    for param in module.main.params:
        shape = [d.factor * n if isinstance(d, ir.Sym) else d for d in param.type.shape]
        if param.type.dtype == "uint8":
            arrays.append(rng.integers(0, 256, shape).astype(np.uint8))
        else:
            arrays.append(floats(rng, *shape))
    return arrays
