"""Maxima and minima as torch takes them: where one of two numbers is NaN, so is the result.

Their places too: the first NaN, if there is one.

A machine's maximum returns its second operand then, and TVM's lowering leaves to chance which that
is: rectified, clamped or pooled, NaN would become a number.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

Formula = Callable[[Any, Any], Any]


def nan_legalizers() -> dict[str, Callable[[Any, Any], Any]]:
    """Return the lowering of each Relax op that takes maxima or minima, for ``LegalizeOps``."""
    from tvm import te, topi

    def elementwise(formula: Callable[..., Any], name: str) -> Callable[[Any, Any], Any]:
        def compute(x: Any, *bounds: Any) -> Any:
            return te.compute(x.shape, lambda *i: formula(x(*i), *bounds), name=name)

        def lower(builder: Any, call: Any) -> Any:
            if not _is_float(call.args[0]):
                return call  # LegalizeOps leaves the op to its own rule
            bounds = [_number(bound) for bound in call.args[1:]]
            return builder.call_te(compute, call.args[0], *bounds, primfunc_name_hint=name)

        return lower

    def pair(formula: Formula, name: str) -> Callable[[Any, Any], Any]:
        def compute(x: Any, y: Any) -> Any:
            shape = topi.add(x, y).shape  # as both are broadcast
            one, two = topi.broadcast_to(x, shape), topi.broadcast_to(y, shape)
            return te.compute(shape, lambda *i: formula(one(*i), two(*i)), name=name)

        def lower(builder: Any, call: Any) -> Any:
            if not _is_float(call.args[0]):
                return call
            return builder.call_te(compute, *call.args, primfunc_name_hint=name)

        return lower

    def reduced(largest: bool, name: str) -> Callable[[Any, Any], Any]:
        def compute(x: Any, axis: Any, keepdims: bool) -> Any:
            return _reduce(x, axis, keepdims, largest, name)

        def lower(builder: Any, call: Any) -> Any:
            if not _is_float(call.args[0]):
                return call
            rank = len(call.args[0].ty.shape)
            axes = range(rank) if call.attrs.axis is None else call.attrs.axis
            axis = sorted({int(a) % rank for a in axes})
            keep = bool(call.attrs.keepdims)
            return builder.call_te(compute, call.args[0], axis, keep, primfunc_name_hint=name)

        return lower

    def place(largest: bool, name: str) -> Callable[[Any, Any], Any]:
        find = topi.argmax if largest else topi.argmin

        def compute(x: Any, axis: Any, keepdims: bool) -> Any:
            keys = te.compute(x.shape, lambda *i: _place_key(x(*i), largest), name=f"{name}_keys")
            return find(keys, axis, keepdims)

        def lower(builder: Any, call: Any) -> Any:
            if not _is_float(call.args[0]):
                return call
            axis = None if call.attrs.axis is None else int(call.attrs.axis)
            keep = bool(call.attrs.keepdims)
            return builder.call_te(compute, call.args[0], axis, keep, primfunc_name_hint=name)

        return lower

    return {
        "relax.argmax": place(True, "argmax"),
        "relax.argmin": place(False, "argmin"),
        "relax.nn.relu": elementwise(lambda x: at_least(x, 0.0), "relu"),
        "relax.nn.relu6": elementwise(lambda x: at_most(at_least(x, 0.0), 6.0), "relu6"),
        "relax.clip": elementwise(lambda x, a, b: at_most(at_least(x, a), b), "clip"),
        "relax.maximum": pair(maximum, "maximum"),
        "relax.minimum": pair(minimum, "minimum"),
        "relax.max": reduced(True, "max"),
        "relax.min": reduced(False, "min"),
        **{f"relax.nn.max_pool{n}d": functools.partial(_lower_pool, n) for n in (1, 2, 3)},
    }


def at_least(x: Any, low: Any) -> Any:
    """Return the larger of ``x``, which may be NaN, and a number: one instruction."""
    from tvm import tirx

    low = _as(low, x)
    return tirx.Select(x < low, low, x)


def at_most(x: Any, high: Any) -> Any:
    """Return the smaller of ``x``, which may be NaN, and a number."""
    from tvm import tirx

    high = _as(high, x)
    return tirx.Select(x > high, high, x)


def maximum(x: Any, y: Any) -> Any:
    """Return the larger of two, NaN if one of them is."""
    from tvm import tirx

    return tirx.Select(tirx.any(x > y, is_nan(x)), x, y)


def minimum(x: Any, y: Any) -> Any:
    """Return the smaller of two, NaN if one of them is."""
    from tvm import tirx

    return tirx.Select(tirx.any(x < y, is_nan(x)), x, y)


def is_nan(x: Any) -> Any:
    """Tell NaN by its bits: TVM's own test is not vectorised."""
    from tvm import tirx

    kind = f"int{_width(x)}"
    size = tirx.bitwise_and(tirx.reinterpret(kind, x), tirx.max_value(kind))
    infinity = np.array(np.inf, _dtype(x)).view(kind)
    return size > tirx.const(int(infinity), kind)


def _reduce(x: Any, axis: list[int], keepdims: bool, largest: bool, name: str) -> Any:
    """Reduce along axes: as whole numbers in the order of floats, NaN beyond all others.

    Schedules cut reductions of these in parts, which they do not of what they do not know.
    """
    from tvm import te

    spans = {a: te.reduce_axis((0, x.shape[a]), name=f"k{a}") for a in axis}
    rank = len(x.shape)
    shape = [1 if a in spans else x.shape[a] for a in range(rank) if keepdims or a not in spans]
    combine = te.max if largest else te.min

    def value(*i: Any) -> Any:
        own = list(i) if keepdims else _spread(i, spans, rank)
        at = x(*(spans.get(a, own[a]) for a in range(rank)))
        return combine(_ordered(at, largest), axis=list(spans.values()))

    keys = te.compute(shape, value, name=f"{name}_keys")
    return te.compute(shape, lambda *i: _float_of(keys(*i), x.dtype), name=name)


def _ordered(x: Any, nan_largest: bool) -> Any:
    """Return a whole number of the same size that is larger where a float is."""
    from tvm import tirx

    width = _width(x)
    kind = f"int{width}"
    bits = tirx.reinterpret(kind, x)
    nan = tirx.max_value(kind) if nan_largest else tirx.min_value(kind)
    return tirx.Select(is_nan(x), nan, _turned(bits, width))


def _place_key(x: Any, nan_largest: bool) -> Any:
    """Return what is ordered as x is, both zeros being one: the first of equals is wanted."""
    from tvm import tirx

    return tirx.Select(x == _as(0.0, x), tirx.const(0, f"int{_width(x)}"), _ordered(x, nan_largest))


def _float_of(key: Any, dtype: str) -> Any:
    """Return the float of a number that :func:`_ordered` made."""
    from tvm import tirx

    return tirx.reinterpret(dtype, _turned(key, _width(key)))


def _turned(bits: Any, width: int) -> Any:
    """Reverse the order of negative floats, whose bits are a sign and a size; its own inverse."""
    from tvm import tirx

    kind = f"int{width}"
    sign = tirx.shift_right(bits, tirx.const(width - 1, kind))
    return tirx.bitwise_xor(bits, tirx.bitwise_and(sign, tirx.max_value(kind)))


def _width(value: Any) -> int:
    return 64 if _dtype(value).endswith("64") else 32


def _spread(indices: tuple[Any, ...], spans: dict[int, Any], rank: int) -> list[Any]:
    left = iter(indices)
    return [None if a in spans else next(left) for a in range(rank)]


def _lower_pool(dims: int, builder: Any, call: Any) -> Any:
    """Lower the largest of each window; windows lie on the last dimensions."""
    from tvm import te, tirx

    attrs = call.attrs
    layout = ("NCW", "NCHW", "NCDHW")[dims - 1]
    if not _is_float(call.args[0]) or (attrs.layout, attrs.out_layout) != (layout, layout):
        return call
    size, stride, dilation = (
        [int(v) for v in values] for values in (attrs.pool_size, attrs.strides, attrs.dilation)
    )
    before = [int(v) for v in attrs.padding][:dims]
    shape = list(call.ty.shape)

    def compute(x: Any) -> Any:
        spans = [te.reduce_axis((0, k), name=f"k{d}") for d, k in enumerate(size)]
        largest = te.comm_reducer(maximum, tirx.min_value, name="max")
        lowest = tirx.min_value(x.dtype)

        def value(*i: Any) -> Any:
            lead, place = i[:-dims], i[-dims:]
            at = [
                p * s + k * d - b
                for p, s, k, d, b in zip(place, stride, spans, dilation, before, strict=True)
            ]
            inside = tirx.all(
                *(tirx.all(a >= 0, a < n) for a, n in zip(at, x.shape[-dims:], strict=True))
            )
            return largest(tirx.if_then_else(inside, x(*lead, *at), lowest), axis=spans)

        return te.compute(shape, value, name=f"max_pool{dims}d")

    return builder.call_te(compute, call.args[0], primfunc_name_hint=f"max_pool{dims}d")


def _is_float(argument: Any) -> bool:
    return _dtype(argument) in ("float32", "float64")


def _dtype(value: Any) -> str:
    kind = value.ty.dtype
    return str(getattr(kind, "dtype", kind))


def _number(bound: Any) -> float:
    value = getattr(bound, "value", bound)
    return float(getattr(value, "value", value))


def _as(bound: Any, x: Any) -> Any:
    from tvm import tirx

    return tirx.const(float(bound), _dtype(x))
