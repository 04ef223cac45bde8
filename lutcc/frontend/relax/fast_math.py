"""exp, erf, tanh and their kin as polynomials, which vectorise as calls of libm do not.

Each is within a few units in the last place of float32, keeps infinities and NaN, and stands in for
the Relax op of the same name while Relax is lowered to loops.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable
from typing import Any

from lutcc.schedules.intrinsics.polynomials import (
    ERF_MAX,
    ERF_P,
    ERF_Q,
    EXP,
    EXP_MAX,
    EXP_MIN,
    LN2_HIGH,
    LN2_LOW,
    LOG2_E,
    TANH_MAX,
    TANH_P,
    TANH_Q,
)

_numbers = itertools.count()


def legalizers() -> dict[str, Callable[[Any, Any], Any]]:
    """Return the lowering of each Relax op that is fast here, for ``LegalizeOps``."""
    from tvm import te

    def elementwise(formula: Callable[[Any], Any], name: str) -> Callable[[Any, Any], Any]:
        def compute(x: Any) -> Any:
            return te.compute(x.shape, lambda *i: formula(x(*i)), name=name)

        def lower(builder: Any, call: Any) -> Any:
            if call.args[0].ty.dtype.dtype != "float32":
                return call  # LegalizeOps leaves the op to its own rule
            return builder.call_te(compute, call.args[0], primfunc_name_hint=name)

        return lower

    def softmax(logarithm: bool) -> Callable[[Any, Any], Any]:
        def lower(builder: Any, call: Any) -> Any:
            axis = int(call.attrs.axis)

            def compute(x: Any) -> Any:
                return _softmax(te, x, axis % len(x.shape), logarithm)

            return builder.call_te(compute, call.args[0], primfunc_name_hint="softmax")

        return lower

    return {
        "relax.exp": elementwise(exp, "exp"),
        "relax.erf": elementwise(erf, "erf"),
        "relax.tanh": elementwise(tanh, "tanh"),
        "relax.sigmoid": elementwise(sigmoid, "sigmoid"),
        "relax.nn.silu": elementwise(silu, "silu"),
        "relax.nn.gelu": elementwise(gelu, "gelu"),
        "relax.nn.gelu_tanh": elementwise(gelu_tanh, "gelu_tanh"),
        "relax.nn.softmax": softmax(logarithm=False),
        "relax.nn.log_softmax": softmax(logarithm=True),
    }


def exp(x: Any) -> Any:
    """Return e^x: Cephes' polynomial between powers of two."""
    from tvm import tirx

    def of_bounded(bounded: Any) -> Any:
        rounded = tirx.floor(bounded * _f32(LOG2_E) + _f32(0.5))
        return _named(rounded, lambda power: of_power(bounded, power))

    def of_power(bounded: Any, power: Any) -> Any:
        r = bounded - power * _f32(LN2_HIGH) - power * _f32(LN2_LOW)
        value = _named(r, lambda v: _horner(EXP, v) * v * v + v + _f32(1.0))
        whole = tirx.Cast("int32", power)
        # two steps, so that 2^128 and denormal results come out right
        half = tirx.shift_right(whole, tirx.const(1, "int32"))
        return value * _power_of_two(half) * _power_of_two(whole - half)

    return _named(_bound(x, EXP_MIN, EXP_MAX), of_bounded)


def erf(x: Any) -> Any:
    """Return the error function."""
    return _named(_bound(x, -ERF_MAX, ERF_MAX), lambda v: _ratio(ERF_P, ERF_Q, v))


def tanh(x: Any) -> Any:
    """Return the hyperbolic tangent."""
    return _named(_bound(x, -TANH_MAX, TANH_MAX), lambda v: _ratio(TANH_P, TANH_Q, v))


def sigmoid(x: Any) -> Any:
    """Return 1 / (1 + e^-x)."""
    return _f32(1.0) / (_f32(1.0) + exp(_f32(0.0) - x))


def silu(x: Any) -> Any:
    """Return x / (1 + e^-x)."""
    return _named(x, lambda v: v * sigmoid(v))


def gelu(x: Any) -> Any:
    """Return x times the standard normal distribution function of x."""
    return _named(x, lambda v: _f32(0.5) * v * (_f32(1.0) + erf(v * _f32(math.sqrt(0.5)))))


def gelu_tanh(x: Any) -> Any:
    """Return GELU in its tanh form."""
    inner = math.sqrt(2 / math.pi)
    return _named(
        x,
        lambda v: (
            _f32(0.5) * v * (_f32(1.0) + tanh(_f32(inner) * (v + _f32(0.044715) * v * v * v)))
        ),
    )


def _softmax(te: Any, x: Any, axis: int, logarithm: bool) -> Any:
    from tvm import tirx

    rest = [d for i, d in enumerate(x.shape) if i != axis]

    def whole(indices: tuple[Any, ...], position: Any) -> list[Any]:
        return [*indices[:axis], position, *indices[axis:]]

    def drop(indices: tuple[Any, ...]) -> list[Any]:
        return [i for j, i in enumerate(indices) if j != axis]

    def reduced(
        source: Any, combine: Callable[..., Any], join: Callable[[Any, Any], Any], name: str
    ) -> Callable[..., Any]:
        """Reduce along the axis in parts, the first a multiple of any vector width."""

        def part(number: int, start: int, size: Any) -> Any:
            k = te.reduce_axis((0, size), name="k")
            return te.compute(
                rest,
                lambda *i: combine(source(*whole(i, k + start)), axis=k),
                name=f"{name}{number}",
            )

        parts = [part(number, *bounds) for number, bounds in enumerate(_parts(x.shape[axis]))]
        return lambda *i: functools.reduce(join, [part(*i) for part in parts])

    largest = reduced(x, te.max, tirx.max, "largest")
    exps = te.compute(x.shape, lambda *i: exp(x(*i) - largest(*drop(i))), name="exps")
    total = reduced(exps, te.sum, operator.add, "total")
    if logarithm:
        return te.compute(
            x.shape,
            lambda *i: x(*i) - largest(*drop(i)) - tirx.log(total(*drop(i))),
            name="log_softmax",
        )
    return te.compute(x.shape, lambda *i: exps(*i) / total(*drop(i)), name="softmax")


def _parts(extent: Any) -> list[tuple[int, Any]]:
    size = getattr(extent, "value", None)
    if size is None or size < 32 or size % 16 == 0:
        return [(0, extent)]
    return [(0, size - size % 16), (size - size % 16, size % 16)]


def _f32(value: float) -> Any:
    from tvm import tirx

    return tirx.const(value, "float32")


def _bound(x: Any, low: float, high: float) -> Any:
    """Clamp, with NaN kept."""
    from tvm import tirx

    return _named(
        x,
        lambda v: tirx.Select(v < _f32(low), _f32(low), tirx.Select(v > _f32(high), _f32(high), v)),
    )


def _horner(coefficients: tuple[float, ...], x: Any) -> Any:
    value = _f32(coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + _f32(coefficient)
    return value


def _ratio(numerator: tuple[float, ...], denominator: tuple[float, ...], x: Any) -> Any:
    return _named(
        x * x, lambda square: x * _horner(numerator, square) / _horner(denominator, square)
    )


def _power_of_two(exponent: Any) -> Any:
    from tvm import tirx

    bits = tirx.shift_left(exponent + tirx.const(127, "int32"), tirx.const(23, "int32"))
    return tirx.reinterpret("float32", bits)


def _named(value: Any, formula: Callable[[Any], Any]) -> Any:
    """Return ``formula(value)`` with ``value`` computed once."""
    from tvm import tirx

    variable = tirx.Var(f"v{next(_numbers)}", "float32")
    return tirx.Let(variable, value, formula(variable))
