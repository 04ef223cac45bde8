"""exp, erf, tanh, and what is made of them, of vectors of float32; sums and maxima over lanes.

Polynomials and a division instead of calls of libm, which do not vectorise. NaN stays NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from lutcc.schedules.intrinsics import polynomials as p
from lutcc.schedules.x86.emit import (
    Expr,
    bind,
    fma,
    reinterpret,
    rint,
    select,
    shuffle,
    splat,
)


def lanes_of(vector: Expr) -> int:
    """Return how many elements a vector has."""
    return int(str(vector.ty.dtype).partition("x")[2] or 1)


def _f32(value: float, like: Expr) -> Expr:
    return splat(float(value), "float32", lanes_of(like))


def exp_of_negative(x: Expr) -> Expr:
    """Return e^x of numbers <= 0; what has no normal float32 becomes 0.

    Count: 16 instructions for a vector.
    """
    lanes = lanes_of(x)
    x = bind(x)
    low = _f32(p.EXP_NORMAL, x)
    bounded = bind(select(x < low, low, x))
    power = bind(rint(bounded * _f32(p.LOG2_E, x), lanes))
    r = fma(power, _f32(-p.LN2_HIGH, x), bounded, lanes)
    r = bind(fma(power, _f32(-p.LN2_LOW, x), r, lanes))
    poly = _horner(p.EXP, r)
    value = fma(bind(r * r), poly, r + _f32(1.0, x), lanes)
    # The sum's last bits hold the power: no conversion, which NaN has none of.
    magic = _f32(1.5 * 2**23, x)
    bits = reinterpret(_like("int32", x), power + magic)
    scale = (bits << splat(23, "int32", lanes)) + splat(127 << 23, "int32", lanes)
    scaled = bind(bind(value) * reinterpret(_like("float32", x), scale))
    return bind(select(x < low, _f32(0.0, x), scaled))


def erf(x: Expr) -> Expr:
    """Return the error function."""
    return _ratio(p.ERF_P, p.ERF_Q, _bounded(x, p.ERF_MAX))


def tanh(x: Expr) -> Expr:
    """Return the hyperbolic tangent."""
    return _ratio(p.TANH_P, p.TANH_Q, _bounded(x, p.TANH_MAX))


def sigmoid(x: Expr) -> Expr:
    """Return 1 / (1 + e^-x)."""
    x = bind(x)
    small = _power_of_magnitude(x)
    one = _f32(1.0, x)
    return bind(select(x < _f32(0.0, x), small, one) / (one + small))


def silu(x: Expr) -> Expr:
    """Return x / (1 + e^-x)."""
    x = bind(x)
    return bind(x * sigmoid(x))


def gelu(x: Expr) -> Expr:
    """Return x times the standard normal distribution function of x."""
    x = bind(x)
    return _gate(x, erf(x * _f32(math.sqrt(0.5), x)))


def gelu_tanh(x: Expr) -> Expr:
    """Return GELU in its tanh form."""
    x = bind(x)
    cubic = fma(bind(x * x), _f32(0.044715, x), _f32(1.0, x), lanes_of(x))
    return _gate(x, tanh(bind(x * _f32(math.sqrt(2 / math.pi), x)) * cubic))


def hardsigmoid(x: Expr) -> Expr:
    """Return x + 3 cut off at 0 and 6, and divided by 6."""
    x = bind(x)
    shifted = bind(x + _f32(3.0, x))
    low, high = _f32(0.0, x), _f32(6.0, x)
    shifted = bind(select(shifted < low, low, shifted))
    return bind(select(shifted > high, high, shifted) * _f32(1 / 6, x))


def hardswish(x: Expr) -> Expr:
    """Return x times its hardsigmoid."""
    x = bind(x)
    return bind(x * hardsigmoid(x))


def elu(x: Expr) -> Expr:
    """Return x where it is positive, else e^x - 1."""
    x = bind(x)
    zero = _f32(0.0, x)
    return bind(select(x > zero, x, exp_of_negative(select(x > zero, zero, x)) - _f32(1.0, x)))


def softplus(x: Expr) -> Expr:
    """Return log(1 + e^x): that of -|x|, and x where it is positive."""
    x = bind(x)
    u = _power_of_magnitude(x)
    s = bind(u / (u + _f32(2.0, x)))
    logarithm = s * _horner(p.LOG1P, bind(s * s))
    zero = _f32(0.0, x)
    return bind(select(x < zero, zero, x) + logarithm)


def mish(x: Expr) -> Expr:
    """Return x tanh(softplus(x)): a ratio of polynomials in e^-|x|."""
    x = bind(x)
    u = _power_of_magnitude(x)
    one, two = _f32(1.0, x), _f32(2.0, x)
    square = bind(u * u)
    negative = x < _f32(0.0, x)
    above = bind(select(negative, fma(u, two, square, lanes_of(x)), fma(u, two, one, lanes_of(x))))
    more = select(negative, two, square * two)
    return bind(x * bind(above / (above + more)))


def _power_of_magnitude(x: Expr) -> Expr:
    """Return e^-|x|."""
    sign = splat(-(2**31), "int32", lanes_of(x))
    bits = reinterpret(_like("int32", x), x) | sign
    return exp_of_negative(reinterpret(_like("float32", x), bits))


def sum_of_lanes(vectors: Sequence[Expr]) -> Expr:
    """Return the sum of all elements of some vectors, a scalar."""
    return _folded(vectors, lambda a, b: a + b)


def largest_lane(vectors: Sequence[Expr]) -> Expr:
    """Return the largest element of some vectors, a scalar; NaN may be passed over."""
    return _folded(vectors, lambda a, b: select(a > b, a, b))


def _folded(vectors: Sequence[Expr], join: Callable[[Expr, Expr], Expr]) -> Expr:
    parts = list(vectors)
    while len(parts) > 1:
        pairs = [bind(join(a, b)) for a, b in zip(parts[::2], parts[1::2], strict=False)]
        parts = pairs + parts[len(pairs) * 2 :]
    (vector,) = parts
    while (half := lanes_of(vector) // 2) > 0:
        low = shuffle([vector], range(half))
        vector = bind(join(low, shuffle([vector], range(half, 2 * half))))
    return vector


def _gate(x: Expr, signed: Expr) -> Expr:
    """Return x (1 + signed) / 2."""
    half = bind(x * _f32(0.5, x))
    return bind(fma(half, bind(signed), half, lanes_of(x)))


def _bounded(x: Expr, limit: float) -> Expr:
    """Clamp to -limit .. limit."""
    x = bind(x)
    low, high = _f32(-limit, x), _f32(limit, x)
    x = bind(select(x < low, low, x))
    return bind(select(x > high, high, x))


def _ratio(numerator: Sequence[float], denominator: Sequence[float], x: Expr) -> Expr:
    square = bind(x * x)
    return bind(bind(x * _horner(numerator, square)) / _horner(denominator, square))


def _horner(coefficients: Sequence[float], x: Expr) -> Expr:
    value = _f32(coefficients[0], x)
    for coefficient in coefficients[1:]:
        value = fma(value, x, _f32(coefficient, x), lanes_of(x))
    return bind(value)


def _like(dtype: str, vector: Expr) -> str:
    lanes = lanes_of(vector)
    return dtype + (f"x{lanes}" if lanes > 1 else "")
