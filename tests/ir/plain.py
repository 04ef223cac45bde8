"""Plain definitions of every op: Python loops over numbers and fractions, independent of lutcc.ir.

Each takes arrays and attributes and returns arrays; nothing here is vectorised or shares code with
the interpreter.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from tests.ir import (
    plain_attention,
    plain_codebook,
    plain_dense,
    plain_images,
    plain_rows,
    plain_sampled,
)

Arrays = list[np.ndarray]


def round_to_float32(q: Fraction, digits: int = 24) -> float:
    """Round an exact number to the nearest float32, ties to even; 8 digits give bfloat16."""
    if q == 0:
        return 0.0
    magnitude = abs(q)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if magnitude < Fraction(2) ** exponent:
        exponent -= 1
    assert Fraction(2) ** exponent <= magnitude < Fraction(2) ** (exponent + 1)
    quantum = Fraction(2) ** (max(exponent, -126) - (digits - 1))
    rounded = round(magnitude / quantum) * quantum  # Python rounds fractions half to even
    value = math.inf if rounded >= Fraction(2) ** 128 else float(rounded)
    return math.copysign(value, -1.0 if q < 0 else 1.0)


def fma(a: float, b: float, c: float) -> float:
    """Return the IEEE fused multiply-add of three float32 values."""
    if any(math.isnan(v) for v in (a, b, c)):
        return math.nan
    if math.isinf(a) or math.isinf(b):
        if a == 0 or b == 0:
            return math.nan
        product = math.copysign(math.inf, math.copysign(1, a) * math.copysign(1, b))
        return math.nan if math.isinf(c) and c != product else product
    if math.isinf(c):
        return c
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if exact == 0:
        product_sign = math.copysign(1, a) * math.copysign(1, b)
        if Fraction(a) * Fraction(b) == 0 and product_sign == math.copysign(1, c) == -1:
            return -0.0
        return 0.0
    result = round_to_float32(exact)
    return math.copysign(0.0, 1 if exact > 0 else -1) if result == 0 else result


def bfloat16(v: float) -> float:
    """Round to the nearest bfloat16, ties to even."""
    return round_to_float32(Fraction(v), 8) if math.isfinite(v) else v


def relu(v: float) -> float:
    return 0.0 if v < 0 else v


def act(v: float, activation: str) -> float:
    if activation in ("none", "relu"):
        return relu(v) if activation == "relu" else v
    return plain_rows.function(activation, v)


def f32(values: Any) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.array(values, np.float64).astype(np.float32)


def tree_encode(inputs: Arrays) -> Arrays:
    x, splitdims, splitvals = inputs
    depth, leaves = splitdims.shape[1], splitvals.shape[1]
    codes = np.zeros((len(x), len(splitdims)), np.uint8)
    for n in range(len(x)):
        for c in range(len(splitdims)):
            h = 1
            for level in range(depth):
                right = float(x[n, splitdims[c, level]]) > float(splitvals[c, h])
                h = 2 * h + (1 if right else 0)
            codes[n, c] = h - leaves
    return [codes]


def interval_encode(inputs: Arrays) -> Arrays:
    x, splitdims, starts, widths = inputs
    depth, leaves = splitdims.shape[1], widths.shape[1]
    codes = np.zeros((len(x), len(splitdims)), np.uint8)
    for n in range(len(x)):
        for c in range(len(splitdims)):
            h = 1
            for level in range(depth):
                begin = int(starts[c, h])
                inside = (int(x[n, splitdims[c, level]]) - begin) % 2**32 <= int(
                    widths[c, h]
                ) % 2**32
                h = 2 * h + (0 if inside else 1)
            codes[n, c] = h - leaves
    return [codes]


def nearest_encode(inputs: Arrays, starts: tuple[int, ...]) -> Arrays:
    x, centroids, half_norms, columns = inputs
    codes = np.zeros((len(x), len(starts) - 1), np.uint8)
    for n in range(len(x)):
        for c in range(len(starts) - 1):
            best = None
            for k in range(len(centroids)):
                score = float(half_norms[c, k])
                for j in range(starts[c], starts[c + 1]):
                    score = fma(-float(x[n, columns[j]]), float(centroids[k, j]), score)
                if best is None or score < best:
                    best = score
                    codes[n, c] = k
    return [codes]


def averaging_tree(values: list[int]) -> int:
    """The reference of the MADDNESS code: halve the list by pairwise (a + b + 1) // 2."""
    while len(values) > 1:
        values = [(values[i] + values[i + 1] + 1) // 2 for i in range(0, len(values), 2)]
    return values[0]


def lut_accumulate(
    inputs: Arrays, accumulate: str = "exact", upcast_every: int = 16, bound: int | None = None
) -> Arrays:
    codes, lut = inputs
    floating = lut.dtype == np.float32
    acc = np.zeros((len(codes), lut.shape[2]), np.float32 if floating else np.int32)
    for n in range(len(codes)):
        for m in range(lut.shape[2]):
            entries = [lut[c, codes[n, c], m].item() for c in range(len(lut))]
            if floating:
                total: Any = 0.0
                for entry in entries:
                    with np.errstate(all="ignore"):
                        total = float(np.float32(total + entry))  # float64 sum, rounded once
            elif accumulate == "mean":
                entries += [0] * (-len(entries) % upcast_every)
                groups = [
                    entries[g : g + upcast_every] for g in range(0, len(entries), upcast_every)
                ]
                total = sum(averaging_tree(group) for group in groups)
            else:
                total = sum(entries)
            acc[n, m] = total
    return [acc]


def lut_dequantize(inputs: Arrays, activation: str = "none") -> Arrays:
    acc, scale, offset = inputs
    y = [
        [
            act(fma(round_to_float32(Fraction(int(a))), float(s), float(o)), activation)
            for a, s, o in zip(row, scale, offset, strict=True)
        ]
        for row in acc
    ]
    return [f32(y).reshape(acc.shape)]


def quantize(inputs: Arrays) -> Arrays:
    x, scale, zero = inputs
    q = np.zeros(x.shape, np.uint8)
    for n in range(x.shape[0]):
        for m in range(x.shape[1]):
            v = fma(float(x[n, m]), float(scale[m]), float(zero[m]))
            if math.isnan(v):
                q[n, m] = 0
            elif math.isinf(v):
                q[n, m] = 255 if v > 0 else 0
            else:
                q[n, m] = min(max(round(Fraction(v)), 0), 255)
    return [q]


def linear(inputs: Arrays, activation: str = "none") -> Arrays:
    x, weight, bias = inputs
    y = np.zeros((len(x), len(weight)), np.float64)
    for n in range(len(x)):
        for m in range(len(weight)):
            products = [float(a) * float(b) for a, b in zip(x[n], weight[m], strict=True)]
            y[n, m] = act(math.fsum([*products, float(bias[m])]), activation)
    return [f32(y)]


def relu_op(inputs: Arrays) -> Arrays:
    flat = [relu(float(v)) for v in inputs[0].reshape(-1)]
    return [f32(flat).reshape(inputs[0].shape)]


def add(inputs: Arrays) -> Arrays:
    pairs = zip(inputs[0].reshape(-1), inputs[1].reshape(-1), strict=True)
    return [f32([float(a) + float(b) for a, b in pairs]).reshape(inputs[0].shape)]


def affine(inputs: Arrays) -> Arrays:
    x, scale, shift = inputs
    y = [
        [fma(float(v), float(s), float(t)) for v, s, t in zip(row, scale, shift, strict=True)]
        for row in x
    ]
    return [f32(y).reshape(x.shape)]


def hadamard(inputs: Arrays, scale: float = 1.0) -> Arrays:
    """The sum of equation 9's H, element by element from the definition of its signs."""
    (x,) = inputs
    width = 1
    while width < x.shape[1]:
        width *= 2
    y = np.zeros((len(x), width))
    for n in range(len(x)):
        for j in range(width):
            terms = [(-1) ** (i & j).bit_count() * float(v) for i, v in enumerate(x[n])]
            y[n, j] = math.fsum(terms) * scale
    return [f32(y)]


def block_diagonal_matmul(inputs: Arrays, columns: int | None = None) -> Arrays:
    """A dense product with the blocks laid out in a matrix of zeros."""
    x, blocks = inputs
    groups, height, width = blocks.shape
    dense = [[0.0] * (groups * width) for _ in range(groups * height)]
    for g in range(groups):
        for p in range(height):
            for q in range(width):
                dense[g * height + p][g * width + q] = float(blocks[g, p, q])
    narrow = blocks.dtype != np.float32
    y = np.zeros((len(x), columns or groups * width))
    for n in range(len(x)):
        row = [bfloat16(float(v)) if narrow else float(v) for v in x[n]]
        for m in range(y.shape[1]):
            y[n, m] = math.fsum(v * dense[d][m] for d, v in enumerate(row))
    return [f32(y)]


def sign_hash(
    inputs: Arrays, code_length: int, variant: str = "gelu", neighbors: int = 1
) -> Arrays:
    """Equation 7 as it stands: exp(<z, S_i>) over the product of exp(z) + exp(-z)."""
    (z,) = inputs
    codes, scores = [], []
    for row in z:
        for first in range(0, len(row), code_length):
            v = [float(a) for a in row[first : first + code_length]]
            nearest = sum(2**t for t, a in enumerate(v) if a > 0)
            order = sorted(
                range(code_length),
                key=lambda t, v=v: (math.isnan(v[t]), 0 if math.isnan(v[t]) else abs(v[t]), t),
            )
            for j in range(neighbors):
                code = nearest if j == 0 else nearest ^ 2 ** order[j - 1]
                codes.append(code)
                if variant == "constant":
                    scores.append(1.0)
                    continue
                signs = [1 if code & 2**t else -1 for t in range(code_length)]
                inner = math.fsum(s * a for s, a in zip(signs, v, strict=True))
                all_codes = math.prod(math.exp(a) + math.exp(-a) for a in v)
                weight = math.exp(inner) / all_codes
                scores.append(weight if variant == "softmax" else inner * weight)
    shape = (len(z), z.shape[1] // code_length * neighbors)
    return [np.array(codes, np.int32).reshape(shape), f32(scores).reshape(shape)]


def weighted_gather(inputs: Arrays, score_dtype: str = "float32") -> Arrays:
    codes, scores, tables = inputs
    per_table = codes.shape[1] // len(tables)
    y = np.zeros((len(codes), tables.shape[2]))
    for n in range(len(codes)):
        rows = [tables[e // per_table, code] for e, code in enumerate(codes[n])]
        weights, unit = [float(s) for s in scores[n]], None
        if tables.dtype == np.int8:
            weights, unit = quantized_scores(weights)
        elif score_dtype == "bfloat16":
            weights = [bfloat16(s) for s in weights]
        for m in range(y.shape[1]):
            if unit is None:
                y[n, m] = math.fsum(w * float(r[m]) for w, r in zip(weights, rows, strict=True))
            else:
                total = sum(int(w) * int(r[m]) for w, r in zip(weights, rows, strict=True))
                y[n, m] = round_to_float32(Fraction(total)) * unit
    return [f32(y)]


def quantized_scores(scores: list[float]) -> tuple[list[float], float]:
    """The weights of one row for int8 tables, and their unit, in exact fractions."""
    zeros = [0.0] * len(scores)
    if not all(map(math.isfinite, scores)):
        return zeros, math.nan
    largest = max(Fraction(abs(s)) for s in scores)
    if largest == 0:
        return zeros, 0.0
    unit = round_to_float32(largest / 127)
    inverse = round_to_float32(127 / largest)
    if math.isinf(inverse):
        return zeros, unit
    products = [round_to_float32(Fraction(s) * Fraction(inverse)) for s in scores]
    return [float(round(Fraction(p))) for p in products], unit


def batch_norm(inputs: Arrays, eps: float = 1e-5) -> Arrays:
    x, gamma, beta, mean, var = (a.astype(np.float64) for a in inputs)
    y = np.zeros(x.shape)
    for n in range(x.shape[0]):
        for f in range(x.shape[1]):
            y[n, f] = (x[n, f] - mean[f]) / math.sqrt(var[f] + eps) * gamma[f] + beta[f]
    return [f32(y)]


def reshape(inputs: Arrays, shape: tuple[int, ...]) -> Arrays:
    y = np.zeros(shape, inputs[0].dtype)
    y.reshape(-1)[:] = [v for v in inputs[0].flat]
    return [y]


def im2col(
    inputs: Arrays,
    kernel: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
) -> Arrays:
    x = inputs[0]
    n, channels, height, width = x.shape
    rows = []
    for image in range(n):
        top = -padding[0]
        while top + dilation[0] * (kernel[0] - 1) < height + padding[0]:
            left = -padding[1]
            while left + dilation[1] * (kernel[1] - 1) < width + padding[1]:
                row = []
                for c in range(channels):
                    for i in range(kernel[0]):
                        for j in range(kernel[1]):
                            r, s = top + i * dilation[0], left + j * dilation[1]
                            inside = 0 <= r < height and 0 <= s < width
                            row.append(float(x[image, c, r, s]) if inside else 0.0)
                rows.append(row)
                left += stride[1]
            top += stride[0]
    return [f32(rows)]


def rows_to_nchw(inputs: Arrays, oh: int, ow: int) -> Arrays:
    x = inputs[0]
    images = len(x) // (oh * ow)
    y = np.zeros((images, x.shape[1], oh, ow), np.float32)
    for n in range(images):
        for m in range(x.shape[1]):
            for i in range(oh):
                for j in range(ow):
                    y[n, m, i, j] = x[(n * oh + i) * ow + j, m]
    return [y]


def repack(inputs: Arrays, layout: object = None) -> Arrays:
    return [inputs[0].copy()]


DEFINITIONS: dict[str, Callable[..., Arrays]] = {
    "tree_encode": tree_encode,
    "interval_encode": interval_encode,
    "nearest_encode": nearest_encode,
    "lut_accumulate": lut_accumulate,
    "lut_dequantize": lut_dequantize,
    "quantize": quantize,
    "linear": linear,
    "hadamard": hadamard,
    "block_diagonal_matmul": block_diagonal_matmul,
    "sign_hash": sign_hash,
    "weighted_gather": weighted_gather,
    "relu": relu_op,
    "add": add,
    "affine": affine,
    "batch_norm": batch_norm,
    "reshape": reshape,
    "im2col": im2col,
    "rows_to_nchw": rows_to_nchw,
    "repack": repack,
    **plain_sampled.DEFINITIONS,
    **plain_codebook.DEFINITIONS,
    **plain_dense.DEFINITIONS,
    **plain_rows.DEFINITIONS,
    **plain_attention.DEFINITIONS,
    **plain_images.DEFINITIONS,
}
