"""fma32 against exact rational arithmetic, over all classes of float32."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lutcc.ir.arithmetic import fma32, mean_of_groups, relu32
from tests.ir import plain

bits = st.integers(0, 2**32 - 1)
close = st.integers(-64, 64)


def from_bits(pattern: int) -> float:
    return struct.unpack("<f", struct.pack("<I", pattern))[0]


def check(a: float, b: float, c: float) -> None:
    want = np.float32(plain.fma(a, b, c))
    got = fma32(np.float32(a), np.float32(b), np.float32(c))[()]
    same = (np.isnan(want) and np.isnan(got)) or want.tobytes() == got.tobytes()
    assert same, f"fma({a!r}, {b!r}, {c!r}) = {got!r}, exactly {want!r}"


@settings(max_examples=1500, deadline=None)
@given(bits, bits, bits)
def test_any_bit_patterns(a: int, b: int, c: int) -> None:
    check(from_bits(a), from_bits(b), from_bits(c))


@settings(max_examples=1500, deadline=None)
@given(st.floats(width=32), st.floats(width=32), close)
def test_cancellation(a: float, b: float, ulps: int) -> None:
    """c is the negated rounded product, moved by some units in the last place."""
    with np.errstate(all="ignore"):
        product = np.float32(a) * np.float32(b)
    pattern = struct.unpack("<I", np.float32(-product).tobytes())[0]
    check(a, b, from_bits((pattern + ulps) % 2**32))


@settings(max_examples=1500, deadline=None)
@given(st.integers(2**23, 2**24 - 1), st.integers(2**23, 2**24 - 1), close, st.integers(-70, 70))
def test_ties_and_sticky_bits(m: int, k: int, low: int, shift: int) -> None:
    """A product of 48 bits plus an addend far below or above it: double rounding goes wrong."""
    check(float(m), float(k), float(np.float32(low * 2.0**shift)))
    check(float(m) * 2.0**-60, float(k) * 2.0**-100, float(np.float32(low * 2.0**-149)))


def test_double_rounding_is_avoided() -> None:
    """float32(float64(a * b) + c) is wrong here; the fused result is not."""
    a, b, c = np.float32(1 + 2**-23), np.float32(1.5), np.float32(-(2.0**-60))
    # a * b = 1.5 + 1.5 * 2**-23 is halfway between two float32; c breaks the tie downwards, but is
    # lost in float64, so that rounding again goes up to the even neighbour.
    naive = np.float32(np.float64(a) * np.float64(b) + np.float64(c))
    exact = plain.fma(float(a), float(b), float(c))
    assert float(naive) == 1.5 + 2 * 2**-23
    assert exact == 1.5 + 2**-23
    assert float(fma32(a, b, c)) == exact


def test_special_values() -> None:
    inf, nan, big = np.float32(np.inf), np.float32(np.nan), np.float32(3.4028235e38)
    one, zero = np.float32(1), np.float32(0)
    assert np.isnan(fma32(inf, zero, one))
    assert np.isnan(fma32(inf, one, -inf))
    assert np.isnan(fma32(one, one, nan))
    assert fma32(big, big, -big) == np.inf
    assert fma32(big, np.float32(2), -big) == big
    assert np.signbit(fma32(-zero, one, -zero))
    assert not np.signbit(fma32(one, one, -one))
    tiny = np.float32(1e-45)
    assert fma32(tiny, np.float32(0.5), zero) == 0  # half the least subnormal: to even
    assert fma32(tiny, np.float32(0.5), tiny) == 2 * tiny  # 1.5 of them: to even, upwards


def test_broadcasting_and_types() -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    got = fma32(x, np.ones(3, np.float32), np.float32(1))
    assert got.shape == (2, 3)
    assert (got == x + 1).all()
    assert fma32(np.zeros((0, 3), np.float32), np.ones(3, np.float32), np.float32(1)).shape == (
        0,
        3,
    )
    with pytest.raises(TypeError, match="float64"):
        fma32(x, np.ones(3), x)


def test_relu_of_special_values() -> None:
    x = np.array([-1, 0.0, -0.0, 2, np.nan, -np.inf, np.inf], np.float32)
    want = np.array([0, 0.0, -0.0, 2, np.nan, 0, np.inf], np.float32)
    assert relu32(x).tobytes() == want.tobytes()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 255), min_size=1, max_size=300), st.integers(1, 8))
def test_mean_of_groups(values: list[int], log: int) -> None:
    group = 2**log
    padded = values + [0] * (-len(values) % group)
    want = sum(plain.averaging_tree(padded[g : g + group]) for g in range(0, len(padded), group))
    assert mean_of_groups(np.array(values, np.uint8), group) == want
