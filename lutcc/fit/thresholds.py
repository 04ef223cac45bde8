"""Where between two neighbouring values of a column a tree's threshold stands.

In the middle, as in MADDNESS, but for columns that come from integers. Behind a look-up layer,
also behind an affine function, ReLU or the largest of several, the values of a column are
``offset + k * step``, and the middle of two that are an even number of steps apart is such a value
itself. Wherever the same sum is rounded in another way (a batch norm, and the constants that it is
folded into), rows of that value would go to the other side. There a threshold stands half way
between two values that can occur. Means of several, and sums of two layers, are on no one lattice:
few of their middles are values.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import numpy as np

#: Distinct values that say whether they are a lattice, at least.
_VALUES = 8
#: In units of the last place at the largest value, about: what are roundings of one value, and the
#: least step that is told from what float32 makes of any values.
_SAME, _LEAST_STEP = 8, 128
#: How far values may be from the lattice, in steps.
_AWAY = 1 / 16
#: The smallest gap between values is one of so many steps.
_GAPS = (1, 2, 3)
#: A threshold nearer to a lattice value than this, in steps, is moved.
_NEAR = 0.4


class Lattice(NamedTuple):
    """The values ``offset + k * step``, k whole."""

    offset: float
    step: float

    @classmethod
    def of(cls, ordered: np.ndarray) -> Self | None:
        """Return the lattice of a column's values (N,) float32, which ascend, or None.

        The first and the last value do not count: a function may have clipped them. None, too, if
        all are exact multiples of a number, as pixels are: nothing has been rounded there.

        Examples
        --------
        >>> Lattice.of(np.arange(20, dtype=np.float32) / 16) is None
        True
        >>> values = 0.3 + 0.1 * np.arange(20)
        >>> round(Lattice.of(values.astype(np.float32)).step, 5)
        0.1
        """
        if not len(ordered):
            return None
        unit = float(np.abs(ordered[[0, -1]]).max()) * 2.0**-23
        distinct = ordered[np.diff(ordered, prepend=-np.inf) > _SAME * unit]
        values = distinct[1:-1].astype(np.float64)
        if len(values) < _VALUES:
            return None
        gaps = np.diff(values)
        least = gaps.min()
        if least < _LEAST_STEP * unit or not np.fmod(gaps, least).any():
            return None
        shortest, middle = gaps[gaps < 1.2 * least].mean(), values.mean()
        for parts in _GAPS:
            places = np.append(0.0, np.cumsum(np.rint(gaps / (shortest / parts))))
            centred = places - places.mean()
            step = centred @ values / (centred @ centred)
            away = np.abs(values - middle - step * centred).max()
            if step >= _LEAST_STEP * unit and away <= _AWAY * step:
                return cls(float(middle - step * places.mean()), float(step))
        return None

    def half_way(self, points: np.ndarray) -> np.ndarray:
        """Return, for ``points`` (n,), the nearest half-way points, but not just below a value.

        A row of a value that was the threshold went to the left: it still does.
        """
        steps = np.floor((points - self.offset) / self.step + (0.5 - _NEAR))
        return self.offset + (steps + 0.5) * self.step

    def distance(self, points: np.ndarray) -> np.ndarray:
        """Return how far ``points`` (n,) are from the nearest value, in steps: at most 0.5."""
        places = (points - self.offset) / self.step
        return np.abs(places - np.rint(places))


def thresholds_between(low: np.ndarray, high: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """Return thresholds of one column, each between two of its values.

    Parameters
    ----------
    low, high
        (n,) float32, low <= high. Where both are the same nothing is to be parted.
    ordered
        (N,) float32, the values of the column, which ascend.

    Returns
    -------
    numpy.ndarray
        (n,) float32 ``t`` with ``low <= t < high``, as near the middle as rounding allows; where
        low is high, low. If the positive or the negative values are a lattice (a leaky ReLU has two
        steps), thresholds among them that would be less than 0.4 steps from one of its values stand
        half way between two, and where low is high above it.

    Examples
    --------
    >>> values = np.float32(0.1) * np.arange(1, 21, dtype=np.float32)
    >>> thresholds_between(values[:1], values[2:3], values).round(3).tolist()  # not 0.2
    [0.25]
    >>> thresholds_between(np.float32([1]), np.float32([3]), np.float32([1, 3])).tolist()
    [2.0]
    """
    middles = (low.astype(np.float64) + high) / 2
    thresholds = middles.astype(np.float32)
    thresholds = np.where(thresholds < high, thresholds, low)
    for sign in (-1, 1):
        lattice = Lattice.of(ordered[np.sign(ordered) == sign])
        if lattice is None:
            continue
        moved = lattice.half_way(middles).astype(np.float32)
        usable = (low <= moved) & ((moved < high) | (low == high)) & (np.sign(middles) == sign)
        thresholds = np.where(usable & (lattice.distance(middles) < _NEAR), moved, thresholds)
    return thresholds
