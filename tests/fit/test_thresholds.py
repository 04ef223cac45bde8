"""Thresholds: in the middle, but among values of a lattice half way between two of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lutcc.fit.thresholds import Lattice, thresholds_between
from lutcc.fit.tree import fit_balanced_tree

SEEDS = st.integers(0, 2**32 - 1)
#: What may stand between a look-up layer and a tree; 0 and the ends need be on no lattice.
FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "nothing": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "clip": lambda x: np.clip(x, np.float32(0.1), 3),
    "leaky relu": lambda x: np.where(x < 0, x * np.float32(0.1), x),
    "zero padding": lambda x: np.append(x, np.zeros(40, np.float32)),
}


def column(random: np.random.Generator, step: float, rows: int = 600) -> tuple[np.ndarray, float]:
    """Return roundings of ``offset + k * step``, of a deviation of about 1, and the offset."""
    offset = random.uniform(0, step)
    values = offset + step * np.rint(random.normal(random.uniform(-0.5, 0.5), 1, rows) / step)
    values = values.astype(np.float32)
    return values + np.spacing(values) * np.float32(random.integers(-1, 2, rows)), offset


def some_pairs(random: np.random.Generator, values: np.ndarray) -> list[np.ndarray]:
    """Return pairs of different values, the lower ones first."""
    low, high = np.sort(random.choice(values, (2, 80)), axis=0)
    return [low[low < high], high[low < high]]


def middles(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return ((low.astype(np.float64) + high) / 2).astype(np.float32)


@settings(max_examples=150, deadline=None)
@given(SEEDS, st.floats(3e-4, 0.05), st.sampled_from(sorted(FUNCTIONS)))
def test_on_lattices_half_way_between_two_values(seed: int, step: float, name: str) -> None:
    random = np.random.default_rng(seed)
    values, offset = column(random, step)
    values = np.sort(FUNCTIONS[name](values))
    low, high = some_pairs(random, values)
    found = thresholds_between(low, high, values)
    assert found.dtype == np.float32
    assert ((low <= found) & (found < high)).all()
    on_it = (low > 0) & (low > values[0]) & (high < values[-1])
    for factor in (1.0, 0.1) if name == "leaky relu" else (1.0,):
        lattice = Lattice(offset * factor, step * factor)
        distances = lattice.distance(found[on_it])
        # two roundings of one value are no two values
        apart = high[on_it] - low[on_it] > step * factor / 2
        assert (distances[apart] >= 0.38).all()
        on_it = (high < 0) & (low > values[0])  # the other side, which has the factor


@settings(max_examples=150, deadline=None)
@given(SEEDS, st.sampled_from([12, 40, 2000]), st.sampled_from(["normal", "uniform", "lognormal"]))
def test_in_the_middle_of_other_values(seed: int, rows: int, distribution: str) -> None:
    random = np.random.default_rng(seed)
    values = np.sort(getattr(random, distribution)(size=rows).astype(np.float32))
    low, high = some_pairs(random, values)
    np.testing.assert_array_equal(thresholds_between(low, high, values), middles(low, high))
    np.testing.assert_array_equal(thresholds_between(low, low, values), low)


def test_pixels_are_left_alone() -> None:
    """Nothing has rounded them: they are the same bits wherever they are compared."""
    values = np.sort(np.random.default_rng(0).integers(0, 256, 1000).astype(np.float32))
    for scaled in (values, values / 16, values / 128 - 1):
        low, high = scaled[:-4], scaled[4:]
        parted = low < high
        found = thresholds_between(low[parted], high[parted], scaled)
        np.testing.assert_array_equal(found, middles(low[parted], high[parted]))


def test_neighbouring_floats_and_the_largest_are_parted() -> None:
    most = np.finfo(np.float32).max
    low = np.array([1, -most, most / 2], np.float32)
    high = np.array([np.nextafter(np.float32(1), 2), 0, most], np.float32)
    found = thresholds_between(low, high, np.sort(np.append(low, high)))
    assert ((low <= found) & (found < high)).all()


@pytest.mark.parametrize("gap", [1, 2, 3])
def test_the_step_is_found_where_no_neighbours_occur(gap: int) -> None:
    """The values are 2 and 3 (or the like) steps apart."""
    random = np.random.default_rng(gap)
    places = np.cumsum(random.choice([gap, gap + 1], 200))
    lattice = Lattice.of((0.123 + 0.0071 * places).astype(np.float32))
    assert lattice is not None
    assert lattice.step == pytest.approx(0.0071, rel=1e-4)


def test_a_value_alone_has_the_threshold_above_it() -> None:
    random = np.random.default_rng(0)
    values, offset = column(random, 0.01)
    values = np.sort(values)
    alone = values[100:500:50]
    found = thresholds_between(alone, alone, values)
    steps = (found - alone) / 0.01
    np.testing.assert_allclose(steps, 0.5, atol=0.01)
    assert abs(Lattice(offset, 0.01).distance(alone)).max() < 0.01


@pytest.mark.parametrize("few", range(4))
def test_few_values_have_no_lattice(few: int) -> None:
    assert Lattice.of(np.float32(0.1) * np.arange(few, dtype=np.float32)) is None


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_trees_do_not_depend_on_how_a_sum_is_rounded(seed: int) -> None:
    """A batch norm, and the same folded into a scale and an offset."""
    random = np.random.default_rng(seed)
    sums = random.binomial(2000, 0.5, (2000, 6)).astype(np.float32)
    scale = random.uniform(0.01, 0.02, 6).astype(np.float32)
    offset = random.normal(-16, 2, 6).astype(np.float32)
    mean, slope, shift = random.normal(size=(3, 6)).astype(np.float32)
    normed = np.maximum((sums * scale + offset - mean) * slope + shift, 0)
    folded = np.maximum(sums * (scale * slope) + ((offset - mean) * slope + shift), 0)
    tree = fit_balanced_tree(normed[:600], 4, 6)
    node = {id(rows): np.ones(len(rows), int) for rows in (normed, folded)}
    for rows in (normed, folded):
        for column_number in tree.splitdims:
            above = rows[:, column_number] > tree.splitvals[node[id(rows)]]
            node[id(rows)] = 2 * node[id(rows)] + above
    np.testing.assert_array_equal(node[id(normed)], node[id(folded)])
